"""Variational bounds whose critic is a network, trained on samples or on a stream of them.

Bounds are never evaluated on the critic's training rows, where an overfitted critic gives log 2 for
any Jensen–Shannon divergence, which is not a bound.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_callable,
    check_count,
    check_full_precision,
    check_matrix,
    check_positive_finite,
    check_same_features,
    check_scalar,
    check_widths,
)
from divjax.core.keys import own_key
from divjax.core.networks import Network
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center, Numbers, centered_samples
from divjax.core.standardize import Standardizer, robust_standardizer
from divjax.core.training import Training, fit, row_batch
from divjax.fdiv.divergences import check_slope
from divjax.ratio.bounds.bound_fit import BoundFit, TrainingState, ungrouped
from divjax.ratio.bounds.critics import Critic
from divjax.ratio.bounds.named_bounds import TRAINABLE, StatefulBound, as_bound

__all__ = ["DivergenceBound", "MutualInformationBound"]

Sampler = Callable[[Key[Array, ""]], tuple[Float[Array, "b d"], Float[Array, "c e"]]]


@pytree
class DivergenceBound:
    """A lower bound on D(p‖q) from samples of both, with a network as critic.

    The network is trained by the gradient of one bound and read out by any, on held-out samples. A
    fifth of the rows is held out for that, and another fifth is used to select the parameters among
    all checks. Columns are standardised robustly by the training rows: values far outside of a
    sample are compressed by a monotone map, under which f-divergences and mutual information are
    invariant. Samples with NaN or infinity give NaN, and `finite` is false.

    Attributes:
        train: the bound to be maximised: a name ("js", "dv", "nwj", "infonce"), a generator of
            `divjax.fdiv` for its `f_dual`, `MINE()` or another `bounds.StatefulBound`, or any
            function of (u_p, u_q).
        network: "joint" for a multilayer perceptron, or `(in_features, rngs) -> nnx.Module`, from
            rows "b d" to "b 1".
        hidden: widths of the perceptron.
        learning_rate: the learning rate of Adam.
        batch_size: the number of rows of p, and of q, per step; fewer if a sample is smaller.
        num_steps: the number of steps of Adam.
        num_checks: the number of evaluations on the validation rows; `num_steps` is rounded up to a
            multiple of it. The critic before the first step is among the candidates.
        num_groups: the number of groups of held-out rows, for the standard error; for a stream, the
            number of held-out batches.

    Raises:
        ValueError: if a name is unknown, a number is out of range, or the bound to be maximised is
            that of the total variation.

    Example:
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 400, 1)) + jnp.array([[[1.0]], [[0.0]]])
        >>> bound = DivergenceBound(num_steps=100, hidden=(16,), learning_rate=1e-2)
        >>> estimate = bound.fit(jax.random.key(1), p, q).estimate("dv")
        >>> bool(abs(estimate.value - 0.5) < 3 * estimate.std_error)  # KL of N(1, 1) from N(0, 1)
        True

    References:
        Nguyen, Wainwright, Jordan 2010; Song, Ermon 2020, for training and reading out apart.
    """

    train: Any = "js"
    network: str | Network = static(default="joint")
    hidden: tuple[int, ...] = static(default=(64, 64))
    learning_rate: ArrayLike = 1e-3
    batch_size: int = static(default=64)
    num_steps: int = static(default=2000)
    num_checks: int = static(default=20)
    num_groups: int = static(default=16)

    _paired = False
    _networks = ("joint",)

    def __post_init__(self):
        if isinstance(self.train, str) and self.train not in TRAINABLE:
            raise ValueError(f"train must be one of {', '.join(TRAINABLE)}; got {self.train!r}.")
        # The critic would stay as it is, and give a bound of 0 for any samples.
        check_slope("train", self.train)
        # A name becomes the function it stands for, so that the rest knows functions alone.
        object.__setattr__(self, "train", as_bound(self.train))
        if isinstance(self.network, str) and self.network not in self._networks:
            raise ValueError(
                f"network must be one of {', '.join(self._networks)}, or a function that builds "
                f"one; got {self.network!r}."
            )
        check_widths(hidden=self.hidden)
        if self.network == "separable" and not self.hidden:
            raise ValueError(
                "hidden must hold at least one width, that of the encoders' outputs; got none."
            )
        check_positive_finite(learning_rate=self.learning_rate)
        counts = {"num_steps": self.num_steps, "num_checks": self.num_checks}
        check_count(1, **counts, num_groups=self.num_groups)
        # For mutual information a batch of one pair would have no false pairs.
        check_count(2, batch_size=self.batch_size)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m e"] | None = None,
    ) -> BoundFit:
        """Train on some rows, select the critic on others, and evaluate on the rest.

        Args:
            key: one typed key.
            x: samples of p, one per row: an array, a list or a frame of numbers. NumPy's float64 is
                centred before it becomes float32.
            y: samples of q; for mutual information, the rows paired with those of `x`. Required.

        Returns:
            The fit. Compiles itself; vmap it over keys, samples, learning rates. Derivatives in the
            samples hold the critic fixed.

        Raises:
            ValueError: if shapes do not match, or rows are too few to be split.
        """
        key = own_key(key)
        if y is None:  # most often the key is missing, which the check above reports
            raise ValueError("y is missing: fit takes a key, x and y.")
        check_scalar(learning_rate=self.learning_rate)
        center, x, y = self._centered(x, y)
        self._check(x, y)
        fitted = _fit(key, x, y, self)
        # The critic will be called on the original rows, not on centred ones.
        return dataclasses.replace(fitted, critic=dataclasses.replace(fitted.critic, center=center))

    def _fit(self, key: Key[Array, ""], x: Array, y: Array) -> BoundFit:
        split_key, init_key, fit_key = jax.random.split(key, 3)
        # A non-finite row may be in one part alone, and the other parts would not show it.
        x, y = nan_unless(jnp.isfinite(x).all(), x), nan_unless(jnp.isfinite(y).all(), y)
        # Pairs stay together: one key for both.
        keys = (split_key, split_key) if self._paired else tuple(jax.random.split(split_key))
        samples = [jax.random.permutation(k, rows) for k, rows in zip(keys, (x, y), strict=True)]
        parts = [self._parts(name, rows) for name, rows in zip("xy", samples, strict=True)]
        training, validation, held_out = zip(*parts, strict=True)
        # Only the held-out values are differentiated, with the critic held fixed.
        training, validation = jax.lax.stop_gradient((training, validation))
        columns = (self._joined(*training),) if self._paired else training
        standardizer = robust_standardizer(*((rows, jnp.ones_like(rows[:, 0])) for rows in columns))
        critic = self._critic(x.shape[1], standardizer).init(init_key)

        def draw(key: Key[Array, ""]) -> tuple[Array, Array]:
            key_x, key_y = (key, key) if self._paired else jax.random.split(key)
            rows_x, rows_y = training
            n, m = len(rows_x), len(rows_y)
            size = min(self.batch_size, n, m)
            return rows_x[row_batch(key_x, n, size)], rows_y[row_batch(key_y, m, size)]

        def validate(params: PyTree[Array]) -> Float[Array, ""]:
            values = self._evaluate(critic.replace(params), *validation)
            # All groups pooled: the bias of a bound depends on its sample size.
            return -self._value(*ungrouped(*values))

        trained = self._train(fit_key, critic, draw, self._start(critic), validate)
        critic = critic.replace(trained.params)
        state = TrainingState(trained.params, trained.optimizer_state, trained.loss_state)
        # Values far from the training rows are arbitrary. Clipping to the range at the validation
        # rows gives another critic, hence still a bound.
        known = jnp.concatenate([u.ravel() for u in self._evaluate(critic, *validation)])
        limits = jnp.min(known), jnp.max(known)
        u_p, u_q = self._evaluate(critic, *held_out)
        u_p, u_q = jnp.clip(u_p, *limits), jnp.clip(u_q, *limits)
        # With invalid traced numbers or no finite validation value the critic would be untrained.
        valid = (jnp.asarray(self.learning_rate) > 0) & jnp.isfinite(trained.validation).any()
        u_p, u_q = nan_unless(valid, u_p), nan_unless(valid, u_q)
        return BoundFit(critic, u_p, u_q, -trained.validation, trained.finite, state)

    def init(self, key: Key[Array, ""], sample: Sampler) -> TrainingState:
        """An untrained critic with the states of optimizer and bound, from which `stream` starts.

        Args:
            key: one typed key.
            sample: the sampler, as for `stream`.
        """
        key = own_key(key)
        return self._start(self._unscaled(sample).init(key))

    def stream(
        self, key: Key[Array, ""], sample: Sampler, start: TrainingState | None = None
    ) -> BoundFit:
        """Train on fresh batches at each step, and evaluate on `num_groups` more.

        Samples are not standardised, and the parameters of the last step are kept.

        Args:
            key: one typed key.
            sample: `(key) -> (x "b d", y "b e")`; its batches determine the batch size.
            start: the `training` of an earlier stream that this one continues, or the result of
                `init` (the default). It can be the carry of a scan.

        Returns:
            The fit.

        Raises:
            ValueError: if shapes do not match.

        Example:
            >>> def sample(key):
            ...     x, noise = jax.random.normal(key, (2, 32, 1))
            ...     return x, x + noise
            >>> bound = MutualInformationBound(num_steps=20, num_checks=1)
            >>> bound.stream(jax.random.key(0), sample).u_q.shape
            (16, 32, 31)
        """
        key = own_key(key)
        init_key, fit_key, held_out_key = jax.random.split(key, 3)
        critic = self._unscaled(sample)
        start = self.init(init_key, sample) if start is None else start
        trained = self._train(fit_key, critic, sample, start)
        critic = critic.replace(trained.params)
        # Fresh batches, one per group, replace held-out rows.
        u_p, u_q = jax.lax.map(
            lambda key: self._values(critic, *sample(key)),
            jax.random.split(held_out_key, self.num_groups),
        )
        state = TrainingState(trained.params, trained.optimizer_state, trained.loss_state)
        # What is minimised is minus the bound.
        return BoundFit(critic, u_p, u_q, -trained.losses, trained.finite, state)

    def _centered(self, x: Numbers, y: Numbers) -> tuple[Center, Array, Array]:
        """The centre of a critic's rows, and both centred samples in a common dtype."""
        if not self._paired:
            return centered_samples(x=x, y=y)
        # x and y are columns of one row, each with its own centre.
        (of_x, x), (of_y, y) = centered_samples(x=x), centered_samples(y=y)
        dtype = jnp.result_type(x, y)
        center = Center(jnp.append(of_x.high, of_y.high), jnp.append(of_x.low, of_y.low))
        return center, jnp.asarray(x, dtype), jnp.asarray(y, dtype)

    def _unscaled(self, sample: Sampler) -> Critic:
        """A critic without parameters for the sampler's columns."""
        x, y = jax.eval_shape(sample, jax.random.key(0))
        self._check(x, y)
        ones = jnp.ones(jax.eval_shape(self._joined, x, y).shape[1], x.dtype)
        # Mean 0, scale 1 and infinite limits leave every row unchanged.
        limit = jnp.full_like(ones, jnp.inf)
        return self._critic(x.shape[1], Standardizer(0 * ones, ones, -limit, limit))

    def _check(self, x: Array, y: Array) -> None:
        check_callable(train=self.train)
        check_matrix(x=x, y=y)
        check_full_precision("x", x)
        check_full_precision("y", y)
        if not self._paired:
            check_same_features(x, y)
        elif x.shape[0] != y.shape[0]:
            raise ValueError(
                f"x and y must have equally many rows; got {x.shape[0]} and {y.shape[0]}."
            )

    def _parts(self, name: str, rows: Array) -> tuple[Array, Array, Array]:
        """Rows to train on, and groups "g n d" to validate on and to hold out."""
        # A fifth of the rows is for validation and a fifth is held out, in groups of equal size.
        size = rows.shape[0] // 5 // self.num_groups
        if size < 2:
            raise ValueError(
                f"{name} must hold at least {10 * self.num_groups} rows for num_groups = "
                f"{self.num_groups}; got {rows.shape[0]}."
            )
        groups = rows[: 2 * size * self.num_groups].reshape(2, self.num_groups, size, -1)
        return rows[2 * size * self.num_groups :], groups[0], groups[1]

    def _joined(self, x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y], axis=1 if self._paired else 0)

    def _critic(self, x_features: int, standardizer: Standardizer) -> Critic:
        mean, scale, lower, upper = standardizer
        return Critic((), mean, scale, self.network, self.hidden, x_features, lower, upper)

    def _values(self, critic: Critic, x: Array, y: Array) -> tuple[Array, Array]:
        return critic(x), critic(y)

    def _evaluate(self, critic: Critic, x: Array, y: Array) -> tuple[Array, Array]:
        """The values of all groups, evaluated sequentially."""
        return jax.lax.map(lambda group: self._values(critic, *group), (x, y))

    def _value(self, u_p: Array, u_q: Array) -> Array:
        """The value of the bound to be maximised. A state affects only its gradient."""
        if isinstance(self.train, StatefulBound):
            return self.train(u_p, u_q, self.train.init(u_p.dtype))[0]
        return self.train(u_p, u_q)

    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(jnp.asarray(self.learning_rate))

    def _start(self, critic: Critic) -> TrainingState:
        stateful = isinstance(self.train, StatefulBound)
        bound = self.train.init(critic.shift.dtype) if stateful else None
        return TrainingState(critic.params, self._optimizer().init(critic.params), bound)

    def _train(
        self,
        key: Key[Array, ""],
        critic: Critic,
        draw: Sampler,
        start: TrainingState,
        validate: Callable[[PyTree[Array]], Float[Array, ""]] | None = None,
    ) -> Training:
        def loss(key: Key[Array, ""], params: PyTree[Array], *state: PyTree[Array]):
            values = self._values(critic.replace(params), *draw(key))
            # A bound without a state returns its value alone, which is maximised, hence the sign.
            if not state:
                return -self.train(*values)
            value, new = self.train(*values, *state)
            return -value, new

        return fit(
            key,
            loss,
            start.params,
            self._optimizer(),
            num_steps=self.num_steps,
            optimizer_state=start.optimizer,
            loss_state=start.bound,
            validate=validate,
            num_checks=self.num_checks,
        )


@jax.jit
def _fit(key: Key[Array, ""], x: Array, y: Array, bound: DivergenceBound) -> BoundFit:
    return bound._fit(key, x, y)


@pytree
class MutualInformationBound(DivergenceBound):
    """A lower bound on the mutual information I(x; y), KL(p(x, y)‖p(x)p(y)), from pairs.

    `DivergenceBound` with pairs as samples of p, and with re-paired rows of a batch as samples of
    q: by one derangement or more, never by a permutation that may keep a pair.

    Attributes:
        network: "joint" for a multilayer perceptron of [x, y], "separable" for ⟨g(x), h(y)⟩, whose
            values at all pairs of a batch cost little more than those at the true ones, or
            `(in_features, rngs) -> nnx.Module`, from rows [x, y] to "b 1".
        num_negatives: the number k of false pairs for each true one, at most all others of the
            batch; by default min(batch_size, rows of the batch) − 1. 1 is f-DIME's derangement.

    Raises:
        ValueError: if a name is unknown or a number is out of range.

    Example:
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 600, 1))
        >>> bound = MutualInformationBound(num_steps=100, hidden=(16,), learning_rate=1e-2)
        >>> fit = bound.fit(jax.random.key(1), x, x + noise)
        >>> estimate = fit.estimate("infonce")  # at most the truth, ½ log 2
        >>> bool(estimate.interval[0] < 0.5 * jnp.log(2.0))
        True

    References:
        Belghazi et al. 2018; Poole et al. 2019; Letizia, Novello, Tonello 2024; Dorent, Golland,
        Wells 2025.
    """

    num_negatives: int | None = static(default=None)

    _paired = True
    _networks = ("joint", "separable")

    def __post_init__(self):
        super().__post_init__()
        if self.num_negatives is not None:
            check_count(1, num_negatives=self.num_negatives)

    def _values(self, critic: Critic, x: Array, y: Array) -> tuple[Array, Array]:
        # Groups larger than a batch use the number of false pairs of a batch, which is part of the
        # bound.
        most = min(self.batch_size, x.shape[0]) - 1
        wanted = most if self.num_negatives is None else min(self.num_negatives, x.shape[0] - 1)
        return critic.at_pairs(self._joined(x, y), wanted)
