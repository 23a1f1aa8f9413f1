"""Pairs of Gaussian mixtures of one or two features, their divergences by quadrature."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count
from divjax.core.samples import Numbers
from divjax.problems.mixtures import GaussianMixture
from divjax.problems.task import Task, points_of

__all__ = ["fitted_mixture", "mixture_pair", "mixtures"]


# The accepted difference between a rule and that with half the points: relative, and absolute.
_COARSE_ERROR, _COARSE_ROUNDING = 1e-3, 1e-9


def mixtures(p: GaussianMixture, q: GaussianMixture, *, points: int = 600) -> Task:
    """Two Gaussian mixtures of one or two features, their divergences by quadrature.

    Uses the trapezoidal rule on a box that extends nine standard deviations beyond every mean. Its
    error decreases exponentially in the number of points, once their distance is below the smallest
    standard deviation of any component, in any direction, and below the length on which the log
    ratio bends. The rule is accepted if half of its points agree with it to a thousandth: its own
    relative error is then of the order of the square of that.

    Args:
        p: a mixture, for example of the weights_, means_ and covariances_ of one that was fitted by
            scikit-learn.
        q: the other mixture.
        points: the number of points of the rule, in each direction.

    Raises:
        ValueError: if the mixtures differ in their number of features or have more than two, one is
            not a mixture, the points are farther apart than the smallest standard deviation, or
            half of them would give another answer.

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
    components = [_components(mixture) for mixture in (p, q)]
    d, other = [each.means.shape[1] for each in components]
    if d != other or d > 2:
        raise ValueError(
            "p and q must be mixtures of the same number of features, one or two; "
            f"got {d} and {other}."
        )
    means = np.concatenate([each.means for each in components])
    # Nine standard deviations from its mean a normal density is below e⁻⁴⁰ of its peak.
    margins = np.concatenate(
        [9 * np.sqrt(np.diagonal(each.covariances, axis1=1, axis2=2)) for each in components]
    )
    ends = zip((means - margins).min(0), (means + margins).max(0), strict=True)
    axes = [np.linspace(low, high, points) for low, high in ends]
    with np.errstate(divide="ignore", invalid="ignore"):  # singular up to rounding
        # NumPy's minimum is NaN if either is, as of a negative eigenvalue; Python's may not be.
        smallest = np.min(
            [
                np.sqrt(np.linalg.eigvalsh(each.covariances[each.weights > 0]).min())
                for each in components
            ]
        )
        needed = np.ceil(1 + max(axis[-1] - axis[0] for axis in axes) / smallest)
    if not points >= needed:
        raise ValueError(
            f"points must be at least {needed:.0f} for a smallest standard deviation of "
            f"{smallest:.3g}; got {points}."
        )
    # The density vanishes at the ends of the box, so that all nodes have one weight.
    cell = math.prod(axis[1] - axis[0] for axis in axes)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
    log_p, log_q = _log_density(components[0], grid), _log_density(components[1], grid)
    u = log_p - log_q
    mass_p, mass_q = np.exp(log_p) * cell, np.exp(log_q) * cell
    # JS = log 2 − ½ (E_p log(1 + e^{−u}) + E_q log(1 + e^u)).
    of_js = (np.log(2) - np.logaddexp(0, -u)) / 2, (np.log(2) - np.logaddexp(0, u)) / 2
    terms = np.stack([mass_p * u, -mass_q * u, mass_p * of_js[0] + mass_q * of_js[1]])
    known = terms.sum(axis=1)
    # Every other point in each direction, each for 2^d of them.
    on_grid = terms.reshape(3, *(points,) * d)
    coarse = on_grid[(slice(None), *(slice(None, None, 2),) * d)].reshape(3, -1).sum(axis=1) * 2**d
    if (np.abs(coarse - known) > _COARSE_ERROR * np.abs(known) + _COARSE_ROUNDING).any():
        raise ValueError(
            f"points must be more than {points} for these mixtures: half of them give KL, reverse "
            f"KL and Jensen–Shannon of {coarse}, all of them {known}."
        )

    kl, reverse_kl, js = known.tolist()

    def log_ratio(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, d)
        # In the dtype of the points: mixtures in another one would change that of the log ratio.
        one, other = jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), (p, q))
        return jax.vmap(lambda x: one.log_prob(x) - other.log_prob(x))(z)

    return Task(
        d,
        p.sample,
        q.sample,
        log_ratio,
        kl,
        reverse_kl,
        js,
    )


class _Components(NamedTuple):
    """The components of a mixture, with full covariances, in double precision."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def _components(mixture: GaussianMixture) -> _Components:
    weights, means = np.asarray(mixture.weights, np.float64), np.asarray(mixture.means, np.float64)
    covariances = np.asarray(mixture.covariances, np.float64)
    count, d = means.shape
    if covariances.ndim < 2:
        covariances = np.broadcast_to(covariances, count)[:, None, None] * np.eye(d)
    return _Components(weights, means, np.broadcast_to(covariances, (count, d, d)))


def _log_density(components: _Components, grid: np.ndarray) -> np.ndarray:
    terms = []
    for weight, mean, covariance in zip(*components, strict=True):
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
