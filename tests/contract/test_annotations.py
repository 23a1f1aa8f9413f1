"""The annotations of the functions inside of the package are checked while this suite runs."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from divjax.core import training


def test_a_wrong_shape_inside_is_an_error(request):
    if not request.config.pluginmanager.hasplugin("tests.typechecked"):
        pytest.skip("runs without the plugin `tests.typechecked`")
    with pytest.raises(TypeCheckError, match="weights"):
        training.spread_rows(jnp.ones((2, 2)), 1)
