"""The frame: who sees whom, weights and masks, calibration, and transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from divjax import fdiv
from divjax.core.pytrees import pytree
from divjax.ratio import ClassifierRatio, cross_fitting, members
from divjax.ratio import heads as h
from divjax.ratio.calibration import CALIBRATION_PRIOR


def gaussians(seed, n, m, d=1, shift=1.0, dtype=jnp.float32):
    key_p, key_q = jax.random.split(jax.random.key(seed))
    p = jax.random.normal(key_p, (n, d), dtype)
    return p.at[:, 0].add(shift), jax.random.normal(key_q, (m, d), dtype)


@pytree
class Spy:
    """A head that writes down what it was given."""

    def fit(self, key, fold):
        return fold

    def __call__(self, params, z):
        return 0 * z[:, 0]


@pytree
class Memory:
    """+9 for rows of p that it was given, −9 for those of q, 0 for strangers."""

    def fit(self, key, fold):
        return [
            jnp.concatenate(rows) for rows in zip(fold.train[:2], fold.validation[:2], strict=True)
        ]

    def __call__(self, params, z):
        known_p, known_q = ((z[:, None] == seen).all(axis=2).any(axis=1) for seen in params)
        return 9.0 * known_p - 9.0 * known_q


@pytree
class Stretched:
    """The linear head with its log ratio multiplied and moved."""

    slope: float | jax.Array = 3.0
    intercept: float | jax.Array = 0.0

    def fit(self, key, fold):
        return h.Linear(0.5).fit(key, fold)

    def __call__(self, params, z):
        return self.intercept + self.slope * h.Linear(0.5)(params, z)


def parts_played(fit, sample, name):
    """The weights with which each row of a sample trained and validated, by `Spy`."""

    def of(rows):
        x, weights = map(np.asarray, (rows.x, rows.a) if name == "p" else (rows.y, rows.b))
        of_member = lambda standardizer: standardizer.squash(jnp.asarray(sample))
        inputs = np.asarray(jax.vmap(jax.vmap(of_member))(fit.members.standardizer))
        distances = np.linalg.norm(x[..., :, None, :] - inputs[..., None, :, :], axis=-1)
        assert (distances.min(axis=-1)[weights > 0] < 1e-4).all()
        played = np.zeros((*weights.shape[:2], len(sample)))
        repeat, fold, _ = np.indices(weights.shape)
        np.add.at(played, (repeat, fold, distances.argmin(axis=-1)), weights)
        return played

    return of(fit.members.params.train), of(fit.members.params.validation)


linear = ClassifierRatio(head="linear", num_folds=3)
RIDGES = jnp.array([0.5, 5.0, 50.0])


@jax.jit
def fit_weighted(key, p, q, a, b, ridges):
    method = ClassifierRatio(head=h.Linear(ridges), num_folds=3)
    return method.fit(key, p, q, a=a, b=b)


def fit_linear(key, p, q, a=None, b=None, ridges=RIDGES):
    """One program for each shape, with weights or without."""
    a, b = (jnp.ones(len(x)) if w is None else w for x, w in ((p, a), (q, b)))
    return fit_weighted(key, p, q, a, b, ridges)


@jax.jit
@jax.value_and_grad
def kl_gradient(p, key, q):
    return fit_linear(key, p, q).kl().value


def spy(num_folds, **options):
    options = dict(num_repeats=2, calibration="none") | options
    return ClassifierRatio(head=Spy(), num_folds=num_folds, **options)


@pytest.mark.parametrize(("n", "m", "num_folds"), [(23, 40, 5), (10, 11, 2)])
def test_folds_partition_the_rows_and_are_balanced(n, m, num_folds):
    p, q = gaussians(0, n, m, d=2)
    fit = spy(num_folds).fit(jax.random.key(1), p, q)
    for sample, name, held_out in ((p, "p", fit.held_out_p), (q, "q", fit.held_out_q)):
        train, validation = parts_played(fit, sample, name)
        size = len(sample)
        assert train.shape == (2, num_folds, size)
        np.testing.assert_allclose(train.sum(axis=2), 1, rtol=1e-5)
        np.testing.assert_allclose(validation.sum(axis=2), 1, rtol=1e-5)
        assert ((train > 0) & (validation > 0)).sum() == 0
        tests = np.asarray((train == 0) & (validation == 0))
        # Each row is in one fold of each repeat, and no fold has two rows more than another.
        assert (tests.sum(axis=1) == 1).all()
        assert np.ptp(tests.sum(axis=2)) <= 1
        np.testing.assert_array_equal(tests[0].argmax(axis=0), held_out.fold)
        assert (tests[0] != tests[1]).any()
        # A fifth of the rest validates, up to a row.
        counts = np.asarray(validation > 0).sum(axis=2)
        assert (np.abs(counts - 0.2 * (size - tests.sum(axis=2))) <= 1).all()


@pytest.mark.parametrize("share", [1e-4, pytest.param(0.9999, marks=pytest.mark.exhaustive)])
def test_every_part_has_a_row(share):
    p, q = gaussians(1, 10, 11, d=2)
    fit = spy(2, validation_share=share).fit(jax.random.key(1), p, q)
    for sample, name in ((p, "p"), (q, "q")):
        train, validation = parts_played(fit, sample, name)
        few = validation if share < 0.5 else train
        assert ((few > 0).sum(axis=2) == 1).all()


def test_out_of_fold_nothing_is_remembered():
    p, q = gaussians(2, 30, 30)
    method = ClassifierRatio(head=Memory(), num_folds=3, calibration="none")
    fit = method.fit(jax.random.key(1), p, q)
    assert (fit.log_ratio_p == 0).all()
    assert (fit.log_ratio_q == 0).all()
    assert fit.kl().value == 0
    # The mean of all members has two in three that know a row; and the gap tells.
    np.testing.assert_allclose(fit.log_ratio(p), 6, rtol=1e-6)
    np.testing.assert_allclose(fit.kl().diagnostics.generalization_gap, np.log(2), rtol=1e-3)


def test_standardised_by_training_rows_alone():
    """Of members that test or validate the changed row, those that do not train on it are blind."""
    p, q = map(np.asarray, gaussians(3, 23, 40, d=2))
    changed = p.copy()
    changed[4] = 1.5, -1.5
    fit = spy(5).fit(jax.random.key(1), p, q)
    before, after = (
        jax.tree.map(np.asarray, members)
        for members in (fit.members, spy(5).fit(jax.random.key(1), changed, q).members)
    )
    train_p, train_q = (parts_played(fit, x, name)[0] for x, name in ((p, "p"), (q, "q")))
    trains = train_p[0, :, 4] > 0
    assert 0 < trains.sum() < 5
    np.testing.assert_array_equal(before.mean[0][~trains], after.mean[0][~trains])
    np.testing.assert_array_equal(before.scale[0][~trains], after.scale[0][~trains])
    assert (np.abs(after.mean[0][trains] - before.mean[0][trains]) > 1e-3).all()
    # Both samples weigh the same, whatever their sizes.
    x, w = np.concatenate([p, q]), np.concatenate([train_p, train_q], 2)
    for fold in range(5):
        mean = np.average(x, axis=0, weights=w[0, fold])
        scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w[0, fold]))
        np.testing.assert_allclose(before.mean[0, fold], mean, atol=1e-5)
        np.testing.assert_allclose(before.scale[0, fold], scale, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 2.0, 7.0, 1e6])
def test_a_constant_column_says_nothing(value):
    """Though it is no sum of rounded shares of itself."""
    p, q = (jnp.concatenate([x, jnp.full_like(x, value)], 1) for x in gaussians(3, 3000, 1500))
    fit = fit_linear(jax.random.key(1), p, q)
    assert (fit.members.scale[..., 1] == 1).all()
    moved = fit.log_ratio(jnp.array([[0.0, value], [0.0, value + 1.0]]))
    assert moved[0] == moved[1]
    _, gradient = kl_gradient(p, jax.random.key(1), q)
    assert (gradient[:, 1] == 0).all()
    assert abs(gradient[:, 0].sum() - 1) < 0.3


def test_traced_weights_that_are_negative_or_too_few_are_flagged():
    p, q = gaussians(3, 60, 60)
    run = lambda weights: fit_linear(jax.random.key(1), p, q, weights).kl()
    for weights in (jnp.ones(60).at[4].set(-1), 1.0 * (jnp.arange(60) < 5)):
        kl = run(weights)
        assert jnp.isnan(kl.value)
        assert not kl.diagnostics.finite
    assert run(1.0 * (jnp.arange(60) < 6)).diagnostics.finite  # two rows for each of three folds


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e18, 1e30])
def test_units_do_not_matter(scale):
    p, q = gaussians(4, 3000, 1500, d=2)
    key = jax.random.key(1)
    expected = fit_linear(key, p, q)
    scaled = fit_linear(key, p * jnp.float32(scale), q * jnp.float32(scale))
    np.testing.assert_allclose(scaled.log_ratio_p, expected.log_ratio_p, atol=5e-3)
    moved = fit_linear(key, p + 1000, q + 1000)
    np.testing.assert_allclose(moved.log_ratio_q, expected.log_ratio_q, atol=5e-3)


@pytest.mark.exhaustive
def test_rows_without_weight_may_hold_anything():
    p, q = gaussians(5, 60, 60)
    used = jnp.asarray(np.arange(60) % 3 > 0, jnp.float32)
    key = jax.random.key(1)
    zeros, nans = (
        fit_linear(key, jnp.where(used[:, None] > 0, p, filler), q, used, None)
        for filler in (0.0, jnp.nan)
    )
    np.testing.assert_array_equal(zeros.log_ratio_p, nans.log_ratio_p)
    assert (nans.held_out_p.fold[::3] == -1).all()
    assert np.ptp(np.bincount(np.asarray(nans.held_out_p.fold)[np.asarray(used) > 0])) <= 1
    assert nans.kl().diagnostics.finite
    # In distribution it is the sample without them.
    kept = p[np.asarray(used) > 0]
    keys = jax.random.split(jax.random.key(2), 60)
    estimate = lambda fit: np.stack([fit.kl().value, fit.kl().std_error])
    padded = np.stack([estimate(fit_linear(k, p, q, used, None)) for k in keys])
    cut = np.stack([estimate(fit_linear(k, kept, q)) for k in keys])
    error = np.sqrt((padded.var(axis=0) + cut.var(axis=0)) / 60)
    assert (np.abs(padded.mean(axis=0) - cut.mean(axis=0)) < 4 * error).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_weights_have_any_scale(scale):
    p, q = gaussians(6, 60, 60)
    a = jnp.linspace(0.1, 1, 60)
    key = jax.random.key(1)
    expected, scaled = (
        fit_linear(key, p, q, a * s, a[::-1] * s) for s in (1.0, jnp.float32(scale))
    )
    np.testing.assert_allclose(scaled.log_ratio_p, expected.log_ratio_p, atol=5e-3)
    np.testing.assert_allclose(scaled.weights_p.sum(), 1, rtol=1e-5)


def test_weights_change_the_distribution():
    """Rows of N(0, I) weighted by the density ratio to N((½, 0), I) are a sample of that: KL ⅛."""
    p, q = gaussians(7, 3000, 1500, d=2, shift=0.0)
    weights = jnp.exp(0.5 * p[:, 0])
    estimate = fit_linear(jax.random.key(1), p, q, weights, None).kl()
    assert abs(estimate.value - 1 / 8) < 3 * estimate.std_error
    assert estimate.std_error < 0.03


def test_no_prior_shift_is_left():
    """Twice as many rows of p as of q: the log ratio's intercept has no log 2 = 0.7 in it."""
    p, q = gaussians(8, 3000, 1500, d=2)
    fit = fit_linear(jax.random.key(1), p, q)
    at_half = float(fit.log_ratio(jnp.array([[0.5, 0.0]]))[0])
    assert abs(at_half) < 4 / np.sqrt(1500)
    assert abs(fit.kl().diagnostics.mean_ratio - 1) < 0.3


@pytest.mark.parametrize(("slope", "intercept"), [(3.0, 0.7), (100.0, 0.0)])
def test_calibration_repairs_a_head_that_is_sure_of_itself(slope, intercept):
    p, q = gaussians(9, 1500, 1500)
    key = jax.random.key(1)
    stretched = lambda kind, slope=slope, intercept=intercept: ClassifierRatio(
        head=Stretched(jnp.asarray(slope), jnp.asarray(intercept)), calibration=kind, num_folds=2
    ).fit(key, p, q)
    raw, platt, plain = stretched("none"), stretched("platt"), stretched("none", 1.0, 0.0)
    np.testing.assert_allclose(raw.log_ratio_p, intercept + slope * plain.log_ratio_p, atol=2e-3)
    distance = lambda fit: jnp.sqrt(jnp.mean((fit.log_ratio_p - plain.log_ratio_p) ** 2))
    # Intercept and slope have errors of 2/√750 each, and the prior is worth some rows.
    assert distance(platt) < 4 * 2 / np.sqrt(750)
    assert distance(raw) > 4 * distance(platt)
    # What is held out for certificates is not calibrated, and in `log_ratio` all members are.
    np.testing.assert_allclose(raw.held_out_p.log_ratio, platt.held_out_p.log_ratio, rtol=1e-6)
    x = p[:50]
    assert jnp.abs(platt.log_ratio(x) - plain.log_ratio(x)).max() < 0.4


@pytest.mark.exhaustive
def test_calibration_by_temperature_moves_no_intercept():
    p, q = gaussians(9, 1500, 1500)
    head = Stretched(jnp.asarray(3.0), jnp.asarray(0.7))
    method = ClassifierRatio(head=head, calibration="temperature", num_folds=2)
    calibration = method.fit(jax.random.key(1), p, q).members.calibration
    assert (calibration[..., 0] == 0).all()
    assert (calibration[..., 1] < 0.5).all()


def test_calibration_is_penalised_logistic_regression_of_the_other_folds():
    """Intercept 0 and slope 1 have a prior of a few rows; scipy finds the same optimum."""
    with jax.enable_x64(True):
        p, q = gaussians(10, 60, 50, dtype=jnp.float64)
        fit = ClassifierRatio(head=Stretched(jnp.asarray(4.0), jnp.asarray(1.0)), num_folds=2).fit(
            jax.random.key(1), p, q
        )
        for fold in range(2):
            u_p, u_q = (
                np.asarray(held.log_ratio)[np.asarray(held.fold) != fold]
                for held in (fit.held_out_p, fit.held_out_q)
            )
            prior = CALIBRATION_PRIOR / (len(u_p) + len(u_q))

            def objective(c, u_p=u_p, u_q=u_q, prior=prior):
                loss_p = np.logaddexp(0, -(c[0] + c[1] * u_p)).mean()
                loss_q = np.logaddexp(0, c[0] + c[1] * u_q).mean()
                return (loss_p + loss_q + prior * (c[0] ** 2 + (c[1] - 1) ** 2)) / 2

            best = scipy.optimize.minimize(objective, [0.0, 1.0], tol=1e-14).x
            np.testing.assert_allclose(fit.members.calibration[0, fold], best, atol=1e-5)
            own = np.asarray(fit.held_out_p.fold) == fold
            expected = best[0] + best[1] * np.asarray(fit.held_out_p.log_ratio)[own]
            np.testing.assert_allclose(np.asarray(fit.log_ratio_p)[own], expected, atol=1e-4)


def test_repeats_average_out_of_fold_log_ratios():
    p, q = gaussians(11, 40, 40)
    fit = ClassifierRatio(head="linear", num_folds=2, num_repeats=3, calibration="none").fit(
        jax.random.key(1), p, q
    )
    linear = h.Linear()
    values = np.zeros((3, 2, 40))
    for repeat in range(3):
        for fold in range(2):
            member = jax.tree.map(lambda leaf, i=repeat, j=fold: leaf[i, j], fit.members)
            values[repeat, fold] = linear(member.params, (p - member.mean) / member.scale)
    candidates = values.transpose(2, 0, 1)
    # Each row's number is the mean over repeats of one of both members.
    options = np.stack(
        [candidates[:, [0, 1, 2], list(c)].mean(axis=1) for c in np.ndindex(2, 2, 2)], axis=1
    )
    nearest = np.abs(options - np.asarray(fit.log_ratio_p)[:, None]).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=1e-5)


def test_reproducible_and_random_in_the_key():
    p, q = gaussians(12, 60, 60)
    first, again, other = (fit_linear(jax.random.key(k), p, q).kl().value for k in (1, 1, 2))
    assert first == again
    assert first != other


def test_row_order_does_not_matter_in_distribution():
    p, q = gaussians(13, 60, 60)
    order = jnp.argsort(p[:, 0])
    keys = jax.random.split(jax.random.key(2), 60)
    a, b = (np.stack([fit_linear(k, x, q).kl().value for k in keys]) for x in (p, p[order]))
    assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 60)
    assert a.var() > 0


def test_vmap_over_keys_samples_and_leaves_is_a_loop():
    """The last two cases differ in the ridges alone."""
    keys = jax.random.split(jax.random.key(1), 2)[jnp.array([0, 1, 1])]
    samples = [gaussians(seed, 40, 60) for seed in (14, 15, 15)]
    p, q = map(jnp.stack, zip(*samples, strict=True))
    ridges = jnp.array([[0.1, 1.0, 2.0], [0.1, 1.0, 2.0], [30.0, 40.0, 50.0]])
    one = lambda k, p, q, ridges: fit_linear(k, p, q, ridges=ridges).kl().value
    values = jax.jit(jax.vmap(one))(keys, p, q, ridges)
    single = [one(*case) for case in zip(keys, p, q, ridges, strict=True)]
    np.testing.assert_allclose(values, single, rtol=1e-4, atol=1e-5)
    assert np.abs(np.diff(single)).min() > 1e-4


@pytest.mark.exhaustive
def test_members_in_batches_are_the_same(monkeypatch):
    p, q = gaussians(16, 33, 34)
    whole = jax.jit(lambda: linear.fit(jax.random.key(1), p, q))()
    jax.clear_caches()
    monkeypatch.setattr(cross_fitting, "_BUDGET", 1)
    single = jax.jit(lambda: linear.fit(jax.random.key(1), p, q))()
    # Newton's method stops where rounding says so.
    np.testing.assert_allclose(single.log_ratio_p, whole.log_ratio_p, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_the_samples(dtype):
    with jax.enable_x64(True):
        p, q = gaussians(17, 40, 40, dtype=dtype)

        def everything(key, p, q):
            fit = linear.fit(key, p, q)
            return fit, fit.kl(base=2.0), fit.certified_js()

        found = jax.eval_shape(everything, jax.random.key(1), p, q)
        floats = [
            leaf for leaf in jax.tree.leaves(found) if not leaf.weak_type and leaf.dtype.kind == "f"
        ]
        wrong = {leaf.dtype for leaf in floats} - {jnp.dtype(dtype)}
        assert not wrong
        assert found[2].dtype == dtype


def pack_of(fit):
    return fit.members.mean.shape[-1]


packed = ClassifierRatio(head="linear", pack_size=2)


@pytest.mark.exhaustive
def test_packs_of_two_double_kl_and_square_the_affinity():
    """KL(p²‖q²) = 2 KL = 1, 1 − H²(p², q²) = (1 − H²)² = e^{−1/4}, for unit Gaussians one apart."""
    p, q = gaussians(18, 4001, 4000)
    fit = packed.fit(jax.random.key(1), p, q)
    assert fit.log_ratio_p.shape == (2000,)
    assert pack_of(fit) == 2
    kl = fit.kl()
    assert abs(kl.value - 1) < 3 * kl.std_error
    hellinger = fit.divergence(fdiv.SquaredHellinger())
    assert abs(1 - hellinger.value - np.exp(-1 / 4)) < 3 * hellinger.std_error
    x = jnp.array([[[0.5], [0.5]], [[1.5], [0.5]]])
    np.testing.assert_allclose(fit.log_ratio(x), [0, 1], atol=0.15)
    with pytest.raises(ValueError, match="x"):
        fit.log_ratio(x[:, 0])


def test_packs_leave_rows_without_weight_aside():
    p, q = gaussians(19, 4001, 4000)
    used = np.arange(4001) % 2
    filled = np.where(used[:, None] > 0, p, np.nan)
    fit = packed.fit(jax.random.key(1), filled, q, a=used)
    assert (fit.weights_p > 0).sum() == 1000
    assert fit.kl().diagnostics.finite


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.exhaustive)]
)
def test_counts_of_duplicates_find_a_lattice(dtype):
    """A Gaussian rounded to tenths against itself: JS is a bit, and nothing else can see it."""
    with jax.enable_x64(dtype == jnp.float64):
        p, q = gaussians(20, 3000, 1500, d=2, shift=0.0, dtype=dtype)
        p = jnp.round(p, 1)
        key = jax.random.key(1)
        blind = fit_linear(key, p, q)
        seeing = ClassifierRatio(head="linear", num_folds=3, count_duplicates=True).fit(key, p, q)
        assert blind.js(base=2).value < 0.1
        assert seeing.js(base=2).value > 0.9
        assert blind.ties.lattice[0] > 0.9
        x = jnp.array([[0.1, 0.1], [0.1234567, 0.7654321]], dtype)
        at_lattice, off = seeing.log_ratio(x)
        assert at_lattice > 1
        assert off < -1


def test_counts_of_ties_are_those_of_the_training_rows():
    p, q = (jnp.round(x) for x in gaussians(21, 40, 30))
    fit = spy(2, num_repeats=1, count_duplicates=True).fit(jax.random.key(1), p, q)
    member = jax.tree.map(lambda leaf: np.asarray(leaf)[0, 0], fit.members)

    def seen(part):
        """Values and features log(1 + ties) of the rows that count."""
        z, weights = np.concatenate(part[:2]), np.concatenate(part.weights)
        return ((z * member.scale + member.mean)[weights > 0]).T

    (trained, train_ties), (validated, ties) = map(seen, member.params)
    count = lambda values: np.array([np.sum(np.abs(trained - value) < 0.1) for value in values])
    assert len(trained) > len(validated) > 0
    np.testing.assert_allclose(train_ties, np.log1p(count(trained) - 1), atol=1e-5)
    np.testing.assert_allclose(ties, np.log1p(count(validated)), atol=1e-5)
    outside = members._features(jnp.asarray(member.values), jnp.array([[100.0]]))
    assert outside[0, 1] == 0
