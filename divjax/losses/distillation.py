"""Distillation by transport: the cost of moving a student's predictions or features to a teacher's.

Losses of one batch, the student first. They are differentiable in all arguments: if a teacher is
trained too, stop its gradient. The caller adds the task's own loss, such as the labels'
cross-entropy.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_choice,
    check_count,
    check_full_precision,
    check_no_negatives,
    check_nonnegative_values,
    check_positive_values,
    check_scalar,
    check_shape,
)
from divjax.core.labels import as_indices
from divjax.core.normal import Normal
from divjax.core.numerics import matmul, nan_entries_unless, nan_unless, quotient
from divjax.core.pairwise import common_center, map_row_blocks
from divjax.core.samples import Numbers, as_samples, without_offset
from divjax.ot.costs import PNorm
from divjax.ot.gaussian import gaussian_wasserstein

__all__ = ["sinkhorn_distillation", "wkd_features", "wkd_logits"]

_stop = jax.lax.stop_gradient
# The largest share of a plan's mass that rounding may move, in units of √u, u the unit roundoff.
_LARGEST_MOVED = 8


def _transport_cost(
    costs: Float[Array, "n m"],
    log_a: Float[Array, " n"],
    log_b: Float[Array, " m"],
    epsilon: ArrayLike,
    num_steps: int,
) -> Float[Array, ""]:
    """⟨P, C⟩ after `num_steps` Sinkhorn iterations, columns before rows, in the log domain.

    NaN for a traced ε that is not positive, and if rounding of costs and potentials leaves less
    than about half of the plan's digits. Differentiated through the iterations: they need not
    have converged, and the losses here are defined by the result after `num_steps` of them.
    """
    # A hyper-parameter of a wider type must not change the potentials' dtype.
    epsilon = jnp.asarray(epsilon, costs.dtype)
    kernel = -quotient(costs, epsilon)

    # Potentials in units of ε: P_ij = exp(f_i + g_j − C_ij/ε).
    def iteration(f, _):
        g = log_b - jax.nn.logsumexp(f[:, None] + kernel, axis=0)
        return log_a - jax.nn.logsumexp(g + kernel, axis=1), g

    f, g = jax.lax.scan(iteration, jnp.zeros_like(log_a), length=num_steps)
    plan = jnp.exp(f[:, None] + g[-1] + kernel)
    # The rows' sums, normalised last, reveal the rounding error of the potentials, but not that of
    # the costs, a share u C/ε of the plan.
    fixed, a, unit = _stop(plan), jnp.exp(_stop(log_a)), jnp.finfo(costs.dtype).eps / 2
    moved = jnp.sum(jnp.abs(jnp.sum(fixed, axis=1) - a)) + unit * jnp.sum(fixed * costs) / epsilon
    resolved = moved <= _LARGEST_MOVED * math.sqrt(unit) * jnp.sum(a)
    return nan_unless((epsilon > 0) & resolved, jnp.sum(plan * costs))


def _temper(logits: Float[Array, "*b c"], temperature: ArrayLike) -> Float[Array, "*b c"]:
    """The logits over the temperature; NaN for a traced temperature that is not positive."""
    temperature = jnp.asarray(temperature, logits.dtype)
    return logits / nan_unless(temperature > 0, temperature)


def _nonnegative(number: ArrayLike, dtype: DTypeLike) -> Float[Array, "..."]:
    """A hyper-parameter in the data's dtype; NaN if it is traced and negative."""
    number = jnp.asarray(number, dtype)
    return nan_unless(number >= 0, number)


def wkd_logits(
    student: Float[Numbers, "b c"],
    teacher: Float[Numbers, "b c"],
    labels: Int[Numbers, " b"],
    costs: Float[Numbers, "c c"],
    *,
    weight: ArrayLike = 30.0,
    temperature: ArrayLike = 2.0,
    epsilon: ArrayLike = 0.05,
    num_steps: int = 10,
) -> Float[Array, ""]:
    """WKD-L, the logit loss of Wasserstein knowledge distillation, mean over the batch.

    −p_T(y) log p_S(y) + λ ⟨P, C⟩: the cross-entropy of the target class y, at temperature 1, and
    the entropic transport cost between the probabilities of the other classes, softmax(z/τ) over
    all but y. Unlike KL it depends on the distances between classes.

    Args:
        student: logits, with at least three classes.
        teacher: logits.
        labels: y, integers. One out of range makes the loss NaN.
        costs: C between classes, non-negative: `class_costs`.
        weight: λ, 30 for ImageNet and 200 to 600 for CIFAR-100 in the paper.
        temperature: τ, 2 for ImageNet and 6 to 8 for CIFAR-100.
        epsilon: the regularisation of the transport, in the unit of C. If it is far below the
            costs, rounding dominates the plan, and the loss is NaN.
        num_steps: the number of Sinkhorn iterations, after which the cost is evaluated and
            through which it is differentiated.

    Returns:
        The loss. Memory is O(c²) per sample, and large batches are computed blockwise.

    Raises:
        ValueError: for wrong shapes or a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import class_costs
        >>> costs = class_costs(jnp.eye(3))
        >>> teacher = jnp.array([[4.0, 2.0, 0.0]])
        >>> near, far = teacher.at[0, 1].add(0.5), teacher.at[0, 1].add(-4.0)
        >>> losses = [wkd_logits(z, teacher, jnp.array([0]), costs) for z in (near, far)]
        >>> bool(losses[0] < losses[1])
        True

    References:
        Lv et al. 2024, eq. 2–5 and their settings.
    """
    student, teacher = _as_logits(student, teacher)
    b, c = student.shape
    # Transport needs at least two classes besides the target.
    if c < 3:
        raise ValueError(f"student must have at least three classes; got {c}.")
    labels = as_indices("labels", labels)
    check_shape("labels", labels, b)
    (costs,) = as_leaves(costs=costs)
    check_shape("costs", costs, c, c)
    check_no_negatives(costs=costs)
    check_scalar(weight=weight, temperature=temperature, epsilon=epsilon)
    check_nonnegative_values(weight=weight)
    check_positive_values(temperature=temperature, epsilon=epsilon)
    check_count(1, num_steps=num_steps)
    options = as_leaves(weight=weight, temperature=temperature, epsilon=epsilon)
    return _wkd_logits(student, teacher, labels, costs, *options, num_steps=num_steps)


@functools.partial(jax.jit, static_argnames="num_steps")
def _wkd_logits(
    student: Float[Array, "b c"],
    teacher: Float[Array, "b c"],
    labels: Int[Array, " b"],
    costs: Float[Array, "c c"],
    weight: ArrayLike,
    temperature: ArrayLike,
    epsilon: ArrayLike,
    *,
    num_steps: int,
) -> Float[Array, ""]:
    c = student.shape[1]
    costs, weight = _nonnegative(costs, student.dtype), _nonnegative(weight, student.dtype)

    def one(student, teacher, label):
        # The indices of all classes except y, of the same number for any y.
        others = jnp.arange(c - 1)
        others = jnp.where(others >= label.astype(others.dtype), others + 1, others)
        # Both sides are normalised without y, whose probability the cross-entropy matches.
        without_label = lambda z: jax.nn.log_softmax(_temper(z[others], temperature))
        log_a, log_b = without_label(student), without_label(teacher)
        between = costs[others[:, None], others]
        moved = _transport_cost(between, log_a, log_b, epsilon, num_steps)
        # The target's cross-entropy is over all classes, and at temperature 1.
        target = -jax.nn.softmax(teacher)[label] * jax.nn.log_softmax(student)[label]
        # Indexing wraps or clamps a label out of range, and would give another class's loss.
        return nan_entries_unless((label >= 0) & (label < c), target + weight * moved)

    # A few matrices (c − 1) × (c − 1) for each sample.
    losses = map_row_blocks(jax.vmap(one), 4 * (c - 1) ** 2, student, teacher, labels)
    return jnp.mean(losses)


def wkd_features(
    student: Float[Numbers, "b ... channels"],
    teacher: Float[Numbers, "b ... channels"],
    *,
    covariance: str = "diagonal",
    mean_weight: ArrayLike = 2.0,
    grid: int = 1,
    floor: ArrayLike = 1e-5,
) -> Float[Array, ""]:
    """WKD-F, the feature loss of Wasserstein knowledge distillation, mean over the batch.

    Each image's features, one vector per position, are summarised by a Gaussian (of n positions,
    with variances over n − 1). The loss is γ‖m_S − m_T‖² plus ‖σ_S − σ_T‖² for diagonal
    covariances, or plus the squared Bures distance of the covariances for full ones. With γ = 1 it
    is the squared Wasserstein distance between the student's and the teacher's Gaussian.

    Args:
        student: features of an intermediate layer, already projected to the teacher's channels,
            with at least two positions.
        teacher: likewise, of the same shape.
        covariance: "diagonal" or "full".
        mean_weight: γ, 2 for ImageNet and 4 for CIFAR-100 in the paper, which then weighs the loss
            by .02 and .08.
        grid: images "b h w channels" are cut into grid × grid cells, with one Gaussian each.
        floor: a constant added to all variances.

    Returns:
        The loss, mean also over cells. Full covariances take O(channels³) per cell.

    Raises:
        ValueError: for wrong shapes, an unknown covariance, a grid that does not divide h and w, or
            full covariances in half precision.

    Example:
        >>> import jax
        >>> student, teacher = jax.random.normal(jax.random.key(0), (2, 4, 6, 6, 3))
        >>> float(wkd_features(student, student)), bool(wkd_features(student, teacher) > 0)
        (0.0, True)

    References:
        Lv et al. 2024, eq. 6–8 and their settings.
    """
    shapes = [jnp.shape(z) for z in as_leaves(student=student, teacher=teacher)]
    shape = shapes[0]
    if len(shape) < 3:
        raise ValueError(f"student must have shape (b, ..., channels); got {shape}.")
    if 0 in shape:
        raise ValueError(f"student must not be empty; got shape {shape}.")
    if shapes[1] != shape:
        raise ValueError(f"teacher must have shape {shape}; got shape {shapes[1]}.")
    # A common offset of an image's features does not change the distance.
    teacher, student = without_offset(_means_over_positions, teacher=teacher, student=student)
    check_choice(("diagonal", "full"), covariance=covariance)
    check_scalar(mean_weight=mean_weight, floor=floor)
    check_nonnegative_values(mean_weight=mean_weight)
    check_positive_values(floor=floor)
    check_count(1, grid=grid)
    # Factorisations do not support half precision.
    if covariance == "full":
        check_full_precision("student", student)
        check_full_precision("teacher", teacher)
    options = as_leaves(mean_weight=mean_weight, floor=floor)
    return _wkd_features(student, teacher, *options, covariance=covariance, grid=grid)


def _means_over_positions(features: np.ndarray) -> np.ndarray:
    return np.mean(features, axis=tuple(range(1, features.ndim - 1)), keepdims=True)


@functools.partial(jax.jit, static_argnames=("covariance", "grid"))
def _wkd_features(
    student: Float[Array, "b ... channels"],
    teacher: Float[Array, "b ... channels"],
    mean_weight: ArrayLike,
    floor: ArrayLike,
    *,
    covariance: str,
    grid: int,
) -> Float[Array, ""]:
    # A hyper-parameter of a wider type must not change the features' dtype.
    dtype = jnp.result_type(student, teacher)
    student, teacher = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)
    mean_weight, floor = _nonnegative(mean_weight, dtype), jnp.asarray(floor, dtype)
    student, teacher = _cells(student, grid), _cells(teacher, grid)
    if student.shape[1] < 2:
        raise ValueError(f"student must have at least two positions; got {student.shape[1]}.")

    def fitted(features):
        # Variances over n − 1. The floor keeps them positive: the root of 0 has no finite
        # derivative.
        mean = jnp.mean(features, axis=0)
        centered, count = features - mean, features.shape[0] - 1
        if covariance == "diagonal":
            return Normal(mean, jnp.sum(centered**2, axis=0) / count + floor)
        scatter = matmul(centered.T, centered) / count
        return Normal(mean, scatter + floor * jnp.eye(scatter.shape[0], dtype=scatter.dtype))

    def one(student, teacher):
        # About one point near both, so that a common offset does not reduce accuracy.
        center = common_center(teacher)
        of_student, of_teacher = fitted(student - center), fitted(teacher - center)
        # The distance of Gaussians with equal means is the covariances' part, which γ does not
        # weigh.
        spread = gaussian_wasserstein(of_student._replace(mean=of_teacher.mean), of_teacher)
        return mean_weight * jnp.sum((of_student.mean - of_teacher.mean) ** 2) + spread

    return nan_unless(floor > 0, jnp.mean(jax.vmap(one)(student, teacher)))


def sinkhorn_distillation(
    student: Float[Numbers, "b c"],
    teacher: Float[Numbers, "b c"],
    *,
    weight: ArrayLike = 1e-3,
    temperature: ArrayLike = 2.0,
    epsilon: ArrayLike = 0.1,
    num_steps: int = 20,
) -> Float[Array, ""]:
    """SinKD: the transport cost between a batch of a student's predictions and one of a teacher's.

    λ ⟨P, C⟩ with C_ij = ‖p_S(x_i) − p_T(x_j)‖₁ for predictions softmax(z/τ), and P from exp(−C/ε)
    by alternating normalisation of rows and columns to sums of one. The batches are compared as
    sets, and the total mass is b.

    Args:
        student: logits.
        teacher: logits.
        weight: λ. In the paper's code this factor is inside the loss, and a further .8 outside.
        temperature: τ.
        epsilon: ε, in units of probability. If it is far below the costs, rounding dominates the
            plan, and the loss is NaN.
        num_steps: the number of normalisations of the rows, and as many of the columns, columns
            last. The loss is differentiated through them.

    Returns:
        The loss. Memory is O(b²).

    Raises:
        ValueError: for wrong shapes or a number out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> student, teacher = jax.random.normal(jax.random.key(0), (2, 8, 5))
        >>> shuffled = sinkhorn_distillation(student, teacher[::-1])
        >>> bool(jnp.isclose(shuffled, sinkhorn_distillation(student, teacher)))
        True

    References:
        Cui et al. 2024, section 3.2 and their settings.
    """
    student, teacher = _as_logits(student, teacher)
    check_scalar(weight=weight, temperature=temperature, epsilon=epsilon)
    check_nonnegative_values(weight=weight)
    check_positive_values(temperature=temperature, epsilon=epsilon)
    check_count(1, num_steps=num_steps)
    options = as_leaves(weight=weight, temperature=temperature, epsilon=epsilon)
    return _sinkhorn_distillation(student, teacher, *options, num_steps=num_steps)


@functools.partial(jax.jit, static_argnames="num_steps")
def _sinkhorn_distillation(
    student: Float[Array, "b c"],
    teacher: Float[Array, "b c"],
    weight: ArrayLike,
    temperature: ArrayLike,
    epsilon: ArrayLike,
    *,
    num_steps: int,
) -> Float[Array, ""]:
    p = jax.nn.softmax(_temper(student, temperature))
    q = jax.nn.softmax(_temper(teacher, temperature))
    # Sums of one for rows and columns, hence a total mass of b rather than one.
    log_ones = jnp.zeros_like(p[:, 0])
    # Transposed, as columns are normalised last.
    costs = PNorm(1.0).matrix(q, p)
    cost = _transport_cost(costs, log_ones, log_ones, epsilon, num_steps)
    is_number = ~(jnp.isnan(p).any() | jnp.isnan(q).any())
    return nan_unless(is_number, _nonnegative(weight, p.dtype) * cost)


def _as_logits(
    student: Numbers, teacher: Numbers
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Logits as floating-point matrices of one shape and dtype, NumPy's less their row maxima."""
    shapes = [z.shape for z in as_samples(student=student, teacher=teacher)]
    if shapes[1] != shapes[0]:
        raise ValueError(f"teacher must have shape {shapes[0]}; got shape {shapes[1]}.")
    # A constant added to a row of logits does not change its softmax: the maximum of each of
    # NumPy's rows is subtracted in float64.
    (student,) = without_offset(_row_maxima, student=student)
    (teacher,) = without_offset(_row_maxima, teacher=teacher)
    student, teacher = as_samples(student=student, teacher=teacher)
    return student, teacher


def _row_maxima(z: np.ndarray) -> np.ndarray:
    return np.max(z, axis=-1, keepdims=True)


def _cells(
    features: Float[Array, "b ... channels"], grid: int
) -> Float[Array, "k positions channels"]:
    """All positions of each image, or of each of its grid × grid cells."""
    channels = features.shape[-1]
    # A single cell needs no height and width: positions may have any axes.
    if grid == 1:
        return features.reshape(features.shape[0], -1, channels)
    check_shape("student", features, "b", "h", "w", "channels")
    b, h, w, _ = features.shape
    if h % grid or w % grid:
        raise ValueError(f"grid must divide height and width, {h} and {w}; got {grid}.")
    # The axes are image, cell row, row in it, cell column, column in it, channel.
    cells = features.reshape(b, grid, h // grid, grid, w // grid, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(b * grid**2, -1, channels)
