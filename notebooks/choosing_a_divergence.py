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
# # Choosing a divergence
#
# Six pairs of distributions in the plane, and every measure of the library on 1000 draws of each.
# The truth is known, in closed form or by quadrature, so that each number can be called right,
# noisy or wrong, and the measure that suits a question can be chosen for a reason.

# %%
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import norm

from divjax import Normal, fdiv, kernels, ot, plot, problems, ratio

folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)
pd.set_option("display.width", 160, "display.max_columns", 20)

# %% [markdown]
# ## 1. The pairs, and what is true of them
#
# All distributions have independent coordinates. The first four pairs are Gaussians and mixtures
# of them; of the last two, two squares and two parallel lines, no point of one is a point of the
# other. Kullback–Leibler and Jensen–Shannon are in closed form or by quadrature (`problems`). The
# squared Wasserstein distance is a sum over coordinates, on each of which it is the integral of
# the squared difference of quantiles.

# %%
SHIFT, SCALE, RARE, FAR, GAP, HEIGHT = 1.0, 1.5, 0.02, 8.0, 2.0, 0.1
origin, unit = jnp.zeros((1, 2)), jnp.ones(1)
standard = problems.GaussianMixture(unit, origin, 1.0)
rare = problems.GaussianMixture(
    jnp.array([1 - RARE, RARE]), jnp.array([[0.0, 0.0], [FAR, 0.0]]), 1.0
)
tasks = {
    "equal": problems.gaussian_shift(2, 0.0),
    "shift": problems.gaussian_pair(
        Normal(np.array([SHIFT, 0]), np.ones(2)), Normal(np.zeros(2), np.ones(2))
    ),
    "scale": problems.gaussian_scale(2, SCALE),
    "rare mode": problems.mixtures(rare, standard),
}


def squares(key):
    x, y = jax.random.uniform(key, (2, 1000, 2))
    return x + jnp.array([GAP, 0.0]), y


def lines(key):
    x, y = jax.random.normal(key, (2, 1000, 1))
    return jnp.concatenate([x, 0 * x + HEIGHT], 1), jnp.concatenate([y, 0 * y], 1)


keys = dict(zip([*tasks, "squares", "lines"], jax.random.split(jax.random.key(0), 6), strict=True))
pairs = {name: task.sample(keys[name], 1000) for name, task in tasks.items()}
pairs |= {"squares": squares(keys["squares"]), "lines": lines(keys["lines"])}

# %% [markdown]
# The quantiles of the rare mode's first coordinate by interpolation of its distribution function.

# %%
at = np.linspace(-8, 16, 20_001)
cumulated = (1 - RARE) * norm.cdf(at) + RARE * norm.cdf(at - FAR)
level = (np.arange(200_000) + 0.5) / 200_000
apart = np.interp(level, cumulated, at) - norm.ppf(level)

truth = pd.DataFrame(index=["KL, nats", "JS, bits", "W₂²"], columns=list(pairs), dtype=float)
for name, task in tasks.items():
    truth.loc["KL, nats", name], truth.loc["JS, bits", name] = task.kl, task.js / np.log(2)
truth.loc["KL, nats", ["squares", "lines"]] = np.inf
truth.loc["JS, bits", ["squares", "lines"]] = 1.0
truth.loc["W₂²"] = [0, SHIFT**2, 2 * (SCALE - 1) ** 2, np.mean(apart**2), GAP**2, HEIGHT**2]
print(truth.round(4).to_string())

# %%
with plot.style():
    figure, axes = plt.subplots(2, 3, figsize=(9, 6))
    for axis, (name, (x, y)) in zip(axes.flat, pairs.items(), strict=True):
        axis.scatter(*np.asarray(y).T, s=9, marker="^", alpha=0.5, color="C1", label="y ~ q")
        axis.scatter(*np.asarray(x).T, s=7, marker="o", alpha=0.5, color="C0", label="x ~ p")
        axis.set(title=name, xlabel="x₁", ylabel="x₂")
        axis.set_aspect("auto" if name == "lines" else "equal", adjustable="datalim")
    axes[1, 2].set_ylim(-0.5, 0.6)  # the lines are apart by a tenth
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=2)
figure.savefig(folder / "choosing_pairs.png")

# %% [markdown]
# ## 2. Every measure of each pair
#
# MMD and energy distance are means of kernels: one kernel for all three terms, without the
# diagonal, so that equal distributions give zero on average. The sliced cost in the plane is half
# of W₂² for a shift, and is doubled here to compare. Histograms look at one column at a time: the
# larger divergence is shown.

# %%
method = ratio.ClassifierRatio()


@jax.jit
def divergences(fit):  # in one program, which compiles in less time than one for each
    return fit.kl(), fit.js(base=2), fit.diagnostics.beyond_log_n


@jax.jit
def mmd(kernel, x, y):
    def within(z):
        values = kernel(z)
        return (values.sum() - jnp.trace(values)) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def moments(z):
    return Normal(z.mean(axis=0), jnp.cov(z.T) + 1e-12 * jnp.eye(2))


def js_of_bins(p, q):
    return fdiv.categorical.jensen_shannon(p, q, base=2)


def measures(key, x, y):
    kl, js, beyond_log_n = divergences(method.fit(key, x, y))
    of_bins = fdiv.histogram.divergence(js_of_bins, x, y, num_bins=10)
    return {
        "KL, classifier": kl,
        "KL, neighbours": fdiv.knn_kl(x, y),
        "KL, Gaussians": fdiv.gaussian.kl(moments(x), moments(y)),
        "JS, classifier": js,
        "JS, histogram": jnp.max(of_bins),
        "W₂², exact": ot.exact(x[:500], y[:500]).value,
        "W₂², Sinkhorn": ot.sinkhorn_divergence(x, y, epsilon=0.05).value,
        "W₂², Gaussians": ot.gaussian_wasserstein(moments(x), moments(y)),
        "W₂², sliced, doubled": 2 * ot.sliced_wasserstein(key, x, y),
        "MMD², width 1": mmd(kernels.Gaussian(bandwidth=1.0), x, y),
        "energy distance²": mmd(kernels.Energy(), x, y),
        "beyond log n": beyond_log_n,
    }


begin = time.perf_counter()
found = {name: measures(jax.random.key(1), x, y) for name, (x, y) in pairs.items()}
print(
    f"twelve numbers of each of six pairs: {time.perf_counter() - begin:.0f} s, mostly to compile"
)
table = pd.DataFrame(
    {name: {of: float(value) for of, value in row.items()} for name, row in found.items()}
)
print(table.round(3).to_string())

# %%
families = {"KL, nats": "KL", "JS, bits": "JS", "W₂²": "W₂²"}
with plot.style():
    figure, axes = plt.subplots(3, 1, figsize=(7.5, 8), sharex=True)
    for axis, (label, family) in zip(axes, families.items(), strict=True):
        rows = [name for name in table.index if name.startswith(family)]
        top = {"KL": 50.0, "JS": 1.5, "W₂²": 8.0}[family]
        # What is larger, or infinite, is drawn at the top.
        exact = np.minimum(truth.loc[label], top)
        axis.hlines(exact, np.arange(6) - 0.35, np.arange(6) + 0.35, "0.3", label="truth")
        for k, row in enumerate(rows):
            at = np.arange(6) + 0.16 * (k - (len(rows) - 1) / 2)
            values = np.clip(table.loc[row].astype(float), None, top)
            axis.plot(at, values, "os^D"[k], label=row.split(", ", 1)[1])
        linear = {"KL": 1.0, "JS": 0.02, "W₂²": 0.1}[family]
        axis.set_yscale("symlog", linthresh=linear)
        axis.set(ylabel=label, ylim=(-linear / 4, 1.4 * top))
        axis.grid(visible=False, axis="x")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0].annotate("∞", (3.45, 42), ha="center")
    axes[0].set_title("estimates from 1000 draws and the truth; linear near zero, else logarithmic")
    axes[2].set_xticks(np.arange(6), list(pairs))
figure.savefig(folder / "choosing_estimates.png")

# %% [markdown]
# ## 3. Where each is right
#
# Between smooth distributions that overlap, all agree with the truth, within their error.


# %%
def holds(name, of, label):
    low, high = found[name][of].interval
    return bool(low <= truth.loc[label, name] <= high)


for name in ("equal", "shift", "scale"):
    assert holds(name, "KL, classifier", "KL, nats")
    assert holds(name, "KL, neighbours", "KL, nats")
    assert holds(name, "JS, classifier", "JS, bits")
    for of in ("exact", "Sinkhorn", "Gaussians", "sliced, doubled"):
        assert abs(table.loc[f"W₂², {of}", name] - truth.loc["W₂²", name]) < 0.2

# %% [markdown]
# **A transport cost of samples is not zero between equal distributions.** Points must be moved
# onto other points. The exact cost has the largest bias, the entropic one less, and one direction
# at a time, or two moments, nearly none. MMD and energy distance without the diagonal have none.

# %%
bias = table["equal"]
print(bias[[name for name in table.index if "W₂²" in name or "²" in name]].round(4).to_string())
assert bias["W₂², exact"] > bias["W₂², Sinkhorn"] > bias["W₂², Gaussians"]
assert bias["W₂², exact"] > 10 * abs(bias["energy distance²"])

# %% [markdown]
# ## 4. Where each fails
#
# **A rare mode far away** is two rows of a hundred, and most of KL and of W₂². Jensen–Shannon and
# MMD hardly see it: they are bounded by the share of the rows. KL estimates are far too low, and
# their intervals do not say so: the ratio is e²⁴ and more where y has no row, and no estimator can
# know how far beyond its rows a density falls. Moments mistake the mode for a larger variance.
# Transport costs without such a model see it: each of the rows is moved a long way.

# %%
far = table["rare mode"]
assert not holds("rare mode", "KL, classifier", "KL, nats")
assert not holds("rare mode", "KL, neighbours", "KL, nats")
assert far["KL, Gaussians"] < truth.loc["KL, nats", "rare mode"] / 2
assert far["JS, classifier"] < 0.02
assert abs(far["MMD², width 1"]) < 0.002
assert far["W₂², Gaussians"] < truth.loc["W₂²", "rare mode"] / 2
assert abs(far["W₂², Sinkhorn"] / truth.loc["W₂²", "rare mode"] - 1) < 0.2

# %% [markdown]
# **Disjoint supports.** KL is infinite, and estimates are some finite number, which the classifier
# flags: it is beyond the logarithm of the number of rows. Jensen–Shannon is one bit, however far
# apart the squares are. **Thin manifolds.** Two lines that are nearly the same are one bit apart as
# well. Neighbours tell that there is no density, and return NaN. Transport costs and kernels
# measure in the units of the plane, and call the lines close.

# %%
for name in ("squares", "lines"):
    assert np.isfinite(table.loc["KL, classifier", name])
    assert table.loc["beyond log n", name] == 1
    assert table.loc["JS, classifier", name] > 0.99
assert table.loc["beyond log n", ["equal", "shift", "scale"]].sum() == 0
assert np.isnan(table.loc["KL, neighbours", "lines"])
assert np.isfinite(table.loc["KL, neighbours", "squares"])
assert table.loc["W₂², Sinkhorn", "lines"] < 0.03
assert table.loc["MMD², width 1", "lines"] < 0.02

# %% [markdown]
# ## 5. As a loss
#
# What matters for a loss is the slope. Two unit squares at a distance δ: Jensen–Shannon is δ bits
# while they overlap and has no slope from there on; MMD with one width loses its slope within a
# few widths; the energy distance keeps a constant one, and W₂² = δ² has a slope of 2δ. All but
# Jensen–Shannon are differentiated here through the function of the samples.

# %%
x, y = jax.random.uniform(jax.random.key(2), (2, 500, 2))
losses = {
    "MMD², width 1": lambda z: mmd(kernels.Gaussian(bandwidth=1.0), z, y),
    "energy distance²": lambda z: mmd(kernels.Energy(), z, y),
    "W₂², Sinkhorn": lambda z: ot.sinkhorn_divergence(z, y, epsilon=0.05).value,
}
distances = jnp.linspace(0, 5, 21)
slopes = {}
for name, loss in losses.items():
    moved = lambda delta, loss=loss: loss(x + delta * jnp.array([1.0, 0.0]))
    slopes[name] = np.asarray(jax.lax.map(jax.jit(jax.grad(moved)), distances))
with plot.style():
    figure, axis = plt.subplots(figsize=(6.4, 4))
    for name, slope in slopes.items():
        axis.plot(distances, slope, label=name)
    axis.plot([0, 1, 1, 5], [1, 1, 0, 0], label="JS, bits (exact)")
    axis.set(xlabel="distance δ of the squares", ylabel="slope in δ", ylim=(-0.2, 4))
    axis.legend(loc="upper right")
figure.savefig(folder / "choosing_slopes.png")
np.testing.assert_allclose(slopes["W₂², Sinkhorn"], 2 * distances, atol=0.1)
assert slopes["MMD², width 1"][-1] < 1e-3
assert abs(slopes["energy distance²"][-1] - 2) < 0.1

# %% [markdown]
# ## 6. What to choose
#
# | question | measure |
# |---|---|
# | can rows of both samples be told apart, and how well? | classifier JS, its test |
# | a bound on it that holds for certain | `fit.certified_js()` |
# | a likelihood ratio in nats, where both overlap | classifier KL, neighbours beside it |
# | nearly Gaussian, or features of a network | `gaussian_wasserstein`, `gaussian.kl` of moments |
# | a rare mode, disjoint supports, thin manifolds | Sinkhorn divergence, in the unit of the data |
# | a loss far from its minimum, without a bandwidth | Sinkhorn, sliced, energy distance |
# | a test or a loss at one length scale | MMD |
# | one column | histogram, `wasserstein_1d` |
