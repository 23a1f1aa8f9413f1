"""Bounds at the best critic against quadrature, at any critic as bounds, and their gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from divjax import fdiv
from divjax.ratio import bounds as v
from divjax.ratio.bounds import derangement, split_scores
from divjax.ratio.bounds.named_bounds import as_bound

LOG_2 = np.log(2)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def normal_mean(function, *shifts):
    """E function(x_1 + shift_1 − ½, …) for standard normal x: critics at p (shift 1) and q (0)."""
    grids = np.meshgrid(*[NODES + shift - 0.5 for shift in shifts], indexing="ij")
    weights = np.prod(np.meshgrid(*[WEIGHTS] * len(shifts), indexing="ij"), axis=0)
    return float(np.sum(weights * function(*grids)))


def xi(gap):
    """The root of g(y) = gap by bracketing."""
    g = lambda y: 0.5 * ((1 + np.exp(-y)) * np.log1p(np.exp(-y)) + y * np.exp(-y))
    return scipy.optimize.brentq(lambda y: g(y) - gap, 0, 60)


CROSS_ENTROPY = 0.5 * normal_mean(lambda u: np.logaddexp(0, -u), 1)
CROSS_ENTROPY += 0.5 * normal_mean(lambda u: np.logaddexp(0, u), 0)


def critic_values(seed, n, m, *k):
    """The log ratio x − ½ of N(1, 1) and N(0, 1) at samples of both."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0.5, 1, n)), jnp.asarray(rng.normal(-0.5, 1, (m, *k)))


SMILE_1 = 0.5 - np.log(normal_mean(lambda u: np.exp(np.clip(u, -1, 1)), 0))

# The value's expectation for many samples, and influences at p and at q for the standard error.
EXPECTED = {
    "dv": (v.donsker_varadhan, 0.5, lambda u: u, np.exp),
    "nwj": (v.nwj, 0.5, lambda u: u, np.exp),
    "log_ratio": (v.mean_log_ratio, 0.5, lambda u: u, np.zeros_like),
    "smile": (
        lambda u_p, u_q: v.smile(u_p, u_q, 1.0),
        SMILE_1,
        lambda u: u,
        lambda u: np.exp(np.clip(u, -1, 1)) * np.exp(SMILE_1 - 0.5),
    ),
    "js": (
        v.jensen_shannon,
        LOG_2 - CROSS_ENTROPY,
        lambda u: np.logaddexp(0, -u) / 2,
        lambda u: np.logaddexp(0, u) / 2,
    ),
    "kl_from_js": (
        v.kl_from_js,
        xi(CROSS_ENTROPY),
        *(
            lambda u, s=s: (
                np.logaddexp(0, s * u) / 2 * (xi(CROSS_ENTROPY - 1e-5) - xi(CROSS_ENTROPY)) / 1e-5
            )
            for s in (-1, 1)
        ),
    ),
    "Hellinger": (
        lambda u_p, u_q: v.f_dual(u_p, u_q, fdiv.SquaredHellinger()),
        1 - np.exp(-1 / 8),
        lambda u: np.exp(-u / 2) / 2,
        lambda u: np.exp(u / 2) / 2,
    ),
    "ReverseKL": (
        lambda u_p, u_q: v.f_dual(u_p, u_q, fdiv.ReverseKL()),
        0.5,
        lambda u: np.exp(-u),
        lambda u: u,
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_log_ratio_attains_what_is_bounded(name):
    bound, expected, at_p, at_q = EXPECTED[name]
    with jax.enable_x64(True):
        u_p, u_q = critic_values(0, 20000, 30000)
        error = np.sqrt(np.var(at_p(np.asarray(u_p))) / 20000 + np.var(at_q(np.asarray(u_q))) / 3e4)
        assert error < 0.02
        assert abs(jax.jit(bound)(u_p, u_q) - expected) < 4 * error


def test_samples_of_many_terms_against_quadrature():
    """InfoNCE with two of q; I_α with two of q, whose first term sees one of them."""
    with jax.enable_x64(True):
        u_p, u_q = critic_values(1, 20000, 20000, 2)
        alpha, b = 0.3, 0.4
        mix = lambda mean: alpha * mean + (1 - alpha) * np.exp(b)
        log_mean = lambda *u: scipy.special.logsumexp(np.stack(u), axis=0) - np.log(len(u))
        cases = [
            (v.info_nce, normal_mean(lambda *u: u[0] - log_mean(*u), 1, 0, 0)),
            (
                lambda *u: v.interpolated_nce(*u, alpha, b),
                1
                + normal_mean(lambda *u: u[0] - np.log(mix(np.exp(log_mean(*u)))), 1, 0)
                - normal_mean(lambda *u: np.exp(log_mean(*u)) / mix(np.exp(log_mean(*u))), 0, 0),
            ),
        ]
        for bound, expected in cases:
            # Both are means over rows.
            of_row = lambda p, q, bound=bound: bound(p[None], q[None])
            rows = np.asarray(jax.jit(jax.vmap(of_row))(u_p, u_q))
            error = np.std(rows) / math.sqrt(len(rows))
            assert error < 0.01
            assert abs(rows.mean() - expected) < 4 * error
            np.testing.assert_allclose(jax.jit(bound)(u_p, u_q), rows.mean(), rtol=1e-12)


atoms = st.integers(0, 2)
critics = st.lists(st.floats(-30, 30), min_size=3, max_size=3)

GENERATORS = {
    "Hellinger": (fdiv.SquaredHellinger(), lambda p, q: 0.5 * np.sum((p**0.5 - q**0.5) ** 2)),
    "JS": (
        fdiv.JensenShannon(),
        lambda p, q: 0.5 * np.sum(sum(scipy.special.rel_entr(a, (p + q) / 2) for a in (p, q))),
    ),
    "ChiSquared": (fdiv.ChiSquared(), lambda p, q: np.sum((p - q) ** 2 / q)),
}
SINGLE = jax.jit(
    lambda u_p, u_q: {
        "dv": v.donsker_varadhan(u_p, u_q),
        "nwj": v.nwj(u_p, u_q),
        "kl_from_js": v.kl_from_js(u_p, u_q),
        **{name: v.f_dual(u_p, u_q, generator) for name, (generator, _) in GENERATORS.items()},
    }
)
MULTIPLE = jax.jit(
    lambda u_p, u_q: {
        "infonce": v.info_nce(u_p, u_q),
        **{
            f"I_{alpha}": v.interpolated_nce(u_p, u_q, jnp.asarray(alpha, u_p.dtype), 0.5)
            for alpha in (0.0, 0.3, 1.0)
        },
    }
)


@given(st.lists(atoms, min_size=6, max_size=6), atoms, critics)
@settings(max_examples=40, deadline=None)
def test_any_critic_gives_a_lower_bound(of_p, extra, critic):
    """Exact expectations on three atoms: all samples of p and q, and all tuples of them."""
    of_q = [0, 1, 2, extra]
    p, q = np.bincount(of_p, minlength=3) / 6, np.bincount(of_q, minlength=3) / 4
    at_p, at_q = np.asarray(critic)[of_p], np.asarray(critic)[of_q]
    tuples = np.array(list(itertools.product(at_p, at_q, at_q)))
    with jax.enable_x64(True):
        values = SINGLE(at_p, at_q) | MULTIPLE(tuples[:, 0], tuples[:, 1:])
        values = {name: float(value) for name, value in values.items()}
    truths = {name: truth(p, q) for name, (_, truth) in GENERATORS.items()}
    kl = np.sum(scipy.special.rel_entr(p, q))
    for name, value in values.items():
        truth = truths.get(name, kl)
        assert value <= truth + 1e-9 * (1 + abs(truth)), name


def test_infonce_never_exceeds_the_log_of_the_batch():
    scores = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
    scale = np.logspace(-2, 3, 20, dtype=np.float32)[:, None, None]
    diagonal = 1e3 * np.eye(8, dtype=np.float32) * (np.arange(20) % 2)[:, None, None]
    shifted = scale * scores + diagonal
    values = jax.jit(jax.vmap(lambda s: v.info_nce(*split_scores(s))))(shifted)
    assert (values <= math.log(8) * (1 + 1e-6)).all()
    np.testing.assert_allclose(values[1::2][:3], math.log(8), rtol=1e-6)


def test_one_row_of_negatives_serves_all():
    u_p, u_q = critic_values(3, 5, 4)
    for bound in (v.info_nce, v.interpolated_nce):
        one, many = jax.jit(bound), jax.jit(bound)(u_p, np.broadcast_to(u_q, (5, 4)))
        np.testing.assert_allclose(one(u_p, u_q), many, rtol=1e-6)


INTERPOLATED = jax.jit(jax.value_and_grad(v.interpolated_nce, 2))


def test_interpolation_ends():
    """α = 0: TUBA with the baseline; α = 1: the mean of InfoNCE over what is left out."""
    with jax.enable_x64(True):
        u_p, u_q = critic_values(4, 6, 6, 4)
        p, q = np.asarray(u_p), np.asarray(u_q)
        b = np.linspace(-1, 1, 6)
        at = lambda alpha, baseline=b: INTERPOLATED(u_p, u_q, alpha, baseline)
        tuba = 1 + np.mean(p - b) - np.mean(np.exp(q - b[:, None]))
        np.testing.assert_allclose(at(0.0)[0], tuba, rtol=1e-12)
        np.testing.assert_allclose(at(0.0, np.zeros(6))[0], v.nwj(u_p, u_q), rtol=1e-12)
        left_out = []
        for l in range(4):
            row = np.concatenate([p[:, None], np.delete(q, l, axis=1)], axis=1)
            left_out.append(np.mean(p - scipy.special.logsumexp(row, axis=1) + np.log(4)))
        np.testing.assert_allclose(at(1.0)[0], np.mean(left_out), rtol=1e-12)
        for alpha, step in ((0.0, 1e-7), (0.5, 1e-7), (1.0, -1e-7)):
            (value, slope), (moved, _) = at(alpha), at(alpha + step)
            np.testing.assert_allclose(slope, (moved - value) / step, rtol=1e-4, atol=1e-6)


def test_a_dominating_negative_left_out_leaves_the_others():
    """The sum without its largest term is not a difference of sums."""
    u_p, u_q = jnp.zeros(1), jnp.array([[30.0, -1.0]])
    expected = 0.5 * sum(-np.log((1 + np.exp(u)) / 2) for u in (30.0, -1.0))
    np.testing.assert_allclose(v.interpolated_nce(u_p, u_q, 1.0), expected, rtol=1e-6)


def test_smile_without_clipping_is_donsker_varadhan():
    u_p, u_q = critic_values(5, 20, 30)
    np.testing.assert_array_equal(v.smile(u_p, u_q, jnp.inf), v.donsker_varadhan(u_p, u_q))
    assert v.smile(u_p, u_q, 0.1) != v.donsker_varadhan(u_p, u_q)


def test_duals_by_hand_and_by_conjugates():
    with jax.enable_x64(True):
        u_p, u_q = critic_values(6, 20, 30)
        p, q = np.asarray(u_p), np.asarray(u_q)
        by_hand = LOG_2 - 0.5 * np.mean(np.log1p(np.exp(-p))) - 0.5 * np.mean(np.log1p(np.exp(q)))
        np.testing.assert_allclose(v.jensen_shannon(u_p, u_q), by_hand, rtol=1e-12)
        np.testing.assert_allclose(v.f_dual(u_p, u_q, fdiv.JensenShannon()), by_hand, rtol=1e-12)
        shifted = np.mean(p + 1) - np.mean(np.exp(q + 1 - 1))  # the literature's critic
        np.testing.assert_allclose(v.nwj(u_p, u_q), shifted, rtol=1e-12)
        # f*(t) of r log r − r + 1, ½(√r − 1)² and (r − 1)²: e^t − 1, t/(1 − 2t), t + t²/4.
        for generator, critic, conjugate in (
            (fdiv.KL(), lambda u: u, np.expm1),
            (
                fdiv.SquaredHellinger(),
                lambda u: (1 - np.exp(-u / 2)) / 2,
                lambda t: t / (1 - 2 * t),
            ),
            (fdiv.ChiSquared(), lambda u: 2 * np.expm1(u), lambda t: t + t**2 / 4),
        ):
            expected = np.mean(critic(p)) - np.mean(conjugate(critic(q)))
            np.testing.assert_allclose(v.f_dual(u_p, u_q, generator), expected, rtol=1e-10)
            dual = v.conjugate_dual(jnp.asarray(critic(p)), jnp.asarray(critic(q)), generator)
            np.testing.assert_allclose(dual, expected, rtol=1e-10)


def test_mine_gradient_by_hand():
    """T = θz: ∇ = mean(z_p) − mean(z_q e^{θ z_q})/N, N averaged over both batches by weight."""
    with jax.enable_x64(True):
        theta, rate = 0.7, 0.2
        mine = v.MINE(rate)
        rng = np.random.default_rng(0)
        state, normalizer, weight = mine.init(jnp.float64), 0.0, 0.0
        for _ in range(3):
            z_p, z_q = rng.normal(1, 1, 7), rng.normal(0, 1, 9)
            step = lambda theta, state=state, z_p=z_p, z_q=z_q: mine(
                theta * jnp.asarray(z_p), theta * jnp.asarray(z_q), state
            )
            (value, state), slope = jax.value_and_grad(step, has_aux=True)(theta)
            ratio = np.exp(theta * z_q)
            normalizer = (1 - rate) * normalizer + rate * ratio.mean()
            weight = (1 - rate) * weight + rate
            expected = z_p.mean() - np.mean(z_q * ratio) / (normalizer / weight)
            np.testing.assert_allclose(slope, expected, rtol=1e-12)
            np.testing.assert_allclose(value, theta * z_p.mean() - np.log(ratio.mean()), rtol=1e-12)
            np.testing.assert_allclose(state.log_normalizer, np.log(normalizer / weight), rtol=1e-9)
        plain = jax.grad(lambda t: v.donsker_varadhan(t * jnp.asarray(z_p), t * jnp.asarray(z_q)))
        forgetful = jax.grad(
            lambda t: v.MINE(1.0)(t * jnp.asarray(z_p), t * jnp.asarray(z_q), state)[0]
        )
        np.testing.assert_allclose(forgetful(theta), plain(theta), rtol=1e-12)


def test_split_scores_takes_every_other_column_once():
    scores = jnp.arange(16.0).reshape(4, 4)
    u_p, u_q = split_scores(scores)
    assert u_p.tolist() == [0, 5, 10, 15]
    assert [sorted(row) for row in u_q.tolist()] == [
        [1, 2, 3],
        [4, 6, 7],
        [8, 9, 11],
        [12, 13, 14],
    ]


@pytest.mark.parametrize("key", [0, None, 1.0])
def test_a_derangement_needs_a_key(key):
    with pytest.raises(ValueError, match="key must be one typed key"):
        derangement(key, 5)


def test_derangements_are_uniform_cycles():
    for n in (2, 3, 7):
        sigma = np.asarray(derangement(jax.random.key(n), n))
        point, orbit = 0, []
        for _ in range(n):
            orbit.append(point)
            point = sigma[point]
        assert point == 0
        assert sorted(orbit) == list(range(n))
    draws = jax.vmap(lambda key: derangement(key, 4))(jax.random.split(jax.random.key(0), 6000))
    _, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    assert len(counts) == math.factorial(3)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


ALL = {
    **v.BOUNDS,
    "interpolated": v.interpolated_nce,
    "interpolated(0)": lambda u_p, u_q: v.interpolated_nce(u_p, u_q, 0.0),
    "interpolated(1)": lambda u_p, u_q: v.interpolated_nce(u_p, u_q, 1.0),
    "ChiSquared": lambda u_p, u_q: v.f_dual(u_p, u_q, fdiv.ChiSquared()),
    "MINE": lambda u_p, u_q: v.MINE()(u_p, u_q, v.MINE().init(u_p.dtype))[0],
}


@pytest.mark.parametrize("name", ALL)
def test_extreme_critics_jit_vmap_and_dtypes(name):
    bound = ALL[name]
    signs = jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 1], [0, -1]], jnp.float32) * 1e3
    u_p = signs[:, :1] + jnp.linspace(0, 1, 4)
    u_q = signs[:, 1:, None] + jnp.linspace(-1, 1, 12).reshape(4, 3)
    slopes = jax.jit(jax.vmap(jax.value_and_grad(bound, (0, 1))))
    values, gradients = slopes(u_p, u_q)
    assert all(jnp.isfinite(g).all() for g in gradients)
    # Ξ of a cross-entropy that rounds to zero is infinite; all else is finite.
    assert jnp.isfinite(values).all() or name == "kl_from_js"
    alone = jax.jit(bound)
    np.testing.assert_allclose(values[5], alone(u_p[5], u_q[5]), rtol=1e-6)
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            shapes = jax.ShapeDtypeStruct((4,), dtype), jax.ShapeDtypeStruct((4, 3), dtype)
            assert jax.eval_shape(bound, *shapes).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: v.donsker_varadhan(jnp.zeros((2, 2)), jnp.zeros(2)), "u_p must be .*(2, 2)"),
        (lambda: v.nwj(jnp.zeros(2), jnp.zeros(0)), "u_q must be non-empty"),
        (lambda: v.info_nce(jnp.zeros(2), jnp.zeros((3, 2))), "a row for each value"),
        (lambda: v.jensen_shannon(1j * jnp.ones(2), jnp.zeros(2)), "u_p must hold real numbers"),
        (lambda: v.smile(jnp.zeros(2), jnp.zeros(2), clip=0.0), "clip must be"),
        (lambda: v.interpolated_nce(jnp.zeros(2), jnp.zeros(2), 1.5), "alpha must be"),
        (lambda: split_scores(jnp.zeros((2, 3))), "scores must be a square"),
        (lambda: derangement(jax.random.key(0), 1), "n must be an integer"),
        (lambda: v.MINE(rate=0.0), "rate must be"),
        (lambda: as_bound("mine"), "a bound must be one of"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(2, 2)", r"\(2, 2\)")):
        call()


def test_bounds_by_name_generator_and_partial():
    u_p, u_q = critic_values(8, 5, 6)
    hellinger = as_bound(fdiv.SquaredHellinger())(u_p, u_q)
    assert hellinger == v.f_dual(u_p, u_q, fdiv.SquaredHellinger())
    clip = as_bound(jax.tree_util.Partial(v.smile, clip=jnp.asarray(0.5)))
    assert len(jax.tree.leaves(clip)) == 1
    np.testing.assert_array_equal(clip(u_p, u_q), v.smile(u_p, u_q, 0.5))


@pytest.mark.parametrize("bound", [3, 1.5, (1, 2), jnp.ones(2)])
def test_what_cannot_be_called_is_no_bound(bound):
    with pytest.raises(ValueError, match="bound must be a function"):
        as_bound(bound)


@pytest.mark.parametrize("name", ["nwj", "info_nce", "interpolated_nce", "donsker_varadhan"])
def test_half_precision_critics_are_those_of_single_precision(name):
    """13.34 and −8.3 in float16, whose exponentials it does not hold."""
    of_p, of_q = np.float16([13.34, 2.0]), np.float16([[-8.3, 0.1], [1.0, 2.0]])
    bound = getattr(v, name)
    expected = bound(of_p.astype(np.float32), of_q.astype(np.float32))
    np.testing.assert_allclose(bound(of_p, of_q), expected, rtol=1e-6)


@pytest.mark.parametrize("offset", [1e4, 1e6, 123456789.0])
def test_a_constant_in_numpys_critic_changes_no_value(offset):
    """E_p[T] − log E_q[e^T] of (0, 1, 2) and (0, ½, 1)."""
    of_p, of_q = np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5, 1.0])
    expected = of_p.mean() - np.log(np.exp(of_q).mean())
    mine = v.MINE()
    value, state = mine(of_p + offset, of_q + offset, mine.init(jnp.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(state.log_normalizer, offset, rtol=1e-6, atol=1)
    np.testing.assert_allclose(
        v.donsker_varadhan(of_p + offset, of_q + offset), expected, rtol=1e-6
    )


def test_mine_keeps_its_value_beside_a_large_slope():
    """The normaliser of earlier batches is e^{−12} of this one's."""
    of_p, of_q = jnp.array([12.0, 13.0, 14.0]), jnp.array([12.0, 12.5, 13.0])
    value, _ = v.MINE(1e-6)(of_p, of_q, v.MINEState(jnp.zeros(()), jnp.ones(())))
    np.testing.assert_allclose(value, 1 - np.log(np.exp([0, 0.5, 1.0]).mean()), rtol=1e-5)


def test_mine_of_half_precision_and_of_lists():
    """Sums over more rows than float16 counts to: ∇ of −log E_q[e^T] sums to −1."""
    mine, of_q = v.MINE(), jnp.full(70_000, 5.0, jnp.float16)
    loss = lambda of_q: mine(jnp.zeros(3, jnp.float16), of_q, mine.init(jnp.float32))
    (value, state), slope = jax.value_and_grad(loss, has_aux=True)(of_q)
    np.testing.assert_allclose([value, state.log_normalizer], [-5, 5], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(slope, float).sum(), -1, rtol=0.01)
    value, _ = mine([1.0, 2.0], [1, 2], mine.init(jnp.float32))
    np.testing.assert_allclose(value, 1.5 - np.log(np.exp([1, 2]).mean()), rtol=1e-6)


@pytest.mark.parametrize("name", ["donsker_varadhan", "info_nce"])
def test_integers_beside_half_precision_are_not_rounded_to_it(name):
    bound, half = getattr(v, name), jnp.array([0.3], jnp.float16)
    for other in (5000, 100_000):
        expected = bound(half.astype(jnp.float32), jnp.array([other], jnp.float32))
        np.testing.assert_allclose(bound(half, np.array([other])), expected, rtol=1e-7)
    expected = bound(jnp.ones(1), half.astype(jnp.float32))
    np.testing.assert_allclose(bound(jnp.ones(1, jnp.int32), half), expected, rtol=1e-6)


def test_split_scores_keeps_the_digits_of_numpy():
    """A constant of 1e8 cancels in the bounds, and must not be rounded before."""
    scores = np.random.default_rng(0).normal(size=(6, 6))
    for bound in (v.info_nce, v.donsker_varadhan):
        plain, shifted = (float(bound(*split_scores(scores + c))) for c in (0.0, 1e8))
        assert shifted == pytest.approx(plain, rel=1e-5)
    # Out of SciPy: the mean of the diagonal less the log of the mean exponential of the others.
    off = scores[~np.eye(6, dtype=bool)]
    truth = np.diag(scores).mean() - scipy.special.logsumexp(off) + np.log(off.size)
    assert float(v.donsker_varadhan(*split_scores(scores + 1e8))) == pytest.approx(truth, rel=1e-5)
