"""Plug-in estimates from out-of-fold log ratios: divergences, their errors and diagnostics.

The error of a divergence is to first order a sum of influences, one per row.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core import linalg
from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import in_base
from divjax.core.programs import jit_by_size
from divjax.core.simplex import effective_sample_size
from divjax.core.types import Estimate, Interval, normal_interval
from divjax.fdiv.divergences import KL, JensenShannon, ReverseKL
from divjax.fdiv.inequalities import kl_lower_bound_from_js
from divjax.fdiv.integrands import Divergence, weighted_mean
from divjax.ratio.certificates import js_lower_bound
from divjax.ratio.diagnostics import Diagnostics
from divjax.ratio.out_of_fold_scores import OutOfFoldScores
from divjax.ratio.protocols import cross_entropy, num_rows

__all__ = [
    "certified_js",
    "diagnose",
    "divergence_estimate",
    "js_and_kl",
    "kl_bound_from_js",
    "score_statistic",
]

# The share of the generalization gap that standard errors of divergences count as excess
# cross-entropy.
EXCESS_SHARE = 0.75

# Divergences on which a lower bound on Jensen–Shannon implies one.
_CERTIFIED = (JensenShannon, KL, ReverseKL)

# An array for the rows of p, and one for those of q.
_Pair: TypeAlias = tuple[Float[Array, " n"], Float[Array, " m"]]


@jit_by_size
def divergence_estimate(
    fit: OutOfFoldScores, generator: Divergence, confidence_level: ArrayLike, base: ArrayLike | None
) -> Estimate:
    """A divergence with its error, interval and diagnostics; see `RatioFit.divergence`."""
    fixed = jax.lax.stop_gradient(fit)
    certified = None
    if isinstance(generator, _CERTIFIED):
        certified = _certified_ends(fixed, confidence_level)
    return _estimate(fit, generator, diagnose(fixed), certified, confidence_level, base)


def js_and_kl(
    fit: OutOfFoldScores, confidence_level: ArrayLike, *, js_base: ArrayLike | None = None
) -> tuple[Estimate, Estimate, Float[Array, ""]]:
    """Jensen–Shannon, KL in nats, and the 95 % bound on the former, with one certificate for all.

    As a part of a compiled program it compiles in half the time of the three by themselves.
    """
    fixed = jax.lax.stop_gradient(fit)
    diagnostics, certified = diagnose(fixed), _certified_ends(fixed, confidence_level)
    js, kl = (
        _estimate(fit, generator, diagnostics, certified, confidence_level, base)
        for generator, base in ((JensenShannon(), js_base), (KL(), None))
    )
    return js, kl, in_base(certified[0], js_base)


def _certified_ends(fit: OutOfFoldScores, confidence_level: ArrayLike) -> Float[Array, " 2"]:
    """Bounds on Jensen–Shannon at 95 %, and at α/2 for the lower end of an interval at 1 − α."""
    levels = jnp.asarray([0.95, (1 + confidence_level) / 2], fit.log_ratio_p.dtype)
    return jax.vmap(lambda level: certified_js(fit, level, None))(levels)


def _estimate(
    fit: OutOfFoldScores,
    generator: Divergence,
    diagnostics: Diagnostics,
    certified: Float[Array, " 2"] | None,
    confidence_level: ArrayLike,
    base: ArrayLike | None,
) -> Estimate:
    # Value and errors are computed without derivatives in the fit. `_variational` has the value's.
    given, fit = fit, jax.lax.stop_gradient(fit)
    fixed = fit.log_ratio_p, fit.log_ratio_q
    weights = fit.weights_p, fit.weights_q
    value, *influences = generator.plug_in(*fixed, *weights)
    # To first order the error of the value is a sum of terms of mean zero, one per row: its
    # influence, centred within its sample.
    terms = [
        weight * (total - weighted_mean(total, weight))
        for weight, total in zip(
            weights, _recalibrated(fit, generator, influences, fixed), strict=True
        )
    ]
    variance = _variance_of_sum(terms, fit.groups)
    # The excess cross-entropy ε is that of estimation, or the gain of a probe if that is larger. It
    # changes the divergence by 4h(1)·ε, and u = 0 is the ratio 1.
    gap = jnp.maximum(diagnostics.generalization_gap, 0)
    missed = jnp.where(diagnostics.too_simple, fit.misfit.gain, 0)
    # Of samples that the scores separate no row tells how large the log ratios are at most: all of
    # their cross-entropy may be excess.
    missed = jnp.where(_are_separated(fixed, weights), diagnostics.cross_entropy, missed)
    excess = jnp.maximum(EXCESS_SHARE * gap, missed)
    excess_error = 4 * generator.curvature(jnp.zeros_like(gap)) * excess
    # The error of the ratio's scale counts at most as much as all others together.
    others = variance + excess_error**2
    scale_variance = jnp.minimum(_normalization_error(fixed, weights, generator) ** 2, others)
    std_error = jnp.sqrt(others + scale_variance)

    # Overfitting can only lower an out-of-fold Jensen–Shannon divergence: no share of the gap is
    # added below it, and all of it, up to the training rows' own divergence, above.
    js = isinstance(generator, JensenShannon)
    lower, upper = normal_interval(value, jnp.sqrt(variance) if js else std_error, confidence_level)
    if js:
        upper = jnp.minimum(upper + gap + missed, math.log(2))

    # The certificate holds for any head.
    bound = _certificate(certified, generator, value.dtype)
    # A value of −∞, of a score that is, has no interval: the bound would hide that.
    raised = (bound[0] > value) & jnp.isfinite(value)
    # Computed once: as part of two fusions it could be rounded differently in each.
    value = jax.lax.optimization_barrier(jnp.where(raised, bound[0], value))
    lower = jnp.minimum(jnp.where(bound[1] > lower, bound[1], lower), value)
    upper = jnp.where(upper < value, value, upper)
    # No divergence is negative: noise in the log ratios may lower a value of 0 beyond its error.
    upper = jnp.maximum(upper, 0)

    # Zero, with the derivatives in log ratios and weights.
    change = _variational(given, fit, generator)
    value = value + with_slopes_of(change, jnp.zeros_like(value))
    return Estimate(
        in_base(value, base),
        in_base(std_error, base),
        Interval(in_base(lower, base), in_base(upper, base)),
        diagnostics.effective_sample_size,
        diagnostics,
    )


def _are_separated(samples: _Pair, weights: _Pair) -> Bool[Array, ""]:
    """Whether each row of p has a larger log ratio than all rows of q."""
    least = jnp.min(jnp.where(weights[0] > 0, samples[0], jnp.inf))
    return least > jnp.max(jnp.where(weights[1] > 0, samples[1], -jnp.inf))


def _normalization_error(samples: _Pair, weights: _Pair, generator: Divergence) -> Array:
    """The change of a divergence if its ratio were scaled to a mean of one.

    Log E_q[r] for KL and log E_p[1/r] for the reverse KL. Divergences of bounded integrands do not
    depend on the tails where the ratio is too large or too small.
    """
    if isinstance(generator, KL):
        u, weight = samples[1], weights[1]
    elif isinstance(generator, ReverseKL):
        u, weight = -samples[0], weights[0]
    else:
        return jnp.zeros_like(samples[0][0])
    return jax.scipy.special.logsumexp(jnp.where(weight > 0, u, -jnp.inf), b=weight)


def _certificate(
    js: Float[Array, " 2"] | None, generator: Divergence, dtype: Any
) -> Float[Array, " 2"]:
    """Lower confidence bounds on the divergence by those on JS; −∞ if there is no bound."""
    if js is None or not isinstance(generator, _CERTIFIED):
        return jnp.full(2, -jnp.inf, dtype)
    # Either KL is at least Ξ(JS), and Ξ increases: a bound on JS gives one on both.
    bound = js if isinstance(generator, JensenShannon) else kl_bound_from_js(js)
    # A bound of 0 carries no information and NaN is no bound: −∞ leaves the estimate as it is.
    return jnp.where(js > 0, bound, -jnp.inf)


def _variance_of_sum(
    terms: list[Array], groups: tuple[Int[Array, " n"], Int[Array, " m"]] | None
) -> Float[Array, ""]:
    """The variance of a sum of independent terms, or groups of terms, of mean zero."""
    if groups is not None:
        # Rows of one group, of both samples, are added before they are squared, to include their
        # covariances.
        totals = jnp.zeros(sum(len(term) for term in terms), terms[0].dtype)
        for term, of in zip(terms, groups, strict=True):
            totals = totals.at[of].add(term)
        terms = [totals]
    return jnp.sum(jnp.stack([jnp.sum(term**2) for term in terms]))


@functools.partial(jax.jit, static_argnums=1)
def score_statistic(
    fit: OutOfFoldScores, statistic: Callable[..., Estimate], confidence_level: ArrayLike
) -> Estimate:
    """A statistic of both samples' log ratios, held fixed: AUC or accuracy."""
    samples = jax.lax.stop_gradient((fit.log_ratio_p, fit.log_ratio_q))
    return statistic(*samples, fit.weights_p, fit.weights_q, confidence_level=confidence_level)


@jax.jit
def kl_bound_from_js(js: Float[Array, ""]) -> Float[Array, ""]:
    """The lower bound on both KL that a lower bound on Jensen–Shannon implies."""
    return kl_lower_bound_from_js(jnp.maximum(js, 0))


@functools.partial(jax.jit, static_argnums=2)
def certified_js(
    fit: OutOfFoldScores, confidence_level: ArrayLike, clip: float | None
) -> Float[Array, ""]:
    """A lower confidence bound on Jensen–Shannon, NaN for grouped or unequally weighted rows."""
    held_out, sequential = jax.lax.stop_gradient(((fit.held_out_p, fit.held_out_q), fit.sequential))
    bound = js_lower_bound(held_out, sequential, fit.test.shape[1], confidence_level, clip)
    # Betting requires independent draws, which rows of one group are not.
    if fit.groups is not None:
        return jnp.full_like(bound, jnp.nan)
    # Betting counts each row once. Equal weights may differ by their rounding.
    equal = [
        jnp.max(w) <= jnp.min(jnp.where(w > 0, w, jnp.inf)) * (1 + 1e-4)
        for w in (fit.weights_p, fit.weights_q)
    ]
    return jnp.where(equal[0] & equal[1], bound, jnp.nan)


@jax.jit
def diagnose(fit: OutOfFoldScores) -> Diagnostics:
    """The diagnostics of a fit, from its out-of-fold log ratios."""
    u_p, u_q = jax.lax.stop_gradient((fit.log_ratio_p, fit.log_ratio_q))
    weights_p, weights_q = fit.weights_p, fit.weights_q
    # Ratios in units of the largest one, as e^u may overflow.
    largest = jnp.max(jnp.where(weights_q > 0, u_q, -jnp.inf))
    ratio = weights_q * jnp.exp(jnp.where(weights_q > 0, u_q - largest, -jnp.inf))
    # Padding counts as log ratios of zero, which are finite and never the largest.
    rows = jnp.where(weights_p > 0, u_p, 0), jnp.where(weights_q > 0, u_q, 0)
    num_q = jnp.sum(weights_q > 0).astype(u_q.dtype)
    gap = jnp.mean(fit.test - fit.train)
    return Diagnostics(
        mean_ratio=jnp.sum(ratio) * jnp.exp(largest),
        effective_sample_size=effective_sample_size(ratio),
        cross_entropy=cross_entropy(*rows, weights_p, weights_q),
        generalization_gap=gap,
        max_log_ratio=jnp.max(jnp.abs(jnp.concatenate(rows))),
        beyond_log_n=weighted_mean(u_p, weights_p) > jnp.log(num_q),
        ties=fit.ties,
        # Probes see the error of estimation too, which is in every fit and counted by the gap.
        too_simple=fit.misfit.exceeds(EXCESS_SHARE * jnp.maximum(gap, 0)),
        finite=jnp.isfinite(jnp.concatenate(rows)).all(),
    )


def _variational(
    given: OutOfFoldScores, fixed: OutOfFoldScores, generator: Divergence
) -> Float[Array, ""]:
    """The variational form, linear in the given log ratios and in the given weights."""
    scores = fixed.log_ratio_p, fixed.log_ratio_q, fixed.weights_p, fixed.weights_q
    generator = jax.lax.stop_gradient(generator)
    slope_p, slope_q = generator.sensitivities(*scores)
    potential_p, potential_q = generator.potentials(*scores)
    # An infinite slope times a zero tangent would be NaN.
    largest = jnp.finfo(fixed.log_ratio_p.dtype).max
    finite = lambda numbers: jnp.clip(numbers, -largest, largest)
    of_p = jnp.dot(fixed.weights_p * finite(slope_p), _where_finite(given.log_ratio_p))
    of_q = jnp.dot(fixed.weights_q * finite(slope_q), _where_finite(given.log_ratio_q))
    of_weights = jnp.dot(finite(potential_p), given.weights_p)
    return of_p + of_q + of_weights + jnp.dot(finite(potential_q), given.weights_q)


def _where_finite(u: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.where(jnp.isfinite(u), u, 0)


def _recalibrated(
    fit: OutOfFoldScores, generator: Divergence, influences: Sequence[Array], samples: _Pair
) -> _Pair:
    """The influences, including those of the intercept α and slope β in α + β·u.

    (α, β) minimises the balanced cross-entropy of the same rows. To first order it changes by H⁻¹
    times the score, and the divergence by its gradient times that.
    """
    u_p, u_q = samples
    weights_p, weights_q = fit.weights_p, fit.weights_q

    def value(change):
        moved = lambda u: change[0] + (1 + change[1]) * u
        return generator.plug_in(moved(u_p), moved(u_q), weights_p, weights_q).value

    # The gradient of the divergence in (α, β) at the identity.
    slope = jax.grad(value)(jnp.zeros(2, u_p.dtype))
    features = lambda u: jnp.stack([jnp.ones_like(u), u], axis=1)
    phi_p, phi_q = features(u_p), features(u_q)
    # The probability v of the wrong label gives the score, ½φv, and the curvature, ½φφᵀv(1 − v).
    wrong_p, wrong_q = jax.nn.sigmoid(-u_p), jax.nn.sigmoid(u_q)
    curvature_p = weights_p * wrong_p * (1 - wrong_p) / 2
    curvature_q = weights_q * wrong_q * (1 - wrong_q) / 2
    hessian = (phi_p.T * curvature_p) @ phi_p + (phi_q.T * curvature_q) @ phi_q
    # A prior of the weight of one row, for samples that hardly overlap. The heads have fitted both
    # coefficients without a prior, so that a stronger one would understate their errors.
    prior = jnp.eye(2, dtype=u_p.dtype) / num_rows(weights_p, weights_q)
    direction = linalg.solve(hessian + prior, slope)
    # The scores of p and of q have opposite signs.
    influence_p, influence_q = influences
    return (
        influence_p + (phi_p @ direction) * wrong_p / 2,
        influence_q - (phi_q @ direction) * wrong_q / 2,
    )
