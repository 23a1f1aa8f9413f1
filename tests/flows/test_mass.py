"""Invalid masses in every part of a flow, called on its own; masses along the Fisher–Rao flow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels, problems
from divjax.flows.mass import checked_masses

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 2))
FIELDS = jnp.stack([X, 1 - X**2, jnp.sin(X)])
MASSES = jnp.full(5, 0.2)
KERNEL = kernels.Gaussian(1.0)


def of_velocity(velocity):
    return lambda x, weights: velocity(KEY, x, weights, FIELDS, velocity.init(KEY, X))[:2]


def of_aggregator(aggregator):
    return lambda x, weights: aggregator(flows.Fields(FIELDS, weights), aggregator.init(KEY, 3))[0]


def of_objective(objective):
    return lambda x, weights: objective(KEY, x, weights, objective.init(KEY, x))[0].value


def energy(x):
    return jnp.sum(x**2)


PARTS = {
    "SVGD": of_velocity(flows.SVGD(KERNEL)),
    "GFSD": of_velocity(flows.GFSD(KERNEL)),
    "GFSF": of_velocity(flows.GFSF(KERNEL)),
    "Blob": of_velocity(flows.Blob(KERNEL)),
    "Langevin": of_velocity(flows.Langevin()),
    "NeuralScore": of_velocity(flows.NeuralScore(num_init_steps=0, num_fit_steps=1)),
    "MinNorm": of_aggregator(flows.MinNorm()),
    "ProjectedStep": of_aggregator(flows.ProjectedStep(0.1)),
    "PCGrad": of_aggregator(flows.PCGrad()),
    "CAGrad": of_aggregator(flows.CAGrad()),
    "KL": of_objective(flows.KL(energy)),
    "Potential": of_objective(flows.Potential(energy)),
    "Interaction": of_objective(flows.Interaction(KERNEL)),
    "KernelStein": of_objective(flows.KernelStein(energy, KERNEL)),
    "MMD": of_objective(flows.MMD(X + 1, KERNEL)),
    "SlicedWasserstein": of_objective(flows.SlicedWasserstein(X + 1, num_projections=4)),
    "SinkhornDivergence": of_objective(flows.SinkhornDivergence(X + 1, 1.0)),
    "FDivergence": of_objective(flows.FDivergence(X + 1, num_init_steps=0, num_fit_steps=0)),
    "FisherRao": lambda x, weights: flows.FisherRao(0.1, KERNEL)(x, weights, X[:, 0], 1.0, ())[0],
    "squared_norm": lambda x, weights: flows.squared_norm(FIELDS, jnp.full(3, 1 / 3), weights),
    "pareto_residual": lambda x, weights: flows.pareto_residual(FIELDS, weights),
    "relative_spread": lambda x, weights: flows.relative_spread(x, X + 1, weights),
    "gram": lambda x, weights: flows.gram(FIELDS, weights),
}
BAD = {
    "nan": MASSES.at[1].set(jnp.nan),
    "-inf": MASSES.at[1].set(-jnp.inf),
    "negative": MASSES.at[1].set(-0.2),
    "none": 0 * MASSES,
    "double": 2 * MASSES,
    "off by a hundredth": MASSES.at[1].add(-0.01),
}


@pytest.mark.parametrize("name", PARTS)
def test_masses_that_are_none(name):
    """Refused if they are known, NaN if they are traced."""
    traced = jax.jit(PARTS[name])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(traced(X, MASSES)))
    for weights in BAD.values():
        with pytest.raises(ValueError, match=r"^weights must (be finite and non-neg|sum to one)"):
            jax.eval_shape(lambda x, weights=weights: PARTS[name](x, weights), X)
        if name != "Langevin":  # whose field has no weights in it
            outputs = jax.tree.leaves(traced(X, weights))
            assert any(np.isnan(leaf).all() for leaf in outputs), (weights, outputs)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (6,), (5, 1)])
@pytest.mark.parametrize("name", PARTS)
def test_masses_of_another_shape_are_named(name, shape):
    with pytest.raises(ValueError, match=r"^weights must have shape \(5,\)"):
        jax.eval_shape(PARTS[name], X, jnp.ones(shape))


@pytest.mark.parametrize("name", PARTS)
def test_integers_are_floats(name):
    whole = jnp.arange(10).reshape(5, 2) % 4
    found, expected = (PARTS[name](x, MASSES) for x in (whole, whole.astype(float)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["SVGD", "GFSD", "GFSF", "Blob", "Langevin", "NeuralScore"])
def test_fewer_particles_than_gradients_are_named(name):
    with pytest.raises(ValueError, match=r"^gradients must have shape \(k, 4, d\)"):
        jax.eval_shape(PARTS[name], X[:4], MASSES[:4])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("n", [3, 1000, 100_000])
def test_masses_that_are_rounded_sum_to_one(dtype, n):
    uniform = jnp.full(n, 1 / n, dtype)
    for masses in (uniform, np.asarray(uniform), uniform.astype(jnp.float32).astype(dtype)):
        found = checked_masses(masses, n, jnp.float32)
        np.testing.assert_array_equal(found, uniform.astype(jnp.float32))
    assert np.isfinite(jax.jit(lambda a: checked_masses(a, n, dtype))(uniform)).all()
    double = 2 * uniform
    with pytest.raises(ValueError, match="weights must sum to one; they sum to"):
        checked_masses(double, n, jnp.float32)
    assert np.isnan(jax.jit(lambda a: checked_masses(a, n, dtype))(double)).all()


def test_masses_follow_the_fisher_rao_flow():
    """Under ȧ_i = −a_i (U_i − Ū) with fixed U, a_i(t) ∝ a_i(0) exp(−t U_i)."""
    step = flows.FisherRao(step_size=0.3, kernel=kernels.Gaussian(bandwidth=1.0))
    x, weights = jnp.zeros((4, 1)), jnp.array([0.1, 0.2, 0.3, 0.4])
    potential = jnp.array([3.0, 0.0, -1.0, 2.0])
    state = step.init(x)
    for _ in range(5):
        weights, state = step(x, weights, potential, 0.0, state)
    expected = np.array([0.1, 0.2, 0.3, 0.4]) * np.exp(-1.5 * np.asarray(potential))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)


def test_masses_find_the_mixture_that_transport_cannot():
    """Two far modes of masses ¾ and ¼, particles split evenly: transport alone keeps the halves."""
    target = problems.GaussianMixture(
        weights=jnp.array([0.75, 0.25]),
        means=jnp.array([[-8.0], [8.0]]),
        covariances=jnp.asarray(0.5),
    )
    x = jnp.repeat(jnp.array([[-8.0], [8.0]]), 30, axis=0)
    x = x + 0.5 * jax.random.normal(jax.random.key(0), x.shape)
    kernel = kernels.Gaussian(bandwidth=0.3)

    def mass_on_the_left(mass):
        result = jax.jit(
            lambda: flows.Flow(
                (flows.KL(target.log_prob),),
                velocity=flows.Blob(kernel),
                optimizer=optax.sgd(0.05),
                mass=mass,
            ).run(jax.random.key(1), x, num_steps=300)
        )()
        assert result.finite
        return jnp.sum(result.particle_weights * (result.particles[:, 0] < 0))

    assert mass_on_the_left(None) == pytest.approx(0.5, abs=1e-5)
    assert mass_on_the_left(flows.FisherRao(0.05, kernel)) == pytest.approx(0.75, abs=0.02)


def test_a_zero_weight_particle_stays_zero_weight():
    step = flows.FisherRao(step_size=1.0, kernel=kernels.Gaussian(bandwidth=1.0))
    x = jnp.array([[0.0], [1e6]])
    weights, _ = step(x, jnp.array([1.0, 0.0]), jnp.zeros(2), 1.0, ())
    np.testing.assert_array_equal(weights, [1.0, 0.0])


def test_masses_have_finite_derivatives_at_a_zero_weight_far_particle():
    step = flows.FisherRao(0.5, kernels.Gaussian(bandwidth=1.0))
    x, weights = jnp.array([[0.0], [1.0], [100.0]]), jnp.array([0.5, 0.5, 0.0])
    first = lambda x, weights: step(x, weights, x[:, 0], 1.0, ())[0][0]
    for gradient in jax.grad(first, (0, 1))(x, weights):
        assert jnp.isfinite(gradient).all()
    with pytest.raises(ValueError, match="kernel must be positive definite"):
        flows.FisherRao(0.5, kernels.Energy())


def test_a_traced_step_size_of_masses_out_of_range():
    x, masses = jnp.array([[0.0], [9.0]]), jnp.full(2, 0.5)
    kernel = kernels.Gaussian(bandwidth=1.0)
    react = lambda size: flows.FisherRao(size, kernel)(x, masses, x[:, 0], 0.0, ())[0]
    assert jnp.isnan(jax.jit(react)(-1.0)).all()
    with pytest.raises(ValueError, match="step_size must be positive"):
        react(jnp.array(-1.0))


@pytest.mark.parametrize("far", [1e6, 123456789.0])
def test_particles_that_float32_merges_are_refused(far):
    """Nothing in a flow centres them, as a density depends on where they are."""
    x, weights = np.random.default_rng(0).normal(size=(8, 2)), np.full(8, 1 / 8)
    kernel, key, gradients = kernels.Gaussian(1.0), jax.random.key(0), np.zeros((1, 8, 2))
    flow = flows.Flow(
        (flows.KL(lambda z: -jnp.sum((z - far) ** 2)),),
        velocity=flows.SVGD(kernel),
        optimizer=optax.sgd(0.1),
    )
    velocity, mass = flows.GFSF(kernel), flows.FisherRao(0.1, kernel)
    calls = (
        lambda x: flow.run(key, x, num_steps=1),
        lambda x: velocity(key, x, weights, gradients, ()),
        lambda x: mass(x, weights, np.zeros(8), 1.0, ()),
    )
    for call in calls:
        with pytest.raises(ValueError, match="must differ in float32 too"):
            call(x + far)
        # Equal particles have no differences to lose.
        call(np.full((8, 2), far + 0.3))
        with jax.enable_x64(True):
            call(x + far)


@pytest.mark.parametrize("offset", [0.0, 1e5, 123456789.0])
def test_a_constant_in_the_potential_changes_no_mass(offset):
    """In NumPy's float64; equal particles have masses in proportion to exp(−U)."""
    step = flows.FisherRao(step_size=1.0, kernel=kernels.Gaussian(bandwidth=1.0))
    x, masses = np.zeros((4, 1)), np.array([1 / 3, 1 / 3, 1 / 3, 0.0])
    potential = np.array([0.0, 1.0, 2.0, 0.0]) + offset
    for dead in (1e30, np.nan):
        potential[3] = dead
        found, _ = step(x, masses, potential, 0.0, ())
        expected = np.exp([-0.0, -1.0, -2.0]) / np.exp([-0.0, -1.0, -2.0]).sum()
        np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-6)
