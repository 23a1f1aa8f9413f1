"""Every public name must be in the reference: one that is not is a warning, hence an error."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import divjax

__all__ = ["public_names", "rooms", "setup"]


def rooms() -> list[str]:
    """The modules that `divjax` offers, by their names."""
    # `core` and the command are attributes of the package once they are imported, but no rooms.
    modules = {module.name for module in pkgutil.iter_modules(divjax.__path__)}
    return sorted(modules & set(dir(divjax)) - {"core", "__main__"})


def public_names(module: str) -> Iterator[tuple[str, str]]:
    """The public names of a module and of those that are public in it, as pairs of both."""
    found = importlib.import_module(module)
    for name in found.__all__:
        if inspect.ismodule(getattr(found, name)):
            yield from public_names(f"{module}.{name}")
        else:
            yield module, name


def check_names(app: Any, env: Any) -> None:
    """Warn of names that no page documents."""
    # The tests use this module without Sphinx.
    from sphinx.util import logging

    documented = env.get_domain("py").objects
    for room in rooms():
        for module, name in public_names(f"divjax.{room}"):
            if f"{module}.{name}" not in documented:
                logging.getLogger(__name__).warning(f"{module}.{name} is not in the reference")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("env-check-consistency", check_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
