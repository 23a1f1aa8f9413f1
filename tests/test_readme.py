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


@pytest.mark.slow
@pytest.mark.parametrize("path", list(filter(code_blocks, DOCUMENTS)), ids=lambda path: path.name)
def test_code_blocks_run(path):
    namespace = {}
    for block in code_blocks(path):
        exec(compile(block, path.name, "exec"), namespace)
