"""Ratios of scores from outside: any classifier's out-of-fold log ratios, with all estimates."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import (
    check_choice,
    check_no_negatives,
    check_shape,
    check_weights,
)
from divjax.core.keys import own_key
from divjax.core.labels import concrete_labels, number_labels, pool_labels
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, as_numbers, dtype_in_jax, loses_digits
from divjax.inference.rank import share_in_order
from divjax.ratio.calibration import CALIBRATIONS, apply_calibrations, calibrate_folds
from divjax.ratio.certificates import HeldOut, SequentialScores, num_first_folds
from divjax.ratio.diagnostics import Ties
from divjax.ratio.fit import RatioFit
from divjax.ratio.misfit import Misfit
from divjax.ratio.protocols import cross_entropy
from divjax.ratio.splits import CrossFitting, normalize_weights

__all__ = ["fit_of_scores", "from_scores"]


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
    return fit_of_scores(
        key, x, y, folds, a, b, train_loss=train_loss, calibration=calibration, groups=groups
    )


def fit_of_scores(
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
