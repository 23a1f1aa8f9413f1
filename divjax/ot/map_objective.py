"""What a map network minimises: how badly it fits, and how much more than need be it pays.

Each term leaves out what no map changes, x and y to themselves, which `constants` adds where the
number itself is wanted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core.pytrees import pytree, static
from divjax.ot.costs import paired_costs
from divjax.ot.divergence import self_transport
from divjax.ot.monge_gap import monge_gap_from_samples
from divjax.ot.network_map import MapFit
from divjax.ot.sinkhorn import sinkhorn

__all__ = ["MapBatch", "MapObjective", "MapTerms"]


class MapBatch(NamedTuple):
    """Rows of both laws.

    Attributes:
        x: rows that are carried.
        started: the start's images of them.
        y: rows of the law they are carried to.
        context: of the problem they belong to.
        other: further rows that are carried and the start's images of them, for self terms of
            independent batches; None for self terms of x alone.
    """

    x: Float[Array, "b d"]
    started: Float[Array, "b d"]
    y: Float[Array, "m d"]
    context: Float[Array, " c"] | None = None
    other: tuple[Float[Array, "b d"], Float[Array, "b d"]] | None = None


class MapTerms(NamedTuple):
    """S, M and the asymmetry, and whether Sinkhorn's problems have converged."""

    divergence: Float[Array, ""]
    gap: Float[Array, ""]
    asymmetry: Float[Array, ""]
    converged: Bool[Array, ""]


class _Cost(NamedTuple):
    """What transport costs, and whether that is known to the tolerance."""

    value: Float[Array, ""]
    converged: Bool[Array, ""]


@pytree
class MapObjective:
    """S_ε(T(x), y)/u + λ M(T)/u + w E‖J − Jᵀ‖²/d, as `MongeMap` describes it.

    Attributes:
        cost: a symmetric cost.
        unit: u.
        epsilon: of the divergence, in units of the cost.
        gap_epsilon: of the gap, likewise; None for the same.
        gap_weight: λ.
        symmetry_weight: w, or None for no such term.
        gap_kind: of `monge_gap`, or None for no gap.
        max_iterations: of each of Sinkhorn's problems.
        tolerance: of each of Sinkhorn's problems.
    """

    cost: Any
    unit: Float[Array, ""]
    epsilon: ArrayLike
    gap_epsilon: ArrayLike | None
    gap_weight: ArrayLike
    symmetry_weight: ArrayLike | None
    gap_kind: str | None = static()
    max_iterations: int = static()
    tolerance: ArrayLike

    def value(self, terms: MapTerms) -> Float[Array, ""]:
        """The weighted sum."""
        value = terms.divergence
        if self.gap_kind is not None:
            value = value + self.gap_weight * terms.gap
        value = value / self.unit
        if self.symmetry_weight is not None:
            value = value + self.symmetry_weight * terms.asymmetry
        return value

    def terms(
        self, key: Key[Array, ""], map_fit: MapFit, params: PyTree[Array], batch: MapBatch
    ) -> MapTerms:
        """The terms of a batch, without what no map changes; the key is for the asymmetry."""

        def carried(x: Array, started: Array) -> Array:
            return map_fit.image(params, x, started, _for_each(batch.context, x))

        images = carried(batch.x, batch.started)
        if batch.other is None:
            spread = self._to_itself(images, self.epsilon)
        else:
            spread = self._between(images, carried(*batch.other), self.epsilon)
        across, gap = self._across_and_gap(batch, images, spread)
        converged = across.converged & spread.converged & gap.converged
        asymmetry = self._asymmetry(key, map_fit, params, batch)
        return MapTerms(across.value - spread.value / 2, gap.value, asymmetry, converged)

    def constants(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], other: Float[Array, "k d"] | None
    ) -> MapTerms:
        """What `terms` leaves out, where `other` are further rows of y if self terms have them."""
        if other is None:
            of_y = self._to_itself(y, self.epsilon)
        else:
            of_y = self._between(y, other, self.epsilon)
        of_x = _nothing(of_y.value)
        if self.gap_kind == "debiased":
            of_x = self._to_itself(x, self._epsilon_of_gap)
        converged = of_y.converged & of_x.converged
        return MapTerms(-of_y.value / 2, of_x.value / 2, jnp.zeros_like(of_y.value), converged)

    @property
    def _epsilon_of_gap(self) -> ArrayLike:
        return self.epsilon if self.gap_epsilon is None else self.gap_epsilon

    def _across_and_gap(self, batch: MapBatch, images: Array, spread: _Cost) -> tuple[_Cost, _Cost]:
        """OT(T(x), y), and the gap less ½ OT(x, x) if it is the debiased one."""
        x, y, epsilon = batch.x, batch.y, self._epsilon_of_gap
        if self.gap_kind is None:
            across = self._between(images, y, self.epsilon)
            return across, _nothing(across.value)
        if self.gap_kind != "debiased":
            options = self._solver | {"epsilon": epsilon, "kind": self.gap_kind}
            gap = monge_gap_from_samples(x, images, **options)
            return self._between(images, y, self.epsilon), _Cost(gap.value, gap.converged)
        # `monge_gap` would solve OT(T(x), T(x)) once more.
        own = spread
        if batch.other is not None or self.gap_epsilon is not None:
            own = self._to_itself(images, epsilon)
        across, transport = self._two((images, y, self.epsilon), (x, images, epsilon))
        displacement = jnp.mean(paired_costs(self.cost, x, images))
        value = displacement - transport.value + own.value / 2
        return across, _Cost(value, transport.converged & own.converged)

    @property
    def _solver(self) -> dict[str, Any]:
        iterations = {"max_iterations": self.max_iterations, "tolerance": self.tolerance}
        return {"cost": self.cost} | iterations

    def _between(self, x: Array, y: Array, epsilon: ArrayLike) -> _Cost:
        result = sinkhorn(x, y, epsilon=epsilon, **self._solver)
        return _Cost(result.value, result.converged)

    def _to_itself(self, x: Array, epsilon: ArrayLike) -> _Cost:
        result = self_transport(x, epsilon=epsilon, **self._solver)
        return _Cost(result.value, result.converged)

    def _two(self, first: tuple, second: tuple) -> tuple[_Cost, _Cost]:
        """Two problems `(x, y, epsilon)`."""
        if jax.tree.map(jnp.shape, first) != jax.tree.map(jnp.shape, second):
            return self._between(*first), self._between(*second)
        # One program for both takes half as long to compile, and no longer to run.
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
        values, converged = jax.lax.map(lambda problem: self._between(*problem), both)
        return _Cost(values[0], converged[0]), _Cost(values[1], converged[1])

    def _asymmetry(
        self, key: Key[Array, ""], map_fit: MapFit, params: PyTree[Array], batch: MapBatch
    ) -> Float[Array, ""]:
        """E‖J − Jᵀ‖²/d, from one direction v of random signs a row: E_v |(J − Jᵀ) v|²."""
        x = batch.x
        if self.symmetry_weight is None:
            return jnp.zeros((), x.dtype)
        context = _for_each(batch.context, x)
        field = lambda x: map_fit.change(params, x, context) * map_fit.input_scale[0]
        v = jax.random.rademacher(key, x.shape, x.dtype)
        _, forwards = jax.jvp(field, (x,), (v,))
        backwards = jax.vjp(field, x)[1](v)[0]
        return jnp.mean(((forwards - backwards) / map_fit.output_scale) ** 2)


def _nothing(like: Array) -> _Cost:
    """A cost of zero."""
    return _Cost(jnp.zeros_like(like), jnp.ones_like(like, bool))


def _for_each(context: Float[Array, " c"] | None, x: Float[Array, "b d"]) -> Any:
    """The context, a row for each of x."""
    return None if context is None else jnp.broadcast_to(context, (x.shape[0], *context.shape))
