"""A learned velocity: the particles' score by a small network, refined at every step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import (
    check_callable,
    check_choice,
    check_count,
    check_full_precision,
    check_matrix,
    check_positive,
    check_scalar,
    check_widths,
)
from divjax.core.networks import MLP, Network, apply_network, init_network
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.core.simplex import effective_sample_size, with_finite_padding
from divjax.core.standardize import robust_standardizer
from divjax.core.training import fit
from divjax.flows.mass import checked_step, weighted_sum

__all__ = ["NeuralScore"]

LOSSES = ("dual", "sliced", "denoising")


class _State(NamedTuple):
    params: PyTree[Array]
    optimizer: optax.OptState


@pytree
class NeuralScore:
    """The score of q from a critic against the Gaussian of the same mean and covariance.

    With r = N(m, C) fitted to the particles, log q = T + log r + const for the critic T that
    attains the Donsker–Varadhan dual KL(q‖r) = max_T E_q[T] − log E_r[e^T]. Hence

        v_k = −g_k − τ_k ∇log q,   ∇log q = ∇T − C⁻¹(x − m).

    The network takes whitened particles z = L⁻¹(x − m), C = LLᵀ. A feature's values far from all
    others, five spreads from the median or more, are moved to that limit, in m and C as in z: a few
    stray particles hardly change the others' score, and have that of their nearest point within the
    limits. The network's output starts at zero, so the estimate is exact for Gaussian q before any
    training, up to the shrinkage of C's correlations by p/(n² + p) for n particles of p features.
    One fit per step serves all K objectives. Parameters and optimizer state are carried to the next
    step.

    The particles are few, so a critic can overfit them: without noise its score tends to that of a
    sum of point masses. Each fit therefore uses z + σξ, and estimates the score of the smoothed
    distribution: at stationarity a Gaussian's variance is the target's divided by 1 + σ².

    Attributes:
        loss: "dual", the dual above; "sliced", sliced score matching of s = ∇T − z, with fresh
            directions each step; "denoising", the regression of s(z + σξ) on −ξ/σ. All learn T.
        noise: σ > 0, in units of the particles' standard deviation, without outliers.
        learning_rate: Adam's learning rate.
        hidden: widths of the default network.
        network: `(in_features, rngs) -> nnx.Module`, from a batch "b d" to "b 1"; by default an
            MLP.
        num_fit_steps: steps of Adam per step of the flow.
        num_init_steps: steps of Adam before the first.

    Raises:
        ValueError: if `loss` is unknown, or a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = 3 + 2 * jax.random.normal(jax.random.key(0), (500, 1))
        >>> velocity = NeuralScore(num_init_steps=0, num_fit_steps=0)  # the reference alone
        >>> state = velocity.init(jax.random.key(1), x)
        >>> _, repulsion, _ = velocity(
        ...     jax.random.key(2), x, jnp.full(500, 1 / 500), jnp.zeros((1, 500, 1)), state)
        >>> bool(jnp.allclose(repulsion, (x - x.mean()) / x.var(), rtol=0.01))
        True

    References:
        Donsker, Varadhan 1983; Nguyen, Wainwright, Jordan 2010, eq. 9: the dual. Song, Garg, Shi,
        Ermon 2019, eq. 8: sliced score matching. Vincent 2011, section 4.2: denoising.
    """

    loss: str = static(default="dual")
    noise: ArrayLike = 0.2
    learning_rate: ArrayLike = 1e-3
    hidden: tuple[int, ...] = static(default=(64, 64))
    network: Network | None = static(default=None)
    num_fit_steps: int = static(default=5)
    num_init_steps: int = static(default=100)

    diffuses = False

    def __post_init__(self):
        check_choice(tuple(LOSSES), loss=self.loss)
        check_widths(hidden=self.hidden)
        if self.network is not None:
            check_callable(network=self.network)
        check_positive(noise=self.noise, learning_rate=self.learning_rate)
        check_count(0, num_fit_steps=self.num_fit_steps, num_init_steps=self.num_init_steps)

    def init(self, key: Key[Array, ""], x: Float[Numbers, "n p"]) -> _State:
        """The network, fitted to the initial particles."""
        check_matrix(x=x)
        check_full_precision("particles", x)
        network_key, fit_key = jax.random.split(key)
        params = init_network(self._network, network_key, x.shape[1], x.dtype)
        state = _State(params, self._optimizer().init(params))
        weights = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
        # A flow's particles have equal masses at the start.
        z, _, _ = _whiten(x, weights)
        return self._fit(fit_key, z, weights, state, self.num_init_steps)

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> tuple[Float[Array, "k n d"], Float[Array, "n p"], PyTree]:
        """The drifts −g, the repulsion −∇log q, and the refined network."""
        x, weights, gradients = checked_step(x, weights, gradients)
        # In whitened coordinates the reference r is N(0, I), so the score is ∇T(z) − z.
        z, factor, deviation = _whiten(x, weights)
        state = self._fit(key, z, weights, state, self.num_fit_steps)
        score = self._score(state.params, z)
        # ∇_x = L⁻ᵀ ∇_z, and coordinates were scaled to unit variance first.
        score = linalg.solve_triangular(factor, score.T, transposed=True).T
        return -gradients, -score / deviation, state

    def _network(self, in_features: int, rngs: nnx.Rngs) -> nnx.Module:
        if self.network is not None:
            return self.network(in_features, rngs)
        return MLP(in_features, self.hidden, 1, rngs)

    def _optimizer(self) -> optax.GradientTransformation:
        check_scalar(learning_rate=self.learning_rate, noise=self.noise)
        learning_rate = jnp.asarray(self.learning_rate)
        return optax.adam(nan_unless(learning_rate > 0, learning_rate))

    def _critic(self, params: PyTree[Array], z: Float[Array, "b p"]) -> Float[Array, " b"]:
        return apply_network(self._network, params, z).reshape(z.shape[0])

    def _score(self, params: PyTree[Array], z: Float[Array, "b p"]) -> Float[Array, "b p"]:
        """∇T(z) − z, the score in whitened coordinates."""
        return jax.grad(lambda points: jnp.sum(self._critic(params, points)))(z) - z

    def _fit(self, key, z, weights, state, num_steps: int) -> _State:
        if num_steps == 0:
            return state
        # `fit` raises if it is differentiated, so gradients are stopped at the particles.
        z, weights = jax.lax.stop_gradient((z, weights))
        sigma = jnp.asarray(self.noise, z.dtype)
        sigma = nan_unless(sigma > 0, sigma)

        def loss(key: Key[Array, ""], params: PyTree[Array]) -> Float[Array, ""]:
            # Fresh noise at every step smooths q. Without it the score tends to that of point
            # masses.
            noise_key, extra_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, z.shape, z.dtype)
            noisy = z + sigma * noise
            extra = jax.random.normal(extra_key, z.shape, z.dtype)
            # log E_r[e^T] − E_q[T], with n draws from r = N(0, I), one per particle.
            if self.loss == "dual":
                normalizer = jax.nn.logsumexp(self._critic(params, extra)) - jnp.log(z.shape[0])
                return normalizer - weighted_sum(weights, self._critic(params, noisy))
            # σ times the residual s − (−ξ/σ), which stays bounded for small σ.
            if self.loss == "denoising":
                residual = sigma * self._score(params, noisy) + noise
                return weighted_sum(weights, jnp.sum(residual**2, axis=1))
            # E[ξᵀ ∇s ξ] = tr ∇s for ξ of N(0, I): one directional derivative instead of p.
            score, slope = jax.jvp(lambda points: self._score(params, points), (noisy,), (extra,))
            sliced = jnp.sum(extra * slope, axis=1) + 0.5 * jnp.sum(score**2, axis=1)
            return weighted_sum(weights, sliced)

        # Adam's moments are carried along: from zero, its first updates would be as large as the
        # rate.
        trained = fit(
            key,
            loss,
            state.params,
            self._optimizer(),
            num_steps=num_steps,
            optimizer_state=state.optimizer,
        )
        return _State(trained.params, trained.optimizer_state)


def _whiten(
    x: Float[Array, "n p"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n p"], Float[Array, "p p"], Float[Array, " p"]]:
    """Whitened particles, the Cholesky factor of their correlations, and standard deviations.

    Values beyond a feature's limits are moved to them. Correlations are shrunk towards zero by
    p / (n² + p), n the particles' effective number, so that the factor exists for few particles.
    """
    p = x.shape[1]
    # Zero-weight particles are padding, and do not count. They may hold any value, and are
    # evaluated, but do not affect training.
    n = effective_sample_size(weights)
    x = with_finite_padding(x, weights)
    standardizer = robust_standardizer((x, weights), keep_tails=True)
    clipped = standardizer.clip(x)
    # Gradients are stopped at the standardizer, and not at these moments.
    centered = clipped - weighted_sum(weights, clipped)
    variance = weighted_sum(weights, centered**2)
    variance = jnp.where(variance == 0, 1, variance)
    # With unit variances the shrinkage below does not depend on the features' units.
    scaled = centered / jnp.sqrt(variance)
    shrinkage = p / (n * n + p)
    products = matmul((scaled * weights[:, None]).T, scaled)
    correlation = (1 - shrinkage) * products + shrinkage * jnp.eye(p, dtype=x.dtype)
    # z = L⁻¹ diag(deviation)⁻¹ (x − m), one row per particle.
    factor = linalg.cholesky(correlation)
    deviation = standardizer.scale * jnp.sqrt(variance)
    return linalg.solve_triangular(factor, scaled.T).T, factor, deviation
