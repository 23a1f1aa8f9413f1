"""Density ratios in the large-KL regime: sums of log ratios between neighbouring waymarks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from divjax.core.checks import check_count
from divjax.core.numerics import inf_if_nan
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.ratio.heads.combinations import convex_heads, valid_or_nan
from divjax.ratio.heads.network import Network, row_sampler
from divjax.ratio.protocols import (
    Fold,
    Head,
    Rows,
    checked,
    cross_entropy,
    is_in_range,
    is_parametric,
)

__all__ = ["Telescoping"]


@pytree
class Telescoping:
    """The log ratio as a sum of intermediate log ratios, log p/q = Σ_k log p_k/p_{k+1}.

    Waymark p_k is the distribution of cos θ_k x + sin θ_k y for independent x ~ p and y ~ q, with
    equally spaced angles from θ_0 = 0 to θ_m = π/2. With enough waymarks neighbours overlap, while
    a classifier of p against q itself cannot resolve more than about log n nats.

    Each intermediate ratio starts from its own simple log ratio. A network with one output per
    ratio, all trained jointly on one trunk, adds the residuals.

    Attributes:
        num_ratios: the number m of intermediate ratios; one or two nats per ratio are suitable.
        start: the head that each ratio starts from; by default the likelihood-weighted average of
            the convex heads.
        network: architecture and training of the trunk, from a batch "b d" to "b m"; None to omit
            it.

    References:
        Rhodes, Xu, Gutmann 2020, eq. 5–8: the sum, waymarks by linear combination, joint training.
    """

    num_ratios: int = static(default=8)
    start: Head | None = None
    network: Network | None = Network()

    def __post_init__(self):
        check_count(1, num_ratios=self.num_ratios)

    @property
    def parametric(self) -> bool:
        """Whether the intermediate ratios start from parametric heads, as by default."""
        return self.start is None or is_parametric(self.start)

    @jax.jit
    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[PyTree[Array], PyTree[Array] | None]:
        """The parameters of the starts of all intermediate ratios, and of the network."""
        fold, valid = checked(self, fold)
        pair_key, start_key, init_key, fit_key = jax.random.split(key, 4)
        x, y, *weights = fold.train
        # The starts, all simultaneously, each fitted to its own pair of neighbouring waymarks.
        start = self._start(x.shape[1])
        ratio_folds = self._ratio_folds(pair_key, fold)
        keys = jax.random.split(start_key, self.num_ratios)
        starts = jax.vmap(start.fit)(keys, ratio_folds)
        if self.network is None:
            return valid_or_nan(valid, starts), None
        # One network with an output per ratio learns the residuals, from fresh pairs at each step.
        network, half = self.network, -(-self.network.batch_size // 2)
        uniform = jnp.full(half, 1 / half, x.dtype)
        draw = row_sampler(*weights)
        of_start = jax.vmap(start)

        def each(params, above, below):
            """Each ratio's correction at rows of its two waymarks, "m b d"."""
            both = jnp.concatenate([above, below], axis=1)
            outputs = network.apply(params, both.reshape(-1, both.shape[-1]), self.num_ratios)
            outputs = outputs.reshape(*both.shape[:2], self.num_ratios)
            # Ratio k is corrected by output k, at its own rows alone.
            own = jnp.diagonal(outputs, axis1=0, axis2=2).T
            return own[:, : above.shape[1]], own[:, above.shape[1] :]

        def loss(key, params):
            i, j = draw(key, half)
            # Both index vectors are sorted by quantile. A permutation pairs them independently.
            j = jax.random.permutation(jax.random.fold_in(key, 1), j)
            marks = self._waymarks(x[i], y[j])
            own_p, own_q = each(params, marks[:-1], marks[1:])
            u_p = own_p + of_start(starts, marks[:-1])
            u_q = own_q + of_start(starts, marks[1:])
            return jnp.mean(jax.vmap(cross_entropy, (0, 0, None, None))(u_p, u_q, uniform, uniform))

        # Early stopping on the intermediate ratios' own validation pairs.
        validation = ratio_folds.validation
        offset_p, offset_q = of_start(starts, validation.x), of_start(starts, validation.y)

        def validate(params):
            own_p, own_q = each(params, validation.x, validation.y)
            losses = jax.vmap(cross_entropy)(
                own_p + offset_p, own_q + offset_q, *validation.weights
            )
            return inf_if_nan(jnp.mean(losses))

        params = network.init(init_key, x.shape[1], x.dtype, self.num_ratios)
        return starts, network.train(fit_key, loss, params, validate, valid)

    def in_range(self) -> Bool[Array, ""]:
        """Whether the numbers of the start and of the network are in range."""
        return is_in_range(self.start) & is_in_range(self.network)

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The sum of all intermediate log ratios."""
        starts, own = params
        start = self._start(z.shape[1])
        each = jax.vmap(lambda s: start(s, z), axis_size=self.num_ratios)(starts)
        total = jnp.sum(each, axis=0)
        if self.network is None:
            return total
        return total + jnp.sum(self.network.apply(own, z, self.num_ratios), axis=1)

    def _start(self, in_features: int) -> Head:
        return convex_heads(in_features) if self.start is None else self.start

    def _waymarks(self, x: Float[Array, "b d"], y: Float[Array, "b d"]) -> Float[Array, "k b d"]:
        angles = np.linspace(0, np.pi / 2, self.num_ratios + 1)
        cos = jnp.asarray(np.cos(angles), x.dtype)[:, None, None]
        sin = jnp.asarray(np.sin(angles), x.dtype)[:, None, None]
        # Exact at the ends.
        cos, sin = cos.at[-1].set(0), sin.at[0].set(0)
        return cos * x + sin * y

    def _ratio_folds(self, key: Key[Array, ""], fold: Fold) -> Fold:
        """A fold for each intermediate ratio.

        Each row of p is paired with a random row of q of the same role, and each row of q with one
        of p. Waymarks between the ends use all pairs. The end p uses the pairs of its own rows, and
        so does the end q.
        """

        def part(key, rows):
            x, y, *weights = rows
            n, m = x.shape[0], y.shape[0]
            key_p, key_q = jax.random.split(key)
            for_p = _partners(key_p, weights[0], weights[1])
            for_q = _partners(key_q, weights[1], weights[0])
            marks = self._waymarks(jnp.concatenate([x, x[for_q]]), jnp.concatenate([y[for_p], y]))
            # The first n pairs belong to rows of p, the other m to rows of q. The end p has weight
            # on the former only, the end q on the latter only.
            first, last = jnp.pad(weights[0], (0, m)), jnp.pad(weights[1], (n, 0))
            between = [(first + last) / 2] * (self.num_ratios - 1)
            # Ratio k lies between waymarks k and k + 1, hence the shifted slices.
            mass = jnp.stack([first, *between, last])
            return Rows(marks[:-1], marks[1:], mass[:-1], mass[1:])

        keys = jax.random.split(key)
        return Fold(*(part(key, rows) for key, rows in zip(keys, fold, strict=True)))


def _partners(
    key: Key[Array, ""], weights: Float[Array, " n"], others: Float[Array, " m"]
) -> Int[Array, " n"]:
    """A row of the other sample for each row, drawn by weight from strata in random order.

    Rows of weight zero at the end of either sample change no other row's partner.
    """
    # Numbers of each row's own, whatever the number of rows.
    each = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (2,)))
    order, within = each(jnp.arange(weights.shape[0])).T.astype(weights.dtype)
    # The place of a row in a random order of those that have weight is its stratum.
    alive = weights > 0
    sequence = jnp.argsort(jnp.where(alive, order, jnp.inf))
    place = jnp.zeros_like(sequence).at[sequence].set(jnp.arange(sequence.size))
    level = (place + within) / jnp.maximum(jnp.sum(alive), 1)
    mass = jnp.cumsum(others)
    # Rounding may put a level beyond the total mass, and padding of this sample has no stratum.
    return jnp.minimum(jnp.searchsorted(mass, level * mass[-1]), mass.shape[0] - 1)
