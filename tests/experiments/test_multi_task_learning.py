"""The main job's parts: objectives, scalarised gradients, whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments import multi_task_learning as job
from experiments.lenet import init_particle, is_shared
from experiments.scalarization import Scalarized


@pytest.fixture(scope="module")
def problem():
    splits = data.load("digits", quick=True)
    return job.Problem(jax.tree.map(jnp.asarray, splits.train), job.Settings(batch_size=16))


def test_a_task_does_not_move_the_other_tasks_head(problem):
    particle = init_particle(jax.random.key(0), 12)
    gradient = jax.grad(lambda p: problem.losses(jax.random.key(1), p)[0])(particle)
    np.testing.assert_array_equal(gradient["heads"][1]["kernel"], 0)
    assert jnp.abs(gradient["heads"][0]["kernel"]).max() > 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("per_particle", [True, False])
def test_scalarised_gradients_descend_both_tasks(problem, per_particle):
    """A min-norm combination has a non-negative inner product with every task's gradient."""
    particles = jax.vmap(lambda k: init_particle(k, 12))(jax.random.split(jax.random.key(0), 3))
    weights, key = jnp.full(3, 1 / 3), jax.random.key(1)
    objectives = problem.objectives(0.0)
    combined = Scalarized(objectives, problem.outputs, per_particle)
    direction = combined(key, particles, weights, ())[0].gradient
    matrix = np.eye(3)
    if not per_particle:
        from divjax import kernels

        matrix = kernels.Gaussian()(jax.vmap(problem.outputs, (None, 0))(key, particles))
    flat = lambda tree: np.concatenate(
        [
            np.asarray(v).reshape(3, -1)
            for k, v in sorted(tree.items())
            if k != "heads"
            for v in v.values()
        ],
        1,
    )
    for objective in objectives:
        gradient = flat(objective(key, particles, weights, ())[0].gradient)
        products = np.asarray(matrix) * (flat(direction) @ gradient.T)
        norm = np.linalg.norm(flat(direction)) * np.linalg.norm(gradient)
        if per_particle:
            assert np.diagonal(products).min() > -1e-5 * norm
        assert products.sum() > -1e-5 * norm


@pytest.mark.parametrize("settings", [{"methods": ("SGD",)}, {"dataset": "cifar"}])
def test_unknown_names_are_refused(settings):
    with pytest.raises(SystemExit, match="must be"):
        job.Settings(**settings)


def test_every_method_steps(problem):
    for name, method in job.METHODS.items():
        n = 3 if method.ensemble else 1
        particles = jax.vmap(lambda k: init_particle(k, 12))(jax.random.split(jax.random.key(0), n))
        shared = is_shared(jax.tree.map(lambda leaf: leaf[0], particles))
        flow = job.make_flow(method, problem, 2, shared)
        result = flow.run(jax.random.key(1), particles, num_steps=2)
        assert result.finite, name
