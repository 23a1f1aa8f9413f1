"""A fitted density ratio, and the divergences estimated from it."""

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import (
    check_base,
    check_probability,
    check_shape,
)
from divjax.core.numerics import in_base
from divjax.core.padding import padded_size, resize_rows
from divjax.core.programs import is_traced
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_numbers, as_samples
from divjax.core.types import Estimate, summary
from divjax.fdiv.divergences import KL, JensenShannon, ReverseKL
from divjax.fdiv.integrands import Divergence
from divjax.inference.hypothesis import TestResult
from divjax.inference.permutation import score_permutation_test
from divjax.inference.rank import accuracy, auc
from divjax.ratio.diagnostics import Diagnostics
from divjax.ratio.members import ensemble_log_ratio
from divjax.ratio.out_of_fold_scores import OutOfFoldScores
from divjax.ratio.plug_in_estimates import (
    certified_js,
    diagnose,
    divergence_estimate,
    kl_bound_from_js,
    score_statistic,
)

__all__ = ["RatioFit"]


@pytree
class RatioFit(OutOfFoldScores):
    """The log ratio of p to q, fitted to samples, and the estimates that follow from it.

    Divergences, AUC and accuracy use `log_ratio_p` and `log_ratio_q`, each sample's out-of-fold log
    ratio. These, and hence every divergence, are differentiable in samples and weights with the
    models held at their optimum. Certified bounds and the two-sample test use the first split's
    uncalibrated log ratios, `held_out_p` and `held_out_q`. With `pack_size` = k all numbers are of
    p^k and q^k.

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
        head: the model, None for given scores.
        members: the fitted parameters, with leading axes (repeat, fold), or None.
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

    def log_ratio(self, x: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """Log p(x)/q(x), the mean of all models, for rows outside the samples.

        Args:
            x: rows like the samples; with `pack_size` = k, of shape (b, k, d).

        Returns:
            The log ratio of each row (of each pack).

        Raises:
            ValueError: if the shape does not match.
        """
        if self.members is None:
            raise ValueError("log_ratio needs a model, and this fit is of scores alone.")
        if self.pack_size > 1:
            x = as_numbers("x", x, exact=True)
            check_shape("x", x, "b", self.pack_size, "d")
            x = x.reshape(-1, x.shape[2])
        x = as_samples(x=x)[0] if self.center is None else self.center.subtract(x)
        # A pack is one row of the classifier, of its k rows' features one after the other.
        x = x.reshape(-1, self.pack_size * x.shape[1])
        features = self.members.mean.shape[-1]
        if self.members.values is not None:
            features //= 2  # the second half of the inputs are counts of ties
        check_shape("x", x, "b", features)
        # Padded to few sizes, batches of many sizes share a compiled program. Traced rows are part
        # of the caller's program.
        if is_traced(x, self):
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
        head = "scores alone" if self.head is None else f"head {type(self.head).__name__}"
        return (
            f"RatioFit({len(self.log_ratio_p)} rows of p, {len(self.log_ratio_q)} of q, "
            f"{folds} folds, {repeats} repeats, {head},\n"
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
        gradient with respect to samples and weights is that of the variational form
        E_p[f'(r)] + E_q[f(r) − r f'(r)] with the models fixed, by the envelope theorem the
        gradient of the divergence itself. Errors and diagnostics are constants for differentiation.

        The standard error combines four errors: that of the mean; that of the log ratio's intercept
        and slope, taken as estimated from the same samples; that of the ratio's scale; and that of
        overfitting. The scale's is log E_q[r] for KL and log E_p[1/r] for the reverse KL, both 0
        for the true ratio, and counts at most as much as the other three together. Overfitting is
        an excess cross-entropy ε. For a head that contains log p/q, ε is in expectation at least
        half of the `generalization_gap` and at most all of it: three quarters are counted. (Of
        averages over neighbours it is at most half.) For nearby p and q, JS changes by ε and any
        divergence by 4h(1)·ε, with h = r² f''. If a probe of another shape finds structure in the
        held-out rows that the head has missed (`diagnostics.too_simple`), ε is the probe's gain
        wherever that is larger. Any further bias, of a head that is too simple or trained too
        briefly, is not included. Beyond log n
        (`diagnostics.beyond_log_n`) the samples contain no evidence of it.

        The interval is a normal one, except for Jensen–Shannon. The out-of-fold value of the latter
        is log 2 minus a cross-entropy, which the excess can only raise: below the value the
        interval includes the first two errors, above it the two, all of the gap and the probe's
        gain, up to log 2.

        No interval ends below 0. Samples that the log ratios separate tell nothing of how large
        these are at most: all of their cross-entropy counts as excess, and the interval of
        Jensen–Shannon ends at log 2.

        A value below the 95 % bound of `certified_js` (for either KL, `certified_kl`), which holds
        for any head, is raised to it, and the lower end of an interval of level 1 − α to the bound
        of confidence 1 − α/2. There is no certificate for rows in groups or of unequal weights.

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
        return divergence_estimate(self.scores(), generator, confidence_level, base)

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

        In expectation it is a lower bound on the true value for any model. This is exact without
        calibration. A fold's calibration depends on its own rows, though only through the models of
        other folds. Hence the interval reaches further up than down: lower ≤ value ≤ upper ≤ log 2.
        """
        return self.divergence(JensenShannon(), confidence_level=confidence_level, base=base)

    def auc(self, *, confidence_level: ArrayLike = 0.95) -> Estimate:
        """The area under the ROC curve of the log ratio, ½ if p and q are indistinguishable.

        The interval takes the models as given. Near p = q that is too narrow (a nominal 95 %
        covered 88 of 100 samples of 400 rows), since scores of different folds are negatively
        correlated. To test whether p = q, use `two_sample_test`.
        """
        check_probability(confidence_level=confidence_level)
        return score_statistic(self.scores(), auc, confidence_level)

    def accuracy(self, *, confidence_level: ArrayLike = 0.95) -> Estimate:
        """The balanced accuracy of the log ratio's sign, at most (1 + TV)/2 on average."""
        check_probability(confidence_level=confidence_level)
        return score_statistic(self.scores(), accuracy, confidence_level)

    def two_sample_test(
        self, key: Key[Array, ""], *, kind: str = "auc", num_permutations: int = 999
    ) -> TestResult:
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
            A `TestResult`.

        Raises:
            ValueError: if `kind` is unknown, `num_permutations` is not positive, or a group has
                rows in both samples. `inference.score_permutation_test` exchanges rows within
                groups, given the scores.

        References:
            Lopez-Paz, Oquab 2017; Kim, Ramdas, Singh, Wasserman 2021, section 3: the permutation
            test on held-out rows.
        """
        held_out = self.held_out_p, self.held_out_q
        # A p-value is a step function of the scores, without useful derivatives.
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
        Held-out rows give bounded terms, one per pair of rows of p and of q (several rows of the
        larger sample are averaged), and betting against their mean is valid at every sample size. A
        model fitted to the first half of the folds bets on the later folds with one running
        capital; on the last fold, that fold's own model takes over. Each fold's own model also bets
        on its fold alone. The sequence has half of the error probability, each fold 1/(2K) of it,
        and the largest bound is returned. With two folds there is no sequence.

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
        return in_base(certified_js(self.scores(), confidence_level, clip), base)

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
        bound = kl_bound_from_js(self.certified_js(confidence_level=confidence_level, clip=clip))
        return in_base(bound, base)

    @property
    def diagnostics(self) -> Diagnostics:
        """Diagnostics of the ratio."""
        return diagnose(self.scores())


# Each query of a fit consists of dozens of small operations, and is therefore compiled.
_log_ratio = jax.jit(ensemble_log_ratio)
