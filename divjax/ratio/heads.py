"""Heads: models of the log ratio that are fitted to one fold as classifiers of p against q.

All except `Neighbors`, which counts rows, minimise the balanced cross-entropy, whose minimiser over
all functions is log p/q and whose minimum is log 2 − JS. Convex heads are fitted to convergence.
`Network` uses the validation rows for early stopping, `Average` for its weights, and `Tuned` for
model selection. Heads compose: a network may start at the average of several convex fits.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from divjax.core import linalg, networks, training
from divjax.core.checks import (
    check_callable,
    check_count,
    check_nonnegative,
    check_positive,
    check_shape,
    check_widths,
)
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import for_each, pytree, static
from divjax.ratio.logistic import Linear, Quadratic, RandomFourier
from divjax.ratio.neighbors import Neighbors
from divjax.ratio.types import (
    Fold,
    Head,
    Rows,
    check_fold,
    cross_entropy,
    is_parametric,
    log_ratios,
    num_rows,
    training_log_ratios,
    validation_loss,
)

__all__ = [
    "Auto",
    "Average",
    "GaussianDiscriminant",
    "Linear",
    "Neighbors",
    "Network",
    "Quadratic",
    "RandomFourier",
    "Tuned",
    "Zero",
    "convex_heads",
    "row_sampler",
]


# The Newton steps of a quadratic fit take O(d⁶). Beyond this the Gaussian discriminant replaces it.
MAX_QUADRATIC_FEATURES = 24


@pytree
class Zero:
    """The constant log ratio 0: p and q are the same."""

    parametric = True

    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[()]:
        """An empty tuple, as there are no parameters."""
        return ()

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Zeros, with NaN for rows that hold NaN."""
        return nan_unless(~jnp.isnan(z).any(axis=1), jnp.zeros_like(z[:, 0]))


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

    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[tuple[Any, ...], Array, Array]:
        """All heads' parameters, their weights, and the log ratios at which they are clipped."""
        keys = jax.random.split(key, len(self.heads))
        params = tuple(head.fit(k, fold) for head, k in zip(self.heads, keys, strict=True))
        largest = 3 * jnp.log(num_rows(*fold.train.weights))

        held = fold.validation

        def limit_and_loss(u_p, u_q):
            limit = _limit(u_p, u_q, held.weights, largest)
            u_p, u_q = (jnp.clip(u, -limit, limit) for u in (u_p, u_q))
            loss = cross_entropy(u_p, u_q, *held.weights)
            # A head that predicts NaN gets weight zero and does not affect the others.
            return limit, jnp.where(jnp.isnan(loss), jnp.inf, loss)

        fitted = zip(self.heads, params, strict=True)
        each = for_each(limit_and_loss, [log_ratios(*pair, held.p, held.q) for pair in fitted])
        limits, losses = map(jnp.stack, zip(*each, strict=True))
        # Likelihoods of the validation rows, exp(−rows · cross-entropy), normalised.
        weights = jax.nn.softmax(-num_rows(*held.weights) * losses)
        # A NaN hyper-parameter is a user error, which a weight of zero would hide.
        return params, nan_unless(~_any_nan(self.heads), weights), limits

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The weighted mean of the log ratios."""
        each, weights, limits = params
        values = [head(p, z) for head, p in zip(self.heads, each, strict=True)]
        return _clipped_mean(values, weights, limits)

    def leave_one_out(self, params: Any, rows: Rows) -> list[Array]:
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
            return mean, squares @ (less - mean) ** 2 / (1 - jnp.sum(squares))

        # Under q the sign of the log ratio is reversed, so that one formula serves both samples.
        each = for_each(mean_and_variance, zip((u_p, -u_q), weights, strict=True))
        mean, variance = (sum(parts) for parts in zip(*each, strict=True))
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

    head: Any

    @property
    def parametric(self) -> bool:
        """Whether the head is parametric."""
        return is_parametric(self.head)

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """The best setting, with its parameters."""

        def one(head):
            params = head.fit(key, fold)
            return (head, params), validation_loss(head, params, fold)

        # All settings are trained simultaneously, from one key, so that only the setting differs.
        (settings, params), losses = jax.vmap(one)(self.head)
        best, params = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], (settings, params))
        # An invalid setting is a user error and must not merely lose against the others.
        valid = ~_any_nan(self.head)
        return best, jax.tree.map(lambda leaf: jnp.where(valid, leaf, _invalid(leaf)), params)

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The best setting's log ratio."""
        head, own = params
        return head(own, z)

    def leave_one_out(self, params: Any, rows: Rows) -> Sequence[Array]:
        """The best setting's log ratios at the training rows."""
        head, own = params
        return training_log_ratios(head, own, rows)


def _any_nan(heads: Any) -> Bool[Array, ""]:
    """Whether a hyper-parameter is NaN."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(heads)]
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(
        jnp.logical_or, (jnp.isnan(leaf).any() for leaf in numbers), jnp.array(False)
    )


def _invalid(leaf: Array) -> Array:
    """NaN for floating-point parameters; others are unchanged."""
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.full_like(leaf, jnp.nan) if floating else leaf


@pytree
class GaussianDiscriminant:
    """The log ratio of two fitted Gaussians (quadratic discriminant analysis), in closed form.

    It is correct only for Gaussians. For these it is efficient, even if the samples do not overlap
    and no classifier can be fitted. Correlations are shrunk towards zero.

    Attributes:
        shrinkage: shrinkage intensities in [0, 1], 1 for zero correlation. Several form a grid, the
            best selected on the validation rows.

    References:
        Schäfer, Strimmer 2005: shrinkage towards the diagonal of unequal variances.
    """

    shrinkage: ArrayLike | tuple[float, ...] = (0.0, 0.1, 1.0)

    parametric = True

    def __post_init__(self):
        check_nonnegative(shrinkage=self.shrinkage)
        if isinstance(self.shrinkage, (int, float)) and self.shrinkage > 1:
            raise ValueError(f"shrinkage must lie in [0, 1]; got {self.shrinkage}.")

    def fit(self, key: Key[Array, ""], fold: Fold) -> Any:
        """Both Gaussians' means and inverse Cholesky factors."""
        p, q, weights_p, weights_q = fold.train
        check_fold(fold)
        grid = jnp.ravel(jnp.asarray(self.shrinkage, p.dtype))

        def one(shrinkage):
            samples = (p, weights_p), (q, weights_q)
            params = tuple(_gaussian(x, weights, shrinkage) for x, weights in samples)
            return params, validation_loss(self, params, fold)

        params, losses = jax.vmap(one)(grid)
        valid = ((grid >= 0) & (grid <= 1)).all()
        return jax.tree.map(lambda leaf: nan_unless(valid, leaf[jnp.argmin(losses)]), params)

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The difference of the Gaussian log-densities."""

        def log_density(mean, whitener):
            white = jnp.matmul(z - mean, whitener.T, precision="highest")
            # log det C = −2 Σ log W_ii. The constant with 2π cancels in the difference.
            return jnp.sum(jnp.log(jnp.diag(whitener))) - jnp.sum(white**2, axis=1) / 2

        p, q = params
        return log_density(*p) - log_density(*q)


def _gaussian(
    x: Float[Array, "n d"], weights: Float[Array, " n"], shrinkage: Float[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """The mean, and the lower-triangular W with W C Wᵀ = 1 for the shrunk covariance C."""
    d, dtype = x.shape[1], x.dtype
    # Padding may hold NaN, which a weight of zero does not remove.
    x = jnp.where(weights[:, None] > 0, x, 0)
    mean = weights @ x
    centered = jnp.sqrt(weights)[:, None] * (x - mean)
    # Estimating the mean reduces the variance by the share Σw², 1/n for equal weights.
    covariance = jnp.matmul(centered.T, centered, precision="highest")
    covariance = covariance / jnp.maximum(1 - jnp.sum(weights**2), 0.5)
    variance = jnp.diag(covariance)
    # A feature that is constant in one sample alone separates the samples perfectly. A floor on its
    # variance keeps the log ratio finite.
    variance = jnp.maximum(variance, 1e-6)
    scale = jnp.sqrt(variance)
    # Correlations are shrunk rather than covariances, as features may differ in variance.
    correlation = (1 - shrinkage) * covariance / (scale[:, None] * scale)
    correlation = (
        correlation
        - jnp.diag(jnp.diag(correlation))
        + jnp.eye(d, dtype=dtype) * (1 + d * jnp.finfo(dtype).eps * 10)
    )
    # C = S L Lᵀ S with S = diag(scale), so that W = L⁻¹ S⁻¹.
    factor = linalg.cholesky(correlation)
    whitener = linalg.solve_triangular(factor, jnp.diag(1 / scale))
    return mean, whitener


@pytree
class Network:
    """A neural log ratio, trained by AdamW with early stopping on the validation rows.

    The network's output starts at zero and is added to the log ratio of `start`, which is fitted
    first. The network has to learn only the residual of the simpler model, which is returned
    unchanged if validation does not improve. Batches hold equally many rows of p and of q, drawn in
    proportion to their weights.

    Attributes:
        hidden: widths of the default network, an MLP.
        network: `(in_features, rngs) -> nnx.Module`, from a batch "b d" to "b 1"; by default the
            MLP. Its `nnx.Param`s are its only state: layers with random numbers or batch statistics
            (dropout, batch norm) are not supported in a log ratio and raise.
        learning_rate: the initial rate of a cosine schedule that ends at a hundredth of it.
        weight_decay: the weight decay of AdamW.
        num_steps: the number of training steps.
        batch_size: the number of rows of p and q together.
        num_checks: the number of evaluations on the validation rows, at most one per step.
        start: the head whose log ratio is the initial value.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.ratio import Fold, Rows
        >>> from flax import nnx
        >>> def build(in_features, rngs):  # not a lambda in a loop: each would compile anew
        ...     return nnx.Linear(in_features, 1, rngs=rngs)
        >>> head = Network(network=build, num_steps=50, learning_rate=0.1)
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 100, 1))
        >>> even = jnp.full(100, 1 / 100)
        >>> rows = Rows(p + 1, q - 1, even, even)
        >>> params = jax.jit(head.fit)(jax.random.key(1), Fold(rows, rows))
        >>> low, high = head(params, jnp.array([[-1.0], [1.0]]))
        >>> bool(low < 0 < high)
        True

    References:
        Loshchilov, Hutter 2019: AdamW.
    """

    hidden: tuple[int, ...] = static(default=(32, 32))
    network: networks.Network | None = static(default=None)
    learning_rate: ArrayLike = 5e-3
    weight_decay: ArrayLike = 1e-2
    num_steps: int = static(default=600)
    batch_size: int = static(default=256)
    num_checks: int = static(default=25)
    start: Any = Zero()

    def __post_init__(self):
        check_widths(hidden=self.hidden)
        if self.network is not None:
            check_callable(network=self.network)
        check_positive(learning_rate=self.learning_rate)
        counts = {"num_steps": self.num_steps, "batch_size": self.batch_size}
        check_count(1, **counts, num_checks=self.num_checks)
        check_nonnegative(weight_decay=self.weight_decay)

    @jax.jit
    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[Any, PyTree[Array]]:
        """The parameters of the start and of the network."""
        check_fold(fold)
        start_key, init_key, fit_key = jax.random.split(key, 3)
        start = self.start.fit(start_key, fold)
        p, q, *weights = fold.train
        # The start is a fixed offset of the logits. An instance-based start scores its training
        # rows leave-one-out, since the network would otherwise rely on it too much.
        offset_p, offset_q = training_log_ratios(self.start, start, fold.train)
        held = jnp.concatenate(fold.validation[:2])
        fixed = self.start(start, held)
        # Equally many rows of p and of q leave no prior shift log(n/m) in the logits.
        half = -(-self.batch_size // 2)
        draw = row_sampler(*weights)
        # One sign per row: a slice for each sample would be padded again in the gradient.
        sign = jnp.repeat(jnp.array([1, -1], p.dtype), half, total_repeat_length=2 * half)

        def loss(key, params):
            i, j = draw(key, half)
            logits = self.apply(params, jnp.concatenate([p[i], q[j]]))[:, 0]
            logits = logits + jnp.concatenate([offset_p[i], offset_q[j]])
            # Rows are drawn in proportion to their weights: the plain mean is the balanced
            # cross-entropy.
            return jnp.mean(jax.nn.softplus(-sign * logits))

        def validate(params):
            u = fixed + self.apply(params, held)[:, 0]
            u_p, u_q = jnp.split(u, [fold.validation.p.shape[0]])
            value = cross_entropy(u_p, u_q, *fold.validation.weights)
            # Infinity is never the best loss, while comparisons with NaN are always false.
            return jnp.where(jnp.isnan(value), jnp.inf, value)

        params = self.init(init_key, p.shape[1], p.dtype)
        return start, self.train(fit_key, loss, params, validate)

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The start's log ratio and the network's correction."""
        start, own = params
        return self.start(start, z) + self.apply(own, z)[:, 0]

    def leave_one_out(self, params: Any, rows: Rows) -> list[Array]:
        """The log ratios at the training rows, with the start's leave-one-out."""
        start, own = params
        of_start = jnp.concatenate(training_log_ratios(self.start, start, rows))
        u = of_start + self.apply(own, jnp.concatenate(rows[:2]))[:, 0]
        return jnp.split(u, [rows.p.shape[0]])

    def init(
        self, key: Key[Array, ""], in_features: int, dtype: Any, num_outputs: int = 1
    ) -> PyTree[Array]:
        """Fresh parameters of the network."""
        return networks.init_network(self._build(num_outputs), key, in_features, dtype)

    def apply(
        self, params: Any, z: Float[Array, "b d"], num_outputs: int = 1
    ) -> Float[Array, "b k"]:
        """The network's own output."""
        output = networks.apply_network(self._build(num_outputs), params, z)
        check_shape("the network's output", output, z.shape[0], num_outputs)
        return output

    def train(
        self, key: Key[Array, ""], loss: Any, params: PyTree[Array], validate: Any
    ) -> PyTree[Array]:
        """The parameters of best validation in training on `(key, params) -> loss`.

        NaN if traced numbers are out of range: the parameters at the start would be finite.
        """
        dtype = jax.tree.leaves(params)[0].dtype
        optimizer = training.adam_with_cosine(
            self.learning_rate, self.num_steps, dtype, self.weight_decay
        )
        steps = {"num_steps": self.num_steps, "num_checks": self.num_checks}
        trained = training.fit(key, loss, params, optimizer, validate=validate, **steps).params
        valid = self.is_valid(dtype)
        return jax.tree.map(lambda leaf: nan_unless(valid, leaf), trained)

    def is_valid(self, dtype: Any) -> Bool[Array, ""]:
        """Whether the numbers, which may be traced, are in range."""
        rate, decay = (jnp.asarray(v, dtype) for v in (self.learning_rate, self.weight_decay))
        return (rate > 0) & (decay >= 0)

    def _build(self, num_outputs: int) -> networks.Network:
        if self.network is not None:
            return self.network
        return networks.BuildMLP(self.hidden, num_outputs)


def row_sampler(*weights: Float[Array, " n"]) -> Callable[[Key[Array, ""], int], list[Array]]:
    """`(key, count) -> indices` for each vector of weights, in proportion to them.

    Stratified: one row is drawn from each of `count` equal quantiles, in order.
    """
    cumulative = for_each(jnp.cumsum, [(weight,) for weight in weights])

    def of_sample(mass: Float[Array, " n"], level: Float[Array, " count"]) -> Int[Array, " count"]:
        # Rounding may put a level beyond the total mass.
        return jnp.minimum(jnp.searchsorted(mass, level * mass[-1]), mass.shape[0] - 1)

    def draw(key: Key[Array, ""], count: int) -> list[Array]:
        uniform = jax.random.uniform(key, (len(weights), count), weights[0].dtype)
        quantiles = (jnp.arange(count, dtype=uniform.dtype) + uniform) / count
        return for_each(of_sample, zip(cumulative, quantiles, strict=True))

    return draw


def convex_heads(in_features: int) -> Average:
    """The average of the convex heads: linear, Gaussian and, up to 24 features, quadratic."""
    heads: tuple[Any, ...] = (Linear(), GaussianDiscriminant())
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

    def fit(self, key: Key[Array, ""], fold: Fold) -> Any:
        """The parameters of the networks, of their starts, and of the neighbours."""
        params, weights, limits = self._resolve(fold.train.p.shape[1]).fit(key, fold)
        # Without this the average would reduce to the neighbours.
        return params, nan_unless(self.network.is_valid(weights.dtype), weights), limits

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The averaged log ratio."""
        return self._resolve(z.shape[1])(params, z)

    def leave_one_out(self, params: Any, rows: Rows) -> Sequence[Array]:
        """The averaged log ratios at the training rows, excluding each from its neighbours."""
        return self._resolve(rows.p.shape[1]).leave_one_out(params, rows)

    def _resolve(self, in_features: int) -> Average:
        informed = dataclasses.replace(self.network, start=convex_heads(in_features))
        decay = _STRONG_DECAY * self.network.weight_decay
        smooth = dataclasses.replace(self.network, weight_decay=decay)
        return Average((informed, smooth, Neighbors()))
