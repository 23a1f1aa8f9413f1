"""Boosted trees of two views: of a table's columns, and of columns with products of two of them.

If only the dependence of two columns has changed, no single split separates the tables, and a tree
begins with a single split. The products of columns whose means differ most between the classes make
such a change visible at once. If no dependence has changed, they are further columns to be mistaken
by, and trees without them find more.
"""

import contextlib
import dataclasses
import functools
import importlib.util
from typing import Any

import numpy as np
from scipy.special import expit

__all__ = ["PairedTrees"]

# Levels of a category, columns in all and pairs that are looked at.
MOST_LEVELS, MOST_COLUMNS, NUM_PAIRS = 10, 400, 8
# From so many entries of a table on, several threads are faster than one.
_SMALL = 1_000_000


@dataclasses.dataclass
class PairedTrees:
    """A classifier with scikit-learn's interface: the mean of two histogram boostings' log odds.

    One sees the values of the columns alone, the other all features and products of two. The
    products are chosen among the rows of `fit` alone. Boosting stops by a tenth of these rows.

    Attributes:
        values: the features that are a column's own values, rather than how often they repeat.
        categories: the features that are codes from zero on, the most frequent level first.
        seed: of the rows that boosting stops by.
        quick: whether there are fewer steps, and larger ones.

    Raises:
        ImportError: if scikit-learn is not installed.
    """

    values: list[int]
    categories: list[int]
    seed: int = 0
    quick: bool = False

    def __post_init__(self):
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError(
                "compare_tables needs scikit-learn, which is not installed: "
                'pip install "divjax[tables]".'
            )

    def fit(self, X: np.ndarray, y: np.ndarray) -> "PairedTrees":
        """Learn the labels y, 0 or 1, of the rows of X."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        # Products are of columns of mean zero: their means are covariances.
        self._fit_scales(X)
        standard = self._standard(X)
        self._center, self._spread = standard.mean(axis=0), standard.std(axis=0) + 1e-9
        standard = (standard - self._center) / self._spread
        self._pairs = _telling_pairs(standard[y == 1], standard[y == 0])
        options: dict[str, Any] = {
            "learning_rate": 0.1,
            "max_iter": 100 if self.quick else 300,
            # Half of the usual leaves and patience: the gap between training rows and others, by
            # which intervals widen, is a third, and the AUC is nearly the same.
            "max_leaf_nodes": 15,
            "n_iter_no_change": 8,
            "l2_regularization": 1.0,
            "early_stopping": True,
            "validation_fraction": 0.1,
            "random_state": self.seed,
        }
        self._trees = []
        for rows, categories in zip(self._views(X), self._categories(), strict=True):
            options["categorical_features"] = categories
            trees = HistGradientBoostingClassifier(**options)
            with _threads_for(rows):
                self._trees.append(trees.fit(rows, y))
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """The probabilities of both labels for each row."""
        log_odds = np.zeros(len(X))
        for trees, rows in zip(self._trees, self._views(X), strict=True):
            with _threads_for(rows):
                log_odds += trees.decision_function(rows) / len(self._trees)
        return np.stack([expit(-log_odds), expit(log_odds)], axis=1)

    def _views(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of either boosting."""
        # With the centre and scale of the fitted rows, so that a product's value means the same
        # everywhere.
        standard = (self._standard(X) - self._center) / self._spread
        first, second = self._pairs
        products = standard[:, first] * standard[:, second]
        return X[:, self.values], np.concatenate([X, products], axis=1)

    def _categories(self) -> tuple[list[int] | None, list[int] | None]:
        """The codes among the features of either."""
        among = [index for index, k in enumerate(self.values) if k in set(self.categories)]
        return among or None, self.categories or None

    def _fit_scales(self, X: np.ndarray) -> None:
        """The bounds that numbers are clipped to, their scales, and the number of levels."""
        self._numbers = [k for k in range(X.shape[1]) if k not in set(self.categories)]
        known = np.nan_to_num(X[:, self._numbers])
        self._low, self._high = np.quantile(known, [0.01, 0.99], axis=0)
        # A range, and no deviation: squares of large numbers would overflow.
        scale = self._high - self._low
        self._scale = np.where(scale > 0, scale, 1.0)
        self._levels = [min(MOST_LEVELS, 1 + int(X[:, k].max())) for k in self.categories]

    def _standard(self, X: np.ndarray) -> np.ndarray:
        """Numbers, which of them are missing, and indicators of levels."""
        numbers = X[:, self._numbers]
        within = np.clip(np.nan_to_num(numbers), self._low, self._high)
        parts = [(within - self._low) / self._scale]
        parts.append(np.isnan(numbers))
        parts += [
            X[:, [k]] == np.arange(count)
            for k, count in zip(self.categories, self._levels, strict=True)
        ]
        # All pairs of columns are looked at: their number bounds the memory.
        return np.concatenate(parts, axis=1).astype(float)[:, :MOST_COLUMNS]


def _threads_for(rows: np.ndarray) -> contextlib.AbstractContextManager[Any]:
    """One thread for a table whose splits take less time than threads wait for each other.

    Where others use the processor too, waiting takes ten times as long as the work.
    """
    limit = 1 if rows.size < _SMALL else None
    return _thread_pools().limit(limits=limit, user_api="openmp")


@functools.cache
def _thread_pools() -> Any:
    """The libraries with threads, looked for once: that takes as long as a prediction."""
    # A dependency of scikit-learn, whose libraries are loaded by now.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _telling_pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of columns whose products' means differ by the most standard errors."""
    # The mean of a product is a covariance; its error comes from the products' variance.
    means, variances = [], []
    for rows in (x, y):
        means.append(rows.T @ rows / len(rows))
        squares = (rows**2).T @ rows**2 / len(rows)
        variances.append(np.maximum(squares - means[-1] ** 2, 0) / len(rows))
    # With a floor, as a product that never varies has an error of zero.
    errors = np.sqrt(variances[0] + variances[1] + 1e-6)
    clearness = np.triu(np.abs(means[0] - means[1]) / errors, 1)
    order = np.argsort(-clearness, axis=None, kind="stable")[:NUM_PAIRS]
    first, second = np.unravel_index(order, clearness.shape)
    return first, second
