"""Two data frames compared: whether they differ, how far apart they are, and in which columns.

`compare_tables` gives a verdict and all numbers that it rests on; `divjax compare a.csv b.csv` does
the same from the command line. `encode` turns two tables into two matrices by one encoding,
`read_alike` reads text that is numbers or dates, and `read_table` a csv file. `lattices`,
`own_levels` and `dequantize` are about values that repeat in one table alone, `univariate_js` and
`frequencies_js` about one column. All need the extra `tables`: `pip install "divjax[tables]"`.
"""

import importlib.util

if importlib.util.find_spec("pandas") is None:
    raise ImportError(
        'divjax.tables needs pandas, which is not installed: pip install "divjax[tables]".'
    )

from divjax.tables.columns import frequencies_js, univariate_js
from divjax.tables.comparison import TableComparison, compare_tables
from divjax.tables.encoding import Encoded, encode
from divjax.tables.files import read_table
from divjax.tables.lattices import Lattice, dequantize, lattices, own_levels
from divjax.tables.reading import Read, read_alike
from divjax.tables.values import values_alike
from divjax.tables.verdict import Verdict

__all__ = [
    "Encoded",
    "Lattice",
    "Read",
    "TableComparison",
    "Verdict",
    "compare_tables",
    "dequantize",
    "encode",
    "frequencies_js",
    "lattices",
    "own_levels",
    "read_alike",
    "read_table",
    "univariate_js",
    "values_alike",
]
