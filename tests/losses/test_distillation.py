"""Distillation on transport against the papers' formulas in NumPy, and against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from divjax import losses

KEY = jax.random.key(0)


def softmax(z):
    weights = np.exp(z - z.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def plain_transport_cost(a, b, costs, epsilon, num_steps):
    """Sinkhorn's iterations in the plain domain, columns first."""
    kernel, u = np.exp(-costs / epsilon), np.ones(len(a))
    for _ in range(num_steps):
        v = b / (kernel.T @ u)
        u = a / (kernel @ v)
    return np.sum(u[:, None] * kernel * v * costs)


def plain_wkd_logits(student, teacher, labels, costs, weight, temperature, epsilon, num_steps):
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        rest = np.delete(np.arange(len(s)), y)
        a, b = softmax(s[rest] / temperature), softmax(t[rest] / temperature)
        moved = plain_transport_cost(a, b, costs[np.ix_(rest, rest)], epsilon, num_steps)
        total += -softmax(t)[y] * np.log(softmax(s)[y]) + weight * moved
    return total / len(student)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    student, teacher = 2 * rng.normal(size=(2, 6, 5))
    similarity = np.corrcoef(rng.normal(size=(5, 8))) ** 2
    return student, teacher, rng.integers(0, 5, 6), 1 - np.exp(-(1 - similarity))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_wkd_logits_is_the_formula_with_the_papers_settings(batch, dtype):
    *logits, labels, costs = batch
    with jax.enable_x64(dtype == jnp.float64):
        found = losses.wkd_logits(
            *(jnp.asarray(z, dtype) for z in logits), jnp.asarray(labels), jnp.asarray(costs, dtype)
        )
        assert found.dtype == dtype
    expected = plain_wkd_logits(*batch, 30.0, 2.0, 0.05, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == jnp.float32 else 1e-12)


def test_between_two_classes_transport_is_total_variation_times_the_cost():
    """With three classes two remain: |p − q| c, as ε → 0."""
    student, teacher = jnp.array([[1.0, 0.3, -0.4]]), jnp.array([[0.5, -0.2, 0.9]])
    costs = jnp.array([[0.0, 0.5, 0.2], [0.5, 0.0, 0.7], [0.2, 0.7, 0.0]])
    loss = functools.partial(losses.wkd_logits, student, teacher, jnp.array([0]), costs)
    moved = loss(weight=1.0, epsilon=0.01, num_steps=200) - loss(weight=0.0)
    p, q = (softmax(np.asarray(z[0, 1:]) / 2)[0] for z in (student, teacher))
    np.testing.assert_allclose(moved, abs(p - q) * 0.7, rtol=1e-4)


def test_wkd_logits_where_the_plain_domain_underflows(batch):
    """exp(−C/ε) is zero there; the transport cost is the exact one, by linear programming."""
    import ot

    student, teacher, labels, costs = (np.asarray(part) for part in batch)
    loss = functools.partial(
        losses.wkd_logits,
        jnp.asarray(student[:1], jnp.float32),
        jnp.asarray(teacher[:1], jnp.float32),
        jnp.asarray(labels[:1]),
        jnp.asarray(costs, jnp.float32),
    )
    moved = loss(weight=1.0, epsilon=1e-3, num_steps=3000) - loss(weight=0.0)
    rest = np.delete(np.arange(5), labels[0])
    a, b = softmax(student[0, rest] / 2), softmax(teacher[0, rest] / 2)
    np.testing.assert_allclose(moved, ot.emd2(a, b, costs[np.ix_(rest, rest)]), atol=2e-3)


def test_a_block_of_samples_at_a_time_is_the_same(batch, monkeypatch):
    from divjax.core import pairwise

    *logits, labels, costs = (jnp.asarray(part) for part in batch)
    whole = losses.wkd_logits(*logits, labels, costs)
    monkeypatch.setattr(pairwise, "BLOCK_ENTRIES_CPU", 100)
    blocks = losses.wkd_logits(*logits, labels, costs)
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


def plain_sinkhorn_distillation(student, teacher, num_steps=20):
    p, q = softmax(student / 2), softmax(teacher / 2)
    costs = np.abs(p[:, None] - q).sum(-1)
    plan = np.exp(-costs / 0.1)
    for _ in range(num_steps):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return 0.001 * np.sum(plan * costs)


def test_sinkhorn_distillation_is_the_formula_with_the_papers_settings(batch):
    student, teacher = (jnp.asarray(z, jnp.float32) for z in batch[:2])
    expected = plain_sinkhorn_distillation(*batch[:2])
    np.testing.assert_allclose(losses.sinkhorn_distillation(student, teacher), expected, rtol=1e-5)


def test_columns_come_last(batch):
    """Which shows after one iteration."""
    student, teacher = (jnp.asarray(z, jnp.float32) for z in batch[:2])
    expected, other = (plain_sinkhorn_distillation(*pair, 1) for pair in (batch[:2], batch[1::-1]))
    assert abs(other / expected - 1) > 1e-3
    found = losses.sinkhorn_distillation(student, teacher, num_steps=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sinkhorn_distillation_of_two_samples_in_closed_form():
    """The doubly stochastic scaling of K has (1 + √(k₁₂k₂₁ / k₁₁k₂₂))⁻¹ on its diagonal."""
    student, teacher = jax.random.normal(KEY, (2, 2, 4))
    p, q = (softmax(np.asarray(z, np.float64)) for z in (student, teacher))
    costs = np.abs(p[:, None] - q).sum(-1)
    kernel = np.exp(-costs / 0.3)
    ratio = kernel[0, 1] * kernel[1, 0] / kernel[0, 0] / kernel[1, 1]
    same = 1 / (1 + np.sqrt(ratio))
    expected = same * np.trace(costs) + (1 - same) * (costs[0, 1] + costs[1, 0])
    found = losses.sinkhorn_distillation(
        student, teacher, weight=1.0, temperature=1.0, epsilon=0.3, num_steps=100
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("grid", [1, 2])
def test_diagonal_features_are_means_and_deviations(grid):
    student, teacher = np.random.default_rng(1).normal(size=(2, 3, 4, 6, 5))
    expected = []
    for image in range(3):
        for rows in np.split(np.arange(4), grid):
            for columns in np.split(np.arange(6), grid):
                s, t = (f[image][np.ix_(rows, columns)].reshape(-1, 5) for f in (student, teacher))
                sd_s, sd_t = (np.sqrt(f.var(0, ddof=1) + 1e-5) for f in (s, t))
                expected.append(
                    2 * np.sum((s.mean(0) - t.mean(0)) ** 2) + np.sum((sd_s - sd_t) ** 2)
                )
    found = losses.wkd_features(jnp.asarray(student), jnp.asarray(teacher), grid=grid)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_full_features_are_the_bures_distance():
    student, teacher = np.random.default_rng(2).normal(size=(2, 2, 30, 3))
    teacher = teacher @ np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.5]]) + 1
    expected = []
    for s, t in zip(student, teacher, strict=True):
        cov_s, cov_t = (np.cov(f.T) + 1e-5 * np.eye(3) for f in (s, t))
        root = scipy.linalg.sqrtm(cov_s)
        fidelity = np.trace(scipy.linalg.sqrtm(root @ cov_t @ root)).real
        bures = np.trace(cov_s) + np.trace(cov_t) - 2 * fidelity
        expected.append(4 * np.sum((s.mean(0) - t.mean(0)) ** 2) + bures)
    found = losses.wkd_features(
        jnp.asarray(student), jnp.asarray(teacher), covariance="full", mean_weight=4.0
    )
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)


def test_class_similarity_is_the_alignment_of_centred_gram_matrices():
    features = np.random.default_rng(3).normal(size=(4, 7, 6))
    centering = np.eye(6) - 1 / 6
    grams = [centering @ x.T @ x @ centering for x in features]
    expected = [
        [np.sum(k * l) / np.linalg.norm(k) / np.linalg.norm(l) for l in grams] for k in grams
    ]
    found = losses.class_similarity(jnp.asarray(features))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for scale in (1e38 / np.abs(features).max(), 1e-10, 1e-30):
        scaled = jnp.asarray(features * scale, jnp.float32)
        np.testing.assert_allclose(losses.class_similarity(scaled), expected, rtol=1e-4)
    constant = losses.class_similarity(jnp.asarray(features).at[0].set(1.0))
    np.testing.assert_array_equal(constant[0], [1, 0, 0, 0])
    missing = losses.class_similarity(jnp.asarray(features).at[0, 0, 0].set(jnp.nan))
    assert jnp.isnan(missing[0]).all()


def test_gradients_are_finite_where_student_and_teacher_agree(batch):
    student, _, labels, costs = (jnp.asarray(part) for part in batch)
    features = jnp.ones((2, 4, 4, 3))
    for gradient in (
        jax.grad(losses.wkd_logits)(student, student, labels, costs),
        jax.grad(losses.sinkhorn_distillation)(student, student),
        jax.grad(losses.wkd_features)(features, features),
        jax.grad(functools.partial(losses.wkd_features, covariance="full"))(features, features),
    ):
        assert jnp.isfinite(gradient).all()


def test_what_is_refused(batch):
    student, teacher, labels, costs = (jnp.asarray(part) for part in batch)
    images = jnp.zeros((2, 4, 4, 3))
    logits, sinkd = losses.wkd_logits, losses.sinkhorn_distillation
    for message, call in (
        ("teacher must have shape", lambda: logits(student, teacher[:2], labels, costs)),
        ("labels must have shape", lambda: logits(student, teacher, labels[:2], costs)),
        (
            "labels must be integers",
            lambda: logits(student, teacher, student[:, 0], costs),
        ),
        ("costs must have shape", lambda: logits(student, teacher, labels, costs[:3])),
        (
            "at least three classes",
            lambda: logits(student[:, :2], teacher[:, :2], labels, costs[:2, :2]),
        ),
        ("epsilon", lambda: logits(student, teacher, labels, costs, epsilon=0.0)),
        ("weight", lambda: sinkd(student, teacher, weight=-1.0)),
        ("temperature", lambda: sinkd(student, teacher, temperature=0.0)),
        (
            "num_steps",
            lambda: sinkd(student, teacher, num_steps=0),
        ),
        (
            "student must be a matrix",
            lambda: sinkd(labels, teacher),
        ),
        ("grid must divide", lambda: losses.wkd_features(images, images, grid=3)),
        ("covariance must be", lambda: losses.wkd_features(images, images, covariance="none")),
        ("two positions", lambda: losses.wkd_features(images[:, :1, :1], images[:, :1, :1])),
        ("student must have shape", lambda: losses.wkd_features(student, teacher)),
        ("similarity must have shape", lambda: losses.class_costs(costs[:3])),
        ("sharpness", lambda: losses.class_costs(costs, sharpness=0.0)),
        ("features must have shape", lambda: losses.class_similarity(costs)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_label_out_of_range_is_no_number(batch):
    student, teacher, labels, costs = (jnp.asarray(part) for part in batch)
    for label in (-1, 5):
        assert jnp.isnan(losses.wkd_logits(student, teacher, labels.at[0].set(label), costs))


NUMBERS = {"weight": 1.0, "temperature": 2.0, "epsilon": 0.1}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("loss", ["wkd_logits", "sinkhorn_distillation"])
def test_numbers_of_logit_losses_out_of_range(batch, loss, name):
    student, teacher, labels, costs = (jnp.asarray(part) for part in batch)
    rest = (labels, costs) if loss == "wkd_logits" else ()

    def value(number):
        numbers = {**NUMBERS, name: number}
        return getattr(losses, loss)(student, teacher, *rest, **numbers, num_steps=2)

    for wrong in (-1.0, np.nan):
        assert jnp.isnan(jax.jit(value)(wrong))
        with pytest.raises(ValueError, match=f"{name} must"):
            value(jnp.array(wrong))
    assert jnp.isfinite(jax.jit(value)(NUMBERS[name]))


def test_numbers_of_feature_losses_out_of_range():
    student, teacher = jax.random.normal(KEY, (2, 2, 5, 3))
    features = lambda **numbers: losses.wkd_features(student, teacher, **numbers)
    costs = lambda sharpness: losses.class_costs(jnp.eye(3), sharpness=sharpness)
    for name, loss in (
        ("mean_weight", lambda number: features(mean_weight=number)),
        ("floor", lambda number: features(floor=number)),
        ("sharpness", costs),
    ):
        assert jnp.isnan(jax.jit(loss)(-1.0)).any()
        with pytest.raises(ValueError, match=f"{name} must"):
            loss(jnp.array(-1.0))


def test_logits_that_are_no_numbers_have_no_loss(batch):
    student, teacher, labels, costs = (jnp.asarray(part) for part in batch)
    for broken in (student.at[2, 1].set(jnp.nan), student.at[2, 1].set(jnp.inf)):
        assert jnp.isnan(losses.sinkhorn_distillation(broken, teacher))
        assert jnp.isnan(losses.sinkhorn_distillation(teacher, broken))
        assert jnp.isnan(losses.wkd_logits(broken, teacher, labels, costs))


def test_a_wider_teacher_and_wider_numbers():
    """Losses follow the wider of student and teacher; hyper-parameters and costs change nothing."""
    with jax.enable_x64(True):
        student = jax.random.normal(KEY, (4, 5), jnp.float32)
        teacher = jax.random.normal(jax.random.key(1), (4, 5), jnp.float64)
        labels, costs = jnp.arange(4), 1 - jnp.eye(5)
        numbers = {name: jnp.array(number, jnp.float64) for name, number in NUMBERS.items()}
        wkd = lambda teacher: losses.wkd_logits(student, teacher, labels, costs, **numbers)
        sinkd = lambda teacher: losses.sinkhorn_distillation(student, teacher, **numbers)
        images = lambda z: jnp.broadcast_to(z[:, :, None], (4, 5, 3))
        features = lambda teacher: losses.wkd_features(
            images(student), images(teacher), floor=numbers["epsilon"]
        )
        for loss in (wkd, sinkd, features):
            assert loss(teacher).dtype == jnp.float64
            narrow = loss(teacher.astype(jnp.float32))
            assert narrow.dtype == jnp.float32
            np.testing.assert_allclose(narrow, loss(teacher), rtol=1e-5)


def test_lists_and_integers_are_logits(batch):
    student, teacher = (np.round(4 * z).astype(int) for z in batch[:2])
    expected = losses.sinkhorn_distillation(
        jnp.asarray(student, float), jnp.asarray(teacher, float)
    )
    assert losses.sinkhorn_distillation(student.tolist(), teacher) == expected


def test_features_at_an_offset():
    """NumPy's formula in double precision, of the numbers as float32 rounds them."""
    rng = np.random.default_rng(6)
    student, teacher = (rng.normal(size=(2, 2, 30, 3)) + 2.0**12).astype(np.float32)
    expected = [
        2 * np.sum((s.mean(0) - t.mean(0)) ** 2)
        + np.sum((np.sqrt(s.var(0, ddof=1) + 1e-5) - np.sqrt(t.var(0, ddof=1) + 1e-5)) ** 2)
        for s, t in zip(student.astype(float), teacher.astype(float), strict=True)
    ]
    found = losses.wkd_features(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e38])
def test_the_similarity_of_classes_does_not_depend_on_their_units(scale):
    features = np.random.default_rng(3).uniform(-1, 1, size=(3, 4, 6)).astype(np.float32)
    expected = losses.class_similarity(jnp.asarray(features))
    found = losses.class_similarity(jnp.asarray(features * np.float32(scale)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    constant = losses.class_similarity(jnp.asarray(features).at[0].set(0.1 * scale))
    np.testing.assert_array_equal(constant[0], [1, 0, 0])


@pytest.mark.parametrize("epsilon", [1e-12, 1e-8, 1e-4, 0.1])
def test_transport_that_rounding_hides_has_no_loss(epsilon):
    """A loss that single precision gives is that of double precision to half of its digits."""
    rng = np.random.default_rng(1)
    student, teacher = 3 * rng.normal(size=(2, 8, 5))
    costs, labels = np.abs(rng.normal(size=(5, 5))), np.arange(8) % 5
    with jax.enable_x64(True):
        single, double = (
            np.array(
                [
                    losses.sinkhorn_distillation(
                        jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), epsilon=epsilon
                    ),
                    losses.wkd_logits(
                        jnp.asarray(student, dtype),
                        jnp.asarray(teacher, dtype),
                        labels,
                        jnp.asarray(costs, dtype),
                        epsilon=epsilon,
                    ),
                ]
            )
            for dtype in (jnp.float32, jnp.float64)
        )
    known = ~np.isnan(single)
    np.testing.assert_allclose(single[known], double[known], rtol=2e-3)
    assert known.all() == (epsilon > 1e-6)
