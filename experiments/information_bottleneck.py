"""Regression through an information bottleneck: Cauchy–Schwarz, variational, and none.

    python -m experiments.information_bottleneck   # --quick for a small one, without any files

A representation t of x should tell much of y, I(y; t), and little of x, I(x; t). Four losses of
one network, an encoder to t and a decoder to the prediction ŷ:

`MSE`: the mean squared error, without a bottleneck. `CS-IB` (Yu et al. 2024): the conditional
Cauchy–Schwarz divergence of p(y|x) from p(ŷ|x), `discrepancy.conditional_cauchy_schwarz`, plus β
times the Cauchy–Schwarz mutual information of x and t in its normalised form,
`information.cauchy_schwarz_mutual_information`, both of the rows of a batch. No density is assumed,
and t is a function of x. `VIB` (Alemi et al. 2017): t is Gaussian given x; the mean squared error
plus β KL(p(t|x) ‖ N(0, I)), which bounds I(x; t) from above. `MSE + CS` is between the first two:
the squared error, with the bottleneck of CS-IB.

`california`: the logarithm of a block's median house value, blocks below the cap of 500 000 dollars
(eight features). `bikes`: the logarithm of one plus the number of bikes rented in an hour, from
date and weather; hours and months are angles. `friedman`: scikit-learn's make_friedman1 with unit
noise, without any files. Features and y are standardised, and errors are in units of the standard
deviation of y. Rows are split into training, validation and test at random, another split a seed.

β is chosen by the error on validation, and numbers are of test. Robustness: the error with normal
noise on the standardised features of the test rows. The plane: the normalised Cauchy–Schwarz
information that t has of x, and of y, on test rows, with the median distance as bandwidth, so that
scales of t do not matter.

The published code divides by Σ K² where the divergence has (Σ K)²; here it is the latter. Its
networks are larger (three layers of 128), and it trains for 200 epochs.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import make_friedman1

from divjax import discrepancy, information, kernels, plot
from divjax.core import training
from divjax.core.networks import apply_network, init_network
from experiments import common, data


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    problems: tuple[str, ...] = ("california", "bikes")
    methods: tuple[str, ...] = ("MSE", "CS-IB", "MSE + CS", "VIB")
    betas: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Of the Cauchy–Schwarz information, which is at most one."""
    vib_betas: tuple[float, ...] = (0.0, 0.0003, 0.003, 0.03, 0.1)
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)
    """Standard deviations of what is added to the features of test rows."""
    bandwidth: float = 1.0
    """Of all kernels of the loss: of standardised features, of t, and of y."""
    hidden: int = 64
    bottleneck: int = 8
    learning_rate: float = 3e-3
    num_steps: int = 1500
    batch_size: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the split, the initial network, the batches and the noise."""
    quick: bool = False
    """Friedman's function, two β, 60 steps, two seeds: does everything run?"""

    def __post_init__(self):
        for name, known in (("problems", PROBLEMS), ("methods", METHODS)):
            given = getattr(self, name)
            if not given or set(given) - set(known):
                found = sorted(set(given) - set(known))
                raise SystemExit(f"{name} must be among {', '.join(known)}; got {found}.")
        common.check_seeds(self.seeds)
        numbers = ("bandwidth", "hidden", "bottleneck", "learning_rate", "num_steps", "batch_size")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if min((*self.betas, *self.vib_betas, *self.noises), default=0) < 0 or not self.noises:
            raise SystemExit("betas, vib_betas and noises must not be negative.")
        if self.quick:
            small = {"problems": ("friedman",), "num_steps": 60, "seeds": self.seeds[:2]}
            small |= {"betas": self.betas[::3], "vib_betas": self.vib_betas[::3]}
            small |= {"noises": self.noises[:2]}
            for name, value in small.items():
                object.__setattr__(self, name, value)

    def betas_of(self, method: str) -> tuple[float, ...]:
        """The grid of a method."""
        if method == "MSE":
            return (0.0,)
        return self.vib_betas if method == "VIB" else self.betas


# The problems: features and responses.


def california() -> tuple[np.ndarray, np.ndarray]:
    """Blocks below the cap, and the logarithm of their value; counts are logarithms."""
    table = data.load_table("california_housing")
    table = table[table["value"] < 500_000]
    for name in ("rooms", "bedrooms", "population"):
        table = table.assign(**{name: np.log(table[name] / table["households"])})
    table = table.assign(households=np.log(table["households"]))
    return table.drop(columns="value").to_numpy(), np.log(table["value"].to_numpy())


def bikes() -> tuple[np.ndarray, np.ndarray]:
    """Hours, and the logarithm of one plus the bikes rented."""
    table = data.load_table("bike_sharing")
    kept = ["yr", "holiday", "weekday", "workingday", "weathersit"]
    kept += ["temp", "atemp", "hum", "windspeed"]
    angles = [2 * np.pi * table["hr"] / 24, 2 * np.pi * (table["mnth"] - 1) / 12]
    circles = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.column_stack([table[kept], *circles]), np.log1p(table["cnt"].to_numpy())


def friedman() -> tuple[np.ndarray, np.ndarray]:
    """Ten features, of which the response depends on five."""
    return make_friedman1(n_samples=2000, noise=1.0, random_state=0)


PROBLEMS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "california": california,
    "bikes": bikes,
    "friedman": friedman,
}


class Splits(NamedTuple):
    """Rows of x and y beside each other, of one seed; y is the last column."""

    train: Any
    validation: Any
    test: Any


def split(x: np.ndarray, y: np.ndarray, seed: int) -> Splits:
    """Three fifths, one and one, in units of the training rows' deviations."""
    rows = np.column_stack([x, y])
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    held = len(rows) // 5
    train = rows[2 * held :]
    rows = ((rows - train.mean(0)) / train.std(0)).astype(np.float32)
    return Splits(rows[2 * held :], rows[:held], rows[held : 2 * held])


# The network and its losses.


class Bottleneck(nnx.Module):
    """An encoder, to the mean and the scale of t, and a decoder."""

    def __init__(self, in_features: int, hidden: int, bottleneck: int, rngs: nnx.Rngs):
        widths = ((in_features, hidden), (hidden, hidden))
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in widths])
        self.mean = nnx.Linear(hidden, bottleneck, rngs=rngs)
        self.scale = nnx.Linear(hidden, bottleneck, rngs=rngs)
        self.decoder = nnx.Linear(bottleneck, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """ŷ, and t with its mean and scale; the last columns of the inputs are t's noise."""
        count = self.mean.out_features
        x, noise = inputs[:, :-count], inputs[:, -count:]
        for layer in self.layers:
            x = nnx.swish(layer(x))
        # At the start the noise is small beside the mean.
        mean, scale = self.mean(x), nnx.softplus(self.scale(x) - 2)
        t = mean + scale * noise
        return self.head(nnx.swish(self.decoder(t))), t, mean, scale


def _squared_error(y: jax.Array, predicted: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(y - predicted))


def _cs_information(x: jax.Array, t: jax.Array, kernel: Any) -> jax.Array:
    return information.cauchy_schwarz_mutual_information(
        x, t, kernel_x=kernel, kernel_y=kernel, normalized=True
    )


# Losses of (x, y, the network's outputs, β, the kernel).
Loss = Callable[[jax.Array, jax.Array, tuple[jax.Array, ...], Any, Any], jax.Array]


def _mse(x: jax.Array, y: jax.Array, outputs: tuple, beta: Any, kernel: Any) -> jax.Array:
    return _squared_error(y, outputs[0])


def _cs_ib(x: jax.Array, y: jax.Array, outputs: tuple, beta: Any, kernel: Any) -> jax.Array:
    predicted, t, *_ = outputs
    divergence = discrepancy.conditional_cauchy_schwarz(
        x, y, x, predicted, kernel=kernel, response_kernel=kernel
    )
    return divergence + beta * _cs_information(x, t, kernel)


def _mse_cs(x: jax.Array, y: jax.Array, outputs: tuple, beta: Any, kernel: Any) -> jax.Array:
    return _squared_error(y, outputs[0]) + beta * _cs_information(x, outputs[1], kernel)


def _vib(x: jax.Array, y: jax.Array, outputs: tuple, beta: Any, kernel: Any) -> jax.Array:
    predicted, _, mean, scale = outputs
    kl = 0.5 * (jnp.square(mean) + jnp.square(scale) - 1) - jnp.log(scale)
    return _squared_error(y, predicted) + beta * jnp.mean(jnp.sum(kl, axis=1))


METHODS: dict[str, Loss] = {"MSE": _mse, "CS-IB": _cs_ib, "MSE + CS": _mse_cs, "VIB": _vib}
# Rows of the plane: the sums are over all pairs.
ROWS_OF_PLANE = 1000


@functools.partial(jax.jit, static_argnames=("method", "settings"))
def _train(
    seeds: jax.Array, splits: Splits, betas: jax.Array, *, method: str, settings: Settings
) -> dict[str, jax.Array]:
    """Measures "seeds betas …" of networks trained on training rows."""
    network = functools.partial(_network, settings.hidden, settings.bottleneck)
    kernel = kernels.Gaussian(settings.bandwidth)
    is_random = method == "VIB"
    loss_of = METHODS[method]

    def outputs(key: jax.Array | None, params: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        shape = (x.shape[0], settings.bottleneck)
        noise = jnp.zeros(shape) if key is None else jax.random.normal(key, shape)
        return tuple(apply_network(network, params, jnp.concatenate([x, noise], axis=1)))

    def one(seed: jax.Array, parts: Splits, beta: jax.Array) -> dict[str, jax.Array]:
        start_key, fit_key, noise_key, t_key = jax.random.split(jax.random.key(seed), 4)
        n, d = parts.train.shape[0], parts.train.shape[1] - 1

        def loss(key: jax.Array, params: Any) -> jax.Array:
            batch_key, key = jax.random.split(key)
            rows = parts.train[training.row_batch(batch_key, n, settings.batch_size)]
            x, y = rows[:, :-1], rows[:, -1:]
            found = outputs(key if is_random else None, params, x)
            return loss_of(x, y, found, beta, kernel)

        params = training.fit(
            fit_key,
            loss,
            init_network(network, start_key, d + settings.bottleneck, jnp.float32),
            training.adam_with_cosine(settings.learning_rate, settings.num_steps, jnp.float32),
            num_steps=settings.num_steps,
        ).params

        def error(rows: jax.Array, noise: Any) -> tuple[jax.Array, jax.Array]:
            x, y = rows[:, :-1], rows[:, -1]
            moved = x + noise * jax.random.normal(noise_key, x.shape)
            predicted = outputs(None, params, moved)[0][:, 0]
            root = jnp.sqrt(jnp.mean(jnp.square(predicted - y)))
            return root, jnp.corrcoef(predicted, y)[0, 1]

        some = parts.test[:ROWS_OF_PLANE]
        t = outputs(t_key if is_random else None, params, some[:, :-1])[1]
        of_t = functools.partial(information.cauchy_schwarz_mutual_information, normalized=True)
        roots, correlations = jax.lax.map(
            lambda noise: error(parts.test, noise), jnp.asarray(settings.noises)
        )
        return {
            "validation": error(parts.validation, 0.0)[0],
            "test": roots,
            "correlation": correlations,
            "of x": of_t(some[:, :-1], t),
            "of y": of_t(some[:, -1:], t),
        }

    def of_seed(pair: tuple[jax.Array, Splits]) -> dict[str, jax.Array]:
        seed, parts = pair
        return jax.lax.map(lambda beta: one(seed, parts, beta), betas)

    return jax.lax.map(of_seed, (seeds, splits))


def _network(hidden: int, bottleneck: int, in_features: int, rngs: nnx.Rngs) -> Bottleneck:
    return Bottleneck(in_features - bottleneck, hidden, bottleneck, rngs)


def evaluate(settings: Settings, problem: str, method: str) -> dict[str, np.ndarray]:
    """The measures of a method, for all seeds and β."""
    x, y = PROBLEMS[problem]()
    parts = [split(x, y, seed) for seed in settings.seeds]
    stacked = Splits(*(np.stack(part) for part in zip(*parts, strict=True)))
    betas = np.array(settings.betas_of(method), np.float32)
    found = _train(
        jnp.asarray(settings.seeds),
        jax.tree.map(jnp.asarray, stacked),
        jnp.asarray(betas),
        method=method,
        settings=settings,
    )
    return {name: np.asarray(value) for name, value in found.items()} | {"betas": betas}


Results = dict[str, dict[str, dict[str, np.ndarray]]]


def chosen(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Of each seed, the place of the β with the least error on validation."""
    return np.argmin(arrays["validation"], axis=1)


def at_chosen(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A measure of each seed, at the β that it has chosen."""
    return arrays[name][np.arange(len(arrays[name])), chosen(arrays)]


def chosen_rows(found: dict[str, dict[str, np.ndarray]], settings: Settings) -> list[dict]:
    """A row each method, at the β that validation chose."""
    table = []
    for method, arrays in found.items():
        errors = at_chosen(arrays, "test")
        betas = arrays["betas"][chosen(arrays)]
        row = {"loss": method, "β": "–" if method == "MSE" else f"{np.median(betas):g}"}
        for k, noise in enumerate(settings.noises):
            name = "RMSE" if noise == 0 else f"noise {noise:g}"
            row[name] = common.with_error(errors[:, k], 3)
        row["correlation"] = common.with_error(at_chosen(arrays, "correlation")[:, 0], 3)
        row["information of x"] = common.with_error(at_chosen(arrays, "of x"), 2)
        table.append(row)
    return table


def path_rows(results: Results) -> list[dict[str, Any]]:
    """A row each problem, loss and β."""
    return [
        {"problem": problem, "loss": method, "β": f"{beta:g}"}
        | {
            "validation RMSE": common.with_error(arrays["validation"][:, k], 3),
            "test RMSE": common.with_error(arrays["test"][:, k, 0], 3),
            "correlation": common.with_error(arrays["correlation"][:, k, 0], 3),
            "at the largest noise": common.with_error(arrays["test"][:, k, -1], 3),
            "information of x": common.with_error(arrays["of x"][:, k], 3),
            "of y": common.with_error(arrays["of y"][:, k], 3),
        }
        for problem, found in results.items()
        for method, arrays in found.items()
        for k, beta in enumerate(arrays["betas"])
    ]


def draw(results: Results, settings: Settings) -> Figure:
    """A line of panels a problem: the plane, the error by compression, the error by noise."""
    with plot.style():
        figure, axes = plt.subplots(
            len(results), 3, figsize=(12, 3.5 * len(results) + 0.5), squeeze=False
        )
        for line, (problem, found) in zip(axes, results.items(), strict=True):
            for number, (method, arrays) in enumerate(found.items()):
                look = {"color": f"C{number}", "marker": "osD^"[number], "lw": 1.2}
                # Without a bottleneck MSE + CS is MSE: a ring is seen around its point.
                look |= {"ms": 10, "mfc": "none"} if method == "MSE" else {"ms": 4}
                x, x_error = common.mean_and_error(arrays["of x"])
                for axis, values in ((line[0], arrays["of y"]), (line[1], arrays["test"][..., 0])):
                    y, y_error = common.mean_and_error(values)
                    axis.errorbar(x, y, y_error, x_error, label=method, **look)
                y, y_error = common.mean_and_error(at_chosen(arrays, "test"))
                line[2].errorbar(settings.noises, y, y_error, label=method, **look)
            of_x = "information of x in t (normalised)"
            line[0].set(title=f"{problem}: the plane", xlabel=of_x, ylabel="information of y in t")
            line[1].set(title="error by compression", xlabel=of_x, ylabel="RMSE on test")
            line[2].set(title="error by noise", xlabel="noise on features", ylabel="RMSE on test")
        entries = axes[0, 0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=4)
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Train with all losses and β, print what validation chose, draw the plane and the errors."""
    with common.open_run("information_bottleneck", settings, output, overwrite) as run:
        cells = itertools.product(settings.problems, settings.methods)
        found = run.stages("losses", cells, functools.partial(evaluate, settings))
        results: Results = {
            problem: {method: found[problem, method] for method in settings.methods}
            for problem in settings.problems
        }
        for problem, found in results.items():
            print(f"\n{problem}, errors on test in deviations of y:\n")
            print(run.save_table(f"chosen_{problem}", chosen_rows(found, settings)))
        print("\nAll β:\n")
        print(run.save_table("paths", path_rows(results)))
        run.save_figure("plane", draw(results, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
