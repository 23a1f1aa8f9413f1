"""Pages that are kept elsewhere in the repository: notebooks, and the results of experiments.

They are copied into folders that git ignores: `notebooks/`, of each notebook as .ipynb and the list
of them, and `results/`, of each page and the figures beside it.
"""

import re
from pathlib import Path
from typing import Any

import jupytext

__all__ = ["copy_pages", "list_entry", "setup"]

ROOT = Path(__file__).parent.parent.parent


def list_entry(name: str, markdown: str) -> str:
    r"""A line of the gallery: a notebook's title, as a link, and its first sentence.

    Example:
        >>> list_entry("tour", "# A tour\n\nAll rooms in a minute. More follows.")
        '- [A tour](notebooks/tour.ipynb). All rooms in a minute.'
    """
    title, _, text = markdown.strip().partition("\n")
    sentence = re.match(r".*?[.!?](?=\s|$)", " ".join(text.split()))
    of = f". {sentence.group()}" if sentence else ""
    return f"- [{title.lstrip('# ')}](notebooks/{name}.ipynb){of}"


def copy_pages(docs: Path) -> None:
    """Write the pages, and remove those whose source is no more."""
    entries, pages = [], {}
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        notebook = jupytext.read(path)
        first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
        entries.append(list_entry(path.stem, first.source))
        # Cells are numbered: drawn names would differ from build to build.
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
        written = jupytext.writes(notebook, fmt="ipynb")
        pages[docs / "notebooks" / f"{path.stem}.ipynb"] = written.encode()
    pages[docs / "notebooks" / "list.txt"] = ("\n".join(entries) + "\n").encode()
    for suffix in ("md", "png"):
        for path in sorted((ROOT / "experiments" / "results").glob(f"*.{suffix}")):
            pages[docs / "results" / path.name] = path.read_bytes()
    for folder in ("notebooks", "results"):
        (docs / folder).mkdir(exist_ok=True)
        for path in set((docs / folder).iterdir()) - set(pages):
            path.unlink()
    # What has not changed is left alone, so that it is not read again.
    for path, content in pages.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", lambda app, config: copy_pages(Path(app.srcdir)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
