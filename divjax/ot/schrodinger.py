"""The Light Schrödinger bridge: a bridge between two samples whose every part is in closed form.

Among the processes with given laws at times 0 and 1, the Schrödinger bridge is the nearest, in
Kullback–Leibler divergence, to Brownian motion of variance ε. Its coupling of the two ends is
entropic transport with the cost ½|x − y|², and is π(y|x) = exp(x·y/ε) v(y)/c(x) for one positive v.
Take for v a mixture Σ_k a_k N(r_k, ε S_k). Then the normalizer is

    c(x) = Σ_k a_k exp((xᵀ S_k x + 2 r_kᵀ x)/(2ε)),

π(·|x) is the mixture of N(r_k + S_k x, ε S_k) with the terms of c(x) for weights, and the drift is
a mixture too: with B_k = ((1 − t) I + t S_k)⁻¹, b_k(x, t) = B_k ((S_k − I) x + r_k) and

    log w_k(x, t) = log a_k + ½ log det B_k + (x·b_k + x·B_k r_k − t r_k·B_k r_k)/(2ε),

it is Σ_k softmax(log w)_k b_k, the expectation of (X₁ − x)/(1 − t) given X_t = x, finite at t = 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from divjax.core import linalg
from divjax.core.checks import (
    check_choice,
    check_count,
    check_full_precision,
    check_key,
    check_matrix,
    check_nonnegative,
    check_positive,
    check_same_features,
    check_shape,
    check_unit_interval,
)
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree, select, static
from divjax.ot import mixture_potential as mixture

__all__ = ["ConditionalPlan", "LightSchrodingerBridge", "SchrodingerBridge"]

# Rows that the start is found by, and the first ε there as a share of the data's scale.
_START_ROWS, _WARMEST = 2**14, 0.5
# Newton's steps for the weights in a step of the fit, and its size in the averaged moments.
_BALANCE_STEPS, _LAST_STEP_SIZE = 16, 0.25
# A component with fewer rows of either end is not changed.
_LEAST_ROWS = 4
# Of the two ends.
_Samples = tuple[Float[Array, "n d"], Float[Array, "m d"]]
_Averages = tuple[mixture.Moments, mixture.Moments]


class _Descent(NamedTuple):
    """The last parameters and moments, the best parameters and their loss, and all losses."""

    last: mixture.Potential
    averages: _Averages
    best: mixture.Potential
    lowest: Float[Array, ""]
    losses: Float[Array, " steps"]


def _some_rows(key: Key[Array, ""], x: Float[Array, "n d"]) -> Float[Array, "k d"]:
    """All rows or, of many, some at random."""
    if x.shape[0] <= _START_ROWS:
        return x
    return x[jax.random.choice(key, x.shape[0], (_START_ROWS,), replace=False)]


def _time(t: Any, dtype: Any) -> Array:
    """Times; not a number where a traced one is outside of [0, 1]."""
    t = jnp.asarray(t, dtype)
    return jnp.where((t >= 0) & (t <= 1), t, jnp.nan)


class ConditionalPlan(NamedTuple):
    """Where mass goes from each x: a mixture of Gaussians, the same covariances for all x.

    Attributes:
        log_weights: normalised, a row an x.
        means: of the components.
        covariances: ε S_k, the variances where they are diagonal.
    """

    log_weights: Float[Array, "n k"]
    means: Float[Array, "n k d"]
    covariances: Float[Array, "k d"] | Float[Array, "k d d"]

    def moments(self) -> tuple[Float[Array, "n d"], Float[Array, "n d d"]]:
        """The mean and the covariance of each mixture."""
        weights = jnp.exp(self.log_weights)
        mean = jnp.einsum("nk,nki->ni", weights, self.means)
        apart = self.means - mean[:, None]
        within = self.covariances
        within = within if within.ndim == 3 else jax.vmap(jnp.diag)(within)
        between = jnp.einsum("nki,nkj->nij", weights[:, :, None] * apart, apart)
        return mean, jnp.einsum("nk,kij->nij", weights, within) + between


@pytree
class SchrodingerBridge:
    """A bridge given by its potential; what `LightSchrodingerBridge.fit` returns.

    Both ends are described relative to an origin each, o₀ and o₁, which changes nothing about the
    bridge but a constant velocity: π(y|x) = exp((x − o₀)·(y − o₁)/ε) v(y)/c(x).

    All methods are differentiable in x and t and in the bridge's own arrays; rows go by blocks
    where n × k × d is large.

    Attributes:
        epsilon: ε, the variance that Brownian motion gathers from time 0 to 1.
        log_weights: log a_k.
        means: r_k, relative to o₁.
        scales: S_k, "k d" where they are diagonal and "k d d" else.
        origins: o₀ and o₁.
        losses: the objective before each step and, last, that of the bridge, the best of all; none
            for a bridge made by hand.
        imbalance: the total variation between the components' masses seen from either end, zero
            at a stationary point of the objective.
        finite: whether all of the fit is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> bridge = SchrodingerBridge(0.5, jnp.zeros(1), jnp.ones((1, 2)), 0.5 * jnp.ones((1, 2)))
        >>> bridge.conditional_plan(jnp.array([[2.0, 0.0]])).means.tolist()  # r + S x
        [[[2.0, 1.0]]]
        >>> bridge.drift(jnp.array([[2.0, 0.0]]), 0.0).tolist()  # r + S x − x
        [[0.0, 1.0]]
    """

    epsilon: ArrayLike
    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    scales: Float[Array, "k d"] | Float[Array, "k d d"]
    origins: Float[Array, "2 d"] | None = None
    losses: Float[Array, " steps+1"] | None = None
    imbalance: ArrayLike = 0.0
    finite: Bool[Array, ""] | bool = True

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    @property
    def _potential(self) -> mixture.Potential:
        return mixture.Potential(self.log_weights, self.means, self.scales)

    @property
    def _epsilon(self) -> Array:
        epsilon = jnp.asarray(self.epsilon, self.means.dtype)
        return nan_unless(epsilon > 0, epsilon)

    def _origin(self, t: Any) -> Any:
        """Where the origin is at time t."""
        if self.origins is None:
            return jnp.zeros((), self.means.dtype)
        return (1 - t) * self.origins[0] + t * self.origins[1]

    def _by_blocks(self, function: Any, *rows: Array) -> Any:
        return map_row_blocks(function, self.means.size, *rows)

    def _check(self, **points: Any) -> None:
        k, d = self.means.shape
        check_shape("log_weights", self.log_weights, k)
        check_shape("scales", self.scales, k, *(d,) * (self.scales.ndim - 1))
        for name, rows in points.items():
            check_shape(name, rows, "n", self.means.shape[1])
            check_matrix(**{name: rows})

    @jax.default_matmul_precision("highest")
    def log_potential(self, x1: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The log v at the rows of x1.

        Args:
            x1: ends.
        """
        self._check(x1=x1)
        terms = lambda y: mixture.log_terms(self._potential, y - self._origin(1), self._epsilon)
        return self._by_blocks(lambda y: jax.nn.logsumexp(terms(y), axis=1), x1)

    @jax.default_matmul_precision("highest")
    def log_normalizer(self, x0: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The log c at the rows of x0.

        Args:
            x0: starts.
        """
        self._check(x0=x0)
        terms = lambda x: mixture.normalizer_log_terms(
            self._potential, x - self._origin(0), self._epsilon
        )
        return self._by_blocks(lambda x: jax.nn.logsumexp(terms(x), axis=1), x0)

    @jax.default_matmul_precision("highest")
    def conditional_plan(self, x0: Float[Array, "n d"]) -> ConditionalPlan:
        """The law of the end given the start, for each row of x0; memory O(n k d).

        Args:
            x0: starts.
        """
        self._check(x0=x0)
        v, x = self._potential, x0 - self._origin(0)
        log_weights = jax.nn.log_softmax(mixture.normalizer_log_terms(v, x, self._epsilon), axis=1)
        means = mixture.times_rows(v.scales, x) + v.means + self._origin(1)
        return ConditionalPlan(log_weights, means, self._epsilon * v.scales)

    @jax.default_matmul_precision("highest")
    def sample(self, key: Key[Array, ""], x0: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """An end for each start, drawn from the plan; the component's draw has no gradient.

        Args:
            key: for the draws.
            x0: starts.
        """
        check_key(key)
        self._check(x0=x0)
        choice_key, noise_key = jax.random.split(key)
        k = self.log_weights.shape[0]
        gumbel = jax.random.gumbel(choice_key, (x0.shape[0], k), x0.dtype)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)

        def draw(x: Array, gumbel: Array, noise: Array) -> Array:
            log_weights, means, covariances = self.conditional_plan(x)
            chosen = jax.nn.one_hot(jnp.argmax(log_weights + gumbel, axis=1), k, dtype=x.dtype)
            if covariances.ndim == 2:
                ends = means + jnp.sqrt(covariances) * noise[:, None]
            else:
                factors = linalg.cholesky(covariances)
                ends = means + jnp.einsum("nj,kij->nki", noise, factors)
            return jnp.einsum("nk,nki->ni", chosen, ends)

        return self._by_blocks(draw, x0, gumbel, noise)

    def sample_at(
        self, key: Key[Array, ""], x0: Float[Array, "n d"], t: Float[ArrayLike, "..."]
    ) -> Float[Array, "n d"]:
        """A state at time t for each start, exactly: a Brownian bridge to an end from the plan.

        Args:
            key: for ends and bridges.
            x0: starts.
            t: times in [0, 1], one for all or one for each row.
        """
        check_key(key)
        check_unit_interval(t=t)
        end_key, noise_key = jax.random.split(key)
        x1 = self.sample(end_key, x0)
        t = _time(t, x0.dtype)
        check_shape("t", t, *((x0.shape[0],) if t.ndim else ()))
        t = t.reshape(-1, 1)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        spread = t * (1 - t) * self._epsilon
        # At the ends the variance's root has no derivative.
        inside = spread > 0
        deviation = jnp.where(inside, jnp.sqrt(jnp.where(inside, spread, 1)), 0)
        return t * x1 + (1 - t) * x0 + deviation * noise

    @jax.default_matmul_precision("highest")
    def drift(self, x: Float[Array, "n d"], t: Float[ArrayLike, ""]) -> Float[Array, "n d"]:
        """g(x, t), with which dX = g(X, t) dt + √ε dW runs from law to law.

        Args:
            x: states.
            t: the time in [0, 1]; vmap over rows for one time each.
        """
        self._check(x=x)
        check_unit_interval(t=t)
        check_shape("t", jnp.asarray(t))
        t = _time(t, x.dtype)

        def mean_velocity(x: Array) -> Array:
            log_weights, velocities = mixture.velocities(
                self._potential, x - self._origin(t), t, self._epsilon
            )
            return jnp.einsum("nk,nki->ni", jax.nn.softmax(log_weights, axis=1), velocities)

        return self._by_blocks(mean_velocity, x) + (self._origin(1) - self._origin(0))

    def sde(
        self, key: Key[Array, ""], x0: Float[Array, "n d"], num_steps: int
    ) -> Float[Array, "steps+1 n d"]:
        """Paths of dX = g(X, t) dt + √ε dW from x0 to time 1, by Euler and Maruyama.

        The error of the law at time 1 is O(1/num_steps); `sample` and `sample_at` have none.

        Args:
            key: for the noise.
            x0: starts.
            num_steps: of size 1/num_steps.

        Returns:
            The states at times 0, 1/num_steps, …, 1, the first of them x0.
        """
        check_key(key)
        check_count(1, num_steps=num_steps)
        self._check(x0=x0)
        size = 1 / num_steps

        def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            key, t = inputs
            noise = jax.random.normal(key, x.shape, x.dtype)
            x = x + size * self.drift(x, t) + jnp.sqrt(size * self._epsilon) * noise
            return x, x

        times = jnp.arange(num_steps, dtype=x0.dtype) / num_steps
        _, path = jax.lax.scan(step, x0, (jax.random.split(key, num_steps), times))
        return jnp.concatenate([x0[None], path])


@pytree
class LightSchrodingerBridge:
    """The Light Schrödinger bridge between two samples: v is a mixture of `num_potentials`.

    What is minimised over the mixtures is E log c(X₀) − E log v(X₁), which is the divergence
    KL(π*‖π) from the true plan's to the mixture's, up to a constant. Its stationary points are
    matched moments: with responsibilities w_k(x), the normalised terms of c, and ρ_k(y), of v,

        E w_k = E ρ_k,    E ρ_k Y = r_k E w_k + S_k E w_k X,    S_k C₀ S_k + ε S_k = C₁,

    C₀ and C₁ being the covariances of X and Y under them: each component is the closed-form bridge
    between two Gaussians. The fit is EM, as for a mixture: responsibilities; moments, averaged over
    steps, so that the two ends, which answer each other, do not overshoot; closed-form updates; and
    Newton's steps for the weights a_k, which are the duals of a transport problem and make the
    masses agree. All rows count in each step, by blocks where there are many, and a dozen steps do
    what stochastic gradients take thousands for.

    The start comes from clusters of x1 and as many steps again, on at most 16 384 rows of each
    sample drawn at random, in which ε comes down from half the data's scale: started at a small ε,
    where responsibilities are all or nothing, a few components would take all of the mass.

    There may be several minima: with fewer potentials than the target has clusters, or for small ε,
    compare the last of `losses` over a few keys (vmap `fit`). The fit is a constant to
    differentiation. Time is O(num_steps (n + m) k d), times d for full covariances; memory is
    O((n + m)(k + d)).

    Attributes:
        num_potentials: k.
        epsilon: ε > 0, in the squared unit of the data.
        covariance: "diagonal" or "full" S_k.
        num_steps: of the fit, and of the cooling before it.
        ridge: added to the target's variances, as a share of the mean one: what keeps a component
            with few rows from collapsing onto them.

    Raises:
        ValueError: if a number is out of range or the covariance's kind is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x0, x1 = jax.random.normal(jax.random.key(0), (2, 1000, 2)) * jnp.array([1.0, 0.5])
        >>> method = LightSchrodingerBridge(2, 0.1, num_steps=20)
        >>> bridge = jax.jit(method.fit)(jax.random.key(1), x0, x1 + 3)
        >>> ends = bridge.sample(jax.random.key(2), x0)
        >>> bool(jnp.allclose(ends.mean(0), 3, atol=0.1)), bool(bridge.finite)
        (True, True)

    References:
        Korotin, Gushchin, Burnaev 2024, eq. 9, propositions 3.1 to 3.3.
        Bunne, Hsieh, Cuturi, Krause 2023, theorem 3: the bridge between Gaussians.
    """

    num_potentials: int = static()
    epsilon: ArrayLike
    covariance: str = static(default="diagonal")
    num_steps: int = static(default=40)
    ridge: ArrayLike = 1e-4

    def __post_init__(self):
        check_count(1, num_potentials=self.num_potentials, num_steps=self.num_steps)
        check_positive(epsilon=self.epsilon)
        check_nonnegative(ridge=self.ridge)
        check_choice(("diagonal", "full"), covariance=self.covariance)

    @jax.default_matmul_precision("highest")
    def fit(
        self, key: Key[Array, ""], x0: Float[Array, "n d"], x1: Float[Array, "m d"]
    ) -> SchrodingerBridge:
        """The bridge from the law of x0 to that of x1.

        Args:
            key: for the start.
            x0: samples at time 0.
            x1: samples at time 1, in no relation to the rows of x0.

        Raises:
            ValueError: if a sample is not a non-empty matrix or the features differ in number.
        """
        check_key(key)
        check_matrix(x0=x0, x1=x1)
        check_same_features(x0, x1, ("x0", "x1"))
        for name, rows in (("x0", x0), ("x1", x1)):
            check_full_precision(name, rows)
        dtype = jnp.result_type(x0, x1)
        x0, x1 = (jax.lax.stop_gradient(jnp.asarray(x, dtype)) for x in (x0, x1))
        epsilon, ridge = (jnp.asarray(v, dtype) for v in (self.epsilon, self.ridge))
        origins = jnp.stack([jnp.mean(x0, axis=0), jnp.mean(x1, axis=0)])
        x0, x1 = x0 - origins[0], x1 - origins[1]
        variance_floor = ridge * jnp.mean(x1**2) + jnp.finfo(dtype).tiny ** 0.5

        cluster_key, *row_keys = jax.random.split(key, 3)
        samples = x0, x1
        few = _some_rows(row_keys[0], x0), _some_rows(row_keys[1], x1)
        warm = jnp.maximum(_WARMEST * jnp.sqrt(jnp.mean(x0**2) * jnp.mean(x1**2)), epsilon)
        cooling = epsilon * (warm / epsilon) ** jnp.linspace(1, 0, self.num_steps, dtype=dtype)
        # Both ends answer each other: steps at full length may overshoot for small ε.
        sizes = jnp.maximum(2 / (jnp.arange(self.num_steps, dtype=dtype) + 2), _LAST_STEP_SIZE)
        v = self._start(cluster_key, few, warm, variance_floor)
        nothing = jnp.zeros((1, self.num_potentials), dtype)
        none = mixture.moments_of(x0[:1], nothing, self.covariance == "full")
        start = self._descend(v, (none, none), few, cooling, sizes, variance_floor)
        rest = jnp.full_like(cooling, epsilon), jnp.full_like(sizes, _LAST_STEP_SIZE)
        descent = self._descend(start.last, start.averages, samples, *rest, variance_floor)
        balanced = lambda v: self._balanced(v, samples, epsilon)
        v, _, last, _ = balanced(descent.last)
        better = last < descent.lowest
        v = select(better, v, descent.best)
        v, _, loss, imbalance = balanced(v)
        losses = jnp.append(descent.losses, loss)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((v, losses))])
        return SchrodingerBridge(epsilon, *v, origins, losses, imbalance, finite.all())

    def _balanced(
        self, v: mixture.Potential, samples: _Samples, epsilon: Array
    ) -> tuple[mixture.Potential, tuple[Array, Array], Array, Array]:
        """Weights for which both ends agree on masses; responsibilities; the loss before."""
        (x0, x1), columns = samples, v.means.size
        terms = map_row_blocks(lambda y: mixture.log_terms(v, y, epsilon), columns, x1)
        of_normalizer = lambda x: mixture.normalizer_log_terms(v, x, epsilon)
        normalizer_terms = map_row_blocks(of_normalizer, columns, x0)
        logs = [jnp.mean(jax.nn.logsumexp(each, 1)) for each in (normalizer_terms, terms)]
        ends = jax.nn.softmax(terms, axis=1)
        mass = jnp.mean(ends, axis=0)
        change = mixture.balance(normalizer_terms, mass, _BALANCE_STEPS)
        starts = jax.nn.softmax(normalizer_terms + change, axis=1)
        imbalance = jnp.sum(jnp.abs(jnp.mean(starts, axis=0) - mass)) / 2
        v = v._replace(log_weights=v.log_weights + change)
        return v, (starts, ends), logs[0] - logs[1], imbalance

    def _descend(
        self,
        v: mixture.Potential,
        averages: _Averages,
        samples: _Samples,
        epsilons: Array,
        step_sizes: Array,
        variance_floor: Array,
    ) -> _Descent:
        """A step of EM at each ε, the averages moved by its size."""
        full, least_mass = self.covariance == "full", _LEAST_ROWS / min(map(len, samples))

        def step(carry: Any, inputs: tuple[Array, Array, Array]) -> Any:
            epsilon, before, size = inputs
            v, averages, best, lowest = carry
            # The ε log a_k are what changes little with ε.
            v = v._replace(log_weights=v.log_weights * (before / epsilon))
            # Steps are not certain to descend: the best parameters so far are carried along.
            v, responsibilities, loss, _ = self._balanced(v, samples, epsilon)
            better = loss < lowest
            best = select(better, v, best)
            new = tuple(
                mixture.moments_of(z, weights, full)
                for z, weights in zip(samples, responsibilities, strict=True)
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
        self, key: Key[Array, ""], samples: _Samples, epsilon: Array, variance_floor: Array
    ) -> mixture.Potential:
        """Clusters of x1, each with the Gaussian bridge from all of x0 for its scale."""
        x0, x1 = samples
        centers, members = mixture.clusters(key, x1, self.num_potentials)
        within = jnp.mean((x1 - members @ centers) ** 2, axis=0) + variance_floor
        scale = mixture.gaussian_scales(jnp.mean(x0**2, axis=0)[None], within[None], epsilon)
        scales = jnp.broadcast_to(scale, centers.shape)
        scales = scales if self.covariance == "diagonal" else jax.vmap(jnp.diag)(scales)
        v = mixture.Potential(jnp.zeros_like(centers[:, 0]), centers, scales)
        target = (jnp.sum(members, axis=0) + 1) / (x1.shape[0] + self.num_potentials)
        return v._replace(
            log_weights=mixture.balance(mixture.normalizer_log_terms(v, x0, epsilon), target, 30)
        )
