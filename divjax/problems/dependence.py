"""Tasks of mutual information: p the joint distribution of x and y, q the product of marginals.

The forty tasks of Czyż et al. 2023 are these and their images under invertible maps of x and of y,
which change no divergence: `Task.transformed`.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, known_number
from divjax.core.normal import Normal
from divjax.core.samples import Unrounded
from divjax.problems.gaussian_tasks import finite_array, gaussian_pair
from divjax.problems.task import Task, points_of

__all__ = [
    "additive_uniform",
    "binormal",
    "dense_gaussian",
    "gaussian_dependence",
    "student_t",
    "two_pairs",
]


def gaussian_dependence(covariance: npt.ArrayLike, x_dim: int) -> Task:
    """Jointly normal x and y of zero mean, I(x; y) = ½ log(det C_x det C_y/det C).

    Args:
        covariance: C of shape (d, d), x's features first.
        x_dim: the number of these features that are x's.

    Raises:
        ValueError: if the covariance is not positive definite or x or y would be empty.

    Example:
        >>> round(gaussian_dependence([[1.0, 0.75], [0.75, 1.0]], 1).kl, 5)
        0.41334
    """
    joint: Unrounded = finite_array("covariance", covariance)
    d = joint.shape[0] if joint.ndim else 0
    # True is an integer in Python, but not a number of features.
    whole = isinstance(x_dim, (int, np.integer)) and not isinstance(x_dim, bool)
    if not (whole and 0 < x_dim < d):
        raise ValueError(f"x_dim must be in 1 … {d - 1}; got {x_dim}.")
    own = np.arange(d) < x_dim
    zero: Unrounded = np.zeros(d)
    # The product of the marginals keeps both blocks and has no covariance between x and y.
    product: Unrounded = np.where(own[:, None] == own, joint, 0)
    p, q = Normal(zero, joint), Normal(zero, product)
    return gaussian_pair(p, q, x_dim=x_dim)


def binormal(correlation: float = 0.75) -> Task:
    """A pair of standard normals with this correlation, I = −½ log(1 − ρ²).

    Example:
        >>> round(binormal().kl, 5)
        0.41334
    """
    correlation = known_number("correlation", correlation)
    return gaussian_dependence([[1, correlation], [correlation, 1]], 1)


def dense_gaussian(x_dim: int, y_dim: int, correlation: float = 0.5) -> Task:
    """Standard normals with the same correlation between every two of them.

    Example:
        >>> round(dense_gaussian(25, 25).kl, 5)
        1.29218

    References:
        Czyż et al. 2023, arXiv 2306.11078.
    """
    check_count(1, x_dim=x_dim, y_dim=y_dim)
    correlation = known_number("correlation", correlation)
    d = x_dim + y_dim
    # Ones on the diagonal, the correlation everywhere else.
    return gaussian_dependence(correlation + (1 - correlation) * np.eye(d), x_dim)


def two_pairs(x_dim: int, y_dim: int, correlation: float = 0.8) -> Task:
    """Standard normals of which only x_1, y_1 and x_2, y_2 are correlated, I = −log(1 − ρ²).

    Example:
        >>> round(two_pairs(5, 5).kl, 5)
        1.02165

    References:
        Czyż et al. 2023, arXiv 2306.11078.
    """
    check_count(2, x_dim=x_dim, y_dim=y_dim)
    correlation = known_number("correlation", correlation)
    covariance = np.eye(x_dim + y_dim)
    for i in range(2):
        covariance[i, x_dim + i] = covariance[x_dim + i, i] = correlation
    return gaussian_dependence(covariance, x_dim)


def student_t(x_dim: int, y_dim: int, freedom: float) -> Task:
    """Uncorrelated but dependent (x, y): multivariate t, ν degrees of freedom, identity dispersion.

    With d = m + n and h(k) = ψ((ν + k)/2) for the dimensions,

        I = log[Γ((ν+d)/2) Γ(ν/2)/(Γ((ν+m)/2) Γ((ν+n)/2))]
            + ((ν+m)/2)(h(m) − h(0)) + ((ν+n)/2)(h(n) − h(0)) − ((ν+d)/2)(h(d) − h(0)).

    It is evaluated as an integral of polygamma functions, in which nothing cancels for a large ν.
    The log ratio depends on |x|² and |y|² alone. The other divergences are integrals over the
    logarithms of these, by Gauss–Legendre quadrature on panels around the bulk of p and of q.

    Args:
        x_dim: m, the number of x's features.
        y_dim: n, the number of y's features.
        freedom: ν, the degrees of freedom. The Cauchy distribution has 1.

    Raises:
        ValueError: if double precision cannot hold the divergences: with few features, for ν below
            about 1e-6 and above about 1e10.

    Example:
        >>> round(student_t(2, 2, 2.0).kl, 5)
        0.19315

    References:
        Arellano-Valle, Contreras-Reyes, Genton 2013, the entropy; Czyż et al. 2023, arXiv
        2306.11078, the tasks.
    """
    check_count(1, x_dim=x_dim, y_dim=y_dim)
    freedom = known_number("freedom", freedom, 0, above=True)
    d, half = x_dim + y_dim, freedom / 2
    # Python numbers, which do not promote dtypes.
    constant, kl, reverse_kl, js = _student_t_divergences(x_dim / 2, y_dim / 2, half)
    power = half + d / 2

    # The density ratio and the samplers: a normal vector over the root of a mean of squares, which
    # x and y share under p and draw independently under q.
    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, d)
        squares = jnp.square(z / math.sqrt(freedom))
        x, y = jnp.sum(squares[:, :x_dim], axis=1), jnp.sum(squares[:, x_dim:], axis=1)
        # log((1 + x)(1 + y)/(1 + x + y)), without its three logarithms, which cancel for a large ν.
        both = jnp.log1p(x * (y / 2 / (0.5 + x / 2 + y / 2)))
        return constant - (y_dim * jnp.log1p(x) + x_dim * jnp.log1p(y)) / 2 + power * both

    def sample_p(key: Key[Array, ""], n: int, dim: int = d) -> Float[Array, "n d"]:
        key_normal, key_scale = jax.random.split(key)
        scale = jax.random.chisquare(key_scale, freedom, shape=(n, 1)) / freedom
        return jax.random.normal(key_normal, (n, dim)) / jnp.sqrt(scale)

    def sample_q(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        key_x, key_y = jax.random.split(key)
        return jnp.concatenate([sample_p(key_x, n, x_dim), sample_p(key_y, n, y_dim)], axis=1)

    return Task(d, sample_p, sample_q, log_ratio, kl, reverse_kl, js, x_dim)


def _student_t_divergences(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    """The log ratio's constant, I, reverse KL and JS, with x = m/2, y = n/2 and half = ν/2.

    Under both distributions a = |x|²/ν is a ratio of Gamma variables of shapes x and ν/2. So is
    b = |y|²/ν, with shapes y and ν/2 under q, and b/(1 + a) with shapes y and ν/2 + x under p.
    """
    refusal = ValueError(
        "freedom must be one whose divergences double precision can hold; "
        f"got {2 * half:g} for {2 * x:g} and {2 * y:g} features."
    )
    if not 1e-8 <= half <= 1e12:
        raise refusal
    # Second differences cancel for a large ν. As integrals of second derivatives they do not.
    constant = _second_difference(lambda z: scipy.special.polygamma(1, z), x, y, half)
    kl = _second_difference(_information_curvature, x, y, half)
    # The log ratio bends where a or b is one, at the logarithm zero: panels there as well.
    corner = _steps(1.0, 8.0)
    of_b = np.concatenate([_around(y, half), corner])
    log_a, weights = _gauss(np.concatenate([_around(x, half), corner]))
    mass_a = _mass(log_a, weights, x, half)
    # Nodes without mass would only cost time.
    log_a, mass_a = log_a[mass_a > 1e-22], mass_a[mass_a > 1e-22]
    sums = np.zeros(4)
    # A few rows of the grid over a and b at a time, which bounds its memory.
    for rows in np.array_split(np.arange(log_a.size), 1 + log_a.size // 64):
        a = log_a[rows, None]
        edges = np.broadcast_to(of_b, (rows.size, of_b.size))
        # Panels around both distributions of b: that under q, and that under p, which moves with a.
        b, weights = _gauss(np.concatenate([edges, _softplus(a) + _around(y, half + x)], axis=1))
        with np.errstate(divide="ignore"):  # masses that underflow
            log_q = np.log(_mass(b, weights, y, half)) + np.log(mass_a[rows, None])
        # log((1 + a)(1 + b)/(1 + a + b)) as log(1 + ab/(1 + a + b)), in which nothing cancels.
        both = _softplus(a + b - np.logaddexp(0, np.logaddexp(a, b)))
        u = constant - y * _softplus(a) - x * _softplus(b) + (half + x + y) * both
        p, q = np.exp(log_q + u), np.exp(log_q)
        middle = _js_integrand(np.abs(u) / 2)
        # The mass of p, I, the reverse KL, and JS as the mean of its integrand under ½(p + q).
        sums += [p.sum(), (p * u).sum(), -(q * u).sum(), ((p + q) * middle).sum() / 2]
    total, forward, reverse_kl, js = sums.tolist()
    # The mass of p and I are known from other formulas.
    fits = abs(total - 1) <= 1e-6 and abs(forward - kl) <= 1e-5 * kl
    if not (fits and reverse_kl > 0 and 0 < js < math.log(2)):
        raise refusal
    return constant, kl, reverse_kl, js


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def _second_difference(
    function: Callable[[float], float], x: float, y: float, start: float
) -> float:
    """∫₀ˣ ∫₀ʸ function(start + s + t) ds dt, over the logarithm of start + s + t."""

    def integrand(log: float) -> float:
        t = start * math.expm1(log)
        # The integrand depends on s + t alone: its line in the rectangle has this length.
        length = max(min(t, x, y, x + y - t), 0)
        return length * float(function(start + t)) * (start + t)

    # The length has kinks, between which the integrand is smooth.
    kinks = [math.log1p(t / start) for t in (0, min(x, y), max(x, y), x + y)]
    pieces = (ends for ends in itertools.pairwise(kinks) if ends[0] < ends[1])
    options = {"epsabs": 0, "epsrel": 1e-12, "limit": 500}
    return sum(scipy.integrate.quad(integrand, *ends, **options)[0] for ends in pieces)


def _information_curvature(z: float) -> float:
    """The second derivative −ψ'(z) − zψ''(z) of log Γ(z) − zψ(z), which cancels for a large z."""
    if z < 20:
        return float(-scipy.special.polygamma(1, z) - z * scipy.special.polygamma(2, z))
    # The asymptotic series in 1/z, whose terms do not cancel.
    inverse = 1 / z
    series = 0.0
    for coefficient in (-4 / 15, 1 / 7, -2 / 15, 1 / 3):
        series = coefficient + series * inverse**2
    return inverse**2 * (0.5 + inverse * series)


def _steps(width: float, reach: float) -> np.ndarray:
    """Offsets to both sides of a centre: half a width apart, and growing with the distance."""
    steps = [0.0]
    while steps[-1] < reach:
        steps.append(steps[-1] + max(width, steps[-1]) / 2)
    return np.array([*(-step for step in steps[:0:-1]), *steps])


def _around(shape: float, other: float) -> np.ndarray:
    """Panel edges for the log of a ratio of Gamma variables, out to tails of about e⁻⁴⁰."""
    # For a large shape k the logarithm of a Gamma variable has about mean log k and variance 1/k.
    spread = math.sqrt(1 / shape + 1 / other)
    center = math.log(shape) - math.log(other)
    return center + _steps(min(1, spread), 9 * spread + 40 / min(shape, other))


def _gauss(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights between the edges, which are sorted along the last axis."""
    # Exact for polynomials up to degree 19 on each panel.
    roots, weights = np.polynomial.legendre.leggauss(10)
    edges = np.sort(edges, axis=-1)
    half = np.diff(edges)[..., None] / 2
    nodes = edges[..., :-1, None] + half * (1 + roots)
    flat = (*edges.shape[:-1], -1)
    return nodes.reshape(flat), (half * weights).reshape(flat)


def _mass(log: np.ndarray, weights: np.ndarray, shape: float, other: float) -> np.ndarray:
    """The probability at each node of a ratio's logarithm, with sum one."""
    # The density a^shape/(1 + a)^(shape + other) in units of that at its mode, as either power
    # alone may overflow.
    mode = np.log(shape) - np.log(other)
    fall = (shape + other) * (_softplus(log) - _softplus(mode))
    mass = weights * np.exp(shape * (log - mode) - fall)
    return mass / mass.sum(axis=-1, keepdims=True)


def _js_integrand(v: np.ndarray) -> np.ndarray:
    """The integrand v tanh v − log cosh v ≥ 0 of v = |u|/2, whose mean under ½(p + q) is JS."""
    small = np.minimum(v, 1)
    # log cosh v is ½ log(1 + sinh² v), accurate for small v. For large v, where tanh v is near one,
    # v tanh v − v is −2v/(1 + e^{2v}).
    near = small * np.tanh(small) - np.log1p(np.sinh(small) ** 2) / 2
    far = math.log(2) - 2 * v * scipy.special.expit(-2 * v) - np.log1p(np.exp(-2 * v))
    return np.where(v < 1, near, far)


# In units of the last place of one.
_LEAST_WIDTH = 80


def additive_uniform(epsilon: float) -> Task:
    """Uniform x on (0, 1), and y = x + noise uniform on (−ε, ε).

    I = ε − log 2ε for ε ≤ ½ and 1/(4ε) above. The joint distribution lies on a band where the log
    ratio is −log ℓ(y), with ℓ(y) the length of the x compatible with y. Off the band it is −∞, so
    that the reverse divergence is infinite.

    Args:
        epsilon: ε > 0, and large enough for y to differ from x in JAX's default float: 10⁻⁵ in
            float32.

    Raises:
        ValueError: if ε is smaller.

    Example:
        >>> round(additive_uniform(0.1).kl, 5), round(additive_uniform(0.75).kl, 5)
        (1.70944, 0.33333)

    References:
        Czyż et al. 2023, arXiv 2306.11078.
    """
    epsilon = known_number("epsilon", epsilon, 0, above=True)
    least = _LEAST_WIDTH * float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
    if epsilon < least:
        raise ValueError(
            f"epsilon must be at least {least:.0e}, or y is x but for rounding; got {epsilon}. "
            "Enable float64."
        )

    def length(y: Array) -> Array:
        return jnp.minimum(y + epsilon, 1) - jnp.maximum(y - epsilon, 0)

    # The integral over y becomes one over ℓ(y), which rises from 0 to its highest, stays and falls.
    def integrand(share: float) -> float:
        under_p = math.log(2 / (1 + share))
        shared = scipy.special.xlogy(share, 2 * share / (1 + share))
        return share / (4 * epsilon) * (under_p + shared + (1 - share) * math.log(2))

    highest = min(2 * epsilon, 1)
    rising = scipy.integrate.quad(integrand, 0, highest, epsabs=0, epsrel=1e-12)[0]
    js = 2 * rising + abs(1 - 2 * epsilon) * integrand(highest)

    def log_ratio(z: Float[Array, "b 2"]) -> Float[Array, " b"]:
        z = points_of(z, 2)
        x, y = z[:, 0], z[:, 1]
        # Draws of p at the band's edge may round to just outside of it.
        inside = jnp.abs(y - x) <= epsilon + 4 * jnp.finfo(z.dtype).eps * (1 + epsilon)
        share = jnp.where(inside, jnp.maximum(length(y), jnp.finfo(z.dtype).tiny), 1)
        return jnp.where(inside, -jnp.log(share), -jnp.inf)

    def sample_p(key: Key[Array, ""], n: int) -> Float[Array, "n 2"]:
        key_x, key_noise = jax.random.split(key)
        x = jax.random.uniform(key_x, (n,))
        noise = jax.random.uniform(key_noise, (n,), minval=-epsilon, maxval=epsilon)
        return jnp.stack([x, x + noise], axis=1)

    def sample_q(key: Key[Array, ""], n: int) -> Float[Array, "n 2"]:
        key_x, key_y = jax.random.split(key)
        # Each feature is from a draw of its own, so that both are independent.
        return jnp.stack([sample_p(key_x, n)[:, 0], sample_p(key_y, n)[:, 1]], axis=1)

    kl = epsilon - math.log(2 * epsilon) if epsilon <= 0.5 else 1 / (4 * epsilon)
    return Task(2, sample_p, sample_q, log_ratio, kl, math.inf, js, 1)
