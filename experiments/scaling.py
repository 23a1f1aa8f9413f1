"""What a device holds and receives when many share one problem, counted in compiled programs.

    python -m experiments.scaling  # on any machine: devices are virtual, and nothing is run

Three reductions over all pairs of n and n points: the sums of a kernel flow's step, an iteration of
Sinkhorn with its start and final checks, nearest neighbours. Each is compiled for n = 10⁴ … 10⁷,
rounded up to multiples of 64, and meshes of 1, 8 and 64 devices, with samples sharded by rows.
Memory is the compiler's own figure, of arguments, results and temporary buffers on one device;
communication is the sizes of what collective operations deliver to it. Blocks of pairs are here as
large as on a CPU, 2²⁰ numbers; on an accelerator they are 2²⁶, a quarter of a gigabyte, at every n.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array
from matplotlib.figure import Figure

from divjax import fdiv, kernels, ot, plot, sharding
from experiments import common

LARGEST_MESH = 64
MEGABYTE = 1e6
# A result is one array or a tuple of them; each element is delivered.
_COLLECTIVE = re.compile(
    r" = (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
# A computation begins at the margin, `ENTRY` before the program's own, and names those it calls.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations)=\{?([^,}]+(?:, *%[^,}]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}


def kernel_step(x: Array, y: Array) -> tuple[Array, Array]:
    """The sums of SVGD's step: kernel values against scores, and the kernel's gradients."""
    return kernels.kernel_sums(kernels.Gaussian(1.0), x, y, y, y[:, :1])


def sinkhorn_iteration(x: Array, y: Array) -> Array:
    """The first iteration of Sinkhorn, both half-steps, and the value."""
    solver = ot.Sinkhorn(max_iterations=1)
    return ot.sinkhorn(x, y, epsilon=1.0, solver=solver).value


def neighbors(x: Array, y: Array) -> Array:
    """The k-nearest-neighbour estimate of KL: searches within x and from x to y."""
    return fdiv.knn_kl(x, y).value


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "kernel flow": kernel_step,
    "Sinkhorn": sinkhorn_iteration,
    "neighbours": neighbors,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    devices: tuple[int, ...] = (1, 8, 64)
    dimension: int = 16
    quick: bool = False
    """The first two sizes and meshes."""

    def __post_init__(self):
        if max(self.devices) > LARGEST_MESH or min(self.devices) < 1:
            raise SystemExit(f"devices must be between 1 and {LARGEST_MESH}; got {self.devices}.")
        # Rows are shared equally.
        sizes = tuple(-(-n // LARGEST_MESH) * LARGEST_MESH for n in self.sizes)
        object.__setattr__(self, "sizes", sizes[:2] if self.quick else sizes)
        object.__setattr__(self, "devices", self.devices[:2] if self.quick else self.devices)


def received(program: str) -> int:
    r"""The bytes that collective operations deliver to a device.

    Those within a loop count as often as it runs, if the compiler knows how often, otherwise once.

    Example:
        >>> received("ENTRY %main (b: f32[8]) -> f32[8,2] {\n %a = f32[8,2]{1,0} all-gather(%b)")
        64
        >>> received("ENTRY %main () -> () {\n %a = (f32[8,2]{1,0}, f32[3]{0}) all-reduce(%b, %c)")
        76
    """
    own, calls, entry = defaultdict(int), defaultdict(list), ""
    name = ""
    for line in program.splitlines():
        if begins := _COMPUTATION.match(line):
            name = begins[2]
            entry = name if begins[1] else entry
            continue
        for results in _COLLECTIVE.findall(line):
            own[name] += sum(
                _BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)
                for dtype, shape in _SHAPE.findall(results)
            )
        trips = _TRIPS.search(line)
        for called in _CALLED.findall(line):
            times = int(trips[1]) if trips else 1
            calls[name] += [(other.strip(" %"), times) for other in called.split(",")]

    @functools.cache
    def total(name: str) -> int:
        return own[name] + sum(times * total(other) for other, times in calls[name])

    return total(entry)


def measure(function: Callable[..., Any], n: int, dimension: int, devices: int) -> dict[str, int]:
    """Bytes of memory and of communication for one device."""
    mesh = sharding.mesh(jax.devices()[:devices])
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    sample = jax.ShapeDtypeStruct((n, dimension), jnp.float32, sharding=by_rows)
    with jax.set_mesh(mesh):
        compiled: Any = jax.jit(function).lower(sample, sample).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {"memory": held, "received": received(compiled.as_text())}


def measure_all(settings: Settings) -> dict[str, np.ndarray]:
    """Both figures, by reduction, size and number of devices."""
    shape = len(REDUCTIONS), len(settings.sizes), len(settings.devices)
    memory, delivered = np.zeros(shape), np.zeros(shape)
    for place in common.progress(list(np.ndindex(*shape)), "program"):
        i, j, k = place
        function = list(REDUCTIONS.values())[i]
        found = measure(function, settings.sizes[j], settings.dimension, settings.devices[k])
        memory[place], delivered[place] = found["memory"], found["received"]
    return {"memory": memory, "received": delivered}


def rows(settings: Settings, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The table, in megabytes a device."""
    return [
        {
            "reduction": name,
            "n": f"{n:,}".replace(",", " "),
            "pairs a device": f"{n * n / devices:.1e}",
            "devices": devices,
            "memory MB": round(found["memory"][i, j, k] / MEGABYTE, 1),
            "received MB": round(found["received"][i, j, k] / MEGABYTE, 2),
        }
        for i, name in enumerate(REDUCTIONS)
        for j, n in enumerate(settings.sizes)
        for k, devices in enumerate(settings.devices)
    ]


def draw(settings: Settings, found: dict[str, np.ndarray]) -> Figure:
    """Memory and communication against n, a panel for each reduction and a line for each mesh."""
    with plot.style():
        figure, axes = plt.subplots(
            2, len(REDUCTIONS), figsize=(10, 6), sharex=True, sharey="row", layout="constrained"
        )
        for i, name in enumerate(REDUCTIONS):
            for k, devices in enumerate(settings.devices):
                look = {
                    "marker": "osd^v"[k % 5],
                    "color": f"C{k}",
                    "linestyle": ["-", "--", ":"][k % 3],
                }
                label = f"{devices} device{'s' * (devices > 1)}"
                axes[0, i].plot(
                    settings.sizes, found["memory"][i, :, k] / MEGABYTE, label=label, **look
                )
                # One device receives nothing, which a logarithmic axis cannot show.
                if devices > 1:
                    axes[1, i].plot(settings.sizes, found["received"][i, :, k] / MEGABYTE, **look)
            pairs = np.asarray(settings.sizes, float) ** 2 * 4 / MEGABYTE
            axes[0, i].plot(
                settings.sizes, pairs, color="0.4", lw=1, label="all pairs, on one device"
            )
            axes[0, i].set_title(name)
            axes[1, i].set_xlabel("points a sample")
        top = 4 * found["memory"].max() / MEGABYTE
        axes[0, 0].set(xscale="log", yscale="log", ylabel="MB held by a device", ylim=(None, top))
        axes[1, 0].set(yscale="log", ylabel="MB received by a device")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Compile, count, print the table and draw."""
    with common.open_run("scaling", settings, output, overwrite) as run:
        found = run.stage("counts", lambda: measure_all(settings))
        print(run.save_table("results", rows(settings, found)))
        run.save_figure("scaling", draw(settings, found))


if __name__ == "__main__":
    # Before anything is computed: virtual devices.
    jax.config.update("jax_num_cpu_devices", LARGEST_MESH)
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
