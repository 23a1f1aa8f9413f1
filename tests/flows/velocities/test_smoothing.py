"""Velocities against blackjax, the papers' sums written as loops, and the theorems they satisfy."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels

SIGMA = 0.8
KERNEL = kernels.Gaussian(bandwidth=SIGMA)
VELOCITIES = {
    "SVGD": flows.SVGD(KERNEL),
    "Blob": flows.Blob(KERNEL),
    "GFSD": flows.GFSD(KERNEL),
    "GFSF": flows.GFSF(KERNEL, regularization=0.05),
}


@pytest.fixture
def cloud():
    """Particles, masses and the gradients of two energies, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(7, 3))
        weights = rng.uniform(0.5, 1.5, size=7)
        yield x, weights / weights.sum(), rng.normal(size=(2, 7, 3))


def evaluate(velocity, x, weights, gradients):
    x, weights, gradients = map(jnp.asarray, (x, weights, gradients))
    state = velocity.init(jax.random.key(0), x)
    drift, repulsion, _ = velocity(jax.random.key(1), x, weights, gradients, state)
    return np.asarray(drift), np.asarray(repulsion)


def k(x, y):
    return np.exp(-np.sum((x - y) ** 2) / (2 * SIGMA**2))


def grad_k(x, y):
    """The gradient in x."""
    return -(x - y) / SIGMA**2 * k(x, y)


def test_svgd_is_liu_and_wangs_sum(cloud):
    x, a, g = cloud
    drift, repulsion = evaluate(flows.SVGD(KERNEL), x, a, g)
    for i in range(7):
        expected = [sum(-a[j] * k(x[i], x[j]) * g[m, j] for j in range(7)) for m in range(2)]
        np.testing.assert_allclose(drift[:, i], expected, rtol=1e-10)
        expected = sum(a[j] * grad_k(x[j], x[i]) for j in range(7))
        np.testing.assert_allclose(repulsion[i], expected, rtol=1e-10, atol=1e-14)


def test_gfsd_is_the_density_estimates_score(cloud):
    x, a, g = cloud
    drift, repulsion = evaluate(flows.GFSD(KERNEL), x, a, g)
    log_density = lambda z: jnp.log(
        jnp.sum(a * jnp.exp(-jnp.sum((z - x) ** 2, axis=1) / (2 * SIGMA**2)))
    )
    np.testing.assert_allclose(
        repulsion, -jax.vmap(jax.grad(log_density))(jnp.asarray(x)), rtol=1e-9
    )
    np.testing.assert_array_equal(drift, -g)


def test_blob_descends_the_smoothed_entropy(cloud):
    x, a, g = cloud
    _, repulsion = evaluate(flows.Blob(KERNEL), x, a, g)

    def smoothed_entropy(x):
        squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
        return jnp.dot(a, jnp.log(jnp.exp(-squared / (2 * SIGMA**2)) @ a))

    gradient = jax.grad(smoothed_entropy)(jnp.asarray(x)) / a[:, None]
    np.testing.assert_allclose(repulsion, -gradient, rtol=1e-9)


def test_gfsf_solves_steins_identity_with_a_ridge(cloud):
    x, _, g = cloud
    a = np.full(7, 1 / 7)
    _, repulsion = evaluate(flows.GFSF(KERNEL, regularization=0.05), x, a, g)
    matrix = np.array([[k(x[i], x[j]) for j in range(7)] for i in range(7)])
    stein = np.array([sum(grad_k(x[j], x[i]) for j in range(7)) for i in range(7)])
    expected = -np.linalg.solve(matrix + 0.05 * np.eye(7), stein)
    np.testing.assert_allclose(-repulsion, expected, rtol=1e-9)


@pytest.mark.parametrize("name", VELOCITIES)
def test_a_double_mass_is_two_particles_in_one_place(cloud, name):
    x, _, g = cloud
    velocity = VELOCITIES[name]
    if (
        name == "GFSF"
    ):  # the ridge weighs one equation of mass 2 as it does two of mass 1 only as λ → 0
        velocity = flows.GFSF(KERNEL, regularization=1e-9)
    twice = np.concatenate([np.arange(7), [3]])
    weighted = evaluate(velocity, x, np.where(np.arange(7) == 3, 2, 1) / 8, g)
    doubled = evaluate(velocity, x[twice], np.full(8, 1 / 8), g[:, twice])
    for one, two in zip(weighted, doubled, strict=True):
        np.testing.assert_allclose(one, np.delete(two, 7, axis=-2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VELOCITIES)
def test_objectives_do_not_see_each_other(cloud, name):
    x, a, g = cloud
    together, repulsion = evaluate(VELOCITIES[name], x, a, g)
    for m in range(2):
        alone, same = evaluate(VELOCITIES[name], x, a, g[m : m + 1])
        np.testing.assert_allclose(alone[0], together[m], rtol=1e-12)
        np.testing.assert_allclose(same, repulsion, rtol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", VELOCITIES)
def test_zero_weight_and_coincident_particles_stay_finite(name):
    x = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1e4, 0.0]])
    weights = jnp.array([0.5, 0.25, 0.25, 0.0])

    def total(x):
        drift, repulsion, _ = VELOCITIES[name](jax.random.key(0), x, weights, x[None], ())
        return jnp.sum(drift) + jnp.sum(repulsion**2)

    value, gradient = jax.value_and_grad(total)(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_one_objective_is_blackjaxs_svgd():
    steps, step_size, bandwidth = 25, 0.1, 0.7
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (12, 2))
        log_prob = lambda z: (
            -0.5 * jnp.sum((z - jnp.array([1.0, -2.0])) ** 2 * jnp.array([1.0, 3.0]))
        )
        # blackjax writes the kernel as exp(−d²/length_scale), and the median rule follows each
        # step.
        peer = blackjax.svgd(
            jax.grad(log_prob), optax.adam(step_size), update_kernel_parameters=lambda s: s
        )
        state = peer.init(x, {"length_scale": 2 * bandwidth**2})
        peer_step = jax.jit(peer.step)
        for _ in range(steps):
            state = peer_step(state)
        ours = flows.Flow(
            (flows.KL(log_prob),),
            velocity=flows.SVGD(kernels.Gaussian(bandwidth=bandwidth)),
            optimizer=optax.adam(step_size),
        ).run(jax.random.key(1), x, num_steps=steps)
        np.testing.assert_allclose(ours.particles, state.particles, rtol=1e-9, atol=1e-12)


def test_regularization_must_be_positive():
    with pytest.raises(ValueError, match="regularization must be a positive number; got 0"):
        flows.GFSF(KERNEL, regularization=0.0)


@pytest.mark.parametrize("velocity", [flows.SVGD, flows.GFSD, flows.Blob, flows.GFSF])
def test_a_kernel_that_cannot_smooth_is_refused(velocity):
    with pytest.raises(ValueError, match=r"kernel must be positive definite .* got Energy"):
        velocity(kernels.Energy())
    with pytest.raises(ValueError, match=r"kernel must be a radial kernel such .* got 'rbf'"):
        velocity("rbf")


@pytest.mark.parametrize("name", VELOCITIES)
def test_a_zero_weight_particle_leaves_derivatives_finite(name):
    x, gradients = jnp.array([[0.0], [1.0], [30.0]]), jnp.ones((1, 3, 1))

    def total(x, weights):
        drift, repulsion, _ = VELOCITIES[name](jax.random.key(0), x, weights, gradients, ())
        return jnp.sum(weights * (drift[0] + repulsion)[:, 0])

    for gradient in jax.grad(total, (0, 1))(x, jnp.array([0.5, 0.5, 0.0])):
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["SVGD", "Blob", "GFSD", "GFSF"])
@pytest.mark.parametrize("rule", [kernels.Mean(), kernels.Median()])
def test_coincident_particles_descend_together(name, rule):
    """Nothing drives them apart: x ← (1 − η)x for a standard normal target, at bandwidth one."""
    start, step_size, num_steps = jnp.array([2.5, -0.3, 1.1]), 0.1, 40
    kernel = kernels.Gaussian(bandwidth=rule)
    result = jax.jit(
        lambda: flows.Flow(
            (flows.KL(lambda z: -0.5 * jnp.sum(z**2)),),
            velocity=getattr(flows, name)(kernel),
            optimizer=optax.sgd(step_size),
        ).run(jax.random.key(0), jnp.broadcast_to(start, (50, 3)), num_steps=num_steps)
    )()
    expected = np.broadcast_to((1 - step_size) ** num_steps * start, (50, 3))
    np.testing.assert_allclose(result.particles, expected, rtol=1e-4)


def test_a_particle_that_is_no_number_leaves_no_velocity(cloud):
    x, a, g = cloud
    for name, velocity in VELOCITIES.items():
        _, repulsion = evaluate(velocity, np.where(np.arange(7)[:, None] == 2, np.nan, x), a, g)
        assert np.isnan(repulsion).all(), name


def test_a_regularization_out_of_range(cloud):
    velocity = lambda number: flows.GFSF(KERNEL, regularization=number)
    with pytest.raises(ValueError, match="regularization must be positive"):
        evaluate(velocity(jnp.array(-0.1)), *cloud)
    x, a, g = map(jnp.asarray, cloud)
    traced = jax.jit(lambda number: velocity(number)(jax.random.key(0), x, a, g, ())[1])
    assert jnp.isnan(traced(-0.1)).all()


@pytest.mark.parametrize("velocity", [flows.SVGD, flows.Blob, flows.GFSD, flows.GFSF])
def test_clusters_far_apart_have_the_velocities_of_float64(velocity):
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=(60, 16)), rng.normal(size=(1, 60, 16))
    x[::2, 0] += 1e4
    x, gradients = np.float32(x), np.float32(gradients)

    def evaluate(dtype):
        cast = jnp.asarray(x, dtype), jnp.full(60, 1 / 60, dtype), jnp.asarray(gradients, dtype)
        field = velocity(kernels.Gaussian(bandwidth=4.0))
        drift, repulsion, _ = field(jax.random.key(0), *cast, field.init(jax.random.key(0), x))
        return drift, repulsion

    with jax.enable_x64(True):
        for single, double in zip(evaluate(jnp.float32), evaluate(jnp.float64), strict=True):
            np.testing.assert_allclose(single, double, atol=1e-3 * np.abs(double).max())


@pytest.mark.parametrize("name", sorted(VELOCITIES))
def test_padding_does_not_change_the_living(name):
    """Rows of weight zero are absent, however many there are."""
    velocity = VELOCITIES[name]
    x = jnp.array([[-1.0], [1.0], [0.3]])
    padded = jnp.concatenate([x, jnp.full((98, 1), 7.0)])
    weights, state = jnp.full(3, 1 / 3), velocity.init(jax.random.key(0), x)
    fields = [
        velocity(jax.random.key(1), rows, masses, rows[None], state)[:2]
        for rows, masses in ((x, weights), (padded, jnp.append(weights, jnp.zeros(98))))
    ]
    (drift, repulsion), (padded_drift, padded_repulsion) = fields
    np.testing.assert_allclose(padded_drift[:, :3], drift, rtol=1e-5)
    np.testing.assert_allclose(padded_repulsion[:3], repulsion, rtol=1e-4)


@pytest.mark.parametrize(("regularization", "n"), [(1e-2, 200), (1e-3, 200), (1e-4, 500)])
def test_a_ridge_below_rounding_is_not_a_finite_number(regularization, n):
    """The score by a solve in double precision, or NaN."""
    x = np.random.default_rng(0).normal(size=(n, 2))
    squared = np.sum((x[:, None] - x) ** 2, axis=2)
    gram = np.exp(-squared / 8)
    right = np.sum(gram[:, :, None] * (x[:, None] - x) / 4, axis=1)
    expected = np.linalg.solve(gram + regularization * np.eye(n), -right)
    velocity = flows.GFSF(kernels.Gaussian(bandwidth=2.0), regularization=regularization)
    a = np.full(n, 1 / n)
    single = [jnp.asarray(each, jnp.float32) for each in (x, a, x[None])]
    found = -np.asarray(velocity(jax.random.key(0), *single, ())[1])
    if n == 500:
        assert np.isnan(found).all()
        return
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert min(error, np.linalg.norm(found + expected) / np.linalg.norm(expected)) < 0.02
