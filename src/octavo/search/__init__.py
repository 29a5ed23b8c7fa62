"""Search for an architecture: many recipes that differ in a few settings, trained and ranked.

DIR/halves/S/              random halves, where the grid starts from scratch
DIR/rows/HASH/             rows, shared by the runs whose settings make the same ones
DIR/runs/VARIANT-sSEED/    a training run in out/; result.json once it is over
DIR/table.md, table.json   the ranking, with pictures beside
"""

from octavo.search.grid import Grid, read_grid
from octavo.search.runs import search
from octavo.search.table import write_table

__all__ = ["Grid", "read_grid", "search", "write_table"]
