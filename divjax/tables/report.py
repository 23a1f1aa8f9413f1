"""A comparison of tables as text, JSON, and one page of HTML."""

import base64
import html
import io
import json
import math
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from divjax import plot
from divjax.core.types import Estimate
from divjax.tables.reading import kind_of
from divjax.tables.verdict import shown_p_value

if TYPE_CHECKING:
    from divjax.tables.comparison import TableComparison

__all__ = ["to_html", "to_json", "to_text"]

MOST_COLUMNS, MOST_MARGINALS = 10, 6
# The entries of the legend that the text shows.
IN_TEXT = ("p", "Jensen–Shannon", "at least", "Kullback–Leibler", "AUC", "columns", "importance")

# An explanation of each number, for readers who do not know it.
LEGEND = {
    "different": "Whether the tables have different distributions: yes, no difference found, or "
    "cannot tell.",
    "p": "How probable so clear a sign of a difference would be between tables of one "
    "distribution. The tables are called different where it is at most the level.",
    "level": "How often, at most, tables of one distribution are called different.",
    "Jensen–Shannon": "How far apart the tables are, in bits: 0 if they have one distribution, 1 "
    "if each row tells which table it is of. In brackets its 95 % interval.",
    "at least": "A bound on the same number that holds with 95 % confidence, whatever the tables.",
    "Kullback–Leibler": "How far the first table is from the second, in nats: 0 if they have one "
    "distribution, without an upper limit. It counts rows that the second table hardly has.",
    "AUC": "How often a classifier tells a row of one table from a row of the other: 0.5 is "
    "guessing, 1 is never wrong.",
    "shares": "The share of each table's rows with a value. The columns are those of the largest "
    "divergence by themselves; the outermost thousandth of the rows is drawn at the edge.",
    "pair": "Rows of both tables, at most 2000 of each, by the two columns that the classifier "
    "needs most. Levels are moved a little, so that rows do not hide each other.",
    "columns": "Jensen–Shannon of each column by itself, with its standard error, and the "
    "probability of so clear a sign in equal columns, adjusted for the number of tests.",
    "importance": "What the classifier's AUC loses where the values of one column are exchanged "
    "between rows: how much it needs the column, alone or together with others.",
    "scores": "The logarithm of how many times likelier a row is in the first table than in the "
    "second, by a classifier that was not fitted to the row. Equal tables have equal curves.",
}


def to_text(comparison: "TableComparison") -> str:
    """The verdict, the numbers, the first columns, the notes, and what the numbers are."""
    names, verdict = comparison.names, comparison.verdict
    lines = [verdict.sentence, ""]
    # Where nothing was estimated there are no numbers, and legends of none.
    told = verdict.different is not None
    if told:
        lines += [*(f"{name}: {shown}" for name, shown in _numbers(comparison)), ""]
    # Columns are aligned for a terminal, the most different first.
    header, *rows = _column_rows(comparison)
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    for cells in (header, *rows[:MOST_COLUMNS]):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    if more := len(rows) - MOST_COLUMNS:
        lines += [f"… and {more} more"] * (more > 0)
    # Without a difference these would be noise.
    if verdict.different and (used := _used(comparison)):
        lines += ["", "needed by the classifier (what AUC loses without): " + used]
    # Notes come last: none of them changes the verdict.
    if comparison.notes:
        lines += ["", f"notes on {names[0]} and {names[1]}:"]
        lines += [f"- {note}" for note in comparison.notes]
    if comparison.left_out:
        lines += ["", "left out:"]
        lines += [f"- {column}: {why}" for column, why in comparison.left_out.items()]
    lines += ["", "what the numbers are:"]
    for name in IN_TEXT if told else ("columns",):
        lines += textwrap.wrap(f"- {name}: {LEGEND[name]}", 100, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def to_json(comparison: "TableComparison") -> str:
    """An object that begins with the verdict."""
    verdict = comparison.verdict
    content = {
        "verdict": {
            "different": verdict.different,
            "sentence": verdict.sentence,
            "p_value": verdict.p_value,
            "level": verdict.level,
            "js": verdict.js,
            "js_interval": list(verdict.js_interval),
            "columns": list(verdict.columns),
        },
        "js": _parts(comparison.js),
        "kl": _parts(comparison.kl),
        "auc": _parts(comparison.auc),
        "certified_js": comparison.certified_js,
        "columns": comparison.columns.to_dict(orient="records"),
        "importance": comparison.importance,
        "notes": list(comparison.notes),
        "left_out": comparison.left_out,
        "num_rows": list(comparison.num_rows),
        "names": list(comparison.names),
    }
    # JSON has no NaN: `_plain` makes null of it, and `allow_nan` would refuse any that is left.
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(comparison: "TableComparison") -> str:
    """One page with its figures within it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            'to_html draws with matplotlib, which is not installed: pip install "divjax[tables]".'
        ) from error
    del matplotlib
    # Figures are within the page: it can be sent as one file.
    differ = bool(np.any(comparison.columns["significant"]))
    title = "Columns that differ most" if differ else "Columns, none of which differs alone"
    figures = [(title, _draw_marginals(comparison), "shares")]
    if not differ and len(comparison.verdict.columns) > 1:
        one, other = comparison.verdict.columns[:2]
        title = html.escape(f"{one} and {other}, whose dependence differs")
        figures.append((title, _draw_pair(comparison, one, other), "pair"))
    figures.append(("Each column by itself", _draw_columns(comparison), "columns"))
    if comparison.importance:
        figures.append(("Needed by the classifier", _draw_importance(comparison), "importance"))
        figures.append(("The classifier's scores", _draw_scores(comparison), "scores"))
    # Everything from the tables is escaped, as their columns may be called anything.
    names = " and ".join(map(html.escape, comparison.names))
    numbers = "".join(_row(*pair) for pair in _numbers(comparison))
    first, *rest = _column_rows(comparison)
    columns = _row(*first, cell="th") + "".join(_row(*cells) for cells in rest)
    drawn = "".join(
        f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{image}">'
        f"<p>{LEGEND[legend]}</p>"
        for title, image, legend in figures
    )
    legend = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in LEGEND.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    left_out = "".join(
        f"<li>{html.escape(f'{column}: {why}')}</li>" for column, why in comparison.left_out.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{names}</title><style>{_STYLE}</style></head>
<body><h1>{names}</h1>
<p class="verdict">{html.escape(comparison.verdict.sentence)}</p>
<table>{numbers}</table>
{drawn}
<h2>Columns</h2><table>{columns}</table>
<h2>Notes</h2><ul>{notes or "<li>none</li>"}</ul>
<h2>Left out</h2><ul>{left_out or "<li>none</li>"}</ul>
<h2>What the numbers are</h2><dl>{legend}</dl>
</body></html>
"""


_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
.verdict { font-size: 1.2rem; border-left: 4px solid #0072B2; padding-left: 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: left; }
tr { border-bottom: 1px solid #ddd; } img { max-width: 100%; } dt { font-weight: bold; }
@media print { body { margin: 0; font-size: 11pt; } img, tr { break-inside: avoid; } }
"""


def _numbers(comparison: "TableComparison") -> list[tuple[str, str]]:
    """The numbers above the columns, with names as in the legend."""
    verdict, (n, m) = comparison.verdict, comparison.num_rows
    p_value = shown_p_value(verdict.p_value)
    # Not “no”: a test that finds nothing does not show that the tables are equal.
    answers = {True: "yes", False: "no difference found", None: "cannot tell"}

    def shown(estimate: Estimate, digits: int) -> str:
        low, high = estimate.interval
        return f"{float(estimate.value):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    return [
        ("different", f"{answers[verdict.different]}, p {p_value} at level {verdict.level:g}"),
        ("rows", f"{n} of {comparison.names[0]}, {m} of {comparison.names[1]}"),
        (
            "Jensen–Shannon",
            f"{shown(comparison.js, 4)} bits, at least {comparison.certified_js:.4f}",
        ),
        ("Kullback–Leibler", f"{shown(comparison.kl, 4)} nats"),
        ("AUC", shown(comparison.auc, 3)),
    ]


def _column_rows(comparison: "TableComparison") -> list[tuple[str, ...]]:
    """The table of columns as it is shown, with its header."""
    rows: list[Any] = comparison.columns.to_dict(orient="records")
    return [
        ("column", "JS bits", "error", "p", "differs alone"),
        *(
            (
                row["column"],
                f"{row['js']:.4f}",
                f"{row['error']:.4f}",
                # The header says p: of the signs only that of an inequality is needed.
                shown_p_value(row["p_value"]).removeprefix("= "),
                "yes" if row["significant"] else "no",
            )
            for row in rows
        ),
    ]


def _used(comparison: "TableComparison") -> str:
    """The columns that the classifier needs most, with the losses of its AUC."""
    # A loss below half of the last digit would be shown as none.
    order = sorted(comparison.importance.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{column} {loss:.3f}" for column, loss in order if loss > 0.0005)


def _parts(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "std_error": estimate.std_error,
        "interval": list(estimate.interval),
    }


def _plain(value: Any) -> Any:
    """Python's numbers, of six digits, and None for those that are not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    # Before integers, since Python's booleans are integers.
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _row(*cells: str, cell: str = "td") -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(c)}</{cell}>" for c in cells) + "</tr>"


def _image(figure: Any) -> str:
    """A figure as the text of a small PNG."""
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    # A low resolution keeps the page small, and is sharp enough for a screen.
    figure.savefig(stream, format="png", dpi=90)
    plt.close(figure)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _draw_marginals(comparison: "TableComparison") -> str:
    import matplotlib.pyplot as plt

    shown = list(comparison.columns["column"].head(MOST_MARGINALS))
    num_rows = -(-len(shown) // 3)
    with plot.style():
        figure, axes = plt.subplots(num_rows, 3, figsize=(10, 2.6 * num_rows), squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, column in zip(axes.flat, shown, strict=False):
            pair = [table[column] for table in comparison.tables]
            kinds = {kind_of(part) for part in pair} - {"empty"}
            if kinds == {"date"}:
                pair = [part.dt.year + (part.dt.day_of_year - 1) / 365.25 for part in pair]
            # A column of numbers in one table and of text in the other is drawn as levels.
            draw = _draw_numbers if kinds in ({"number"}, {"date"}) else _draw_levels
            draw(axis, pair, comparison.names)
            axis.set_title(_shortened(column, 30))
        # One legend serves all: a table has the same colour in each.
        axes.flat[0].legend(fontsize=8)
        return _image(figure)


def _draw_numbers(axis: Any, pair: list[Any], names: tuple[str, str]) -> None:
    """Histograms, with the outermost thousandth of the rows drawn at each edge."""
    values = [column.to_numpy(float, na_value=np.nan) for column in pair]
    values = [column[np.isfinite(column)] for column in values]
    pooled = np.concatenate(values)
    if not len(pooled):
        return
    # Far cells would make all others one bar.
    low, high = np.quantile(pooled, [0.001, 0.999])
    # A column of one value has no range of its own.
    bins = np.linspace(low, high if high > low else low + 1, 30)
    if np.equal(pooled, np.floor(pooled)).all():
        # As many whole numbers in each bar, or a comb is seen.
        width = max(1, math.ceil((high - low + 1) / 30))
        bins = np.arange(low, high + width + 1, width) - 0.5
    for column, name in zip(values, names, strict=True):
        if len(column):
            # Shares and not counts, as the tables may have different numbers of rows.
            weights = np.full(len(column), 1 / len(column))
            clipped, label = np.clip(column, low, bins[-1]), _shortened(name, 40)
            axis.hist(clipped, bins, weights=weights, histtype="step", label=label)
    axis.set_ylabel("share of rows", fontsize=8)


def _draw_pair(comparison: "TableComparison", one: str, other: str) -> str:
    """The rows of either table by two columns."""
    import matplotlib.pyplot as plt

    # A fixed seed: the page of one comparison is the same each time it is made.
    rng = np.random.default_rng(0)
    across, along = (
        _places([table[column] for table in comparison.tables], rng) for column in (one, other)
    )
    with plot.style():
        # A panel for each table, as dots of one would cover those of the other, on common scales.
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
        for axis, x, y, name in zip(
            axes, across.values, along.values, comparison.names, strict=True
        ):
            # At random: the first rows of a table that is sorted are no picture of it.
            shown = rng.permutation(len(x))[:2000]
            axis.scatter(x[shown], y[shown], s=3, alpha=0.4, linewidths=0)
            axis.set_title(_shortened(name, 40))
            axis.set_xlabel(_shortened(one, 30))
        axes[0].set_ylabel(_shortened(other, 30))
        for levels, axis in ((across.levels, axes[0].xaxis), (along.levels, axes[0].yaxis)):
            if levels:
                axis.set_ticks(range(len(levels)), levels, fontsize=8)
        for axis in axes:
            # Names of levels are longer than numbers, and would run into each other.
            axis.tick_params(axis="x", rotation=30 if across.levels else 0)
        return _image(figure)


class _Places(NamedTuple):
    """Where the cells of a column lie on an axis: of either table, and its levels if it has any."""

    values: list[np.ndarray]
    levels: list[str]


def _places(pair: list[Any], rng: np.random.Generator) -> _Places:
    kinds = {kind_of(part) for part in pair} - {"empty"}
    if kinds == {"date"}:
        pair = [part.dt.year + (part.dt.day_of_year - 1) / 365.25 for part in pair]
    if kinds in ({"number"}, {"date"}):
        values = [part.to_numpy(float, na_value=np.nan) for part in pair]
        # A few far cells would leave all others one dot.
        ends = np.nanquantile(np.concatenate(values), [0.005, 0.995])
        return _Places([np.where(np.isinf(own), np.nan, own).clip(*ends) for own in values], [])
    texts = [part.astype(object).where(part.notna(), "(missing)").astype(str) for part in pair]
    frequent = pd.concat(texts).value_counts().index[:8].tolist()
    # A level that is not among these has no place: it is NaN, which is not drawn.
    codes = [
        text.map({level: place for place, level in enumerate(frequent)}).to_numpy(float)
        for text in texts
    ]
    moved = [code + rng.uniform(-0.3, 0.3, len(code)) for code in codes]
    return _Places(moved, [_shortened(str(level), 14) for level in frequent])


def _draw_levels(axis: Any, pair: list[Any], names: tuple[str, str]) -> None:
    """Bars of the most frequent levels."""
    texts = [
        column.astype(object).where(column.notna(), "(missing)").astype(str) for column in pair
    ]
    shares = [column.value_counts(normalize=True) for column in texts]
    # The levels that matter in either table.
    order = shares[0].add(shares[1], fill_value=0).sort_values(ascending=False).index[:8]
    places = np.arange(len(order))
    for shift, share, name in zip((-0.2, 0.2), shares, names, strict=True):
        widths, label = share.reindex(order, fill_value=0), _shortened(name, 40)
        axis.barh(places + shift, widths, height=0.4, label=label)
    axis.set_yticks(places, [_shortened(str(level), 14) for level in order], fontsize=8)
    # Places count upwards, and the most frequent level is the first.
    axis.invert_yaxis()


def _draw_columns(comparison: "TableComparison") -> str:
    columns = comparison.columns
    return _draw_bars(
        list(columns["column"]), columns["js"].to_numpy(), columns["error"].to_numpy(), "JS, bits"
    )


def _draw_importance(comparison: "TableComparison") -> str:
    values = np.array(list(comparison.importance.values()))
    return _draw_bars(list(comparison.importance), values, None, "what AUC loses without it")


def _draw_bars(names: list[str], values: np.ndarray, errors: np.ndarray | None, label: str) -> str:
    import matplotlib.pyplot as plt

    with plot.style():
        figure, axis = plt.subplots(figsize=(8, 1.2 + 0.3 * min(12, len(names))))
        plot.contributions([_shortened(name, 30) for name in names], values, errors, ax=axis)
        axis.set_xlabel(label)
        # Errors of columns without a difference would take half of the figure.
        end = float(np.max(values if errors is None else np.where(values > 0, values + errors, 0)))
        axis.set_xlim(0, 1.05 * end if end > 0 else 1)
        return _image(figure)


def _draw_scores(comparison: "TableComparison") -> str:
    import matplotlib.pyplot as plt

    pooled = np.concatenate(comparison.scores)
    # A few certain rows would flatten the curves of all others.
    low, high = np.quantile(pooled, [0.001, 0.999])
    bins = np.linspace(low - 0.1, high + 0.1, 50)
    with plot.style():
        figure, axis = plt.subplots(figsize=(8, 3))
        for scores, name in zip(comparison.scores, comparison.names, strict=True):
            clipped, label = np.clip(scores, *bins[[0, -1]]), _shortened(name, 40)
            axis.hist(clipped, bins, density=True, histtype="step", label=label)
        axis.set(xlabel="log ratio of a row", yticks=[])
        axis.legend()
        return _image(figure)


def _shortened(text: str, most: int) -> str:
    # A dollar sign would begin mathematics.
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return shown.replace("$", r"\$")
