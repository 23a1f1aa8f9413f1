"""A Gaussian as a mean and a covariance, and the checks of one, of two, and of several of them.

A covariance is the vector of variances of independent features, or a matrix. It is symmetric if
C_ij − C_ji is small relative to √(C_ii C_jj), whatever the features' units: an asymmetric concrete
covariance raises, and the result is NaN for a traced one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from divjax.core.checks import check_full_precision
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, as_numbers

__all__ = [
    "Normal",
    "are_symmetric",
    "as_normal",
    "check_same_dimension",
    "check_symmetric",
    "full_covariance",
    "normal_pair",
    "stacked_normals",
    "symmetric_or_nan",
]

# In units of the features' standard deviations. A larger C_ij − C_ji cannot be rounding.
_LARGEST_ASYMMETRY = 3e-4


class Normal(NamedTuple):
    """A Gaussian N(mean, covariance), or several along leading axes.

    Functions also take a pair of array-likes, such as `([0.0, 0.0], [1.0, 4.0])`. As a pytree it
    can be mapped, stacked and differentiated: `jax.grad` of a divergence in p is a `Normal`, too.

    Attributes:
        mean: the mean.
        covariance: the covariance, or the vector of variances if it is diagonal.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import ot
        >>> p, q = Normal(jnp.zeros(2), jnp.ones(2)), Normal(jnp.ones(2), 4 * jnp.eye(2))
        >>> float(ot.gaussian_wasserstein(p, q))
        4.0
    """

    mean: Float[Numbers, "*batch d"]
    covariance: Float[Numbers, "*batch d"] | Float[Numbers, "*batch d d"]


def as_normal(name: str, normal: Any) -> Normal:
    """One Gaussian whose parts are floating-point arrays of JAX or NumPy.

    Args:
        name: the argument's name in messages.
        normal: a `Normal`, or any pair of array-likes.

    Raises:
        ValueError: if it is not a pair of real arrays, the shapes do not fit, or a concrete
            covariance is not symmetric.

    Example:
        >>> as_normal("p", ([0, 1], [1, 4]))
        Normal(mean=array([0., 1.]), covariance=array([1., 4.]))
    """
    mean, covariance = _two_parts(name, normal, "a Normal, or a pair of a mean and a covariance")
    # One wording for all: the parts have no argument of their own to be named by.
    mean = as_numbers(f"the mean of {name}", mean)
    covariance = as_numbers(f"the covariance of {name}", covariance)
    shape = jnp.shape(mean)
    if len(shape) != 1 or 0 in shape or jnp.shape(covariance) not in (shape, shape * 2):
        raise ValueError(
            f"{name} must be a mean (d,) with variances (d,) or a covariance (d, d); "
            f"got shapes {shape} and {jnp.shape(covariance)}."
        )
    # Variances are the diagonal of a matrix that is symmetric by itself.
    if jnp.ndim(covariance) == 2:
        check_symmetric(f"the covariance of {name}", covariance)
    return Normal(mean, covariance)


def normal_pair(p: Any, q: Any) -> tuple[Normal, Normal]:
    """Two Gaussians of one dimension, whose matrices are not in half precision.

    Example:
        >>> p, q = normal_pair(([0], [1]), ([1], [[4]]))
        >>> q.covariance
        array([[4.]])
    """
    p, q = as_normal("p", p), as_normal("q", q)
    check_same_dimension(p=p, q=q)
    if max(jnp.ndim(p.covariance), jnp.ndim(q.covariance)) > 1:
        dtype = jnp.result_type(float, *p, *q)
        check_full_precision("a full covariance", jnp.zeros(0, dtype))
    return p, q


def stacked_normals(name: str, normals: Any) -> Normal:
    """Several Gaussians as one `Normal` with a leading axis.

    Two Gaussians as pairs of nested lists cannot be told from a pair of lists of means and of
    covariances. Both are therefore refused, and `Normal` says which is meant.

    Args:
        name: the argument's name in messages.
        normals: a `Normal` with a leading axis, a pair of such arrays, or a list of `Normal`s, of
            which all have full covariances in the result if one has.

    Raises:
        ValueError: if it is none of these, the shapes do not fit, or a concrete covariance is not
            symmetric.

    Example:
        >>> line = [Normal([0.0], [1.0]), Normal([2.0], [[9.0]])]
        >>> stacked_normals("normals", line).covariance.tolist()
        [[[1.0]], [[9.0]]]
    """
    # A list of Gaussians, each with a type of its own, cannot be mistaken.
    if _is_sequence_of_normals(normals):
        return _stack(name, normals)
    # A pair of lists can: of means and covariances, or of two Gaussians.
    mean, covariance = _two_parts(name, normals, _SEVERAL)
    are_arrays = hasattr(mean, "shape") and hasattr(covariance, "shape")
    if not (are_arrays or isinstance(normals, Normal)):
        raise ValueError(f"{name} must be {_SEVERAL}; got a {type(normals).__name__} of others.")
    mean = as_numbers(f"the mean of {name}", mean)
    covariance = as_numbers(f"the covariance of {name}", covariance)
    shape = jnp.shape(mean)
    if len(shape) != 2 or 0 in shape or jnp.shape(covariance) not in (shape, (*shape, shape[1])):
        raise ValueError(
            f"{name} must be means (k, d) with variances (k, d) or covariances (k, d, d); "
            f"got shapes {shape} and {jnp.shape(covariance)}."
        )
    if jnp.ndim(covariance) == 3:
        check_symmetric(f"the covariance of {name}", covariance)
    return Normal(mean, covariance)


def check_same_dimension(**normals: Normal) -> None:
    """Raise `ValueError` unless all Gaussians have the first one's number of features."""
    (first, size), *others = [(name, jnp.shape(n.mean)[-1]) for name, n in normals.items()]
    for name, other in others:
        if other != size:
            raise ValueError(
                f"{first} and {name} must have the same dimension; got {size} and {other}."
            )


def check_symmetric(name: str, covariances: Any) -> None:
    """Raise `ValueError` for concrete matrices that are not symmetric."""
    if isinstance(covariances, Tracer):
        return
    matrices = np.asarray(covariances, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities give NaN
        asymmetric = _asymmetry(matrices, np) > _LARGEST_ASYMMETRY
        if asymmetric.any():
            difference = np.abs(matrices - np.swapaxes(matrices, -1, -2))[asymmetric].max()
            raise ValueError(
                f"{name} must be symmetric; got entries that differ by {difference:.3g} across "
                "the diagonal."
            )


def are_symmetric(covariances: Float[Array, "*k d d"]) -> Bool[Array, "*k"]:
    """Whether each matrix is symmetric up to rounding. NaN entries count as symmetric."""
    asymmetric = _asymmetry(jax.lax.stop_gradient(covariances), jnp) > _LARGEST_ASYMMETRY
    return ~jnp.any(asymmetric, axis=(-2, -1))


def symmetric_or_nan(covariances: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """The matrices, NaN for a traced one that is not symmetric. Concrete ones are checked before.

    Example:
        >>> jax.jit(symmetric_or_nan)(jnp.array([[1.0, 0.5], [0.0, 1.0]]))[1].tolist()
        [nan, nan]
    """
    if not isinstance(covariances, Tracer):
        return covariances
    return nan_unless(are_symmetric(covariances)[..., None, None], covariances)


def full_covariance(normal: Normal) -> Any:
    """The covariance as a matrix, also if only the variances are given.

    Example:
        >>> full_covariance(Normal(np.zeros(2), np.array([1.0, 4.0]))).tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """
    mean, covariance = normal
    if jnp.ndim(covariance) > jnp.ndim(mean):
        return covariance
    # NumPy's precision is kept. Not a product: infinite variances would give NaN elsewhere.
    module = np if isinstance(covariance, np.ndarray) else jnp
    return module.where(np.eye(mean.shape[-1], dtype=bool), covariance[..., None], 0)


def _asymmetry(matrices: Any, module: Any) -> Any:
    """|C_ij − C_ji| / √(C_ii C_jj), with 1 in place of variances that are not positive."""
    variances = module.diagonal(matrices, axis1=-2, axis2=-1)
    scale = module.sqrt(module.where(variances > 0, variances, 1))
    difference = module.abs(matrices - module.swapaxes(matrices, -1, -2))
    # Two divisions: the product of two scales may leave the range of the dtype.
    return difference / scale[..., :, None] / scale[..., None, :]


_SEVERAL = "a Normal with a leading axis, a pair of such arrays, or a list of Normals"


def _two_parts(name: str, given: Any, kind: str) -> tuple[Any, Any]:
    """The two entries of a pair of any type, or a `ValueError` that asks for this kind."""
    try:
        first, second = given
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {kind}; got {type(given).__name__}.") from None
    return first, second


def _is_sequence_of_normals(normals: Any) -> bool:
    if isinstance(normals, Normal) or not isinstance(normals, (list, tuple)):
        return False
    return bool(normals) and all(isinstance(normal, Normal) for normal in normals)


def _stack(name: str, normals: Any) -> Normal:
    """One `Normal` of several."""
    named = {f"{name}[{i}]": normal for i, normal in enumerate(normals)}
    named = {entry: as_normal(entry, normal) for entry, normal in named.items()}
    check_same_dimension(**named)
    each = list(named.values())
    covariances = [normal.covariance for normal in each]
    # Variances and matrices have no common stack.
    if any(jnp.ndim(covariance) == 2 for covariance in covariances):
        covariances = [full_covariance(normal) for normal in each]
    return Normal(_stacked([normal.mean for normal in each]), _stacked(covariances))


def _stacked(arrays: list[Any]) -> Any:
    """One array, of NumPy if all are, which keeps its precision."""
    of_numpy = all(isinstance(array, np.ndarray) for array in arrays)
    return np.stack(arrays) if of_numpy else jnp.stack([jnp.asarray(array) for array in arrays])
