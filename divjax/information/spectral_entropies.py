"""Entropies of density matrices: von Neumann's, and Rényi's of normalised Gram matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_optional_leaf
from divjax.core.checks import check_base, check_full_precision, check_positive_finite, check_scalar
from divjax.core.numerics import in_base
from divjax.core.representable import nan_if_lost
from divjax.core.samples import Numbers, as_samples, centered_samples
from divjax.core.simplex import within_range
from divjax.information.spectral_functions import (
    density_matrix,
    renyi_of_spectrum,
    spectral_function,
)
from divjax.kernels import Gaussian, Kernel, MedianDistance
from divjax.kernels.protocols import check_kernel

__all__ = ["matrix_renyi_entropy", "matrix_renyi_mutual_information", "von_neumann_entropy"]

_GAUSSIAN = Gaussian(MedianDistance())


def von_neumann_entropy(
    matrix: Float[Numbers, "d d"], *, base: ArrayLike | None = None
) -> Float[Array, ""]:
    """The von Neumann entropy −tr(ρ log ρ) of a matrix that is normalised to trace one.

    The Shannon entropy of the eigenvalues of ρ = A/tr A, from 0 for rank one to log d for a
    multiple of the identity. For a covariance matrix its exponential is the effective rank.
    Multiplying the matrix by a positive number changes nothing.

    Differentiable where eigenvalues repeat. The derivative in directions that raise an eigenvalue
    of zero is infinite, and is left out: it does not matter for A = XᵀX, whose eigenvalues of zero
    do not change at first order.

    Args:
        matrix: A, symmetric and positive semidefinite: a covariance, Gram or density matrix.
        base: the base of the logarithm, by default e.

    Returns:
        The entropy, in nats without `base`. NaN if the matrix is zero, not finite, not symmetric,
        or has a negative eigenvalue, beyond rounding of half of the digits.

    Raises:
        ValueError: if the matrix is empty, not square, or of half precision, or the base is out of
            range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(von_neumann_entropy(jnp.eye(4), base=2))
        2.0

    References:
        von Neumann 1932, chapter 5. Roy, Vetterli 2007: the effective rank.
    """
    (matrix,) = as_samples(matrix=within_range(matrix))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square; got shape {matrix.shape}.")
    check_full_precision("matrix", matrix)
    check_base(base)
    return _von_neumann_entropy(matrix, as_optional_leaf(base=base))


@jax.jit
def _von_neumann_entropy(matrix: Float[Array, "d d"], base: ArrayLike | None) -> Float[Array, ""]:
    one = jnp.ones((), matrix.dtype)
    return in_base(spectral_function(renyi_of_spectrum, density_matrix(matrix), one), base)


def _check_kernel(kernel: Kernel) -> None:
    check_kernel(kernel)
    if not kernel.positive_definite:
        raise ValueError(
            "kernel must be positive definite, for a Gram matrix without negative eigenvalues; got "
            f"{type(kernel).__name__}."
        )


def _check_options(order: ArrayLike, base: ArrayLike | None) -> None:
    check_scalar(order=order)
    check_positive_finite(order=order)
    check_base(base)


def _samples(name: str, values: Numbers) -> Float[Array, "n d"]:
    return nan_if_lost(name, values, centered_samples(**{name: values})[1])


def _gram(kernel: Kernel, x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """K_ij/(n (K_ii K_jj)^½), of trace one."""
    gram = kernel(x)
    root = jax.lax.rsqrt(jnp.diagonal(gram))
    return gram * root[:, None] * root / x.shape[0]


def matrix_renyi_entropy(
    x: Float[Numbers, "n d"],
    *,
    order: ArrayLike = 1.01,
    kernel: Kernel = _GAUSSIAN,
    base: ArrayLike | None = None,
) -> Float[Array, ""]:
    """The matrix-based Rényi entropy log tr(A^α)/(1 − α) of samples.

    A_ij = k(x_i, x_j)/(n (k(x_i, x_i) k(x_j, x_j))^½): a functional of the eigenvalues of the
    normalised Gram matrix, which needs no density. From 0, if all rows coincide, to log n, if no
    two are similar: it measures diversity at the scale of the kernel, and is no estimate of a
    differential entropy. At order 1 it is the von Neumann entropy, whose exponential is the Vendi
    score.

    Time O(n³), memory O(n²). Differentiable, also where eigenvalues repeat; the bandwidth of a rule
    is constant.

    Args:
        x: samples.
        order: α > 0; the authors use 1.01, near Shannon's. At orders below 1 the derivative is
            dominated by the smallest eigenvalues. Those below the rounding, of 4√n ε times the
            largest, count as zero: at low orders a spectrum that decays fast needs float64.
        kernel: positive definite.
        base: the base of the logarithm, by default e.

    Returns:
        The entropy, in nats without `base`. NaN if x is not finite, or a traced order is out of
        range.

    Raises:
        ValueError: if x is empty or not a matrix, the kernel is not positive definite, or a number
            is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [0.0], [50.0], [50.0]])  # two kinds of rows
        >>> from divjax.kernels import Gaussian
        >>> round(float(matrix_renyi_entropy(x, kernel=Gaussian(1.0), base=2)), 4)
        1.0

    References:
        Sánchez Giraldo, Rao, Príncipe 2015, definition 2. Friedman, Dieng 2023: the Vendi score.
    """
    x = _samples("x", x)
    check_full_precision("x", x)
    _check_kernel(kernel)
    _check_options(order, base)
    return _entropy(x, kernel, order, as_optional_leaf(base=base))


@jax.jit
def _entropy(
    x: Float[Array, "n d"], kernel: Kernel, order: ArrayLike, base: ArrayLike | None
) -> Float[Array, ""]:
    order = jnp.asarray(order, x.dtype)
    return in_base(spectral_function(renyi_of_spectrum, _gram(kernel, x), order), base)


def matrix_renyi_mutual_information(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    *,
    order: ArrayLike = 1.01,
    kernel_x: Kernel = _GAUSSIAN,
    kernel_y: Kernel = _GAUSSIAN,
    base: ArrayLike | None = None,
) -> Float[Array, ""]:
    """The matrix-based Rényi mutual information S(A) + S(B) − S(A∘B/tr(A∘B)) of paired samples.

    S is `matrix_renyi_entropy`, A and B the normalised Gram matrices of x and y, and their Hadamard
    product is that of the product kernel, of the pairs. Not negative, but for independent samples
    not zero either: it grows with n until the kernels resolve no more.

    Time O(n³), memory O(n²). Differentiable, also where eigenvalues repeat; the bandwidth of a rule
    is constant.

    Args:
        x: samples.
        y: the samples paired with them, row by row.
        order: α > 0; the authors use 1.01, near Shannon's.
        kernel_x: positive definite, between rows of x.
        kernel_y: positive definite, between rows of y.
        base: the base of the logarithm, by default e.

    Returns:
        The mutual information, in nats without `base`. NaN if a sample is not finite, or a traced
        order is out of range.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of rows differ, a kernel is
            not positive definite, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x = jnp.array([[0.0], [0.0], [50.0], [50.0]])
        >>> y = jnp.array([[0.0], [50.0], [0.0], [50.0]])
        >>> kernels = {"kernel_x": Gaussian(1.0), "kernel_y": Gaussian(1.0)}
        >>> of = lambda z: matrix_renyi_mutual_information(x, z, base=2, **kernels)
        >>> round(float(of(x)), 4), abs(round(float(of(y)), 4))  # the same, and independent
        (1.0, 0.0)

    References:
        Sánchez Giraldo, Rao, Príncipe 2015, equations 8 and 9.
    """
    x, y = _samples("x", x), _samples("y", y)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x and y must have as many rows as each other; got {x.shape[0]} and {y.shape[0]}."
        )
    dtype = jnp.result_type(x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    check_full_precision("x", x)
    _check_kernel(kernel_x)
    _check_kernel(kernel_y)
    _check_options(order, base)
    return _mutual_information(x, y, kernel_x, kernel_y, order, as_optional_leaf(base=base))


@jax.jit
def _mutual_information(
    x: Float[Array, "n d"],
    y: Float[Array, "n e"],
    kernel_x: Kernel,
    kernel_y: Kernel,
    order: ArrayLike,
    base: ArrayLike | None,
) -> Float[Array, ""]:
    order = jnp.asarray(order, x.dtype)
    a, b = _gram(kernel_x, x), _gram(kernel_y, y)
    # The diagonals are 1/n, and so the trace of n A∘B is one.
    of_x, of_y, of_both = (
        spectral_function(renyi_of_spectrum, gram, order) for gram in (a, b, a * b * x.shape[0])
    )
    return in_base(of_x + of_y - of_both, base)
