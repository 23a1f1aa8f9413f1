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
# # Transport maps and bridges
#
# Two unpaired samples, before and after. Where has each point gone? Optimal transport answers with
# the cheapest map, a Schrödinger bridge with the likeliest process. Here the optimal map is known,
# so that every estimate can be compared with it.

# %%
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from divjax import ot, plot

folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. A problem with a known answer
#
# By Brenier's theorem a map is optimal for the squared distance if and only if it is the gradient
# of a convex function. With unit vectors $u_1, u_2$, orthogonal to each other, $T(x) = x + b +
# \sum_i u_i \tanh(3 u_i^\top x)$ is one: it parts a Gaussian into four.

# %%
turn = jnp.pi / 6
u = jnp.array([[jnp.cos(turn), jnp.sin(turn)], [-jnp.sin(turn), jnp.cos(turn)]])
shift = jnp.array([5.0, 0.0])


def optimal(x):
    return x + shift + jnp.tanh(3 * x @ u.T) @ u


key_x, key_y, key_z = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(key_x, (1000, 2))
y = optimal(jax.random.normal(key_y, (1000, 2)))  # images of other points: nothing is paired
z = jax.random.normal(key_z, (1000, 2))  # points for judging, of the distribution of x
cost = float(jnp.mean(jnp.sum((optimal(z) - z) ** 2, axis=1)))
spread = float(jnp.sum(jnp.var(y, axis=0)))
print(f"W₂² = E|T(x) − x|² = {cost:.3f}")

# %% [markdown]
# ## 2. The plan, and its map
#
# `sinkhorn` couples the samples. For a small ε the plan is nearly a matching; its barycentric
# projection `transport` is a map, also at points that were not among the samples. `exact` solves
# the problem with ε = 0, for the samples alone.

# %%
wide, narrow = (ot.sinkhorn(x, y, epsilon=epsilon).check() for epsilon in (0.5, 0.05))
matched = ot.exact(x, y)
print(f"⟨P, C⟩: exact {matched.value:.3f}, ε = 0.05 {narrow.transport_cost:.3f}, ", end="")
print(f"ε = 0.5 {wide.transport_cost:.3f}")
assert matched.value < narrow.transport_cost < wide.transport_cost
# Nearly all of its error is that of the samples' means, which b multiplies.
of_means = 2 * 5.0 * np.sqrt((jnp.var(x[:, 0]) + jnp.var(y[:, 0])) / 1000)
assert abs(matched.value - cost) < 4 * of_means


def error(images):
    """E|T̂(z) − T(z)|², as a share of the variance of y."""
    return float(jnp.mean(jnp.sum((images - optimal(z)) ** 2, axis=1))) / spread


with plot.style():
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
    few = slice(0, 100)
    for axis, epsilon in zip(axes, (0.05, 0.5), strict=True):
        plan = ot.sinkhorn(x[few], y[few], epsilon=epsilon).plan()
        plot.coupling(x[few], y[few], plan, ax=axis)
        axis.set(title=f"plan of 100 and 100 points, ε = {epsilon}", xlabel="x₁")
    axes[0].set_ylabel("x₂")
    axes[0].legend(loc="upper left")
figure.savefig(folder / "transport_plans.png")

# %% [markdown]
# ## 3. Maps
#
# | method | what it is |
# |---|---|
# | `gaussian_map_from_samples` | the optimal map between two Gaussians with the samples' moments |
# | `EntropicMap` | entropic maps of blocks of rows, ε chosen on held-out rows |
# | `MongeMap` | a network that fits the target, with a penalty on its Monge gap; any cost |
# | `ICNNDual` | the gradient of a convex network: optimal for its own image by construction |

# %%
monge = ot.MongeMap(
    start="gaussian", num_steps=200, batch_size=256, learning_rate=3e-3, independent_batches=False
)
maps, seconds, again = {}, {}, {}
fits = {
    "Gaussian": lambda key: ot.gaussian_map_from_samples(x, y),
    "EntropicMap": lambda key: ot.EntropicMap().fit(key, x, y),
    "MongeMap": lambda key: monge.fit(key, x, y),
    "ICNNDual": lambda key: ot.ICNNDual(num_steps=200).fit(key, x, y),
}
for name, fit in fits.items():
    begin = time.perf_counter()
    maps[name] = jax.block_until_ready(fit(jax.random.key(1)))
    seconds[name] = time.perf_counter() - begin
    begin = time.perf_counter()
    jax.block_until_ready(fit(jax.random.key(2)))
    again[name] = time.perf_counter() - begin
images = {name: found(z) for name, found in maps.items()}

# %% [markdown]
# Two things can be wrong with a map: it may miss the target, and it may be dearer than needed for
# where it arrives. The Sinkhorn divergence measures the first, the Monge gap the second. A map
# that first turns the Gaussian by a right angle, which leaves a Gaussian as it was, arrives
# perfectly and is far from optimal.

# %%
images["optimal"] = optimal(z)
images["turned, optimal"] = optimal(z @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
errors = {name: error(moved) for name, moved in images.items()}
misses, gaps = {}, {}
print(f"{'map':16}  error   misses by   Monge gap   seconds, and again")
for name, moved in images.items():
    misses[name] = float(ot.sinkhorn_divergence(moved, optimal(z), epsilon=0.05).value)
    gaps[name] = float(ot.monge_gap(z, moved, epsilon=0.05).check().value)
    took = f"{seconds[name]:8.1f} {again[name]:8.1f}" if name in seconds else ""
    print(f"{name:16}  {errors[name]:.3f}   {misses[name]:.3f}       {gaps[name]:.3f}    {took}")
assert max(errors[name] for name in ("EntropicMap", "MongeMap", "ICNNDual")) < 0.02
assert errors["Gaussian"] > 2 * errors["EntropicMap"]
assert misses["Gaussian"] > 2 * misses["ICNNDual"]
assert abs(gaps["optimal"]) < 0.01
assert misses["turned, optimal"] < 0.2
assert gaps["turned, optimal"] > 5
assert sum(again.values()) < sum(seconds.values()) / 2

# %% [markdown]
# The Gaussian map is optimal for its own image, which is an ellipse and not four clusters. The
# three others are within two hundredths of the optimal map. Time is mostly compilation: a second
# fit of samples of the same shape, with another key, compiles nothing.

# %%
with plot.style():
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.6), sharex=True, sharey=True)
    shown = ("Gaussian", "EntropicMap", "ICNNDual", "turned, optimal")
    for axis, name in zip(axes.flat, shown, strict=True):
        axis.scatter(*np.asarray(y).T, s=5, color="C1", marker="^", alpha=0.5, label="y")
        plot.displacements(z[:60], images[name][:60], ax=axis, color="0.2", alpha=0.9)
        axis.scatter(*np.asarray(z[:60]).T, s=12, color="C0", label="new points")
        axis.set_title(f"{name}: error {errors[name]:.3f}, Monge gap {abs(gaps[name]):.2f}")
    axes[0, 0].legend(loc="lower left", markerscale=2)
    for axis in axes[1]:
        axis.set_xlabel("x₁")
    for axis in axes[:, 0]:
        axis.set_ylabel("x₂")
figure.savefig(folder / "transport_maps.png")

# %% [markdown]
# ## 4. A bridge
#
# A Schrödinger bridge is the process between both samples that is nearest to a Brownian motion of
# variance ε: its ends are coupled by an entropic plan, and on the way it obeys
# dX = g(X, t) dt + √ε dW. The light bridge fits a mixture whose plan, drift and paths are in closed
# form. Two things must hold: its ends are distributed as y, and the mean end of a point is that of
# the entropic plan, whose cost is |x − y|² with 2ε.

# %%
EPSILON = 0.2
method = ot.LightSchrodingerBridge(8, epsilon=EPSILON, covariance="full")
bridge = method.fit(jax.random.key(3), x, y).check()
ends = bridge.sample(jax.random.key(4), z)
means, _ = bridge.conditional_plan(z).moments()
entropic = ot.sinkhorn(x, y, epsilon=2 * EPSILON).check().transport(z)
apart = float(jnp.mean(jnp.sum((means - entropic) ** 2, axis=1))) / spread
missed = float(ot.sinkhorn_divergence(ends, optimal(z), epsilon=0.05).value)
print(
    f"ends miss y by {missed:.3f}; mean ends differ from Sinkhorn's by {apart:.4f} of y's variance"
)
assert missed < 0.2
assert apart < 0.01

paths = bridge.sde(jax.random.key(5), z[:60], num_steps=100)
np.testing.assert_allclose(paths[-1].mean(0), ends[:60].mean(0), atol=0.6)
with plot.style():
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharex=True, sharey=True)
    axes[0].plot(*np.moveaxis(np.asarray(paths), 2, 0), color="0.4", linewidth=0.5, linestyle="-")
    axes[0].scatter(*np.asarray(paths[0]).T, s=12, color="C0", label="start", zorder=3)
    axes[0].scatter(*np.asarray(paths[-1]).T, s=14, color="C1", marker="^", label="end", zorder=3)
    axes[0].set(title=f"paths, ε = {EPSILON}", ylabel="x₂")
    for t, color, marker in ((0.0, "C0", "o"), (0.5, "C2", "s"), (1.0, "C1", "^")):
        states = bridge.sample_at(jax.random.key(6), z[:300], t)
        axes[1].scatter(*np.asarray(states).T, s=8, color=color, marker=marker, label=f"t = {t}")
    axes[1].set_title("states at three times")
    for axis in axes:
        axis.set(xlabel="x₁", aspect="equal")
        axis.legend(loc="lower left")
figure.savefig(folder / "transport_bridge.png")

# %% [markdown]
# ## 5. Which one
#
# | you need | take |
# |---|---|
# | which point goes where, once | `exact`, or `sinkhorn` for thousands of rows and gradients |
# | a map at new points, in few dimensions | `EntropicMap` |
# | a map as a network, another cost, a family of problems | `MongeMap` |
# | an optimal map and its inverse, squared distance | `ICNNDual` |
# | random ends, or what happens on the way | `LightSchrodingerBridge` |
# | to know how far from optimal *any* map is | `monge_gap` |
