"""Runs that are killed, resumed, repeated and mistyped."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common


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
    common.write_atomically(path, "old")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(common.os, "replace", killed)
    with pytest.raises(Killed):
        common.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_other_settings_are_refused_by_name(tmp_path):
    with common.open_run("test", Settings(), tmp_path):
        pass
    refused = pytest.raises(SystemExit, match=r"other settings \(rate: 0\.1 there, 0\.2 now\)")
    with refused, common.open_run("test", Settings(0.2), tmp_path):
        pass
    with common.open_run("test", Settings(0.2), tmp_path, overwrite=True):
        assert json.loads((tmp_path / "settings.json").read_text()) == {"rate": 0.2}


def test_overwriting_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused = pytest.raises(SystemExit, match="is not the folder of a run")
    with refused, common.open_run("test", Settings(), tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.tex").exists()


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
