"""Special functions against 60-digit decimal arithmetic, SciPy, and finite differences."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from divjax.fdiv import special

ULPS = 12  # of the result, beyond what rounding an argument of an exponential costs


def exact(function):
    """The function on floats, evaluated with 60 digits and rounded once."""

    def rounded(*args):
        with localcontext() as context:
            context.prec = 60
            return float(function(*(Decimal(float(a)) for a in args)))

    return np.vectorize(rounded)


@exact
def expm1_over(u, c):
    return u if c == 0 else ((c * u).exp() - 1) / c


@exact
def log1p_over(t, c):
    return t if c == 0 else (1 + c * t).ln() / c


@exact
def power_remainder(u, alpha):
    if alpha == 0:
        return u.exp() - 1 - u
    if alpha == 1:
        return u * u.exp() - u.exp() + 1
    return ((alpha * u).exp() - 1 - alpha * (u.exp() - 1)) / (alpha * (alpha - 1))


@exact
def log_mixture(x, w):
    return (1 - w + w * x.exp()).ln()


@exact
def exp_remainder(x):
    return x.exp() - 1 - x


@exact
def entropy_deficit(squared):
    x = squared.sqrt()
    return ((1 + x) * (1 + x).ln() + (1 - x) * (1 - x).ln()) / 2


U = np.concatenate([-np.geomspace(80, 1e-6, 40), np.geomspace(1e-6, 80, 40)])


def check(ours, reference, *args, dtype, amplification=1.0):
    """Within a few ulps of the reference at the rounded arguments, inf where it overflows."""
    args = np.broadcast_arrays(*(np.asarray(a, dtype) for a in args))
    with jax.enable_x64(dtype == np.float64):
        value = np.asarray(jax.jit(ours)(*(jnp.asarray(a) for a in args)))
    assert value.dtype == dtype
    expected = reference(*args)
    with np.errstate(over="ignore"):
        overflows = np.isinf(expected.astype(dtype))
    assert np.array_equal(np.isinf(value), overflows)
    value, expected = value[~overflows].astype(np.float64), expected[~overflows]
    amplification = np.broadcast_to(amplification, overflows.shape)[~overflows]
    # Below the smallest normal number results may be flushed to zero.
    bound = ULPS * np.finfo(dtype).eps * amplification * np.abs(expected) + np.finfo(dtype).tiny
    assert np.all(np.abs(value - expected) <= bound), np.max(
        np.abs(value - expected) / (np.abs(expected) * np.finfo(dtype).eps)
    )


both = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EXPONENTS = np.array([-2.0, -1.0, -0.5, -1e-4, 0.0, 1e-6, 0.3, 0.5, 0.999, 1.0, 1.001, 2.0, 3.7])


@both
def test_power_functions_to_few_ulps(dtype):
    u, c = U[:, None], EXPONENTS
    conditioning = 1 + np.abs(c * u) / 4  # the rounded product αu, in an exponent
    check(special.expm1_over, expm1_over, u, c, dtype=dtype, amplification=conditioning)
    check(special.power_remainder, power_remainder, u, c, dtype=dtype, amplification=conditioning)


@both
def test_logarithms_to_few_ulps(dtype):
    t = np.geomspace(1e-7, 1e6, 30)[:, None]
    check(special.log1p_over, log1p_over, t, np.abs(EXPONENTS), dtype=dtype)
    check(special.log1p_over, log1p_over, -t / 1.1e6, np.abs(EXPONENTS) / 4, dtype=dtype)
    weight = np.array([1e-6, 0.1, 0.5, 0.9, 1.0])
    check(special.log_mixture, log_mixture, U[:, None], weight, dtype=dtype)


@both
def test_remainders_to_few_ulps(dtype):
    check(special.exp_remainder, exp_remainder, U, dtype=dtype)
    squared = np.concatenate([np.geomspace(1e-12, 0.99, 50), [0.00999, 0.01, 0.01001]])
    check(special.entropy_deficit, entropy_deficit, squared, dtype=dtype)


root_of = jax.jit(special.remainder_root, static_argnums=1)


@both
def test_roots_invert_the_remainder(dtype):
    delta = np.asarray(np.geomspace(1e-6, 80, 60), dtype)
    for sign, branch in ((1, -1), (-1, 0)):
        value = exp_remainder(sign * delta).astype(dtype)
        # Rounding the value moves the root by δ-relative ½ulp · (e^δ−1−δ)/(δ(e^δ−1)) ≤ ½ ulp.
        with jax.enable_x64(dtype == np.float64):
            root = root_of(jnp.asarray(value), branch)
        np.testing.assert_allclose(root, sign * delta, rtol=4 * np.finfo(dtype).eps)
        ends = root_of(jnp.array([0.0, jnp.inf, -1.0]), branch)
        np.testing.assert_array_equal(ends, [0, sign * np.inf, np.nan])


lambert_w = jax.jit(special.lambert_w, static_argnums=1)


@both
def test_lambert_w_is_scipys(dtype):
    above = -np.geomspace(1e-30, 0.35, 30).astype(dtype)
    positive = np.concatenate([[0.0], np.geomspace(1e-30, 1e38, 80)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for z, branch in ((above, 0), (above, -1), (positive, 0)):
            expected = scipy.special.lambertw(z.astype(np.float64), branch).real
            np.testing.assert_allclose(
                lambert_w(jnp.asarray(z), branch), expected, rtol=16 * np.finfo(dtype).eps
            )


@both
def test_lambert_w_near_its_branch_point(dtype):
    """Where SciPy has lost digits: Newton's iteration with 60 digits, from the expansion."""

    @exact
    def reference(z, sign):
        w = -1 + sign * (2 * (1 + z * Decimal(1).exp())).sqrt()
        for _ in range(12):
            w -= (w - z * (-w).exp()) / (1 + w)
        return w

    z = (-np.exp(-1) + np.geomspace(2e-6, 0.1, 30)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for branch, sign in ((0, 1), (-1, -1)):
            np.testing.assert_allclose(
                lambert_w(jnp.asarray(z), branch), reference(z, sign), rtol=4 * np.finfo(dtype).eps
            )


@pytest.mark.parametrize("branch", [0, -1])
def test_lambert_w_at_the_ends_of_its_domain(branch):
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            # 1 + w = ±√(2(1 + ez)) to leading order, and |1 + ez| ≤ 4 ε at the rounded point.
            gap = lambert_w(jnp.asarray(-np.exp(-1), dtype), branch) + 1
            assert jnp.abs(gap) < jnp.sqrt(8 * jnp.finfo(dtype).eps)
    ends = lambert_w(jnp.array([-0.4, 0.0, 0.1, jnp.inf]), branch)
    expected = [np.nan, 0, 0.0912765, np.inf] if branch == 0 else [np.nan, -np.inf, np.nan, np.nan]
    np.testing.assert_allclose(ends, expected, rtol=1e-6)


def along_second(function, *first):
    """The function of its second argument alone, at several first ones."""
    return lambda x: jnp.dot(function(jnp.array(first), x), 1.0 + jnp.arange(len(first)))


@pytest.mark.parametrize(
    ("function", "points"),
    [
        (lambda x: special.expm1_over(x, 0.7), (-3.0, 0.0, 1.0)),
        (along_second(special.expm1_over, -1.3, 1.3), (-3.0, -1e-9, 0.0, 0.5, 2.0)),
        (lambda x: special.log1p_over(1.3, x), (-0.5, 0.0, 1e-9, 2.0)),
        (lambda x: special.log1p_over(x, 0.4), (-0.5, 0.0, 3.0)),
        (lambda x: special.power_remainder(x, 1.0), (-3.0, -0.1, 0.2, 3.0)),
        (along_second(special.power_remainder, -2.0, 0.2, 2.0), (-1.0, 0.0, 1e-9, 0.5, 1.0, 3.0)),
        (lambda x: special.log_mixture(x, 0.3), (-3.0, 0.0, 0.5, 3.0)),
        (along_second(special.log_mixture, -0.7, 1.7), (0.1, 0.5, 0.9)),
        (special.exp_remainder, (-3.0, 0.0, 0.5, 3.0)),
        (special.entropy_deficit, (0.005, 0.3, 0.9)),
        (lambda x: special.remainder_root(x, 0), (0.01, 1.0, 9.0)),
        (lambda x: special.remainder_root(x, -1), (0.01, 1.0, 9.0)),
        (special.lambert_w, (-0.35, -0.2, 0.0, 2.0, 30.0)),
        (lambda x: special.lambert_w(x, -1), (-0.36, -0.2, -0.01)),
    ],
)
def test_first_and_second_derivatives(function, points):
    step = 1e-5
    jet = jax.jit(
        jax.vmap(lambda x: (function(x), jax.grad(function)(x), jax.hessian(function)(x)))
    )
    with jax.enable_x64(True):
        x = jnp.asarray(points) + step * jnp.array([[0], [1], [-1]])
        value, first, second = (np.asarray(y).reshape(x.shape) for y in jet(x.ravel()))
    for derivative, of in ((first, value), (second, first)):
        difference = (of[1] - of[2]) / (2 * step)
        np.testing.assert_allclose(derivative[0], difference, rtol=2e-6, atol=1e-9)


def test_infinite_arguments_give_the_limits():
    inf = jnp.inf
    assert special.expm1_over(inf, -0.5) == 2
    assert special.expm1_over(-inf, 0.5) == -2
    assert special.expm1_over(-inf, 0.0) == special.expm1_over(-inf, -1.0) == -inf
    assert special.power_remainder(-inf, 2.0) == 0.5
    assert special.power_remainder(-inf, 0.0) == special.power_remainder(inf, -1.0) == inf
    np.testing.assert_allclose(special.log_mixture(-inf, 0.25), np.log(0.75), rtol=1e-6)
    assert special.log_mixture(inf, 0.25) == inf
    for function in (special.expm1_over, special.power_remainder, special.log_mixture):
        assert jnp.isnan(function(jnp.nan, 0.5))


def test_an_unknown_branch_is_refused():
    for function in (special.lambert_w, special.remainder_root):
        with pytest.raises(ValueError, match="branch must be 0 or -1; got 1"):
            function(0.1, 1)
