"""Divergences between centred Gaussians that are given by Gram matrices, as in deep kernels."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_callable,
    check_full_precision,
    check_no_negatives,
    check_nonnegative,
    check_scalar,
)
from divjax.core.normal import Normal, check_symmetric
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import as_traced
from divjax.core.samples import Numbers, as_arrays, as_samples
from divjax.fdiv.gaussian.analytic import whitened_kl
from divjax.fdiv.gaussian.whitening import whiten

__all__ = ["deep_kernel_divergence", "gram_kl"]


def gram_kl(
    gram: Float[Numbers, "n n"], kernel_gram: Float[Numbers, "n n"], *, jitter: ArrayLike = 0.0
) -> Float[Array, ""]:
    """KL(N(0, G)‖N(0, K)) = ½ [tr(K⁻¹G) − n + log(det K/det G)] of two Gram matrices of n points.

    As `divjax.fdiv.gaussian.kl`: by Cholesky factors, as a sum of terms of which none is negative.
    Zero for G = K alone. The same factor on both matrices changes nothing.

    Gram matrices of smooth kernels are singular up to rounding. The `jitter` adds that multiple of
    the mean of K's diagonal to both diagonals: the divergence is then that between the processes
    with independent noise of this variance, which is less.

    Time O(n³), memory O(n²). Differentiable in both matrices and the jitter.

    Args:
        gram: G, symmetric and positive definite.
        kernel_gram: K, likewise.
        jitter: the variance of the noise, in units of the mean of K's diagonal, not negative.

    Returns:
        The divergence in nats, +∞ if one matrix alone is singular. NaN if both are, if one is
        indefinite, not finite, or traced and not symmetric, or for a traced jitter below zero.

    Raises:
        ValueError: if a matrix is empty, not square, of half precision, known and not symmetric, or
            of another size than the other, or the jitter is a negative number.

    Example:
        >>> import jax.numpy as jnp
        >>> gram, kernel_gram = jnp.diag(jnp.array([1.0, 4.0])), jnp.eye(2)
        >>> round(float(gram_kl(gram, kernel_gram)), 4)  # ½ (5 − 2 − log 4)
        0.8069

    References:
        Kullback 1959, chapter 9. Yang, Robeyns, Milsom, Anson, Schoots, Aitchison 2023, "A theory
        of representation learning gives a deep generalisation of kernel methods": between Gram
        matrices.
    """
    gram, kernel_gram = _matrices(gram=gram, kernel_gram=kernel_gram)
    _check_jitter(jitter)
    return _gram_kl(gram, kernel_gram, *as_leaves(jitter=jitter))


def deep_kernel_divergence(
    grams: Sequence[Float[Numbers, "n n"]] | Float[Numbers, "l n n"],
    kernel: Callable[[Float[Array, "n n"]], Float[Array, "n n"]],
    *,
    widths: ArrayLike | Float[Numbers, " _"] = 1.0,
    jitter: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """The regulariser of a deep kernel machine, Σ_l ν_l KL(N(0, G_l)‖N(0, K(G_{l−1}))).

    Each layer's Gram matrix is compared with the kernel of that before it. A deep kernel machine
    maximises the log-likelihood of the labels given the last Gram matrix, minus this: for
    ν → ∞ the Gram matrices are those of the network's Gaussian process, which learns no features,
    and smaller ν let them adapt to the labels.

    Time O(l n³), memory O(l n²). Differentiable in the matrices, ν, the jitter, and what the kernel
    refers to.

    Args:
        grams: G_0, of the inputs, to G_L, at least two.
        kernel: K, a function of a Gram matrix to one, such as
            exp(−(G_ii + G_jj − 2 G_ij)/2) or the arc-cosine kernel of rectified layers.
        widths: ν_1, …, ν_L, the layers' widths in units of the number of outputs, or one number.
        jitter: as for `gram_kl`, at each layer.

    Returns:
        The sum in nats. +∞ and NaN as `gram_kl`, and NaN for a traced width below zero.

    Raises:
        ValueError: if there are fewer than two matrices, they are not square or of one size, known
            ones are not symmetric, the kernel is no function, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> scale = lambda gram: 2 * gram  # a kernel that doubles variances
        >>> grams = [jnp.eye(3), 2 * jnp.eye(3), 4 * jnp.eye(3)]
        >>> float(deep_kernel_divergence(grams, scale))
        0.0
        >>> grams[2] = 2 * jnp.eye(3)  # 3/2 (½ − 1 + log 2), times its width
        >>> round(float(deep_kernel_divergence(grams, scale, widths=[1.0, 2.0])), 4)
        0.5794

    References:
        Yang, Robeyns, Milsom, Anson, Schoots, Aitchison 2023, "A theory of representation learning
        gives a deep generalisation of kernel methods": the objective of deep kernel machines.
    """
    check_callable(kernel=kernel)
    named = {f"grams[{i}]": gram for i, gram in enumerate(grams)}
    if len(named) < 2:
        raise ValueError(f"grams must be at least two matrices; got {len(named)}.")
    stacked = jnp.stack(_matrices(**named))
    check_no_negatives(widths=widths)
    (widths,) = as_arrays(widths=widths)
    if widths.shape not in ((), (len(named) - 1,)):
        raise ValueError(
            f"widths must be one number, or {len(named) - 1}, one for each matrix but the first; "
            f"got shape {widths.shape}."
        )
    _check_jitter(jitter)
    example = jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)
    found = jax.eval_shape(kernel, example)
    if getattr(found, "shape", None) != example.shape:
        raise ValueError(
            f"kernel must return a matrix of shape {example.shape} for one; got {found}."
        )
    # The function may refer to something that has changed.
    if jax.tree_util.all_leaves([kernel]):
        kernel = as_traced(kernel, example)
    return _deep_kernel_divergence(stacked, kernel, widths, *as_leaves(jitter=jitter))


def _check_jitter(jitter: ArrayLike) -> None:
    check_scalar(jitter=jitter)
    check_nonnegative(jitter=jitter)


def _matrices(**grams: Numbers) -> tuple[Float[Array, "n n"], ...]:
    """Square matrices of one size and dtype; known ones are checked to be symmetric."""
    matrices = as_samples(**grams)
    for name, matrix in zip(grams, matrices, strict=True):
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{name} must be square; got shape {matrix.shape}.")
        check_full_precision(name, matrix)
        check_symmetric(name, matrix)
    return matrices


def _divergence(
    gram: Float[Array, "n n"], kernel_gram: Float[Array, "n n"], jitter: Float[Array, ""]
) -> Float[Array, ""]:
    jitter = nan_unless(jitter >= 0, jitter)
    # The same noise in both: by data processing it can only lower the divergence.
    noise = jitter * jnp.mean(jnp.diagonal(kernel_gram)) * jnp.eye(len(gram), dtype=gram.dtype)
    mean = jnp.zeros_like(gram[0])
    return whitened_kl(whiten(Normal(mean, gram + noise), Normal(mean, kernel_gram + noise)))


@jax.jit
@jax.default_matmul_precision("highest")
def _gram_kl(
    gram: Float[Array, "n n"], kernel_gram: Float[Array, "n n"], jitter: ArrayLike
) -> Float[Array, ""]:
    """`gram_kl` after its checks."""
    return _divergence(gram, kernel_gram, jnp.asarray(jitter, gram.dtype))


@jax.jit
@jax.default_matmul_precision("highest")
def _deep_kernel_divergence(
    grams: Float[Array, "l n n"],
    kernel: Callable[[Float[Array, "n n"]], Float[Array, "n n"]],
    widths: Float[Array, "..."],
    jitter: ArrayLike,
) -> Float[Array, ""]:
    """`deep_kernel_divergence` after its checks."""
    jitter = jnp.asarray(jitter, grams.dtype)
    of_layer = lambda pair: _divergence(pair[1], kernel(pair[0]), jitter)
    # One layer after the other, which holds the factors of one pair of matrices only.
    divergences = jax.lax.map(of_layer, (grams[:-1], grams[1:]))
    widths = jnp.broadcast_to(widths.astype(grams.dtype), divergences.shape)
    # A layer of width zero is left out, even if it is infinitely far.
    counted = jnp.where(widths > 0, divergences, 0)
    return jnp.sum(nan_unless(jnp.all(widths >= 0), widths) * counted)
