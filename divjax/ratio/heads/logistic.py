"""Log ratios linear in features, by ridge logistic regression: the convex heads."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core.checks import check_count, check_nonnegative, check_positive_finite
from divjax.core.linalg import cho_solve, cholesky
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.ratio.protocols import Fold, checked, every, is_positive, num_rows, validation_loss

__all__ = ["Linear", "Quadratic", "RandomFourier", "newton_logistic"]


class _Logistic:
    """Ridge logistic regression on features, by Newton's method to convergence."""

    ridge: ArrayLike | tuple[float, ...]

    def __post_init__(self):
        check_nonnegative(ridge=self.ridge)
        if isinstance(self.ridge, tuple) and not self.ridge:
            raise ValueError("ridge must hold at least one number; got none.")

    def _basis(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        return ()

    def _features(self, basis: PyTree[Array], z: Float[Array, "b d"]) -> Float[Array, "b m"]:
        raise NotImplementedError

    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[PyTree[Array], Float[Array, " m"]]:
        """The basis, and the coefficients of the ridge selected on the validation rows."""
        fold, valid = checked(self, fold)
        basis = self._basis(key, fold)
        weights = fold.train.weights
        phi_p, phi_q = self._features(basis, fold.train.x), self._features(basis, fold.train.y)
        ridges = jnp.ravel(jnp.asarray(self.ridge, phi_p.dtype))
        # The first feature is the constant, whose prior is negligible.
        free = jnp.ones(phi_p.shape[1], phi_p.dtype).at[0].set(1e-3)
        # The prior's precision is in rows, while the loss is a mean over rows: hence the division.
        coefficients = jax.vmap(
            lambda ridge: newton_logistic(phi_p, phi_q, *weights, ridge * free)
        )(ridges / num_rows(*weights))
        losses = jax.vmap(lambda c: validation_loss(self, (basis, c), fold))(coefficients)
        return basis, nan_unless(valid, coefficients[jnp.argmin(losses)])

    def in_range(self) -> Bool[Array, ""]:
        """Whether no ridge is negative."""
        return every(lambda number: number >= 0, self.ridge)

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The log ratio, linear in the features."""
        basis, coefficients = params
        return self._features(basis, z) @ coefficients


@pytree
class Linear(_Logistic):
    """A linear log ratio, exact for two Gaussians of one covariance.

    Attributes:
        ridge: ρ ≥ 0, the precision of a Gaussian prior on each coefficient of a standardised
            feature. Several form a grid, the best selected on the validation rows.

    Raises:
        ValueError: if a ridge is a negative Python number.
    """

    ridge: ArrayLike | tuple[float, ...] = (0.5, 5.0, 50.0)

    parametric = True

    def _features(self, basis: PyTree[Array], z: Float[Array, "b d"]) -> Float[Array, "b m"]:
        return jnp.concatenate([jnp.ones_like(z[:, :1]), z], axis=1)


@pytree
class Quadratic(_Logistic):
    """A quadratic log ratio, exact for any two Gaussians; (d + 1)(d + 2)/2 coefficients.

    Attributes:
        ridge: as in `Linear`.
    """

    ridge: ArrayLike | tuple[float, ...] = (0.5, 5.0, 50.0)

    parametric = True

    def _features(self, basis: PyTree[Array], z: Float[Array, "b d"]) -> Float[Array, "b m"]:
        rows, columns = np.triu_indices(z.shape[1])
        return jnp.concatenate([jnp.ones_like(z[:, :1]), z, z[:, rows] * z[:, columns]], axis=1)


@pytree
class RandomFourier(_Logistic):
    """A log ratio that is smooth at a length scale: linear in random cosines.

    φ_j(z) = √(2/m) cos(ω_j·z + b_j) with ω_j ~ N(0, I/bandwidth²), which approximates a Gaussian
    kernel machine.

    Attributes:
        num_features: the number m of random cosines.
        bandwidth: the kernel bandwidth, in standard deviations of a feature times √d.
        ridge: as in `Linear`.

    References:
        Rahimi, Recht 2007, algorithm 1.
    """

    num_features: int = static(default=200)
    bandwidth: ArrayLike = 1.0
    ridge: ArrayLike | tuple[float, ...] = (0.05, 0.5, 5.0)

    def __post_init__(self):
        super().__post_init__()
        check_count(1, num_features=self.num_features)
        check_positive_finite(bandwidth=self.bandwidth)

    def in_range(self) -> Bool[Array, ""]:
        """Whether no ridge is negative, and the bandwidth positive."""
        return super().in_range() & every(is_positive, self.bandwidth)

    def _basis(self, key: Key[Array, ""], fold: Fold) -> tuple[Array, Array]:
        frequency_key, phase_key = jax.random.split(key)
        d, dtype = fold.train.x.shape[1], fold.train.x.dtype
        # Distances between standardised rows grow as √d, and the bandwidth with them.
        scale = jnp.asarray(self.bandwidth, dtype) * math.sqrt(d)
        frequencies = jax.random.normal(frequency_key, (d, self.num_features), dtype) / scale
        phases = jax.random.uniform(phase_key, (self.num_features,), dtype, maxval=2 * np.pi)
        return frequencies, phases

    def _features(self, basis: PyTree[Array], z: Float[Array, "b d"]) -> Float[Array, "b m"]:
        frequencies, phases = basis
        cosines = jnp.cos(z @ frequencies + phases) * math.sqrt(2 / self.num_features)
        return jnp.concatenate([jnp.ones_like(z[:, :1]), cosines], axis=1)


@partial(jax.jit, static_argnames="max_iterations")
def newton_logistic(
    phi_p: Float[Array, "n m"],
    phi_q: Float[Array, "k m"],
    a: Float[Array, " n"],
    b: Float[Array, " k"],
    penalty: Float[Array, " m"],
    offset_p: ArrayLike = 0.0,
    offset_q: ArrayLike = 0.0,
    max_iterations: int = 30,
) -> Float[Array, " m"]:
    """The minimiser c of the balanced cross-entropy of offset + φc, plus ½ Σ penalty·c².

    Newton's method with a line search over step lengths, until the decrement is within rounding.
    First derivatives of the minimiser, in both modes, follow from the implicit function theorem.
    """
    phi = jnp.concatenate([phi_p, phi_q])
    # One problem for both samples: rows of q enter by −u, and halved weights that sum to one make
    # the loss balanced.
    sign = jnp.concatenate([jnp.ones_like(a), -jnp.ones_like(b)])
    weights = jnp.concatenate([a, b]) / 2
    # Rows of weight zero must have no effect, whatever their content.
    used = weights > 0
    phi = jnp.where(used[:, None], phi, 0)
    offsets = zip((offset_p, offset_q), (a, b), strict=True)
    offset = jnp.concatenate(
        [jnp.broadcast_to(jnp.asarray(o, w.dtype), w.shape) for o, w in offsets]
    )
    offset = jnp.where(used, offset, 0)
    return _minimizer(max_iterations, _Problem(phi, sign, weights, penalty, offset))


class _Problem(NamedTuple):
    """The loss Σ weights · log(1 + e^{−sign (offset + φc)}) + ½ Σ penalty · c²."""

    phi: Float[Array, "n m"]
    sign: Float[Array, " n"]
    weights: Float[Array, " n"]
    penalty: Float[Array, " m"]
    offset: Float[Array, " n"]

    def loss(self, logit: Float[Array, " n"], c: Float[Array, " m"]) -> Float[Array, ""]:
        losses = jax.nn.softplus(-self.sign * logit)
        return jnp.dot(self.weights, losses) + jnp.dot(self.penalty, c * c) / 2

    def gradient(self, c: Float[Array, " m"]) -> Float[Array, " m"]:
        wrong = jax.nn.sigmoid(-self.sign * (self.offset + self.phi @ c))
        return self.penalty * c - self.phi.T @ (self.weights * self.sign * wrong)

    def factor(self, c: Float[Array, " m"]) -> Float[Array, "m m"]:
        """The Hessian's Cholesky factor."""
        wrong = jax.nn.sigmoid(-self.sign * (self.offset + self.phi @ c))
        curvature = self.weights * wrong * (1 - wrong)
        hessian = jnp.matmul(self.phi.T * curvature, self.phi, precision="highest")
        # The floor exceeds rounding, so that the factor exists even for separable samples and
        # dependent features.
        floor = 2 * jnp.finfo(c.dtype).eps * (jnp.trace(hessian) + 1e-6)
        return cholesky(hessian + jnp.diag(self.penalty + floor))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _minimizer(max_iterations: int, problem: _Problem) -> Float[Array, " m"]:
    m, dtype = problem.phi.shape[1], problem.phi.dtype
    eps = jnp.finfo(dtype).eps

    def step(carry):
        c, _, count = carry
        logit, gradient = problem.offset + problem.phi @ c, problem.gradient(c)
        direction = cho_solve(problem.factor(c), gradient)
        # gᵀH⁻¹g is twice the decrease predicted by the quadratic model, and measures convergence.
        decrement, moved = jnp.dot(gradient, direction), problem.phi @ direction
        current = problem.loss(logit, c)

        def too_long(length):
            """Whether a positive step achieves less than a quarter of what its slope predicts."""
            decrease = current - problem.loss(logit - length * moved, c - length * direction)
            # Armijo's condition, up to the rounding of the loss.
            enough = decrease >= length * decrement / 4 - 4 * eps * current
            return ~enough & (length > 0)

        # The shortest steps are for confidently wrong offsets, with uninformative curvature.
        shorter = lambda length: jnp.where(
            length > 1e-6, length * jnp.where(length > 0.1, 0.5, 0.1), 0
        )
        length = jax.lax.while_loop(too_long, shorter, jnp.ones((), dtype))
        # If no step lowers the loss, c is unchanged, even if the direction is not finite.
        return jnp.where(length > 0, c - length * direction, c), decrement, count + 1

    def unfinished(carry):
        _, decrement, count = carry
        return (decrement > 100 * eps) & (count < max_iterations)

    # No decrement is known before the first step: infinity lets the loop begin.
    start = jnp.zeros(m, dtype), jnp.asarray(jnp.inf, dtype), 0
    return jax.lax.while_loop(unfinished, step, start)[0]


@_minimizer.defjvp
def _(
    max_iterations: int, primals: tuple[_Problem], tangents: tuple[_Problem]
) -> tuple[Array, Array]:
    """The minimiser changes by −H⁻¹ times the change of the gradient at a fixed c."""
    c = _minimizer(max_iterations, *primals)
    # The condition gradient(c) = 0, differentiated in the problem at fixed c.
    change = jax.jvp(lambda problem: problem.gradient(c), primals, tangents)[1]
    return c, -cho_solve(primals[0].factor(c), change)
