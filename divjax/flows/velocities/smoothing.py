"""Velocities from one kernel: SVGD, Blob, GFSD, GFSF.

All estimate the velocity field v = −∇(δE/δq) − τ ∇log q of F(q) = E(q) + τ ∫ q log q from
particles, and differ in the term that replaces ∇log q. Write K for the kernel matrix, a for the
particles' weights, ρ = K a for the smoothed density:

    SVGD   −K(a∘g) + τ Σ_j a_j ∇_{x_j} k(x_i, x_j)      the whole field smoothed by the kernel
    GFSD   −g − τ ∇ρ_i / ρ_i                            the smoothed density's score
    Blob   GFSD's − τ Σ_j (a_j / ρ_j) ∇_{x_i} k(x_i, x_j)   the smoothed entropy's exact gradient
    GFSF   −g − τ s, s solving Stein's identity over the kernel's functions
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import (
    check_full_precision,
    check_positive,
    check_positive_values,
    check_scalar,
)
from divjax.core.numerics import nan_unless, safe_sqrt
from divjax.core.pairwise import living_rows, squared_distances
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers
from divjax.core.simplex import with_finite_padding
from divjax.flows.mass import checked_step
from divjax.kernels.bandwidth import Median
from divjax.kernels.protocols import Kernel, check_smoother
from divjax.kernels.radial import Gaussian
from divjax.kernels.sums import kernel_sums

__all__ = ["GFSD", "GFSF", "SVGD", "Blob"]

_Step = tuple[Float[Array, "k n d"], Float[Array, "n p"], PyTree]

# Of the solution of a linear system, relative, by the bound of its condition number.
_LARGEST_ROUNDING = 0.1


@pytree
class _WithKernel:
    """The common part of the kernel velocities: the kernel, and its bandwidth rule's state."""

    kernel: Kernel = dataclasses.field(default_factory=lambda: Gaussian(bandwidth=Median()))

    diffuses = False

    def __post_init__(self):
        check_smoother(self.kernel)

    def init(self, key: Key[Array, ""], x: Float[Numbers, "n p"]) -> PyTree:
        """The bandwidth rule's state."""
        return self.kernel.init(x)

    def _resolve(
        self, x: Float[Array, "n p"], weights: Float[Array, " n"], state: PyTree
    ) -> tuple[Kernel, PyTree]:
        """The kernel at the particles of nonzero weight, and the rule's next state.

        A rule takes no weights: zero-weight particles are replaced by copies of others, which
        count.
        """
        return self.kernel.resolve(living_rows(x, weights), state)


def _per_density(field: Float[Array, "n c"], density: Float[Array, "n 1"]) -> Float[Array, "n c"]:
    """The ratio field / ρ; 0 for a zero-weight particle so far from all others that ρ is 0."""
    # Both branches of a `where` are differentiated: 0/0 must not arise in the one not taken.
    unseen = density <= jnp.finfo(density.dtype).tiny
    return jnp.where(unseen, 0, field / jnp.where(unseen, 1, density))


@pytree
class SVGD(_WithKernel):
    """Stein variational gradient descent: the velocity smoothed by the kernel.

    v_k(x_i) = Σ_j a_j [−k(x_i, x_j) g_k(x_j) + τ_k ∇_{x_j} k(x_i, x_j)], with g_k the energy's
    gradient.

    The fixed points of a finite system are not samples of the target but a deterministic
    quadrature of it. Variances shrink when d grows at fixed n. All K objectives share one product
    with the kernel matrix: O(n² (K + 1) d) time, and O(n²) memory up to the budget of
    `divjax.core.pairwise`.

    Attributes:
        kernel: a positive definite kernel of `divjax.kernels`, by default Gaussian with the median
            rule.

    Raises:
        ValueError: if the kernel is not positive definite: `Energy` would ascend.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, weights = jnp.array([[-1.0], [1.0]]), jnp.full(2, 0.5)
        >>> velocity = SVGD(Gaussian(bandwidth=1.0))
        >>> drift, repulsion, _ = velocity(jax.random.key(0), x, weights, x[None], ())
        >>> repulsion[:, 0].round(3).tolist()  # apart: ±½ · 2 exp(−2)
        [-0.135, 0.135]

    References:
        Liu, Wang 2016, eq. 8.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> _Step:
        """The K smoothed drifts and the common repulsion."""
        x, weights, gradients = checked_step(x, weights, gradients)
        kernel, state = self._resolve(x, weights, state)
        # All K fields are k·d columns of one product with the kernel matrix. A zero-weight
        # particle's gradient may be infinite, and zero times infinity would reach all others.
        k, n, d = gradients.shape
        by_particle = with_finite_padding(jnp.moveaxis(gradients, 0, 1).reshape(n, k * d), weights)
        columns = by_particle * weights[:, None]
        smoothed, repulsion = kernel_sums(kernel, x, None, columns, weights[:, None])
        # A radial kernel has ∇_{x_j} k = −∇_{x_i} k.
        return -jnp.moveaxis(smoothed.reshape(n, k, d), 1, 0), -repulsion[:, 0], state


@pytree
class GFSD(_WithKernel):
    """Gradient flow with a smoothed density: the score of the kernel density estimate.

    v_k(x_i) = −g_k(x_i) − τ_k ∇log ρ(x_i) with ρ(x) = Σ_j a_j k(x, x_j). The smoothing biases the
    stationary distribution by about the kernel's variance: for a Gaussian target of covariance S
    and a Gaussian kernel of bandwidth σ, many particles settle at S − σ² I.

    Attributes:
        kernel: a positive definite kernel of `divjax.kernels`, by default Gaussian with the median
            rule.

    Raises:
        ValueError: if the kernel is not positive definite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, weights = jnp.zeros((1, 2)), jnp.ones(1)
        >>> velocity = GFSD(Gaussian(bandwidth=1.0))
        >>> drift, repulsion, _ = velocity(jax.random.key(0), x, weights, jnp.ones((1, 1, 2)), ())
        >>> drift.tolist(), repulsion.tolist()  # one particle does not repel itself
        ([[[-1.0, -1.0]]], [[-0.0, -0.0]])

    References:
        Liu, Zhuo, Cheng, Zhang, Zhu 2019, section 3.2.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> _Step:
        """The drifts −g and the repulsion −∇log ρ."""
        x, weights, gradients = checked_step(x, weights, gradients)
        kernel, state = self._resolve(x, weights, state)
        # ρ_i and ∇ρ_i: the masses are the coefficients of both, in one pass over the pairs.
        density, gradient = kernel_sums(kernel, x, None, weights[:, None], weights[:, None])
        return -gradients, -_per_density(gradient[:, 0], density), state


@pytree
class Blob(_WithKernel):
    """The blob method: the exact gradient of the entropy of the smoothed density.

    Replacing ∫ q log q by ∫ q log(k∗q) makes the entropy finite on particles. Its gradient has two
    terms,

        v_k(x_i) = −g_k(x_i) − τ_k Σ_j a_j (1/ρ_i + 1/ρ_j) ∇_{x_i} k(x_i, x_j),

    of which GFSD keeps the first, with 1/ρ_i. The flow therefore descends a functional of the
    particles, and converges in cases in which GFSD may circle.

    Attributes:
        kernel: a positive definite kernel of `divjax.kernels`, by default Gaussian with the median
            rule.

    Raises:
        ValueError: if the kernel is not positive definite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, weights = jnp.array([[-1.0], [1.0]]), jnp.full(2, 0.5)
        >>> velocity = Blob(Gaussian(bandwidth=1.0))
        >>> drift, repulsion, _ = velocity(jax.random.key(0), x, weights, x[None], ())
        >>> repulsion[:, 0].round(3).tolist()  # ±2 · 2 exp(−2) / (1 + exp(−2))
        [-0.477, 0.477]

    References:
        Carrillo, Craig, Patacchini 2019, eq. 1.10; Chen et al. 2018, section 3.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> _Step:
        """The drifts −g and the smoothed entropy's repulsion."""
        x, weights, gradients = checked_step(x, weights, gradients)
        kernel, state = self._resolve(x, weights, state)
        # Two passes over the pairs: the coefficients a_j/ρ_j of the second need the first's ρ. Each
        # requests zero columns of the sums that it does not need.
        mass = weights[:, None]
        density, _ = kernel_sums(kernel, x, None, mass, mass[:, :0])
        share = with_finite_padding(_per_density(mass, density), weights)
        coefficients = jnp.concatenate([mass, share], axis=1)
        # ∇ρ_i in the first column, Σ_j (a_j/ρ_j) ∇_{x_i} k(x_i, x_j) in the second.
        _, both = kernel_sums(kernel, x, None, mass[:, :0], coefficients)
        return -gradients, -(_per_density(both[:, 0], density) + both[:, 1]), state


@pytree
class GFSF(_WithKernel):
    """Gradient flow with smoothed test functions: the score that solves Stein's identity.

    The score estimate s satisfies Σ_j a_j [k(x_i, x_j) s_j + ∇_{x_j} k(x_i, x_j)] = 0 at every
    particle, with the ridge λ Σ_j a_j²: for equal weights s = −(K + λI)⁻¹ Σ_j ∇_{x_j} k(·, x_j). A
    dense solve, of cubic time and quadratic memory in n, hence for n up to a few thousand.

    Attributes:
        kernel: a positive definite kernel of `divjax.kernels`.
        regularization: λ > 0. As λ grows the estimate tends to SVGD's unnormalised repulsion over
            λ. The system's condition number is up to max_i Σ_j k(x_i, x_j)/λ, and the estimate is
            NaN if the rounding of the dtype times that number exceeds a tenth (in float32 about
            λ < 10⁻⁶ n; measured, the error of the estimate is then a few hundredths).

    Raises:
        ValueError: if the kernel is not positive definite, or `regularization` is a Python number
            that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, weights = jnp.array([[-1.0], [1.0]]), jnp.full(2, 0.5)
        >>> velocity = GFSF(Gaussian(bandwidth=1.0), regularization=1e-3)
        >>> drift, repulsion, _ = velocity(jax.random.key(0), x, weights, x[None], ())
        >>> repulsion[:, 0].round(3).tolist()  # ±2 exp(−2) / (1 + λ − exp(−2))
        [-0.313, 0.313]

    References:
        Liu, Zhuo, Cheng, Zhang, Zhu 2019, section 3.3.
    """

    regularization: ArrayLike = 1e-2

    def __post_init__(self):
        super().__post_init__()
        check_positive(regularization=self.regularization)

    def init(self, key: Key[Array, ""], x: Float[Numbers, "n p"]) -> PyTree:
        """The bandwidth rule's state."""
        check_full_precision("particles", x)
        return super().init(key, x)

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> _Step:
        """The drifts −g and the repulsion −s."""
        x, weights, gradients = checked_step(x, weights, gradients)
        check_full_precision("x", x)
        kernel, state = self._resolve(x, weights, state)
        n = x.shape[0]
        _, gradient = kernel_sums(kernel, x, None, weights[:, None][:, :0], weights[:, None])
        # With D = diag(a), D^½ K D^½ is symmetric for all weights, and a particle of zero weight
        # drops out of the system instead of making it singular.
        root = safe_sqrt(weights)[:, None]
        values, _ = kernel.radial(squared_distances(living_rows(x, weights)))
        system = root * values * root.T
        check_scalar(regularization=self.regularization)
        check_positive_values(regularization=self.regularization)
        regularization = jnp.asarray(self.regularization, x.dtype)
        # With a_j = 1/n the system is (K + λI)/n, the ridge of the equal-weight formula. Σ a² does
        # not count zero-weight particles, as n would.
        ridge = nan_unless(regularization > 0, regularization * jnp.sum(weights**2))
        factor = linalg.cholesky(system + ridge * jnp.eye(n, dtype=x.dtype))
        # Σ_j a_j ∇_{x_j} k = −gradient, so the identity reads K D s = gradient.
        solution = linalg.cho_solve(factor, root * with_finite_padding(gradient[:, 0], weights))
        # Row sums bound the largest eigenvalue: beyond this the solution is rounding error.
        rounding = float(jnp.finfo(x.dtype).eps) * jnp.max(jnp.sum(jnp.abs(system), axis=1))
        solution = nan_unless(rounding <= _LARGEST_ROUNDING * ridge, solution)
        # The system's unknown is D^½ s, which is zero for a zero-weight particle.
        score = solution / jnp.where(root > 0, root, 1)
        return -gradients, -score, state
