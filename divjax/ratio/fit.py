"""A fitted density ratio, and the divergences that it estimates."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_matrix, check_positive, check_shape
from divjax.core.pytrees import pytree, static
from divjax.core.types import Estimate, Interval
from divjax.fdiv.divergences import KL, JensenShannon, ReverseKL
from divjax.fdiv.generators import Divergence, weighted_mean
from divjax.ratio.cross_fitting import Member, mean_log_ratio
from divjax.ratio.diagnostics import Diagnostics, Ties

__all__ = ["RatioFit"]


@pytree
class RatioFit:
    """The log ratio of p to q, fitted to samples, and what follows from it.

    Every number is from `log_ratio_p` and `log_ratio_q`: each sample's log ratio by models that
    have not seen it. They, and so every divergence, are differentiable in the samples with the
    models held at their optimum.

    Attributes:
        log_ratio_p: log p/q at each sample of p, out of fold, averaged over repeats.
        log_ratio_q: the same for the samples of q.
        weights_p: the samples' weights, summing to one.
        weights_q: the same for q.
        train: the training rows' balanced cross-entropy for each repeat and fold, in nats.
        validation: the same for the validation rows, which stopped or chose the model.
        test: the same for the fold itself.
        ties: exact repetitions in the samples.
        head: the model.
        members: the fitted parameters, with leading axes (repeat, fold).
        pack: how many samples make one row.
    """

    log_ratio_p: Float[Array, " n"]
    log_ratio_q: Float[Array, " m"]
    weights_p: Float[Array, " n"]
    weights_q: Float[Array, " m"]
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]
    ties: Ties
    head: Any
    members: Member
    pack: int = static(default=1)

    def log_ratio(self, x: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Log p(x)/q(x), the mean of all models; for rows that were not among the samples.

        Args:
            x: rows like the samples; with `pack` = k, of shape (b, k, d).

        Returns:
            The log ratio of each row (of each pack).

        Raises:
            ValueError: if the shape does not fit.
        """
        if self.pack > 1:
            check_shape("x", x, "b", self.pack, "d")
            x = jnp.reshape(x, (x.shape[0], -1))
        check_matrix(x=x)
        return mean_log_ratio(self.members, self.head, x)

    def divergence(
        self, generator: Divergence, *, level: ArrayLike = 0.95, base: ArrayLike | None = None
    ) -> Estimate:
        """A divergence of p from q, from out-of-fold log ratios.

        The value is the plug-in mean of the divergence's integrands; it can be negative. Its
        gradient with respect to the samples is that of the variational form
        E_p[f'(r)] + E_q[f(r) − r f'(r)] with the models fixed, by the envelope theorem the
        gradient of the divergence itself.

        The standard error is that of the mean, with the intercept and the slope of the log ratio
        counted as estimated from the same samples (its influence is that of a recalibrated
        estimate). Errors of the ratio's shape are not in it: they make Jensen–Shannon too small by
        the classifier's excess cross-entropy, and KL wrong by the mean error under p.

        Args:
            generator: a divergence of `divjax.fdiv`.
            level: of the two-sided confidence interval, a normal one.
            base: the unit is the logarithm of this number; nats by default.

        Returns:
            An `Estimate`; its `effective_sample_size` is that of q's samples weighted to p, its
            diagnostics are `diagnostics`.

        Raises:
            ValueError: if `generator` is not a divergence, or a number is out of range.
        """
        if not isinstance(generator, Divergence):
            raise ValueError(f"generator must be a divergence of divjax.fdiv; got {generator!r}.")
        if isinstance(level, (int, float)) and not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}.")
        check_positive(base=base)
        samples = self.log_ratio_p, self.log_ratio_q
        weights = self.weights_p, self.weights_q
        fixed = jax.lax.stop_gradient(samples)
        value, *influences = generator.plug_in(*fixed, *weights)
        variance = sum(
            jnp.sum(weight**2 * (total - weighted_mean(total, weight)) ** 2)
            for weight, total in zip(
                weights, self._recalibrated(generator, influences, fixed), strict=True
            )
        )
        dual = self._dual(generator, samples)
        value = value + dual - jax.lax.stop_gradient(dual)
        unit = 1 if base is None else jnp.log(jnp.asarray(base, value.dtype))
        value, error = value / unit, jnp.sqrt(variance) / jnp.abs(unit)
        width = error * ndtri((1 + jnp.asarray(level, value.dtype)) / 2)
        diagnostics = self.diagnostics
        return Estimate(
            value,
            error,
            Interval(value - width, value + width),
            diagnostics.effective_sample_size,
            diagnostics,
        )

    def kl(self, *, level: ArrayLike = 0.95, base: ArrayLike | None = None) -> Estimate:
        """KL(p‖q) = E_p[log p/q], in nats unless a base is given. See `divergence`."""
        return self.divergence(KL(), level=level, base=base)

    def reverse_kl(self, *, level: ArrayLike = 0.95, base: ArrayLike | None = None) -> Estimate:
        """KL(q‖p), in nats unless a base is given. See `divergence`."""
        return self.divergence(ReverseKL(), level=level, base=base)

    def js(self, *, level: ArrayLike = 0.95, base: ArrayLike | None = None) -> Estimate:
        """The Jensen–Shannon divergence, in nats unless a base is given. See `divergence`.

        In expectation a lower bound on the truth, whatever the model.
        """
        return self.divergence(JensenShannon(), level=level, base=base)

    @property
    def diagnostics(self) -> Diagnostics:
        """What may be wrong with the ratio."""
        u_p, u_q = jax.lax.stop_gradient((self.log_ratio_p, self.log_ratio_q))
        weights_p, weights_q = self.weights_p, self.weights_q
        largest = jnp.max(jnp.where(weights_q > 0, u_q, -jnp.inf))
        ratio = weights_q * jnp.exp(jnp.where(weights_q > 0, u_q - largest, -jnp.inf))
        rows = jnp.concatenate([jnp.where(weights_p > 0, u_p, 0), jnp.where(weights_q > 0, u_q, 0)])
        num_q = jnp.sum(weights_q > 0).astype(u_q.dtype)
        equal = jnp.sum(ratio) ** 2 / jnp.sum(jnp.where(weights_q > 0, ratio, 0) ** 2)
        return Diagnostics(
            mean_ratio=jnp.sum(ratio) * jnp.exp(largest),
            effective_sample_size=equal,
            cross_entropy=jnp.log(2.0).astype(u_p.dtype)
            - JensenShannon().plug_in(u_p, u_q, weights_p, weights_q).value,
            generalization_gap=jnp.mean(self.test - self.train),
            max_log_ratio=jnp.max(jnp.abs(rows)),
            beyond_log_n=weighted_mean(u_p, weights_p) > jnp.log(num_q),
            ties=self.ties,
            finite=jnp.isfinite(rows).all(),
        )

    def _dual(self, generator: Divergence, samples: Any) -> Float[Array, ""]:
        """The variational form, finite also where the two samples lie far apart."""
        limit = 0.9 * jnp.log(jnp.finfo(self.log_ratio_p.dtype).max)
        u_p, u_q = (jnp.clip(u, -limit, limit) for u in samples)
        mean = weighted_mean(generator.dual_under_p(u_p), self.weights_p) + weighted_mean(
            generator.dual_under_q(u_q), self.weights_q
        )
        return generator.finish(mean)

    def _recalibrated(self, generator: Divergence, influences: Any, samples: Any) -> Any:
        """Influences with those of the intercept a and slope b in a + b·u added.

        (a, b) minimises the balanced cross-entropy of these very rows; to first order it moves by
        H⁻¹ times the score, and the divergence by its gradient times that.
        """
        u_p, u_q = samples
        weights_p, weights_q = self.weights_p, self.weights_q

        def value(change):
            moved = (change[0] + (1 + change[1]) * u for u in samples)
            return generator.plug_in(*moved, weights_p, weights_q).value

        slope = jax.grad(value)(jnp.zeros(2, u_p.dtype))
        phi_p, phi_q = (jnp.stack([jnp.ones_like(u), u], axis=1) for u in samples)
        wrong_p, wrong_q = jax.nn.sigmoid(-u_p), jax.nn.sigmoid(u_q)
        curvature_p = weights_p * wrong_p * (1 - wrong_p) / 2
        curvature_q = weights_q * wrong_q * (1 - wrong_q) / 2
        hessian = (phi_p.T * curvature_p) @ phi_p + (phi_q.T * curvature_q) @ phi_q
        # The prior of a calibration: worth one row.
        prior = 1 / (1 / jnp.sum(weights_p**2) + 1 / jnp.sum(weights_q**2))
        direction = jnp.linalg.solve(hessian + prior * jnp.eye(2, dtype=u_p.dtype), slope)
        influence_p, influence_q = influences
        return (
            influence_p + (phi_p @ direction) * wrong_p / 2,
            influence_q - (phi_q @ direction) * wrong_q / 2,
        )
