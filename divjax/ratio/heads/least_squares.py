"""Least-squares density ratios, uLSIF and RuLSIF, with their analytic leave-one-out score."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from divjax.core import linalg
from divjax.core.checks import check_count, check_nonnegative, check_scalar
from divjax.core.numerics import matmul, nan_unless, safe_log
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.ratio.heads.kernel_models import (
    Basis,
    KernelRatio,
    check_grid,
    draw_basis,
    grid,
    log_cap,
    log_ratio,
)
from divjax.ratio.protocols import Fold, checked, every, is_positive

__all__ = ["LeastSquares", "leave_one_out_score"]

_stop = jax.lax.stop_gradient


def _normal_equations(
    features_p: Float[Array, "n l"],
    features_q: Float[Array, "m l"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    relative: ArrayLike,
    ridge: ArrayLike,
) -> tuple[Float[Array, "l l"], Float[Array, " l"]]:
    """The Cholesky factor of H + λI, and θ = (H + λI)⁻¹ h for the response h."""

    def second_moment(features: Array, weights: Array) -> Array:
        return matmul((features * weights[:, None]).T, features)

    moment_p = second_moment(features_p, a)
    moment_q = second_moment(features_q, b)
    matrix = relative * moment_p + (1 - relative) * moment_q
    # A ridge below the rounding error of H would not make it positive definite.
    lowest = 4 * jnp.finfo(matrix.dtype).eps * _stop(jnp.trace(matrix))
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    factor = linalg.cholesky(jnp.asarray(matrix + jnp.maximum(ridge, lowest) * identity))
    return factor, linalg.cho_solve(factor, matmul(a, features_p))


def leave_one_out_score(
    features_p: Float[Array, "n l"],
    features_q: Float[Array, "m l"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    relative: ArrayLike,
    ridge: ArrayLike,
) -> Float[Array, ""]:
    """The leave-one-out error of least squares for the ratio, from one factorisation.

    ½ E_m[r₋(z)²] − E_p[r₋(x)], m = αp + (1−α)q, where r₋ at a row is the model fitted without it.
    Without the row ψ of mass a in p, and c in the mixture (c = αa for a row of p; a = 0 and
    c = (1−α)b for one of q), both samples are renormalised and the ridge keeps its strength
    relative to the remaining rows, so that

        θ₋ = (1−c)/(1−a) (H − cψψᵀ + λI)⁻¹ (h − aψ),

    a rank-one update of (H + λI)⁻¹ by the Sherman–Morrison formula. Negative entries of θ₋ are set
    to zero, as in the fit. Weights are arbitrary, and rows of weight zero are ignored. Time
    O((n + m) l²), memory O((n + m) l).

    Args:
        features_p: ψ(x_i), the kernels at the rows of p.
        features_q: ψ(y_j), the kernels at the rows of q.
        a: weights of the rows of p, summing to one.
        b: weights of the rows of q, summing to one.
        relative: α.
        ridge: λ.

    Returns:
        The score (lower is better), at the true ratio −½ E_m[r_α²] = −½(1 + χ²(p‖m)).

    References:
        Kanamori, Hido, Sugiyama 2009, section 4.2, for pairs of rows of equal weight and α = 0.
    """
    relative = jnp.asarray(relative, features_p.dtype)
    factor, theta = _normal_equations(features_p, features_q, a, b, relative, ridge)
    epsilon = jnp.finfo(theta.dtype).eps

    def left_out(features: Array, mass: Array, mixture_mass: Array) -> Array:
        """r₋ at each row."""
        inverse = linalg.cho_solve(factor, features.T).T
        # ψᵀ(H + λI)⁻¹ψ and ψᵀ(H + λI)⁻¹(h − aψ), the two products of the rank-one update.
        leverage = jnp.sum(features * inverse, axis=1)
        without = matmul(features, theta) - mass * leverage
        change = mixture_mass * without / jnp.maximum(1 - mixture_mass * leverage, epsilon) - mass
        # Both samples are renormalised without the row.
        scale = (1 - mixture_mass) / jnp.maximum(1 - mass, epsilon)
        # θ₋ differs between rows: "n l", clipped like the fit.
        parameters = jnp.maximum(theta + change[:, None] * inverse, 0)
        return scale * jnp.sum(features * parameters, axis=1)

    # (a, c) is (a, αa) for a row of p and (0, (1−α)b) for one of q.
    at_p = left_out(features_p, a, relative * a)
    at_q = left_out(features_q, jnp.zeros_like(b), (1 - relative) * b)
    squares = relative * jnp.dot(a, at_p**2) + (1 - relative) * jnp.dot(b, at_q**2)
    return 0.5 * squares - jnp.dot(a, at_p)


def _features(
    basis: Basis, bandwidth: Float[Array, ""]
) -> tuple[Float[Array, "n l"], Float[Array, "m l"]]:
    """The kernels at the training rows."""
    scale = -0.5 / jnp.square(bandwidth)
    of = lambda squared: jnp.where(basis.active, jnp.exp(squared * scale), 0)
    return of(basis.squared_p), of(basis.squared_q)


@pytree
class LeastSquares:
    """Least-squares importance fitting: uLSIF, and with `relative` > 0 its relative form RuLSIF.

    The model Σ_l θ_l k(z, c_l) of r_α = p / (αp + (1−α)q) minimises
    ½ E_m[(r − r_α)²] + ½λ‖θ‖², m = αp + (1−α)q. This is one linear system,
    θ = (H + λI)⁻¹ h with H = E_m[ψψᵀ], h = E_p[ψ]. Bandwidth and ridge minimise the leave-one-out
    error over the whole grid, which costs one factorisation per cell and no refit. The validation
    rows are not used.

    Negative θ_l are set to zero, and the others divided by E_m[r̂], since the ratio's mean is known
    to be one. Clipping θ rather than r̂ leaves a positive mixture of kernels: its logarithm
    decreases smoothly where that of a clipped r̂ would be undefined. `KLIEP`, which keeps θ ≥ 0
    during the fit, permits larger bandwidths and is the more accurate of the two for smooth ratios.

    The log ratio is that of r̂ + `floor`, and at most log of the effective number of training rows
    of q. Far from all data it is log `floor`, and gradients are finite everywhere. The method is
    recommended for up to about five features; kernels cannot describe a ratio in many.

    Memory O((n + m) `num_centers`), times the number of ridges. Differentiable in the rows, the
    weights and the selected leaves. Gradients of the selection itself and of the unit of the
    bandwidths are stopped.

    Attributes:
        bandwidth: σ in units of the centres' median distance, one value or several candidates.
        ridge: λ, one value or several candidates.
        relative: α, 0 ≤ α < 1. With α > 0 the target is bounded by 1/α, easier to learn and less
            exact where p ≫ q.
        floor: the constant added to r̂ (to the relative r̂ if α > 0).
        num_centers: the maximum number of kernels, or all training rows of p if there are fewer.

    Raises:
        ValueError: if a Python number is not positive, `relative` is not in [0, 1), or
            `num_centers` is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.ratio import Fold, Rows
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 200, 1))
        >>> mass = jnp.full(200, 1 / 200)
        >>> rows = Rows(x + 0.5, y - 0.5, mass, mass)
        >>> head = LeastSquares()
        >>> params = jax.jit(head.fit)(jax.random.key(1), Fold(rows, rows))
        >>> z = jnp.linspace(-1, 1, 5)[:, None]
        >>> bool(jnp.mean(jnp.abs(head(params, z) - z[:, 0])) < 0.3)  # the true log ratio is z
        True

    References:
        Kanamori, Hido, Sugiyama 2009: uLSIF. Yamada, Suzuki, Kanamori, Hachiya, Sugiyama 2013,
        section 2.3: RuLSIF.
    """

    bandwidth: ArrayLike | Sequence[ArrayLike] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
    ridge: ArrayLike | Sequence[ArrayLike] = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    relative: ArrayLike = 0.0
    floor: ArrayLike = 1e-6
    num_centers: int = static(default=100)

    def __post_init__(self):
        check_grid(bandwidth=self.bandwidth, ridge=self.ridge, floor=self.floor)
        check_nonnegative(relative=self.relative)
        if isinstance(self.relative, (int, float)) and self.relative >= 1:
            raise ValueError(f"relative must be below one; got {self.relative}.")
        check_count(1, num_centers=self.num_centers)

    @jax.jit
    def fit(self, key: Key[Array, ""], fold: Fold) -> KernelRatio:
        """The model of the fold's training rows.

        Args:
            key: a key for drawing the centres.
            fold: the training rows. Validation rows are not used.
        """
        check_scalar(relative=self.relative, floor=self.floor)
        fold, valid = checked(self, fold)
        basis = draw_basis(key, fold.train, self.num_centers, self.bandwidth)
        dtype = basis.centers.dtype
        ridges, alpha = grid(self.ridge, dtype), jnp.asarray(self.relative, dtype)
        masses = fold.train.weights

        # Gradients are stopped in the selection of bandwidth and ridge.
        fixed, fixed_masses, fixed_alpha, fixed_ridges = _stop((basis, masses, alpha, ridges))

        def scores(bandwidth: Float[Array, ""]) -> Float[Array, " r"]:
            args = (*_features(fixed, bandwidth), *fixed_masses, fixed_alpha)
            return jax.vmap(lambda ridge: leave_one_out_score(*args, ridge))(fixed_ridges)

        # Sequential bandwidths bound the memory, and their ridges share the kernels. "g r".
        table = jax.lax.map(scores, fixed.bandwidths)
        # A failed factorisation gives NaN, which must not be selected.
        best = jnp.argmin(jnp.where(jnp.isfinite(table), table, jnp.inf))
        row, column = jnp.unravel_index(best, table.shape)
        bandwidth = basis.bandwidths[row]

        # The selected model again, with derivatives in the rows and weights.
        of_p, of_q = _features(basis, bandwidth)
        theta = _normal_equations(of_p, of_q, *masses, alpha, ridges[column])[1]
        theta = jnp.where(basis.active, jnp.maximum(theta, 0), 0)
        # E_m[r̂] over the mixture m, one for the true ratio, is a divisor and must not vanish.
        mean_p = jnp.dot(masses[0], matmul(of_p, theta))
        mean_q = jnp.dot(masses[1], matmul(of_q, theta))
        mean = jnp.maximum(alpha * mean_p + (1 - alpha) * mean_q, jnp.finfo(dtype).tiny)
        log_weights = safe_log(theta) - jnp.log(mean)
        log_weights = nan_unless(valid, log_weights)
        # A linear system is solved exactly: the gap is zero.
        zero = jnp.zeros((), dtype)
        return KernelRatio(basis.centers, log_weights, bandwidth, log_cap(fold.train.b), zero)

    def in_range(self) -> Bool[Array, ""]:
        """Whether the numbers are positive, and `relative` in [0, 1)."""
        positive = every(is_positive, self.bandwidth, self.ridge, self.floor)
        return positive & every(lambda number: (number >= 0) & (number < 1), self.relative)

    def __call__(self, params: KernelRatio, z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The log ratio log p/q at each row of z, in nats."""
        return log_ratio(params, z, self.floor, self.relative)
