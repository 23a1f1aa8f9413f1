"""Objectives' variations against autodiff of the functionals they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import flows, kernels, problems

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def setup(n=6, d=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, n)
    return jnp.asarray(rng.normal(size=(n, d))), jnp.asarray(weights / weights.sum())


def evaluate(objective, x, weights):
    return objective(KEY, x, weights, objective.init(KEY, x))[0]


def check_gradient(objective, functional, x, weights):
    """∇δE/δq(x_i) = (1/a_i) ∂E/∂x_i for E of the empirical measure Σ a_i δ_{x_i}; δE/δq =
    ∂E/∂a_i."""
    variation = evaluate(objective, x, weights)
    expected = jax.grad(functional)(x, weights) / weights[:, None]
    np.testing.assert_allclose(variation.gradient, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(variation.value, functional(x, weights), rtol=1e-10)
    slope = jax.grad(functional, argnums=1)(x, weights)
    # A first variation is determined up to a constant.
    np.testing.assert_allclose(
        variation.potential - variation.potential[0], slope - slope[0], rtol=1e-8, atol=1e-12
    )


def gaussian_matrix(x, y, sigma):
    return jnp.exp(-jnp.sum((x[:, None] - y[None]) ** 2, -1) / (2 * sigma**2))


def test_kl_is_the_expected_energy():
    x, weights = setup()
    mixture = problems.two_component_targets()[0]
    functional = lambda x, a: -jnp.dot(a, jax.vmap(mixture.log_prob)(x))
    check_gradient(flows.KL(mixture.log_prob), functional, x, weights)


def test_interaction_is_the_double_integral():
    x, weights = setup()
    functional = lambda x, a: 0.5 * a @ gaussian_matrix(x, x, 0.9) @ a
    check_gradient(flows.Interaction(kernels.Gaussian(bandwidth=0.9)), functional, x, weights)


def test_mmd_is_half_the_squared_distance():
    x, weights = setup()
    y = setup(9, seed=1)[0] + 1
    uniform = jnp.full(9, 1 / 9)

    def functional(x, a):
        both, signed = jnp.concatenate([x, y]), jnp.concatenate([a, -uniform])
        return 0.5 * signed @ gaussian_matrix(both, both, 0.9) @ signed

    check_gradient(flows.MMD(y, kernels.Gaussian(bandwidth=0.9)), functional, x, weights)


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(bandwidth=0.9), kernels.InverseMultiquadric(bandwidth=1.2)]
)
def test_kernel_stein_is_half_the_squared_discrepancy(kernel):
    """The double sum of u by autodiff of the kernel, away from coincident points."""
    x, weights = setup()
    mixture = problems.two_component_targets()[0]
    score = jax.grad(mixture.log_prob)

    def functional(x, a):
        def u(i, j):
            # A pair with itself: the limit, whose trace is that of the second derivatives.
            k = lambda p, q: kernel.radial(jnp.sum((p - q) ** 2)[None, None])[0][0, 0]
            p, q = x[i], x[j]
            mixed = jnp.trace(jax.jacfwd(jax.grad(k), argnums=1)(p, q))
            turn = score(p) @ jax.grad(k, 1)(p, q) + score(q) @ jax.grad(k)(p, q)
            return k(p, q) * score(p) @ score(q) + turn + mixed

        each = jnp.arange(len(x))
        stein = jax.vmap(lambda i: jax.vmap(lambda j: u(i, j))(each))(each)
        return 0.5 * a @ stein @ a

    check_gradient(flows.KernelStein(mixture.log_prob, kernel), functional, x, weights)


def test_energy_mmd_is_the_energy_distance():
    x, weights = setup()
    y = np.asarray(setup(9, seed=1)[0]) + 1
    value = evaluate(flows.MMD(jnp.asarray(y), kernels.Energy()), x, weights).value
    x, a, b = np.asarray(x), np.asarray(weights), np.full(9, 1 / 9)
    expected = a @ cdist(x, y) @ b - 0.5 * a @ cdist(x, x) @ a - 0.5 * b @ cdist(y, y) @ b
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_mmd_of_a_sample_to_itself_is_zero():
    x, _ = setup()
    variation = evaluate(flows.MMD(x, kernels.Gaussian()), x, jnp.full(6, 1 / 6))
    np.testing.assert_allclose(variation.value, 0, atol=1e-15)
    np.testing.assert_allclose(variation.gradient, 0, atol=1e-14)


def test_objectives_take_pytrees():
    x, weights = setup(d=3)
    split = lambda z: {"a": z[..., :1], "b": z[..., 1:]}
    for whole, parts in (
        (
            flows.KL(lambda z: -jnp.sum(z**4)),
            flows.KL(lambda z: -jnp.sum(z["a"] ** 4) - jnp.sum(z["b"] ** 4)),
        ),
        (
            flows.KernelStein(lambda z: -jnp.sum(z**4), kernels.Gaussian(1.0)),
            flows.KernelStein(
                lambda z: -jnp.sum(z["a"] ** 4) - jnp.sum(z["b"] ** 4), kernels.Gaussian(1.0)
            ),
        ),
        (flows.MMD(x + 1, kernels.Energy()), flows.MMD(split(x + 1), kernels.Energy())),
        (flows.Interaction(kernels.Laplace(bandwidth=1.0)),) * 2,
    ):
        one, two = evaluate(whole, x, weights), evaluate(parts, split(x), weights)
        np.testing.assert_allclose(one.value, two.value, rtol=1e-12)
        np.testing.assert_allclose(one.gradient[:, :1], two.gradient["a"], rtol=1e-12)
        np.testing.assert_allclose(one.gradient[:, 1:], two.gradient["b"], rtol=1e-12)


def test_stochastic_energies_average_to_the_full_one():
    x, weights = setup()
    data = jnp.asarray(np.random.default_rng(2).normal(size=(50, 2)))
    batch = lambda key, z: jnp.sum((z - jax.random.choice(key, data, (5,))) ** 2) / 5
    objective = flows.Potential(batch, stochastic=True)
    gradients = jax.vmap(lambda key: objective(key, x, weights, ())[0].gradient)(
        jax.random.split(KEY, 2000)
    )
    standard_error = gradients.std(0) / np.sqrt(2000)
    assert jnp.all(jnp.abs(gradients.mean(0) - 2 * (x - data.mean(0))) < 4.5 * standard_error)


def test_arrays_of_a_bound_method_are_leaves():
    mixture = problems.two_component_targets()[0]
    objective = flows.KL(mixture.log_prob)
    assert len(jax.tree.leaves(objective)) == len(jax.tree.leaves(mixture))
    traces = []

    @jax.jit
    def value(objective, x):
        traces.append(None)
        return evaluate(objective, x, jnp.full(6, 1 / 6)).value

    for target in problems.two_component_targets():
        value(flows.KL(target.log_prob), setup()[0])
    assert len(traces) == 1


@pytest.mark.parametrize("make", [flows.KL, flows.Potential])
def test_a_vector_valued_energy_is_refused(make):
    x, weights = setup()
    with pytest.raises(ValueError, match=r"must return a scalar; got shape \(2,\)"):
        evaluate(make(lambda z: z), x, weights)


def test_samples_of_another_dimension_are_refused():
    x, _ = setup()
    with pytest.raises(
        ValueError, match="samples and particles must have the same number of features; got 3 and 2"
    ):
        flows.MMD(jnp.zeros((4, 3)), kernels.Energy()).init(KEY, x)


def test_negative_entropy_is_refused():
    with pytest.raises(ValueError, match="entropy must not be negative"):
        flows.Potential(jnp.sum, entropy=-1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: flows.MMD(y, kernels.Energy()),
        lambda y: flows.MMD(y, kernels.Gaussian()),
        lambda y: flows.SlicedWasserstein(y, p=1.5),
        lambda y: flows.SlicedWasserstein(y),
        lambda y: flows.FDivergence(y, num_init_steps=1, num_fit_steps=1),
    ],
    ids=["energy", "gaussian", "sliced 1.5", "sliced", "f-divergence"],
)
def test_samples_that_are_no_numbers_are_flagged(make):
    import optax

    x, _ = setup()
    y = setup(9, seed=1)[0].at[3, 0].set(jnp.nan)
    velocity, optimizer = flows.Langevin(), optax.sgd(0.1)
    run = jax.jit(
        lambda: flows.Flow((make(y),), velocity=velocity, optimizer=optimizer).run(
            KEY, x, num_steps=2
        )
    )
    result = run()
    assert not result.finite
    assert jnp.isnan(result.history.values[0, 0])


def test_samples_as_researchers_hold_them():
    pandas = pytest.importorskip("pandas")
    x, weights = setup()
    y = np.random.default_rng(3).integers(-3, 4, size=(5, 2))
    expected = evaluate(flows.MMD(jnp.asarray(y, float), kernels.Energy()), x, weights)
    for given in (y, y.tolist(), pandas.DataFrame(y), y.astype(np.float16)):
        found = evaluate(flows.MMD(given, kernels.Energy()), x, weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


MISTAKES = {
    "kernel must be a radial kernel": lambda y: flows.MMD(y, lambda a, b: -jnp.sum((a - b) ** 2)),  # pyright: ignore[reportOperatorIssue]
    "kernel must be an instance; got the class Energy": lambda y: flows.MMD(y, kernels.Energy),
    "kernel must be a radial kernel such": lambda y: flows.Interaction("rbf"),
    "log_prob must be a function": lambda y: flows.KL(y),
    "log_prob must be a function; got Gaussian": lambda y: flows.KL(
        problems.two_component_targets()[0]  # the mixture, not its density
    ),
    "log_prob must be a function; got list": lambda y: flows.KL([1.0, 2.0]),
    "energy must be a function": lambda y: flows.Potential(np.zeros(3)),
    r"log_prob must take \(particle\); it takes \(key, z\)": lambda y: evaluate(
        flows.KL(lambda key, z: jnp.sum(z)), y, jnp.ones(5) / 5
    ),
    r"log_prob must take \(key, particle\); it takes \(z\)": lambda y: evaluate(
        flows.KL(lambda z: jnp.sum(z), stochastic=True), y, jnp.ones(5) / 5
    ),
    "samples must hold real numbers": lambda y: flows.SlicedWasserstein([["a", "b"]]),
    "samples must hold real": lambda y: flows.MMD("samples.csv", kernels.Energy()),
    r"samples must be a matrix .* samples\[:, None\]": lambda y: evaluate(
        flows.MMD(y[:, 0], kernels.Energy()), y, jnp.ones(5) / 5
    ),
    r"samples must be a matrix .* got shape \(2,\)": lambda y: flows.MMD([1, 2], kernels.Energy()),
    "samples and particles must have the same number of features; got 2 and 3": lambda y: evaluate(
        flows.MMD(y, kernels.Energy()), jnp.ones((5, 3)), jnp.ones(5) / 5
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises(ValueError, match=message) as caught:
        MISTAKES[message](jnp.full((5, 2), 0.123))
    assert "0.123" not in str(caught.value)  # messages never hold data


def test_a_traced_entropy_must_not_be_negative():
    x, weights = setup()

    def value(entropy):
        return evaluate(flows.Potential(lambda z: jnp.sum(z**2), entropy=entropy), x, weights).value

    assert jnp.isfinite(jax.jit(value)(0.5))
    assert jnp.isnan(jax.jit(value)(-0.5))


@pytest.mark.parametrize("kernel", [kernels.Energy(), kernels.Gaussian(bandwidth=1.0)])
def test_an_offset_of_float64_samples_is_not_lost(kernel):
    """Beside float32 particles where these have digits left; beyond, the value says so."""
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(40, 2))
    with jax.enable_x64(False):
        for offset, resolved in ((0.0, True), (2.0**20, True), (2.0**30, False)):
            # The particles are representable at the offset: multiples of its resolution.
            x = np.round(16 * rng.normal(size=(30, 2))) / 4
            given = jnp.asarray(x + offset, jnp.float32)
            weights = jnp.full(30, 1 / 30, jnp.float32)
            found = evaluate(flows.MMD(noise + offset, kernel), given, weights)
            if not resolved:
                assert jnp.isnan(found.value)
                continue
            with jax.enable_x64(True):
                wide = jnp.asarray(x), jnp.full(30, 1 / 30)
                expected = evaluate(flows.MMD(noise, kernel), *wide)
            np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
            np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [1e2, 1e6])
def test_energies_between_far_clusters(apart):
    """In single precision a difference of mean distances of 10⁶ is lost, and NaN.

    The sums of directions are those of double precision to 10⁻⁴, whatever is lost of the value.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 2))
    x[:15, 0] += apart
    y[:15, 0] += apart
    x, y = x.astype(np.float32), 1.2 * y.astype(np.float32)
    y[:15, 0] += np.float32(-0.2 * apart)
    with jax.enable_x64(False):
        weights = jnp.full(30, 1 / 30, jnp.float32)
        objective = flows.MMD(jnp.asarray(y), kernels.Energy())
        found = evaluate(objective, jnp.asarray(x), weights)
    wide = [np.float64(rows) for rows in (x, y)]
    distances = lambda u, v: np.linalg.norm(u[:, None] - v, axis=2)

    def pull(u, v):
        length = distances(u, v)[..., None]
        return np.mean((u[:, None] - v) / np.where(length > 0, length, 1), axis=1)

    value = sum(
        share * distances(wide[i], wide[j]).mean()
        for i, j, share in ((0, 1, 1), (0, 0, -0.5), (1, 1, -0.5))
    )
    if apart == 1e2:
        np.testing.assert_allclose(found.value, value, rtol=1e-2)
    else:
        assert jnp.isnan(found.value)
    exact = pull(wide[0], wide[1]) - pull(wide[0], wide[0])
    np.testing.assert_allclose(found.gradient, exact, atol=1e-4)


@pytest.mark.parametrize(("constant", "resolved"), [(1e8, True), (1e8 + 3, False)])
def test_a_constant_feature_far_from_zero(constant, resolved):
    """Float32 particles on a grid of 8 reach 10⁸, and are 3 beside it otherwise."""
    rng = np.random.default_rng(4)
    samples, x = (np.column_stack([rng.normal(size=30), np.full(30, constant)]) for _ in range(2))
    with jax.enable_x64(False):
        given, weights = jnp.asarray(x, jnp.float32), jnp.full(30, 1 / 30, jnp.float32)
        found = evaluate(flows.MMD(samples, kernels.Energy()), given, weights)
        if not resolved:
            assert jnp.isnan(found.value)
            return
        # Rows that differ: the feature is lost.
        samples[:5, 1] += 1
        moved = evaluate(flows.MMD(samples, kernels.Energy()), given, weights)
        assert jnp.isnan(moved.value)
        samples[:5, 1] -= 1
    mean = lambda u, v: np.abs(u[:, None] - v).mean()
    u, v = np.float64(np.float32(x[:, 0])), samples[:, 0]
    np.testing.assert_allclose(found.value, mean(u, v) - mean(u, u) / 2 - mean(v, v) / 2, rtol=1e-4)
    np.testing.assert_allclose(found.gradient[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, 999999.0, -1e12])
def test_one_wrong_sample_does_not_hide_a_lost_offset(wrong):
    """Float32 lies on a grid of 128 at 2³⁰, beside which the other rows' spread counts."""
    samples = np.random.default_rng(4).normal(size=(100, 2)) + 2.0**30
    samples[7] = wrong
    with jax.enable_x64(False):
        x = jnp.full((30, 2), 2.0**30, jnp.float32)
        weights = jnp.full(30, 1 / 30, jnp.float32)
        assert jnp.isnan(evaluate(flows.MMD(samples, kernels.Energy()), x, weights).value)
        # At zero it is as visible as without.
        given = samples - np.where(samples == wrong, 0, 2.0**30)
        assert jnp.isfinite(evaluate(flows.MMD(given, kernels.Energy()), x * 0, weights).value)


def test_samples_wider_than_the_particles_keep_their_digits():
    noise = np.random.default_rng(5).normal(size=(40, 2))
    x, weights = jnp.zeros((3, 2), jnp.float32) + 2.0**20, jnp.full(3, 1 / 3, jnp.float32)
    wide = flows.MMD(jnp.asarray(noise + 2.0**20), kernels.Energy())  # float64
    expected = evaluate(flows.MMD(noise, kernels.Energy()), jnp.zeros((3, 2)), jnp.full(3, 1 / 3))
    found = evaluate(wide, x, weights)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
