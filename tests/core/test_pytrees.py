"""Method objects as pytrees: what is a leaf, what is structure, and that classes differ."""

import jax
import jax.numpy as jnp
import pytest

from divjax import flows, kernels
from divjax.core.pytrees import pytree, static


@pytree
class Scale:
    factor: float = 2.0
    name: str = static(default="scale")
    shift: float = 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (kernels.Gaussian(bandwidth=1.0), kernels.Laplace(bandwidth=1.0)),
        (flows.MinNorm(), flows.PCGrad()),
        (flows.SVGD(), flows.Blob()),
        (Scale(name="a"), Scale(name="b")),
    ],
)
def test_methods_of_different_classes_have_different_structures(one, other):
    """Equal ones would share what jit compiled, and one of them would compute the other."""
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure(one) == jax.tree.structure(jax.tree.map(lambda leaf: leaf, one))


def test_fields_are_leaves_in_their_order_unless_static():
    leaves, structure = jax.tree.flatten(Scale(3.0, "own", 4.0))
    assert leaves == [3.0, 4.0]
    again = structure.unflatten(leaves)
    assert (again.factor, again.name, again.shift) == (3.0, "own", 4.0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(Scale())]
    assert paths == [".factor", ".shift"]
    stacked = jax.vmap(lambda factor: Scale(factor))(jnp.arange(3.0))
    assert stacked.factor.shape == (3,)
    with pytest.raises(AttributeError):
        again.factor = 1.0
