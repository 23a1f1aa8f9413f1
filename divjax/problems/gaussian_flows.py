"""Gaussians that stay Gaussian: mean and covariance along Wasserstein gradient flows.

Towards Gaussian targets N(m_k, S_k), the flow of KL divergences started at a Gaussian moves every
particle by one affine map. Each objective contributes the field, affine in x − μ,

    v_k(x) = M_k (x − μ) + c_k,   M_k = R − S_k⁻¹,   c_k = S_k⁻¹ (m_k − μ),

where −R (x − μ) is the score of N(μ, Σ) in the flow: R = Σ⁻¹, or R = (Σ + h² I)⁻¹ if the particles'
density is smoothed by a Gaussian kernel of bandwidth h (`flows.GFSD` with infinitely many
particles). This gives ordinary differential equations for μ and Σ. Towards one target without
momentum their solution is explicit (`fokker_planck_moments`). The others are integrated, with an
error estimate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_count, check_nonnegative, check_positive, check_scalar
from divjax.core.linalg import cho_solve, cholesky, eigh, inv
from divjax.core.normal import (
    Normal,
    are_symmetric,
    as_normal,
    check_same_dimension,
    full_covariance,
    stacked_normals,
)
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers, Unrounded, centered_samples
from divjax.core.simplex import min_norm_weights
from divjax.core.types import summary

__all__ = [
    "MomentFlow",
    "accelerated_moments",
    "fokker_planck_moments",
    "multi_objective_moments",
]


@pytree
class MomentFlow:
    """A Gaussian flow at the requested times: its moments, and the objectives' min-norm weights.

    Attributes:
        mean, covariance: the moments.
        weights: the objectives' weights at these times.
        error: the largest difference in any moment from half as many integration steps, relative to
            the largest moment. More than a few times the dtype's rounding means that `num_substeps`
            is too small. A diverged integration has a huge error, or NaN.
    """

    mean: Float[Array, "t d"]
    covariance: Float[Array, "t d d"]
    weights: Float[Array, "t k"]
    error: Float[Array, " t"]

    def __repr__(self) -> str:
        return summary(self)


@jax.default_matmul_precision("highest")
def fokker_planck_moments(times: Float[Numbers, " t"], initial: Normal, target: Normal) -> Normal:
    """The Wasserstein gradient flow of KL(q‖N(m, S)) from N(μ₀, Σ₀), in closed form.

    It is the distribution of the Ornstein–Uhlenbeck process dx = −S⁻¹(x − m) dt + √2 dW:

        μ(t) = m + e^{−S⁻¹t} (μ₀ − m),   Σ(t) = S + e^{−S⁻¹t} (Σ₀ − S) e^{−S⁻¹t},

    whether or not S and Σ₀ commute. Evaluated as e^{−S⁻¹t} μ₀ + (I − e^{−S⁻¹t}) m and
    e^{−S⁻¹t} Σ₀ e^{−S⁻¹t} + S (I − e^{−2S⁻¹t}), in which nothing cancels, however wide the target.

    Args:
        times: t ≥ 0, measured from the start. At negative times the results are NaN.
        initial: μ₀ "d", and Σ₀ by its variances "d" or as a matrix "d d".
        target: m and S, likewise.

    Returns:
        A `Normal` of mean "t d" and covariance "t d d", NaN unless S is positive definite and Σ₀
        positive semidefinite.

    Raises:
        ValueError: if the shapes do not fit, or a concrete covariance is not symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> wide = Normal(jnp.array([2.0]), jnp.array([[4.0]]))
        >>> standard = Normal(jnp.zeros(1), jnp.eye(1))
        >>> fokker_planck_moments(jnp.log(jnp.array([2.0])), wide, standard)  # e^{−t} = ½
        Normal(mean=Array([[1.]], dtype=float32), covariance=Array([[[1.75]]], dtype=float32))

    References:
        Jordan, Kinderlehrer, Otto 1998, the flow; Risken 1989, chapter 6, its Gaussian solution.
    """
    initial, target = as_normal("initial", initial), as_normal("target", target)
    check_same_dimension(initial=initial, target=target)
    single = Normal(target.mean[None], full_covariance(target)[None])
    origin, times, initial, (means, covariances) = _as_arrays(times, initial, single)
    mean = means[0]
    variances, axes = eigh(covariances[0])
    variances = nan_unless(variances > 0, variances)

    def at(time: Array) -> Normal:
        time = nan_unless(time >= 0, time)
        # Along the target's axes the process decays at the rates 1/variance. Functions of S are
        # formed from its eigenvalues.
        decay = (axes * jnp.exp(-time / variances)) @ axes.T
        gained = (axes * -jnp.expm1(-time / variances)) @ axes.T
        spread = (axes * (-variances * jnp.expm1(-2 * time / variances))) @ axes.T
        return Normal(
            decay @ initial.mean + gained @ mean,
            decay @ initial.covariance @ decay.T + spread,
        )

    moments = jax.vmap(at)(times)
    return Normal(origin.add(moments.mean), moments.covariance)


def _precision(covariance: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """The inverse of a positive definite matrix, NaN for any other matrix."""
    one = jnp.broadcast_to(jnp.eye(covariance.shape[-1], dtype=covariance.dtype), covariance.shape)
    return cho_solve(cholesky(covariance), one)


@jax.default_matmul_precision("highest")
def multi_objective_moments(
    times: Float[Numbers, " t"],
    initial: Normal,
    targets: Normal | Sequence[Normal],
    bandwidth: ArrayLike = 0.0,
    num_substeps: int = 64,
) -> MomentFlow:
    """The min-norm Wasserstein flow of K divergences KL(q‖N(m_k, S_k)) from N(μ₀, Σ₀).

    With the fields of the module docstring, and weights w that minimise wᵀQw on the simplex,

        μ' = Σ_k w_k c_k,   Σ' = MΣ + ΣMᵀ,   M = Σ_k w_k M_k,
        Q_kj = E_q⟨v_k, v_j⟩ = tr(M_k Σ M_jᵀ) + ⟨c_k, c_j⟩.

    For K = 1 and no bandwidth it is the Fokker–Planck equation. With a bandwidth h > 0 it stops at
    S⁻¹ = (Σ + h² I)⁻¹, that is Σ = S − h² I: smoothing narrows the particles by this much.

    Args:
        times: non-negative and non-decreasing. If traced ones are not, results are NaN from there
            on.
        initial: μ₀ "d", and Σ₀ by its variances "d" or as a matrix "d d".
        targets: one `Normal` of m "k d" and S "k d" or "k d d", or a list of `Normal`s.
        bandwidth: h of the Gaussian kernel exp(−r²/2h²) that smooths q in its score.
        num_substeps: Runge–Kutta steps of order four between successive times, at least two. Each
            should stay well below the smallest variance of the targets. Where the support of w
            changes the right-hand side has a kink, and the order is two.

    Returns:
        Mean "t d", covariance "t d d", weights "t k", and an estimate of the integration's error,
        all NaN for invalid covariances.

    Raises:
        ValueError: if the shapes do not fit, a concrete covariance is not symmetric, times do not
            increase, or `num_substeps` is below two.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax import Normal
        >>> initial = Normal(jnp.array([0.0, 3.0]), jnp.eye(2))
        >>> targets = [Normal(jnp.array([mean, 0.0]), jnp.eye(2)) for mean in (-1.0, 1.0)]
        >>> flow = jax.jit(multi_objective_moments)(jnp.array([10.0]), initial, targets)
        >>> abs(flow.mean).round(2).tolist(), flow.weights.tolist()  # between the two targets
        ([[0.0, 0.0]], [[0.5, 0.5]])

    References:
        MWGraD, arXiv 2505.18765, the flow; Liu et al. 2019, section 3, the smoothed score.
    """
    origin, times, initial, targets = _as_arrays(_forwards(times), *_checked(initial, targets))
    field = _min_norm_field(targets, bandwidth)

    def slope(time: Array, moments: Normal) -> Normal:
        matrix, shift, _ = field(moments)
        # The field M(x − μ) + c gives μ' = c and Σ' = MΣ + ΣMᵀ.
        half = matrix @ moments.covariance
        return Normal(shift, half + half.T)

    solve = lambda steps: _integrate(slope, initial, times, steps)
    return _moment_flow(origin, solve, field, num_substeps)


@jax.default_matmul_precision("highest")
def accelerated_moments(
    times: Float[Numbers, " t"],
    initial: Normal,
    targets: Normal | Sequence[Normal],
    strong_convexity: ArrayLike | None = None,
    bandwidth: ArrayLike = 0.0,
    num_substeps: int = 64,
) -> MomentFlow:
    """The damped second-order flow ẍ = −α_t ẋ + Σ_k w_k v_k(x) from N(μ₀, Σ₀) at rest.

    Particles move by x(t) = μ(t) + A(t) (x(0) − μ₀), so that Σ = A Σ₀ Aᵀ and, with c, M and the
    min-norm weights w of `multi_objective_moments`,

        μ'' = −α_t μ' + Σ_k w_k c_k,   A'' = −α_t A' + M A,   A(0) = I.

    It is the limit of `flows.accelerated(η, strong_convexity, restart=False)` as η → 0, whose n-th
    step is at t = n√η.

    Args:
        times: non-negative and non-decreasing. If traced ones are not, results are NaN from there
            on.
        initial: μ₀ "d", and Σ₀ by its variances "d" or as a matrix "d d".
        targets: one `Normal` of m "k d" and S "k d" or "k d d", or a list of `Normal`s.
        strong_convexity: β, for damping α = 2√β, or None for α_t = 3/t.
        bandwidth: h of the Gaussian kernel exp(−r²/2h²) that smooths q in its score.
        num_substeps: Runge–Kutta steps of order four between successive times, at least two. Each
            should stay well below the smallest standard deviation of the targets and of q.

    Returns:
        Mean "t d", covariance "t d d", weights "t k", and an estimate of the integration's error,
        all NaN for invalid covariances.

    Raises:
        ValueError: if the shapes do not fit, a concrete covariance is not symmetric, times do not
            increase, `num_substeps` is below two, or `strong_convexity` is a Python number that is
            not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> initial, targets = Normal(jnp.ones(1), jnp.ones(1)), [Normal(jnp.zeros(1), jnp.ones(1))]
        >>> flow = accelerated_moments(jnp.array([2.0]), initial, targets, strong_convexity=1.0)
        >>> flow.mean.round(3).tolist()  # critical damping: (1 + t) e^{−t}
        [[0.406]]

    References:
        A-MWGraD, arXiv 2601.19220, the flow; Su, Boyd, Candès 2016, eq. 3, the damping 3/t.
    """
    origin, times, initial, targets = _as_arrays(_forwards(times), *_checked(initial, targets))
    if strong_convexity is not None:
        check_scalar(strong_convexity=strong_convexity)
        check_positive(strong_convexity=strong_convexity)
    field = _min_norm_field(targets, bandwidth)

    def moments(position: Float[Array, "d+1 d"]) -> Normal:
        mean, transposed = position[0], position[1:]
        # Σ = AΣ₀Aᵀ from the transpose of A.
        return Normal(mean, transposed.T @ initial.covariance @ transposed)

    def slope(time: Array, motion: tuple[Array, Array]) -> tuple[Array, Array]:
        position, velocity = motion
        matrix, shift, _ = field(moments(position))
        # The field moves μ by c and A by MA, whose transpose is AᵀMᵀ.
        force = jnp.concatenate([shift[None], position[1:] @ matrix.T])
        if strong_convexity is None:
            # From rest x' = t x''(0) + …, so that at 0 the damping is 3 x''(0), and x'' = force/4.
            started = time > 0
            drag = jnp.where(started, 3 * velocity / jnp.where(started, time, 1), 0.75 * force)
        else:
            convexity = jnp.asarray(strong_convexity, times.dtype)
            drag = 2 * jnp.sqrt(nan_unless(convexity > 0, convexity)) * velocity
        return velocity, force - drag

    # The rows of `position` are μ and Aᵀ: one array to integrate.
    start = jnp.concatenate([initial.mean[None], jnp.eye(initial.mean.size, dtype=times.dtype)])

    def solve(steps: int) -> Normal:
        positions, _ = _integrate(slope, (start, jnp.zeros_like(start)), times, steps)
        return jax.vmap(moments)(positions)

    return _moment_flow(origin, solve, field, num_substeps)


def _checked(initial: Normal, targets: Normal | Sequence[Normal]) -> tuple[Normal, Normal]:
    """The initial Gaussian and the stacked targets, of one dimension."""
    initial, targets = as_normal("initial", initial), stacked_normals("targets", targets)
    check_same_dimension(initial=initial, targets=targets)
    return initial, targets


def _as_arrays(
    times: Array, initial: Normal, targets: Normal
) -> tuple["_Origin", Float[Array, " t"], Normal, Normal]:
    """All of one dtype, with full covariances, and with means relative to the initial one."""
    (times,) = as_leaves(times=times)
    if jnp.ndim(times) != 1:
        raise ValueError(f"times must be a vector; got shape {jnp.shape(times)}.")
    center, first, means = centered_samples(initial=initial.mean[None], targets=targets.mean)
    given = (times, first[0], full_covariance(initial), means, full_covariance(targets))
    dtype = jnp.result_type(float, *given)
    times, mean, covariance, means, covariances = [jnp.asarray(array, dtype) for array in given]
    # Traced covariances cannot raise: an invalid one gives NaN.
    valid, each = _is_covariance(covariance), jax.vmap(_is_covariance)(covariances)
    covariance, covariances = _symmetrised(covariance), _symmetrised(covariances)
    return (
        _Origin(center, mean),
        times,
        # The initial mean is zero, as means are relative to it.
        Normal(nan_unless(valid, jnp.zeros_like(mean)), nan_unless(valid, covariance)),
        Normal(means - mean, nan_unless(each[:, None, None], covariances)),
    )


class _Origin(NamedTuple):
    """The initial mean, about which all is computed: flows are equivariant under translations."""

    center: Center
    mean: Float[Array, " d"]

    def add(self, means: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The means in the original coordinates."""
        return self.center.add(means + self.mean)


def _is_covariance(matrix: Float[Array, "d d"]) -> Bool[Array, ""]:
    """Whether the matrix is symmetric and positive semidefinite up to rounding."""
    matrix = jax.lax.stop_gradient(matrix)
    # Eigenvalues are accurate to a small multiple of d · eps times the largest entry.
    size = jnp.max(jnp.abs(matrix))
    rounding = 8 * matrix.shape[0] * jnp.finfo(matrix.dtype).eps * size
    return are_symmetric(matrix) & (jnp.min(eigh(_symmetrised(matrix))[0]) >= -rounding)


def _symmetrised(matrices: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    return (matrices + jnp.swapaxes(matrices, -1, -2)) / 2


def _forwards(times: Numbers) -> Unrounded:
    """Times, NaN from the first traced one that is negative, goes backwards or is not finite."""
    (times,) = as_leaves(times=times)
    if jnp.ndim(times) != 1:
        return times  # rejected with a message in `_as_arrays`
    if not isinstance(times, Tracer):
        known = np.asarray(times, float)
        if not (np.isfinite(known).all() and (np.diff(known, prepend=0) >= 0).all()):
            raise ValueError(
                f"times must be finite and non-decreasing from 0 on; got {known.tolist()}."
            )
        return times
    times = times.astype(jnp.result_type(float, times))
    forwards = (jnp.diff(times, prepend=0) >= 0) & jnp.isfinite(times)
    # From the first wrong time on all are NaN, as the integration passes through it.
    return nan_unless(jnp.cumsum(~forwards) == 0, times)


def _min_norm_field(
    targets: Normal, bandwidth: ArrayLike
) -> Callable[[Normal], tuple[Float[Array, "d d"], Float[Array, " d"], Float[Array, " k"]]]:
    """The combined field's M and c, and the weights, at given moments."""
    check_scalar(bandwidth=bandwidth)
    check_nonnegative(bandwidth=bandwidth)
    precisions = _precision(targets.covariance)
    bandwidth = jnp.asarray(bandwidth, precisions.dtype)
    # A traced bandwidth has passed no check.
    bandwidth = nan_unless((bandwidth >= 0) & jnp.isfinite(bandwidth), bandwidth)
    smoothing = jnp.square(bandwidth) * jnp.eye(targets.mean.shape[1], dtype=precisions.dtype)

    def field(moments: Normal) -> tuple[Array, Array, Array]:
        matrices = inv(moments.covariance + smoothing) - precisions
        shifts = jnp.einsum("kij,kj->ki", precisions, targets.mean - moments.mean)
        # Q_kl = E⟨v_k, v_l⟩ = tr(M_k Σ M_lᵀ) + ⟨c_k, c_l⟩.
        products = jnp.einsum("kij,lij->kl", matrices @ moments.covariance, matrices)
        weights = min_norm_weights(products + shifts @ shifts.T)
        return jnp.tensordot(weights, matrices, 1), weights @ shifts, weights

    return field


def _moment_flow(
    origin: _Origin,
    solve: Callable[[int], Normal],
    field: Callable[[Normal], tuple[Array, Array, Array]],
    num_substeps: int,
) -> MomentFlow:
    """The solution with its weights, and its difference from one with half as many steps."""
    check_count(2, num_substeps=num_substeps)
    # At fourth order half as many steps have about 16 times the error, so the difference is an
    # upper estimate of the finer solution's error.
    fine, coarse = solve(num_substeps), solve(num_substeps // 2)
    rows = lambda moments: jnp.concatenate([moments.mean[:, None], moments.covariance], axis=1)
    difference = jnp.abs(rows(fine) - rows(coarse)).max(axis=(1, 2))
    # Relative to the largest entry, so that units do not matter.
    error = difference / jnp.abs(rows(fine)).max(axis=(1, 2))
    weights = jax.vmap(field)(fine)[2]
    return MomentFlow(origin.add(fine.mean), fine.covariance, weights, error)


T = TypeVar("T")


def _integrate(
    slope: Callable[[Array, T], T], state: T, times: Float[Array, " t"], num_substeps: int
) -> T:
    """The solution of state' = slope(time, state) at the times, started at 0, by Runge–Kutta 4."""

    def add(state: T, step: Array, direction: T) -> T:
        return jax.tree.map(lambda x, v: x + step * v, state, direction)

    # From each time to the next, with equal steps in between.
    def advance(carry: tuple[Array, T], end: Array) -> tuple[tuple[Array, T], T]:
        start, state = carry
        # The caller's times are at any distances: each interval has substeps of its own length.
        step = (end - start) / num_substeps

        def substep(index: Array, state: T) -> T:
            # The classical Runge–Kutta method of order four.
            time = start + index * step
            k1 = slope(time, state)
            k2 = slope(time + step / 2, add(state, step / 2, k1))
            k3 = slope(time + step / 2, add(state, step / 2, k2))
            k4 = slope(time + step, add(state, step, k3))
            mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return add(state, step, mean)

        state = jax.lax.fori_loop(0, num_substeps, substep, state)
        return (end, state), state

    return jax.lax.scan(advance, (jnp.zeros((), times.dtype), state), times)[1]
