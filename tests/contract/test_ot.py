"""Entropic transport, its costs, and transport in closed form."""

import jax.numpy as jnp

from divjax import Normal, ot
from divjax.core.numerics import nan_unless
from divjax.core.types import Status
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples


def _normalized(weights):
    return weights / jnp.sum(weights)


def _of_points(solve):
    """A function `(x, y, weights, method)` of particles and a fixed second sample."""
    return lambda method, key, x, weights: solve(x, samples(x.dtype), _normalized(weights), method)


def _sinkhorn(output):
    def solve(x, y, weights, method):
        cost, epsilon, penalty = method
        result = ot.sinkhorn(
            x, y, weights, epsilon=epsilon, cost=cost, marginal_penalty=penalty, **_tight(x)
        )
        return output(result, x)

    return _of_points(solve)


def _tight(x):
    """In double precision as far as differences need."""
    return {"solver": ot.Sinkhorn(tolerance=_tolerance(x))}


def _tolerance(x):
    return 1e-12 if x.dtype == jnp.float64 else 1e-5


def _annealed(x, y, weights, method):
    epsilon, start, decay = method
    solver = ot.Sinkhorn(_tolerance(x), ot.Annealing(start, decay))
    return ot.sinkhorn(x, y, weights, epsilon=epsilon, solver=solver).value


def _solver(x, y, weights, solver):
    """By options whose effect on the value is below the promises' accuracy."""
    return ot.sinkhorn(x, y, weights, epsilon=0.5, solver=solver).value


def _relative(x, y, weights, share):
    return ot.sinkhorn(x, y, weights, epsilon=ot.Relative(share, of="mean"), **_tight(x)).value


def _of_bridge(method, key, x, weights):
    bridge = ot.SchrodingerBridge(*method)
    return jnp.concatenate([bridge.drift(x, 0.3), bridge.log_normalizer(x)[:, None]], axis=1)


def _gaussians(x, weights):
    """The particles' Gaussian and a fixed one, full covariances."""
    centered = x - weights @ x
    covariance = (weights[:, None] * centered).T @ centered + 0.1 * jnp.eye(2, dtype=x.dtype)
    other = jnp.array([0.3, -0.2], x.dtype), jnp.array([[1.5, 0.2], [0.2, 0.8]], x.dtype)
    return Normal(weights @ x, covariance), Normal(*other)


def _fitted_map(method, key, x, weights):
    """At the particles, of which those without weight may be anywhere.

    NaN where the status says more than that the fit has not converged: one program for both.
    """
    fit = method.fit(key, x, samples(x.dtype), a=weights)
    images = fit(jnp.where(weights[:, None] > 0, x, 0))
    return nan_unless(fit.status < Status.NOT_FINITE, images)


def _light_drift(method, key, x, weights):
    bridge = method.fit(key, x, samples(x.dtype), weights)
    return bridge.drift(jnp.where(weights[:, None] > 0, x, 0), 0.5)


def _barycenter(method, key, x, weights):
    found = ot.gaussian_barycenter(_gaussians(x, weights), method)
    return jnp.concatenate([found.mean[None], found.covariance])


COSTS = {
    "SqEuclidean": ot.SqEuclidean(),
    "Euclidean": ot.Euclidean(),
    "EuclideanPower": ot.EuclideanPower(1.5),
    "PNorm": ot.PNorm(2.5),
    "PNormPower": ot.PNormPower(1.7),
    "Cosine": ot.Cosine(),
    "SphereGeodesic": ot.SphereGeodesic(),
}

# Whose only leaf is the power.
POWERS = "EuclideanPower", "PNorm", "PNormPower"

BRIDGE = (
    0.5,
    jnp.array([0.0, -0.5]),
    jnp.array([[1.0, 0.0], [-0.5, 0.4]]),
    jnp.array([[0.5, 1.0], [0.8, 0.3]]),
)

ROWS = {
    **{
        f"ot.{name}": Row(
            cost,
            lambda cost, key, x, w: ot.cost_matrix(cost, x, samples(x.dtype)),
            "equivariant",
            positive=(0,) if name in POWERS else (),
        )
        for name, cost in COSTS.items()
    },
    "ot.cost_matrix": Row(
        ot.SqEuclidean(),
        lambda cost, key, x, w: ot.cost_matrix(lambda x, y: cost(x, y), x, samples(x.dtype)),
        "equivariant",
    ),
    "ot.sinkhorn": Row(
        (ot.SqEuclidean(), 0.5, None),
        _sinkhorn(lambda result, x: result.value),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.sinkhorn map": Row(
        (ot.EuclideanPower(2.0), 0.5, None),
        _sinkhorn(lambda result, x: result.transport(x)),
        "equivariant",
        eager=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "ot.sinkhorn plan": Row(
        (ot.Euclidean(), 0.5, None),
        _sinkhorn(lambda result, x: result.plan()),
        "equivariant",
        eager=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.sinkhorn unbalanced": Row(
        (ot.SqEuclidean(), 0.5, 1.5),
        _sinkhorn(lambda result, x: result.value),
        eager=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "ot.sinkhorn plan's cost and entropy": Row(
        (ot.SqEuclidean(), 0.5, None),
        _sinkhorn(lambda result, x: jnp.stack([result.transport_cost, result.plan_entropy])),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "ot.sinkhorn transposed map": Row(
        (ot.SqEuclidean(), 0.5, 2.0),
        _sinkhorn(lambda result, x: result.transposed.transport(samples(x.dtype))),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1),
        slow=True,
    ),
    "ot.Relative": Row(
        0.3,
        _of_points(_relative),
        smooth=False,  # ε is a constant to gradients
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.marginal_penalty_from_tau": Row(
        0.7,
        lambda tau, key, x, w: ot.marginal_penalty_from_tau(tau, x**2 + 1),
        "equivariant",
        infinite="an infinite ε",
        positive=(0,),
    ),
    "ot.exact": Row(
        (),
        _of_points(lambda x, y, w, method: ot.exact(x, y, w).value),
        on_host=True,
        eager=False,
        weighted=True,
        sampled=True,
    ),
    "ot.Annealing": Row(
        (0.2, 50.0, 0.7),
        _of_points(_annealed),
        eager=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1, 2),
    ),
    "ot.Sinkhorn": Row(
        ot.Sinkhorn(1e-5, ot.Annealing(50.0, 0.7), 1.2),
        _of_points(_solver),
        smooth=False,  # gradients are stopped
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1, 2, 3),
    ),
    "ot.sinkhorn_divergence": Row(
        0.5,
        _of_points(
            lambda x, y, w, epsilon: (
                ot.sinkhorn_divergence(x, y, w, epsilon=epsilon, **_tight(x)).value
            )
        ),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "ot.sinkhorn_divergence self term": Row(
        0.5,
        _of_points(
            lambda x, y, w, epsilon: (
                ot.sinkhorn_divergence(x, y, w, epsilon=epsilon, **_tight(x)).xx.value
            )
        ),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.monge_gap": Row(
        (0.5, 1.3),
        lambda method, key, x, w: (
            ot.monge_gap(
                x, lambda x: jnp.sin(method[1] * x), _normalized(w), epsilon=method[0], **_tight(x)
            ).value
        ),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.monge_gap entropic": Row(
        0.5,
        lambda epsilon, key, x, w: (
            ot.monge_gap(
                x, jnp.cos(x), _normalized(w), epsilon=epsilon, kind="entropic", **_tight(x)
            ).value
        ),
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.MongeMap": Row(
        ot.MongeMap(num_steps=3, num_checks=1, hidden=(4,), learning_rate=0.1),
        _fitted_map,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1, 2, 3),
        slow=True,
    ),
    "ot.EntropicMap": Row(
        ot.EntropicMap(epsilons=(0.2,), block_size=3),
        _fitted_map,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1, 2),
    ),
    "ot.ICNNDual": Row(
        ot.ICNNDual((4,), start_hidden=(4,), num_steps=3, num_inner_steps=2, num_checks=1),
        _fitted_map,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "ot.wasserstein_1d": Row(
        1.5,
        _of_points(lambda x, y, w, p: ot.wasserstein_1d(x[:, 0], y[:, 0], w, p=p)),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.sliced_wasserstein": Row(
        1.5,
        lambda p, key, x, w: ot.sliced_wasserstein(
            key, x, samples(x.dtype), _normalized(w), p=p, num_projections=4
        ),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.max_sliced_wasserstein": Row(
        1.5,
        lambda p, key, x, w: (
            ot.max_sliced_wasserstein(
                key, x, samples(x.dtype), _normalized(w), p=p, num_starts=2
            ).value
        ),
        smooth=False,  # the direction is found by finitely many steps
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.projected_wasserstein": Row(
        (1.5, jnp.array([[1.0, 0.3], [-0.2, 0.7]])),
        lambda method, key, x, w: ot.projected_wasserstein(
            method[1], x, samples(x.dtype), _normalized(w), p=method[0]
        ),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.transport_1d": Row(
        1.5,
        _of_points(lambda x, y, w, p: ot.transport_1d(x[:, 0], y[:, 0], w, p=p).g),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "ot.unbalanced_1d": Row(
        (1.5, 0.7),
        _of_points(
            lambda x, y, w, method: (
                ot.unbalanced_1d(
                    x[:, 0], y[:, 0], w, p=method[0], marginal_penalty=method[1], tolerance=1e-7
                ).value
            )
        ),
        smooth=False,  # to the tolerance
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "ot.gaussian_entropic": Row(
        0.5,
        lambda epsilon, key, x, w: ot.gaussian_entropic(*_gaussians(x, w), epsilon=epsilon).value,
        eager=False,
        positive=(0,),
    ),
    "ot.gaussian_wasserstein": Row(
        (), lambda method, key, x, w: ot.gaussian_wasserstein(*_gaussians(x, w))
    ),
    "ot.gaussian_map": Row(
        (), lambda method, key, x, w: ot.gaussian_map(*_gaussians(x, w))(x), "equivariant"
    ),
    "ot.gaussian_map_from_samples": Row(
        (),
        lambda method, key, x, w: ot.gaussian_map_from_samples(samples(x.dtype), x, None, w)(x),
        "equivariant",
        smooth=False,  # the samples are constants
        weighted=True,
        sampled=True,
    ),
    "ot.gaussian_barycenter": Row(jnp.array([0.3, 0.7]), _barycenter, eager=False, positive=(0,)),
    "ot.SchrodingerBridge": Row(BRIDGE, _of_bridge, "equivariant", positive=(0, 3)),
    "ot.LightSchrodingerBridge": Row(
        ot.LightSchrodingerBridge(2, 0.5, num_steps=3),
        _light_drift,
        "random",
        smooth=False,
        eager=False,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
}


class TestOt(Edges):
    rows = ROWS
