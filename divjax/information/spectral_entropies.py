"""Entropies of density matrices: von Neumann's, and Rényi's of normalised Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_optional_leaf
from divjax.core.checks import check_base, check_full_precision, check_positive_finite, check_scalar
from divjax.core.numerics import in_base, safe_sqrt
from divjax.core.samples import Numbers, as_samples
from divjax.core.simplex import within_range
from divjax.information.paired_rows import PairedRows, masses_of, paired_rows
from divjax.information.spectral_functions import (
    density_matrix,
    renyi_of_spectrum,
    spectral_function,
)
from divjax.kernels import Gaussian, Kernel, MedianDistance
from divjax.kernels.pooled import living_part
from divjax.kernels.protocols import check_kernel

__all__ = ["matrix_renyi_entropy", "matrix_renyi_mutual_information", "von_neumann_entropy"]

_GAUSSIAN = Gaussian(MedianDistance())


def von_neumann_entropy(
    matrix: Float[Numbers, "d d"], *, base: ArrayLike | None = None
) -> Float[Array, ""]:
    """The von Neumann entropy −tr(ρ log ρ) of a matrix that is normalised to trace one.

    The Shannon entropy of the eigenvalues of ρ = A/tr A, from 0 for rank one to log d for a
    multiple of the identity. For a covariance matrix its exponential is the effective rank.
    Multiplying the matrix by a positive number changes nothing. Weights of rows are in the matrix:
    of a weighted covariance, or of a Gram matrix with the entries (w_i w_j)^½ k(x_i, x_j).

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
    # Rényi's entropy of order one, by its expansion, is that of Shannon and von Neumann.
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


def _rows(weights: Numbers | None, **variables: Numbers) -> PairedRows:
    rows, dtype = paired_rows(weights, **variables)
    # The rows are in single precision or more by now: the check is of the dtype that was given.
    check_full_precision("x", np.zeros(0, dtype))
    return rows


def _correlations(
    kernel: Kernel, x: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> Float[Array, "n n"]:
    """K_ij/(K_ii K_jj)^½, of ones on the diagonal, for rows of weight zero those of others."""
    # Padding may hold NaN, which a weight of zero would not cancel: 0 · NaN is NaN.
    gram = kernel(living_part(x, weights))
    root = jax.lax.rsqrt(jnp.diagonal(gram))
    return gram * root[:, None] * root


def _weighted(
    correlations: Float[Array, "n n"], weights: Float[Array, " n"] | None
) -> Float[Array, "n n"]:
    """(w_i w_j)^½ K_ij, of trace one: the spectrum of the rows, each repeated w_i times."""
    n = correlations.shape[0]
    if weights is None:
        return correlations / n
    # Rows of weight zero are eigenvectors with eigenvalue zero.
    root = safe_sqrt(masses_of(weights, n, correlations.dtype))
    return correlations * root[:, None] * root


def matrix_renyi_entropy(
    x: Float[Numbers, "n d"],
    weights: Float[Numbers, " n"] | None = None,
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

    With weights of sum one A_ij = (w_i w_j)^½ k(x_i, x_j)/(k(x_i, x_i) k(x_j, x_j))^½, whose
    eigenvalues but zeros are those of rows that are repeated in these proportions.

    Time O(n³), memory O(n²). Differentiable, also where eigenvalues repeat; the bandwidth of a rule
    is constant, and counts each row with weight as any other.

    Args:
        x: samples.
        weights: their weights, non-negative, with any sum, uniform by default. Rows of weight zero
            may hold anything.
        order: α > 0; the authors use 1.01, near Shannon's. At orders below 1 the derivative is
            dominated by the smallest eigenvalues. Those below the rounding, of 4√n ε times the
            largest, count as zero: at low orders a spectrum that decays fast needs float64.
        kernel: positive definite.
        base: the base of the logarithm, by default e.

    Returns:
        The entropy, in nats without `base`. NaN if a row with weight is not finite, or a traced
        order is out of range.

    Raises:
        ValueError: if x is empty or not a matrix, weights do not fit, the kernel is not positive
            definite, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [0.0], [50.0], [50.0]])  # two kinds of rows
        >>> from divjax.kernels import Gaussian
        >>> round(float(matrix_renyi_entropy(x, kernel=Gaussian(1.0), base=2)), 4)
        1.0

    References:
        Sánchez Giraldo, Rao, Príncipe 2015, definition 2. Friedman, Dieng 2023: the Vendi score.
    """
    rows = _rows(weights, x=x)
    _check_kernel(kernel)
    _check_options(order, base)
    return _entropy(rows, kernel, order, as_optional_leaf(base=base))


@jax.jit
def _entropy(
    rows: PairedRows, kernel: Kernel, order: ArrayLike, base: ArrayLike | None
) -> Float[Array, ""]:
    ((x,), weights) = rows
    order = jnp.asarray(order, x.dtype)
    matrix = _weighted(_correlations(kernel, x, weights), weights)
    return in_base(spectral_function(renyi_of_spectrum, matrix, order), base)


def matrix_renyi_mutual_information(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    order: ArrayLike = 1.01,
    kernel_x: Kernel = _GAUSSIAN,
    kernel_y: Kernel = _GAUSSIAN,
    base: ArrayLike | None = None,
) -> Float[Array, ""]:
    """The matrix-based Rényi mutual information S(A) + S(B) − S(A∘B/tr(A∘B)) of paired samples.

    S is `matrix_renyi_entropy`, A and B the normalised Gram matrices of x and y, and their Hadamard
    product is that of the product kernel, of the pairs. Not negative, but for independent samples
    not zero either: it grows with n until the kernels resolve no more. Weights are those of the
    pairs, as if each was repeated in these proportions.

    Time O(n³), memory O(n²). Differentiable, also where eigenvalues repeat; the bandwidth of a rule
    is constant.

    Args:
        x: samples.
        y: the samples paired with them, row by row.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        order: α > 0; the authors use 1.01, near Shannon's.
        kernel_x: positive definite, between rows of x.
        kernel_y: positive definite, between rows of y.
        base: the base of the logarithm, by default e.

    Returns:
        The mutual information, in nats without `base`. NaN if a row with weight is not finite, or a
        traced order is out of range.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of rows differ, weights do not
            fit, a kernel is not positive definite, or a number is out of range.

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
    rows = _rows(weights, x=x, y=y)
    _check_kernel(kernel_x)
    _check_kernel(kernel_y)
    _check_options(order, base)
    kernels = kernel_x, kernel_y
    return _mutual_information(rows, kernels, order, as_optional_leaf(base=base))


@jax.jit
def _mutual_information(
    rows: PairedRows,
    kernels: tuple[Kernel, Kernel],
    order: ArrayLike,
    base: ArrayLike | None,
) -> Float[Array, ""]:
    order = jnp.asarray(order, rows.variables[0].dtype)
    a, b = (
        _correlations(kernel, values, rows.weights)
        for kernel, values in zip(kernels, rows.variables, strict=True)
    )
    # By Schur's theorem A∘B is positive semidefinite, and its diagonal is one already.
    of_x, of_y, of_both = (
        spectral_function(renyi_of_spectrum, _weighted(one, rows.weights), order)
        for one in (a, b, a * b)
    )
    return in_base(of_x + of_y - of_both, base)
