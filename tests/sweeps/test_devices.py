"""Sweeps over the devices of a mesh, whose axes are Auto or Explicit, and over two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from divjax import ot, sweep

assert jax.device_count() == 8
data = jax.random.normal(jax.random.key(1), (12, 2))

def fn(key, epsilon, shift):
    y = jax.random.normal(key, (10, 2)) + shift
    cost = ot.sinkhorn(data, y, epsilon=epsilon).value
    return {"cost": cost, "draw": jax.random.normal(key, (3,))}

grid = {"epsilon": [0.1, 0.5, 1.0], "shift": [0.0, 1.0, 2.0]}
alone = sweep(jax.random.key(0), fn, grid, num_seeds=3, progress=False)
for types in (AxisType.Auto, AxisType.Explicit):
    for shape, names in (((8,), ("cells",)), ((4, 2), ("a", "b"))):
        mesh = jax.make_mesh(shape, names, axis_types=(types,) * len(shape))
        for batch_size in (None, 5):
            shared = sweep(jax.random.key(0), fn, grid, num_seeds=3, mesh=mesh,
                           batch_size=batch_size, progress=False)
            np.testing.assert_array_equal(shared.draw, alone.draw)
            np.testing.assert_allclose(shared.cost, alone.cost, rtol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-2000:]


PROCESS = """
import sys, time, jax
from pathlib import Path
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from divjax import sweep

def fn(key, scale):
    return {"draw": scale * jax.random.normal(key, (2,))}

grid, options = {"scale": [1.0, 2.0, 3.0]}, {"num_seeds": 4, "progress": False}
mesh = jax.make_mesh((8,), ("cells",))
for _ in range(2):  # the second time from the folder
    own = {"mesh": mesh, "batch_size": 5, "path": sys.argv[3]}
    shared = sweep(jax.random.key(0), fn, grid, **own, **options)
    alone = sweep(jax.random.key(0), fn, grid, **options)
    np.testing.assert_array_equal(shared.draw, alone.draw)

# Pairs that both processes share, with samples of which each holds a half.
import jax.numpy as jnp
from divjax import ot, sharding
x, y = np.asarray(jax.random.normal(jax.random.key(1), (2, 64, 2)))
cost = lambda x, y: ot.sinkhorn(x, y + 1, epsilon=0.5, solver=ot.Sinkhorn(block_size=16))
expected = cost(x, y).value
over = sharding.mesh()
with jax.set_mesh(over):
    halves = sharding.shard((x, y), over)
    program = jax.jit(lambda x, y: cost(x, y).value).lower(*halves).compile()
    # A process waits half a minute for the other one's first message, and no longer.
    (Path(sys.argv[3]).parent / f"compiled-{sys.argv[2]}").touch()
    while len(list(Path(sys.argv[3]).parent.glob("compiled-*"))) < 2:
        time.sleep(0.1)
    np.testing.assert_allclose(sharding.gather(program(*halves)), expected, rtol=1e-5)
    np.testing.assert_array_equal(sharding.gather(halves[0]), x)
print("equal", jax.device_count())
"""


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(rank), str(tmp_path / "sweep")],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=180)
        assert printed.endswith("equal 8\n"), printed[-2000:]
    assert len(list((tmp_path / "sweep").glob("cells-*.nc"))) == 3
