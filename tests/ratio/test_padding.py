"""Fits to samples of another size: what is compiled, and that padding changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import ratio
from divjax.core.padding import padded_size
from divjax.ratio.heads import Neighbors, Telescoping

KEY = jax.random.key(0)
P, Q = np.asarray(jax.random.normal(jax.random.key(1), (2, 400, 2)), np.float32)
P = P + np.float32([0.7, 0.0])

COMPILED: list[tuple[str, float]] = []


def record(event, seconds, fun_name="", **_):
    if "backend_compile" in event:
        COMPILED.append((fun_name, seconds))


jax.monitoring.register_event_duration_secs_listener(record)


@pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 65, 900, 1000, 1024, 1025, 10_000, 123_457])
def test_padded_sizes(num_rows):
    size = padded_size(num_rows)
    assert padded_size(size) == size
    assert num_rows <= size <= max(64, 1.25 * num_rows)
    assert len({padded_size(n) for n in range(size, 2 * size)}) <= 6  # few


def everything(fit):
    return fit.kl(), fit.js(), fit.auc(), fit.certified_js(), fit.log_ratio(P[:7])


def test_a_sample_of_another_size_compiles_no_training_program():
    """Only what pads and cuts: of a handful of operations each."""
    method = ratio.ClassifierRatio("linear", num_folds=2)
    everything(method.fit(KEY, P[:310], Q[:305]))
    COMPILED.clear()
    fit = method.fit(KEY, P[:300], Q[:290])
    everything(fit)
    assert fit.log_ratio_p.shape == (300,)
    names = {name for name, _ in COMPILED}
    assert not names & {
        "jit(_fit)",
        "jit(divergence_estimate)",
        "jit(score_statistic)",
        "jit(certified_js)",
    }
    assert len(COMPILED) <= 12, COMPILED


OTHERS = ("groups", "neighbors", "kliep", "pack", "telescoping")


@pytest.mark.parametrize(
    "method",
    ["linear", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)],
)
def test_padding_changes_no_number(method):
    """Traced rows are not padded."""
    n, m = 45, 70
    groups, pack, head = None, 1, "linear"
    if method == "neighbors":
        head = Neighbors()
    if method == "groups":
        groups = np.arange(n) // 2, np.arange(m) // 2 + 5
    if method == "pack":
        pack = 2
    estimator = ratio.ClassifierRatio(head, num_folds=2, pack_size=pack)
    if method == "kliep":
        estimator = ratio.KLIEPRatio(num_folds=2)
    if method == "telescoping":
        estimator = ratio.TelescopingRatio(Telescoping(2, network=None), num_folds=2)

    def numbers(p, q):
        fit = estimator.fit(KEY, p, q, groups=groups)
        kl, js = fit.kl(), fit.js()
        certified = fit.certified_js() if groups is None else jnp.zeros(())
        rows = fit.log_ratio_p, fit.log_ratio_q, fit.weights_p, fit.weights_q
        return (kl.value, kl.std_error, js.interval, certified, fit.misfit, fit.ties), rows

    padded, plain = numbers(P[:n], Q[:m]), jax.jit(numbers)(P[:n], Q[:m])
    for one, other in zip(*map(jax.tree.leaves, (padded, plain)), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
