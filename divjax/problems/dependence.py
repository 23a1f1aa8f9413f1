"""Tasks of mutual information: p the joint distribution of x and y, q the product of marginals.

The published benchmark's forty tasks are these, and images of these under invertible maps of x and
of y, which change no divergence: `Task.transformed`.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, known_number
from divjax.problems.divergences import Task, check_points, finite_array, gaussian_pair

__all__ = [
    "additive_uniform",
    "binormal",
    "dense_gaussian",
    "gaussian_dependence",
    "student_t",
    "two_pairs",
]


def gaussian_dependence(covariance: Any, x_dim: int) -> Task:
    """Jointly normal x and y of zero mean, I(x; y) = ½ log(det C_x det C_y/det C).

    Args:
        covariance: C of shape (d, d), x's features first.
        x_dim: how many of them are x's.

    Raises:
        ValueError: if the covariance is not positive definite or x or y would be empty.

    Example:
        >>> round(gaussian_dependence([[1.0, 0.75], [0.75, 1.0]], 1).kl, 5)
        0.41334
    """
    covariance = finite_array("covariance", covariance)
    d = covariance.shape[0] if covariance.ndim else 0
    whole = isinstance(x_dim, (int, np.integer)) and not isinstance(x_dim, bool)
    if not (whole and 0 < x_dim < d):
        raise ValueError(f"x_dim must be in 1 … {d - 1}; got {x_dim}.")
    own = np.arange(d) < x_dim
    product = np.where(own[:, None] == own, covariance, 0)
    return gaussian_pair(np.zeros(d), covariance, np.zeros(d), product, x_dim=x_dim)


def binormal(correlation: float = 0.75) -> Task:
    """A pair of standard normals with this correlation, I = −½ log(1 − ρ²).

    Example:
        >>> round(binormal().kl, 5)
        0.41334
    """
    correlation = known_number("correlation", correlation)
    return gaussian_dependence([[1, correlation], [correlation, 1]], 1)


def dense_gaussian(x_dim: int, y_dim: int, correlation: float = 0.5) -> Task:
    """Standard normals, every two of which have the same correlation.

    Example:
        >>> round(dense_gaussian(25, 25).kl, 5)
        1.29218

    References:
        Czyż et al. 2023, arXiv 2306.11078.
    """
    check_count(1, x_dim=x_dim, y_dim=y_dim)
    correlation = known_number("correlation", correlation)
    d = x_dim + y_dim
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
    """Uncorrelated and dependent: (x, y) multivariate t of this freedom ν and identity dispersion.

    With d = m + n and h(k) = ψ((ν + k)/2) for the dimensions,

        I = log[Γ((ν+d)/2) Γ(ν/2)/(Γ((ν+m)/2) Γ((ν+n)/2))]
            + ((ν+m)/2)(h(m) − h(0)) + ((ν+n)/2)(h(n) − h(0)) − ((ν+d)/2)(h(d) − h(0)).

    The log ratio depends on |x|² and |y|² alone; the other divergences are integrals over the
    logarithms of these, by the trapezoidal rule.

    Args:
        x_dim: m, the number of x's features.
        y_dim: n, the number of y's.
        freedom: ν; 1 is the Cauchy distribution.

    Example:
        >>> round(student_t(2, 2, 2.0).kl, 5)
        0.19315

    References:
        Arellano-Valle, Contreras-Reyes, Genton 2013, the entropy; Czyż et al. 2023, arXiv
        2306.11078, the tasks.
    """
    check_count(1, x_dim=x_dim, y_dim=y_dim)
    freedom = known_number("freedom", freedom, 0, above=True)
    # The information in closed form: a term for each of no, m, n and d features.
    d, half = x_dim + y_dim, freedom / 2
    dims = np.array([0, x_dim, y_dim, d])
    signs, powers = np.array([1, -1, -1, 1]), half + dims / 2
    constant = float(signs @ scipy.special.gammaln(powers))
    entropies = powers * (scipy.special.digamma(powers) - scipy.special.digamma(half))
    kl = constant - float(signs @ entropies)
    _, power_x, power_y, power = powers.tolist()  # Python numbers, which promote nothing

    # The other divergences have none; under q the two squared lengths are independent, so that a
    # grid of both is an integral over all of space.
    def radial(dim: int) -> tuple[np.ndarray, np.ndarray]:
        """|x|²/ν on a grid of its logarithm, and the probability of each point."""
        log = np.linspace(-80 / dim, 80 / freedom, 1500)
        log_beta = scipy.special.betaln(dim / 2, half)
        density = np.exp(dim / 2 * log - (half + dim / 2) * np.logaddexp(0, log) - log_beta)
        return np.exp(log), density * (log[1] - log[0])

    (squares_x, mass_x), (squares_y, mass_y) = radial(x_dim), radial(y_dim)
    a, b = squares_x[:, None], squares_y
    u = constant + power_x * np.log1p(a) + power_y * np.log1p(b) - power * np.log1p(a + b)
    mass = mass_x[:, None] * mass_y
    gap = np.sum(mass * (np.exp(u) * np.logaddexp(0, -u) + np.logaddexp(0, u)))

    # The density ratio and the samplers: a normal vector over the root of a mean of squares, which
    # x and y share under p and draw for themselves under q.
    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        check_points(z, d)
        squares = jnp.square(z / math.sqrt(freedom))
        x, y = jnp.sum(squares[:, :x_dim], axis=1), jnp.sum(squares[:, x_dim:], axis=1)
        of_x, of_y = power_x * jnp.log1p(x), power_y * jnp.log1p(y)
        return constant + of_x + of_y - power * jnp.log1p(x + y)

    def sample_p(key: Key[Array, ""], n: int, dim: int = d) -> Float[Array, "n d"]:
        key_normal, key_scale = jax.random.split(key)
        scale = jax.random.chisquare(key_scale, freedom, shape=(n, 1)) / freedom
        return jax.random.normal(key_normal, (n, dim)) / jnp.sqrt(scale)

    def sample_q(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        key_x, key_y = jax.random.split(key)
        return jnp.concatenate([sample_p(key_x, n, x_dim), sample_p(key_y, n, y_dim)], axis=1)

    return Task(
        d,
        sample_p,
        sample_q,
        log_ratio,
        kl,
        float(-np.sum(mass * u)),
        float(math.log(2) - gap / 2),
        x_dim,
    )


def additive_uniform(epsilon: float) -> Task:
    """Uniform x on (0, 1), and y = x + noise uniform on (−ε, ε).

    I = ε − log 2ε for ε ≤ ½ and 1/(4ε) above. The joint distribution lives on a band where the log
    ratio is −log ℓ(y), ℓ(y) the length of the x that go with y; off it it is −∞, so that the
    reverse divergence is infinite.

    Args:
        epsilon: ε > 0.

    Example:
        >>> round(additive_uniform(0.1).kl, 5), round(additive_uniform(0.75).kl, 5)
        (1.70944, 0.33333)

    References:
        Czyż et al. 2023, arXiv 2306.11078.
    """
    epsilon = known_number("epsilon", epsilon, 0, above=True)

    def length(y: Any) -> Any:
        return jnp.minimum(y + epsilon, 1) - jnp.maximum(y - epsilon, 0)

    def integrand(y: float) -> float:
        share = min(y + epsilon, 1) - max(y - epsilon, 0)
        if share <= 0:
            return 0.0
        under_p = math.log(2 / (1 + share))
        under_q = share * math.log(2 * share / (1 + share)) + (1 - share) * math.log(2)
        return share / (2 * epsilon) * (under_p + under_q) / 2

    kinks = sorted({-epsilon, epsilon, 1 - epsilon, 1 + epsilon})
    pieces = itertools.pairwise(kinks)
    js = sum(scipy.integrate.quad(integrand, *ends, epsabs=1e-12)[0] for ends in pieces)

    def log_ratio(z: Float[Array, "b 2"]) -> Float[Array, " b"]:
        check_points(z, 2)
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
        return jnp.stack([sample_p(key_x, n)[:, 0], sample_p(key_y, n)[:, 1]], axis=1)

    kl = epsilon - math.log(2 * epsilon) if epsilon <= 0.5 else 1 / (4 * epsilon)
    return Task(2, sample_p, sample_q, log_ratio, kl, math.inf, js, 1)
