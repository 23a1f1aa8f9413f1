"""Ratios of scores from outside, and of classifiers with scikit-learn's interface."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from divjax import inference, ratio
from divjax.core.types import Status
from divjax.ratio.plug_in_estimates import js_and_kl

KEY = jax.random.key(0)
SHIFT = 1.0
TRUE_KL = SHIFT**2 / 2


def js_of_shift(shift):
    """JS of N(shift, 1) and N(0, 1) in nats, by quadrature."""
    p, q = stats.norm(shift).pdf, stats.norm(0).pdf
    half = lambda z: sum(f(z) * np.log(2 * f(z) / (p(z) + q(z))) / 2 for f in (p, q))
    return integrate.quad(half, -12, 12)[0]


def true_scores(n, m, seed=0, shift=SHIFT):
    """The true log ratio at rows of N(shift, 1) and of N(0, 1)."""
    rng = np.random.default_rng(seed)
    u = lambda z: shift * z - shift**2 / 2
    return u(rng.normal(size=n) + shift), u(rng.normal(size=m))


class Constant:
    """A classifier that knows nothing, of any rows."""

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return np.full((len(X), 2), 0.5)


def folds(n, m, num_folds=5):
    return np.arange(n) % num_folds, np.arange(m) % num_folds


class TestFromScores:
    def test_values_are_the_plug_in_means_of_the_scores(self):
        x, y = true_scores(300, 200)
        fit = ratio.from_scores(KEY, x, y, folds(300, 200), calibration="none")
        np.testing.assert_allclose(fit.log_ratio_p, x, rtol=1e-6)
        assert float(fit.kl()) == pytest.approx(x.mean(), rel=1e-5)
        assert float(fit.reverse_kl()) == pytest.approx(-y.mean(), rel=1e-5)
        js = np.log(2) - (np.logaddexp(0, -x).mean() + np.logaddexp(0, y).mean()) / 2
        assert float(fit.js()) == pytest.approx(js, rel=1e-5)
        auc = stats.mannwhitneyu(x, y).statistic / (300 * 200)
        assert float(fit.auc()) == pytest.approx(auc, rel=1e-5)

    def test_js_and_kl_together_are_those_of_each_alone(self):
        x, y = true_scores(300, 200)
        fit = ratio.from_scores(KEY, x, y, folds(300, 200), calibration="none")
        js, kl, certified = jax.jit(lambda fit: js_and_kl(fit, 0.95, js_base=2))(fit.scores())
        alone = fit.js(base=2), fit.kl(), fit.certified_js(base=2)
        for found, expected in zip((js, kl), alone[:2], strict=True):
            numbers = lambda estimate: (estimate.value, estimate.std_error, *estimate.interval)
            np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-5)
        assert float(certified) == pytest.approx(float(alone[2]), rel=1e-5)
        assert certified > 0.01

    def test_the_order_of_rows_and_the_labels_of_folds_do_not_matter(self):
        x, y = true_scores(200, 200)
        fx, fy = folds(200, 200)
        order = np.random.default_rng(1).permutation(200)
        names = np.array(list("edcba"))
        one = ratio.from_scores(KEY, x, y, (fx, fy))
        other = ratio.from_scores(KEY, x[order], y, (names[fx[order]], names[fy]))
        assert float(one.kl()) == pytest.approx(float(other.kl()), rel=1e-5)

    def test_intervals_cover_the_truth(self):
        js = js_of_shift(SHIFT)
        samples = [true_scores(256, 256, seed) for seed in range(100)]
        x, y = (jnp.asarray(np.stack(part)) for part in zip(*samples, strict=True))

        @jax.jit
        @jax.vmap
        def intervals(x, y):
            fit = ratio.from_scores(KEY, x, y, folds(256, 256))
            return fit.kl().interval, fit.js().interval

        for interval, truth in zip(intervals(x, y), (TRUE_KL, js), strict=True):
            covered = np.mean((interval.lower <= truth) & (truth <= interval.upper))
            # 95 % less three standard errors of 100 repetitions.
            assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 100)

    def test_certificates_are_bounds_and_reach_something(self):
        """At JS 0 a positive bound in at most one of twenty; far apart a good part of the truth."""

        @jax.jit
        @jax.vmap
        def bounds(key, x, y):
            return ratio.from_scores(key, x, y, folds(256, 256)).certified_js()

        keys = jax.random.split(KEY, 200)
        noise = jax.random.normal(jax.random.key(1), (2, 200, 256))
        positive = np.sum(bounds(keys, *noise) > 0)
        assert positive <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
        apart = [true_scores(256, 256, seed, 3.0) for seed in range(200)]
        found = bounds(keys, *(jnp.asarray(np.stack(part)) for part in zip(*apart, strict=True)))
        js = js_of_shift(3.0)
        assert np.sum(found > js) <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
        assert np.median(found) > js / 5

    def test_the_two_sample_test_is_that_of_one_fold(self):
        x, y = true_scores(300, 300, shift=0.5)
        fit = ratio.from_scores(KEY, x, y, folds(300, 300), calibration="none")
        found = fit.two_sample_test(KEY, num_permutations=4999).p_value
        own = inference.score_permutation_test(KEY, x[::5], y[::5], "auc", num_permutations=4999)
        assert float(found) == pytest.approx(float(own.p_value), abs=0.02)

    def test_calibration_mends_scores_of_another_scale(self):
        x, y = true_scores(2000, 2000)
        fit = ratio.from_scores(KEY, 3 * x + 1, 3 * y + 1, folds(2000, 2000))
        assert abs(float(fit.kl()) - TRUE_KL) < 3 * float(fit.kl().std_error)
        raw = ratio.from_scores(KEY, 3 * x + 1, 3 * y + 1, folds(2000, 2000), calibration="none")
        assert float(raw.kl()) > 2

    def test_a_low_training_loss_widens_what_it_must(self):
        x, y = true_scores(300, 300)
        plain = ratio.from_scores(KEY, x, y, folds(300, 300))
        overfitted = ratio.from_scores(KEY, x, y, folds(300, 300), train_loss=np.full(5, 0.1))
        assert float(plain.diagnostics.generalization_gap) == 0
        gap = float(overfitted.diagnostics.generalization_gap)
        losses = (np.logaddexp(0, -x).mean() + np.logaddexp(0, y).mean()) / 2
        assert gap == pytest.approx(losses - 0.1, abs=0.01)
        assert float(overfitted.kl().std_error) > float(plain.kl().std_error)
        # An overfitted score can only make Jensen–Shannon too low.
        assert float(overfitted.js().interval.lower) == float(plain.js().interval.lower)
        assert float(overfitted.js().interval.upper) > float(plain.js().interval.upper)

    @pytest.mark.exhaustive
    def test_weights_are_multiplicities_and_rows_of_weight_zero_anything(self):
        x, y = true_scores(100, 100)
        fx, fy = folds(100, 100)
        counts = np.random.default_rng(0).integers(1, 4, 100)
        weighted = ratio.from_scores(KEY, x, y, (fx, fy), a=counts, calibration="none")
        repeated = ratio.from_scores(
            KEY, np.repeat(x, counts), y, (np.repeat(fx, counts), fy), calibration="none"
        )
        assert float(weighted.kl()) == pytest.approx(float(repeated.kl()), rel=1e-5)
        assert float(weighted.js()) == pytest.approx(float(repeated.js()), rel=1e-5)
        padded = ratio.from_scores(
            KEY, np.append(x, np.nan), y, (np.append(fx, 0), fy), a=np.append(np.ones(100), 0)
        )
        plain = ratio.from_scores(KEY, x, y, (fx, fy))
        assert float(padded.kl()) == pytest.approx(float(plain.kl()), rel=1e-5)

    def test_a_nan_is_flagged_everywhere(self):
        x, y = true_scores(50, 50)
        x[3] = np.nan
        fit = ratio.from_scores(KEY, x, y, folds(50, 50))
        assert math.isnan(float(fit.kl()))
        assert math.isnan(float(fit.js()))
        assert not bool(fit.diagnostics.finite)
        # One term of the mean is −∞, which no certificate replaces.
        x, y = true_scores(50, 50, shift=4.0)
        x[3] = -np.inf
        fit = ratio.from_scores(KEY, x, y, folds(50, 50))
        assert float(fit.certified_kl()) > 0
        for estimate in (fit.kl(), fit.js()):
            assert float(estimate) == -math.inf
            assert np.isnan(estimate.interval).all()
        assert not bool(fit.diagnostics.finite)

    def test_rounding_of_scores_without_an_order_is_accepted(self):
        """A forest's votes summed in another order differ by float64's rounding, and are equal."""
        x, y = (0.1 * np.round(10 * part) for part in true_scores(50, 50))
        noisy = x * (1 + 2.0**-52), y
        for pair in (noisy, (x + 20, y + 20), (np.full(50, np.inf), y), (np.full(50, np.nan), y)):
            ratio.from_scores(KEY, *pair, folds(50, 50))

    def test_traced_scores(self):
        """Under jit, with folds that are known: the same numbers, and derivatives in scores."""
        x, y = map(jnp.asarray, true_scores(60, 60))
        of = lambda x: ratio.from_scores(KEY, x, y, folds(60, 60), calibration="none").kl().value
        assert float(jax.jit(of)(x)) == pytest.approx(float(of(x)), rel=1e-5)
        # The variational form: of KL, each score of p counts 1/n.
        np.testing.assert_allclose(jax.grad(of)(x), np.full(60, 1 / 60), rtol=1e-4)
        bad = lambda a: ratio.from_scores(KEY, x, y, folds(60, 60), a).kl().value
        assert jnp.isnan(jax.jit(bad)(jnp.ones(60).at[0].set(-1)))
        with pytest.raises(ValueError, match="folds must be known when a program is compiled"):
            jax.jit(lambda f: ratio.from_scores(KEY, x, y, (f, f)).kl().value)(jnp.arange(60) % 5)

    def test_there_is_no_model(self):
        fit = ratio.from_scores(KEY, *true_scores(50, 50), folds(50, 50))
        with pytest.raises(ValueError, match="fit is of scores alone"):
            fit.log_ratio(jnp.ones((2, 1)))
        assert "scores alone" in repr(fit)
        assert len(repr(fit).splitlines()) <= 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.ones((50, 2))}, "x must have shape"),
            ({"folds": (np.zeros(50, int), np.zeros(50, int))}, "at least two"),
            ({"folds": (np.arange(50) % 5, np.arange(50))}, "two rows of x"),
            ({"folds": (np.arange(49), np.arange(50))}, r"folds must be two vectors.*\(50,\)"),
            ({"a": -np.ones(50)}, "a must"),
            ({"train_loss": np.ones(3)}, "train_loss must have shape"),
            ({"train_loss": [0.5, -1e-3, 0.5, 0.5, 0.5]}, "train_loss must not be negative"),
            (
                {"x": 20 + 1e-7 * true_scores(50, 50)[0], "y": 20 + 1e-7 * true_scores(50, 50)[1]},
                "float32 would change their AUC from 0.7",
            ),
            ({"calibration": "isotonic"}, "calibration must be one of"),
            ({"groups": (np.arange(50) // 10, np.arange(50) // 10)}, "one fold each"),
            ({"key": 0}, "key must be"),
        ],
    )
    def test_refusals(self, change, message):
        x, y = true_scores(50, 50)
        arguments = {"key": KEY, "x": x, "y": y, "folds": folds(50, 50)}
        with pytest.raises(ValueError, match=message):
            ratio.from_scores(**{**arguments, **change})


class TestSklearnRatio:
    def test_a_logistic_regression_finds_the_ratio_of_gaussians(self):
        """At unequal sizes, whose prior odds are no part of the ratio."""
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(400, 2)) + np.array([SHIFT, 0]), rng.normal(size=(1600, 2))
        fit = ratio.SklearnRatio(LogisticRegression(), calibration="none").fit(KEY, x, y)
        assert abs(float(fit.kl()) - TRUE_KL) < 3 * float(fit.kl().std_error)
        assert abs(float(fit.diagnostics.mean_ratio) - 1) < 0.2
        assert 0 < float(fit.certified_js()) < js_of_shift(SHIFT)
        assert float(fit.two_sample_test(KEY).p_value) < 0.01

    def test_a_classifier_that_memorises_is_scored_out_of_fold(self):
        x, y = np.random.default_rng(1).normal(size=(2, 300, 2))
        fit = ratio.SklearnRatio(KNeighborsClassifier(1)).fit(KEY, x, y)
        assert abs(float(fit.auc()) - 0.5) < 4 * float(fit.auc().std_error)
        assert float(fit.diagnostics.generalization_gap) > 1
        assert float(fit.certified_js()) == 0
        # Certainty is half a row of the training rows, not an infinite ratio.
        assert np.abs(fit.held_out_p.log_ratio).max() < math.log(4 * 480) + 0.1

    def test_frames_with_categories_and_gaps_as_they_are(self):
        rng = np.random.default_rng(2)

        def frame(n, share):
            number = rng.normal(size=n)
            number[rng.random(n) < share] = np.nan
            kind = pd.Categorical(rng.choice(["a", "b"], n), categories=["a", "b"])
            return pd.DataFrame({"number": number, "kind": kind})

        trees = HistGradientBoostingClassifier(
            max_iter=20, categorical_features="from_dtype", random_state=0
        )
        # Threads of OpenMP wait for each other actively: beside other work that takes minutes.
        with threadpool_limits(1, "openmp"):
            fit = ratio.SklearnRatio(trees).fit(KEY, frame(400, 0.5), frame(400, 0.0))
            same = ratio.SklearnRatio(trees).fit(KEY, frame(400, 0.3), frame(400, 0.3))
        # A gap tells: half of p's rows cannot be of q, TV = ½ and JS = .3113 bits.
        assert float(fit.auc()) > 0.7
        assert 0.05 < float(fit.certified_js(base=2)) < 0.3113
        assert abs(float(same.auc()) - 0.5) < 0.08

    def test_masked_numbers_are_gaps(self):
        x, y = np.random.default_rng(3).integers(0, 3, (2, 60, 2))

        class Watched(LogisticRegression):
            def fit(self, X, y):
                # What the mask hid is nowhere, and a gap where it was: in a third of the cells.
                assert not (X == 2).any()
                assert 0.2 < np.isnan(X).mean() < 0.5
                raise InterruptedError

        masked = [np.ma.masked_equal(rows, 2) for rows in (x, y)]
        with pytest.raises(InterruptedError):
            ratio.SklearnRatio(Watched()).fit(KEY, *masked)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: 100 * p, r"Odd.*must give probabilities in \[0, 1\]; got up to"),
            (lambda p: p - 1, r"must give probabilities in \[0, 1\]; got down to -"),
            (np.log, r"must give probabilities in \[0, 1\]; got down to -"),
            (lambda p: p[:1], r"Odd.*must give a row a row of its input and a column a label"),
            (lambda p: p[:, 1], r"shape \(10, 2\); got \(10,\)"),
            (lambda p: np.tile(p, 2), r"shape \(10, 2\); got \(10, 4\)"),
        ],
    )
    def test_what_are_no_probabilities_are_refused(self, change, message):
        class Odd(LogisticRegression):
            def predict_proba(self, X):
                return change(super().predict_proba(X))

        x, y = np.random.default_rng(0).normal(size=(2, 10, 1))
        with pytest.raises(ValueError, match=message):
            ratio.SklearnRatio(Odd(), num_folds=2).fit(KEY, x, y)

    def test_groups_share_a_fold(self):
        """Ten copies of each row tell a memorising classifier its table, unless kept together."""
        rng = np.random.default_rng(3)
        x, y = (np.repeat(rng.normal(size=(40, 2)), 10, axis=0) for _ in range(2))
        labels = np.repeat(np.arange(40), 10), 40 + np.repeat(np.arange(40), 10)
        nearest = ratio.SklearnRatio(KNeighborsClassifier(1))
        assert float(nearest.fit(KEY, x, y).auc()) > 0.95
        grouped = nearest.fit(KEY, x, y, groups=labels)
        assert abs(float(grouped.auc()) - 0.5) < 0.2
        assert math.isnan(float(grouped.certified_js()))
        assert grouped.two_sample_test(KEY).status == Status.CONVERGED

    def test_the_same_key_gives_the_same_numbers(self):
        x, y = np.random.default_rng(4).normal(size=(2, 60, 1))
        method = ratio.SklearnRatio(LogisticRegression())
        assert float(method.fit(KEY, x + 1, y).kl()) == float(method.fit(KEY, x + 1, y).kl())
        assert float(method.fit(KEY, x + 1, y).kl()) != float(
            method.fit(jax.random.key(1), x + 1, y).kl()
        )

    def test_duplicates_are_counted(self):
        x = np.random.default_rng(5).normal(size=(50, 2))
        fit = ratio.SklearnRatio(LogisticRegression()).fit(KEY, x, np.concatenate([x, x + 9]))
        assert float(fit.diagnostics.ties.shared_p) == 1.0

    def test_duplicates_of_categories_and_gaps_are_counted(self):
        """Half of x's rows are rows of y, and none of the rows of y repeats."""
        names = np.array([f"level {i}" for i in range(40)])
        gaps = np.where(np.arange(40) % 2, np.arange(40.0), np.nan)
        y = pd.DataFrame({"name": pd.Categorical(names), "number": gaps})
        fresh = pd.DataFrame({"name": pd.Categorical(["new"] * 20), "number": np.arange(20.0)})
        x = pd.concat([y[:20], fresh], ignore_index=True)
        x["name"], y["name"] = x["name"].astype("category"), y["name"].astype("category")
        numbers = np.stack([np.arange(40.0), gaps], axis=1)
        others = np.concatenate([numbers[:20], -1 - numbers[:20]])
        for p, q in ((x, y), (others, numbers), (others.astype(object), numbers.astype(object))):
            found = ratio.SklearnRatio(Constant(), num_folds=2).fit(KEY, p, q).diagnostics.ties
            shares = found.shared_p, found.shared_q, found.duplicates_p, found.duplicates_q
            assert shares == (0.5, 0.5, 0, 0)

    def test_duplicates_that_nobody_looked_for_are_not_none(self):
        """Scores have no rows, and numbers and words no common order: a share of 0 would be one."""
        scores = true_scores(40, 40)
        mixed = np.array([[1.0], ["one"]] * 20, dtype=object)
        for fit in (
            ratio.from_scores(KEY, *scores, folds(40, 40)),
            ratio.SklearnRatio(Constant(), num_folds=2).fit(KEY, mixed, mixed),
        ):
            assert np.isnan(fit.diagnostics.ties.shared_p)
            assert np.isnan(fit.diagnostics.ties.duplicates_q)

    def test_weights_of_classes_are_refused(self):
        """The odds of 1000 rows beside 100 would be subtracted from those of equal samples."""
        weighted = LogisticRegression(class_weight="balanced")
        rng = np.random.default_rng(6)
        x, y = rng.normal(size=(1000, 1)) + 1, rng.normal(size=(100, 1))
        labels = np.repeat([1, 0], [1000, 100])
        plain, balanced = (
            np.log(np.divide(*of.fit(np.concatenate([x, y]), labels).predict_proba(x).T[::-1]))
            for of in (LogisticRegression(), weighted)
        )
        # The truth is ½, and the weighted odds need no correction.
        assert abs(balanced.mean() - 0.5) < 0.2
        assert abs((plain - np.log(10)).mean() - 0.5) < 0.2
        for classifier in (weighted, make_pipeline(StandardScaler(), weighted)):
            with pytest.raises(ValueError, match="classifier must not weigh the classes"):
                ratio.SklearnRatio(classifier)

    def test_refusals(self):
        with pytest.raises(ValueError, match="classifier must"):
            ratio.SklearnRatio(object())
        with pytest.raises(ValueError, match="num_folds must be an integer of at least 2"):
            ratio.SklearnRatio(LogisticRegression(), num_folds=1)
        method = ratio.SklearnRatio(LogisticRegression())
        with pytest.raises(ValueError, match="same number of columns"):
            method.fit(KEY, np.ones((20, 2)), np.ones((20, 3)))
        with pytest.raises(ValueError, match="same columns in the same order"):
            method.fit(KEY, pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))
        with pytest.raises(ValueError, match="both be frames"):
            method.fit(KEY, pd.DataFrame({"a": [1]}), np.ones((20, 1)))
        with pytest.raises(ValueError, match="two rows of y"):
            method.fit(KEY, np.arange(20.0)[:, None], np.arange(4.0)[:, None])
