"""Cauchy–Schwarz divergences of two samples, and of two samples of a response given a cause."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.checks import check_shape
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import less_constant
from divjax.kernels.log_means import bounded_exp, log_mean_of_pairs, log_own_mean, log_sum
from divjax.kernels.means import about_origin, block_values, mean_of_pairs, own_mean
from divjax.kernels.pooled import (
    TwoMeasures,
    TwoSamples,
    as_measures,
    pooled_rows,
    resolved_at,
    two_samples,
)
from divjax.kernels.protocols import GramKernel, is_radial
from divjax.kernels.radial import Gaussian

__all__ = ["cauchy_schwarz", "conditional_cauchy_schwarz"]


def _check_positive(name: str, kernel: GramKernel) -> None:
    """Raise `ValueError` for a radial kernel of negative values, which have no logarithms."""
    if is_radial(kernel) and not kernel.positive_definite:
        raise ValueError(
            f"{name} must be positive, for logarithms of its means; got {type(kernel).__name__}."
        )


def cauchy_schwarz(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    debias: bool = False,
) -> Float[Array, ""]:
    """The Cauchy–Schwarz divergence log E k(X, X′) + log E k(Y, Y′) − 2 log E k(X, Y).

    For densities it is −log ((∫ p q)²/(∫ p² ∫ q²)), symmetric, zero only if p = q, and finite for
    samples that are not absolutely continuous to each other. The mean of a Gaussian kernel over
    pairs is, up to a factor that cancels, ∫ p̂ q̂ of kernel density estimates of bandwidth σ/√2: the
    V-statistic is their exact divergence. In terms of mean embeddings it is −log cos² of the angle
    between them, whose squared distance is `mmd`.

    The pairs i = j raise ∫ p̂² by the share of k(0)/n in it, which dominates for small bandwidths:
    with n = 3000 in the plane and σ = 0.1 the V-statistic is .71 where .47 is true. With `debias`
    they are left out: each mean is then unbiased, and the divergence up to O(1/n), and possibly
    negative. Means are taken in log space, so that samples far apart, between which the kernel
    underflows, have a finite divergence and derivative.

    Time O((n + m)² d), memory one block of the budget of `divjax.core.pairwise`.

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        kernel: a positive kernel of `divjax.kernels`, or one's own. A bandwidth rule is evaluated
            at both samples together.
        debias: whether to leave out the pairs i = j.

    Returns:
        The divergence in nats. Infinite if a kernel of one's own, without logarithms, underflows
        for all pairs; NaN if it does so within a sample, for the mean of a kernel that is negative,
        a row with weight that is not finite, or a U-statistic of one row with all of the weight.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, the kernel is negative, or `debias` is set for a single row.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, y = jnp.zeros((1, 2)), jnp.full((1, 2), 30.0)
        >>> float(cauchy_schwarz(x, y, kernel=Gaussian(1.0)))  # 2 · 30² for two points
        1800.0

    References:
        Jenssen, Principe, Erdogmus, Eltoft 2006, eq. 7 and 12. Príncipe 2010, section 2.4.
    """
    samples = two_samples(kernel, x, y, a, b, debias=debias)
    _check_positive("kernel", kernel)
    return _cauchy_schwarz(kernel, samples, debias=debias)


@functools.partial(jax.jit, static_argnames="debias")
def _cauchy_schwarz(kernel: GramKernel, samples: TwoSamples, *, debias: bool) -> Float[Array, ""]:
    """`cauchy_schwarz` after its checks."""
    kernel = resolved_at(kernel, samples)
    x, y, a, b = as_measures(kernel, samples)

    def by_logarithms() -> Float[Array, ""]:
        of_x, of_y = (log_own_mean(kernel, *one, debias=debias) for one in ((x, a), (y, b)))
        return of_x + of_y - 2 * log_mean_of_pairs(kernel, x, y, a, b)

    if not is_radial(kernel):
        return by_logarithms().astype(samples.dtype)
    contrast, constant = less_constant(kernel, pooled_rows(samples))
    wide = constant > 0

    def excesses() -> Float[Array, " 3"]:
        # Under `vmap` both branches are evaluated, hence no division by zero.
        own = [own_mean(contrast, *one, debias=debias) for one in ((x, a), (y, b))]
        means = jnp.stack([*own, mean_of_pairs(contrast, x, y, a, b)])
        return means / jnp.where(wide, constant, 1)

    # E k = c (1 + E[k − c]/c), and log c enters with 1 + 1 − 2 = 0. If the kernel is wide for the
    # data, all means are near the constant c, and their logarithms would cancel. A kernel wide for
    # most rows may be narrow between the samples: a mean far below c is one of small values, which
    # the difference has lost, and whose logarithm does not underflow.
    relative = jax.lax.cond(wide, excesses, lambda: jnp.full(3, -1, x.dtype))
    near = jnp.all(relative > -0.5)

    def by_contrasts() -> Float[Array, ""]:
        of_x, of_y, of_both = jnp.log1p(jnp.where(near, relative, 0))
        return of_x + of_y - 2 * of_both

    return jax.lax.cond(near, by_contrasts, by_logarithms).astype(samples.dtype)


def conditional_cauchy_schwarz(
    x: Float[Numbers, "n d"],
    response_x: Float[Numbers, "n e"],
    y: Float[Numbers, "m d"],
    response_y: Float[Numbers, "m e"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    response_kernel: GramKernel = Gaussian(MedianDistance()),
) -> Float[Array, ""]:
    """The Cauchy–Schwarz divergence of p(z|x) from q(z|x), from rows x paired with responses z.

    D = log ∬ p(z|x)² + log ∬ q(z|x)² − 2 log ∬ p(z|x) q(z|x), the integrals over x and z. Since
    p(z|x)² = p(x, z) p(x, z)/p(x)², the first is the mean over pairs of p of the ratio of density
    estimates p̂(x_j, z_j)/p̂(x_j)². With K and L the kernels of x and of z it is

        log Σ_j a_j Σ_i a_i K_ji L_ji / (Σ_i a_i K_ji)²,

    with the square of the sum in the denominator. (Published code has the sum of squares there,
    which no density estimate leads to.) The last integral is the mean of p̂_q(x_j, z_j)/(p̂_p(x_j)
    p̂_q(x_j)) over pairs of p, or of its mirror image over pairs of q: one for each of the two
    logarithms. Unlike `cauchy_schwarz` of the joint samples it does not compare p(x) with q(x).

    A plug-in of density estimates, biased at each bandwidth, and zero for equal samples. All sums
    are in log space, except for responses whose kernel is wide: there, differences from its peak
    keep the digits. (Derivatives in a response keep fewer: in single precision they are off by up
    to a tenth for a kernel of 10⁴ times the responses' spread.) Time O((n + m)² (d + e)), memory
    one block of the budget of `divjax.core.pairwise`.

    Args:
        x: the conditions of pairs from p.
        response_x: the responses of pairs from p.
        y: the conditions of pairs from q.
        response_y: the responses of pairs from q.
        a: weights of the pairs from p, non-negative, with any sum, uniform by default. Pairs of
            weight zero are padding.
        b: weights of the pairs from q.
        kernel: a positive kernel of the conditions. A bandwidth rule is evaluated at those of both
            samples together.
        response_kernel: likewise of the responses.

    Returns:
        The divergence in nats, NaN as for `cauchy_schwarz`.

    Raises:
        ValueError: if a sample is empty or not a matrix, pairs or features differ in number,
            weights do not fit, or a kernel is negative.

    Example:
        >>> import jax
        >>> from divjax.kernels import Gaussian
        >>> one = {"kernel": Gaussian(1.0), "response_kernel": Gaussian(1.0)}
        >>> x, z = jax.random.normal(jax.random.key(0), (2, 200, 1))
        >>> same = conditional_cauchy_schwarz(x[:100], z[:100], x[100:], z[100:], **one)
        >>> other = conditional_cauchy_schwarz(x[:100], z[:100], x[100:], z[100:] + x[100:], **one)
        >>> bool(same < 0.05), bool(other > 0.2)
        (True, True)

    References:
        Yu, Li, Løkse, Jenssen, Príncipe 2023, proposition 1. Yu, Yu, Løkse, Jenssen, Príncipe 2024.
    """
    conditions = two_samples(kernel, x, y, a, b)
    responses = two_samples(response_kernel, response_x, response_y, a, b)
    _check_positive("kernel", kernel)
    _check_positive("response_kernel", response_kernel)
    # The weights are those of pairs: row i of a response belongs to row i of its condition.
    for name, rows, number in (
        ("response_x", responses.x, conditions.x.shape[0]),
        ("response_y", responses.y, conditions.y.shape[0]),
    ):
        check_shape(name, rows, number, "e")
    return _conditional(kernel, response_kernel, conditions, responses)


@jax.jit
def _conditional(
    kernel: GramKernel,
    response_kernel: GramKernel,
    conditions: TwoSamples,
    responses: TwoSamples,
) -> Float[Array, ""]:
    """`conditional_cauchy_schwarz` after its checks."""
    kernels = resolved_at(kernel, conditions), resolved_at(response_kernel, responses)
    of_x, of_y = as_measures(kernels[0], conditions), as_measures(kernels[1], responses)
    mirrored = lambda pair: TwoMeasures(pair.y, pair.x, pair.b, pair.a)
    # The logarithm of ∬ p q counts twice: once as a mean over the pairs of p, once over those of q.
    sides = (of_x, of_y), (mirrored(of_x), mirrored(of_y))
    by_logarithms = lambda: _log_ratio(kernels, sides[0]) + _log_ratio(kernels, sides[1])
    dtype = jnp.result_type(conditions.dtype, responses.dtype)
    if not is_radial(kernels[1]):
        return by_logarithms().astype(dtype)
    # As for `cauchy_schwarz`: L = c (1 + l), and log c cancels.
    contrast, constant = less_constant(kernels[1], pooled_rows(responses))
    wide = constant > 0

    def excesses() -> Float[Array, "2 2"]:
        # Under `vmap` both branches are evaluated, hence no division by zero.
        unit = jnp.where(wide, constant, 1)
        means = [_conditional_means((kernels[0], contrast), side) for side in sides]
        return jnp.stack(means) / unit

    relative = jax.lax.cond(wide, excesses, lambda: jnp.full((2, 2), -1, of_y.x.dtype))
    near = jnp.all(relative > -0.5)

    def by_contrasts() -> Float[Array, ""]:
        own, other = jnp.log1p(jnp.where(near, relative, 0)).T
        return jnp.sum(own - other)

    return jax.lax.cond(near, by_contrasts, by_logarithms).astype(dtype)


def _conditional_means(
    kernels: tuple[GramKernel, GramKernel], pairs: tuple[TwoMeasures, TwoMeasures]
) -> Float[Array, " 2"]:
    """Means of a kernel l of the responses given the condition, over pairs of p and those of q.

    With m(x_j) = Σ_i w_i K_ji l_ji / Σ_i w_i K_ji they are means over the pairs of p with weights
    a_j/p̂(x_j). If L = c (1 + l), `_log_ratio` is log (1 + m_p) − log (1 + m_q) of these numbers.
    """
    a = pairs[0].a
    density, own = _log_densities(kernels, pairs, of_other=False, logarithm=False)
    _, other = _log_densities(kernels, pairs, of_other=True, logarithm=False)
    shares = a * bounded_exp(-density - log_sum(-density, a))
    return jnp.stack([shares @ own, shares @ other])


def _log_ratio(
    kernels: tuple[GramKernel, GramKernel], pairs: tuple[TwoMeasures, TwoMeasures]
) -> Float[Array, ""]:
    """Log ∬ p(z|x)² − log ∬ p(z|x) q(z|x), both as means over the pairs of p."""
    a = pairs[0].a
    own_density, own_joint = _log_densities(kernels, pairs, of_other=False)
    density, joint = _log_densities(kernels, pairs, of_other=True)
    # Means under p(x, z) of p(z|x)/p(x) and of q(z|x)/p(x): the integrals over x have no weight
    # p(x).
    within = log_sum(own_joint - 2 * own_density, a)
    return within - log_sum(joint - own_density - density, a)


def _log_densities(
    kernels: tuple[GramKernel, GramKernel],
    pairs: tuple[TwoMeasures, TwoMeasures],
    *,
    of_other: bool,
    logarithm: bool = True,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log Σ_i w_i K_ji and log Σ_i w_i K_ji L_ji at the pairs of p, over its own or those of q.

    Without `logarithm`, instead of the second the mean Σ_i w_i K_ji L_ji / Σ_i w_i K_ji.
    """
    weights = pairs[0].b if of_other else pairs[0].a
    sides = [
        about_origin(kernel, pair.x, pair.y if of_other else pair.x, weights != 0)
        for kernel, pair in zip(kernels, pairs, strict=True)
    ]

    def block(x: Float[Array, "b d"], y: Float[Array, "b e"], index: Array) -> tuple[Array, Array]:
        # A row's distance from itself is exactly zero, which products of matrices would round.
        own = None if of_other else index[:, None] == jnp.arange(weights.size)
        of_x, of_y = (
            block_values(kernel, rows, columns, own, logs)
            for kernel, rows, (_, columns), logs in zip(
                kernels, (x, y), sides, (True, logarithm), strict=True
            )
        )
        density = log_sum(of_x, weights)
        if not logarithm:
            shares = weights * bounded_exp(of_x - density[:, None])
            return density, jnp.sum(shares * of_y, axis=1)
        # Over pairs the kernel is the product of both, so that logarithms add up.
        return density, log_sum(of_x + of_y, weights)

    (x, _), (y, _) = sides
    return map_row_blocks(block, weights.size, x, y, jnp.arange(x.shape[0]))
