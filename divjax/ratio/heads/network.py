"""A network as the log ratio, trained with early stopping."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from divjax.core import networks, training
from divjax.core.checks import (
    check_callable,
    check_count,
    check_nonnegative,
    check_positive_finite,
    check_shape,
    check_widths,
)
from divjax.core.numerics import inf_if_nan, nan_unless
from divjax.core.pytrees import for_each, pytree, static
from divjax.core.samples import Numbers
from divjax.ratio.heads.closed_form import Zero
from divjax.ratio.protocols import (
    Fold,
    Head,
    Rows,
    checked,
    cross_entropy,
    every,
    is_in_range,
    is_positive,
    training_log_ratios,
)

__all__ = ["Network", "fit_each", "row_sampler"]


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
    start: Head = Zero()

    def __post_init__(self):
        check_widths(hidden=self.hidden)
        if self.network is not None:
            check_callable(network=self.network)
        check_positive_finite(learning_rate=self.learning_rate)
        counts = {"num_steps": self.num_steps, "batch_size": self.batch_size}
        check_count(1, **counts, num_checks=self.num_checks)
        check_nonnegative(weight_decay=self.weight_decay)

    @jax.jit
    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[PyTree[Array], PyTree[Array]]:
        """The parameters of the start and of the network."""
        return _fit_networks([self], [key], fold)[0]

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The start's log ratio and the network's correction."""
        start, own = params
        return self.start(start, z) + self.apply(own, z)[:, 0]

    def leave_one_out(self, params: PyTree[Array], rows: Rows) -> list[Array]:
        """The log ratios at the training rows, with the start's leave-one-out."""
        start, own = params
        of_start = jnp.concatenate(training_log_ratios(self.start, start, rows))
        u = of_start + self.apply(own, jnp.concatenate(rows[:2]))[:, 0]
        return jnp.split(u, [rows.x.shape[0]])

    def init(
        self, key: Key[Array, ""], in_features: int, dtype: DTypeLike, num_outputs: int = 1
    ) -> PyTree[Array]:
        """Fresh parameters of the network."""
        return networks.init_network(self._build(num_outputs), key, in_features, dtype)

    def apply(
        self, params: PyTree[Array], z: Float[Numbers, "b d"], num_outputs: int = 1
    ) -> Float[Array, "b k"]:
        """The network's own output."""
        output = networks.apply_network(self._build(num_outputs), params, z)
        check_shape("the network's output", output, z.shape[0], num_outputs)
        return output

    def train(
        self,
        key: Key[Array, ""],
        loss: Callable[[Key[Array, ""], PyTree[Array]], Float[Numbers, ""]],
        params: PyTree[Array],
        validate: Callable[[PyTree[Array]], Float[Numbers, ""]],
        valid: Bool[Array, ""],
    ) -> PyTree[Array]:
        """Train on `(key, params) -> loss`; return the parameters of the lowest validation loss.

        They are NaN if `valid` is False: otherwise the finite initial ones would be returned.
        """
        dtype = jax.tree.leaves(params)[0].dtype
        optimizer = training.adam_with_cosine(
            self.learning_rate, self.num_steps, dtype, self.weight_decay
        )
        steps = {"num_steps": self.num_steps, "num_checks": self.num_checks}
        trained = training.fit(key, loss, params, optimizer, validate=validate, **steps).params
        return jax.tree.map(lambda leaf: nan_unless(valid, leaf), trained)

    def in_range(self) -> Bool[Array, ""]:
        """Whether the rate is positive, the decay not negative, and the start in range."""
        valid = every(is_positive, self.learning_rate)
        valid &= every(lambda number: number >= 0, self.weight_decay)
        return valid & is_in_range(self.start)

    def _build(self, num_outputs: int) -> networks.Network:
        if self.network is not None:
            return self.network
        return networks.BuildMLP(self.hidden, num_outputs)


def fit_each(
    heads: Sequence[Head], keys: Sequence[Key[Array, ""]], fold: Fold
) -> tuple[PyTree[Array], ...]:
    """The parameters of several heads. Networks of one architecture share a training loop."""
    groups: dict[Hashable, dict[int, Network]] = {}
    params: dict[int, PyTree[Array]] = {}
    for place, head in enumerate(heads):
        # A class derived from `Network` may train by other rules.
        if type(head) is Network:
            groups.setdefault(_architecture(head), {})[place] = head
        else:
            params[place] = head.fit(keys[place], fold)
    for group in groups.values():
        fitted = _fit_networks(list(group.values()), [keys[place] for place in group], fold)
        params |= zip(group, fitted, strict=True)
    return tuple(params[place] for place in range(len(heads)))


def _architecture(network: Network) -> Hashable:
    """What the training's operations depend on: everything but its numbers and its start."""
    layers = network.hidden, network.network
    return *layers, network.num_steps, network.batch_size, network.num_checks


def _fit_networks(
    alike: Sequence[Network], keys: Sequence[Key[Array, ""]], fold: Fold
) -> list[tuple[PyTree[Array], PyTree[Array]]]:
    """The parameters of starts and networks of one architecture, trained simultaneously."""
    pairs = zip(alike, keys, strict=True)
    starts, residuals = zip(*(_fit_start(*pair, fold) for pair in pairs), strict=True)
    # One training loop for all, which is compiled once.
    train = lambda residual: _train(alike[0], residual, fold)
    trained = for_each(train, [(residual,) for residual in residuals])
    return list(zip(starts, trained, strict=True))


class _Residual(NamedTuple):
    """The task of a network once its start has been fitted.

    Attributes:
        init_key: the key of the initial parameters.
        fit_key: the key of the batches.
        offsets: the start's log ratios of the training rows of p and of q, fixed parts of the
            logits.
        fixed: the start's log ratios of the validation rows.
        learning_rate: the initial learning rate.
        weight_decay: the weight decay.
        valid: whether the rows and the head's numbers are valid.
    """

    init_key: Key[Array, ""]
    fit_key: Key[Array, ""]
    offsets: tuple[Float[Array, " n"], Float[Array, " m"]]
    fixed: Float[Array, " v"]
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    valid: Bool[Array, ""]


def _fit_start(
    network: Network, key: Key[Array, ""], fold: Fold
) -> tuple[PyTree[Array], _Residual]:
    """The start's parameters, and what is left to the network."""
    fold, valid = checked(network, fold)
    start_key, init_key, fit_key = jax.random.split(key, 3)
    head, dtype = network.start, fold.train.x.dtype
    start = head.fit(start_key, fold)
    # The start is a fixed offset of the logits. An instance-based start scores its training rows
    # leave-one-out, since the network would otherwise rely on it too much.
    offset_p, offset_q = training_log_ratios(head, start, fold.train)
    return start, _Residual(
        init_key,
        fit_key,
        (offset_p, offset_q),
        head(start, jnp.concatenate(fold.validation[:2])),
        jnp.asarray(network.learning_rate, dtype),
        jnp.asarray(network.weight_decay, dtype),
        valid,
    )


def _train(network: Network, residual: _Residual, fold: Fold) -> PyTree[Array]:
    """The parameters of a network of this architecture."""
    fold, _ = checked(network, fold)
    x, y, *weights = fold.train
    offset_p, offset_q = residual.offsets
    validation = jnp.concatenate(fold.validation[:2])
    # Equally many rows of p and of q leave no prior shift log(n/m) in the logits.
    half = -(-network.batch_size // 2)
    draw = row_sampler(*weights)
    # One sign per row: a slice for each sample would be padded again in the gradient.
    sign = jnp.repeat(jnp.array([1, -1], x.dtype), half, total_repeat_length=2 * half)

    def loss(key, params):
        i, j = draw(key, half)
        logits = network.apply(params, jnp.concatenate([x[i], y[j]]))[:, 0]
        logits = logits + jnp.concatenate([offset_p[i], offset_q[j]])
        # Rows are drawn in proportion to their weights: the plain mean is the balanced
        # cross-entropy.
        return jnp.mean(jax.nn.softplus(-sign * logits))

    def validate(params):
        u = residual.fixed + network.apply(params, validation)[:, 0]
        u_p, u_q = jnp.split(u, [fold.validation.x.shape[0]])
        return inf_if_nan(cross_entropy(u_p, u_q, *fold.validation.weights))

    rates = {"learning_rate": residual.learning_rate, "weight_decay": residual.weight_decay}
    params = network.init(residual.init_key, x.shape[1], x.dtype)
    return dataclasses.replace(network, **rates).train(
        residual.fit_key, loss, params, validate, residual.valid
    )


def row_sampler(*weights: Float[Array, " _"]) -> Callable[[Key[Array, ""], int], list[Array]]:
    """`(key, count) -> indices` for each vector of weights, in proportion to them.

    Stratified: one row is drawn from each of `count` equal quantiles, in order.
    """
    cumulative = for_each(jnp.cumsum, [(weight,) for weight in weights])

    def of_sample(mass: Float[Array, " n"], share: Float[Array, " count"]) -> Int[Array, " count"]:
        # Rounding may put a share beyond the total mass.
        return jnp.minimum(jnp.searchsorted(mass, share * mass[-1]), mass.shape[0] - 1)

    def draw(key: Key[Array, ""], count: int) -> list[Array]:
        uniform = jax.random.uniform(key, (len(weights), count), weights[0].dtype)
        # One draw from each stratum: means over a batch vary less than with independent draws.
        quantiles = (jnp.arange(count, dtype=uniform.dtype) + uniform) / count
        return for_each(of_sample, zip(cumulative, quantiles, strict=True))

    return draw
