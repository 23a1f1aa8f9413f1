"""Method objects of divjax: frozen dataclasses that are JAX pytrees."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]
    Jaxpr,
    Literal,
    Var,
    jaxpr_as_fun,
)
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

T = TypeVar("T")

__all__ = [
    "Code",
    "Itself",
    "TracedFunction",
    "as_pytree",
    "as_traced",
    "for_each",
    "num_particles",
    "pytree",
    "ravel_particles",
    "select",
    "static",
]


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure (hashed, compiled in) rather than a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def for_each(function: Callable[..., T], samples: Iterable[Sequence[PyTree[Array]]]) -> list[T]:
    """`[function(*sample) for sample in samples]`, in one program if they have the same shapes.

    Halves the compilation if two samples are treated alike.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(total) for total in for_each(jnp.sum, [(jnp.ones(2),), (jnp.ones(3),)])]
        [2.0, 3.0]
    """
    samples = [tuple(sample) for sample in samples]
    shapes = {
        (jax.tree.structure(sample), *map(_shape_and_dtype, jax.tree.leaves(sample)))
        for sample in samples
    }
    # Only samples of equal shapes can be stacked, and one alone need not be.
    if len(shapes) > 1 or len(samples) == 1:
        return [function(*sample) for sample in samples]
    # Samples of one shape are stacked, so that the function is traced and compiled once.
    results = jax.vmap(function)(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples))
    leaves, structure = jax.tree.flatten(results)
    return [structure.unflatten(parts) for parts in zip(*leaves, strict=True)]


def _shape_and_dtype(leaf: ArrayLike) -> tuple[tuple[int, ...], Any]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def select(condition: Bool[Array, ""], new: T, old: T) -> T:
    """`new` if the condition holds, otherwise `old`, leaf by leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(leaf) for leaf in select(jnp.array(True), (1.0, 2.0), (3.0, 4.0))]
        [1.0, 2.0]
    """
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), new, old)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass registered as a JAX pytree.

    Every field is a leaf (or a subtree), so hyper-parameters vmap, differentiate, stack and never
    recompile. A field declared with `static()` is part of the tree's structure instead.

    JAX rebuilds the object, running `__post_init__`, whenever it unflattens, with tracers or
    placeholders for leaves. Validate there only values for which `isinstance(value, (int, float))`
    holds.

    Example:
        >>> @pytree
        ... class Scale:
        ...     factor: float = 2.0
        ...     name: str = static(default="scale")
        >>> jax.tree.leaves(Scale())
        [2.0]
    """
    # A class's own `__repr__` stays. Equality is identity: arrays have no single truth value.
    prints_itself = cls.__repr__ is not object.__repr__
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=not prints_itself)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    structure = [field.name for field in fields if field.metadata.get("static", False)]
    data = [field.name for field in fields if field.name not in structure]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]
    no_text = [field.name for field in fields if field.name in data and not _admits_text(field)]
    initialize = cls.__init__

    # Text raises only in a user's call: JAX rebuilds objects by `initialize`, from any leaves.
    @functools.wraps(initialize)
    def checked(self: T, *args: object, **kwargs: object) -> None:
        initialize(self, *args, **kwargs)
        for name in no_text:
            _refuse_text(name, getattr(self, name))
        for name in structure:
            _refuse_array(name, getattr(self, name))

    cls.__init__ = checked  # pyright: ignore[reportAttributeAccessIssue]

    def flatten(method: T) -> tuple[tuple[PyTree, ...], tuple[Hashable, ...]]:
        values = tuple(getattr(method, name) for name in data)
        return values, tuple(getattr(method, name) for name in structure)

    def flatten_with_keys(method: T) -> tuple[tuple[PyTree, ...], tuple[Hashable, ...]]:
        values, statics = flatten(method)
        return tuple(zip(keys, values, strict=True)), statics

    def unflatten(statics: tuple[Hashable, ...], values: Iterable[PyTree]) -> T:
        named = zip([*structure, *data], [*statics, *values], strict=True)
        method = object.__new__(cls)
        # Leaves of a tree may be anything, such as the labels of a partition.
        initialize(method, **dict(named))
        return method

    # Not `register_dataclass`: it treats trees of two classes as equal if their fields are (jax
    # 0.10.2), and jit may run the code that it compiled for the other.
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _admits_text(field: dataclasses.Field[Any]) -> bool:
    """Whether the annotation names `str` or `Any`."""
    return {str, Any} & {field.type, *typing.get_args(field.type)} != set()


def _refuse_array(name: str, value: object) -> None:
    """Raise `ValueError` for an array, which cannot be part of a tree's structure."""
    if isinstance(value, (jax.Array, np.ndarray)):
        raise ValueError(
            f"{name} must be a value of Python, for which programs are compiled; got an array."
        )


def _refuse_text(name: str, value: object) -> None:
    """Raise `ValueError` for a text, or a sequence with one."""
    for entry in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(entry, (str, bytes)):
            raise ValueError(f"{name} must not be a string; got {entry!r}.")


def as_pytree(function: T) -> T | jax.tree_util.Partial:
    """A callable as a pytree: arrays it is bound to become leaves, its code becomes structure.

    A plain function is static. A bound method of a pytree object (`mixture.log_prob`) keeps the
    object's arrays as leaves, so one compilation serves all mixtures of a shape. An object that is
    already a pytree, or anything that is not callable (JAX's placeholders), is returned unchanged.
    """
    if not callable(function) or not jax.tree_util.all_leaves([function]):
        return function
    # The bound object is an argument of the partial, hence a subtree whose arrays are leaves.
    if inspect.ismethod(function) and not jax.tree_util.all_leaves([function.__self__]):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    return jax.tree_util.Partial(function)


class Code:
    """A function's primitive operations, equal to those of any function that does the same.

    Parameters of an operation are compared as objects: a callback or a custom derivative equals no
    other. (The text of a jaxpr would not do, as it omits such functions.) Where the function is not
    differentiated, custom derivatives may be left out of the comparison.
    """

    def __init__(self, jaxpr: Any, *, derivatives: bool = True):
        self.jaxpr, self._operations = jaxpr, _operations(jaxpr, () if derivatives else _RULES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and self._operations == other._operations

    def __hash__(self) -> int:
        return hash(self._operations)


class Itself:
    """Equal only to a wrapper of the same object."""

    def __init__(self, held: object):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


# The parameters of operations that hold custom derivatives, new objects in every trace.
_RULES = ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees")


def _operations(jaxpr: Jaxpr, ignored: Sequence[str] = ()) -> Hashable:
    """A jaxpr without the names of its variables and some parameters, to be compared."""
    # Names of variables differ between traces, the order of their first appearance does not.
    numbers: dict[Var, int] = {}

    def atom(value: Var | Literal) -> Hashable:
        if isinstance(value, Literal):
            # Compared by bytes: a NaN equals itself, and −0 differs from 0.
            number = np.asarray(value.val)
            return str(value.aval), number.dtype.name, number.tobytes()
        return numbers.setdefault(value, len(numbers)), str(value.aval)

    def parameter(value: object) -> Hashable:
        # Inner programs, such as those of loops, are compared in the same way as the outer one.
        if isinstance(value, ClosedJaxpr):
            return _operations(value.jaxpr, ignored), tuple(map(Itself, value.consts))
        if isinstance(value, Jaxpr):
            return _operations(value, ignored)
        if isinstance(value, (tuple, list)):
            return type(value).__name__, *map(parameter, value)
        # Arrays, which cannot be hashed, equal only themselves.
        try:
            hash(value)
        except TypeError:
            return Itself(value)
        return value

    inputs = [atom(var) for var in (*jaxpr.constvars, *jaxpr.invars)]
    operations = [
        (
            eqn.primitive,
            *map(atom, eqn.invars),
            *(
                (name, parameter(eqn.params[name]))
                for name in sorted(eqn.params)
                if name not in ignored
            ),
            *map(atom, eqn.outvars),
        )
        for eqn in jaxpr.eqns
    ]
    return len(jaxpr.constvars), *inputs, *operations, *map(atom, jaxpr.outvars)


@pytree
class TracedFunction:
    """A function of arrays of given shapes, with closed-over arrays as leaves, code as structure.

    Attributes:
        closed_over: the arrays.
        code: the operations on them.
    """

    closed_over: tuple[Array, ...]
    code: Code = static()

    def __call__(self, *args: Array) -> Array:
        """The function's value."""
        jaxpr = self.code.jaxpr
        # A jaxpr fixes its constants' dtypes: leaves of another one are cast.
        arrays = [
            array if array.dtype == var.aval.dtype else jnp.asarray(array, var.aval.dtype)
            for array, var in zip(self.closed_over, jaxpr.constvars, strict=True)
        ]
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, arrays))(*args)[0]


def as_traced(
    function: Callable[..., Array], *args: PyTree[Array | jax.ShapeDtypeStruct]
) -> TracedFunction:
    """A function of arrays like these, returning one array, as a pytree.

    It is traced again at every call. For `jax.jit`, two functions with the same operations are one
    program, and one function whose operations have changed with the values it refers to is another.

    Example:
        >>> import jax
        >>> cube = lambda power: as_traced(lambda x: x**power, jnp.ones(()))
        >>> jax.tree.structure(cube(3)) == jax.tree.structure(cube(3))
        True
        >>> jax.tree.structure(cube(3)) == jax.tree.structure(cube(2))
        False
        >>> float(jax.jit(lambda function: function(jnp.array(2.0)))(cube(3)))
        8.0
    """
    # JAX caches the trace of a function, hence a new lambda.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    return TracedFunction(tuple(closed.consts), Code(closed.jaxpr))


def num_particles(particles: PyTree[Array]) -> int:
    """The length of the leading axis that all leaves of `particles` share."""
    leaves = jax.tree.leaves(particles)
    if not leaves:
        raise ValueError("particles must hold at least one array; got an empty pytree.")
    # Tested first, since the sizes below are those of leading axes, which scalars lack.
    if any(jnp.ndim(leaf) == 0 for leaf in leaves):
        raise ValueError("particles need a leading axis on every leaf; got a scalar leaf.")
    sizes = {jnp.shape(leaf)[0] for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "the leaves of particles must share one non-zero leading particle axis; "
            f"got leading sizes {sorted(sizes)}."
        )
    return sizes.pop()


def ravel_particles(
    particles: PyTree[Array],
) -> tuple[Float[Array, "n d"], Callable[[Float[Array, "n d"]], PyTree[Array]]]:
    """Particles as one matrix, one row each, and the inverse function of such a matrix.

    Args:
        particles: an array of shape (n, d), or any pytree whose leaves share a leading axis n.

    Returns:
        The matrix "n d" and its inverse map. For an (n, d) array both are the identity.
    """
    if isinstance(particles, jax.Array) and particles.ndim == 2:
        return particles, lambda x: x
    num_particles(particles)
    # All particles have the structure of one, so one unraveling serves every row.
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], particles))[1]
    matrix = jax.vmap(lambda particle: ravel_pytree(particle)[0])(particles)
    return matrix, jax.vmap(unravel)
