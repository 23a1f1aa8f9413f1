"""What the toys' tables say of runs that fail, and each velocity by itself."""

import numpy as np
import pandas as pd
import pytest

from experiments import multi_target_sampling as job
from experiments.multi_target_sampling import Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (99999999999,)}, "seeds must be from 0"),
        ({"num_particles": 0}, "num_particles must be positive; got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive; got nan"),
        ({"step_sizes": (0.1, -0.1)}, "step_sizes must be positive"),
        ({"num_steps": 1}, "num_steps must be at least 2"),
        ({"velocities": ("GFSF",)}, "velocities must be among"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(SystemExit, match=message):
        Settings(**settings)


def results(finite):
    """What the toys return, two seeds of one velocity."""
    curve = {"squared_norm": np.ones((1, 2, 31)), "finite": np.array([finite])}
    curves = {f"SVGD / {scheme}": curve for scheme in job.SCHEMES}
    end = {
        "snapshots": np.zeros((2, 4, 5, 2)),
        "values": np.ones((2, 46, 4)),
        "weights": np.full((2, 46, 4), 0.25),
        "squared_norm": np.ones((2, 46)),
        "stein": np.ones((2, 4)),
        "finite": np.array(finite),
    }
    return curves, {"MWGraD-SVGD": end, "A-MWGraD-SVGD": end}


@pytest.mark.parametrize(("finite", "cell"), [([True, True], "yes"), ([True, False], "NO: 1 of 2")])
def test_runs_that_are_not_finite_are_said_to_be(tmp_path, monkeypatch, finite, cell):
    """One velocity alone has its figures too."""
    curves, ends = results(finite)
    monkeypatch.setattr(job, "two_component", lambda *_: curves["SVGD / MWGraD"])
    monkeypatch.setattr(job, "three_component", lambda *_: ends["MWGraD-SVGD"])
    settings = Settings(velocities=("SVGD",), quick=True)
    job.main(settings, tmp_path / "run")
    for name in ("two_component", "three_component"):
        assert set(pd.read_csv(tmp_path / "run" / f"{name}.csv")["finite"]) == {cell}
    assert (tmp_path / "run" / "figures" / "weights.png").stat().st_size > 1000
