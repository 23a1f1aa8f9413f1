"""The run on an accelerator: pieces that are stopped and resumed, and what they record."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import accelerator, recorded_tests
from experiments.accelerator import Piece, Settings

ROOT = Path(__file__).parents[2]


def test_pieces_are_in_the_order_of_what_they_say(tmp_path):
    settings = Settings(datasets=("digits",), methods=("MGDA",))
    found = list(accelerator.pieces(settings, tmp_path))
    parts = [piece.part for piece in found]
    assert parts == sorted(parts, key=("contract", "benchmarks", "training").index)
    for piece in found[: len(accelerator.CONTRACT)]:
        assert (ROOT / piece.command[1]).exists()
    # 40 000 steps of 128 pairs.
    epochs = int(found[-1].command[found[-1].command.index("--num-epochs") + 1])
    rows = len(accelerator.training_rows("digits"))
    assert 40_000 <= epochs * (rows // 128) < 40_000 + rows // 128
    only = Settings(parts=("benchmarks",))
    assert {piece.part for piece in accelerator.pieces(only, tmp_path)} == {"benchmarks"}


def test_a_piece_is_stopped_with_the_processes_that_it_started(tmp_path):
    child = "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    command = ("timeit", "-n", "1", "-r", "1", f"import subprocess, sys; {child}")
    piece = Piece("benchmarks", "sleeping", command)
    start = time.perf_counter()
    status, seconds = accelerator.run(piece, tmp_path, 2.0)
    assert status is None
    assert 2 <= seconds <= time.perf_counter() - start < 20


def test_recorded_tests_do_not_run_again(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "def test_right(): pass\ndef test_wrong(): assert 1 == 2\n"
    )
    record = tmp_path / "record.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "experiments.recorded_tests"]
    environment = {**os.environ, "RECORDED_TESTS": str(record), "PYTHONPATH": str(ROOT)}
    run = lambda *more: subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", *more],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "1 passed" in run("-k", "right").stdout
    assert "1 failed, 1 deselected" in run().stdout
    found = recorded_tests.outcomes(record)
    assert {line["outcome"] for line in found.values()} == {"passed", "failed"}
    piece = Piece("contract", "some", ())
    record.rename(tmp_path / "tests-some.jsonl")
    summary = accelerator.found(piece, tmp_path)
    assert (summary["passed"], summary["failed"]) == (1, 1)
    assert "assert 1 == 2" in summary["failures"][0]["message"]


@pytest.mark.exhaustive
def test_a_quick_run_ends_and_resumes(tmp_path):
    command = [sys.executable, "-m", "experiments.accelerator", "--quick", "--output", tmp_path]
    command += ["--datasets", "digits", "--methods", "MGDA"]
    for budget in ("30", "300"):
        subprocess.run([*map(str, command), "--budget", budget], cwd=ROOT, check=True)
    (file,) = tmp_path.glob("*-quick.json")
    results = json.loads(file.read_text())
    assert all(piece["finished"] for piece in results["pieces"].values())
    assert results["pieces"]["contract: kernels"]["found"]["failed"] == 0
