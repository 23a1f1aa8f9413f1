import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from divjax.flows import CAGrad, Fields, FixedWeights, MinNorm, PCGrad, ProjectedStep, gram

KEY = jax.random.key(0)


def apply(aggregator, velocities, weights, key=KEY):
    state = aggregator.init(key, velocities.shape[0])
    return aggregator(Fields(velocities, weights), state)[0]


apply = jax.jit(apply)


def example(seed, size=3, n=5, d=2, dtype=np.float32):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=n)
    return rng.normal(size=(size, n, d)).astype(dtype), (weights / weights.sum()).astype(dtype)


def as_vectors(velocities, weights):
    """The fields as vectors whose Euclidean products are those of L²(q)."""
    scaled = np.asarray(velocities, np.float64) * np.sqrt(np.asarray(weights, np.float64))[:, None]
    return scaled.reshape(len(velocities), -1)


def test_the_gram_matrix_is_the_one_of_weighted_fields():
    velocities, weights = example(0)
    x = as_vectors(velocities, weights)
    np.testing.assert_allclose(gram(velocities, weights), x @ x.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_the_shortest_combination_descends_on_every_objective(size):
    velocities, weights = example(1, size)
    x = as_vectors(velocities, weights)
    direction = np.asarray(apply(MinNorm(), velocities, weights), np.float64) @ x
    assert (x @ direction >= direction @ direction * (1 - 1e-4)).all()
    assert direction @ direction <= (x.mean(0) @ x.mean(0)) * (1 + 1e-6)


def test_projected_steps_follow_their_formula_and_converge_to_the_shortest_combination():
    velocities, weights = example(2)
    aggregator = ProjectedStep(step_size=0.1)
    state = aggregator.init(KEY, 3)
    np.testing.assert_allclose(state, np.full(3, 1 / 3), rtol=1e-6)
    x = as_vectors(velocities, weights)
    moved = 1 / 3 - 0.1 * x @ x.T @ np.full(3, 1 / 3)
    first, second = aggregator(Fields(velocities, weights), state)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, moved + (1 - moved.sum()) / 3, rtol=1e-5)

    last, _ = jax.lax.scan(
        lambda state, _: (aggregator(Fields(velocities, weights), state)[1], None),
        state,
        length=2000,
    )
    np.testing.assert_allclose(last, apply(MinNorm(), velocities, weights), atol=1e-4)


def test_a_carried_state_keeps_its_dtype():
    with jax.enable_x64(True):
        velocities, weights = example(2)
        aggregator = ProjectedStep(step_size=0.1)
        w, state = aggregator(Fields(velocities, weights), aggregator.init(KEY, 3))
        assert (w.dtype, state.dtype) == (jnp.float32, jnp.float64)


def test_fixed_weights_are_what_they_were_given():
    velocities, weights = example(3, 2)
    np.testing.assert_allclose(apply(FixedWeights(), velocities, weights), [0.5, 0.5])
    for given in ((0.25, 0.75), [0.25, 0.75], np.array([0.25, 0.75]), jnp.array([0.25, 0.75])):
        aggregator = FixedWeights(given)
        assert aggregator.init(KEY, 2) == ()
        np.testing.assert_allclose(apply(aggregator, velocities, weights), [0.25, 0.75])


@pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.5, 1.5), jnp.array([jnp.nan, 1.0])])
def test_fixed_weights_off_the_simplex_raise(weights):
    with pytest.raises(ValueError, match="weights must be non-negative and sum to one"):
        FixedWeights(weights).init(KEY, 2)


def test_fixed_weights_of_the_wrong_length_raise_even_when_traced():
    with pytest.raises(ValueError, match=r"weights must be 3 numbers, one per objective.*\(2,\)"):
        FixedWeights((0.5, 0.5)).init(KEY, 3)
    with pytest.raises(ValueError, match="weights must be 3 numbers"):
        jax.eval_shape(lambda w: FixedWeights(w).init(KEY, 3), jnp.ones(2))
    jax.eval_shape(lambda w: FixedWeights(w).init(KEY, 2), jnp.ones(2))


def gradient_surgery(vectors, orders):
    """Yu et al. 2020, algorithm 1, on plain vectors; the mean in place of the sum."""
    projected = vectors.copy()
    for i, order in enumerate(orders):
        for j in order:
            inner = projected[i] @ vectors[j]
            if inner < 0:
                projected[i] -= inner / (vectors[j] @ vectors[j]) * vectors[j]
    return projected.mean(0)


def test_gradient_surgery_of_two_fields_is_the_published_one():
    for seed in range(5):
        velocities, weights = example(seed, 2)
        x = as_vectors(velocities, weights)
        coefficients = np.asarray(apply(PCGrad(), velocities, weights), np.float64)
        assert (coefficients >= 0).all()
        np.testing.assert_allclose(coefficients @ x, gradient_surgery(x, [[1], [0]]), atol=1e-5)


def test_gradient_surgery_draws_every_order():
    # Three fields that all conflict: each has two orders of the others, eight results in all.
    noise, weights = example(0, d=3)
    velocities = (np.eye(3, dtype=np.float32) - 0.45)[:, None, :] + 0.1 * noise
    x = as_vectors(velocities, weights)
    assert (x @ x.T)[~np.eye(3, dtype=bool)].max() < 0
    others = [[[1, 2], [2, 1]], [[0, 2], [2, 0]], [[0, 1], [1, 0]]]
    possible = np.stack([gradient_surgery(x, orders) for orders in itertools.product(*others)])
    keys = jax.random.split(KEY, 100)
    coefficients = jax.vmap(lambda key: apply(PCGrad(), velocities, weights, key))(keys)
    directions = np.asarray(coefficients, np.float64) @ x
    distances = np.abs(directions[:, None] - possible[None]).max(-1)
    assert (distances.min(1) < 1e-5).all()
    assert len(set(distances.argmin(1))) == 8


def test_gradient_surgery_leaves_fields_without_conflict_and_vanishing_ones_alone():
    velocities, weights = example(4)
    velocities = np.abs(velocities)
    np.testing.assert_allclose(apply(PCGrad(), velocities, weights), np.full(3, 1 / 3), rtol=1e-6)
    velocities[1] = 0
    assert jnp.isfinite(apply(PCGrad(), velocities, weights)).all()


def conflict_averse(vectors, c):
    """Liu et al. 2021, equation 2, as a constrained problem in the direction itself."""
    mean = vectors.mean(0)
    radius = c * np.linalg.norm(mean)
    result = minimize(
        lambda z: -z[-1],
        np.append(mean, (vectors @ mean).min()),
        jac=lambda z: np.append(np.zeros(len(mean)), -1.0),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda z: vectors @ z[:-1] - z[-1],
                "jac": lambda z: np.column_stack([vectors, -np.ones(len(vectors))]),
            },
            {
                "type": "ineq",
                "fun": lambda z: radius**2 - ((z[:-1] - mean) ** 2).sum(),
                "jac": lambda z: np.append(-2 * (z[:-1] - mean), 0.0),
            },
        ],
        method="SLSQP",
        options={"ftol": 1e-11, "maxiter": 500},
    )
    assert result.success
    return result.x[:-1]


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
def test_the_conflict_averse_direction_has_the_best_worst_inner_product(size, c):
    for seed in range(3):
        velocities, weights = example(seed, size)
        x = as_vectors(velocities, weights)
        direction = np.asarray(apply(CAGrad(c), velocities, weights), np.float64) @ x
        mean = x.mean(0)
        assert np.linalg.norm(direction - mean) <= c * np.linalg.norm(mean) * (1 + 1e-4)
        reference = conflict_averse(x, c)
        scale = np.linalg.norm(mean) * np.linalg.norm(x, axis=1).max()
        assert (x @ direction).min() >= (x @ reference).min() - 2e-5 * scale
        np.testing.assert_allclose(direction, reference, atol=2e-3 * np.linalg.norm(mean))


@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("c", [0.4, 2.0])
@pytest.mark.parametrize("longer", [1.0, 1.0002])
def test_the_conflict_averse_direction_of_nearly_opposite_fields(angle, c, longer):
    """Against a search of the dual in double precision: the least ⟨v̄, g⟩ + c‖v̄‖‖g‖.

    The mean is shorter than the fields by the angle; the direction is of its size.
    """
    x = np.array([[longer, 0.0], [-np.cos(angle), np.sin(angle)]], np.float32)
    coefficients = apply(CAGrad(c), x[:, None], np.ones(1, np.float32))
    x = x.astype(float)
    mean = x.mean(0)
    size = np.linalg.norm(mean)
    center, width = 0.5, 0.5
    for _ in range(4):
        weights = np.clip(np.linspace(center - width, center + width, 4001), 0, 1)[:, None]
        combined = weights * x[0] + (1 - weights) * x[1]
        dual = combined @ mean + c * size * np.linalg.norm(combined, axis=1)
        center, width = weights[dual.argmin(), 0], width / 1000
    shortest = combined[dual.argmin()]
    best = mean + c * size * shortest / np.linalg.norm(shortest)
    direction = np.asarray(coefficients, float) @ x
    np.testing.assert_allclose(direction, best, atol=1e-2 * np.linalg.norm(best))
    np.testing.assert_allclose(np.linalg.norm(direction - mean), c * size, rtol=1e-2)


@pytest.mark.parametrize("short", [0.0, 1e-12])
def test_a_field_that_vanishes_does_not_decide_the_conflict_averse_direction(short):
    """Against a search of the ball; an objective at its minimum has such a field."""
    x = np.array([[short, short], [1.0, 0.0], [-1.2, 1.0]], np.float32)
    direction = np.asarray(CAGrad(0.5)(Fields(x[:, None], masses=np.ones(1)), ())[0]) @ x
    mean = x.mean(0)
    angle, radius = np.linspace(0, 2 * np.pi, 2001), np.linspace(0, 1, 201)[:, None]
    ball = mean + 0.5 * np.linalg.norm(mean) * np.stack(
        [radius * np.cos(angle), radius * np.sin(angle)], -1
    )
    best = (ball @ x[1:].T).min(-1).max()
    assert best > 0 > (x @ mean).min()
    assert (x[1:] @ direction).min() >= best - 1e-4
    assert np.linalg.norm(direction - mean) <= 0.5 * np.linalg.norm(mean) * (1 + 1e-4)


def test_the_conflict_averse_direction_in_double_precision():
    with jax.enable_x64(True):
        velocities, weights = example(7, 4, dtype=np.float64)
        x = as_vectors(velocities, weights)
        coefficients = CAGrad(0.5)(Fields(velocities, weights), ())[0]
        assert coefficients.dtype == jnp.float64
        np.testing.assert_allclose(coefficients @ x, conflict_averse(x, 0.5), atol=1e-5)
        length = np.linalg.norm(coefficients @ x - x.mean(0))
        np.testing.assert_allclose(length, 0.5 * np.linalg.norm(x.mean(0)), rtol=1e-10)


def test_the_conflict_averse_direction_at_its_limits():
    velocities, weights = example(8)
    none = apply(CAGrad(0.0), velocities, weights)
    np.testing.assert_allclose(none, np.full(3, 1 / 3), rtol=1e-6)
    # Opposite fields: no direction helps both, and the mean field is zero.
    opposite = np.stack([velocities[0], -velocities[0]])
    assert jnp.isfinite(apply(CAGrad(), opposite, weights)).all()
    assert jnp.isfinite(apply(CAGrad(), 0 * velocities, weights)).all()
    # Zero in the hull, at a weight other than uniform: the whole ball cannot be used.
    stationary = np.stack([velocities[0], -0.5 * velocities[0]])
    coefficients = np.asarray(apply(CAGrad(2.0), stationary, weights), np.float64)
    x = as_vectors(stationary, weights)
    np.testing.assert_allclose(coefficients @ x, 0 * x[0], atol=2e-3)


@pytest.mark.parametrize(
    "aggregator",
    [MinNorm(), CAGrad(0.3), PCGrad(), ProjectedStep(0.05)],
    ids=lambda a: type(a).__name__,
)
def test_gradients_equal_finite_differences(aggregator):
    with jax.enable_x64(True):
        velocities, weights = example(11, 3, dtype=np.float64)
        state = aggregator.init(KEY, 3)

        @jax.jit
        def length(velocities):
            w = aggregator(Fields(velocities, weights), state)[0]
            return jnp.dot(w, jnp.array([1.0, -2.0, 3.0]))

        direction = np.random.default_rng(0).normal(size=velocities.shape)
        difference = length(velocities + 1e-6 * direction) - length(velocities - 1e-6 * direction)
        slope = (jax.grad(length)(velocities) * direction).sum()
        assert abs(slope) > 1e-6
        # CAGrad's gradient is that at its last iterate: 2e-5 off here in code that LLVM has not
        # optimised, 3e-6 in code that it has, whatever the step of the difference.
        np.testing.assert_allclose(slope, difference / 2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "aggregator",
    [MinNorm(), CAGrad(), PCGrad(), ProjectedStep(0.1)],
    ids=lambda a: type(a).__name__,
)
def test_gradients_are_finite_at_zero_weights_and_vanishing_fields(aggregator):
    velocities, _ = example(12)
    velocities[2] = velocities[1]
    state = aggregator.init(KEY, 3)
    gradient = jax.jit(jax.grad(lambda v, a: aggregator(Fields(v, a), state)[0][0], argnums=(0, 1)))
    for fields in (velocities, 0 * velocities):
        for part in gradient(fields, jnp.array([1.0, 0.0, 0.0, 0.0, 0.0])):
            assert jnp.isfinite(part).all()


def test_hyper_parameters_are_leaves():
    velocities, weights = example(13)
    radii = jnp.array([0.1, 0.4, 0.8])
    swept = jax.vmap(apply, (0, None, None))(CAGrad(radii), velocities, weights)
    loop = np.stack([apply(CAGrad(c), velocities, weights) for c in (0.1, 0.4, 0.8)])
    np.testing.assert_allclose(swept, loop, rtol=1e-3)


def test_bad_numbers_raise():
    with pytest.raises(ValueError, match=r"step_size must be a positive number; got 0\.0"):
        ProjectedStep(0.0)
    with pytest.raises(ValueError, match=r"c must not be negative; got -0\.1"):
        CAGrad(-0.1)


@pytest.mark.parametrize("c", [0.0, 0.2, 0.7])
def test_the_conflict_averse_coefficients_have_the_derivative_of_their_radius(c):
    """One field: d = (1 + c) v̄. Two orthogonal unit fields: by symmetry, coefficients ½ + c/2."""
    coefficients = lambda c, fields: apply(CAGrad(c), fields, np.ones(1, np.float32))
    one, two = np.ones((1, 1, 1), np.float32), np.eye(2, dtype=np.float32)[:, None]
    for fields, expected in ((one, 1.0), (two, 0.5)):
        slopes = jax.jacobian(coefficients)(c, fields)
        np.testing.assert_allclose(slopes, expected, rtol=1e-3)


def test_fields_and_masses_of_wrong_shapes_are_refused():
    fields, _ = example(0)
    with pytest.raises(ValueError, match=r"velocities must have shape \(k, n, d\)"):
        gram(fields[0], np.ones(5) / 5)
    with pytest.raises(ValueError, match=r"weights must have shape \(5,\); got shape"):
        gram(fields, np.ones((5, 1)) / 5)


FIELDS = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda number: ProjectedStep(number), "step_size must be positive"),
        (lambda number: CAGrad(number), "c must not be negative"),
        (
            lambda number: FixedWeights(jnp.stack([1 - number, number])),
            "weights must be non-negative",
        ),
    ],
)
def test_numbers_out_of_range(make, message):
    """As arrays they are refused; traced ones, which cannot be, make the weights NaN."""

    def weights(number):
        aggregator = make(number)
        return aggregator(Fields(FIELDS, jnp.ones(1)), aggregator.init(KEY, 2))[0]

    with pytest.raises(ValueError, match=message):
        weights(jnp.array(-1.0))
    assert jnp.isnan(jax.jit(weights)(-1.0)).all()
    assert jnp.isfinite(jax.jit(weights)(0.3)).all()


def test_fixed_weights_that_are_traced_sum_to_one():
    weights = jax.jit(lambda w: FixedWeights(w)(Fields(FIELDS, jnp.ones(1)), ())[0])
    assert jnp.isnan(weights(jnp.array([1.0, 1.0]))).all()


@pytest.mark.parametrize("aggregator", [PCGrad(), CAGrad(), MinNorm()])
def test_fields_that_are_no_numbers_have_no_weights(aggregator):
    fields = FIELDS.at[1, 0, 0].set(jnp.nan)
    state = aggregator.init(KEY, 2)
    assert jnp.isnan(aggregator(Fields(fields, jnp.ones(1)), state)[0]).all()


@pytest.mark.parametrize("unit", [1e-25, 1e25])
@pytest.mark.parametrize("aggregator", [PCGrad(), CAGrad(), MinNorm()])
def test_the_scale_of_the_fields_does_not_matter(aggregator, unit):
    fields, masses = example(4)
    fields[1] -= fields[0]
    expected = apply(aggregator, fields, masses)
    np.testing.assert_allclose(apply(aggregator, fields * unit, masses), expected, rtol=1e-4)
    # What a particle without mass holds sets no scale.
    masses = np.append(masses, 0).astype(np.float32)
    fields = np.concatenate([fields * unit, np.full((3, 1, 2), 1e30, np.float32)], axis=1)
    np.testing.assert_allclose(apply(aggregator, fields, masses), expected, rtol=1e-4)


def test_fields_of_doubles_beyond_the_range_of_float32():
    fields = 1e-50 * np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    for unit in (1, 1e100):
        weights, _ = MinNorm()(Fields(unit * fields, jnp.ones(1)), ())
        np.testing.assert_allclose(weights, [0.8, 0.2], rtol=1e-6)


def test_the_weights_of_the_shortest_combination_have_derivatives_at_small_fields():
    """Orthogonal fields of squares s and 4: w₁ = 4/(4 + s), in the logarithm of s at s = 1."""
    fields = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    stretch = lambda t: jnp.array([jnp.exp(t / 2), 1.0])[:, None, None]
    first = lambda t, unit: apply(MinNorm(), unit * stretch(t) * fields, jnp.ones(1))[0]
    for unit in (1e-25, 1.0, 1e25):
        np.testing.assert_allclose(jax.grad(first)(0.0, unit), -4 / 25, rtol=1e-4)


@pytest.mark.parametrize(
    "aggregator", [PCGrad(), CAGrad(), MinNorm(), ProjectedStep(0.1), FixedWeights()]
)
def test_lists_are_fields(aggregator):
    state = aggregator.init(KEY, 2)
    found = aggregator(Fields([[[1, 0]], [[0, 2]]], [1.0]), state)[0]
    np.testing.assert_array_equal(found, aggregator(Fields(FIELDS, jnp.ones(1)), state)[0])
    for bad in ([1.0], "text", jnp.ones((2, 1, 1)) * 1j):
        with pytest.raises(ValueError, match=r"^velocities must"):
            aggregator(Fields(bad, [1.0]), state)


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-5, 1e-8])
def test_cagrad_of_an_objective_whose_field_is_small(small):
    """The direction has a limit as one field vanishes: its coefficient grows instead.

    Its truth is the primal problem, solved for the fields of length one that have it as solution.
    """
    unit = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [-0.3, 0, 1.0]])
    scaled = unit * [[1.0], [1.0], [small]]
    fields = Fields(jnp.asarray(scaled, jnp.float32)[:, None], jnp.ones(1))
    direction = np.asarray(CAGrad(0.4)(fields, ())[0], np.float64) @ scaled
    mean = scaled.mean(axis=0)
    assert np.linalg.norm(direction - mean) == pytest.approx(0.4 * np.linalg.norm(mean), rel=1e-4)
    # Minimal over the ball is the small field's product alone, whose others are larger by far.
    worst = lambda d: -min(unit[2] @ d, *(scaled[:2] @ d / small))
    ball = {"type": "ineq", "fun": lambda d: 0.16 * mean @ mean - (d - mean) @ (d - mean)}
    best = minimize(worst, mean, constraints=[ball], method="SLSQP", options={"ftol": 1e-12})
    assert unit[2] @ direction == pytest.approx(-best.fun, rel=2e-3)
    assert unit[2] @ direction > 0.06
