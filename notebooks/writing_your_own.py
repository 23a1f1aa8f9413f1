# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Writing your own
#
# Every part of a method can be one's own, without registration: a cost, a kernel, a head, an
# objective, an aggregator. Each is a few lines here, is used beside the library's, and is checked
# as the library's own parts are: derivatives against difference quotients, under `jit`, and under
# `vmap` over its numbers.
#
# `divjax.pytree` makes a class of numbers: its fields are leaves, which can be traced,
# differentiated and batched. What is structure is declared by `divjax.static()`.

# %%
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import divjax
from divjax import fdiv, flows, kernels, ot, problems, ratio

# Difference quotients need the digits of double precision.
jax.config.update("jax_enable_x64", True)
x, y = jax.random.normal(jax.random.key(0), (2, 40, 2))
y = 0.5 * y + jnp.array([2.0, 1.0])


def check_number(function, number, step=1e-5):
    """Check a function's derivative in a number, and `jit` and `vmap` over it."""
    compiled = jax.jit(function)
    value, slope = compiled(number), jax.jit(jax.grad(function))(number)
    quotient = (compiled(number + step) - compiled(number - step)) / (2 * step)
    np.testing.assert_allclose(slope, quotient, rtol=1e-4)
    np.testing.assert_allclose(function(number), value, rtol=1e-6)
    batch = jnp.array([number, 2 * number])
    one_by_one = [compiled(each) for each in batch]
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(batch), one_by_one, rtol=1e-6)
    print(
        f"value {float(value):.4f}, derivative {float(slope):.4f}, quotient {float(quotient):.4f}"
    )


# %% [markdown]
# ## A cost
#
# Any function of two points. Where a typing error puts a point far away, Huber's cost grows with
# the distance and not with its square: one outlier does not decide the plan.


# %%
@divjax.pytree
class Huber:
    delta: Any = 1.0

    def __call__(self, x, y):
        return jnp.sum(optax.losses.huber_loss(x, y, delta=self.delta))


solver = ot.Sinkhorn(tolerance=1e-9)


def cost_of_moving(delta, x=x):
    return ot.sinkhorn(x, y, epsilon=0.1, cost=Huber(delta), solver=solver).value


check_number(cost_of_moving, jnp.asarray(0.7))
outlier = x.at[0].add(100.0)
squared = [ot.sinkhorn(z, y, epsilon=0.1, solver=solver).value for z in (x, outlier)]
huber = [cost_of_moving(1.0, z) for z in (x, outlier)]
print(f"one point moved by 100: squared {squared[1] / squared[0]:.0f} times, ", end="")
print(f"Huber {huber[1] / huber[0]:.1f} times the cost")
assert huber[1] / huber[0] < 5 < squared[1] / squared[0]

# %% [markdown]
# ## A kernel
#
# A radial kernel says its values and slopes at squared distances, ∇ₓk(x, y) = slope · (x − y).
# Nothing is differentiated through n² pairs. `init` and `resolve` serve bandwidth rules: a kernel
# without one returns itself.


# %%
@divjax.pytree
class RationalQuadratic:
    scale: Any = 1.0
    positive_definite = True
    log_slope = None  # slope/value is not one number for all pairs

    def init(self, x):
        return ()

    def resolve(self, x, state):
        return self, state

    def radial(self, squared):
        value = 1 / (1 + squared / self.scale**2)
        return value, -2 / self.scale**2 * value**2

    def __call__(self, x, y=None):
        differences = x[:, None] - (x if y is None else y)[None]
        return self.radial(jnp.sum(differences**2, axis=-1))[0]


# It is the inverse multiquadric with exponent one, which gives its values and its slopes.
own, theirs = RationalQuadratic(0.8), kernels.InverseMultiquadric(0.8, exponent=1.0)
np.testing.assert_allclose(own(x, y), theirs(x, y), rtol=1e-6)
squares = jnp.linspace(0, 9, 10)
np.testing.assert_allclose(own.radial(squares)[1], theirs.radial(squares)[1], rtol=1e-6)


def half_mmd(scale):
    objective = flows.MMD(y, RationalQuadratic(scale))
    state = objective.init(jax.random.key(0), x)
    return objective(jax.random.key(0), x, jnp.full(40, 1 / 40), state)[0].value


check_number(half_mmd, jnp.asarray(0.8))

# %% [markdown]
# ## A head
#
# A head is a model of log p/q that is fitted to a fold's rows; an estimator cross-fits it. This one
# takes both samples for Gaussians of unit covariance: the log ratio is linear, and its slope the
# difference of the means. Heads see standardised features, hence the ridge of one.


# %%
@divjax.pytree
class Midpoint:
    strength: Any = 1.0

    def fit(self, key, fold):
        p, q, weights_p, weights_q = fold.train
        return weights_p @ p, weights_q @ q

    def __call__(self, params, z):
        mean_p, mean_q = params
        return self.strength * (z - (mean_p + mean_q) / 2) @ (mean_p - mean_q)


task = problems.gaussian_shift(2, 0.3)
p, q = task.sample(jax.random.key(1), 1000)
method = ratio.ClassifierRatio(Midpoint(), num_folds=2)
fit = method.fit(jax.random.key(2), p, q)
kl = fit.kl()
print(f"KL {kl}, the truth is {task.kl:.1f}")
assert kl.interval.lower < task.kl < kl.interval.upper


# Its numbers are leaves too: derivatives and `vmap` go through its fit.
rows = ratio.Rows(p, q, jnp.full(1000, 1e-3), jnp.full(1000, 1e-3))
fold = ratio.Fold(rows, rows)


def cross_entropy(strength):
    head = Midpoint(strength)
    params = head.fit(jax.random.key(3), fold)
    return (jax.nn.softplus(-head(params, p)).mean() + jax.nn.softplus(head(params, q)).mean()) / 2


check_number(cross_entropy, jnp.asarray(0.5))

# %% [markdown]
# ## A generator of an f-divergence
#
# f as a function of the log ratio u = log r. Any fit estimates the divergence; here the one of the
# last section, and the truth by quadrature on the line between the two means.


# %%
@divjax.pytree
class Triangular(fdiv.Generator):
    """(r − 1)²/(r + 1)."""

    def f(self, u):
        return (jnp.exp(u) - 1) * jnp.tanh(u / 2)


triangular = fit.divergence(Triangular())
grid, apart = np.linspace(-9, 9, 2001), np.sqrt(2 * task.kl)
of_p, of_q = (np.exp(-((grid - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in (apart, 0.0))
truth = np.trapezoid((of_p - of_q) ** 2 / (of_p + of_q), grid)
print(f"triangular discrimination {triangular}, the truth is {truth:.4f}")
assert triangular.interval.lower < truth < triangular.interval.upper
slopes = jax.vmap(jax.grad(Triangular().f))(jnp.array([-800.0, 0.0, 30.0]))
assert jnp.isfinite(slopes).all()

# %% [markdown]
# ## An objective
#
# The value of an energy of the particles, its first variation at each of them, and the gradient of
# that. An entropy of zero makes it a pure energy. The gradient of the value in a particle is its
# mass times the gradient of the first variation, which can be checked.


# %%
@divjax.pytree
class Anisotropy:
    """(E|x₁|² − E|x₂|²)²: zero where both coordinates vary alike."""

    strength: Any = 1.0
    entropy = 0.0

    def init(self, key, particles):
        return ()

    def __call__(self, key, particles, weights, state):
        signed = particles**2 @ jnp.array([1.0, -1.0])
        excess = weights @ signed
        potential = 2 * self.strength * excess * signed
        gradient = 4 * self.strength * excess * particles * jnp.array([1.0, -1.0])
        return flows.Variation(self.strength * excess**2, potential, gradient), state


weights = jnp.full(40, 1 / 40)
stretched = x * jnp.array([3.0, 1.0])


def energy(particles, strength=1.0):
    return Anisotropy(strength)(jax.random.key(0), particles, weights, ())[0].value


variation, _ = Anisotropy()(jax.random.key(0), stretched, weights, ())
by_autodiff = jax.grad(energy)(stretched) / weights[:, None]
np.testing.assert_allclose(variation.gradient, by_autodiff, rtol=1e-6)
nudge = 1e-5 * jax.random.normal(jax.random.key(5), x.shape)
quotient = (energy(stretched + nudge) - energy(stretched - nudge)) / 2
slope = jnp.sum(weights[:, None] * variation.gradient * nudge)
np.testing.assert_allclose(slope, quotient, rtol=1e-5)
check_number(lambda strength: energy(stretched, strength), jnp.asarray(0.5))

# %% [markdown]
# ## An aggregator
#
# Weights over the K velocity fields. This one gives more weight to objectives that are worse off,
# a softmax of their values.


# %%
@divjax.pytree
class Worst:
    temperature: Any = 1.0

    def init(self, key, num_objectives):
        return ()

    def __call__(self, fields, state):
        return jax.nn.softmax(fields.values / self.temperature), state


def run(temperature):
    flow = flows.Flow(
        (flows.MMD(y, kernels.Energy()), Anisotropy(0.1)),
        velocity=flows.GFSD(kernels.Gaussian(bandwidth=1.0)),
        aggregator=Worst(temperature),
        optimizer=optax.sgd(0.1),
    )
    return flow.run(jax.random.key(0), stretched, num_steps=50)


result = run(1.0)
print("values", result.history.values[0].round(3), "→", result.history.values[-1].round(3))
print("weights", result.history.weights[0].round(3), "→", result.history.weights[-1].round(3))
assert jnp.all(result.history.values[-1] < result.history.values[0])


# Even a whole run can be differentiated in the number of one of its parts.
def value_after(temperature):
    return run(temperature).history.values[-1, 0]


check_number(value_after, jnp.asarray(1.0))
