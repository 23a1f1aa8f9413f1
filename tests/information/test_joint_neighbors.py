"""Neighbours in the largest difference of a coordinate, beside those of a tree."""

import jax
import numpy as np
import pytest
from scipy.spatial import cKDTree

from divjax.fdiv.cell_search import cells_pay
from divjax.information.joint_neighbors import joint_neighbors
from tests.fdiv.test_cell_search import arrangements

N, COUNT = 2000, 5


@pytest.mark.parametrize("d", [2, *(pytest.param(d, marks=pytest.mark.exhaustive) for d in (1, 3))])
def test_neighbours_are_those_of_a_tree(d):
    assert cells_pay(N, d, COUNT)
    search = jax.jit(lambda z: joint_neighbors(z, COUNT))
    # Also values that differ in their last bits.
    close = 1 + np.random.default_rng(1).integers(0, 200, (N, d)) * 2.0**-23
    for name, z in {**arrangements(N, d), "last bits": close}.items():
        z = z.astype(np.float32)
        found = search(z)
        known = cKDTree(z).query(z, COUNT + 1, p=np.inf)[0][:, 1:]
        np.testing.assert_allclose(found.distances, known, rtol=3e-7, err_msg=name)
        index = np.asarray(found.index)
        own = np.max(np.abs(z[:, None] - z[index]), axis=-1)
        np.testing.assert_array_equal(found.distances, own, err_msg=name)
        others = np.sort(np.concatenate([index, np.arange(N)[:, None]], axis=1), axis=1)
        assert (np.diff(others, axis=1) > 0).all(), name


@pytest.mark.exhaustive
def test_vmap_is_a_loop():
    z = jax.random.normal(jax.random.key(0), (2, N, 2)).at[1, :500].set(0.5)
    found = jax.vmap(lambda z: joint_neighbors(z, COUNT).distances)(z)
    for one, of_one in zip(z, found, strict=True):
        np.testing.assert_array_equal(of_one, joint_neighbors(one, COUNT).distances)
