"""The main job's parts: metrics, network, scalarised objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from divjax import flows
from experiments import data
from experiments import multi_task_learning as job
from experiments.lenet import init_particle, is_shared


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(10), size=(60, 2))
    labels = rng.integers(10, size=(60, 2))
    found = job.metrics(jnp.asarray(probs, jnp.float32), jnp.asarray(labels))
    for task in range(2):
        p, y = probs[:, task], labels[:, task]
        assert found["accuracy"][task] == pytest.approx(accuracy_score(y, p.argmax(1)))
        assert found["log_loss"][task] == pytest.approx(log_loss(y, p, labels=range(10)), rel=1e-5)
        one_against_rest = sum(brier_score_loss(y == c, p[:, c]) for c in range(10))
        assert found["brier"][task] == pytest.approx(one_against_rest, rel=1e-5)


def test_calibration_error_by_hand():
    """Two bins: confidence .9 right half the time, confidence .6 always right."""
    probs = jnp.array([[[0.9, 0.1]], [[0.9, 0.1]], [[0.6, 0.4]], [[0.6, 0.4]]])
    labels = jnp.array([[0], [1], [0], [0]])
    expected = 0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0)
    assert job.metrics(probs, labels)["ece"][0] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def problem():
    splits = data.load("digits", quick=True)
    return job.Problem(jax.tree.map(jnp.asarray, splits.train), job.Settings(batch_size=16))


def test_a_task_does_not_move_the_other_tasks_head(problem):
    particle = init_particle(jax.random.key(0), 12)
    gradient = jax.grad(lambda p: problem.losses(jax.random.key(1), p)[0])(particle)
    np.testing.assert_array_equal(gradient["heads"][1]["kernel"], 0)
    assert jnp.abs(gradient["heads"][0]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("per_particle", [True, False])
def test_scalarised_gradients_descend_both_tasks(problem, per_particle):
    """A min-norm combination has a non-negative inner product with every task's gradient."""
    particles = jax.vmap(lambda k: init_particle(k, 12))(jax.random.split(jax.random.key(0), 3))
    weights, key = jnp.full(3, 1 / 3), jax.random.key(1)
    objectives = problem.objectives(0.0)
    combined = job.Scalarized(objectives, problem.outputs, per_particle)
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


@pytest.mark.slow
def test_every_method_steps(problem):
    for method, choice in job.METHODS.items():
        options = job.flow_options(method, choice, problem, 2)
        n = 1 if method in job.ONE_PARTICLE else 3
        particles = jax.vmap(lambda k: init_particle(k, 12))(jax.random.split(jax.random.key(0), n))
        shared = is_shared(jax.tree.map(lambda leaf: leaf[0], particles))
        objectives = options.pop("objectives")
        result = jax.jit(
            lambda p, objectives=objectives, options=options, shared=shared: flows.run(
                jax.random.key(1), p, objectives, **options, shared=shared, num_steps=2
            )
        )(particles)
        assert result.finite, method
