"""Divergences at the log ratios of samples: values, influences and their standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from divjax import fdiv


def gaussian_log_ratios(seed, n, m, shift=1.0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(shift, 1, n), rng.normal(0, 1, m)
    return jnp.asarray(shift * x - shift**2 / 2), jnp.asarray(shift * y - shift**2 / 2)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (fdiv.KL(), 0.5),
        (fdiv.Jeffreys(), 1.0),
        (fdiv.SquaredHellinger(), 1 - np.exp(-1 / 8)),
        (fdiv.Renyi(0.3), 0.15),
        (fdiv.Renyi(1.0), 0.5),
        (fdiv.Renyi(1.5), 0.75),
        (fdiv.Alpha(0.5), 4 * (1 - np.exp(-1 / 8))),
    ],
)
def test_plug_in_values_and_standard_errors(divergence, expected):
    """Unit Gaussians one apart: KL ½, Rényi α/2; errors within 4.5 of their own size."""
    with jax.enable_x64(True):
        value, at_p, at_q = jax.jit(divergence.plug_in)(*gaussian_log_ratios(0, 4000, 3000))
        error = jnp.sqrt(jnp.var(at_p) / 4000 + jnp.var(at_q) / 3000)
        assert 0 < error < 0.1
        assert jnp.abs(value - expected) < 4.5 * error


renyi_plug_in = jax.jit(lambda renyi, u_p, u_q: renyi.plug_in(u_p, u_q))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("shift", [0.3, 9.0])
def test_renyi_plug_in_is_log_sum_exp_and_influences_are_its_derivatives(alpha, shift):
    """Near equality and far from it, where exponentials of the log ratios span e^{±100}."""
    with jax.enable_x64(True):
        u_p, u_q = gaussian_log_ratios(1, 30, 20, shift)
        value, at_p, at_q = renyi_plug_in(fdiv.Renyi(jnp.asarray(alpha)), u_p, u_q)
        blend = np.clip(alpha, 0, 1) ** 3
        blend *= 6 * min(alpha, 1) ** 2 - 15 * min(alpha, 1) + 10

        def reference(a, b):
            """From weighted samples."""
            if alpha == 1:
                return np.sum(a * u_p)
            means = [
                scipy.special.logsumexp((alpha - 1) * u_p, b=a),
                scipy.special.logsumexp(alpha * u_q, b=b),
            ]
            return scipy.special.logsumexp(means, b=[blend, 1 - blend]) / (alpha - 1)

        a, b = np.full(30, 1 / 30), np.full(20, 1 / 20)
        np.testing.assert_allclose(value, reference(a, b), rtol=1e-12)
        # Moving mass ε from sample 1 to sample 0 moves the value by ε (influence₀ − influence₁).
        step = 1e-6 / 30
        for influence, weights, slot in ((at_p, a, 0), (at_q, b, 1)):
            moved = np.zeros_like(weights)
            moved[:2] = step, -step
            up, down = (
                reference(*((a + s * moved, b) if slot == 0 else (a, b + s * moved)))
                for s in (1, -1)
            )
            difference = (up - down) / (2 * step)
            np.testing.assert_allclose(
                influence[0] - influence[1], difference, rtol=1e-4, atol=1e-8
            )


def test_renyi_is_smooth_in_alpha_and_never_overflows():
    u_p, u_q = gaussian_log_ratios(2, 50, 40)
    value = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda a, c: fdiv.Renyi(a).plug_in(u_p + c, u_q + c)[0]), (0, None)
        )
    )
    with jax.enable_x64(True):
        alpha = jnp.array([0.2, 0.5, 1.0, 2.0])
        slope = value(alpha, 0.0)[1]
        up, down = (value(alpha + s, 0.0)[0] for s in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-4)
    for constant in (-2000.0, 2000.0):
        values, slopes = value(jnp.array([0.5, 1.0, 1.0 + 1e-6, 4.0], jnp.float32), constant)
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(slopes).all()
        np.testing.assert_allclose(
            values[1:], constant + value(jnp.array([1.0, 1.0 + 1e-6, 4.0]), 0.0)[0], rtol=1e-5
        )
