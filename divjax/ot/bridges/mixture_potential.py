"""Mixtures as Schrödinger potentials: their terms, and their fit by matching moments.

The formulas are those of `divjax.ot.schrodinger`. A potential is v = Σ_k a_k N(r_k, ε S_k).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core import linalg
from divjax.core.numerics import quotient, root_of_sum, safe_log, safe_sqrt
from divjax.core.pytrees import select

__all__ = [
    "ComponentMoments",
    "Potential",
    "balance",
    "clusters",
    "component_moments",
    "gaussian_scales",
    "log_terms",
    "m_step",
    "normalizer_log_terms",
    "times_rows",
    "velocities",
]

# Candidate centres for each component, and Lloyd rounds.
_START_TRIALS, _START_ROUNDS = 12, 20


class Potential(NamedTuple):
    """v: log a_k "k", r_k "k d", and S_k, "k d" if diagonal and "k d d" otherwise."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    scales: Float[Array, "k d"] | Float[Array, "k d d"]


# The terms' changes, the objective with its derivatives there, and a bound on the next change.
_Ascent = tuple[Array, tuple[Array, Array, Array], Array]


def _times(matrices: Array, vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """M_k v_k for diagonal or full M_k."""
    return matrices * vectors if matrices.ndim == 2 else jnp.einsum("kij,kj->ki", matrices, vectors)


def _diagonal(scales: Array) -> Float[Array, "k d"]:
    return scales if scales.ndim == 2 else jnp.diagonal(scales, axis1=1, axis2=2)


def times_rows(matrices: Array, x: Float[Array, "n d"]) -> Float[Array, "n k d"]:
    """M_k x_i for diagonal or full symmetric M_k."""
    return x[:, None] * matrices if matrices.ndim == 2 else jnp.einsum("nj,kji->nki", x, matrices)


def normalizer_log_terms(
    v: Potential, x: Float[Array, "n d"], epsilon: Array
) -> Float[Array, "n k"]:
    """The logarithms of the terms of c(x)."""
    if v.scales.ndim == 2:
        # One product; a full S_k takes n × k × d numbers.
        squares = x**2 @ v.scales.T
    else:
        squares = jnp.sum(times_rows(v.scales, x) * x[:, None], axis=2)
    return v.log_weights + quotient(squares / 2 + x @ v.means.T, epsilon)


def log_terms(v: Potential, y: Float[Array, "m d"], epsilon: Array) -> Float[Array, "m k"]:
    """The logarithms of the terms of v(y)."""
    d = y.shape[1]
    centered = y[:, None] - v.means
    if v.scales.ndim == 2:
        squares = jnp.sum(centered**2 / v.scales, axis=2)
        log_det = jnp.sum(jnp.log(v.scales), axis=1)
    else:
        # |L⁻¹ (y − r)|² with S = L Lᵀ. L is inverted once per component, for all rows.
        factors = linalg.cholesky(v.scales)
        inverse = jax.vmap(lambda f: _solve_lower(f, jnp.eye(d, dtype=f.dtype)))(factors)
        squares = jnp.sum(jnp.einsum("nkj,kij->nki", centered, inverse) ** 2, axis=2)
        log_det = 2 * jnp.sum(jnp.log(_diagonal(factors)), axis=1)
    squares = quotient(squares, epsilon)
    return v.log_weights - (squares + log_det + d * jnp.log(2 * jnp.pi * epsilon)) / 2


def _solve_lower(factor: Float[Array, "d d"], right: Array) -> Array:
    return linalg.solve_triangular(factor, right)


def velocities(
    v: Potential, x: Float[Array, "n d"], t: Array, epsilon: Array
) -> tuple[Float[Array, "n k"], Float[Array, "n k d"]]:
    """The log w_k(x, t) and the b_k(x, t)."""
    # The right-hand side of b_k = B_k ((S_k − I) x + r_k).
    right = times_rows(v.scales, x) - x[:, None] + v.means
    if v.scales.ndim == 2:
        mixed = 1 - t + t * v.scales
        along, pulls = right / mixed, v.means / mixed
        log_det = jnp.sum(jnp.log(mixed), axis=1)
    else:
        identity = jnp.eye(x.shape[1], dtype=x.dtype)
        factors = linalg.cholesky((1 - t) * identity + t * v.scales)
        inverse = jax.vmap(lambda f: _solve_lower(f, identity))(factors)
        # B_k = L⁻ᵀ L⁻¹, the inverse of L Lᵀ.
        inverse = jnp.einsum("kji,kjl->kil", inverse, inverse)
        along = jnp.einsum("nkj,kji->nki", right, inverse)
        pulls = _times(inverse, v.means)
        log_det = 2 * jnp.sum(jnp.log(_diagonal(factors)), axis=1)
    # x·b_k + x·B_k r_k − t r_k·B_k r_k; log det B_k is minus that of the inverted matrix.
    exponents = jnp.sum(x[:, None] * along, axis=2) + x @ pulls.T
    exponents = (exponents - t * jnp.sum(v.means * pulls, axis=1)) / (2 * epsilon)
    return v.log_weights - log_det / 2 + exponents, along


class ComponentMoments(NamedTuple):
    """Σ_i w_ik (1, z_i, z_i z_iᵀ) / n, for each component."""

    mass: Float[Array, " k"]
    first: Float[Array, "k d"]
    second: Float[Array, "k d"] | Float[Array, "k d d"]

    def central(self) -> tuple[Float[Array, "k d"], Array]:
        """The mean and the covariance of each component."""
        # A component without mass has zero moments; this keeps their quotients finite.
        mass = jnp.maximum(self.mass, jnp.finfo(self.mass.dtype).tiny)
        mean = self.first / mass[:, None]
        # The difference may be rounded below zero. For matrices `gaussian_scales` clips the
        # eigenvalues.
        if self.second.ndim == 2:
            return mean, jnp.maximum(self.second / mass[:, None] - mean**2, 0)
        return mean, self.second / mass[:, None, None] - mean[:, :, None] * mean[:, None]


def component_moments(
    z: Float[Array, "n d"],
    responsibilities: Float[Array, "n k"],
    full: bool,
    shares: Float[Array, " n"] | None = None,
) -> ComponentMoments:
    """The moments of rows under each component's responsibilities.

    Args:
        z: rows.
        responsibilities: the responsibility of each component for each row.
        full: whether second moments are matrices.
        shares: the rows' weights, with sum one, uniform by default.
    """
    shares = jnp.ones_like(z[:, 0]) / z.shape[0] if shares is None else shares
    weights = responsibilities * shares[:, None]
    if full:
        # One component at a time: simultaneously they would take n × k × d numbers.
        second = jax.lax.map(lambda w: (z * w[:, None]).T @ z, weights.T)
    else:
        second = weights.T @ z**2
    return ComponentMoments(jnp.sum(weights, axis=0), weights.T @ z, second)


def gaussian_scales(cov0: Array, cov1: Array, epsilon: Array) -> Array:
    """The S ≻ 0 with S C₀ S + ε S = C₁: the bridge between Gaussians of these covariances.

    With C₁ = L Lᵀ it is L (ε/2 I + (ε²/4 I + Lᵀ C₀ L)^½)⁻¹ Lᵀ: only positive matrices are inverted,
    and there is no cancellation.
    """
    half = epsilon / 2
    # Rounding may make a vanishing eigenvalue negative.
    slope = lambda product: 1 / (half + root_of_sum(half, jnp.maximum(product, 0)))
    if cov0.ndim == 2:
        return cov1 * slope(cov0 * cov1)
    # L from C₁'s eigenvectors, and Lᵀ C₀ L diagonalised, which reduces the inverse to one number
    # per eigenvalue.
    values, vectors = linalg.eigh(cov1)
    factor = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None]
    products, rotation = linalg.eigh(jnp.swapaxes(factor, 1, 2) @ cov0 @ factor)
    factor = factor @ rotation
    scales = (factor * slope(products)[:, None]) @ jnp.swapaxes(factor, 1, 2)
    # The rounding of a product is not symmetric.
    return (scales + jnp.swapaxes(scales, 1, 2)) / 2


def balance(
    log_terms: Float[Array, "n k"],
    target: Float[Array, " k"],
    num_steps: int,
    shares: Float[Array, " n"] | None = None,
) -> Float[Array, " k"]:
    """The changes of log weights that give components their target mass.

    They maximise the concave ⟨target, c⟩ − E logsumexp(log_terms + c), by Newton's steps. With hard
    assignments only the sign of a step is reliable. Its length is therefore bounded, by a quarter
    of the terms' spread at first, and by less after a step that made things worse, which is undone.
    The mean of the changes, on which no responsibility depends, is zero.

    Args:
        log_terms: the log term of each component at each row.
        target: the target masses.
        num_steps: Newton's steps.
        shares: the rows' weights, with sum one, uniform by default.
    """
    k = target.shape[0]
    rows = jnp.ones_like(log_terms[:, 0]) / log_terms.shape[0] if shares is None else shares
    # Adding a constant to all has no effect: without a ridge the Hessian is singular.
    ridge = 1e-4 / k * jnp.eye(k, dtype=target.dtype)

    def at(changes: Array) -> tuple[Array, Array, Array]:
        """The objective, its gradient and the negative Hessian."""
        raised = log_terms + changes
        log_sums = jax.nn.logsumexp(raised, axis=1)
        responsibilities = jnp.exp(raised - log_sums[:, None])
        mass = rows @ responsibilities
        # E w wᵀ, for the negative Hessian diag(E w) − E w wᵀ.
        second = (responsibilities * rows[:, None]).T @ responsibilities
        slope = jnp.diag(mass) - second + ridge
        return target @ changes - rows @ log_sums, target - mass, slope

    def step(_: Int[Array, ""], carry: _Ascent) -> _Ascent:
        changes, found, bound = carry
        value, gap, slope = found
        move = jnp.clip(linalg.solve(slope, gap), -bound, bound)
        candidate = changes + move - jnp.mean(move)
        new = at(candidate)
        # Near the maximum rounding dominates the value, and the mass gap decides.
        better = (new[0] > value) | (jnp.sum(jnp.abs(new[1])) < jnp.sum(jnp.abs(gap)))
        chosen = select(better, (candidate, new), (changes, found))
        return *chosen, jnp.where(better, 1.5, 0.3) * bound

    start = jnp.zeros_like(target)
    # A single component has no spread, at which a root has no derivative.
    spreads = safe_sqrt(jnp.var(log_terms, axis=1))
    bound = jnp.maximum(jnp.mean(spreads) / 4, 2)
    return jax.lax.fori_loop(0, num_steps, step, (start, at(start), bound))[0]


def clusters(
    key: Key[Array, ""], y: Float[Array, "m d"], k: int, shares: Float[Array, " m"] | None = None
) -> tuple[Array, Array]:
    """The k centres of y by greedy seeding and Lloyd's rounds, and each row's centre, one-hot.

    Args:
        key: the key for the seeds.
        y: rows.
        k: the number of centres.
        shares: the rows' weights, with sum one, uniform by default.
    """
    weights = jnp.ones_like(y[:, 0]) if shares is None else shares * y.shape[0]
    # Squared distances "c m" by one product; rounding may make them negative.
    squares = jnp.sum(y**2, axis=1)
    to = lambda c: jnp.maximum(squares - 2 * c @ y.T + jnp.sum(c**2, axis=1)[:, None], 0)

    def seed(nearest: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
        # If all distances are zero any row may be drawn.
        logits = jnp.log(nearest + jnp.finfo(y.dtype).tiny) + safe_log(weights)
        # k-means++ with several trials: a row is drawn in proportion to its squared distance from
        # the previous centres, and the trial that lowers the sum most becomes the next.
        trials = y[jax.random.categorical(key, logits, shape=(_START_TRIALS,))]
        distances = jnp.minimum(nearest, to(trials))
        best = jnp.argmin(distances @ weights)
        return distances[best], trials[best]

    # Before the first centre all rows have the same distance, large but with a finite sum.
    start = jnp.full(y.shape[0], jnp.finfo(y.dtype).max ** 0.5, y.dtype)
    _, centers = jax.lax.scan(seed, start, jax.random.split(key, k))
    nearest = lambda centers: jax.nn.one_hot(jnp.argmin(to(centers), axis=0), k, dtype=y.dtype)

    def refine(_: Int[Array, ""], centers: Array) -> Array:
        members = nearest(centers) * weights[:, None]
        # A centre that has lost all of its rows is unchanged.
        counts = jnp.sum(members, axis=0)[:, None]
        return jnp.where(counts > 0, members.T @ y / jnp.where(counts > 0, counts, 1), centers)

    centers = jax.lax.fori_loop(0, _START_ROUNDS, refine, centers)
    return centers, nearest(centers)


def m_step(
    v: Potential,
    averages: tuple[ComponentMoments, ComponentMoments],
    epsilon: Array,
    variance_floor: Float[Array, " d"],
    least_mass: ArrayLike,
) -> Potential:
    """Update each component to the Gaussian bridge between its parts of both ends.

    The weight is adjusted so that the component's term of c at its mean start does not change. A
    component with a mass below `least_mass` at either end is not updated: the variances of a few
    rows could give it a scale with which it takes all others' rows.
    """
    mean0, cov0 = averages[0].central()
    mean1, cov1 = averages[1].central()
    cov1 = cov1 + (variance_floor if cov1.ndim == 2 else jnp.diag(variance_floor))
    scales = gaussian_scales(cov0, cov1, epsilon)
    # E ρ Y = r E w + S E w X, solved for r.
    means = mean1 - _times(scales, mean0)
    alive = (jnp.minimum(averages[0].mass, averages[1].mass) > least_mass)[:, None]
    means = jnp.where(alive, means, v.means)
    scales = jnp.where(alive if scales.ndim == 2 else alive[:, :, None], scales, v.scales)

    def at_own_start(scales: Array, means: Array) -> Array:
        return jnp.sum((_times(scales, mean0) / 2 + means) * mean0, axis=1) / epsilon

    # The weight compensates the change of the exponent at the component's own start.
    kept = at_own_start(v.scales, v.means) - at_own_start(scales, means)
    return Potential(v.log_weights + kept, means, scales)
