"""Heads against scikit-learn's optima, and what they do with weights, masks and choices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from divjax.core.pytrees import pytree, static
from divjax.ratio import ClassifierRatio, Fold, Rows
from divjax.ratio import heads as h
from divjax.ratio.heads.combinations import MAX_QUADRATIC_FEATURES, convex_heads
from divjax.ratio.heads.logistic import newton_logistic
from divjax.ratio.protocols import cross_entropy, log_ratios, num_rows, validation_loss


def make_fold(seed, n, m, d, *, shift=0.7, masked=0, weighted=True):
    """Gaussian samples one of which is wider; `masked` rows of each train nothing."""
    rng = np.random.default_rng(seed)
    p, q = rng.normal(shift, 1.3, (n, d)), rng.normal(0, 1, (m, d))
    a, b = (rng.uniform(0.2, 2, k) if weighted else np.ones(k) for k in (n, m))
    validation_a, validation_b = np.zeros(n), np.zeros(m)
    validation_a[: max(masked, 1)] = validation_b[: max(masked, 1)] = 1
    a[:masked] = b[:masked] = 0
    p, q, *masses = map(
        jnp.asarray, (p, q, *(v / v.sum() for v in (a, b, validation_a, validation_b)))
    )
    return Fold(Rows(p, q, *masses[:2]), Rows(p, q, *masses[2:]))


def effective_rows(*weights):
    return sum(np.sum(w) ** 2 / np.sum(np.square(w)) for w in weights)


def sklearn_log_ratio(phi_p, phi_q, fold, ridge):
    """Our objective as scikit-learn's: C Σ s_i loss_i + ½|c|², with a constant feature of √1000.

    Ours has ½ Σ_i w_i loss_i for either sample, and ½ (ridge/rows) (10⁻³ c_0² + Σ c_j²).
    """
    precision = ridge / effective_rows(fold.train.a, fold.train.b)
    x = np.concatenate([phi_p, phi_q])
    x = np.concatenate([np.full((len(x), 1), np.sqrt(1e3)), x], axis=1)
    y = np.concatenate([np.ones(len(phi_p)), np.zeros(len(phi_q))])
    model = LogisticRegression(
        C=float(1 / precision),
        fit_intercept=False,
        tol=1e-13,
        max_iter=1000,
        solver="newton-cholesky",
    )
    model.fit(x, y, sample_weight=np.concatenate([fold.train.a, fold.train.b]) / 2)
    return lambda phi: (
        np.concatenate([np.full((len(phi), 1), np.sqrt(1e3)), phi], 1) @ (model.coef_[0])
    )


fit_linear = jax.jit(lambda fold, ridge: h.Linear(ridge).fit(jax.random.key(0), fold)[1])
fit_quadratic = jax.jit(lambda fold, ridge: h.Quadratic(ridge).fit(jax.random.key(0), fold)[1])


@pytest.mark.parametrize("head", [h.Linear(2.0), h.RandomFourier(5, ridge=2.0)])
def test_a_fit_is_differentiable_in_ridge_and_rows(head):
    """In both modes, by differences of refitted coefficients."""
    with jax.enable_x64(True):
        fold = make_fold(7, 30, 20, 2, masked=3)
        direction = jnp.asarray(np.random.default_rng(8).normal(size=fold.train.x.shape))

        def loss(ridge, step):
            rows = fold.train._replace(x=fold.train.x + step * direction)
            own = dataclasses.replace(head, ridge=ridge)
            params = own.fit(jax.random.key(0), Fold(rows, rows))
            return validation_loss(own, params, fold)

        at, small = (jnp.array(2.0), jnp.array(0.0)), 1e-4
        backward = jax.jit(jax.grad(loss, (0, 1)))(*at)
        forward = jax.jit(jax.jacfwd(loss, (0, 1)))(*at)
        value = jax.jit(loss)
        for i in range(2):
            above, below = (
                value(*(v + sign * small * (i == j) for j, v in enumerate(at))) for sign in (1, -1)
            )
            expected = (above - below) / (2 * small)
            assert abs(expected) > 1e-5
            np.testing.assert_allclose(backward[i], expected, rtol=1e-4)
            np.testing.assert_allclose(forward[i], expected, rtol=1e-4)


def test_what_has_no_derivative_refuses_with_a_sentence():
    fold = make_fold(7, 30, 20, 2)
    network = h.Network(hidden=(3,), num_steps=2, num_checks=1, batch_size=4)

    def trained(rate):
        own = dataclasses.replace(network, learning_rate=rate)
        return validation_loss(own, own.fit(jax.random.key(0), fold), fold)

    def estimated(ridge):
        method = ClassifierRatio(h.Linear(ridge), num_folds=2)
        return method.fit(jax.random.key(0), fold.train.x, fold.train.y).kl().value

    for function, message in ((trained, "trained by an optimizer"), (estimated, "head.fit")):
        for derivative in (jax.grad(function), jax.jit(jax.jacfwd(function))):
            with pytest.raises(ValueError, match=message):
                derivative(jnp.float32(0.1))


@pytest.mark.parametrize("masked", [0, 20])
@pytest.mark.parametrize("ridge", [0.5, 30.0])
def test_linear_is_penalised_logistic_regression(ridge, masked):
    with jax.enable_x64(True):
        fold = make_fold(0, 80, 60, 3, masked=masked)
        expected = sklearn_log_ratio(fold.train.x, fold.train.y, fold, ridge)(
            np.asarray(fold.train.y)
        )
        params = (), fit_linear(fold, ridge)
        np.testing.assert_allclose(h.Linear()(params, fold.train.y), expected, atol=1e-6)
        # What does not train is not looked at, whatever it holds.
        masked_p = jnp.where(fold.train.a[:, None] > 0, fold.train.x, jnp.inf)
        same = fit_linear(fold._replace(train=fold.train._replace(x=masked_p)), ridge)
        np.testing.assert_allclose(same, params[1], atol=1e-12)


def test_quadratic_is_logistic_regression_on_monomials():
    with jax.enable_x64(True):
        fold = make_fold(1, 150, 120, 2, masked=10)
        monomials = lambda z: np.stack(
            [z[:, 0], z[:, 1], z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2], axis=1
        )
        p, q = np.asarray(fold.train.x), np.asarray(fold.train.y)
        expected = sklearn_log_ratio(monomials(p), monomials(q), fold, 2.0)(monomials(q))
        values = h.Quadratic()(((), fit_quadratic(fold, 2.0)), fold.train.y)
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_random_fourier_is_logistic_regression_on_cosines():
    """Whose inner products approximate the Gaussian kernel, exp(−|x − y|²/(2 d bandwidth²))."""
    with jax.enable_x64(True):
        fold = make_fold(2, 60, 50, 2)
        head = h.RandomFourier(num_features=4000, bandwidth=0.7, ridge=1.0)
        (frequencies, phases), _ = head._basis(jax.random.key(3), fold), None
        phi = lambda z: np.asarray(head._features((frequencies, phases), jnp.asarray(z)))[:, 1:]
        z = np.asarray(fold.train.x)[:20]
        squared = np.sum((z[:, None] - z) ** 2, axis=2)
        kernel = np.exp(-squared / (2 * 2 * 0.7**2))
        # A mean of 4000 terms, each of standard deviation at most 1.
        np.testing.assert_allclose(phi(z) @ phi(z).T, kernel, atol=5 / np.sqrt(4000))
        small = h.RandomFourier(num_features=30, ridge=1.0)
        params = jax.jit(small.fit)(jax.random.key(4), fold)
        phi = lambda z: np.asarray(small._features(params[0], jnp.asarray(z)))[:, 1:]
        p, q = np.asarray(fold.train.x), np.asarray(fold.train.y)
        expected = sklearn_log_ratio(phi(p), phi(q), fold, 1.0)(phi(q))
        np.testing.assert_allclose(small(params, fold.train.y), expected, atol=1e-6)


def test_repeated_rows_are_weights():
    with jax.enable_x64(True):
        fold = make_fold(3, 20, 30, 2, weighted=False)
        times_p, times_q = np.arange(20) % 4, np.arange(30) % 3
        phi = [np.concatenate([np.ones((len(x), 1)), x], 1) for x in (fold.train.x, fold.train.y)]
        repeated = [np.repeat(x, t, axis=0) for x, t in zip(phi, (times_p, times_q), strict=True)]
        newton = jax.jit(newton_logistic)
        penalty = jnp.array([1e-4, 0.01, 0.01])
        weighted = newton(*phi, times_p / times_p.sum(), times_q / times_q.sum(), penalty)
        uniform = [np.full(len(x), 1 / len(x)) for x in repeated]
        np.testing.assert_allclose(newton(*repeated, *uniform, penalty), weighted, atol=1e-10)


def test_newton_is_stationary_with_offsets_and_on_hard_samples():
    """The gradient vanishes also where rows are separable, far off the start, and one-sided."""
    with jax.enable_x64(True):
        newton = jax.jit(newton_logistic)
        rng = np.random.default_rng(5)
        for shift, offset in ((0.5, 1.0), (8.0, 0.0), (8.0, -40.0), (0.0, -1e3), (300.0, 5.0)):
            phi_p = np.stack([np.ones(40), rng.normal(shift, 1, 40)], 1)
            phi_q = np.stack([np.ones(50), rng.normal(0, 1, 50)], 1)
            a, b, penalty = np.full(40, 1 / 40), np.full(50, 1 / 50), np.array([1e-4, 1e-2])
            c = np.asarray(newton(phi_p, phi_q, a, b, penalty, offset, offset / 2))
            wrong_p = scipy.special.expit(-offset - phi_p @ c)
            wrong_q = scipy.special.expit(offset / 2 + phi_q @ c)
            gradient = penalty * c - phi_p.T @ (a * wrong_p) / 2 + phi_q.T @ (b * wrong_q) / 2
            np.testing.assert_allclose(gradient, 0, atol=1e-8)


def test_gaussian_discriminant_is_quadratic_discriminant_analysis():
    with jax.enable_x64(True):
        fold = make_fold(6, 70, 90, 3, weighted=False)
        x = np.concatenate([fold.train.x, fold.train.y])
        y = np.concatenate([np.ones(70), np.zeros(90)])
        sklearn = QuadraticDiscriminantAnalysis(priors=[0.5, 0.5], store_covariance=True)
        # Its covariances divide by n or n − 1, by version, and ours by n − 1: rescale what it sees.
        scaled = x.copy()
        for rows, found in zip((y == 1, y == 0), sklearn.fit(x, y).covariance_[::-1], strict=True):
            factor = np.sqrt(np.cov(x[rows].T)[0, 0] / found[0, 0])
            scaled[rows] = x[rows].mean(axis=0) + factor * (x[rows] - x[rows].mean(axis=0))
        expected = sklearn.fit(scaled, y).decision_function(x[:90])
        head = h.GaussianDiscriminant(shrinkage=0.0)
        params = jax.jit(head.fit)(jax.random.key(0), fold)
        np.testing.assert_allclose(head(params, jnp.asarray(x[:90])), expected, atol=1e-6)


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6])
def test_a_narrow_gaussian_beside_a_wide_one(width):
    """KL of the fitted Gaussians in closed form, in float32, up to 14 nats and beyond."""
    rng = np.random.default_rng(8)
    x, y = (np.float32(scale * rng.normal(size=(500, 1))) for scale in (width, 1))
    rows = Rows(jnp.asarray(x), jnp.asarray(y), jnp.full(500, 1 / 500), jnp.full(500, 1 / 500))
    head = h.GaussianDiscriminant(shrinkage=0.0)
    u = head(jax.jit(head.fit)(jax.random.key(0), Fold(rows, rows)), rows.x)
    (mean_p, mean_q), (p, q) = zip(*((np.mean(z), np.var(z, ddof=1)) for z in (x, y)), strict=True)
    spread = np.var(x) + (mean_p - mean_q) ** 2
    expected = np.log(q / p) / 2 - np.var(x) / p / 2 + spread / q / 2
    np.testing.assert_allclose(jnp.mean(u), expected, rtol=2e-3)


def test_shrunk_gaussians():
    """Shrinkage multiplies correlations and leaves variances; weights are those of the rows."""
    with jax.enable_x64(True):
        fold = make_fold(7, 60, 80, 2, masked=9)
        head = h.GaussianDiscriminant(shrinkage=0.3)
        params = jax.jit(head.fit)(jax.random.key(0), fold)
        log_densities = []
        for x, w in ((fold.train.x, fold.train.a), (fold.train.y, fold.train.b)):
            covariance = np.cov(np.asarray(x).T, aweights=np.asarray(w))
            covariance[0, 1] = covariance[1, 0] = 0.7 * covariance[0, 1]
            mean = np.average(x, axis=0, weights=w)
            log_densities.append(
                scipy.stats.multivariate_normal(mean, covariance).logpdf(fold.train.y)
            )
        expected = log_densities[0] - log_densities[1]
        np.testing.assert_allclose(head(params, fold.train.y), expected, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_ridge_is_the_one_that_the_validation_rows_prefer(shift):
    """Of p = q the strongest, of clearly different samples the weakest; ours is brute force's."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(8)
        p, q = rng.normal(size=(2, 40, 8))
        p[:, 0] += shift
        train = np.r_[np.ones(15), np.zeros(25)]
        weights = [jnp.asarray(w / w.sum()) for w in (train, train, 1 - train, 1 - train)]
        fold = Fold(*(Rows(jnp.asarray(p), jnp.asarray(q), *w) for w in (weights[:2], weights[2:])))
        ridges = (1e-2, 1.0, 100.0)
        single = [fit_linear(fold, ridge) for ridge in ridges]
        predict = lambda c, x: h.Linear()(((), c), x)
        losses = [
            float(cross_entropy(predict(c, fold.train.x), predict(c, fold.train.y), *weights[2:]))
            for c in single
        ]
        best = int(np.argmin(losses))
        assert (ridges[best] == 100.0) == (shift == 0)
        chosen = fit_linear(fold, jnp.asarray(ridges))
        np.testing.assert_allclose(chosen, single[best], atol=1e-10)
        assert all(
            np.abs(chosen - other).max() > 1e-3 for k, other in enumerate(single) if k != best
        )
        tuned = h.Tuned(h.Linear(jnp.asarray(ridges)))
        params = jax.jit(tuned.fit)(jax.random.key(0), fold)
        np.testing.assert_allclose(
            tuned(params, fold.train.y), predict(single[best], fold.train.y), atol=1e-10
        )


@pytree
class Constant:
    """A head with nothing to fit, for what is made of heads."""

    value: float | jax.Array = 0.0

    def fit(self, key, fold):
        return ()

    def __call__(self, params, z):
        return self.value * z[:, 0]


@pytree
class Broken:
    """A head whose log ratio is no number, or infinite, although its hyper-parameters are sound."""

    value: float = static()

    def fit(self, key, fold):
        return ()

    def __call__(self, params, z):
        return self.value * z[:, 0]


def test_average_weighs_by_held_out_likelihood():
    with jax.enable_x64(True):
        fold = make_fold(9, 200, 200, 1, shift=1.0, masked=100, weighted=False)
        slopes = (0.9, 0.9, -3.0)
        average = h.Average(tuple(Constant(s) for s in slopes))
        params = average.fit(jax.random.key(0), fold)
        np.testing.assert_allclose(params[1], [0.5, 0.5, 0], atol=1e-6)
        np.testing.assert_allclose(
            average(params, fold.train.x), 0.9 * fold.train.x[:, 0], rtol=1e-5
        )
        # A twentieth of a slope apart, the weights are a likelihood ratio of 200 rows.
        near = h.Average((Constant(0.9), Constant(0.7)))
        x, y = (np.asarray(z[:100, 0]) for z in (fold.train.x, fold.train.y))
        likelihood = [
            np.sum(np.log(scipy.special.expit(s * x))) + np.sum(np.log(scipy.special.expit(-s * y)))
            for s in (0.9, 0.7)
        ]
        expected = scipy.special.softmax(likelihood)
        assert 0.01 < expected[0] < 0.99
        np.testing.assert_allclose(near.fit(jax.random.key(0), fold)[1], expected, atol=1e-6)


def test_networks_of_an_average_are_those_trained_alone():
    """They share a training loop if only their numbers and starts differ."""
    small = {"hidden": (3,), "num_steps": 4, "num_checks": 2, "batch_size": 8}
    networks = (
        h.Network(**small, start=Constant(0.5)),
        h.Network(**small, learning_rate=0.1, weight_decay=3.0),
    )
    with jax.enable_x64(True):
        fold, key = make_fold(12, 30, 30, 2, shift=2.0, masked=10), jax.random.key(0)
        together = jax.jit(h.Average(networks).fit)(key, fold)[0]
        for network, own, found in zip(networks, jax.random.split(key), together, strict=True):
            for leaf, expected in zip(
                jax.tree.leaves(found), jax.tree.leaves(network.fit(own, fold)), strict=True
            ):
                np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-9)
        # A network's output starts at zero. This one has improved on it.
        assert jnp.abs(networks[1].apply(together[1][1], fold.train.x)).max() > 1e-3


def test_a_head_that_fails_has_no_part_in_the_average():
    fold = make_fold(10, 40, 40, 1, weighted=False)
    for bad in (jnp.nan, jnp.inf):
        average = h.Average((Broken(bad), Constant(1.0)))
        params = average.fit(jax.random.key(0), fold)
        # Cut off, a log ratio of infinity is only a very bad one.
        np.testing.assert_allclose(params[1], [0, 1], atol=0 if jnp.isnan(bad) else 1e-4)
        np.testing.assert_allclose(average(params, fold.train.x), fold.train.x[:, 0], rtol=2e-3)


@pytest.mark.parametrize(("wrong", "limit"), [(20, 3.0), (1, 3 * np.log(800))])
def test_average_clips_what_is_sure_and_wrong(wrong, limit):
    """Wrong in 20 of 400 rows log 19 = 2.9 would be right; of one no limit is sure."""
    z = jnp.ones(400).at[:wrong].set(-1.0)[:, None]
    rows = Rows(z, -z, jnp.full(400, 1 / 400), jnp.full(400, 1 / 400))
    average = h.Average((Constant(50.0),))
    _, _, limits = average.fit(jax.random.key(0), Fold(rows, rows))
    np.testing.assert_allclose(limits, [limit], rtol=1e-5)


def test_tuned_takes_the_best_of_a_grid_trained_together():
    with jax.enable_x64(True):
        fold = make_fold(11, 50, 50, 1, shift=2.0, masked=25, weighted=False)
        tuned = h.Tuned(Constant(jnp.array([-1.0, 0.0, jnp.nan, 1.0])))
        (head, _) = tuned.fit(jax.random.key(0), fold)
        assert head.value == 1.0


@pytest.mark.parametrize(
    "head",
    [h.Linear(), h.Quadratic(), h.GaussianDiscriminant(), h.RandomFourier(num_features=20)],
    ids=lambda head: type(head).__name__,
)
def test_convex_heads_stay_finite(head):
    """All rows alike, one row each, features constant in one sample, and a chasm, in float32."""
    rng = np.random.default_rng(12)
    even = jnp.full(6, 1 / 6)
    one = jnp.zeros(6).at[0].set(1)
    x = rng.normal(size=(2, 6, 2)).astype(np.float32)
    constant = x.copy()
    constant[0, :, 1] = 0
    cases = [
        (np.ones((2, 6, 2), np.float32), even),
        (x, one),
        (constant, even),
        (x + np.array([1e4, 0], np.float32)[:, None, None], even),
    ]
    run = jax.jit(lambda fold: head(head.fit(jax.random.key(0), fold), fold.train.x))
    for samples, weights in cases:
        values = run(Fold(*[Rows(*map(jnp.asarray, samples), weights, weights)] * 2))
        assert values.dtype == jnp.float32
        assert jnp.isfinite(values).all()


def test_zero_and_num_rows():
    fold = make_fold(13, 30, 40, 2, weighted=False)
    assert (h.Zero()(h.Zero().fit(jax.random.key(0), fold), fold.train.x) == 0).all()
    np.testing.assert_allclose(num_rows(jnp.full(30, 1 / 30), jnp.full(40, 1 / 40)), 70, rtol=1e-6)


def test_cross_entropy_is_log_two_less_jensen_shannon():
    """At the true log ratio of N(1, 1) and N(0, 1), by quadrature."""
    with jax.enable_x64(True):
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        weights = weights / weights.sum()
        u_p, u_q = (nodes + 1) - 0.5, nodes - 0.5
        value = cross_entropy(*map(jnp.asarray, (u_p, u_q, weights, weights)))
        density = scipy.stats.norm(0, 1).pdf
        grid = np.linspace(-12, 13, 20001)
        p, q = density(grid - 1), density(grid)
        middle = (p + q) / 2
        js = np.trapezoid(
            scipy.special.rel_entr(p, middle) + scipy.special.rel_entr(q, middle), grid
        )
        np.testing.assert_allclose(value, np.log(2) - js / 2, atol=1e-8)


def test_auto_leaves_out_what_is_too_costly():
    assert [type(head).__name__ for head in convex_heads(3).heads] == [
        "Linear",
        "GaussianDiscriminant",
        "Quadratic",
    ]
    wide = convex_heads(MAX_QUADRATIC_FEATURES + 1)
    assert not any(isinstance(head, h.Quadratic) for head in wide.heads)


@pytest.mark.parametrize(
    "make",
    [
        lambda: h.Average(()),
        lambda: h.Linear(ridge=(0.5, -1.0)),
        lambda: h.GaussianDiscriminant(shrinkage=1.5),
        lambda: h.RandomFourier(num_features=0),
        lambda: h.RandomFourier(ridge=-1.0),
        lambda: h.RandomFourier(bandwidth=-1.0),
        lambda: h.Network(learning_rate=0.0),
        lambda: h.Network(num_steps=0),
        lambda: h.Network(weight_decay=-1.0),
    ],
)
def test_numbers_out_of_range(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_a_heads_log_ratios_are_floating_point():
    """Half precision counts as float32: optimizers of the calibration would mix the two."""
    x, y = jnp.ones((3, 2)), jnp.zeros((2, 2))
    half = log_ratios(lambda params, rows: rows[:, 0].astype(jnp.float16), None, x, y)
    assert [u.dtype for u in half] == [jnp.float32, jnp.float32]
    with pytest.raises(ValueError, match="log ratio by head must be floating-point; got int32"):
        log_ratios(lambda params, rows: rows[:, 0].astype(jnp.int32), None, x, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda inf: h.LeastSquares(floor=inf),
        lambda inf: h.LeastSquares(ridge=(0.1, inf)),
        lambda inf: h.LeastSquares(bandwidth=inf),
        lambda inf: h.KLIEP(floor=inf),
        lambda inf: h.RandomFourier(bandwidth=(1.0, inf)),
        lambda inf: h.Neighbors(prior=inf),
    ],
)
def test_infinite_numbers_are_out_of_range(make):
    with pytest.raises(ValueError, match="must be finite; got inf"):
        make(float("inf"))
    assert not make(jnp.inf * jnp.ones(())).in_range()
