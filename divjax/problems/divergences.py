"""Pairs p, q with samplers, exact log ratios, and exact KL, reverse KL and Jensen–Shannon.

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
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, check_shape, known_number
from divjax.core.normal import Normal, full_covariance, normal_pair
from divjax.core.samples import Numbers, Unrounded, as_samples
from divjax.problems.mixtures import GaussianMixture, check_draw, check_resolved

__all__ = [
    "Task",
    "chasm",
    "correlated_gaussians",
    "fitted_mixture",
    "gaussian_pair",
    "gaussian_scale",
    "gaussian_shift",
    "lattice",
    "mixture_pair",
    "mixtures",
    "random_gaussians",
]

Sampler = Callable[[Key[Array, ""], int], Float[Array, "n d"]]
RowMap = Callable[[Float[Array, "n d"]], Float[Array, "n d"]]


@dataclass(frozen=True)
class Task:
    """Two distributions, p and q, whose divergences are known. All numbers are in nats.

    Attributes:
        dim: the number of features d.
        sample_p: `(key, n) -> "n d"`, independent draws of p.
        sample_q: independent draws of q, likewise.
        log_ratio: `"b d" -> "b"`, log p(x)/q(x), which is ±∞ where one of the densities is zero.
        kl: KL(p‖q).
        reverse_kl: KL(q‖p).
        js: the Jensen–Shannon divergence.
        x_dim: the number of x's features in a task of mutual information: p is then their joint
            distribution with y, q the product of marginals and `kl` I(x; y).
    """

    dim: int
    sample_p: Sampler
    sample_q: Sampler
    log_ratio: Callable[[Float[Array, "b d"]], Float[Array, " b"]]
    kl: float
    reverse_kl: float
    js: float
    x_dim: int | None = None

    def __post_init__(self):
        for name in ("sample_p", "sample_q"):
            object.__setattr__(self, name, _checked_sampler(getattr(self, name)))

    def sample(
        self, key: Key[Array, ""], n: int, m: int | None = None
    ) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
        """The pair of n draws of p and m draws of q, with m = n by default."""
        check_draw(key, n)
        key_p, key_q = jax.random.split(key)
        return self.sample_p(key_p, n), self.sample_q(key_q, n if m is None else m)

    def sample_pairs(
        self, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        """Draws (x, y) of the joint distribution, in a task of mutual information."""
        if self.x_dim is None:
            raise ValueError("sample_pairs is for tasks of mutual information, with an x_dim.")
        joint = self.sample_p(key, n)
        return joint[:, : self.x_dim], joint[:, self.x_dim :]

    def transformed(self, forward: RowMap, inverse: RowMap) -> "Task":
        """The task under an invertible map of rows, which preserves the divergences."""
        return Task(
            self.dim,
            lambda key, n: forward(self.sample_p(key, n)),
            lambda key, n: forward(self.sample_q(key, n)),
            lambda z: self.log_ratio(inverse(z)),
            self.kl,
            self.reverse_kl,
            self.js,
            self.x_dim,
        )


def _checked_sampler(sample: Sampler) -> Sampler:
    def checked(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        check_draw(key, n)
        return sample(key, n)

    return checked


def points_of(z: Numbers, dim: int) -> Float[Array, "n d"]:
    """A matrix of points with `dim` features, or a `ValueError`."""
    (points,) = as_samples(z=z)
    check_shape("z", points, "n", dim)
    return points


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
    try:
        factor_p, factor_q = np.linalg.cholesky(covariance_p), np.linalg.cholesky(covariance_q)
    except np.linalg.LinAlgError:
        raise ValueError("covariances must be positive definite; got one that is not.") from None
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


def mixtures(p: GaussianMixture, q: GaussianMixture, *, points: int = 600) -> Task:
    """Two Gaussian mixtures of one or two features, their divergences by quadrature.

    Uses the trapezoidal rule on a box that extends nine standard deviations beyond every mean. Its
    error decreases exponentially in the number of points, once their distance is below the smallest
    standard deviation of any component, in any direction.

    Args:
        p: a mixture, for example of the weights_, means_ and covariances_ of one that was fitted by
            scikit-learn.
        q: the other mixture.
        points: the number of points of the rule, in each direction.

    Raises:
        ValueError: if the mixtures differ in their features or have more than two, one is not a
            mixture, or the points are farther apart than the smallest standard deviation.

    Example:
        >>> import jax.numpy as jnp
        >>> one, two = (GaussianMixture(jnp.ones(1), jnp.full((1, 1), m), 1.0) for m in (1.0, 0.0))
        >>> round(mixtures(one, two).kl, 4)
        0.5
    """
    check_count(2, points=points)
    for name, mixture in (("p", p), ("q", q)):
        if not np.isfinite(mixture.mean()).all():  # raises for bad weights
            raise ValueError(
                f"{name} must be a mixture of finite means and positive definite covariances."
            )
    laws = [_components(mixture) for mixture in (p, q)]
    d = laws[0][1].shape[1]
    if d != laws[1][1].shape[1] or d > 2:
        raise ValueError(
            "p and q must be mixtures of one or two features, as many each; "
            f"got {d} and {laws[1][1].shape[1]}."
        )
    means = np.concatenate([law[1] for law in laws])
    margins = np.concatenate(
        [9 * np.sqrt(np.diagonal(law[2], axis1=1, axis2=2)) for law in laws], axis=0
    )
    ends = zip((means - margins).min(0), (means + margins).max(0), strict=True)
    axes = [np.linspace(low, high, points) for low, high in ends]
    with np.errstate(divide="ignore", invalid="ignore"):  # singular up to rounding
        smallest = min(np.sqrt(np.linalg.eigvalsh(law[2][law[0] > 0]).min()) for law in laws)
        needed = np.ceil(1 + max(axis[-1] - axis[0] for axis in axes) / smallest)
    if not points >= needed:
        raise ValueError(
            f"points must be at least {needed:.0f} for a smallest standard deviation of "
            f"{smallest:.3g}; got {points}."
        )
    # The density vanishes at the ends of the box, so that all nodes have one weight.
    cell = math.prod(axis[1] - axis[0] for axis in axes)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
    log_p, log_q = _log_density(laws[0], grid), _log_density(laws[1], grid)
    u = log_p - log_q
    mass_p, mass_q = np.exp(log_p) * cell, np.exp(log_q) * cell
    # E_p log(1 + e^{−u}) + E_q log(1 + e^u), half of which is log 2 − JS.
    gap = mass_p @ np.logaddexp(0, -u) + mass_q @ np.logaddexp(0, u)

    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, d)
        one, other = jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), (p, q))
        return jax.vmap(lambda x: one.log_prob(x) - other.log_prob(x))(z)

    return Task(
        d,
        p.sample,
        q.sample,
        log_ratio,
        float(mass_p @ u),
        float(-mass_q @ u),
        float(math.log(2) - gap / 2),
    )


def _components(mixture: GaussianMixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and full covariances."""
    weights, means = np.asarray(mixture.weights, np.float64), np.asarray(mixture.means, np.float64)
    covariances = np.asarray(mixture.covariances, np.float64)
    count, d = means.shape
    if covariances.ndim < 2:
        covariances = np.broadcast_to(covariances, count)[:, None, None] * np.eye(d)
    return weights, means, np.broadcast_to(covariances, (count, d, d))


def _log_density(law: tuple[np.ndarray, ...], grid: np.ndarray) -> np.ndarray:
    terms = []
    for weight, mean, covariance in zip(*law, strict=True):
        white = np.linalg.solve(np.linalg.cholesky(covariance), (grid - mean).T)
        constant = np.linalg.slogdet(2 * np.pi * covariance)[1]
        # A component of weight zero has −∞, which contributes zero below.
        with np.errstate(divide="ignore"):
            terms.append(np.log(weight) - (np.sum(white**2, axis=0) + constant) / 2)
    return np.logaddexp.reduce(terms, axis=0)


def mixture_pair() -> Task:
    """Mixtures .7 N((1, 1), C) + .3 N((−1, −1), C) and .5 N(0, C) + .5 N((−1, −1), C), C = ¼ I.

    Example:
        >>> task = mixture_pair()
        >>> round(task.kl, 2), round(task.js, 4)
        (2.83, 0.2926)

    References:
        Apellániz et al. 2024, arXiv 2405.07822, use case 2.
    """
    p = GaussianMixture(jnp.array([0.7, 0.3]), jnp.array([[1.0, 1.0], [-1.0, -1.0]]), 0.25)
    q = GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[0.0, 0.0], [-1.0, -1.0]]), 0.25)
    return mixtures(p, q)


def fitted_mixture(
    key: Key[Array, ""],
    num_rows: int,
    fit: Callable[[Float[Numbers, "n 2"]], GaussianMixture],
    *,
    points: int = 600,
) -> Task:
    """Mixture .7 N((1, 1), C) + .3 N((−1, −1), C), C = [[1, .2], [.2, 1]], and a q fitted to it.

    Args:
        key: the key of the draws to which q is fitted.
        num_rows: the number of these draws of p.
        fit: `"n 2" -> mixture`. Published: scikit-learn's `GaussianMixture(2, random_state=23)`,
            fitted to 10, 20, …, 150 draws.
        points: as for `mixtures`.

    Example:
        >>> import jax
        >>> moments = lambda x: GaussianMixture(jnp.ones(1), x.mean(0)[None], jnp.cov(x.T)[None])
        >>> 0 < fitted_mixture(jax.random.key(0), 1000, moments).kl < 1
        True

    References:
        Apellániz et al. 2024, arXiv 2405.07822, use case 3.
    """
    check_count(1, num_rows=num_rows)
    p = GaussianMixture(
        jnp.array([0.7, 0.3]),
        jnp.array([[1.0, 1.0], [-1.0, -1.0]]),
        jnp.array([[1.0, 0.2], [0.2, 1.0]]),
    )
    return mixtures(p, fit(p.sample(key, num_rows)), points=points)


def lattice(d: int, spacing: float = 0.125) -> Task:
    """Gaussian q = N(0, I), and p the same with its first feature rounded to a lattice.

    No two distributions are farther apart, nor harder to discriminate by a smooth function: KL is
    infinite in both directions and JS is log 2. It models tables with integer columns against a
    continuous generator.

    Args:
        d: the number of features.
        spacing: the spacing of the lattice, a power of two, so that rounding is exact.

    Example:
        >>> lattice(3).kl
        inf
    """
    check_count(1, d=d)
    spacing = known_number("spacing", spacing, 0, above=True)
    # Multiples of a power of two are exact, so that draws of p are recognised.
    if math.frexp(spacing)[0] != 0.5:
        raise ValueError(f"spacing must be a power of two; got {spacing}.")
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
