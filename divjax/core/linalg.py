"""Factorisations and solves of dense matrices, used by the whole package.

On a CPU, jaxlib 0.10.0 to 0.11.0 deadlocks as soon as the number of *batched* LAPACK calls that run
at once reaches that of XLA's worker threads: every worker waits for tasks that it gave to the pool
it belongs to. There, and only there, the matrices of a batch are factorised one after the other,
whether the batch is a leading axis or a `vmap`, also a user's over a whole fit. Later versions and
accelerators run the batched kernels of `jax.numpy.linalg`.

All functions take leading batch axes, and differentiate in both modes to any order (except `svd`,
which is not differentiated).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxlib import version as jaxlib_version
from jaxtyping import Array, Float, PyTree

from divjax.core.numerics import matmul

__all__ = [
    "cho_solve",
    "cholesky",
    "cholesky_of_rows",
    "eigh",
    "inv",
    "solve",
    "solve_triangular",
    "svd",
]


def _deadlocks(version: str) -> bool:
    """Whether concurrent batched LAPACK calls of this jaxlib may deadlock."""
    release = tuple(int(part) for part in version.split(".")[:3])
    return (0, 10, 0) <= release < (0, 11, 1)


ONE_BY_ONE = _deadlocks(jaxlib_version.__version__)

# b ↦ A⁻¹ b for a matrix that is fixed.
Solve: TypeAlias = Callable[[Array], Array]


def _one_by_one(function: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
    """The function of matrices, whose `vmap` is a loop on a CPU and a batch elsewhere."""
    mapped = custom_vmap(function)

    # A user's `vmap` would turn LAPACK calls into batched ones. This rule replaces them.
    @mapped.def_vmap
    def _(
        axis_size: int, in_batched: list[bool], *args: Array
    ) -> tuple[PyTree[Array], PyTree[bool]]:
        def loop(*args: Array) -> PyTree[Array]:
            # Unbatched arguments are closed over. The map is over a tuple of the others.
            batched = tuple(arg for arg, is_in in zip(args, in_batched, strict=True) if is_in)

            # The matrices of one lane. Through `mapped` again, as an outer `vmap` needs the same
            # rule.
            def one(rows: tuple[Array, ...]) -> PyTree[Array]:
                left = iter(rows)
                pairs = zip(args, in_batched, strict=True)
                return mapped(*(next(left) if is_in else arg for arg, is_in in pairs))

            return jax.lax.map(one, batched)

        # The choice is made when a platform's program is lowered: accelerators keep their batched
        # kernels.
        axes = tuple(0 if is_in else None for is_in in in_batched)
        batch = jax.vmap(function, in_axes=axes)
        out = jax.lax.platform_dependent(*args, cpu=loop, default=batch)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


# Functions of one matrix each, as `jax.numpy.linalg` has them.


def _batched_solve(matrix: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jnp.linalg.solve(matrix, b)


def _batched_lower(factor: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jax.scipy.linalg.solve_triangular(factor, b, lower=True)


def _batched_upper(factor: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jax.scipy.linalg.solve_triangular(factor, b, lower=True, trans=1)


def _batched_eigh(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def _batched_svd(
    matrix: Float[Array, "n m"],
) -> tuple[Float[Array, "n r"], Float[Array, " r"], Float[Array, "r m"]]:
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right


# The same, one matrix after the other. Reverse mode does not support a custom `vmap`, so each has
# a derivative of its own: a linear solve's is one more solve.

_each_solve = _one_by_one(_batched_solve)
_each_lower = _one_by_one(_batched_lower)
_each_upper = _one_by_one(_batched_upper)
_each_cholesky = _one_by_one(jnp.linalg.cholesky)
_each_eigh = _one_by_one(_batched_eigh)
_each_svd = _one_by_one(_batched_svd)


def _linear_solve(matrix: Array, b: Array, solve: Solve, solve_transposed: Solve) -> Array:
    """The solution, with the derivatives of the linear system."""
    # Differentiated as A x = b: ẋ = A⁻¹(ḃ − Ȧx), and the transpose is a solve with Aᵀ.
    return jax.lax.custom_linear_solve(
        lambda x: matmul(matrix, x),
        b,
        solve=lambda _, b: solve(b),
        transpose_solve=lambda _, b: solve_transposed(b),
    )


def _sequential_solve(matrix: Array, b: Array) -> Array:
    each, transposed = partial(_each_solve, matrix), partial(_each_solve, matrix.T)
    return _linear_solve(matrix, b, each, transposed)


def _sequential_lower(factor: Array, b: Array) -> Array:
    # Entries above the diagonal are never read, so they must have no derivative either.
    lower, upper = partial(_each_lower, factor), partial(_each_upper, factor)
    return _linear_solve(jnp.tril(factor), b, lower, upper)


def _sequential_upper(factor: Array, b: Array) -> Array:
    lower, upper = partial(_each_lower, factor), partial(_each_upper, factor)
    return _linear_solve(jnp.tril(factor).T, b, upper, lower)


@jax.custom_jvp
def _sequential_cholesky(matrix: Array) -> Array:
    return _each_cholesky(matrix)


@_sequential_cholesky.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """L Φ(L⁻¹ Ȧ L⁻ᵀ), Φ the lower triangle with half of the diagonal."""
    (matrix,), (change,) = primals, tangents
    factor = _sequential_cholesky(matrix)
    # The factor depends on the symmetric part of the matrix, and so does its change.
    left = _sequential_lower(factor, (change + change.T) / 2)
    both = _sequential_lower(factor, left.T)
    return factor, matmul(factor, jnp.tril(both) - jnp.diag(jnp.diag(both)) / 2)


@jax.custom_jvp
def _sequential_eigh(matrix: Array) -> tuple[Array, Array]:
    return _each_eigh(matrix)


@_sequential_eigh.defjvp
def _(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """λ̇ = diag(Vᵀ Ȧ V) and V̇ = V (F ∘ Vᵀ Ȧ V) with F_ij = 1/(λ_j − λ_i) for i ≠ j."""
    (matrix,), (change,) = primals, tangents
    values, vectors = _sequential_eigh(matrix)
    inner = matmul(vectors.T, matmul((change + change.T) / 2, vectors))
    same = jnp.eye(values.shape[0], dtype=values.dtype)
    # The added identity keeps the diagonal, where the first factor is zero, from being 0/0.
    mixing = (1 - same) * inner / (values - values[:, None] + same)
    return (values, vectors), (jnp.diag(inner), matmul(vectors, mixing))


if ONE_BY_ONE:
    _solve, _cholesky, _eigh, _svd = (
        _sequential_solve,
        _sequential_cholesky,
        _sequential_eigh,
        _each_svd,
    )
    _lower, _upper = _sequential_lower, _sequential_upper
else:
    _solve, _cholesky, _eigh, _svd = (
        _batched_solve,
        jnp.linalg.cholesky,
        _batched_eigh,
        _batched_svd,
    )
    _lower, _upper = _batched_lower, _batched_upper


def _solved(solve: Callable[[Array, Array], Array], matrix: Array, b: Array) -> Array:
    """A vector or a matrix of right-hand sides, and leading axes that broadcast."""
    over_batches = jnp.vectorize(solve, signature="(n,n),(n,k)->(n,k)")
    if jnp.ndim(b) == 1:
        return over_batches(matrix, b[:, None])[..., 0]
    return over_batches(matrix, b)


def cholesky(matrix: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """The lower-triangular L with L Lᵀ the symmetric part of the matrix; NaN if not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    return jnp.vectorize(_cholesky, signature="(n,n)->(n,n)")(matrix)


@jax.default_matmul_precision("highest")
def cholesky_of_rows(
    gram: Callable[[Float[Array, "d d"]], Float[Array, "d d"]], basis: Float[Array, "d d"]
) -> Float[Array, "d d"]:
    """The Cholesky factor of a Gram matrix of rows, as accurate as a QR factorisation of the rows.

    The matrix has the square of the rows' condition number. Its factor L is therefore corrected by
    that of the rows in the coordinates L⁻¹, in which their Gram matrix is nearly the identity.

    Args:
        gram: maps a matrix B to the Gram matrix of the rows B z, computed from these rows.
        basis: the identity of the rows' dimension.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0, 1.0], [1.0, 1.001], [1.0, 0.999]])
        >>> gram = lambda basis: (rows @ basis.T).T @ (rows @ basis.T)
        >>> cholesky_of_rows(gram, jnp.eye(2))[1, 1].round(6).item()  # 0.001 √2
        0.001414

    References:
        Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015: CholeskyQR2.
    """
    # The product does not depend on the first factor, whose gradient is stopped.
    first = jax.lax.stop_gradient(cholesky(gram(basis)))
    return first @ cholesky(gram(solve_triangular(first, basis)))


def solve_triangular(
    factor: Float[Array, "*b n n"], b: Float[Array, "..."], *, transposed: bool = False
) -> Float[Array, "..."]:
    """L⁻¹ b, or L⁻ᵀ b, for a lower-triangular L. b may be one vector.

    Example:
        >>> import jax.numpy as jnp
        >>> solve_triangular(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([2.0, 3.0])).tolist()
        [1.0, 2.0]
    """
    return _solved(_upper if transposed else _lower, factor, b)


def cho_solve(factor: Float[Array, "*b n n"], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """(L Lᵀ)⁻¹ b for the factor L from `cholesky`. b may be one vector.

    Example:
        >>> import jax.numpy as jnp
        >>> cho_solve(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([8.0, 3.0])).tolist()
        [2.0, 3.0]
    """
    return solve_triangular(factor, solve_triangular(factor, b), transposed=True)


def solve(matrix: Float[Array, "*b n n"], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The x with matrix · x = b, by LU decomposition. b may be one vector.

    Example:
        >>> import jax.numpy as jnp
        >>> solve(jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([2.0, 3.0])).tolist()
        [3.0, 1.0]
    """
    return _solved(_solve, matrix, b)


def inv(matrix: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """The inverse.

    Example:
        >>> import jax.numpy as jnp
        >>> inv(jnp.array([[0.0, 2.0], [1.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.5, 0.0]]
    """
    return solve(
        matrix, jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    )


def eigh(matrix: Float[Array, "*b n n"]) -> tuple[Float[Array, "*b n"], Float[Array, "*b n n"]]:
    """The eigenvalues of the symmetric part, ascending, and the eigenvectors as columns.

    Example:
        >>> import jax.numpy as jnp
        >>> eigh(jnp.array([[2.0, 0.0], [0.0, 1.0]]))[0].tolist()
        [1.0, 2.0]
    """
    return jnp.vectorize(_eigh, signature="(n,n)->(n),(n,n)")(matrix)


def svd(
    matrix: Float[Array, "*b n m"],
) -> tuple[Float[Array, "*b n r"], Float[Array, "*b r"], Float[Array, "*b r m"]]:
    """U, the singular values, descending, and Vᵀ with U diag(s) Vᵀ the matrix; not differentiated.

    Example:
        >>> import jax.numpy as jnp
        >>> svd(jnp.array([[0.0, 2.0], [1.0, 0.0]]))[1].tolist()
        [2.0, 1.0]
    """
    return jnp.vectorize(_svd, signature="(n,m)->(n,r),(r),(r,m)")(jax.lax.stop_gradient(matrix))
