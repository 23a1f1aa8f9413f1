"""Mutual information by a learned density ratio between pairs and shuffled pairs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core.checks import check_count, check_provides
from divjax.core.keys import own_key
from divjax.core.numerics import in_base, in_units_of
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center, Numbers, as_weights, centered_samples
from divjax.core.types import Estimate, summary
from divjax.ratio.estimators import ClassifierRatio
from divjax.ratio.fit import RatioFit

__all__ = ["ClassifierInformation", "InformationFit"]


@pytree
class InformationFit:
    """The log ratio of p(x, y) to p(x) p(y), fitted to paired rows.

    Attributes:
        ratio: the fitted ratio, whose samples of p are the pairs, in their order, and whose samples
            of q are shuffled pairs. Its other divergences and its `diagnostics` are those of the
            joint distribution from the product; there are no certificates, and no permutation test,
            for rows that occur in both samples.
        center_x: the centre that is subtracted from x.
        center_y: the centre that is subtracted from y.
    """

    ratio: RatioFit
    center_x: Center
    center_y: Center

    __repr__ = summary

    def mutual_information(
        self, *, confidence_level: ArrayLike = 0.95, base: ArrayLike | None = None
    ) -> Estimate:
        """I(x; y) = E log p(x, y)/(p(x) p(y)), by out-of-fold log ratios.

        In nats unless a base is given. It is `RatioFit.kl`, which explains error and interval; rows
        of one block count as one. Not clipped at zero.
        """
        return self.ratio.kl(confidence_level=confidence_level, base=base)

    @property
    def log_ratios(self) -> Float[Array, " n"]:
        """The pointwise mutual information of each of the pairs, out of fold, in nats."""
        return self.ratio.log_ratio_p

    def pointwise_mutual_information(
        self,
        x: Float[Numbers, "b d"],
        y: Float[Numbers, "b e"],
        *,
        base: ArrayLike | None = None,
    ) -> Float[Array, " b"]:
        """Log p(x, y)/(p(x) p(y)) at each pair of rows, the mean of all models.

        At the pairs of the fit, which most models have seen, use `log_ratios` instead.

        Args:
            x: rows of the first variable.
            y: rows of the second, of the same number.
            base: the base of the logarithm, nats by default.

        Returns:
            The pointwise mutual information, negative for pairs that independence makes likelier.

        Raises:
            ValueError: if the shapes do not fit.
        """
        rows_x, rows_y = self.center_x.subtract(x), self.center_y.subtract(y)
        _check_paired(rows_x, rows_y)
        return in_base(self.ratio.log_ratio(_joined(rows_x, rows_y)), base)


@pytree
class ClassifierInformation:
    """Mutual information as the divergence KL(p(x, y)‖p(x) p(y)), by a classifier.

    The density ratio is fitted between the pairs and rows whose y come from other pairs. For that
    the rows are divided at random into blocks of `num_products` + 1 (the last may have more), and
    each x is combined with the y that follow it cyclically within its block, never with its own. A
    block, with its pairs and its products, is one group of the ratio's cross-fitting: no row is in
    the training and in the test part, not even as half of a product.

    A classifier is meant for variables of many features or of mixed kinds, and shows where the
    dependence is (`InformationFit.pointwise_mutual_information`). For few continuous features
    `KSG`, with a smaller error, and for jointly normal ones `information.Gaussian` need no fit. The
    plug-in estimate may err to either side. `ratio.MutualInformationBound` has lower bounds
    instead, by a critic with many false pairs in each batch: "infonce" varies least, and cannot
    exceed the logarithm of their number; "dv" and "nwj" have no such limit, and a variance that
    grows like e^I; "smile" limits that by clipping, and is no bound any more; "kl_from_js" is a
    bound that hardly varies, and far below large I. Beyond log n no number from n rows is reliable
    (`diagnostics.beyond_log_n`).

    Attributes:
        estimator: a density ratio's estimator: `ratio.ClassifierRatio` and the others of
            `divjax.ratio`, or one whose `fit` takes their arguments and returns a `RatioFit`.
        num_products: the number of y each x is combined with, static. More of them represent
            p(x) p(y) better, but take larger blocks, of which each fold needs two: with three
            instead of one the error for 600 rows of two Gaussians of correlation 0.8 is smaller by
            a quarter.

    Raises:
        ValueError: if `num_products` is not positive.

    Example:
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 600, 1))
        >>> y = 0.8 * x + 0.6 * noise  # I = −½ log(1 − .8²) = .511
        >>> method = ClassifierInformation(ClassifierRatio("quadratic"))
        >>> fit = method.fit(jax.random.key(1), x, y)
        >>> estimate = fit.mutual_information()
        >>> bool(abs(estimate.value - 0.511) < 3 * estimate.std_error)
        True
        >>> (fit.pointwise_mutual_information([[1.0], [1.0]], [[0.8], [-0.8]]) > 0).tolist()
        [True, False]

    References:
        Sugiyama, Suzuki, Kanamori 2012: ratios by classification. Letizia, Novello, Tonello 2024:
        derangements, against permutations that keep pairs.
    """

    estimator: Any = ClassifierRatio()
    num_products: int = static(default=3)

    def __post_init__(self):
        check_count(1, num_products=self.num_products)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "n e"] | None = None,
        weights: Float[Numbers, " n"] | None = None,
    ) -> InformationFit:
        """Fit the ratio. Compiles itself.

        Args:
            key: a key for the blocks and the estimator.
            x: rows of one variable.
            y: rows of the other, paired with those of x. Required.
            weights: non-negative weights of the pairs, of any scale, equal by default. Products
                have the product of their rows' weights. Rows of weight zero may hold anything.

        Returns:
            An `InformationFit`.

        Raises:
            ValueError: if x or y is empty or not a matrix, they differ in their numbers of rows, or
                there are fewer than two blocks for each fold of the estimator.
        """
        key = own_key(key)
        if y is None:  # most often the key is missing, which the check above reports
            raise ValueError("y is missing: fit takes a key, x and y.")
        check_provides("estimator", self.estimator, ("fit",), "such as ratio.ClassifierRatio()")
        # Each variable has a centre of its own, which is kept for new rows.
        center_x, rows_x = centered_samples({"x": weights}, x=x)
        center_y, rows_y = centered_samples({"y": weights}, y=y)
        _check_paired(rows_x, rows_y)
        least = self.num_products + 1
        if len(rows_x) < least:
            raise ValueError(
                f"x must have at least num_products + 1 = {least} rows; got {len(rows_x)}."
            )
        if weights is not None:
            weights = as_weights("weights", weights, len(rows_x), jnp.result_type(rows_x, rows_y))
        of_blocks, of_fit = jax.random.split(key)
        found = _samples(of_blocks, rows_x, rows_y, weights, num_products=self.num_products)
        given = {} if found.weights is None else {"a": found.weights[0], "b": found.weights[1]}
        ratio = self.estimator.fit(
            of_fit, found.pairs, found.products, **given, groups=found.blocks
        )
        return InformationFit(ratio, center_x, center_y)


class _Samples(NamedTuple):
    """Pairs and products, and the blocks and weights of both."""

    pairs: Float[Array, "n f"]
    products: Float[Array, "m f"]
    blocks: tuple[Int[Array, " n"], Int[Array, " m"]]
    weights: tuple[Float[Array, " n"], Float[Array, " m"]] | None


def _check_paired(x: Array, y: Array) -> None:
    if len(x) != len(y):
        raise ValueError(
            f"x and y must have the same number of rows, which are pairs; got {len(x)} and "
            f"{len(y)}."
        )


def _joined(x: Float[Array, "n d"], y: Float[Array, "n e"]) -> Float[Array, "n f"]:
    """Rows [x, y] of a common dtype."""
    dtype = jnp.result_type(x, y)
    return jnp.concatenate([x.astype(dtype), y.astype(dtype)], axis=1)


@functools.partial(jax.jit, static_argnames="num_products")
def _samples(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    y: Float[Array, "n e"],
    weights: Float[Array, " n"] | None,
    *,
    num_products: int,
) -> _Samples:
    """The pairs in their order, and each x with the y of others of its block."""
    first, second, blocks = _products(key, len(x), num_products)
    # Draws of p(x) p(y): x and y of two rows that are drawn independently of each other.
    products = _joined(x[first], y[second])
    # Both rows of a product are in one block, which is that of its x.
    groups = blocks, blocks[first]
    if weights is None:
        return _Samples(_joined(x, y), products, groups, None)
    # A combination of two rows has the product of their masses, in units of the largest: products
    # of weights would leave the dtype's range.
    scaled, _ = in_units_of(jnp.max(weights), weights)
    return _Samples(_joined(x, y), products, groups, (scaled, scaled[first] * scaled[second]))


def _products(
    key: Key[Array, ""], num_rows: int, num_products: int
) -> tuple[Int[Array, " m"], Int[Array, " m"], Int[Array, " n"]]:
    """The rows of x and of y of each product, and the block of each row."""
    size = num_products + 1
    place = np.arange(num_rows)
    # Rows left over after the last whole block belong to it.
    block = np.minimum(place // size, num_rows // size - 1)
    start = block * size
    length = np.where(block == block[-1], num_rows - start, size)
    shifts = np.arange(1, size)[:, None]
    # Shifts of 1 to num_products within a block of more rows: no row is combined with itself.
    partner = start + (place - start + shifts) % length
    # Places are static, and which row is at each is random: one program for all keys.
    order = jax.random.permutation(key, num_rows)
    first = jnp.tile(order, num_products)
    # Blocks are intervals of places in a random order, read back to the rows.
    blocks = jnp.zeros(num_rows, order.dtype).at[order].set(jnp.asarray(block, order.dtype))
    return first, order[partner.ravel()], blocks
