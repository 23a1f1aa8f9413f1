"""Transport objectives against couplings that are known, and where their flows end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels, ot

KEY = jax.random.key(0)


def evaluate(objective, x, weights=None):
    weights = jnp.full(len(x), 1 / len(x), x.dtype) if weights is None else weights
    return objective(KEY, x, weights, objective.init(KEY, x))[0]


def test_on_the_line_slices_are_the_sorted_coupling():
    x, y = jax.random.normal(KEY, (2, 9, 1))
    variation = evaluate(flows.SlicedWasserstein(y, num_projections=3), x)
    order = np.argsort(x[:, 0])
    gap = np.empty(9)
    gap[order] = np.asarray(x)[order, 0] - np.sort(np.asarray(y)[:, 0])
    np.testing.assert_allclose(variation.value, np.mean(gap**2), rtol=1e-5)
    np.testing.assert_allclose(variation.gradient[:, 0], 2 * gap, rtol=1e-4, atol=1e-6)


def test_the_slices_of_a_shift():
    """SW₂²(x, x + s) = |s|²/d, with gradient −2s/d in the mean over directions."""
    d, shift = 5, jnp.array([1.0, -2.0, 0.0, 0.5, 1.5])
    x = jax.random.normal(KEY, (6, d))
    objective = flows.SlicedWasserstein(x + shift, num_projections=4000)
    variation = evaluate(objective, x)
    # The variance of (θᵀs)² is 2(d − 1)/(d²(d + 2)) |s|⁴; entries of θθᵀs vary by less than |s|²/d.
    size = float(shift @ shift)
    error = np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / 4000) * size
    assert abs(variation.value - size / d) < 4 * error
    error = 2 * np.sqrt(size / d / 4000)
    np.testing.assert_allclose(variation.gradient, np.tile(-2 * shift / d, (6, 1)), atol=4 * error)


def test_particles_without_weight_stay():
    x, y = jax.random.normal(KEY, (2, 4, 2))
    variation = evaluate(flows.SlicedWasserstein(y), x, jnp.array([0.5, 0.0, 0.25, 0.25]))
    assert jnp.isfinite(variation.potential).all()
    np.testing.assert_array_equal(variation.gradient[1], 0)
    assert (variation.gradient[0] != 0).all()


def test_a_flow_of_slices_ends_at_the_samples():
    y = jax.random.normal(KEY, (40, 2)) @ jnp.array([[1.0, 0.8], [0.0, 0.3]]) + 3
    x = jax.random.normal(jax.random.key(1), (40, 2))
    result = flows.Flow(
        (flows.SlicedWasserstein(y, num_projections=32),),
        velocity=flows.Blob(),
        optimizer=optax.sgd(0.5),
    ).run(KEY, x, num_steps=300)
    nearest = jnp.linalg.norm(result.particles[:, None] - y, axis=-1).min(axis=0)
    assert nearest.max() < 0.1


def test_the_sinkhorn_divergence_of_a_shift():
    """x ↦ x + s costs S_ε = |s|² at every ε, with gradient −2s at every particle."""
    shift = jnp.array([1.0, -2.0])
    x = jax.random.normal(KEY, (12, 2))
    for epsilon in (0.1, 1.0, 10.0):
        objective = flows.SinkhornDivergence(
            x + shift, epsilon=epsilon, solver=ot.Sinkhorn(tolerance=1e-5)
        )
        variation = evaluate(objective, x)
        np.testing.assert_allclose(variation.value, 5, rtol=1e-3)
        np.testing.assert_allclose(variation.gradient, np.tile(-2 * shift, (12, 1)), atol=2e-2)


def test_the_sinkhorn_divergence_is_varied_by_its_potentials():
    """Against differentiating the value: 1/a_i ∂S/∂x_i, and ∂S/∂a_i up to a constant."""
    with jax.enable_x64(True):
        x, y = jax.random.normal(KEY, (2, 7, 2))
        weights = jax.nn.softmax(x[:, 0])
        objective = flows.SinkhornDivergence(y, epsilon=0.3, solver=ot.Sinkhorn(tolerance=1e-10))
        variation = evaluate(objective, x, weights)
        value = lambda x, a: (
            ot.sinkhorn_divergence(x, y, a, epsilon=0.3, solver=ot.Sinkhorn(tolerance=1e-10)).value
        )
        step = 1e-5
        for i, k in ((0, 0), (3, 1)):
            moved = [value(x.at[i, k].add(s), weights) for s in (step, -step)]
            slope = (moved[0] - moved[1]) / (2 * step) / weights[i]
            np.testing.assert_allclose(variation.gradient[i, k], slope, rtol=1e-5)
        along = jnp.zeros(7).at[0].set(1).at[1].set(-1)
        moved = [value(x, weights + s * along) for s in (step, -step)]
        np.testing.assert_allclose(
            variation.potential @ along, (moved[0] - moved[1]) / (2 * step), rtol=1e-5
        )


def test_a_particle_without_weight_is_pulled_like_one_with():
    x, y = jax.random.normal(KEY, (2, 6, 2))
    objective = flows.SinkhornDivergence(y, epsilon=0.5, solver=ot.Sinkhorn(tolerance=1e-5))
    few = evaluate(objective, x, jnp.array([0.25, 0.25, 0.25, 0.25, 0.0, 0.0]))
    assert jnp.isfinite(few.gradient).all()
    assert (jnp.abs(few.gradient[4:]).sum(axis=1) > 0.1).all()


def test_a_step_starts_at_the_last_potentials():
    x, y = jax.random.normal(KEY, (2, 50, 2))
    uniform = jnp.full(50, 1 / 50)
    objective = flows.SinkhornDivergence(y + 1, epsilon=0.02)
    _, state = objective(KEY, x, uniform, objective.init(KEY, x))
    cold, warm = (
        ot.sinkhorn_divergence(x + 0.01, y + 1, epsilon=0.02, init=init) for init in (None, state)
    )
    assert warm.converged
    assert warm.xy.num_iterations < cold.xy.num_iterations / 2


def test_what_has_not_converged_has_no_value():
    x, y = jax.random.normal(KEY, (2, 20, 2))
    objective = flows.SinkhornDivergence(y + 3, epsilon=1e-3, solver=ot.Sinkhorn(max_iterations=2))
    assert jnp.isnan(evaluate(objective, x).value)


def test_one_flow_mixes_a_density_and_samples():
    """N(0, I) by its density and N(2, I) by samples: in between, nearer to neither."""
    y = 2 + jax.random.normal(KEY, (60, 2))
    x = jax.random.normal(jax.random.key(1), (60, 2))
    objectives = (
        flows.Potential(lambda z: jnp.sum(z**2)),
        flows.SinkhornDivergence(y, epsilon=0.5),
    )
    result = flows.Flow(
        objectives,
        velocity=flows.Blob(),
        aggregator=flows.FixedWeights(jnp.array([0.5, 0.5])),
        optimizer=optax.sgd(0.2),
    ).run(KEY, x, num_steps=60)
    # ½∇|x|² + ½∇S_ε = x + (x − T(x)) vanishes in the mean at half the samples' mean.
    np.testing.assert_allclose(result.particles.mean(axis=0), y.mean(axis=0) / 2, atol=0.02)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_projections"):
        flows.SlicedWasserstein(jnp.zeros((3, 2)), num_projections=0)
    with pytest.raises(ValueError, match="epsilon must be a positive number"):
        flows.SinkhornDivergence(jnp.zeros((3, 2)), epsilon=0.0)
    with pytest.raises(ValueError, match="p must be a finite number of at least 1"):
        evaluate(flows.SlicedWasserstein(jnp.zeros((3, 2)), p=0.5), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="samples and particles"):
        evaluate(flows.SlicedWasserstein(jnp.zeros((3, 2))), jnp.zeros((3, 1)))


@pytest.mark.parametrize("p", [1, 1.5, 2])
@pytest.mark.parametrize("d", [1, 3])
def test_particles_at_the_samples_stay_exactly(p, d):
    y = jax.random.normal(KEY, (7, d))
    variation = evaluate(flows.SlicedWasserstein(y, num_projections=5, p=p), y)
    np.testing.assert_array_equal(variation.gradient, 0)
    assert variation.value == 0


def test_a_particle_at_a_sample_stays_beside_others_that_move():
    """W₁ on the line: a sign each, and 0 for the one that is matched at distance zero."""
    y = jnp.array([[0.0], [1.0], [2.0]])
    x = jnp.array([[2.5], [1.0], [-0.5]])
    objective = flows.SlicedWasserstein(y, num_projections=3, p=1)
    np.testing.assert_allclose(evaluate(objective, x).gradient[:, 0], [1, 0, -1], rtol=1e-6)
    np.testing.assert_array_equal(evaluate(objective, x).gradient[1], 0)


def test_a_target_that_the_particles_cannot_resolve_is_flagged():
    """At 10⁸ float32 particles lie on a grid of 8."""
    samples = 123456789.0 + np.random.default_rng(0).normal(size=(5, 2))
    x = jnp.asarray(samples[:4], jnp.float32)
    for objective in (
        flows.SinkhornDivergence(samples, epsilon=0.5),
        flows.SlicedWasserstein(samples),
        flows.MMD(samples, kernels.Gaussian(1.0)),
    ):
        state = objective.init(jax.random.key(0), x)
        variation, _ = objective(jax.random.key(1), x, jnp.full(4, 0.25), state)
        assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(variation))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["mmd", "sliced"])
def test_half_precision_particles_see_where_the_samples_are(kind, dtype):
    """NumPy's float64 beside them is the same target as the same numbers in float32."""
    samples = np.random.default_rng(0).normal(5.0, 1.0, (50, 2)).astype(np.float16)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)), dtype)
    make = {
        "mmd": lambda y: flows.MMD(y, kernels.Energy()),
        "sliced": lambda y: flows.SlicedWasserstein(y, num_projections=64),
    }[kind]

    def value(y, x):
        weights, objective = jnp.full(20, 1 / 20, x.dtype), make(y)
        return float(objective(KEY, x, weights, objective.init(KEY, x))[0].value)

    expected = value(jnp.asarray(samples, jnp.float32), x.astype(jnp.float32))
    # Directions of slices depend on the dtype.
    tolerance = 0.1 if kind == "mmd" else 0.2
    np.testing.assert_allclose(value(samples.astype(float), x), expected, rtol=tolerance)


@pytest.mark.parametrize("mass", [1e-2, 1e-5, 1e-7, 1e-12])
def test_the_gradient_of_a_particle_does_not_depend_on_its_mass(mass):
    """The third of five particles is paired with the sample 9: 2 (3 − 9), at any mass."""
    particles, samples = jnp.arange(5.0)[:, None], jnp.array([[5.0], [7.0], [9.0]])
    masses = np.full(5, (1 - mass) / 4)
    masses[3] = mass
    objective = flows.SlicedWasserstein(samples, num_projections=1)
    variation, _ = objective(jax.random.key(0), particles, jnp.asarray(masses, jnp.float32), ())
    np.testing.assert_allclose(variation.gradient[3], -12, rtol=1e-5)
