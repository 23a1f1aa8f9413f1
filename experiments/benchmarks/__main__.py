"""Print every benchmark's tables: `python -m experiments.benchmarks`."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import common
from experiments.benchmarks import compilation, flows, ratio, sinkhorn, sweeps

PARTS = {
    "compilation": compilation,
    "flows": flows,
    "ratio": ratio,
    "sinkhorn": sinkhorn,
    "sweeps": sweeps,
}
Part = Literal["compilation", "flows", "ratio", "sinkhorn", "sweeps"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    parts: tuple[Part, ...] = ("compilation", "flows", "ratio", "sinkhorn", "sweeps")
    quick: bool = False
    """Small sizes, to see that everything runs; the ratios then mean nothing."""


def main(settings: Settings, output: Path | None = None) -> None:
    """Measure and print; an earlier run in the folder is replaced."""
    with common.open_run("benchmarks", settings, output, overwrite=True) as run:
        for part in settings.parts:
            for title, rows in PARTS[part].tables(settings.quick):
                print(f"\n{title}\n", flush=True)
                print(run.save_table(title.split(" (")[0].replace(" ", "_"), rows), flush=True)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
