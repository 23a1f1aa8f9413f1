"""Densities and distributions of labels from the nearest samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_positive,
    check_scalar,
    check_shape,
    check_unit_interval,
)
from divjax.core.labels import as_indices
from divjax.core.numerics import nan_entries_unless, nan_unless
from divjax.core.samples import Numbers, as_numbers, centered_samples
from divjax.core.simplex import are_distributions, check_distributions
from divjax.fdiv.neighbor_search import nearest_points
from divjax.information.density.smoothing_kernels import log_ball_volume

__all__ = ["knn_log_density", "nearest_neighbor_distribution"]


def _check_neighbors(k: int, x: Array) -> None:
    check_count(1, k=k)
    if k > x.shape[0]:
        raise ValueError(f"k must be at most the number of samples, {x.shape[0]}; got {k}.")


def knn_log_density(
    z: Float[Numbers, "q d"], x: Float[Numbers, "n d"], *, k: int = 10
) -> Float[Array, " q"]:
    """The log-density at points z from the distances to their k-th nearest samples.

    ψ(k) − ψ(n + 1) − log V_d − d log r_k(z), with V_d the volume of the unit ball. The probability
    of the ball of radius r_k(z) has the expected logarithm ψ(k) − ψ(n + 1), whatever the density:
    the estimate is unbiased for the logarithm of the mean density in the ball, with variance
    ψ′(k) ≈ 1/k at any n. (Loftsgaarden and Quesenberry's estimate of p itself has k − 1 over n.)

    The estimate is no density: its tails ∝ ‖z‖^(−d) are not integrable. At a sample itself the
    sample is its own first neighbour.

    Time O(q n d), memory O((q + n) d + q k) plus one block of the budget of
    `divjax.core.pairwise`. Differentiable in z and x.

    Args:
        z: the points at which to evaluate.
        x: samples of p.
        k: the rank of the neighbour, static, from 1 to n.

    Returns:
        The log-density at each z, in nats, infinite if k samples coincide with z. NaN at a z that
        is not finite, and everywhere if a sample is not.

    Raises:
        ValueError: if z or x is empty or not a matrix, their numbers of features differ, or k is
            out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.uniform(jax.random.key(0), (5000, 2))
        >>> log_p = knn_log_density(jnp.array([[0.5, 0.5]]), x, k=100)
        >>> bool(abs(log_p[0]) < 0.3)  # the density is 1
        True

    References:
        Loftsgaarden, Quesenberry 1965. Kozachenko, Leonenko 1987: the expected logarithm.
    """
    _, z, x = centered_samples(z=z, x=x)
    check_full_precision("x", x)
    _check_neighbors(k, x)
    return _knn_log_density(z, x, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _knn_log_density(
    z: Float[Array, "q d"], x: Float[Array, "n d"], *, k: int
) -> Float[Array, " q"]:
    """`knn_log_density` after its checks."""
    n, d = x.shape
    near = nearest_points(z, x, k)
    # The probability of the ball has the distribution Beta(k, n + 1 − k), whatever the density.
    ranks = jnp.asarray([k, n + 1], x.dtype)
    log_share = -jnp.diff(digamma(ranks))[0]
    log_p = log_share - log_ball_volume(d) - d * near.log_distances[:, -1]
    # k samples at z itself leave a ball without volume.
    log_p = jnp.where(near.zero[:, -1], jnp.inf, log_p)
    log_p = nan_entries_unless(near.usable[:, -1] | near.zero[:, -1], log_p)
    # A row that is not finite may be anywhere, and so a neighbour of every point.
    return log_p * nan_unless(jnp.isfinite(x).all(), jnp.ones((), x.dtype))


def nearest_neighbor_distribution(
    z: Float[Numbers, "q d"],
    x: Float[Numbers, "n d"],
    labels: Int[Numbers, " n"],
    num_labels: int,
    *,
    k: int = 1024,
    temperature: ArrayLike = 1.0,
    model: Float[Numbers, "q v"] | None = None,
    share: ArrayLike = 0.25,
) -> Float[Array, "q v"]:
    """The labels' probabilities at points z, from the labels of the nearest samples.

    p(v | z) ∝ Σ_i 1[v_i = v] exp(−‖z − x_i‖²/τ) over the k nearest samples x_i. With a model's own
    probabilities, their mixture λ p(v | z) + (1 − λ) model(v | z). For a language model, x are the
    representations of contexts, and the labels the tokens that follow them.

    Time O(q n d), memory O((q + n) d + q (k + v)) plus one block of the budget of
    `divjax.core.pairwise`. Differentiable in z, x, the temperature, the model and the share; the
    neighbours are constant.

    Args:
        z: the points at which to predict.
        x: the stored samples.
        labels: the label of each sample, from 0 to `num_labels` − 1.
        num_labels: v, static.
        k: the number of neighbours, static; all samples if there are fewer. Of rows that are
            equally far as the k-th those that come first count: shuffle a table that is sorted.
        temperature: τ > 0, in the squared unit of x.
        model: probabilities of the model at each z, which sum to one.
        share: λ in [0, 1], the weight of the neighbours beside a model.

    Returns:
        The probabilities, one row for each z, exactly zero for a label that no neighbour (and no
        model) has. A row is NaN if z is not finite or a traced model's row is not a distribution,
        and all are if a sample is not finite, or a traced label or number is out of range.

    Raises:
        ValueError: if z or x is empty or not a matrix, their numbers of features differ, the labels
            are not one integer in range for each sample, the model's shape does not fit or its
            rows are not distributions, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([2, 0, 1])
        >>> p = nearest_neighbor_distribution(jnp.array([[0.0]]), x, labels, 3, k=2)
        >>> p.round(3).tolist()  # e^(-1)/(1 + e^(-1)) for label 0
        [[0.269, 0.0, 0.731]]

    References:
        Khandelwal, Levy, Jurafsky, Zettlemoyer, Lewis 2020, equations 2 and 3.
    """
    _, z, x = centered_samples(z=z, x=x)
    check_full_precision("x", x)
    check_count(1, k=k, num_labels=num_labels)
    check_positive(temperature=temperature)
    check_scalar(temperature=temperature, share=share)
    check_unit_interval(share=share)
    labels = as_indices("labels", labels)
    check_shape("labels", labels, x.shape[0])
    # Traced labels cannot be checked: any out of range makes the result NaN.
    if not isinstance(labels, Tracer):
        _check_labels(np.asarray(labels), num_labels)
    if model is not None:
        given = as_numbers("model", model)
        check_shape("model", given, z.shape[0], num_labels)
        check_distributions("model", given, x.dtype)
        model = jnp.asarray(given, x.dtype)
    # The default exceeds the size of a small sample, all of which are then neighbours.
    k = min(k, x.shape[0])
    options = {"num_labels": num_labels, "k": k}
    return _neighbor_distribution(z, x, labels, temperature, model, share, **options)


def _check_labels(labels: np.ndarray, num_labels: int) -> None:
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"labels must be from 0 to {num_labels - 1}; got {labels.min()} to {labels.max()}."
        )


@functools.partial(jax.jit, static_argnames=("num_labels", "k"))
def _neighbor_distribution(
    z: Float[Array, "q d"],
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    temperature: ArrayLike,
    model: Float[Array, "q v"] | None,
    share: ArrayLike,
    *,
    num_labels: int,
    k: int,
) -> Float[Array, "q v"]:
    """`nearest_neighbor_distribution` after its checks."""
    dtype = x.dtype
    temperature, share = (jnp.asarray(number, dtype) for number in (temperature, share))
    near = nearest_points(z, x, k)
    squared = jnp.where(near.usable, jnp.exp(2 * near.log_distances), jnp.inf)
    squared = jnp.where(near.zero, 0, squared)
    # Relative to the nearest sample: the softmax is the same, and neither overflows at small
    # temperatures nor cancels in the derivative by it.
    scores = -(squared - jax.lax.stop_gradient(squared[:, :1])) / temperature
    masses = jax.nn.softmax(scores, axis=1)
    rows = jnp.broadcast_to(jnp.arange(z.shape[0])[:, None], masses.shape)
    # Neighbours of the same label add up, which `set` would not do.
    p = jnp.zeros((z.shape[0], num_labels), dtype).at[rows, labels[near.index]].add(masses)

    valid = jnp.isfinite(x).all() & (temperature > 0) & (temperature < jnp.inf)
    valid = valid & jnp.all((labels >= 0) & (labels < num_labels))
    if model is not None:
        p = share * p + (1 - share) * model
        valid = valid & (share >= 0) & (share <= 1)
        p = nan_entries_unless(are_distributions(model)[:, None], p)
    p = nan_entries_unless(jnp.all(jnp.isfinite(z), axis=1, keepdims=True), p)
    return p * nan_unless(valid, jnp.ones((), dtype))
