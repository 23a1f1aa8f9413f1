"""Mutual information and entropies."""

from tests.contract.edges import Edges
from tests.contract.promises import Row

ROWS: dict[str, Row] = {}


class TestMutualInformation(Edges):
    rows = ROWS
