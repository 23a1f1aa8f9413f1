"""The slope of the largest sliced cost, where projections coincide, against searches by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from divjax.ot.sliced import max_sliced_wasserstein

KEY = jax.random.key(0)


def cost_along(x, y, direction, p):
    """W_p^p of equally many points on the line."""
    direction = direction / np.linalg.norm(direction)
    return np.mean(np.abs(np.sort(x @ direction) - np.sort(y @ direction)) ** p)


def largest(x, y, p, start):
    """The largest cost near a direction, and where, by simplices in its tangent plane."""
    best = np.asarray(start, float)
    for size in (1e-2, 1e-2, 1e-3, 1e-4, 1e-5):
        tangents = np.linalg.svd(best[None])[2][1:]
        found = scipy.optimize.minimize(
            lambda t, best=best, tangents=tangents: -cost_along(x, y, best + t @ tangents, p),
            np.zeros(len(tangents)),
            method="Nelder-Mead",
            options={
                "xatol": 1e-12,
                "fatol": 1e-15,
                "initial_simplex": size * np.eye(len(tangents) + 1, len(tangents), -1),
            },
        )
        best = best + found.x @ tangents
        best = best / np.linalg.norm(best)
    return cost_along(x, y, best, p), best


@pytest.mark.parametrize(
    ("d", "p", "seeds"), [(2, 2, (2, 5, 8, 10)), (2, 1.5, (0, 1, 2)), (3, 2, (0, 2, 6))]
)
def test_slopes_where_projections_coincide(d, p, seeds):
    """The plan of one side of the kink alone has a slope that is off by up to a half and more."""
    with jax.enable_x64(True):
        value = lambda x, y: max_sliced_wasserstein(KEY, x, y, p=p, num_starts=16, num_steps=100)
        slope = jax.jit(jax.grad(lambda x, y: value(x, y).value))
        for seed in seeds:
            rng = np.random.default_rng(seed)
            x, y = rng.normal(size=(10, d)), rng.normal(size=(10, d)) * 1.4
            found, change, step = value(x, y), rng.normal(size=x.shape), 1e-3
            truth, direction = largest(x, y, p, found.direction)
            np.testing.assert_allclose(found.value, truth, rtol=1e-4)
            above, below = (largest(x + s * change, y, p, direction)[0] for s in (step, -step))
            moved = jnp.sum(slope(x, y) * change)
            np.testing.assert_allclose(moved, (above - below) / (2 * step), rtol=5e-3)
