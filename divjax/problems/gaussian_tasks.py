"""Gaussian pairs p, q with exact KL, reverse KL and Jensen–Shannon, and one rounded to a lattice.

The Jensen–Shannon divergence has no closed form between Gaussians, but a one-dimensional integral
in every dimension. With the log ratio u and the Chernoff coefficient m(s) = ∫ p^s q^{1−s},

    log 2 − JS = ½ ∫ √(pq) [e^{u/2} log(1 + e^{−u}) + e^{−u/2} log(1 + e^u)],

and the bracket is an inverse Fourier transform: ∫ e^{su} log(1 + e^{−u}) du = π/(s sin πs) for
0 < Re s < 1. Hence, by Parseval's theorem,

    log 2 − JS = ∫₀^∞ Re m(½ + it) · ½ / ((¼ + t²) cosh πt) dt.

The integrand is smooth and falls like e^{−πt}. For Gaussians m is a product over the directions
that whiten q and diagonalise p.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, known_number
from divjax.core.normal import Normal, full_covariance, normal_pair
from divjax.core.samples import Unrounded
from divjax.problems.mixtures import check_resolved
from divjax.problems.task import Sampler, Task, points_of

__all__ = [
    "chasm",
    "correlated_gaussians",
    "gaussian_pair",
    "gaussian_scale",
    "gaussian_shift",
    "lattice",
    "random_gaussians",
]


def _js(log_coefficient: Callable[[complex], complex]) -> float:
    """JS in nats from log m(s) at s = ½ + it, by the integral of the module.

    It is computed as the integral of 1 − Re m, since m = 1 gives log 2, so that a small divergence
    is accurate.
    """

    def integrand(t: float) -> float:
        weight = 0.5 / ((0.25 + t * t) * math.cosh(math.pi * t))
        return weight * -complex(np.expm1(log_coefficient(0.5 + 1j * t))).real

    # Beyond 13 the weight is below 1e-20. Where p and q are far apart m oscillates.
    return max(
        0.0, scipy.integrate.quad(integrand, 0, 13, limit=2000, epsabs=1e-18, epsrel=1e-11)[0]
    )


def _normal(mean: np.ndarray, factor: np.ndarray) -> Sampler:
    """Draws of N(mean, factor factorᵀ)."""

    def sample(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        noise = jax.random.normal(key, (n, mean.size))
        spread = jnp.matmul(noise, jnp.asarray(factor.T, noise.dtype), precision="highest")
        return jnp.asarray(mean, noise.dtype) + spread

    return sample


def finite_array(name: str, value: npt.ArrayLike) -> np.ndarray:
    """Finite numbers in double precision, or a `ValueError` for anything else."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers; got {value!r}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got {array.tolist()}.")
    return array


def gaussian_pair(p: Normal, q: Normal, *, x_dim: int | None = None) -> Task:
    """Two Gaussians p and q.

    Everything follows from the directions that whiten q and diagonalise p, with p's means μ_i and
    variances λ_i in them: KL = ½ Σ (λ_i − 1 − log λ_i + μ_i²), and

        m(s) = Π λ_i^{(1−s)/2} c_i^{−½} exp(−½ s(1 − s) μ_i²/c_i),   c_i = s + (1 − s) λ_i.

    Args:
        p: mean "d", and covariance "d" or "d d", positive definite.
        q: mean and covariance of the same dimension.
        x_dim: the number of x's features, for a task of mutual information.

    Raises:
        ValueError: if the shapes do not fit, a covariance is not positive definite, or a Gaussian
            is more than about 10⁵ standard deviations from the origin in float32.

    Example:
        >>> from divjax import Normal
        >>> task = gaussian_pair(Normal([1.0], [1.0]), Normal([0.0], [1.0]))
        >>> round(task.kl, 4), round(task.js, 4)
        (0.5, 0.1114)

    References:
        Chernoff 1952, the coefficient; Gil, Alajaji, Linder 2013, table 2, for Gaussians.
    """
    p, q = normal_pair(p, q)
    mean_p, covariance_p = _finite("p", p)
    mean_q, covariance_q = _finite("q", q)
    # NumPy's factorisation raises for a matrix that is not definite, where JAX's gives NaN.
    try:
        factor_p, factor_q = np.linalg.cholesky(covariance_p), np.linalg.cholesky(covariance_q)
    except np.linalg.LinAlgError:
        raise ValueError("covariances must be positive definite; got one that is not.") from None
    # Far from the origin the rounding of draws is no longer negligible beside their spread.
    check_resolved("p", mean_p, np.sqrt(np.diagonal(covariance_p)))
    check_resolved("q", mean_q, np.sqrt(np.diagonal(covariance_q)))
    return _gaussian_pair(mean_p, factor_p, mean_q, factor_q, x_dim)


def _gaussian_pair(
    mean_p: np.ndarray,
    factor_p: np.ndarray,
    mean_q: np.ndarray,
    factor_q: np.ndarray,
    x_dim: int | None,
) -> Task:
    """`gaussian_pair` after its checks, with the covariances' Cholesky factors."""
    d = mean_p.size
    # In these coordinates q is standard normal and p has independent features, so that every
    # divergence is a sum or a product over them.
    whitened = np.linalg.solve(factor_q, factor_p)
    directions, roots, _ = np.linalg.svd(whitened)
    logs = 2 * np.log(roots)
    whitening = directions.T @ np.linalg.inv(factor_q)
    shift = whitening @ (mean_p - mean_q)

    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, d)
        rows, scale = jnp.asarray(whitening, z.dtype), jnp.asarray(roots, z.dtype)
        mean = jnp.asarray(shift, z.dtype)
        white = jnp.matmul(z - jnp.asarray(mean_q, z.dtype), rows.T, precision="highest")
        squares = jnp.square(white) - jnp.square((white - mean) / scale)
        return jnp.sum(squares / 2 - jnp.log(scale), axis=1)

    # log E_q[e^{su}], which on the line Re s = ½ gives the Jensen–Shannon divergence.
    def log_coefficient(s: complex) -> complex:
        more = (1 - s) * np.expm1(logs)
        # NumPy's log1p of complex numbers is inaccurate for small ones.
        log_size = np.log1p(2 * more.real + np.abs(more) ** 2) / 2
        log_mixed = log_size + 1j * np.arctan2(more.imag, 1 + more.real)
        # ½ [(1 − s) log λ − log v − s(1 − s) μ²/v] with v = 1 + (1 − s)(λ − 1), over all
        # directions.
        powers = (1 - s) * logs - log_mixed - s * (1 - s) * shift**2 / (1 + more)
        return np.sum(powers) / 2

    return Task(
        d,
        _normal(mean_p, factor_p),
        _normal(mean_q, factor_q),
        log_ratio,
        float(np.sum(_exp_remainder(logs) + shift**2) / 2),
        # KL(q‖p), for which variances are 1/λ_i and means μ_i/√λ_i.
        float(np.sum(_exp_remainder(-logs) + (shift / roots) ** 2) / 2),
        _js(log_coefficient),
        x_dim,
    )


def _finite(name: str, normal: Normal) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the exactly symmetric covariance in double precision."""
    mean = finite_array(f"the mean of {name}", normal.mean)
    covariance = finite_array(f"the covariance of {name}", full_covariance(normal))
    # Cholesky's algorithm reads one triangle, which may differ from the other by rounding.
    return mean, (covariance + covariance.T) / 2


def _exp_remainder(x: np.ndarray) -> np.ndarray:
    """The remainder e^x − 1 − x, accurate for small x."""
    # The closed form cancels below 1e-2, where six terms of the series are exact to rounding.
    series = 1 / 2 + x / 6 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))
    return np.where(np.abs(x) < 1e-2, x**2 * series, np.expm1(x) - x)


def _gaussian(mean: Unrounded, covariance: Unrounded) -> Normal:
    """A Gaussian in NumPy's double precision."""
    return Normal(mean, covariance)


def _standard(d: int) -> Normal:
    return _gaussian(np.zeros(d), np.ones(d))


def gaussian_shift(d: int, kl: float) -> Task:
    """Gaussians p = N(μ, I) and q = N(0, I), all entries of μ equal, KL(p‖q) = |μ|²/2 = kl.

    Example:
        >>> gaussian_shift(10, 1.0).kl
        1.0
    """
    check_count(1, d=d)
    kl = known_number("kl", kl, 0)
    return gaussian_pair(_gaussian(np.full(d, math.sqrt(2 * kl / d)), np.ones(d)), _standard(d))


def gaussian_scale(d: int, scale: float) -> Task:
    """Gaussians p = N(0, scale² I) and q = N(0, I), KL(p‖q) = d (scale² − 1 − 2 log scale)/2.

    Example:
        >>> round(gaussian_scale(1, 1e-6).kl, 4)
        13.3155
    """
    check_count(1, d=d)
    scale = known_number("scale", scale, 0, above=True)
    return gaussian_pair(_gaussian(np.zeros(d), np.full(d, scale**2)), _standard(d))


def correlated_gaussians(d: int, kl: float) -> Task:
    """Gaussian p of d/2 correlated pairs and q = N(0, I), KL(p‖q) = −(d/4) log(1 − ρ²) = kl.

    The pairs are the features i and i + d/2, so that it is also a task of mutual information with
    `x_dim` = d/2.

    Args:
        d: the number of features of x and y together, even.
        kl: the divergence in nats.

    Example:
        >>> round(correlated_gaussians(40, 10.0).kl, 6)
        10.0

    References:
        Rhodes, Xu, Gutmann 2020, section 4.2: d = 40 … 320 with a quarter of a nat a feature.
    """
    check_count(1, d=d)
    kl = known_number("kl", kl, 0)
    if d % 2:
        raise ValueError(f"d must be even; got {d}.")
    # 1 − ρ² = e^{−4 kl/d}, by expm1 so that a small divergence is accurate.
    rho = math.sqrt(-math.expm1(-4 * kl / d))
    covariance = np.kron([[1, rho], [rho, 1]], np.eye(d // 2))
    return gaussian_pair(_gaussian(np.zeros(d), covariance), _standard(d), x_dim=d // 2)


def chasm(a: float, d: int = 4) -> Task:
    """Gaussians p = N(0, I) and q = N(a·1, I), KL(p‖q) = d a²/2, far apart for large a.

    Example:
        >>> round(chasm(4.0).kl, 6)
        32.0

    References:
        Apellániz et al. 2024, arXiv 2405.07822: d = 4 and a from 0 to 4.
    """
    check_count(1, d=d)
    a = known_number("a", a)
    return gaussian_pair(_standard(d), _gaussian(np.full(d, a), np.ones(d)))


def random_gaussians(seed: int, d: int = 10) -> Task:
    """Two Gaussians of random covariances CCᵀ, different for each seed.

    C has ones on its diagonal and .03, .05 or .07 elsewhere, drawn for p and then for q. The mean
    of p is uniform on the unit cube, that of q zero. These are the published draws: two Mersenne
    twisters start from one seed, one for covariances and one, with 24 bits per number, for means.

    Args:
        seed: the seed of both generators.
        d: the number of features.

    Example:
        >>> round(random_gaussians(0).kl, 4)
        0.9682

    References:
        Apellániz et al. 2024, arXiv 2405.07822, use case 1; seeds 0 to 4.
    """
    check_count(1, d=d)
    check_count(0, seed=seed)
    # Only the legacy generator reproduces the published draws.
    rng = np.random.RandomState(seed)
    covariances = []
    for _ in range(2):
        root = np.eye(d)
        root[~np.eye(d, dtype=bool)] = rng.choice([0.03, 0.05, 0.07], size=d * (d - 1))
        covariances.append(root @ root.T)
    # A published uniform number is made of the lower 24 bits of a word.
    bits = np.random.RandomState(seed).randint(0, 2**32, d, dtype=np.uint32)
    mean = (bits % 2**24) / 2**24
    return gaussian_pair(_gaussian(mean, covariances[0]), _gaussian(np.zeros(d), covariances[1]))


def lattice(d: int, spacing: float = 0.125) -> Task:
    """Gaussian q = N(0, I), and p the same with its first feature rounded to a lattice.

    p and q are mutually singular: KL is infinite in both directions and JS is log 2. Yet for a
    small spacing a smooth function hardly discriminates them. It models tables with integer columns
    against a continuous generator.

    Args:
        d: the number of features.
        spacing: the spacing of the lattice, a power of two, so that rounding is exact, and at least
            2⁻¹⁰ in float32 (2⁻³⁹ in float64), where one draw in ten thousand of q, itself rounded,
            is on the lattice.

    Raises:
        ValueError: if the spacing is smaller, or not a power of two.

    Example:
        >>> lattice(3).kl
        inf
    """
    check_count(1, d=d)
    spacing = known_number("spacing", spacing, 0, above=True)
    # Multiples of a power of two are exact, so that draws of p are recognised.
    if math.frexp(spacing)[0] != 0.5:
        raise ValueError(f"spacing must be a power of two; got {spacing}.")
    least = 2**13 * float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
    if spacing < least:
        raise ValueError(
            f"spacing must be at least {least:.0e}, or rounded draws of q lie on the lattice; got "
            f"{spacing}. Enable float64."
        )
    nearest = lambda z: jnp.round(z[:, 0] / spacing) * spacing

    def sample_q(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        return jax.random.normal(key, (n, d))

    def sample_p(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        z = sample_q(key, n)
        return z.at[:, 0].set(nearest(z))

    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, d)
        # The lattice has probability one under p and zero under q.
        return jnp.where(z[:, 0] == nearest(z), jnp.inf, -jnp.inf).astype(z.dtype)

    return Task(d, sample_p, sample_q, log_ratio, math.inf, math.inf, math.log(2))
