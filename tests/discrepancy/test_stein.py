"""The kernel Stein discrepancy and its test, against autodiff, quadrature and known moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, kernels, problems
from divjax.core.types import Status

KEY = jax.random.key(0)


def normal(x):
    return -0.5 * jnp.sum(x**2)


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(bandwidth=0.9), kernels.InverseMultiquadric(bandwidth=1.3)]
)
def test_stein_discrepancy_is_the_double_sum_of_autodiff(kernel):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, a = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(np.arange(1, 6) / 15)
        log_prob = lambda z: -jnp.sum(z**4) - normal(z - 1)
        k = lambda p, q: kernel(p[None], q[None])[0, 0]
        s = jax.grad(log_prob)

        def u(p, q):
            mixed = jnp.trace(jax.jacfwd(jax.grad(k), argnums=1)(p, q))
            return (
                k(p, q) * s(p) @ s(q)
                + s(p) @ jax.grad(k, 1)(p, q)
                + s(q) @ jax.grad(k)(p, q)
                + mixed
            )

        # Off the diagonal only: autodiff of ‖p − q‖ kernels at p = q is covered by the formula's
        # trace.
        pairs = jax.jit(jax.vmap(jax.vmap(u, (None, 0)), (0, None)))(x, x)
        pairs, weights = np.asarray(pairs), np.asarray(a)
        expected = sum(
            weights[i] * weights[j] * pairs[i, j] for i in range(5) for j in range(5) if i != j
        )
        scores = np.asarray(jax.jit(jax.vmap(s))(x))
        trace = float(kernel.stein_trace(jnp.zeros(()), 3))
        diagonal = np.sum(weights**2 * (np.sum(scores**2, axis=1) + trace))
        stein = jax.jit(
            lambda: [
                discrepancy.kernel_stein(
                    x, log_prob=log_prob, kernel=kernel, weights=a, debias=debias
                )
                for debias in (False, True)
            ]
        )
        found, unbiased = stein()
        np.testing.assert_allclose(found, expected + diagonal, rtol=1e-9)
        np.testing.assert_allclose(unbiased, expected / (1 - np.sum(weights**2)), rtol=1e-9)


def test_stein_discrepancy_vanishes_for_the_target_and_sees_a_shift():
    """E[n KSD²] of draws from the target is E u(x, x) = E‖s‖² + trace = d + d/σ²: known."""
    kernel, n = kernels.Gaussian(bandwidth=1.0), 100
    x = jax.random.normal(jax.random.key(0), (200, n, 2))
    stein = jax.jit(jax.vmap(lambda x: discrepancy.kernel_stein(x, log_prob=normal, kernel=kernel)))
    values = n * np.asarray(stein(x))
    assert abs(values.mean() - 4) < 4 * values.std() / np.sqrt(200)
    shifted = stein(x + 1)[0]
    assert n * shifted > values.max()


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(bandwidth=1.0), kernels.InverseMultiquadric(bandwidth=1.0)]
)
def test_the_unbiased_stein_discrepancy_has_mean_zero_under_the_target(kernel):
    target = problems.two_component_targets()[0]
    x = jax.vmap(lambda key: target.sample(key, 50))(jax.random.split(jax.random.key(1), 200))
    unbiased = jax.jit(
        jax.vmap(
            lambda x: discrepancy.kernel_stein(
                x, log_prob=target.log_prob, kernel=kernel, debias=True
            )
        )
    )
    values = unbiased(x)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert values.min() < 0
    moved = unbiased(x + 0.5)
    assert moved.mean() > 4 * (moved.std() + values.std()) / np.sqrt(200)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
def test_the_stein_discrepancy_of_doubles_far_away(offset):
    """The kernel of the points themselves, scores at the rounded ones: the double sum in NumPy."""
    x = np.random.default_rng(3).normal(size=(6, 2)) + offset
    scores = offset - x.astype(np.float32).astype(float)
    apart = x[:, None] - x
    squared = np.sum(apart**2, axis=2)
    turn = np.sum(apart * (scores - scores[:, None]), axis=2)
    expected = np.mean(np.exp(-squared / 2) * (scores @ scores.T - turn + 2 - squared))
    log_prob = lambda z: -0.5 * jnp.sum((z - offset) ** 2)
    kernel = kernels.Gaussian(bandwidth=1.0)
    found = discrepancy.kernel_stein(x, log_prob=log_prob, kernel=kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_score_in_place_of_a_log_density():
    x = jax.random.normal(KEY, (9, 3))
    for debias in (False, True):
        expected = discrepancy.kernel_stein(x, log_prob=normal, debias=debias)
        found = discrepancy.kernel_stein(x, score=jnp.negative, debias=debias)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_a_density_may_be():
    x = jnp.ones((3, 2))
    stein = discrepancy.kernel_stein
    with pytest.raises(ValueError, match="InverseMultiquadric; got Energy"):
        stein(x, log_prob=normal, kernel=kernels.Energy())
    with pytest.raises(ValueError, match="log_prob must return a scalar"):
        stein(x, log_prob=jnp.sin)
    with pytest.raises(ValueError, match=r"score must return a vector of shape \(2,\); got shape"):
        stein(x, score=normal)
    with pytest.raises(ValueError, match="one of them; got neither"):
        stein(x)
    with pytest.raises(ValueError, match="one of them; got both"):
        stein(x, log_prob=normal, score=jnp.negative)
    with pytest.raises(ValueError, match="at least two rows to be unbiased"):
        stein(x[:1], log_prob=normal, debias=True)
    with pytest.raises(ValueError, match=r"weights must have shape \(3,\)"):
        stein(x, log_prob=normal, weights=jnp.ones(4))
    with pytest.raises(ValueError, match="two blocks of 2 rows at least"):
        discrepancy.kernel_stein_blocks(x, log_prob=normal)
    with pytest.raises(ValueError, match="x must have at least two rows"):
        discrepancy.kernel_stein_test(KEY, x[:1], log_prob=normal)


def test_blocks_of_rows_change_nothing(monkeypatch):
    """Values and gradients, with more pairs than fit a block."""
    x = jax.random.normal(KEY, (40, 12))
    kernel = kernels.InverseMultiquadric(bandwidth=2.0)
    of = lambda x: discrepancy.kernel_stein(x, log_prob=normal, kernel=kernel, debias=True)
    whole = jax.value_and_grad(of)(x)
    jax.clear_caches()
    monkeypatch.setattr("divjax.core.pairwise.BLOCK_ENTRIES_CPU", 300)
    blocked = jax.value_and_grad(of)(x)
    for one, two in zip(whole, blocked, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    jax.clear_caches()


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Gaussian(bandwidth=1.3),
        kernels.InverseMultiquadric(bandwidth=0.8),
        kernels.Matern(bandwidth=2.0, smoothness=2.5),
    ],
)
def test_gaussians_by_quadrature(kernel):
    """KSD² of N(m, v) to N(0, 1): the double integral of u, and the estimates' means."""
    mean, deviation = 0.5, 1.4
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    points = mean + deviation * nodes
    with jax.enable_x64(True):
        exact = float(
            discrepancy.kernel_stein(
                points[:, None], score=jnp.negative, weights=masses, kernel=kernel
            )
        )
        # The same from the formula: E[s s′ k − s ∂k/∂y − s′ ∂k/∂x + ∂²k/∂x∂y], by differences.
        k = lambda a, b: np.asarray(
            kernel.radial(jnp.asarray((a[:, None] - b[None]) ** 2))[0], float
        )
        step = 1e-4
        up, down = points + step, points - step
        by_x = (k(up, points) - k(down, points)) / (2 * step)
        by_both = (k(up, up) - k(up, down) - k(down, up) + k(down, down)) / (4 * step**2)
        share = masses / masses.sum()
        s = -points
        stein = s[:, None] * s * k(points, points) + s[None] * by_x + (s[None] * by_x).T + by_both
        np.testing.assert_allclose(exact, share @ stein @ share, rtol=1e-5)
    draws = mean + deviation * jax.random.normal(KEY, (400, 30, 1))
    unbiased = jax.jit(
        jax.vmap(
            lambda x: discrepancy.kernel_stein(x, score=jnp.negative, kernel=kernel, debias=True)
        )
    )(draws)
    assert abs(unbiased.mean() - exact) < 4 * unbiased.std() / 20
    blocks = jax.jit(
        jax.vmap(
            lambda x: discrepancy.kernel_stein_blocks(
                x, score=jnp.negative, kernel=kernel, block_size=5
            )
        )
    )(draws.reshape(40, 300, 1))
    assert abs(blocks.value.mean() - exact) < 4 * blocks.value.std() / 40**0.5
    # The standard error is that of the estimates among themselves.
    ratio = blocks.std_error.mean() / blocks.value.std()
    assert abs(ratio - 1) < 4 / np.sqrt(2 * 40)


def test_the_level_of_the_wild_bootstrap():
    """Nominal within two standard errors, for independent rows of the target."""
    num, n = 1000, 100
    kernel = kernels.InverseMultiquadric(bandwidth=1.0)

    def p_value(key):
        key, draw = jax.random.split(key)
        x = jax.random.normal(draw, (n, 2))
        return discrepancy.kernel_stein_test(
            key, x, score=jnp.negative, kernel=kernel, num_resamples=199
        ).p_value

    p_values = np.asarray(jax.jit(jax.vmap(p_value))(jax.random.split(jax.random.key(3), num)))
    for level in (0.05, 0.1):
        share = np.mean(p_values <= level + 1e-6)
        assert abs(share - level) < 2 * np.sqrt(level * (1 - level) / num), share


def test_the_bootstrap_is_of_signs():
    """Each resample is Σ W_i W_j u_ij/n² for signs W; of two rows there are two such numbers."""
    x = jnp.array([[0.3], [1.2]])
    kernel = kernels.Gaussian(bandwidth=1.0)
    test = discrepancy.kernel_stein_test(KEY, x, log_prob=normal, kernel=kernel)
    alone = [discrepancy.kernel_stein(x[i : i + 1], log_prob=normal, kernel=kernel) for i in (0, 1)]
    diagonal = (float(alone[0]) + float(alone[1])) / 4
    cross = float(discrepancy.kernel_stein(x, log_prob=normal, kernel=kernel)) - diagonal
    np.testing.assert_allclose(test.statistic, diagonal + cross, rtol=1e-5)
    values = np.asarray(test.null)
    apart = np.abs(values[:, None] - [diagonal + cross, diagonal - cross])
    assert apart.min(axis=1).max() < 1e-6
    # Half of the signs agree, and a statistic that is equal counts.
    share = np.mean(apart[:, 0] < 1e-6)
    assert abs(share - 0.5) < 4 * 0.5 / 999**0.5
    expected = (1 + np.sum(values >= float(test.statistic) - 1e-6)) / 1000
    np.testing.assert_allclose(test.p_value, expected, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_chain_needs_signs_with_a_memory():
    """Of an autoregressive chain independent signs reject too often, and slow ones do not."""
    num, n, memory = 300, 500, 0.7

    def p_values(key):
        key, start, draw = jax.random.split(key, 3)
        noise = jax.random.normal(draw, (n,)) * (1 - memory**2) ** 0.5
        _, x = jax.lax.scan(
            lambda last, e: (memory * last + e,) * 2, jax.random.normal(start), noise
        )
        return [
            discrepancy.kernel_stein_test(
                key,
                x[:, None],
                score=jnp.negative,
                kernel=kernels.Gaussian(bandwidth=1.0),
                flip_probability=flip,
                num_resamples=199,
            ).p_value
            for flip in (0.5, 0.02)
        ]

    free, slow = jax.lax.map(p_values, jax.random.split(KEY, num), batch_size=50)
    assert np.mean(free <= 0.05) > 0.2
    assert np.mean(slow <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / num)


def test_a_sample_that_is_not_finite_has_no_p_value():
    x = jnp.zeros((5, 2)).at[2, 1].set(jnp.nan)
    test = discrepancy.kernel_stein_test(KEY, x, log_prob=normal)
    assert np.isnan(test.p_value)
    assert test.status == Status.NOT_FINITE


def test_outside_the_support_there_is_no_score():
    """The derivative of −∞, a constant, is zero, which is no score of any density."""
    exponential = lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf)
    x = jnp.array([[0.3], [0.7], [-0.1], [2.0]])
    stein = lambda x, **options: discrepancy.kernel_stein(
        x, log_prob=exponential, kernel=kernels.Gaussian(1.0), **options
    )
    assert jnp.isnan(stein(x))
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    inside = jnp.array([0, 1, 3])
    # The score of an exponential density is −1.
    known = discrepancy.kernel_stein(
        x[inside], score=lambda x: -1 + 0 * x, kernel=kernels.Gaussian(1.0)
    )
    np.testing.assert_allclose(stein(x, weights=weights), known, rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda w: stein(x, weights=w))(weights)).all()
    estimate = discrepancy.kernel_stein_blocks(
        x, log_prob=exponential, kernel=kernels.Gaussian(1.0)
    )
    assert jnp.isnan(estimate.value)
    test = discrepancy.kernel_stein_test(
        jax.random.key(0), x, log_prob=exponential, num_resamples=9
    )
    assert jnp.isnan(test.p_value)
    assert not test.converged
