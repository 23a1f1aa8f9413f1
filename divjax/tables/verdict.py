"""The verdict on two tables in one sentence: whether they differ, how far, in which columns."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from divjax.core.types import Estimate

__all__ = ["Verdict", "cannot_tell", "decide", "detectable_auc", "drivers_of", "shown_p_value"]

# How many columns a sentence names.
MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether two tables differ, at one level for everything that was tested.

    Attributes:
        different: True or False, or None if nothing could be estimated.
        sentence: the verdict in words.
        p_value: the tables are called different where it is at most `level`. Twice the smaller one
            of the classifier's and the columns'.
        level: the probability, at most, of calling equal distributions different.
        js: the Jensen–Shannon divergence in bits.
        js_interval: its 95 % interval.
        columns: those that drive the difference, the foremost first.
    """

    different: bool | None
    sentence: str
    p_value: float
    level: float
    js: float
    js_interval: tuple[float, float]
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return self.sentence


def decide(
    js: Estimate,
    classifier_p_value: float,
    columns: pd.DataFrame,
    drivers: Sequence[str],
    num_rows: tuple[int, int],
    level: float,
) -> Verdict:
    """The verdict from the classifier's test and those of the columns, half of the level for each.

    Args:
        js: in bits.
        classifier_p_value: for all rows.
        columns: of `column_table`, at half of the level.
        drivers: the columns that the classifier uses most, see `drivers_of`.
        num_rows: of each table.
        level: of the verdict.
    """
    # The columns' p-values are adjusted for each other: the smallest one is that of all of them.
    p_values: Any = columns["p_value"]
    smallest = min(classifier_p_value, float(p_values.min()))
    value, interval = float(js.value), (float(js.interval[0]), float(js.interval[1]))
    if not all(map(math.isfinite, (classifier_p_value, value, *interval))):
        return cannot_tell("the classifier's scores are not finite", level)
    # Two tests of half the level each: Bonferroni's inequality once more.
    p_value = min(1.0, 2 * smallest)
    alone: Any = columns[columns["significant"]]
    # Columns that differ alone are named first, and otherwise those that the classifier needs.
    if p_value > level:
        sentence, named = _nothing_found(p_value, num_rows, level), ()
    else:
        sentence = (
            f"The tables differ (p {shown_p_value(p_value)}): Jensen–Shannon {value:.2g} bits "
            f"[{interval[0]:.2g}, {interval[1]:.2g}]. "
        )
        if len(alone):
            sentence += _alone(alone)
            named = tuple(alone["column"])
            if interval[0] > float((alone["js"] + 2 * alone["error"]).max()) and len(drivers) > 1:
                sentence += (
                    " The columns tell more together than any alone: the classifier uses "
                    f"{_list(drivers)} most."
                )
        else:
            sentence, named = sentence + _dependences(drivers), tuple(drivers)
    return Verdict(p_value <= level, sentence, p_value, level, value, interval, named)


def cannot_tell(why: str, level: float) -> Verdict:
    """The verdict where nothing was estimated."""
    nan = math.nan
    return Verdict(None, f"Cannot tell: {why}.", nan, level, nan, (nan, nan), ())


def drivers_of(importance: dict[str, float], error: dict[str, float]) -> tuple[str, ...]:
    """The columns without which the classifier is worse, in order: clearly, and by a fifth of most.

    Example:
        >>> drivers_of({"a": 0.01, "b": 0.1, "c": 0.09}, {"a": 0.01, "b": 0.01, "c": 0.01})
        ('b', 'c')
    """
    # Losses within their error are those of columns that the classifier does not need.
    most = max(importance.values(), default=0.0)
    clear = [
        column
        for column, loss in importance.items()
        if loss > max(2 * error[column], most / 5) and loss > 0
    ]
    return tuple(sorted(clear, key=lambda column: -importance[column])[:MOST_NAMED])


def detectable_auc(num_rows: tuple[int, int], level: float, power: float = 0.8) -> float:
    """The AUC that the test of one half of the rows would have found with this probability.

    Its error is that of the Mann–Whitney statistic of equal distributions, and its level a quarter
    of the verdict's.
    """
    n, m = (rows / 2 for rows in num_rows)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    quantiles = norm.ppf(1 - level / 4) + norm.ppf(power)
    return float(min(1.0, 0.5 + quantiles * error))


def _nothing_found(p_value: float, num_rows: tuple[int, int], level: float) -> str:
    # Finding no difference is worth the more, the smaller a difference this test would have found.
    auc = detectable_auc(num_rows, level)
    # Scores like two normal variables δ apart: AUC = Φ(δ/√2), and JS ≈ δ²/8 nats for small δ.
    shift = math.sqrt(2) * float(norm.ppf(min(auc, 1 - 1e-9)))
    js = min(1.0, shift**2 / 8 / np.log(2))
    return (
        f"No difference found (p {shown_p_value(p_value)}): in {num_rows[0]} and {num_rows[1]} "
        f"rows, a classifier's AUC of {auc:.3f}, about {js:.2g} bits, would be found four times of "
        "five."
    )


def _alone(columns: Any) -> str:
    shown = [
        f"{name} ({js:.2g} bits)" for name, js in zip(columns["column"], columns["js"], strict=True)
    ][:MOST_NAMED]
    if more := len(columns) - len(shown):
        shown.append(f"{more} more")
    return f"{'Differs' if len(columns) == 1 else 'Differ'} alone: {_list(shown)}."


def _dependences(drivers: Sequence[str]) -> str:
    # Which of them depend on which others the classifier does not say.
    among = f" among {_list(drivers)}" if len(drivers) > 1 else ""
    of = f" of {drivers[0]}" if len(drivers) == 1 else ""
    return f"No column differs alone: the dependences{among}{of} do."


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def shown_p_value(p_value: float) -> str:
    """A p-value with its sign of equality; those that float64 cannot hold are not zero.

    Example:
        >>> shown_p_value(0.0123), shown_p_value(0.0)
        ('= 0.012', '< 1e-300')
    """
    return "< 1e-300" if p_value < 1e-300 else f"= {p_value:.2g}"
