"""Measures of dependence."""

from tests.contract.edges import Edges
from tests.contract.promises import Row

ROWS: dict[str, Row] = {}


class TestDependence(Edges):
    rows = ROWS
