"""Seconds of a first and of a second equal call from Python, each in a process of its own.

A notebook lives in these numbers. No compilation cache is used. Beside the seconds stand the
programs that the call compiled, and for a second call the seconds of the same function under the
caller's own `jax.jit`, compiled.
"""

import os
from collections.abc import Iterator

from experiments.benchmarks.measure import Table, alone

__all__ = ["tables"]

_SETUP = """
import jax, jax.numpy as jnp, optax
from divjax import flows, kernels, ot, ratio

programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: programs.append(event) if "backend_compile" in event else None)
key = jax.random.key(0)
x, y = jax.random.normal(key, (2, {n}, 3))
y = jax.block_until_ready(y + 1)
many = [jax.block_until_ready(z) for z in jax.random.normal(key, (2, {many}, 3))]

def timed(function, *args):
    programs.clear()
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start, len(programs)

{define}
compiled = jax.jit(call)
"""

# Definitions of `call`, a function of two samples. Each returns all that the library's call does:
# under jit, XLA would leave out what only other fields need.
CALLS = {
    "sinkhorn": "call = lambda x, y: ot.sinkhorn(x, y, epsilon=1.0)",
    "sinkhorn_divergence": "call = lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=1.0)",
    "… its gradient": (
        "call = jax.grad(lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=1.0).value)"
    ),
    "monge_gap": "call = lambda x, y: ot.monge_gap(x, y, epsilon=1.0)",
    "sliced_wasserstein": "call = lambda x, y: ot.sliced_wasserstein(key, x, y)",
    "EntropicMap().fit": "call = lambda x, y: ot.EntropicMap().fit(key, x, y)(x)",
    "LightSchrodingerBridge(5).fit": (
        "bridge = ot.LightSchrodingerBridge(5, epsilon=1.0)\n"
        "call = lambda x, y: bridge.fit(key, x, y).drift(x, 0.5)"
    ),
    "ClassifierRatio().fit(…).kl()": (
        "call = lambda x, y: ratio.ClassifierRatio().fit(key, x, y).kl()"
    ),
    "KernelMeanMatching().fit": ("call = lambda x, y: ratio.KernelMeanMatching().fit(key, x, y)"),
    "Flow.run, 100 steps": (
        "flow = flows.Flow((flows.KL(lambda z: -jnp.sum(z**2) / 2), flows.MMD(y, "
        "kernels.Energy())), velocity=flows.SVGD(), optimizer=optax.adam(0.1))\n"
        "call = lambda x, y: flow.run(key, x, num_steps=100)"
    ),
}


def calls(n: int, many: int, names: tuple[str, ...] = tuple(CALLS)) -> list[dict]:
    """First and second calls at one size, and a first one at a tenth of the rows less.

    With many rows, beside them, the times of later calls from Python and of the caller's program.
    """
    rows = []
    for name in names:
        found = alone(
            _SETUP.format(n=n, many=many, define=CALLS[name]),
            "first, second = timed(call, x, y), timed(call, x, y)\n"
            f"other = timed(call, x[{n} // 10:], y[{n} // 10:])\n"
            "timed(call, *many), timed(compiled, *many)\n"
            "eager = sorted(timed(call, *many)[0] for _ in range(5))[2]\n"
            "jitted = sorted(timed(compiled, *many)[0] for _ in range(5))[2]",
            "first=first, second=second, other=other, eager=eager, jitted=jitted",
        )
        (first, programs), (second, again) = found["first"], found["second"]
        rows.append(
            {
                "call": name,
                "first": first,
                "programs": programs,
                "second": second,
                "programs again": again,
                f"at {many} rows": found["eager"],
                f"at {many} under jit": found["jitted"],
                "another n": found["other"][0],
                "its programs": found["other"][1],
            }
        )
    return rows


def imports() -> list[dict]:
    """The import, beside that of the two packages it is made of; the best of three processes."""
    rows = []
    for module in ("jax, flax.nnx", "divjax"):
        found = [alone("", f"import {module}", "") for _ in range(3)]
        rows.append({"import": module, "seconds": min(one["seconds"] for one in found)})
    return rows


def tables(quick: bool = False) -> Iterator[Table]:
    """All tables: titles, and functions that measure the rows."""
    # Each process starts with nothing compiled but Python's own bytecode, as a user's does.
    for name in ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    yield "seconds of imports", imports
    names = ("sinkhorn",) if quick else tuple(CALLS)
    sizes = (30, 50) if quick else (300, 1000)
    yield "first and second calls from Python", lambda: calls(*sizes, names)
