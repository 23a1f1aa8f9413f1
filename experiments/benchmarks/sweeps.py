"""Sweeps of 64 settings and 5 seeds: `sweep` beside the compiled loop of Python and one `vmap`.

Each way runs in a process of its own without a compilation cache: a first call, compilation
included, and a second one of equal shapes. The loop calls one compiled function for each setting
and seed, with the hyper-parameters as arguments.
"""

from collections.abc import Iterator

from experiments.benchmarks.measure import Table, alone

__all__ = ["tables"]

_SETUP = """
import itertools, os
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
import jax, jax.numpy as jnp, numpy as np, optax
from divjax import flows, kernels, problems, ratio, sweep, sweeps

key = jax.random.key(0)
num_settings, num_seeds = {num_settings}, {num_seeds}
{define}
keys = list(jax.random.split(key, num_seeds))

def by_sweep():
    return sweep(key, fn, grid, num_seeds=num_seeds, progress=False)

compiled = jax.jit(fn)
names, columns = list(grid), [np.float32(values.values) for values in grid.values()]
settings = list(itertools.product(*columns))

def by_loop():
    found = [compiled(k, **dict(zip(names, setting))) for setting in settings for k in keys]
    return np.array(jax.device_get(found))

lanes = jax.jit(jax.vmap(lambda k, setting: fn(k, **dict(zip(names, setting)))))
every = jnp.stack(keys)[jnp.arange(len(settings) * num_seeds) % num_seeds]
stacked = [jnp.repeat(jnp.array(column), num_seeds) for column in zip(*settings)]

def by_vmap():
    return np.asarray(lanes(every, stacked))

def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
"""

_FLOWS = """
targets = [flows.KL(target.log_prob) for target in problems.two_component_targets()]

def fn(key, learning_rate, bandwidth):
    flow = flows.Flow(targets, velocity=flows.SVGD(kernels.Gaussian(bandwidth)),
                      optimizer=optax.adam(learning_rate))
    particles = jax.random.normal(key, (50, 2))
    return flow.run(key, particles, num_steps={steps}).history.squared_norm[-1]

side = round(num_settings ** 0.5)
grid = {{"learning_rate": sweeps.log_uniform(1e-3, 0.1, num=side),
         "bandwidth": sweeps.log_uniform(0.1, 2.0, num=side)}}
"""

_RATIO = """
x, y = jax.random.normal(jax.random.key(1), (2, {n}, 3))

def fn(key, shift):
    return ratio.ClassifierRatio().fit(key, x + shift, y).kl().value

grid = {{"shift": sweeps.uniform(0.0, 1.0, num=num_settings)}}
"""

WAYS = ("sweep", "loop", "vmap")


def tables(quick: bool) -> Iterator[Table]:
    """A table for flows, which takes seconds, and one for classifiers, which takes minutes."""
    sizes = {"num_settings": 4, "num_seeds": 2} if quick else {"num_settings": 64, "num_seeds": 5}
    flow = {"flow of 50 particles, 500 steps": _FLOWS.format(steps=20 if quick else 500)}
    yield f"sweeps of flows ({_cells(sizes)})", lambda: _rows(flow, sizes, WAYS)
    counts = (50,) if quick else (300, 1000)
    fits = {f"ClassifierRatio, n = {n}": _RATIO.format(n=n) for n in counts}
    # As lanes of one vmap, so many fits do not fit into memory.
    ways = WAYS if quick else WAYS[:2]
    yield f"sweeps of classifiers ({_cells(sizes)})", lambda: _rows(fits, sizes, ways)


def _cells(sizes: dict[str, int]) -> str:
    return f"{sizes['num_settings'] * sizes['num_seeds']} cells"


def _rows(
    functions: dict[str, str], sizes: dict[str, int], ways: tuple[str, ...]
) -> list[dict[str, str]]:
    """A row a function, with the seconds of each way's first and second call."""
    rows = []
    for name, define in functions.items():
        seconds = {}
        for way in ways:
            setup = _SETUP.format(define=define, **sizes)
            call = f"first = timed(by_{way}); second = timed(by_{way})"
            found = alone(setup, call, "first=first, second=second")
            seconds[way] = found["first"], found["second"]
        rows.append(
            {
                "function": name,
                **{
                    f"{way}, first / second s": " / ".join(f"{each:.2f}" for each in seconds[way])
                    for way in ways
                },
                "loop ÷ sweep": " / ".join(
                    f"{loop / own:.2f}"
                    for loop, own in zip(seconds["loop"], seconds["sweep"], strict=True)
                ),
            }
        )
    return rows
