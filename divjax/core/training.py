"""The training loop of every learned estimator, a scan over optimizer steps, and its batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from divjax.core.checks import check_full_precision, check_matrix, check_same_features
from divjax.core.differentiation import refuse_derivatives
from divjax.core.pytrees import select

__all__ = [
    "Training",
    "adam_with_cosine",
    "fit",
    "hold_out",
    "random_rows",
    "row_batch",
    "spread_rows",
    "training_samples",
]


# A fifth of the rows is held out, but at most this many.
HELD_OUT_ROWS = 1024


class Training(NamedTuple):
    """Parameters with the optimizer's state, and the history of the fit.

    Attributes:
        params: the parameters after the last step or, with validation, of the best check.
        optimizer_state: the optax state after the last step.
        loss_state: the loss's own state after the last step, None without one. Without validation,
            `fit` can continue from these three.
        losses: the loss before each step.
        validation: the validation loss at each check, the first before any step; empty without
            validation.
        finite: whether every loss and the parameters are finite.
    """

    params: PyTree[Array]
    optimizer_state: optax.OptState
    loss_state: PyTree[Array]
    losses: Float[Array, " steps"]
    validation: Float[Array, " checks"]
    finite: Bool[Array, ""]


def fit(
    key: Key[Array, ""],
    loss: Callable[..., Any],
    params: PyTree[Array],
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    optimizer_state: optax.OptState | None = None,
    loss_state: PyTree[Array] | None = None,
    validate: Callable[[PyTree[Array]], Float[Array, ""]] | None = None,
    num_checks: int = 20,
) -> Training:
    """Minimise a stochastic loss by `num_steps` steps of an optax optimizer, in one scan.

    Args:
        key: split into one key per step.
        loss: `(key, params) -> scalar`, or with a state `(key, params, state) -> (scalar, state)`.
        params: the initial parameters.
        optimizer: any optax transformation.
        num_steps: the number of steps, with validation rounded up to a multiple of the checks.
        optimizer_state: the state of an earlier fit to continue, by default a fresh one.
        loss_state: what the loss carries from step to step, such as a moving average, if anything.
        validate: `params -> scalar`. The parameters with the least value are carried along and
            returned. The initial ones are among them, and non-finite values never win.
        num_checks: the number of evaluations after the initial one, at most one per step.

    Returns:
        A `Training`. Vmap `fit` over keys or numbers to train several at once.

    Raises:
        ValueError: if it is differentiated.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> loss = lambda key, x: jnp.sum((x - 3.0) ** 2)
        >>> trained = fit(jax.random.key(0), loss, jnp.zeros(2), optax.sgd(0.3), num_steps=50)
        >>> trained.params.round(3).tolist()
        [3.0, 3.0]
    """
    state = optimizer.init(params) if optimizer_state is None else optimizer_state

    def with_state(key, params, loss_state):
        if loss_state is None:
            return loss(key, params), None
        return loss(key, params, loss_state)

    def step(carry, key):
        params, state, loss_state = carry
        differentiated = jax.value_and_grad(with_state, argnums=1, has_aux=True)
        (value, loss_state), gradient = differentiated(key, params, loss_state)
        # Optimizers count their steps by integers, and multiply by them.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return (params, state, loss_state), value

    moving = params, state, loss_state
    if validate is None:
        keys = jax.random.split(key, num_steps)
        (params, state, loss_state), losses = jax.lax.scan(step, moving, keys)
        validation = jnp.zeros(0, losses.dtype)
    else:
        num_checks = min(num_checks, num_steps)
        # Rounded up to whole blocks, so that one inner scan of fixed length serves all of them.
        keys = jax.random.split(key, (num_checks, -(-num_steps // num_checks)))

        def block(carry, keys):
            moving, best, least = carry
            moving, losses = jax.lax.scan(step, moving, keys)
            value = validate(moving[0])
            # NaN loses every comparison, but −∞ would win all of them.
            better = jnp.isfinite(value) & (value < least)
            best = select(better, moving[0], best)
            return (moving, best, jnp.where(better, value, least)), (losses, value)

        # The initial parameters are a candidate: a fit that only gets worse returns them.
        start = validate(params)
        carry = moving, params, jnp.where(jnp.isfinite(start), start, jnp.inf)
        (moving, params, _), (losses, values) = jax.lax.scan(block, carry, keys)
        _, state, loss_state = moving
        losses, validation = losses.ravel(), jnp.append(start, values)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, losses))])
    return refuse_derivatives(
        Training(params, state, loss_state, losses, validation, finite.all()),
        "what is trained by an optimizer is not differentiated with respect to its data and "
        "hyper-parameters: Adam's first step has no finite derivative. Stop the gradients of what "
        "training depends on, or compare values.",
    )


def adam_with_cosine(
    learning_rate: ArrayLike, num_steps: int, dtype: DTypeLike, weight_decay: ArrayLike = 0.0
) -> optax.GradientTransformation:
    """Adam, with decoupled weight decay, on a cosine schedule that ends at a hundredth.

    `optax.adamw` accepts a schedule too, but one that depends on the learning rate as a number.
    Here it may be traced.
    """
    # The decay is added after the moments, hence decoupled from them, and before the schedule,
    # which scales both.
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(jnp.asarray(weight_decay, dtype)),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, num_steps, 0.01)),
        optax.scale(-jnp.asarray(learning_rate, dtype)),
    )


def training_samples(
    x: Float[Array, "n d"], y: Float[Array, "m _"], least: int = 2
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Two samples of `least` rows each or more, of one dtype, with gradients stopped.

    Raises:
        ValueError: if they are invalid.
    """
    check_matrix(x=x, y=y)
    check_same_features(x, y)
    for name, rows in (("x", x), ("y", y)):
        check_full_precision(name, rows)
        # One row at least is held out, and one is trained on, or two if a map starts from them.
        if rows.shape[0] < least:
            raise ValueError(f"{name} must have at least {least} rows; got {rows.shape[0]}.")
    # Training is not differentiated: `fit` raises if it is.
    dtype = jnp.result_type(x, y)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    return jax.lax.stop_gradient((x, y))


def hold_out(
    key: Key[Array, ""], num_rows: int, weights: Float[Array, " n"] | None = None
) -> tuple[Int[Array, " k"], Int[Array, " h"]]:
    """Indices in random order: of the rows to train on, and of a fifth, at most 1024, to hold out.

    Weighted rows are held out in the same proportion as all, and at least one of them.
    """
    order = jax.random.permutation(key, num_rows)
    size = max(1, min(HELD_OUT_ROWS, num_rows // 5))
    if weights is None:
        return order[size:], order[:size]
    # Zero-weight rows come last. The first rows of either kind are held out.
    order = order[jnp.argsort(weights[order] == 0, stable=True)]
    used = jnp.sum(weights != 0)
    # The weighted rows' share of the held-out rows, at least one on either side: both losses are
    # undefined without weight.
    share = size * used.astype(float) / num_rows
    first = jnp.clip(jnp.round(share).astype(used.dtype), 1, used - 1)
    # Sizes are static, the number of weighted rows is not: zero-weight rows fill up both parts.
    held, train = jnp.arange(size), jnp.arange(num_rows - size)
    held = jnp.where(held < first, held, used + held - first)
    train = jnp.where(train < used - first, first + train, size + train)
    return order[train], order[held]


def row_batch(key: Key[Array, ""], num_rows: int, size: int) -> Array:
    """Distinct rows in random order, each equally likely: stratified with a random offset.

    It avoids the cost of permuting all rows at every step.
    """
    start_key, within_key, order_key = jax.random.split(key, 3)
    stretches = jnp.asarray([i * num_rows // size for i in range(size)])
    # Offsets below the length of the shortest stretch: rows of different stretches are distinct. A
    # random start makes rows that no offset reaches as likely as the others.
    within = jax.random.randint(within_key, (size,), 0, num_rows // size)
    start = jax.random.randint(start_key, (), 0, num_rows)
    return jax.random.permutation(order_key, (start + stretches + within) % num_rows)


def spread_rows(weights: Float[Array, " n"], most: int) -> Int[Array, " k"]:
    """At most `most` indices, evenly spread over the rows with weight, which come first.

    Example:
        >>> spread_rows(jnp.array([0.0, 1.0, 0.0, 1.0]), 3).tolist()
        [1, 3, 0]
    """
    size = min(weights.size, most)
    with_weight_first = jnp.argsort(weights == 0, stable=True)
    used, position = jnp.sum(weights != 0), jnp.arange(size)
    # position · used/size, in integers that do not overflow.
    spread = position * (used // size) + (position * (used % size)) // size
    return with_weight_first[jnp.where(used > size, spread, position)]


def random_rows(key: Key[Array, ""], weights: Float[Array, " n"], most: int) -> Int[Array, " k"]:
    """At most `most` distinct indices, drawn at random from the rows with weight, which come first.

    Example:
        >>> weights = jnp.array([0.0, 1.0, 0.0, 1.0])
        >>> sorted(random_rows(jax.random.key(0), weights, 2).tolist())
        [1, 3]
    """
    # Uniform numbers are not negative: rows of weight zero come last.
    order = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1)
    return jax.lax.top_k(order, min(most, weights.size))[1]
