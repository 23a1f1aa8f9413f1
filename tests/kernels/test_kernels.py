"""Kernels against their formulas in SciPy and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import kernels

SIGMA = 0.8
FORMULAS = {
    "Gaussian": (kernels.Gaussian(bandwidth=SIGMA), lambda r: np.exp(-(r**2) / (2 * SIGMA**2))),
    "Laplace": (kernels.Laplace(bandwidth=SIGMA), lambda r: np.exp(-r / SIGMA)),
    "InverseMultiquadric": (
        kernels.InverseMultiquadric(bandwidth=SIGMA, exponent=0.7),
        lambda r: (1 + r**2 / SIGMA**2) ** -0.7,
    ),
    "Energy": (kernels.Energy(), lambda r: -r),
    "Matern(0.5)": (kernels.Matern(SIGMA, 0.5), lambda r: np.exp(-r / SIGMA)),
    "Matern(1.5)": (
        kernels.Matern(SIGMA, 1.5),
        lambda r: (1 + 3**0.5 * r / SIGMA) * np.exp(-(3**0.5) * r / SIGMA),
    ),
    "Matern(2.5)": (
        kernels.Matern(SIGMA, 2.5),
        lambda r: (
            (1 + 5**0.5 * r / SIGMA + 5 * r**2 / (3 * SIGMA**2)) * np.exp(-(5**0.5) * r / SIGMA)
        ),
    ),
    "two scales": (
        kernels.Gaussian(bandwidth=np.array([0.5, 2.0])),
        lambda r: (np.exp(-(r**2) / 0.5) + np.exp(-(r**2) / 8)) / 2,
    ),
}
every = pytest.mark.parametrize("name", FORMULAS)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def points(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@every
def test_the_matrix_is_the_formula(name):
    kernel, formula = FORMULAS[name]
    x, y = points(6), points(4, seed=1)
    np.testing.assert_allclose(
        kernel(jnp.asarray(x), jnp.asarray(y)), formula(cdist(x, y)), rtol=1e-10
    )


@every
def test_matrices_are_positive_definite(name):
    matrix = np.asarray(FORMULAS[name][0](jnp.asarray(points(12))))
    if name == "Energy":  # conditionally: on weights that sum to zero
        center = np.eye(12) - 1 / 12
        matrix = center @ matrix @ center
    assert np.linalg.eigvalsh(matrix).min() > -1e-10


@every
def test_sums_are_einsum_and_autodiff(name):
    kernel, _ = FORMULAS[name]
    x, y = jnp.asarray(points(6)), jnp.asarray(points(4, seed=1))
    values, weights = jnp.asarray(points(4, 5, seed=2)), jnp.asarray(points(4, 2, seed=3))
    sums, gradients = kernels.kernel_sums(kernel, x, y, values, weights)
    np.testing.assert_allclose(sums, kernel(x, y) @ values, rtol=1e-10)
    pair = jax.grad(lambda a, b: kernel(a[None], b[None])[0, 0])
    each = jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x, y)
    np.testing.assert_allclose(
        gradients, jnp.einsum("jg,ijd->igd", weights, each), rtol=1e-8, atol=1e-12
    )


@every
def test_logarithms_do_not_underflow(name):
    kernel, formula = FORMULAS[name]
    if name == "Energy":
        pytest.skip("negative")
    r = np.array([[0.0, 0.7, 3.0]])
    np.testing.assert_allclose(kernel.log_radial(r**2), np.log(formula(r)), rtol=1e-10, atol=1e-15)
    assert np.isfinite(kernel.log_radial(np.array([[1e12]]))).all()


@every
def test_a_shift_of_all_points_changes_nothing(name):
    kernel, _ = FORMULAS[name]
    x, ones = jnp.asarray(points(6)), jnp.ones((6, 1))
    here = kernels.kernel_sums(kernel, x, None, ones, ones)
    there = kernels.kernel_sums(kernel, x + 1e4, None, ones, ones)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), here, there)


@pytest.mark.parametrize(
    "name", ["Gaussian", "InverseMultiquadric", "Matern(1.5)", "Matern(2.5)", "two scales"]
)
def test_stein_traces_are_mixed_second_derivatives(name):
    kernel, _ = FORMULAS[name]
    x, y = jnp.asarray(points(2))
    mixed = jax.jacfwd(jax.grad(lambda a, b: kernel(a[None], b[None])[0, 0]), argnums=1)
    trace = kernel.stein_trace(jnp.sum((x - y) ** 2), 3)
    np.testing.assert_allclose(trace, jnp.trace(mixed(x, y)), rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.Gaussian(bandwidth=0.0), "bandwidth must be a positive number; got 0.0"),
        (lambda: kernels.Laplace(bandwidth=-1), "bandwidth must be a positive number; got -1"),
        (lambda: kernels.InverseMultiquadric(bandwidth=1.0, exponent=0.0), "exponent must be"),
        (lambda: kernels.Median(tolerance=0.0), "tolerance must be"),
        (lambda: kernels.MultiScale(scales=(1.0, -1.0)), "scales must be"),
        (lambda: kernels.MultiScale((1.0,), 3.0), "rule must be a bandwidth rule"),
        (lambda: kernels.Median(jnp.array(0.1)), "tolerance must be a value of Python"),
        (lambda: kernels.Gaussian().radial(jnp.ones((2, 2))), "bandwidth is a rule"),
        (lambda: kernels.Gaussian(bandwidth=1.0)(jnp.zeros(3)), "x must be a matrix of shape"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_numbers():
    """Bytes would wrap around: 20² is 144 modulo 256."""
    kernel = kernels.Gaussian(bandwidth=10.0)
    points = [[0], [20]]
    expected = kernel(jnp.array(points, float))
    for given in (points, np.array(points, np.uint8), jnp.array(points, jnp.int32)):
        np.testing.assert_allclose(kernel(given), expected)
    with pytest.raises(ValueError, match="same number of features; got 1 and 2"):
        kernel(jnp.zeros((2, 1)), jnp.zeros((3, 2)))


@every
def test_a_point_that_is_no_number_has_no_kernel(name):
    kernel, _ = FORMULAS[name]
    x = jnp.asarray(points(4)).at[1, 0].set(jnp.nan)
    matrix = np.asarray(kernel(x))
    assert np.isnan(matrix[0, 1])
    assert np.isfinite(matrix[0, 2])
    value, slope = kernel.radial(jnp.array([[jnp.nan, -1.0, 0.0, jnp.inf]]))
    assert np.isnan(value[0, 0])
    assert np.isnan(slope[0, 0])
    assert np.isfinite(slope[0, 2:]).all()


@every
@pytest.mark.parametrize("held", [np.nan, np.inf, 1e6, 1e200])
@pytest.mark.parametrize("d", [3, 11])
def test_points_without_coefficients_may_hold_anything(name, held, d):
    kernel, _ = FORMULAS[name]
    x = jnp.asarray(points(6, d)) + 100
    coefficients = jnp.asarray(points(6, 2, seed=2)).at[4].set(0)
    sums = lambda x: kernels.kernel_sums(kernel, x, None, coefficients, coefficients)
    expected = jax.tree.map(lambda s: np.delete(s, 4, axis=0), sums(x))
    found = jax.tree.map(lambda s: np.delete(s, 4, axis=0), sums(x.at[4].set(held)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda number: kernels.Gaussian(bandwidth=number),
        lambda number: kernels.Gaussian(bandwidth=jnp.stack([jnp.ones(()), number])),
        lambda number: kernels.Laplace(bandwidth=number),
        lambda number: kernels.InverseMultiquadric(bandwidth=number),
        lambda number: kernels.InverseMultiquadric(bandwidth=1.0, exponent=number),
        lambda number: kernels.Gaussian(bandwidth=kernels.MultiScale(scales=(1.0, number))),
    ],
)
def test_hyper_parameters_out_of_range(make):
    """As arrays they are refused; traced ones, which cannot be, make everything NaN."""
    x = jnp.asarray(points(3))
    with pytest.raises(ValueError, match=r"(bandwidth|exponent|scales) must be positive"):
        make(jnp.array(-1.0))(x)
    sums = jax.jit(lambda number: kernels.kernel_sums(make(number).at(x), x, None, x, x))
    assert all(np.isnan(s).all() for s in sums(-1.0))
    assert all(np.isnan(s).all() for s in sums(0.0))
    assert all(np.isfinite(s).all() for s in sums(1.0))


def test_one_bandwidth_serves_all_terms_of_a_discrepancy():
    """A rule asked at each term would compare three kernels."""
    x, y = jnp.asarray(points(7)), jnp.asarray(5 * points(9, seed=1))
    kernel = kernels.Gaussian()
    with pytest.raises(ValueError, match=r"kernel = kernel\.at\(x\)"):
        kernel(x, y)
    fixed = kernel.at(y)
    sigma = fixed.bandwidth
    np.testing.assert_allclose(fixed(x, y), np.exp(-(cdist(x, y) ** 2) / (2 * sigma**2)))  # pyright: ignore[reportOperatorIssue]
    assert fixed.at(x).bandwidth == sigma
    assert kernels.Energy().at(x)(x, y).shape == (7, 9)


def test_coefficients_of_the_wrong_shape_are_named():
    kernel, x = kernels.Gaussian(bandwidth=1.0), jnp.asarray(points(4))
    with pytest.raises(ValueError, match=r"values must have shape \(4, c\)"):
        kernels.kernel_sums(kernel, x, None, jnp.ones((3, 1)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match=r"gradient_weights must have shape \(4, g\)"):
        kernels.kernel_sums(kernel, x, None, jnp.ones((4, 1)), jnp.ones(4))


FAR = {
    **{name: kernel for name, (kernel, _) in FORMULAS.items()},
    "wide": kernels.Gaussian(bandwidth=4.0),
}


def far_clusters(n, seed, along):
    """Half around 0, half around 10⁴ in 16 dimensions, as float32 holds them."""
    x = np.random.default_rng(seed).normal(size=(n, 16))
    x[::2] += 1e4 * along
    return np.float32(x)


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("along", [np.eye(16)[0], np.ones(16) / 4], ids=["axis", "diagonal"])
def test_clusters_far_apart_keep_the_distances_within_them(name, along):
    x, y = far_clusters(60, 0, along), far_clusters(40, 1, along)
    values = np.float32(np.random.default_rng(2).normal(size=(40, 3)))
    kernel = FAR[name] if name == "Energy" else FAR[name].__class__(bandwidth=3.0)

    def evaluate(dtype):
        cast = [jnp.asarray(z, dtype) for z in (x, y, values)]
        return kernel(cast[0]), kernel(*cast[:2]), *kernels.kernel_sums(kernel, *cast, cast[2])

    for single, double in zip(evaluate(jnp.float32), evaluate(jnp.float64), strict=True):
        np.testing.assert_allclose(single, double, atol=3e-4 * np.abs(double).max())


SLOPES = {
    kernels.Gaussian: lambda r: -np.exp(-(r**2) / 2),
    kernels.Laplace: lambda r: -np.exp(-r) / r,
    kernels.Energy: lambda r: -1 / r,
}


@pytest.mark.parametrize("far", [1e4, 1e6])
@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("kind", SLOPES)
def test_clusters_far_apart_keep_their_gradients(kind, d, far):
    """Against the formula of the rounded points in double precision."""
    rng = np.random.default_rng(d)
    x, y = (rng.normal(size=(n, d)).astype(np.float32) for n in (60, 40))
    x[::2], y[::2] = x[::2] + np.float32(far), y[::2] + np.float32(far)
    weights = rng.uniform(size=(40, 2)).astype(np.float32)
    with jax.enable_x64(False):
        kernel = kernels.Energy() if kind is kernels.Energy else kind(1.0)
        found = _sums_of_gradients(kernel, jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights))
        assert found.dtype == jnp.float32
    apart = x.astype(float)[:, None] - y.astype(float)
    # Far from zero some points coincide: they do not move each other.
    distances = np.linalg.norm(apart, axis=2)
    slopes = np.where(distances > 0, SLOPES[kind](np.maximum(distances, 1e-9)), 0)
    expected = np.einsum("nm,mg,nmd->ngd", slopes, weights.astype(float), apart)
    np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


@jax.jit
def _sums_of_gradients(kernel, x, y, weights):
    return kernels.kernel_sums(kernel, x, y, weights[:, :0], weights)[1]


def test_the_derivative_of_a_matrix_of_far_clusters():
    x = far_clusters(30, 0, np.eye(16)[0])
    total = lambda x: jnp.sum(kernels.Gaussian(bandwidth=4.0)(x) ** 2)
    single = jax.jit(jax.grad(total))(jnp.asarray(x, jnp.float32))
    double = jax.grad(total)(jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(single, double, atol=2e-3 * np.abs(double).max())


@pytest.mark.parametrize("kernel", [kernels.Gaussian, kernels.Laplace, kernels.InverseMultiquadric])
@pytest.mark.parametrize("bandwidth", [1e-30, 1e-17, 1e20, 1e30])
def test_bandwidths_whose_squares_are_lost_give_nan(kernel, bandwidth):
    x = jnp.array([[0.0], [0.95 * bandwidth]], jnp.float32)
    assert jnp.isnan(kernel(bandwidth)(x)).all()
    assert jnp.isnan(jax.jit(lambda b: kernel(b)(x))(jnp.float32(bandwidth))).all()
    assert jnp.isnan(kernel()(x)[0, 1])


@pytest.mark.parametrize("bandwidth", [1e-14, 1e18])
def test_bandwidths_whose_squares_are_held(bandwidth):
    x = jnp.array([[0.0], [bandwidth]], jnp.float32)
    np.testing.assert_allclose(kernels.Gaussian(bandwidth)(x)[0, 1], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(kernels.Laplace(bandwidth)(x)[0, 1], np.exp(-1), rtol=1e-4)


def test_bandwidths_in_a_list_are_scales():
    x = jnp.array([[0.0], [1.0]])
    expected = (np.exp(-0.5) + np.exp(-1 / 8)) / 2
    np.testing.assert_allclose(kernels.Gaussian([1.0, 2.0])(x)[0, 1], expected, rtol=1e-6)
    for empty in (lambda: kernels.Gaussian([])(x), lambda: kernels.MultiScale(scales=())):
        with pytest.raises(ValueError, match=r"bandwidth|scales"):
            empty()
    with pytest.raises(ValueError, match="bandwidth"):
        kernels.Gaussian(bandwidth=None)(x)


@pytest.mark.parametrize("dim", [2, 12])
@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Gaussian(1.0),
        kernels.Laplace(1.0),
        kernels.InverseMultiquadric(1.0),
        kernels.Energy(),
    ],
    ids=str,
)
def test_infinite_points_have_no_kernel(kernel, dim):
    """Distances from products would be infinite or NaN by the signs of the other points."""
    x = np.random.default_rng(0).normal(size=(4, dim)).astype(np.float32)
    far = x.copy()
    far[0, 0] = np.inf
    values = np.asarray(kernel(jnp.asarray(far), jnp.asarray(x)))
    assert np.isnan(values[0]).all()
    assert np.isfinite(values[1:]).all()
    one = jnp.ones((4, 1))
    sums = np.asarray(kernels.kernel_sums(kernel, jnp.asarray(far), jnp.asarray(x), one, one)[0])
    assert np.isnan(sums[0]).all()
    assert np.isfinite(sums[1:]).all()


@pytest.mark.parametrize("unit", [1.0, 1e12, 1e-12])
@pytest.mark.parametrize("make", [kernels.Gaussian, kernels.Laplace, kernels.InverseMultiquadric])
def test_derivatives_in_the_bandwidth_do_not_depend_on_the_unit(make, unit):
    """σ ∂k/∂σ and σ² Σ ∂²k/∂x∂y in closed form, for a distance of 1.3 σ."""
    r = 1.3
    slope, trace = {
        kernels.Gaussian: (r**2 * np.exp(-(r**2) / 2), (3 - r**2) * np.exp(-(r**2) / 2)),
        kernels.Laplace: (r * np.exp(-r), None),
        kernels.InverseMultiquadric: (
            r**2 * (1 + r**2) ** -1.5,
            (3 - 3 * r**2 / (1 + r**2)) * (1 + r**2) ** -1.5,
        ),
    }[make]
    x, y = jnp.zeros((1, 3)), jnp.float32(unit) * jnp.array([[r, 0.0, 0.0]])
    sigma = jnp.float32(unit)
    found = jax.grad(lambda sigma: make(bandwidth=sigma)(x, y)[0, 0])(sigma) * sigma
    np.testing.assert_allclose(found, slope, rtol=1e-5)
    if trace is not None:
        squared = jnp.square(jnp.float32(unit) * jnp.float32(r)).reshape(1, 1)
        found = make(bandwidth=sigma).stein_trace(squared, 3)[0, 0] * sigma * sigma
        np.testing.assert_allclose(found, trace, rtol=1e-5)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, np.nan])
def test_an_exponent_out_of_range_has_no_value_at_coincident_points(exponent):
    """One to the power of NaN is one."""
    kernel = lambda exponent: kernels.InverseMultiquadric(1.0, exponent)(jnp.zeros((2, 2)))
    assert jnp.isnan(jax.jit(kernel)(exponent)).all()
    assert (jax.jit(kernel)(0.5) == 1).all()
