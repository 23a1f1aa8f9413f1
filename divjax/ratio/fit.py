"""A fitted density ratio, and the divergences estimated from it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core import linalg
from divjax.core.checks import (
    check_base,
    check_probability,
    check_shape,
)
from divjax.core.numerics import in_base
from divjax.core.padding import can_be_padded, pad_rows, padded_size, resize_rows
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center, Numbers, as_numbers, as_samples
from divjax.core.simplex import effective_sample_size
from divjax.core.types import Estimate, Interval, normal_interval, summary
from divjax.fdiv.divergences import KL, JensenShannon, ReverseKL
from divjax.fdiv.generators import Divergence, weighted_mean
from divjax.fdiv.inequalities import kl_lower_bound_from_js
from divjax.inference.permutation import PermutationTest, score_permutation_test
from divjax.inference.rank import accuracy, auc
from divjax.ratio.certificates import HeldOut, SequentialScores, js_lower_bound
from divjax.ratio.cross_fitting import Member, ensemble_log_ratio
from divjax.ratio.diagnostics import Diagnostics, Ties
from divjax.ratio.misfit import Misfit
from divjax.ratio.protocols import Head, cross_entropy, num_rows

__all__ = ["RatioFit"]

# The share of the generalization gap that standard errors of divergences count as excess
# cross-entropy.
EXCESS_SHARE = 0.75


@pytree
class RatioFit:
    """The log ratio of p to q, fitted to samples, and the estimates that follow from it.

    Divergences, AUC and accuracy use `log_ratio_p` and `log_ratio_q`, each sample's out-of-fold log
    ratio. These, and hence every divergence, are differentiable in the samples with the models held
    at their optimum. Certified bounds and the two-sample test use the first split's uncalibrated
    log ratios, `held_out_p` and `held_out_q`. With `pack_size` = k all numbers are of p^k and q^k.

    Attributes:
        log_ratio_p: log p/q at each sample of p, out of fold, averaged over repeats.
        log_ratio_q: log p/q at each sample of q, likewise.
        weights_p: weights of the samples of p, summing to one.
        weights_q: weights of the samples of q, summing to one.
        held_out_p: the first split's log ratios before calibration, and the folds of p's rows.
        held_out_q: log ratios and folds of q's rows, likewise.
        sequential: the first split's further scores, for certified bounds.
        train: the training rows' balanced cross-entropy for each repeat and fold, in nats.
        validation: the cross-entropy of the rows used for early stopping or model selection.
        test: the cross-entropy of the fold itself.
        misfit: the excess cross-entropy of the log ratios that probes of another shape detect.
        ties: exact duplicates in the samples.
        head: the model.
        members: the fitted parameters, with leading axes (repeat, fold).
        groups: the numbers of the groups of p's rows and of q's, if there are any.
        center: the centre subtracted from the samples before the fit.
        pack_size: the number of samples in one row.

    Example:
        >>> import jax
        >>> from divjax import fdiv, ratio
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> fit = ratio.ClassifierRatio("linear").fit(jax.random.key(1), p + 1, q)
        >>> estimate = fit.divergence(fdiv.SquaredHellinger())  # 1 − e^{−1/8} = .1175
        >>> bool(estimate.interval.lower < 0.1175 < estimate.interval.upper)
        True
        >>> bool(fit.certified_js() < 0.1114)  # the JS of these two
        True
        >>> bool(fit.two_sample_test(jax.random.key(2)).p_value < 0.01)
        True
    """

    log_ratio_p: Float[Array, " n"]
    log_ratio_q: Float[Array, " m"]
    weights_p: Float[Array, " n"]
    weights_q: Float[Array, " m"]
    held_out_p: HeldOut
    held_out_q: HeldOut
    sequential: SequentialScores
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]
    misfit: Misfit
    ties: Ties
    head: Head
    members: Member
    groups: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None
    center: Center | None = None
    pack_size: int = static(default=1)

    def log_ratio(self, x: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """Log p(x)/q(x), the mean of all models, for rows outside the samples.

        Args:
            x: rows like the samples; with `pack_size` = k, of shape (b, k, d).

        Returns:
            The log ratio of each row (of each pack).

        Raises:
            ValueError: if the shape does not match.
        """
        if self.pack_size > 1:
            x = as_numbers("x", x, exact=True)
            check_shape("x", x, "b", self.pack_size, "d")
            x = x.reshape(-1, x.shape[2])
        x = as_samples(x=x)[0] if self.center is None else self.center.subtract(x)
        x = x.reshape(-1, self.pack_size * x.shape[1])
        features = self.members.mean.shape[-1]
        if self.members.values is not None:
            features //= 2  # each is followed by its count of ties
        check_shape("x", x, "b", features)
        # Padded to few sizes, batches of many sizes share a compiled program. Traced rows are part
        # of the caller's program.
        if not can_be_padded((x, self)):
            return _log_ratio(self.members, self.head, x)
        num_rows = len(x)
        x = resize_rows(x, padded_size(num_rows))
        return resize_rows(_log_ratio(self.members, self.head, x), num_rows)

    def __repr__(self) -> str:
        """Sizes, head and losses."""
        if isinstance(self.test, Tracer) or self.test.ndim != 2:  # or stacked by vmap
            return summary(self)
        repeats, folds = self.test.shape
        losses = f"{float(jnp.mean(self.train)):.4g} in training, {float(jnp.mean(self.test)):.4g}"
        return (
            f"RatioFit({len(self.log_ratio_p)} rows of p, {len(self.log_ratio_q)} of q, "
            f"{folds} folds, {repeats} repeats, head {type(self.head).__name__},\n"
            f"         cross-entropy {losses} out of fold)"
        )

    def divergence(
        self,
        generator: Divergence,
        *,
        confidence_level: ArrayLike = 0.95,
        base: ArrayLike | None = None,
    ) -> Estimate:
        """A divergence of p from q, from out-of-fold log ratios.

        The value is the plug-in mean of the divergence's integrands, which can be negative. Its
        gradient with respect to the samples is that of the variational form
        E_p[f'(r)] + E_q[f(r) − r f'(r)] with the models fixed, by the envelope theorem the
        gradient of the divergence itself.

        The standard error combines the error of the mean, the error of the log ratio's intercept
        and slope (taken as estimated from the same samples), for KL the error of the ratio's scale,
        log E_q[r], which is 0 for the true ratio (for the reverse KL log E_p[1/r]) and counts at
        most as much as all others, and the error of overfitting. If the head contains log p/q, the
        classifier's excess cross-entropy ε is in expectation between half of the
        `generalization_gap`, the cost of maximum likelihood, and all of it. Three quarters are
        counted. Another divergence of nearby p and q changes by 4h(1)·ε, with h = r² f''. A head
        too simple for log p/q, or trained too briefly, adds a bias that is not included in these
        errors. Beyond log n (`diagnostics.beyond_log_n`) the samples contain no evidence of it.

        The interval is a normal one, except for Jensen–Shannon. The out-of-fold value of the latter
        is log 2 minus a cross-entropy, which the excess can only raise: below the value the
        interval includes the first two errors, above it the two and all of the gap, up to log 2. If
        a probe of another shape finds held-out structure that the head has missed
        (`diagnostics.too_simple`), its gain is added above.

        `certified_js` (for KL, `certified_kl`) holds for any head. The value is at least its 95 %
        bound, and the lower end of an interval of level 1 − α is at least its bound of confidence
        1 − α/2. There is no certificate for rows in groups or of unequal weights.

        Args:
            generator: a divergence of `divjax.fdiv`.
            confidence_level: the level of the two-sided confidence interval.
            base: the base of the logarithm that sets the unit, nats by default.

        Returns:
            An `Estimate`. Its `effective_sample_size` is that of q's samples weighted to p, its
            diagnostics are `diagnostics`.

        Raises:
            ValueError: if `generator` is not a divergence, or a number is out of range.
        """
        if not isinstance(generator, Divergence):
            raise ValueError(f"generator must be a divergence of divjax.fdiv; got {generator!r}.")
        check_probability(confidence_level=confidence_level)
        check_base(base)
        return _divergence(self.scores(), generator, confidence_level, base)

    def kl(self, *, confidence_level: ArrayLike = 0.95, base: ArrayLike | None = None) -> Estimate:
        """KL(p‖q) = E_p[log p/q], in nats unless a base is given. See `divergence`."""
        return self.divergence(KL(), confidence_level=confidence_level, base=base)

    def reverse_kl(
        self, *, confidence_level: ArrayLike = 0.95, base: ArrayLike | None = None
    ) -> Estimate:
        """KL(q‖p), in nats unless a base is given. See `divergence`."""
        return self.divergence(ReverseKL(), confidence_level=confidence_level, base=base)

    def js(self, *, confidence_level: ArrayLike = 0.95, base: ArrayLike | None = None) -> Estimate:
        """The Jensen–Shannon divergence, in nats unless a base is given. See `divergence`.

        In expectation it is a lower bound on the true value for any model: exactly so without
        calibration, which depends on a fold's rows only through the models of other folds. Hence
        its interval reaches further up than down: lower ≤ value ≤ upper ≤ log 2.
        """
        return self.divergence(JensenShannon(), confidence_level=confidence_level, base=base)

    def auc(self, *, confidence_level: ArrayLike = 0.95) -> Estimate:
        """The area under the ROC curve of the log ratio, ½ if p and q are indistinguishable.

        The interval takes the models as given. Near p = q that is too narrow (a nominal 95 %
        covered 88 of 100 samples of 400 rows), since scores of different folds are negatively
        correlated. To test whether p = q, use `two_sample_test`.
        """
        check_probability(confidence_level=confidence_level)
        return _of_scores(self.scores(), auc, confidence_level)

    def accuracy(self, *, confidence_level: ArrayLike = 0.95) -> Estimate:
        """The balanced accuracy of the log ratio's sign, at most (1 + TV)/2 on average."""
        check_probability(confidence_level=confidence_level)
        return _of_scores(self.scores(), accuracy, confidence_level)

    def two_sample_test(
        self, key: Key[Array, ""], *, kind: str = "auc", num_permutations: int = 999
    ) -> PermutationTest:
        """The classifier two-sample test: is p = q? Exact at every sample size.

        The rows of the first split's first fold, a share 1/K of all, are scored by the model that
        was fitted to the others. Under p = q their labels are exchangeable. Two folds give the
        largest power, since half the rows are then scored. Weights are ignored, except for rows of
        weight zero. Rows of one group are exchanged as one.

        Args:
            key: a key for the permutations.
            kind: "auc", "accuracy" of the log ratio's sign, or "mean", the difference of the mean
                log ratios.
            num_permutations: the number of permutations N. The smallest p-value is 1/(1 + N).

        Returns:
            A `PermutationTest`.

        Raises:
            ValueError: if `kind` is unknown or `num_permutations` is not positive.

        References:
            Lopez-Paz, Oquab 2017; Kim, Ramdas, Singh, Wasserman 2021, section 3: the permutation
            test on held-out rows.
        """
        held_out = self.held_out_p, self.held_out_q
        of_p, of_q = jax.lax.stop_gradient(held_out)
        return score_permutation_test(
            key,
            of_p.log_ratio,
            of_q.log_ratio,
            kind,
            num_permutations=num_permutations,
            batch_size=16,
            # One fold has one model. Given that model, its rows' labels are exchangeable if p = q.
            masks=(of_p.fold == 0, of_q.fold == 0),
            groups=self.groups,
        )

    def certified_js(
        self,
        *,
        confidence_level: ArrayLike = 0.95,
        clip: float | None = None,
        base: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """A lower confidence bound on JS(p, q), for any p, q and model.

        For any function u, ½E_p[log 2 − log(1 + e^{−u})] + ½E_q[log 2 − log(1 + e^u)] ≤ JS.
        Held-out rows give bounded terms, one per pair of a row of p and a row of q, and betting
        against their mean is valid at every sample size. A model fitted to the first half of the
        folds, followed by that of the last fold, bets on all later folds with one running capital.
        Each fold's own model bets on the fold. These share the error probability, one half for the
        former and 1/2K for each fold, and the largest bound is returned. With two folds only the
        latter are used.

        Rows must be independent draws: the bound is NaN for rows in groups, and if the positive
        weights of a sample are unequal.

        Args:
            confidence_level: the level of the one-sided bound.
            clip: the largest absolute log ratio, chosen on each model's validation rows by default.
            base: the base of the logarithm that sets the unit, nats by default.

        Returns:
            The bound. 0 is uninformative. NaN if a traced confidence is not in (0, 1).

        Raises:
            ValueError: if a number is out of range.

        References:
            `inference.betting_lower_bound`; Waudby-Smith, Ramdas 2024.
        """
        number = isinstance(clip, (int, float)) and 0 < clip < math.inf
        if clip is not None and not number:
            raise ValueError(f"clip must be a positive, finite Python number; got {clip!r}.")
        check_base(base)
        check_probability(confidence_level=confidence_level)
        return in_base(_certified_js(self.scores(), confidence_level, clip), base)

    def certified_kl(
        self,
        *,
        confidence_level: ArrayLike = 0.95,
        clip: float | None = None,
        base: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """A lower confidence bound on both KL(p‖q) and KL(q‖p).

        It is `certified_js` mapped by the sharp inequality KL ≥ Ξ(JS),
        `fdiv.kl_lower_bound_from_js`.

        Args:
            confidence_level: the level of the one-sided bound.
            clip: the largest absolute log ratio, chosen on each model's validation rows by default.
            base: the base of the logarithm that sets the unit, nats by default.

        Returns:
            The bound, 0 if the bound on JS is not positive.

        Raises:
            ValueError: if a number is out of range.
        """
        check_base(base)
        bound = _kl_from_js(self.certified_js(confidence_level=confidence_level, clip=clip))
        return in_base(bound, base)

    @property
    def diagnostics(self) -> Diagnostics:
        """Diagnostics of the ratio."""
        return _diagnostics(self.scores())

    def scores(self) -> "RatioFit":
        """The fit without its models, padded with rows of weight zero to a `padded_size`.

        Fits of all heads, and of samples of similar size, then share one compiled program.
        """
        # Without these the structure of the pytree, and hence the compiled program, does not depend
        # on the head.
        fit = dataclasses.replace(self, head=None, members=None, center=None)
        if fit.log_ratio_p.ndim > 1 or not can_be_padded(fit):
            return fit
        return fit.resized(padded_size(len(fit.log_ratio_p)), padded_size(len(fit.log_ratio_q)))

    def resized(self, num_p: int, num_q: int) -> "RatioFit":
        """The fit with these numbers of rows: the first ones, or all of them and padding."""
        # One program for all fields, whose rows are in the same order.
        of_p, of_q = _resize(_rows_of_samples(self), (num_p, num_q))
        return dataclasses.replace(
            self,
            log_ratio_p=of_p.log_ratio,
            log_ratio_q=of_q.log_ratio,
            weights_p=of_p.weights,
            weights_q=of_q.weights,
            held_out_p=of_p.held_out,
            held_out_q=of_q.held_out,
            sequential=self.sequential._replace(first_p=of_p.first, first_q=of_q.first),
            groups=None if self.groups is None else (of_p.group, of_q.group),
        )


class _SampleRows(NamedTuple):
    """The fields of a fit that have one entry per row of one sample."""

    log_ratio: Float[Array, " n"]
    weights: Float[Array, " n"]
    held_out: HeldOut
    first: Float[Array, " n"]
    group: Int[Array, " n"] | None


# A row of weight zero, in no fold.
_PADDING = _SampleRows(0, 0, HeldOut(0, -1, 0), 0, 0)  # pyright: ignore[reportArgumentType]


def _rows_of_samples(fit: RatioFit) -> tuple[_SampleRows, _SampleRows]:
    group_p, group_q = (None, None) if fit.groups is None else fit.groups
    first_p, first_q = fit.sequential[:2]
    return (
        _SampleRows(fit.log_ratio_p, fit.weights_p, fit.held_out_p, first_p, group_p),
        _SampleRows(fit.log_ratio_q, fit.weights_q, fit.held_out_q, first_q, group_q),
    )


@functools.partial(jax.jit, static_argnums=1)
def _resize(
    samples: tuple[_SampleRows, _SampleRows], sizes: tuple[int, int]
) -> tuple[_SampleRows, ...]:
    def resized(rows: _SampleRows, size: int) -> _SampleRows:
        # The padding must have the structure of the rows, whose groups may be None.
        padding = _PADDING if rows.group is not None else _PADDING._replace(group=None)
        return jax.tree.map(lambda leaf, fill: pad_rows(leaf, size, fill), rows, padding)

    return tuple(resized(rows, size) for rows, size in zip(samples, sizes, strict=True))


# An array for the rows of p, and one for those of q.
_Pair: TypeAlias = tuple[Float[Array, " n"], Float[Array, " m"]]

# Each query of a fit consists of dozens of small operations, and is therefore compiled.
_log_ratio = jax.jit(ensemble_log_ratio)


@jax.jit
def _divergence(
    fit: RatioFit, generator: Divergence, confidence_level: ArrayLike, base: ArrayLike | None
) -> Estimate:
    samples = fit.log_ratio_p, fit.log_ratio_q
    weights = fit.weights_p, fit.weights_q
    # Value and errors are computed without derivatives. `_first_order` adds those of the value.
    fixed = jax.lax.stop_gradient(samples)
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
    diagnostics = _diagnostics(fit)
    # The excess cross-entropy ε is a share of the gap, or the gain of a probe if that is larger. It
    # changes the divergence by 4h(1)·ε, and u = 0 is the ratio 1.
    gap = jnp.maximum(diagnostics.generalization_gap, 0)
    missed = jnp.where(fit.misfit.significant, fit.misfit.gain, 0)
    shape = 4 * generator.curvature(jnp.zeros_like(gap)) * jnp.maximum(EXCESS_SHARE * gap, missed)
    # The error of the ratio's scale counts at most as much as all others together.
    scale = jnp.minimum(_normalization_error(fixed, weights, generator) ** 2, variance + shape**2)
    std_error = jnp.sqrt(variance + shape**2 + scale)

    # Overfitting can only lower an out-of-fold Jensen–Shannon divergence: no share of the gap is
    # added below it, and all of it, up to the training rows' own divergence, above.
    js = isinstance(generator, JensenShannon)
    lower, upper = normal_interval(value, jnp.sqrt(variance) if js else std_error, confidence_level)
    if js:
        upper = jnp.minimum(upper + gap + missed, math.log(2))

    # The certificate holds for any head, at α/2 like the lower end.
    bound = _certificate(
        fit, generator, jnp.asarray([0.95, (1 + confidence_level) / 2], value.dtype)
    )
    # Computed once: as part of two fusions it could be rounded differently in each.
    value = jax.lax.optimization_barrier(jnp.where(bound[0] > value, bound[0], value))
    lower = jnp.minimum(jnp.where(bound[1] > lower, bound[1], lower), value)
    upper = jnp.where(upper < value, value, upper)

    # The term is zero and only contributes the derivatives.
    value = value + _first_order(fit, generator, samples)
    return Estimate(
        in_base(value, base),
        in_base(std_error, base),
        Interval(in_base(lower, base), in_base(upper, base)),
        diagnostics.effective_sample_size,
        diagnostics,
    )


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


def _certificate(fit: RatioFit, generator: Divergence, confidences: Array) -> Array:
    """Lower confidence bounds on the divergence; −∞ if there is no bound."""
    if not isinstance(generator, (JensenShannon, KL, ReverseKL)):
        return jnp.full_like(confidences, -jnp.inf)
    js = jax.vmap(lambda confidence_level: _certified_js(fit, confidence_level, None))(confidences)
    # Either KL is at least Ξ(JS), and Ξ increases: a bound on JS gives one on both.
    bound = js if isinstance(generator, JensenShannon) else _kl_from_js(js)
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
def _of_scores(
    fit: RatioFit, statistic: Callable[..., Estimate], confidence_level: ArrayLike
) -> Estimate:
    samples = jax.lax.stop_gradient((fit.log_ratio_p, fit.log_ratio_q))
    return statistic(*samples, fit.weights_p, fit.weights_q, confidence_level=confidence_level)


@jax.jit
def _kl_from_js(js: Float[Array, ""]) -> Float[Array, ""]:
    return kl_lower_bound_from_js(jnp.maximum(js, 0))


@functools.partial(jax.jit, static_argnums=2)
def _certified_js(
    fit: RatioFit, confidence_level: ArrayLike, clip: float | None
) -> Float[Array, ""]:
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
def _diagnostics(fit: RatioFit) -> Diagnostics:
    u_p, u_q = jax.lax.stop_gradient((fit.log_ratio_p, fit.log_ratio_q))
    weights_p, weights_q = fit.weights_p, fit.weights_q
    # Ratios in units of the largest one, as e^u may overflow.
    largest = jnp.max(jnp.where(weights_q > 0, u_q, -jnp.inf))
    ratio = weights_q * jnp.exp(jnp.where(weights_q > 0, u_q - largest, -jnp.inf))
    # Padding counts as log ratios of zero, which are finite and never the largest.
    rows = jnp.where(weights_p > 0, u_p, 0), jnp.where(weights_q > 0, u_q, 0)
    num_q = jnp.sum(weights_q > 0).astype(u_q.dtype)
    return Diagnostics(
        mean_ratio=jnp.sum(ratio) * jnp.exp(largest),
        effective_sample_size=effective_sample_size(ratio),
        cross_entropy=cross_entropy(*rows, weights_p, weights_q),
        generalization_gap=jnp.mean(fit.test - fit.train),
        max_log_ratio=jnp.max(jnp.abs(jnp.concatenate(rows))),
        beyond_log_n=weighted_mean(u_p, weights_p) > jnp.log(num_q),
        ties=fit.ties,
        too_simple=fit.misfit.significant,
        finite=jnp.isfinite(jnp.concatenate(rows)).all(),
    )


def _first_order(fit: RatioFit, generator: Divergence, samples: _Pair) -> Float[Array, ""]:
    """Zero, with the gradient of the variational form with respect to the log ratios."""
    u_p, u_q = jax.lax.stop_gradient(samples)
    slope_p, slope_q = generator.sensitivities(u_p, u_q, fit.weights_p, fit.weights_q)
    # An infinite slope times a zero tangent would be NaN.
    largest = jnp.finfo(fit.log_ratio_p.dtype).max
    # Σ w·slope·(u − stop_gradient(u)) is zero, with the derivative of the variational form.
    finite_p, finite_q = jnp.clip(slope_p, -largest, largest), jnp.clip(slope_q, -largest, largest)
    of_p = jnp.dot(fit.weights_p * finite_p, _tangent(samples[0]))
    return of_p + jnp.dot(fit.weights_q * finite_q, _tangent(samples[1]))


def _tangent(u: Float[Array, " n"]) -> Float[Array, " n"]:
    """Zeros, with the derivative of u at its finite entries."""
    finite = jnp.isfinite(u)
    return jnp.where(finite, u - jax.lax.stop_gradient(u), 0)


def _recalibrated(
    fit: RatioFit, generator: Divergence, influences: Sequence[Array], samples: _Pair
) -> _Pair:
    """The influences, including those of the intercept a and slope b in a + b·u.

    (a, b) minimises the balanced cross-entropy of the same rows. To first order it changes by H⁻¹
    times the score, and the divergence by its gradient times that.
    """
    u_p, u_q = samples
    weights_p, weights_q = fit.weights_p, fit.weights_q

    def value(change):
        moved = lambda u: change[0] + (1 + change[1]) * u
        return generator.plug_in(moved(u_p), moved(u_q), weights_p, weights_q).value

    # The gradient of the divergence in (a, b) at the identity.
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
