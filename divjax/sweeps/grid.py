"""Grids of hyper-parameters: the dimensions of a sweep and the values along each of them."""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import ArrayLike

from divjax.core.checks import check_count
from divjax.core.conversion import without_mask

__all__ = [
    "Choices",
    "Dimension",
    "Grid",
    "Range",
    "Zipped",
    "as_dimensions",
    "choices",
    "log_uniform",
    "sobol",
    "uniform",
    "zipped",
]

# Dimensions and arguments that a sweep names itself.
_RESERVED = ("key", "seed", "finite")


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of a hyper-parameter: evenly spaced values of a grid, or a side of `sobol`.

    Attributes:
        low: its lower end.
        high: its upper end.
        num: the number of values, ends included, where it is a dimension of its own.
        logarithmic: whether values are spaced evenly in their logarithms.
    """

    low: float
    high: float
    num: int | None = None
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"low and high must be finite with low < high; got {self.low} and {self.high}."
            )
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"low must be positive for a logarithmic range; got {self.low}.")
        if self.num is not None:
            check_count(1, num=self.num)

    @property
    def values(self) -> np.ndarray:
        """The `num` values of a dimension; the middle, where there is but one."""
        if self.num is None:
            raise ValueError(
                "num, the number of values along a dimension, must be given: "
                "uniform(low, high, num) or log_uniform(low, high, num)."
            )
        return self.at(np.linspace(0, 1, self.num) if self.num > 1 else np.array([0.5]))

    def at(self, fractions: np.ndarray) -> np.ndarray:
        """The values at these fractions of the way from `low` to `high`."""
        # A fraction of the way in the logarithm is a power of the ratio of the ends.
        if self.logarithmic:
            values = self.low * (self.high / self.low) ** fractions
        else:
            values = self.low + (self.high - self.low) * fractions
        # The ends are the user's own numbers, free of rounding.
        return np.where(fractions == 0, self.low, np.where(fractions == 1, self.high, values))


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values that a function is compiled for, one by one: methods, architectures, texts, counts.

    Attributes:
        values: the values.
        labels: their names in the dataset.
    """

    values: tuple[Any, ...]
    labels: tuple[Hashable, ...]


@dataclasses.dataclass(frozen=True)
class Zipped:
    """Hyper-parameters that change together along one dimension.

    Attributes:
        values: their values by name, equally many.
    """

    values: Mapping[str, Any]


Grid: TypeAlias = Mapping[str, ArrayLike | Iterable[Any] | Mapping[str, Any] | Range | Zipped]


def uniform(low: float, high: float, num: int | None = None) -> Range:
    """The interval from `low` to `high`.

    Args:
        low: the lower end.
        high: the upper end.
        num: the number of evenly spaced values, ends included. Needed where the range is a
            dimension of its own, not in `sobol`.

    Raises:
        ValueError: if an end is not finite, low ≥ high, or `num` is not positive.

    Example:
        >>> from divjax import sweeps
        >>> sweeps.uniform(0.0, 1.0, num=3).values
        array([0. , 0.5, 1. ])
    """
    return Range(float(low), float(high), num)


def log_uniform(low: float, high: float, num: int | None = None) -> Range:
    """The interval from `low` to `high`, with values spaced evenly in their logarithms.

    Args:
        low: the lower end, positive.
        high: the upper end.
        num: the number of values, ends included. Needed where the range is a dimension of its own,
            not in `sobol`.

    Raises:
        ValueError: if an end is not finite or positive, low ≥ high, or `num` is not positive.

    Example:
        >>> from divjax import sweeps
        >>> sweeps.log_uniform(0.01, 1.0, num=3).values
        array([0.01, 0.1 , 1.  ])
    """
    return Range(float(low), float(high), num, logarithmic=True)


def choices(values: Iterable[Any] | Mapping[str, Any]) -> Choices:
    """Values that stay values of Python: the function is compiled once for each of them.

    Texts, booleans, classes, functions and other objects are choices by themselves. Numbers are
    choices only by this function: a count of steps or a width, which selects operations.

    Args:
        values: the values, or a dictionary of values by their labels in the dataset. Otherwise
            texts and numbers are their own labels, classes and functions go by their names, and
            other objects by their printed form.

    Raises:
        ValueError: if there are none, or two have one label.

    Example:
        >>> from divjax import sweeps
        >>> sweeps.choices([50, 100]).labels
        (50, 100)
        >>> sweeps.choices({"narrow": (8,), "wide": (64, 64)}).labels
        ('narrow', 'wide')
    """
    if isinstance(values, Mapping):
        # Given labels are texts, whatever the values are.
        labels, values = tuple(map(str, values)), tuple(values.values())
    else:
        values = tuple(values)
        labels = tuple(map(_label, values))
    # A masked value is a missing one, with a number behind it.
    if any(value is np.ma.masked for value in values):
        raise ValueError("choices must not hold masked values, which are missing.")
    # An index of the dataset is of one kind: text, unless all labels are numbers.
    if not all(isinstance(label, (int, float)) for label in labels) or any(
        isinstance(label, bool) for label in labels
    ):
        labels = tuple(map(str, labels))
    if not labels:
        raise ValueError("choices must hold at least one value; got none.")
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"choices must have labels of their own; got {', '.join(map(str, labels))}: "
            "give a dictionary of values by their labels."
        )
    return Choices(values, labels)


def _label(value: Any) -> Hashable:
    if isinstance(value, (str, bool, int, float)):
        return value
    return getattr(value, "__name__", None) or repr(value)


def zipped(**values: Any) -> Zipped:
    """Hyper-parameters that change together along one dimension, in place of their product.

    Args:
        **values: equally many values of each hyper-parameter, numbers or choices.

    Raises:
        ValueError: if none are given, or their numbers differ.

    Example:
        >>> from divjax import sweeps
        >>> list(sweeps.zipped(epsilon=[0.1, 1.0], num_steps=sweeps.choices([500, 50])).values)
        ['epsilon', 'num_steps']
    """
    if not values:
        raise ValueError("zipped must be given at least one hyper-parameter by name; got none.")
    # Parsed here, so that a mistake is reported where it was made.
    parsed = {name: _values(name, given) for name, given in values.items()}
    # Values that change together are equally many.
    lengths = {name: _length(held) for name, held in parsed.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ValueError(f"zipped must be given equally many values of each name; got {shown}.")
    return Zipped(parsed)


def sobol(num: int, **ranges: Range) -> Zipped:
    """Points that fill a box evenly: the Sobol sequence of its ranges, along one dimension.

    With many hyper-parameters of which few matter, `num` such points hold `num` values of each,
    where a grid holds few. The points are deterministic: each is in the middle of its cell of the
    smallest dyadic net that holds `num` points.

    Args:
        num: the number of points; the sequence is most even at powers of two.
        **ranges: `uniform` or `log_uniform` ranges by the names of hyper-parameters.

    Raises:
        ValueError: if `num` is not positive, none is given, or one is not a range.

    References:
        I. M. Sobol' (1967), On the distribution of points in a cube and the approximate evaluation
        of integrals.

    Example:
        >>> from divjax import sweeps
        >>> sweeps.sobol(4, epsilon=sweeps.uniform(0.0, 1.0)).values["epsilon"]
        array([0.125, 0.625, 0.875, 0.375])
    """
    check_count(1, num=num)
    if not ranges:
        raise ValueError("sobol must be given at least one range by name; got none.")
    for name, given in ranges.items():
        if not isinstance(given, Range):
            raise ValueError(
                f"{name} must be a range, uniform(low, high) or log_uniform(low, high); "
                f"got {type(given).__name__}."
            )
    # Imported here, since SciPy's statistics take a second that few programs need.
    from scipy.stats import qmc

    # The sequence's first point is the corner of the box; the middles of cells have none.
    exponent = math.ceil(math.log2(num))
    points = qmc.Sobol(len(ranges), scramble=False).random_base2(exponent)[:num]
    centred = points + 0.5**exponent / 2
    return Zipped({name: held.at(centred[:, i]) for i, (name, held) in enumerate(ranges.items())})


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of a dataset, with the hyper-parameters that change along it.

    Attributes:
        name: of the dimension.
        values: of each hyper-parameter along it, numbers or choices.
    """

    name: str
    values: dict[str, np.ndarray | Choices]

    @property
    def size(self) -> int:
        """The number of settings along it."""
        return _length(next(iter(self.values.values())))

    @property
    def is_static(self) -> bool:
        """Whether a function is compiled for each of its settings."""
        return any(isinstance(held, Choices) for held in self.values.values())

    def setting(self, index: int) -> dict[str, Any]:
        """The hyper-parameters at a place along it, numbers as scalars of NumPy."""
        return {
            name: held.values[index] if isinstance(held, Choices) else held[index]
            for name, held in self.values.items()
        }

    def coordinates(self) -> dict[str, np.ndarray]:
        """The labels along it, by hyper-parameter."""
        return {
            name: np.asarray(held.labels) if isinstance(held, Choices) else held
            for name, held in self.values.items()
        }


def as_dimensions(grid: Grid) -> tuple[Dimension, ...]:
    """The dimensions of a grid, validated.

    Raises:
        ValueError: if the grid is not a dictionary, a name is not an identifier, is reserved or is
            given twice, or a dimension has no values, or values not finite or not distinct.
    """
    if not isinstance(grid, Mapping):
        raise ValueError(
            "grid must be a dictionary of values by the names of hyper-parameters; "
            f"got {type(grid).__name__}."
        )
    # A dimension of several hyper-parameters has a name of its own.
    dimensions = tuple(
        Dimension(
            name,
            {each: _values(each, held) for each, held in given.values.items()}
            if isinstance(given, Zipped)
            else {name: _values(name, given)},
        )
        for name, given in grid.items()
    )
    _check_names([dimension.name for dimension in dimensions])
    _check_names([name for dimension in dimensions for name in dimension.values])
    # A dimension of several hyper-parameters has no values of its own.
    parameters = {name: dimension for dimension in dimensions for name in dimension.values}
    for dimension in dimensions:
        if parameters.get(dimension.name, dimension) is not dimension:
            raise ValueError(f"grid names {dimension.name} twice; got it in another dimension too.")
        index = dimension.coordinates().get(dimension.name)
        if index is not None and len(set(index.tolist())) < len(index):
            raise ValueError(f"{dimension.name} must hold distinct values; got {index.tolist()}.")
    return dimensions


def _check_names(names: list[str]) -> None:
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise ValueError(
                "names of hyper-parameters must be identifiers, other than "
                f"{', '.join(_RESERVED)}; got {name!r}."
            )
        if names.count(name) > 1:
            raise ValueError(f"grid must name each hyper-parameter once; got {name} twice.")


def _length(held: np.ndarray | Choices) -> int:
    return len(held.values) if isinstance(held, Choices) else len(held)


def _values(name: str, given: Any) -> np.ndarray | Choices:
    """Numbers as a vector, anything else as choices."""
    # Explicit types first, then those whose meaning is inferred.
    if isinstance(given, Choices):
        return given
    if isinstance(given, Mapping):
        return choices(given)
    if isinstance(given, Zipped):
        raise ValueError(f"{name} must not be zipped within zipped.")
    if isinstance(given, Range):
        return _numbers(name, given.values)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a sequence of values; got {type(given).__name__}.")
    if not isinstance(given, (np.ndarray, jax.Array)):
        given = list(given)
        if given and not all(_is_number(value) for value in given):
            return choices(given)
    return _numbers(name, np.asarray(without_mask(given)))


def _is_number(value: Any) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    scalar = kind is not None and kind in "fiu" and np.ndim(value) == 0
    return scalar or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _numbers(name: str, values: np.ndarray) -> np.ndarray | Choices:
    if values.dtype.kind == "b":
        return choices(values.tolist())
    if values.dtype.kind in "OSUcMm":
        raise ValueError(
            f"{name} must hold real numbers; got an array of {values.dtype}. "
            "A list of texts or other values of Python makes choices of them."
        )
    # Also half precision of JAX, whose kind is not that of NumPy's floats.
    if values.dtype.kind not in "fiu":
        values = values.astype(np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"{name} must be a non-empty vector, one value a setting; got shape {values.shape}. "
            "A dictionary of arrays by their labels makes choices of them."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity.")
    # Narrow integers would wrap, and half precision overflow: a setting is a number of Python.
    if values.dtype.kind in "iu" and values.dtype.itemsize < 4:
        values = values.astype(np.int64)
    if values.dtype == np.float16:
        values = values.astype(np.float64)
    # JAX's integers would wrap, as those of an array do.
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if dtype.kind in "iu" and not np.array_equal(values.astype(dtype), values):
        raise ValueError(
            f"{name} must hold integers within JAX's {dtype}; got {values.min()} to "
            f"{values.max()}. Give floats, or enable 64 bits."
        )
    if dtype.kind == "f":
        _check_told_apart(name, values, dtype)
    return values


def _check_told_apart(name: str, values: np.ndarray, dtype: np.dtype) -> None:
    """Refuse numbers that JAX would compute as zero, as infinity, or as another setting's."""
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        held = values.astype(dtype)
    # Subnormal numbers count as lost: some devices flush them to zero.
    lost = ~np.isfinite(held) | ((np.abs(held) < limits.tiny) & (values != 0))
    if lost.any() or len(np.unique(held)) < len(np.unique(values)):
        raise ValueError(
            f"{name} must hold numbers that JAX's {dtype} holds and tells apart; got "
            f"{values.min():.17g} to {values.max():.17g}. Give their logarithms or differences, or "
            "enable 64 bits."
        )
