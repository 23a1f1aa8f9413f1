"""What layers hold while a network learns or memorises: entropy, information, train from test.

    python -m experiments.representation_entropy   # --quick for a small one, without any files

A perceptron of three layers is trained on digits of MNIST, with their labels and with the labels
shuffled, which can only be memorised. At some steps, for the pixels and each layer:

`entropy`: `information.diffusion_spectral_entropy` of the representations of training rows.
`information`: `information.diffusion_spectral_mutual_information` that their labels, those trained
on, have about them; and of test rows, with labels of the same kind (Liao et al. 2024).
`W₁`: `ot.sliced_wasserstein` of order one between the representations of training and test rows.
`KL`: `fdiv.gaussian.plug_in_kl` between Gaussians fitted to both, on the leading principal
components of the training rows, by `information.generalization.layer_divergences`; its bias for
Gaussians is removed, so that it may be negative. W₁ and KL are of the rows without their labels: do
layers tell training rows from others?

Each representation is first divided by the root mean square of its training rows' distances from
their mean: entropies with one bandwidth, and W₁, are then comparable between layers, and growing
weights alone change nothing. Training and test rows are equally many, and disjoint; the entropies
are of the first `rows_of_entropy` of them. Another subset of MNIST, another shuffling and another
network a seed. `--quick` takes scikit-learn's digits.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from divjax import fdiv, information, ot, plot
from divjax.core import training
from divjax.core.networks import apply_network, init_network
from experiments import common, data

LABELS = ("true", "shuffled")
MEASURES = ("entropy", "information", "information, test", "W₁", "KL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    source: str = "mnist"
    """mnist, fashion_mnist or digits, which are scikit-learn's."""
    num_rows: int = 2000
    """To train on, and to test."""
    rows_of_entropy: int = 600
    hidden: tuple[int, ...] = (64, 64, 64)
    steps: tuple[int, ...] = (0, 30, 100, 300, 1000, 3000)
    """At which representations are looked at; the last one ends the training."""
    learning_rate: float = 3e-3
    batch_size: int = 128
    bandwidth: float = 0.5
    """Of the diffusion, in units of a representation's deviation."""
    num_components: int = 10
    """Principal components to which Gaussians are fitted."""
    num_projections: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """Small digits, three looks at 60 steps, two seeds: does everything run?"""

    def __post_init__(self):
        if self.source not in ("mnist", "fashion_mnist", "digits"):
            raise SystemExit(f"source must be mnist, fashion_mnist or digits; got {self.source!r}.")
        common.check_seeds(self.seeds)
        numbers = ("num_rows", "rows_of_entropy", "hidden", "learning_rate", "batch_size")
        numbers += ("bandwidth", "num_components", "num_projections")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"source": "digits", "num_rows": 300, "rows_of_entropy": 150}
            small |= {"hidden": (16, 16), "steps": (0, 20, 60), "seeds": self.seeds[:2]}
            small |= {"num_components": 5, "num_projections": 16}
            for name, value in small.items():
                object.__setattr__(self, name, value)
        if self.steps[0] != 0 or any(np.diff(self.steps) <= 0):
            raise SystemExit(f"steps must rise from 0; got {self.steps}.")
        if self.num_components > min(self.hidden):
            raise SystemExit("num_components must not be more than a layer has units.")


class Images(NamedTuple):
    """Pixels of unit variance in the mean, and labels, of training and of test rows."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@functools.cache
def _pixels(source: str) -> tuple[np.ndarray, np.ndarray]:
    if source == "digits":
        digits: Any = load_digits()
        return digits.data.astype(np.float32), digits.target
    found = data.load_images(source)
    return found.images.reshape(len(found.images), -1), found.labels


def draw_images(labels: str, seed: int, settings: Settings) -> Images:
    """Disjoint rows to train on and to test, with their labels or with shuffled ones."""
    pixels, classes = _pixels(settings.source)
    rng = np.random.default_rng(seed)
    n = min(settings.num_rows, len(pixels) // 2)
    index = rng.permutation(len(pixels))[: 2 * n]
    rows, numbers = pixels[index].astype(np.float32), classes[index].astype(np.int32)
    if labels == "shuffled":
        numbers = rng.permutation(numbers)
    rows = (rows - rows[:n].mean()) / rows[:n].std()
    return Images(rows[:n], numbers[:n], rows[n:], numbers[n:])


class Perceptron(nnx.Module):
    """Rectified layers, which all are returned, and logits."""

    def __init__(self, hidden: tuple[int, ...], in_features: int, rngs: nnx.Rngs):
        widths = zip((in_features, *hidden), (*hidden, 10), strict=True)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in widths])

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """The outputs of each layer, the last of which are logits."""
        outputs = []
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
            outputs.append(x)
        return [*outputs, self.layers[-1](x)]


@functools.partial(jax.jit, static_argnames=("num_steps", "settings"))
def _advance(
    key: jax.Array, params: Any, state: Any, images: Images, *, num_steps: int, settings: Settings
) -> tuple[Any, Any]:
    """The parameters and the optimizer's state after so many steps more."""
    n = images.train.shape[0]

    def loss(key: jax.Array, params: Any) -> jax.Array:
        index = training.row_batch(key, n, settings.batch_size)
        logits = apply_network(_network(settings), params, images.train[index])[-1]
        labels = images.train_labels[index]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    optimizer = optax.adam(settings.learning_rate)
    fitted = training.fit(key, loss, params, optimizer, num_steps=num_steps, optimizer_state=state)
    return fitted.params, fitted.optimizer_state


def _network(settings: Settings) -> Any:
    return functools.partial(Perceptron, settings.hidden)


def in_deviations(train: Any, test: Any) -> tuple[jax.Array, jax.Array]:
    """A representation of both samples about the training rows' mean, in their deviation."""
    train, test = jnp.asarray(train), jnp.asarray(test)
    center = jnp.mean(train, axis=0)
    unit = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(train - center), axis=1)))
    return (train - center) / unit, (test - center) / unit


def gaussian_kl(train: jax.Array, test: jax.Array, num_components: int) -> jax.Array:
    """KL(test‖train) of Gaussians fitted to the leading principal components of training rows."""
    axes = jnp.linalg.svd(train, full_matrices=False)[2][:num_components].T
    return fdiv.gaussian.plug_in_kl(test @ axes, train @ axes).value


def measures(
    key: jax.Array, train: jax.Array, test: jax.Array, images: Images, settings: Settings
) -> list[float]:
    """The `MEASURES` of a representation but the last, which is of all layers together."""
    label_key, test_key, slice_key = jax.random.split(key, 3)
    some = slice(0, settings.rows_of_entropy)
    of_labels = functools.partial(
        information.diffusion_spectral_mutual_information, bandwidth=settings.bandwidth
    )
    values = (
        information.diffusion_spectral_entropy(train[some], bandwidth=settings.bandwidth),
        of_labels(label_key, train[some], images.train_labels[some]),
        of_labels(test_key, test[some], images.test_labels[some]),
        ot.sliced_wasserstein(
            slice_key, train, test, p=1, num_projections=settings.num_projections
        ),
    )
    return [float(value) for value in values]


def evaluate(labels: str, seed: int, settings: Settings) -> dict[str, np.ndarray]:
    """The measures "steps layers measures" along a training, and the accuracies "steps 2"."""
    images = draw_images(labels, seed, settings)
    start_key, key = jax.random.split(jax.random.key(seed))
    network = _network(settings)
    params = init_network(network, start_key, images.train.shape[1], jnp.float32)
    state = optax.adam(settings.learning_rate).init(params)
    apply = jax.jit(functools.partial(apply_network, network))
    found, accuracies, done = [], [], 0
    for step in settings.steps:
        if step > done:
            fit_key = jax.random.fold_in(key, step)
            params, state = _advance(
                fit_key, params, state, images, num_steps=step - done, settings=settings
            )
            done = step
        outputs = [apply(params, jnp.asarray(rows)) for rows in (images.train, images.test)]
        accuracies.append(
            [
                float(np.mean(np.argmax(layers[-1], axis=1) == numbers))
                for layers, numbers in zip(
                    outputs, (images.train_labels, images.test_labels), strict=True
                )
            ]
        )
        # The pixels first, and no logits.
        pairs = [
            in_deviations(train, test)
            for train, test in (
                (images.train, images.test),
                *zip(*(layers[:-1] for layers in outputs), strict=True),
            )
        ]
        kl = functools.partial(gaussian_kl, num_components=settings.num_components)
        divergences = information.generalization.layer_divergences(
            kl, [train for train, _ in pairs], [test for _, test in pairs]
        )
        # The same subsets and directions at all steps.
        found.append(
            [
                [
                    *measures(jax.random.fold_in(start_key, number), *pair, images, settings),
                    float(divergence),
                ]
                for number, (pair, divergence) in enumerate(zip(pairs, divergences, strict=True))
            ]
        )
    return {"measures": np.array(found), "accuracy": np.array(accuracies)}


Results = dict[str, dict[str, np.ndarray]]


def layer_names(settings: Settings) -> list[str]:
    """The pixels and the layers."""
    return ["pixels", *(f"layer {number + 1}" for number in range(len(settings.hidden)))]


def rows(results: Results, settings: Settings) -> list[dict[str, Any]]:
    """A row each kind of labels and layer, before and after training."""
    table = []
    for labels, arrays in results.items():
        for number, layer in enumerate(layer_names(settings)):
            for place in (0, -1) if number else (-1,):
                step = str(settings.steps[place]) if number else "all"
                row: dict[str, Any] = {"labels": labels, "layer": layer, "step": step}
                for k, name in enumerate(MEASURES):
                    digits = 4 if name == "W₁" else 3
                    row[name] = common.with_error(arrays["measures"][:, place, number, k], digits)
                table.append(row)
    return table


def accuracy_rows(results: Results, settings: Settings) -> list[dict[str, Any]]:
    """A row each kind of labels and step, in per cent."""
    return [
        {"labels": labels, "step": step}
        | {
            part: common.with_error(arrays["accuracy"][:, place, k], 1, scale=100)
            for k, part in enumerate(("train", "test"))
        }
        for labels, arrays in results.items()
        for place, step in enumerate(settings.steps)
    ]


def draw(results: Results, settings: Settings) -> Figure:
    """A line of panels each kind of labels: accuracy, and each measure by step and layer."""
    shown = ("entropy", "information", "W₁", "KL")
    at = np.arange(len(settings.steps))
    with plot.style():
        figure, axes = plt.subplots(
            len(results), 5, figsize=(16, 3.2 * len(results) + 0.5), squeeze=False, sharex=True
        )
        for line, (labels, arrays) in zip(axes, results.items(), strict=True):
            for k, part in enumerate(("train", "test")):
                values = 100 * arrays["accuracy"][..., k]
                plot.curves(values, steps=at, label=part, ax=line[0], color=f"C{5 + k}")
            line[0].set(ylim=(0, 102), ylabel=f"{labels} labels")
            line[0].legend(loc="best")
            for axis, name in zip(line[1:], shown, strict=True):
                for number, layer in enumerate(layer_names(settings)):
                    values = arrays["measures"][:, :, number, MEASURES.index(name)]
                    plot.curves(values, steps=at, label=layer, ax=axis, marker="osD^vP"[number % 6])
        titles = ("accuracy, per cent", "entropy, bits", "information, bits")
        titles += ("W₁, train and test", "KL, train and test")
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        # The same scale for both kinds of labels.
        for column in axes.T[1:]:
            limits = [axis.get_ylim() for axis in column]
            low, high = min(one[0] for one in limits), max(one[1] for one in limits)
            for axis in column:
                axis.set_ylim(low, high)
        for axis in axes[-1]:
            axis.set_xlabel("step")
            axis.set_xticks(at, [str(step) for step in settings.steps])
        entries = axes[0, 1].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=len(entries[0]))
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Train with both kinds of labels, print the measures of all layers, draw them by step."""
    with common.open_run("representation_entropy", settings, output, overwrite) as run:
        found: dict[str, list[dict[str, np.ndarray]]] = {labels: [] for labels in LABELS}
        cells = [(labels, seed) for labels in LABELS for seed in settings.seeds]
        for labels, seed in common.progress(cells, "trainings"):
            arrays = run.stage(
                f"{labels} {seed}",
                lambda labels=labels, seed=seed: evaluate(labels, seed, settings),
            )
            arrays.pop("seconds", None)
            found[labels].append(arrays)
        results = {
            labels: {name: np.stack([one[name] for one in runs]) for name in runs[0]}
            for labels, runs in found.items()
        }
        print("\nAccuracy, per cent:\n")
        print(run.save_table("accuracy", accuracy_rows(results, settings)))
        print("\nEntropy and information in bits, W₁ in deviations, KL in nats:\n")
        print(run.save_table("measures", rows(results, settings)))
        run.save_figure("layers", draw(results, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
