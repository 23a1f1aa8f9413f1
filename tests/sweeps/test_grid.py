"""Grids: which values lie along which dimension, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

from divjax import kernels, sweeps
from divjax.sweeps.grid import Choices, as_dimensions


def values(grid, name):
    (dimension,) = [d for d in as_dimensions(grid) if name in d.values]
    return dimension.values[name]


@pytest.mark.parametrize(
    "given", [[0.1, 1], (0.1, 1.0), np.array([0.1, 1.0]), jnp.array([0.1, 1.0]), iter([0.1, 1.0])]
)
def test_numbers_are_vectors(given):
    np.testing.assert_allclose(values({"epsilon": given}, "epsilon"), [0.1, 1.0], rtol=1e-7)


def test_integers_stay_integers():
    for given in ([1, 2, 3], [np.int8(1), 2]):
        assert np.asarray(values({"k": given}, "k")).dtype.kind == "i"


def test_labels_are_the_users_own_numbers():
    # In float64, although the function gets float32: `.sel(epsilon=0.1)` finds it.
    (dimension,) = as_dimensions({"epsilon": [0.1, 0.2]})
    assert dimension.coordinates()["epsilon"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["a", "b"], ("a", "b")),
        ([True, False], ("True", "False")),
        (np.array([True, False]), ("True", "False")),
        ([None, 1.5], ("None", "1.5")),
        ([kernels.Gaussian, kernels.Laplace], ("Gaussian", "Laplace")),
        ({"narrow": 8, "wide": (64, 64)}, ("narrow", "wide")),
        (sweeps.choices([50, 100]), (50, 100)),
        (sweeps.choices([0.5, 2]), (0.5, 2)),
    ],
)
def test_anything_but_numbers_is_a_choice(given, labels):
    held = values({"method": given}, "method")
    assert isinstance(held, Choices)
    assert held.labels == labels


def test_ranges_hold_their_ends_exactly():
    np.testing.assert_allclose(
        values({"e": sweeps.log_uniform(1e-3, 0.3, num=7)}, "e"), np.geomspace(1e-3, 0.3, 7)
    )
    uniform = np.asarray(values({"e": sweeps.uniform(-0.1, 0.7, num=9)}, "e"))
    np.testing.assert_allclose(uniform, np.linspace(-0.1, 0.7, 9))
    assert (uniform[0], uniform[-1]) == (-0.1, 0.7)
    # The middle of a range of one value: the geometric mean of a logarithmic one.
    np.testing.assert_allclose(values({"e": sweeps.log_uniform(0.01, 1.0, num=1)}, "e"), [0.1])


def test_sobol_is_the_sequence_of_scipy_in_the_middle_of_its_cells():
    held = sweeps.sobol(8, a=sweeps.uniform(0.0, 1.0), b=sweeps.log_uniform(1.0, 100.0)).values
    points = qmc.Sobol(2, scramble=False).random(8) + 1 / 16
    np.testing.assert_allclose(held["a"], points[:, 0])
    np.testing.assert_allclose(held["b"], 100.0 ** points[:, 1])
    # Each of eight equal intervals holds one point, of every hyper-parameter.
    for name in ("a", "b"):
        assert sorted(
            np.floor(8 * (np.log(held["b"]) / np.log(100) if name == "b" else held["a"]))
        ) == list(range(8))


def test_sobol_of_a_number_that_is_no_power_of_two():
    held = sweeps.sobol(5, a=sweeps.uniform(0.0, 1.0)).values["a"]
    assert len(held) == len(set(held)) == 5
    assert ((held > 0) & (held < 1)).all()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0, 2.0], "grid must be a dictionary .*; got list"),
        ({"epsilon": 0.1}, "epsilon must be a sequence of values; got float"),
        ({"method": "SVGD"}, "method must be a sequence of values; got str"),
        ({"epsilon": []}, "epsilon must be a non-empty vector"),
        ({"epsilon": np.array([])}, "non-empty vector"),
        (
            {"epsilon": np.ones((2, 2))},
            r"non-empty vector, one value a setting; got shape \(2, 2\)",
        ),
        ({"epsilon": [0.1, float("nan")]}, "epsilon must be finite"),
        ({"epsilon": [0.1, 0.1]}, "epsilon must hold distinct values"),
        ({"epsilon": ["a", "a"]}, "labels of their own"),
        ({"epsilon": sweeps.uniform(0.0, 1.0)}, "num, the number of values"),
        ({"epsilon": np.ma.masked_equal([1.0, 999.0], 999)}, "must be finite"),
        ({"epsilon": np.ma.masked_equal([1, 999], 999)}, "must be finite"),
        ({"on": np.ma.array([True, False], mask=[0, 1])}, "must be finite"),
        ({"key": [1.0]}, "other than key, seed, finite; got 'key'"),
        ({"seed": [1.0]}, "got 'seed'"),
        ({"a b": [1.0]}, "identifiers"),
        ({1: [1.0]}, "identifiers"),
        ({"a": [1.0], "both": sweeps.zipped(a=[1.0], b=[2.0])}, "got a twice"),
        ({"a": sweeps.zipped(b=[1.0]), "b": sweeps.zipped(a=[1.0])}, "grid names a twice"),
        ({"both": sweeps.zipped(a=[1.0], key=[2.0])}, "got 'key'"),
    ],
)
def test_grids_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        as_dimensions(grid)


@pytest.mark.parametrize(
    "given",
    [
        sweeps.log_uniform(1e-60, 1e-50, 3),  # zero
        sweeps.uniform(1e39, 2e39, 3),  # infinity
        sweeps.uniform(1.0, 1.0000001, 5),  # two numbers
        np.linspace(1.0, 1.0000001, 5),
    ],
)
def test_ranges_beyond_single_precision_are_refused(given):
    made = [lambda: {"e": given}, lambda: {"setting": sweeps.zipped(e=given)}]
    if not isinstance(given, np.ndarray):
        made.append(lambda: {"setting": sweeps.sobol(4, e=given)})
    for grid in made:
        with pytest.raises(ValueError, match="e must hold numbers that JAX's float32 holds and"):
            as_dimensions(grid())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweeps.uniform(1.0, 1.0), "low < high"),
        (lambda: sweeps.uniform(0.0, float("inf")), "finite"),
        (lambda: sweeps.log_uniform(0.0, 1.0), "low must be positive"),
        (lambda: sweeps.uniform(0.0, 1.0, num=0), "num must be an integer of at least 1"),
        (lambda: sweeps.zipped(), "at least one"),
        (lambda: sweeps.zipped(a=[1.0], b=[1.0, 2.0]), "got 1 of a, 2 of b"),
        (lambda: sweeps.zipped(a=sweeps.zipped(b=[1.0])), "a must not be zipped"),
        (lambda: sweeps.sobol(0, a=sweeps.uniform(0.0, 1.0)), "num must be"),
        (lambda: sweeps.sobol(4), "at least one range"),
        (lambda: sweeps.sobol(4, a=[1.0, 2.0]), "a must be a range.*got list"),
        (lambda: sweeps.choices([]), "at least one value"),
        (lambda: sweeps.choices(np.ma.masked_equal([1, 999], 999)), "missing"),
        (lambda: sweeps.choices([object, object]), "dictionary of values by their labels"),
    ],
)
def test_parts_of_a_grid_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
