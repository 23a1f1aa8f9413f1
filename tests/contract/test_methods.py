"""What a method object takes for its fields."""

import dataclasses
import importlib
from typing import Any

import jax
import pytest

ROOMS = "fdiv", "flows", "inference", "kernels", "losses", "ot", "problems", "ratio", "ratio.heads"
REQUIRED = dataclasses.MISSING


def methods():
    """Public method objects that are built without arguments."""
    for room in ROOMS:
        module = importlib.import_module(f"divjax.{room}")
        for name in module.__all__:
            cls = getattr(module, name)
            if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
                continue
            fields = [field for field in dataclasses.fields(cls) if field.init]
            if all(
                REQUIRED not in (f.default, f.default_factory) or _has_default(f) for f in fields
            ):
                yield f"{room}.{name}", cls


def _has_default(field):
    return field.default is not REQUIRED or field.default_factory is not REQUIRED


METHODS = dict(methods())


@pytest.mark.parametrize("name", METHODS)
def test_a_text_is_no_number(name):
    for field in dataclasses.fields(METHODS[name]):
        if not field.init or field.type is Any:  # a head, or its name
            continue
        with pytest.raises(ValueError, match=field.name):
            METHODS[name](**{field.name: "a"})


@pytest.mark.parametrize("name", METHODS)
def test_leaves_may_be_labelled(name):
    """As by optax's partitions, which map a tree of numbers to one of names."""
    method = METHODS[name]()
    labels = jax.tree.map(lambda leaf: "a", method)
    assert type(labels) is type(method)
    assert set(jax.tree.leaves(labels)) <= {"a"}
