"""The command `divjax`: two csv files compared, and what this installation runs on.

    divjax compare real.csv synthetic.csv
    divjax compare real.csv synthetic.csv --html report.html --fail-on different
    divjax info

The exit code is 0, 1 where `--fail-on different` is met, or 2 for what cannot be used or read.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line, by default the program's own.

    Returns:
        The exit code.

    Example:
        >>> main(["compare", "nowhere.csv", "nowhere.csv"])
        2
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:
        # argparse has printed why, or its help.
        return int(stop.code or 0)
    try:
        return _info() if options.command == "info" else _compare(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"divjax: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    # Options are those of `compare_tables`, by the same names.
    parser = argparse.ArgumentParser(prog="divjax", description="Divergences of tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="whether and how two csv files differ")
    add = compare.add_argument
    add("real", type=Path, help="a csv file with a header")
    add("synthetic", type=Path, help="another one")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="the results as JSON, into a file or instead of the text",
    )
    add("--csv", type=Path, metavar="FILE", help="the table of columns")
    add("--html", type=Path, metavar="FILE", help="one page with figures")
    add("--quick", action="store_true", help="fewer rows and smaller classifiers")
    add("--drop", nargs="+", default=[], metavar="NAME", help="columns that are not compared")
    add("--id", nargs="+", default=[], metavar="NAME", help="columns that identify rows")
    add("--as-category", nargs="+", default=[], metavar="NAME", help="numbers that are codes")
    add("--as-number", nargs="+", default=[], metavar="NAME", help="few values that are numbers")
    add("--missing", nargs="+", default=[], metavar="VALUE", help="what stands for a missing value")
    add("--date-format", metavar="FORMAT", help="how dates are written, such as %%d.%%m.%%y")
    add("--level", type=float, default=0.05, help="of false alarms, at most (default: 0.05)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    add("--fail-on", choices=["different"], help="end with exit code 1 in this case")
    commands.add_parser("info", help="versions, devices and settings")
    return parser


def _compare(options: argparse.Namespace) -> int:
    # Before anything is imported: a misspelt name is answered at once.
    for path in (options.real, options.synthetic):
        if not path.exists():
            raise OSError(f"there is no file {path}.")
        if path.is_dir():
            raise OSError(f"{path} is a folder, not a file.")
        # A file that may not be read is reported as such, before libraries are loaded.
        with path.open("rb"):
            pass
    _check_outputs(options)

    from divjax import tables
    from divjax.plot.look import pyplot
    from divjax.tables.files import read_table

    # Figures come last, and what they need must be there before anything takes time.
    if options.html is not None:
        pyplot()

    # Each file by itself: their delimiters and encodings need not be the same.
    (real, of_real), (synthetic, of_synthetic) = map(read_table, (options.real, options.synthetic))
    names = _names(options.real, options.synthetic)
    found = tables.compare_tables(
        real,
        synthetic,
        seed=options.seed,
        level=options.level,
        drop=options.drop,
        ids=options.id,
        as_category=options.as_category,
        as_number=options.as_number,
        missing=options.missing,
        date_format=options.date_format,
        names=names,
        quick=options.quick,
        progress=sys.stderr.isatty(),
    )
    # How the files were read is said before how they compare.
    found = found.with_notes((*of_real, *of_synthetic))
    if options.csv is not None:
        options.csv.write_text(found.to_csv(), encoding="utf-8")
    if options.json not in (None, "-"):
        Path(options.json).write_text(found.to_json(), encoding="utf-8")
    # Text for people, unless a program asks for numbers.
    sys.stdout.write(found.to_json() if options.json == "-" else found.to_text())
    if options.html is not None:
        options.html.write_text(found.to_html(), encoding="utf-8")
    return int(options.fail_on == "different" and found.verdict.different is True)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse files that could not be written after all, or would replace what is compared."""
    given = (options.csv, options.html, options.json if options.json != "-" else None)
    paths = [Path(path) for path in given if path is not None]
    for path in paths:
        folder = path.absolute().parent
        if not folder.is_dir():
            raise OSError(f"there is no folder for {path}.")
        if path.is_dir():
            raise OSError(f"{path} is a folder, not a file.")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise OSError(f"{path} may not be written.")
        if any(
            path.exists() and path.samefile(table) for table in (options.real, options.synthetic)
        ):
            raise ValueError(f"{path} holds a table that is compared, and would be replaced.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("--json, --csv and --html must name different files.")


def _names(real: Path, synthetic: Path) -> tuple[str, str]:
    """The files' names, or their paths where these are the same."""
    # A report shows names in every line: the shortest that tell the files apart.
    if real.name != synthetic.name:
        return real.name, synthetic.name
    if str(real) != str(synthetic):
        return str(real), str(synthetic)
    return str(real), f"{synthetic} (again)"


def _info() -> int:
    # Imported here: the other command must answer at once where a file is missing.
    import importlib.metadata
    import platform

    import jax

    import divjax

    print(f"divjax {divjax.__version__}, Python {platform.python_version()}")
    # What a report of a fault should say.
    for package in ("jax", "jaxlib", "numpy", "scipy", "ott-jax", "pandas", "scikit-learn"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    print("devices: " + ", ".join(map(str, jax.devices())))
    print(f"precision: {'float64' if jax.config.jax_enable_x64 else 'float32'}")  # pyright: ignore[reportAttributeAccessIssue]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    print(f"compilation cache: {cache or 'none (set JAX_COMPILATION_CACHE_DIR)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
