"""Discrepancies of two samples."""

from tests.contract.edges import Edges
from tests.contract.promises import Row

ROWS: dict[str, Row] = {}


class TestDiscrepancy(Edges):
    rows = ROWS
