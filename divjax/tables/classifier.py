"""The classifier that tells two encoded tables apart: its features, its test, its importances.

Trees, since tables hold numbers on any scale, categories, gaps and lattices at once; divergences
are those of `ratio.SklearnRatio` with the same ones.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from divjax.inference import score_permutation_test
from divjax.inference.rank import share_in_order
from divjax.tables.encoding import Encoded
from divjax.tables.values import MISSING

__all__ = ["Features", "Halves", "score_halves", "tree_features"]

# Rows of each half that columns are shuffled among: more would only take longer.
MOST_SHUFFLED = 4000


class Features(NamedTuple):
    """Two tables as a classifier of trees takes them.

    Attributes:
        x: the rows of one table, "n d": numbers with gaps as NaN, how often numbers repeat, and
            categories as codes.
        y: the rows of the other, "m d".
        groups: which features each original column has, first of all its own values.
        categories: the features that are codes.
    """

    x: np.ndarray
    y: np.ndarray
    groups: dict[str, list[int]]
    categories: list[int]

    @property
    def values(self) -> list[int]:
        """The feature of each column that is its own values."""
        return [features[0] for features in self.groups.values()]


def tree_features(encoded: Encoded) -> Features:
    """The features of trees, one or two a column, from two encoded tables.

    Indicators of levels become one column of codes: a split then separates sets of levels.
    """
    pooled, features, groups, categories = np.concatenate(encoded[:2]), [], {}, []
    for column, group in encoded.groups.items():
        block, start = pooled[:, group], len(features)
        if encoded.columns[group.start] == column:
            # A tree takes gaps as they are: NaN, in place of the median and an indicator.
            labels = [name[len(column) :] for name in encoded.columns[group]]
            values = block[:, 0]
            if f" {MISSING}" in labels:
                values = np.where(block[:, labels.index(f" {MISSING}")] > 0, np.nan, values)
            features.append(values)
            if " (repeats)" in labels:
                features.append(block[:, labels.index(" (repeats)")])
        else:
            # The most frequent level, whose indicators are all zero, is code 0.
            features.append(np.where(block.any(axis=1), 1 + block.argmax(axis=1), 0).astype(float))
            categories.append(start)
        groups[column] = list(range(start, len(features)))
    rows, num_p = np.stack(features, axis=1), len(encoded.x)
    return Features(rows[:num_p], rows[num_p:], groups, categories)


class Halves(NamedTuple):
    """Both halves of the rows, each scored by the trees that were fitted to the other.

    Attributes:
        p_values: of the permutation test on each half.
        importance: of each column the mean over both halves of the loss of AUC if the column is
            shuffled among the rows of the half.
        error: the standard error of the importance over shuffles and halves.
    """

    p_values: tuple[float, float]
    importance: dict[str, float]
    error: dict[str, float]

    @property
    def p_value(self) -> float:
        """By Bonferroni's inequality, twice the smaller one: every row has been tested."""
        return min(1.0, 2 * min(self.p_values))


def score_halves(
    key: Key[Array, ""],
    features: Features,
    classifier: Any,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    num_permutations: int,
    num_shuffles: int,
) -> Halves:
    """Split both tables in halves and test each half by the other's classifier.

    A classifier is a fixed function for rows that it was not fitted to. Each p-value is therefore
    exact, whatever the classifier has learned.

    Args:
        key: of the split, the permutations and the shuffles.
        features: of both tables.
        classifier: fitted to each half, as copies.
        groups: labels of the rows of both; rows of a group are in one half.
        num_permutations: of each test.
        num_shuffles: of each column in each half.
    """
    seed = np.asarray(jax.random.key_data(key)).ravel()
    rng = np.random.default_rng(seed)
    rows = np.concatenate([features.x, features.y])
    of_p = np.arange(len(rows)) < len(features.x)
    units = np.arange(len(rows)) if groups is None else np.concatenate(groups)
    half = _random_halves(rng, of_p, units)

    p_values, losses = [], []
    for held_out in (0, 1):
        own = half == held_out
        # Given the model, labels of the other half are exchangeable if the tables are alike.
        model = copy.deepcopy(classifier).fit(rows[~own], of_p[~own].astype(int))
        score = lambda rows, model=model: model.predict_proba(rows)[:, 1]
        scores = score(rows[own])
        test = score_permutation_test(
            jax.random.fold_in(key, held_out),
            scores[of_p[own]],
            scores[~of_p[own]],
            num_permutations=num_permutations,
        )
        p_values.append(float(test.p_value))
        # Which columns the model needs is seen on the same held-out rows.
        among = rng.permutation(np.flatnonzero(own))[:MOST_SHUFFLED]
        losses.append(_losses(rng, score, rows[among], of_p[among], features.groups, num_shuffles))
    return Halves((p_values[0], p_values[1]), *_averages(list(features.groups), np.stack(losses)))


def _random_halves(rng: np.random.Generator, of_p: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Half 0 or 1 of each row: at random, with both tables in both halves, and units undivided."""
    _, unit = np.unique(units, return_inverse=True)
    share = np.bincount(unit, of_p) / np.bincount(unit)
    # Units in the order of their share of the one table are dealt out in turn.
    order = np.lexsort((rng.random(len(share)), share))
    half = np.empty(len(share), int)
    half[order] = (np.arange(len(share)) + rng.integers(2)) % 2
    return half[unit]


def _losses(
    rng: np.random.Generator,
    score: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    of_p: np.ndarray,
    groups: dict[str, list[int]],
    num_shuffles: int,
) -> np.ndarray:
    """The loss of AUC by each shuffle of each column, "columns shuffles"."""

    def auc(rows: np.ndarray) -> float:
        scores = score(rows)
        return share_in_order(scores[of_p], scores[~of_p])

    # Shuffles are compared with one AUC of the same rows, so that its error cancels in the
    # differences.
    whole, losses = auc(rows), np.empty((len(groups), num_shuffles))
    for index, features in enumerate(groups.values()):
        for shuffle in range(num_shuffles):
            shuffled = rows.copy()
            # All features of a column move together, so that its own distribution is kept.
            shuffled[:, features] = rows[rng.permutation(len(rows))][:, features]
            losses[index, shuffle] = whole - auc(shuffled)
    return losses


def _averages(columns: list[str], losses: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """The mean loss of each column, and its error, of losses "halves columns shuffles"."""
    # Shuffles of both halves are pooled: the spread between the halves' models is part of the
    # error.
    each = np.concatenate(list(losses), axis=1)
    error = each.std(axis=1, ddof=1) / np.sqrt(each.shape[1])
    means = each.mean(axis=1)
    return (
        dict(zip(columns, means.tolist(), strict=True)),
        dict(zip(columns, error.tolist(), strict=True)),
    )
