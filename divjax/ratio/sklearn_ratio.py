"""Any classifier with scikit-learn's interface, cross-fitted to two samples of any rows."""

import contextlib
import copy
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Key

from divjax.core.checks import check_choice, check_count, check_provides
from divjax.core.conversion import without_mask
from divjax.core.keys import own_key
from divjax.core.labels import pool_labels
from divjax.ratio.calibration import CALIBRATIONS
from divjax.ratio.certificates import num_first_folds
from divjax.ratio.diagnostics import Ties, ties
from divjax.ratio.fit import RatioFit
from divjax.ratio.given_scores import fit_of_scores

__all__ = ["Classifier", "SklearnRatio"]


@runtime_checkable
class Classifier(Protocol):
    """A classifier with scikit-learn's interface."""

    def fit(self, X: Any, y: Any) -> Any:
        """Learn the labels y of the rows of X."""
        ...

    def predict_proba(self, X: Any) -> Any:
        """The probability of each label, 0 and 1, for each row."""
        ...


@dataclasses.dataclass(frozen=True)
class SklearnRatio:
    """The log ratio by any classifier with scikit-learn's interface, cross-fitted.

    Rows are passed on as they are: for frames with categories and gaps use a classifier that takes
    them, such as `HistGradientBoostingClassifier(categorical_features="from_dtype")`. Everything
    runs in Python, outside of JAX: a fit can be neither compiled nor differentiated in the rows.

    The log ratio of a row is the log odds of p by the models that were not fitted to it, minus the
    log odds of their training rows. Probabilities nearer to 0 or 1 than half a row are moved there:
    a forest's certainty would be an infinite ratio.

    Attributes:
        classifier: copied for each fold; `fit` and `predict_proba` are used. Weights and groups are
            not known to it, and it must not weigh the classes (`class_weight=None`).
        num_folds: K.
        calibration: as in `from_scores`.

    Raises:
        ValueError: if `classifier` lacks a method or weighs the classes, or a setting is out of
            range.

    Example:
        >>> import jax, numpy as np
        >>> from sklearn.linear_model import LogisticRegression
        >>> from divjax import ratio
        >>> x, y = np.random.default_rng(0).normal(size=(2, 400, 1))
        >>> fit = ratio.SklearnRatio(LogisticRegression()).fit(jax.random.key(0), x + 1, y)
        >>> abs(float(fit.kl()) - 0.5) < 2 * float(fit.kl().std_error)
        True
    """

    classifier: Classifier
    num_folds: int = 5
    calibration: str = "platt"

    def __post_init__(self):
        check_provides("classifier", self.classifier, ("fit", "predict_proba"), "a classifier")
        _check_unweighted(self.classifier)
        check_count(2, num_folds=self.num_folds)
        check_choice(CALIBRATIONS, calibration=self.calibration)

    def fit(
        self,
        key: Key[Array, ""],
        x: Any,
        y: Any,
        *,
        groups: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> RatioFit:
        """Cross-fit the classifier.

        Args:
            key: of the folds.
            x: rows of the sample of p: an array, or a frame of anything the classifier takes.
                Masked numbers of NumPy are NaN.
            y: rows of the sample of q, of the same columns.
            groups: labels of the rows of x and of y; rows of one group share a fold.

        Returns:
            The fit, of scores alone.

        Raises:
            ValueError: if the rows do not have the same columns, there are fewer than two rows (or
                groups) of a sample in each fold, or the classifier gives anything but two
                probabilities for each row.
        """
        # Both samples as one table of rows, labelled by the sample.
        own = own_key(key)
        rows, num_x = _stacked(x, y)
        label = np.arange(len(rows)) < num_x
        units = None if groups is None else pool_labels("groups", groups, num_x, len(rows) - num_x)
        folds = _folds(own, label, None if units is None else np.asarray(units), self.num_folds)

        # Each fold is scored by the model of the others, which is scored on its own rows as well.
        scores, train_loss = np.empty(len(rows)), []
        for fold in range(self.num_folds):
            model = _Model(self.classifier, rows, label, folds != fold)
            scores[folds == fold] = model.log_ratio(rows, folds == fold)
            fitted = [model.log_ratio(rows, (folds != fold) & part) for part in (label, ~label)]
            train_loss.append(_balanced_loss(*fitted))
        # A model of the first folds alone bets on the later ones in sequence.
        first, after = num_first_folds(self.num_folds), np.zeros(len(rows))
        if first:
            later = folds >= first
            after[later] = _Model(self.classifier, rows, label, ~later).log_ratio(rows, later)
        return fit_of_scores(
            jax.random.fold_in(own, 1),
            scores[label],
            scores[~label],
            (folds[label], folds[~label]),
            None,
            None,
            train_loss=np.array(train_loss),
            calibration=self.calibration,
            groups=groups,
            first=(after[label], after[~label]),
            duplicates=_ties_of(rows, num_x),
        )


# The names of weights of classes in scikit-learn, XGBoost, LightGBM and CatBoost.
_CLASS_WEIGHTS = (
    "class_weight",
    "class_weights",
    "auto_class_weights",
    "is_unbalance",
    "scale_pos_weight",
)


def _check_unweighted(classifier: Any) -> None:
    """Raise `ValueError` for weights of classes: the odds would not be those of the rows."""
    params = classifier.get_params() if hasattr(classifier, "get_params") else {}
    for name, value in params.items():
        # The parameters of a pipeline's steps begin with the steps' names.
        plain = value is None or value is False or (isinstance(value, (int, float)) and value == 1)
        if name.split("__")[-1] in _CLASS_WEIGHTS and not plain:
            raise ValueError(
                "classifier must not weigh the classes, as the odds of the training rows are "
                f"subtracted from its own; got {name}={value!r}. Leave it out."
            )


def _balanced_loss(log_ratio_p: np.ndarray, log_ratio_q: np.ndarray) -> float:
    """`cross_entropy` of NumPy's numbers, for which nothing is compiled."""
    losses = np.logaddexp(0, -log_ratio_p), np.logaddexp(0, log_ratio_q)
    return float(losses[0].mean() + losses[1].mean()) / 2


class _Model:
    """A classifier fitted to some of the rows."""

    def __init__(self, classifier: Classifier, rows: Any, label: np.ndarray, part: np.ndarray):
        # The odds of the training rows are no evidence.
        counts = np.array([np.sum(part & label), np.sum(part & ~label)])
        self._prior, self._half_row = np.log(counts[0] / counts[1]), 0.5 / counts.sum()
        self._fitted = copy.deepcopy(classifier)
        self._fitted.fit(_take(rows, part), label[part].astype(int))

    def log_ratio(self, rows: Any, part: np.ndarray) -> np.ndarray:
        """Log p/q of the rows of a part."""
        given = np.asarray(without_mask(self._fitted.predict_proba(_take(rows, part))))
        self._check_probabilities(given, int(part.sum()))
        # The label 1 is that of the rows of x. NaN stays: it is flagged.
        of_p = given[:, 1].astype(np.float64)
        of_p = np.clip(of_p, self._half_row, 1 - self._half_row)
        return np.log(of_p) - np.log1p(-of_p) - self._prior

    def _check_probabilities(self, given: np.ndarray, num_rows: int) -> None:
        method = f"predict_proba of {type(self._fitted).__name__}"
        if given.shape != (num_rows, 2):
            raise ValueError(
                f"{method} must give a row a row of its input and a column a label, of shape "
                f"({num_rows}, 2); got {given.shape}."
            )
        # Per cents or logarithms would be clipped to certainty. Rounding may pass either end.
        if (given > 1 + 1e-5).any():
            raise ValueError(
                f"{method} must give probabilities in [0, 1]; got up to {np.nanmax(given)}."
            )
        if (given < -1e-5).any():
            least = np.nanmin(given)
            raise ValueError(f"{method} must give probabilities in [0, 1]; got down to {least}.")


def _stacked(x: Any, y: Any) -> tuple[Any, int]:
    """The rows of both samples in one array or frame, and the number of those of x."""
    # Frames keep their dtypes, which tell the classifier what is a category.
    frames = [hasattr(sample, "columns") for sample in (x, y)]
    if all(frames):
        import pandas

        if list(x.columns) != list(y.columns):
            raise ValueError(
                f"x and y must have the same columns in the same order; got {list(x.columns)} and "
                f"{list(y.columns)}."
            )
        return pandas.concat([x, y], ignore_index=True), len(x)
    if any(frames):
        raise ValueError("x and y must both be frames, or neither.")
    x, y = (np.asarray(without_mask(sample)) for sample in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be matrices with the same number of columns; got shapes {x.shape} and "
            f"{y.shape}."
        )
    return np.concatenate([x, y]), len(x)


def _take(rows: Any, part: np.ndarray) -> Any:
    return rows.loc[part] if hasattr(rows, "columns") else rows[part]


def _folds(
    key: Key[Array, ""], label: np.ndarray, groups: np.ndarray | None, num_folds: int
) -> np.ndarray:
    """A random fold for each row; rows of a group are together, and samples in proportion."""
    # The classifier works in NumPy, and so does the split, from the same key.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    folds = np.empty(len(label), int)
    if groups is None:
        for part in (label, ~label):
            folds[part] = rng.permutation(np.arange(part.sum()) % num_folds)
        return folds
    # Groups are dealt out in the order of their share of x: each fold gets both samples.
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
    share = np.bincount(numbers, label) / np.bincount(numbers)
    order = np.lexsort((rng.random(len(share)), share))
    of_group = np.empty(len(share), int)
    of_group[order] = np.arange(len(share)) % num_folds
    return of_group[numbers]


def _ties_of(rows: Any, num_x: int) -> Ties | None:
    """The duplicates among rows of any values, of which a gap is one; None if they are unknown."""
    is_frame = hasattr(rows, "columns")
    columns = (rows.iloc[:, j] for j in range(rows.shape[1])) if is_frame else rows.T
    try:
        codes = np.stack([_codes(column) for column in columns], axis=1)
    except TypeError:  # of values that have neither a hash nor an order
        return None
    return ties(codes[:num_x], codes[num_x:])


def _codes(column: Any) -> np.ndarray:
    """A number for each value, the same for equal values."""
    if not isinstance(column, np.ndarray):
        return column.factorize(use_na_sentinel=False)[0]
    if column.dtype == object:
        # Gaps among objects equal nothing, and have no order.
        with contextlib.suppress(TypeError, ValueError):
            column = column.astype(np.float64)
    return np.unique(column, return_inverse=True)[1].reshape(-1)
