"""The maximal correlation of two variables, over functions of each in a kernel's space.

With the centred functions f of x and g of y, masses w of the rows, and ε_x in units of the kernel,
the regularised correlation is

    Σ_i w_i f_i g_i / [(Σ_i w_i f_i² + ε_x ‖f‖²)(Σ_i w_i g_i² + ε_y ‖g‖²)]^½.

f is a combination of features φ with ‖f‖ that of its coefficients: f = Φc, where ΦΦᵀ is the kernel
matrix. Its maximum is the largest singular value of Ψ_xᵀΨ_y, where Ψ = Φ(ΦᵀWΦ + ε)^(−½) are the
features weighted by √w.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_count, check_positive_finite, check_scalar
from divjax.core.differentiation import with_slopes_of
from divjax.core.linalg import cholesky_of_rows, eigh, solve_triangular
from divjax.core.numerics import in_units_of, matmul, nan_unless
from divjax.core.pairwise import living_rows
from divjax.core.samples import Numbers
from divjax.information.kernel_dependence import kernel_arguments
from divjax.information.low_rank_kernels import low_rank_factor
from divjax.information.pair_sums import Variable, inner_products, kernel_variable
from divjax.information.paired_rows import PairedRows, masses_of, usable_rows
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.protocols import GramKernel, is_radial
from divjax.kernels.radial import Gaussian

__all__ = ["maximal_correlation"]


def maximal_correlation(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    kernel_x: GramKernel | None = Gaussian(MedianDistance()),
    kernel_y: GramKernel | None = Gaussian(MedianDistance()),
    ridge: ArrayLike = 0.02,
    rank: int | None = None,
) -> Float[Array, ""]:
    """The largest correlation of a function of x and a function of y: regularised kernel CCA.

    ρ = max_{f, g} cov(f, g) / [(var f + ε_x ‖f‖²)(var g + ε_y ‖g‖²)]^½ over functions of the
    kernels' spaces with norms ‖·‖: the largest singular value of (C_xx + ε_x)^(−½) C_xy
    (C_yy + ε_y)^(−½), with the covariance operators C. The maximal correlation of Hirschfeld,
    Gebelein and Rényi is its limit for ε → 0, slowly, as n → ∞ and characteristic kernels. It is
    zero only for independent variables, and one if a function of x is a function of y.

    ε_x = ridge · tr C_xx, so that units of a linear kernel do not matter. A small ridge finds
    correlations that the population does not have: of n distinct rows it is one for ridge → 0. A
    large one flattens functions. For linear kernels, `None`, and ridge → 0 it is the first
    canonical correlation; for categories, as one-hot columns, the second singular value of
    p_ij/(p_i. p_.j)^½ of their table.

    With kernels time O(n³), memory O(n²), for thousands of rows. With `rank` r the kernels are
    restricted to the span of r of their columns, as in `hsic_test`: time O(n r²), memory O(n r),
    that of its derivative O(n r²). For one feature and the default kernels 50 columns give all
    digits of float32. Linear kernels take O(n d²). Differentiable in rows, weights,
    bandwidths and ridge wherever the largest singular value is a single one, with the functions
    held at their optimum; the bandwidth of a rule is a constant.

    Args:
        x: rows of the first variable.
        y: rows of the second, of the same number.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        kernel_x: the kernel of x, or None for ⟨x, x′⟩. One that is positive definite for masses of
            sum zero alone, such as `kernels.Energy`, will do, as functions are centred.
        kernel_y: the kernel of y, or None for ⟨y, y′⟩.
        ridge: ε in units of the variance of the features, positive.
        rank: the largest rank of the kernels' factors, static, None for the whole matrices.

    Returns:
        ρ, in [0, 1]; zero by definition if x or y is constant. NaN if a row with weight is not
        finite, or if the ridge is lost in the rounding of the kernel: in float32 below 2·10⁻⁶ for
        linear kernels, and 3·10⁻⁵/tr C_xx for others with k(x, x) = 1.

    Raises:
        ValueError: if x or y is empty or not a matrix, their numbers of rows differ, weights do not
            fit, a kernel is invalid, the ridge is not positive, or a rank is given for a kernel
            that is not positive definite.

    Example:
        >>> import jax
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 300, 1))
        >>> bool(maximal_correlation(x, x**2) > 0.9)  # uncorrelated, and dependent
        True
        >>> bool(maximal_correlation(x, noise) < 0.4)
        True

    References:
        Bach, Jordan 2002, section 3: kernel canonical correlation, there with (C + ε/2)² for
        C(C + ε). Fukumizu, Bach, Gretton 2007: the operator, and its consistency. Rényi 1959: the
        maximal correlation.
    """
    kernels = kernel_x, kernel_y
    check_scalar(ridge=ridge)
    check_positive_finite(ridge=ridge)
    rows, dtype = kernel_arguments(x, y, weights, kernels)
    if rank is not None:
        check_count(1, rank=rank)
        for name, kernel in zip(("kernel_x", "kernel_y"), kernels, strict=True):
            # A kernel that is positive definite only for masses of sum zero has no Cholesky factor.
            if kernel is not None and is_radial(kernel) and not kernel.positive_definite:
                raise ValueError(
                    f"{name} must be positive definite for factors of a rank; got "
                    f"{type(kernel).__name__}."
                )
    return _maximal_correlation(rows, kernels, ridge, rank=rank).astype(dtype)


# A variance of features is known up to this multiple of epsilon, relative to the kernel's values.
_ROUNDING = 16
# So many times larger must a ridge be, for the rounding of small eigenvalues not to be correlated.
_RESOLUTION = 16


class _Whitened(NamedTuple):
    """Functions that are orthonormal in the regularised covariance.

    Attributes:
        values: Ψ, the functions at each row, in units of the root of its mass.
        optimal: maps another variable's function, over the correlation and in the same units, to
            the coefficients of the function that is optimal for it.
    """

    values: Float[Array, "n r"]
    optimal: Callable[[Float[Array, " n"]], Float[Array, " _"]]


class _Features(NamedTuple):
    """The functions Φc of one variable, by features of its rows."""

    features: Float[Array, "n r"]

    def variance(self, masses: Float[Array, " n"]) -> Float[Array, ""]:
        """The trace of the covariance of the features."""
        # About the mean before squares are taken: E f² − (E f)² would cancel.
        centered = self.features - matmul(masses, self.features)
        return jnp.dot(masses, jnp.sum(jnp.square(centered), axis=1))

    def least_variance(self, masses: Float[Array, " n"]) -> Float[Array, ""]:
        """What rounding may leave of the variance of a constant."""
        squares = jnp.sum(jnp.square(self.features), axis=1)
        return _rounding_unit(masses) ** 2 * jnp.max(jnp.where(masses > 0, squares, 0))

    def function(
        self, coefficients: Float[Array, " r"], masses: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """The centred function with these coefficients, and the square of its norm."""
        values = matmul(self.features, coefficients)
        return values - jnp.dot(masses, values), jnp.sum(jnp.square(coefficients))

    def whitened(self, masses: Float[Array, " n"], epsilon: Float[Array, ""]) -> _Whitened:
        """By Cholesky's factor L of the covariance plus ε: Ψ = ΦL⁻ᵀ, in units of the root."""
        root = jnp.sqrt(masses)
        rows = root[:, None] * (self.features - matmul(masses, self.features))

        def gram(basis: Float[Array, "r r"]) -> Float[Array, "r r"]:
            moved = matmul(rows, basis.T)
            return matmul(moved.T, moved) + epsilon * matmul(basis, basis.T)

        factor = cholesky_of_rows(gram, jnp.eye(rows.shape[1], dtype=rows.dtype))
        # ΨᵀΨ is L⁻¹ ΦᵀWΦ L⁻ᵀ, with eigenvalues λ/(λ + ε) below one: so are the correlations.
        values = solve_triangular(factor, rows.T).T
        return _Whitened(
            values,
            lambda target: solve_triangular(factor, matmul(values.T, target), transposed=True),
        )

    def with_unused(
        self, coefficients: Float[Array, " r"], limit: Float[Array, " n"], masses: Array
    ) -> Float[Array, " r"]:
        """The coefficients, of which none belongs to a row."""
        return coefficients


class _Gram(NamedTuple):
    """The functions of one variable by its kernel matrix: f = K(wa), a at each row."""

    gram: Float[Array, "n n"]

    def variance(self, masses: Float[Array, " n"]) -> Float[Array, ""]:
        """The trace of the covariance of the kernel's features."""
        mean = jnp.dot(masses, matmul(self.gram, masses))
        return jnp.dot(masses, jnp.diagonal(self.gram)) - mean

    def least_variance(self, masses: Float[Array, " n"]) -> Float[Array, ""]:
        """What rounding may leave of the variance of a constant."""
        used = (masses > 0)[:, None] & (masses > 0)
        return _rounding_unit(masses) * jnp.max(jnp.where(used, jnp.abs(self.gram), 0))

    def function(
        self, coefficients: Float[Array, " n"], masses: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """The centred function with these coefficients, and the square of its norm."""
        shares = masses * coefficients
        # Coefficients of sum zero, for which the norm under K is that under the centred matrix.
        shares = shares - masses * jnp.sum(shares)
        values = matmul(self.gram, shares)
        return values - jnp.dot(masses, values), jnp.dot(shares, values)

    def whitened(self, masses: Float[Array, " n"], epsilon: Float[Array, ""]) -> _Whitened:
        """By the spectrum of the centred matrix in units of roots: Ψ = V(λ/(λ + ε))^½."""
        root = jnp.sqrt(masses)
        means = matmul(self.gram, masses)
        centered = self.gram - means[:, None] - means + jnp.dot(masses, means)
        values, vectors = eigh(root[:, None] * centered * root)
        # Rounding may make eigenvalues of zero negative, with roots of NaN.
        values = jnp.maximum(values, 0)

        def optimal(target: Float[Array, " n"]) -> Float[Array, " n"]:
            solved = matmul(vectors, matmul(vectors.T, target) / (values + epsilon))
            # From units of √w to the coefficient at each row, zero for a row without mass.
            return jnp.where(masses > 0, solved / jnp.where(masses > 0, root, 1), 0)

        return _Whitened(vectors * jnp.sqrt(values / (values + epsilon)), optimal)

    def with_unused(
        self, coefficients: Float[Array, " n"], limit: Float[Array, " n"], masses: Array
    ) -> Float[Array, " n"]:
        """The coefficients, those of rows without mass as their mass vanishes, for derivatives."""
        return jnp.where(masses > 0, coefficients, limit)


def _rounding_unit(masses: Float[Array, " n"]) -> float:
    return _ROUNDING * float(jnp.finfo(masses.dtype).eps)


def _space(
    kernel: GramKernel | None,
    values: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    rank: int | None,
) -> _Features | _Gram:
    if kernel is None:
        scaled, largest = usable_rows(values, weights)
        variable = Variable(in_units_of(largest, scaled)[0], inner_products)
        # Rows are features themselves, exactly, unless there are fewer rows than features.
        if variable.rows.shape[1] <= len(values):
            return _Features(variable.rows)
    else:
        variable = kernel_variable(kernel, values, weights)
    if rank is not None:
        # Rows of weight zero must not be pivots.
        living = variable.rows if weights is None else living_rows(variable.rows, weights)
        return _Features(low_rank_factor(variable._replace(rows=living), rank))
    itself = jnp.eye(len(values), dtype=bool)
    return _Gram(variable.function(variable.rows, variable.rows, itself))


@functools.partial(jax.jit, static_argnames="rank")
def _maximal_correlation(
    rows: PairedRows,
    kernels: tuple[GramKernel | None, GramKernel | None],
    ridge: ArrayLike,
    *,
    rank: int | None,
) -> Float[Array, ""]:
    """`maximal_correlation` after its checks."""
    masses = masses_of(rows.weights, len(rows.variables[0]), rows.variables[0].dtype)
    spaces = [
        _space(kernel, values, rows.weights, rank)
        for kernel, values in zip(kernels, rows.variables, strict=True)
    ]
    ridge = jnp.asarray(ridge, masses.dtype)
    variances = [space.variance(masses) for space in spaces]
    epsilons = [ridge * variance for variance in variances]

    # The functions are found without derivatives: at their optimum the correlation does not depend
    # on them to first order.
    fixed = jax.lax.stop_gradient((spaces, masses, variances, epsilons))
    value, coefficients, constant = _optimal_functions(*fixed, jax.lax.stop_gradient(ridge))
    functions = [
        space.function(chosen, masses) for space, chosen in zip(spaces, coefficients, strict=True)
    ]
    (f, norm_f), (g, norm_g) = functions
    # cov(f, g) less ρ/2 times each regularised variance, which are one: the Lagrangian.
    slopes = jnp.dot(masses, f * g) - value / 2 * (
        jnp.dot(masses, f**2 + g**2) + epsilons[0] * norm_f + epsilons[1] * norm_g
    )
    return with_slopes_of(jnp.where(constant, 0, slopes), value)


def _optimal_functions(
    spaces: Sequence[_Features | _Gram],
    masses: Float[Array, " n"],
    variances: Sequence[Float[Array, ""]],
    epsilons: Sequence[Float[Array, ""]],
    ridge: Float[Array, ""],
) -> tuple[Float[Array, ""], list[Float[Array, " _"]], Bool[Array, ""]]:
    """The correlation, the coefficients of both functions, and whether a variable is constant."""
    least = [space.least_variance(masses) for space in spaces]
    # False for NaN.
    constants = [one <= low for one, low in zip(variances, least, strict=True)]
    constant = constants[0] | constants[1]
    # A spectrum is known up to rounding of its largest eigenvalue, or of the kernel's values.
    resolved = (ridge >= _rounding_unit(masses)) & (ridge < jnp.inf)
    for one, low in zip(epsilons, least, strict=True):
        resolved = resolved & (one >= _RESOLUTION * low)
    resolved = constant & (ridge > 0) | resolved
    # A constant variable has ε = 0, with which its covariance would be singular.
    epsilons = [jnp.where(constant, 1, one) for one in epsilons]

    whitened = [
        space.whitened(masses, epsilon) for space, epsilon in zip(spaces, epsilons, strict=True)
    ]
    product = matmul(whitened[0].values.T, whitened[1].values)
    # From the smaller side: its square has the fewer rows.
    wide = product.shape[0] < product.shape[1]
    product = product.T if wide else product
    direction = eigh(matmul(product.T, product))[1][:, -1]
    # The length of the image is accurate to second order in the direction.
    image = matmul(product, direction)
    value = jnp.sqrt(jnp.sum(image**2))
    image = image / jnp.where(value > 0, value, 1)
    left, right = (direction, image) if wide else (image, direction)
    value = nan_unless(resolved, jnp.where(constant, 0, jnp.minimum(value, 1)))

    divisor = jnp.where(value > 0, value, 1)
    of_x, of_y = whitened
    coefficients = [
        of_x.optimal(matmul(of_y.values, right) / divisor),
        of_y.optimal(matmul(of_x.values, left) / divisor),
    ]
    f, g = (
        space.function(chosen, masses)[0]
        for space, chosen in zip(spaces, coefficients, strict=True)
    )
    # At the optimum ε_x a = g/ρ − f at each row with mass. The same equation continues a to rows
    # without.
    limits = (g / divisor - f) / epsilons[0], (f / divisor - g) / epsilons[1]
    coefficients = [
        space.with_unused(chosen, limit, masses)
        for space, chosen, limit in zip(spaces, coefficients, limits, strict=True)
    ]
    return value, coefficients, constant
