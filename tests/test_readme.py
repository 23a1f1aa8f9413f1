"""The documents' code runs as printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def code_blocks(path):
    """The blocks of a document that are Python, which share their names."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_documents_have_code():
    assert all(len(code_blocks(path)) >= 3 for path in DOCUMENTS[:2])
    assert sum(bool(code_blocks(path)) for path in DOCUMENTS) >= 12


# Those of the documentation's pages compile for minutes.
MARKED = [
    pytest.param(
        path, id=path.name, marks=pytest.mark.slow if index < 2 else pytest.mark.exhaustive
    )
    for index, path in enumerate(DOCUMENTS)
    if code_blocks(path)
]


@pytest.mark.parametrize("path", MARKED)
def test_code_blocks_run(path):
    namespace = {}
    for block in code_blocks(path):
        exec(compile(block, path.name, "exec"), namespace)
