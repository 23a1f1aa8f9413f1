"""Method objects as pytrees: what is a leaf, what is structure, and that classes differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import flows, kernels
from divjax.core.pytrees import as_traced, pytree, static


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
    assert stacked.factor.shape == (3,)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        again.factor = 1.0


def squared_with_slope(slope):
    @jax.custom_jvp
    def squared(x):
        return x * x

    squared.defjvp(lambda primals, tangents: (primals[0] ** 2, slope * primals[0] * tangents[0]))
    return as_traced(squared, jnp.ones(()))


def called_back(factor):
    host = lambda x: np.asarray(factor * x)
    return as_traced(
        lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct((), jnp.float32), x), jnp.ones(())
    )


def test_traced_functions_are_what_they_do():
    """Equal code is one program; what is closed over is a leaf; what has changed is another."""
    traces = []

    @jax.jit
    def run(function):
        traces.append(1)
        return function(jnp.array([1.0, 2.0]))

    shift, power = jnp.array([3.0, 4.0]), 2
    of = lambda: as_traced(lambda x: jnp.sum((x + shift) ** power), jnp.ones(2))
    assert run(of()) == 16 + 36
    shift = jnp.zeros(2)
    assert run(of()) == 1 + 4
    assert len(traces) == 1
    power = 3
    assert run(of()) == 1 + 8
    assert len(traces) == 2
    same = lambda x: jnp.sum(x) ** power
    of_same = lambda: run(as_traced(same, jnp.ones(2)))
    assert of_same() == 27
    power = 2
    assert of_same() == 9
    # A derivative of one's own, and a callback, are compared by themselves.
    for one, other in ((squared_with_slope, squared_with_slope), (called_back, called_back)):
        assert jax.tree.structure(one(2.0)) != jax.tree.structure(other(3.0))
    # What is traced around it passes through.
    value = lambda s: run(as_traced(lambda x: jnp.sum(s * x), jnp.ones(2)))
    assert jax.grad(value)(2.0) == 3
    np.testing.assert_array_equal(jax.jit(jax.vmap(value))(jnp.arange(2.0)), [0, 3])
