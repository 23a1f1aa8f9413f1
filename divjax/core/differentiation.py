"""What has no useful derivative says so."""

from typing import TypeVar

import jax
from jax.custom_derivatives import SymbolicZero

__all__ = ["refuse_derivatives"]

T = TypeVar("T")


def refuse_derivatives(tree: T, message: str) -> T:
    """The tree, which raises `ValueError` when differentiated with respect to what it depends on.

    For what has no useful derivative, or none that is finite: silence would be a wrong number.

    Example:
        >>> import jax
        >>> constant = lambda x: refuse_derivatives(x, "x is a constant.")
        >>> try:
        ...     jax.grad(constant)(1.0)
        ... except ValueError as error:
        ...     print(error)
        x is a constant.
    """

    # Symbolic zeros tell inputs that are differentiated from those that are merely carried along:
    # only the former raise.
    @jax.custom_jvp
    def identity(tree):
        return tree

    def rule(primals, tangents):
        if any(not isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangents)):
            raise ValueError(message)
        return primals[0], tangents[0]

    identity.defjvp(rule, symbolic_zeros=True)
    return identity(tree)
