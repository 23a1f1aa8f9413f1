"""Names of a function's results: variables by the path to a leaf, dimensions by annotations."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax

__all__ = ["dimension_names", "variable_names"]


def variable_names(result: Any) -> list[str]:
    """A name for each leaf of a result: its path's fields and keys, joined by underscores.

    The field `value` of a result has the name of that result, and a sole array is `value`.

    Raises:
        ValueError: if two leaves have one name.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core.types import normal_estimate
        >>> variable_names({"kl": normal_estimate(jnp.array(0.5), jnp.array(0.1), 100)})[:3]
        ['kl', 'kl_std_error', 'kl_interval_lower']
    """
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(result):
        parts = [str(_entry(step)) for step in path]
        if len(parts) > 1 and parts[-1] == "value":
            parts.pop()
        # A slash would be a group of a file.
        names.append("_".join(parts).replace("/", "_") or "value")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"fn must return results of distinct names; got {name} twice.")
    return names


def _entry(step: Any) -> Any:
    """The name, key or index of a step on the way to a leaf."""
    return getattr(step, "name", getattr(step, "key", getattr(step, "idx", step)))


def dimension_names(
    results: Sequence[Any], given: Mapping[str, Sequence[str]], taken: Sequence[str]
) -> list[dict[str, tuple[str, ...]]]:
    """Names of the axes of each leaf of each result, by variable.

    Args:
        results: pytrees of shapes, of one dataset.
        given: the names that the caller gave, by variable. Other axes have those of their field's
            annotation (`Float[Array, "num_steps k"]`), if its sizes agree with those of the
            variables before, and otherwise the variable's name with a number.
        taken: names in use by the dataset: dimensions, hyper-parameters, `seed`, `finite`.

    Raises:
        ValueError: if given names belong to no variable, are not as many as its axes, or are names
            of something else.
    """
    variables = [variable_names(result) for result in results]
    known = dict.fromkeys(name for names in variables for name in names)
    for name in given:
        if name not in known:
            raise ValueError(
                f"dims must name variables of the results, {', '.join(known)}; got {name!r}."
            )
    # No axis has the size −1: names of variables and of the grid are refused for axes.
    sizes = dict.fromkeys((*taken, *known), -1)
    return [
        _names_of_axes(result, names, given, sizes)
        for result, names in zip(results, variables, strict=True)
    ]


def _names_of_axes(
    result: Any,
    variables: Sequence[str],
    given: Mapping[str, Sequence[str]],
    sizes: dict[str, int],
) -> dict[str, tuple[str, ...]]:
    """As `dimension_names`, of one result; enters the sizes of its axes."""
    dimensions = {}
    # In the order of the leaves, so that the same result always has the same names.
    for (path, leaf), variable in zip(
        jax.tree_util.tree_leaves_with_path(result), variables, strict=True
    ):
        names = given.get(variable)
        if names is None:
            names = _annotated(result, path)
            # Annotated names serve if they fit the shape and have no other size elsewhere.
            if len(names) != len(leaf.shape) or any(
                sizes.get(name, size) != size for name, size in zip(names, leaf.shape, strict=False)
            ):
                names = [f"{variable}_{axis}" for axis in range(len(leaf.shape))]
        elif isinstance(names, str) or len(names) != len(leaf.shape):
            raise ValueError(
                f"dims must name each axis of {variable}, of shape {leaf.shape}; got {names!r}."
            )
        # A dataset has one size for all axes of one name.
        for name, size in zip(names, leaf.shape, strict=True):
            if sizes.get(name, size) != size:
                raise ValueError(
                    f"dims must give an axis of size {size} of {variable} a name of its own; "
                    f"got {name!r}, which is another one's."
                )
        sizes.update(zip(names, leaf.shape, strict=True))
        dimensions[variable] = tuple(names)
    return dimensions


def _annotated(result: Any, path: Sequence[Any]) -> list[str]:
    """The axes' names in the annotation of the field at the end of a path, or none."""
    if not path:
        return []
    # The way to a leaf leads to the object whose field it is.
    *way, last = path
    for step in way:
        name = _entry(step)
        result = getattr(result, name) if hasattr(step, "name") else result[name]
    if not (dataclasses.is_dataclass(result) or hasattr(result, "_fields")):
        return []
    try:
        annotation = typing.get_type_hints(type(result)).get(_entry(last))
    except (NameError, TypeError):
        return []
    names = getattr(annotation, "dim_str", "").split()
    return names if all(name.isidentifier() for name in names) else []
