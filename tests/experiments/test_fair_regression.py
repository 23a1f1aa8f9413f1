"""The coins and the measures are what they say; a tiny run writes its tables and figure."""

import numpy as np
import pytest

from experiments import fair_regression as job


def test_coins_are_independent_and_the_label_depends_on_both():
    rows = job.coins(np.random.default_rng(0), 40_000)
    a, b = rows.attributes.T
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    of_both = a ^ b
    share = [rows.labels[of_both == value].mean() for value in (0, 1)]
    assert share[1] - share[0] > 0.2
    of_b = [rows.labels[b == value].mean() for value in (0, 1)]
    assert abs(of_b[1] - of_b[0]) < 0.02


def test_gaps_of_a_small_table():
    """Accepted are half of a = 0 and of a = 1, and all or none of each combination with b."""
    attributes = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], 5, axis=0)
    accepted = attributes[:, 0] ^ attributes[:, 1]
    rows = job.Rows(np.zeros((20, 1)), accepted.astype(float), attributes)
    found = job.measures(accepted + 0.0, rows, 0.5, ("a", "b"))
    assert found == {"AUC": 1, "accuracy": 1, "gap, a": 0, "gap, b": 0, "gap, both": 1}


def test_penalties_of_a_score_that_only_both_attributes_tell():
    attributes = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], 25, axis=0)
    rows = job.Rows(np.zeros((100, 1)), np.zeros(100), attributes)
    part = job.as_part(rows)
    score = 0.25 + 0.5 * (attributes[:, :1] ^ attributes[:, 1:])
    found = {
        name: float(penalty(score.astype(np.float32), part.attributes, part.groups))
        for name, penalty in job.PENALTIES.items()
    }
    marginal = found.pop("marginal dCov")
    assert abs(marginal) < 1e-2
    # The groups' distributions are two, apart up to their width: log 2.
    assert found.pop("JS") == pytest.approx(np.log(2), abs=1e-3)
    assert min(found.values()) > 10 * abs(marginal)


def test_the_chosen_strength_has_enough_auc():
    arrays = {
        "validation AUC": np.array([[0.9, 0.89, 0.7]]),
        "validation gap, both": np.array([[0.3, 0.2, 0.0]]),
    }
    assert job.chosen(arrays, 0.02) == 1
    assert job.chosen(arrays, 0.5) == 2


def test_unknown_penalties_are_refused():
    with pytest.raises(SystemExit, match="penalties must be among marginal dCov"):
        job.Settings(penalties=("nothing",))


def test_a_tiny_run_writes_its_tables_and_figure(tmp_path):
    settings = job.Settings(quick=True, penalties=("CCdCov",), seeds=(0,), strengths=(3.0, 10.0))
    job.main(settings, tmp_path / "run")
    assert (tmp_path / "run" / "figures" / "fairness.png").exists()
    assert "CCdCov" in (tmp_path / "run" / "chosen_xor.md").read_text()
