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
# # Flows of several objectives
#
# Particles move until several functionals of their distribution decrease together. This notebook
# goes through the four nouns of a flow, mixes targets known by densities with targets known by
# samples, compares minimum-norm weights with fixed ones, and draws the Pareto front.

# %%
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from divjax import flows, kernels, plot, problems, sweep

folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Four nouns
#
# An **objective** is a functional F(q) of the particles' distribution, a **velocity** estimates its
# steepest descent from the particles, an **aggregator** weighs the velocities of several
# objectives, and an **optimizer** takes the step. Four mixtures share a mode near the origin, and
# each has a corner of its own. With minimum-norm weights the particles go where no objective can
# decrease without another one increasing: to the mode that all share.

# %%
targets = problems.two_component_targets()
start = jax.random.normal(jax.random.key(1), (50, 2))
flow = flows.Flow(
    [flows.KL(target.log_prob) for target in targets],
    velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)),
    aggregator=flows.MinNorm(),
    optimizer=flows.accelerated(0.02),
)
result = flow.run(jax.random.key(0), start, num_steps=600).check()
norms = result.history.squared_norm
print(result)
print(f"squared norm of the combined field: {norms[0]:.2g} at first, {norms[-1]:.2g} at the end")
assert norms[-1] < 1e-6
assert jnp.linalg.norm(result.particles.mean(axis=0)) < 0.5

# %% [markdown]
# `flow.fields` gives the K velocity fields at a state. Their own minimum-norm combination is a
# certificate of Pareto stationarity that does not depend on the weights that the flow used.

# %%
fields = flow.fields(jax.random.key(0), result.state)
residual = flows.pareto_residual(fields.velocities)
lengths = jnp.mean(jnp.sum(fields.velocities**2, axis=2), axis=1)
print("squared norms of the single fields:", np.round(lengths, 2))
print(f"Pareto residual: {residual:.1e}")
assert residual < 1e-6
assert lengths.min() > 1000 * residual  # no objective by itself is stationary here

# %%
with plot.style():
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharex=True, sharey=True)
    for k, (axis, target) in enumerate(zip(axes, targets, strict=True)):
        limits = (-6.0, 6.0, -6.0, 6.0)
        plot.particles(result.particles, target.log_prob, ax=axis, limits=limits)
        axis.set(title=f"target {k + 1}: weight {result.history.weights[-1, k]:.2f}", xlabel="x₁")
    axes[0].set_ylabel("x₂")
figure.savefig(folder / "flows_targets.png")

# %% [markdown]
# ## 2. Densities and samples together
#
# A ring is known by samples, a Gaussian at its side by its density up to a constant. The first is
# an MMD with the energy kernel, which needs no bandwidth, the second a KL divergence. A third
# objective can be any energy: here a potential that keeps particles above a floor.

# %%
angle = jax.random.uniform(jax.random.key(2), (300,), maxval=2 * jnp.pi)
ring = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
beside = problems.GaussianMixture(jnp.ones(1), jnp.array([[2.0, 0.0]]), 0.5)
cloud = 0.3 * jax.random.normal(jax.random.key(3), (100, 2)) + jnp.array([-3.0, -3.0])
mixed = (flows.MMD(ring, kernels.Energy()), flows.KL(beside.log_prob))
adam, blob = optax.adam(0.03), flows.Blob(kernels.Gaussian(bandwidth=0.4))


def position(state):
    return state.particles


begin = time.perf_counter()
moved = flows.Flow(
    (*mixed, flows.Potential(lambda x: jax.nn.softplus(-1 - x[1]))), velocity=blob, optimizer=adam
).run(jax.random.key(0), cloud, num_steps=400, record_every=8, observe=position)
print(f"three objectives: {time.perf_counter() - begin:.1f} s, compilation included")
print("weights at the end:", np.round(moved.history.weights[-1], 2))
with plot.style():
    steps = moved.history.step.tolist()
    film = plot.animation(moved.history.observed, beside.log_prob, steps=steps)
    film.save(folder / "flows.gif", writer="pillow")
plt.close("all")
assert moved.finite

# %% [markdown]
# ## 3. Minimum norm or fixed weights
#
# Fixed weights descend the weighted sum: one objective may pay for another. Along the minimum-norm
# field none increases to first order. Start on a ring that is half as large again: both objectives
# can fall at first. With equal weights the ring's soon rises above where it began. The minimum norm
# gives the ring all of the weight, and the other one falls along with it as far as it can.


# %%
# %%
def both(aggregator, particles, num_steps=300):
    flow = flows.Flow(mixed, velocity=blob, aggregator=aggregator, optimizer=optax.sgd(0.05))
    return flow.run(jax.random.key(0), particles, num_steps=num_steps)


larger = 1.5 * ring[:100]
curves = {
    "minimum norm": both(flows.MinNorm(), larger).history,
    "equal weights": both(flows.FixedWeights(), larger).history,
}
rise = {
    name: float(history.values[-1, 0] - history.values[0, 0]) for name, history in curves.items()
}
print({name: round(value, 3) for name, value in rise.items()}, "rise of ½ MMD²")
assert rise["minimum norm"] < 0
assert jnp.diff(curves["minimum norm"].values, axis=0).max() < 0.01
assert rise["equal weights"] > 0.1

with plot.style():
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, history in curves.items():
        for k, axis in enumerate(axes[:2]):
            plot.curves(history.values[:, k], steps=history.step, label=name, ax=axis)
        plot.curves(history.weights[:, 0], steps=history.step, label=name, ax=axes[2])
    titles = ("½ MMD² to the ring", "E[−log π] of the cloud beside, nats", "weight of the ring")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
    axes[0].legend()
figure.savefig(folder / "flows_weights.png")

# %% [markdown]
# ## 4. The Pareto front
#
# Each fixed pair of weights leads to one point of the front. A weight is a leaf: the sweep is one
# `vmap`, compiled once. Here both targets are samples, and both objectives half a squared distance
# in the kernel's space, F_k = ½ ‖q − p_k‖². The weighted sum w F₁ + (1 − w) F₂ is least at the
# mixture w p₁ + (1 − w) p₂, so that the front is known:
#
# $$\sqrt{F_1} + \sqrt{F_2} = \tfrac{1}{\sqrt 2}\, \mathrm{MMD}(p_1, p_2).$$

# %%
aside = jnp.array([2.0, 0.0]) + jnp.sqrt(0.5) * jax.random.normal(jax.random.key(5), (300, 2))
energy = kernels.Energy()
pair = (flows.MMD(ring, energy), flows.MMD(aside, energy))
distance = jnp.sqrt(energy(ring).mean() + energy(aside).mean() - 2 * energy(ring, aside).mean())


def end_of(aggregator, particles):
    flow = flows.Flow(
        pair,
        velocity=flows.GFSD(kernels.Gaussian(bandwidth=1.0)),  # without entropies it is not used
        aggregator=aggregator,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 400)),
    )
    return flow.run(jax.random.key(0), particles, num_steps=401, record_every=400).history.values[
        -1
    ]


def experiment(key, weight):
    first = jax.random.normal(key, (150, 2))
    return {"values": end_of(flows.FixedWeights(jnp.stack([weight, 1 - weight])), first)}


swept = sweep(
    jax.random.key(0),
    experiment,
    {"weight": np.linspace(0.02, 0.98, 13)},
    num_seeds=1,
    dims={"values": ("objective",)},
    progress=False,
)
fixed = swept["values"].values.reshape(-1, 2)
corners = jnp.array([[-4.0, 0.0], [0.0, 4.0], [2.0, 0.0], [6.0, 0.0]])
starts = corners[:, None] + 0.5 * jax.random.normal(jax.random.key(6), (4, 150, 2))
least = jax.jit(jax.vmap(lambda particles: end_of(flows.MinNorm(), particles)))(starts)

share = np.linspace(0, 1, 200)
exact = float(distance) ** 2 / 2 * np.stack([(1 - share) ** 2, share**2], axis=1)
off = np.abs(np.sqrt(fixed).sum(axis=1) - float(distance) / np.sqrt(2)) / float(distance)
off_least = np.abs(np.sqrt(least).sum(axis=1) - float(distance) / np.sqrt(2)) / float(distance)
print("off the front, as a share of the distance of the targets:")
print("fixed weights", off.round(3), "minimum norm", off_least.round(3))
assert off.max() < 0.01
assert off_least.max() < 0.03

reference = jnp.full(2, 1.2 * float(distance) ** 2 / 2)
volume = float(flows.hypervolume(fixed, reference) / flows.hypervolume(exact, reference))
print(f"{len(fixed)} weights dominate {volume:.0%} of the volume of the exact front")
assert 0.9 < volume < 1

with plot.style():
    figure, axis = plt.subplots(figsize=(5.5, 4.4))
    axis.plot(*exact.T, color="0.6", linestyle="-", label="exact front")
    plot.front(fixed, label="fixed weights", ax=axis, color="C0")
    axis.scatter(*np.asarray(least).T, s=40, color="C4", marker="^", zorder=4, label="minimum norm")
    axis.set(xlabel="F₁ = ½ MMD² to the ring", ylabel="F₂ = ½ MMD² to the cloud beside")
    axis.legend()
figure.savefig(folder / "flows_front.png")

# %% [markdown]
# ## 5. Diagnostics
#
# `observe=flows.Diagnostics(…)` records how far particles are from a target, how much of its spread
# they have, and how many are distinct.

# %%
watched = flows.Flow(
    (flows.KL(beside.log_prob),), velocity=flows.SVGD(kernels.Gaussian()), optimizer=adam
).run(
    jax.random.key(0),
    cloud,
    num_steps=600,
    record_every=20,
    observe=flows.Diagnostics(
        samples=beside.sample(jax.random.key(7), 500), log_prob=beside.log_prob
    ),
)
seen = watched.history.observed
print(seen)
print(f"spread {seen.spread[0]:.2f} → {seen.spread[-1]:.2f}, ", end="")
print(f"discrepancy {seen.stein_discrepancy[0]:.3g} → {seen.stein_discrepancy[-1]:.3g}")
assert seen.distinct.tolist() == [100] * 30
assert seen.stein_discrepancy[-1] < 1e-3 * seen.stein_discrepancy[0]
assert 0.7 < seen.spread[-1] < 1.1
with plot.style():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    plot.curves(seen.stein_discrepancy, steps=watched.history.step, ax=axes[0])
    axes[0].set(yscale="log", xlabel="step", ylabel="squared Stein discrepancy")
    plot.curves(seen.spread, steps=watched.history.step, ax=axes[1])
    axes[1].axhline(1, color="0.4", linestyle="--", label="as the target")
    axes[1].set(xlabel="step", ylabel="relative spread")
    axes[1].legend()
figure.savefig(folder / "flows_diagnostics.png")
