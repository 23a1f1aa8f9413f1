"""Ensembles of networks that read two overlaid images at once: multi-objective flows on real data.

    python -m experiments.multi_task_learning  # digits, a quarter of an hour on two cores
    python -m experiments.multi_task_learning --dataset multi_mnist
    python -m experiments.multi_task_learning --tune-on-validation  # choose step sizes

A particle is a LeNet with a shared encoder and a head for each of the two tasks; the objectives are
the tasks' losses on a common minibatch; the aggregator weighs their velocities on the encoder, and
each head follows its own task. Kernels compare networks by their outputs on the minibatch, not by
their weights (MOO-SVGD's by their losses), and the repulsion is pulled back through the network,
which for SVGD is an approximation (see `flows.Flow`). A-MWGraD here is `flows.accelerated`,
semi-implicit and restarted, not the published explicit scheme. All seeds train at once.

Networks train on train; step sizes and the repulsion's strength were chosen on validation with
`--tune-on-validation`; the table is of test, after the last epoch. (The code released with MWGraD,
arXiv 2505.18765, enumerates its test set in training.)
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
import optax
import tyro
from jaxtyping import Array, Float, Int, Key, PyTree
from matplotlib.figure import Figure

from divjax import flows, kernels, plot
from experiments import calibration, common, data
from experiments.lenet import init_particle, is_shared, logits
from experiments.scalarization import Scalarized

KERNEL = kernels.Gaussian()  # with the median rule


class Method(NamedTuple):
    """A method as the nouns of a flow, with what validation chose for it.

    Attributes:
        step_size: the optimizer's, at the start of a cosine schedule.
        repulsion: τ, the weight of the entropy beside the mean cross-entropy.
        velocity: without repulsion any but SVGD, which smooths, leaves gradients as they are.
        aggregator: the tasks' weights.
        features: which function of `Problem` the kernel compares networks by.
        scalarize: whether the tasks' gradients are weighed into one before the velocity sees them:
            for "each" particle alone, or for "all" together.
        optimizer: takes the schedule.
        ensemble: whether there are several particles.
    """

    step_size: float
    repulsion: float = 0.0
    velocity: Any = flows.Blob(KERNEL)
    aggregator: Any = flows.MinNorm()
    features: str | None = "outputs"
    scalarize: str | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = optax.adam
    ensemble: bool = True

    @property
    def choice(self) -> tuple[float, float]:
        """What `--tune-on-validation` chooses."""
        return self.step_size, self.repulsion


_SVGD, _UNIFORM = flows.SVGD(KERNEL), flows.FixedWeights()
_NEURAL = flows.NeuralScore(hidden=(32,))

METHODS: dict[str, Method] = {
    "single network": Method(3e-3, aggregator=_UNIFORM, features=None, ensemble=False),
    "fixed weights": Method(1e-2, aggregator=_UNIFORM, features=None),
    "MGDA": Method(1e-2, features=None, ensemble=False),
    "MOO-SVGD": Method(1e-2, 1e-2, _SVGD, features="losses", scalarize="each"),
    "MT-SGD": Method(1e-2, 1e-2, _SVGD, scalarize="all"),
    "MWGraD-SVGD": Method(1e-2, 1e-2, _SVGD),
    "MWGraD-Blob": Method(1e-2, 1e-2),
    "MWGraD-neural": Method(1e-2, 1e-5, _NEURAL, features="sketch"),
    "A-MWGraD-SVGD": Method(3.0, 1e-2, _SVGD, optimizer=flows.accelerated),
    "A-MWGraD-Blob": Method(0.5, 1e-2, optimizer=flows.accelerated),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    dataset: str = "digits"
    """digits, multi_mnist, multi_fashion or multi_fashion_mnist."""
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_epochs: int = 40
    num_particles: int = 5
    batch_size: int = 128
    weight_decay: float = 1e-4
    quick: bool = False
    """A twentieth of the pairs, at most two epochs and two seeds: does everything run?"""
    choices: dict[str, tuple[float, float]] = dataclasses.field(init=False)
    """Every method's step size and repulsion."""

    def __post_init__(self):
        unknown = set(self.methods) - set(METHODS)
        if unknown or not self.methods:
            raise SystemExit(f"methods must be among {', '.join(METHODS)}; got {sorted(unknown)}.")
        if self.dataset not in data.DATASETS:
            raise SystemExit(f"dataset must be one of {', '.join(data.DATASETS)}.")
        sizes = (self.num_epochs, self.num_particles, self.batch_size, len(self.seeds))
        if min(sizes) < 1:
            raise SystemExit(
                "num_epochs, num_particles, batch_size and the number of seeds must be positive; "
                f"got {sizes}."
            )
        common.check_seeds(self.seeds)
        if self.quick:
            object.__setattr__(self, "seeds", self.seeds[:2])
            object.__setattr__(self, "num_epochs", min(self.num_epochs, 2))
        choices = {name: METHODS[name].choice for name in self.methods}
        object.__setattr__(self, "choices", choices)


def as_images(raw: Int[Array, "... h w"]) -> Float[Array, "... h w"]:
    """Bytes as brightness between zero and one."""
    return raw.astype(jnp.float32) / 255


class Problem(NamedTuple):
    """The training pairs, and how a step looks at them."""

    train: data.Pairs
    settings: Settings

    def batch(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """The minibatch that all objectives and features of a step share.

        They draw it each for themselves from the same key, and XLA merges equal computations: one
        forward pass serves them all. It does not merge loops, which threefry is on a CPU, hence
        another generator there.
        """
        if jax.default_backend() == "cpu":
            key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
        index = jax.random.bits(key, (self.settings.batch_size,)) % self.train.labels.shape[0]
        return as_images(jnp.asarray(self.train.images)[index]), jnp.asarray(self.train.labels)[
            index
        ]

    def losses(self, key: Key[Array, ""], particle: PyTree[Array]) -> Float[Array, " task"]:
        """Each task's mean cross-entropy on the minibatch, and its encoder's and head's decay."""
        images, labels = self.batch(key)
        log_probs = jax.nn.log_softmax(logits(particle, images))
        chosen = jnp.take_along_axis(log_probs, labels[:, :, None], axis=2)[:, :, 0]
        encoder = {name: leaf for name, leaf in particle.items() if name != "heads"}
        squares = jnp.stack(
            [optax.tree.norm((encoder, head), squared=True) for head in particle["heads"].values()]
        )
        return -jnp.mean(chosen, axis=0) + 0.5 * self.settings.weight_decay * squares

    def outputs(self, key: Key[Array, ""], particle: PyTree[Array]) -> Float[Array, " p"]:
        """Class probabilities on the minibatch: what function-space kernels compare."""
        images, _ = self.batch(key)
        probs = jax.nn.softmax(logits(particle, images))
        return probs.ravel() / jnp.sqrt(images.shape[0])

    def sketch(self, key: Key[Array, ""], particle: PyTree[Array]) -> Float[Array, "16"]:
        """A fixed random projection of the outputs, low-dimensional enough to learn a score in."""
        outputs = self.outputs(key, particle)
        return outputs @ jax.random.normal(jax.random.key(0), (outputs.shape[0], 16)) / 4

    def objectives(self, repulsion: float) -> tuple[flows.Potential, ...]:
        """A task's loss each."""

        def task(index: int) -> flows.Potential:
            energy = lambda key, particle: self.losses(key, particle)[index]
            return flows.Potential(energy, stochastic=True, entropy=repulsion)

        return task(0), task(1)


def make_flow(method: Method, problem: Problem, num_steps: int, shared: PyTree[bool]) -> flows.Flow:
    """A method's flow."""
    objectives: tuple[flows.Objective, ...] = problem.objectives(method.repulsion)
    if method.scalarize is not None:
        objectives = (Scalarized(objectives, problem.outputs, method.scalarize == "each"),)
    schedule = optax.cosine_decay_schedule(method.step_size, num_steps, alpha=0.05)
    return flows.Flow(
        objectives,
        velocity=method.velocity,
        aggregator=method.aggregator,
        optimizer=method.optimizer(schedule),
        features=None if method.features is None else getattr(problem, method.features),
        shared=shared,
    )


@functools.partial(jax.jit, static_argnums=2)
def ensemble_probs(
    particles: PyTree[Array], images: Int[Array, "m h w"], batch_size: int = 500
) -> Float[Array, "m task class"]:
    """The particles' mean class probabilities."""

    def mean_probs(batch: Array) -> Array:
        each = jax.vmap(lambda particle: jax.nn.softmax(logits(particle, batch)))(particles)
        return each.mean(0)

    m, size = images.shape[0], min(batch_size, images.shape[0])
    pad = -m % size
    padded = jnp.pad(images, ((0, pad), (0, 0), (0, 0))).reshape(-1, size, *images.shape[1:])
    probs = jax.lax.map(lambda batch: mean_probs(as_images(batch)), padded)
    return probs.reshape(-1, *probs.shape[2:])[:m]


def over_seeds(function: Callable[..., Any], *arguments: PyTree[Array]) -> Any:
    """All seeds at once, but one after another on a CPU, whose caches hold one seed's networks."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda each: function(*each), arguments)
    return jax.vmap(function)(*arguments)


class Trained(NamedTuple):
    """A method's networks over seeds, with what validation said after each epoch."""

    particles: PyTree[Array]
    log: list[dict[str, Any]]


def train(
    run: common.Run | None,
    name: str,
    method: Method,
    splits: data.Splits,
    settings: Settings,
) -> Trained:
    """Train all seeds of a method at once, an epoch a checkpoint."""
    problem = Problem(jax.tree.map(jnp.asarray, splits.train), settings)
    steps = max(1, splits.train.labels.shape[0] // settings.batch_size)
    num_particles = settings.num_particles if method.ensemble else 1
    canvas = splits.train.images.shape[1]
    shared = is_shared(init_particle(jax.random.key(0), canvas))
    flow = make_flow(method, problem, steps * settings.num_epochs, shared)
    keys = jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))
    validation = jax.tree.map(jnp.asarray, splits.validation)

    def start(key: Key[Array, ""]) -> flows.FlowState:
        particle_keys = jax.random.split(jax.random.fold_in(key, 1), num_particles)
        particles = jax.vmap(lambda k: init_particle(k, canvas))(particle_keys)
        return flow.init(key, particles)

    @jax.jit
    def epoch(state: flows.FlowState) -> tuple[flows.FlowState, dict[str, Array]]:
        def one(key: Key[Array, ""], state: flows.FlowState):
            result = flow.run(key, state, num_steps=steps, record_every=steps)
            scores = calibration.metrics(
                ensemble_probs(result.particles, validation.images), validation.labels
            )
            return result.state, scores | {
                "weights": result.history.weights[-1],
                "finite": result.finite,
            }

        return over_seeds(one, keys, state)

    def advance(state: flows.FlowState, chunk: int) -> tuple[flows.FlowState, dict[str, Any]]:
        state, scores = epoch(state)
        return state, scores | {"mean_accuracy": scores["accuracy"].mean()}

    state = jax.jit(jax.vmap(start))(keys)
    if run is not None:
        state, log = run.train(name, state, advance, settings.num_epochs)
    else:
        log = []
        for chunk in common.progress(range(settings.num_epochs), name):
            state, scores = advance(state, chunk)
            log.append(scores)
    return Trained(state.particles, log)


@jax.jit
def seed_scores(
    particles: PyTree[Array], validation: data.Pairs, test: data.Pairs
) -> dict[str, Array]:
    """Metrics on test, also with the temperature that validation asks for, and probabilities."""
    labels, probs = test.labels, ensemble_probs(particles, test.images)
    fitted = calibration.temperature(
        ensemble_probs(particles, validation.images), validation.labels
    )
    tempered = calibration.metrics(calibration.temper(probs, fitted), labels)
    return calibration.metrics(probs, labels) | {
        "temperature": fitted,
        "tempered_ece": tempered["ece"],
        "probs": probs,
    }


def test_scores(trained: Trained, splits: data.Splits) -> dict[str, Any]:
    """Metrics on test, a row a seed, and the first seed's probabilities."""
    validation, test = jax.tree.map(jnp.asarray, (splits.validation, splits.test))
    scores = jax.lax.map(lambda each: seed_scores(each, validation, test), trained.particles)
    weights = np.asarray([line["weights"] for line in trained.log])
    curves = np.asarray([line["accuracy"] for line in trained.log])
    return scores | {
        "probs": scores["probs"][0],
        "weights": weights,
        "curves": curves,
        "finite": np.all([line["finite"] for line in trained.log], axis=0),
        "minutes": sum(line["seconds"] for line in trained.log) / 60,
    }


def tune(settings: Settings, splits: data.Splits) -> None:
    """Print every method's validation log loss over a grid, and the best choice."""
    for name in settings.methods:
        method, losses = METHODS[name], {}
        step_sizes = (3e-3, 1e-2, 2e-2) if method.optimizer is optax.adam else (0.5, 1.0, 3.0)
        repulsions = (1e-5, 1e-3, 1e-2) if method.repulsion else (0.0,)
        for choice in itertools.product(step_sizes, repulsions):
            tried = method._replace(step_size=choice[0], repulsion=choice[1])
            last = train(None, name, tried, splits, settings).log[-1]
            loss, accuracy, ece = (
                float(np.mean(last[score])) for score in ("log_loss", "accuracy", "ece")
            )
            losses[choice] = loss if np.isfinite(loss) else np.inf
            print(
                f"{name}: step size {choice[0]:g}, repulsion {choice[1]:g}: "
                f"log loss {loss:.4f}, accuracy {accuracy:.4f}, ECE {ece:.4f}",
                flush=True,
            )
        print(f"{name}: best {min(losses, key=lambda choice: losses[choice])}", flush=True)


def rows(scores: dict[str, dict[str, np.ndarray]]) -> list[dict[str, str]]:
    """The table: mean ± standard error over seeds, accuracies and ECE in per cent.

    T is the temperature fitted on validation: below one, the probabilities were underconfident.
    """

    def cells(arrays: dict[str, np.ndarray]) -> dict[str, str]:
        accuracy, brier, ece = arrays["accuracy"], arrays["brier"], arrays["ece"]
        return {
            "task 1 %": common.with_error(accuracy[:, 0], 2, 100),
            "task 2 %": common.with_error(accuracy[:, 1], 2, 100),
            "mean %": common.with_error(accuracy.mean(1), 2, 100),
            "Brier": common.with_error(brier.mean(1), 4),
            "ECE %": common.with_error(ece.mean(1), 2, 100),
            "T": common.with_error(arrays["temperature"]),
            "ECE at T %": common.with_error(arrays["tempered_ece"].mean(1), 2, 100),
            "log loss": common.with_error(arrays["log_loss"].mean(1), 4),
            "minutes": f"{arrays['minutes']:.1f}",
            "finite": common.finite_cell(arrays["finite"]),
        }

    return [{"method": method} | cells(arrays) for method, arrays in scores.items()]


def draw_scores(scores: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Accuracy, Brier score and calibration error of every method, with standard errors."""
    names = list(scores)
    with plot.style():
        figure, axes = plt.subplots(1, 3, figsize=(12, 1.8 + 0.3 * len(names)), sharey=True)
        for axis, key, label, scale in zip(
            axes,
            ("accuracy", "brier", "ece"),
            ("accuracy, %", "Brier score", "expected calibration error, %"),
            (100, 1, 100),
            strict=True,
        ):
            for place, name in enumerate(names):
                mean, error = common.mean_and_error(scores[name][key].mean(1) * scale)
                look = {"color": "C4", "fmt": "s"} if "MWGraD" in name else {"color": "C0"}
                axis.errorbar(mean, place, xerr=error, **{"fmt": "o", "capsize": 3, **look})
            axis.set_xlabel(label)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        figure.suptitle("Test scores, mean ± standard error over seeds; squares are MWGraD")
    return figure


def draw_training(scores: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Validation accuracy after each epoch, and the first task's weight, mean over seeds."""
    with plot.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5))
        for index, (name, arrays) in enumerate(scores.items()):
            # More methods than the style has lines; markers tell apart those of one line.
            line: dict[str, Any] = {"color": f"C{index % 7}", "marker": "osd^vxP*<>"[index % 10]}
            line |= {"markevery": (index % 5, 5), "label": name}
            accuracy = arrays["curves"].mean((1, 2))
            epochs = 1 + np.arange(len(accuracy))
            plot.curves(accuracy, steps=epochs, ax=left, **line)
            if arrays["weights"].shape[-1] == 2:
                plot.curves(arrays["weights"][..., 0].mean(1), steps=epochs, ax=right, **line)
        low = min(arrays["curves"][-1].mean() for arrays in scores.values())
        left.set(xlabel="epoch", ylabel="validation accuracy, mean of both tasks")
        left.set_ylim(low - 0.08, None)
        right.set(xlabel="epoch", ylabel="weight of task 1 in an epoch's first step", ylim=(0, 1))
        figure.suptitle("Mean over seeds")
        lines = left.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=4, handlelength=4)
    return figure


def draw_examples(test: data.Pairs, probs: np.ndarray, name: str) -> Figure:
    """Test images with both answers: the surest six rows and the least sure."""
    sure = probs.max(-1).min(-1)
    order = np.argsort(sure)
    chosen = np.concatenate([order[-6:][::-1], order[:6]])
    with plot.style():
        figure, axes = plt.subplots(2, 6, figsize=(12, 5.5))
        for axis, index in zip(axes.ravel(), chosen, strict=True):
            axis.imshow(test.images[index], cmap="gray")
            answer, confidence = probs[index].argmax(-1), probs[index].max(-1)
            first, second = test.labels[index]
            right = (answer == test.labels[index]).all()
            axis.set_title(
                f"{answer[0]} ({confidence[0]:.2f}), {answer[1]} ({confidence[1]:.2f})\n"
                f"{'right' if right else 'WRONG'}: {first}, {second}",
                fontsize="small",
                fontweight="normal" if right else "bold",
            )
            axis.set_axis_off()
        figure.suptitle(f"{name}: surest test images, above, and least sure, below")
    return figure


def main(
    settings: Settings,
    tune_on_validation: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train every method over all seeds, print the table, draw the figures."""
    splits = data.load(settings.dataset, quick=settings.quick)
    if tune_on_validation:
        tune(settings, splits)
        return
    name = f"multi_task_learning/{settings.dataset}"
    with common.open_run(name, settings, output, overwrite) as run:
        scores = {}
        for method in settings.methods:
            scores[method] = run.stage(
                method,
                lambda method=method: test_scores(
                    train(run, method, METHODS[method], splits, settings), splits
                ),
            )
        print(
            f"\n{settings.dataset}: test, mean ± standard error over {len(settings.seeds)} seeds\n"
        )
        print(run.save_table("results", rows(scores)))
        run.save_figure("scores", draw_scores(scores))
        run.save_figure("training", draw_training(scores))
        probs = {method: arrays["probs"] for method, arrays in scores.items()}
        run.save_figure("reliability", calibration.draw_reliability(probs, splits.test.labels))
        best = max(scores, key=lambda method: scores[method]["curves"][-1].mean())  # on validation
        run.save_figure("examples", draw_examples(splits.test, scores[best]["probs"], best))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
