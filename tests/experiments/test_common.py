"""Runs that are killed, resumed, repeated and mistyped."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, run_folder
from tests.experiments.test_run_folder import forbid_writing


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.1


class Killed(Exception):
    pass


def advance(state, chunk, die_at=None):
    if chunk == die_at:
        raise Killed
    x, key = state
    key, sub = jax.random.split(key)
    x = x + jax.random.normal(sub, x.shape)
    return (x, key), {"norm": jnp.linalg.norm(x), "values": x}


def start():
    return jnp.zeros(3), jax.random.key(0)


def train(folder, die_at=None):
    with common.open_run("test", Settings(), folder) as run:
        return run.train("walk", start(), lambda s, c: advance(s, c, die_at), num_chunks=6)


def untimed(log):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in log]


@pytest.mark.parametrize("die_at", [0, 1, 4])
def test_a_killed_run_resumes_to_the_same_result(tmp_path, die_at):
    (whole, key), log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at)
    (resumed, resumed_key), resumed_log = train(tmp_path / "killed")
    np.testing.assert_array_equal(resumed, whole)
    np.testing.assert_array_equal(jax.random.key_data(resumed_key), jax.random.key_data(key))
    assert untimed(resumed_log) == untimed(log)
    assert all(line["seconds"] > 0 for line in log)
    assert [line["chunk"] for line in log] == [1, 2, 3, 4, 5, 6]
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert untimed(json.loads(line) for line in lines) == untimed(log)


def test_a_line_written_before_its_checkpoint_is_not_doubled(tmp_path):
    """Killed between the metrics and the checkpoint of chunk 3: the line is dropped and made
    again."""
    with pytest.raises(Killed):
        train(tmp_path, die_at=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "walk", "chunk": 3, "norm": 0.0}) + "\n")
    _, log = train(tmp_path)
    assert [line["chunk"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[2]["norm"] != 0


def test_a_stage_is_computed_once(tmp_path):
    calls = []
    with common.open_run("test", Settings(), tmp_path) as run:
        for _ in range(2):
            arrays = run.stage("a / b", lambda: calls.append(0) or {"x": jnp.arange(3)})
            np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
            assert arrays["seconds"] > 0
    assert len(calls) == 1


def test_the_cells_of_a_table_are_stages(tmp_path):
    """A killed table goes on at the cell that it was at, and holds arrays in the order computed."""
    calls = []

    def compute(name, number):
        calls.append(name)
        if calls == ["a", "b"]:
            raise Killed
        return {"z": np.array(number), "a": np.array([name])}

    cells = [("a", 1), ("b", 2), ("c", 3)]
    with pytest.raises(Killed), common.open_run("test", Settings(), tmp_path) as run:
        run.stages("cells", cells, compute)
    with common.open_run("test", Settings(), tmp_path) as run:
        found = run.stages("cells", iter(cells), compute)
    assert calls == ["a", "b", "b", "c"]
    assert list(found) == cells
    assert list(found["c", 3]) == ["z", "a"]


def test_a_stage_forgets_compiled_functions_where_mappings_run_out(tmp_path, monkeypatch):
    traces = []
    function = jax.jit(lambda x: traces.append(0) or x + 1)
    with common.open_run("test", Settings(), tmp_path) as run:
        for name, most in (("a", 10**9), ("b", 10**9), ("c", 0)):
            monkeypatch.setattr(common, "MAX_MAPPINGS", most)
            run.stage(name, lambda: {"x": function(1.0)})
    mapped = sys.platform == "linux"
    assert len(traces) == 1 + mapped


def test_a_failed_stage_leaves_nothing(tmp_path):
    with common.open_run("test", Settings(), tmp_path) as run:
        with pytest.raises(ZeroDivisionError):
            run.stage("a", lambda: 1 / 0)
        assert not (tmp_path / "stages").exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    run_folder.write_atomically(path, "old")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(run_folder.os, "replace", killed)
    with pytest.raises(Killed):
        run_folder.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_other_settings_are_refused_by_name(tmp_path):
    with common.open_run("test", Settings(), tmp_path):
        pass
    refused = pytest.raises(SystemExit, match=r"other settings \(rate: 0\.1 there, 0\.2 now\)")
    with refused, common.open_run("test", Settings(0.2), tmp_path):
        pass
    with common.open_run("test", Settings(0.2), tmp_path, overwrite=True):
        assert json.loads((tmp_path / "settings.json").read_text()) == {"rate": 0.2}


def test_overwriting_keeps_what_the_run_did_not_write(tmp_path, capsys):
    train(tmp_path)
    (tmp_path / "notes.txt").write_text("precious")
    with common.open_run("test", Settings(0.2), tmp_path, overwrite=True) as run:
        assert run.folder.files == {"settings.json", "environment.json"}
    assert "not written by the run: notes.txt" in capsys.readouterr().out
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_settings_are_refused(tmp_path, overwrite):
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("precious")
    refused = pytest.raises(SystemExit, match="is not the folder of a run")
    with refused, common.open_run("test", Settings(), tmp_path, overwrite):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "thesis.tex"}


@pytest.mark.parametrize("file", ["settings.json", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"3", b"\xff\xfe", None])
def test_damaged_records_are_named(tmp_path, file, content):
    train(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    if (file, content) == ("environment.json", None):
        train(tmp_path)  # a record that is lost starts again
        return
    damaged = pytest.raises(ValueError, match=rf"{file} (cannot be read|is damaged)")
    with damaged, common.open_run("test", Settings(), tmp_path):
        pass
    with common.open_run("test", Settings(), tmp_path, overwrite=True):
        pass


def test_every_damage_of_a_stage_is_named(tmp_path):
    """Each byte flipped, some of which would make whole arrays disappear; all lengths."""
    path = tmp_path / "stages" / "a.npz"
    with common.open_run("test", Settings(), tmp_path) as run:
        run.stage("a", lambda: {"x": np.arange(3.0), "finite": np.array([True, False])})
        content = path.read_bytes()
        flipped = [
            content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :]
            for n in range(len(content))
        ]
        for damaged in [*flipped, *(content[:n] for n in range(0, len(content), 7))]:
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"a\.npz is damaged"):
                run.stage("a", lambda: 1 / 0)
        path.write_bytes(content)
        np.testing.assert_array_equal(run.stage("a", lambda: 1 / 0)["x"], [0, 1, 2])


def damage_checkpoint(folder, step, how):
    """Damage the largest file of a checkpoint."""
    files = (folder / "checkpoints" / "walk" / str(step)).rglob("*")
    path = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    {
        "flipped": lambda: path.write_bytes(flipped),
        "truncated": lambda: path.write_bytes(content[:middle]),
        "lost": path.unlink,
    }[how]()


@pytest.mark.parametrize("how", ["flipped", "truncated", "lost"])
def test_training_resumes_before_a_damaged_checkpoint(tmp_path, how, capsys):
    (whole, _), log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at=4)
    damage_checkpoint(tmp_path / "killed", 4, how)
    (resumed, _), resumed_log = train(tmp_path / "killed")
    np.testing.assert_array_equal(resumed, whole)
    assert untimed(resumed_log) == untimed(log)
    out = capsys.readouterr().out
    (warning,) = [line for line in out.splitlines() if "damaged" in line]
    assert "walk/4 is damaged" in warning
    assert warning.endswith("resuming from step 3")
    assert "is damaged" not in (train(tmp_path / "killed"), capsys.readouterr().out)[1]


@pytest.mark.parametrize("file", ["sha256.json", "record.json"])
def test_a_checkpoints_own_records_are_checked(tmp_path, file):
    (whole, _), log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at=4)
    for step in (3, 4):  # none is whole: training starts again
        path = tmp_path / "killed" / "checkpoints" / "walk" / str(step) / file
        path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    (resumed, _), resumed_log = train(tmp_path / "killed")
    np.testing.assert_array_equal(resumed, whole)
    assert untimed(resumed_log) == untimed(log)


def test_a_checkpoint_of_other_shapes_is_named(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, die_at=4)
    with common.open_run("test", Settings(), tmp_path) as run:
        other = jnp.zeros((2, 2)), jax.random.key(0)
        with pytest.raises(ValueError, match="walk/4 is of another version"):
            run.train("walk", other, advance, num_chunks=6)


def remove_line(lines):
    return [*lines[:2], *lines[3:]]


def garble_line(lines):
    return [*lines[:2], lines[2][:20] + "\x00", *lines[3:]]


def change_line(lines):
    return [*lines[:2], lines[2].replace("norm", "mean"), *lines[3:]]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", [remove_line, garble_line, change_line, lambda lines: []])
def test_lost_lines_of_metrics_are_restored(tmp_path, damage, finished, capsys):
    _, log = train(tmp_path / "whole")
    folder = tmp_path / "damaged"
    if finished:
        train(folder)
    else:
        with pytest.raises(Killed):
            train(folder, die_at=5)
    path = folder / "metrics.jsonl"
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    capsys.readouterr()
    _, resumed_log = train(folder)
    assert untimed(resumed_log) == untimed(log)
    lines = path.read_text().splitlines()
    assert untimed(json.loads(line) for line in lines) == untimed(log)
    assert capsys.readouterr().out.count("warning: ") == 1


def test_lines_of_other_trainings_stay(tmp_path):
    """Those of a finished stage are read back by nobody else."""
    for name in ("a", "b"):
        with common.open_run("test", Settings(), tmp_path) as run:
            run.train(name, start(), advance, num_chunks=3)
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    stages = [json.loads(line)["stage"] for line in before.splitlines()]
    assert stages == ["a"] * 3 + ["b"] * 3
    path.write_text("".join(before.splitlines(keepends=True)[1:]))
    with common.open_run("test", Settings(), tmp_path):
        pass
    assert set(path.read_text().splitlines()) == set(before.splitlines())


SLOW = """
import os, sys, time
from pathlib import Path
from tests.experiments import test_common as t
from experiments import common

def advance(state, chunk):
    time.sleep(0.05)
    return t.advance(state, chunk)

with common.open_run("test", t.Settings(), Path(sys.argv[1])) as run:
    print("opened", flush=True)
    run.stage("walk", lambda: {"x": run.train("walk", t.start(), advance, num_chunks=6)[0][0]})
"""


@pytest.mark.slow
def test_runs_killed_at_any_time_end_with_equal_results(tmp_path):
    """SIGKILL at six moments of one run, each resumed; then the result of a run that is left."""
    (whole, _), log = train(tmp_path / "whole")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "killed")]
    for delay in (0.0, 0.05, 0.3, 0.4, 0.2, 0.3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline()  # opened, or resuming
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    with np.load(tmp_path / "killed" / "stages" / "walk.npz") as stored:
        np.testing.assert_array_equal(stored["x"], whole)
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert untimed(map(json.loads, lines)) == untimed(log)


def test_a_finished_run_is_shown_from_a_disk_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    rows = [{"a": 1}]

    def show(stages=("a",)):
        with common.open_run("test", Settings(), tmp_path) as run:
            for name in stages:
                run.stage(name, lambda: {"x": 1})
            state, log = run.train("walk", start(), advance, num_chunks=2)
            run.save_figure("f", common.Figure())
            return np.asarray(state[0]), log, run.save_table("t", rows)

    expected = show()
    capsys.readouterr()
    forbid_writing(monkeypatch)
    found = show()
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert capsys.readouterr().out == f"showing {tmp_path}\n"
    with pytest.raises(SystemExit, match="cannot be written, and b is not finished"):
        show(("a", "b"))
    with pytest.raises(SystemExit, match="nothing to overwrite it by"):
        common.open_run("test", Settings(), tmp_path, overwrite=True).__enter__()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "at least one seed"),
        ((0, 99999999999), r"from 0 to 2147483647.*got 99999999999"),
        ((-1,), "from 0 to 2147483647.*got -1"),
        ((3, 1, 3), "differ.*got 3 twice"),
    ],
)
def test_impossible_seeds_are_refused(seeds, message):
    with pytest.raises(SystemExit, match=message):
        common.check_seeds(seeds)


def test_counts_must_be_positive():
    common.check_positive(num_steps=1, rates=(0.1, 2.0))
    for bad in (0, -1, math.nan, (1, 0), math.inf):
        with pytest.raises(SystemExit, match="num_steps must be positive"):
            common.check_positive(num_steps=bad)


def test_results_that_are_not_finite_are_said_to_be():
    assert common.finite_cell([True, True]) == "yes"
    assert common.finite_cell([[True, False], [False, False]]) == "NO: 3 of 4"


def test_environment_says_where_numbers_come_from(tmp_path):
    with common.open_run("test", Settings(), tmp_path):
        (found,) = json.loads((tmp_path / "environment.json").read_text())
    assert {"commit", "uncommitted_changes", "versions", "devices", "x64", "python"} <= set(found)
    assert found["versions"]["jax"] == jax.__version__


def test_a_run_continued_elsewhere_keeps_both_records(tmp_path, monkeypatch, capsys):
    for commit in ("a", "a", "b"):
        monkeypatch.setattr(common, "environment", lambda commit=commit: {"commit": commit})
        with common.open_run("test", Settings(), tmp_path):
            pass
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found == [{"commit": "a"}, {"commit": "b"}]
    assert capsys.readouterr().out.count("earlier parts were made at commit a") == 1


def test_tables_and_errors(tmp_path):
    values = [1.0, 2.0, 4.0]
    mean, error = common.mean_and_error(values)
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert common.mean_and_error([5.0])[1] == 0
    with common.open_run("test", Settings(), tmp_path) as run:
        text = run.save_table("t", [{"a": 1, "b": "x"}, {"a": 22, "b": "yy"}])
    assert text.splitlines()[0] == "| a  | b  |"
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,x\n22,yy\n"
