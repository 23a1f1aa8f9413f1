"""Print every benchmark's tables: `python -m experiments.benchmarks`."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import tyro

from experiments import common
from experiments.benchmarks import compilation, flows, ratio, samples, sinkhorn, sweeps

PARTS = {
    "compilation": compilation,
    "flows": flows,
    "ratio": ratio,
    "samples": samples,
    "sinkhorn": sinkhorn,
    "sweeps": sweeps,
}
Part = Literal["compilation", "flows", "ratio", "samples", "sinkhorn", "sweeps"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    parts: tuple[Part, ...] = ("compilation", "flows", "ratio", "samples", "sinkhorn", "sweeps")
    quick: bool = False
    """Small sizes, to see that everything runs; the ratios then mean nothing."""


def main(settings: Settings, output: Path | None = None, record: Path | None = None) -> None:
    """Measure and print; an earlier run in the folder is replaced.

    Args:
        settings: which tables.
        output: the run's folder.
        record: a file to which each table is added as a line of JSON as soon as it is measured;
            tables that it holds are not measured again.
    """
    measured = set()
    if record is not None and record.exists():
        measured = {json.loads(line)["title"] for line in record.read_text().splitlines()}
    with common.open_run("benchmarks", settings, output, overwrite=True) as run:
        for part in settings.parts:
            for title, measure in PARTS[part].tables(settings.quick):
                if title in measured:
                    continue
                print(f"\n{title}\n", flush=True)
                rows = measure()
                print(run.save_table(title.split(" (")[0].replace(" ", "_"), rows), flush=True)
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps({"title": title, "rows": rows}, default=str) + "\n")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
