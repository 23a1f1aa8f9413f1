"""The folder of a sweep: resumed to the last bit, refused by name for another sweep."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from divjax import sweep, sweeps
from divjax.sweeps.schedule import missing_cells

KEY = jax.random.key(0)
GRID = {"scale": [0.5, 1.0, 2.0], "method": ["plus", "minus"], "shift": [0.0, 1.0]}


def noisy(key, scale, method, shift):
    draw = jax.random.normal(key, (3,))
    return {"x": scale * draw + shift if method == "plus" else -draw, "n": jnp.int32(2)}


def quiet(path=None, fn=noisy, grid=GRID, **options):
    return sweep(options.pop("key", KEY), fn, grid, path=path, progress=False, **options)


def test_gaps_between_finished_cells():
    assert missing_cells(5, []) == [(0, 5)]
    assert missing_cells(5, [(0, 5)]) == []
    # Overlapping, out of order, as two processes in one folder leave them.
    assert missing_cells(20, [(8, 12), (0, 3), (2, 5), (10, 11)]) == [(5, 8), (12, 20)]


def test_a_stored_sweep_is_the_same_dataset(tmp_path):
    expected = quiet()
    xarray.testing.assert_identical(quiet(tmp_path / "new" / "folder"), expected)
    # Nothing is computed again: the files alone give it.
    count = []
    stored = quiet(tmp_path / "new" / "folder")
    xarray.testing.assert_identical(stored, expected)
    assert not count


def test_missing_chunks_are_computed_again_to_the_last_bit(tmp_path):
    expected = quiet(tmp_path, batch_size=4)
    files = sorted(tmp_path.glob("cells-*.nc"))
    assert len(files) == 16
    for file in files[1::2]:
        file.unlink()
    # A killed process leaves what it was writing.
    (tmp_path / f".{files[0].name}.1234").write_bytes(b"half a file")
    before = {file: file.stat().st_mtime_ns for file in files[::2]}
    xarray.testing.assert_identical(quiet(tmp_path, batch_size=3), expected)
    # What was there has not been touched.
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_finished_cells_are_read_and_not_computed(tmp_path, monkeypatch):
    expected = quiet(tmp_path)

    def refuse(*args):
        raise AssertionError("a finished cell was computed")

    monkeypatch.setattr("divjax.sweeps.runs.compile_cells", refuse)
    xarray.testing.assert_identical(quiet(tmp_path), expected)


def test_an_equal_function_of_another_name_resumes(tmp_path):
    """As in a notebook whose cell is run again, or a process that has just started."""
    offset = jnp.arange(3.0)
    make = lambda: lambda key, scale: jax.nn.relu(scale * offset)
    first = quiet(tmp_path, make(), {"scale": [1.0]})
    xarray.testing.assert_identical(quiet(tmp_path, make(), {"scale": [1.0]}), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {**GRID, "scale": [0.5, 1.0]}}, "of another grid, with other values of scale"),
        (
            {"grid": {**GRID, "method": ["minus", "plus"]}},
            "of another grid, with other values of method",
        ),
        (
            {"grid": {"scale": [1.0], "shift": [1.0], "method": ["plus"]}},
            "of another grid, scale, method, shift; got scale, shift, method",
        ),
        ({"num_seeds": 3}, "of another num_seeds, 5; got 3"),
        ({"key": jax.random.key(1)}, "of another key"),
        ({"fn": lambda key, scale, method, shift: scale}, "of another function"),
        (
            {"fn": lambda *a, **k: {**noisy(*a, **k), "n": jnp.int32(3)}},
            "of another function",
        ),
    ],
)
def test_another_sweep_is_refused_by_name(tmp_path, change, message):
    quiet(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        ValueError, match=f"path must be another folder: .* holds a sweep {message}"
    ):
        quiet(tmp_path, **change)
    assert sorted(tmp_path.iterdir()) == before


def directly(data):
    return lambda key, scale: scale * jnp.sum(data)


def in_a_program_of_its_own(data):
    total = jax.jit(lambda scale: scale * jnp.sum(data))
    return lambda key, scale: total(scale)


def on_the_host(data):
    total = lambda scale: np.asarray(scale * np.sum(data), np.float32)
    return lambda key, scale: jax.pure_callback(total, jax.ShapeDtypeStruct((), "float32"), scale)


def by_a_global(data):
    global held_globally
    held_globally = data
    total = lambda scale: np.asarray(scale * np.sum(held_globally), np.float32)
    return lambda key, scale: jax.pure_callback(total, jax.ShapeDtypeStruct((), "float32"), scale)


def by_a_function_beside_it(data):
    global summed_beside
    constant = float(data[0])
    summed_beside = {0.0: lambda scale: scale * 3, 1.0: lambda scale: scale * 6}[constant]
    total = lambda scale: np.asarray(summed_beside(scale), np.float32)
    return lambda key, scale: jax.pure_callback(total, jax.ShapeDtypeStruct((), "float32"), scale)


@pytest.mark.parametrize(
    "of",
    [directly, in_a_program_of_its_own, on_the_host, by_a_global, by_a_function_beside_it],
)
def test_other_data_in_a_function_is_refused(tmp_path, of):
    quiet(tmp_path, of(jnp.arange(3.0)), {"scale": [1.0]})
    quiet(tmp_path, of(jnp.arange(3.0)), {"scale": [1.0]})
    with pytest.raises(ValueError, match="of another function"):
        quiet(tmp_path, of(jnp.arange(3.0) + 1), {"scale": [1.0]})


@pytest.mark.parametrize(
    "other", [lambda x: np.float32(x * 3), lambda x: np.float32(np.cos(x)), lambda x: np.float32(x)]
)
def test_another_function_on_the_host_is_refused(tmp_path, other):
    """Its operations are Python's, and in no program."""
    of = lambda total: (
        lambda key, scale: jax.pure_callback(total, jax.ShapeDtypeStruct((), "float32"), scale)
    )
    quiet(tmp_path, of(lambda x: np.float32(x * 2)), {"scale": [1.0]})
    quiet(tmp_path, of(lambda x: np.float32(x * 2)), {"scale": [1.0]})
    with pytest.raises(ValueError, match="of another function"):
        quiet(tmp_path, of(other), {"scale": [1.0]})


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="a new or an empty folder"):
        quiet(tmp_path)
    with pytest.raises(ValueError, match="a new or an empty folder"):
        quiet(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("content", [b"", b"no file of HDF5"])
def test_damaged_files_are_named(tmp_path, content):
    quiet(tmp_path)
    file = min(tmp_path.glob("cells-*.nc"))
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read. Remove it"):
        quiet(tmp_path)
    file.unlink()
    xarray.testing.assert_identical(quiet(tmp_path), quiet())


def test_a_changed_bit_is_found_wherever_it_is(tmp_path):
    """In the numbers HDF5 itself would read another one."""
    quiet(tmp_path)
    file = min(tmp_path.glob("cells-*.nc"))
    content = file.read_bytes()
    first = quiet()["x"].isel(scale=0, method=0, shift=0, seed=0)
    numbers = content.index(first.values.tobytes())
    for place in (0, numbers, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{file.name} cannot be read. Remove it"):
            quiet(tmp_path)
    file.write_bytes(content)
    xarray.testing.assert_identical(quiet(tmp_path), quiet())


def test_a_damaged_description_is_named(tmp_path):
    quiet(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json cannot be read"):
        quiet(tmp_path)


PROGRAM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from divjax import sweep

def slow(key, scale):
    # A callback that takes time, as a long computation does.
    def pause(x):
        time.sleep(0.01)
        return np.float32(x)
    x = jax.pure_callback(pause, jax.ShapeDtypeStruct((), jnp.float32), jax.random.normal(key))
    return scale * x

result = sweep(jax.random.key(0), slow, {"scale": np.linspace(0.1, 1, 40)}, num_seeds=5,
               batch_size=5, path=sys.argv[1], progress=False)
np.save(sys.argv[1] + ".npy", result["value"].values)
"""


@pytest.mark.slow
def test_ten_kills_lose_nothing(tmp_path):
    """SIGKILL at random moments: each process goes on where the one before was killed."""
    path, generator = tmp_path / "sweep", random.Random(0)
    command = [sys.executable, "-c", PROGRAM, str(path)]
    finished = set()
    for _ in range(10):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ)
        # From its first chunk on, at moments that are none of the sweep's own.
        known, deadline = len(finished), time.monotonic() + 60
        while len(list(path.glob("cells-*.nc"))) <= known and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.05 * generator.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {file.name for file in path.glob("cells-*.nc")}
        assert finished <= now
        finished = now
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=120)
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, 0xD1F7A5), s) for s in range(5)]
    expected = np.linspace(0.1, 1, 40)[:, None] * [float(jax.random.normal(k)) for k in keys]
    np.testing.assert_allclose(np.load(f"{path}.npy"), expected, rtol=1e-6)


def test_summaries_read_what_was_stored(tmp_path):
    table = sweeps.summarize(quiet(tmp_path, lambda key, scale: scale, {"scale": [1.0, 2.0]}))
    assert table["value", "mean"].tolist() == [1.0, 2.0]
