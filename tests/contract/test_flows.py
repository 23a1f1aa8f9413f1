"""Objectives, velocities, aggregators and diagnostics of flows."""

import types

import jax
import jax.numpy as jnp
import optax

from divjax import discrepancy, flows, kernels, ot, problems
from divjax.core.types import Status
from divjax.ratio import heads
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples

K = 3
GAUSSIAN = kernels.Gaussian(bandwidth=0.9)
NETWORK = heads.Network(hidden=(4,), num_steps=4, num_checks=2, batch_size=4)
TARGETS = tuple(flows.KL(target.log_prob) for target in problems.two_component_targets()[:2])


def _quartic(x):
    return -jnp.sum(x**4)


def _objective(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].gradient


def _energy_distance(x, y, a, b):
    return discrepancy.energy_distance(x, y, a, b)


def _learned(method, key, x, weights):
    """Fitted to particles that all have weight, as in a flow."""
    state = method.init(key, jnp.where(weights[:, None] > 0, x, 0))
    return _of_living(weights, method(key, x, weights, state)[0].gradient)


def _of_living(weights, field):
    return jnp.where(weights[:, None] > 0, field, 0)


def _objective_value(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].value


def _energies(x):
    """Gradients of K energies that depend on the particles, so that derivatives flow through
    them."""
    return jnp.stack([(k + 1) * x - k for k in range(K)])


def _velocity(method, key, x, weights):
    drift, repulsion, _ = method(key, x, weights, _energies(x), method.init(key, x))
    return drift + repulsion


def _trained_velocity(method, key, x, weights):
    return _of_living(weights, _velocity(method, key, x, weights))


def _aggregator(method, key, x, weights):
    return method(flows.Fields(jnp.sin(_energies(x)), weights), method.init(key, K))[0]


def _fixed_weights(logits, key, x, weights):
    """The squared norm of what the weights make of the fields: they themselves see none."""
    fields = flows.Fields(jnp.sin(_energies(x)), weights)
    aggregator = flows.FixedWeights(jax.nn.softmax(logits))
    chosen, _ = aggregator(fields, aggregator.init(key, K))
    return flows.squared_norm(fields.velocities, chosen, weights)


def _fisher_rao(method, key, x, weights):
    return method(x, weights, jnp.sum(x**2, axis=1), 1.0, method.init(x))[0][:, None]


def _flow(method, key, x, weights):
    velocity, optimizer_step = method
    return flows.Flow(TARGETS, velocity=velocity, optimizer=flows.accelerated(optimizer_step)).run(
        key, x, num_steps=2
    )


def _end(method, key, x, weights):
    return _flow(method, key, x, weights).particles


def _not_finite(method, key, x, weights):
    return jax.jit(_flow)(method, key, x, weights).status == Status.NOT_FINITE


def _fields(method, key, x, weights):
    flow = flows.Flow(TARGETS, velocity=method, optimizer=optax.sgd(0.1))
    return flow.fields(key, flow.init(key, x)).velocities


def _diagnostics(method, key, x, weights):
    """Of a state, of which they see particles and masses."""
    seen = method(types.SimpleNamespace(particles=x, particle_weights=weights))
    return seen.spread + seen.stein_discrepancy


def _of_velocities(function):
    """A function `(velocities "k n d", weights "n", method)`."""
    return lambda method, key, x, weights: function(jnp.sin(_energies(x)), weights, method)


ROWS = {
    "flows.KL": Row(
        flows.KL(problems.two_component_targets()[0].log_prob),
        _objective,
        "equivariant",
        weighted=True,
    ),
    "flows.KL value": Row(
        flows.KL(problems.two_component_targets()[0].log_prob), _objective_value, weighted=True
    ),
    "flows.Potential": Row(
        flows.Potential(lambda z: jnp.sum(z**4), entropy=0.5),
        _objective,
        "equivariant",
        weighted=True,
        positive=(0,),
    ),
    "flows.Interaction": Row(
        flows.Interaction(GAUSSIAN), _objective, "equivariant", weighted=True, positive=(0,)
    ),
    "flows.Interaction value": Row(
        flows.Interaction(kernels.Energy()), _objective_value, weighted=True
    ),
    "flows.MMD": Row(
        flows.MMD(samples(), GAUSSIAN), _objective, "equivariant", weighted=True, positive=(1,)
    ),
    "flows.MMD value": Row(flows.MMD(samples(), kernels.Energy()), _objective_value, weighted=True),
    "flows.KernelStein": Row(
        flows.KernelStein(problems.two_component_targets()[0].log_prob, GAUSSIAN),
        _objective,
        "equivariant",
        weighted=True,
        positive=(len(jax.tree.leaves(problems.two_component_targets()[0])),),
    ),
    "flows.KernelStein value": Row(
        flows.KernelStein(_quartic, kernels.InverseMultiquadric(bandwidth=0.9)),
        _objective_value,
        weighted=True,
        positive=(0, 1),
    ),
    "flows.Discrepancy": Row(
        flows.Discrepancy(samples(), _energy_distance),
        _objective,
        "equivariant",
        weighted=True,
        infinite="samples that are infinitely far apart",
    ),
    "flows.FDivergence": Row(
        flows.FDivergence(samples(), ratio=NETWORK, num_init_steps=0, num_fit_steps=3),
        _learned,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
    ),
    "flows.SinkhornDivergence": Row(
        flows.SinkhornDivergence(samples(), epsilon=0.5, solver=ot.Sinkhorn(tolerance=1e-7)),
        _objective,
        "equivariant",
        eager=False,
        slow=True,
        weighted=True,
        positive=(1,),
    ),
    "flows.SlicedWasserstein": Row(
        flows.SlicedWasserstein(samples(), num_projections=5),
        _objective,
        "equivariant",
        weighted=True,
        positive=(1,),
    ),
    "flows.SlicedWasserstein value": Row(
        flows.SlicedWasserstein(samples(), num_projections=5, p=1.5),
        _objective_value,
        weighted=True,
        positive=(1,),
    ),
    "flows.SVGD": Row(flows.SVGD(GAUSSIAN), _velocity, "equivariant", weighted=True, positive=(0,)),
    "flows.SVGD(Laplace)": Row(
        flows.SVGD(kernels.Laplace(bandwidth=0.9)),
        _velocity,
        "equivariant",
        weighted=True,
        positive=(0,),
    ),
    "flows.SVGD(Median)": Row(
        # The rule is a constant to differentiation, so finite differences see what gradients must
        # not.
        flows.SVGD(kernels.Gaussian(bandwidth=kernels.Median())),
        _velocity,
        "equivariant",
        smooth=False,
        weighted=True,
    ),
    "flows.Blob": Row(flows.Blob(GAUSSIAN), _velocity, "equivariant", weighted=True, positive=(0,)),
    "flows.GFSD": Row(flows.GFSD(GAUSSIAN), _velocity, "equivariant", weighted=True, positive=(0,)),
    "flows.GFSF": Row(
        flows.GFSF(GAUSSIAN, regularization=0.1),
        _velocity,
        "equivariant",
        weighted=True,
        positive=(0, 1),
    ),
    "flows.NeuralScore": Row(
        flows.NeuralScore(hidden=(4,), num_init_steps=0, num_fit_steps=3),
        _trained_velocity,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
        positive=(0, 1),
    ),
    "flows.Langevin": Row(flows.Langevin(), _velocity, "equivariant", weighted=True),
    "flows.MinNorm": Row(flows.MinNorm(), _aggregator, weighted=True),
    "flows.ProjectedStep": Row(
        flows.ProjectedStep(step_size=0.1), _aggregator, weighted=True, positive=(0,)
    ),
    "flows.FixedWeights": Row(jnp.array([0.2, 0.3, 0.5]), _fixed_weights, weighted=True),
    "flows.PCGrad": Row(flows.PCGrad(), _aggregator, weighted=True),
    "flows.CAGrad": Row(
        flows.CAGrad(c=0.4), _aggregator, eager=False, weighted=True, positive=(0,)
    ),
    "flows.FisherRao": Row(
        flows.FisherRao(step_size=0.5, kernel=GAUSSIAN),
        _fisher_rao,
        "equivariant",
        weighted=True,
        positive=(0, 1),
    ),
    # A flow keeps its programs, and a row makes one at every call: `test_first_calls` counts them.
    "flows.Flow fields": Row(
        flows.SVGD(GAUSSIAN), _fields, "equivariant", eager=False, positive=(0,)
    ),
    "flows.gram": Row((), _of_velocities(lambda v, w, m: flows.gram(v, w)), weighted=True),
    "flows.squared_norm": Row(
        jnp.array([0.2, 0.3, 0.5]),
        _of_velocities(lambda v, w, m: flows.squared_norm(v, m, w)),
        weighted=True,
    ),
    "flows.pareto_residual": Row(
        (), _of_velocities(lambda v, w, m: flows.pareto_residual(v, w)), weighted=True
    ),
    "flows.min_norm_weights": Row(
        (),
        _of_velocities(lambda v, w, m: flows.min_norm_weights(flows.gram(v, w))),
        weighted=True,
    ),
    "flows.project_simplex": Row(
        (),
        lambda m, key, x, w: flows.project_simplex(x[:, 0])[:, None],
        "equivariant",
        infinite="no weight, as of logits",
    ),
    "flows.effective_sample_size": Row(
        (),
        lambda m, key, x, w: flows.effective_sample_size(w * jnp.exp(x[:, 0])),
        infinite="no weight, as of logits",
    ),
    "flows.hypervolume": Row(
        jnp.array([2.0, 3.0]),
        lambda reference, key, x, w: flows.hypervolume(x, reference),
        infinite="dominates nothing",
    ),
    "flows.Diagnostics": Row(
        flows.Diagnostics(samples(), lambda z: -jnp.sum(z**4), GAUSSIAN),
        _diagnostics,
        weighted=True,
        positive=(1,),
    ),
    "flows.relative_spread": Row(
        samples(), lambda y, key, x, w: flows.relative_spread(x, y, w), weighted=True
    ),
    "flows.Flow run": Row(
        (flows.SVGD(GAUSSIAN), 0.05),
        _end,
        "equivariant",
        eager=False,
        positive=(0, 1),
        flag=_not_finite,
    ),
}


class TestFlows(Edges):
    rows = ROWS
