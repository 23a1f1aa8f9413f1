"""Two data frames compared by one function: a verdict, and everything that it rests on."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import pandas as pd

from divjax.core.checks import check_count, check_probability
from divjax.core.progress import progress_bar
from divjax.core.types import Estimate, Interval
from divjax.fdiv.inequalities import js_bounds_from_tv
from divjax.ratio import RatioFit, SklearnRatio
from divjax.ratio.plug_in_estimates import js_and_kl
from divjax.tables import report
from divjax.tables.classifier import Halves, score_halves, tree_features
from divjax.tables.column_tests import column_table
from divjax.tables.copies import copied_groups
from divjax.tables.encoding import Encoded, encode, named_by_text
from divjax.tables.lattices import lattices, own_levels
from divjax.tables.outlying_cells import far_cells, suspected_gaps
from divjax.tables.roles import (
    as_missing,
    as_numbers,
    check_columns,
    identifier_notes,
    suspected_identifiers,
)
from divjax.tables.trees import PairedTrees
from divjax.tables.verdict import Verdict, cannot_tell, decide, drivers_of

__all__ = ["TableComparison", "compare_tables"]

NUM_FOLDS = 5
# Two rows of each table in each fold of each half.
LEAST_ROWS = 4 * NUM_FOLDS
QUICK_ROWS = 4000


@dataclasses.dataclass(frozen=True)
class TableComparison:
    """How two tables differ. Printed, it is its verdict.

    Attributes:
        verdict: whether they differ, in a sentence, with the numbers that it rests on.
        js: the Jensen–Shannon divergence in bits, in [0, 1], with its error and 95 % interval: 0
            for equal distributions, 1 if every row identifies its table.
        kl: the Kullback–Leibler divergence of the first table from the second in nats, from 0 on.
        auc: the probability that the classifier tells a row of each table apart, ½ if by chance.
        certified_js: a 95 % lower confidence bound on the divergence in bits, whatever the tables.
        columns: a row a column with `column`, `js` in bits, `error`, `p_value` (adjusted for all
            tests of columns) and `significant`; the most different first.
        notes: how columns were read and encoded, what repeats, and which cells are far from all.
        left_out: columns that no number here is of, with the reasons.
        num_rows: of each table, as compared.
        names: of the tables.
        importance: the loss of the classifier's AUC, on rows that it was not fitted to, if a column
            is shuffled.
        scores: the out-of-fold log ratios of the rows of each table.
        tables: the rows and columns that were compared, as read.
    """

    verdict: Verdict
    js: Estimate
    kl: Estimate
    auc: Estimate
    certified_js: float
    columns: pd.DataFrame
    notes: tuple[str, ...]
    left_out: dict[str, str]
    num_rows: tuple[int, int]
    names: tuple[str, str]
    importance: dict[str, float]
    scores: tuple[np.ndarray, np.ndarray]
    tables: tuple[pd.DataFrame, pd.DataFrame]

    def __repr__(self) -> str:
        return str(self.verdict)

    def with_notes(self, notes: Collection[str]) -> "TableComparison":
        """The comparison with more notes before its own, such as how files were read."""
        return dataclasses.replace(self, notes=(*notes, *self.notes))

    def to_text(self) -> str:
        """The verdict, the numbers, the columns, and the notes, for a terminal."""
        return report.to_text(self)

    def to_json(self) -> str:
        """An object of numbers that begins with `verdict`; NaN and infinity are null."""
        return report.to_json(self)

    def to_csv(self) -> str:
        """The table of columns."""
        return self.columns.to_csv(index=False)

    def to_html(self) -> str:
        """One page with figures in it, which needs no other file.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        return report.to_html(self)


def compare_tables(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    seed: int = 0,
    level: float = 0.05,
    drop: Collection[str] = (),
    ids: Collection[str] = (),
    as_category: Collection[str] = (),
    as_number: Collection[str] = (),
    missing: str | float | Collection[str | float] = (),
    date_format: str | None = None,
    names: tuple[str, str] = ("real", "synthetic"),
    max_rows: int = 20_000,
    quick: bool = False,
    progress: bool = False,
) -> TableComparison:
    """Whether two tables have the same distribution, how far apart they are, and in what.

    Columns are read and encoded alike, see `encode`. Boosted trees tell the rows of the tables
    apart, see `divjax.tables.trees`: divergences by five folds, with `ratio.SklearnRatio`; the test
    by two halves of the rows, each scored by the other's trees, so that both p-values are exact and
    every row is tested. Each column is tested alone as well. Equal distributions are called
    different with a probability of at most `level`: half of it for the classifier, half for all
    columns together.

    Args:
        real: one table.
        synthetic: the other; its columns may be in another order.
        seed: of folds, trees, permutations, and of the rows where there are too many.
        level: of the verdict.
        drop: columns of either table that are not compared.
        ids: columns that identify rows or subjects. They are not compared; notes say how many rows
            of a table share one, and how many are in both tables.
        as_category: columns of numbers that are codes.
        as_number: columns that are numbers though they have few values; text there is missing.
        missing: values that stand for a missing one, such as -999 or "n/a".
        date_format: how dates are written, as for `datetime.strptime`, such as "%d.%m.%y", where it
            cannot be told from the values.
        names: of the tables, in sentences.
        max_rows: of each table; of more, so many are drawn at random.
        quick: at most 4000 rows of each table, and fewer trees.
        progress: whether a bar is drawn.

    Returns:
        The comparison.

    Raises:
        ValueError: if an argument is out of range or names an unknown column, if a table has fewer
            than two rows or a column's name twice, or if no column is left to compare.
        ImportError: if scikit-learn is not installed.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from divjax.tables import compare_tables
        >>> x, y = np.random.default_rng(0).normal(size=(2, 300, 2))
        >>> real, synthetic = (pd.DataFrame(rows, columns=["a", "b"]) for rows in (x, y))
        >>> synthetic["b"] += 1
        >>> found = compare_tables(real, synthetic, quick=True)
        >>> found.verdict.different, found.verdict.columns
        (True, ('b',))

    References:
        Lopez-Paz, Oquab 2017, the classifier two-sample test; Holm 1979.
    """
    # Arguments are refused before anything takes time.
    check_count(0, seed=seed)
    check_probability(level=level)
    check_count(LEAST_ROWS, max_rows=max_rows)
    _check_names(names)
    pair = _as_frames(real, synthetic, names)
    # A name by itself is one name, not its letters.
    drop, ids, as_category, as_number = (
        (one,) if isinstance(one, str) else tuple(one)
        for one in (drop, ids, as_category, as_number)
    )
    missing = (missing,) if isinstance(missing, (str, int, float)) else tuple(missing)
    check_columns(pair, drop=drop, ids=ids, as_category=as_category, as_number=as_number)
    _check_date_format(date_format)
    pair, notes = as_missing(pair, missing, names)
    notes += identifier_notes(pair, ids, names)
    apart = {*drop, *ids}
    pair = tuple(table.drop(columns=[name for name in apart if name in table]) for table in pair)
    pair, said = as_numbers(pair, as_number, names, date_format)
    notes += said
    encode_pair = lambda pair, categories: encode(
        *pair,
        categorical=categories,
        numerical=as_number,
        date_format=date_format,
        repeats=True,
        names=names,
    )
    # All rows are read, though not all of them may be classified.
    whole = encode_pair(pair, as_category)
    notes += whole.notes
    left_out = dict.fromkeys(drop, "as asked") | dict.fromkeys(ids, "an identifier")
    left_out |= whole.left_out
    if date_format is not None and not any(f"dates written {date_format}" in n for n in notes):
        raise ValueError(
            f"date_format must be how the dates of a column are written; {date_format!r} reads "
            "half of no column."
        )
    lone = [name for name, why in whole.left_out.items() if why.startswith("only in ")]
    notes += _differ_by_case(lone, names)
    # Cells and repeated values are looked for in all rows, the latter beside copies of rows: their
    # values repeat as a whole.
    notes += suspected_identifiers(whole.tables)
    notes += suspected_gaps(*whole.tables, names=names)
    notes += far_cells(*whole.tables, names=names)
    notes += _repeated_apart(_without_copies(whole), names)

    # A random share of very many rows is nearly as informative, and takes less time.
    most = min(max_rows, QUICK_ROWS) if quick else max_rows
    encoded, key = whole, jax.random.key(seed)
    if max(map(len, whole.tables)) > most:
        drawn, said = _thin(whole.tables, most, seed, names)
        encoded = encode_pair(drawn, [name for name in as_category if name in whole.groups])
        notes += said
        left_out |= {name: f"{why} among the rows drawn" for name, why in encoded.left_out.items()}
    num_rows = (len(encoded.x), len(encoded.y))
    # Half of the level is for the columns by themselves, half for the classifier.
    columns = column_table(np.random.default_rng(seed), encoded, level / 2)
    shared: dict[str, Any] = {
        "columns": columns,
        "notes": tuple(notes),
        "left_out": left_out,
        "num_rows": num_rows,
        "names": names,
        "tables": encoded.tables,
    }
    # So few rows cannot be divided into folds and halves.
    if min(num_rows) < LEAST_ROWS:
        why = f"each table must hold at least {LEAST_ROWS} rows, and one holds {min(num_rows)}"
        nothing = dict.fromkeys(("js", "kl", "auc"), _estimate(*[math.nan] * 4))
        return TableComparison(
            verdict=cannot_tell(why, level),
            certified_js=math.nan,
            importance={},
            scores=(np.full(num_rows[0], np.nan), np.full(num_rows[1], np.nan)),
            **nothing,
            **shared,
        )
    numbers, halves = _classify(key, encoded, columns, seed, level, quick, progress)
    drivers = drivers_of(halves.importance, halves.error)
    verdict = decide(numbers["js"], halves.p_value, columns, drivers, num_rows, level)
    if set(whole.rows[0]) == set(whole.rows[1]):
        same = f" {names[0]} and {names[1]} hold the same rows."
        verdict = dataclasses.replace(verdict, sentence=verdict.sentence + same)
    # A column that has been renamed may hold all of the difference.
    if lone:
        also = f" Not compared, as it is in one table only: {', '.join(lone)}."
        verdict = dataclasses.replace(verdict, sentence=verdict.sentence + also)
    return TableComparison(verdict=verdict, importance=halves.importance, **numbers, **shared)


def _classify(
    key: Any,
    encoded: Encoded,
    columns: pd.DataFrame,
    seed: int,
    level: float,
    quick: bool,
    progress: bool,
) -> tuple[dict[str, Any], Halves]:
    """The divergences by five folds, and the test by two halves."""
    # The estimates use five models, each of which learns from four fifths of the rows.
    features = tree_features(encoded)
    trees = PairedTrees(features.values, features.categories, seed, quick)
    # A row and its copy are in one fold, and in one half.
    groups = copied_groups(encoded.rows)
    with progress_bar(progress, 3, "step") as bar:
        fit = SklearnRatio(trees, NUM_FOLDS).fit(
            jax.random.fold_in(key, 0), features.x, features.y, groups=groups
        )
        bar.update(1)
        numbers = _numbers(fit, columns)
        bar.update(1)
        # The test uses two models, each tested on all rows that it has not learned from.
        halves = score_halves(
            jax.random.fold_in(key, 1),
            features,
            trees,
            groups=groups,
            # The smallest p-value must lie well below a half's level.
            num_permutations=max(999, math.ceil(8 / level)),
            num_shuffles=1 if quick else 3,
        )
        bar.update(1)
    return numbers, halves


def _numbers(fit: RatioFit, columns: pd.DataFrame) -> dict[str, Any]:
    """The estimates within their ranges, with intervals that know of tables without overlap."""
    js, kl, auc, certified_js = _estimates(fit)
    js, certified = _clipped(js, 1.0), max(0.0, float(certified_js))
    scores = np.asarray(fit.log_ratio_p), np.asarray(fit.log_ratio_q)
    low = float(js.interval[0])
    # Scores right for all rows do not vary, and know nothing of how rare an overlap is. Of
    # n rows without an error the share of errors is below log(2/.05)/n, with 97.5 % confidence.
    if scores[0].min() > 0 > scores[1].max():
        errors = min(1.0, sum(math.log(2 / 0.05) / len(own) for own in scores))
        least = float(js_bounds_from_tv(1 - errors).lower) / math.log(2)
        js = _estimate(float(js.value), float(js.std_error), min(low, least), 1.0)
    js = _at_least_a_column(js, columns)
    kl = _clipped(kl, math.inf)
    # Tables at one bit do not overlap, and those are infinitely far apart.
    if float(js.interval[1]) >= 1:
        end = float(kl.interval[0])
        kl = _estimate(float(kl.value), float(kl.std_error), end, math.inf)
    return {
        "js": js,
        "kl": kl,
        "auc": _clipped(auc, 1.0),
        "certified_js": certified,
        "scores": scores,
    }


def _at_least_a_column(js: Estimate, columns: pd.DataFrame) -> Estimate:
    """The estimate for whole rows, or a column's if that is clearly above its interval.

    Rows differ at least as much as one of their columns. Trees may miss what a column alone tells,
    as of many rare levels: then nothing bounds the divergence of the rows from above.
    """
    alone: Any = columns[columns["significant"]]
    least = (alone["js"] - 2 * alone["error"]).max() if len(alone) else 0.0
    if not least > float(js.interval[1]):
        return js
    value, error = alone.loc[(alone["js"] - 2 * alone["error"]).idxmax(), ["js", "error"]]
    return _estimate(float(value), float(error), float(least), 1.0)


# It runs once, and compiling would take longer than running: without optimisation it does not.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _estimates(fit: RatioFit) -> tuple[Estimate, Estimate, Estimate, jax.Array]:
    """All in one program, which compiles in half the time of one for each."""
    js, kl, certified = js_and_kl(fit.scores(), 0.95, js_base=2)
    return js, kl, fit.auc(), certified


def _clipped(estimate: Estimate, most: float) -> Estimate:
    """An estimate within the range of the true value."""
    low, high = estimate.interval
    # Sampling error may carry an estimate out of its range, but not a table's.
    ends = [min(max(float(number), 0.0), most) for number in (estimate.value, low, high)]
    return _estimate(ends[0], float(estimate.std_error), ends[1], ends[2])


def _estimate(value: float, error: float, low: float, high: float) -> Estimate:
    size: Any = math.nan
    return Estimate(value, error, Interval(low, high), size, ())  # pyright: ignore[reportArgumentType]


def _check_names(names: Any) -> None:
    if len(names) != 2 or names[0] == names[1] or not all(isinstance(n, str) for n in names):
        raise ValueError(f"names must be two different texts; got {names!r}.")


def _check_date_format(date_format: str | None) -> None:
    if date_format is not None and (not isinstance(date_format, str) or "%" not in date_format):
        raise ValueError(
            f'date_format must be a format of strptime such as "%d.%m.%y"; got {date_format!r}.'
        )


def _as_frames(real: Any, synthetic: Any, names: tuple[str, str]) -> tuple[Any, Any]:
    """Both tables, with columns named by text and rows numbered from zero."""
    frames = []
    for argument, table in (("real", real), ("synthetic", synthetic)):
        # Lists and arrays have no names of columns.
        if not isinstance(table, pd.DataFrame):
            raise ValueError(
                f"{argument} must be a pandas DataFrame; got {type(table).__name__}: convert it by "
                "pandas.DataFrame(rows, columns=names)."
            )
        frames.append(named_by_text(table).reset_index(drop=True))
    for name, table in zip(names, frames, strict=True):
        if not table.columns.is_unique:
            twice = sorted(set(table.columns[table.columns.duplicated()]))
            raise ValueError(f"{name} must name its columns uniquely; got twice: {twice}.")
    return frames[0], frames[1]


def _without_copies(encoded: Encoded) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables as they were read, without the rows of the second that are rows of the first."""
    x, y = encoded.tables
    if copied_groups(encoded.rows) is None:
        return x, y
    own: Any = y[~np.isin(encoded.rows[1], encoded.rows[0])]
    return (x, own) if len(own) >= LEAST_ROWS else (x.head(0), y.head(0))


def _differ_by_case(lone: list[str], names: tuple[str, str]) -> list[str]:
    """Notes of columns of one table each whose names are the same but for case and spaces."""
    plain = lambda name: name.strip().casefold()
    return [
        f"{one} and {other}, each in one of {names[0]} and {names[1]}, differ by case or spaces "
        "alone: give them one name to compare them"
        for one, other in itertools.combinations(lone, 2)
        if plain(one) == plain(other)
    ]


def _repeated_apart(pair: tuple[Any, Any], names: tuple[str, str]) -> list[str]:
    """Notes of values that repeat in one table alone, as numbers do that are rounded there."""
    return [
        f"{found.column}: {found.share_x:.1%} of the rows of {names[0]} and {found.share_y:.1%} of "
        f"{names[1]} have a value that repeats in {found.of}"
        for found in (*lattices(*pair, names=names), *own_levels(*pair, names=names))
    ]


def _thin(
    pair: tuple[Any, Any], most: int, seed: int, names: tuple[str, str]
) -> tuple[tuple[Any, Any], list[str]]:
    """At most so many rows of each table, drawn at random."""
    rng, notes, drawn = np.random.default_rng(seed), [], []
    for table, name in zip(pair, names, strict=True):
        if len(table) > most:
            share = most / len(table)
            notes.append(f"{most} of the {len(table)} rows of {name} ({share:.1%}) drawn at random")
            table = table.sample(most, random_state=rng).reset_index(drop=True)
        drawn.append(table)
    return (drawn[0], drawn[1]), notes
