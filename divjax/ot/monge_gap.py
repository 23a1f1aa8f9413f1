"""The Monge gap: how much more a map pays than the cheapest transport to where it arrives.

Three estimates of one number. With n samples all replace the transport cost W(x, T(x)) by an
entropic one, and they differ in what the entropy leaves behind. H is the weights' entropy, log n
for uniform ones, and M the gap of the samples themselves, zero for the best assignment:

    entropic   M + εH ≤ gap ≤ M + 2εH      never below zero, never zero
    primal     M − εH ≤ gap ≤ M            below zero for the best map
    debiased   M − εH ≤ gap ≤ M + εH       zero for a translation, O(ε²) from M for smooth densities
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import check_callable, check_choice
from divjax.core.pairwise import common_center
from divjax.core.pytrees import pytree
from divjax.core.samples import as_samples
from divjax.core.types import Outcome, Status
from divjax.ot.costs import SqEuclidean, paired_costs
from divjax.ot.divergence import sinkhorn_divergence
from divjax.ot.problem import PointPairs
from divjax.ot.sinkhorn import SinkhornResult, sinkhorn

__all__ = ["KINDS", "MongeGapResult", "monge_gap", "monge_gap_from_samples"]

KINDS = ("debiased", "entropic", "primal")

# Rounding of what a map takes and gives, in spreads of the samples.
_LARGEST_ROUNDING = 1e-2


@pytree
class MongeGapResult(Outcome):
    """A Monge gap and the two costs it is the difference of.

    Attributes:
        value: displacement − transport, in units of the cost.
        displacement: Σ_i a_i c(x_i, T(x_i)), what the map pays.
        transport: the estimate of what the cheapest transport pays.
        status: the gravest `Status` of the entropic problems.
    """

    value: Float[Array, ""]
    displacement: Float[Array, ""]
    transport: Float[Array, ""]
    status: Int[Array, ""]


def monge_gap(
    map_fn: Callable[[Array], Array],
    x: Float[Array, "n d"],
    a: Float[Array, " n"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array] = SqEuclidean(),
    kind: str = "debiased",
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
) -> MongeGapResult:
    """How far a map is from an optimal one, Σ_i a_i c(x_i, T(x_i)) − W(x, T(x)).

    The population's gap is zero if and only if T is c-optimal between the distribution of x and its
    image.
    As a penalty it selects the optimal map among all that fit equally well.

    Args:
        map_fn: T, of all rows at once.
        x: samples.
        a: their weights; uniform by default.
        epsilon: ε > 0 of the entropic transport, in units of the cost.
        cost: a cost of `divjax.ot`, or any function of two points.
        kind: how W is estimated: "debiased", zero for a translation; "entropic", above zero by
            ε times up to twice the weights' entropy; or "primal", below zero for the best map. See
            `monge_gap_from_samples`.
        max_iterations: of each of Sinkhorn's problems.
        tolerance: of each of Sinkhorn's problems.

    Returns:
        A `MongeGapResult`, the value first, differentiable in whatever T depends on. T sees the
        samples in their dtype, float32 as a rule: where it, or its images, lie so far from zero
        that they are rounded by more than a hundredth of their spread, the status says so.

    Raises:
        ValueError: for an unknown kind, wrong shapes, or numbers out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (100, 2))
        >>> shift, turn = (lambda x: x + 3), (lambda x: -x)
        >>> round(float(monge_gap(shift, x, epsilon=0.1).value), 3)
        0.0
        >>> gap = monge_gap(turn, x, epsilon=0.1)  # of −x: 4 |x|² is paid for nearly nothing
        >>> float(gap.value / gap.displacement) > 0.9
        True

    References:
        Uscidda, Cuturi 2023, definition 3.1.
    """
    check_callable(map_fn=map_fn)
    (x,) = as_samples(x=x)
    y = map_fn(x)
    gap = monge_gap_from_samples(
        x,
        y,
        a,
        epsilon=epsilon,
        cost=cost,
        kind=kind,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    lost = jnp.where(_are_rounded(x, y, a), Status.FLOATING_POINT_RESOLUTION, Status.CONVERGED)
    return dataclasses.replace(gap, status=jnp.maximum(gap.status, lost))


def _are_rounded(x: Array, y: Any, a: Any) -> Bool[Array, ""]:
    """Whether rows that count are rounded by more than a share of the wider sample's spread."""
    used = jnp.ones(len(x), bool) if a is None else jnp.asarray(a) > 0
    sizes, spreads = [], []
    for rows in as_samples(x=x, y=y):
        rows = jnp.where(used[:, None], rows, 0)
        sizes.append(jnp.max(jnp.abs(rows)))
        deviation = jnp.where(used[:, None], rows - common_center(rows, used), 0)
        spreads.append(jnp.max(jnp.abs(deviation)))
    unit = jnp.finfo(x.dtype).eps
    return unit * jnp.maximum(*sizes) > _LARGEST_ROUNDING * jnp.maximum(*spreads)


def monge_gap_from_samples(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    a: Float[Array, " n"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array] = SqEuclidean(),
    kind: str = "debiased",
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
) -> MongeGapResult:
    """The Monge gap of the map that takes row i of x to row i of y.

    With P the entropic plan between x and y, and OT_ε = ⟨P, C⟩ + ε KL(P‖a⊗a) its value, the cost of
    transport is estimated, by kind, as

        entropic   ⟨P, C⟩ − ε H(P) = OT_ε(x, y) − 2εH(a); of mass m it is m times that of a/m
        primal     ⟨P, C⟩
        debiased   OT_ε(x, y) − ½ OT_ε(x, x) − ½ OT_ε(y, y), the Sinkhorn divergence

    The first is off by ε H(a) to 2ε H(a); as a penalty it also rewards maps whose image has a plan
    of less entropy. The last is exactly zero for translations under the squared Euclidean cost, and
    differs from the true gap of smooth densities by O(ε²): between Gaussians in one dimension it is
    a little above zero for the optimal map. Of samples it is within ±ε H(a) of the true gap for
    costs that are zero at equal points: below zero where ε is large and the map is not optimal
    between its few samples.

    The derivative is that at the optimum. For the entropic and the debiased kind no derivative of
    the plan enters; the primal one takes it by conjugate gradients.

    Args:
        x: samples.
        y: their images, a row each.
        a: weights of the rows; uniform by default.
        epsilon: ε > 0, in units of the cost.
        cost: a cost of `divjax.ot`, or any function of two points.
        kind: "debiased", "entropic" or "primal".
        max_iterations: of each of Sinkhorn's problems.
        tolerance: of each of Sinkhorn's problems.

    Returns:
        A `MongeGapResult`. Memory is that of `sinkhorn` for n × n.

    Raises:
        ValueError: for an unknown kind, wrong shapes, or numbers out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0]])
        >>> crossed = monge_gap_from_samples(x, x[::-1], epsilon=0.01)  # both pay 1 to stay
        >>> float(crossed.value), float(crossed.displacement)
        (1.0, 1.0)

    References:
        Uscidda, Cuturi 2023, section 3.3: the entropic kind. Feydy et al. 2019, eq. 3: the Sinkhorn
        divergence. Chizat, Roussillon, Léger, Vialard, Peyré 2020, theorem 1: it is O(ε²) from W.
    """
    check_choice(KINDS, kind=kind)
    typed_x, typed_y = as_samples(x=x, y=y)
    if len(typed_x) != len(typed_y):
        sizes = f"{len(typed_y)} and {len(typed_x)}"
        raise ValueError(f"y must have a row for each row of x; got {sizes}.")
    check_callable(cost=cost)
    settings: Any = {"max_iterations": max_iterations, "tolerance": tolerance}

    # 1. The cost of transport, between centred samples: without what a shift costs.
    if kind == "debiased":
        divergence = sinkhorn_divergence(x, y, a, a, epsilon=epsilon, cost=cost, **settings)
        result, status = divergence.xy, divergence.status
        transport = result.centered_value - (divergence.xx.value + divergence.yy.value) / 2
    else:
        result = sinkhorn(x, y, a, a, epsilon=epsilon, cost=cost, **settings)
        problem, status = result.problem, result.status
        entropic = kind == "entropic"
        entropy = 2 * jnp.sum(entr(problem.a)) if entropic else _plan_divergence(result)
        mass = jnp.sum(problem.a)
        # KL of measures that are no probabilities; and entropies of shares of the mass.
        entropy += mass**2 - mass + (mass * jnp.log(mass) if entropic else 0)
        transport = result.centered_value - problem.epsilon * entropy

    # 2. What the map pays, likewise, so that far samples do not cancel. Both pay for the shift.
    pairs, weights = result.problem.pairs, result.problem.a
    assert isinstance(pairs, PointPairs)
    costs = paired_costs(pairs.cost, pairs.x, pairs.y)
    displacement = weights @ costs
    shift_cost = result.formulation.shift_cost
    value = displacement - transport
    return MongeGapResult(value, displacement + shift_cost, transport + shift_cost, status)


def _plan_divergence(result: SinkhornResult) -> Float[Array, ""]:
    """Σ P log(P/a⊗b) = Σ P (f ⊕ g − C)/ε, by blocks where the problem is.

    What the marginals miss is multiplied by a logarithm here, in ⟨P, C⟩ by a cost.
    """
    problem = result.problem

    def block(costs, f):
        exponent = (f[:, None] + result.centered_g - costs) / problem.epsilon
        return (problem.exponentials(costs, f, result.centered_g) * exponent) @ problem.b

    return problem.a @ problem.map_rows(block, result.centered_f)
