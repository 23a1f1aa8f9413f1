"""The Light Schrödinger bridge: a bridge between two samples with all quantities in closed form.

Among the processes with given distributions at times 0 and 1, the Schrödinger bridge is nearest to
Brownian motion of variance ε in Kullback–Leibler divergence. Its coupling of the two ends is
entropic transport with the cost ½|x − y|², and is π(y|x) = exp(x·y/ε) v(y)/c(x) for one positive v.
For v a mixture Σ_k a_k N(r_k, ε S_k), the normalizer is

    c(x) = Σ_k a_k exp((xᵀ S_k x + 2 r_kᵀ x)/(2ε)),

π(·|x) is the mixture of N(r_k + S_k x, ε S_k) with the terms of c(x) as weights, and the drift is
a mixture too: with B_k = ((1 − t) I + t S_k)⁻¹, b_k(x, t) = B_k ((S_k − I) x + r_k) and

    log w_k(x, t) = log a_k + ½ log det B_k + (x·b_k + x·B_k r_k − t r_k·B_k r_k)/(2ε),

it is Σ_k softmax(log w)_k b_k, the expectation of (X₁ − x)/(1 − t) given X_t = x, finite at t = 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import (
    check_count,
    check_matrix,
    check_positive,
    check_shape,
    check_unit_interval,
)
from divjax.core.keys import own_key
from divjax.core.numerics import nan_unless, safe_sqrt
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers, as_numbers, as_samples, owned
from divjax.core.types import Outcome, Status, summary
from divjax.ot.bridges import mixture_potential as mixture

__all__ = ["ConditionalPlan", "SchrodingerBridge"]


def _time(t: ArrayLike, dtype: DTypeLike) -> Array:
    """Times, NaN for a traced time outside of [0, 1]."""
    t = jnp.asarray(owned(t), dtype)
    return nan_unless((t >= 0) & (t <= 1), t)


@pytree
class ConditionalPlan:
    """The distribution of the end given x: a mixture of Gaussians with covariances shared by all x.

    Attributes:
        log_weights: normalised log weights, one row per x.
        relative_means: the means of the components, less the origin.
        covariances: ε S_k, the variances "k d" if they are diagonal.
        origin: the origin of the ends, to float64's precision.
    """

    log_weights: Float[Array, "n k"]
    relative_means: Float[Array, "n k d"]
    covariances: Float[Array, "k d"] | Float[Array, "k d d"]
    origin: Center

    def __repr__(self) -> str:
        return summary(self)

    @property
    def means(self) -> Float[Array, "n k d"]:
        """The means of the components."""
        return self.origin.add(self.relative_means)

    def moments(self) -> tuple[Float[Array, "n d"], Float[Array, "n d d"]]:
        """The mean and the covariance of each mixture."""
        weights = jnp.exp(self.log_weights)
        mean = jnp.einsum("nk,nki->ni", weights, self.relative_means)
        # The law of total covariance: within the components, and between their means. Far from zero
        # only means relative to the origin have differences.
        apart = self.relative_means - mean[:, None]
        within = self.covariances
        within = within if within.ndim == 3 else jax.vmap(jnp.diag)(within)
        between = jnp.einsum("nki,nkj->nij", weights[:, :, None] * apart, apart)
        return self.origin.add(mean), jnp.einsum("nk,kij->nij", weights, within) + between


@pytree
class SchrodingerBridge(Outcome):
    """A bridge given by its potential, the result of `LightSchrodingerBridge.fit`.

    Each end is described relative to an origin, o₀ or o₁, which only adds a constant velocity to
    the bridge: π(y|x) = exp((x − o₀)·(y − o₁)/ε) v(y)/c(x).

    All methods are differentiable in x and t and in the bridge's own arrays. They work blockwise
    if n × k × d is large.

    Attributes:
        epsilon: ε, the variance of the Brownian motion from time 0 to 1.
        log_weights: log a_k.
        means: r_k, relative to o₁.
        scales: S_k, "k d" if they are diagonal and "k d d" otherwise. With a negative variance all
            methods give NaN.
        origins: o₀ and o₁.
        losses: the objective before each step and, last, that of the bridge, the best of all, empty
            for a bridge that was not fitted.
        imbalance: the total variation distance between the components' masses at both ends, zero at
            a stationary point of the objective.
        status: `Status.CONVERGED`, or the reason for the fit's failure.
        origins_low: the rounding errors of the origins, for float64 from NumPy far from zero.

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
    status: Int[ArrayLike, ""] = int(Status.CONVERGED)
    origins_low: Float[Array, "2 d"] | None = None

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    @property
    def _potential(self) -> mixture.Potential:
        # A negative variance would go undetected in c(x), which takes no root of it.
        variances, least = self.scales, 0.0
        if variances.ndim == 3:
            variances, _ = linalg.eigh(jax.lax.stop_gradient(variances))
            rounding = 10 * variances.shape[1] * jnp.finfo(variances.dtype).eps
            least = -rounding * jnp.max(jnp.abs(variances), axis=1, keepdims=True)
        scales = nan_unless(jnp.all(variances >= least), self.scales)
        return mixture.Potential(self.log_weights, self.means, scales)

    @property
    def _epsilon(self) -> Array:
        epsilon = jnp.asarray(self.epsilon, self.means.dtype)
        return nan_unless(epsilon > 0, epsilon)

    def _center(self, t: ArrayLike) -> Center:
        """The origin at time t."""
        zero = jnp.zeros((2, self.means.shape[1]), self.means.dtype)
        highs = zero if self.origins is None else self.origins
        lows = zero if self.origins_low is None else self.origins_low
        start, end = map(Center, highs, lows)
        # A straight line from o₀ to o₁, along which a bridge between shifted ends is shifted.
        return start.towards(end, t)

    def _relative(self, x: Numbers, t: ArrayLike) -> Float[Array, "n d"]:
        """States at time t relative to the origin there."""
        return self._center(t).subtract(x)

    def _by_blocks(self, function: Callable[..., PyTree[Array]], *rows: Array) -> PyTree[Array]:
        # An intermediate has k × d numbers per row.
        return map_row_blocks(function, self.means.size, *rows)

    def _check(self, **points: Numbers) -> None:
        k, d = self.means.shape
        check_shape("log_weights", self.log_weights, k)
        check_shape("scales", self.scales, k, *(d,) * (self.scales.ndim - 1))
        for name, rows in points.items():
            rows = as_numbers(name, rows)
            check_shape(name, rows, "n", self.means.shape[1])
            check_matrix(**{name: rows})

    def log_potential(self, y: Float[Numbers, "n d"]) -> Float[Array, " n"]:
        """The log v at the rows of y.

        Args:
            y: points at time 1.
        """
        self._check(y=y)
        return self._log_potential(self._relative(y, 1))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _log_potential(self, y: Float[Array, "n d"]) -> Float[Array, " n"]:
        # By log-sum-exp, as single terms leave the range of numbers for a small ε.
        terms = lambda y: mixture.log_terms(self._potential, y, self._epsilon)
        return self._by_blocks(lambda y: jax.nn.logsumexp(terms(y), axis=1), y)

    def log_normalizer(self, x: Float[Numbers, "n d"]) -> Float[Array, " n"]:
        """The log c at the rows of x.

        Args:
            x: points at time 0.
        """
        self._check(x=x)
        return self._log_normalizer(self._relative(x, 0))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _log_normalizer(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        terms = lambda x: mixture.normalizer_log_terms(self._potential, x, self._epsilon)
        return self._by_blocks(lambda x: jax.nn.logsumexp(terms(x), axis=1), x)

    @jax.default_matmul_precision("highest")
    def conditional_plan(self, x: Float[Numbers, "n d"]) -> ConditionalPlan:
        """The distribution of the end given the start, for each row of x, in O(n k d) memory.

        Args:
            x: points at time 0.
        """
        self._check(x=x)
        return self._plan(self._relative(x, 0))

    def _plan(self, x: Float[Array, "n d"]) -> ConditionalPlan:
        """The plan, from states relative to the first origin."""
        v = self._potential
        # π(·|x) is a mixture of N(r_k + S_k x, ε S_k), with the terms of c(x) as weights.
        log_weights = jax.nn.log_softmax(mixture.normalizer_log_terms(v, x, self._epsilon), axis=1)
        means = mixture.times_rows(v.scales, x) + v.means
        return ConditionalPlan(log_weights, means, self._epsilon * v.scales, self._center(1))

    def sample(self, key: Key[Array, ""], x: Float[Numbers, "n d"]) -> Float[Array, "n d"]:
        """One end per start, drawn from the plan; the choice of component has no gradient.

        Args:
            key: the key for the draws.
            x: points at time 0.
        """
        key = own_key(key)
        self._check(x=x)
        return self._sample(key, self._relative(x, 0))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _sample(self, key: Key[Array, ""], x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        choice_key, noise_key = jax.random.split(key)
        k = self.log_weights.shape[0]
        # Drawn for all rows at once, so that draws do not depend on the block size.
        gumbel = jax.random.gumbel(choice_key, (x.shape[0], k), x.dtype)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)

        def draw(x: Array, gumbel: Array, noise: Array) -> Array:
            plan = self._plan(x)
            means, covariances = plan.relative_means, plan.covariances
            # The argmax of log weights with Gumbel noise is a draw from them. As a product with a
            # constant the choice passes on the derivative of the end.
            chosen = jax.nn.one_hot(jnp.argmax(plan.log_weights + gumbel, axis=1), k, dtype=x.dtype)
            if covariances.ndim == 2:
                ends = means + jnp.sqrt(covariances) * noise[:, None]
            else:
                factors = linalg.cholesky(covariances)
                ends = means + jnp.einsum("nj,kij->nki", noise, factors)
            return jnp.einsum("nk,nki->ni", chosen, ends)

        return self._center(1).add(self._by_blocks(draw, x, gumbel, noise))

    def sample_at(
        self, key: Key[Array, ""], x: Float[Numbers, "n d"], t: Float[Numbers, "..."]
    ) -> Float[Array, "n d"]:
        """A state at time t for each start, exactly: a Brownian bridge to an end from the plan.

        Args:
            key: the key for ends and bridges.
            x: points at time 0.
            t: times in [0, 1], one for all or one for each row.
        """
        key = own_key(key)
        check_unit_interval(t=t)
        end_key, noise_key = jax.random.split(key)
        y = self.sample(end_key, x)
        (x,) = as_samples(x=x)
        t = _time(t, x.dtype)
        check_shape("t", t, *((x.shape[0],) if t.ndim else ()))
        t = t.reshape(-1, 1)
        # Between fixed ends Brownian motion is normal about their chord, with variance t (1 − t) ε.
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        # At the ends the deviation is zero, and has a derivative of zero.
        deviation = safe_sqrt(t * (1 - t) * self._epsilon)
        return t * y + (1 - t) * x + deviation * noise

    def drift(self, x: Float[Numbers, "n d"], t: Float[Numbers, ""]) -> Float[Array, "n d"]:
        """The drift g(x, t), so that dX = g(X, t) dt + √ε dW maps one distribution to the other.

        Args:
            x: states.
            t: the time in [0, 1]; vmap over rows for one time each.
        """
        self._check(x=x)
        check_unit_interval(t=t)
        check_shape("t", jnp.asarray(t))
        # The origin moves with the given time, not with its rounded value.
        moved, t = self._relative(x, t), _time(t, self.means.dtype)
        return self._drift(moved, t)

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _drift(self, x: Float[Array, "n d"], t: Float[Array, ""]) -> Float[Array, "n d"]:
        # The origin moves by o₁ − o₀ in unit time. The large parts are subtracted first.
        ends = self._center(0), self._center(1)
        shift = (ends[1].high - ends[0].high) + (ends[1].low - ends[0].low)
        return self._relative_drift(x, t) + shift

    def _relative_drift(self, x: Float[Array, "n d"], t: Float[Array, ""]) -> Float[Array, "n d"]:
        """The velocity relative to the moving origin."""

        def mean_velocity(x: Array) -> Array:
            log_weights, velocities = mixture.velocities(self._potential, x, t, self._epsilon)
            return jnp.einsum("nk,nki->ni", jax.nn.softmax(log_weights, axis=1), velocities)

        return self._by_blocks(mean_velocity, x)

    def sde(
        self, key: Key[Array, ""], x: Float[Numbers, "n d"], num_steps: int
    ) -> Float[Array, "steps+1 n d"]:
        """Paths of dX = g(X, t) dt + √ε dW from x to time 1, by the Euler–Maruyama scheme.

        The error of the distribution at time 1 is O(1/num_steps); `sample` and `sample_at` are
        exact.

        Args:
            key: the key for the noise.
            x: points at time 0.
            num_steps: the number of steps, of size 1/num_steps.

        Returns:
            The states at times 0, 1/num_steps, …, 1, the first of them x.
        """
        key = own_key(key)
        check_count(1, num_steps=num_steps)
        self._check(x=x)
        path = self._sde(key, self._relative(x, 0), num_steps=num_steps)
        (start,) = as_samples(x=x)
        return path.at[0].set(start)

    @functools.partial(jax.jit, static_argnames="num_steps")
    @jax.default_matmul_precision("highest")
    def _sde(
        self, key: Key[Array, ""], x: Float[Array, "n d"], *, num_steps: int
    ) -> Float[Array, "steps+1 n d"]:
        size = 1 / num_steps

        # Euler–Maruyama: the drift is constant over a step, the noise has the step's variance. The
        # states are relative to the moving origin: far from zero each step would be rounded away.
        def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            key, t = inputs
            noise = jax.random.normal(key, x.shape, x.dtype)
            x = x + size * self._relative_drift(x, t) + jnp.sqrt(size * self._epsilon) * noise
            return x, x

        times = jnp.arange(num_steps + 1, dtype=x.dtype) / num_steps
        _, path = jax.lax.scan(step, x, (jax.random.split(key, num_steps), times[:-1]))
        path = jnp.concatenate([x[None], path])
        return jax.vmap(lambda t, x: self._center(t).add(x))(times, path)
