"""What every experiment needs: a run folder, work that survives a kill, progress, tables, figures.

    with common.open_run("my_script", settings, output, overwrite) as run:
        arrays = run.stage("curves", lambda: compute(settings))  # computed once, then read back
        state, log = run.train("SVGD", state, advance, num_chunks=20)  # a checkpoint a chunk
        run.save_figure("curves", draw(arrays))
        print(run.save_table("results", rows))

A killed run, started again with the same command, reads back its finished stages, resumes training
from the last checkpoint, and ends with the same numbers. Everything is written under a temporary
name and renamed, so nothing is left half-written; damage is named, and repaired from the
checkpoints where they hold what was lost. A finished run can be shown from a disk that cannot be
written. A run folder (`experiments.run_folder`) holds

    settings.json  environment.json (a record an opening)  metrics.jsonl  stages/*.npz  checkpoints/
    figures/*.png  and the tables as csv and markdown
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import matplotlib
import matplotlib.pyplot
import numpy as np
from tqdm import tqdm

from divjax import plot
from experiments import run_folder
from experiments.checkpoints import Checkpoints
from experiments.run_folder import DamagedFile, RunFolder

matplotlib.use("Agg")
from matplotlib.figure import Figure

Cell = TypeVar("Cell", bound=tuple[Any, ...])

# Linux allows a process 65 530 memory mappings, and compiled functions take many.
MAX_MAPPINGS = 30_000
PACKAGES = ("divjax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "orbax-checkpoint")


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
        overwrite: start again where the folder holds a run of this name. What the run wrote is
            removed; other files stay.

    Raises:
        SystemExit: if the folder holds a run of other settings, which the message names, or cannot
            be claimed; see `run_folder.claim`.
        DamagedFile: if the marker, settings or records of the folder cannot be read.
    """
    path = output or Path("runs") / (name + "-quick" * getattr(settings, "quick", False))
    resolved = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    with run_folder.claim(path, name) as folder:
        if overwrite:
            if not folder.writable:
                raise SystemExit(f"{path} cannot be written: there is nothing to overwrite it by.")
            folder.remove(folder.files)
            if kept := folder.foreign():
                print(f"kept in {path}, not written by the run: {', '.join(kept)}", flush=True)
        if folder.files:
            _refuse_other_settings(folder, resolved)
            print(f"resuming {path}" if folder.writable else f"showing {path}", flush=True)
        if folder.writable:
            _record_opening(folder)
            folder.write(run_folder.SETTINGS, json.dumps(resolved, indent=2))
        run = Run(folder)
        run.repair_metrics()
        yield run
    if folder.writable:
        print(f"saved to {path}", flush=True)


def _refuse_other_settings(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Exit where the folder holds a run of other settings, and name them."""
    path = folder.path / run_folder.SETTINGS
    if not path.exists() and folder.files <= {run_folder.SETTINGS, "environment.json"}:
        return  # killed before its settings were written, and before anything was computed
    before = _read_json(path, dict)
    names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if names:
        changes = ", ".join(f"{n}: {before.get(n)} there, {settings.get(n)} now" for n in names)
        raise SystemExit(
            f"{folder.path} holds a run of other settings ({changes}). "
            "Choose another --output, or --overwrite it."
        )


def _record_opening(folder: RunFolder) -> None:
    """Add where and by what the run is continued to `environment.json`."""
    record = folder.path / "environment.json"
    openings = _read_json(record, list) if record.exists() else []
    now = environment()
    if openings and openings[-1].get("commit") != now["commit"]:
        print(f"note: earlier parts were made at commit {openings[-1].get('commit')}", flush=True)
    if now not in openings:
        folder.write(record.name, json.dumps([*openings, now], indent=2))


def _read_json(path: Path, kind: type) -> Any:
    """A dictionary, or a list of them, from a file of the run."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, kind) and all(
            isinstance(each, dict) for each in (content if kind is list else [content])
        ):
            return content
    except (ValueError, OSError) as error:
        raise DamagedFile(f"{path} cannot be read ({error}): --overwrite the run.") from error
    raise DamagedFile(f"{path} is damaged: it holds no {kind.__name__}. --overwrite the run.")


@dataclasses.dataclass
class Run:
    """A run and what is kept in its folder."""

    folder: RunFolder

    def stage(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of a stage, computed once and then read back, and its wall time `seconds`.

        Raises:
            DamagedFile: if what was saved cannot be read.
            SystemExit: if nothing was saved and the folder cannot be written.
        """
        file = f"stages/{_file_name(name)}.npz"
        path = self.folder.path / file
        if not path.exists():
            self._refuse_to_compute(name)
            _spare_mappings()
            start = time.perf_counter()
            computed = jax.block_until_ready(dict(compute()))
            arrays: dict[str, Any] = {key: np.asarray(value) for key, value in computed.items()}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, seconds=time.perf_counter() - start, **arrays)
            self.folder.write(file, _with_digest(buffer.getvalue()))
        content = path.read_bytes()
        if not _digest_agrees(content):
            raise DamagedFile(f"{path} is damaged: remove it, and the stage is computed again.")
        with np.load(io.BytesIO(content)) as stored:
            return dict(stored)

    def stages(
        self, title: str, cells: Iterable[Cell], compute: Callable[..., Mapping[str, Any]]
    ) -> dict[Cell, dict[str, np.ndarray]]:
        """The arrays `compute(*cell)` of each cell of a table, a stage each, under a progress bar.

        Args:
            title: of the bar, and of the stages together with the values of their cell.
            cells: tuples of values that print differently, such as (problem, size, seed).
            compute: takes the values of a cell.
        """
        found = {}
        for cell in progress(list(cells), title):
            name = " ".join([title, *map(str, cell)])
            found[cell] = self.stage(name, functools.partial(compute, *cell))
            # Wall times belong to stages; a table's cells are what was computed.
            del found[cell]["seconds"]
        return found

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

        Raises:
            SystemExit: if chunks are left to compute and the folder cannot be written.
        """
        checkpoints = Checkpoints(self.folder, f"checkpoints/{_file_name(name)}")
        restored = checkpoints.restore(state)
        done, state, log = restored or (0, state, [])
        if done < num_chunks:
            self._refuse_to_compute(name)
            # Damaged checkpoints, and lines of chunks that are computed again.
            checkpoints.discard([step for step in checkpoints.steps() if step > done])
        others = [line for line in self._lines() if _line_key(line)[0] != name]
        with progress(range(done, num_chunks), name, initial=done, total=num_chunks) as bar:
            for chunk in bar:
                start = time.perf_counter()
                state, metrics = jax.block_until_ready(advance(state, chunk))
                seconds = time.perf_counter() - start
                line = {"stage": name, "chunk": chunk + 1, "seconds": seconds} | {
                    key: np.asarray(value).tolist() for key, value in metrics.items()
                }
                log.append(line)
                checkpoints.save(chunk + 1, state, log)
                self._write_lines([*others, *map(json.dumps, log)])
                bar.set_postfix({k: _short(v) for k, v in line.items() if isinstance(v, float)})
        return state, log

    def repair_metrics(self) -> None:
        """Make `metrics.jsonl` agree with the checkpoints, which hold every line that counts.

        Lines may be lost or garbled, of finished trainings too. The last line of a training is
        written after its checkpoint: a kill in between is no damage.
        """
        found = self._lines()
        whole = [line for line in found if _line_key(line)[0] is not None]
        lost = 0
        for log in self._saved_logs():
            saved = [json.dumps(line) for line in log]
            lost += len(set(saved[:-1]) - set(whole))
            name, done = log[-1]["stage"], log[-1]["chunk"]
            # Lines after the last whole checkpoint stay: the curve of a finished stage has them.
            own = [line for line in whole if _line_key(line)[0] == name]
            saved += [line for line in own if _line_key(line)[1] > done]
            whole = [line for line in whole if line not in own] + saved
        if garbled := len(found) - sum(_line_key(line)[0] is not None for line in found):
            lost = max(lost, garbled)
        if lost:
            print(
                f"warning: {self.folder.path / 'metrics.jsonl'} was damaged in {lost} lines: "
                "restored from the checkpoints",
                flush=True,
            )
        if set(whole) != set(found) and self.folder.writable:
            self._write_lines(whole)

    def _saved_logs(self) -> Iterator[list[dict[str, Any]]]:
        """The metrics in the last whole checkpoint of each training."""
        files = sorted(file for file in self.folder.files if file.startswith("checkpoints/"))
        for name in dict.fromkeys(file.split("/")[1] for file in files):
            checkpoints = Checkpoints(self.folder, f"checkpoints/{name}")
            last, _ = checkpoints.last_whole()
            if last is not None:
                yield checkpoints.metrics(last)

    def _lines(self) -> list[str]:
        path = self.folder.path / "metrics.jsonl"
        return path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []

    def _write_lines(self, lines: Sequence[str]) -> None:
        self.folder.write("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _refuse_to_compute(self, name: str) -> None:
        if not self.folder.writable:
            raise SystemExit(f"{self.folder.path} cannot be written, and {name} is not finished.")

    def save_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write rows as csv and markdown; the markdown is returned for printing."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = table(rows)
        if self.folder.writable:
            self.folder.write(f"{name}.csv", buffer.getvalue())
            self.folder.write(f"{name}.md", text + "\n")
        return text

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as png."""
        if self.folder.writable:
            buffer = io.BytesIO()
            # Ticks, their labels and grid lines are made, and styled, when a figure is drawn.
            with plot.style():
                figure.savefig(buffer, format="png")
            self.folder.write(f"figures/{name}.png", buffer.getvalue())
        matplotlib.pyplot.close(figure)


def _digest(content: bytes) -> bytes:
    """A zip archive's comment, with its length in front."""
    comment = b"sha256:" + hashlib.sha256(content).hexdigest().encode()
    return len(comment).to_bytes(2, "little") + comment


def _with_digest(npz: bytes) -> bytes:
    """An archive with its digest as its comment.

    Its own checksums are of each array: with a byte changed elsewhere, whole arrays disappear.
    """
    # An archive without a comment ends with the comment's length, zero, in two bytes.
    return npz[:-2] + _digest(npz[:-2])


def _digest_agrees(npz: bytes) -> bool:
    body = npz[: -len(_digest(b""))]
    return npz[len(body) :] == _digest(body)


def _line_key(line: str) -> tuple[str | None, int]:
    """The stage and chunk of a line of metrics; None where it is garbled."""
    try:
        content = json.loads(line)
        return str(content["stage"]), int(content["chunk"])
    except (ValueError, KeyError, TypeError):
        return None, 0


def _spare_mappings() -> None:
    """Forget what is compiled before the memory mappings it takes run out and XLA aborts."""
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAX_MAPPINGS:
        jax.clear_caches()


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in name)


def check_seeds(seeds: Sequence[int], name: str = "seeds") -> None:
    """Exit unless seeds are different, and such that all generators take them."""
    if not seeds:
        raise SystemExit(f"{name} must hold at least one seed.")
    if bad := [seed for seed in seeds if not 0 <= seed < 2**31]:
        raise SystemExit(f"{name} must be from 0 to {2**31 - 1}; got {bad[0]}.")
    if twice := [seed for seed in seeds if list(seeds).count(seed) > 1]:
        raise SystemExit(
            f"{name} must differ: standard errors are over them; got {twice[0]} twice."
        )


def check_positive(**settings: float | Sequence[float]) -> None:
    """Exit unless settings, or all their entries, are positive and finite."""
    for name, value in settings.items():
        each = np.atleast_1d(np.asarray(value, float))
        if not each.size or not np.all((each > 0) & (each < np.inf)):
            raise SystemExit(f"{name} must be positive; got {value}.")


def finite_cell(finite: Any) -> str:
    """A table's cell: whether all runs of a row stayed finite, and how many did not."""
    finite = np.asarray(finite, bool)
    return "yes" if finite.all() else f"NO: {np.sum(~finite)} of {finite.size}"


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
