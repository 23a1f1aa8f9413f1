"""KLIEP: the maximum-likelihood density ratio, through the weights of a mixture."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from divjax.core import linalg
from divjax.core.checks import check_count, check_scalar
from divjax.core.numerics import matmul, nan_unless, safe_log
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.ratio.heads.kernel_models import (
    Basis,
    KernelRatio,
    check_grid,
    draw_basis,
    log_cap,
    log_ratio,
)
from divjax.ratio.protocols import Fold, checked, every, is_positive

__all__ = ["KLIEP", "maximize_mixture"]

_stop = jax.lax.stop_gradient


def maximize_mixture(
    likelihoods: Float[Array, "n l"], masses: Float[Array, " n"], num_steps: int = 30
) -> tuple[Float[Array, " l"], Float[Array, ""]]:
    """The weights of a mixture, argmax_{π ≥ 0, Σπ = 1} Σ_i a_i log Σ_l π_l A_il.

    By homogeneity the simplex may be dropped from min_{π ≥ 0} Σ_l π_l − Σ_i a_i log(Aπ)_i: its
    solution sums to Σ_i a_i = 1. A primal-dual interior-point method solves that with one Newton
    system of size l per step. It converges superlinearly, while expectation–maximisation needs
    thousands of steps. First derivatives are those of one Newton step at the solution, which equal
    those of the solution. Second derivatives are not supported. Time O(nl² + l³) per step, memory
    O(nl).

    Args:
        likelihoods: A, non-negative. Each row may have its own scale.
        masses: a, non-negative, summing to one.
        num_steps: the number of Newton steps, static.

    Returns:
        π, and an upper bound on the distance of the objective from its maximum,
        log max_l Σ_i a_i A_il/(Aπ)_i, by concavity of the logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> likelihoods = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> weights, gap = maximize_mixture(likelihoods, jnp.array([0.25, 0.75]))
        >>> weights.round(4).tolist(), bool(gap < 1e-4)
        ([0.25, 0.75], True)

    References:
        Koenker, Mizera 2014, section 4: interior points for mixtures. Lindsay 1983: the bound.
    """
    point = _interior_point(_stop(likelihoods), _stop(masses), num_steps)
    return _with_derivative(likelihoods, masses, point)


class _Point(NamedTuple):
    """Mixture weights π > 0 and the multipliers s > 0 of π ≥ 0; πs = 0 at the solution."""

    weights: Float[Array, " l"]
    slacks: Float[Array, " l"]


def _responses(
    likelihoods: Float[Array, "n l"], masses: Float[Array, " n"], weights: Float[Array, " l"]
) -> tuple[Float[Array, " n"], Float[Array, " l"]]:
    """√a_i/(Aπ)_i, and Aᵀ(a/Aπ), which is one minus the gradient."""
    # A mixture may underflow to zero at a row.
    inverse = 1 / jnp.maximum(matmul(likelihoods, weights), jnp.finfo(weights.dtype).tiny)
    # The root has no finite derivative at a mass of zero, and is used in the Hessian alone.
    return jnp.sqrt(_stop(masses)) * inverse, matmul(masses * inverse, likelihoods)


def _newton_step(
    likelihoods: Float[Array, "n l"],
    masses: Float[Array, " n"],
    point: _Point,
    target: Float[Array, "..."],
) -> _Point:
    """The step towards ∇f(π) = s and πs = target.

    With D² = π/s the system is I + D∇²fD: its eigenvalues are at least one.
    """
    weights, slacks = point
    root, image = _responses(likelihoods, masses, weights)
    scale = jnp.sqrt(weights / slacks)
    # The Hessian is BᵀB with rows √a_i A_i/(Aπ)_i. Its gradients are stopped: at the solution they
    # are multiplied by a step of zero.
    root = _stop(likelihoods * root[:, None] * scale)
    identity = jnp.eye(weights.shape[0], dtype=weights.dtype)
    factor = linalg.cholesky(identity + matmul(root.T, root))
    change = scale * linalg.cho_solve(factor, scale * (target / weights - 1 + image))
    # πs = target to first order: Δs = (target − sΔπ)/π − s.
    return _Point(change, (target - slacks * change) / weights - slacks)


def _interior_point(
    likelihoods: Float[Array, "n l"], masses: Float[Array, " n"], num_steps: int
) -> _Point:
    size, dtype = likelihoods.shape[1], likelihoods.dtype
    # Closer to the boundary than this, rounding moves a point more than a step does.
    lowest = 4 * jnp.finfo(dtype).eps

    def length(values: Array, changes: Array) -> Array:
        """The step length, at most one, that stays short of the first zero."""
        falls = changes < 0
        longest = jnp.min(jnp.where(falls, -values / jnp.where(falls, changes, -1), jnp.inf))
        # Short of the boundary both weights and slacks stay positive.
        return jnp.minimum(0.95 * longest, 1)

    def step(_: Int[Array, ""], state: tuple[_Point, Array]) -> tuple[_Point, Array]:
        point, last = state
        # A step shortened by the boundary is followed by a step back towards the centre.
        share = jnp.clip(jnp.square(1 - last), 0.05, 0.8)
        # The next πs is a share of the current mean, which decreases to zero on the central path.
        target = jnp.maximum(share * jnp.mean(point.weights * point.slacks), lowest)
        change = _newton_step(likelihoods, masses, point, target)
        # Weights and slacks each go as far as their own boundary allows.
        lengths = jax.tree.map(length, point, change)
        moved = jax.tree.map(lambda v, size, dv: v + size * dv, point, lengths, change)
        return moved, jnp.minimum(*lengths)

    uniform = jnp.full(size, 1 / size, dtype)
    # The slacks are the gradient 1 − Aᵀ(a/Aπ), which may be negative at the uniform mixture.
    slacks = jnp.maximum(1 - _responses(likelihoods, masses, uniform)[1], 0.1)
    start = _Point(uniform, slacks), jnp.zeros((), dtype)
    return jax.lax.fori_loop(0, num_steps, step, start)[0]


def _with_derivative(
    likelihoods: Float[Array, "n l"], masses: Float[Array, " n"], point: _Point
) -> tuple[Float[Array, " l"], Float[Array, ""]]:
    """The mixture's weights at a solution, as a function of A and a, and the certificate."""
    weights, slacks = point = jax.tree.map(_stop, point)
    change = _newton_step(likelihoods, masses, point, weights * slacks).weights
    # At the solution the step is zero and only its derivative matters. Elsewhere it must not leave
    # the feasible set.
    weights = jnp.where(jnp.abs(_stop(change)) <= 0.5 * weights, weights + change, weights)
    weights = weights / jnp.sum(weights)
    # Lindsay's bound: this logarithm is zero at the maximum, where no Aᵀ(a/Aπ) exceeds one.
    largest = jnp.max(_stop(_responses(likelihoods, masses, weights)[1]))
    return weights, jnp.maximum(jnp.log(largest), 0)


def _mixture(
    basis: Basis, masses_q: Float[Array, " m"], bandwidth: Float[Array, ""]
) -> tuple[Float[Array, "n l"], Float[Array, " l"]]:
    """KLIEP's mixture k(x_i, c_l)/E_q[k(y, c_l)], scaled to row maxima of one, and log E_q[…]."""
    scale = -0.5 / jnp.square(bandwidth)
    log_means = jax.nn.logsumexp(basis.squared_q * scale, 0, b=masses_q[:, None])
    logs = jnp.where(basis.active, basis.squared_p * scale - log_means, -jnp.inf)
    # A factor on a row only adds a constant to the log likelihood: the row maximum is set to one.
    return jnp.exp(logs - _stop(jnp.max(logs, axis=1, keepdims=True))), log_means


def _mixture_model(
    basis: Basis,
    masses_q: Float[Array, " m"],
    bandwidth: Float[Array, ""],
    weights: Float[Array, " l"],
    log_means: Float[Array, " l"],
    gap: Float[Array, ""],
) -> KernelRatio:
    log_weights = safe_log(jnp.where(basis.active, weights, 0)) - log_means
    return KernelRatio(basis.centers, log_weights, bandwidth, log_cap(masses_q), gap)


@pytree
class KLIEP:
    """The Kullback–Leibler importance estimation procedure, KLIEP.

    max_{θ ≥ 0} E_p[log r(x)] subject to E_q[r(y)] = 1, r(z) = Σ_l θ_l k(z, c_l). The solution
    minimises KL(p‖rq). With θ_l = π_l / E_q[k(y, c_l)] the objective is the likelihood of the
    mixture of the densities k(·, c_l)/E_q[k(y, c_l)] with weights π, maximised by
    `maximize_mixture`. Working in log space avoids division by zero for kernels that vanish on all
    of q.

    The bandwidth maximises E_p[log r̂] − log E_q[r̂] over the validation rows. The second term
    enforces the constraint there too. Without it the criterion would select a small bandwidth with
    kernels concentrated between the training rows of q and an r̂ of mean far above one.

    The log ratio is that of r̂ + `floor`, and at most log of the effective number of training rows
    of q. Far from all data it is log `floor`, and gradients are finite everywhere.

    Memory O((n + m) `num_centers`). Differentiable in the rows, the weights and the selected
    leaves. Gradients of the selection itself and of the unit of the bandwidths are stopped.

    Attributes:
        bandwidth: σ in units of the centres' median distance, one value or several candidates.
        floor: the constant added to r̂.
        num_centers: the maximum number of kernels, or all training rows of p if there are fewer.
        num_steps: the number of interior-point steps. `KernelRatio.gap` shows if they suffice.

    Raises:
        ValueError: if a Python number is not positive, or a count is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.ratio import Fold, Rows
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 200, 1))
        >>> mass = jnp.full(100, 1 / 100)
        >>> train = Rows(x[:100] + 0.5, y[:100] - 0.5, mass, mass)
        >>> validation = Rows(x[100:] + 0.5, y[100:] - 0.5, mass, mass)
        >>> head = KLIEP()
        >>> params = jax.jit(head.fit)(jax.random.key(1), Fold(train, validation))
        >>> z = jnp.linspace(-1, 1, 5)[:, None]
        >>> bool(jnp.mean(jnp.abs(head(params, z) - z[:, 0])) < 0.3)  # the true log ratio is z
        True

    References:
        Sugiyama, Suzuki, Nakajima, Kashima, von Bünau, Kawanabe 2008, eq. 9.
    """

    bandwidth: ArrayLike | Sequence[ArrayLike] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
    floor: ArrayLike = 1e-6
    num_centers: int = static(default=100)
    num_steps: int = static(default=30)

    def __post_init__(self):
        check_grid(bandwidth=self.bandwidth, floor=self.floor)
        check_count(1, num_centers=self.num_centers, num_steps=self.num_steps)

    @jax.jit
    def fit(self, key: Key[Array, ""], fold: Fold) -> KernelRatio:
        """The model of the fold's training rows, with the bandwidth best for its validation rows.

        Args:
            key: a key for drawing the centres.
            fold: the training and validation rows.
        """
        check_scalar(floor=self.floor)
        fold, valid = checked(self, fold)
        basis = draw_basis(key, fold.train, self.num_centers, self.bandwidth)

        # Gradients are stopped in the selection of the bandwidth and in the solver's steps.
        scores, points = _stop(self._candidates(*_stop((basis, fold))))
        best = jnp.argmax(jnp.where(jnp.isfinite(scores), scores, -jnp.inf))
        bandwidth = basis.bandwidths[best]
        masses_p, masses_q = fold.train.weights
        # The mixture of the selected bandwidth again, with derivatives in the rows.
        likelihoods, log_means = _mixture(basis, masses_q, bandwidth)
        point = jax.tree.map(lambda leaf: leaf[best], points)
        weights, gap = _with_derivative(likelihoods, masses_p, point)
        found = _mixture_model(basis, masses_q, bandwidth, weights, log_means, _stop(gap))
        return found._replace(log_weights=nan_unless(valid, found.log_weights))

    def _candidates(self, basis: Basis, fold: Fold) -> tuple[Float[Array, " g"], _Point]:
        """The validation score and the solution for each bandwidth."""
        masses_p, masses_q = fold.train.weights
        x, y, *weights = fold.validation

        def candidate(bandwidth: Float[Array, ""]) -> tuple[Float[Array, ""], _Point]:
            likelihoods, log_means = _mixture(basis, masses_q, bandwidth)
            point = _interior_point(likelihoods, masses_p, self.num_steps)
            params = _mixture_model(
                basis, masses_q, bandwidth, point.weights, log_means, jnp.zeros_like(bandwidth)
            )
            # The constraint E_q[r̂] = 1 holds on the training rows; here it is part of the score.
            log_mean = jax.nn.logsumexp(self(params, y), b=weights[1])
            return jnp.dot(weights[0], self(params, x)) - log_mean, point

        # Sequential evaluation needs the memory of one bandwidth.
        return jax.lax.map(candidate, basis.bandwidths)

    def in_range(self) -> Bool[Array, ""]:
        """Whether the numbers are positive."""
        return every(is_positive, self.bandwidth, self.floor)

    def __call__(self, params: KernelRatio, z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The log ratio log p/q at each row of z, in nats."""
        return log_ratio(params, z, self.floor)
