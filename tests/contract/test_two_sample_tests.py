"""Tests of whether two samples differ."""

from tests.contract.edges import Edges
from tests.contract.promises import Row

ROWS: dict[str, Row] = {}


class TestTwoSampleTests(Edges):
    rows = ROWS
