"""Distance covariance and correlation: definitions, dcor, closed forms, sorting, precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.information import distance_correlation, distance_covariance
from divjax.information.line_sums import line_sums

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 2)), RNG.normal(size=(9, 1))
Y = Y + X[:, :1] ** 2
WEIGHTS = RNG.uniform(0.2, 1, size=9)


def distances(x, exponent=1.0):
    return np.linalg.norm(x[:, None] - x, axis=2) ** exponent


def by_four_sums(x, y, weights=None, exponent=1.0):
    """E ab − 2 E a b' + E a E b over all pairs, triples and quadruples of rows."""
    n = len(x)
    w = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    a, b = distances(x, exponent), distances(y, exponent)
    two = sum(w[i] * w[j] * a[i, j] * b[i, j] for i in range(n) for j in range(n))
    three = sum(
        w[i] * w[j] * w[k] * a[i, j] * b[i, k] for i, j, k in itertools.product(range(n), repeat=3)
    )
    return two - 2 * three + (w @ a @ w) * (w @ b @ w)


def u_centered(a):
    """Székely and Rizzo 2014, definition 2."""
    n, rows = len(a), a.sum(axis=1)
    u = a - rows[:, None] / (n - 2) - rows / (n - 2) + a.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(u, 0)
    return u


@pytest.mark.parametrize("exponent", [1.0, 0.5, 1.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_the_v_statistic_is_the_sum_over_pairs_triples_and_quadruples(exponent, weights):
    truth = by_four_sums(X, Y, weights, exponent)
    with jax.enable_x64(True):
        found = distance_covariance(X, Y, weights, exponent=exponent)
        np.testing.assert_allclose(found, truth, rtol=1e-12)
        traced = jax.jit(lambda e: distance_covariance(X, Y, weights, exponent=e))(exponent)
        np.testing.assert_allclose(traced, truth, rtol=1e-12)
    np.testing.assert_allclose(
        distance_covariance(X, Y, weights, exponent=exponent), truth, rtol=1e-5
    )


FUNCTIONS = [
    (distance_covariance, False),
    (distance_covariance, True),
    (distance_correlation, False),
    (distance_correlation, True),
]
DCOR = {
    1.0: (0.1563266823353402, 0.12861811669414802, 0.5339491873738048, 0.4768624832536047),
    0.5: (0.06003949769510497, 0.0317582287720366, 0.5592232440137189, 0.39858641819816854),
    1.5: (0.3794491361398047, 0.3521753870918132, 0.5519401099898685, 0.5262013913444207),
}
DCOR_LINE = 0.00283549930728344, 0.0021783036173850245, 0.006989800198754292, 0.005374644010400083


def test_dcor():
    """Numbers of dcor 0.7, in double precision."""
    rng = np.random.default_rng(42)
    x = rng.normal(size=(30, 2))
    y = np.sin(x[:, :1]) + rng.normal(size=(30, 1)) / 2
    for exponent, numbers in DCOR.items():
        for number, (function, debias) in zip(numbers, FUNCTIONS, strict=True):
            found = function(x, y, exponent=jnp.array(exponent), debias=debias)
            np.testing.assert_allclose(found, number, rtol=2e-6, atol=1e-6)


@pytest.mark.exhaustive
def test_dcor_by_sorting():
    rng = np.random.default_rng(42)
    rng.normal(size=90)  # those above
    x = rng.normal(size=(2000, 1))
    y = x**2 * 0.1 + rng.normal(size=(2000, 1))
    with jax.enable_x64(True):
        for number, (function, debias) in zip(DCOR_LINE[1:3], FUNCTIONS[1:3], strict=True):
            np.testing.assert_allclose(function(x, y, debias=debias), number, rtol=1e-10)


def test_the_unbiased_one_is_of_u_centred_matrices():
    n = len(X)
    truth = (u_centered(distances(X)) * u_centered(distances(Y))).sum() / (n * (n - 3))
    np.testing.assert_allclose(distance_covariance(X, Y, debias=True), truth, rtol=1e-5)


@pytest.mark.parametrize("weights", [np.ones(5), np.array([1.0, 2.0, 0.5, 3.0, 1.5])])
def test_the_unbiased_one_is_unbiased_for_given_weights(weights):
    """Its mean over all 3⁵ samples of a distribution on three pairs is the population's value."""
    atoms = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 2.5]])
    shares = np.array([0.2, 0.5, 0.3])
    truth = by_four_sums(atoms[:, :1], atoms[:, 1:], shares)
    samples = np.array(list(itertools.product(range(3), repeat=5)))
    with jax.enable_x64(True):
        statistic = jax.jit(
            jax.vmap(
                lambda rows: distance_covariance(rows[:, :1], rows[:, 1:], weights, debias=True)
            )
        )
        values = np.asarray(statistic(jnp.asarray(atoms[samples])))
    probabilities = shares[samples].prod(axis=1)
    np.testing.assert_allclose(probabilities @ values, truth, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 64, 65, 200, 1100])
def test_sums_by_sorting_are_those_of_all_pairs(n):
    """Of heavy tails, with ties, weighted."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_cauchy(size=(2, n))
    x[: n // 3], y[: n // 2] = x[: n // 3].round(), y[: n // 2].round()
    w = rng.uniform(0.1, 1, size=n)
    mass = w / w.sum()
    a, b = abs(x[:, None] - x), abs(y[:, None] - y)
    first, second = a @ mass, b @ mass
    within = mass @ ((a * b) @ mass - first * second)
    with jax.enable_x64(True):
        found = jax.jit(line_sums)(*map(jnp.asarray, (x, y, w)))
    np.testing.assert_allclose(found.first, first, rtol=1e-11)
    np.testing.assert_allclose(found.second, second, rtol=1e-11)
    np.testing.assert_allclose(found.within, within, rtol=1e-10, atol=1e-12 * first.mean())


N = 1500
LINE = np.random.default_rng(3).normal(size=(2, N, 1))
LINE_WEIGHTS = np.random.default_rng(4).uniform(size=N)


@pytest.mark.exhaustive
@pytest.mark.parametrize("debias", [False, True])
def test_sorting_and_blocks_agree(debias):
    """A second column of zeros changes no distance, and leaves only the blocks."""
    x, y = LINE
    padded = np.hstack([x, 0 * x])
    with jax.enable_x64(True):
        for function in (distance_covariance, distance_correlation):
            sorting = function(x, y, LINE_WEIGHTS, debias=debias)
            blocks = function(padded, y, LINE_WEIGHTS, debias=debias)
            np.testing.assert_allclose(sorting, blocks, rtol=1e-10)


def test_the_gradient_by_sorting_is_that_of_the_formula():
    """∂/∂x_i = 2 w_i Σ_j w_j sign(x_i − x_j) B_ij, of distances doubly centred."""
    x, y = LINE[0, :1100], LINE[1, :1100]
    w = LINE_WEIGHTS[:1100] / LINE_WEIGHTS[:1100].sum()
    b = distances(y)
    b = b - (b @ w)[:, None] - b @ w + w @ b @ w
    truth = 2 * w * ((np.sign(x - x.T) * b) @ w)
    with jax.enable_x64(True):
        found = jax.grad(lambda x: distance_covariance(x, y, w))(jnp.asarray(x))
    np.testing.assert_allclose(found[:, 0], truth, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "columns", [1, pytest.param(2, marks=pytest.mark.exhaustive)], ids=["sorting", "blocks"]
)
def test_single_precision_resolves_independence(columns):
    """dCov² is 1/n of the mean product of distances, which hides it from naive sums."""
    x, y = LINE[0].astype(np.float32), LINE[1].astype(np.float32)
    x = np.hstack([x] * columns)
    with jax.enable_x64(True):
        truth = distance_covariance(x.astype(float), y.astype(float), debias=True)
    found = distance_covariance(jnp.asarray(x) + 0, jnp.asarray(y), debias=True)
    assert abs(float(found) - float(truth)) < 2e-7


def normal_covariance(rho):
    """Székely, Rizzo, Bakirov 2007, theorem 7, times the distance variance of a normal variable."""
    return (4 / np.pi) * (
        rho * np.arcsin(rho)
        + np.sqrt(1 - rho**2)
        - rho * np.arcsin(rho / 2)
        - np.sqrt(4 - rho**2)
        + 1
    )


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_normal_variables(rho):
    z = jax.random.normal(jax.random.key(0), (200, 60, 2))
    y = rho * z[..., 0] + np.sqrt(1 - rho**2) * z[..., 1]
    statistic = jax.jit(jax.vmap(lambda x, y: distance_covariance(x, y, debias=True)))
    values = np.asarray(statistic(z[..., :1], y[..., None]), float)
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - normal_covariance(rho)) < 3 * standard_error
    # The biased one is off by many.
    biased = jax.vmap(distance_covariance)(z[..., :1], y[..., None])
    assert biased.mean() - normal_covariance(rho) > 4 * standard_error


@pytest.mark.exhaustive
def test_a_large_normal_sample_has_the_closed_form_of_the_correlation():
    rho, n = 0.5, 100_000
    z = np.random.default_rng(1).normal(size=(2, n, 1))
    y = rho * z[0] + np.sqrt(1 - rho**2) * z[1]
    truth = normal_covariance(rho) / normal_covariance(1.0)
    # Standard errors of the correlation of samples of a tenth of the size, over ten of them.
    parts = [float(distance_correlation(z[0, i::10], y[i::10], debias=True)) for i in range(10)]
    standard_error = np.std(parts, ddof=1) / np.sqrt(10)
    assert abs(float(distance_correlation(z[0], y, debias=True)) - truth) < 3 * standard_error


def test_scale_and_offset():
    """dCor² has no unit, and squares of units beyond the dtype's range do no harm."""
    truth = float(distance_correlation(X, Y))
    for scale in (1e-25, 1e25):
        np.testing.assert_allclose(distance_correlation(X * scale, Y / scale), truth, rtol=1e-5)
    np.testing.assert_allclose(distance_correlation(X + 1e9, Y - 1e9), truth, rtol=1e-5)
    unit = float(distance_covariance(X * 1e25, Y * 1e-25))
    np.testing.assert_allclose(unit, float(distance_covariance(X, Y)), rtol=1e-5)


@pytest.mark.exhaustive
def test_weights_count_as_repetitions_for_the_v_statistic():
    counts = np.array([1, 2, 0, 3, 1, 1, 2, 0, 1])
    repeated = distance_covariance(np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0))
    np.testing.assert_allclose(distance_covariance(X, Y, counts), repeated, rtol=1e-5)
    kept = counts > 0
    for debias in (False, True):
        np.testing.assert_allclose(
            distance_covariance(X, Y, kept, debias=debias),
            distance_covariance(X[kept], Y[kept], debias=debias),
            rtol=1e-5,
        )


def test_constants_and_single_rows():
    constant = np.full((9, 1), 3.3)
    for debias in (False, True):
        assert float(distance_covariance(constant, Y, debias=debias)) == 0
        assert float(distance_correlation(constant, Y, debias=debias)) == 0
    assert float(distance_covariance(X[:1], Y[:1])) == 0
    gradient = jax.grad(lambda x: distance_correlation(x, constant))(jnp.asarray(X))
    assert not np.asarray(gradient).any()


def test_one_row_with_half_of_the_mass_has_no_unbiased_value():
    half = jnp.array([5.0, 1, 1, 1, 1, 1])
    assert np.isnan(distance_covariance(X[:6], Y[:6], half, debias=True))
    three = jnp.array([1.0, 1, 1, 0, 0, 0])
    assert np.isnan(distance_covariance(X[:6], Y[:6], three, debias=True))
    assert np.isfinite(distance_covariance(X[:6], Y[:6], three))


def test_memory_stays_below_a_gigabyte():
    rows = jax.ShapeDtypeStruct((50_000, 3), jnp.float32)
    value = jax.jit(jax.value_and_grad(lambda x, y: distance_covariance(x, y, debias=True)))
    memory = value.lower(rows, rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:5]), "x and y must have the same number of rows, which are pairs; got 9 and 5"),
        ((X[:, 0], Y), "x must be a matrix"),
        ((X, Y, np.ones(4)), "weights must have shape"),
        ((X, Y, -np.ones(9)), "weights must be finite and non-negative"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distance_covariance(*arguments)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="exponent must be a number in"):
        distance_covariance(X, Y, exponent=2.0)
    with pytest.raises(ValueError, match="at least 4 rows to debias; got 3"):
        distance_correlation(X[:3], Y[:3], debias=True)
    with pytest.raises(ValueError, match="debias must be True or False"):
        distance_covariance(X, Y, debias=1)
    assert np.isnan(distance_covariance(X, Y, exponent=jnp.array(2.5)))
