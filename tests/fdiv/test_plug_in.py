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
        alpha = jnp.array([0.5, 1.0, 1.0 + 1e-6, 4.0], jnp.float32)
        values, slopes = value(alpha, constant)
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(slopes).all()
        np.testing.assert_allclose(values[1:], constant + value(alpha, 0.0)[0][1:], rtol=1e-5)


DIVERGENCES = (
    fdiv.KL(),
    fdiv.ReverseKL(),
    fdiv.JensenShannon(),
    fdiv.TotalVariation(),
    fdiv.SkewKL(0.2),
    fdiv.Alpha(0.3),
    fdiv.Renyi(0.4),
    fdiv.Renyi(2.0),
    2 * fdiv.KL() + fdiv.Jeffreys().reverse(),
)
plug_in = jax.jit(lambda divergence, *args: divergence.plug_in(*args))
slopes = jax.jit(lambda divergence, *args: divergence.sensitivities(*args))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_weights_are_repetitions_and_zeros_are_absences(divergence):
    with jax.enable_x64(True):
        u_p, u_q = gaussian_log_ratios(3, 8, 6)
        times_p, times_q = np.array([1, 3, 0, 2, 1, 0, 1, 2]), np.array([2, 0, 1, 1, 3, 1])
        repeated = jnp.repeat(u_p, times_p), jnp.repeat(u_q, times_q)
        holes = (jnp.where(t > 0, u, jnp.nan) for t, u in ((times_p, u_p), (times_q, u_q)))
        weights = (jnp.asarray(t / t.sum()) for t in (times_p, times_q))
        value, at_p, at_q = plug_in(divergence, *holes, *weights)
        expected = plug_in(divergence, *repeated)
        np.testing.assert_allclose(value, expected.value, rtol=1e-10)
        np.testing.assert_allclose(
            np.repeat(at_p, times_p), expected.influence_p, rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(
            np.repeat(at_q, times_q), expected.influence_q, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_sensitivities_are_derivatives_of_the_variational_form(divergence):
    """At exact ratios of discrete p and q, where E_q[∂S] = −E_p[∂T] row by row, and finite
    differences of D at q moved along its own log ratio agree."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        p, q = rng.dirichlet(np.ones(6) * 3, 2)
        u = jnp.log(p / q)
        at_p, at_q = slopes(divergence, u, u, jnp.asarray(p), jnp.asarray(q))
        np.testing.assert_allclose(p * at_p, -q * at_q, rtol=1e-10, atol=1e-14)

        def value(u):
            """The variational form by its definition, at u for exact samples of p and q."""
            if isinstance(divergence, fdiv.Renyi):
                alpha = float(divergence.alpha)
                integral = np.sum(p**alpha * q ** (1 - alpha))
                terms = p @ (alpha * np.exp((alpha - 1) * u)) / (alpha - 1)
                return (terms - q @ np.exp(alpha * u)) / integral
            return p @ divergence.dual_integrand_p(u) + q @ divergence.dual_integrand_q(u)

        step = 1e-6 * np.eye(6)
        for row in range(6):
            moved = [value(np.asarray(u) + s * step[row]) for s in (1, -1)]
            np.testing.assert_allclose((moved[0] - moved[1]) / 2e-6, 0, atol=1e-8)


def _kl(p, q):
    return p @ np.log(p / q)


# Each of `DIVERGENCES` by its definition, at discrete p and q.
DEFINITIONS = (
    _kl,
    lambda p, q: _kl(q, p),
    lambda p, q: (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2,
    lambda p, q: np.abs(p - q).sum() / 2,
    lambda p, q: _kl(p, 0.2 * p + 0.8 * q),
    lambda p, q: (np.sum(p**0.3 * q**0.7) - 1) / (0.3 * -0.7),
    lambda p, q: np.log(np.sum(p**0.4 * q**0.6)) / -0.6,
    lambda p, q: np.log(np.sum(p**2 / q)),
    lambda p, q: 3 * _kl(p, q) + _kl(q, p),
)


@pytest.mark.parametrize("index", range(len(DIVERGENCES)), ids=lambda i: str(DIVERGENCES[i]))
def test_potentials_are_derivatives_in_both_distributions(index):
    """Up to a constant: along changes of p, and of q, that keep their sum."""
    divergence, definition = DIVERGENCES[index], DEFINITIONS[index]
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        p, q = rng.dirichlet(np.ones(6) * 3, 2)
        u = jnp.log(p / q)
        of_p, of_q = divergence.potentials(u, u, jnp.asarray(p), jnp.asarray(q))
        for _ in range(3):
            change = rng.normal(size=6)
            change = 1e-6 * (change - change.mean())
            along_p = definition(p + change, q) - definition(p - change, q)
            along_q = definition(p, q + change) - definition(p, q - change)
            np.testing.assert_allclose(2 * of_p @ change, along_p, rtol=1e-6)
            np.testing.assert_allclose(2 * of_q @ change, along_q, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.0 + 1e-7, jnp.float32(1.0)])
def test_potentials_are_smooth_in_the_order_of_renyi(alpha):
    """At one they are those of KL, 1 + log r and −r, up to constants."""
    u = jnp.array([-2.0, 0.0, 1.0])
    for found, expected in zip(fdiv.Renyi(alpha).potentials(u, u), (u, -jnp.exp(u)), strict=True):
        np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_sensitivities_far_apart(dtype):
    """KL: 1 under p wherever it is. Rényi: α times the shares of a power mean, which sum to α."""
    with jax.enable_x64(True):
        u = jnp.array([0.5, 40.0, 300.0, 2000.0], dtype)
        for divergence in DIVERGENCES:
            found = slopes(divergence, u, -u)
            assert all(jnp.isfinite(leaf).all() and leaf.dtype == dtype for leaf in found)
        np.testing.assert_allclose(slopes(fdiv.KL(), u, -u)[0], 1)
        np.testing.assert_allclose(slopes(fdiv.ReverseKL(), u, -u)[1], -1)
        # At α = 3 the integral is a mean under p alone.
        np.testing.assert_allclose(slopes(fdiv.Renyi(3.0), u, -u)[0].mean(), 3, rtol=1e-3)


@pytest.mark.parametrize("generator", [fdiv.KL(), fdiv.Renyi(2.0), fdiv.JensenShannon()])
def test_plug_in_weights_sum_to_one(generator):
    u = jnp.log(jnp.array([2.0, 0.5]))
    p, q = jnp.array([2.0, 1.0]) / 3, jnp.array([1.0, 2.0]) / 3
    expected = {"KL": np.log(2) / 3, "Renyi": np.log(1.5)}.get(type(generator).__name__)
    value = generator.plug_in(u, u, p, q).value
    if expected is not None:  # Σ p log(p/q) and log Σ p²/q
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    for wrong in ((2 * p, 2 * q), (p, 1e3 * q), (0 * p, q), (p, 0 * q)):
        assert jnp.isnan(generator.plug_in(u, u, *wrong).value)
    with pytest.raises(ValueError, match="a must"):
        generator.plug_in(u, u, jnp.ones(1), q)
    with pytest.raises(ValueError, match="b must"):
        generator.plug_in(u, u, p, jnp.ones(3) / 3)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 1.5, 2.0, 6.0])
def test_renyi_tells_what_is_no_sample_where_it_has_no_share(order):
    """NaN, or weights that are no shares, in either sample."""
    u, w = jnp.array([0.1, 0.5, 2.0]), jnp.full(3, 1 / 3)
    divergence = fdiv.Renyi(order)
    assert not jnp.isnan(divergence.plug_in(3 * u, 3 * u, w, w).value)
    missing = (3 * u).at[0].set(jnp.nan)
    assert jnp.isnan(divergence.plug_in(3 * u, missing).value)
    assert jnp.isnan(divergence.plug_in(missing, 3 * u).value)
    for bad in (1.5 * w, jnp.array([-1.0, 1.0, 1.0])):
        found = jax.jit(divergence.plug_in)(3 * u, 3 * u, w, bad)
        assert jnp.isnan(found.value)
        assert jnp.isnan(found.influence_q).all()
        assert jnp.isnan(jax.jit(divergence.plug_in)(3 * u, 3 * u, bad, w).value)


@pytest.mark.parametrize("alpha", [1e-3, 1e-5, 1e-8, 1e-20])
def test_small_shares_of_a_mixture_keep_their_digits(alpha):
    """1 − α is 1 in float32: −log α and 1/α − 1 where q has no density, and slopes in α."""
    with jax.enable_x64(False):
        skew, mixed = fdiv.SkewKL(alpha), fdiv.Mixed(fdiv.ChiSquared(), alpha)
        np.testing.assert_allclose(skew.integrand_p(jnp.inf), -np.log(alpha), rtol=1e-6)
        np.testing.assert_allclose(mixed.integrand_p(jnp.inf), 1 / alpha - 1, rtol=1e-5)
        for u in (3.0, 30.0, 79.0):
            expected = -np.log(alpha + (1 - alpha) * np.exp(-u))
            np.testing.assert_allclose(skew.integrand_p(u), expected, rtol=1e-6)
            slope_in_share = jax.grad(lambda a, u: fdiv.SkewKL(a).integrand_p(u))
            slope = slope_in_share(jnp.float32(alpha), jnp.float32(u))
            expected = -(1 - np.exp(-u)) / (alpha + (1 - alpha) * np.exp(-u))
            np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_mixtures_where_p_has_no_density():
    """log((1 + r)/2r) diverges at r = 0."""
    assert fdiv.SoftenedReverseKL().integrand_p(-jnp.inf) == jnp.inf
    assert fdiv.Mixed(fdiv.NeymanChiSquared(), 0.25).integrand_p(-jnp.inf) == jnp.inf
