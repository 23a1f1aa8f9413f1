"""What is not differentiated says so."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

__all__ = ["refuse_derivatives"]

T = TypeVar("T")


def refuse_derivatives(sentence: str, tree: T) -> T:
    """The tree, whose derivatives in any of its floating-point leaves raise `ValueError`.

    For hyper-parameters of a training loop, through which derivatives overflow to NaN.

    Args:
        sentence: the message.
        tree: any pytree.

    Example:
        >>> fit = lambda rate: 2 * refuse_derivatives("rate has no derivative.", rate)
        >>> float(jax.jit(fit)(1.0))
        2.0
        >>> try:
        ...     jax.grad(fit)(1.0)
        ... except ValueError as error:
        ...     print(error)
        rate has no derivative.
    """

    @jax.custom_jvp
    def identity(leaf: Any) -> Any:
        return leaf

    def refuse(primals: Any, tangents: Any) -> Any:
        if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
            raise ValueError(sentence)
        return primals[0], jnp.zeros_like(primals[0])

    identity.defjvp(refuse, symbolic_zeros=True)

    def guarded(leaf: Any) -> Any:
        floating = isinstance(leaf, Tracer) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return identity(leaf) if floating else leaf

    return jax.tree.map(guarded, tree)
