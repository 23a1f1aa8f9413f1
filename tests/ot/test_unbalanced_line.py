"""Unbalanced transport on the line against POT and differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.special

from divjax.core.types import Status
from divjax.ot.unbalanced_line import unbalanced_1d
from tests.ot.test_one_dimensional import samples

N, M, D = 7, 5, 3


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("penalty", [0.3, (2.0, 0.7), 100.0])
def test_unbalanced_transport_on_the_line_matches_pot(penalty):
    """POT's majorisation–minimisation on the whole cost matrix."""
    x, y, a, b = samples(4)
    a = 1.7 * a
    found = jax.jit(functools.partial(unbalanced_1d, p=2, tolerance=1e-3))(
        x, y, a, b, marginal_penalty=penalty
    )
    costs = (x[:, None] - y) ** 2
    plan = ot.unbalanced.mm_unbalanced(
        a, b, costs, penalty, div="kl", numItermax=200_000, stopThr=1e-14
    )
    pair = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    kl = lambda p, q: np.sum(scipy.special.xlogy(p, p / q) - p + q)
    primal = lambda plan: (
        np.sum(plan * costs) + pair[0] * kl(plan.sum(1), a) + pair[1] * kl(plan.sum(0), b)
    )
    assert found.converged
    # A lower bound within the gap of its own plan's objective, and that is the least.
    np.testing.assert_allclose(primal(np.asarray(found.plan())) - found.gap, found.value, rtol=1e-9)
    least = primal(plan)
    assert found.value <= least + 1e-9
    assert least <= found.value + found.gap + 1e-9
    assert found.gap <= 1e-3 * found.value


def test_unbalanced_gradients_are_differences():
    x, y, a, b = samples(2)
    rng = np.random.default_rng(3)
    run = lambda x, a, rho: (
        unbalanced_1d(
            x, y, a, b, marginal_penalty=(rho, 0.5), p=1.5, tolerance=1e-7, max_iterations=20_000
        ).value
    )
    run, gradient = jax.jit(run), jax.jit(jax.grad(run, argnums=(0, 1, 2)))
    direction = rng.normal(size=N), 0.05 * rng.normal(size=N), 0.3
    slopes = gradient(x, a, 0.8)
    step = 1e-4
    for at, slope in enumerate(slopes):
        along = lambda s, at=at: run(
            *(v + s * direction[i] if i == at else v for i, v in enumerate((x, a, 0.8)))
        )
        moved = along(step), along(-step)
        np.testing.assert_allclose(
            np.sum(slope * direction[at]), (moved[0] - moved[1]) / (2 * step), rtol=1e-3, atol=1e-6
        )


def test_unbalanced_transport_flags_what_is_wrong():
    x = jnp.arange(4.0)
    run = jax.jit(
        lambda x, rho: unbalanced_1d(x, x[:3] + 1, marginal_penalty=rho, max_iterations=2)
    )
    assert run(x.at[0].set(jnp.nan), 1.0).status == Status.NOT_FINITE
    assert jnp.isnan(run(x, -1.0).value)
    assert run(x, -1.0).status == Status.INVALID_INPUT
    assert unbalanced_1d(x, x, marginal_penalty=1.0).value == 0
