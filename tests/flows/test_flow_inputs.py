"""What a flow refuses, by name, and what it takes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels
from tests.flows.test_flow import KEY, OPTIONS, PAIR, TARGETS, X, run


class TooFew:
    """An objective of a user's own that forgets the weights and the state."""

    entropy = 0.0

    def init(self, key, particles):
        return ()

    def __call__(self, key, particles):
        return None


class Stateless:
    """It forgets the state."""

    entropy = 0.0

    def init(self, key, particles):
        return ()

    def __call__(self, key, particles, weights, state):
        return flows.Variation(jnp.sum(particles), particles[:, 0], particles)


REFUSALS = {
    "objectives must hold at least one": dict(objectives=()),
    "objectives must be a sequence": dict(objectives=TARGETS[0]),
    r"objectives\[1\] must be an objective": dict(objectives=(TARGETS[0], jnp.sum)),
    r"got shape \(16,\)\. Particles of one feature are particles\[:, None\]": dict(
        particles=X[:, 0]
    ),
    r"must have shape \(n, d\); got shape \(1, 16, 2\)": dict(particles=X[None]),
    r"one non-zero leading particle axis; got leading sizes \[3, 4\]": dict(
        particles={"a": jnp.zeros(3), "b": jnp.zeros(4)}
    ),
    "one non-zero leading particle axis": dict(particles=jnp.zeros((0, 2))),
    "particles must hold real numbers": dict(particles=[["a", "b"]]),
    r"objectives\[0\] must take \(key, particles, weights, state\); it takes": dict(
        objectives=(TooFew(),)
    ),
    r"objectives\[0\] must return a Variation and the next state; got Variation": dict(
        objectives=(Stateless(),)
    ),
    "log_prob must return a scalar": dict(objectives=(flows.KL(lambda z: z),)),
    "num_steps must be an integer of at least 0; got -1": dict(num_steps=-1),
    "record_every must be an integer of at least 1; got 0": dict(record_every=0),
    "weights": dict(aggregator=flows.FixedWeights(jnp.ones(3) / 3)),
    r"features must map \(key, particle\) to a vector": dict(features=lambda key, p: p[0]),
    "shared must have the structure of particles": dict(shared={"a": True}),
    "velocity must be a velocity": dict(velocity=3),
    "velocity must be an instance; got the class SVGD": dict(velocity=flows.SVGD),
    "aggregator must be an instance": dict(aggregator=flows.MinNorm),
    "optimizer must be an optax transformation": dict(optimizer=0.1),
    "bandwidth must be a positive number or a rule": dict(
        velocity=flows.SVGD(kernels.Gaussian(bandwidth=kernels.Median))
    ),
    r"bandwidth must be positive; got -1\.0": dict(
        velocity=flows.SVGD(kernels.Gaussian(bandwidth=jnp.array(-1.0)))
    ),
    "record_every must be an integer": dict(record_every=2.5),
    "particles must be float32 or float64 here; got float16": dict(
        particles=X.astype(jnp.float16), velocity=flows.NeuralScore()
    ),
    "features must be None with Langevin": dict(
        velocity=flows.Langevin(), features=lambda key, p: p
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_bad_input_is_named(message):
    arguments = dict(particles=X, objectives=TARGETS, num_steps=1) | REFUSALS[message]
    particles, objectives = arguments.pop("particles"), arguments.pop("objectives")
    with pytest.raises(ValueError, match=message):
        run(KEY, particles, objectives, **arguments)


@pytest.mark.parametrize("field", ["value", "potential", "gradient"])
def test_what_an_objective_returns_is_checked(field):
    wrong = lambda value: value[:, :1] if value.ndim == 2 else value[None]

    class Wrong(flows.Potential):
        def __call__(self, *args):
            variation, state = super().__call__(*args)
            return variation._replace(**{field: wrong(getattr(variation, field))}), state

    with pytest.raises(ValueError, match=rf"objectives\[0\]'s {field} must have shape"):
        run(KEY, X, (Wrong(lambda z: jnp.sum(z**2)),), num_steps=1)


@pytest.mark.parametrize("shape", [(2,), (16,), (), (16, 2, 1)])
def test_the_shape_of_a_wrong_gradient_is_named(shape):
    class Wrong(flows.Potential):
        def __call__(self, *args):
            variation, state = super().__call__(*args)
            return variation._replace(gradient=jnp.zeros(shape)), state

    message = r"objectives\[0\]'s gradient must have shape \(16, 2\); got shape "
    with pytest.raises(ValueError, match=message + re.escape(str(shape))):
        run(KEY, X, (Wrong(lambda z: jnp.sum(z**2)),), num_steps=1)


def test_only_a_fitting_state_is_continued():
    state = flows.Flow(TARGETS, **OPTIONS).init(KEY, X)
    with pytest.raises(ValueError, match=r"objectives must number 4, as in the state.*got 1"):
        run(KEY, state, TARGETS[:1], num_steps=1)
    with pytest.raises(ValueError, match="optimizer must be as in the run"):
        run(KEY, state, TARGETS, optimizer=optax.sgd(0.1), num_steps=1)
    with pytest.raises(ValueError, match="key must be one typed key"):
        run(jax.random.PRNGKey(0), X, TARGETS, num_steps=1)


def test_a_forgotten_key_is_named():
    flow = flows.Flow(TARGETS, **OPTIONS)
    for method in (flow.run, flow.init, flow.step, flow.fields):
        with pytest.raises(ValueError, match="key must be one typed key"):
            method(X)


def test_particles_as_researchers_hold_them():
    pandas = pytest.importorskip("pandas")
    rows = [[0, 1], [2, -1], [3, 3]]
    move = lambda x: run(KEY, x, PAIR, num_steps=2).particles
    expected = move(jnp.array(rows, jnp.float32))
    for given in (rows, np.array(rows), pandas.DataFrame(rows)):
        np.testing.assert_allclose(move(given), expected, rtol=1e-6)
