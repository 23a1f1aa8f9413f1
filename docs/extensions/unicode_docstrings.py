"""Docstrings that are plain text, with formulas in Unicode, made safe for reStructuredText.

Bars, stars and underscores of formulas are markup there. Escaped, they are shown as written.
"""

import inspect
import re
from typing import Any

__all__ = ["as_restructured_text", "setup"]

# Napoleon takes what is before the first colon of a property's text, or of what is returned, for a
# type. Its place is taken by a character of no meaning until napoleon has run.
COLON = "\ue000"
# Markup that is meant: code, and the emphasis of a word.
INLINE = re.compile(r"(``[^`]*``|`[^`]*`|(?<![\w*^])\*[a-z]+\*(?![\w*]))")
# Bars, stars, and underscores at the end of a name.
MARKUP = re.compile(r"([|*]|(?<=\w)_(?!\w))")


def as_restructured_text(lines: list[str]) -> list[str]:
    r"""The lines of a docstring, in which formulas are text.

    Example:
        >>> as_restructured_text(["The norm |x| of `x`, its *square* y*."])
        ['The norm \\|x\\| of `x`, its *square* y\\*.']
        >>> as_restructured_text(["Two `Normal`s, |f*|.", ">>> 2 * 3 | 4"])
        ['Two `Normal`\\ s, \\|f\\*\\|.', '>>> 2 * 3 | 4']
    """
    result, in_doctest = [], False
    for index, line in enumerate(lines):
        text = line.strip()
        # An example ends at the next empty line.
        in_doctest = bool(text) and (in_doctest or text.startswith(">>>"))
        line = line if in_doctest else _escape(line)
        result.append(_without_colon(line) if index and lines[index - 1] == "Returns:" else line)
    return result


def _without_colon(line: str) -> str:
    return line.replace(": ", f"{COLON} ")


def _escape(line: str) -> str:
    # Parameters with stars are napoleon's.
    if re.match(r"\s+\*+\w+:", line):
        return line
    parts = INLINE.split(line)
    # Every second part is inline markup. Letters may follow it only after an escape: `Normal`s.
    for index in range(0, len(parts), 2):
        parts[index] = MARKUP.sub(r"\\\1", parts[index])
        if index and parts[index][:1].isalpha():
            parts[index] = rf"\ {parts[index]}"
    return "".join(parts)


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring before napoleon reads its sections."""
    # A table in Markdown is on the room's own page.
    kept = [line for line in lines if not line.startswith("|")] if what == "module" else lines
    lines[:] = as_restructured_text(list(kept))
    if what in ("attribute", "data", "property") and lines:
        lines[0] = _without_colon(lines[0])


def restore_colons(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Put the colons back, after napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the docstring describes."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, before and after napoleon, whose priority is 500."""
    from sphinx.domains.python import PyObject

    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_colons, priority=600)
    app.connect("autodoc-skip-member", skip_member)
    # The heading of a class's attributes, which is "Variables" otherwise.
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
