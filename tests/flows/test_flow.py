"""A flow: its steps obey known laws, it resumes, refuses bad input and flags what is not finite."""

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
# Of two, the shortest combination is a formula; of four, a loop that takes longer to compile.
PAIR = TARGETS[:2]
OPTIONS = dict(velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)), optimizer=optax.adam(0.05))
OF_RUN = "num_steps", "record_every", "observe", "tolerance"


def run(key, particles, objectives, **options):
    options = OPTIONS | options
    of_run = {name: options.pop(name) for name in OF_RUN if name in options}
    return flows.Flow(objectives, **options).run(key, particles, **of_run)


@pytest.fixture(scope="module")
def recorded():
    """Ten steps, with the particles before each."""
    return run(KEY, X, TARGETS, num_steps=10, observe=lambda state: state.particles)


def assert_equal(one, two):
    def data(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), one, two)


@pytest.mark.parametrize(
    "velocity",
    [
        flows.SVGD(kernels.Gaussian()),
        pytest.param(flows.Langevin(), marks=pytest.mark.exhaustive),
        pytest.param(
            flows.NeuralScore(hidden=(8,), num_init_steps=0), marks=pytest.mark.exhaustive
        ),
    ],
)
def test_continuing_is_the_longer_run(velocity):
    optimizer = optax.sgd(0.05)
    whole = run(KEY, X, PAIR, velocity=velocity, optimizer=optimizer, num_steps=8)
    first = run(KEY, X, PAIR, velocity=velocity, optimizer=optimizer, num_steps=5)
    second = run(KEY, first.state, PAIR, velocity=velocity, optimizer=optimizer, num_steps=3)
    assert_equal(second.state, whole.state)


def test_steps_by_hand_are_the_scan(recorded):
    flow = flows.Flow(TARGETS, **OPTIONS)
    state = flow.init(KEY, X)
    for _ in range(4):
        state, _ = flow.step(KEY, state)
    np.testing.assert_allclose(state.particles, recorded.history.observed[4], rtol=1e-5, atol=1e-6)


def test_particles_as_a_pytree_move_as_the_array_does():
    log_prob = lambda x: -jnp.sum((x - 1) ** 4)
    tree = {"a": X[:, :1], "b": {"c": X[:, 1]}}
    flow = lambda particles, log_prob: (
        run(KEY, particles, (flows.KL(log_prob),), num_steps=5).particles
    )
    array = flow(X, log_prob)
    parts = flow(tree, lambda p: log_prob(p["a"]) + log_prob(p["b"]["c"]))
    np.testing.assert_allclose(parts["a"], array[:, :1], rtol=1e-5)
    np.testing.assert_allclose(parts["b"]["c"], array[:, 1], rtol=1e-5)


def test_gfsd_follows_the_smoothed_gaussian_flow():
    """Many particles obey Σ' = −S⁻¹Σ − ΣS⁻¹ + (Σ+h²)⁻¹Σ + Σ(Σ+h²)⁻¹, integrated by SciPy."""
    from scipy.integrate import solve_ivp

    h, step_size, num_steps, n = 0.4, 0.02, 40, 2500
    precision, mean = np.diag([1.0, 2.0]), np.array([1.0, -1.0])
    x = 1.5 * np.asarray(jax.random.normal(KEY, (n, 2)))
    log_prob = lambda z: -0.5 * (z - mean) @ precision @ (z - mean)
    result = run(
        KEY,
        jnp.asarray(x),
        (flows.KL(log_prob),),
        velocity=flows.GFSD(kernels.Gaussian(bandwidth=h)),
        optimizer=optax.sgd(step_size),
        num_steps=num_steps,
    )

    def slope(_, y):
        m, s = y[:2], y[2:].reshape(2, 2)
        field = np.linalg.inv(s + h**2 * np.eye(2)) - precision
        return np.concatenate([-precision @ (m - mean), (field @ s + s @ field.T).ravel()])

    start = np.concatenate([x.mean(0), np.cov(x.T, bias=True).ravel()])
    end = solve_ivp(slope, (0, step_size * num_steps), start, rtol=1e-10).y[:, -1]
    # Euler's error is O(step size); the sample is not quite Gaussian, an O(n^-½) effect.
    np.testing.assert_allclose(result.particles.mean(0), end[:2], atol=0.02)
    np.testing.assert_allclose(np.cov(result.particles.T, bias=True).ravel(), end[2:], atol=0.06)


def test_min_norm_flow_ends_between_the_targets():
    """For N(m_k, I) the Pareto set is {N(m, I): m in the hull of the m_k}; off it the flow moves
    on."""
    means = jnp.array([[-2.0, 0.0], [2.0, 0.0]])
    objectives = tuple(flows.KL(lambda z, m=m: -0.5 * jnp.sum((z - m) ** 2)) for m in means)
    result = run(
        KEY,
        X + jnp.array([0.5, 5.0]),
        objectives,
        velocity=flows.Blob(kernels.Gaussian(bandwidth=0.5)),
        optimizer=optax.sgd(0.1),
        num_steps=400,
    )
    center = result.particles.mean(0)
    assert abs(center[1]) < 1e-3
    assert -2 < center[0] < 2
    assert result.history.squared_norm[-1] < 1e-6


def test_min_norm_is_never_longer_than_uniform():
    x = 5 * jax.random.normal(KEY, (50, 2))
    targets = tuple(flows.KL(t.log_prob) for t in problems.three_component_targets())
    velocity = flows.Blob(kernels.Gaussian())
    observe = lambda state: state.particles
    options = dict(optimizer=optax.adam(3e-2), velocity=velocity)
    history = run(KEY, x, targets, **options, num_steps=150, observe=observe).history
    assert jnp.abs(history.weights - 0.25).max() > 0.2

    even = flows.Flow(targets, **options, aggregator=flows.FixedWeights())
    uniform = lambda x: even.run(KEY, x, num_steps=1).history.squared_norm[0]

    for step in (0, 20, 149):
        assert history.squared_norm[step] <= uniform(history.observed[step]) * (1 + 1e-5)


def test_features_of_the_identity_change_nothing(recorded):
    mapped = run(KEY, X, TARGETS, num_steps=3, features=lambda key, particle: particle).particles
    np.testing.assert_allclose(mapped, recorded.history.observed[3], rtol=1e-5, atol=1e-6)


def test_features_pull_the_repulsion_back():
    """A linear map A compares A x; the score there comes back through Aᵀ: both known in closed
    form."""
    matrix = jnp.array([[2.0, 1.0], [0.0, 0.5], [1.0, 0.0]])
    flat = flows.KL(lambda z: 0.0 * jnp.sum(z))
    velocity = flows.GFSD(kernels.Gaussian(bandwidth=1.0))
    step = lambda x, features: (
        run(
            KEY,
            x,
            (flat,),
            velocity=velocity,
            optimizer=optax.sgd(1.0),
            num_steps=1,
            features=features,
        ).particles
    )
    in_features = step(X @ matrix.T, None) - X @ matrix.T
    pulled_back = step(X, lambda key, particle: matrix @ particle) - X
    np.testing.assert_allclose(pulled_back, in_features @ matrix, rtol=1e-4, atol=1e-5)


def test_features_make_the_entropy_that_of_their_distribution():
    """Blob descends Σ_i a_i log Σ_j a_j k(f(x_i), f(x_j)), whatever f: its gradient by autodiff."""
    kernel = kernels.Gaussian(bandwidth=0.8)
    features = lambda key, p: jnp.array([p[0] * p[1], jnp.sin(p[0]), p[1] ** 2])

    def smoothed_entropy(x):
        return jnp.mean(jnp.log(jnp.mean(kernel(jax.vmap(lambda p: features(None, p))(x)), axis=1)))

    flat = (flows.Potential(lambda z: 0.0 * jnp.sum(z), entropy=1.0),)
    options = dict(velocity=flows.Blob(kernel), optimizer=optax.sgd(1.0), features=features)
    flow = flows.Flow(flat, **options)
    found = flow.fields(KEY, flow.init(KEY, X)).velocities[0]
    expected = -len(X) * jax.jit(jax.grad(smoothed_entropy))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_fields_are_what_the_next_step_weighs():
    flow = flows.Flow(TARGETS, **OPTIONS)
    state = flow.init(KEY, X)
    found = flow.fields(KEY, state)
    _, info = flow.step(KEY, state)
    norm = flows.squared_norm(found.velocities, info.weights, found.masses)
    np.testing.assert_allclose(norm, info.squared_norm, rtol=1e-5)
    np.testing.assert_allclose(found.values, info.values, rtol=1e-6)
    assert found.potentials.shape == (4, 16)


def test_own_leaves_follow_their_own_objective_at_full_weight():
    """Shared a, and a head for each objective: heads descend as if alone, whatever the weights."""
    particles = {"a": X[:, 0], "one": X[:, 0], "two": X[:, 1]}
    shared = {"a": True, "one": False, "two": False}
    objectives = (
        flows.Potential(lambda p: (p["a"] - 1) ** 2 + p["one"] ** 2),
        flows.Potential(lambda p: 9 * (p["a"] + 1) ** 2 + 2 * p["two"] ** 2),
    )
    moved = run(
        KEY,
        particles,
        objectives,
        velocity=flows.Langevin(),
        optimizer=optax.sgd(0.01),
        aggregator=flows.FixedWeights(jnp.array([0.9, 0.1])),
        shared=shared,
        num_steps=1,
    ).particles
    a, one, two = X[:, 0], X[:, 0], X[:, 1]
    np.testing.assert_allclose(moved["one"], one - 0.01 * 2 * one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["two"], two - 0.01 * 4 * two, rtol=1e-5, atol=1e-6)
    expected = a - 0.01 * (0.9 * 2 * (a - 1) + 0.1 * 18 * (a + 1))
    np.testing.assert_allclose(moved["a"], expected, rtol=1e-5, atol=1e-6)


def test_values_that_are_not_finite_are_flagged_and_the_particles_kept(recorded):
    broken = flows.KL(lambda z: jnp.sqrt(jnp.sum(z)) - jnp.sum(z**2))
    result = run(KEY, X, (TARGETS[0], broken), num_steps=3)
    assert not result.finite
    np.testing.assert_array_equal(result.particles, X)
    assert recorded.finite


def test_an_infinite_log_density_is_flagged():
    outside = flows.KL(lambda z: jnp.where(z[0] > 0, -jnp.inf, -jnp.sum(z**2)))
    assert not run(KEY, X, (outside,), num_steps=1).finite


def test_a_sweep_is_one_compilation_and_equals_the_loop():
    traces = []

    def final(learning_rate, bandwidth):
        traces.append(None)
        velocity = flows.SVGD(kernels.Gaussian(bandwidth=bandwidth))
        flow = flows.Flow(PAIR, velocity=velocity, optimizer=optax.adam(learning_rate))
        return flow.run(KEY, X, num_steps=5).particles

    rates, bandwidths = jnp.array([0.01, 0.1]), jnp.array([0.5, 2.0])
    sweep = jax.jit(jax.vmap(final))
    swept = sweep(rates, bandwidths)
    sweep(2 * rates, bandwidths)
    assert len(traces) == 1
    alone = jax.jit(final)
    for rate, bandwidth, one in zip(rates, bandwidths, swept, strict=True):
        np.testing.assert_allclose(one, alone(rate, bandwidth), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        x, options = X.astype(dtype), {**OPTIONS, "optimizer": flows.accelerated(0.01)}
        result = jax.eval_shape(lambda: run(KEY, x, TARGETS, num_steps=2, **options))
        assert (
            result.particles.dtype
            == result.particle_weights.dtype
            == result.history.squared_norm.dtype
            == dtype
        )


def test_a_step_that_is_not_finite_is_not_taken():
    """Half of the minibatches are broken: the flow goes on with the others, Adam's state intact."""
    broken = lambda key: jax.random.uniform(key) < 0.5
    objective = flows.KL(
        lambda key, z: jnp.where(broken(key), jnp.nan, -0.5 * jnp.sum(z**2)), stochastic=True
    )
    result = run(
        KEY,
        X,
        (objective,),
        optimizer=optax.adam(0.1),
        num_steps=30,
        mass=flows.FisherRao(0.1, kernels.Gaussian(bandwidth=1.0)),
        observe=lambda state: state.particles,
    )
    bad = np.isnan(np.asarray(result.history.values[:, 0]))
    assert 5 < bad.sum() < 25
    assert not result.finite
    moved = np.abs(np.diff(np.asarray(result.history.observed), axis=0)).max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(moved, ~bad[:-1])
    floating = [x for x in jax.tree.leaves(result.state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(jnp.isfinite(leaf).all() for leaf in floating)
    assert result.state.step == 30
    assert result.state.optimizer[0].count == 30 - bad.sum()


def test_particles_that_would_overflow_stay():
    objective = flows.Potential(lambda z: -1e38 * jnp.sum(z))
    result = run(KEY, jnp.full((2, 1), 3e38), (objective,), optimizer=optax.sgd(1.0), num_steps=1)
    assert not result.finite
    assert jnp.isfinite(result.particles).all()


def test_a_wider_hyper_parameter_does_not_widen_the_particles():
    with jax.enable_x64(True):
        wide = kernels.Gaussian(bandwidth=jnp.array(1.0, jnp.float64))
        options = {**OPTIONS, "velocity": flows.SVGD(wide)}
        mass = flows.FisherRao(jnp.array(0.1, jnp.float64), wide)
        result = jax.eval_shape(lambda: run(KEY, X, TARGETS, **options, mass=mass, num_steps=2))
    assert result.particles.dtype == result.particle_weights.dtype == jnp.float32


@pytest.mark.parametrize("held", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("velocity", [flows.SVGD, flows.Blob, flows.GFSF])
def test_a_zero_weight_particle_is_as_if_absent(velocity, held):
    """Whatever it holds, to living ones, their optimizer and the history; it stands still."""
    kernel = kernels.Gaussian(bandwidth=1.0)
    options = dict(
        velocity=velocity(kernel),
        optimizer=flows.accelerated(0.05),
        mass=flows.FisherRao(0.01, kernel),
    )
    if velocity is flows.GFSF:  # its ridge is a share of the number of particles
        options["velocity"] = flows.GFSF(kernel, regularization=1e-5)

    flow = flows.Flow(PAIR, **options)

    @jax.jit
    def move(x, weights):
        state = flow.init(KEY, X[: x.shape[0]])
        state = state._replace(particles=x, particle_weights=weights)
        return flow.run(KEY, state, num_steps=5)

    alone = move(X[:7], jnp.full(7, 1 / 7))
    beside = move(X[:8].at[7].set(held), jnp.full(8, 1 / 7).at[7].set(0.0))
    assert beside.finite
    np.testing.assert_allclose(beside.particles[:7], alone.particles, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(beside.particles[7], np.full(2, held, np.float32))
    np.testing.assert_allclose(beside.particle_weights[:7], alone.particle_weights, rtol=1e-5)
    for one, two in zip(beside.history[1:4], alone.history[1:4], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_the_status_says_what_went_wrong(recorded):
    assert recorded.status == Status.CONVERGED
    assert recorded.check() is recorded
    broken = run(KEY, X, (flows.KL(lambda z: jnp.sqrt(jnp.sum(z))),), num_steps=1)
    assert broken.status == Status.NOT_FINITE
    with pytest.raises(RuntimeError, match="NOT_FINITE"):
        broken.check()
    # At 10⁸ float32 numbers are 8 apart: steps of .05 move nothing.
    far = run(KEY, X + 1e8, (flows.KL(lambda z: -jnp.sum(z - 1e8)),), num_steps=1)
    assert far.finite
    assert far.status == Status.FLOATING_POINT_RESOLUTION


def test_a_result_prints_in_short(recorded):
    text = repr(recorded)
    assert text.startswith("FlowResult(particles=float32[16,2]")
    assert text.endswith("state=FlowState(step=10), status=CONVERGED)")
    assert len(text) < 400
    traced = []
    jax.eval_shape(lambda x: traced.append(repr(run(KEY, x, PAIR, num_steps=1))), X)
    assert "status=int32[]" in traced[0]


@pytest.mark.parametrize(
    ("velocity", "optimizer"),
    [
        (flows.Langevin(), optax.sgd(0.1)),
        (flows.SVGD(kernels.Gaussian(1.0)), optax.adamw(0.1, weight_decay=0.5)),
        (flows.SVGD(kernels.Gaussian(1.0)), optax.adam(0.1)),
        (flows.SVGD(kernels.Gaussian(1.0)), flows.accelerated(0.1)),
    ],
    ids=["noise", "decay", "adam", "momentum"],
)
def test_a_particle_that_loses_its_weight_stays(velocity, optimizer):
    flow = flows.Flow([flows.KL(lambda z: -jnp.sum(z**2))], velocity=velocity, optimizer=optimizer)
    moving = flow.run(KEY, jnp.arange(3.0)[:, None], num_steps=3).state
    weights = jnp.array([0.5, 0.5, 0.0])
    later = flow.run(KEY, moving._replace(particle_weights=weights), num_steps=3)
    assert later.particles[2] == moving.particles[2]
    assert (later.particles[:2] != moving.particles[:2]).all()
