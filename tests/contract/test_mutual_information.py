"""Mutual information and entropies."""

import jax
import jax.numpy as jnp

from divjax import information, ratio
from divjax.ratio import heads
from tests.contract.edges import Edges
from tests.contract.promises import Row, of_samples, samples


def _of_pairs(measure, num_variables=2, smooth=False):
    """A measure `(*variables, method)` of the particles' features, each a variable."""

    def evaluate(method, key, x, weights):
        # Counts have no derivative, and refuse one.
        x = x if smooth else jax.lax.stop_gradient(x)
        variables = x[:, :1], x[:, 1:], x[:, :1] + x[:, 1:] ** 2
        return measure(*variables[:num_variables], method=method).value

    return evaluate


def _features(x):
    x = jax.lax.stop_gradient(x)
    return x[:, :1], x[:, 1:], x[:, :1] + x[:, 1:] ** 2


def _test(key, x, y, z, method):
    options = {"num_neighbors": 3, "num_permutations": 5}
    return information.conditional_independence_test(key, x, y, z, method=method, **options).p_value


def _learned(method, key, x, weights):
    shift = jnp.linspace(-1, 1, 2 * x.shape[0], dtype=x.dtype)[:, None]
    rows = jnp.tile(x, (2, 1)) + shift
    weights = jnp.tile(weights, 2)
    fit = method.fit(key, rows[:, :1], rows[:, 1:], weights)
    return fit.mutual_information().value


KSG, MIXED = information.KSG(2), information.MixedNeighbors(2)
REFERRED = information.KSG(2, reference="gaussian_copula")
# A sum over counts of neighbours changes in steps.
NEIGHBORS = dict(smooth=False, sampled=True)

ROWS = {
    "information.mutual_information": Row(
        REFERRED, _of_pairs(information.mutual_information), **NEIGHBORS
    ),
    "information.KSG": Row(KSG, _of_pairs(information.mutual_information), slow=True, **NEIGHBORS),
    "information.KSG(algorithm=2)": Row(
        information.KSG(2, 2), _of_pairs(information.mutual_information), slow=True, **NEIGHBORS
    ),
    "information.MixedNeighbors": Row(
        MIXED, _of_pairs(information.mutual_information), slow=True, **NEIGHBORS
    ),
    "information.conditional_mutual_information": Row(
        KSG, _of_pairs(information.conditional_mutual_information, 3), slow=True, **NEIGHBORS
    ),
    "information.total_correlation": Row(
        KSG, _of_pairs(information.total_correlation, 3), slow=True, **NEIGHBORS
    ),
    "information.interaction_information": Row(
        KSG, _of_pairs(information.interaction_information, 3), slow=True, **NEIGHBORS
    ),
    "information.Gaussian": Row(
        information.Gaussian(), _of_pairs(information.mutual_information, smooth=True), sampled=True
    ),
    "information.transfer_entropy": Row(
        KSG, _of_pairs(information.transfer_entropy), "random", slow=True, **NEIGHBORS
    ),
}
ROWS |= {
    "information.mutual_information_screening": Row(
        KSG,
        lambda method, key, x, weights: information.mutual_information_screening(
            jax.lax.stop_gradient(x), jax.lax.stop_gradient(x[:, :1] ** 2), method=method
        ).value[:, None],
        slow=True,
        **NEIGHBORS,
    ),
    "information.conditional_independence_test": Row(
        KSG,
        lambda method, key, x, weights: _test(key, *_features(x), method),
        "random",
        slow=True,
        **NEIGHBORS,
    ),
    "information.ClassifierInformation": Row(
        information.ClassifierInformation(
            ratio.ClassifierRatio(heads.Linear(0.5), num_folds=2, calibration="none"),
            num_products=1,
        ),
        _learned,
        "random",
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "information.entropy": Row(
        information.KozachenkoLeonenko(2),
        lambda method, key, x, weights: information.entropy(x, method=method).value,
        sampled=True,
    ),
    "information.KozachenkoLeonenko(bias_order)": Row(
        information.KozachenkoLeonenko(3, 1),
        lambda method, key, x, weights: information.entropy(x, method=method).value,
        slow=True,
        sampled=True,
    ),
    "information.Vasicek": Row(
        information.Vasicek(2),
        lambda method, key, x, weights: information.entropy(x[:, :1], method=method).value,
        slow=True,
        sampled=True,
    ),
    "information.Ebrahimi": Row(
        information.Ebrahimi(2),
        lambda method, key, x, weights: information.entropy(x[:, :1], method=method).value,
        slow=True,
        sampled=True,
    ),
    "information.cross_entropy": Row(
        (),
        of_samples(lambda x, y, w, m: information.cross_entropy(x, y, w, k=3, bias_order=1).value),
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "information.cross_entropy (weights of y)": Row(
        (),
        lambda m, key, x, w: (
            information.cross_entropy(samples(x.dtype), x, b=w, k=2, bias_order=0).value
        ),
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "information.renyi_entropy": Row(
        1.7,
        lambda alpha, key, x, weights: information.renyi_entropy(x, alpha, 2).value,
        sampled=True,
    ),
    "information.tsallis_entropy": Row(
        0.6,
        lambda alpha, key, x, weights: information.tsallis_entropy(x, alpha, 2).value,
        slow=True,
        sampled=True,
    ),
}


class TestMutualInformation(Edges):
    rows = ROWS
