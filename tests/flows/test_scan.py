"""The scan of a flow: its records, its stop at a tolerance, its progress."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels, problems
from divjax.core.types import Status

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 2))
TARGETS = tuple(flows.KL(target.log_prob) for target in problems.two_component_targets())
SVGD = flows.SVGD(kernels.Gaussian(bandwidth=1.0))
FLOW = flows.Flow(TARGETS, velocity=SVGD, optimizer=optax.adam(0.05))
PAIR = flows.Flow(TARGETS[:2], velocity=SVGD, optimizer=optax.adam(0.05))

# Without entropy, each particle descends ½|x|² on its own: x ← (1 − η) x, a field of norm |x|.
RATE = 0.3
QUADRATIC = flows.Flow(
    (flows.Potential(lambda z: 0.5 * jnp.sum(z**2)),),
    velocity=flows.Langevin(),
    optimizer=optax.sgd(RATE),
)


def particles_of(state):
    return state.particles


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_history_is_recorded_before_each_step():
    result = FLOW.run(KEY, X, num_steps=10, observe=particles_of)
    assert result.history.values.shape == result.history.weights.shape == (10, 4)
    np.testing.assert_array_equal(result.history.step, np.arange(10))
    np.testing.assert_array_equal(result.history.observed[0], X)
    targets = problems.two_component_targets()
    expected = jax.jit(lambda: [-jnp.mean(jax.vmap(target.log_prob)(X)) for target in targets])()
    np.testing.assert_allclose(result.history.values[0], expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(result.history.weights).sum(1), 1, rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("num_steps", "record_every"), [(10, 3), (9, 3), (2, 5), (0, 1)])
def test_recording_less_often_changes_nothing_else(num_steps, record_every):
    full = FLOW.run(KEY, X, num_steps=num_steps)
    sparse = FLOW.run(KEY, X, num_steps=num_steps, record_every=record_every)
    np.testing.assert_allclose(sparse.particles, full.particles, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sparse.history.step, np.arange(0, num_steps, record_every))
    np.testing.assert_allclose(
        sparse.history.values, full.history.values[::record_every], rtol=1e-5
    )


def loop(tolerance, num_steps):
    """The particles before each step in NumPy, up to the first whose norm is small enough."""
    x = np.asarray(X, np.float64)
    path = []
    for _ in range(num_steps):
        path.append(x)
        if np.sqrt(np.mean(np.sum(x**2, axis=1))) <= tolerance:
            return path, x, True
        x = (1 - RATE) * x
    return path, x, False


@pytest.mark.parametrize("record_every", [1, 4])
@pytest.mark.parametrize("tolerance", [1e-2, 0.2, 10.0])
def test_the_tolerance_stops_where_a_loop_does(tolerance, record_every):
    path, last, reached = loop(tolerance, 30)
    assert reached
    options = dict(num_steps=30, record_every=record_every, observe=particles_of)
    result = QUADRATIC.run(KEY, X, tolerance=tolerance, **options)
    assert result.status == Status.CONVERGED
    assert result.state.step == len(path) - 1
    np.testing.assert_allclose(result.particles, last, rtol=1e-5)
    # Entries up to the stop are those of the loop. Later ones repeat the last.
    recorded = np.minimum(
        np.arange(0, 30, record_every), (len(path) - 1) // record_every * record_every
    )
    np.testing.assert_array_equal(result.history.step, recorded)
    np.testing.assert_allclose(
        result.history.observed, np.stack([path[t] for t in recorded]), rtol=1e-5
    )
    norms = [np.mean(np.sum(path[t] ** 2, axis=1)) for t in recorded]
    np.testing.assert_allclose(result.history.squared_norm, norms, rtol=1e-4)


def test_a_tolerance_that_is_not_reached_changes_no_number():
    plain = QUADRATIC.run(KEY, X, num_steps=9, record_every=2)
    result = QUADRATIC.run(KEY, X, num_steps=9, record_every=2, tolerance=1e-3)
    assert not loop(1e-3, 9)[2]
    assert (plain.status, result.status) == (Status.CONVERGED, Status.MAX_ITERATIONS)
    assert_equal(result.history, plain.history)
    assert_equal(result.state, plain.state)
    assert not result.converged
    assert QUADRATIC.run(KEY, plain.state, num_steps=30, tolerance=1e-2).converged


def test_the_status_of_a_run_with_a_tolerance_names_worse_first():
    broken = flows.Flow(
        (flows.Potential(lambda z: jnp.sqrt(jnp.sum(z))),), velocity=SVGD, optimizer=optax.sgd(0.1)
    )
    assert broken.run(KEY, -jnp.abs(X), num_steps=2, tolerance=1.0).status == Status.NOT_FINITE
    # An infinite value counts although its gradient, of norm zero, is within the tolerance.
    infinite = flows.Flow(
        (flows.Potential(lambda z: jnp.inf + 0.0 * jnp.sum(jax.lax.stop_gradient(z))),),
        velocity=flows.Langevin(),
        optimizer=optax.sgd(0.1),
    )
    assert infinite.run(KEY, X, num_steps=2, tolerance=1.0).status == Status.NOT_FINITE
    # At 10⁸ float32 numbers are 8 apart: steps of .1 move nothing.
    far = flows.Flow(
        (flows.Potential(lambda z: jnp.sum(z - 1e8)),),
        velocity=flows.Langevin(),
        optimizer=optax.sgd(0.1),
    )
    run = far.run(KEY, X + 1e8, num_steps=2, tolerance=1e-3)
    assert run.status == Status.FLOATING_POINT_RESOLUTION


def test_a_tolerance_out_of_range():
    run = lambda tolerance: QUADRATIC.run(KEY, X, num_steps=3, tolerance=tolerance)
    for wrong in (-1.0, np.nan, jnp.array(-1.0)):
        with pytest.raises(ValueError, match="tolerance must"):
            run(wrong)
    with pytest.raises(ValueError, match="tolerance must be one real number"):
        run(jnp.ones(2))
    traced = jax.jit(lambda tolerance: run(tolerance).status)
    assert [int(traced(number)) for number in (10.0, 0.0, -1.0, np.nan)] == [
        Status.CONVERGED,
        Status.MAX_ITERATIONS,
        Status.INVALID_INPUT,
        Status.INVALID_INPUT,
    ]


def test_only_a_tolerance_needs_a_branch():
    flow = flows.Flow(
        (flows.Potential(lambda z: 0.5 * jnp.sum(z**2)),),
        velocity=flows.GFSD(kernels.Gaussian(bandwidth=1.0)),
        aggregator=flows.FixedWeights(),
        optimizer=optax.sgd(0.1),
    )

    def text(tolerance):
        run = lambda x: flow.run(KEY, x, num_steps=3, tolerance=tolerance).particles
        return str(jax.make_jaxpr(run)(X))

    assert "cond[" not in text(None)
    assert "cond[" in text(0.1)


def test_a_tolerance_for_each_of_many_runs():
    """Under vmap each run stops at its own step."""
    tolerances = jnp.array([1e-2, 0.2, 10.0])
    result = jax.jit(
        jax.vmap(lambda tolerance: QUADRATIC.run(KEY, X, num_steps=30, tolerance=tolerance))
    )(tolerances)
    steps = [len(loop(float(tolerance), 30)[0]) - 1 for tolerance in tolerances]
    np.testing.assert_array_equal(result.state.step, steps)
    assert result.converged.all()
    assert result.check() is result


@pytest.mark.parametrize(("num_steps", "record_every"), [(47, 2), (40, 1), (3, 5), (0, 1)])
def test_progress_changes_no_number_and_reports_every_entry(num_steps, record_every):
    options = dict(num_steps=num_steps, record_every=record_every, observe=particles_of)
    plain = PAIR.run(KEY, X, **options)
    seen = []
    result = PAIR.run(KEY, X, **options, progress=seen.append)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (result.history, result.particles, result.status),
        (plain.history, plain.particles, plain.status),
    )
    assert len(seen) <= 21
    joined = np.concatenate([history.step for history in seen])
    np.testing.assert_array_equal(joined, np.arange(0, num_steps, record_every))


def test_progress_with_a_tolerance_ends_early():
    seen = []
    options = dict(num_steps=60, record_every=2, tolerance=0.05)
    plain = QUADRATIC.run(KEY, X, **options)
    result = QUADRATIC.run(KEY, X, **options, progress=seen.append)
    assert result.status == plain.status == Status.CONVERGED
    assert result.state.step == plain.state.step < 20
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result.history, plain.history
    )
    assert len(seen) < 12


def test_progress_draws_a_bar(capsys):
    pytest.importorskip("tqdm")
    PAIR.run(KEY, X, num_steps=40, progress=True)
    drawn = capsys.readouterr().err
    assert "40/40" in drawn
    assert "step/s" in drawn
    assert "norm=" in drawn


def test_a_bar_needs_tqdm(monkeypatch):
    load = builtins.__import__

    def without_tqdm(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    with pytest.raises(ImportError, match=r"install divjax\[sweeps\]"):
        PAIR.run(KEY, X, num_steps=2, progress=True)


def test_progress_is_refused_where_nothing_has_a_value():
    run = lambda x: PAIR.run(KEY, x, num_steps=4, progress=print).particles
    refused = "progress must be False if arguments are traced"
    for call in (lambda: jax.jit(run)(X), lambda: jax.vmap(run)(X[None])):
        with pytest.raises(ValueError, match=refused):
            call()
    # Nothing is traced among the arguments, but the flow runs inside a program.
    with pytest.raises(ValueError, match=refused):
        jax.jit(lambda: run(X))()
    with pytest.raises(ValueError, match="progress must be True, False or a function; got int"):
        PAIR.run(KEY, X, num_steps=4, progress=5)
