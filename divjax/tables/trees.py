"""Boosted trees that are also given products of two columns, since trees alone miss dependences.

Where two columns are as they were and only their dependence has changed, no single split tells
anything, and a tree begins with a single split. The products of columns whose means differ most
between the classes make such a change visible at once.
"""

import contextlib
import dataclasses
import functools
import importlib.util
from typing import Any

import numpy as np

__all__ = ["PairedTrees"]

# Levels of a category, columns in all and pairs that are looked at.
MOST_LEVELS, MOST_COLUMNS, NUM_PAIRS = 10, 400, 8
# Entries of a table from which on threads are worth their waiting.
_SMALL = 1_000_000


@dataclasses.dataclass
class PairedTrees:
    """A classifier with scikit-learn's interface: histogram boosting on columns and products.

    The products are chosen among the rows of `fit` alone. Boosting stops by a fifth of these rows.

    Attributes:
        categories: the columns that are codes from zero on, the most frequent level first.
        seed: of the rows that boosting stops by.
        quick: whether there are fewer steps, and larger ones.

    Raises:
        ImportError: if scikit-learn is not installed.
    """

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
            "learning_rate": 0.1 if self.quick else 0.05,
            "max_iter": 100 if self.quick else 300,
            "max_leaf_nodes": 15,
            "l2_regularization": 1.0,
            "early_stopping": True,
            "validation_fraction": 0.2,
            "n_iter_no_change": 15,
            "categorical_features": self.categories or None,
            "random_state": self.seed,
        }
        # The products are further columns; trees may use them or not.
        rows = self._with_products(X)
        with _threads_for(rows):
            self._trees = HistGradientBoostingClassifier(**options).fit(rows, y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """The probabilities of both labels for each row."""
        rows = self._with_products(X)
        with _threads_for(rows):
            return self._trees.predict_proba(rows)

    def _fit_scales(self, X: np.ndarray) -> None:
        """What numbers are clipped to, their scales, and how many levels categories have."""
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
        return np.concatenate(parts, axis=1).astype(float)[:, :MOST_COLUMNS]

    def _with_products(self, X: np.ndarray) -> np.ndarray:
        standard = (self._standard(X) - self._center) / self._spread
        first, second = self._pairs
        return np.concatenate([X, standard[:, first] * standard[:, second]], axis=1)


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
    # A product that hardly varies tells nothing.
    errors = np.sqrt(variances[0] + variances[1] + 1e-6)
    clearness = np.triu(np.abs(means[0] - means[1]) / errors, 1)
    order = np.argsort(-clearness, axis=None, kind="stable")[:NUM_PAIRS]
    first, second = np.unravel_index(order, clearness.shape)
    return first, second
