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
from matplotlib.animation import FuncAnimation, PillowWriter

from divjax import flows, kernels, problems

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
print("finite:", bool(result.finite))
print("final squared gradient norm:", float(result.history.squared_norm[-1]))

# %% [markdown]
# ## 3. The moving picture

# %%
grid = jnp.stack(jnp.meshgrid(jnp.linspace(-5.5, 5.5, 120), jnp.linspace(-5.5, 5.5, 120)), axis=-1)
density = jnp.exp(jax.vmap(jax.vmap(mixture.log_prob))(grid))

figure, axes = plt.subplots(figsize=(5, 5))
axes.contourf(grid[..., 0], grid[..., 1], density, levels=12, cmap="Blues")
axes.scatter(*np.asarray(ring).T, s=4, color="tab:orange", alpha=0.5, label="samples of the ring")
dots = axes.scatter(*np.asarray(start).T, s=10, color="black", label="particles")
axes.legend(loc="lower right")
axes.set(aspect="equal", xticks=[], yticks=[])


def draw(frame):
    dots.set_offsets(result.history.observed[frame])
    axes.set_title(f"step {int(result.history.step[frame])}")


folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)
animation = FuncAnimation(figure, draw, frames=len(result.history.step))
animation.save(folder / "quickstart.gif", writer=PillowWriter(fps=15))
print("saved", folder / "quickstart.gif")

# %% [markdown]
# ## 4. What happened on the way
#
# Both objectives fall at first. Then they compete: the weights tell which one holds the other back,
# and the (squared) gradient norm tells how far the particles are from a Pareto stationary
# distribution.

# %%
history = result.history
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
left.plot(history.step, history.values, label=["−log density", "½ energy distance²"])
middle.plot(history.step, history.weights, label=["mixture", "ring"])
right.semilogy(history.step, history.squared_norm, color="black")
for axis, title in zip(
    (left, middle, right), ("objectives", "weights", "squared gradient norm"), strict=True
):
    axis.set(title=title, xlabel="step")
left.legend()
middle.legend()
figure.savefig(folder / "quickstart_history.png", dpi=120)

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
three = flow.run(jax.random.key(0), start, num_steps=100)
print("three objectives, weights at the end:", np.round(np.asarray(three.history.weights[-1]), 2))
