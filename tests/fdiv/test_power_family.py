"""Orders of the power family, traced, that have no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import fdiv


@pytest.mark.parametrize("make", [fdiv.Alpha, fdiv.CressieRead, fdiv.Renyi])
@pytest.mark.parametrize("order", [np.inf, -np.inf, np.nan])
def test_an_infinite_order_that_is_traced_has_no_value(make, order):
    p, q = jnp.array([0.7, 0.3]), jnp.array([0.4, 0.6])
    u = jnp.log(p / q)
    value = jax.jit(lambda order: make(order).plug_in(u, u, p, q).value)
    assert jnp.isnan(value(order))
    assert jnp.isfinite(value(2.0))
    with pytest.raises(ValueError, match=r"finite|negative|nan"):
        make(order)
