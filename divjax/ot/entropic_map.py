"""The entropic map: where Sinkhorn's plan sends a point on average, also points not seen.

For c(x, y) = h(x − y) and the potential f of the entropic problem, T(z) = z − ∇h*(∇f(z)); under the
squared Euclidean cost it is the mean of the targets, weighted by the plan at z. One number is to be
chosen, ε: too large shrinks the image, too small leaves the noise of the sample. Held-out rows do.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from divjax.core.checks import check_callable, check_count, check_key, check_positive
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.training import hold_out, thinned, training_samples
from divjax.ot.costs import SqEuclidean, checked_cost, cost_matrix, grad_conjugate
from divjax.ot.divergence import sinkhorn_divergence
from divjax.ot.sinkhorn import SinkhornResult, sinkhorn

__all__ = ["EntropicFit", "EntropicMap"]

# Rows that the mean cost is from, and that choose ε, at most.
_FEW_ROWS = 1024


class EntropicFit(NamedTuple):
    """The mean of the entropic maps of blocks of rows, a function of rows.

    Attributes:
        results: of the blocks' problems, stacked.
        epsilon: the ε that was chosen, in units of the cost.
        scores: the Sinkhorn divergence between images of held-out rows and held-out targets, for
            each ε that was tried.
        converged: whether every block's problem has, and the chosen score is finite.
    """

    results: SinkhornResult
    epsilon: Float[Array, ""]
    scores: Float[Array, " candidates"]
    converged: Bool[Array, ""]

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """T(z), a block's images at a time.

        Args:
            z: points, a row each.

        Raises:
            ValueError: if they have another number of features than the samples.
        """
        return jnp.mean(jax.lax.map(lambda result: result.transport(z), self.results), axis=0)


@pytree
class EntropicMap:
    """An optimal map without a network: entropic maps of blocks of rows, averaged.

    T(z) = z − ∇h*(∇f(z)) for each block of `block_size` rows of both samples, and their mean: under
    the squared Euclidean cost each is the gradient of a convex function, and so is the mean. Of the
    larger sample only as many rows as there are blocks of are used.

    ε is that of `epsilons` whose images of held-out rows are nearest to held-out targets in
    Sinkhorn divergence. The map is biased towards less spread, by O(ε) for smooth densities; a
    point costs `block_size` × d numbers for each block. Memory is that of `sinkhorn` for one block.

    Attributes:
        cost: one whose ∇h* is known: `SqEuclidean`, `EuclideanPower`, `PNormPower`.
        epsilons: that are tried, as shares of the mean cost.
        score_epsilon: ε of the divergence that chooses, likewise.
        block_size: rows of each side in a problem, at most.
        max_iterations: of each of Sinkhorn's problems.
        tolerance: of each of Sinkhorn's problems.

    Raises:
        ValueError: if a number is out of range, or the cost has no ∇h*. A traced ε that is not
            positive is never chosen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 2))
        >>> found = jax.jit(EntropicMap().fit)(jax.random.key(1), x, 2 * y + 3)
        >>> found(jnp.zeros((1, 2))).round(0).tolist()
        [[3.0, 3.0]]

    References:
        Pooladian, Niles-Weed 2021, section 3: the map of a sample's entropic plan.
    """

    cost: Any = SqEuclidean()
    epsilons: tuple[ArrayLike, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    score_epsilon: ArrayLike = 0.05
    block_size: int = static(default=4096)
    max_iterations: int = static(default=300)
    tolerance: ArrayLike = 1e-2

    def __post_init__(self):
        check_callable(cost=self.cost)
        grad_conjugate(self.cost)
        check_positive(epsilons=self.epsilons, score_epsilon=self.score_epsilon)
        check_positive(tolerance=self.tolerance)
        check_count(1, block_size=self.block_size, max_iterations=self.max_iterations)

    def fit(
        self, key: Key[Array, ""], x: Float[Array, "n d"], y: Float[Array, "m d"]
    ) -> EntropicFit:
        """Solve the problems, with the ε that held-out rows choose.

        A fifth of the rows of each side, at most 1024, is held out.

        Args:
            key: for the split.
            x: samples of the law that is carried.
            y: samples of the law it is carried to, in no relation to the rows of x.

        Returns:
            The map.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than two rows.
        """
        check_key(key)
        x, y = training_samples(x, y)
        checked_cost(self.cost, x[0])
        x_key, y_key = jax.random.split(key)
        (x, x_held), (y, y_held) = hold_out(x_key, x), hold_out(y_key, y)
        return self.fit_split((x, y), (x_held, y_held))

    def fit_split(
        self,
        train: tuple[Float[Array, "n d"], Float[Array, "m d"]],
        held_out: tuple[Float[Array, "k d"], Float[Array, "l d"]],
    ) -> EntropicFit:
        """`fit` where the rows that choose ε are given.

        Args:
            train: rows of x and of y, in random order.
            held_out: further ones.
        """
        options: Any = {"cost": self.cost, "tolerance": self.tolerance}
        options["max_iterations"] = self.max_iterations
        mean_cost = jnp.mean(cost_matrix(self.cost, *(thinned(z, _FEW_ROWS) for z in train)))
        count = -(-min(map(len, train)) // self.block_size)
        sizes = [min(len(rows) // count, self.block_size) for rows in train]
        blocks = tuple(
            rows[: count * size].reshape(count, size, -1)
            for rows, size in zip(train, sizes, strict=True)
        )
        tests = tuple(thinned(rows, _FEW_ROWS) for rows in held_out)

        def problem(x: Array, y: Array, epsilon: Array) -> SinkhornResult:
            return sinkhorn(x, y, epsilon=epsilon, **options)

        def score(epsilon: Array) -> Array:
            images = problem(blocks[0][0], blocks[1][0], epsilon).transport(tests[0])
            scale = mean_cost * self.score_epsilon
            return sinkhorn_divergence(images, tests[1], epsilon=scale, **options)

        shares = jnp.asarray(self.epsilons, mean_cost.dtype)
        if shares.ndim != 1 or not shares.size:
            raise ValueError(f"epsilons must be one or more numbers; got shape {shares.shape}.")
        epsilons = mean_cost * nan_unless(shares > 0, shares)
        scores = jax.lax.map(score, epsilons)
        best = jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))
        results = jax.lax.map(lambda block: problem(block[0], block[1], epsilons[best]), blocks)
        converged = jnp.all(results.converged) & jnp.isfinite(scores[best])
        return EntropicFit(results, epsilons[best], scores, converged)
