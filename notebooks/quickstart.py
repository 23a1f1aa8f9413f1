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
# # Quickstart: one flow, two objectives
#
# Two objectives, one known by its density and one by samples. We move 200 particles until neither
# can fall further without the other rising, and watch them go.

# %%
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from divjax import flows, kernels, plot, problems

# %% [markdown]
# ## 1. What should fall
#
# A mixture of two Gaussians is known by its density: its objective is a KL divergence. A ring is
# known by draws from it: its objective is a maximum mean discrepancy, here the energy distance,
# which needs no bandwidth.

# %%
mixture = problems.GaussianMixture(
    weights=jnp.array([0.5, 0.5]),
    means=jnp.array([[-3.0, 0.0], [3.0, 0.0]]),
    covariances=jnp.array(0.3),
)
angles = jax.random.uniform(jax.random.key(1), (300,), maxval=2 * jnp.pi)
ring = 3 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
objectives = (flows.KL(mixture.log_prob), flows.MMD(ring, kernels.Energy()))

# %% [markdown]
# ## 2. Run the flow
#
# The velocity estimates the steepest descent from the particles, the aggregator weighs the two, the
# optimizer takes the step. `observe` records whatever you like along the way.
# The first run compiles the flow. A second one, with other particles or another key, does not.

# %%
start = 0.5 * jax.random.normal(jax.random.key(2), (200, 2)) + jnp.array([0.0, 4.0])
flow = flows.Flow(
    objectives,
    velocity=flows.Blob(kernels.Gaussian(bandwidth=0.4)),
    aggregator=flows.MinNorm(),
    optimizer=optax.adam(0.03),
)
result = flow.run(
    jax.random.key(0),
    start,
    num_steps=600,
    record_every=10,
    observe=lambda state: state.particles,
)
print(result)
assert result.finite

# %% [markdown]
# ## 3. The moving picture

# %%
folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)
with plot.style():
    steps = result.history.step.tolist()
    film = plot.animation(
        result.history.observed, mixture.log_prob, steps=steps, color="black", s=7
    )
    # The film draws on the current axis: what stands still is added there.
    axis = plt.gca()
    axis.scatter(*np.asarray(ring).T, s=4, color="C1", label="samples of the ring")
    axis.set(xlabel="x₁", ylabel="x₂", xlim=(-5.5, 5.5), ylim=(-4.5, 5.5))
    axis.legend(loc="lower right", markerscale=3)
    film.save(folder / "quickstart.gif", writer="pillow")
print("saved", folder / "quickstart.gif")

# %% [markdown]
# ## 4. What happened on the way
#
# Both objectives fall at first. Then they compete: the weights tell which one holds the other back,
# and the squared gradient norm tells how far the particles are from a Pareto stationary
# distribution. What is recorded of a KL divergence is its energy E[−log π], the part that needs no
# density of the particles.

# %%
history = result.history
with plot.style():
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for k, name in enumerate(("mixture: E[−log π], nats", "ring: ½ energy distance²")):
        plot.curves(history.values[:, k], steps=history.step, label=name, ax=axes[0])
    for k, name in enumerate(("mixture", "ring")):
        plot.curves(history.weights[:, k], steps=history.step, label=name, ax=axes[1])
    plot.curves(history.squared_norm, steps=history.step, ax=axes[2], color="black")
    for axis, title in zip(axes, ("objectives", "weights", "squared gradient norm"), strict=True):
        axis.set(title=title, xlabel="step")
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    axes[0].legend()
    axes[1].legend()
figure.savefig(folder / "quickstart_history.png")
assert jnp.all(history.values[-1] < history.values[0])
assert history.squared_norm[-1] < 1e-4 * history.squared_norm[0]

# %% [markdown]
# ## 5. Make it yours
#
# An objective is any object with `entropy`, `init` and `__call__`; this one pulls every particle
# towards a line. It joins the others as it is.


# %%
class Line:
    """The energy E[(x₁ + x₂)²]."""

    entropy = 0.0

    def init(self, key, particles):
        return ()

    def __call__(self, key, particles, weights, state):
        potential = jnp.sum(particles, axis=1) ** 2
        gradient = 2 * jnp.sum(particles, axis=1, keepdims=True) * jnp.ones(2)
        return flows.Variation(weights @ potential, potential, gradient), state


flow = flows.Flow(
    (*objectives, Line()),
    velocity=flows.Blob(kernels.Gaussian(bandwidth=0.4)),
    optimizer=optax.adam(0.03),
)
three = flow.run(jax.random.key(0), start, num_steps=300)
print("three objectives, weights at the end:", np.round(np.asarray(three.history.weights[-1]), 2))
assert jnp.all(three.history.values[-1] < three.history.values[0])

# %% [markdown]
# ## 6. Where to go from here
#
# | question | notebook |
# |---|---|
# | which measure for which question? | `choosing_a_divergence` |
# | have two tables the same distribution? | `compare_two_tables` |
# | a divergence as a loss | `differentiating_through_divergences` |
# | fixed weights, Pareto fronts, diagnostics | `multi_objective_flows` |
# | plans, maps and processes between samples | `transport_maps_and_bridges` |
# | many settings and seeds at once | `sweeping_hyperparameters` |
# | parts of your own | `writing_your_own` |
