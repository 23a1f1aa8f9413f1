"""Densities, dimension and spectra."""

from tests.contract.edges import Edges
from tests.contract.promises import Row

ROWS: dict[str, Row] = {}


class TestDensity(Edges):
    rows = ROWS
