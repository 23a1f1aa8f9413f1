"""Density ratios: heads, estimators, critics' bounds."""

import jax
import jax.numpy as jnp
import numpy as np

from divjax import fdiv, ratio
from divjax.ratio import bounds, heads
from tests.contract.edges import Edges
from tests.contract.promises import KEY, Row, of_samples, of_scores, samples

NETWORK = heads.Network(hidden=(4,), num_steps=4, num_checks=2, batch_size=4)


def _head(method, key, x, weights):
    """A head fitted to the particles and the fixed samples, and evaluated at the particles."""
    y = samples(x.dtype)
    even = jnp.full(y.shape[0], 1 / y.shape[0], x.dtype)
    rows = jax.lax.stop_gradient(ratio.Rows(x, y, weights, even))
    return method(method.fit(key, ratio.Fold(rows, rows)), x)[:, None]


def _estimator(method, key, x, weights):
    y = jnp.concatenate([samples(x.dtype)] * 2) + 0.5
    return method.fit(key, x, y, a=weights).js().value


def _classifier(estimate):
    def evaluate(method, key, x, weights):
        y = jnp.concatenate([samples(x.dtype)] * 2) + 0.5
        return estimate(key, x, y, head=heads.Linear(0.5), num_folds=2).value

    return evaluate


def _mutual_information(method, key, x, weights):
    shift = jnp.linspace(-1, 1, 4 * x.shape[0], dtype=x.dtype)[:, None]
    rows = jnp.tile(x, (4, 1)) + shift
    return method.fit(key, rows[:, :1], rows[:, 1:]).estimate("dv").value


def _divergence_bound(method, key, x, weights):
    shift = jnp.linspace(-1, 1, 4 * x.shape[0], dtype=x.dtype)[:, None]
    rows = jnp.tile(x, (4, 1)) + shift
    return method.fit(key, rows, rows[::-1] + 0.5).estimate("nwj").value


# The fold of each row, whichever it is: without a calibration it changes nothing.
FOLDS = np.arange(8) % 2

ROWS = {
    "ratio.heads.Zero": Row(
        heads.Zero(),
        _head,
        "equivariant",
        smooth=False,
        weighted=True,
        infinite="the constant zero",
    ),
    "ratio.heads.Linear": Row(
        heads.Linear(0.5), _head, "equivariant", smooth=False, weighted=True, positive=(0,)
    ),
    "ratio.heads.Quadratic": Row(
        heads.Quadratic((0.5, 5.0)),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
        positive=(0, 1),
    ),
    "ratio.heads.GaussianDiscriminant": Row(
        heads.GaussianDiscriminant(0.2),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
        positive=(0,),
    ),
    "ratio.heads.RandomFourier": Row(
        heads.RandomFourier(num_features=10),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
        positive=(0, 1, 2, 3),
    ),
    "ratio.heads.Neighbors": Row(
        heads.Neighbors((3, 5)),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
        positive=(0,),
    ),
    "ratio.heads.Network": Row(NETWORK, _head, "random", smooth=False, positive=(0, 1)),
    "ratio.heads.Average": Row(
        heads.Average((heads.Linear(0.5), heads.GaussianDiscriminant(0.2))),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
    ),
    "ratio.heads.Tuned": Row(
        heads.Tuned(heads.Linear(jnp.array([0.5, 5.0]))),
        _head,
        "equivariant",
        smooth=False,
        slow=True,
        weighted=True,
        positive=(0,),
    ),
    "ratio.heads.Auto": Row(
        heads.Auto(NETWORK), _head, "random", smooth=False, slow=True, positive=(0,)
    ),
    "ratio.heads.Telescoping": Row(
        heads.Telescoping(2, heads.Linear(0.5), NETWORK),
        _head,
        "random",
        smooth=False,
        slow=True,
        positive=(0, 1, 2),
    ),
    "ratio.heads.LeastSquares": Row(
        heads.LeastSquares((0.5,), (0.1,), 0.2),
        _head,
        "random",
        smooth=False,
        slow=True,
        positive=(0, 1, 2, 3),
    ),
    "ratio.heads.KLIEP": Row(
        heads.KLIEP((0.5,)), _head, "random", smooth=False, slow=True, positive=(0, 1)
    ),
    "ratio.ClassifierRatio": Row(
        ratio.ClassifierRatio(heads.Linear(0.5), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ratio.classifier_kl": Row(
        (), _classifier(ratio.classifier_kl), "random", False, slow=True, sampled=True
    ),
    "ratio.classifier_js": Row(
        (), _classifier(ratio.classifier_js), "random", False, slow=True, sampled=True
    ),
    "ratio.TelescopingRatio": Row(
        ratio.TelescopingRatio(heads.Telescoping(2, heads.Linear(0.5), None), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ratio.LeastSquaresRatio": Row(
        ratio.LeastSquaresRatio(heads.LeastSquares((0.5,), (0.1,)), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1, 2, 3),
    ),
    "ratio.KLIEPRatio": Row(
        ratio.KLIEPRatio(heads.KLIEP((0.5,)), num_folds=2),
        _estimator,
        "random",
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "ratio.KernelMeanMatching": Row(
        ratio.KernelMeanMatching(0.9, 5.0, num_steps=50),
        of_samples(lambda x, y, w, m: m.fit(KEY, x, y, w).mmd),
        smooth=False,
        sampled=True,
        positive=(0, 1, 2, 3),
    ),
    "ratio.DivergenceBound": Row(
        ratio.DivergenceBound(hidden=(4,), num_steps=2, num_checks=1, num_groups=2),
        _divergence_bound,
        "random",
        smooth=False,
        slow=True,
        sampled=True,
        positive=(0,),
    ),
    "ratio.MutualInformationBound": Row(
        ratio.MutualInformationBound(
            bounds.MINE(0.1), hidden=(4,), num_steps=2, num_checks=1, num_groups=2
        ),
        _mutual_information,
        "random",
        smooth=False,
        slow=True,
        sampled=True,
        positive=(0, 1),
    ),
    "ratio.bounds.split_scores": Row(
        (),
        lambda m, key, x, w: jnp.stack(
            [part.reshape(len(x), -1).sum(1) for part in ratio.bounds.split_scores(x @ x.T)], axis=1
        ),
        "equivariant",
    ),
    **{
        f"ratio.bounds.{bound.__name__}": Row(
            (),
            of_scores(lambda m, p, q, w, bound=bound: bound(p, q)),
            sampled=True,
            infinite="a critic may be certain",
        )
        for bound in (
            bounds.mean_log_ratio,
            bounds.donsker_varadhan,
            bounds.nwj,
            bounds.jensen_shannon,
        )
    },
    "ratio.bounds.conjugate_dual": Row(
        fdiv.Alpha(0.6),
        of_scores(lambda m, p, q, w: bounds.conjugate_dual(jnp.tanh(p), jnp.tanh(q), m)),
        sampled=True,
        infinite="the hyperbolic tangent is bounded",
    ),
    "ratio.bounds.smile": Row(
        2.0,
        of_scores(lambda m, p, q, w: bounds.smile(p, q, m)),
        "invariant",
        sampled=True,
        positive=(0,),
        infinite="critic values are clipped",
    ),
    "ratio.bounds.f_dual": Row(
        fdiv.Alpha(0.6),
        of_scores(lambda m, p, q, w: bounds.f_dual(p, q, m)),
        "invariant",
        sampled=True,
        infinite="critic values are clipped",
    ),
    "ratio.bounds.kl_from_js": Row(
        (),
        of_scores(lambda m, p, q, w: bounds.kl_from_js(p, q)),
        "invariant",
        sampled=True,
        infinite="a critic may be certain",
    ),
    "ratio.bounds.info_nce": Row(
        (),
        of_scores(lambda m, p, q, w: bounds.info_nce(p, q)),
        "invariant",
        sampled=True,
        infinite="a critic may be certain",
    ),
    "ratio.bounds.interpolated_nce": Row(
        (0.6, 0.2),
        of_scores(lambda m, p, q, w: bounds.interpolated_nce(p, q, *m)),
        sampled=True,
        positive=(0,),
        infinite="critic values are clipped",
    ),
    "ratio.bounds.MINE": Row(
        bounds.MINE(0.3),
        of_scores(lambda m, p, q, w: m(p, q, m.init(p.dtype))[0]),
        smooth=False,
        sampled=True,
        positive=(0,),
        infinite="a critic may be certain",
    ),
    "ratio.from_scores": Row(
        (),
        lambda m, key, x, w: (
            ratio.from_scores(key, *x.T, (FOLDS, FOLDS), w, w, calibration="none").kl().value
        ),
        # Its derivative is that of the variational form.
        smooth=False,
        weighted=True,
        sampled=True,
    ),
    "ratio.ties": Row(
        (),
        of_samples(lambda x, y, w, m: ratio.ties(x, y).lattice),
        "invariant",
        smooth=False,
        sampled=True,
        infinite="infinite values are equal to each other",
    ),
}


class TestRatio(Edges):
    rows = ROWS
