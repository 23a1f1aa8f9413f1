"""Heads composed of others: averages, grids of hyper-parameters, and the default."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from divjax.core.numerics import inf_if_nan, nan_unless
from divjax.core.pytrees import for_each, pytree
from divjax.core.samples import Numbers
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.ratio.heads.closed_form import GaussianDiscriminant
from divjax.ratio.heads.logistic import Linear, Quadratic
from divjax.ratio.heads.neighbors import Neighbors
from divjax.ratio.heads.network import Network, fit_each
from divjax.ratio.protocols import (
    Fold,
    Head,
    Rows,
    checked,
    cross_entropy,
    is_in_range,
    is_parametric,
    log_ratios,
    num_rows,
    training_log_ratios,
    validation_loss,
)

__all__ = ["Auto", "Average", "Tuned", "convex_heads", "valid_or_nan"]

# The Newton steps of a quadratic fit take O(d⁶). Beyond this the Gaussian discriminant replaces it.
MAX_QUADRATIC_FEATURES = 24


@pytree
class Average:
    """The mean of several heads' log ratios, weighted by their likelihoods of the validation rows.

    The weights are proportional to the validation rows' likelihoods, exp(−rows · cross-entropy):
    clearly worse heads get negligible weight, and equally good heads equal weights. Equally good
    heads may still disagree in regions covered by only one sample, to which the likelihood is
    insensitive and KL most sensitive. Their mean is safer there than any choice.

    Each log ratio is clipped at three times the logarithm of the number of training rows, far
    beyond the values that this many rows can support, or earlier if that predicts the validation
    rows better by two standard errors. A model that is right on most rows, and confidently wrong on
    some, would otherwise distort the mean.

    Attributes:
        heads: the heads, at least one.

    Raises:
        ValueError: if `heads` is empty.

    References:
        Yao, Vehtari, Simpson, Gelman 2018, section 3.4: weights by held-out likelihood.
    """

    heads: tuple[Head, ...]

    def __post_init__(self):
        if isinstance(self.heads, tuple) and not self.heads:
            raise ValueError("heads must hold at least one head; got none.")

    @property
    def parametric(self) -> bool:
        """Whether all heads are parametric."""
        return all(is_parametric(head) for head in self.heads)

    def fit(
        self, key: Key[Array, ""], fold: Fold
    ) -> tuple[tuple[PyTree[Array], ...], Array, Array]:
        """All heads' parameters, their weights, and the log ratios at which they are clipped."""
        fold, valid = checked(self, fold)
        keys = jax.random.split(key, len(self.heads))
        params = fit_each(self.heads, list(keys), fold)
        largest = 3 * jnp.log(num_rows(*fold.train.weights))

        validation = fold.validation

        def limit_and_loss(u_p, u_q):
            limit = _limit(u_p, u_q, validation.weights, largest)
            clipped_p, clipped_q = jnp.clip(u_p, -limit, limit), jnp.clip(u_q, -limit, limit)
            loss = cross_entropy(clipped_p, clipped_q, *validation.weights)
            # A head that predicts NaN gets weight zero and does not affect the others.
            return limit, inf_if_nan(loss)

        fitted = zip(self.heads, params, strict=True)
        each = for_each(
            limit_and_loss, [log_ratios(*pair, validation.x, validation.y) for pair in fitted]
        )
        limits = jnp.stack([limit for limit, _ in each])
        losses = jnp.stack([loss for _, loss in each])
        # Likelihoods of the validation rows, exp(−rows · cross-entropy), normalised.
        weights = jax.nn.softmax(-num_rows(*validation.weights) * losses)
        return params, nan_unless(valid, weights), limits

    def in_range(self) -> Bool[Array, ""]:
        """Whether the numbers of all heads are in range: a weight of zero would hide an error."""
        return jnp.stack([is_in_range(head) for head in self.heads]).all()

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The weighted mean of the log ratios."""
        each, weights, limits = params
        values = [head(p, z) for head, p in zip(self.heads, each, strict=True)]
        return _clipped_mean(values, weights, limits)

    def leave_one_out(self, params: PyTree[Array], rows: Rows) -> list[Array]:
        """The weighted means at the training rows, leave-one-out for instance-based heads."""
        each, weights, limits = params
        heads = zip(self.heads, each, strict=True)
        values = zip(*(training_log_ratios(head, p, rows) for head, p in heads), strict=True)
        return [_clipped_mean(of_sample, weights, limits) for of_sample in values]


def _clipped_mean(
    values: Sequence[Float[Array, " b"]],
    weights: Float[Array, " heads"],
    limits: Float[Array, " heads"],
) -> Float[Array, " b"]:
    clipped = jnp.clip(jnp.stack(values), -limits[:, None], limits[:, None])
    # A head of weight zero may have any values, including infinite ones.
    return weights @ jnp.where(weights[:, None] > 0, clipped, 0)


# Candidate limits at which the log ratios of an average are clipped.
_LIMITS = (2.0, 3.0, 4.0, 6.0, 9.0, 13.0)


def _limit(
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    weights: tuple[Float[Array, " n"], Float[Array, " m"]],
    largest: Float[Array, ""],
) -> Float[Array, ""]:
    """The clipping limit of the largest significant decrease of the loss.

    A gain is significant if it exceeds two of its standard errors over rows. Gains on only a few
    rows are not.
    """

    def gain(limit):
        def mean_and_variance(u, weight):
            # The gain is relative to the outermost limit, which always applies.
            u = jnp.where(weight > 0, jnp.clip(u, -largest, largest), 0)
            less = jax.nn.softplus(-u) - jax.nn.softplus(-jnp.clip(u, -limit, limit))
            # With weights that sum to one the mean has the variance Σw²(x − x̄)²/(1 − Σw²).
            mean, squares = jnp.dot(weight, less), weight**2
            return mean, squares @ (less - mean) ** 2 / mass_of_distinct_pairs(weight)

        # Under q the sign of the log ratio is reversed, so that one formula serves both samples.
        of_p, of_q = for_each(mean_and_variance, zip((u_p, -u_q), weights, strict=True))
        mean, variance = of_p[0] + of_q[0], of_p[1] + of_q[1]
        return jnp.where(mean > 2 * jnp.sqrt(variance), mean / 2, 0)

    # The last entry is the outermost limit, whose gain is zero by definition.
    limits = jnp.append(jnp.minimum(jnp.asarray(_LIMITS, largest.dtype), largest), largest)
    gains = jax.vmap(gain)(limits).at[-1].set(0)
    best = jnp.argmax(gains)
    return jnp.where(gains[best] > 0, limits[best], largest)


@pytree
class Tuned:
    """One head over a grid of hyper-parameters, with the setting selected on the validation rows.

    Attributes:
        head: a head whose leaves share one leading axis, the grid's, trained simultaneously.

    Raises:
        ValueError: at the fit, if they do not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.ratio import Fold, Rows
        >>> head = Tuned(Linear(ridge=jnp.array([0.5, 5.0])))
        >>> p, q = jnp.array([[1.0], [2.0], [0.0]]), jnp.array([[-1.0], [-2.0], [0.0]])
        >>> even = jnp.full(3, 1 / 3)
        >>> rows = Rows(p, q, even, even)
        >>> chosen, _ = head.fit(jax.random.key(0), Fold(rows, rows))
        >>> float(chosen.ridge)
        0.5
    """

    head: Head

    @property
    def parametric(self) -> bool:
        """Whether the head is parametric."""
        return is_parametric(self.head)

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """The best setting, with its parameters."""
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.head)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                "head must hold arrays of one length in all its numbers, one entry per setting; "
                f"got {self.head!r}."
            )

        def one(head):
            params = head.fit(key, fold)
            return (head, params), validation_loss(head, params, fold)

        # All settings are trained simultaneously, from one key, so that only the setting differs.
        (settings, params), losses = jax.vmap(one)(self.head)
        best, params = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], (settings, params))
        return best, valid_or_nan(self.in_range(), params)

    def in_range(self) -> Bool[Array, ""]:
        """Whether all settings are in range: one that is not would merely lose to the others."""
        return jax.vmap(is_in_range)(self.head).all()

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The best setting's log ratio."""
        head, own = params
        return head(own, z)

    def leave_one_out(self, params: PyTree[Array], rows: Rows) -> Sequence[Array]:
        """The best setting's log ratios at the training rows."""
        head, own = params
        return training_log_ratios(head, own, rows)


def valid_or_nan(valid: Bool[Array, ""], params: PyTree[Array]) -> PyTree[Array]:
    """The parameters, of which the floating-point ones are NaN if they are not valid."""
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: nan_unless(valid, leaf) if is_float(leaf) else leaf, params)


def convex_heads(in_features: int) -> Average:
    """The average of the convex heads: linear, Gaussian and, up to 24 features, quadratic."""
    heads: tuple[Head, ...] = (Linear(), GaussianDiscriminant())
    if in_features <= MAX_QUADRATIC_FEATURES:
        heads = (*heads, Quadratic())
    return Average(heads)


# The factor on the weight decay of the default's second network. On 5000 rows of a table with 59
# columns its cross-entropy is .593 with this factor and .605 without.
_STRONG_DECAY = 300.0


@pytree
class Auto:
    """The default: an average of two networks and of nearest neighbours, which fail differently.

    One network starts at the convex fits (the linear, the Gaussian discriminant, and up to 24
    features the quadratic) and can fit steep log ratios, but overfits tables of many columns. The
    other has its own `start` and 300 times the weight decay. In few dimensions neighbours detect
    bands and edges that both miss. The weights, and whether a network improves on its start, are
    determined on the validation rows.

    Attributes:
        network: the settings of the networks.
    """

    network: Network = Network()

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """The parameters of the networks, of their starts, and of the neighbours."""
        return self._resolve(fold.train.x.shape[1]).fit(key, fold)

    def in_range(self) -> Bool[Array, ""]:
        """Whether the networks' numbers are in range."""
        return is_in_range(self.network)

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The averaged log ratio."""
        return self._resolve(z.shape[1])(params, z)

    def leave_one_out(self, params: PyTree[Array], rows: Rows) -> Sequence[Array]:
        """The averaged log ratios at the training rows, excluding each from its neighbours."""
        return self._resolve(rows.x.shape[1]).leave_one_out(params, rows)

    def _resolve(self, in_features: int) -> Average:
        informed = dataclasses.replace(self.network, start=convex_heads(in_features))
        decay = _STRONG_DECAY * self.network.weight_decay
        smooth = dataclasses.replace(self.network, weight_decay=decay)
        return Average((informed, smooth, Neighbors()))
