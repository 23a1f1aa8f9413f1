"""Dependence of paired samples by two kernels: HSIC, CKA, Cauchy–Schwarz mutual information."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_flag
from divjax.core.numerics import in_base, in_units_of, matmul
from divjax.core.samples import Numbers
from divjax.information.centered_products import (
    CenteredSums,
    centered_product,
    correlation,
    square_or_nan,
)
from divjax.information.distance_dependence import least_square
from divjax.information.pair_sums import (
    PairSums,
    Variable,
    inner_products,
    kernel_variable,
    pair_sums,
)
from divjax.information.paired_rows import (
    PairedRows,
    check_debias,
    masses_of,
    paired_rows,
    usable_rows,
)
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import less_constant
from divjax.kernels.pooled import living_part
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial
from divjax.kernels.radial import Gaussian

__all__ = ["cauchy_schwarz_mutual_information", "cka", "hsic", "kernel_arguments", "kernel_sums_of"]


def hsic(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    kernel_x: GramKernel = Gaussian(MedianDistance()),
    kernel_y: GramKernel = Gaussian(MedianDistance()),
    debias: bool = False,
) -> Float[Array, ""]:
    """The Hilbert–Schmidt independence criterion of paired rows: zero if they are independent.

    HSIC = tr(K H L H)/n² with the kernel matrices K of x and L of y and H = I − 11ᵀ/n: the squared
    norm of the covariance of both feature maps, and the squared MMD between the joint distribution
    and the product of its marginals under the kernel k(x, x′) l(y, y′). In the population it is
    zero only for independent variables if both kernels are characteristic, as all with a bandwidth
    are.

    The V-statistic is non-negative, with a bias of order 1/n. With `debias` it is the U-statistic
    of order four, unbiased, that may be negative; of weighted rows as in `distance_covariance`,
    which is this function with two energy kernels. A kernel's rule is evaluated once for each
    variable, at its rows with weight.

    Time O(n² (d + e)), memory O(n (d + e)) plus blocks of the budget of `divjax.core.pairwise`,
    where n = 50 000 needs less than 1 GB. Differentiable in rows, weights and bandwidths; that of a
    rule is a constant.

    Args:
        x: rows of the first variable.
        y: rows of the second, of the same number.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        kernel_x: the kernel of x.
        kernel_y: the kernel of y.
        debias: whether to return the unbiased statistic.

    Returns:
        HSIC, in the product of both kernels' units. NaN if a row with weight is not finite.

    Raises:
        ValueError: if x or y is empty or not a matrix, their numbers of rows differ, weights do not
            fit, a kernel is invalid, or fewer than four rows are to be debiased.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 300, 1))
        >>> independent = float(hsic(x, y, debias=True))
        >>> float(hsic(x, x**2 + y, debias=True)) > 20 * abs(independent)
        True

    References:
        Gretton, Bousquet, Smola, Schölkopf 2005, definition 1. Song et al. 2012, theorem 2: the
        unbiased one. Sejdinovic, Sriperumbudur, Gretton, Fukumizu 2013, theorem 24: distance
        covariance.
    """
    kernels = kernel_x, kernel_y
    rows, dtype = kernel_arguments(x, y, weights, kernels)
    check_debias(len(rows.variables[0]), debias)
    return _hsic(rows, kernels, debias=debias).astype(dtype)


def cka(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    kernel_x: GramKernel | None = None,
    kernel_y: GramKernel | None = None,
    debias: bool = False,
) -> Float[Array, ""]:
    """Centred kernel alignment, HSIC(x, y) / (HSIC(x, x) HSIC(y, y))^½: how alike two features are.

    In [0, 1] for positive definite kernels. The linear one, the default, is ‖YᵀX‖²_F / (‖XᵀX‖_F
    ‖YᵀY‖_F) of centred columns, one if y is x up to a shift, a factor and a rotation. With `debias`
    it is a ratio of unbiased HSIC, which may be negative: with more features than rows the biased
    one is near one, whatever the features are.

    The linear one takes time O(n d e + n d² + n e²), or as `hsic`, if there are more features than
    rows.

    Args:
        x: rows of the first features, such as a layer's activations.
        y: rows of the second features, of the same examples.
        weights: weights of the rows, non-negative, with any sum, uniform by default. Rows of weight
            zero may hold anything.
        kernel_x: the kernel of x, or None for ⟨x, x′⟩.
        kernel_y: the kernel of y, or None for ⟨y, y′⟩.
        debias: whether to use unbiased HSIC.

    Returns:
        CKA. Zero by definition if x or y is constant. NaN if a row with weight is not finite.

    Raises:
        ValueError: as `hsic`.

    Example:
        >>> import jax
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 50, 200))
        >>> round(float(cka(x, noise)), 1), round(abs(float(cka(x, noise, debias=True))), 1)
        (0.8, 0.0)

    References:
        Kornblith, Norouzi, Lee, Hinton 2019, eqs. 3 and 4. Nguyen, Raghu, Kornblith 2021, section
        2: the unbiased one.
    """
    kernels = kernel_x, kernel_y
    rows, dtype = kernel_arguments(x, y, weights, kernels)
    check_debias(len(rows.variables[0]), debias)
    return _cka(rows, kernels, debias=debias).astype(dtype)


def cauchy_schwarz_mutual_information(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    kernel_x: GramKernel = Gaussian(MedianDistance()),
    kernel_y: GramKernel = Gaussian(MedianDistance()),
    normalized: bool = False,
    base: ArrayLike | None = None,
) -> Float[Array, ""]:
    """The Cauchy–Schwarz divergence of the joint density from the product of its marginals.

    I = log ∫ p² + log ∫ p_x² p_y² − 2 log ∫ p p_x p_y, of kernel density estimates log
    (1ᵀ(K∘L)1/n²) + log (1ᵀK1 1ᵀL1/n⁴) − 2 log (1ᵀKL1/n³), where K and L are the kernel matrices,
    each of a Gaussian kernel with √2 times the bandwidth of the densities. Not negative, and zero
    if p = p_x p_y. It is the divergence of smoothed densities, and the diagonal of K adds a bias of
    order 1/n, which is large for small bandwidths.

    Time and memory are those of `hsic`.

    Args:
        x: rows of the first variable.
        y: rows of the second, of the same number.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        kernel_x: the kernel of x, positive.
        kernel_y: the kernel of y, positive.
        normalized: whether to divide by (I(x, x) I(y, y))^½, which makes I(x, x) one.
        base: the base of the logarithm, None for nats.

    Returns:
        I, in nats or in units of the base, or its normalised form, which has no unit and is zero by
        definition if x or y is constant. NaN if a row with weight is not finite.

    Raises:
        ValueError: as `hsic`, or for a kernel with negative values.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 300, 1))
        >>> kernels = {"kernel_x": Gaussian(1.0), "kernel_y": Gaussian(1.0)}
        >>> independent = float(cauchy_schwarz_mutual_information(x, y, **kernels))
        >>> float(cauchy_schwarz_mutual_information(x, x + y, **kernels)) > 10 * independent
        True

    References:
        Príncipe 2010, section 2.8. Yu, Yu, Løkse, Jenssen, Príncipe 2024: the normalised form.
    """
    kernels = kernel_x, kernel_y
    check_flag(normalized=normalized)
    rows, dtype = kernel_arguments(x, y, weights, kernels)
    for name, kernel in zip(("kernel_x", "kernel_y"), kernels, strict=True):
        if is_radial(kernel) and not kernel.positive_definite:
            raise ValueError(
                f"{name} must be positive, as that of a density; got {type(kernel).__name__}."
            )
    value = _cauchy_schwarz(rows, kernels, normalized=normalized)
    return in_base(value, None if normalized else base).astype(dtype)


def kernel_arguments(
    x: Numbers,
    y: Numbers,
    weights: Numbers | None,
    kernels: tuple[GramKernel | None, GramKernel | None],
) -> tuple[PairedRows, jnp.dtype]:
    """The rows, checked; variables of kernels that are not radial stay where they are."""
    located = []
    for name, kernel in zip("xy", kernels, strict=True):
        if kernel is None:
            continue
        check_gram_kernel(kernel, f"kernel_{name}")
        if not is_radial(kernel):
            located.append(name)
    return paired_rows(weights, located=located, x=x, y=y)


def kernel_sums_of(
    rows: PairedRows,
    kernels: Sequence[GramKernel | None],
    pairs: Sequence[tuple[int, int]],
    *,
    debias: bool,
    centered: bool = True,
) -> tuple[PairSums, Float[Array, " n"]]:
    """The sums for pairs of variables, each with its kernel or inner products, and the masses.

    If only doubly centred matrices count, they are `centered` ahead of rounding.
    """
    variables = []
    for values, kernel in zip(rows.variables, kernels, strict=True):
        if kernel is None:
            # CKA does not depend on the unit, in which inner products stay within the dtype's
            # range.
            scaled, largest = usable_rows(values, rows.weights)
            variables.append(Variable(in_units_of(largest, scaled)[0], inner_products))
        else:
            variables.append(kernel_variable(kernel, values, rows.weights, centered=centered))
    masses = masses_of(rows.weights, len(rows.variables[0]), rows.variables[0].dtype)
    return pair_sums(variables, masses, pairs, diagonal=not debias), masses


@functools.partial(jax.jit, static_argnames="debias")
def _hsic(
    rows: PairedRows, kernels: tuple[GramKernel, GramKernel], *, debias: bool
) -> Float[Array, ""]:
    """`hsic` after its checks."""
    sums, masses = kernel_sums_of(rows, kernels, [(0, 1)], debias=debias)
    return centered_product(sums.products[0], masses, debias=debias)


_PAIRS = [(0, 1), (0, 0), (1, 1)]


@functools.partial(jax.jit, static_argnames="debias")
def _cka(
    rows: PairedRows, kernels: tuple[GramKernel | None, GramKernel | None], *, debias: bool
) -> Float[Array, ""]:
    """`cka` after its checks."""
    n = len(rows.variables[0])
    widest = max(values.shape[1] for values in rows.variables)
    # ‖YᵀX‖²_F needs no matrix of all pairs. With more features than rows that matrix is the
    # smaller.
    if kernels == (None, None) and widest <= n:
        products, masses = _linear_sums(rows, debias=debias)
        # A constant column is exactly zero about its centre: there is no rounding to allow for.
        least = [jnp.zeros((), masses.dtype)] * 2
    else:
        sums, masses = kernel_sums_of(rows, kernels, _PAIRS, debias=debias)
        products = sums.products
        least = [least_square(jnp.dot(masses, mean)) for mean in sums.means]
    product = centered_product(products[0], masses, debias=debias)
    squares = [
        square_or_nan(one, masses, low, debias=debias)
        for one, low in zip(products[1:], least, strict=True)
    ]
    return correlation(product, (squares[0], squares[1]), (least[0], least[1]))


def _linear_sums(
    rows: PairedRows, *, debias: bool
) -> tuple[list[CenteredSums], Float[Array, " n"]]:
    """The sums of inner products for x and y, x and x, y and y, by products of features."""
    n, dtype = len(rows.variables[0]), rows.variables[0].dtype
    masses = masses_of(rows.weights, n, dtype)
    centered = []
    for values in rows.variables:
        usable, largest = usable_rows(values, rows.weights)
        usable = in_units_of(largest, usable)[0]
        # By the weighted mean, so that the inner products' row means under the masses are zero.
        centered.append(usable - matmul(masses, usable))
    # Row means of inner products of centred rows are zero, without those of a row and itself they
    # are −w_i |x_i|².
    own = [masses * jnp.sum(values**2, axis=1) for values in centered]
    sums = []
    for i, j in _PAIRS:
        cross = matmul((masses[:, None] * centered[i]).T, centered[j])
        within = jnp.sum(cross**2)
        if debias:
            # Less the pairs i = j, and the products of row means, which are w_i times as much.
            within = within - jnp.sum((1 + masses) * own[i] * own[j])
        means = [-own[k] if debias else jnp.zeros_like(masses) for k in (i, j)]
        sums.append(CenteredSums(within, *means))
    return sums, masses


@functools.partial(jax.jit, static_argnames="normalized")
def _cauchy_schwarz(
    rows: PairedRows, kernels: tuple[GramKernel, GramKernel], *, normalized: bool
) -> Float[Array, ""]:
    """`cauchy_schwarz_mutual_information` after its checks, in nats."""
    pairs = _PAIRS if normalized else _PAIRS[:1]
    # If a kernel is wide for its variable, all values are near the constant, and rounding would
    # destroy their differences.
    contrasts, constants = [], []
    for kernel, variable in zip(kernels, rows.variables, strict=True):
        contrast, constant = kernel, jnp.zeros((), variable.dtype)
        if is_radial(kernel):
            living = living_part(usable_rows(variable, rows.weights)[0], rows.weights)
            contrast, constant = less_constant(kernel, living)
        contrasts.append(contrast)
        constants.append(constant)
    sums, masses = kernel_sums_of(rows, contrasts, pairs, debias=False, centered=False)
    excesses = [jnp.dot(masses, mean) for mean in sums.means]
    totals = [one + constant for one, constant in zip(excesses, constants, strict=True)]
    values = []
    for (i, j), one in zip(pairs, sums.products, strict=True):
        # In units of ∫ p_x² ∫ p_y² the other terms are 1 + τ and 1 + 2τ + HSIC: near one for nearly
        # independent variables, where logarithms of the terms themselves would cancel. Their ratio
        # (1 + 2τ + HSIC)/(1 + τ)² is 1 + (HSIC − τ²)/(1 + τ)².
        unit = totals[i] * totals[j]
        deviations = [sums.means[k] - excesses[k] for k in (i, j)]
        tau = jnp.dot(masses, deviations[0] * deviations[1]) / unit
        joint = centered_product(one, masses, debias=False) / unit
        values.append(jnp.log1p((joint - tau**2) / (1 + tau) ** 2))
    if not normalized:
        return values[0]
    # For a constant variable only the rounding of its kernel's values remains.
    least = [least_square(one / total) for one, total in zip(excesses, totals, strict=True)]
    return correlation(values[0], (values[1], values[2]), (least[0], least[1]))
