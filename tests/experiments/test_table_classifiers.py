"""AUCs are of out-of-fold scores; a tiny run writes its table."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from experiments import table_classifiers as job


def test_auc_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    of_real, scores = rng.random(200) < 0.3, rng.integers(0, 20, 200)
    assert abs(job._auc(scores, of_real) - roc_auc_score(of_real, scores)) < 1e-12


def test_scores_of_noise_are_out_of_fold():
    """In-sample, boosted trees and a stack on them would be far above one half."""
    rng = np.random.default_rng(0)
    real, synthetic = (pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc")) for _ in "xy")
    scores = job._tree_scores(real, synthetic, 0)
    of_real = np.arange(600) < 300
    # The error of an AUC of noise, of 300 and 300 rows.
    error = np.sqrt(601 / 12) / 300
    assert abs(job._auc(scores, of_real) - 0.5) < 4 * error
    stacked = job._stacked(np.stack([scores, -scores], axis=1), of_real, 0)
    assert abs(job._auc(stacked, of_real) - 0.5) < 4 * error


def test_rows_say_by_how_much_the_better_one_is_missed():
    of_real = np.arange(4) < 2
    arrays = {"of_real": of_real, "trees": np.array([3, 2, 1, 0]), "networks": np.zeros(4)}
    arrays |= {"trees with products": np.array([3, 1, 2, 0]), "stack": np.array([3, 2, 1, 0])}
    (row,) = job.auc_rows({"pair": arrays})
    assert row["trees with products − better alone"] == "-0.250"
    assert row["stack − better alone"] == "+0.000"


def test_unknown_tables_are_refused():
    with pytest.raises(SystemExit, match="tables must be among adult"):
        job.Settings(tables=("nothing",))


@pytest.mark.slow
def test_a_tiny_run_writes_its_table(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(600, 3)), columns=list("abc"))
    monkeypatch.setattr(job.data, "load_table", lambda name: table)
    job.main(job.Settings(quick=True), tmp_path / "run")
    assert "independent marginals" in (tmp_path / "run" / "auc.md").read_text()
