"""The estimators of a density ratio: cross-fitting around different heads.

`ClassifierRatio` is the default choice. The others are the same wrapper around another head.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import (
    check_choice,
    check_count,
    check_flag,
    check_full_precision,
    check_probability,
    check_provides,
    check_shape,
    check_weights,
    check_widths,
)
from divjax.core.differentiation import refuse_derivatives
from divjax.core.keys import own_key
from divjax.core.labels import pool_labels
from divjax.core.padding import padded_size
from divjax.core.programs import is_traced
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_numbers, centered_samples
from divjax.core.types import Estimate
from divjax.ratio.calibration import CALIBRATIONS
from divjax.ratio.cross_fitting import cross_fit
from divjax.ratio.fit import RatioFit
from divjax.ratio.heads import (
    KLIEP,
    Auto,
    GaussianDiscriminant,
    LeastSquares,
    Linear,
    Network,
    Quadratic,
    RandomFourier,
    Telescoping,
)
from divjax.ratio.preparation import pad_samples, prepare
from divjax.ratio.protocols import Head
from divjax.ratio.splits import CrossFitting

__all__ = [
    "HEADS",
    "ClassifierRatio",
    "KLIEPRatio",
    "LeastSquaresRatio",
    "TelescopingRatio",
    "classifier_js",
    "classifier_kl",
]

HEADS = {
    "auto": Auto,
    "linear": Linear,
    "quadratic": Quadratic,
    "gaussian": GaussianDiscriminant,
    "fourier": RandomFourier,
    "mlp": Network,
}


@pytree
class _CrossFitted:
    """The base class of all ratio estimators: the fields of cross-fitting, and `fit`."""

    head: Head
    num_folds: int = static(default=5)
    num_repeats: int = static(default=1)
    validation_share: float = static(default=0.2)
    calibration: str = static(default="platt")
    count_duplicates: bool = static(default=False)
    pack_size: int = static(default=1)

    def __post_init__(self):
        # Each fold is scored by a fit to the other folds, of which there must be at least one.
        check_count(2, num_folds=self.num_folds)
        check_count(1, num_repeats=self.num_repeats, pack_size=self.pack_size)
        check_choice(CALIBRATIONS, calibration=self.calibration)
        check_flag(count_duplicates=self.count_duplicates)
        if not isinstance(self.validation_share, float):
            raise ValueError(
                "validation_share must be a Python float, since it determines shapes; got "
                f"{self.validation_share!r}."
            )
        check_probability(validation_share=self.validation_share)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m d"] | None = None,
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
        *,
        groups: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> RatioFit:
        """Fit the ratio of p to q. Compiles itself.

        Args:
            key: a key for splitting rows and for initialising and training networks.
            x: samples of p, at least two rows (or packs) per fold: an array, a list or a frame of
                numbers. NumPy's float64 is centred before it becomes float32.
            y: samples of q, likewise. Required.
            a: non-negative importance weights of x, of any scale, equal by default. Errors are
                those of (Σw)²/Σw² equal rows: a row of weight 2 is not two rows. Rows of weight
                zero are ignored, so that ragged samples can be padded with arbitrary rows.
            b: importance weights of y, likewise.
            groups: labels of the rows of x and of y (subjects, documents, copies), for rows that
                depend on each other. Rows of one label, in both samples, share a fold and a role.
                `two_sample_test` exchanges groups as one, if each lies in one sample. At least two
                groups per fold in either sample.

        Returns:
            A `RatioFit`. Memory is O(folds · repeats · (n + m) · features of the head).

        Raises:
            ValueError: if shapes do not match, a sample is too small, or concrete weights are
                negative. Every estimate and p-value is NaN if traced weights are negative or leave
                fewer than two rows per fold, or if a row of positive weight holds NaN or infinity.
        """
        return _check_and_fit(key, x, y, a, b, groups, self)


@pytree
class ClassifierRatio(_CrossFitted):
    """The log ratio log p/q as the logit of a classifier, cross-fitted.

    The balanced cross-entropy ½E_p[log(1 + e^{−u})] + ½E_q[log(1 + e^u)] is minimal at u = log p/q.
    The rows are split into folds, and each fold's log ratios come from a classifier fitted to the
    others. All folds and repeats are trained simultaneously. Both samples have equal total weight
    at any sample sizes, so that no prior shift log(n/m) needs correction.

    Attributes:
        head: a model of the log ratio (`divjax.ratio.heads`), or the name of one: "auto", "linear",
            "quadratic", "gaussian", "fourier", "mlp".
        hidden: widths of the network, if `head` is a name.
        num_folds: K ≥ 2. Each model is fitted to a share 1 − 1/K of the rows.
        num_repeats: the number of splits over which out-of-fold log ratios are averaged. Repeats
            reduce the variance of the fits, and with it the excess cross-entropy by which the
            Jensen–Shannon estimate is too low. A few repeats help for samples of hundreds of rows.
        validation_share: the share of the rows outside of the fold that is used for early stopping
            or model selection instead of training. It is static, since it determines shapes.
        calibration: "none", "temperature" (a slope) or "platt" (intercept and slope), the map of
            each fold's log ratios that is fitted to the other folds.
        count_duplicates: whether each feature is joined by log(1 + the number of training rows with
            exactly its value), which lets smooth models detect quantised values.
        pack_size: the number k of samples in each row of the classifier, which then estimates
            D(p^k‖q^k). Small differences add up, as KL(p^k‖q^k) = k KL(p‖q).

    Raises:
        ValueError: if an attribute is out of range or unknown.

    Example:
        >>> import jax
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> fit = ClassifierRatio(head="linear").fit(jax.random.key(1), p + 1, q)
        >>> estimate = fit.kl()  # the truth is 1/2
        >>> bool(estimate.interval.lower < 0.5 < estimate.interval.upper)
        True

    References:
        Sugiyama, Suzuki, Kanamori 2012, chapter 4: ratios by classification. Chernozhukov et al.
        2018: cross-fitting. Lin et al. 2018: packing.
    """

    head: Head | str = "auto"
    hidden: tuple[int, ...] = static(default=(32, 32))

    def __post_init__(self):
        super().__post_init__()
        check_widths(hidden=self.hidden)
        if isinstance(self.head, str):
            if self.head not in HEADS:
                raise ValueError(
                    f"head must be a head or one of {sorted(HEADS)}; got {self.head!r}."
                )
            kind, network = HEADS[self.head], Network(hidden=tuple(self.hidden))
            # Only the heads that train a network take `hidden`.
            options = {Auto: (network,), Network: (network.hidden,)}.get(kind, ())
            object.__setattr__(self, "head", kind(*options))


@pytree
class TelescopingRatio(_CrossFitted):
    """The log ratio in the large-KL regime, as a sum of intermediate log ratios, cross-fitted.

    It is intended for KL beyond the roughly ten nats that a single classifier can estimate. There
    the estimate rests on the shape of the intermediate models, as `diagnostics.beyond_log_n`
    reports.

    The attributes not listed are those of `ClassifierRatio`, except `hidden`.

    Attributes:
        head: the model of the intermediate log ratios.
        calibration: "none" by default, since in the large-KL regime hardly any row informs the
            slope of the sum. "platt" corrects poorly fitted intermediate ratios if p and q overlap.

    Example:
        >>> import jax
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 200, 1))
        >>> method = TelescopingRatio(Telescoping(num_ratios=5, network=None))
        >>> estimate = method.fit(jax.random.key(1), p + 6, q).kl()
        >>> 16 < float(estimate.value) < 20, bool(estimate.diagnostics.beyond_log_n)  # 18
        (True, True)

    References:
        Rhodes, Xu, Gutmann 2020.
    """

    head: Any = Telescoping()
    calibration: str = static(default="none")


@pytree
class LeastSquaresRatio(_CrossFitted):
    """The ratio by kernel least squares (uLSIF, and relative: RuLSIF), cross-fitted.

    Bandwidth and ridge are chosen by the analytic leave-one-out error. Neither iterative training
    nor validation rows are needed: by default `validation_share` reserves only one row of each
    sample per fold. The attributes not listed are those of `ClassifierRatio`, except `hidden`.

    Attributes:
        head: the kernel model.
        validation_share: as in `ClassifierRatio`.

    Example:
        >>> import jax
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> estimate = LeastSquaresRatio().fit(jax.random.key(1), p + 1, q).kl()  # the truth is ½
        >>> abs(float(estimate.value) - 0.5) < 3 * float(estimate.std_error)
        True

    References:
        Kanamori, Hido, Sugiyama 2009; Yamada et al. 2013: the relative ratio.
    """

    head: Any = LeastSquares()
    validation_share: float = static(default=1e-6)


@pytree
class KLIEPRatio(_CrossFitted):
    """The ratio r that minimises KL(p‖r·q), a mixture of kernels, cross-fitted.

    The attributes not listed are those of `ClassifierRatio`, except `hidden`.

    Attributes:
        head: the kernel model.

    Example:
        >>> import jax
        >>> p, q = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> estimate = KLIEPRatio().fit(jax.random.key(1), p + 1, q).kl()  # the truth is ½
        >>> abs(float(estimate.value) - 0.5) < 3 * float(estimate.std_error)
        True

    References:
        Sugiyama et al. 2008.
    """

    head: Any = KLIEP()


def _check_and_fit(
    key: Key[Array, ""],
    x: Numbers,
    y: Numbers,
    a: Numbers | None,
    b: Numbers | None,
    groups: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    method: _CrossFitted,
) -> RatioFit:
    """Check the samples, then cross-fit, compiled."""
    key = own_key(key)
    if y is None:  # most often the key is missing, which the check above reports
        raise ValueError("y is missing: fit takes a key, x and y.")
    # NumPy's float64 is centred before it becomes float32, where an offset would cost accuracy.
    center, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
    check_full_precision("x", x)
    check_provides("head", method.head, ("fit", "__call__"), "a ratio head")
    weights = []
    for name, rows, weight_name, weight in (("x", x, "a", a), ("y", y, "b", b)):
        num_rows = rows.shape[0]
        if weight is None:
            weight = np.ones(num_rows)
        weight = as_numbers(weight_name, weight)
        check_shape(weight_name, weight, num_rows)
        check_weights(weight_name, weight)
        if not isinstance(weight, Tracer):  # any scale, even beyond the range of the samples' dtype
            weight = np.asarray(weight, np.float64)
            # Rounded by NumPy: JAX would compile a conversion for every number of rows.
            weight = (weight / weight.max()).astype(x.dtype)
        # Traced weights cannot be counted here: `_fit` returns NaN if they leave too few rows.
        count = num_rows if isinstance(weight, Tracer) else np.count_nonzero(weight)
        if count // method.pack_size < 2 * method.num_folds:
            units = "rows" if method.pack_size == 1 else f"packs of {method.pack_size}"
            raise ValueError(
                f"{name} must hold at least two {units} of nonzero weight per fold, "
                f"{2 * method.num_folds} in all; got {count // method.pack_size}."
            )
        weights.append(jnp.asarray(weight, x.dtype))
    method = refuse_derivatives(
        method,
        "a fit's divergences are differentiable in the samples, with the models held fixed, not in "
        "the numbers of its head. Differentiate `head.fit` itself.",
    )
    labels = None if groups is None else _check_groups(groups, x.shape[0], y.shape[0], method)
    rows = x, y, *weights
    if is_traced(rows, labels):
        return dataclasses.replace(_fit(key, rows, labels, method), center=center)
    # Samples of other sizes then share the training program and compile only padding and slicing.
    n, m = len(x), len(y)
    rows, labels = pad_samples(rows, labels, padded_size(n), padded_size(m))
    fit = _fit(key, rows, labels, method)
    # Packs of weight zero come last, and are removed with the padding.
    return dataclasses.replace(
        fit.resized(n // method.pack_size, m // method.pack_size), center=center
    )


def _check_groups(
    groups: tuple[npt.ArrayLike, npt.ArrayLike], n: int, m: int, method: _CrossFitted
) -> Array:
    """The groups' labels in one vector."""
    if method.pack_size > 1:
        raise ValueError(f"groups are of single rows: pack_size must be 1; got {method.pack_size}.")
    labels, least = pool_labels("groups", groups, n, m), 2 * method.num_folds
    # Traced labels cannot be counted here: too few of them give NaN.
    if not isinstance(labels, Tracer):
        # Every fold is to test, and to train on, groups with rows of p and with rows of q.
        for name, part in (("x", labels[:n]), ("y", labels[n:])):
            count = len(np.unique(np.asarray(part)))
            if count < least:
                raise ValueError(
                    f"groups must hold at least two groups of {name} per fold, {least} in all; "
                    f"got {count}."
                )
    return labels


def _fit(
    key: Key[Array, ""],
    rows: tuple[Array, Array, Array, Array],
    groups: Array | None,
    method: _CrossFitted,
) -> RatioFit:
    """The fit, as a few programs of which one depends on the head."""
    sizes = {"num_folds": method.num_folds, "pack_size": method.pack_size}
    prepared = prepare(key, *rows, groups, **sizes)
    plan = CrossFitting(
        method.num_folds,
        method.num_repeats,
        method.validation_share,
        method.calibration,
        method.count_duplicates,
    )
    # From here on nothing knows of packs and given groups: a row is what the classifier is given.
    fitted = cross_fit(prepared.key, prepared.rows, method.head, plan, prepared.groups)
    return RatioFit(
        log_ratio_p=fitted.log_ratio_p,
        log_ratio_q=fitted.log_ratio_q,
        weights_p=prepared.rows.a,
        weights_q=prepared.rows.b,
        held_out_p=fitted.held_out_p,
        held_out_q=fitted.held_out_q,
        sequential=fitted.sequential,
        train=fitted.train,
        validation=fitted.validation,
        test=fitted.test,
        misfit=fitted.misfit,
        ties=prepared.ties,
        head=method.head,
        members=fitted.members,
        groups=prepared.of_samples,
        pack_size=method.pack_size,
    )


def classifier_kl(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"] | None = None,
    **options: Any,
) -> Estimate:
    """KL(p‖q) in nats by a cross-fitted classifier: `ClassifierRatio(**options).fit(…).kl()`.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> estimate = classifier_kl(jax.random.key(1), x + 1, y, head="linear")
        >>> abs(float(estimate.value) - 0.5) < 2 * float(estimate.std_error)
        True
    """
    return ClassifierRatio(**options).fit(key, x, y).kl()


def classifier_js(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"] | None = None,
    *,
    base: ArrayLike | None = None,
    **options: Any,
) -> Estimate:
    """JS(p, q) by a cross-fitted classifier: `ClassifierRatio(**options).fit(…).js(base=base)`.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> estimate = classifier_js(jax.random.key(1), x, y, head="linear")
        >>> abs(float(estimate.value)) < 0.02
        True
    """
    return ClassifierRatio(**options).fit(key, x, y).js(base=base)
