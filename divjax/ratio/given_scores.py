"""Ratios of scores from outside: any classifier's out-of-fold log ratios, with all estimates."""

import contextlib
import copy
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import (
    check_choice,
    check_count,
    check_no_negatives,
    check_provides,
    check_shape,
    check_weights,
)
from divjax.core.conversion import without_mask
from divjax.core.keys import own_key
from divjax.core.labels import concrete_labels, number_labels, pool_labels
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, as_numbers, dtype_in_jax, loses_digits
from divjax.inference.rank import share_in_order
from divjax.ratio.calibration import CALIBRATIONS, apply_calibrations, calibrate_folds
from divjax.ratio.certificates import HeldOut, SequentialScores, num_first_folds
from divjax.ratio.diagnostics import Ties, ties
from divjax.ratio.fit import RatioFit
from divjax.ratio.misfit import Misfit
from divjax.ratio.protocols import cross_entropy
from divjax.ratio.splits import CrossFitting, normalize_weights

__all__ = ["Classifier", "SklearnRatio", "from_scores"]


def from_scores(
    key: Key[Array, ""],
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    folds: tuple[Int[Numbers, " n"], Int[Numbers, " m"]],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    train_loss: Float[Numbers, " folds"] | None = None,
    calibration: str = "platt",
    groups: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> RatioFit:
    """A `RatioFit` of out-of-fold log ratios that any classifier has given.

    Each row's score must come from a model that was fitted without the rows of its fold. Scores are
    log p/q: a classifier's log odds of p, minus the log of the odds of the rows it was fitted to.
    `SklearnRatio` fits and scores in one call.

    Args:
        key: of the order in which the rows of a fold are bet on.
        x: the score of each row of the sample of p.
        y: the score of each row of the sample of q. Both are rounded to JAX's dtype.
        folds: the fold of each row of x and of y, any labels; at least two folds, with two rows of
            each sample in each fold.
        a: weights of the rows of x, uniform by default.
        b: weights of the rows of y.
        train_loss: the balanced cross-entropy in nats of each fold's model on its own training
            rows, in the order of the folds' labels. Its distance to that of the fold measures
            overfitting, which standard errors include. Without it they do not.
        calibration: "platt", "temperature" or "none": each fold's scores are corrected by an
            intercept and a slope, or a slope alone, fitted to the other folds' scores.
        groups: labels of rows that depend on each other; a group must be in one fold.

    Returns:
        The fit, with its divergences, intervals, certificates, AUC and two-sample test. Its
        `log_ratio` of other rows raises `ValueError`, since there is no model. Certificates are of
        bets on each fold by itself. Without rows `diagnostics.ties` are NaN.

    Raises:
        ValueError: if an argument is invalid, a fold has too few rows, a group is in two folds, or
            rounding NumPy's scores would change how well they tell the samples apart.

    Example:
        >>> import jax
        >>> from divjax import ratio
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 400))
        >>> scores = (x + 1) - 0.5, y - 0.5  # log N(1, 1)/N(0, 1) at z is z − ½: KL = ½
        >>> folds = [i % 5 for i in range(400)], [i % 5 for i in range(400)]
        >>> fit = ratio.from_scores(jax.random.key(1), *scores, folds)
        >>> abs(float(fit.kl()) - 0.5) < 2 * float(fit.kl().std_error)
        True
    """
    _check_order(x, y, a, b)
    return _from_scores(
        key, x, y, folds, a, b, train_loss=train_loss, calibration=calibration, groups=groups
    )


def _from_scores(
    key: Key[Array, ""],
    x: Numbers,
    y: Numbers,
    folds: tuple[Any, Any],
    a: Numbers | None,
    b: Numbers | None,
    *,
    train_loss: Numbers | None,
    calibration: str,
    groups: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    first: tuple[Numbers, Numbers] | None = None,
    duplicates: Ties | None = None,
) -> RatioFit:
    """`from_scores`, with the first folds' scores of all rows and the ties of the rows."""
    # Scores and folds are checked first: what follows is one program.
    own = own_key(key)
    check_choice(CALIBRATIONS, calibration=calibration)
    scores = [jnp.asarray(as_numbers(name, u)) for name, u in (("x", x), ("y", y))]
    for name, u in zip("xy", scores, strict=True):
        check_shape(name, u, "n")
    dtype = jnp.result_type(*scores, jnp.float32)
    parts = concrete_labels("folds", folds, *map(len, scores))
    num_folds = 1 + max(int(part.max(initial=0)) for part in parts)
    numbers = np.concatenate(parts)
    weights = [
        _weights(name, weight, u) for name, weight, u in (("a", a, scores[0]), ("b", b, scores[1]))
    ]
    # A row of weight zero is in no fold.
    for name, part, weight in zip("xy", parts, weights, strict=True):
        used = np.ones(len(part), bool) if isinstance(weight, Tracer) else np.asarray(weight) > 0
        fewest = np.bincount(part[used], minlength=num_folds).min()
        if num_folds < 2 or fewest < 2:
            raise ValueError(
                f"folds must be at least two, with two rows of {name} of nonzero weight in each; "
                f"got {num_folds} folds, one with {fewest} rows."
            )
    of_group = None if groups is None else pool_labels("groups", groups, *map(len, scores))
    if of_group is not None and not isinstance(of_group, Tracer):
        # A group with rows in several folds is in several distinct pairs, any other in one.
        pairs = np.unique(np.stack([np.asarray(of_group), numbers]), axis=1)
        if pairs.shape[1] > len(np.unique(pairs[0])):
            raise ValueError("groups must lie in one fold each; got a group with rows in several.")
    if train_loss is not None:
        train_loss = jnp.asarray(as_numbers("train_loss", train_loss), dtype)
        check_shape("train_loss", train_loss, num_folds)
        check_no_negatives(train_loss=train_loss)
    given = None if first is None else (jnp.asarray(first[0], dtype), jnp.asarray(first[1], dtype))
    # The same fields as those of a fit, from the calibration on.
    fields = _cross_fit(
        own,
        (scores[0].astype(dtype), scores[1].astype(dtype)),
        (jnp.asarray(parts[0]), jnp.asarray(parts[1])),
        (jnp.asarray(weights[0], dtype), jnp.asarray(weights[1], dtype)),
        None if of_group is None else number_labels(of_group),
        train_loss,
        given,
        plan=CrossFitting(num_folds, 1, 0.0, calibration, False),
    )
    unknown = jnp.full((), jnp.nan, dtype)
    empty = Ties(unknown, unknown, unknown, unknown, jnp.zeros(0, dtype), jnp.zeros(0, dtype))
    # No model and no features: nothing beyond the scores.
    return RatioFit(**fields, ties=duplicates or empty, head=None, members=None)  # pyright: ignore[reportArgumentType]


def _check_order(x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None) -> None:
    """Raise `ValueError` for NumPy's scores whose AUC changes as they are rounded."""
    scores: list[Any] = [as_numbers(name, u) for name, u in (("x", x), ("y", y))]
    # JAX's scores were rounded before, if at all, and invalid ones are reported by their own check.
    if any(isinstance(u, jax.Array) or u.ndim != 1 for u in scores) or not loses_digits(*scores):
        return
    # Rows of weight zero may hold anything, and so may those that are flagged.
    scores = [_counted(u, weight) for u, weight in zip(scores, (a, b), strict=True)]
    if not all(map(len, scores)):
        return
    pooled, num_x = np.concatenate(scores), len(scores[0])
    with np.errstate(over="ignore"):
        rounded = pooled.astype(dtype_in_jax(scores[0]))
    # Sums of the same votes in another order differ by float64's rounding, and have no order.
    distinct, place = np.unique(pooled, return_inverse=True)
    gaps = np.diff(distinct, prepend=-np.inf)
    exact = np.cumsum(gaps > 1e-12 * np.abs(distinct))[place]
    values = [share_in_order(part[:num_x], part[num_x:]) for part in (exact, rounded)]
    # The AUC's standard error, (6n)^(−½) for equal samples of n rows, is larger below n = 160 000.
    if abs(values[0] - values[1]) > 1e-3:
        raise ValueError(
            f"x and y must differ by more than rounding: {rounded.dtype} would change their AUC "
            f"from {values[0]:.4g} to {values[1]:.4g}. Subtract an offset, or enable float64."
        )


def _counted(u: np.ndarray, weight: Any) -> np.ndarray:
    """The finite scores, of rows with weight if that is known."""
    counts = np.isfinite(u)
    if weight is not None and not isinstance(weight, Tracer) and np.shape(weight) == u.shape:
        counts &= np.asarray(weight) > 0
    return u[counts]


def _weights(name: str, weight: Numbers | None, scores: Array) -> Any:
    # In NumPy, where rows with weight can be counted before anything is traced.
    if weight is None:
        return np.ones(len(scores))
    given: Any = as_numbers(name, weight)
    check_shape(name, given, len(scores))
    check_weights(name, given)
    return given


@functools.partial(jax.jit, static_argnames="plan")
def _cross_fit(
    key: Key[Array, ""],
    scores: tuple[Array, Array],
    folds: tuple[Array, Array],
    weights: tuple[Array, Array],
    groups: Int[Array, " rows"] | None,
    train_loss: Float[Array, " folds"] | None,
    first: tuple[Array, Array] | None,
    *,
    plan: CrossFitting,
) -> dict[str, Any]:
    """The fields of a fit that follow from its scores."""
    num_folds, (a, b) = plan.num_folds, (normalize_weights(weight) for weight in weights)
    used = [weight > 0 for weight in (a, b)]
    # A traced weight that is negative leaves no number.
    valid = jnp.min(weights[0]) >= 0
    valid &= jnp.min(weights[1]) >= 0
    raw = [nan_unless(valid, jnp.where(own, u, 0)) for own, u in zip(used, scores, strict=True)]
    held_out = [
        HeldOut(jax.lax.stop_gradient(u), jnp.where(own, fold, -1), _random_rank(k, fold, own))
        for k, u, fold, own in zip(jax.random.split(key), raw, folds, used, strict=True)
    ]
    # Calibrated by the other folds' rows, scores remain out of fold.
    calibrations = jax.lax.stop_gradient(calibrate_folds(held_out, (a, b), plan))
    log_ratio_p, log_ratio_q = (
        apply_calibrations(u, part.fold, calibrations)
        for u, part in zip(raw, held_out, strict=True)
    )

    def loss(fold):
        own = [jnp.where(part.fold == fold, w, 0) for part, w in zip(held_out, (a, b), strict=True)]
        return cross_entropy(raw[0], raw[1], *map(normalize_weights, own))

    test = jax.lax.stop_gradient(jax.vmap(loss)(jnp.arange(num_folds)))[None]
    # Without validation rows each model bets at the usual scale; without a model of the first folds
    # the sequence bets nothing.
    models = num_folds + bool(num_first_folds(num_folds))
    none = jnp.zeros((models, 1), a.dtype)
    of_first = jax.lax.stop_gradient(first or (jnp.zeros_like(a), jnp.zeros_like(b)))
    sequential = SequentialScores(of_first[0], of_first[1], none, none, none, none)
    return {
        "log_ratio_p": log_ratio_p,
        "log_ratio_q": log_ratio_q,
        "weights_p": a,
        "weights_q": b,
        "held_out_p": held_out[0],
        "held_out_q": held_out[1],
        "sequential": sequential,
        # Without the models' own losses no gap between training and test is claimed.
        "train": test if train_loss is None else train_loss[None],
        "validation": test,
        "test": test,
        "misfit": Misfit(jnp.zeros_like(test[0, 0]), jnp.zeros_like(test[0, 0])),
        "groups": None if groups is None else (groups[: len(a)], groups[len(a) :]),
    }


def _random_rank(
    key: Key[Array, ""], fold: Int[Array, " n"], used: Bool[Array, " n"]
) -> Int[Array, " n"]:
    """The place of each row in an order by folds, at random within them, unused rows last."""
    # The last of the keys decides first.
    order = jnp.lexsort((jax.random.uniform(key, fold.shape), fold, ~used))
    return jnp.zeros_like(fold).at[order].set(jnp.arange(len(fold), dtype=fold.dtype))


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
        return _from_scores(
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
