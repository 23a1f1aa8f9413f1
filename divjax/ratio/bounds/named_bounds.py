"""The bounds by their names, and any other function as a bound.

A bound is chosen by its name, by a generator of an f-divergence, which stands for its `f_dual`, or
as any function of the critic's values at samples of p and of q. All of them can read a critic out,
and some can train one.
"""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from divjax.core.checks import check_callable
from divjax.core.pytrees import as_pytree
from divjax.fdiv.generators import Generator, check_generator
from divjax.ratio.bounds.contrastive import info_nce
from divjax.ratio.bounds.variational import (
    donsker_varadhan,
    f_dual,
    jensen_shannon,
    kl_from_js,
    mean_log_ratio,
    nwj,
    smile,
)

__all__ = [
    "BOUNDS",
    "TRAINABLE",
    "Bound",
    "StatefulBound",
    "as_bound",
]

Bound = Callable[[Float[Array, " n"], Float[Array, "..."]], Float[Array, ""]]


@runtime_checkable
class StatefulBound(Protocol):
    """A bound that is trained with a state, such as `MINE`, and cannot read a critic out."""

    def init(self, dtype: DTypeLike) -> PyTree[Array]:
        """The state before the first batch."""
        ...

    def __call__(
        self, u_p: Float[Array, " n"], u_q: Float[Array, "..."], state: PyTree[Array]
    ) -> tuple[Float[Array, ""], PyTree[Array]]:
        """The bound, which is maximised, and the next state."""
        ...


BOUNDS: dict[str, Bound] = {
    "dv": donsker_varadhan,
    "nwj": nwj,
    "js": jensen_shannon,
    "kl_from_js": kl_from_js,
    "infonce": info_nce,
    "smile": smile,
    "log_ratio": mean_log_ratio,
}

# The bounds that can train a critic from any initialisation.
TRAINABLE = ("js", "dv", "nwj", "infonce")


def as_bound(bound: Bound | Generator | str) -> Bound:
    """A bound by its name in `BOUNDS`, by its generator (`f_dual`), or unchanged, as a pytree.

    Args:
        bound: a name, a generator of `divjax.fdiv`, or any function of u_p and u_q.

    Returns:
        A function of u_p and u_q that is a pytree.

    Raises:
        ValueError: if the name is unknown, or the bound is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> float(as_bound("dv")(jnp.array([2.0]), jnp.array([1.0, 1.0])))
        1.0
    """
    if isinstance(bound, str):
        if bound not in BOUNDS:
            raise ValueError(f"a bound must be one of {', '.join(BOUNDS)}; got {bound!r}.")
        bound = BOUNDS[bound]
    check_generator(bound)
    if isinstance(bound, Generator):
        return jax.tree_util.Partial(f_dual, generator=bound)
    # JAX's `Partial` is a pytree, whose arguments may be traced.
    if isinstance(bound, functools.partial) and not isinstance(bound, jax.tree_util.Partial):
        return jax.tree_util.Partial(bound.func, *bound.args, **bound.keywords)
    # JAX's placeholders pass: a bare object, or None.
    if type(bound) not in (object, type(None)):
        check_callable(bound=bound)
    return as_pytree(bound)
