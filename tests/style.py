"""How the code reads, in numbers: `python -m tests.style divjax [another package]`.

Of each package, from its syntax trees: docstring and comment lines for each line of code, lengths
and nesting of functions, tuples unpacked from generators, untyped annotations, and two habits of
docstrings.
"""

import ast
import importlib.util
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NESTING = (ast.For, ast.While, ast.If, ast.With, ast.Try, *FUNCTIONS)
# "What is traced …" and "where they have …": clauses that stand for a noun.
FREE_RELATIVE = re.compile(r"\bwhat (is|are|was|were|it|they|has|have|a|an|the)\b", re.IGNORECASE)


def docstring_lines(tree: ast.AST) -> tuple[set[int], list[str]]:
    """The lines that docstrings take, and their texts."""
    lines: set[int] = set()
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node):
            statement = node.body[0]
            lines |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
            texts.append(ast.get_docstring(node) or "")
    return lines, texts


def code_and_comment_lines(source: str, docstrings: set[int]) -> tuple[set[int], int]:
    """The lines with code, and the number of comments."""
    code: set[int] = set()
    comments = 0
    layout = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in layout:
            code |= set(range(token.start[0], token.end[0] + 1))
    return code - docstrings, comments


def depth(node: ast.AST) -> int:
    """How deep blocks are nested within a function."""
    below = max((depth(child) for child in ast.iter_child_nodes(node)), default=0)
    return below + isinstance(node, NESTING)


def unpacked_generators(tree: ast.AST) -> int:
    """Assignments `a, b = (… for …)`."""
    return sum(
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.GeneratorExp)
        for node in ast.walk(tree)
    )


def sources(package: str) -> Iterator[str]:
    """The package's files, its tests left out."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"no package is called {package!r}.")
    for folder in found.submodule_search_locations:
        for path in sorted(Path(folder).rglob("*.py")):
            if not {"test", "tests"} & set(path.parts) and "_test" not in path.stem:
                yield path.read_text()


def measure(package: str) -> dict[str, str]:
    """The numbers of one package, as they are printed."""
    code = comments = documented = generators = 0
    untyped = 0
    lengths, depths, texts = [], [], []
    for source in sources(package):
        tree = ast.parse(source)
        docstrings, own_texts = docstring_lines(tree)
        lines, own_comments = code_and_comment_lines(source, docstrings)
        code, comments = code + len(lines), comments + own_comments
        documented += len(docstrings)
        generators += unpacked_generators(tree)
        untyped += len(re.findall(r"(: |-> )Any\b", source))
        texts += own_texts
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                span = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                lengths.append(len(span - docstrings))
                depths.append(max((depth(child) for child in node.body), default=0))
    words = sum(len(text.split()) for text in texts)
    relatives = sum(len(FREE_RELATIVE.findall(text)) for text in texts)
    semicolons = sum(text.count(";") for text in texts)
    lengths.sort()
    return {
        "lines of code": f"{code}",
        "docstring lines a code line": f"{documented / code:.2f}",
        "comment lines a code line": f"{comments / code:.3f}",
        "function length, median / p90 / max": (
            f"{statistics.median(lengths):.0f} / {lengths[int(0.9 * len(lengths))]} / {lengths[-1]}"
        ),
        "functions nested three deep or more": (
            f"{100 * sum(deep >= 3 for deep in depths) / len(depths):.1f} %"
        ),
        "`a, b = (… for …)` a thousand lines": f"{1000 * generators / code:.1f}",
        "`: Any`, `-> Any`": f"{untyped}",
        "docstrings: clauses with `what` a thousand words": f"{1000 * relatives / words:.2f}",
        "docstrings: semicolons a thousand words": f"{1000 * semicolons / words:.1f}",
    }


def main() -> None:
    """Print a table with a column for each package."""
    packages = sys.argv[1:] or ["divjax"]
    columns = [measure(package) for package in packages]
    print("| | " + " | ".join(packages) + " |")
    print("|---" * (len(packages) + 1) + "|")
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
