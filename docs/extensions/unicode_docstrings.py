"""Docstrings that are plain text, with formulas in Unicode, made safe for reStructuredText.

Bars, stars and underscores of formulas are markup there, and a formula that is indented under its
sentence is an error. Escaped and set apart, both are shown as they are written.
"""

import inspect
import re
from typing import Any

__all__ = ["as_restructured_text", "setup"]

# Sections whose entries are indented by themselves.
ENTRIES = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
INLINE_CODE = re.compile(r"(``[^`]*``|`[^`]*`)")
# Emphasis of a word is kept: a star before its first letter and after its last one.
EMPHASIS = re.compile(r"(?<![\w*^])\*[a-z]+\*(?![\w*])")
MARKUP = re.compile(r"([|*]|(?<=\w)_(?![\w]))")


def as_restructured_text(lines: list[str]) -> list[str]:
    r"""The lines of a docstring, in which formulas are text and indented ones blocks.

    Example:
        >>> as_restructured_text(["The norm |x|, of", "    x = y*."])
        ['The norm \\|x\\|, of', '', '.. code-block:: text', '', '    x = y*.', '']
    """
    result: list[str] = []
    in_entries, in_doctest, in_formula = False, False, False
    for line in lines:
        indent, text = len(line) - len(line.lstrip()), line.strip()
        # Sections begin at the margin.
        if indent == 0 and text:
            in_entries = text in ENTRIES
        in_doctest = bool(text) and (in_doctest or text.startswith(">>>"))
        previous = result[-1] if result else ""
        deeper = indent >= 4 + len(previous) - len(previous.lstrip())
        if in_formula and (not text or indent < 4):
            result.append("")
            in_formula = False
        elif not (in_formula or in_entries or in_doctest) and deeper and _is_sentence(previous):
            result += ["", ".. code-block:: text", ""]
            in_formula = True
        result.append(line if in_formula or in_doctest else _escape(line))
    return [*result, ""] if in_formula else result


def _is_sentence(line: str) -> bool:
    # What follows a section's heading is its text.
    return bool(line.strip()) and not re.fullmatch(r"(Example|References|Note)s?:", line.strip())


def _escape(line: str) -> str:
    # Parameters with stars are napoleon's.
    if EMPHASIS.search(line) or re.match(r"\s+\*+\w+:", line):
        return line
    # Every second part is code. Letters may follow it only after an escape: `Normal`s.
    parts = INLINE_CODE.split(line)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = MARKUP.sub(r"\\\1", part)
            if index and part[:1].isalpha():
                parts[index] = rf"\ {parts[index]}"
    return "".join(parts)


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring before napoleon reads its sections."""
    # A table in Markdown is on the room's own page.
    kept = [line for line in lines if not line.startswith("|")] if what == "module" else lines
    lines[:] = as_restructured_text(list(kept))


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the docstring describes."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, ahead of napoleon, whose priority is 500."""
    from sphinx.domains.python import PyObject

    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    # The heading of a class's attributes, which is "Variables" otherwise.
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
