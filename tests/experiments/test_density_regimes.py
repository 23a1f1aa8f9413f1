"""The densities are what they say; a tiny run writes its tables and figures."""

import jax
import numpy as np
import pytest
import scipy.integrate

from experiments import density_regimes as job


@pytest.mark.parametrize("name", job.DENSITIES)
def test_a_density_has_integral_one_and_the_entropy_it_states(name):
    of = job.DENSITIES[name]
    z = np.linspace(-400, 400, 400_001)
    log_p = np.asarray(of.log_density(z[:, None].astype(np.float32)), float)
    np.testing.assert_allclose(scipy.integrate.simpson(np.exp(log_p), x=z), 1, atol=1e-4)
    entropy = -scipy.integrate.simpson(np.exp(log_p) * log_p, x=z)
    stated = of.entropy(1)
    assert np.isnan(stated) or abs(stated - entropy) < 1e-3
    # Its own draws have this mean log-density.
    drawn = np.asarray(of.log_density(of.draw(jax.random.key(0), 20_000, 1)))
    assert abs(drawn.mean() + entropy) < 4 * drawn.std() / np.sqrt(len(drawn))


@pytest.mark.exhaustive
def test_the_central_limit_above_its_bandwidth():
    """At 2 h_G the measured deviation is the theorem's, at ½ h_G far from it."""
    settings = job.Settings(points=50, repetitions=30)
    found = job.regime(0.5, 148, 10, settings)
    ratio = found["deviation"] / found["central limit"]
    at = lambda multiple: np.abs(found["h"] / found["h"][0] - multiple * 2**1.5).argmin()
    assert abs(ratio[at(2)] - 1) < 0.15
    assert ratio[at(0.5)] < 0.3


def test_the_least_value_of_a_parabola():
    h = np.geomspace(0.5, 2, 9)
    kl = (np.log(h) - np.log([[0.9], [1.3]])) ** 2
    np.testing.assert_allclose(job.best_bandwidth(h, kl), [0.9, 1.3])


def test_a_tiny_run_writes_its_tables_and_figures(tmp_path, monkeypatch):
    # Cross-validations take seconds to compile.
    monkeypatch.setattr(job, "RULES", dict.fromkeys(job.RULES, job.RULES["Scott"]))
    job.main(job.Settings(quick=True), tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "regimes.png").exists()
    assert (folder / "figures" / "rules.png").exists()
    assert "0.8677" in (folder / "bandwidths.md").read_text()
    assert "likelihood" in (folder / "rules.md").read_text()


def test_unknown_densities_are_refused():
    with pytest.raises(SystemExit, match="densities must be among normal"):
        job.Settings(densities=("nothing",))
