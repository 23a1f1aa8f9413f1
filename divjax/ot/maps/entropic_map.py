"""The entropic map: the mean target of a point under Sinkhorn's plan, also at new points.

For c(x, y) = h(x − y) and the potential f of the entropic problem, T(z) = z − ∇h*(∇f(z)). Under the
squared Euclidean cost it is the mean of the targets, weighted by the plan at z. Its only parameter
is ε: a large ε shrinks the image, a small one keeps the sampling noise. Held-out rows select it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from divjax.core.checks import (
    check_callable,
    check_count,
    check_number,
    check_positive,
    check_shape,
)
from divjax.core.keys import own_key
from divjax.core.numerics import matmul, nan_unless, quotient, safe_log
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_numbers
from divjax.core.training import spread_rows
from divjax.core.types import Outcome, status_of
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.divergence import sinkhorn_divergence
from divjax.ot.entropic.options import Sinkhorn, check_solver, check_solver_type
from divjax.ot.entropic.problem import PointPairs
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.given_costs import checked_cost, grad_conjugate
from divjax.ot.maps.misfit import misfit
from divjax.ot.scales import mean_cost_within
from divjax.ot.weighted_samples import (
    Origins,
    WeightedSamples,
    normalised,
    split,
    squares_are_unresolved,
    weighted_samples,
)

__all__ = ["EntropicFit", "EntropicMap"]

# The limit on rows that select ε.
_FEW_ROWS = 1024


@pytree
class EntropicFit(Outcome):
    """The mean of the blocks' entropic maps, a function of rows.

    Attributes:
        results: the results of the blocks' problems, stacked, relative to the origins.
        targets: the blocks' rows of y, likewise.
        epsilon: the selected ε, in units of the cost.
        scores: the Sinkhorn divergence between images of held-out rows and held-out targets, one
            per candidate ε.
        misfit: the largest distance, over the features, between the distribution functions of
            images of held-out rows and of held-out targets, as a share of Kolmogorov and Smirnov's
            critical value at 10⁻³ (for independent samples of their effective sizes, with
            Bonferroni's correction). Shifts by a twentieth of a standard deviation do not count.
        status: `Status.CONVERGED` if every block's problem has, the selected score is finite, and
            the misfit is at most one: with a large ε all images are near the mean of y.
        at_edge: whether the selected ε is the smallest or the largest of several: a better one may
            lie beyond.
        origins: points of both spaces that samples are relative to.
        block_weights: the blocks' weights in the mean.
    """

    results: SinkhornResult
    targets: Float[Array, "blocks size d"]
    epsilon: Float[Array, ""]
    scores: Float[Array, " candidates"]
    misfit: Float[Array, ""]
    status: Int[Array, ""]
    at_edge: Bool[Array, ""]
    origins: Origins
    block_weights: Float[Array, " blocks"]

    def __call__(self, z: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
        """T(z), computed block by block.

        Args:
            z: points, one per row.

        Raises:
            ValueError: if z and the samples differ in the number of features.
        """
        points = as_numbers("z", z, exact=True)
        check_shape("z", points, "k", self.targets.shape[-1])
        return self._images(self.origins.source.subtract(points))

    @jax.jit
    def _images(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        of_block = lambda block: _images(block[0], block[1], z)
        images = jax.lax.map(of_block, (self.results, self.targets))
        return self.origins.target.add(jnp.tensordot(self.block_weights, images, 1))


@pytree
class EntropicMap:
    """An optimal map without a network: entropic maps of blocks of rows, averaged.

    T(z) = z − ∇h*(∇f(z)) for each block of `block_size` rows of both samples, and their mean. Under
    the squared Euclidean cost each is the gradient of a convex function, and so is the mean. Both
    samples give equally many blocks, so part of the larger sample may be unused.

    The selected ε is the candidate whose images of held-out rows are nearest to held-out targets in
    Sinkhorn divergence. Candidates are shares of the mean cost within the samples, ½ E c(X, X′) +
    ½ E c(Y, Y′) with costs beyond ten times the median cut, so that neither a shift of one sample
    nor a few outliers change them. The map is biased towards less spread, by O(ε) for smooth
    densities. Mapping a point takes O(`block_size` × d) operations per block. Memory is that of
    `sinkhorn` for one block.

    Attributes:
        cost: a cost with known ∇h*: `SqEuclidean`, `EuclideanPower`, `PNormPower`.
        epsilons: the candidates, as shares of the mean cost within the samples.
        score_epsilon: ε of the selecting divergence, likewise.
        block_size: the largest number of rows of each side in a problem, padding included.
        solver: the options for each Sinkhorn problem. Its own `block_size` is the number of rows of
            a block's costs in memory at a time, and errors are recorded in the fit's `results`.

    Raises:
        ValueError: if a number is out of range, or the cost has no ∇h*. A traced ε that is not
            positive is never selected.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 2))
        >>> found = jax.jit(EntropicMap().fit)(jax.random.key(1), x, 2 * y + 3)
        >>> found(jnp.zeros((1, 2))).round(0).tolist()
        [[3.0, 3.0]]

    References:
        Pooladian, Niles-Weed 2021, section 3: the map of a sample's entropic plan.
    """

    cost: Callable[..., Array] = SqEuclidean()
    epsilons: tuple[ArrayLike, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    score_epsilon: ArrayLike = 0.05
    block_size: int = static(default=4096)
    solver: Sinkhorn = Sinkhorn(tolerance=1e-2, max_iterations=300)

    def __post_init__(self):
        check_callable(cost=self.cost)
        grad_conjugate(self.cost)
        check_positive(epsilons=self.epsilons, score_epsilon=self.score_epsilon)
        check_count(1, block_size=self.block_size)
        check_solver_type(self.solver)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m d"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> EntropicFit:
        """Solve the problems, with ε selected by held-out rows.

        A fifth of the rows of each side, at most 1024, is held out.

        Args:
            key: the key for the split.
            x: samples of the source distribution.
            y: samples of the target distribution, unpaired with x.
            a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero
                are padding.
            b: weights of y.

        Returns:
            The map.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than two rows.
        """
        key = own_key(key)
        self._check_numbers()
        samples, origins = weighted_samples(x, y, a, b, apart=isinstance(self.cost, SqEuclidean))
        checked_cost(self.cost, samples.x)
        return self._fit(*split(key, samples), origins)

    def fit_split(
        self,
        train: tuple[Float[Numbers, "n d"], Float[Numbers, "m d"]],
        held_out: tuple[Float[Numbers, "k d"], Float[Numbers, "l d"]],
        train_weights: tuple[Float[Numbers, " n"] | None, Float[Numbers, " m"] | None] = (
            None,
            None,
        ),
        held_out_weights: tuple[Float[Numbers, " k"] | None, Float[Numbers, " l"] | None] = (
            None,
            None,
        ),
    ) -> EntropicFit:
        """`fit` with given rows for selecting ε.

        Args:
            train: rows of x and of y, in random order.
            held_out: further rows of x and of y.
            train_weights: the weights of the training rows of x and of y.
            held_out_weights: the weights of the held-out rows.
        """
        self._check_numbers()
        apart = isinstance(self.cost, SqEuclidean)
        samples, origins = weighted_samples(*train, *train_weights, apart=apart)
        tests = origins.relative(*held_out, *held_out_weights)
        return self._fit(samples, tests, origins)

    def _check_numbers(self) -> None:
        check_number(score_epsilon=self.score_epsilon)
        check_solver(self.solver)
        for epsilon in self.epsilons if isinstance(self.epsilons, (tuple, list)) else ():
            check_number(epsilons=epsilon)

    @jax.jit
    def _fit(
        self, samples: WeightedSamples, held_out: WeightedSamples, origins: Origins
    ) -> EntropicFit:
        x, y, a, b = samples
        # All ε are shares of this unit, which is invariant to a shift between the samples.
        unit = mean_cost_within(self.cost, x, y, a, b)

        # Each block has a share of each side's weights.
        count = -(-min(len(x), len(y)) // self.block_size)
        mixed = _each_side(_mixed_with_padding, samples) if count > 1 else samples
        blocks = jax.tree.map(lambda v: _blocks(v, count, self.block_size), mixed)
        tests = _each_side(lambda weights: spread_rows(weights, _FEW_ROWS), held_out)

        def problem(block: WeightedSamples, epsilon: Array) -> SinkhornResult:
            # A block's share of the mass is its weight in the mean of the maps. Within its problem
            # weights are normalised.
            weights = normalised(block.a), normalised(block.b)
            return sinkhorn(
                block.x, block.y, *weights, epsilon=epsilon, cost=self.cost, solver=self.solver
            )

        def score(epsilons: tuple[Array, Array]) -> Array:
            epsilon, own = epsilons
            # One block represents all, which are random parts of equal size. Neither the rows that
            # are mapped nor their targets are part of it.
            first = jax.tree.map(lambda v: v[0], blocks)
            images = _images(problem(first, epsilon), first.y, tests.x)
            weights = normalised(tests.a), normalised(tests.b)
            return sinkhorn_divergence(
                images, tests.y, *weights, epsilon=own, cost=self.cost, solver=self.solver
            ).value

        # The ε whose images of held-out rows are best.
        shares = jnp.asarray(self.epsilons, unit.dtype)
        if shares.ndim != 1 or not shares.size:
            raise ValueError(f"epsilons must be one or more numbers; got shape {shares.shape}.")
        valid = shares > 0
        epsilons = unit * nan_unless(valid, shares)
        # The numbers are traced: samples that are not finite are flagged instead of raising.
        own = jnp.broadcast_to(unit * self.score_epsilon, epsilons.shape)
        # Sequentially: under vmap all ε would iterate until the slowest has converged.
        scores = jax.lax.map(score, (epsilons, own))
        # If no score is finite, the first ε is taken and the status reports it.
        best = jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))
        chosen = epsilons[best]
        ends = jnp.nanmin(epsilons), jnp.nanmax(epsilons)
        at_edge = (ends[0] < ends[1]) & ((chosen == ends[0]) | (chosen == ends[1]))

        # The maps of all blocks at this ε, solved sequentially so that memory is that of one.
        each = jnp.broadcast_to(chosen, count)
        results = jax.lax.map(lambda args: problem(*args), (blocks, each))
        mass = jnp.ones(count, unit.dtype) if blocks.a is None else jnp.sum(blocks.a, axis=1)
        # Images by the first block, as for the scores.
        result, targets = jax.tree.map(lambda v: v[0], (results, blocks.y))
        of_tests = tests._replace(a=normalised(tests.a), b=normalised(tests.b))
        missed = misfit(_images(result, targets, tests.x), of_tests)
        status = status_of(
            converged=jnp.all(results.converged) & (missed <= 1),
            resolved=~squares_are_unresolved(x, y),
            finite=jnp.isfinite(scores[best]) & jnp.isfinite(results.value).all(),
            valid=jnp.any(valid),
        )
        weights = mass / jnp.sum(mass)
        return EntropicFit(
            results, blocks.y, chosen, scores, missed, status, at_edge, origins, weights
        )


def _images(
    result: SinkhornResult, targets: Float[Array, "m d"], z: Float[Array, "k d"]
) -> Float[Array, "k d"]:
    """The images of points under a problem's entropic map, also far from the samples."""
    problem = result.problem
    assert isinstance(problem.pairs, PointPairs)
    # Other costs need the potential's gradient. Under the squared distance the map is a mean of
    # targets, which is accurate at any distance.
    if not isinstance(problem.pairs.cost, SqEuclidean):
        return result.transport(z)
    images = lambda z: _barycentric_images(z, targets, result.g, problem.b, problem.epsilon)
    return map_row_blocks(images, targets.shape[0], z)


def _barycentric_images(
    z: Float[Array, "k d"],
    y: Float[Array, "m d"],
    g: Float[Array, " m"],
    b: Float[Array, " m"],
    epsilon: Float[Array, ""],
) -> Float[Array, "k d"]:
    """The means of y under the plan at z, with weights ∝ b_j exp((g_j − |z − y_j|²)/ε).

    Without the common term |z|², the exponents are (g_j − |y_j|² + 2 z·y_j)/ε. Far from the
    samples, |z|² would round away the differences between them, and with those the derivative.

    Args:
        z: points.
        y: targets.
        g: the potential of y.
        b: the weights of y, zero for rows to ignore.
        epsilon: ε.

    References:
        Pooladian, Niles-Weed 2021, eq. 8.
    """
    exponents = quotient(g - jnp.sum(y**2, axis=1) + 2 * matmul(z, y.T), epsilon)
    weights = jax.nn.softmax(exponents + safe_log(b), axis=1)
    return matmul(weights, y)


def _each_side(
    select: Callable[[Float[Array, " n"]], Int[Array, " k"]], samples: WeightedSamples
) -> WeightedSamples:
    """The rows of each side that are selected by its weights, in that order."""

    def chosen(rows: Array, weights: Array | None) -> tuple[Array, Array | None]:
        index = select(jnp.ones(len(rows)) if weights is None else weights)
        return rows[index], None if weights is None else weights[index]

    (x, a), (y, b) = chosen(samples.x, samples.a), chosen(samples.y, samples.b)
    return WeightedSamples(x, y, a, b)


def _mixed_with_padding(weights: Float[Array, " n"]) -> Int[Array, " n"]:
    """An order in which rows of weight zero are evenly spread, so that no block has only these."""
    padding = weights == 0
    # A row's rank among its kind, as a share of these.
    rank = jnp.where(padding, jnp.cumsum(padding), jnp.cumsum(~padding))
    number = jnp.where(padding, jnp.sum(padding), jnp.sum(~padding))
    return jnp.argsort(rank / number, stable=True)


def _blocks(rows: Float[Array, "n ..."], count: int, most: int) -> Array:
    """`count` blocks of equal size, at most `most` rows each."""
    size = min(len(rows) // count, most)
    return rows[: count * size].reshape(count, size, *rows.shape[1:])
