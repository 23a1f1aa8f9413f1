"""Scores that are independent of protected attributes: what penalties of dependence cost and reach.

    python -m experiments.fair_regression            # --quick for a small one, without any files

A small network scores rows; its loss is the cross-entropy plus a strength times a penalty of the
dependence between the score and the protected attributes, on each batch. The network does not see
the attributes, but features that tell of them. The penalties, all of `divjax`, differentiable and
of the score in [0, 1]:

`marginal dCov`: Σ_k dCov²(ŷ, s_k), the parts of `information.concatenated_distance_covariance`.
`CCdCov`: its value, dCov² with all attributes as one vector. `JdCov`:
`information.joint_distance_covariance` of the score and the attributes. `JS`:
`fdiv.categorical.jensen_shannon` of the distributions of the score within the combinations of
attributes, weighted by their shares (Lee et al. 2025 use such a divergence to measure unfairness);
the distributions are histograms smoothed by a Gaussian, since counts have no derivative. `balanced
CCdCov` is CCdCov of rows weighted such that all combinations have the same mass in a batch: the
others weigh a group by its share, or its square, while a score that is independent of the
attributes is so under any masses.

`adult`: income above 50K from Adult's numbers and categories; sex, and race as White, Black and all
others, whose smallest combination is 2 % of the rows. Training and validation rows are of its
training file, test rows are its test file. `xor`: two fair coins a and b; the label depends on
their exclusive or, a little on a, and on three features that have nothing to do with either; three
more features are noisy copies of a, b and the exclusive or. A score may be independent of a and of
b, and tell of both together.

A decision accepts the highest scores: as large a share of rows as has the label 1, by a threshold
found on validation. The gap of an attribute, or of their combinations, is the largest difference
between groups in the share that is accepted (demographic parity). For each penalty the strength is
chosen on validation: the one with the least gap of combinations among those whose AUC is at most
`tolerance` below that without penalty. Numbers are of test, after the last step.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from divjax import fdiv, information, plot
from divjax.core import training
from divjax.core.networks import BuildMLP, apply_network, init_network
from experiments import common, data

ADULT_TRAINING_ROWS = 32_561


class Rows(NamedTuple):
    """Features, labels and attributes of people.

    Attributes:
        features: standardised numbers and indicators, "n d".
        labels: zero or one, "n".
        attributes: the value of each attribute, from zero on, "n k".
    """

    features: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray


class Problem(NamedTuple):
    """Rows to train and to choose by, and rows to report on."""

    train: Rows
    test: Rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    problems: tuple[str, ...] = ("xor", "adult")
    penalties: tuple[str, ...] = ("marginal dCov", "JdCov", "CCdCov", "balanced CCdCov", "JS")
    strengths: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0)
    """Of the squared distance covariances."""
    js_strengths: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    tolerance: float = 0.03
    """How much AUC a fair score may lose on validation."""
    hidden: tuple[int, ...] = (32,)
    learning_rate: float = 1e-2
    num_steps: int = 400
    batch_size: int = 512
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the split, the initial network and the batches."""
    quick: bool = False
    """Coins only, two strengths, 40 steps, two seeds: does everything run?"""

    def __post_init__(self):
        for name, known in (("problems", PROBLEMS), ("penalties", PENALTIES)):
            given = getattr(self, name)
            if not given or set(given) - set(known):
                found = sorted(set(given) - set(known))
                raise SystemExit(f"{name} must be among {', '.join(known)}; got {found}.")
        common.check_seeds(self.seeds)
        numbers = ("strengths", "js_strengths", "tolerance", "hidden", "learning_rate")
        numbers += ("num_steps", "batch_size")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"problems": ("xor",), "num_steps": 40, "seeds": self.seeds[:2]}
            small |= {"strengths": self.strengths[1::2], "js_strengths": self.js_strengths[1::2]}
            for name, value in small.items():
                object.__setattr__(self, name, value)

    def strengths_of(self, penalty: str) -> tuple[float, ...]:
        """The grid of a penalty."""
        return self.js_strengths if penalty == "JS" else self.strengths


# The problems.


def coins(rng: np.random.Generator, n: int) -> Rows:
    """Two fair coins, whose exclusive or the label depends on."""
    attributes = rng.integers(0, 2, size=(n, 2))
    signs = 2.0 * np.column_stack([attributes, attributes[:, 0] ^ attributes[:, 1]]) - 1
    merits = rng.normal(size=(n, 3))
    logits = merits.sum(1) + signs[:, 2] + 0.5 * signs[:, 0]
    labels = rng.random(n) < 1 / (1 + np.exp(-logits))
    features = np.hstack([merits, signs + rng.normal(size=(n, 3))])
    return Rows(features.astype(np.float32), labels.astype(np.float32), attributes)


def xor() -> Problem:
    """Coins to train on, and others to test."""
    rng = np.random.default_rng(0)
    return Problem(coins(rng, 8000), coins(rng, 8000))


def adult() -> Problem:
    """Adult without what only describes the sample, and without the attributes as features."""
    table = data.load_table("adult")
    labels = (table["income"] == ">50K").to_numpy(np.float32)
    race = 2 - 2 * (table["race"] == "White") - (table["race"] == "Black")
    attributes = np.column_stack([(table["sex"] == "Female").to_numpy(int), race.to_numpy(int)])
    kept = table.drop(columns=["income", "sex", "race", "fnlwgt", "education"])
    numbers = kept.select_dtypes("number").astype(float)
    gains = ["capital-gain", "capital-loss"]
    numbers[gains] = np.log1p(numbers[gains])
    of_training = numbers[:ADULT_TRAINING_ROWS]
    numbers = (numbers - of_training.mean()) / of_training.std()
    # A missing category has no indicator.
    indicators = [
        (kept[name].to_numpy()[:, None] == np.sort(kept[name].dropna().unique())).astype(float)
        for name in kept.columns.difference(numbers.columns, sort=False)
    ]
    features = np.hstack([numbers.to_numpy(), *indicators]).astype(np.float32)
    whole = Rows(features, labels, attributes)
    parts = (slice(None, ADULT_TRAINING_ROWS), slice(ADULT_TRAINING_ROWS, None))
    train, test = (Rows(*(array[part] for array in whole)) for part in parts)
    return Problem(train, test)


PROBLEMS: dict[str, Callable[[], Problem]] = {"xor": xor, "adult": adult}
ATTRIBUTES = {"xor": ("a", "b"), "adult": ("sex", "race")}


def combinations(attributes: np.ndarray) -> np.ndarray:
    """The combination of each row's attributes, as a number from zero on."""
    return np.unique(attributes, axis=0, return_inverse=True)[1].ravel()


# The penalties: of a column of scores, the attributes, and the combinations as indicators.
Penalty = Callable[[jax.Array, Sequence[jax.Array], jax.Array], jax.Array]


def _marginal(score: jax.Array, attributes: Sequence[jax.Array], groups: jax.Array) -> jax.Array:
    return jnp.sum(information.concatenated_distance_covariance(score, attributes).parts)


def _concatenated(
    score: jax.Array, attributes: Sequence[jax.Array], groups: jax.Array
) -> jax.Array:
    return information.concatenated_distance_covariance(score, attributes).value


def _balanced(score: jax.Array, attributes: Sequence[jax.Array], groups: jax.Array) -> jax.Array:
    weights = groups @ (1 / jnp.maximum(jnp.sum(groups, axis=0), 1))
    return information.concatenated_distance_covariance(score, attributes, weights).value


def _joint(score: jax.Array, attributes: Sequence[jax.Array], groups: jax.Array) -> jax.Array:
    return information.joint_distance_covariance([score, *attributes], debias=True)


def _jensen_shannon(
    score: jax.Array, attributes: Sequence[jax.Array], groups: jax.Array
) -> jax.Array:
    width = 0.05
    cells = jnp.arange(0.0, 1.0 + width / 2, width / 2)
    # Each row spreads over the cells about its score; without the sum, those at the ends would.
    smoothed = jax.nn.softmax(-0.5 * jnp.square((score - cells) / width), axis=1)
    counts = jnp.sum(groups, axis=0)
    # A group that is not in the batch has no weight; any distribution will do.
    of_groups = jnp.where(
        counts[:, None] > 0,
        groups.T @ smoothed / jnp.maximum(counts, 1)[:, None],
        jnp.mean(smoothed, axis=0),
    )
    return fdiv.categorical.jensen_shannon(*of_groups, weights=counts)


PENALTIES: dict[str, Penalty] = {
    "marginal dCov": _marginal,
    "JdCov": _joint,
    "CCdCov": _concatenated,
    "balanced CCdCov": _balanced,
    "JS": _jensen_shannon,
}


# Training: all seeds and strengths of a penalty by one program.


class Part(NamedTuple):
    """Rows on the device: attributes as vectors one apart, combinations as indicators."""

    features: jax.Array
    labels: jax.Array
    attributes: tuple[jax.Array, ...]
    groups: jax.Array


def as_part(rows: Rows) -> Part:
    """The rows as a training sees them."""
    one_hot = lambda codes: np.eye(codes.max() + 1, dtype=np.float32)[codes]
    attributes = [one_hot(codes) / np.sqrt(2) for codes in rows.attributes.T]
    groups = one_hot(combinations(rows.attributes))
    return Part(
        jnp.asarray(rows.features),
        jnp.asarray(rows.labels),
        tuple(jnp.asarray(one, jnp.float32) for one in attributes),
        jnp.asarray(groups),
    )


@functools.partial(jax.jit, static_argnames=("penalty", "settings"))
def _scores(
    seeds: jax.Array,
    orders: jax.Array,
    strengths: jax.Array,
    train: Part,
    test_features: jax.Array,
    *,
    penalty: str,
    settings: Settings,
) -> tuple[jax.Array, jax.Array]:
    """Scores "seeds strengths n" of all training rows and of the test rows."""
    network = BuildMLP(settings.hidden)
    n, d = orders.shape[1], train.features.shape[1]

    def score(params: Any, features: jax.Array) -> jax.Array:
        return apply_network(network, params, features)[:, 0]

    def one(seed: jax.Array, order: jax.Array, strength: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, key = jax.random.split(jax.random.key(seed))

        def loss(key: jax.Array, params: Any) -> jax.Array:
            index = order[training.row_batch(key, n, settings.batch_size)]
            rows = jax.tree.map(lambda array: array[index], train)
            logits = score(params, rows.features)
            entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, rows.labels))
            column = jax.nn.sigmoid(logits)[:, None]
            return entropy + strength * PENALTIES[penalty](column, rows.attributes, rows.groups)

        fitted = training.fit(
            key,
            loss,
            init_network(network, start_key, d, jnp.float32),
            training.adam_with_cosine(settings.learning_rate, settings.num_steps, jnp.float32),
            num_steps=settings.num_steps,
        )
        return score(fitted.params, train.features), score(fitted.params, test_features)

    def of_seed(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seed, order = pair
        return jax.lax.map(lambda strength: one(seed, order, strength), strengths)

    return jax.lax.map(of_seed, (seeds, orders))


def splits(n: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """For each seed the rows to train on, and a fifth to validate by."""
    orders = [np.random.default_rng(seed).permutation(n) for seed in settings.seeds]
    held = n // 5
    return np.stack([order[held:] for order in orders]), np.stack([o[:held] for o in orders])


def measures(
    scores: np.ndarray, rows: Rows, threshold: float, names: Sequence[str]
) -> dict[str, float]:
    """AUC, accuracy, and the gaps of the attributes and of their combinations."""
    accepted = scores > threshold
    found = {
        "AUC": float(roc_auc_score(rows.labels, scores)),
        "accuracy": float(np.mean(accepted == rows.labels)),
    }
    columns = {name: rows.attributes[:, k] for k, name in enumerate(names)}
    for name, codes in (columns | {"both": combinations(rows.attributes)}).items():
        shares = [accepted[codes == value].mean() for value in np.unique(codes)]
        found[f"gap, {name}"] = float(max(shares) - min(shares))
    return found


def evaluate(settings: Settings, name: str, penalty: str) -> dict[str, np.ndarray]:
    """Measures "seeds strengths" on validation and on test, the first strength of zero."""
    problem = PROBLEMS[name]()
    strengths = np.array([0.0, *settings.strengths_of(penalty)], np.float32)
    orders, held = splits(len(problem.train.labels), settings)
    of_train, of_test = _scores(
        jnp.asarray(settings.seeds),
        jnp.asarray(orders),
        jnp.asarray(strengths),
        as_part(problem.train),
        jnp.asarray(problem.test.features),
        penalty=penalty,
        settings=settings,
    )
    found: dict[str, list[list[float]]] = {}
    for seed, index in enumerate(held):
        validation = Rows(*(array[index] for array in problem.train))
        lines: dict[str, list[float]] = {}
        for k in range(len(strengths)):
            chosen_by = np.asarray(of_train[seed, k])[index]
            threshold = float(np.quantile(chosen_by, 1 - validation.labels.mean()))
            for part, scores, rows in (
                ("validation", chosen_by, validation),
                ("test", np.asarray(of_test[seed, k]), problem.test),
            ):
                for key, value in measures(scores, rows, threshold, ATTRIBUTES[name]).items():
                    lines.setdefault(f"{part} {key}", []).append(value)
        for key, values in lines.items():
            found.setdefault(key, []).append(values)
    return {key: np.array(values) for key, values in found.items()} | {"strengths": strengths}


# What is reported.
Results = dict[str, dict[str, dict[str, np.ndarray]]]


def chosen(arrays: dict[str, np.ndarray], tolerance: float) -> int:
    """The strength with the least gap of combinations on validation, of those with enough AUC."""
    auc, gap = (arrays[f"validation {key}"].mean(0) for key in ("AUC", "gap, both"))
    # Without penalty nothing is lost, so that there always is one.
    return int(np.argmin(np.where(auc >= auc[0] - tolerance, gap, np.inf)))


def gaps_of(problem: str) -> list[str]:
    """The gaps of each attribute, and of both together."""
    return [f"gap, {name}" for name in (*ATTRIBUTES[problem], "both")]


def chosen_rows(
    problem: str, found: dict[str, dict[str, np.ndarray]], tolerance: float
) -> list[dict[str, Any]]:
    """A row each penalty, at the strength that validation chose, in per cent."""
    first = next(iter(found.values()))
    places = [("none", first, 0)]
    places += [(name, arrays, chosen(arrays, tolerance)) for name, arrays in found.items()]
    return [
        {"penalty": name, "strength": f"{arrays['strengths'][k]:g}"}
        | {
            key: common.with_error(arrays[f"test {key}"][:, k], 1, scale=100)
            for key in ("AUC", "accuracy", *gaps_of(problem))
        }
        for name, arrays, k in places
    ]


def path_rows(results: Results) -> list[dict[str, Any]]:
    """A row each problem, penalty and strength: AUC and the gaps on test, in per cent."""
    return [
        {"problem": problem, "penalty": name, "strength": f"{strength:g}"}
        | {
            key: common.with_error(arrays[f"test {old}"][:, k], 1, scale=100)
            for key, old in zip(
                ("AUC", "accuracy", "gap, first attribute", "gap, second", "gap, both"),
                ("AUC", "accuracy", *gaps_of(problem)),
                strict=True,
            )
        }
        for problem, found in results.items()
        for name, arrays in found.items()
        for k, strength in enumerate(arrays["strengths"])
    ]


def draw(results: Results, tolerance: float) -> Figure:
    """A line of panels a problem: AUC by the gaps of each attribute and of both, on test."""
    with plot.style():
        figure, axes = plt.subplots(
            len(results), 3, figsize=(11, 3.3 * len(results) + 0.5), squeeze=False
        )
        for line, (problem, found) in zip(axes, results.items(), strict=True):
            for axis, gap in zip(line, gaps_of(problem), strict=True):
                for number, (name, arrays) in enumerate(found.items()):
                    (x, x_error), (y, y_error) = (
                        common.mean_and_error(100 * arrays[f"test {key}"]) for key in (gap, "AUC")
                    )
                    color, marker = f"C{number}", "osD^v"[number]
                    axis.errorbar(
                        x, y, y_error, x_error, color=color, marker=marker, ms=4, lw=1.2, label=name
                    )
                    best = chosen(arrays, tolerance)
                    axis.plot(x[best], y[best], color=color, marker=marker, ms=10, mfc="none")
                reference = 100 * next(iter(found.values()))["test AUC"][:, 0].mean()
                axis.axhline(reference, color="black", linestyle=":", linewidth=1)
                axis.set(title=f"{problem}: {gap}", xlabel="gap on test, per cent")
                axis.set_xlim(left=0)
            line[0].set_ylabel("AUC on test, per cent")
            for axis in line[1:]:
                axis.sharey(line[0])
        entries = axes[0, 0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=5)
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Train with all penalties and strengths, print what validation chose, draw the curves."""
    with common.open_run("fair_regression", settings, output, overwrite) as run:
        cells = itertools.product(settings.problems, settings.penalties)
        found = run.stages("penalties", cells, functools.partial(evaluate, settings))
        results: Results = {
            problem: {name: found[problem, name] for name in settings.penalties}
            for problem in settings.problems
        }
        for problem, found in results.items():
            print(f"\n{problem}, on test, in per cent:\n")
            print(
                run.save_table(f"chosen_{problem}", chosen_rows(problem, found, settings.tolerance))
            )
        print("\nAll strengths, gaps in per cent:\n")
        print(run.save_table("paths", path_rows(results)))
        run.save_figure("fairness", draw(results, settings.tolerance))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
