"""The Monge gap: the cost of a map in excess of the cheapest transport to its images.

There are three estimates. With n samples all replace the transport cost W(x, T(x)) by an entropic
one, and they differ in the bias from the entropy. H is the weights' entropy, log n for uniform
weights, and M the gap of the samples themselves, zero for the best assignment:

    entropic   M + εH ≤ gap ≤ M + 2εH      never below zero, never zero
    primal     M − εH ≤ gap ≤ M            below zero for the best map
    debiased   M − εH ≤ gap ≤ M + εH       zero for a translation, O(ε²) from M for smooth densities
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import check_callable, check_choice
from divjax.core.numerics import quotient, xlogy
from divjax.core.pairwise import common_center
from divjax.core.pytrees import pytree
from divjax.core.rounding import is_rounded_away
from divjax.core.samples import Numbers, Unrounded, as_numbers, as_samples, as_weights
from divjax.core.types import Outcome, Status
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.divergence import SinkhornDivergenceResult, sinkhorn_divergence
from divjax.ot.entropic.options import Sinkhorn, check_solver
from divjax.ot.entropic.problem import PointPairs
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.given_costs import paired_costs

__all__ = ["KINDS", "MongeGapResult", "monge_gap"]

KINDS = ("debiased", "entropic", "primal")


@pytree
class MongeGapResult(Outcome):
    """A Monge gap, and the two costs whose difference it is.

    Attributes:
        value: displacement − transport, in units of the cost.
        displacement: Σ_i a_i c(x_i, T(x_i)), the cost of the map.
        transport: the estimated cost of the cheapest transport.
        status: the most severe `Status` of the entropic problems.
    """

    value: Float[Array, ""]
    displacement: Float[Array, ""]
    transport: Float[Array, ""]
    status: Int[Array, ""]


def monge_gap(
    x: Float[Numbers, "n d"],
    images: Float[Numbers, "n d"] | Callable[[Array], Array],
    a: Float[Numbers, " n"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array] = SqEuclidean(),
    kind: str = "debiased",
    solver: Sinkhorn = Sinkhorn(),
) -> MongeGapResult:
    """How far a map is from an optimal one, Σ_i a_i c(x_i, T(x_i)) − W(x, T(x)).

    The population's gap is zero if and only if T is c-optimal between the distribution of x and its
    image. As a penalty it selects the optimal map among all that fit equally well.

    With P the entropic plan between x and its images y, and OT_ε = ⟨P, C⟩ + ε KL(P‖a⊗a) its value,
    the cost of transport W is estimated, by kind, as

        entropic   ⟨P, C⟩ − ε H(P) = OT_ε(x, y) − 2εH(a)
        primal     ⟨P, C⟩
        debiased   OT_ε(x, y) − ½ OT_ε(x, x) − ½ OT_ε(y, y), the Sinkhorn divergence

    for weights that sum to one. For weights of mass m, the gap is m times that of a/m.

    The entropic kind has a bias of ε H(a) to 2ε H(a), and as a penalty also rewards maps whose
    image has a plan of less entropy. The debiased kind is exactly zero for translations under the
    squared Euclidean cost, and differs from the true gap of smooth densities by O(ε²): between
    Gaussians in one dimension it is a little above zero for the optimal map. For samples it is
    within ±ε H(a) of the true gap if the cost is zero at equal points, so it may be negative.

    The derivative is taken at the optimum. For the entropic and the debiased kind it does not
    involve the derivative of the plan, which the primal kind computes by conjugate gradients.

    Args:
        x: samples.
        images: the images, one per row of x; or T itself, a function of all rows at once.
        a: weights of the rows, uniform by default.
        epsilon: ε > 0 of the entropic transport, in units of the cost.
        cost: a cost of `divjax.ot`, or any function of two points. The debiased kind needs a
            symmetric one, and is NaN with `Status.INVALID_INPUT` otherwise.
        kind: "debiased", "entropic" or "primal".
        solver: the options for each Sinkhorn problem, without `record_errors`, as the result holds
            no errors. Averaged updates of self terms have no over-relaxation.

    Returns:
        A `MongeGapResult`, the value first, differentiable in all arrays that T uses. A function T
        gets the samples in their dtype, usually float32. If samples or images are so far from zero
        that rounding exceeds a hundredth of their spread, the status reports it. Memory is that of
        `sinkhorn` for n × n.

    Raises:
        ValueError: for an unknown kind, wrong shapes, numbers out of range, or a solver that is not
            a `Sinkhorn` or records errors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (100, 2))
        >>> round(float(monge_gap(x, x + 3, epsilon=0.1).value), 3)
        0.0
        >>> gap = monge_gap(x, lambda x: -x, epsilon=0.1)  # 4 |x|² is paid for nearly nothing
        >>> float(gap.value / gap.displacement) > 0.9
        True

    References:
        Uscidda, Cuturi 2023, definition 3.1, and section 3.3: the entropic kind. Feydy et al. 2019,
        eq. 3: the Sinkhorn divergence. Chizat, Roussillon, Léger, Vialard, Peyré 2020, theorem 1:
        it is O(ε²) from W.
    """
    check_solver(solver, records=False, result="a MongeGapResult")
    if not callable(images):
        return _gap_between(x, images, a, epsilon, cost, kind, solver)
    # A function T takes points in their original coordinates: they cannot be centred first, and
    # their rounding far from zero is flagged.
    (x,) = as_samples(x=x)
    if a is not None:
        # T at a row without weight may have a derivative of NaN: a copy of another takes its place.
        weights = as_weights("a", a, len(x), x.dtype)
        x = jnp.where((weights == 0)[:, None], x[jnp.argmax(weights)], x)
    y = images(x)
    gap = _gap_between(x, y, a, epsilon, cost, kind, solver)
    x, y = as_samples(x=x, y=y)
    return _flagged_if_rounded(gap, x, y, None if a is None else as_numbers("a", a) > 0)


@jax.jit
def _flagged_if_rounded(
    gap: MongeGapResult,
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    used: Bool[Array, " n"] | None,
) -> MongeGapResult:
    """The gap, flagged if rounding exceeds a share of the wider sample's spread."""
    of_used = lambda rows: rows if used is None else jnp.where(used[:, None], rows, 0)
    sizes, spreads = [], []
    for rows in (of_used(x), of_used(y)):
        # Rounding is relative to the distance from zero, and matters relative to the spread.
        sizes.append(jnp.max(jnp.abs(rows)))
        spreads.append(jnp.max(jnp.abs(of_used(rows - common_center(rows, used)))))
    rounded = is_rounded_away(jnp.maximum(*sizes), jnp.maximum(*spreads))
    lost = jnp.where(rounded, Status.FLOATING_POINT_RESOLUTION, Status.CONVERGED)
    return dataclasses.replace(gap, status=jnp.maximum(gap.status, lost))


def _gap_between(
    x: Numbers,
    images: Numbers,
    a: Numbers | None,
    epsilon: ArrayLike,
    cost: Callable[..., Array],
    kind: str,
    solver: Sinkhorn,
) -> MongeGapResult:
    """The gap of the map from row i of x to row i of its images."""
    check_choice(KINDS, kind=kind)
    rows, image_rows = as_samples(x=x, images=images)
    if len(rows) != len(image_rows):
        sizes = f"{len(image_rows)} and {len(rows)}"
        raise ValueError(f"images must have a row for each row of x; got {sizes}.")
    check_callable(cost=cost)
    # Costs are linear in the mass, entropies are not.
    a, mass = _shares_and_mass(a, rows)
    solve = sinkhorn_divergence if kind == "debiased" else sinkhorn
    solution = solve(x, images, a, a, epsilon=epsilon, cost=cost, solver=solver)
    return _gap(solution, mass, kind=kind)


@functools.partial(jax.jit, static_argnames="kind")
def _gap(
    solution: SinkhornResult | SinkhornDivergenceResult, mass: Unrounded, *, kind: str
) -> MongeGapResult:
    """The gap from the solution between a sample and its images, times their mass."""
    # 1. The cost of transport between centred samples, without the cost of the shift.
    if isinstance(solution, SinkhornDivergenceResult):
        result = solution.xy
        # Self terms are centred by their own mean and contain no shift.
        transport = result.centered_value - (solution.xx.value + solution.yy.value) / 2
    else:
        result, entropic = solution, kind == "entropic"
        problem = result.problem
        # OT_ε less ε times this is the estimate: 2 H(a) for the entropic one, KL(P‖a⊗a) for ⟨P, C⟩.
        negative_entropy = jnp.sum(xlogy(problem.a, problem.a))
        entropy = -2 * negative_entropy if entropic else _plan_divergence(result)
        transport = result.centered_value - problem.epsilon * entropy

    # 2. The cost of the map, likewise without the shift, which avoids cancellation at far samples.
    pairs, weights = result.problem.pairs, result.problem.a
    assert isinstance(pairs, PointPairs)
    costs = paired_costs(pairs.cost, pairs.x, pairs.y)
    displacement = weights @ costs
    shift_cost = result.formulation.shift_cost
    value = displacement - transport
    return MongeGapResult(
        mass * value,
        mass * (displacement + shift_cost),
        mass * (transport + shift_cost),
        solution.status,
    )


def _shares_and_mass(
    a: Numbers | None, rows: Float[Array, "n d"]
) -> tuple[Unrounded | None, Unrounded]:
    """Weights that sum to one, and their sum, in NumPy's precision if it holds them."""
    if a is None:
        return None, np.ones((), rows.dtype)
    given = as_numbers("a", a)
    as_weights("a", given, len(rows), rows.dtype)  # which checks them
    mass = given.sum()
    # Traced weights may be invalid, and a negative sum would make them positive.
    shares = given / (jnp.where(mass > 0, mass, 1) if isinstance(given, jax.Array) else mass)
    return shares, jnp.asarray(mass, rows.dtype)


def _plan_divergence(result: SinkhornResult) -> Float[Array, ""]:
    """Σ P log(P/a⊗b) = Σ P (f ⊕ g − C)/ε, blockwise if the problem is.

    Errors of the marginals are multiplied by a logarithm here, in ⟨P, C⟩ by a cost.
    """
    problem = result.problem

    def block(costs, f):
        exponent = quotient(f[:, None] + result.centered_g - costs, problem.epsilon)
        return (problem.exponentials(costs, f, result.centered_g) * exponent) @ problem.b

    return problem.a @ problem.map_rows(block, result.centered_f)
