"""Initial maps in closed form for a network to correct, and their selection by held-out rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.pytrees import pytree
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.ot.costs import Euclidean, SqEuclidean
from divjax.ot.given_costs import cost_matrix, grad_conjugate
from divjax.ot.maps.entropic_map import EntropicMap
from divjax.ot.maps.gaussian_samples import gaussian_start
from divjax.ot.weighted_samples import WeightedSamples, uniform_weights

__all__ = ["STARTS", "ChosenMap", "IdentityMap", "initial_maps", "nearest"]

STARTS = ("auto", "identity", "gaussian", "entropic")


@pytree
class IdentityMap:
    """T(z) = z."""

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The rows themselves."""
        return z


@pytree
class ChosenMap:
    """One of several maps.

    Attributes:
        maps: all of them, functions of rows.
        index: the index of the chosen one.

    Example:
        >>> import jax.numpy as jnp
        >>> ChosenMap((IdentityMap(), lambda z: 2 * z), 1)(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]
    """

    maps: tuple[Callable[..., Array], ...]
    index: Int[ArrayLike, ""]

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The images by the chosen map."""
        # Bound by a default, as a closure over the loop variable would use its last value in all.
        branches = [lambda z, of=each: of(z) for each in self.maps]
        return jax.lax.switch(self.index, branches, z)


def initial_maps(
    name: str,
    cost: Callable[..., Array],
    epsilon: ArrayLike,
    train: WeightedSamples,
    held_out: WeightedSamples,
) -> tuple[Callable[[Array], Array], ...]:
    """The start of this name, or for "auto" all that the cost allows.

    The Gaussian start is optimal only for the squared distance. The entropic one requires a cost
    with known ∇h*, and its ε is selected by the held-out rows.
    """
    maps = []
    if name in ("auto", "identity"):
        maps.append(IdentityMap())
    if name == "gaussian" or (name == "auto" and isinstance(cost, SqEuclidean)):
        maps.append(gaussian_start(train))
    if name == "entropic" or (name == "auto" and _has_conjugate(cost)):
        samples = [((z.x, z.y), (z.a, z.b)) for z in (train, held_out)]
        (rows, weights), (held_rows, held_weights) = samples
        # Its ε is scored at the ε of the divergence to be minimised.
        method = EntropicMap(cost, score_epsilon=epsilon)
        maps.append(method.fit_split(rows, held_rows, weights, held_weights))
    return tuple(maps)


def _has_conjugate(cost: Callable[..., Array]) -> bool:
    try:
        grad_conjugate(cost)
    except ValueError:
        return False
    return True


def nearest(
    maps: tuple[Callable[[Array], Array], ...], held_out: WeightedSamples
) -> Callable[[Array], Array]:
    """The map whose images of held-out rows have the least energy distance from held-out y.

    The distance is averaged over problems "g k d". Entropic divergences of so few rows are
    unsuitable: with self terms of the same rows they prefer too little spread, with those of halves
    they are noisy. A map with a non-finite energy distance is not chosen.

    References:
        Székely, Rizzo 2013: the energy distance, here its unbiased estimate.
    """
    # A single candidate is chosen whatever its distance.
    if len(maps) == 1:
        return maps[0]

    def distance(images: Float[Array, "g k d"]) -> Float[Array, ""]:
        of_problem = lambda problem: _energy(*problem)
        return jnp.mean(jax.lax.map(of_problem, (images, *held_out[1:])))

    # Sequentially: one program serves all problems.
    images = jnp.stack([jax.lax.map(each, held_out.x) for each in maps])
    distances = jax.lax.map(distance, images)
    return ChosenMap(maps, jnp.argmin(jnp.where(jnp.isfinite(distances), distances, jnp.inf)))


def _energy(
    x: Float[Array, "n d"], y: Float[Array, "m d"], a: Array | None, b: Array | None
) -> Float[Array, ""]:
    """2 E|X − Y| − E|X − X′|, the energy distance without the term that depends only on y."""
    # Pairs of a row with itself, a share Σ a² of all, have distance zero: without them the mean
    # over pairs is unbiased.
    a = uniform_weights(x) if a is None else a
    b = uniform_weights(y) if b is None else b
    across, within = cost_matrix(Euclidean(), x, y), cost_matrix(Euclidean(), x, x)
    return 2 * a @ across @ b - a @ within @ a / mass_of_distinct_pairs(a)
