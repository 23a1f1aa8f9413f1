"""Signatures with annotations as they are written: shapes and dtypes, without unions of arrays."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike
from jaxtyping import AbstractArray

__all__ = ["annotation_text", "setup", "signature_text"]

# A longer default is shown by its class: of numbers, texts and tuples, and of other objects.
LONGEST_VALUE, LONGEST_DEFAULT = 60, 40


def annotation_text(annotation: Any) -> str:
    """An annotation in a few characters, such as `Float["n d"]`.

    Example:
        >>> from jaxtyping import Array, Float
        >>> annotation_text(Float[Array, "n d"] | None)
        'Float["n d"] | None'
    """
    if isinstance(annotation, str):
        return annotation
    if annotation is inspect.Parameter.empty:
        return ""
    if annotation is Any:
        return "Any"
    if annotation is None or annotation is type(None):
        return "None"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = list(typing.get_args(annotation))
        # Arrays of JAX and of NumPy and numbers of Python are one thing to the reader.
        numbers = typing.get_args(ArrayLike)
        texts = ["ArrayLike"] if set(numbers) <= set(parts) else []
        texts += [annotation_text(part) for part in parts if not texts or part not in numbers]
        return " | ".join(dict.fromkeys(texts))
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        kind = annotation.__name__.split("[")[0]
        return f'{kind}["{annotation.dim_str.strip()}"]' if annotation.dim_str.strip() else kind
    if inspect.isclass(annotation) and issubclass(annotation, jax.Array):
        return "Array"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    name = getattr(origin or annotation, "__name__", str(annotation))
    # The arguments of a function are in its docstring.
    if not arguments or origin in (Callable, type):
        return re.sub(r"\[.*", "", name)
    return f"{name}[{', '.join('...' if a is Ellipsis else annotation_text(a) for a in arguments)}]"


def default_text(value: Any, field: Any = None) -> str:
    """A default as Python, or by its class if that is long."""
    # In the signature of a dataclass a mark stands for a default that is made for each object.
    if getattr(field, "default_factory", dataclasses.MISSING) is not dataclasses.MISSING:
        value = field.default_factory()
    text = repr(value)
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    if isinstance(value, (bool, int, float, str, tuple, type(None))) and len(text) < LONGEST_VALUE:
        return text
    if dataclasses.is_dataclass(value) or len(text) > LONGEST_DEFAULT or "<" in text:
        return f"{type(value).__name__}()"
    return text


def signature_text(function: Any, is_method: bool) -> tuple[str, str]:
    """The parameters of a function or class in parentheses, and what it returns."""
    signature = inspect.signature(function)
    shown, separator = [], False
    for index, parameter in enumerate(signature.parameters.values()):
        if index == 0 and is_method:
            continue
        # The stars that separate parameters by keyword, and those by position, from the others.
        if parameter.kind is parameter.KEYWORD_ONLY and not separator:
            separator = True
            shown.append("*")
        separator = separator or parameter.kind is parameter.VAR_POSITIONAL
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text += parameter.name
        if annotation := annotation_text(parameter.annotation):
            text += f": {annotation}"
        if parameter.default is not parameter.empty:
            fields = getattr(function, "__dataclass_fields__", {})
            text += " = " if annotation else "="
            text += default_text(parameter.default, fields.get(parameter.name))
        shown.append(text)
    return f"({', '.join(shown)})", annotation_text(signature.return_annotation)


def write_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Replace autodoc's signature of functions, methods and classes."""
    if what not in ("class", "function", "method"):
        return None
    # A protocol or an enumeration is not made by its reader.
    if what == "class" and (getattr(obj, "_is_protocol", False) or not hasattr(obj, "__init__")):
        return "", ""
    try:
        is_method = what == "method" and not inspect.ismethod(obj)
        parameters, result = signature_text(obj, is_method)
    except (TypeError, ValueError):
        return None
    return parameters, "" if what == "class" else result


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-signature", write_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
