"""Tools that compare two tables, side by side: false alarms, known faults found, and seconds.

    python -m experiments.table_peers                 # --quick for a small one

Two halves of one table have one distribution: what a tool calls different there is a false alarm.
Then one of the halves gets a known fault, of which `FAULTS` holds one each:

`shift`: one column of numbers moves by .2 deviations. `dependence`: one column is shuffled, so that
no column differs alone. `all dependences`: every column is shuffled. `copies`: 5 % of the rows are
rows of the other half. `lost level`: a rare level of a category does not occur. `bad cell`: one
number is 999999. `rounded`: one column of numbers is rounded. `flipped labels`: 5 % of the labels
are turned round. `gaps`: 10 % of one column is missing.

Every tool sees the same halves. A tool with a verdict is asked for it, at its own defaults, or at
the level where it has one. Since levels and defaults differ, each tool is also held to the same
one: its score of a faulty pair counts as found where it exceeds 95 % of its own scores of halves
without a fault. The tools are in `experiments.table_tools`; one that is not installed is left out.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from divjax import plot
from experiments import common, data, table_tools


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table the faults are put in."""

    shift: str
    """A number, which is moved by whole units."""
    dependence: str
    """A number, or a category, that depends on others."""
    lost: tuple[str, str]
    """A category and a level of a few per cent."""
    rounded: str
    unit: float
    """What the column is rounded to."""
    label: str
    """A category of two levels."""


COLUMNS = {
    "adult": Columns(
        "age", "hours-per-week", ("workclass", "Self-emp-inc"), "fnlwgt", 1000.0, "income"
    ),
    "credit_default": Columns(
        "AGE", "BILL_AMT3", ("MARRIAGE", "3"), "BILL_AMT1", 100.0, "default payment"
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    tables: tuple[str, ...] = tuple(COLUMNS)
    tools: tuple[str, ...] = tuple(table_tools.TOOLS)
    rows: int = 2000
    """Of each half."""
    halves: int = 200
    """Pairs without a fault, over all tables."""
    repetitions: int = 20
    """Pairs with each fault, over all tables."""
    level: float = 0.05
    seed: int = 0
    quick: bool = False
    """One table, few rows, two pairs of each kind, the tools of the library's own dependencies."""

    def __post_init__(self):
        for name, known in (("tables", COLUMNS), ("tools", table_tools.TOOLS)):
            if unknown := set(getattr(self, name)) - set(known):
                raise SystemExit(
                    f"{name} must be among {', '.join(known)}; got {', '.join(sorted(unknown))}."
                )
        if not 0 < self.level < 1:
            raise SystemExit(f"level must be between 0 and 1; got {self.level}.")
        numbers = ("rows", "halves", "repetitions")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"tables": self.tables[:1], "rows": 200, "halves": 2, "repetitions": 2}
            small |= {"tools": tuple(table_tools.TOOLS)[:3]}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# The faults: of a half and the rows that no half has, what is wrong, and the column it is in.

Fault = Callable[
    [np.random.Generator, pd.DataFrame, pd.DataFrame, pd.DataFrame, Columns], pd.DataFrame
]


def _shift(rng, real, half, spare, columns):
    column = half[columns.shift]
    # By whole units: a column of integers remains one.
    return half.assign(**{columns.shift: column + round(0.2 * column.std())})


def _dependence(rng, real, half, spare, columns):
    order = rng.permutation(len(half))
    return half.assign(**{columns.dependence: half[columns.dependence].array[order]})


def _all_dependences(rng, real, half, spare, columns):
    return half.apply(lambda column: column.array[rng.permutation(len(half))])


def _copies(rng, real, half, spare, columns):
    copied, rows = half.copy(), round(0.05 * len(half))
    taken = rng.choice(len(real), rows, replace=False)
    return pd.concat([copied.iloc[rows:], real.iloc[taken]], ignore_index=True)


def _lost_level(rng, real, half, spare, columns):
    name, level = columns.lost
    kept, others = half[half[name] != level], spare[spare[name] != level]
    # Other rows of the table take their places: only the level is missing.
    return pd.concat([kept, others.iloc[: len(half) - len(kept)]], ignore_index=True)


def _bad_cell(rng, real, half, spare, columns):
    half = half.copy()
    half.loc[int(rng.integers(len(half))), columns.shift] = 999_999
    return half


def _rounded(rng, real, half, spare, columns):
    column = half[columns.rounded]
    return half.assign(
        **{columns.rounded: (columns.unit * (column / columns.unit).round()).astype(column.dtype)}
    )


def _flipped_labels(rng, real, half, spare, columns):
    labels = half[columns.label]
    first, second = labels.cat.categories
    flip = rng.random(len(half)) < 0.05
    turned = labels.map({first: second, second: first}).astype(labels.dtype)
    return half.assign(**{columns.label: labels.where(~flip, turned)})


def _gaps(rng, real, half, spare, columns):
    column = half[columns.shift].astype(float)
    return half.assign(**{columns.shift: column.mask(rng.random(len(half)) < 0.1)})


FAULTS: dict[str, tuple[Fault, Callable[[Columns], str]]] = {
    "shift": (_shift, lambda columns: columns.shift),
    "dependence": (_dependence, lambda columns: columns.dependence),
    "all dependences": (_all_dependences, lambda columns: ""),
    "copies": (_copies, lambda columns: ""),
    "lost level": (_lost_level, lambda columns: columns.lost[0]),
    "bad cell": (_bad_cell, lambda columns: columns.shift),
    "rounded": (_rounded, lambda columns: columns.rounded),
    "flipped labels": (_flipped_labels, lambda columns: columns.label),
    "gaps": (_gaps, lambda columns: columns.shift),
}
# No difference of distributions: what a tool says of them besides its verdict counts.
SAID_BESIDES = ("copies", "bad cell")


@functools.cache
def whole_table(name: str) -> pd.DataFrame:
    """A table with its categories of pandas' type."""
    table = data.load_table(name)
    categories = list(table.select_dtypes(exclude="number"))
    if name == "credit_default":
        # Codes of categories, as text: their numbers mean nothing.
        categories = ["SEX", "EDUCATION", "MARRIAGE", "default payment"]
        table = table.astype(dict.fromkeys(categories, str))
    return table.astype(dict.fromkeys(categories, "category"))


def pair(name: str, fault: str, rows: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two halves of so many rows each of a table, the second one with a fault, or "none"."""
    whole = whole_table(name)
    # One stream of draws for each table and number, whatever the fault: faults are put in the
    # same halves.
    rng = np.random.default_rng([seed, list(COLUMNS).index(name)])
    order = rng.permutation(len(whole))
    parts = [order[:rows], order[rows : 2 * rows], order[2 * rows :]]
    real, half, spare = (whole.iloc[part].reset_index(drop=True) for part in parts)
    if fault == "none":
        return real, half
    return real, FAULTS[fault][0](rng, real, half, spare, COLUMNS[name])


def evaluate(settings: Settings, tool: str, table: str, fault: str) -> dict[str, np.ndarray]:
    """What a tool says of the pairs with a fault, and the seconds that each one took."""
    whole = settings.halves if fault == "none" else settings.repetitions
    count = -(-whole // len(settings.tables))
    run, found, seconds = table_tools.TOOLS[tool][1], [], []
    for number in range(count):
        real, synthetic = pair(table, fault, settings.rows, settings.seed + number)
        start = time.perf_counter()
        with table_tools.quiet():
            found.append(run(real, synthetic, settings.level, number))
        seconds.append(time.perf_counter() - start)
    return {
        # A tool without a verdict says neither yes nor no.
        "alarm": np.array([np.nan if one.alarm is None else one.alarm for one in found], float),
        "score": np.array([one.score for one in found], float),
        "column": np.array([one.column for one in found], str),
        "noted": np.array([one.noted for one in found], bool),
        "each": np.array(seconds),
    }


Results = dict[tuple[str, str, str], dict[str, np.ndarray]]


def _of(results: Results, tool: str, fault: str, what: str) -> dict[str, np.ndarray]:
    """One array of each table."""
    return {
        table: arrays[what]
        for (name, table, kind), arrays in results.items()
        if (name, kind) == (tool, fault)
    }


def alarm_rows(results: Results, tools: list[str]) -> list[dict[str, Any]]:
    """False alarms on halves without a fault, and the seconds of a pair."""
    rows = []
    for tool in tools:
        alarms = np.concatenate(list(_of(results, tool, "none", "alarm").values()))
        each = np.concatenate(list(_of(results, tool, "none", "each").values()))
        said = "no verdict" if np.isnan(alarms).all() else f"{np.sum(alarms == 1)}"
        rows.append({"tool": tool, f"false alarms of {len(alarms)}": said})
        # The first pair of a process also imports and compiles.
        rows[-1]["seconds a pair"] = f"{np.median(each):.2f}"
    return rows


def found_rows(
    results: Results, tools: list[str], level: float, by_verdict: bool
) -> list[dict[str, Any]]:
    """How often each fault is found: by the tool's own verdict, or by its calibrated score."""
    rows = []
    for tool in tools:
        row: dict[str, Any] = {"tool": tool}
        for fault in FAULTS:
            found = _of(results, tool, fault, "alarm" if by_verdict else "score")
            if by_verdict:
                said = np.concatenate(list(found.values()))
                row[fault] = "–" if np.isnan(said).all() else f"{np.sum(said == 1)}"
                noted = np.concatenate(list(_of(results, tool, fault, "noted").values()))
                if fault in SAID_BESIDES and noted.any():
                    row[fault] += f", said of {noted.sum()}"
            else:
                row[fault] = f"{sum(_beyond_null(results, tool, fault, level).values())}"
        rows.append(row)
    return rows


def _beyond_null(results: Results, tool: str, fault: str, level: float) -> dict[str, int]:
    """Of each table, the scores that are larger than all but a share of those without a fault."""
    null, found = (_of(results, tool, kind, "score") for kind in ("none", fault))
    return {
        table: int(np.sum(scores > np.quantile(null[table], 1 - level, method="higher")))
        for table, scores in found.items()
    }


def named_rows(results: Results, tools: list[str]) -> list[dict[str, Any]]:
    """How often the column that a fault is in is the one that a tool names first."""
    rows = []
    faults = {fault: where for fault, (_, where) in FAULTS.items() if where(COLUMNS["adult"])}
    for tool in tools:
        row: dict[str, Any] = {"tool": tool}
        for fault, where in faults.items():
            row[fault] = sum(
                int(np.sum(names == where(COLUMNS[table])))
                for table, names in _of(results, tool, fault, "column").items()
            )
        if any(count for name, count in row.items() if name != "tool"):
            rows.append(row)
    return rows


def draw(results: Results, tools: list[str], settings: Settings) -> Figure:
    """A cell a tool and fault: the share of pairs whose fault the calibrated score finds."""
    shares = np.array(
        [
            [
                sum(_beyond_null(results, tool, fault, settings.level).values())
                / sum(map(len, _of(results, tool, fault, "score").values()))
                for fault in FAULTS
            ]
            for tool in tools
        ]
    )
    with plot.style():
        figure, axis = plt.subplots(figsize=(9, 1.6 + 0.45 * len(tools)))
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (line, place), share in np.ndenumerate(shares):
            color = "white" if share > 0.6 else "black"
            axis.text(place, line, f"{share:.2f}", ha="center", va="center", color=color)
        axis.set_xticks(range(len(FAULTS)), list(FAULTS), rotation=30, ha="right")
        axis.set_yticks(range(len(tools)), tools)
        axis.grid(False)
        axis.set_title(f"Share of faults found at {settings.level:.0%} false alarms")
        figure.colorbar(image, label="share found")
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Ask all tools of all pairs; print false alarms, faults found, columns named, and seconds."""
    tools = [name for name in table_tools.installed() if name in settings.tools]
    with common.open_run("table_peers", settings, output, overwrite) as run:
        cells = [
            (tool, table, fault)
            for tool in tools
            for table in settings.tables
            for fault in ("none", *FAULTS)
        ]
        results: Results = run.stages("tools", cells, functools.partial(evaluate, settings))
        number = settings.repetitions
        print("\nHalves of one table\n")
        print(run.save_table("false_alarms", alarm_rows(results, tools)))
        print(f"\nFound in {number} pairs, by the tool's own verdict\n")
        print(run.save_table("verdicts", found_rows(results, tools, settings.level, True)))
        print(f"\nFound in {number} pairs, by the score at {settings.level:.0%} false alarms\n")
        print(run.save_table("calibrated", found_rows(results, tools, settings.level, False)))
        print(f"\nThe column of the fault named first, in {number} pairs\n")
        print(run.save_table("named", named_rows(results, tools)))
        run.save_figure("found", draw(results, tools, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
