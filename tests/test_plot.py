"""Figures: what is drawn where, and what is refused."""

import itertools

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

from divjax import plot


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def dataset(values, **coordinates):
    values = np.asarray(values, float)
    names = list(coordinates)
    return xarray.Dataset({"loss": ([*names, "seed"], values)}, coordinates)


class TestCurves:
    def test_the_band_is_one_standard_error_around_the_mean(self):
        values = np.random.default_rng(0).normal(size=(6, 5))
        ax = plot.curves(values, steps=[0, 2, 4, 6, 8], label="a")
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values.mean(0))
        assert np.asarray(ax.lines[0].get_xdata()).tolist() == [0, 2, 4, 6, 8]
        band = np.asarray(ax.collections[0].get_paths()[0].vertices)
        error = values.std(0, ddof=1) / np.sqrt(6)
        assert band[:, 1].max() == pytest.approx((values.mean(0) + error).max())
        assert band[:, 1].min() == pytest.approx((values.mean(0) - error).min())
        # One entry of a legend for the curve and its band.
        assert ax.get_legend_handles_labels()[1] == ["a"]

    def test_one_curve_has_no_band(self):
        assert not plot.curves([1.0, 2.0]).collections

    def test_it_draws_on_the_axis_it_is_given(self):
        _, (left, right) = plt.subplots(1, 2)
        assert plot.curves([1.0, 2.0], ax=left) is left
        assert not right.lines

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"got shape \(1, 1, 2\)"):
            plot.curves(np.ones((1, 1, 2)))


class TestStyle:
    def test_lines_differ_in_dashes_and_lightness_not_in_colour_alone(self):
        with plot.style():
            cycle = list(plt.rcParams["axes.prop_cycle"])
        assert len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
        grey = [np.dot(matplotlib.colors.to_rgb(e["color"]), [0.299, 0.587, 0.114]) for e in cycle]
        assert all(abs(a - b) > 0.1 for a, b in itertools.pairwise(grey))

    def test_it_ends_where_it_was_opened(self):
        before = dict(plt.rcParams)
        with plot.style():
            assert plt.rcParams["axes.grid"]
        assert dict(plt.rcParams) == before


class TestHeatmap:
    def test_means_over_seeds_lie_at_their_settings(self):
        values = np.arange(12.0).reshape(2, 3, 2)
        ax = plot.heatmap(dataset(values, rate=[0.1, 0.2], width=[1.0, 10.0, 100.0]), "loss")
        np.testing.assert_allclose(ax.collections[0].get_array(), values.mean(-1))
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("width", "rate")
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
        assert ax.figure.axes[1].get_ylabel() == "loss, mean over seeds"
        swapped = plot.heatmap(
            dataset(values, rate=[0.1, 0.2], width=[1.0, 10.0, 100.0]), "loss", x="rate",
            ax=plt.subplots()[1],
        )  # fmt: skip
        np.testing.assert_allclose(swapped.collections[0].get_array(), values.mean(-1).T)
        assert swapped.get_ylabel() == "width"

    def test_choices_have_their_labels(self):
        ax = plot.heatmap(dataset(np.ones((2, 2, 1)), method=["a", "b"], rate=[1.0, 2.0]), "loss")
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]

    def test_settings_that_are_not_finite_are_left_out(self):
        values = np.ones((2, 2, 2))
        values[0, 1, 1] = np.nan
        ax = plot.heatmap(dataset(values, a=[1.0, 2.0], b=[1.0, 2.0]), "loss")
        assert np.ma.getmaskarray(ax.collections[0].get_array()).sum() == 1
        assert ax.patch.get_hatch() == "///"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variable": "other"}, "variable must be one of the dataset; got 'other'"),
            ({"x": "c"}, "x and y must be a and b; got c"),
            ({"x": "a", "y": "a"}, "got a and a"),
            ({"scale": "square"}, "scale must be one of linear, log"),
        ],
    )
    def test_refusals(self, options, message):
        data = dataset(np.ones((2, 2, 1)), a=[1.0, 2.0], b=[1.0, 2.0])
        with pytest.raises(ValueError, match=message):
            plot.heatmap(data, **{"variable": "loss", **options})
        with pytest.raises(ValueError, match="two dimensions beside seed"):
            plot.heatmap(data.isel(a=0), "loss")


class TestOthers:
    def test_particles_lie_on_the_contours_of_their_density(self):
        x = np.random.default_rng(0).normal(size=(30, 2))
        ax = plot.particles(x, lambda z: -(z**2).sum() / 2, limits=(-4, 4, -3, 3))
        # The outermost contour is the circle of radius two.
        outer = ax.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(np.linalg.norm(outer, axis=1), 2, atol=0.02)
        assert (ax.get_xlim(), ax.get_ylim()) == ((-4, 4), (-3, 3))
        with pytest.raises(ValueError, match=r"of shape \(n, 2\); got \(30, 3\)"):
            plot.particles(np.ones((30, 3)))

    def test_equal_particles_have_a_range(self):
        ax = plot.particles(np.ones((3, 2)))
        assert ax.get_xlim()[0] < 1 < ax.get_xlim()[1]

    def test_the_staircase_is_what_is_not_dominated(self):
        values = np.random.default_rng(1).random((40, 2))
        line = plot.front(values).lines[0]
        best = [tuple(v) for v in values if not ((values <= v).all(1) & (values < v).any(1)).any()]
        assert set(zip(line.get_xdata(), line.get_ydata(), strict=True)) == set(best)

    def test_contributions_are_ranked(self):
        ax = plot.contributions(["a", "b", "c"], [0.1, 0.5, 0.3], [0.01] * 3, most=2)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c"]
        assert ax.get_title() == "the 2 largest of 3"
        with pytest.raises(ValueError, match="equally many; got 2 names"):
            plot.contributions(["a", "b"], [1.0])
