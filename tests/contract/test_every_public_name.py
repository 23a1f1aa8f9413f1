"""Nothing public is without a row."""

import importlib
import inspect

import pytest

from tests.contract import (
    test_density,
    test_dependence,
    test_discrepancy,
    test_fdiv,
    test_flows,
    test_inference,
    test_kernels,
    test_losses,
    test_mutual_information,
    test_ot,
    test_ratio,
    test_two_sample_tests,
)
from tests.contract.promises import public_name

# The files of rows that show a room's names.
ROOMS = {
    "discrepancy": (test_discrepancy, test_two_sample_tests),
    "information": (test_dependence, test_mutual_information, test_density),
    "information.contraction": (test_density,),
    "information.density": (test_density,),
    "information.dimension": (test_density,),
    "information.generalization": (test_density,),
    "information.linear_memorization": (test_density,),
    "kernels": (test_kernels,),
    "flows": (test_flows,),
    "fdiv": (test_fdiv,),
    "fdiv.gaussian": (test_fdiv,),
    "fdiv.categorical": (test_fdiv,),
    "fdiv.histogram": (test_fdiv,),
    "fdiv.inequalities": (test_fdiv,),
    "fdiv.exponential_family": (test_fdiv,),
    "inference": (test_inference,),
    "losses": (test_losses,),
    "ot": (test_ot,),
    "ratio": (test_ratio,),
    "ratio.heads": (test_ratio,),
    "ratio.bounds": (test_ratio,),
}

WITHOUT_A_ROW = {
    "what others have in common": {"fdiv.Divergence", "fdiv.Generator"},
    "within a flow": {"flows.accelerated"},
    "runs in Python, on anything its classifier takes": {"ratio.SklearnRatio"},
    "returned by others": {
        "fdiv.NeighborDiagnostics",
        "information.DependenceDiagnostics",
        "inference.TestResult",
        "information.AttributeDependence",
        "information.InformationFit",
        "information.InformationProjectionResult",
        "information.TotalCorrelationDecomposition",
        "information.dimension.DimensionDiagnostics",
        "ratio.BoundFit",
        "ratio.Diagnostics",
        "ratio.MatchedWeights",
        "ratio.Ties",
        "flows.FlowResult",
        "ot.AffineMap",
        "ot.ConditionalPlan",
        "ot.DualFit",
        "ot.ExactResult",
        "ot.EntropicFit",
        "ot.GaussianBarycenter",
        "ot.GaussianEntropicResult",
        "ot.LineTransportResult",
        "ot.MapFit",
        "ot.MaxSlicedResult",
        "ot.MongeGapResult",
        "ot.SinkhornDivergenceResult",
        "ot.SinkhornResult",
        "ot.UnbalancedLineResult",
        "ratio.bounds.Critic",
        "ratio.heads.KernelRatio",
        "ratio.RatioFit",
    },
    "an argument of others": {
        "fdiv.categorical.Labels",
        "fdiv.categorical.Logits",
        "fdiv.categorical.Weights",
        "fdiv.exponential_family.Family",
    },
    "gives integers": {"flows.distinct_particles", "ratio.bounds.derangement"},
    "takes what another library returns": {"ot.potentials_from_ott"},
}


def is_method(value):
    """Neither a module, a state or result, a protocol, a type's name nor a constant."""
    if inspect.isclass(value):
        return not issubclass(value, tuple) and not getattr(value, "_is_protocol", False)
    return inspect.isfunction(value) or hasattr(value, "__wrapped__")  # that is, compiled


def find(name):
    room, last = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"divjax.{room}"), last)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_row(room):
    names = [f"{room}.{name}" for name in importlib.import_module(f"divjax.{room}").__all__]
    rows = {name for tests in ROOMS.values() for test in tests for name in test.ROWS}
    # By identity: what two rooms offer needs one row.
    shown = {id(find(public_name(name))) for name in rows}
    exempt = {id(find(name)) for names in WITHOUT_A_ROW.values() for name in names}
    assert not exempt & shown
    missing = {name for name in names if is_method(find(name)) and id(find(name)) not in shown}
    assert {name for name in missing if id(find(name)) not in exempt} == set()
