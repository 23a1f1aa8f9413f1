"""The protocol of ratio models: a head is fitted to one fold and evaluated anywhere."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from divjax.core.checks import (
    check_full_precision,
    check_matrix,
    check_same_features,
    check_shape,
)
from divjax.core.numerics import at_least_single, inf_if_nan
from divjax.core.pytrees import for_each
from divjax.core.simplex import effective_sample_size, sum_to_one

__all__ = [
    "Fold",
    "Head",
    "InstanceBased",
    "Parametric",
    "Ranged",
    "Rows",
    "checked",
    "cross_entropy",
    "every",
    "is_in_range",
    "is_parametric",
    "is_positive",
    "log_ratios",
    "num_rows",
    "training_log_ratios",
    "validation_loss",
]


class Rows(NamedTuple):
    """Samples of p and q with their weights.

    Each vector of weights sums to one, so that both samples have equal weight at any sample sizes.
    Rows of weight zero are padding of arbitrary content.

    Attributes:
        x: samples of p.
        y: samples of q.
        a: weights of x.
        b: weights of y.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]

    @property
    def weights(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The weights of both samples."""
        return self.a, self.b


class Fold(NamedTuple):
    """The standardised rows that one head is fitted to, of the same shape for all folds.

    Attributes:
        train: the training rows.
        validation: the rows for early stopping or model selection.
    """

    train: Rows
    validation: Rows


class _CheckedFold(Fold):
    """A fold with zeros for padding, and whether its rows are valid, which is computed once.

    The heads that a head is composed of are all fitted to it.
    """

    valid: Bool[Array, ""]

    @classmethod
    def of(cls, train: Rows, validation: Rows, valid: Bool[Array, ""]) -> "_CheckedFold":
        # A named tuple's items are its fields alone: the flag is an attribute beside them.
        fold = cls(train, validation)
        fold.valid = valid
        return fold

    def _replace(self, **parts: Any) -> Fold:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Other rows have not been checked.
        return Fold(*self)._replace(**parts)


def _parts_of(fold: _CheckedFold) -> tuple[tuple[Rows, Rows, Array], None]:
    return (fold.train, fold.validation, fold.valid), None


def _of_parts(_: None, parts: tuple[Rows, Rows, Array]) -> _CheckedFold:
    return _CheckedFold.of(*parts)


# Otherwise JAX would take it for a named tuple, and drop what is no item of it.
jax.tree_util.register_pytree_node(_CheckedFold, _parts_of, _of_parts)


@runtime_checkable
class Head(Protocol):
    """A model of the log ratio u(z) = log p(z)/q(z): a pytree that vmaps over folds.

    Its inputs are standardised features. A head whose family must be exact in the features
    themselves, such as a linear one, is `Parametric` too.
    """

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """The fitted parameters, of the same structure and shapes for every fold."""
        ...

    def __call__(self, params: PyTree[Array], z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The log ratio at each row."""
        ...


@runtime_checkable
class Parametric(Protocol):
    """An optional declaration that the head's family must stay exact, as for two Gaussians.

    Attributes:
        parametric: whether only affine maps are applied to the head's features. Outlying rows of
            the samples are then clipped to the samples' limits for the fit and its estimates, while
            the log ratio extrapolates at other rows. Heads without this declaration are given
            features that are compressed beyond the limits.
    """

    @property
    def parametric(self) -> bool:
        """Whether only affine maps are applied to its features."""
        ...


def is_parametric(head: object) -> bool:
    """Whether a head declares itself `Parametric`."""
    return isinstance(head, Parametric) and head.parametric


@runtime_checkable
class InstanceBased(Protocol):
    """An optional declaration that a head stores its training rows and can leave one out.

    Otherwise each training row would contribute to its own log ratio.
    """

    def leave_one_out(self, params: PyTree[Array], rows: Rows) -> Sequence[Float[Array, " n"]]:
        """The leave-one-out log ratios at the training rows."""
        ...


@runtime_checkable
class Ranged(Protocol):
    """An optional declaration of the range of a head's numbers, which may be traced.

    A head composed of others then has no answer, rather than the one that is out of range merely
    losing to them.
    """

    def in_range(self) -> Bool[Array, ""]:
        """Whether the numbers are in range."""
        ...


def is_in_range(head: object) -> Bool[Array, ""]:
    """Whether no number of a head is NaN, or out of range if it is `Ranged`."""
    known = every(lambda number: ~jnp.isnan(number), head)
    return known & head.in_range() if isinstance(head, Ranged) else known


def every(condition: Callable[[Array], Array], *numbers: PyTree) -> Bool[Array, ""]:
    """Whether a condition holds for all entries of numbers, which may be tuples of numbers."""
    leaves = [jnp.all(condition(jnp.asarray(number))) for number in jax.tree.leaves(numbers)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def is_positive(number: Array) -> Bool[Array, "..."]:
    """Whether a number is positive and finite, for `every`."""
    return (number > 0) & (number < jnp.inf)


def log_ratios(
    head: Callable[[PyTree[Array], Float[Array, "b d"]], Float[Array, " b"]],
    params: PyTree[Array],
    *samples: Float[Array, "_ d"],
) -> list[Float[Array, " n"]]:
    """The log ratios of several samples, evaluated as one batch and hence compiled once."""
    ends = np.cumsum([len(sample) for sample in samples])
    u = head(params, jnp.concatenate(samples))
    # A column "n 1" would broadcast against the weights without an error.
    check_shape("the log ratio by head", u, ends[-1])
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise ValueError(f"the log ratio by head must be floating-point; got {u.dtype}.")
    # A head in half precision is scored like any other.
    return jnp.split(u.astype(at_least_single(u.dtype)), ends[:-1])


def training_log_ratios(
    head: Head, params: PyTree[Array], rows: Rows
) -> Sequence[Float[Array, " n"]]:
    """The log ratios at a head's training rows, leave-one-out if it is `InstanceBased`."""
    if isinstance(head, InstanceBased):
        return head.leave_one_out(params, rows)
    return log_ratios(head, params, rows.x, rows.y)


def checked(head: object, fold: Fold) -> tuple[Fold, Bool[Array, ""]]:
    """The fold with zeros for padding, and whether rows, weights and the head's numbers are valid.

    If not, the parameters should be NaN: a solver that rejects its steps, or a selection that
    rejects NaN, would return a finite model that was not fitted to those rows.

    Raises:
        ValueError: unless the training rows are two non-empty samples in full precision.
    """
    if isinstance(fold, _CheckedFold):
        return fold, fold.valid & is_in_range(head)
    x, y, a, b = fold.train
    check_matrix(x=x, y=y)
    check_same_features(x, y, ("x", "y"))
    check_full_precision("x", x)
    check_shape("a", a, x.shape[0])
    check_shape("b", b, y.shape[0])
    valid = _are_valid(fold.train) & _are_valid(fold.validation)
    # The content of padding would reach derivatives: zero times infinity is NaN.
    train, validation = map(_without_padding, fold)
    return _CheckedFold.of(train, validation, valid), valid & is_in_range(head)


def _without_padding(rows: Rows) -> Rows:
    """The rows, with zeros where the weight is zero."""
    without = lambda z, weights: jnp.where((weights == 0)[:, None], 0, z)
    return rows._replace(x=without(rows.x, rows.a), y=without(rows.y, rows.b))


def _are_valid(rows: Rows) -> Bool[Array, ""]:
    """Whether rows of nonzero weight are finite, and weights are shares or, without rows, zero."""

    def is_valid(z: Array, weights: Array) -> Bool[Array, ""]:
        finite = jnp.all(jnp.isfinite(z) | (weights == 0)[:, None])
        return finite & jnp.all(weights >= 0) & (sum_to_one(weights) | jnp.all(weights == 0))

    return is_valid(rows.x, rows.a) & is_valid(rows.y, rows.b)


def cross_entropy(
    log_ratio_p: Float[Array, " n"],
    log_ratio_q: Float[Array, "..."],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """The balanced cross-entropy ½E_p[log(1 + e^{−u})] + ½E_q[log(1 + e^u)], in nats.

    Its minimum over all u is log 2 − JS(p, q), at the log ratio. It is accurate near 0, where JS is
    near log 2. Weights sum to one and are uniform by default.
    """

    def mean(losses, weights):
        if weights is None:
            return jnp.mean(losses)
        # A row of weight zero may have any loss.
        return jnp.sum(jnp.where(weights == 0, 0, weights * losses))

    samples = (-log_ratio_p, a), (log_ratio_q, b)
    loss_p, loss_q = for_each(lambda u, weights: mean(jax.nn.softplus(u), weights), samples)
    return (loss_p + loss_q) / 2


def validation_loss(
    head: Callable[[PyTree[Array], Float[Array, "b d"]], Float[Array, " b"]],
    params: PyTree[Array],
    fold: Fold,
) -> Float[Array, ""]:
    """The cross-entropy of the validation rows; infinite if it is NaN."""
    rows = fold.validation
    u_p, u_q = log_ratios(head, params, rows.x, rows.y)
    return inf_if_nan(cross_entropy(u_p, u_q, *rows.weights))


def num_rows(*weights: Float[Array, " _"]) -> Float[Array, ""]:
    """The effective number of rows of these samples together."""
    return jnp.sum(jnp.stack([effective_sample_size(weight) for weight in weights]))
