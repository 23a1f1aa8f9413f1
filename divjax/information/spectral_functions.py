"""Functions of a symmetric matrix's eigenvalues, differentiable where eigenvalues repeat."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.linalg import eigh
from divjax.core.numerics import in_units_of, matmul, nan_unless, safe_log

__all__ = ["density_matrix", "renyi_of_spectrum", "spectral_function"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectral_function(
    function: Callable[..., Float[Array, ""]],
    matrix: Float[Array, "n n"],
    *parameters: Float[Array, "..."],
) -> Float[Array, ""]:
    """A symmetric function of the eigenvalues of a symmetric matrix, and of parameters.

    Its derivative is V diag(∂f/∂λ) Vᵀ, also where eigenvalues repeat: the eigenvectors' own
    derivatives, which do not exist there, cancel. Second derivatives need distinct eigenvalues.

    Args:
        function: `(eigenvalues, *parameters) -> value`, the same for eigenvalues in any order. One
            object for all calls.
        matrix: a symmetric matrix.
        *parameters: what else the function depends on.

    Example:
        >>> square = lambda values: jnp.sum(values**2)
        >>> jax.grad(lambda matrix: spectral_function(square, matrix))(jnp.eye(2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return function(eigh(matrix)[0], *parameters)


@spectral_function.defjvp
def _(
    function: Callable[..., Float[Array, ""]],
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> tuple[Array, Array]:
    matrix, *parameters = primals
    change, *of_parameters = tangents
    values, vectors = eigh(matrix)
    # A simple eigenvalue changes by vᵀ dA v. For repeated ones the function's slopes agree, so that
    # any basis of their space gives the same sum.
    of_values = jnp.sum(vectors * matmul(change, vectors), axis=0)
    return jax.jvp(function, (values, *parameters), (of_values, *of_parameters))


def density_matrix(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The symmetric matrix with trace one; NaN if it is not finite, or not symmetric.

    Up to half of the digits, as it may be a sum over many rows.

    Example:
        >>> density_matrix(jnp.diag(jnp.array([1.0, 3.0]))).tolist()
        [[0.25, 0.0], [0.0, 0.75]]
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    usable = (size > 0) & (size < jnp.inf)
    # Sums of large entries would overflow.
    scaled, _ = in_units_of(jnp.where(usable, size, 1), matrix)
    asymmetry = jax.lax.stop_gradient(jnp.max(jnp.abs(scaled - scaled.T)))
    # Rounding's asymmetry is averaged away below. More of it is no rounding.
    usable = usable & (asymmetry <= 2 * float(jnp.finfo(matrix.dtype).eps) ** 0.5)
    trace = jnp.trace(scaled)
    return (scaled + scaled.T) / 2 / nan_unless(usable & (trace > 0), trace)


# Orders nearer to one than this are expanded around one.
_NEAR_ONE = 1e-4


def renyi_of_spectrum(values: Float[Array, " n"], order: Float[Array, ""]) -> Float[Array, ""]:
    """log(Σ p^α)/(1 − α) of eigenvalues that sum to one, −Σ p log p at order 1.

    Eigenvalues that are negative up to half of the digits are zero; others give NaN. Those below
    the rounding of an eigenvalue problem, 4√n ε times the largest, are zero as well: at low orders
    they would count as much as large ones.

    Example:
        >>> halves = jnp.array([0.5, 0.5, 0.0])
        >>> [round(float(renyi_of_spectrum(halves, jnp.array(a))), 4) for a in (0.5, 1.0, 2.0)]
        [0.6931, 0.6931, 0.6931]
    """
    rounding = float(jnp.finfo(values.dtype).eps) ** 0.5
    valid = jnp.min(jax.lax.stop_gradient(values)) >= -rounding
    lost = 4 * values.shape[0] ** 0.5 * jnp.finfo(values.dtype).eps
    p = jnp.where(values > lost * jax.lax.stop_gradient(jnp.max(values)), values, 0)
    # Without those that are zero now, the others must sum to one again.
    p = p / jnp.sum(p)
    positive = p > 0
    logs = jnp.where(positive, safe_log(p), 0)
    excess = order - 1

    # −K(t)/t with t = α − 1 and the cumulant-generating function K(t) = log Σ p exp(t log p), whose
    # expansion is in the cumulants of log p.
    mean = jnp.sum(p * logs)
    deviations = jnp.where(positive, logs - mean, 0)
    second, third = (jnp.sum(p * deviations**power) for power in (2, 3))
    series = -(mean + excess * second / 2 + jnp.square(excess) * third / 6)
    # As Σ p = 1, without cancellation for small t.
    near = jnp.abs(excess) < 0.5
    # Every branch is computed: where another is taken, 0.5 keeps this one's derivatives finite.
    t = jnp.where(near & (jnp.abs(excess) >= _NEAR_ONE), excess, 0.5)
    close = -jnp.log1p(jnp.sum(p * jnp.expm1(t * logs))) / t
    # And far from one, where Σ p^α may be smaller than the rounding of Σ p.
    far_excess = jnp.where(near, 0.5, excess)
    powers = jnp.where(positive, (far_excess + 1) * logs, -jnp.inf)
    far = -jax.nn.logsumexp(powers) / far_excess
    value = jnp.where(near, jnp.where(jnp.abs(excess) < _NEAR_ONE, series, close), far)
    return nan_unless(valid & (order > 0) & (order < jnp.inf), value)
