"""The staircase's samplers have the information they say; the exact study; a tiny run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from experiments import js_kl_bound as job

SETTINGS = job.Settings(num_features=1, batch_size=4000)


def test_student_information_is_that_of_published_tables():
    """With identity dispersion: 1 + 1 columns, df 1: .22417; 5 + 5, df 2: .44815."""
    assert job.student_excess(1, 1) == pytest.approx(0.22417, abs=1e-5)
    assert job.student_excess(5, 2) == pytest.approx(0.44815, abs=1e-5)


@pytest.mark.parametrize("information", [0.2, 0.4, 0.8, 2.0])
def test_uniform_noise_has_the_information(information):
    """h(x + n) − h(n), the density of the sum being a trapezium."""
    epsilon = job.uniform_noise(information)
    density = lambda s: (min(s + epsilon, 1) - max(s - epsilon, 0)) / (2 * epsilon)
    kinks = sorted([epsilon, 1 - epsilon])
    entropy, _ = scipy.integrate.quad(
        lambda s: -scipy.special.xlogy(density(s), density(s)),
        -epsilon,
        1 + epsilon,
        points=kinks,
    )
    assert entropy - np.log(2 * epsilon) == pytest.approx(information, abs=1e-6)


@pytest.mark.parametrize("variant", ["gauss", "student"])
def test_samples_have_the_rank_correlation_of_the_level(variant):
    """Kendall's τ of elliptical pairs is (2/π) arcsin ρ, whatever their marginals."""
    parameter, sample = job.VARIANTS[variant]
    excess = job.student_excess(1, SETTINGS.degrees) if variant == "student" else 0
    rho = parameter(SETTINGS, 1.0)
    assert -0.5 * np.log(1 - rho**2) + excess == pytest.approx(1.0)
    x, y = sample(jax.random.key(0), rho, SETTINGS)
    tau = scipy.stats.kendalltau(x[:, 0], y[:, 0]).statistic
    assert tau == pytest.approx(2 / np.pi * np.arcsin(rho), abs=0.03)


@pytest.mark.parametrize("variant", ["cubic", "half-cube", "asinh"])
def test_other_marginals_are_increasing_maps_of_the_gaussian_pairs(variant):
    plain = job.VARIANTS["gauss"][1](jax.random.key(0), 0.8, SETTINGS)
    mapped = job.VARIANTS[variant][1](jax.random.key(0), 0.8, SETTINGS)
    for before, after in zip(plain, mapped, strict=True):
        order = np.argsort(np.asarray(before[:, 0]))
        assert (np.diff(np.asarray(after)[order, 0]) >= 0).all()
    assert not np.allclose(plain[1], mapped[1])


def test_the_exact_study_by_sums_over_all_cells():
    found = job.tightness((2, 50), points=5)
    g = lambda y: 0.5 * ((1 + np.exp(-y)) * np.log1p(np.exp(-y)) + y * np.exp(-y))
    for row, k in enumerate((2, 50)):
        for column, alpha in enumerate(found["alpha"]):
            p = alpha * np.eye(k) / k + (1 - alpha) / k**2
            q = np.full((k, k), 1 / k**2)
            half = (p + q) / 2
            kl = lambda a, b: np.sum(np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / b), 0))
            js = 0.5 * (kl(p, half) + kl(q, half))
            bound = scipy.optimize.brentq(lambda y, js=js: g(y) - np.log(2) + js, 0, 60)
            assert found["information"][row, column] == pytest.approx(kl(p, q), abs=1e-12)
            assert found["bound"][row, column] == pytest.approx(bound, abs=1e-6)
    # Equal labels are where the bound is sharp.
    np.testing.assert_allclose(found["bound"][:, -1], np.log([2, 50]), rtol=1e-6)


def test_a_tiny_run_writes_its_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "TRAIN", {name: job.TRAIN[name] for name in ("JS", "InfoNCE")})
    kept = {name: how for name, how in job.ESTIMATORS.items() if how[0] in job.TRAIN}
    monkeypatch.setattr(job, "ESTIMATORS", kept)
    settings = dataclasses.replace(
        job.Settings(quick=True), variants=("gauss",), batch_size=16, hidden=(8,)
    )
    job.main(settings, tmp_path / "run")
    table = (tmp_path / "run" / "staircase.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table[1:]] == list(kept)
    readings = np.load(tmp_path / "run" / "stages" / "gauss_InfoNCE.npz")["InfoNCE"]
    assert readings.shape == (1, 2, 6)
    assert (readings <= np.log(16)).all()
    assert jnp.isfinite(readings).all()
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 2


@pytest.mark.parametrize(
    "settings", [{"variants": ("gaussian",)}, {"steps_per_level": 10, "readings_per_level": 3}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SystemExit, match="must"):
        job.Settings(**settings)


def test_critics_that_are_not_finite_are_said_to_be():
    settings = dataclasses.replace(SETTINGS, levels=(2.0,), readings_per_level=4)
    curves = {"gauss": {"DV": np.ones((2, 1, 4)), "NWJ": np.ones((2, 1, 4))}}
    finite = {"DV": np.ones((2, 1, 4), bool), "NWJ": np.ones((2, 1, 4), bool)}
    finite["NWJ"][1, 0, 3] = False
    found = job.rows(curves, {"gauss": finite}, settings)
    assert [row["finite"] for row in found] == ["yes", "NO: 1 of 2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (-1,)}, "seeds must be from 0"),
        ({"num_negatives": 64}, "num_negatives must be below batch_size"),
        ({"levels": (0.1,), "variants": ("student",)}, "student: a level must be at least"),
        ({"readings_per_level": 0}, "readings_per_level must be positive"),
    ],
)
def test_impossible_settings_are_refused_before_any_training(settings, message):
    with pytest.raises(SystemExit, match=message):
        job.Settings(**settings)
