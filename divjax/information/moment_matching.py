"""The member of an exponential family nearest to the samples' distribution, by its moments."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_positive_finite,
    check_scalar,
    check_scalar_output,
    check_shape,
)
from divjax.core.linalg import cho_solve, cholesky
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import as_traced, pytree
from divjax.core.samples import Numbers, as_numbers, as_samples, as_weights
from divjax.core.simplex import are_weights, effective_sample_size, shares_of, with_finite_padding
from divjax.core.types import Outcome, status_of
from divjax.fdiv.exponential_family import Family, LogPartition
from divjax.fdiv.inequalities import tv_upper_bound_from_kl

__all__ = ["InformationProjectionResult", "information_projection"]


@pytree
class InformationProjectionResult(Outcome):
    """The projection of samples onto an exponential family.

    Attributes:
        value: the natural parameters η̂ "p", NaN if the search has ended at no finite point.
        risk: the expected divergence KL(p_η*‖p_η̂) of the projection of the samples' distribution
            from that of the samples, tr(∇²A(η̂)⁻¹ Σ̂)/(2n) + O(n⁻²) with the samples' covariance Σ̂
            of T: p/(2n) if the family contains their distribution.
        bayes_error: the p–n criterion: a lower bound, with this risk, on the expected Bayes error
            of telling draws of p_η* from those of p_η̂, ½ (1 − (risk/2)^½) or Bretagnolle and
            Huber's for a risk above 1.59. One half if nobody can; near zero more samples or fewer
            parameters are needed.
        status: whether the search has converged.
    """

    value: Float[Array, " p"]
    risk: Float[Array, ""]
    bayes_error: Float[Array, ""]
    status: Int[Array, ""]


def information_projection(
    log_partition: LogPartition,
    statistics: Float[Numbers, "n p"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    start: Float[Numbers, " p"] | None = None,
    tolerance: ArrayLike = 1e-8,
    max_iterations: int = 100,
) -> InformationProjectionResult:
    """The member of an exponential family nearest to samples in KL(samples‖p_η).

    η̂ solves ∇A(η) = mean of T(x_i): the model has the samples' moments, and the largest
    likelihood. For samples of any distribution g the estimate tends to the information projection
    of g onto the family, with p/(2n) nats of risk if g is in the family. `bayes_error` tells
    whether that is little; `projection_risk` has the next order of the risk, and `p_n_criterion`
    how many samples a family needs.

    Newton's method on the convex function A(η) − ⟨η, mean⟩, with steps that are halved until it
    falls. Time O(n p) and O(p³) per iteration. Differentiable in the statistics, the weights, and
    what the function A refers to, by the implicit function theorem.

    Args:
        log_partition: the family's A, a convex function "p" -> "": a `fdiv.exponential_family`, or
            any JAX function that is infinite or NaN out of its domain.
        statistics: T(x_i) of each sample, in the order of the natural parameters: (x, x²) for
            `NORMAL`.
        weights: the samples' weights, non-negative, with any sum, uniform by default.
        start: natural parameters within the domain from which to search, by default a point of a
            named family's domain, zeros for other functions.
        tolerance: the divergence, in nats, from the solution at which the search ends, as predicted
            by Newton's step.
        max_iterations: the number of steps, static.

    Returns:
        An `InformationProjectionResult`. Not converged if there is no solution (the mean is at the
        edge of the moments, as that of zeros for `POISSON`), if the statistics depend on each other
        linearly, or if A is not finite at the start.

    Raises:
        ValueError: if the statistics are empty or not a matrix, weights or the start do not fit, A
            is not a scalar, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.fdiv.exponential_family import NORMAL
        >>> x = jnp.array([1.0, 2.0, 4.0, 5.0])  # of mean 3 and variance 5/2
        >>> found = information_projection(NORMAL, jnp.stack([x, x**2], axis=1)).check()
        >>> found.value.round(3).tolist()  # mean/variance and −1/(2 variance)
        [1.2, -0.2]

    References:
        Csiszár 1975: the projection. White 1982, theorem 3.2: the covariance if g is not in the
        family. Sheena 2021, "Convergence of estimative density: criterion for model complexity and
        sample size": the p–n criterion.
    """
    (statistics,) = as_samples(statistics=statistics)
    check_full_precision("statistics", statistics)
    n, p = statistics.shape
    check_scalar(tolerance=tolerance)
    check_positive_finite(tolerance=tolerance)
    check_count(1, max_iterations=max_iterations)
    if weights is None:
        weights = jnp.ones(n, statistics.dtype)
    else:
        weights = as_weights("weights", weights, n, statistics.dtype)
    eta = jax.ShapeDtypeStruct((p,), statistics.dtype)
    check_scalar_output("log_partition", log_partition, eta)
    if start is None:
        # The vector of the parameters' signs is itself a point of a named family's domain.
        inside = log_partition.signs if isinstance(log_partition, Family) else (0,)
        start = jnp.broadcast_to(jnp.asarray(inside, statistics.dtype), (p,))
    else:
        start = jnp.asarray(as_numbers("start", start), statistics.dtype)
        check_shape("start", start, p)
    # A `Family` is static. Any other function may refer to something that has changed.
    if jax.tree_util.all_leaves([log_partition]):
        log_partition = as_traced(log_partition, eta)
    return _project(
        log_partition, statistics, weights, start, tolerance, max_iterations=max_iterations
    )


def _is_attained(
    log_partition: LogPartition,
    mean: Float[Array, " p"],
    eta: Float[Array, " p"],
    excess: Float[Array, ""],
) -> Bool[Array, ""]:
    """Whether Newton's last step, which started with this excess, has reached a minimum.

    Steps to an infimum at infinity do not become shorter, and divide the excess by a constant: by
    e for `POISSON`.
    """
    log_partition, mean, eta = jax.lax.stop_gradient((log_partition, mean, eta))
    _, left, factor = _newton(log_partition, mean, eta)
    # Where the residual is the rounding of its two terms, steps do not become shorter either.
    rounding = (
        16 * jnp.finfo(mean.dtype).eps * (jnp.abs(mean) + jnp.abs(jax.grad(log_partition)(eta)))
    )
    floor = jnp.dot(rounding, cho_solve(factor, rounding), precision="highest") / 2
    # Near a minimum the excess falls by ever larger factors, on the way to infinity by about e.
    return left <= jnp.maximum(0.1 * jax.lax.stop_gradient(excess), floor)


class _Search(NamedTuple):
    """A point of the search, Newton's step from there, and the share of it to try."""

    eta: Float[Array, " p"]
    step: Float[Array, " p"]
    excess: Float[Array, ""]
    share: Float[Array, ""]
    count: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="max_iterations")
def _project(
    log_partition: LogPartition,
    statistics: Float[Array, "n p"],
    weights: Float[Array, " n"],
    start: Float[Array, " p"],
    tolerance: ArrayLike,
    *,
    max_iterations: int,
) -> InformationProjectionResult:
    """`information_projection` after its checks."""
    dtype = statistics.dtype
    tolerance = jnp.asarray(tolerance, dtype)
    statistics = with_finite_padding(statistics, weights)
    shares = shares_of(weights)
    mean = matmul(shares, statistics)
    eta = _search(*jax.lax.stop_gradient((log_partition, mean, start, tolerance)), max_iterations)
    # One more step, from a constant: its derivative is that of the solution.
    eta = jax.lax.stop_gradient(eta)
    step, excess, factor = _newton(log_partition, mean, eta)
    value = eta + step
    converged = (excess <= tolerance) & _is_attained(log_partition, mean, value, excess)

    # White's covariance: the curvature is the model's, Σ̂ the samples'. In the family they agree.
    deviations = statistics - mean
    covariance = matmul((shares[:, None] * deviations).T, deviations)
    risk = jnp.trace(cho_solve(factor, covariance)) / (2 * effective_sample_size(weights))
    finite = jnp.isfinite(value).all() & jnp.isfinite(mean).all()
    valid = are_weights(weights) & (tolerance > 0)
    status = status_of(converged=converged, finite=finite, valid=valid)
    known = finite & valid
    risk = nan_unless(known, risk)
    # The bound on the total variation is concave in the divergence: its mean is at most that of the
    # mean divergence.
    bayes_error = (1 - tv_upper_bound_from_kl(risk)) / 2
    return InformationProjectionResult(nan_unless(known, value), risk, bayes_error, status)


def _newton(
    log_partition: LogPartition, mean: Float[Array, " p"], eta: Float[Array, " p"]
) -> tuple[Float[Array, " p"], Float[Array, ""], Float[Array, "p p"]]:
    """Newton's step, the divergence that it removes to second order, and the curvature's factor."""
    residual = mean - jax.grad(log_partition)(eta)
    factor = cholesky(jax.hessian(log_partition)(jax.lax.stop_gradient(eta)))
    # At the solution a change of the curvature would multiply a residual of zero.
    factor = jax.lax.stop_gradient(factor)
    step = cho_solve(factor, residual)
    return step, jnp.dot(residual, step, precision="highest") / 2, factor


def _search(
    log_partition: LogPartition,
    mean: Float[Array, " p"],
    start: Float[Array, " p"],
    tolerance: Float[Array, ""],
    max_iterations: int,
) -> Float[Array, " p"]:
    """The minimum of A(η) − ⟨η, mean⟩."""
    objective = lambda eta: log_partition(eta) - jnp.dot(eta, mean, precision="highest")
    newton = lambda eta: _newton(log_partition, mean, eta)[:2]

    def unsolved(s: _Search) -> Bool[Array, ""]:
        # Negated, so that NaN ends the search: there is no step from such a point.
        return ~(s.excess <= tolerance) & jnp.isfinite(s.excess) & (s.count < max_iterations)

    def descend(s: _Search) -> _Search:
        trial = s.eta + s.share * s.step
        here, there = objective(s.eta), objective(trial)
        rounding = 8 * jnp.finfo(mean.dtype).eps * (1 + jnp.abs(here))
        # Part of the test below: where A is not convex the factor, and with it the step, is NaN.
        step, excess = newton(trial)
        # A quarter of the decrease that the slope promises, up to rounding.
        lower = there <= here - 0.5 * s.share * s.excess + rounding
        accepted = lower & jnp.isfinite(excess) & jnp.isfinite(there)
        moved = _Search(trial, step, excess, jnp.ones_like(s.share), s.count + 1)
        # A refused share counts as an iteration: the search ends even if none is accepted.
        kept = s._replace(share=s.share / 2, count=s.count + 1)
        return jax.tree.map(lambda one, other: jnp.where(accepted, one, other), moved, kept)

    first = _Search(start, *newton(start), jnp.ones((), mean.dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unsolved, descend, first).eta
