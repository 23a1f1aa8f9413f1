"""Fits of many features return: batched factorisations of a jaxlib on a CPU can deadlock."""

import subprocess
import sys

import pytest

FIT = """
import jax
from divjax import ratio
p, q = (jax.random.normal(jax.random.key(i), (rows, {d})) for i, rows in enumerate(({n}, {m})))
method = ratio.ClassifierRatio(num_folds={num_folds})
for key in jax.random.split(jax.random.key(2), 3):
    print(method.fit(key, p + 0.2, q).js())
"""


@pytest.mark.parametrize(
    ("n", "m", "d", "num_folds"),
    [
        pytest.param(120, 90, 38, 5, marks=pytest.mark.exhaustive),
        pytest.param(61, 140, 30, 2, marks=pytest.mark.exhaustive),
        pytest.param(77, 75, 33, 3, marks=pytest.mark.exhaustive),
    ],
)
def test_the_default_classifier_returns(n, m, d, num_folds):
    """In a process of its own: a thread that waits for ever cannot be stopped."""
    code = FIT.format(n=n, m=m, d=d, num_folds=num_folds)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Estimate(") == 3
