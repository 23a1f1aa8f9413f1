"""The table of public methods: a new one is one more row, and every check of the suite runs on
it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax import fdiv, flows, inference, kernels, problems, ratio
from divjax.fdiv import categorical
from divjax.ratio import heads, variational

N, D, K = 8, 2, 3


class Row(NamedTuple):
    """A method and how to evaluate it on particles.

    Attributes:
        method: the pytree whose leaves are hyper-parameters.
        evaluate: `(method, key, x "n d", weights "n") -> array`.
        output: what permuting the particles does to the output: "equivariant" (axis −2 is the
            particles'), "invariant", or "random" where the key's draws are tied to positions.
        smooth: whether finite differences in x make sense.
        slow: whether it takes seconds to compile: checked by the exhaustive tests alone.
    """

    method: Any
    evaluate: Callable[..., jax.Array]
    output: str
    smooth: bool = True
    slow: bool = False


def _objective(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].gradient


def _objective_value(method, key, x, weights):
    return method(key, x, weights, method.init(key, x))[0].value


def _energies(x):
    """Gradients of K energies that depend on the particles, so that derivatives flow through
    them."""
    return jnp.stack([(k + 1) * x - k for k in range(K)])


def _velocity(method, key, x, weights):
    drift, repulsion, _ = method(key, x, weights, _energies(x), method.init(key, x))
    return drift + repulsion


def _aggregator(method, key, x, weights):
    return method(key, jnp.sin(_energies(x)), weights, method.init(K))[0]


def _reaction(method, key, x, weights):
    return method(x, weights, jnp.sum(x**2, axis=1), 1.0, method.init(x))[0][:, None]


def _kernel(method, key, x, weights):
    kernel, _ = method.resolve(x, method.init(x))
    return kernel(x) @ weights[:, None]


def _log_prob(method, key, x, weights):
    return jax.vmap(method.log_prob)(x)[:, None]


def _score(method, key, x, weights):
    return jax.vmap(method.score)(x)


def _flow(method, key, x, weights):
    velocity, optimizer_step = method
    return flows.run(
        key,
        x,
        tuple(flows.KL(t.log_prob) for t in problems.two_component_targets()),
        velocity=velocity,
        optimizer=flows.accelerated(optimizer_step),
        num_steps=2,
    ).particles


def _integrands(method, key, x, weights):
    return jnp.stack([method.under_p(x[:, 0]), method.under_q(x[:, 1])], axis=1)


def _plug_in(method, key, x, weights):
    return method.plug_in(x[:, 0], x[:, 1]).value


def _family(method, key, x, weights):
    eta = jnp.stack([jnp.mean(x**2) + 1, -jnp.mean(jnp.abs(x)) - 1])
    gamma = fdiv.exponential_family.GAMMA
    other = gamma.natural(2.0, 1.5).astype(x.dtype)
    return fdiv.exponential_family.renyi(gamma, eta, other, method)


def _categorical(divergence):
    return lambda method, key, x, weights: divergence(x.T, weights, method)[:, None]


def _jensen_shannon(x, weights, mixture):
    shares = jnp.exp(categorical.log_probs(mixture))
    return categorical.jensen_shannon(weights, categorical.Logits(x), weights=shares)


def _of_samples(estimator):
    """An estimator of two samples, the second one fixed."""
    return lambda method, key, x, weights: estimator(x, _samples().astype(x.dtype), weights, method)


def _samples():
    return jax.random.normal(jax.random.key(7), (5, D))


def _head(method, key, x, weights):
    """A head fitted to the particles and the fixed samples, and evaluated at the particles."""
    y = _samples().astype(x.dtype)
    even = jnp.full(y.shape[0], 1 / y.shape[0], x.dtype)
    fold = jax.lax.stop_gradient(ratio.Fold(x, y, weights, even, weights, even))
    return method(method.fit(key, fold), x)[:, None]


def _estimator(method, key, x, weights):
    y = jnp.concatenate([_samples().astype(x.dtype)] * 2) + 0.5
    return method.fit(key, x, y, weights_p=weights).js().value


def _of_scores(function):
    """A function of two samples of scores."""
    return lambda method, key, x, weights: function(method, x[:, 0], x[:, 1], weights)


def _mutual_information(method, key, x, weights):
    shift = jnp.linspace(-1, 1, 4 * x.shape[0], dtype=x.dtype)[:, None]
    rows = jnp.tile(x, (4, 1)) + shift
    return method.fit(key, rows[:, :1], rows[:, 1:]).estimate("dv").value


def _divergence_bound(method, key, x, weights):
    shift = jnp.linspace(-1, 1, 4 * x.shape[0], dtype=x.dtype)[:, None]
    rows = jnp.tile(x, (4, 1)) + shift
    return method.fit(key, rows, rows[::-1] + 0.5).estimate("nwj").value


GAUSSIAN = kernels.Gaussian(bandwidth=0.9)
NETWORK = heads.Network(hidden=(4,), num_steps=4, num_checks=2, batch_size=4)

ROWS = {
    "kernels.Gaussian": Row(GAUSSIAN, _kernel, "equivariant"),
    "kernels.Gaussian(Median)": Row(
        # The rule is a constant to differentiation, so finite differences see what gradients must
        # not.
        kernels.Gaussian(bandwidth=kernels.Median()),
        _kernel,
        "equivariant",
        smooth=False,
    ),
    "kernels.Gaussian(Mean)": Row(
        kernels.Gaussian(bandwidth=kernels.Mean()), _kernel, "equivariant", smooth=False
    ),
    "kernels.Gaussian(MultiScale)": Row(
        kernels.Gaussian(bandwidth=kernels.MultiScale()), _kernel, "equivariant", smooth=False
    ),
    "kernels.Laplace": Row(kernels.Laplace(bandwidth=0.9), _kernel, "equivariant"),
    "kernels.InverseMultiquadric": Row(
        kernels.InverseMultiquadric(bandwidth=0.9), _kernel, "equivariant"
    ),
    "kernels.Energy": Row(kernels.Energy(), _kernel, "equivariant"),
    "flows.KL": Row(
        flows.KL(problems.two_component_targets()[0].log_prob), _objective, "equivariant"
    ),
    "flows.Potential": Row(
        flows.Potential(lambda z: jnp.sum(z**4), entropy=0.5), _objective, "equivariant"
    ),
    "flows.Interaction": Row(flows.Interaction(GAUSSIAN), _objective, "equivariant"),
    "flows.MMD": Row(flows.MMD(_samples(), GAUSSIAN), _objective, "equivariant"),
    "flows.MMD value": Row(flows.MMD(_samples(), kernels.Energy()), _objective_value, "invariant"),
    "flows.SVGD": Row(flows.SVGD(GAUSSIAN), _velocity, "equivariant"),
    "flows.SVGD(Laplace)": Row(
        flows.SVGD(kernels.Laplace(bandwidth=0.9)), _velocity, "equivariant"
    ),
    "flows.Blob": Row(flows.Blob(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSD": Row(flows.GFSD(GAUSSIAN), _velocity, "equivariant"),
    "flows.GFSF": Row(flows.GFSF(GAUSSIAN, regularization=0.1), _velocity, "equivariant"),
    "flows.NeuralScore": Row(flows.NeuralScore(), _velocity, "random", smooth=False),
    "flows.Langevin": Row(flows.Langevin(), _velocity, "equivariant"),
    "flows.MinNorm": Row(flows.MinNorm(), _aggregator, "invariant"),
    "flows.ProjectedStep": Row(flows.ProjectedStep(step_size=0.1), _aggregator, "invariant"),
    "flows.FixedWeights": Row(
        flows.FixedWeights(jnp.array([0.2, 0.3, 0.5])), _aggregator, "invariant"
    ),
    "flows.PCGrad": Row(flows.PCGrad(), _aggregator, "invariant"),
    "flows.CAGrad": Row(flows.CAGrad(c=0.4), _aggregator, "invariant"),
    "flows.ParticleWeights": Row(
        flows.ParticleWeights(step_size=0.5, kernel=GAUSSIAN), _reaction, "equivariant"
    ),
    "flows.run": Row((flows.SVGD(GAUSSIAN), 0.05), _flow, "equivariant"),
    "fdiv.KL": Row(fdiv.KL(), _integrands, "equivariant"),
    "fdiv.Alpha": Row(fdiv.Alpha(0.6), _integrands, "equivariant"),
    "fdiv.CressieRead": Row(fdiv.CressieRead(0.6), _integrands, "equivariant"),
    "fdiv.JensenShannon": Row(fdiv.JensenShannon(), _integrands, "equivariant"),
    "fdiv.Jeffreys": Row(fdiv.Jeffreys(), _integrands, "equivariant"),
    "fdiv.SkewKL": Row(fdiv.SkewKL(0.2), _integrands, "equivariant"),
    "fdiv.SoftenedReverseKL": Row(fdiv.SoftenedReverseKL(), _integrands, "equivariant"),
    "fdiv.Mixed": Row(fdiv.Mixed(fdiv.ReverseKL(), 0.2), _integrands, "equivariant"),
    "fdiv.Combination": Row(0.5 * fdiv.KL() + 2.0 * fdiv.ChiSquared(), _integrands, "equivariant"),
    "fdiv.Renyi": Row(fdiv.Renyi(0.6), _plug_in, "invariant"),
    "fdiv.gaussian_plugin_kl": Row(
        (), lambda m, k, x, w: fdiv.gaussian_plugin_kl(x, 2 * x[:, ::-1] + 1).value, "invariant"
    ),
    "fdiv.categorical.kl": Row(
        2.0, _categorical(lambda x, w, t: categorical.kl(categorical.Logits(x, t), w)), "invariant"
    ),
    "fdiv.categorical.skew_kl": Row(
        0.3,
        _categorical(lambda x, w, alpha: categorical.skew_kl(w, categorical.Logits(x), alpha)),
        "invariant",
    ),
    "fdiv.categorical.jensen_shannon": Row(
        categorical.Weights(jnp.array([0.3, 0.7]), 0.1), _categorical(_jensen_shannon), "invariant"
    ),
    "fdiv.exponential_family.renyi": Row(0.7, _family, "invariant"),
    "fdiv.knn_kl": Row((), _of_samples(lambda x, y, w, m: fdiv.knn_kl(x, y, 2).value), "invariant"),
    "fdiv.knn_kl(bias_order)": Row(
        (), _of_samples(lambda x, y, w, m: fdiv.knn_kl(x, y, 4, bias_order=1).value), "invariant"
    ),
    "fdiv.knn_entropy": Row((), lambda m, key, x, w: fdiv.knn_entropy(x, 2).value, "invariant"),
    "fdiv.histogram.divergence": Row(
        0.5,
        _of_samples(
            lambda x, y, w, smoothing: fdiv.histogram.divergence(
                categorical.kl, x, y, num_bins=4, weights_x=w, smoothing=smoothing
            )
        ),
        "invariant",
        smooth=False,
    ),
    "flows.FDivergence": Row(
        flows.FDivergence(_samples(), ratio=NETWORK, num_init_steps=3, num_fit_steps=1),
        _objective,
        "random",
        smooth=False,
    ),
    "ratio.heads.Linear": Row(heads.Linear(0.5), _head, "equivariant", smooth=False),
    "ratio.heads.Quadratic": Row(
        heads.Quadratic((0.5, 5.0)), _head, "equivariant", smooth=False, slow=True
    ),
    "ratio.heads.GaussianDiscriminant": Row(
        heads.GaussianDiscriminant(0.2), _head, "equivariant", smooth=False, slow=True
    ),
    "ratio.heads.RandomFourier": Row(
        heads.RandomFourier(num_features=10), _head, "equivariant", smooth=False, slow=True
    ),
    "ratio.heads.Network": Row(NETWORK, _head, "random", smooth=False),
    "ratio.heads.Average": Row(
        heads.Average((heads.Linear(0.5), heads.GaussianDiscriminant(0.2))),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
    ),
    "ratio.heads.Tuned": Row(
        heads.Tuned(heads.Linear(jnp.array([0.5, 5.0]))),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
    ),
    "ratio.heads.Auto": Row(heads.Auto(NETWORK), _head, "random", smooth=False, slow=True),
    "ratio.Telescoping": Row(
        ratio.Telescoping(2, heads.Linear(0.5), NETWORK), _head, "random", smooth=False, slow=True
    ),
    "ratio.LeastSquaresHead": Row(
        ratio.LeastSquaresHead((0.5,), (0.1,), 0.2), _head, "random", smooth=False, slow=True
    ),
    "ratio.KLIEPHead": Row(ratio.KLIEPHead((0.5,)), _head, "random", smooth=False, slow=True),
    "ratio.ClassifierRatio": Row(
        ratio.ClassifierRatio(heads.Linear(0.5), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.TelescopingRatio": Row(
        ratio.TelescopingRatio(ratio.Telescoping(2, heads.Linear(0.5), None), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.LeastSquaresRatio": Row(
        ratio.LeastSquaresRatio(ratio.LeastSquaresHead((0.5,), (0.1,)), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.KLIEP": Row(
        ratio.KLIEP(ratio.KLIEPHead((0.5,)), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.KernelMeanMatching": Row(
        ratio.KernelMeanMatching(0.9, 5.0, num_steps=50),
        _of_samples(lambda x, y, w, m: m.fit(x, y, w).mmd),
        "invariant",
        smooth=False,
    ),
    "ratio.DivergenceBound": Row(
        ratio.DivergenceBound(hidden=(4,), num_steps=2, num_checks=1, num_groups=2),
        _divergence_bound,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.MutualInformationBound": Row(
        ratio.MutualInformationBound(
            variational.MINE(0.1), hidden=(4,), num_steps=2, num_checks=1, num_groups=2
        ),
        _mutual_information,
        "random",
        smooth=False,
        slow=True,
    ),
    "ratio.variational.smile": Row(
        2.0, _of_scores(lambda m, p, q, w: variational.smile(p, q, m)), "invariant"
    ),
    "ratio.variational.f_dual": Row(
        fdiv.Alpha(0.6), _of_scores(lambda m, p, q, w: variational.f_dual(p, q, m)), "invariant"
    ),
    "ratio.variational.kl_from_js": Row(
        (), _of_scores(lambda m, p, q, w: variational.kl_from_js(p, q)), "invariant"
    ),
    "ratio.variational.info_nce": Row(
        (), _of_scores(lambda m, p, q, w: variational.info_nce(p, q)), "invariant"
    ),
    "ratio.variational.interpolated_nce": Row(
        (0.6, 0.2),
        _of_scores(lambda m, p, q, w: variational.interpolated_nce(p, q, *m)),
        "invariant",
    ),
    "ratio.variational.MINE": Row(
        variational.MINE(0.3),
        _of_scores(lambda m, p, q, w: m(p, q, m.init(p.dtype))[0]),
        "invariant",
        smooth=False,
    ),
    "ratio.ties": Row(
        (), _of_samples(lambda x, y, w, m: ratio.ties(x, y).lattice), "invariant", smooth=False
    ),
    "inference.empirical_bernstein_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.empirical_bernstein_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
        "invariant",
    ),
    "inference.betting_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.betting_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
        "random",  # it bets on the rows one after the other
    ),
    "inference.auc": Row(
        0.6,
        _of_scores(lambda m, p, q, w: jnp.stack(inference.auc(p, q, w, level=m)[:2])),
        "invariant",
        smooth=False,
    ),
    "inference.accuracy": Row(
        0.1,
        _of_scores(lambda m, p, q, w: jnp.stack(inference.accuracy(p, q, w, threshold=m)[:2])),
        "invariant",
        smooth=False,
    ),
    "inference.permutation_test": Row(
        (),
        lambda m, key, x, w: (
            inference.permutation_test(
                key,
                lambda a, b: jnp.sum((a.mean(0) - b.mean(0)) ** 2),
                x,
                x + 1,
                num_permutations=9,
            ).null
        ),
        "random",
    ),
    "inference.score_permutation_test": Row(
        (),
        lambda m, key, x, w: (
            inference.score_permutation_test(key, x[:, 0], x[:, 1], "mean", num_permutations=9).null
        ),
        "random",
    ),
    "inference.logit_interval": Row(
        0.6,
        lambda level, key, x, w: jnp.stack(
            inference.logit_interval(jax.nn.sigmoid(x[:, 0]), 0.05, level), axis=1
        ),
        "equivariant",
    ),
    "problems.GaussianMixture.log_prob": Row(
        problems.two_component_targets()[0], _log_prob, "equivariant"
    ),
    "problems.GaussianMixture.score": Row(
        problems.two_component_targets()[0], _score, "equivariant"
    ),
}
