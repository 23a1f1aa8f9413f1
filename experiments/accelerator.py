"""What an accelerator does with this package: its tests, its speed, the long training run.

    python -m experiments.accelerator  # 480 seconds at most; the same again goes on
    python -m experiments.accelerator --parts benchmarks --budget 900
    python -m experiments.accelerator --quick  # little of everything, to see that it runs

The parts run in this order, those that say most first: the contract suite; the benchmarks of flows,
Sinkhorn and ratios at three sizes, against the peers that are installed; training on MultiMNIST for
the 40 000 iterations of A-MWGraD's table 1 (arXiv 2601.19220). Each piece is a process of its own,
which is stopped when the budget is used up. All that is finished by then is in
`experiments/benchmarks/results/<device>.json`, and the same call goes on with the rest.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import recorded_tests
from experiments.run_folder import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "benchmarks" / "results"
# The contract's files, those that say most about a device first.
CONTRACT = ("ot", "flows", "fdiv", "kernels", "ratio", "losses", "inference", "methods")
BENCHMARKS = ("flows", "sinkhorn", "ratio")
# The iterations of A-MWGraD's table 1.
ITERATIONS = 40_000

Part = Literal["contract", "benchmarks", "training"]
# JAX would take three quarters of the memory in each process.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "MPLBACKEND": "Agg"}
_WHERE = "import json; from experiments import common; print(json.dumps(common.environment()))"
_DEVICE = "import jax; print(jax.devices()[0].device_kind)"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run, and for how long."""

    parts: tuple[Part, ...] = ("contract", "benchmarks", "training")
    budget: float = 480.0
    """Seconds after which everything stops."""
    datasets: tuple[str, ...] = ("multi_mnist",)
    methods: tuple[str, ...] = (
        "A-MWGraD-Blob",
        "A-MWGraD-SVGD",
        "MWGraD-Blob",
        "MWGraD-SVGD",
        "MT-SGD",
        "MOO-SVGD",
        "MGDA",
    )
    quick: bool = False
    """Little of everything, to see that it runs: one file of tests, small sizes, two epochs."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A process that records what it finishes.

    Attributes:
        part: what it belongs to.
        name: in the results.
        command: after `python -m`.
    """

    part: Part
    name: str
    command: tuple[str, ...]


def pieces(settings: Settings, folder: Path) -> Iterator[Piece]:
    """The pieces of work, in their order."""
    quick = ("--quick",) if settings.quick else ()
    if "contract" in settings.parts:
        for name in ("kernels",) if settings.quick else CONTRACT:
            marks = ("-m", "not slow and not exhaustive", "-q", "--no-header")
            tests = f"tests/contract/test_{name}.py"
            some = ("-k", "jit and Gaussian") if settings.quick else ()
            plugin = ("-p", "experiments.recorded_tests", "-p", "no:cacheprovider")
            yield Piece("contract", name, ("pytest", tests, *marks, *plugin, *some))
    if "benchmarks" in settings.parts:
        for name in BENCHMARKS[:1] if settings.quick else BENCHMARKS:
            where = ("--output", str(folder / name), "--record", str(folder / f"{name}.jsonl"))
            command = ("experiments.benchmarks", "--parts", name, *where, *quick)
            yield Piece("benchmarks", name, command)
    if "training" in settings.parts:
        for dataset in settings.datasets:
            for method in settings.methods:
                yield training(dataset, method, settings.quick, folder)


def training(dataset: str, method: str, quick: bool, folder: Path) -> Piece:
    """One method on one data set, one seed, for `ITERATIONS` or two epochs."""
    length = ["--quick"]
    if not quick:
        steps = len(training_rows(dataset)) // 128
        length = ["--num-epochs", str(math.ceil(ITERATIONS / steps))]
    name = f"{dataset}, {method}"
    output = folder / f"{dataset}-{method}"
    command = ("--dataset", dataset, "--methods", method, "--seeds", "0", *length)
    return Piece(
        "training", name, ("experiments.multi_task_learning", *command, "--output", str(output))
    )


def training_rows(dataset: str) -> Any:
    """The labels of a data set's training pairs."""
    from experiments import data

    return data.load(dataset).train.labels


def run(piece: Piece, folder: Path, seconds: float) -> tuple[int | None, float]:
    """The exit status of a piece, None if it was stopped, and the seconds that it took.

    What it prints is in a file of its name.
    """
    record = folder / f"tests-{piece.name}.jsonl"
    environment = {**os.environ, **ENVIRONMENT, "RECORDED_TESTS": str(record)}
    start = time.perf_counter()
    with (folder / f"{piece.part}-{piece.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *piece.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # With the processes that it has started, which would hold the device.
            os.killpg(process.pid, 9)
            process.wait()
            status = None
    return status, time.perf_counter() - start


def found(piece: Piece, folder: Path) -> Any:
    """What a piece has recorded so far."""
    if piece.part == "contract":
        recorded = list(recorded_tests.outcomes(folder / f"tests-{piece.name}.jsonl").values())
        count = lambda outcome: sum(line["outcome"] == outcome for line in recorded)
        return {
            **{outcome: count(outcome) for outcome in ("passed", "failed", "skipped")},
            "failures": [line for line in recorded if line["outcome"] == "failed"],
        }
    if piece.part == "benchmarks":
        file = folder / f"{piece.name}.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return {line["title"]: line["rows"] for line in map(json.loads, lines)}
    output = Path(piece.command[-1])
    metrics, table = output / "metrics.jsonl", output / "results.md"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return {
        "epochs": len(lines),
        "last_epoch": json.loads(lines[-1]) if lines else None,
        "test": table.read_text().splitlines() if table.exists() else None,
    }


def ask(code: str) -> str:
    """What a program prints: this process leaves the device to those that it starts."""
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"JAX does not start: {done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def main(settings: Settings, output: Path | None = None) -> None:
    """Run the pieces until the budget is used up, and write what they have found.

    Args:
        settings: what to run.
        output: a folder for logs and records, by default `runs/accelerator/<device>`. The results
            are in `experiments/benchmarks/results/`, with `quick` in this folder.
    """
    deadline = time.perf_counter() + settings.budget
    device = ask(_DEVICE).replace(" ", "-").lower() + "-quick" * settings.quick
    folder = (output or ROOT / "runs" / "accelerator" / device).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder if settings.quick else RESULTS) / f"{device}.json"
    results = json.loads(file.read_text()) if file.exists() else {"pieces": {}}
    results["environment"] = json.loads(ask(_WHERE))

    for piece in pieces(settings, folder):
        key = f"{piece.part}: {piece.name}"
        entry = results["pieces"].get(key, {"finished": False, "seconds": 0.0})
        left = deadline - time.perf_counter()
        if entry["finished"] or left <= 0:
            continue
        print(f"{key} …", flush=True)
        status, seconds = run(piece, folder, left)
        # Failed tests (1) are a result; none left to run (5) is an end.
        finished = status == 0 or (piece.part == "contract" and status in (1, 5))
        entry["finished"] = finished
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        entry["found"] = found(piece, folder)
        results["pieces"][key] = entry
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(results, indent=1) + "\n")
        ended = "finished" if finished else "stopped" if status is None else f"failed ({status})"
        print(f"{key}: {ended} after {seconds:.0f} s", flush=True)
    rest = [key for key, entry in results["pieces"].items() if not entry["finished"]]
    print(f"written to {file}; " + (f"unfinished: {', '.join(rest)}" if rest else "all finished"))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
