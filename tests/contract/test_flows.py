"""Objectives, velocities, aggregators and diagnostics of flows."""

import jax.numpy as jnp
import optax

from divjax import flows, kernels, problems
from divjax.ratio import heads
from tests.contract.promises import Promises, Row, samples

K = 3
GAUSSIAN = kernels.Gaussian(bandwidth=0.9)
NETWORK = heads.Network(hidden=(4,), num_steps=4, num_checks=2, batch_size=4)
TARGETS = tuple(flows.KL(target.log_prob) for target in problems.two_component_targets()[:2])


def _objective(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].gradient


def _objective_value(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].value


def _energies(x):
    """Gradients of K energies that depend on the particles, so that derivatives flow through
    them."""
    return jnp.stack([(k + 1) * x - k for k in range(K)])


def _velocity(method, key, x, weights):
    drift, repulsion, _ = method(key, x, weights, _energies(x), method.init(key, x))
    return drift + repulsion


def _aggregator(method, key, x, weights):
    return method(key, jnp.sin(_energies(x)), weights, method.init(K))[0]


def _reaction(method, key, x, weights):
    return method(x, weights, jnp.sum(x**2, axis=1), 1.0, method.init(x))[0][:, None]


def _flow(method, key, x, weights):
    velocity, optimizer_step = method
    return flows.run(
        key,
        x,
        TARGETS,
        velocity=velocity,
        optimizer=flows.accelerated(optimizer_step),
        num_steps=2,
    ).particles


def _fields(method, key, x, weights):
    state = flows.init(key, x, TARGETS, velocity=method, optimizer=optax.sgd(0.1))
    return flows.fields(key, state, TARGETS, velocity=method).velocities


def _of_velocities(function):
    """A function `(velocities "k n d", weights "n", method)`."""
    return lambda method, key, x, weights: function(jnp.sin(_energies(x)), weights, method)


ROWS = {
    "flows.KL": Row(
        flows.KL(problems.two_component_targets()[0].log_prob), _objective, "equivariant"
    ),
    "flows.Potential": Row(
        flows.Potential(lambda z: jnp.sum(z**4), entropy=0.5), _objective, "equivariant"
    ),
    "flows.Interaction": Row(flows.Interaction(GAUSSIAN), _objective, "equivariant"),
    "flows.MMD": Row(flows.MMD(samples(), GAUSSIAN), _objective, "equivariant"),
    "flows.MMD value": Row(flows.MMD(samples(), kernels.Energy()), _objective_value),
    "flows.FDivergence": Row(
        flows.FDivergence(samples(), ratio=NETWORK, num_init_steps=0, num_fit_steps=3),
        _objective,
        "random",
        smooth=False,
        eager=False,
    ),
    "flows.SinkhornDivergence": Row(
        flows.SinkhornDivergence(samples(), epsilon=0.5, tolerance=1e-6),
        _objective,
        "equivariant",
        eager=False,
        slow=True,
    ),
    "flows.SlicedWasserstein": Row(
        flows.SlicedWasserstein(samples(), num_projections=5), _objective, "equivariant"
    ),
    "flows.SVGD": Row(flows.SVGD(GAUSSIAN), _velocity, "equivariant"),
    "flows.SVGD(Laplace)": Row(
        flows.SVGD(kernels.Laplace(bandwidth=0.9)), _velocity, "equivariant"
    ),
    "flows.Blob": Row(flows.Blob(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSD": Row(flows.GFSD(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSF": Row(flows.GFSF(GAUSSIAN, regularization=0.1), _velocity, "equivariant"),
    "flows.NeuralScore": Row(
        flows.NeuralScore(hidden=(4,), num_init_steps=0, num_fit_steps=3),
        _velocity,
        "random",
        smooth=False,
        eager=False,
    ),
    "flows.Langevin": Row(flows.Langevin(), _velocity, "equivariant"),
    "flows.MinNorm": Row(flows.MinNorm(), _aggregator),
    "flows.ProjectedStep": Row(flows.ProjectedStep(step_size=0.1), _aggregator),
    "flows.FixedWeights": Row(
        flows.FixedWeights(jnp.array([0.2, 0.3, 0.5])), _aggregator, "invariant"
    ),
    "flows.PCGrad": Row(flows.PCGrad(), _aggregator),
    "flows.CAGrad": Row(flows.CAGrad(c=0.4), _aggregator, eager=False),
    "flows.ParticleWeights": Row(
        flows.ParticleWeights(step_size=0.5, kernel=GAUSSIAN), _reaction, "equivariant"
    ),
    "flows.fields": Row(flows.SVGD(GAUSSIAN), _fields, "equivariant"),
    "flows.gram": Row((), _of_velocities(lambda v, w, m: flows.gram(v, w))),
    "flows.grad_norm": Row(
        jnp.array([0.2, 0.3, 0.5]), _of_velocities(lambda v, w, m: flows.grad_norm(v, m, w))
    ),
    "flows.pareto_residual": Row((), _of_velocities(lambda v, w, m: flows.pareto_residual(v, w))),
    "flows.min_norm_weights": Row(
        (), _of_velocities(lambda v, w, m: flows.min_norm_weights(flows.gram(v, w)))
    ),
    "flows.project_simplex": Row(
        (), lambda m, key, x, w: flows.project_simplex(x[:, 0])[:, None], "equivariant"
    ),
    "flows.effective_sample_size": Row(
        (), lambda m, key, x, w: flows.effective_sample_size(w * jnp.exp(x[:, 0]))
    ),
    "flows.hypervolume": Row(
        jnp.array([2.0, 3.0]), lambda reference, key, x, w: flows.hypervolume(x, reference)
    ),
    "flows.kernel_stein_discrepancy": Row(
        GAUSSIAN,
        lambda kernel, key, x, w: flows.kernel_stein_discrepancy(
            x, lambda z: -jnp.sum(z**2) / 2, kernel, w
        ),
    ),
    "flows.run": Row((flows.SVGD(GAUSSIAN), 0.05), _flow, "equivariant", eager=False),
}


class TestFlows(Promises):
    rows = ROWS
