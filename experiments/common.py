"""What every experiment needs: a run folder, work that survives a kill, progress, tables, figures.

    with common.open_run("my_script", settings, output, overwrite) as run:
        arrays = run.stage("curves", lambda: compute(settings))  # computed once, then read back
        state, log = run.train("SVGD", state, advance, num_chunks=20)  # a checkpoint a chunk
        run.save_figure("curves", draw(arrays))
        print(run.save_table("results", rows))

A killed run, started again with the same command, reads back its finished stages, resumes training
from the last checkpoint, and ends with the same numbers. Everything is written under a temporary
name and renamed, so nothing is left half-written. A run folder holds

    settings.json  environment.json (a record an opening)  metrics.jsonl  stages/*.npz  checkpoints/
    figures/*.png  and the tables as csv and markdown
"""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import matplotlib.pyplot
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib.figure import Figure

# Linux allows a process 65 530 memory mappings, and compiled functions take many.
MAX_MAPPINGS = 30_000
PACKAGES = ("divjax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "orbax-checkpoint")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """Where a number was measured: commit, versions, devices, precision."""

    def git(*arguments: str) -> str | None:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "versions": versions,
        "devices": [str(device) for device in jax.devices()],
        "cores": os.cpu_count(),
        "x64": jax.dtypes.canonicalize_dtype(float) == np.float64,
        "matmul_precision": os.environ.get("JAX_DEFAULT_MATMUL_PRECISION"),
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }


@contextlib.contextmanager
def open_run(
    name: str, settings: Any, output: Path | None = None, overwrite: bool = False
) -> Iterator["Run"]:
    """Open the folder of a run, new or to be resumed.

    Args:
        name: names the folder under `runs/` where no output is given.
        settings: a dataclass; it decides whether an existing folder is the same run.
        output: the folder, by default `runs/<name>`, or `runs/<name>-quick` for quick settings.
        overwrite: start anew where the folder holds a run.

    Raises:
        SystemExit: if the folder holds a run of other settings; the message names them.
    """
    folder = output or Path("runs") / (name + "-quick" * getattr(settings, "quick", False))
    resolved = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    if overwrite and folder.exists():
        if any(folder.iterdir()) and not (folder / "settings.json").exists():
            raise SystemExit(f"{folder} is not the folder of a run: --overwrite would delete it.")
        shutil.rmtree(folder)
    existing = folder / "settings.json"
    if existing.exists():
        before = json.loads(existing.read_text())
        names = sorted(
            name for name in {*before, *resolved} if before.get(name) != resolved.get(name)
        )
        if names:
            changes = ", ".join(f"{n}: {before.get(n)} there, {resolved.get(n)} now" for n in names)
            raise SystemExit(
                f"{folder} holds a run of other settings ({changes}). "
                "Choose another --output, or --overwrite it."
            )
        print(f"resuming {folder}", flush=True)
    record = folder / "environment.json"
    openings = json.loads(record.read_text()) if record.exists() else []
    now = environment()
    if openings and openings[-1]["commit"] != now["commit"]:
        print(f"note: earlier parts were made at commit {openings[-1]['commit']}", flush=True)
    if now not in openings:
        write_atomically(record, json.dumps([*openings, now], indent=2))
    write_atomically(existing, json.dumps(resolved, indent=2))
    yield Run(folder)
    print(f"saved to {folder}", flush=True)


@dataclasses.dataclass
class Run:
    """A run folder and what is kept in it."""

    folder: Path

    def stage(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of a stage, computed once and then read back, and its wall time `seconds`."""
        path = self.folder / "stages" / f"{_file_name(name)}.npz"
        if not path.exists():
            _spare_mappings()
            start = time.perf_counter()
            arrays = jax.tree.map(np.asarray, jax.block_until_ready(dict(compute())))
            buffer = io.BytesIO()
            np.savez_compressed(buffer, seconds=time.perf_counter() - start, **arrays)
            write_atomically(path, buffer.getvalue())
        with np.load(path) as stored:
            return dict(stored)

    def train(
        self,
        name: str,
        state: Any,
        advance: Callable[[Any, int], tuple[Any, Mapping[str, Any]]],
        num_chunks: int,
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Advance a state chunk by chunk, a checkpoint and a line of metrics after each.

        Args:
            name: names the training within the run.
            state: any pytree of arrays; where a checkpoint exists, only its structure is used.
            advance: `(state, chunk) -> (state, metrics)`, a function of its arguments alone.
            num_chunks: how many.

        Returns:
            The final state, and the metrics of every chunk (numbers and lists of numbers) with the
            wall time `seconds` it took.
        """
        folder = (self.folder / "checkpoints" / _file_name(name)).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        with ocp.CheckpointManager(folder, options=options) as manager:
            done = manager.latest_step() or 0
            if done:
                template = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                state = manager.restore(done, args=ocp.args.StandardRestore(template))
            log = [line for line in self._lines() if line["stage"] != name or line["chunk"] <= done]
            self._write_lines(log)
            with progress(range(done, num_chunks), name, initial=done, total=num_chunks) as bar:
                for chunk in bar:
                    start = time.perf_counter()
                    state, metrics = jax.block_until_ready(advance(state, chunk))
                    seconds = time.perf_counter() - start
                    line = {"stage": name, "chunk": chunk + 1, "seconds": seconds} | {
                        key: np.asarray(value).tolist() for key, value in metrics.items()
                    }
                    log.append(line)
                    self._write_lines(log)
                    manager.save(chunk + 1, args=ocp.args.StandardSave(state))
                    bar.set_postfix({k: _short(v) for k, v in line.items() if isinstance(v, float)})
        return state, [line for line in log if line["stage"] == name]

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _write_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.folder / "metrics.jsonl", text)

    def save_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write rows as csv and markdown; the markdown is returned for printing."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / f"{name}.csv", buffer.getvalue())
        text = table(rows)
        write_atomically(self.folder / f"{name}.md", text + "\n")
        return text

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as png."""
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130, format="png")
        write_atomically(self.folder / "figures" / f"{name}.png", buffer.getvalue())
        matplotlib.pyplot.close(figure)


def _spare_mappings() -> None:
    """Forget what is compiled before the memory mappings it takes run out and XLA aborts."""
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAX_MAPPINGS:
        jax.clear_caches()


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in name)


def progress(items: Any, description: str, **options: Any) -> tqdm:
    """A progress bar; where nobody watches, a line now and then."""
    watched = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        mininterval=0.1 if watched else 30.0,
        dynamic_ncols=watched,
        file=sys.stderr,
        **options,
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def mean_and_error(values: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds and its standard error (zero for a single seed)."""
    values = np.asarray(values, float)
    n = values.shape[axis]
    error = values.std(axis, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(values.mean(axis))
    return values.mean(axis), error


def with_error(values: Any, digits: int = 2, scale: float = 1.0) -> str:
    """`mean ± standard error` over seeds."""
    mean, error = mean_and_error(np.asarray(values) * scale)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a markdown table, aligned for reading in a terminal."""
    names = list(rows[0])
    cells = [names] + [[_short(row[name]) for name in names] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
