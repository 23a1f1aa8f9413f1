"""Divergences between samples by histograms: shared bins, counts, any categorical divergence.

Merging points into bins never raises an f-divergence: up to sampling error a binned divergence is a
lower bound on that of the densities. Sampling error, in turn, has a positive bias, about
(bins − 1)/(2n) for KL, which `bias` estimates for any divergence.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_flag, check_nonnegative, check_scalar, check_shape
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.pytrees import TracedFunction, as_traced
from divjax.core.samples import Numbers, centered_samples
from divjax.fdiv.binning import (
    Parts,
    as_bounds,
    as_columns,
    as_mass,
    check_bins,
    counts,
    edges,
    edges_of_columns,
    in_parts,
    mass_in_bins,
)
from divjax.fdiv.categorical import Weights
from divjax.fdiv.special import as_floats

__all__ = ["bias", "counts", "divergence", "edges"]

CategoricalDivergence = Callable[[Weights, Weights], Float[Array, "*batch"]]


def bias(
    divergence: CategoricalDivergence,
    counts_p: Float[Numbers, " bins"],
    counts_q: Float[Numbers, " bins"],
    *,
    squares_p: Float[Numbers, " bins"] | None = None,
    squares_q: Float[Numbers, " bins"] | None = None,
    smoothing: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """The first-order bias of a plug-in divergence from counts, ½ Σ_i V_i ∂²D/∂N_i² over both.

    The second-order term of D(N_p, N_q) around the expected counts, with their covariance
    diag(V) − N Nᵀ/n. D does not change if all counts are scaled, so the second part vanishes. For
    KL without smoothing the bias is (B − 1)/(2n) + (Σ_i p_i/q_i − 1)/(2m), with B the number of
    bins that p occupies: the first part is Miller's and Madow's.

    Accurate if occupied bins hold several points each. Smoothing adds an error of higher order.
    Zero for the total variation, which is not twice differentiable. Memory O(bins²).

    Args:
        divergence: a function of two distributions of `divjax.fdiv.categorical`.
        counts_p: counts or sums of weights "bins". Use vmap for several columns.
        counts_q: likewise.
        squares_p: V, the sums of squared weights "bins", the counts by default.
        squares_q: likewise.
        smoothing: the number added to each count.

    Returns:
        The expected excess of the plug-in estimate, to subtract from it.

    Raises:
        ValueError: if these arrays are not vectors of the same length.

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
    # Without weights the sum of squared weights is the number of points.
    counts_p, counts_q, squares_p, squares_q = leaves = as_leaves(
        counts_p=counts_p,
        counts_q=counts_q,
        squares_p=counts_p if squares_p is None else squares_p,
        squares_q=counts_q if squares_q is None else squares_q,
    )
    # The first vector sets the number of bins of all.
    check_shape("counts_p", counts_p, "bins")
    for name, given in {
        "counts_q": counts_q,
        "squares_p": squares_p,
        "squares_q": squares_q,
    }.items():
        check_shape(name, given, counts_p.shape[0])
    plug_in = _plug_in(divergence, counts_p.shape, jnp.result_type(float, *leaves), smoothing)
    return _bias(plug_in, *leaves, *as_leaves(smoothing=smoothing))


def _plug_in(
    divergence: CategoricalDivergence,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    smoothing: ArrayLike,
) -> TracedFunction:
    """The divergence as a function `(counts_p, counts_q, smoothing)`, traced at each call."""
    check_scalar(smoothing=smoothing)
    check_nonnegative(smoothing=smoothing)
    counts, number = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), dtype)
    # At each call, since the function may refer to something that has changed.
    return as_traced(
        lambda p, q, smoothing: divergence(Weights(p, smoothing), Weights(q, smoothing)),
        *(counts, counts, number),
    )


@jax.jit
def _bias(
    plug_in: TracedFunction,
    counts_p: Float[Array, " bins"],
    counts_q: Float[Array, " bins"],
    squares_p: Float[Array, " bins"],
    squares_q: Float[Array, " bins"],
    smoothing: ArrayLike,
) -> Float[Array, ""]:
    """`bias` after its checks."""
    counts_p, counts_q, squares_p, squares_q = as_floats(counts_p, counts_q, squares_p, squares_q)
    smoothing = jnp.asarray(smoothing, counts_p.dtype)
    total = jnp.zeros((), counts_p.dtype)
    variances = squares_p, squares_q
    for argument, variance in enumerate(variances):
        # Of any function, not only a sum over bins: the diagonal alone would take as many passes.
        hessian = jax.hessian(plug_in, argnums=argument)(counts_p, counts_q, smoothing)
        # Only the variances contribute: the part N Nᵀ/n of the covariance adds zero.
        total = total + 0.5 * jnp.dot(variance, jnp.diagonal(hessian))
    return total


def divergence(
    divergence: CategoricalDivergence,
    x: Float[Numbers, " n *d"],
    y: Float[Numbers, " m *d"],
    *,
    num_bins: int = 20,
    spacing: str = "quantile",
    bins: Float[Numbers, "*d edges"] | None = None,
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    smoothing: ArrayLike = 0.0,
    debias: bool = False,
) -> Float[Array, "*d"]:
    """A divergence between two samples by their histograms on shared bins, one for each column.

    The bias from sampling is positive, about (bins − 1)/(2n) + (bins − 1)/(2m) for KL near p = q
    and a quarter of it for the Jensen–Shannon divergence. `debias` subtracts it to first order. The
    bias from merging points into bins, and that from smoothing, are negative. Not differentiable in
    the points (counts are steps), but in the weights.

    Args:
        divergence: a function in `divjax.fdiv.categorical`, such as `categorical.jensen_shannon`,
            or any function of two distributions: `lambda p, q: jensen_shannon(p, q, base=2)` for
            options.
        x: samples of p, a vector or a matrix, whose columns are compared one by one.
        y: samples of q with the same number of columns.
        num_bins: the number of bins, a static integer.
        spacing: "quantile" or "uniform", see `edges`.
        bins: ascending edges to use instead, "bins+1", or "d edges" for a matrix. Points outside
            of them are left out.
        a: non-negative weights of x, one per sample. Rows of weight zero are padding. Other weights
            enter the counts, but do not move the edges of quantile bins.
        b: non-negative weights of y, likewise.
        smoothing: the number added to each count. Without it, KL is +inf if a bin holds points of x
            alone.
        debias: whether to subtract `bias`, in which case the result may be negative.

    Returns:
        The divergence in nats (or its own unit): a scalar for vectors, "d" for matrices. It is NaN
        where no point of a sample is inside the bins, or a value is not finite.

    Raises:
        ValueError: if shapes do not fit, or an option is not one of those listed.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.fdiv import categorical
        >>> x, y = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 2.0], [1.0, 3.0]])
        >>> divergence(categorical.total_variation, x, y, num_bins=4).tolist()
        [0.0, 1.0]

    References:
        Csiszár 1967: merging points never raises an f-divergence.
    """
    check_flag(debias=debias)
    columns = as_columns(x=x, y=y)
    masses = {
        "x": as_mass("a", a, columns["x"].shape[0]),
        "y": as_mass("b", b, columns["y"].shape[0]),
    }
    # Bins found here are those of the centred samples, which lose no accuracy to an offset.
    _, *samples = centered_samples(masses, **columns)
    parts = None
    if bins is None:
        check_bins(num_bins, spacing)
    else:
        bounds = as_bounds("bins", bins, np.ndim(x), columns["x"])
        parts = [in_parts(column, bounds) for column in columns.values()]
    sums, squares, finite = _sums(
        samples, list(masses.values()), parts, num_bins=num_bins, spacing=spacing
    )
    # The divergence is called with concrete counts, as a user's function may require.
    values = divergence(*(Weights(counts, smoothing) for counts in sums))
    excess = None
    if debias:
        plug_in = _plug_in(divergence, sums[0].shape[1:], sums[0].dtype, smoothing)
        excess = _biases(plug_in, sums, squares, *as_leaves(smoothing=smoothing))
    return _flagged(values, excess, finite, is_vector=np.ndim(x) == 1)


@functools.partial(jax.jit, static_argnames=("num_bins", "spacing"))
def _sums(
    samples: list[Float[Array, "_ d"]],
    masses: list[Array | None],
    parts: list[Parts] | None,
    *,
    num_bins: int,
    spacing: str,
) -> tuple[list[Array], list[Array], Bool[Array, " d"]]:
    """The sums of weights and of squared weights in each bin, and which columns are finite.

    Args:
        samples: the centred samples.
        masses: the weights of the rows, None if each counts once.
        parts: columns and given bounds, in two parts each, or None to find bins from the samples.
        num_bins: the number of bins to find.
        spacing: the spacing of bins to find.
    """
    used = [
        jnp.ones(sample.shape[0], bool) if mass is None else mass != 0
        for sample, mass in zip(samples, masses, strict=True)
    ]
    if parts is None:
        bounds = edges_of_columns(
            jnp.concatenate(samples), jnp.concatenate(used), num_bins, spacing
        )
        parts = [(sample, bounds) for sample in samples]
    # Half precision cannot hold counts.
    dtype = at_least_single(samples[0].dtype)

    def count(power: Callable[[Array], Array]) -> list[Array]:
        # Σw gives the counts, and Σw² estimates their variances.
        return [
            mass_in_bins(*part, None if mass is None else power(mass), dtype)
            for part, mass in zip(parts, masses, strict=True)
        ]

    # Given bins would silently leave infinite values out.
    finite = [
        jnp.all(jnp.isfinite(sample) | ~rows[:, None], axis=0)
        for sample, rows in zip(samples, used, strict=True)
    ]
    return count(lambda mass: mass), count(jnp.square), finite[0] & finite[1]


@jax.jit
def _biases(
    plug_in: TracedFunction, sums: list[Array], squares: list[Array], smoothing: ArrayLike
) -> Float[Array, " d"]:
    """The bias in each column."""
    return jax.vmap(lambda *counts: _bias(plug_in, *counts, smoothing))(*sums, *squares)


@functools.partial(jax.jit, static_argnames="is_vector")
def _flagged(
    values: Float[Array, " d"],
    excess: Float[Array, " d"] | None,
    finite: Bool[Array, " d"],
    *,
    is_vector: bool,
) -> Float[Array, "*d"]:
    """The plug-in values minus their expected excess, NaN where a sample is not finite."""
    values = nan_unless(finite, values if excess is None else values - excess)
    return values[0] if is_vector else values
