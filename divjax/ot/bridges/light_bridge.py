"""Fitting a Light Schrödinger bridge to two samples: EM with closed-form updates.

The formulas are those of `divjax.ot.schrodinger`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import (
    check_choice,
    check_count,
    check_full_precision,
    check_nonnegative,
    check_number,
    check_positive,
    check_same_features,
)
from divjax.core.keys import own_key
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree, select, static
from divjax.core.samples import Numbers, centered_samples
from divjax.core.training import random_rows
from divjax.core.types import status_of
from divjax.ot.bridges import mixture_potential as mixture
from divjax.ot.bridges.schrodinger import SchrodingerBridge
from divjax.ot.scales import winsorised
from divjax.ot.weighted_samples import finite_rows, mean_over_rows, shares, uniform_weights

__all__ = ["LightSchrodingerBridge"]

# The limit on rows for the start, and the initial ε there as a share of the data's scale.
_START_ROWS, _INITIAL_EPSILON = 2**14, 0.5
# Newton's steps for the weights per step of the fit, and the step size of the averaged moments.
_BALANCE_STEPS, _LAST_STEP_SIZE = 16, 0.25
# A component with fewer rows of either end is not changed.
_LEAST_ROWS = 4
# The mass that components with so many rows must hold together.
_LEAST_FITTED = 0.8
# The share of rows that are no outliers whatever their values: a target's smaller modes are not.
_USUAL = 0.98


class _End(NamedTuple):
    """Rows at one end, and their weights with sum one."""

    x: Float[Array, "n d"]
    shares: Float[Array, " n"]

    def mean(self, values: Float[Array, "n ..."]) -> Float[Array, "..."]:
        """The weighted mean over rows."""
        return mean_over_rows(values, self.shares)

    @property
    def effective_size(self) -> Array:
        """The effective sample size, 1/Σ w²."""
        return 1 / jnp.sum(self.shares**2)


_Ends = tuple[_End, _End]
_Averages = tuple[mixture.ComponentMoments, mixture.ComponentMoments]
# The last parameters and moments, the best parameters, and their loss.
_Carry = tuple[mixture.Potential, _Averages, mixture.Potential, Array]


def _about_the_means(
    x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None
) -> tuple[_Ends, Array, Array]:
    """Each sample less its mean, with its weights, and the means with their rounding errors."""
    centers_and_rows = [
        centered_samples({name: weights}, **{name: rows})
        for name, rows, weights in (("x", x, a), ("y", y, b))
    ]
    check_same_features(centers_and_rows[0][1], centers_and_rows[1][1])
    for name, (_, rows) in zip(("x", "y"), centers_and_rows, strict=True):
        check_full_precision(name, rows)
    dtype = jnp.result_type(*(rows for _, rows in centers_and_rows))
    # A shift of either end only adds a constant velocity to the bridge: the origins absorb it, in
    # two parts to keep the precision of NumPy's float64.
    ends, origins = [], []
    for (center, rows), (name, weights) in zip(centers_and_rows, (("a", a), ("b", b)), strict=True):
        rows = jax.lax.stop_gradient(jnp.asarray(rows, dtype))
        weights = shares(name, weights, rows)
        # Moments are means of squares, all of which a single wrong row would determine.
        rows = finite_rows(rows, weights)
        weights = _without_outliers(rows, weights)
        end = _End(finite_rows(rows, weights), weights)
        mean = end.mean(end.x)
        ends.append(end._replace(x=end.x - mean))
        origins.append(center.moved(mean))
    highs = jnp.stack([origin.high for origin in origins])
    lows = jnp.stack([origin.low for origin in origins])
    return (ends[0], ends[1]), highs, lows


@jax.jit
def _without_outliers(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> Float[Array, " n"]:
    """The weights of rows of which no feature is an outlier, and zero for the others."""
    weights = uniform_weights(rows) if weights is None else weights
    far = jnp.any(winsorised(rows, weights, share=_USUAL) != rows, axis=1)
    weights = jnp.where(far, 0, weights)
    return weights / jnp.sum(weights)


class _Descent(NamedTuple):
    """The last parameters and moments, the best parameters and their loss, and all losses."""

    last: mixture.Potential
    averages: _Averages
    best: mixture.Potential
    lowest: Float[Array, ""]
    losses: Float[Array, " steps"]


def _some_rows(key: Key[Array, ""], end: _End) -> _End:
    """All rows, or a random subsample of those with weight if there are many."""
    if end.x.shape[0] <= _START_ROWS:
        return end
    chosen = random_rows(key, end.shares, _START_ROWS)
    weights = end.shares[chosen]
    return _End(end.x[chosen], weights / jnp.sum(weights))


@pytree
class LightSchrodingerBridge:
    """The Light Schrödinger bridge between two samples: v has `num_components` Gaussians.

    The objective, minimised over the mixtures, is E log c(X₀) − E log v(X₁), which is the
    divergence KL(π*‖π) from the true plan to the mixture's, up to a constant. Its stationary points
    match moments: with responsibilities w_k(x), the normalised terms of c, and ρ_k(y), those of v,

        E w_k = E ρ_k,    E ρ_k Y = r_k E w_k + S_k E w_k X,    S_k C₀ S_k + ε S_k = C₁,

    where C₀ and C₁ are the covariances of X and Y under them: each component is the closed-form
    bridge between two Gaussians. As for a mixture the fit is EM. Each step computes
    responsibilities, moments, closed-form updates, and Newton's steps for the weights a_k, which
    are the duals of a transport problem and make the masses agree. Moments are averaged over steps,
    as the two ends depend on each other and would overshoot. Each step uses all rows, blockwise if
    there are many, and a dozen steps replace thousands of stochastic gradients.

    The fit starts from clusters of y, with `num_steps` annealing steps on at most 16 384 rows of
    each sample, drawn at random. There ε decreases from half the data's scale: started at a small
    ε, with responsibilities near zero or one, a few components would take all of the mass.

    A row with a value farther from its feature's median than 4.3 times the distance within which
    98 % of the values lie has no weight: typing errors in less than a fiftieth of the rows do not
    change the bridge.

    A component to which fewer than four rows of either end belong is not updated, as their
    covariances would be singular; if a fifth of the mass is in such components, the status is
    `MAX_ITERATIONS`: take fewer components.

    There may be several minima: with fewer potentials than the target has clusters, or for small ε,
    compare the last of `losses` over a few keys (vmap `fit`). Gradients of the fit in the samples
    are stopped; it is differentiable in ε and the ridge, through all of its steps.
    Time is O(num_steps (n + m) k d), times d for full covariances; memory is O((n + m)(k + d)).

    Attributes:
        num_components: k.
        epsilon: ε > 0, in squared units of the data.
        covariance: "diagonal" or "full" S_k.
        num_steps: the number of steps of the fit, and of the annealing before it.
        ridge: added to the variance of each feature of the target, as a share of it: it keeps a
            component with few rows from collapsing onto them.

    Raises:
        ValueError: if a number is out of range or the covariance's kind is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 2)) * jnp.array([1.0, 0.5])
        >>> method = LightSchrodingerBridge(2, 0.1, num_steps=20)
        >>> bridge = jax.jit(method.fit)(jax.random.key(1), x, y + 3)
        >>> ends = bridge.sample(jax.random.key(2), x)
        >>> bool(jnp.allclose(ends.mean(0), 3, atol=0.1)), bool(bridge.finite)
        (True, True)

    References:
        Korotin, Gushchin, Burnaev 2024, eq. 9, propositions 3.1 to 3.3.
        Bunne, Hsieh, Cuturi, Krause 2023, theorem 3: the bridge between Gaussians.
    """

    num_components: int = static()
    epsilon: ArrayLike
    covariance: str = static(default="diagonal")
    num_steps: int = static(default=40)
    ridge: ArrayLike = 1e-4

    def __post_init__(self):
        check_count(1, num_components=self.num_components, num_steps=self.num_steps)
        check_positive(epsilon=self.epsilon)
        check_nonnegative(ridge=self.ridge)
        check_choice(("diagonal", "full"), covariance=self.covariance)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m d"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> SchrodingerBridge:
        """The bridge from the distribution of x to that of y.

        Args:
            key: the key for the start.
            x: samples at time 0.
            y: samples at time 1, unpaired with x.
            a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero
                are padding.
            b: weights of y.

        Raises:
            ValueError: if a sample is empty or not a matrix, the numbers of features differ, or
                weights do not fit.
        """
        key = own_key(key)
        check_number(epsilon=self.epsilon, ridge=self.ridge)
        return self._fit(key, *_about_the_means(x, y, a, b))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _fit(
        self, key: Key[Array, ""], ends: _Ends, origins: Array, origins_low: Array
    ) -> SchrodingerBridge:
        """`fit` of samples less their means, after its checks."""
        dtype = ends[0].x.dtype
        epsilon, ridge = jnp.asarray(self.epsilon, dtype), jnp.asarray(self.ridge, dtype)
        # The mean square of each feature, to which the ridge is relative.
        squares = ends[0].mean(ends[0].x ** 2), ends[1].mean(ends[1].x ** 2)
        least = 1e-3 * jnp.finfo(dtype).tiny ** 0.5
        variance_floor = ridge * squares[1] + least

        # In the unit of ε: one end's deviation times the other's.
        scale = jnp.sqrt(jnp.mean(squares[0]) * jnp.mean(squares[1]))
        start = self._anneal(key, ends, scale, epsilon, variance_floor)
        v, losses, imbalance, fitted = self._refine(start, ends, epsilon, variance_floor)

        # A target whose variance is too small is below the floor.
        resolved = jnp.all((squares[1] == 0) | (squares[1] > 1e3 * least))
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((v, losses))])
        valid = (epsilon > 0) & (ridge >= 0)
        # A few rows far from all others may be a component of their own.
        status = status_of(
            converged=fitted > _LEAST_FITTED, resolved=resolved, finite=finite.all(), valid=valid
        )
        return SchrodingerBridge(epsilon, *v, origins, losses, imbalance, status, origins_low)

    def _anneal(
        self, key: Key[Array, ""], ends: _Ends, scale: Array, epsilon: Array, variance_floor: Array
    ) -> _Descent:
        """EM on a subsample, from clusters of y, while ε decreases from half the scale.

        Moments are averaged, as the two ends depend on each other and full steps may overshoot.
        """
        cluster_key, *row_keys = jax.random.split(key, 3)
        subsample = _some_rows(row_keys[0], ends[0]), _some_rows(row_keys[1], ends[1])
        initial_epsilon = jnp.maximum(_INITIAL_EPSILON * scale, epsilon)
        fractions = jnp.linspace(1, 0, self.num_steps, dtype=epsilon.dtype)
        epsilons = epsilon * (initial_epsilon / epsilon) ** fractions
        # 2/(i + 2) is one at first, so that the initial zero moments are not part of the averages.
        counts = jnp.arange(self.num_steps, dtype=epsilon.dtype)
        step_sizes = jnp.maximum(2 / (counts + 2), _LAST_STEP_SIZE)
        v = self._start(cluster_key, subsample, initial_epsilon, variance_floor)
        unassigned = jnp.zeros((1, self.num_components), epsilon.dtype)
        zero = mixture.component_moments(ends[0].x[:1], unassigned, self.covariance == "full")
        return self._descend(v, (zero, zero), subsample, epsilons, step_sizes, variance_floor)

    def _refine(
        self, start: _Descent, ends: _Ends, epsilon: Array, variance_floor: Array
    ) -> tuple[mixture.Potential, Array, Array, Array]:
        """Steps at ε on all rows: the best parameters, the losses, imbalance, and fitted mass."""
        epsilons = jnp.full(self.num_steps, epsilon)
        step_sizes = jnp.full_like(epsilons, _LAST_STEP_SIZE)
        descent = self._descend(
            start.last, start.averages, ends, epsilons, step_sizes, variance_floor
        )
        # A loss is computed before its step: the last parameters still need one.
        v, _, last, _ = self._balanced(descent.last, ends, epsilon)
        v = select(last < descent.lowest, v, descent.best)
        # Once more for the selected parameters: the last loss and the imbalance are theirs.
        v, responsibilities, loss, imbalance = self._balanced(v, ends, epsilon)
        # Components of fewer rows than their moments need have kept the parameters of the start.
        masses = [side.mean(weights) for side, weights in zip(ends, responsibilities, strict=True)]
        mass = jnp.minimum(*masses)
        fitted = jnp.sum(jnp.where(mass > self._least_mass(ends), mass, 0))
        return v, jnp.append(descent.losses, loss), imbalance, fitted

    def _least_mass(self, samples: _Ends) -> ArrayLike:
        """The mass of the rows that a component's moments need; a single one always has all."""
        if self.num_components == 1:
            return 0.0
        return _LEAST_ROWS / jnp.minimum(*(side.effective_size for side in samples))

    def _balanced(
        self, v: mixture.Potential, samples: _Ends, epsilon: Array
    ) -> tuple[mixture.Potential, tuple[Array, Array], Array, Array]:
        """Balance the weights; also responsibilities, the loss before, and the imbalance after."""
        (start, end), columns = samples, v.means.size
        # Blockwise, as an intermediate has k × d numbers per row.
        terms = map_row_blocks(lambda y: mixture.log_terms(v, y, epsilon), columns, end.x)
        of_normalizer = lambda x: mixture.normalizer_log_terms(v, x, epsilon)
        normalizer_terms = map_row_blocks(of_normalizer, columns, start.x)
        logs = [
            side.mean(jax.nn.logsumexp(each, 1))
            for side, each in ((start, normalizer_terms), (end, terms))
        ]
        # ρ_k(y) and w_k(x) of the class's docstring. The weights change until E w_k = E ρ_k.
        ends = jax.nn.softmax(terms, axis=1)
        mass = end.mean(ends)
        change = mixture.balance(normalizer_terms, mass, _BALANCE_STEPS, start.shares)
        starts = jax.nn.softmax(normalizer_terms + change, axis=1)
        imbalance = jnp.sum(jnp.abs(start.mean(starts) - mass)) / 2
        v = v._replace(log_weights=v.log_weights + change)
        return v, (starts, ends), logs[0] - logs[1], imbalance

    def _descend(
        self,
        v: mixture.Potential,
        averages: _Averages,
        samples: _Ends,
        epsilons: Array,
        step_sizes: Array,
        variance_floor: Array,
    ) -> _Descent:
        """One step of EM per ε, whose moments are averaged with the given step sizes."""
        full = self.covariance == "full"
        # As a share of the mass, for the end with fewer rows.
        least_mass = self._least_mass(samples)

        def step(carry: _Carry, inputs: tuple[Array, Array, Array]) -> tuple[_Carry, Array]:
            epsilon, before, size = inputs
            v, averages, best, lowest = carry
            # The ε log a_k vary little with ε.
            v = v._replace(log_weights=v.log_weights * (before / epsilon))
            # Steps may increase the loss: the best parameters so far are kept.
            v, responsibilities, loss, _ = self._balanced(v, samples, epsilon)
            better = loss < lowest
            best = select(better, v, best)
            new = tuple(
                mixture.component_moments(side.x, weights, full, side.shares)
                for side, weights in zip(samples, responsibilities, strict=True)
            )
            averages = jax.tree.map(lambda old, new: old + size * (new - old), averages, new)
            v = mixture.m_step(v, averages, epsilon, variance_floor, least_mass)
            return (v, averages, best, jnp.where(better, loss, lowest)), loss

        before = jnp.concatenate([epsilons[:1], epsilons[:-1]])
        carry = v, averages, v, jnp.asarray(jnp.inf, v.means.dtype)
        (v, averages, best, lowest), losses = jax.lax.scan(
            step, carry, (epsilons, before, step_sizes)
        )
        return _Descent(v, averages, best, lowest, losses)

    def _start(
        self, key: Key[Array, ""], samples: _Ends, epsilon: Array, variance_floor: Array
    ) -> mixture.Potential:
        """Clusters of y, each with the Gaussian bridge from all of x as its scale."""
        start, end = samples
        centers, members = mixture.clusters(key, end.x, self.num_components, end.shares)
        # Pooled over clusters, as one of few rows has no reliable variance of its own.
        within = end.mean((end.x - members @ centers) ** 2) + variance_floor
        scale = mixture.gaussian_scales(start.mean(start.x**2)[None], within[None], epsilon)
        scales = jnp.broadcast_to(scale, centers.shape)
        scales = scales if self.covariance == "diagonal" else jax.vmap(jnp.diag)(scales)
        v = mixture.Potential(jnp.zeros_like(centers[:, 0]), centers, scales)
        n = jnp.sum((end.shares > 0).astype(end.x.dtype))
        # One row is added to each, to avoid zero target masses, which no weights attain.
        target = (n * end.mean(members) + 1) / (n + self.num_components)
        terms = mixture.normalizer_log_terms(v, start.x, epsilon)
        return v._replace(log_weights=mixture.balance(terms, target, 30, start.shares))
