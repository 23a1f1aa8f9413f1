"""A number given as a vector is refused by name, wherever a public function takes one number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import Normal, flows, kernels, losses, ot, problems, ratio
from divjax.ratio import bounds
from divjax.ratio.heads.least_squares import LeastSquares

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (2, 12, 2))
LINE = X[:, 0], Y[:, 0]
LOGITS, LABELS, COSTS = X[:, :1] + jnp.arange(3.0), jnp.arange(12) % 3, 1 - jnp.eye(3)
FIELDS, MASSES = jnp.stack([X, Y]), jnp.full(12, 1 / 12)
GAUSSIAN = jnp.zeros(2), jnp.eye(2)
START = Normal(*GAUSSIAN)
SOLVER = ot.Sinkhorn(max_iterations=3)
TARGETS = Normal(jnp.zeros((2, 2)), jnp.stack([jnp.eye(2)] * 2))


def transport(**settings):
    return ot.sinkhorn(X, Y, **({"epsilon": 1.0, "solver": SOLVER} | settings))


def solved(**options):
    return transport(solver=ot.Sinkhorn(**options, max_iterations=3))


def moved(velocity):
    return velocity(KEY, X, MASSES, FIELDS, velocity.init(KEY, X))


def weighed(aggregator):
    return aggregator(flows.Fields(FIELDS, MASSES), aggregator.init(KEY, 2))


def varied(objective):
    return objective(KEY, X, MASSES, objective.init(KEY, X))


def reacted(step):
    return step.init(X), flows.Flow(
        [flows.KL(lambda x: -jnp.sum(x**2))],
        velocity=flows.SVGD(),
        optimizer=optax.sgd(0.1),
        mass=step,
    ).run(KEY, X, num_steps=1)


CALLS = {
    ("sinkhorn", "epsilon"): lambda v: transport(epsilon=v),
    ("Relative", "share"): lambda v: transport(epsilon=ot.Relative(v)),
    ("Sinkhorn", "tolerance"): lambda v: solved(tolerance=v),
    ("Sinkhorn", "over_relaxation"): lambda v: solved(over_relaxation=v),
    ("sinkhorn", "marginal_penalty"): lambda v: transport(marginal_penalty=v),
    ("sinkhorn of one", "marginal_penalty"): lambda v: transport(marginal_penalty=(v, None)),
    ("Annealing", "start"): lambda v: solved(annealing=ot.Annealing(start=v)),
    ("Annealing", "decay"): lambda v: solved(annealing=ot.Annealing(decay=v)),
    ("sinkhorn_divergence", "tolerance"): lambda v: ot.sinkhorn_divergence(
        X, Y, epsilon=1.0, solver=ot.Sinkhorn(tolerance=v)
    ),
    ("monge_gap", "epsilon"): lambda v: ot.monge_gap(X, jnp.sin, epsilon=v),
    ("gaussian_entropic", "epsilon"): lambda v: ot.gaussian_entropic(GAUSSIAN, GAUSSIAN, epsilon=v),
    ("gaussian_map_from_samples", "shrinkage"): lambda v: ot.gaussian_map_from_samples(
        X, Y, shrinkage=v
    ),
    ("gaussian_barycenter", "tolerance"): lambda v: ot.gaussian_barycenter(TARGETS, tolerance=v),
    ("wasserstein_1d", "p"): lambda v: ot.wasserstein_1d(*LINE, p=v),
    ("transport_1d", "p"): lambda v: ot.transport_1d(*LINE, p=v),
    ("unbalanced_1d", "p"): lambda v: ot.unbalanced_1d(*LINE, marginal_penalty=1.0, p=v),
    ("unbalanced_1d", "marginal_penalty"): lambda v: ot.unbalanced_1d(*LINE, marginal_penalty=v),
    ("unbalanced_1d", "tolerance"): lambda v: ot.unbalanced_1d(
        *LINE, marginal_penalty=1.0, tolerance=v
    ),
    ("sliced_wasserstein", "p"): lambda v: ot.sliced_wasserstein(KEY, X, Y, p=v),
    ("PNorm", "p"): lambda v: ot.cost_matrix(ot.PNorm(v), X, Y),
    ("class_costs", "sharpness"): lambda v: losses.class_costs(COSTS, sharpness=v),
    ("wkd_features", "mean_weight"): lambda v: losses.wkd_features(X[None], Y[None], mean_weight=v),
    ("wkd_features", "floor"): lambda v: losses.wkd_features(X[None], Y[None], floor=v),
    ("KernelMeanMatching", "bound"): lambda v: ratio.KernelMeanMatching(bound=1 + v).fit(KEY, X, Y),
    ("LeastSquares", "relative"): lambda v: ratio.ClassifierRatio(LeastSquares(relative=v)).fit(
        KEY, X, Y
    ),
    ("MINE", "rate"): lambda v: bounds.MINE(v)(X[:, 0], Y[:, 0], bounds.MINE().init(X.dtype)),
    ("smile", "clip"): lambda v: bounds.smile(X[:, 0], Y[:, 0], v),
    ("interpolated_nce", "alpha"): lambda v: bounds.interpolated_nce(X[:, 0], Y[:, :1], v),
    ("interpolated_nce", "log_baseline"): lambda v: bounds.interpolated_nce(
        X[:, 0], Y[:, :1], 0.5, v
    ),
    ("GFSF", "regularization"): lambda v: moved(flows.GFSF(regularization=v)),
    ("NeuralScore", "noise"): lambda v: moved(flows.NeuralScore(noise=v)),
    ("NeuralScore", "learning_rate"): lambda v: moved(flows.NeuralScore(learning_rate=v)),
    ("ProjectedStep", "step_size"): lambda v: weighed(flows.ProjectedStep(v)),
    ("CAGrad", "c"): lambda v: weighed(flows.CAGrad(v)),
    ("FisherRao", "step_size"): lambda v: reacted(flows.FisherRao(v, kernels.Gaussian(1.0))),
    ("Potential", "entropy"): lambda v: varied(flows.Potential(jnp.sum, entropy=v)),
    ("SlicedWasserstein", "p"): lambda v: varied(flows.SlicedWasserstein(Y, p=v)),
    ("SinkhornDivergence", "epsilon"): lambda v: varied(flows.SinkhornDivergence(Y, v)),
    ("FDivergence", "noise"): lambda v: varied(flows.FDivergence(Y, noise=v)),
    ("InverseMultiquadric", "exponent"): lambda v: kernels.InverseMultiquadric(1.0, v)(X),
    ("multi_objective_moments", "bandwidth"): lambda v: problems.multi_objective_moments(
        jnp.ones(1), START, TARGETS, v
    ),
    ("accelerated_moments", "strong_convexity"): lambda v: problems.accelerated_moments(
        jnp.ones(1), START, TARGETS, v
    ),
    ("EntropicMap", "score_epsilon"): lambda v: ot.EntropicMap(score_epsilon=v).fit(KEY, X, Y),
    ("LightSchrodingerBridge", "ridge"): lambda v: ot.LightSchrodingerBridge(2, 1.0, ridge=v).fit(
        KEY, X, Y
    ),
    ("LightSchrodingerBridge", "epsilon"): lambda v: ot.LightSchrodingerBridge(2, v).fit(KEY, X, Y),
}
for name in ("weight", "temperature", "epsilon"):
    CALLS["wkd_logits", name] = lambda v, name=name: losses.wkd_logits(
        LOGITS, LOGITS, LABELS, COSTS, **{name: v}
    )
    CALLS["sinkhorn_distillation", name] = lambda v, name=name: losses.sinkhorn_distillation(
        LOGITS, LOGITS, **{name: v}
    )
for name in ("bandwidth", "tolerance", "accuracy"):
    CALLS["KernelMeanMatching", name] = lambda v, name=name: ratio.KernelMeanMatching(
        **{name: v}
    ).fit(KEY, X, Y)
for name in (
    "epsilon",
    "gap_epsilon",
    "gap_weight",
    "symmetry_weight",
    "learning_rate",
):
    CALLS["MongeMap", name] = lambda v, name=name: ot.MongeMap(**{name: v}, num_steps=1).fit(
        KEY, X, Y
    )


for name, call in {
    "monge_gap": lambda solver: ot.monge_gap(X, jnp.sin, epsilon=1.0, solver=solver),
    "SinkhornDivergence": lambda solver: varied(flows.SinkhornDivergence(Y, 1.0, solver=solver)),
    "EntropicMap": lambda solver: ot.EntropicMap(solver=solver).fit(KEY, X, Y),
    "MongeMap": lambda solver: ot.MongeMap(solver=solver, num_steps=1).fit(KEY, X, Y),
}.items():
    CALLS[name, "tolerance"] = lambda v, call=call: call(ot.Sinkhorn(tolerance=v))


@pytest.mark.parametrize("value", [np.array([0.5]), jnp.array([0.5, 0.6])], ids=["one", "two"])
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_vector_is_no_number(call, value):
    """Nor is a vector of one entry: it would give the result another shape."""
    with pytest.raises(ValueError, match=rf"^{call[1]} must (be|have shape)"):
        jax.eval_shape(lambda: CALLS[call](value))
