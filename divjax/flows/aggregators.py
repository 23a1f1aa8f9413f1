"""Aggregators: weights that make one velocity field of the objectives' K.

All depend on the fields through their Gram matrix alone, in the Hilbert space L²(q) of the
particles' distribution q = Σ_i a_i δ_{x_i}, so their cost beyond it is independent of n and d.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from divjax.core.checks import (
    check_nonnegative,
    check_nonnegative_values,
    check_positive,
    check_positive_values,
    check_scalar,
    check_simplex,
)
from divjax.core.numerics import matmul, nan_unless, safe_sqrt
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_arrays
from divjax.core.simplex import min_norm_weights, project_simplex
from divjax.flows.fields import (
    MeanProducts,
    checked_fields,
    gram,
    unit_gram,
    unit_gram_and_mean,
)
from divjax.flows.protocols import Fields

__all__ = ["CAGrad", "FixedWeights", "MinNorm", "PCGrad", "ProjectedStep"]

# Newton's method reaches rounding in about 6 steps; the others allow for bisection steps before.
_NEWTON_STEPS = 16


class _Stateless:
    """The `init` of aggregators without state."""

    def init(self, key: Key[Array, ""], num_objectives: int) -> tuple[()]:
        """The empty state."""
        return ()


@pytree
class MinNorm(_Stateless):
    """The minimum-norm convex combination of the fields: no objective increases along it.

    w = argmin_{w in the simplex} ‖Σ_k w_k v_k‖². The combination v satisfies ⟨v, v_k⟩ ≥ ‖v‖² for
    every k: if the v_k are the negative Wasserstein gradients, each objective decreases along v to
    first order, at a rate of at least ‖v‖², and v vanishes only if q is Pareto stationary. SVGD's
    fields are gradients in the kernel's norm, not in this one of L²(q).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.flows import Fields
        >>> fields = Fields(jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]]), masses=jnp.ones(1))
        >>> MinNorm()(fields, ())[0]
        Array([0.8, 0.2], dtype=float32)

    References:
        Désidéri 2012, theorem 2.2; MWGraD, arXiv 2505.18765, for fields of particles.
    """

    def __call__(self, fields: Fields, state: PyTree) -> tuple[Float[Array, " k"], PyTree]:
        """The exact minimiser."""
        return min_norm_weights(unit_gram(fields.velocities, fields.masses)), state


@pytree
class ProjectedStep:
    """One projected gradient step per call, from the last weights towards the minimum norm.

    w ← Π(w − β Qw), Π the projection on the simplex. Qw is the gradient of ½‖Σ_k w_k v_k‖². With
    β < 2/λ_max(Q) and a constant Gram matrix Q it converges to `MinNorm`. The weights begin
    uniform. A call returns those after its step.

    Attributes:
        step_size: β > 0, in units of one over a squared velocity.

    Raises:
        ValueError: if `step_size` is a Python number that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.flows import Fields
        >>> fields = Fields(jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]]), masses=jnp.ones(1))
        >>> aggregator = ProjectedStep(step_size=0.125)
        >>> w, _ = aggregator(fields, aggregator.init(jax.random.key(0), 2))
        >>> w.tolist()  # on the way from (0.5, 0.5) to (0.8, 0.2)
        [0.59375, 0.40625]

    References:
        MWGraD, arXiv 2505.18765, algorithm 1.
    """

    step_size: ArrayLike

    def __post_init__(self):
        check_positive(step_size=self.step_size)

    def init(self, key: Key[Array, ""], num_objectives: int) -> Float[Array, " k"]:
        """Uniform weights."""
        return jnp.full(num_objectives, 1 / num_objectives)

    def __call__(
        self, fields: Fields, state: Float[Numbers, " k"]
    ) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """The weights after one more step."""
        check_scalar(step_size=self.step_size)
        check_positive_values(step_size=self.step_size)
        # The state's dtype: a step size of a wider type would change that of a scan's carry.
        step_size = jnp.asarray(self.step_size, state.dtype)
        step_size = nan_unless(step_size > 0, step_size)
        # Not `unit_gram`: β is in units of one over a squared velocity, so the fields' scale
        # counts.
        products = gram(fields.velocities, fields.masses)
        step = matmul(products.astype(state.dtype), state)
        moved = project_simplex(state - step_size * step)
        return moved.astype(products.dtype), moved


@pytree
class FixedWeights(_Stateless):
    """Constant weights: linear scalarisation, a flow of Σ_k w_k F_k.

    Attributes:
        weights: K non-negative numbers that sum to one, or None for 1/K each.

    Raises:
        ValueError: in `init`, if `weights` are not one per objective or are concrete numbers off
            the simplex. Traced ones give NaN if negative or if their sum is off by more than a
            hundredth.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.flows import Fields
        >>> fields = Fields(jnp.ones((2, 5, 3)), masses=jnp.full(5, 0.2))
        >>> FixedWeights((0.25, 0.75))(fields, ())[0].tolist()
        [0.25, 0.75]
    """

    weights: ArrayLike | Sequence[float] | None = None

    def init(self, key: Key[Array, ""], num_objectives: int) -> tuple[()]:
        """The empty state; checks the weights."""
        if self.weights is None:
            return ()
        # The number of objectives is not known before.
        shape = jnp.asarray(self.weights).shape
        if shape != (num_objectives,):
            raise ValueError(
                f"weights must be {num_objectives} numbers, one per objective; got shape {shape}."
            )
        check_simplex("weights", self.weights)
        return ()

    def __call__(self, fields: Fields, state: PyTree) -> tuple[Float[Array, " k"], PyTree]:
        """The weights, independent of the fields."""
        (velocities,) = as_arrays(velocities=checked_fields(fields.velocities))
        size = velocities.shape[0]
        if self.weights is None:
            return jnp.full(size, 1 / size, velocities.dtype), state
        # Traced weights cannot be validated eagerly in `init`: those off the simplex give NaN.
        given = jnp.asarray(self.weights, velocities.dtype)
        on_simplex = jnp.all(given >= 0) & (jnp.abs(jnp.sum(given) - 1) <= 1e-2)
        return nan_unless(on_simplex, given), state


@pytree
class PCGrad:
    """Gradient surgery: projects away conflicting components of the fields, then averages them.

    For each k, u starts as v_k and visits the other fields in random order; if ⟨u, v_j⟩ < 0 it is
    projected off v_j: u ← u − (⟨u, v_j⟩ / ‖v_j‖²) v_j. The result is the mean of the K fields u
    (the published sum, divided by K): uniform weights if no two fields conflict. Its coefficients
    are non-negative, and sum to more than one if there is a conflict. The state is a key, split at
    each call for the orders.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.flows import Fields
        >>> fields = Fields(jnp.array([[[1.0, 0.0]], [[-1.0, 1.0]]]), masses=jnp.ones(1))
        >>> PCGrad()(fields, jax.random.key(0))[0].tolist()
        [1.0, 0.75]

    References:
        Yu et al. 2020, algorithm 1.
    """

    def init(self, key: Key[Array, ""], num_objectives: int) -> Key[Array, ""]:
        """The key of all calls."""
        return key

    def __call__(
        self, fields: Fields, state: Key[Array, ""]
    ) -> tuple[Float[Array, " k"], Key[Array, ""]]:
        """The coefficients of the fields in the mean of the projected ones, and the next key."""
        key, later = jax.random.split(state)
        return _mean_of_projected(key, unit_gram(fields.velocities, fields.masses)), later


@jax.jit
def _mean_of_projected(key: Key[Array, ""], products: Float[Array, "k k"]) -> Float[Array, " k"]:
    """Each field's coefficient in the mean of the projected fields."""
    # Projected fields stay in the span of the v_k, so K coefficients stand for each of them, and
    # all inner products are entries of Q "k k".
    size = products.shape[0]
    norms = jnp.diagonal(products)
    own = jnp.arange(size)
    # Row k is the order in which the k-th field meets all fields, itself included.
    orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, size))

    def visit(coefficients: Array, other: Array) -> tuple[Array, None]:
        # Row k holds the coefficients of the k-th projected field, which meets field other[k].
        inner = jnp.sum(coefficients * products[other], axis=1)
        conflicts = (inner < 0) & (other != own) & (norms[other] > 0)
        # v_j is the original field, as in algorithm 1, not its own projection.
        removed = jnp.where(conflicts, -inner / jnp.where(conflicts, norms[other], 1), 0)
        return coefficients.at[own, other].add(removed), None

    # All K fields are projected at once, each off another one, from the identity.
    projected, _ = jax.lax.scan(visit, jnp.eye(size, dtype=products.dtype), orders.T)
    # Comparisons with NaN are False: an invalid Q would look like fields without conflicts.
    return nan_unless(jnp.isfinite(products).all(), projected.mean(axis=0))


@pytree
class CAGrad(_Stateless):
    """Conflict-averse descent: near the mean field, the direction best for the worst-off objective.

    d = argmax_d min_k ⟨v_k, d⟩ subject to ‖d − v̄‖ ≤ c ‖v̄‖, v̄ the mean field. By duality
    d = v̄ + μ Σ_k w_k v_k with w on the simplex, so the coefficients are 1/K + μ w_k and sum to
    1 + μ. For a given μ, d is the minimum-norm convex combination of the fields v̄ + μ v_k; then μ
    is found, by Newton's method in a bracket, such that ‖d − v̄‖ = c ‖v̄‖. c = 0 is the mean field,
    and c → ∞ has the direction of `MinNorm`. The published code divides d by 1 + c²; here the step
    size is left to the optimizer.

    A field that vanishes has the inner product 0 with every d. It counts in the mean, and the
    minimum is over the others: of the directions that attain the maximum, d is the best for them.
    A field vanishes if it is shorter than ε^1.5 of the longest, ε that of the dtype; a longer one
    decides d by its direction, however short it is, with a coefficient in inverse proportion. If
    c ≥ 1 and fields of different lengths are opposite to half of the dtype's digits, within 3e-4
    radians in float32, d may stay inside the ball: its combination is lost in their inner products.

    Attributes:
        c: the radius around the mean field, relative to its length. With c < 1 the fixed points of
            the mean field remain.

    Raises:
        ValueError: if `c` is a negative Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.flows import Fields
        >>> fields = Fields(jnp.array([[[1.0, 0.0]], [[-0.5, 1.0]]]), masses=jnp.ones(1))
        >>> coefficients, _ = CAGrad(c=0.5)(fields, ())
        >>> products = jnp.tensordot(fields.velocities, fields.velocities, ((1, 2), (1, 2)))
        >>> bool((products @ coefficients).min() > 0)  # the mean field has −0.0625
        True

    References:
        Liu et al. 2021, equation 2 and algorithm 1.
    """

    c: ArrayLike = 0.4

    def __post_init__(self):
        check_nonnegative(c=self.c)

    def __call__(self, fields: Fields, state: PyTree) -> tuple[Float[Array, " k"], PyTree]:
        """The coefficients of the fields in d."""
        check_scalar(c=self.c)
        check_nonnegative_values(c=self.c)
        # The coefficients do not depend on a common factor of the fields, and `_multiplier` expects
        # the longest to have length one. Gradients are therefore stopped at the factor.
        products = unit_gram_and_mean(fields.velocities, fields.masses)
        size = products.own.shape[0]
        largest = jnp.max(jnp.diagonal(products.own))
        largest = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
        products = jax.tree.map(lambda each: each / largest, products)
        c = jnp.asarray(self.c, products.own.dtype)
        # d = Σ_k (1/K + μ w_k) v_k. The NaN of a negative traced c propagates through μ.
        mu = _multiplier(products, nan_unless(c >= 0, c))
        coefficients = 1 / size + mu * _shortest_shifted(products, mu)
        return nan_unless(jnp.isfinite(products.own).all(), coefficients), state


def _shortest_shifted(products: MeanProducts, mu: Float[Array, ""]) -> Float[Array, " k"]:
    """The weights of the minimum-norm convex combination of v̄ + μ v_k over fields that count."""
    own, to_mean, mean = products
    # The longest stands for those that do not, and has their weight.
    standing = jnp.where(_counts(own), jnp.arange(len(own)), _longest(own))
    among = own[standing][:, standing]
    # ⟨v̄ + μv_k, v̄ + μv_j⟩ = μ²Q_kj + μ(⟨v̄,v_k⟩ + ⟨v̄,v_j⟩) + ‖v̄‖².
    cross = mu * (to_mean[standing, None] + to_mean[standing])
    weights = min_norm_weights(mu**2 * among + cross + mean)
    return jnp.zeros_like(weights).at[standing].add(weights)


def _squared_length(products: MeanProducts, weights: Float[Array, " k"]) -> tuple[Array, Array]:
    """‖Σ_k w_k v_k‖², and the sum of its terms' absolute values, a multiple of its rounding error.

    Either as it stands or about the mean, as ‖v̄ + Σ_k e_k v_k‖² with e = w − 1/K, whichever has the
    smaller terms: fields may cancel near uniform weights, and the shortest one have all weight.
    """
    rest = weights - 1 / len(weights)
    own, to_mean, mean = products
    plain = jnp.sum(weights * matmul(own, weights))
    about_mean = mean + 2 * jnp.sum(to_mean * rest) + jnp.sum(rest * matmul(own, rest))
    size, away = jnp.abs(own), jnp.abs(rest)
    terms = jnp.sum(weights * matmul(size, weights))
    to_rest = 2 * jnp.sum(jnp.abs(to_mean) * away)
    terms_about_mean = mean + to_rest + jnp.sum(away * matmul(size, away))
    smaller = terms_about_mean < terms
    return jnp.where(smaller, about_mean, plain), jnp.minimum(terms_about_mean, terms)


def _counts(products: Float[Array, "k k"]) -> Bool[Array, " k"]:
    """Which fields do not vanish, if the longest has length one."""
    return jnp.diagonal(products) > jnp.finfo(products.dtype).eps ** 3


def _longest(products: Float[Array, "k k"]) -> Int[Array, ""]:
    return jnp.argmax(jnp.diagonal(products))


@jax.jit
def _multiplier(products: MeanProducts, c: Float[Array, ""]) -> Float[Array, ""]:
    """The μ of `CAGrad`, for fields of which the longest has length one.

    ‖d − v̄‖ increases with μ. No combination is longer than one, so μ is at least c‖v̄‖. If the
    combination vanishes so fast that d stays inside the ball for every μ, then μ is the largest for
    which the combination is more than rounding.
    """
    eps = jnp.finfo(products.own.dtype).eps

    def excess(mu: Array, products: MeanProducts, c: Array) -> Array:
        # ‖d − v̄‖ − c‖v̄‖, with ‖d − v̄‖ = μ‖Σ_k w_k v_k‖.
        squared, terms = _squared_length(products, _shortest_shifted(products, mu))
        # Below its rounding the square of a vanishing combination says nothing, not even its sign.
        length = safe_sqrt(jnp.maximum(squared, eps * jax.lax.stop_gradient(terms)))
        return mu * length - c * safe_sqrt(jnp.maximum(products.mean, 0))

    # The root is found without being differentiated. One Newton step at it then carries the
    # derivative of the implicit function.
    fixed, fixed_c = jax.lax.stop_gradient((products, c))
    # From a combination of length one to the rounding of the shortest field that counts, which has
    # a weight of 1/K.
    squares = jnp.diagonal(fixed.own)
    shortest = jnp.sqrt(jnp.min(jnp.where(_counts(fixed.own), squares, 1)))
    least = fixed_c * jnp.sqrt(jnp.maximum(fixed.mean, 0))
    most = least * len(squares) / (eps * shortest)

    def narrow(bracket: tuple[Array, Array, Array, Array], _: None):
        low, high, mu = bracket[:3]
        # The end on the root's other side stays, so the bracket contains the root even if Newton's
        # step is poor.
        value, slope = jax.jvp(lambda mu: excess(mu, fixed, fixed_c), (mu,), (jnp.ones_like(mu),))
        low, high = jnp.where(value <= 0, mu, low), jnp.where(value <= 0, high, mu)
        newton = mu - value / jnp.where(slope > 0, slope, 1)
        # Newton's step if it stays inside. Otherwise bisection on a logarithmic scale, as the
        # bracket spans orders of magnitude.
        inside = (slope > 0) & (newton > low) & (newton < high)
        return (low, high, jnp.where(inside, newton, jnp.sqrt(low * high)), slope), None

    start = (least, most, least, jnp.zeros_like(least))
    (_, _, mu, slope), _ = jax.lax.scan(narrow, start, length=_NEWTON_STEPS)
    # At the bracket's upper end μ is a cap rather than a root, and has no implicit derivative.
    regular = (slope > 0) & (mu <= 0.9 * most)
    step = excess(mu, products, c) / jnp.where(regular, slope, 1)
    return jnp.where(regular, mu - step, mu)
