"""How much a network's loss may differ between training and test rows, from its layers.

Let T_l be the representation of a row at layer l of a fixed network, with its label, and ℓ the loss
as a function of T_l. The gap E_test ℓ − E_train ℓ is bounded by a divergence between the
distributions of T_l among training and test rows, at any layer. From layer to layer KL divergences
do not increase, while Wasserstein distances may: the layer at which their bound is smallest is the
funnel of He and Goldfeld.

To bound a loss that depends on the label, append the labels to the representations, as columns of
zeros and ones. The estimates of divergences are those of `divjax.fdiv` and `divjax.ot`:
`layer_divergences` evaluates one of them at all layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_callable,
    check_full_precision,
    check_no_negatives,
    check_scalar,
)
from divjax.core.linalg import svd
from divjax.core.numerics import matmul, nan_unless, safe_sqrt
from divjax.core.samples import Numbers, Unrounded, as_arrays, as_numbers, as_samples, as_vectors

__all__ = ["kl_bound", "layer_divergences", "lipschitz_constants", "wasserstein_bound"]


def layer_divergences(
    divergence: Callable[[Any, Any], PyTree],
    train: PyTree[Float[Numbers, "n ..."]],
    test: PyTree[Float[Numbers, "m ..."]],
) -> PyTree:
    """A divergence between training and test rows at each layer of a network.

    Args:
        divergence: a function of two samples "n d" and "m d", training rows first, such as
            `divjax.fdiv.knn_kl` or a partial `divjax.ot.exact`.
        train: the representations of training rows, a list or any pytree of a layer's arrays, whose
            first axis is that of rows. Other axes are features.
        test: those of test rows, of the same structure.

    Returns:
        What the divergence returns, for each layer: a pytree of the structure of `train`.

    Raises:
        ValueError: if the structures differ, or the divergence refuses a layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax import fdiv
        >>> train, test = jax.random.normal(jax.random.key(0), (2, 500, 2, 2))
        >>> layers = lambda x: {"first": x + 1.0, "second": jax.nn.relu(x)[:, 0]}
        >>> kl = lambda x, y: fdiv.gaussian.plug_in_kl(x, y).value
        >>> found = layer_divergences(kl, layers(train + 1.0), layers(test))
        >>> bool(abs(found["first"] - 2) < 0.5), bool(found["second"] < found["first"])
        (True, True)

    References:
        He, Goldfeld 2024, "Information-theoretic generalization bounds for deep neural networks":
        divergences between the internal representations of training and test rows.
    """
    check_callable(divergence=divergence)
    structures = [jax.tree.structure(layers) for layers in (train, test)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"train and test must have the same layers; got {structures[0]} and {structures[1]}."
        )
    found = [
        divergence(_rows("train", one), _rows("test", other))
        for one, other in zip(jax.tree.leaves(train), jax.tree.leaves(test), strict=True)
    ]
    return jax.tree.unflatten(structures[0], found)


def _rows(name: str, layer: Numbers) -> Unrounded:
    """A layer's outputs as a matrix; a vector, which is refused later, as it is."""
    layer = as_numbers(name, layer)
    if layer.ndim < 2 or not layer.size:
        return layer
    # Channels, places and tokens become features: a divergence is one of vectors.
    return layer.reshape(layer.shape[0], -1)


def kl_bound(kl: Float[Numbers, "..."], sub_gaussian: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """|E_train ℓ − E_test ℓ| ≤ (2 σ² KL(train‖test))^½ for a loss σ-sub-Gaussian on test rows.

    By Donsker and Varadhan's representation: λ (E_p ℓ − E_q ℓ) ≤ KL(p‖q) + λ²σ²/2 for every λ. A
    loss with values in an interval of length c is c/2-sub-Gaussian.

    Args:
        kl: KL(train‖test) in nats, of any shape: of a layer's representations with labels. Of an
            estimate take the upper end of its interval.
        sub_gaussian: σ ≥ 0, in the unit of the loss, broadcast against `kl`.

    Returns:
        The bound on the gap, in the unit of the loss; NaN for a divergence or a σ below zero. Its
        derivative at zero divergence, which is infinite, is taken as 0.

    Raises:
        ValueError: if σ is known and negative.

    Example:
        >>> round(float(kl_bound(0.02, 0.5)), 4)  # of a loss between 0 and 1
        0.1

    References:
        Donsker, Varadhan 1983. Xu, Raginsky 2017, "Information-theoretic analysis of generalization
        capability of learning algorithms": the step from KL to the gap. He, Goldfeld 2024,
        "Information-theoretic generalization bounds for deep neural networks": at each layer.
    """
    check_no_negatives(sub_gaussian=sub_gaussian)
    return _kl_bound(*as_arrays(kl=kl, sub_gaussian=sub_gaussian))


@jax.jit
def _kl_bound(kl: Float[Array, "..."], sub_gaussian: Float[Array, "..."]) -> Float[Array, "..."]:
    kl, sub_gaussian = jnp.broadcast_arrays(kl, sub_gaussian)
    # Not the root of the product: σ² may leave the dtype's range.
    bound = sub_gaussian * safe_sqrt(2 * kl)
    return nan_unless((kl >= 0) & (sub_gaussian >= 0), bound)


def wasserstein_bound(
    distances: Float[Numbers, " l"], lipschitz: Float[Numbers, " l"]
) -> Float[Array, ""]:
    """|E_train ℓ − E_test ℓ| ≤ min_l L_l W₁(train, test at layer l), by Kantorovich and Rubinstein.

    L_l is a Lipschitz constant of the loss as a function of layer l's representation, and W₁ the
    Wasserstein distance of order one with the same norm. The bound holds at each layer, hence for
    the smallest of them.

    Args:
        distances: W₁ at each layer: `divjax.ot.exact` with `cost=divjax.ot.Euclidean()`, and not a
            sliced distance, which is smaller and bounds nothing.
        lipschitz: L_l of each, that is `lipschitz_constants` times the loss's own.

    Returns:
        The bound on the gap, in the unit of the loss. NaN for a number that is NaN or below zero.

    Raises:
        ValueError: if the arguments are not vectors of one length, or known and negative.

    Example:
        >>> import jax.numpy as jnp
        >>> float(wasserstein_bound(jnp.array([0.1, 0.4]), jnp.array([8.0, 1.0])))
        0.4

    References:
        Kantorovich, Rubinstein 1958: the duality. He, Goldfeld 2024, "Information-theoretic
        generalization bounds for deep neural networks": the minimum over layers.
    """
    distances, lipschitz = as_vectors(distances=distances, lipschitz=lipschitz)
    if distances.shape != lipschitz.shape:
        raise ValueError(
            "distances and lipschitz must be one number for each layer; got "
            f"{distances.size} and {lipschitz.size}."
        )
    check_no_negatives(distances=distances, lipschitz=lipschitz)
    return _wasserstein_bound(distances, lipschitz)


@jax.jit
def _wasserstein_bound(
    distances: Float[Array, " l"], lipschitz: Float[Array, " l"]
) -> Float[Array, ""]:
    valid = jnp.all((distances >= 0) & (lipschitz >= 0))
    return nan_unless(valid, jnp.min(distances * lipschitz))


def lipschitz_constants(
    matrices: Sequence[Float[Numbers, "_ _"]], activation: ArrayLike = 1.0
) -> Float[Array, " l"]:
    """Lipschitz constants of a network's last output as a function of the input and of each layer.

    ∏_{j>l} ρ ‖W_j‖ for l = 0 … L, with the largest singular values ‖W_j‖ and the activation's
    constant ρ: an upper bound, by the chain rule. The last one is one, of the output itself.

    Time O(n³) of the widest layer. Differentiable where the largest singular values are distinct
    from the next.

    Args:
        matrices: W_1, …, W_L in the order of layers, of "in out" or of "out in".
        activation: ρ ≥ 0: one for rectifiers and tanh, ¼ for the logistic function.

    Returns:
        The L + 1 constants, from the input to the output. NaN if a matrix is not finite, or for a
        traced ρ below zero.

    Raises:
        ValueError: if there is no matrix, one is empty or not a matrix, or ρ is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> lipschitz_constants([jnp.diag(jnp.array([3.0, 1.0])), 2 * jnp.eye(2)]).tolist()
        [6.0, 2.0, 1.0]

    References:
        Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow, Fergus 2014, "Intriguing properties
        of neural networks": the product of norms.
    """
    if not len(matrices):
        raise ValueError("matrices must hold at least one matrix; got none.")
    converted = [as_samples(**{f"matrices[{i}]": matrix})[0] for i, matrix in enumerate(matrices)]
    for i, matrix in enumerate(converted):
        check_full_precision(f"matrices[{i}]", matrix)
    check_scalar(activation=activation)
    check_no_negatives(activation=activation)
    return _lipschitz_constants(converted, *as_leaves(activation=activation))


@jax.jit
def _lipschitz_constants(
    matrices: list[Float[Array, "_ _"]], activation: ArrayLike
) -> Float[Array, " l"]:
    dtype = jnp.result_type(*matrices)
    activation = jnp.asarray(activation, dtype)
    activation = nan_unless(activation >= 0, activation)
    factors = [activation * _largest_singular_value(matrix).astype(dtype) for matrix in matrices]
    one = jnp.ones((1,), dtype)
    # Of the input all factors, of the last layer none.
    return jnp.concatenate([jnp.cumprod(jnp.stack(factors)[::-1])[::-1], one])


def _largest_singular_value(matrix: Float[Array, "n m"]) -> Float[Array, ""]:
    """uᵀ W v of the leading singular vectors, whose derivative is u vᵀ."""
    # Constants: to first order uᵀWv, at its maximum over unit vectors, does not change with them.
    left, _, right = svd(matrix)
    return jnp.dot(left[:, 0], matmul(matrix, right[0]), precision="highest")
