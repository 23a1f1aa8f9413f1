"""Programs of an object: compiled once, with the values and the checks of an eager call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.programs import Programs, jit_by_size
from tests.contract.promises import COMPILED


def test_a_second_call_compiles_nothing_and_another_shape_does():
    programs = Programs()
    scaled = lambda x, y: {"sum": 3 * x["a"] + y, "y": y}
    call = lambda size, y: programs.call("scaled", scaled, {"a": jnp.arange(size)}, y)
    np.testing.assert_array_equal(call(4, 1.0)["sum"], [1, 4, 7, 10])
    call(7, 1.0)
    arguments = {"a": jnp.arange(4) + 1}
    COMPILED.clear()
    np.testing.assert_array_equal(
        programs.call("scaled", scaled, arguments, 2.0)["sum"], [5, 8, 11, 14]
    )
    assert not COMPILED
    # Another name or another dtype is another program.
    programs.call("other", scaled, arguments, 2.0)
    assert COMPILED


def test_the_settings_of_jax_are_those_of_the_call():
    programs = Programs()
    ones = lambda x: jnp.ones(2) * x.sum()
    x = jnp.ones(3, jnp.float32)
    assert programs.call("ones", ones, x).dtype == jnp.float32
    with jax.enable_x64(True):
        assert programs.call("ones", ones, x).dtype == jnp.float64


def test_arrays_of_numpy_are_copied():
    programs, held = Programs(), np.ones(3)
    add = lambda x: x + held
    x = np.ones(3, np.float32)
    result = programs.call("add", add, x)
    x[:], held[:] = np.nan, np.nan
    np.testing.assert_array_equal(result, 2)
    np.testing.assert_array_equal(programs.call("add", add, jnp.zeros(3)), 1)


@pytest.mark.parametrize("traced_argument", [True, False])
def test_a_call_inside_a_transformation_is_part_of_it(traced_argument):
    """Whether the argument or a value that the function refers to is traced; nothing is kept."""
    programs = Programs()

    def cube(scale):
        if traced_argument:
            return programs.call("cube", lambda x: x**3, scale)
        return programs.call("cube", lambda x: x * scale**3, jnp.ones(()))

    assert jax.grad(cube)(2.0) == 12
    assert jax.jit(cube)(2.0) == 8
    np.testing.assert_array_equal(jax.vmap(cube)(jnp.arange(3.0)), [0, 1, 8])
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(cube)))(jnp.arange(3.0)), [0, 3, 12])
    assert float(cube(3.0)) == 27


def test_concrete_values_are_checked():
    def positive(x):
        if not np.asarray(scale) > 0:
            raise ValueError("scale must be positive")
        return scale * x

    scale = jnp.array(-1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        Programs().call("positive", positive, jnp.ones(2))


def test_few_programs_are_kept():
    programs = Programs()
    for _ in range(70):
        programs.call(("new", lambda: None), jnp.negative, jnp.ones(()))
    assert len(programs._held) <= 64


@jit_by_size
def cube(x):
    return x**3


@pytest.mark.parametrize("size", [4, 2**16])
def test_small_and_large_arrays_are_compiled_once(size):
    x, y = jnp.arange(2.0 * size).reshape(2, size) / size
    np.testing.assert_allclose(cube(x), np.asarray(x) ** 3, rtol=1e-6)
    COMPILED.clear()
    np.testing.assert_allclose(cube(y), np.asarray(y) ** 3, rtol=1e-6)
    assert not COMPILED


def test_a_small_program_is_part_of_a_callers():
    """Also of one whose arguments are constants there; JAX refuses options inside of a program."""
    held = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.jit(lambda x: x + cube(held))(1.0), [1, 2, 9])
    np.testing.assert_array_equal(jax.jit(jax.vmap(cube))(held), [0, 1, 8])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(cube(x)))(held), [0, 3, 12])
    np.testing.assert_array_equal(jax.vmap(lambda x: x + cube(held))(held)[2], [2, 3, 10])
