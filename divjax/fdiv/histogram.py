"""Divergences between samples by histograms: shared bins, counts, any categorical divergence.

Merging points into bins never raises an f-divergence: up to sampling error a binned divergence is a
lower bound on that of the densities. Sampling error, in turn, has a positive bias, about
(bins − 1)/(2n) for KL, which `bias` estimates for any divergence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_count, check_matrix, check_same_features
from divjax.fdiv.categorical import Weights

__all__ = ["bias", "counts", "divergence", "edges"]

CategoricalDivergence = Callable[[Any, Any], Float[Array, "*batch"]]


def _columns(**samples: Float[Array, " n *d"]) -> tuple[Float[Array, "n d"], ...]:
    """Samples as matrices; a vector is one column."""
    matrices = {
        name: sample[:, None] if jnp.ndim(sample) == 1 else sample
        for name, sample in samples.items()
    }
    check_matrix(**matrices)
    first, *rest = matrices
    for name in rest:
        check_same_features(matrices[first], matrices[name], (first, name))
    return tuple(matrices.values())


def edges(
    x: Float[Array, " n *d"],
    y: Float[Array, " m *d"],
    *,
    num_bins: int = 20,
    spacing: str = "uniform",
) -> Float[Array, "*d bins+1"]:
    """The edges of bins that hold both samples, for each column.

    Args:
        x: samples, a vector or a matrix.
        y: samples with as many columns.
        num_bins: a static integer.
        spacing: "uniform": bins of equal width between the extremes; "quantile": bins of equal
            share of both samples pooled, which adapts to heavy tails. Ties make some of the latter
            empty, which is harmless without smoothing.

    Returns:
        Ascending edges "bins+1" of one column, "d bins+1" of several.

    Raises:
        ValueError: if shapes do not fit, num_bins is no positive integer, or the spacing is
            neither.

    Example:
        >>> import jax.numpy as jnp
        >>> edges(jnp.array([0.0, 1.0]), jnp.array([4.0]), num_bins=2).tolist()
        [0.0, 2.0, 4.0]
    """
    columns = jnp.concatenate(_columns(x=x, y=y))
    check_count(1, num_bins=num_bins)
    if spacing == "uniform":
        result = jnp.linspace(columns.min(axis=0), columns.max(axis=0), num_bins + 1, axis=-1)
    elif spacing == "quantile":
        shares = jnp.linspace(0, 1, num_bins + 1, dtype=columns.dtype)
        result = jnp.quantile(columns, shares, axis=0).T
    else:
        raise ValueError(f'spacing must be "uniform" or "quantile"; got {spacing!r}.')
    return result[0] if jnp.ndim(x) == 1 else result


def counts(
    x: Float[Array, " n *d"],
    edges: Float[Array, "*d bins+1"],
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "*d bins"]:
    """How many points of each column fall into each bin, or how much weight.

    Bins hold their left edge, the last also its right one; points outside of all count nowhere, and
    nan makes a count nan.

    Args:
        x: samples, a vector or a matrix.
        edges: ascending: "bins+1" for a vector, "d bins+1" for a matrix.
        weights: non-negative, one a sample; differentiable. All one by default.

    Returns:
        Counts "bins" or "d bins" of the dtype of x.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> counts(jnp.array([0.0, 1.0, 4.0]), jnp.array([0.0, 2.0, 4.0])).tolist()
        [2.0, 1.0]
    """
    (columns,) = _columns(x=x)
    bounds = edges[None] if jnp.ndim(x) == 1 else edges
    n, d = columns.shape
    if jnp.ndim(bounds) != 2 or bounds.shape[0] != d or bounds.shape[1] < 2:
        raise ValueError(
            "edges must have shape (bins + 1,) for a vector x and (features, bins + 1) for a "
            f"matrix; got shape {jnp.shape(edges)} for x of shape {jnp.shape(x)}."
        )
    mass = jnp.ones(n, columns.dtype) if weights is None else jnp.asarray(weights, columns.dtype)
    if mass.shape != (n,):
        raise ValueError(f"weights must have shape ({n},); got shape {mass.shape}.")
    num_bins = bounds.shape[1] - 1

    def count(column: Float[Array, " n"], bounds: Float[Array, " bins+1"]) -> Array:
        index = jnp.searchsorted(bounds, column, side="right") - 1
        outside = (column < bounds[0]) | (column > bounds[-1])
        # What is not a number belongs nowhere, and must show.
        added = jnp.where(jnp.isnan(column), jnp.nan, jnp.where(outside, 0, mass))
        return jnp.zeros(num_bins, mass.dtype).at[jnp.clip(index, 0, num_bins - 1)].add(added)

    result = jax.vmap(count)(columns.T, bounds)
    return result[0] if jnp.ndim(x) == 1 else result


def bias(
    divergence: CategoricalDivergence,
    counts_p: Float[Array, " bins"],
    counts_q: Float[Array, " bins"],
    *,
    squares_p: Float[Array, " bins"] | None = None,
    squares_q: Float[Array, " bins"] | None = None,
    smoothing: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """The first-order bias of a plug-in divergence from counts, ½ Σ_i (V_i ∂²D/∂N_i² + …).

    The second-order term of D(N_p, N_q) around the expected counts, with their covariance
    diag(V) − N Nᵀ/n; D does not change when all counts are scaled, so the second part is lost. For
    KL without smoothing this is (B − 1)/(2n) + (Σ_i p_i/q_i − 1)/(2m), with B the bins that p
    occupies: the first part is Miller's and Madow's.

    Good where occupied bins hold several points each; smoothing adds an error of higher order. Zero
    for the total variation, which is not twice differentiable. Memory O(bins²).

    Args:
        divergence: a function of two distributions of `divjax.fdiv.categorical`.
        counts_p: counts or sums of weights "bins"; vmap for several columns.
        counts_q: likewise.
        squares_p: V, sums of squared weights "bins"; the counts by default.
        squares_q: likewise.
        smoothing: what is added to the counts.

    Returns:
        The expected excess of the plug-in estimate, to subtract from it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.fdiv import categorical
        >>> same = jnp.array([50.0, 50.0])
        >>> excess = jax.jit(lambda p, q: bias(categorical.kl, p, q))(same, same)
        >>> round(float(excess), 4)  # ½ (1/100 + 1/100)
        0.01

    References:
        Miller 1955: the bias of the plug-in entropy.
    """

    def value(counts_p: Array, counts_q: Array) -> Array:
        return divergence(Weights(counts_p, smoothing), Weights(counts_q, smoothing))

    total = jnp.zeros((), counts_p.dtype)
    variances = (
        counts_p if squares_p is None else squares_p,
        counts_q if squares_q is None else squares_q,
    )
    for argument, variance in enumerate(variances):
        hessian = jax.hessian(value, argnums=argument)(counts_p, counts_q)
        total = total + 0.5 * jnp.dot(variance, jnp.diagonal(hessian))
    return total


def divergence(
    divergence: CategoricalDivergence,
    x: Float[Array, " n *d"],
    y: Float[Array, " m *d"],
    *,
    num_bins: int = 20,
    spacing: str = "uniform",
    bins: Float[Array, "*d bins+1"] | None = None,
    weights_x: Float[Array, " n"] | None = None,
    weights_y: Float[Array, " m"] | None = None,
    smoothing: ArrayLike = 0.0,
    unbias: bool = False,
) -> Float[Array, "*d"]:
    """A divergence between two samples by their histograms on shared bins, one for each column.

    Bias: positive from sampling, about (bins − 1)/(2n) + (bins − 1)/(2m) for KL near p = q and a
    quarter of it for the Jensen–Shannon divergence, which `unbias` subtracts to first order;
    negative from merging points into bins, and from smoothing. Not differentiable in the points
    (counts are steps), but in the weights.

    Args:
        divergence: of `divjax.fdiv.categorical`, say `categorical.jensen_shannon`, or any function
            of two distributions; `lambda p, q: jensen_shannon(p, q, base=2)` for options.
        x: samples of p, a vector or a matrix, whose columns are compared one by one.
        y: samples of q with as many columns.
        num_bins: a static integer.
        spacing: "uniform" or "quantile", see `edges`.
        bins: edges to use instead: "bins+1", or "d bins+1" for a matrix. Points outside of them are
            left out.
        weights_x: non-negative, one a sample.
        weights_y: likewise.
        smoothing: added to each count. Without, KL is +inf where a bin holds points of x alone.
        unbias: whether to subtract `bias`; the result may then be negative.

    Returns:
        In nats (or the divergence's unit): a scalar for vectors, "d" for matrices; nan where no
        point is inside the bins.

    Raises:
        ValueError: if shapes do not fit, or an option is none of those it takes.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.fdiv import categorical
        >>> x, y = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 2.0], [1.0, 3.0]])
        >>> divergence(categorical.total_variation, x, y, num_bins=4).tolist()
        [0.0, 1.0]

    References:
        Csiszár 1967: merging points never raises an f-divergence.
    """
    samples = _columns(x=x, y=y)
    if bins is None:
        bins = edges(x, y, num_bins=num_bins, spacing=spacing)
    bounds = bins[None] if jnp.ndim(x) == 1 else bins
    weights = (weights_x, weights_y)
    pairs = list(zip(samples, weights, strict=True))
    sums = [counts(sample, bounds, weight) for sample, weight in pairs]

    values = divergence(*(Weights(sum_, smoothing) for sum_ in sums))
    if unbias:
        squares = [
            counts(sample, bounds, None if weight is None else jnp.square(weight))
            for sample, weight in pairs
        ]
        values = values - jax.vmap(
            lambda p, q, squares_p, squares_q: bias(
                divergence, p, q, squares_p=squares_p, squares_q=squares_q, smoothing=smoothing
            )
        )(*sums, *squares)
    return values[0] if jnp.ndim(x) == 1 else values
