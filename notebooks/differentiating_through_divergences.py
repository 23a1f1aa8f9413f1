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
# # Differentiating through divergences
#
# A generator is trained by the gradient of a divergence between what it makes and the data: no
# discriminator has to be kept in balance with it. The same network learns two moons by four
# divergences, and all four are judged by a fifth measure on draws that none of them has seen.

# %%
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from divjax import kernels, ot, plot, ratio

folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Data and generator


# %%
def moons(key, n):
    """Two interleaved half circles of radius one, with noise of deviation 0.1."""
    angle_key, side_key, noise_key = jax.random.split(key, 3)
    angle = jax.random.uniform(angle_key, (n,), maxval=jnp.pi)
    upper = jax.random.bernoulli(side_key, shape=(n,))
    arc = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    other = jnp.array([1.0, 0.5]) - arc
    return jnp.where(upper[:, None], arc, other) + 0.1 * jax.random.normal(noise_key, (n, 2))


class Generator(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, noise):
        return self.last(jax.nn.silu(self.second(jax.nn.silu(self.first(noise)))))


BATCH, NUM_STEPS = 256, 1000
structure, start = nnx.split(Generator(nnx.Rngs(0)))


def generate(params, key, n):
    return nnx.merge(structure, params)(jax.random.normal(key, (n, 2)))


# %% [markdown]
# ## 2. Four losses
#
# Each is a function of a key and two samples, differentiable in the first. The gradient of a
# Sinkhorn divergence is that at the optimal plan, and a classifier's is that at the fitted ratio:
# neither is carried through the iterations that found it. The MMD has three widths, as one would
# be blind to what is larger or smaller.

# %%
mixed = kernels.Gaussian(bandwidth=jnp.array([0.1, 0.3, 1.0]))
classifier = ratio.ClassifierRatio("fourier", num_folds=2, calibration="none")
solver = ot.Sinkhorn(tolerance=1e-2, max_iterations=100)

losses = {
    "Sinkhorn divergence": lambda key, x, y: (
        ot.sinkhorn_divergence(x, y, epsilon=0.05, solver=solver).value
    ),
    "MMD": lambda key, x, y: mixed(x).mean() - 2 * mixed(x, y).mean() + mixed(y).mean(),
    "sliced Wasserstein": lambda key, x, y: ot.sliced_wasserstein(key, x, y, num_projections=32),
    "classifier JS": lambda key, x, y: classifier.fit(key, y, x).js().value,
}

# %% [markdown]
# The gradient is that of the loss. For one direction of the samples it agrees with the difference
# quotient; the classifier's is left out, as its value after another fit differs by more than the
# step.

# %%
key_x, key_y, key_v = jax.random.split(jax.random.key(1), 3)
x, y = generate(start, key_x, 100), moons(key_y, 100)
direction = jax.random.normal(key_v, x.shape)
exact_solver = ot.Sinkhorn(tolerance=1e-6)
checked = losses | {
    "Sinkhorn divergence": lambda key, x, y: (
        ot.sinkhorn_divergence(x, y, epsilon=0.05, solver=exact_solver).value
    )
}
with jax.enable_x64(True):
    x64, y64, v64 = (jnp.asarray(np.asarray(z, np.float64)) for z in (x, y, direction))
    for name in ("Sinkhorn divergence", "MMD", "sliced Wasserstein"):
        along = lambda t, name=name: checked[name](jax.random.key(2), x64 + t * v64, y64)
        slope = float(jax.jvp(along, (0.0,), (1.0,))[1])
        quotient = float(along(1e-6) - along(-1e-6)) / 2e-6
        print(f"{name}: derivative {slope:.6f}, difference quotient {quotient:.6f}")
        np.testing.assert_allclose(slope, quotient, rtol=1e-3)

# %% [markdown]
# ## 3. Training
#
# One loop for all: batches of data are drawn anew, and so is the noise. The steps are one
# `lax.scan`, hence one program, for each loss.

# %%
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, NUM_STEPS))


def train(loss):
    def step(carry, key):
        params, state = carry
        data_key, noise_key, loss_key = jax.random.split(key, 3)
        data = moons(data_key, BATCH)
        value, gradient = jax.value_and_grad(
            lambda params: loss(loss_key, generate(params, noise_key, BATCH), data)
        )(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(key):
        carry = start, optimizer.init(start)
        (params, _), values = jax.lax.scan(step, carry, jax.random.split(key, NUM_STEPS))
        return params, jnp.isfinite(values).all()

    return run


trained, seconds = {}, {}
for name, loss in losses.items():
    begin = time.perf_counter()
    program = train(loss).lower(jax.random.key(3)).compile()
    compiled = time.perf_counter()
    trained[name], finite = jax.block_until_ready(program(jax.random.key(3)))
    seconds[name] = time.perf_counter() - compiled
    assert finite
    print(f"{name}: {compiled - begin:.1f} s to compile, {seconds[name]:.1f} s to train")

# %% [markdown]
# ## 4. Measures for all
#
# The exact W₂² between 800 new draws of each. Two samples of the data themselves have a distance
# too: that is the floor, the mean over several pairs of samples. Beside it stands the share of the
# points that are farther from both half circles than three deviations of the noise.


# %%
def off_the_moons(z):
    def distance(z):  # to the upper half circle of radius one
        ends = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        to_ends = jnp.linalg.norm(z[:, None] - ends, axis=2).min(axis=1)
        return jnp.where(z[:, 1] >= 0, jnp.abs(jnp.linalg.norm(z, axis=1) - 1), to_ends)

    return float(jnp.mean(jnp.minimum(distance(z), distance(jnp.array([1.0, 0.5]) - z)) > 0.3))


held_out = moons(jax.random.key(4), 800)
floors = [
    float(ot.exact(moons(key, 800), held_out).value)
    for key in jax.random.split(jax.random.key(5), 4)
]
samples = {name: generate(params, jax.random.key(6), 800) for name, params in trained.items()}
distance = {name: float(ot.exact(made, held_out).value) for name, made in samples.items()}
share = {name: off_the_moons(made) for name, made in samples.items()}
before = float(ot.exact(generate(start, jax.random.key(6), 800), held_out).value)
print(f"{'':20}  W₂²     off the moons   training, s")
print(f"{'before training':20}  {before:.4f}")
for name, value in distance.items():
    print(f"{name:20}  {value:.4f}  {share[name]:.1%}            {seconds[name]:.1f}")
print(f"{'data and data':20}  {np.mean(floors):.4f}  {off_the_moons(held_out):.1%}")
assert max(distance.values()) < before / 10
for name in ("Sinkhorn divergence", "MMD", "sliced Wasserstein"):
    assert distance[name] < 1.25 * np.mean(floors)
assert distance["classifier JS"] > 1.25 * np.mean(floors)
assert off_the_moons(held_out) < 0.01 < min(share.values())

# %%
with plot.style():
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.1), sharex=True, sharey=True)
    for axis, (name, made) in zip(axes, samples.items(), strict=True):
        axis.scatter(*np.asarray(held_out).T, s=6, color="0.75", label="data")
        axis.scatter(*np.asarray(made).T, s=6, alpha=0.7, color="C0", label="generated")
        axis.set(title=f"{name}\nW₂² {distance[name]:.4f}, off {share[name]:.1%}")
        axis.set(aspect="equal", xlabel="x₁")
        axis.set(xlim=(-1.6, 2.6), ylim=(-1.3, 1.7))
    axes[0].set_ylabel("x₂")
    axes[0].legend(loc="lower left", markerscale=2)
figure.savefig(folder / "generators.png")

# %% [markdown]
# Three of the four reach the floor: by the transport of 800 draws their clouds cannot be told from
# the data. Yet some of their points lie between the moons, where the data have none: the noise is
# one blob and the network is continuous, so that a thread must join the two. A mean of squared
# distances hardly counts the thread; look at a second measure before a model is called right.
#
# A classifier is fitted anew in every step, which costs most of the time. Its gradient follows
# density ratios, which say where mass lacks but not how far it must go, and after as many steps it
# has not arrived. Its merit is a unit, bits, that depends on no cost and no width.
