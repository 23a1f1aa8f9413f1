"""How right class probabilities are, and how well they know it: scores and reliability diagrams."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from divjax import plot


def metrics(
    probs: Float[Array, "m task class"], labels: Int[Array | np.ndarray, "m task"]
) -> dict[str, Array]:
    """Accuracy, Brier score, expected calibration error and log loss, a number a task.

    The Brier score is Σ_class (p − 1{label})²; the calibration error compares confidence with
    accuracy in 20 equally wide bins of confidence, weighted by their counts.
    """
    hit = jnp.argmax(probs, axis=-1) == labels
    confidence = jnp.max(probs, axis=-1)
    truth = jax.nn.one_hot(labels, probs.shape[-1])
    bins = jnp.clip((confidence * 20).astype(int), 0, 19)
    gaps = jax.vmap(
        lambda b, c, h: jnp.abs(jnp.zeros(20).at[b].add(c - h)).sum() / b.shape[0], in_axes=1
    )(bins, confidence, hit.astype(confidence.dtype))
    chosen = jnp.take_along_axis(probs, labels[..., None], axis=-1)[..., 0]
    return {
        "accuracy": hit.mean(0),
        "brier": jnp.sum((probs - truth) ** 2, axis=-1).mean(0),
        "ece": gaps,
        "log_loss": -jnp.log(jnp.maximum(chosen, 1e-12)).mean(0),
    }


def temperature(
    probs: Float[Array, "m task class"], labels: Int[Array | np.ndarray, "m task"]
) -> Float[Array, ""]:
    """The T for which p^(1/T), normalised, has the least log loss: above one, p was overconfident.

    To within a hundredth, between 1/4 and 4. Guo, Pleiss, Sun, Weinberger 2017, section 4.2.
    """
    candidates = 4.0 ** jnp.linspace(-1, 1, 281)
    losses = jax.lax.map(lambda t: metrics(temper(probs, t), labels)["log_loss"].mean(), candidates)
    return candidates[jnp.argmin(losses)]


def temper(
    probs: Float[Array, "m task class"], temperature: Float[Array, ""]
) -> Float[Array, "m task class"]:
    """Probabilities proportional to p^(1/T)."""
    return jax.nn.softmax(jnp.log(jnp.maximum(probs, 1e-12)) / temperature)


def draw_reliability(probs: dict[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Accuracy against confidence, all tasks pooled: a panel a method, "m task class" each.

    Bins are equally wide, as those of the calibration error are; those of fewer than ten answers
    are left out. Bars are one standard error on each side.
    """
    shown = list(probs)
    columns = min(5, len(shown))
    lines = -(-len(shown) // columns)
    edges = np.linspace(0, 1, 21)
    with plot.style():
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(max(4, 2.6 * columns), 1 + 2.6 * lines),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for axis, name in zip(axes.ravel(), shown, strict=False):
            rows = probs[name].reshape(-1, probs[name].shape[-1])
            confidence, hit = rows.max(1), rows.argmax(1) == labels.ravel()
            which = np.clip(np.digitize(confidence, edges) - 1, 0, 19)
            count = np.bincount(which, minlength=20)
            filled = count >= 10
            accuracy = np.bincount(which, hit, 20)[filled] / count[filled]
            error = np.sqrt(accuracy * (1 - accuracy) / count[filled])
            axis.plot([0, 1], [0, 1], color="0.6", linestyle="-", linewidth=1)
            middles = (edges[:-1] + 0.025)[filled]
            axis.errorbar(middles, accuracy, error, fmt="o", color="C0", capsize=2)
            axis.set(title=name, xlim=(0, 1), ylim=(0, 1.02), aspect=1.0)
        for axis in axes.ravel()[len(shown) :]:
            axis.set_axis_off()
        figure.supxlabel("confidence")
        figure.supylabel("accuracy ± standard error")
    return figure
