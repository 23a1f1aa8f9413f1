"""Samples padded to a few sizes, so that a new size does not recompile a large program."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

__all__ = ["pad_rows", "padded_size", "resize_rows"]

SMALLEST = 64


def padded_size(num_rows: int) -> int:
    """The least of 64, 80, 96, 112, 128, 160, … (four sizes per octave) that holds these rows.

    Example:
        >>> [padded_size(n) for n in (3, 900, 1000, 10_000)]
        [64, 1024, 1024, 10240]
    """
    num_rows = max(num_rows, SMALLEST)
    # A quarter of the power of two below the number of rows: at most a quarter is padding.
    step = 1 << (num_rows - 1).bit_length() - 1 >> 2
    return -(-num_rows // step) * step


def pad_rows(
    rows: Shaped[Array, "n ..."], num_rows: int, fill: float = 0
) -> Shaped[Array, "num_rows ..."]:
    """The first `num_rows` rows, padded with the value `fill` if there are fewer."""
    missing = num_rows - rows.shape[0]
    if missing <= 0:
        return rows[:num_rows]
    widths = [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(rows, widths, constant_values=fill)


@functools.partial(jax.jit, static_argnums=1)
def resize_rows(tree: PyTree[Array], num_rows: int) -> PyTree[Array]:
    """`pad_rows` of every leaf, compiled."""
    return jax.tree.map(lambda leaf: pad_rows(leaf, num_rows), tree)
