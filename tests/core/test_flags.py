"""What is True or False takes nothing else: "no" would count as True."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

import divjax
from divjax import discrepancy, fdiv, flows, information, kernels, ot

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (2, 8, 2))
NORMAL = divjax.Normal(jnp.zeros(2), jnp.eye(2))

CALLS = {
    "mmd": (discrepancy.mmd, (X, Y)),
    "energy_distance": (discrepancy.energy_distance, (X, Y)),
    "sliced_energy_distance": (discrepancy.sliced_energy_distance, (KEY, X, Y)),
    "cauchy_schwarz": (discrepancy.cauchy_schwarz, (X, Y)),
    "characteristic_function_distance": (discrepancy.characteristic_function_distance, (KEY, X, Y)),
    "kernel_stein": (discrepancy.kernel_stein, (X,)),
    "kernel_mean": (kernels.kernel_mean, (kernels.Gaussian(1.0), X, Y)),
    "hsic": (information.hsic, (X, Y)),
    "cka": (information.cka, (X, Y)),
    "distance_covariance": (information.distance_covariance, (X, Y)),
    "distance_correlation": (information.distance_correlation, (X, Y)),
    "joint_distance_covariance": (information.joint_distance_covariance, ((X, Y),)),
    "cauchy_schwarz_mutual_information": (
        information.cauchy_schwarz_mutual_information,
        (X, Y),
    ),
    "plug_in_kl": (fdiv.gaussian.plug_in_kl, (X, Y)),
    "histogram": (fdiv.histogram.divergence, (fdiv.categorical.kl, X, Y)),
    "wasserstein_1d": (ot.wasserstein_1d, (X[:, 0], Y[:, 0])),
    "sliced_wasserstein": (ot.sliced_wasserstein, (KEY, X, Y)),
    "max_sliced_wasserstein": (ot.max_sliced_wasserstein, (KEY, X, Y)),
    "gaussian_entropic": (
        functools.partial(ot.gaussian_entropic, epsilon=1.0),
        (NORMAL, NORMAL),
    ),
    "accelerated": (flows.accelerated, (0.1,)),
    "KL": (flows.KL, (lambda x: -0.5 * jnp.sum(x**2),)),
    "Potential": (flows.Potential, (jnp.sum,)),
    "Discrepancy": (flows.Discrepancy, (X, discrepancy.mmd)),
}


@pytest.mark.parametrize("given", ["no", 1, None])
@pytest.mark.parametrize("name", CALLS)
def test_a_flag_is_true_or_false(name, given):
    function, arguments = CALLS[name]
    parameters = inspect.signature(function).parameters.values()
    flags = [each.name for each in parameters if isinstance(each.default, bool)]
    assert flags
    for flag in flags:
        with pytest.raises(ValueError, match=f"^{flag} must be True or False; got {given!r}"):
            function(*arguments, **{flag: given})
