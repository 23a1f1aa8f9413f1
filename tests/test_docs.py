"""The documentation names everything that is public, and every paper that is cited.

That it builds, and that no reference in it is broken, is for `make docs`. Its code is run by
`tests/test_readme.py`.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import divjax

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "extensions"))

documented_names = importlib.import_module("documented_names")


@pytest.mark.parametrize("room", documented_names.rooms())
def test_every_public_name_is_in_the_reference(room):
    page = (ROOT / "docs" / "api" / f"{room}.md").read_text()
    documented = set(re.findall(r"\.\. automodule:: (\S+)", page))
    by_hand = set(re.findall(r"\.\. py:data:: (\S+)", page))
    for module, name in documented_names.public_names(f"divjax.{room}"):
        # What has no docstring of its own is left out of a module's page by Sphinx.
        value = getattr(sys.modules[module], name)
        own = isinstance(value, type) or hasattr(value, "__code__") or hasattr(value, "__wrapped__")
        assert module in documented
        assert own or name in by_hand, name


def test_top_level_names_are_in_the_reference():
    page = (ROOT / "docs" / "api" / "core.md").read_text()
    for name in set(divjax.__all__) - set(documented_names.rooms()) - {"__version__"}:
        assert re.search(rf"\b{name}\b", page), name


def reference_sections():
    """The text of each section "References" of a docstring of the package."""
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in (ROOT / "divjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, definitions) and (text := ast.get_docstring(node)):
                for section in re.findall(r"^References:\n((?:[ ]+.*\n?)+)", text, re.MULTILINE):
                    yield " ".join(section.split())


def cited_papers(section):
    """First authors and years of the papers that a section cites, and their numbers at arXiv.

    Example:
        >>> sorted(cited_papers("Lee 2001; Ko, Kim 2024, eq. 3. MWGraD, arXiv 2505.18765."))
        [('', '2505.18765'), ('Ko', '2024'), ('Lee', '2001')]
    """
    papers = {("", number) for number in re.findall(r"arXiv (\d{4}\.\d{5})", section)}
    section = section.replace(" et al.", "")
    for clause, year in re.findall(r"([^.;:()]*?)\(?\b((?:19|20)\d\d)\b(?!\.\d)", section):
        papers.add((clause.split(",")[0].strip(), year))
    return papers


def test_every_cited_paper_is_in_the_bibliography():
    entries = (ROOT / "docs" / "references.bib").read_text().split("\n@")
    found = {paper for section in reference_sections() for paper in cited_papers(section)}
    assert len(found) > 100
    for author, number in sorted(found):
        if author:
            pattern = rf"author = \{{{re.escape(author)}(?!\w).*year = \{{{number}\}}"
        else:
            pattern = re.escape(number)
        assert any(re.search(pattern, entry, re.DOTALL | re.IGNORECASE) for entry in entries), (
            author,
            number,
        )
