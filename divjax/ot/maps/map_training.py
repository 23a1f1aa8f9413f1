"""Batches and held-out rows of a map network in training."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from divjax.ot.maps.map_objective import MapBatch, MapObjective, MapTerms, broadcast_context
from divjax.ot.maps.misfit import misfit
from divjax.ot.maps.network_map import MapFit
from divjax.ot.weighted_samples import WeightedSamples, batch_of_rows, normalised

__all__ = ["HeldOut", "MapTrainer", "held_out"]


class HeldOut(NamedTuple):
    """Held-out rows of one problem, or of all, stacked; for independent batches, in two halves.

    `other_y` is the second half of y, None otherwise, and `other_b` its weights.
    """

    batch: MapBatch
    other_y: Float[Array, "m d"] | None
    other_b: Float[Array, " m"] | None


@dataclasses.dataclass(frozen=True)
class MapTrainer:
    """The loss of a batch, and the terms of the held-out rows, of g problems that share a map.

    Attributes:
        objective: the loss, with its weights and units.
        map_fit: the initial map, of which the parameters are replaced.
        train: the training rows of all problems.
        images: their images under the start.
        context: the problems' contexts.
        held: the held-out rows of all problems.
        held_out_key: draws the directions of the asymmetry, the same at each check, so that only
            the parameters differ.
        num_batches: 2 for self terms between independent batches, otherwise 1.
        batch_size: the rows of a batch, fewer if there are fewer.
    """

    objective: MapObjective
    map_fit: MapFit
    train: WeightedSamples
    images: Float[Array, "g n d"]
    context: Float[Array, "g c"] | None
    held: HeldOut
    held_out_key: Key[Array, ""]
    num_batches: int
    batch_size: int

    def loss(self, key: Key[Array, ""], params: PyTree[Array]) -> Float[Array, ""]:
        """The objective on a batch of one problem."""
        which_key, x_key, y_key, direction_key = jax.random.split(key, 4)
        which = jax.random.randint(which_key, (), 0, self.train.x.shape[0])
        batch = self._batch(which, x_key, y_key)
        return self.objective.value(
            self.objective.terms(direction_key, self.map_fit, params, batch)
        )

    def _batch(
        self, which: Int[Array, ""], x_key: Key[Array, ""], y_key: Key[Array, ""]
    ) -> MapBatch:
        x, y, images = self.train.x, self.train.y, self.images
        # All batches of x are parts of one draw, which must not exceed the sample.
        size = min(self.batch_size, x.shape[1] // self.num_batches, y.shape[1])
        of_problem = lambda weights: None if weights is None else weights[which]
        # Rows are drawn by their weights, and have equal weight in a batch. Both batches are parts
        # of one draw, in which rows of equal weight are distinct.
        drawn = batch_of_rows(x_key, x.shape[1], self.num_batches * size, of_problem(self.train.a))
        first, *others = drawn.reshape(self.num_batches, size)
        return MapBatch(
            x=x[which, first],
            initial_images=images[which, first],
            y=y[which, batch_of_rows(y_key, y.shape[1], size, of_problem(self.train.b))],
            context=of_problem(self.context),
            other=(x[which, others[0]], images[which, others[0]]) if others else None,
        )

    def constants(self) -> MapTerms:
        """The held-out terms that do not depend on the map."""
        return jax.lax.map(lambda held: self.objective.constants(*held), self.held)

    def validate(self, params: PyTree[Array], constants: MapTerms) -> MapTerms:
        """The complete terms of the held-out rows, averaged over problems."""

        def terms(held: HeldOut) -> MapTerms:
            return self.objective.terms(self.held_out_key, self.map_fit, params, held.batch)

        each = jax.lax.map(terms, self.held)
        # With the constants these are the complete S and M, as reported.
        means = jax.tree.map(lambda one, two: jnp.mean(one + two), each, constants)
        return means._replace(converged=jnp.all(each.converged & constants.converged))

    def misfit(
        self, params: PyTree[Array], held: WeightedSamples, images: Float[Array, "g k d"]
    ) -> Float[Array, ""]:
        """The largest misfit of the problems, given their images under the start."""

        def of_problem(problem: tuple[WeightedSamples, Array, Array | None]) -> Array:
            rows, initial, context = problem
            context = broadcast_context(context, rows.x)
            mapped = self.map_fit.image(params, rows.x, initial, context)
            return misfit(mapped, rows, images.shape[0])

        return jnp.max(jax.lax.map(of_problem, (held, images, self.context)))


def held_out(
    held: WeightedSamples,
    images: Float[Array, "g n d"],
    context: Float[Array, "g c"] | None,
    independent: bool,
) -> HeldOut:
    """The held-out rows of all problems; for independent batches in halves.

    Validation uses the objective of training, with self terms between independent rows.
    """
    x, y, a, b = held
    # Self terms between the same rows need no second batch.
    if not independent:
        return HeldOut(MapBatch(x, images, y, context, None, a, b), None, None)
    first, second = _halves(x.shape[1], a)
    y_first, y_second = _halves(y.shape[1], b)

    # Each half is a sample of its own, with weights that sum to one.
    def half(weights: Float[Array, "g n"] | None, rows: np.ndarray) -> Float[Array, "g k"] | None:
        return None if weights is None else jax.vmap(normalised)(weights[:, rows])

    batch = MapBatch(
        x=x[:, first],
        initial_images=images[:, first],
        y=y[:, y_first],
        context=context,
        other=(x[:, second], images[:, second]),
        a=half(a, first),
        b=half(b, y_first),
        other_a=half(a, second),
    )
    return HeldOut(batch, y[:, y_second], half(b, y_second))


def _halves(n: int, weights: Float[Array, "g n"] | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two halves, which for an odd number share one. Rows of weight zero come last."""
    rows = np.arange(n)
    if weights is None:
        return rows[: n - n // 2], rows[n // 2 :]
    return rows[::2], (rows + 1)[::2] % n
