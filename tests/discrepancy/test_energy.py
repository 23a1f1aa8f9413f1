"""Energy distances against SciPy, double sums, and the mean over all directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from divjax import discrepancy, kernels


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def samples(d, n=30, m=20, seed=0):
    """With ties within and between the samples."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 1.3 * rng.normal(size=(m, d)) + 0.5
    x[3], y[2] = x[7], x[7]
    return x, y, rng.uniform(size=n), rng.uniform(size=m)


def by_definition(x, y, a, b, unbiased):
    a, b = a / a.sum(), b / b.sum()
    mass = lambda w: 1 - (w**2).sum() if unbiased else 1
    within = a @ cdist(x, x) @ a / mass(a) + b @ cdist(y, y) @ b / mass(b)
    return 2 * a @ cdist(x, y) @ b - within


def test_the_root_is_scipys_on_the_line():
    x, y, a, b = samples(1)
    found = discrepancy.energy_distance(x, y, a, b)
    expected = scipy.stats.energy_distance(x[:, 0], y[:, 0], a, b) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 11])
@pytest.mark.parametrize("debias", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_it_is_the_double_sum(d, debias):
    x, y, a, b = samples(d)
    found = discrepancy.energy_distance(x, y, a, b, debias=debias)
    np.testing.assert_allclose(found, by_definition(x, y, a, b, debias), rtol=1e-10)


@jax.jit
def in_single_precision(x, y):
    by_kernel = discrepancy.mmd(x, y, kernel=kernels.Energy())
    return (
        discrepancy.energy_distance(x, y),
        discrepancy.energy_distance(x, y, debias=True),
        by_kernel,
    )


@pytest.mark.parametrize("far", [0.0, 1e3, 1e4, 1e5, 1e6, 1e7])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.3)])
def test_clusters_far_apart_leave_two_digits_or_none(far, shares):
    """In both samples, with equal and with unequal masses, whose difference is seen however far."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 50, 3)).astype(np.float32)
    y += np.float32(0.7)
    for rows, share in zip((x, y), shares, strict=True):
        rows[: int(50 * share)] += np.float32(far)
    even = np.ones(50)
    wide = np.float64(x), np.float64(y), even, even
    with jax.enable_x64(False):
        biased, unbiased, by_kernel = map(float, in_single_precision(x, y))
    found = {biased: False, by_kernel: False, unbiased: True}
    for value, debias in found.items():
        expected = by_definition(*wide, debias)
        resolved = abs(value - expected) < 0.02 * abs(expected)
        assert resolved or (np.isnan(value) and far >= 1e4 and shares == (0.5, 0.5))
    # Where there are no digits, there is no number.
    assert np.isnan(biased) or far < 1e6 or shares != (0.5, 0.5)


def test_sorting_has_the_derivatives_of_all_pairs():
    """First and second ones, at ties too: zero between points that coincide."""
    x, y, a, b = map(jnp.asarray, samples(1))
    sorted_ = lambda x, y, a: discrepancy.energy_distance(x, y, a, b, debias=True)
    pairs = lambda x, y, a: discrepancy.mmd(x, y, a, b, kernel=kernels.Energy(), debias=True)
    one, two = (jax.jit(jax.grad(f, (0, 1, 2)))(x, y, a) for f in (sorted_, pairs))
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-9, atol=1e-13), one, two)
    steps = tuple(jnp.cos(jnp.arange(z.size, dtype=float)).reshape(z.shape) for z in (x, y, a))
    one, two = (
        jax.jit(lambda *z, f=f: jax.jvp(jax.grad(f, (0, 1, 2)), z, steps)[1])(x, y, a)
        for f in (sorted_, pairs)
    )
    # The energy kernel's own second derivative, between coincident points, is left out.
    apart = np.delete(np.arange(30), [3, 7])
    np.testing.assert_allclose(one[0][apart], two[0][apart], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(one[2], two[2], rtol=1e-8, atol=1e-12)


def test_small_distances_keep_their_digits():
    """On the line it is an integral of squares; in single precision too."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20_000, 1))
    expected = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    with jax.enable_x64(False):
        found = discrepancy.energy_distance(x, y)
    assert expected < 2e-4
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("d", [1, pytest.param(2, marks=pytest.mark.exhaustive), 5])
@pytest.mark.parametrize("debias", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_directions_are_unbiased_for_the_distance_itself(d, debias):
    x, y, a, b = samples(d)
    sliced = jax.jit(
        lambda key: discrepancy.sliced_energy_distance(
            key, x, y, a, b, num_projections=16, debias=debias
        )
    )
    found = np.stack([sliced(key) for key in jax.random.split(jax.random.key(0), 100)])
    truth = by_definition(x, y, a, b, debias)
    assert abs(found.mean() - truth) <= 3 * found.std() / 10 + 1e-10
    assert found.std() / 10 < 0.05 * abs(truth)


def test_given_directions_are_those_of_the_plane():
    """Equally spaced angles integrate a piecewise smooth function of the direction."""
    x, y, a, b = samples(2)
    angles = np.pi * (np.arange(2000) + 0.5) / 2000
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = discrepancy.sliced_energy_distance(None, x, y, a, b, directions=directions)
    np.testing.assert_allclose(found, by_definition(x, y, a, b, False), rtol=1e-4)


def test_a_million_rows_take_bounded_memory():
    """Blocks of directions: fewer than would fit at once."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(5000, 3)), jnp.float32) for _ in range(2))
    lowered = jax.jit(
        lambda x, y: discrepancy.sliced_energy_distance(
            jax.random.key(0), x, y, num_projections=2000
        )
    ).lower(x, y)
    held = lowered.compile().memory_analysis().temp_size_in_bytes
    assert held < 200e6  # all at once would take 80 MB for each array of their projections


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: discrepancy.energy_distance(x[:1], x, debias=True), "x must have at least two"),
        (lambda x: discrepancy.energy_distance(x, x[:, :1]), "same number of features"),
        (lambda x: discrepancy.sliced_energy_distance(None, x, x), "key must be one typed key"),
        (
            lambda x: discrepancy.sliced_energy_distance(jax.random.key(0), x, x, directions=x),
            "key must be None if directions are given",
        ),
        (
            lambda x: discrepancy.sliced_energy_distance(None, x, x, directions=x[:, :1]),
            "directions and x must have the same number of features",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 2)))
