"""The spectral entropy of a diffusion on samples, and the information that labels have about it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core.arguments import as_optional_leaf
from divjax.core.checks import (
    check_base,
    check_count,
    check_full_precision,
    check_positive_finite,
    check_scalar,
    key_first,
)
from divjax.core.keys import own_key
from divjax.core.labels import concrete_labels
from divjax.core.numerics import in_base, matmul, nan_unless, quotient, safe_log, safe_sqrt
from divjax.core.pairwise import living_rows, squared_distances
from divjax.core.samples import Numbers, as_weights, centered_samples
from divjax.core.simplex import shares_of
from divjax.information.spectral_functions import spectral_function

__all__ = ["diffusion_spectral_entropy", "diffusion_spectral_mutual_information"]


def _powers_entropy(values: Float[Array, " n"], time: Float[Array, ""]) -> Float[Array, ""]:
    """−Σ q log q with q ∝ |λ|^t."""
    # A Gaussian kernel's matrix is positive semidefinite: negative eigenvalues are rounding.
    size = jnp.abs(values)
    # An eigenvalue of one up to rounding is one, whose powers do not vanish at any time.
    rounding = 4 * values.shape[0] ** 0.5 * jnp.finfo(values.dtype).eps
    near_one = jnp.abs(size - 1) <= rounding
    size = size / jax.lax.stop_gradient(jnp.where(near_one, size, 1))
    # Logarithms of powers, since the powers themselves underflow at long times.
    logs = jnp.where(size > 0, time * safe_log(size), -jnp.inf)
    q = jax.nn.softmax(logs)
    # −Σ q log q = log Σ exp(logs) − Σ q logs; an eigenvalue of zero has no mass.
    return jax.nn.logsumexp(logs) - jnp.sum(q * jnp.where(size > 0, logs, 0))


def _entropy(
    x: Float[Array, "n d"],
    masses: Float[Array, " n"] | None,
    bandwidth: Float[Array, ""],
    time: Float[Array, ""],
) -> Float[Array, ""]:
    """The entropy in nats of finite rows, of equal masses for None."""
    inverse = quotient(1.0, bandwidth)
    # One factor after the other: the square of 1/σ may overflow, and 0 · ∞ is NaN.
    gram = jnp.exp(-0.5 * (squared_distances(x) * inverse * inverse))
    degrees = jnp.sum(gram, axis=1) if masses is None else matmul(gram, masses)
    # A row without mass may be so far from all others that its degree is zero.
    root = jax.lax.rsqrt(jnp.where(degrees == 0, 1, degrees))
    if masses is not None:
        # A row without mass is an eigenvector with eigenvalue zero.
        root = safe_sqrt(masses) * root
    return spectral_function(_powers_entropy, gram * root[:, None] * root, time)


def _positive(number: ArrayLike, dtype: jnp.dtype) -> Float[Array, ""]:
    number = jnp.asarray(number, dtype)
    return nan_unless((number > 0) & (number < jnp.inf), number)


def _check_options(bandwidth: ArrayLike, time: ArrayLike, base: ArrayLike | None) -> None:
    check_scalar(bandwidth=bandwidth, time=time)
    check_positive_finite(bandwidth=bandwidth, time=time)
    check_base(base)


def diffusion_spectral_entropy(
    x: Float[Numbers, "n d"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    bandwidth: ArrayLike = 10.0,
    time: ArrayLike = 1.0,
    base: ArrayLike | None = 2,
) -> Float[Array, ""]:
    """The entropy of the spectrum of a diffusion on the samples, after a time.

    −Σ_i q_i log q_i with q_i ∝ |λ_i|^t, for the eigenvalues λ of K = D^(−½) G D^(−½), where
    G_ij = exp(−‖x_i − x_j‖²/(2σ²)) and D holds the row sums of G. They are those of the random walk
    D^(−1) G. Each separate cluster has an eigenvalue of one: the entropy is at least the logarithm
    of their number, and approaches it with time, as small eigenvalues vanish.

    (The authors' text describes another normalisation, of rows after an anisotropic one, with
    slightly different numbers; their code computes this one.)

    With weights the walk goes to rows in proportion to them: d_i = Σ_j w_j G_ij, and K has the
    entries (w_i w_j)^½ G_ij/(d_i d_j)^½, whose eigenvalues but zeros are those of rows that are
    repeated in these proportions.

    Time O(n² d + n³), memory O(n²). Differentiable, also where eigenvalues repeat. In float32,
    rounding gives eigenvalues that are zero about 10⁻⁷, which count at short times, and those
    within 4√n ε of one count as one, at which clusters that are joined as weakly are separate.

    Args:
        x: samples.
        weights: their weights, non-negative, with any sum, uniform by default. Rows of weight zero
            may hold anything.
        bandwidth: σ > 0, in the unit of x.
        time: t > 0.
        base: the base of the logarithm, None for nats.

    Returns:
        The entropy, by default in bits. NaN if a row with weight is not finite, or a traced number
        is out of range.

    Raises:
        ValueError: if x is empty or not a matrix, weights do not fit, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> clusters = jnp.repeat(jnp.array([[0.0], [100.0], [200.0], [300.0]]), 5, axis=0)
        >>> round(float(diffusion_spectral_entropy(clusters, time=2.0)), 3)
        2.0

    References:
        Liao, Liu, Christensen, Tong, Huguet, Wolf, Nickel, Adelstein, Krishnaswamy 2024, "Assessing
        neural network representations during training using noise-resilient diffusion spectral
        entropy".
    """
    _, x = centered_samples({"x": weights}, x=x)
    check_full_precision("x", x)
    if weights is not None:
        weights = as_weights("weights", weights, len(x), x.dtype)
    _check_options(bandwidth, time, base)
    return _diffusion_entropy(x, weights, bandwidth, time, as_optional_leaf(base=base))


@jax.jit
def _diffusion_entropy(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    bandwidth: ArrayLike,
    time: ArrayLike,
    base: ArrayLike | None,
) -> Float[Array, ""]:
    bandwidth, time = _positive(bandwidth, x.dtype), _positive(time, x.dtype)
    masses = None
    if weights is not None:
        x, masses = living_rows(x, weights), shares_of(weights)
    return in_base(_entropy(x, masses, bandwidth, time) * _one_if_finite(x), base)


def _one_if_finite(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """One, or NaN for samples that are not finite: an infinite row is at infinite distances."""
    return nan_unless(jnp.isfinite(x).all(), jnp.ones((), x.dtype))


@key_first
def diffusion_spectral_mutual_information(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    labels: Int[Numbers, " n"],
    *,
    num_subsets: int = 5,
    bandwidth: ArrayLike = 10.0,
    time: ArrayLike = 1.0,
    base: ArrayLike | None = 2,
) -> Float[Array, ""]:
    """How much labels reduce the spectral entropy of a diffusion on the samples.

    Σ_b n_b/n (mean_s S(x_s) − S(x_b)) with S the `diffusion_spectral_entropy`, x_b the n_b rows
    with label b, and x_s random subsets of n_b rows: subsets of the same size, since the entropy
    grows with the number of rows. For labels that are independent of x the expectation is zero.
    Without weights, for the same reason: of weighted rows no subset has the size of another.

    Time O(n² d) and O(labels · num_subsets · m³), memory O(m²), for m rows of the most frequent
    label. Differentiable in x, also where eigenvalues repeat.

    Args:
        key: the key for the subsets.
        x: samples.
        labels: the label of each sample: integers, booleans or text. Their numbers are static.
        num_subsets: the number of random subsets for each label.
        bandwidth: σ > 0, in the unit of x.
        time: t > 0.
        base: the base of the logarithm, None for nats.

    Returns:
        The mutual information, by default in bits. NaN if x is not finite, or a traced number is
        out of range.

    Raises:
        ValueError: if x is empty or not a matrix, the labels are not one for each row, or are
            traced, or a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> clusters = jnp.repeat(jnp.array([[0.0], [100.0], [200.0], [300.0]]), 8, axis=0)
        >>> labels = jnp.repeat(jnp.arange(4), 8)
        >>> of = lambda labels: diffusion_spectral_mutual_information(
        ...     jax.random.key(0), clusters, labels, time=2.0
        ... )
        >>> bool(of(labels) > 1.5), bool(abs(of(jnp.arange(32) % 4)) < 0.3)
        (True, True)

    References:
        Liao, Liu, Christensen, Tong, Huguet, Wolf, Nickel, Adelstein, Krishnaswamy 2024, "Assessing
        neural network representations during training using noise-resilient diffusion spectral
        entropy".
    """
    key = own_key(key)
    _, x = centered_samples(x=x)
    check_full_precision("x", x)
    check_count(1, num_subsets=num_subsets)
    _check_options(bandwidth, time, base)
    rows, sizes = _rows_of_labels(labels, x.shape[0])
    base = as_optional_leaf(base=base)
    return _label_information(key, x, rows, sizes, bandwidth, time, base, num_subsets=num_subsets)


def _rows_of_labels(labels: Numbers, n: int) -> tuple[np.ndarray, np.ndarray]:
    """For each label its rows, filled up to the largest number of them, and their number."""
    if np.shape(labels) != (n,):
        raise ValueError(f"labels must have shape ({n},); got shape {np.shape(labels)}.")
    # The labels of two samples are numbered together. There is one sample here, and an empty one.
    numbers = concrete_labels("labels", (labels, labels[:0]), n, 0)[0]
    sizes = np.bincount(numbers)
    # Sorted by label, the rows of each label are a stretch that begins where the one before ends.
    order = np.argsort(numbers, kind="stable")
    starts = np.cumsum(sizes) - sizes
    # Places beyond a label's own rows have no mass below, and must only exist.
    places = np.minimum(starts[:, None] + np.arange(sizes.max()), n - 1)
    return order[places], sizes


@functools.partial(jax.jit, static_argnames="num_subsets")
def _label_information(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    rows: Int[Array, "b m"],
    sizes: Int[Array, " b"],
    bandwidth: ArrayLike,
    time: ArrayLike,
    base: ArrayLike | None,
    *,
    num_subsets: int,
) -> Float[Array, ""]:
    """The difference of entropies, given the rows of each label."""
    n, (num_labels, m) = x.shape[0], rows.shape
    bandwidth, time = _positive(bandwidth, x.dtype), _positive(time, x.dtype)
    keys = jax.random.split(key, num_labels * num_subsets)
    # The first n_b of a random order are a random subset of n_b rows, drawn without replacement.
    subsets = jax.vmap(lambda key: jax.random.permutation(key, n)[:m])(keys)
    of_subsets = jnp.repeat(sizes, num_subsets)

    # One after the other: each needs matrices of m × m.
    def entropy(subset: tuple[Int[Array, " m"], Int[Array, ""]]) -> Float[Array, ""]:
        index, size = subset
        # Masses of one and zero: K does not change if all masses are multiplied by a number.
        counted = (jnp.arange(m) < size).astype(x.dtype)
        return _entropy(x[index], counted, bandwidth, time)

    # Labels and subsets in one loop, whose eigenvalue problem is then compiled once.
    index = jnp.concatenate([rows, subsets.astype(rows.dtype)])
    # Recomputed in the backward pass, which would otherwise keep the matrices of every subset.
    entropies = jax.lax.map(jax.checkpoint(entropy), (index, jnp.concatenate([sizes, of_subsets])))
    own, random = entropies[:num_labels], entropies[num_labels:].reshape(num_labels, num_subsets)
    differences = jnp.mean(random, axis=1) - own
    total = jnp.sum(sizes.astype(x.dtype) / n * differences)
    return in_base(total * _one_if_finite(x), base)
