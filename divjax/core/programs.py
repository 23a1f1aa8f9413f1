"""Compiled programs that live with an object, for methods that are called eagerly."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Array

from divjax.core.pytrees import Itself
from divjax.core.samples import owned

T = TypeVar("T")

__all__ = ["Programs", "is_traced", "jax_settings", "jit_by_size"]

# An argument that is a new function at every call makes a new program every time. Only the latest
# programs are kept, to bound the memory of a loop over such calls.
_MOST_PROGRAMS = 64


def is_traced(*args: Any) -> bool:
    """Whether an array in the arguments is traced.

    Example:
        >>> is_traced(jnp.ones(2), {"a": 1.0})
        False
    """
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))


_QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0}


def jit_by_size(
    function: Callable[..., T],
    *,
    static_argnames: str | tuple[str, ...] = (),
    most: int = 2**13,
) -> Callable[..., T]:
    """`jax.jit`, which on a CPU compiles programs of small arguments quickly rather than well.

    For functions without long loops: half of their compilation is LLVM's optimisation, which saves
    a few milliseconds per call on small arrays. (A divergence's estimate at 300 rows compiles for
    1.7 s instead of 3.4, and takes 2.4 ms instead of .7.) Large arguments, other devices, and a
    caller's own program have all optimisations.

    Args:
        function: as for `jax.jit`.
        static_argnames: likewise.
        most: arguments are small if their arrays have at most this many entries together.

    Example:
        >>> double = jit_by_size(lambda x: 2 * x)
        >>> float(double(3.0)), float(jax.jit(double)(3.0))
        (6.0, 6.0)
    """
    well = jax.jit(function, static_argnames=static_argnames)
    quickly = jax.jit(function, static_argnames=static_argnames, compiler_options=_QUICKLY)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> T:
        arrays = [leaf for leaf in jax.tree.leaves((args, options)) if isinstance(leaf, jax.Array)]
        small = sum(array.size for array in arrays) <= most
        # Only a program by itself can have options of its own. Within another one every new array
        # is traced.
        alone = not is_traced(arrays, jnp.zeros(1))
        if small and alone and jax.default_backend() == "cpu":
            return quickly(*args, **options)
        return well(*args, **options)

    return call


class _Program:
    """A function's operations, compiled with the arrays that it refers to as arguments.

    As literals of the program, large arrays would take XLA minutes to fold.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]):
        # JAX caches the trace of a function, hence a new lambda.
        closed, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
        jaxpr, self._structure = closed.jaxpr, jax.tree.structure(shapes)
        # NumPy's arrays are copied: their owner may write to them after the call.
        self._constants = [
            constant if isinstance(constant, jax.Array) else jnp.array(constant)
            for constant in closed.consts
        ]

        def evaluate(constants: list[Array], leaves: list[Any]) -> list[Array]:
            return jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*leaves)

        self._evaluate, self._compiled = evaluate, jax.jit(evaluate)

    @property
    def refers_to_tracers(self) -> bool:
        """Whether the function refers to arrays of a transformation that is under way."""
        return is_traced(self._constants)

    def __call__(self, leaves: list[Any]) -> Any:
        # Constants that are traced are no arguments of a program of this function's own.
        evaluate = self._evaluate if self.refers_to_tracers else self._compiled
        return self._structure.unflatten(evaluate(self._constants, leaves))


class Programs:
    """The programs of an object's methods: a second call with equal shapes compiles nothing.

    Functions may refer to anything. As under `jax.jit`, its values are those of the first call with
    arguments of these shapes, and concrete values are checked there as in an eager call. NumPy's
    arrays among the arguments are copied.

    Traced arguments, in a caller's own `jit`, `vmap` or `grad`, make the call part of the caller's
    program: nothing is compiled or kept here. So do traced arrays that the function refers to.

    Example:
        >>> programs, scale = Programs(), 2.0
        >>> double = lambda x: scale * x
        >>> float(programs.call("double", double, jnp.array(3.0)))
        6.0
        >>> scale = 5.0
        >>> float(programs.call("double", double, jnp.array(3.0)))
        6.0
        >>> float(programs.call("double", double, jnp.ones(1))[0])  # another shape
        5.0
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, _Program] = {}

    def call(self, name: tuple[Any, ...] | str, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` as one program.

        Args:
            name: identifies the function, with all values that select its operations. They are
                compared by equality if they are hashable text or numbers, otherwise by identity.
            function: returns a pytree of arrays.
            args: pytrees of arrays.
        """
        if is_traced(*args):
            return function(*args)
        # A program is valid for arguments of these shapes, under these settings of JAX.
        leaves, structure = jax.tree.flatten(args)
        leaves = [owned(leaf) for leaf in leaves]
        key = _comparable(name), structure, tuple(map(jax.typeof, leaves)), jax_settings()
        program = self._held.get(key)
        if program is None:
            program = _Program(function, structure.unflatten(leaves))
            # Tracers are of one transformation alone, and a program with them of one call.
            if not program.refers_to_tracers:
                self._held[key] = program
            # A dictionary is in order of insertion: the first entry is the oldest.
            if len(self._held) > _MOST_PROGRAMS:
                self._held.pop(next(iter(self._held)))
        return program(leaves)


def _comparable(name: tuple[Any, ...] | str) -> Hashable:
    parts = name if isinstance(name, tuple) else (name,)
    return tuple(
        part if isinstance(part, (str, int, float, type(None))) else Itself(part) for part in parts
    )


def jax_settings() -> Hashable:
    """JAX's settings under which a function's operations may be others."""
    config = jax.config
    return (
        config.jax_enable_x64,  # pyright: ignore[reportAttributeAccessIssue]
        config.jax_numpy_dtype_promotion,  # pyright: ignore[reportAttributeAccessIssue]
        config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        jax.sharding.get_abstract_mesh(),
    )
