"""The objective of a map network: how well it fits, and the excess of its cost.

Terms omit OT(x, x) and OT(y, y), which do not depend on the map. `constants` adds them to report
the complete values.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core.pytrees import pytree, static
from divjax.ot.entropic.divergence import self_transport
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.given_costs import paired_costs
from divjax.ot.maps.gap import monge_gap
from divjax.ot.maps.network_map import MapFit
from divjax.ot.weighted_samples import mean_over_rows

__all__ = ["MapBatch", "MapObjective", "MapTerms", "broadcast_context"]


class MapBatch(NamedTuple):
    """Rows of both distributions.

    Attributes:
        x: rows of the source distribution.
        initial_images: their images under the initial map.
        y: rows of the target distribution.
        context: the context of the problem that the rows belong to.
        other: further rows of the source and their images under the initial map, for self terms of
            independent batches, None for self terms of x alone.
        a: weights of x, with sum one, uniform by default.
        b: the weights of y.
        other_a: the weights of the further rows.
    """

    x: Float[Array, "b d"]
    initial_images: Float[Array, "b d"]
    y: Float[Array, "m d"]
    context: Float[Array, " c"] | None = None
    other: tuple[Float[Array, "b d"], Float[Array, "b d"]] | None = None
    a: Float[Array, " b"] | None = None
    b: Float[Array, " m"] | None = None
    other_a: Float[Array, " b"] | None = None


class MapTerms(NamedTuple):
    """S, M and the asymmetry, and whether Sinkhorn's problems have converged."""

    divergence: Float[Array, ""]
    gap: Float[Array, ""]
    asymmetry: Float[Array, ""]
    converged: Bool[Array, ""]


class _Cost(NamedTuple):
    """A transport cost, and whether it is accurate to the tolerance."""

    value: Float[Array, ""]
    converged: Bool[Array, ""]


@pytree
class MapObjective:
    """S_ε(T(x), y)/u + λ M(T)/u + w E‖J − Jᵀ‖²/d, as `MongeMap` describes it.

    Attributes:
        cost: a symmetric cost.
        unit: u.
        epsilon: ε of the divergence, in units of the cost.
        gap_epsilon: ε of the gap, likewise, None for the same.
        gap_weight: λ.
        symmetry_weight: w, or None to omit the term.
        gap_kind: the kind of `monge_gap`, or None for no gap.
        solver: the options for each Sinkhorn problem.
    """

    cost: Callable[..., Array]
    unit: Float[Array, ""]
    epsilon: ArrayLike
    gap_epsilon: ArrayLike | None
    gap_weight: ArrayLike
    symmetry_weight: ArrayLike | None
    gap_kind: str | None = static()
    solver: Sinkhorn

    def value(self, terms: MapTerms) -> Float[Array, ""]:
        """The weighted sum."""
        value = terms.divergence
        if self.gap_kind is not None:
            value = value + self.gap_weight * terms.gap
        # Divergence and gap are costs; the asymmetry is dimensionless.
        value = value / self.unit
        if self.symmetry_weight is not None:
            value = value + self.symmetry_weight * terms.asymmetry
        return value

    def terms(
        self, key: Key[Array, ""], map_fit: MapFit, params: PyTree[Array], batch: MapBatch
    ) -> MapTerms:
        """The terms of a batch, without those independent of the map; the key is for asymmetry."""

        def mapped(x: Array, initial: Array) -> Array:
            return map_fit.image(params, x, initial, broadcast_context(batch.context, x))

        images = mapped(batch.x, batch.initial_images)
        # ½ OT(T(x), T(x)) of the divergence. Between two batches it excludes the zero distances of
        # rows to themselves, which would favour maps with too little spread.
        if batch.other is None:
            spread = self._self_cost(images, self.epsilon, batch.a)
        else:
            others = mapped(*batch.other)
            spread = self._transport_cost(images, others, self.epsilon, batch.a, batch.other_a)
        across, gap = self._across_and_gap(batch, images, spread)
        converged = across.converged & spread.converged & gap.converged
        # ½ OT(y, y) is left to `constants`.
        asymmetry = self._asymmetry(key, map_fit, params, batch)
        return MapTerms(across.value - spread.value / 2, gap.value, asymmetry, converged)

    def constants(
        self,
        batch: MapBatch,
        other: Float[Array, "k d"] | None = None,
        other_b: Float[Array, " k"] | None = None,
    ) -> MapTerms:
        """The terms omitted by `terms`. `other` is a second, independent batch of y, if used."""
        if other is None:
            of_y = self._self_cost(batch.y, self.epsilon, batch.b)
        else:
            of_y = self._transport_cost(batch.y, other, self.epsilon, batch.b, other_b)
        # ½ OT(x, x) is part of the debiased gap only.
        of_x = _zero_cost(of_y.value)
        if self.gap_kind == "debiased":
            of_x = self._self_cost(batch.x, self._epsilon_of_gap, batch.a)
        converged = of_y.converged & of_x.converged
        return MapTerms(-of_y.value / 2, of_x.value / 2, jnp.zeros_like(of_y.value), converged)

    @property
    def _epsilon_of_gap(self) -> ArrayLike:
        return self.epsilon if self.gap_epsilon is None else self.gap_epsilon

    def _across_and_gap(self, batch: MapBatch, images: Array, spread: _Cost) -> tuple[_Cost, _Cost]:
        """OT(T(x), y), and the gap less ½ OT(x, x) if it is the debiased one."""
        x, y, a, b, epsilon = batch.x, batch.y, batch.a, batch.b, self._epsilon_of_gap
        fitted = images, y, self.epsilon, a, b
        if self.gap_kind is None:
            across = self._transport_cost(*fitted)
            return across, _zero_cost(across.value)
        if self.gap_kind != "debiased":
            # Gaps of other kinds have no problem in common with the divergence.
            gap = monge_gap(
                x,
                images,
                a,
                epsilon=epsilon,
                cost=self.cost,
                kind=self.gap_kind,
                solver=self.solver,
            )
            return self._transport_cost(*fitted), _Cost(gap.value, gap.converged)
        # `monge_gap` would solve OT(T(x), T(x)) again. The divergence's self term is reused for the
        # gap if rows and ε are the same.
        own = spread
        if batch.other is not None or self.gap_epsilon is not None:
            own = self._self_cost(images, epsilon, a)
        across, transport = self._solve_pair(fitted, (x, images, epsilon, a, a))
        # The displacement less the divergence of x and T(x), without ½ OT(x, x) of `constants`.
        displacement = mean_over_rows(paired_costs(self.cost, x, images), a)
        value = displacement - transport.value + own.value / 2
        return across, _Cost(value, transport.converged & own.converged)

    def _transport_cost(
        self, x: Array, y: Array, epsilon: ArrayLike, a: Array | None, b: Array | None
    ) -> _Cost:
        result = sinkhorn(x, y, a, b, epsilon=epsilon, cost=self.cost, solver=self.solver)
        return _Cost(result.value, result.converged)

    def _self_cost(self, x: Array, epsilon: ArrayLike, a: Array | None) -> _Cost:
        result = self_transport(x, a, epsilon=epsilon, cost=self.cost, solver=self.solver)
        return _Cost(result.value, result.converged)

    def _solve_pair(self, first: tuple, second: tuple) -> tuple[_Cost, _Cost]:
        """Solve two problems `(x, y, epsilon, a, b)`."""
        if jax.tree.map(jnp.shape, first) != jax.tree.map(jnp.shape, second):
            return self._transport_cost(*first), self._transport_cost(*second)
        # One program for both takes half the compilation time, and the same run time.
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
        values, converged = jax.lax.map(lambda problem: self._transport_cost(*problem), both)
        return _Cost(values[0], converged[0]), _Cost(values[1], converged[1])

    def _asymmetry(
        self, key: Key[Array, ""], map_fit: MapFit, params: PyTree[Array], batch: MapBatch
    ) -> Float[Array, ""]:
        """E‖J − Jᵀ‖²/d, from one direction v of random signs per row: E_v |(J − Jᵀ) v|²."""
        x = batch.x
        if self.symmetry_weight is None:
            return jnp.zeros((), x.dtype)
        context = broadcast_context(batch.context, x)
        # J is made dimensionless by the input's scale here and the output's below. Rows do not mix,
        # so one derivative along v, forwards and backwards, gives J v and Jᵀ v of each row without
        # forming J.
        field = lambda x: map_fit.change(params, x, context) * map_fit.input_scale[0]
        v = jax.random.rademacher(key, x.shape, x.dtype)
        _, forwards = jax.jvp(field, (x,), (v,))
        backwards = jax.vjp(field, x)[1](v)[0]
        squares = ((forwards - backwards) / map_fit.output_scale) ** 2
        return jnp.mean(mean_over_rows(squares, batch.a))


def _zero_cost(like: Array) -> _Cost:
    """A cost of zero."""
    return _Cost(jnp.zeros_like(like), jnp.ones_like(like, bool))


def broadcast_context(
    context: Float[Array, " c"] | None, x: Float[Array, "b d"]
) -> Float[Array, "b c"] | None:
    """The context, repeated for each row of x."""
    return None if context is None else jnp.broadcast_to(context, (x.shape[0], *context.shape))
