"""Values with the derivatives of others, and an error for those without a useful derivative."""

from typing import TypeVar

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

__all__ = ["refuse_derivatives", "with_slopes_of"]

T = TypeVar("T")


def refuse_derivatives(tree: T, message: str) -> T:
    """The tree, which raises `ValueError` when differentiated with respect to its inputs.

    For values without a useful or finite derivative: without the error it would be silently wrong.

    Example:
        >>> import jax
        >>> constant = lambda x: refuse_derivatives(x, "x is a constant.")
        >>> try:
        ...     jax.grad(constant)(1.0)
        ... except ValueError as error:
        ...     print(error)
        x is a constant.
    """

    # Symbolic zeros distinguish differentiated inputs from those that are merely carried along:
    # only the former raise.
    @jax.custom_jvp
    def identity(tree):
        return tree

    # Raised when the rule is traced, hence under jit too.
    def rule(primals, tangents):
        if any(not isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangents)):
            raise ValueError(message)
        return primals[0], tangents[0]

    identity.defjvp(rule, symbolic_zeros=True)
    return identity(tree)


@jax.custom_jvp
def with_slopes_of(surrogate: PyTree[Array], values: PyTree[Array]) -> PyTree[Array]:
    """The values, with the derivatives of a surrogate of the same structure and dtypes.

    Example:
        >>> import jax
        >>> value, slope = jax.value_and_grad(lambda x: with_slopes_of(x**2, x))(3.0)
        >>> float(value), float(slope)
        (3.0, 6.0)
    """
    return values


@with_slopes_of.defjvp
def _slopes(
    primals: tuple[PyTree[Array], PyTree[Array]], tangents: tuple[PyTree[Array], PyTree[Array]]
) -> tuple[PyTree[Array], PyTree[Array]]:
    return primals[1], tangents[0]
