"""The search by cells finds what all pairs do, for any arrangement of the points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from divjax.fdiv.cell_search import cells_pay
from divjax.fdiv.neighbor_search import nearest_points

N = 2500


def arrangements(n, d):
    """Densities, far tails, levels, copies, and a line."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(n, d))
    return {
        "normal": normal,
        "heavy tails": rng.standard_cauchy((n, d)),
        "levels": np.round(2 * normal) / 3,
        "copies": np.where(np.arange(n)[:, None] % 3, normal, 0.5),
        "line": np.linspace(0, 1, n)[:, None] * np.ones(d),
    }


@pytest.mark.parametrize("d", [1, 2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_distances_are_those_of_a_tree(d):
    assert cells_pay(N, d, 8)
    search = jax.jit(lambda x, y: nearest_points(x, y, 4))
    among = jax.jit(lambda x: nearest_points(x, None, 4))
    y = np.random.default_rng(1).normal(size=(N, d)).astype("f")
    for name, x in arrangements(N, d).items():
        x = x.astype("f")
        for found, known in (
            (search(x, y), cKDTree(y.astype(float)).query(x, 4)[0]),
            (among(x), cKDTree(x.astype(float)).query(x, 5)[0][:, 1:]),
        ):
            distances = np.where(found.zero, 0, np.exp(found.log_distances))
            np.testing.assert_allclose(distances, known, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.exhaustive
def test_far_fewer_pairs_are_looked_at_than_there_are():
    """In two features, 20 000 points: the distances of all pairs would take 1.6 GB."""
    x = jax.random.normal(jax.random.key(0), (20_000, 2))
    memory = jax.jit(lambda x: nearest_points(x, None, 4)).lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e8


@pytest.mark.exhaustive
def test_vmap_is_a_loop():
    x = jax.random.normal(jax.random.key(0), (2, N, 2)).at[1, :500].set(0.5)
    found = jax.vmap(lambda x: nearest_points(x, None, 3).log_distances)(x)
    for one, of_one in zip(x, found, strict=True):
        alone = nearest_points(one, None, 3).log_distances
        np.testing.assert_allclose(of_one, alone, rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(found).all()
