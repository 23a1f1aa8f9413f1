"""Data with known maps, scores, and a tiny run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import data, transport_data
from experiments import monge_maps as job


def pair(dimension=2):
    """A pair like those of the benchmark, with random numbers."""
    rng = np.random.default_rng(0)
    numbers = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    network = {}
    for layer, width in enumerate((8, 8, 4)):
        name = f"quadratic_layers.{layer}"
        network[f"{name}.quadratic_decomposed"] = 0.3 * numbers(dimension, 1, width)
        network[f"{name}.weight"] = numbers(width, dimension)
        network[f"{name}.bias"] = numbers(width)
    for layer, shape in enumerate(((8, 8), (4, 8))):
        network[f"convex_layers.{layer}.weight"] = jnp.abs(numbers(*shape)) / 8
    network["final_layer.weight"] = jnp.abs(numbers(1, 4))
    centers, maps = numbers(3, dimension), 0.3 * numbers(3, dimension, dimension)
    one = jnp.ones(())
    return transport_data.BenchmarkPair(
        centers, maps, (network, network), 0.01 * one, 0 * one, 0.5 * one
    )


def test_the_map_of_a_pair_is_the_gradient_of_a_convex_function():
    """Its Jacobian is symmetric and positive: by Brenier's theorem it is optimal."""
    known = pair(3)
    x = known.sample(jax.random.key(0), 20)
    jacobians = jax.vmap(jax.jacrev(lambda x: known.map(x[None])[0]))(x)
    np.testing.assert_allclose(jacobians, jnp.swapaxes(jacobians, 1, 2), atol=1e-4)
    # At least the strong convexity of both, times the scale.
    assert np.linalg.eigvalsh(jacobians).min() > 0.5 * 2 * 0.01 - 1e-4
    assert np.linalg.eigvalsh(jacobians).max() > 0.1


def test_samples_of_a_pair_have_the_mixtures_moments():
    known = pair(3)
    x = known.sample(jax.random.key(0), 40_000)
    mean = known.centers.mean(0)
    second = jnp.mean(known.maps @ jnp.swapaxes(known.maps, 1, 2), axis=0)
    second += (known.centers - mean).T @ (known.centers - mean) / 3
    deviation = jnp.sqrt(jnp.diag(second))
    np.testing.assert_array_less(jnp.abs(x.mean(0) - mean) / deviation, 4 / 200)
    scale = jnp.outer(deviation, deviation)
    np.testing.assert_array_less(jnp.abs(jnp.cov(x.T) - second) / scale, 8 / 200)


def test_scores():
    x = jax.random.normal(jax.random.key(0), (1000, 3))
    truth = 2 * x
    uvp, cosine = job.uvp_and_cosine(truth, x, truth)
    assert uvp == 0
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    uvp, cosine = job.uvp_and_cosine(x, x, truth)
    # E|x|² over 4 Var, with a mean that is not quite zero; no displacement, no cosine.
    np.testing.assert_allclose(uvp, 25, rtol=0.02)
    assert cosine == 0
    np.testing.assert_allclose(job.uvp_and_cosine(0 * x, x, truth)[1], -1, rtol=1e-5)


def test_rows_over_seeds_and_what_starts_have():
    run = {"uvp": 3.0, "first": 4.0}
    name = "debiased gap, entropic start"
    rows = job.benchmark_table({(name, 2): [run, {"uvp": 5.0, "first": 4.0}]}, "uvp", 1)
    assert rows[0] == {"method": name, "d = 2": "4.0 ± 1.0"}
    assert rows[1]["d = 2"] == "4.0 ± 0.0"
    assert job.benchmark_table({("MLP", 2): [run]}, "uvp", 1) == [{"method": "MLP", "d = 2": "3.0"}]


def test_maps_that_are_not_finite_are_said_to_be():
    runs = [{"uvp": 3.0, "finite": np.array(flag)} for flag in (True, False)]
    (row,) = job.benchmark_table({("MLP", 2): runs}, "uvp", 1)
    assert row["d = 2"] == "3.0 ± 0.0 (finite: NO: 1 of 2)"
    names = [f"{start} {what}" for start in ("gaussian", "identity") for what in ("first", "uvp")]
    found = dict.fromkeys([*names, "gaussian fit_seconds"], 1.0)
    found |= {"gaussian finite": np.array(False), "identity finite": np.array(True)}
    (row,) = job.gaussian_table({2: [found]})
    assert row["gap, Gaussian start"] == "1.00 (finite: NO: 1 of 1)"
    assert row["gap, no start"] == row["linear map"] == "1.00"


def test_the_exact_gap():
    """Two points that change places pay 1 each for nothing; a shift has no gap."""
    x = jnp.array([[0.0], [1.0]])
    assert job.exact_gap(job.ot.SqEuclidean(), x, x[::-1]) == (1.0, 1.0)
    assert job.exact_gap(job.ot.SqEuclidean(), x, x + 3) == (9.0, 0.0)


def test_protein_scores_of_a_shift():
    y = jax.random.normal(jax.random.key(0), (100, 3))
    divergence, mmd, markers = job.protein_scores(y + jnp.array([0.3, 0.0, 0.0]), y)
    np.testing.assert_allclose([divergence, markers], [0.09, 0.1], rtol=1e-3)
    assert 0 < mmd < 0.3
    np.testing.assert_allclose(job.protein_scores(y, y), 0, atol=1e-3)


def test_planar_pairs():
    cap, band = job.planar_pair("sphere", 50, 0)
    np.testing.assert_allclose(jnp.linalg.norm(jnp.concatenate([cap, band]), axis=1), 1, rtol=1e-5)
    assert cap[:, 2].mean() > 0.8
    assert abs(band[:, 2].mean()) < 0.1
    assert [len(rows) for rows in job.planar_pair("moons", 50, 0)] == [50, 50]


@pytest.mark.exhaustive  # five minutes of compilation
def test_planar_and_protein_tables(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tables = [
        pd.DataFrame(rng.normal(size=(count, 2)) + 3 * (index > 0))
        for index, count in enumerate(transport_data.CONDITION_ROWS)
    ]
    monkeypatch.setattr(transport_data, "load_proteins", lambda: tables)
    settings = dataclasses.replace(
        job.Settings(quick=True), studies=("planar", "proteins"), protein_steps=2, planar_steps=2
    )
    job.main(settings, tmp_path / "run")
    assert len((tmp_path / "run" / "planar.csv").read_text().splitlines()) == 5
    assert (tmp_path / "run" / "figures" / "planar.png").exists()
    rows = pd.read_csv(tmp_path / "run" / "proteins.csv").set_index("map")
    assert list(rows.index) == list(job.PROTEIN_METHODS)
    value = lambda name: float(rows.loc[name, "Sinkhorn divergence"])
    # The means are 3 apart in both markers; the shift takes all of it.
    assert value("identity") > 10
    assert value("mean shift") < 0.2
    assert value("debiased gap") < 0.2


def test_a_tiny_run_writes_its_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(transport_data, "load_benchmark", lambda _: pair())
    settings = dataclasses.replace(
        job.Settings(quick=True),
        studies=("gaussians", "benchmark"),
        gaussian_dimensions=(2,),
        gaussian_steps=2,
        num_steps=2,
        dual_steps=2,
        methods=("linear", "debiased gap, entropic start"),
    )
    job.main(settings, tmp_path / "run")
    for name, count in (("gaussians", 1), ("benchmark_uvp", 3), ("benchmark_cosine", 2)):
        assert len((tmp_path / "run" / f"{name}.csv").read_text().splitlines()) == count + 1
    for name in ("gaussians", "benchmark"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").exists()
    stages = tmp_path / "run" / "stages"
    assert np.load(stages / "gaussians_2_0.npz")["gaussian uvp"] < 5
    assert np.load(stages / "benchmark_2_linear_0.npz")["uvp"] < 60


def test_proteins_are_read_by_condition(tmp_path, monkeypatch):
    rows = sum(transport_data.CONDITION_ROWS)
    table = pd.DataFrame({"a": np.arange(1, rows + 1), "b": 1.0})
    monkeypatch.setattr(data, "fetch", lambda _: table.to_csv(index=False).encode())
    found = transport_data.load_proteins()
    assert [len(part) for part in found] == list(transport_data.CONDITION_ROWS)
    np.testing.assert_allclose(found[1].iloc[0], [np.log(854), 0])


def test_what_is_missing_or_unknown_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="put there by hand"):
        transport_data.load_benchmark(2)
    with pytest.raises(FileNotFoundError, match="CausalDiscoveryToolbox"):
        transport_data.load_proteins()
    with pytest.raises(ValueError, match="dimension must be one of"):
        transport_data.load_benchmark(3)
    (tmp_path / "w2_benchmark").mkdir()
    (tmp_path / "w2_benchmark" / "mix3tomix10_2.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        transport_data.load_benchmark(2)
    with pytest.raises(SystemExit, match="methods must be among"):
        job.Settings(methods=("guess",))
    with pytest.raises(SystemExit, match="studies must be among"):
        job.Settings(studies=())
