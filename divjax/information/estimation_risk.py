"""How many samples a family needs: the divergence from what it can represent to what is fitted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_full_precision,
    check_number,
    check_positive_finite,
    check_scalar_output,
    check_unit_interval,
)
from divjax.core.linalg import cholesky, solve_triangular
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import as_traced
from divjax.core.samples import Numbers, as_vectors
from divjax.fdiv.exponential_family import LogPartition

__all__ = ["p_n_criterion", "projection_risk"]


def projection_risk(
    log_partition: LogPartition, natural: Float[Numbers, " p"], num_samples: ArrayLike
) -> Float[Array, ""]:
    """The expected KL(p_η‖p_η̂) of a family's fit to n of its own samples, to second order.

    p/(2n) + c/n² + O(n⁻³) for the maximum-likelihood estimate η̂. In parameters in which the Fisher
    information ∇²A(η) is the identity,

        c = (9 Σ_k (Σ_i A_iik)² + 10 Σ_ijk A_ijk² − 9 Σ_ij A_iijj)/24

    with the third and fourth derivatives of A. It follows from Taylor's series of the divergence in
    the mean statistic t̄: with the conjugate φ of A, KL(p_η‖p_η̂) is the sum of φ''δ²/2, φ'''δ³/3
    and φ''''δ⁴/8 in δ = t̄ − ∇A(η), whose moments are derivatives of A over powers of n.

    The first term depends on the number of parameters alone, and the second on which family it is:
    61/12 for Gaussians, so that n = 10 samples have a risk of 0.151 and not 0.1 (exactly 0.175).
    For samples of another distribution `information_projection` has the first order.

    Time and memory O(p³), of derivatives of A that take seconds to compile. Differentiable.

    Args:
        log_partition: the family's A, a convex function "p" -> "": a `fdiv.exponential_family`, or
            any JAX function.
        natural: η, within the domain.
        num_samples: n > 0.

    Returns:
        The risk in nats, given that the estimate exists (that of a `BERNOULLI` does not if all
        samples are alike). NaN outside of the domain, or for a traced n that is not positive.

    Raises:
        ValueError: if η is not a vector, A is not a scalar, or n is a number that is not positive.

    Example:
        >>> from divjax.fdiv.exponential_family import EXPONENTIAL
        >>> risk = projection_risk(EXPONENTIAL, EXPONENTIAL.natural(2.0), 10)
        >>> round(float(risk), 5)  # 1/20 + 11/1200, and exactly 0.06028
        0.05917

    References:
        Sheena 2021, "Convergence of estimative density: criterion for model complexity and sample
        size": the expansion of the risk to second order. Barndorff-Nielsen, Cox 1989: cumulants of
        exponential families.
    """
    log_partition, natural = _checked(log_partition, natural)
    check_number(num_samples=num_samples)
    check_positive_finite(num_samples=num_samples)
    return _projection_risk(log_partition, natural, *as_leaves(num_samples=num_samples))


def p_n_criterion(
    log_partition: LogPartition, natural: Float[Numbers, " p"], *, bayes_error: ArrayLike = 0.45
) -> Float[Array, ""]:
    """The number of samples from which a fit can hardly be told from the family's own member.

    The n with p/(2n) + c/n² = 2 (1 − 2r)², for the risk of `projection_risk` and an error rate r.
    Whoever is to tell of one draw whether it comes from p_η or from the fit p_η̂ errs at least in a
    share of ½ (1 − TV) of the cases, the Bayes error, and TV ≤ (KL/2)^½ by Pinsker. As the square
    root is concave, the expected Bayes error of fits to n samples is then at least r. Without the
    second term it is n = p/(4 (1 − 2r)²): 25 samples per parameter for r = 0.45.

    Args:
        log_partition: the family's A, a convex function "p" -> "".
        natural: η, within the domain: a guess, or an `information_projection`.
        bayes_error: r, in (0, ½): half is a fit that cannot be told apart at all.

    Returns:
        The number n, not rounded. NaN outside of the domain, or for a traced r out of range.

    Raises:
        ValueError: if η is not a vector, A is not a scalar, or r is a number out of range.

    Example:
        >>> from divjax.fdiv.exponential_family import NORMAL
        >>> round(float(p_n_criterion(NORMAL, NORMAL.natural(3.0, 2.0))))  # 50 to first order
        55

    References:
        Sheena 2021, "Convergence of estimative density: criterion for model complexity and sample
        size": the criterion. Csiszár 1967: Pinsker's inequality.
    """
    log_partition, natural = _checked(log_partition, natural)
    check_number(bayes_error=bayes_error)
    check_unit_interval(bayes_error=bayes_error)
    if isinstance(bayes_error, (int, float)) and not 0 < bayes_error < 0.5:
        raise ValueError(f"bayes_error must be in (0, 0.5); got {bayes_error}.")
    return _p_n_criterion(log_partition, natural, *as_leaves(bayes_error=bayes_error))


def _checked(
    log_partition: LogPartition, natural: Numbers
) -> tuple[LogPartition, Float[Array, " p"]]:
    (natural,) = as_vectors(natural=natural)
    check_full_precision("natural", natural)
    eta = jax.ShapeDtypeStruct(natural.shape, natural.dtype)
    check_scalar_output("log_partition", log_partition, eta)
    # A `Family` is static. Any other function may refer to something that has changed.
    if jax.tree_util.all_leaves([log_partition]):
        log_partition = as_traced(log_partition, eta)
    return log_partition, natural


@jax.jit
def _projection_risk(
    log_partition: LogPartition, natural: Float[Array, " p"], num_samples: ArrayLike
) -> Float[Array, ""]:
    """`projection_risk` after its checks."""
    n = jnp.asarray(num_samples, natural.dtype)
    n = nan_unless((n > 0) & (n < jnp.inf), n)
    return (natural.size / 2 + _second_order(log_partition, natural) / n) / n


@jax.jit
def _p_n_criterion(
    log_partition: LogPartition, natural: Float[Array, " p"], bayes_error: ArrayLike
) -> Float[Array, ""]:
    """`p_n_criterion` after its checks."""
    error = jnp.asarray(bayes_error, natural.dtype)
    error = nan_unless((error > 0) & (error < 0.5), error)
    allowed = 2 * jnp.square(1 - 2 * error)
    # The larger root of allowed · n² − (p/2) n − c = 0.
    half, second = natural.size / 2, _second_order(log_partition, natural)
    # Of a second term below zero the risk may be less than allowed for every n: then the largest
    # one counts.
    root = jnp.sqrt(jnp.maximum(half**2 + 4 * allowed * second, 0))
    return (half + root) / (2 * allowed)


def _second_order(log_partition: LogPartition, natural: Float[Array, " p"]) -> Float[Array, ""]:
    """The c of `projection_risk`."""
    factor = cholesky(jax.hessian(log_partition)(natural))
    # η + L⁻ᵀ z with the Cholesky factor L of the information, which is the identity in z.
    one = jnp.eye(natural.size, dtype=natural.dtype)
    basis = solve_triangular(factor, one, transposed=True)
    whitened = lambda z: log_partition(natural + matmul(basis, z))
    # Σ_ij A_iijj is the Laplacian of the Laplacian: p⁴ fourth derivatives are never held.
    laplacian = lambda z: jnp.trace(jax.hessian(whitened)(z))
    zero = jnp.zeros_like(natural)
    third = jax.jacfwd(jax.hessian(whitened))(zero)
    fourth = jnp.trace(jax.hessian(laplacian)(zero))
    traces = jnp.sum(jnp.square(jnp.trace(third)))
    return (9 * traces + 10 * jnp.sum(jnp.square(third)) - 9 * fourth) / 24
