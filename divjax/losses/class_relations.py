"""How similar classes are according to a teacher, and the costs of moving probability between them.

These are the ground costs of `wkd_logits`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_matrix, check_positive_values, check_scalar, check_shape
from divjax.core.numerics import in_units_of, nan_unless
from divjax.core.samples import Numbers, Unrounded, without_offset

__all__ = ["class_costs", "class_similarity"]


def class_similarity(
    features: Float[Numbers, "classes samples features"],
) -> Float[Array, "classes classes"]:
    """Similarity of classes according to a teacher: the linear CKA of their features.

    CKA(X_i, X_j) = ‖X_iᵀ X_j‖² / (‖X_iᵀ X_i‖ ‖X_jᵀ X_j‖), in Frobenius norms, for the features
    X_i "features samples" of a class, with each sample's mean over features subtracted. It
    aligns the features × features matrices X_i X_iᵀ, so samples of different classes need not be
    paired. A class whose features differ by no more than eight units in the last place of the
    largest one is taken as constant, and is similar to itself alone.

    Args:
        features: features of a teacher's last layer, with the same number of samples of each class,
            and at least two features.

    Returns:
        Similarities in [0, 1], ones on the diagonal. Memory is O(classes · samples²).

    Raises:
        ValueError: if the shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = jnp.array([[1.0, -1.0, 0.0]]), jnp.array([[1.0, 1.0, -2.0]])
        >>> class_similarity(jnp.stack([one, other])).round(6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    References:
        Kornblith et al. 2019, eq. 3–4: CKA. Lv et al. 2024, section 3.1: between classes.
    """
    (numbers,) = as_leaves(features=features)
    check_shape("features", numbers, "classes", "samples", "features")
    if 0 in numbers.shape:
        raise ValueError(f"features must not be empty; got shape {numbers.shape}.")
    if numbers.shape[2] < 2:
        raise ValueError(f"features must have at least two features; got {numbers.shape[2]}.")
    # The mean over features is subtracted from each sample, from NumPy's samples in float64.
    return _class_similarity(*without_offset(_means_over_features, features=features))


def _means_over_features(features: np.ndarray) -> np.ndarray:
    return np.mean(features, axis=-1, keepdims=True)


@jax.jit
def _class_similarity(
    features: Float[Array, "classes samples features"],
) -> Float[Array, "classes classes"]:
    centered = _centered_classes(features)
    # ‖X_iᵀ X_j‖² from products "samples samples", one class i against all at a time.
    product = functools.partial(jnp.einsum, "su,ctu->cst", precision="highest")
    alignments = jax.lax.map(lambda x: jnp.sum(product(x, centered) ** 2, (1, 2)), centered)
    own = jnp.diagonal(alignments)
    # Classes without any variation over features are similar only to themselves.
    scale = jnp.sqrt(jnp.where(own > 0, own, 1))
    similarity = alignments / scale[:, None] / scale
    # A class has similarity 1 to itself, up to rounding, which is removed. NaN stays NaN.
    return jnp.where(jnp.eye(len(own), dtype=bool), jnp.where(jnp.isnan(own), own, 1), similarity)


def _centered_classes(
    features: Float[Array, "classes samples features"],
) -> Float[Array, "classes samples features"]:
    """Each sample less its mean over features, in units of its class's largest deviation.

    The units cancel in a class's similarity, whose fourth powers would overflow at 1e10 and vanish
    at 1e-10. A class whose deviations are rounding error is set to zero.
    """

    def in_units(x: Array, negligible: ArrayLike) -> Array:
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
        return jnp.where(largest <= negligible, 0, in_units_of(largest, x)[0])

    # In units of its largest entry first: sums of entries near the largest number overflow.
    features = in_units(features, 0)
    centered = features - jnp.mean(features, axis=2, keepdims=True)
    return in_units(centered, 8 * float(jnp.finfo(features.dtype).eps))


def class_costs(
    similarity: Float[Numbers, "classes classes"], *, sharpness: ArrayLike = 1.0
) -> Float[Array, "classes classes"]:
    """Costs between classes, C_ij = 1 − exp(−κ (1 − s_ij)).

    Args:
        similarity: similarities of at most 1: `class_similarity`, or the cosine similarity of a
            last layer's weights.
        sharpness: κ > 0. The paper takes 1, and 2 for a pair of very different networks.

    Raises:
        ValueError: if the matrix is not square, holds concrete numbers above 1, or κ is not
            positive. Traced numbers out of range give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> class_costs(jnp.array([[1.0, 0.0], [0.0, 1.0]])).round(4).tolist()
        [[0.0, 0.6321], [0.6321, 0.0]]

    References:
        Lv et al. 2024, section 3.1.
    """
    (similarity,) = as_leaves(similarity=similarity)
    check_matrix(similarity=similarity)
    check_shape("similarity", similarity, *[similarity.shape[0]] * 2)
    # Traced similarities cannot be validated eagerly: those above 1 become NaN in `_class_costs`.
    if not isinstance(similarity, Tracer) and (_excess(np.asarray(similarity)) > 0).any():
        raise ValueError(f"similarity must be at most 1; got {np.asarray(similarity).max():g}.")
    check_scalar(sharpness=sharpness)
    check_positive_values(sharpness=sharpness)
    return _class_costs(similarity, *as_leaves(sharpness=sharpness))


def _excess(similarity: Unrounded) -> Unrounded:
    """The excess over 1, beyond the rounding of a cosine."""
    dtype = jax.dtypes.canonicalize_dtype(similarity.dtype)
    return similarity - 1 - 16 * float(jnp.finfo(dtype).eps)


@jax.jit
def _class_costs(
    similarity: Float[Array, "classes classes"], sharpness: ArrayLike
) -> Float[Array, "classes classes"]:
    # Above 1 the cost would be negative. expm1 keeps the costs of similar classes accurate.
    similarity = jnp.where(_excess(similarity) > 0, jnp.nan, similarity)
    sharpness = jnp.asarray(sharpness, similarity.dtype)
    return -jnp.expm1(nan_unless(sharpness > 0, sharpness) * (similarity - 1))
