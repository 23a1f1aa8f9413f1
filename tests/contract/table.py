"""The table of public methods: a new one is one more row, and every check of the suite runs on
it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax import flows, kernels, problems

N, D, K = 8, 2, 3


class Row(NamedTuple):
    """A method and how to evaluate it on particles.

    Attributes:
        method: the pytree whose leaves are hyper-parameters.
        evaluate: `(method, key, x "n d", weights "n") -> array`.
        output: what permuting the particles does to the output: "equivariant" (axis −2 is the
            particles'), "invariant", or "random" where the key's draws are tied to positions.
        smooth: whether finite differences in x make sense.
    """

    method: Any
    evaluate: Callable[..., jax.Array]
    output: str
    smooth: bool = True


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


def _kernel(method, key, x, weights):
    kernel, _ = method.resolve(x, method.init(x))
    return kernel(x) @ weights[:, None]


def _log_prob(method, key, x, weights):
    return jax.vmap(method.log_prob)(x)[:, None]


def _score(method, key, x, weights):
    return jax.vmap(method.score)(x)


def _flow(method, key, x, weights):
    velocity, optimizer_step = method
    return flows.run(
        key,
        x,
        tuple(flows.KL(t.log_prob) for t in problems.two_component_targets()),
        velocity=velocity,
        optimizer=flows.accelerated(optimizer_step),
        num_steps=2,
    ).particles


def _samples():
    return jax.random.normal(jax.random.key(7), (5, D))


GAUSSIAN = kernels.Gaussian(bandwidth=0.9)

ROWS = {
    "kernels.Gaussian": Row(GAUSSIAN, _kernel, "equivariant"),
    "kernels.Gaussian(Median)": Row(
        # The rule is a constant to differentiation, so finite differences see what gradients must
        # not.
        kernels.Gaussian(bandwidth=kernels.Median()),
        _kernel,
        "equivariant",
        smooth=False,
    ),
    "kernels.Gaussian(Mean)": Row(
        kernels.Gaussian(bandwidth=kernels.Mean()), _kernel, "equivariant", smooth=False
    ),
    "kernels.Gaussian(MultiScale)": Row(
        kernels.Gaussian(bandwidth=kernels.MultiScale()), _kernel, "equivariant", smooth=False
    ),
    "kernels.Laplace": Row(kernels.Laplace(bandwidth=0.9), _kernel, "equivariant"),
    "kernels.InverseMultiquadric": Row(
        kernels.InverseMultiquadric(bandwidth=0.9), _kernel, "equivariant"
    ),
    "kernels.Energy": Row(kernels.Energy(), _kernel, "equivariant"),
    "flows.KL": Row(
        flows.KL(problems.two_component_targets()[0].log_prob), _objective, "equivariant"
    ),
    "flows.Potential": Row(
        flows.Potential(lambda z: jnp.sum(z**4), entropy=0.5), _objective, "equivariant"
    ),
    "flows.Interaction": Row(flows.Interaction(GAUSSIAN), _objective, "equivariant"),
    "flows.MMD": Row(flows.MMD(_samples(), GAUSSIAN), _objective, "equivariant"),
    "flows.MMD value": Row(flows.MMD(_samples(), kernels.Energy()), _objective_value, "invariant"),
    "flows.SVGD": Row(flows.SVGD(GAUSSIAN), _velocity, "equivariant"),
    "flows.SVGD(Laplace)": Row(
        flows.SVGD(kernels.Laplace(bandwidth=0.9)), _velocity, "equivariant"
    ),
    "flows.Blob": Row(flows.Blob(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSD": Row(flows.GFSD(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSF": Row(flows.GFSF(GAUSSIAN, regularization=0.1), _velocity, "equivariant"),
    "flows.NeuralScore": Row(flows.NeuralScore(), _velocity, "random", smooth=False),
    "flows.Langevin": Row(flows.Langevin(), _velocity, "equivariant"),
    "flows.MinNorm": Row(flows.MinNorm(), _aggregator, "invariant"),
    "flows.ProjectedStep": Row(flows.ProjectedStep(step_size=0.1), _aggregator, "invariant"),
    "flows.FixedWeights": Row(
        flows.FixedWeights(jnp.array([0.2, 0.3, 0.5])), _aggregator, "invariant"
    ),
    "flows.PCGrad": Row(flows.PCGrad(), _aggregator, "invariant"),
    "flows.CAGrad": Row(flows.CAGrad(c=0.4), _aggregator, "invariant"),
    "flows.ParticleWeights": Row(
        flows.ParticleWeights(step_size=0.5, kernel=GAUSSIAN), _reaction, "equivariant"
    ),
    "flows.run": Row((flows.SVGD(GAUSSIAN), 0.05), _flow, "equivariant"),
    "problems.GaussianMixture.log_prob": Row(
        problems.two_component_targets()[0], _log_prob, "equivariant"
    ),
    "problems.GaussianMixture.score": Row(
        problems.two_component_targets()[0], _score, "equivariant"
    ),
}
