"""A pytest plugin that checks the annotations of the functions inside of the package.

    python -m pytest -p tests.typechecked tests/contract

Public functions take lists, frames and arrays of many kinds, and convert them. The others are
called with arrays: private functions and methods, and functions of modules that are not public.
Beartype checks their annotations, and jaxtyping that axes of one name have one size within a call.
A function that is itself compiled is not checked, but those that it calls are.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import beartype
from jaxtyping import jaxtyped

import divjax

# An integer is accepted for a float, as in PEP 484.
_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def modules() -> Iterator[ModuleType]:
    """Every module of the package, imported."""
    for found in pkgutil.walk_packages(divjax.__path__, "divjax."):
        yield importlib.import_module(found.name)


def public_values(room: ModuleType) -> Iterator[Any]:
    """What a room exports, and its public modules."""
    for name in getattr(room, "__all__", ()):
        value = getattr(room, name)
        yield from public_values(value) if isinstance(value, ModuleType) else (value,)


def checked(function: FunctionType) -> Callable[..., Any]:
    """The function with its annotations checked at every call."""
    return jaxtyped(function, typechecker=_CHECK)


def check_private_methods(owner: type) -> None:
    """Check those methods of a class that are private."""
    for name, method in list(vars(owner).items()):
        private = name.startswith("_") and not name.startswith("__")
        # `Self` has a meaning only while a class is built.
        if (
            private
            and isinstance(method, FunctionType)
            and "Self" not in str(method.__annotations__)
        ):
            setattr(owner, name, checked(method))


def check_package() -> None:
    """Check every function of the package that is not public, wherever it is held by name."""
    everything = list(modules())
    public = {id(value) for value in public_values(divjax)}
    # Checks are there for values of any type.
    is_inside = lambda f: id(f) not in public and not f.__name__.startswith(("check_", "known_"))
    replaced: dict[int, Callable[..., Any]] = {}
    for module in everything:
        for value in vars(module).values():
            own = getattr(value, "__module__", None) == module.__name__
            if own and isinstance(value, type):
                check_private_methods(value)
            elif own and isinstance(value, FunctionType) and is_inside(value):
                replaced[id(value)] = checked(value)
    for module in everything:
        for name, value in list(vars(module).items()):
            if id(value) in replaced:
                setattr(module, name, replaced[id(value)])


def pytest_configure() -> None:
    """Called where this module is a plugin, not where it is imported."""
    check_package()
