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
# # Sweeping hyper-parameters in one compilation
#
# Learning rate × bandwidth × seed of a flow: every number inside a velocity, a kernel or an
# optimizer is a leaf, so the whole grid is one `vmap`, compiled once. We time it against the loop
# that one would otherwise write.

# %%
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from divjax import flows, kernels, problems

targets = [flows.KL(target.log_prob) for target in problems.two_component_targets()]
learning_rates = jnp.logspace(-3, -0.5, 8)
bandwidths = jnp.logspace(-1, 1, 8)
seeds = jnp.arange(4)

# %% [markdown]
# One experiment is a function of its numbers. How good is it? The kernel Stein discrepancy to the
# first target would do; here we ask how near to Pareto stationarity 200 steps come.


# %%
def experiment(learning_rate, bandwidth, seed):
    key = jax.random.key(seed)
    particles = jax.random.normal(jax.random.fold_in(key, 1), (30, 2))
    flow = flows.Flow(
        targets,
        velocity=flows.Blob(kernels.Gaussian(bandwidth=bandwidth)),
        optimizer=optax.adam(learning_rate),
    )
    return flow.run(key, particles, num_steps=200).history.squared_norm[-1]


# %% [markdown]
# ## The sweep

# %%
over_seeds = jax.vmap(experiment, in_axes=(None, None, 0))
over_bandwidths = jax.vmap(over_seeds, in_axes=(None, 0, None))
sweep = jax.jit(jax.vmap(over_bandwidths, in_axes=(0, None, None)))

begin = time.perf_counter()
norms = jax.block_until_ready(sweep(learning_rates, bandwidths, seeds))
sweep_seconds = time.perf_counter() - begin
print(f"{norms.size} flows in one compilation: {sweep_seconds:.1f} s, compilation included")

# %% [markdown]
# ## The loop
#
# The same experiments one by one. The usual loop compiles again at every setting, as the settings
# are constants of the compiled function; we time a few and scale up. The kinder loop compiles once
# and takes them as arguments.

# %%
few = [(i, j) for i in (1, 6) for j in (2, 5)]
begin = time.perf_counter()
for i, j in few:
    rate, width = float(learning_rates[i]), float(bandwidths[j])
    jax.jit(lambda seed, rate=rate, width=width: experiment(rate, width, seed))(
        0
    ).block_until_ready()
loop_seconds = (time.perf_counter() - begin) / len(few) * norms[..., 0].size

compiled = jax.jit(experiment)
begin = time.perf_counter()
loop = np.array([[[compiled(r, b, s) for s in seeds] for b in bandwidths] for r in learning_rates])
kind_seconds = time.perf_counter() - begin
# The two agree where a flow is stable; large steps with a narrow kernel are chaotic, and rounding
# decides.
np.testing.assert_allclose(norms[:4], loop[:4], rtol=0.02)
print(f"compiling at every setting: {loop_seconds:.0f} s for one seed (from {len(few)} settings)")
print(f"compiling once, then a loop: {kind_seconds:.1f} s;  the sweep: {sweep_seconds:.1f} s")

# %% [markdown]
# ## The heatmap

# %%
figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
mesh = axes.pcolormesh(
    bandwidths, learning_rates, np.log10(norms).mean(-1), cmap="viridis", shading="nearest"
)
axes.set(xscale="log", yscale="log", xlabel="bandwidth", ylabel="learning rate")
axes.set_title("squared gradient norm after 200 steps, mean over seeds")
figure.colorbar(mesh, label="log₁₀")
folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)
figure.savefig(folder / "sweep.png", dpi=120)
best = np.unravel_index(np.log10(norms).mean(-1).argmin(), norms.shape[:2])
print(f"best: learning rate {learning_rates[best[0]]:.3g}, bandwidth {bandwidths[best[1]]:.3g}")
