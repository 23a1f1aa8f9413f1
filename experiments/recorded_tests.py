"""A plugin of pytest: each test's outcome is a line of JSON in a file, and none runs twice.

    RECORDED_TESTS=tests.jsonl python -m pytest -p experiments.recorded_tests

What a run that was stopped has not tested, the next one tests.
"""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["outcomes", "pytest_collection_modifyitems", "pytest_runtest_logreport"]


def _file() -> Path:
    return Path(os.environ["RECORDED_TESTS"])


def outcomes(file: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of each test, by its name."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["test"]: line for line in lines}


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests that have an outcome."""
    recorded = outcomes(_file())
    done = [item for item in items if item.nodeid in recorded]
    items[:] = [item for item in items if item.nodeid not in recorded]
    if done:
        config.hook.pytest_deselected(items=done)


def pytest_runtest_logreport(report: Any) -> None:
    """Record each call, and a set-up or teardown that did not pass: a test's last line counts."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.failed:
        line["message"] = str(report.longrepr)[-2000:]
    with _file().open("a") as file:
        file.write(json.dumps(line) + "\n")
