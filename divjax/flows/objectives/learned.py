"""A learned objective: an f-divergence to samples, by a classifier that follows the particles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_nonnegative,
    check_provides,
    check_scalar,
)
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, ravel_particles, static
from divjax.core.samples import Numbers
from divjax.core.standardize import Standardizer, robust_standardizer
from divjax.core.training import fit
from divjax.fdiv.divergences import ReverseKL, check_slope
from divjax.fdiv.generators import Generator
from divjax.flows.objectives.targets import (
    as_table,
    flagged,
    target_rows,
    weighted_particles,
)
from divjax.flows.protocols import Variation
from divjax.ratio.heads import Network
from divjax.ratio.protocols import cross_entropy

__all__ = ["FDivergence"]


class _State(NamedTuple):
    params: PyTree[Array]
    optimizer: optax.OptState
    standardizer: Standardizer


@pytree
class FDivergence:
    """The f-divergence F(q) = D_f(p‖q) = E_q[f(p/q)] to samples of p, with no entropy.

    Its first variation is f(r) − r f'(r) at r = p/q, whose gradient is −h(r) ∇log r with
    h(r) = r² f''(r). A network learns log r by classifying samples against particles and is refined
    at every step. With `ReverseKL` F is KL(q‖p), the functional that `KL` descends for a known
    density: the particles then follow ∇log p − ∇log q, and no other velocity has to supply an
    entropy.

    Its inputs are in units of the features' standard deviations, which a few wrong rows among the
    samples do not change. Values far from all others are compressed by an increasing function. That
    changes no f-divergence, and the gradient goes through it by the chain rule.

    The particles are few, so a network can overfit them. Noise is therefore added to both sides,
    z + σξ, which keeps the minimiser q = p. The recorded value is the plug-in divergence at the
    particles, from the network fitted to them: biased upwards by the fit, downwards by the noise.

    Attributes:
        samples: draws from p, of shape (m, d) (an array, a list or a frame of numbers), or a pytree
            like the particles. NumPy's float64 is centred in float64. If the particles' dtype
            cannot distinguish the samples, the value is NaN.
        generator: a generator of `divjax.fdiv` with a curvature h, which `TotalVariation` has not.
        ratio: the network, its learning rate, weight decay and batch size. Each step takes all
            particles and half a batch of samples. Its numbers of steps and checks and its start are
            not used.
        noise: σ ≥ 0, in units of the features' standard deviations, those of the samples and the
            initial particles together without outliers.
        num_fit_steps: steps of AdamW per step of the flow.
        num_init_steps: steps of AdamW before the first.

    Raises:
        ValueError: if samples and particles differ in their number of features, a number is out of
            range, or the generator has no curvature.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> samples = 2 + jax.random.normal(jax.random.key(0), (500, 1))
        >>> objective = FDivergence(samples)
        >>> x = jax.random.normal(jax.random.key(1), (500, 1))
        >>> state = jax.jit(objective.init)(jax.random.key(2), x)
        >>> variation, _ = jax.jit(objective)(jax.random.key(3), x, jnp.full(500, 1 / 500), state)
        >>> -2.4 < float(variation.gradient.mean()) < -1.6  # KL falls fastest towards 2
        True

    References:
        Nguyen, Wainwright, Jordan 2010, theorem 1; Gao et al. 2019, eq. 8: the velocity of an
        f-divergence's gradient flow by a density ratio.
    """

    samples: PyTree[Array]
    generator: Generator = ReverseKL()
    ratio: Network = Network()
    noise: ArrayLike = 0.1
    num_fit_steps: int = static(default=5)
    num_init_steps: int = static(default=500)

    entropy = 0.0

    def __post_init__(self):
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        check_nonnegative(noise=self.noise)
        # The field would be zero, and a flow would report a stationary point.
        check_slope("generator", self.generator)
        check_count(0, num_fit_steps=self.num_fit_steps, num_init_steps=self.num_init_steps)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> _State:
        """The network, fitted to the initial particles."""
        check_provides("ratio", self.ratio, ("init", "apply", "in_range"), "ratio.heads.Network()")
        rows = target_rows(self.samples, particles)
        check_full_precision("particles", rows.x)
        init_key, fit_key = jax.random.split(key)
        # It stays fixed along the flow, as the carried network expects inputs standardised by it.
        # The limits follow the tails, as a target's smaller modes are no outliers.
        x, y = jax.lax.stop_gradient((rows.x, rows.y))
        sides = ((side, jnp.full(len(side), 1 / len(side), x.dtype)) for side in (x, y))
        standardizer = robust_standardizer(*sides, keep_tails=True)
        # An infinite sample is no outlier, and may not be among those of a step.
        finite = jnp.isfinite(x).all() & jnp.isfinite(y).all()
        standardizer = standardizer._replace(mean=nan_unless(finite, standardizer.mean))
        params = self.ratio.init(init_key, x.shape[1], x.dtype)
        state = _State(params, self._optimizer(x.dtype).init(params), standardizer)
        # Before the first step all particles have the same weight.
        weights = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
        return self._refine(fit_key, x, y, weights, state, self.num_init_steps)

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of D_f(p‖q), and the refined network."""
        particles, weights = weighted_particles(particles, weights)
        _, unravel = ravel_particles(particles)
        rows = target_rows(self.samples, particles)
        x, y = rows.x, rows.y
        # Refined before it is used: the particles have moved since the last fit.
        state = self._refine(key, x, y, weights, state, self.num_fit_steps)
        # Derivatives are taken at a fixed network.
        state = jax.lax.stop_gradient(state)

        # δF/δq = f(r) − r f'(r). Each row's potential depends on that row alone, so the pull-back
        # of ones holds all rows' gradients.
        def potential(x):
            return self.generator.dual_integrand_q(self._log_ratio(state, x))

        potentials, pullback = jax.vjp(potential, x)
        (gradient,) = pullback(jnp.ones_like(potentials))
        # The plug-in divergence takes log ratios of both sides, each with weights that sum to one.
        uniform = jnp.full(y.shape[0], 1 / y.shape[0], x.dtype)
        # Far away the ratio of a zero-weight particle overflows, and zero times infinity is NaN.
        of_x = jnp.where(weights == 0, 0, self._log_ratio(state, x))
        log_ratios = self._log_ratio(state, y), of_x
        divergence = self.generator.plug_in(*log_ratios, uniform, weights).value
        return flagged(Variation(divergence, potentials, unravel(gradient)), rows), state

    def _log_ratio(self, state: _State, x: Float[Array, "b d"]) -> Float[Array, " b"]:
        return self.ratio.apply(state.params, state.standardizer.squash(x))[:, 0]

    def _optimizer(self, dtype: DTypeLike) -> optax.GradientTransformation:
        rate = nan_unless(self.ratio.in_range(), jnp.asarray(self.ratio.learning_rate, dtype))
        return optax.adamw(rate, weight_decay=jnp.asarray(self.ratio.weight_decay, dtype))

    def _refine(self, key, x, y, weights, state: _State, num_steps: int) -> _State:
        check_scalar(noise=self.noise)
        if num_steps == 0:
            return state
        # `fit` raises if it is differentiated, so gradients are stopped at the particles.
        x, y, weights = jax.lax.stop_gradient((x, y, weights))
        z_x, z_y = (state.standardizer.squash(rows) for rows in (x, y))
        # The samples' share of a batch. The loss gives both sides equal mass, whatever their sizes.
        half = min(-(-self.ratio.batch_size // 2), y.shape[0])
        uniform = jnp.full(half, 1 / half, x.dtype)
        noise = jnp.asarray(self.noise, x.dtype)
        noise = nan_unless(noise >= 0, noise)

        def loss(key: Key[Array, ""], params: PyTree[Array]) -> Float[Array, ""]:
            index_key, key_x, key_y = jax.random.split(key, 3)
            # With replacement: distinct rows would take a permutation of all samples at every step.
            index = jax.random.choice(index_key, z_y.shape[0], (half,), replace=True)
            # Fresh noise at every step keeps the network from overfitting single particles.
            noisy_x = z_x + noise * jax.random.normal(key_x, z_x.shape, x.dtype)
            noise_y = jax.random.normal(key_y, (half, z_y.shape[1]), x.dtype)
            rows = jnp.concatenate([z_y[index] + noise * noise_y, noisy_x])
            u = self.ratio.apply(params, rows)[:, 0]
            return cross_entropy(u[:half], u[half:], uniform, weights)

        optimizer = self._optimizer(x.dtype)
        # Adam's moments are carried along: from zero, its first updates would be as large as the
        # rate.
        trained = fit(
            key, loss, state.params, optimizer, num_steps=num_steps, optimizer_state=state.optimizer
        )
        return state._replace(params=trained.params, optimizer=trained.optimizer_state)
