"""Transport on the line in closed form: the cost, the plan, the map and the potentials.

Costs are returned as W_p^p, the p-th power of the distance. The power has finite gradients if two
measures agree, and is the usual result of transport solvers. `root=True` gives the distance itself.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import check_flag, check_order, check_shape
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers
from divjax.core.types import Outcome, status_of
from divjax.ot.quantile_coupling import (
    Line,
    as_values,
    compiled_for_order,
    is_infinite,
    is_valid,
    line_cost,
    line_potentials,
    rooted,
    staircase,
    working_arrays,
)

__all__ = ["LineTransportResult", "transport_1d", "wasserstein_1d"]


def _arguments(
    x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None, *, ordered: bool
) -> tuple[Line, jnp.dtype, Center]:
    """The samples in at least single precision, the dtype of the result, and their centre."""
    center, (x, y) = as_values({"x": a, "y": b}, ordered=ordered, x=x, y=y)
    return Line(*working_arrays(x, y, a, b)), jnp.result_type(x, y), center


def check_line_order(p: ArrayLike) -> None:
    """Raise `ValueError` for a Python number below 1, not for ∞."""
    if not is_infinite(p):
        check_order(p)


def wasserstein_1d(
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    p: ArrayLike = 2,
    root: bool = False,
) -> Float[Array, ""]:
    """The transport cost W_p^p = ∫₀¹ |F_x⁻¹(u) − F_y⁻¹(u)|^p du of two samples on the line, exact.

    The quantile functions are steps, so the integral is a sum over the at most n + m − 1 intervals
    between their merged jumps. The power W_p^p is returned, not its root, unless `root` is true.
    For p = ∞ the result is W_∞, the largest |F_x⁻¹(u) − F_y⁻¹(u)|, which is already a root. Levels
    that coincide up to the rounding of unequal weights count as one.

    The cost is differentiable in the samples almost everywhere. At distance zero a pair's
    derivative is zero, and among duplicates it is that of one of several matchings. In the weights,
    which are normalised, it is differentiable unless two cumulative weights coincide. The first
    derivative exists at zero weights too, and for W_∞ it is zero. The root's derivative at cost
    zero is zero.

    Time O((n + m) log(n + m)), memory O(n + m). Half precision is computed in float32.

    Args:
        x: samples of p, with integers taken as floats.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        p: the order, at least 1; the Python number ∞ for W_∞.
        root: whether to return the distance W_p instead of its power.

    Returns:
        The cost in the samples' unit to the power p, or with `root` in their unit, NaN if a row
        with weight is NaN.

    Raises:
        ValueError: if a sample is empty or not a vector of numbers, weights do not fit, are
            negative or all zero, or p is a Python number below 1. The cost is NaN if they are
            traced and out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([0.0, 1.0]), jnp.array([3.0])
        >>> float(wasserstein_1d(x, y, p=1)), float(wasserstein_1d(x, y))
        (2.5, 6.5)
        >>> float(wasserstein_1d(x, y, jnp.array([3.0, 1.0])))  # ¾ 3² + ¼ 2²
        7.75
        >>> float(wasserstein_1d(x, y, p=float("inf"))), float(wasserstein_1d(x, y + 1, root=True))
        (3.0, 3.536)

    References:
        Peyré, Cuturi 2019, eq. 2.32 and remark 2.30.
    """
    check_line_order(p)
    line, dtype, _ = _arguments(x, y, a, b, ordered=False)
    check_flag(root=root)
    return _wasserstein(line, p=p, root=root).astype(dtype)


@compiled_for_order("root")
def _wasserstein(line: Line, *, p: ArrayLike, root: bool) -> Float[Array, ""]:
    value = line_cost(line, p)
    return rooted(value, p) if root else value


@pytree
class LineTransportResult(Outcome):
    """The cost, the plan, the map and the potentials of optimal transport on the line.

    Attributes:
        value: W_p^p.
        f: the Kantorovich potential of x: f_i + g_j ≤ |x_i − y_j|^p, with equality on pairs with
            mass, and ⟨a, f⟩ = ⟨b, g⟩ = ½ W_p^p. It is the derivative of the value in the weights
            of x, up to a constant.
        g: the potential of y.
        rows: the indices into x of the plan's entries, from left to right.
        columns: the indices into y of the plan's entries.
        masses: the masses of the plan's entries, with sum 1, some possibly zero.
        center: a point of the line that float64 from NumPy is taken relative to.
        x: the samples of p, less the centre.
        y: the samples of q, less the centre.
        status: `Status.CONVERGED`, or the problem with the input.
    """

    value: Float[Array, ""]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    rows: Int[Array, " k"]
    columns: Int[Array, " k"]
    masses: Float[Array, " k"]
    center: Center
    x: Float[Array, " n"]
    y: Float[Array, " m"]
    status: Int[Array, ""]

    @jax.jit
    def plan(self) -> Float[Array, "n m"]:
        """The plan as a matrix, n × m numbers of which at most n + m − 1 are not zero."""
        empty = jnp.zeros((self.x.shape[0], self.y.shape[0]), self.masses.dtype)
        return empty.at[self.rows, self.columns].add(self.masses)

    def transport(self, z: Float[Numbers, " k"]) -> Float[Array, " k"]:
        """The increasing map from x to y, at any points.

        At a row of x it is the mean of the rows of y that its mass is mapped to, with equal rows
        combined. Between rows it is linear, and beyond the first and the last a translation.

        Args:
            z: points.

        Raises:
            ValueError: if they are not a vector.
        """
        check_shape("z", z, "k")
        images = self._transport(self.center.subtract(z[:, None])[:, 0])
        return self.center.add(images[:, None])[:, 0]

    @jax.jit
    def _transport(self, z: Float[Array, " k"]) -> Float[Array, " k"]:
        """`transport` of points relative to the centre."""
        order = jnp.argsort(self.x)
        sorted_x, n = self.x[order], order.size
        # A row's image is the mean of its targets, the quotient of moment and mass, both summed
        # over equal rows.
        mass = jax.ops.segment_sum(self.masses, self.rows, n)[order]
        moment = jax.ops.segment_sum(self.masses * self.y[self.columns], self.rows, n)[order]
        # A row without mass is replaced by the one before it.
        held = jax.lax.cummax(jnp.where(mass > 0, sorted_x, -jnp.inf))
        positions = jnp.maximum(held, jnp.min(jnp.where(mass > 0, sorted_x, jnp.inf)))
        # Equal rows are merged into one point; unused positions are at infinity.
        group = jnp.append(0, jnp.cumsum(positions[1:] > positions[:-1]))
        total = jax.ops.segment_sum(mass, group, n)
        used = total > 0
        points = jnp.where(used, jax.ops.segment_max(positions, group, n), jnp.inf)
        images = jax.ops.segment_sum(moment, group, n) / jnp.where(used, total, 1)
        # Unused images are copies of the last one, so that interpolation avoids NaN.
        images = jnp.where(used, images, images[group[-1]])
        # Outside of the sample the slope is one: distances beyond an end are preserved.
        inside = jnp.clip(z, positions[0], positions[-1])
        return jnp.interp(inside, points, images) + (z - inside)


def transport_1d(
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    p: ArrayLike = 2,
) -> LineTransportResult:
    """Optimal transport on the line: cost, plan, increasing map and Kantorovich potentials, exact.

    The plan is that of `wasserstein_1d`, optimal for all p ≥ 1 simultaneously. The potentials
    follow its entries from left to right: along a row f is constant and g changes with the cost,
    along a column vice versa. The Monge condition of the costs makes them feasible for all other
    pairs.

    Time O((n + m) log(n + m)), memory O(n + m).

    Args:
        x: samples of p, with integers taken as floats.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default.
        b: weights of y.
        p: the order, finite and at least 1.

    Returns:
        A `LineTransportResult`, the value first. Value and potentials are NaN if a traced order or
        weight is out of range.

    Raises:
        ValueError: as `wasserstein_1d`, or if samples of NumPy lie so far apart that the dtype
            loses the order of one.

    Example:
        >>> import jax.numpy as jnp
        >>> found = transport_1d(jnp.array([2.0, 0.0]), jnp.array([1.0, 4.0]))
        >>> found.plan().tolist(), float(found.value)  # ½ (0 − 1)² + ½ (2 − 4)²
        ([[0.0, 0.5], [0.5, 0.0]], 2.5)
        >>> found.transport(jnp.array([0.0, 1.0, 3.0])).tolist()
        [1.0, 2.5, 5.0]

    References:
        Peyré, Cuturi 2019, remark 2.30: the plan. Hoffman 1963: costs with the Monge condition.
    """
    check_order(p)
    line, dtype, center = _arguments(x, y, a, b, ordered=True)
    return _transport(line, center, p=p, dtype=dtype)


@compiled_for_order("dtype")
def _transport(
    line: Line, center: Center, *, p: ArrayLike, dtype: DTypeLike
) -> LineTransportResult:
    """`transport_1d` after its checks."""
    x, y = line.x, line.y
    rows, columns, masses = path = staircase(line)
    value, valid = line_cost(line, p), is_valid(line, p)
    f, g = line_potentials(line, path, p)
    # The two halves of the value are equal: the potentials are unique up to a shift.
    share = lambda weights, z: jnp.ones_like(z) / z.size if weights is None else weights
    # Shares first: masses times costs may leave the dtype's range.
    part = lambda weights, z: jnp.where(weights > 0, weights / jnp.sum(weights) * z, 0)
    weighted = lambda weights, z: jnp.sum(part(weights, z))
    shift = (weighted(share(line.b, y), g) - weighted(share(line.a, x), f)) / 2
    finite = jnp.isfinite(value) & jnp.isfinite(shift)
    status = status_of(converged=True, finite=finite, valid=valid)
    f = nan_unless(valid, f + shift).astype(dtype)
    g = nan_unless(valid, g - shift).astype(dtype)
    value, masses = value.astype(dtype), masses.astype(dtype)
    return LineTransportResult(value, f, g, rows, columns, masses, center, x, y, status)
