"""Kernel mean matching: weights under which one sample has the kernel mean of another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_key,
    check_nonnegative,
    check_positive,
    check_scalar,
)
from divjax.core.differentiation import refuse_derivatives
from divjax.core.numerics import matmul, nan_unless, safe_sqrt
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_weights, centered_samples
from divjax.core.simplex import effective_sample_size
from divjax.core.standardize import robust_standardizer
from divjax.core.types import Outcome, status_of
from divjax.kernels.radial import Gaussian
from divjax.kernels.sums import kernel_sums
from divjax.ratio.heads.kernel_models import median_distance

__all__ = ["KernelMeanMatching", "MatchedWeights", "project_box_slab"]

_stop = jax.lax.stop_gradient


@pytree
class MatchedWeights(Outcome):
    """Weights of one sample that match another's kernel mean.

    Attributes:
        weights: w_j, an estimate of p/q at the rows of q, zero for rows of weight zero in b.
        mmd: the remaining maximum mean discrepancy, ‖Σ_j b_j w_j k(y_j, ·) − Σ_i a_i k(x_i, ·)‖.
        effective_sample_size: (Σ_j b_j w_j)² / Σ_j (b_j w_j)².
        gap: an upper bound on the excess of ½ mmd² over its minimum over the feasible weights.
        status: `Status.CONVERGED` if `gap` is within the requested accuracy and the constraints
            hold, `MAX_ITERATIONS` if one of these fails after all steps, `NOT_FINITE` for NaN in
            the samples, `INVALID_INPUT` for traced numbers or weights out of range.
    """

    weights: Float[Array, " m"]
    mmd: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    gap: Float[Array, ""]
    status: Int[Array, ""]


def _masses(name: str, weights: Numbers | None, x: Float[Numbers, "n d"]) -> Float[Array, " n"]:
    """Weights normalised to a sum of one; uniform by default."""
    if weights is None:
        return jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
    weights = as_weights(name, weights, x.shape[0], x.dtype)
    return weights / jnp.sum(weights)


def project_box_slab(
    v: Float[Array, " m"], masses: Float[Array, " m"], bound: ArrayLike, tolerance: ArrayLike
) -> Float[Array, " m"]:
    """The nearest w to v with 0 ≤ w ≤ B and |Σ_j b_j w_j − 1| ≤ ε.

    The distance is Σ_j b_j (w_j − v_j)². The solution is clip(v − ν, 0, B), with ν = 0 if its mean
    is within the slab. Otherwise ν puts the mean at the nearer end, found by bisection and made
    exact on the entries strictly between the bounds.

    Args:
        v: any vector.
        masses: b, non-negative, summing to one.
        bound: B, at least 1 − ε; otherwise no w is feasible, and the result is B everywhere.
        tolerance: ε ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> project_box_slab(jnp.array([3.0, 1.0]), jnp.array([0.5, 0.5]), 5.0, 0.0).tolist()
        [2.0, 0.0]
    """
    bound, tolerance = jnp.asarray(bound, v.dtype), jnp.asarray(tolerance, v.dtype)

    def mean(shift: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.dot(masses, jnp.clip(v - shift, 0, bound))

    # The constraint is slack if the mean of the clipped v is already in the slab.
    here = mean(jnp.zeros((), v.dtype))
    target = jnp.clip(here, 1 - tolerance, 1 + tolerance)

    def halve(_: Int[Array, ""], bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = mean(middle) > target
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # Over this bracket the mean decreases from B to 0.
    low, high = jax.lax.fori_loop(0, 30, halve, (jnp.min(v) - bound, jnp.max(v)))
    shift = 0.5 * (low + high)
    # On the entries between the bounds the mean is linear in the shift.
    slope = jnp.dot(masses, ((v > shift) & (v < shift + bound)).astype(v.dtype))
    exact = shift + (mean(shift) - target) / jnp.where(slope > 0, slope, 1)
    shift = jnp.where(slope > 0, jnp.clip(exact, low, high), shift)
    # In the slack case the shift is exactly zero, not the approximate zero of bisection.
    return jnp.clip(v - jnp.where(here == target, 0, shift), 0, bound)


def _least_linear(
    slopes: Float[Array, " m"],
    masses: Float[Array, " m"],
    bound: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> Float[Array, ""]:
    """The minimum of Σ_j b_j g_j v_j over the feasible v, filling the lowest slopes first.

    The mean is filled up to 1 − ε for any slopes, and up to 1 + ε while they are negative.
    """
    order = jnp.argsort(slopes)
    slopes, most = slopes[order], bound * masses[order]
    before = jnp.cumsum(most) - most
    # A row takes the budget that remains after the earlier rows, up to its own bound.
    budget = jnp.where(slopes < 0, 1 + tolerance, 1 - tolerance)
    return jnp.dot(slopes, jnp.clip(budget - before, 0, most))


@pytree
class KernelMeanMatching:
    """Kernel mean matching: weights on the rows of q that match the kernel mean of p.

    min_w ½ ‖Σ_j b_j w_j k(y_j, ·) − Σ_i a_i k(x_i, ·)‖²  s.t. 0 ≤ w_j ≤ B, |Σ_j b_j w_j − 1| ≤ ε,

    with the Gaussian kernel and the rows' own weights a and b (uniform by default): a convex
    quadratic programme, solved by accelerated projected gradients with restarts. Convergence is
    certified by the largest first-order decrease that the constraints allow, an upper bound on the
    distance from the minimum.

    The weights are defined at the given rows alone. For a ratio at other points use a ratio
    estimator. The problem is ill-posed: a few hundred steps bring the discrepancy below sampling
    noise, and further steps fit that noise with increasingly uneven weights. A `bound` near the
    largest expected ratio prevents this.

    Gradients of the weights are stopped, and `mmd` is differentiable in the rows of both samples,
    by the envelope theorem, with the default bandwidth and the standardisation held. Time
    O(m² `num_steps` + nm + n²), memory O(m²).

    Attributes:
        bandwidth: σ, a number in the units of the data; or None for the median distance between
            rows of q, with features robustly standardised, so that neither the units of a feature
            nor a few outliers dominate the distances.
        bound: B ≥ 1, the largest weight.
        tolerance: ε, the largest deviation of the mean weight from one.
        accuracy: the largest `gap` that counts as converged. The kernel is one at distance zero,
            and n rows determine ½ mmd² to about 1/n.
        num_steps: the number of projected gradient steps.

    Raises:
        ValueError: if a Python number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 100, 1))
        >>> matched = KernelMeanMatching().fit(jax.random.key(1), x + 0.5, y)
        >>> bool(matched.converged), bool(abs(jnp.mean(matched.weights * y[:, 0]) - 0.5) < 0.2)
        (True, True)

    References:
        Huang, Smola, Gretton, Borgwardt, Schölkopf 2007, eq. 12. Beck, Teboulle 2009: accelerated
        gradients. O'Donoghue, Candès 2015, section 3.2: restarts.
    """

    bandwidth: ArrayLike | None = None
    bound: ArrayLike = 1000.0
    tolerance: ArrayLike = 0.1
    accuracy: ArrayLike = 1e-4
    num_steps: int = static(default=1000)

    def __post_init__(self):
        check_positive(bandwidth=self.bandwidth, bound=self.bound, accuracy=self.accuracy)
        check_nonnegative(tolerance=self.tolerance)
        if isinstance(self.bound, (int, float)) and self.bound < 1:
            raise ValueError(f"bound must be at least one, the mean weight; got {self.bound}.")
        check_count(1, num_steps=self.num_steps)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m d"] | None = None,
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> MatchedWeights:
        """The weights of the rows of y. Compiles itself.

        Args:
            key: a key, unused; it is in the signature of every estimator's `fit`.
            x: samples of p.
            y: samples of q, to be weighted. Required.
            a: weights of x, of any scale. Rows of weight zero are padding.
            b: weights of y, which are multiplied by the matched weights.

        Returns:
            The `MatchedWeights`.

        Raises:
            ValueError: if x or y is empty or not a matrix of numbers, their features differ in
                number, given weights are of the wrong length, negative or all zero, or `mmd` is
                differentiated in b.
        """
        check_key(key)
        if y is None:  # most often the key is missing, which the check above reports
            raise ValueError("y is missing: fit takes a key, x and y.")
        check_scalar(bandwidth=self.bandwidth, bound=self.bound)
        check_scalar(tolerance=self.tolerance, accuracy=self.accuracy)
        _, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
        check_full_precision("x", x)
        of_q = refuse_derivatives(
            _masses("b", b, y),
            "matched weights are not differentiated in b, on which the constraints depend.",
        )
        return _fit(self, x, y, _masses("a", a, x), of_q)

    def _fit(self, x: Array, y: Array, a: Array, b: Array) -> MatchedWeights:
        x, y = jnp.where(a[:, None] > 0, x, 0), jnp.where(b[:, None] > 0, y, 0)
        if self.bandwidth is None:
            standardizer = robust_standardizer((x, a), (y, b))
            x, y = standardizer.squash(x), standardizer.squash(y)
        # Kernels of infinite rows vanish: without this such rows would pass as valid.
        x, y = nan_unless(jnp.isfinite(x), x), nan_unless(jnp.isfinite(y), y)
        sigma = median_distance(y, b) if self.bandwidth is None else self.bandwidth
        sigma, bound = jnp.asarray(sigma, y.dtype), jnp.asarray(self.bound, y.dtype)
        tolerance = jnp.asarray(self.tolerance, y.dtype)
        accuracy = jnp.asarray(self.accuracy, y.dtype)
        valid = (bound >= 1) & (tolerance >= 0) & (accuracy > 0) & (a >= 0).all() & (b >= 0).all()
        if self.bandwidth is not None:
            valid &= sigma > 0
        # The median distance is NaN for NaN in the samples, and zero for constant ones.
        kernel = Gaussian(bandwidth=nan_unless(valid & (sigma > 0), sigma))

        no_gradient = jnp.zeros((x.shape[0], 0), x.dtype)
        mean_p = lambda z: kernel_sums(kernel, z, x, a[:, None], no_gradient)[0][:, 0]
        # ⟨k(y_j, ·), μ_p⟩ and ‖μ_p‖² with μ_p = Σ_i a_i k(x_i, ·).
        target, self_term = mean_p(y), jnp.dot(a, mean_p(x))
        gram = kernel(y)
        # By the envelope theorem the optimal weights are constants in the derivative of mmd.
        weights = _stop(_match(_stop(gram), _stop(target), b, bound, tolerance, self.num_steps))

        masses = b * weights
        # With masses m = bw and the target t, Km − t is the gradient of ½ mmd² in the inner product
        # of b, and mmd² = mᵀKm − 2mᵀt + ‖μ_p‖².
        witness = matmul(gram, masses) - target
        squared = jnp.dot(masses, witness - target) + self_term
        # Rounding may give a negative number.
        mmd = safe_sqrt(jnp.maximum(squared, 0))

        slopes = _stop(witness)
        # max_v ⟨∇, w − v⟩ over the feasible v bounds the distance from the minimum, by convexity.
        gap = jnp.dot(masses, slopes) - _least_linear(slopes, b, bound, tolerance)
        rounding = 8 * jnp.finfo(y.dtype).eps * bound
        feasible = jnp.abs(jnp.sum(masses) - 1) <= tolerance + rounding
        return MatchedWeights(
            weights=jnp.where(b > 0, weights, 0),
            mmd=mmd,
            effective_sample_size=effective_sample_size(masses),
            gap=jnp.maximum(gap, 0),
            status=status_of(
                converged=(gap <= accuracy) & feasible, finite=jnp.isfinite(gap), valid=valid
            ),
        )


@jax.jit
def _fit(method: KernelMeanMatching, x: Array, y: Array, a: Array, b: Array) -> MatchedWeights:
    return method._fit(x, y, a, b)


class _Step(NamedTuple):
    """Weights after and before a step, their images under K diag(b), and the momentum's age."""

    weights: Float[Array, " m"]
    last: Float[Array, " m"]
    image: Float[Array, " m"]
    last_image: Float[Array, " m"]
    age: Float[Array, ""]


def _match(
    gram: Float[Array, "m m"],
    target: Float[Array, " m"],
    masses: Float[Array, " m"],
    bound: Float[Array, ""],
    tolerance: Float[Array, ""],
    num_steps: int,
) -> Float[Array, " m"]:
    """The solution of the quadratic programme, in the inner product Σ_j b_j u_j v_j.

    In this inner product the gradient is the witness function itself, rows of small weight converge
    like the others, and the operator K diag(b) is bounded by its largest row sum.
    """
    curvature = jnp.max(jnp.where(masses > 0, matmul(gram, masses), 0))

    def step(_: Int[Array, ""], s: _Step) -> _Step:
        # Nesterov's momentum. Images under K are linear in the weights and extrapolated likewise,
        # which saves a product.
        momentum = s.age / (s.age + 3)
        ahead = s.weights + momentum * (s.weights - s.last)
        image = s.image + momentum * (s.image - s.last_image)
        moved = project_box_slab(ahead - (image - target) / curvature, masses, bound, tolerance)
        # Momentum that points uphill is reset.
        uphill = jnp.dot(masses, (ahead - moved) * (moved - s.weights)) > 0
        age = jnp.where(uphill, 0, s.age + 1)
        return _Step(moved, s.weights, matmul(gram, masses * moved), s.image, age)

    start = project_box_slab(jnp.ones_like(masses), masses, bound, tolerance)
    image = matmul(gram, masses * start)
    state = _Step(start, start, image, image, jnp.zeros((), gram.dtype))
    return jax.lax.fori_loop(0, num_steps, step, state).weights
