"""Rows are apart, shuffled labels keep their numbers; a tiny run writes its tables and figure."""

import numpy as np
import pytest

from experiments import representation_entropy as job


def test_shuffled_labels_are_the_same_labels_of_the_same_images():
    settings = job.Settings(source="digits", num_rows=300)
    true, shuffled = (job.draw_images(labels, 0, settings) for labels in job.LABELS)
    np.testing.assert_array_equal(true.train, shuffled.train)
    assert len(true.test_labels) == 300
    both = [np.concatenate([one.train_labels, one.test_labels]) for one in (true, shuffled)]
    np.testing.assert_array_equal(*map(np.bincount, both))
    assert np.mean(both[0] == both[1]) < 0.2
    assert abs(true.train.mean()) < 1e-5


def test_steps_rise_from_zero():
    with pytest.raises(SystemExit, match="steps must rise from 0"):
        job.Settings(steps=(10, 20))


@pytest.mark.exhaustive
def test_a_tiny_run_writes_its_tables_and_figure(tmp_path):
    job.main(job.Settings(quick=True, seeds=(0,)), tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "layers.png").exists()
    assert "shuffled" in (folder / "accuracy.md").read_text()
    assert "layer 2" in (folder / "measures.md").read_text()
