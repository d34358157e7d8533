"""Robust-accuracy tables: the accuracies of trained networks under attack, by architecture.

    table = tables.load("nas-robbench-201")             # a published table, or the folder of one's own, runs/table
    table.query("323133", dataset="cifar10", attack="pgd", epsilon="8/255").mean
    table.top(10, "pgd@8/255", dataset="cifar10")

One documented and versioned schema (`Row`, one measured accuracy per row) holds every table, published or one's own.
Importing this package imports pyarrow, but neither torch nor pandas.
"""

from robust_nas.tables._arrays import IDENTITY, Column
from robust_nas.tables._noise import NoiseFloor
from robust_nas.tables._schema import SCHEMA, SCHEMA_VERSION, Row
from robust_nas.tables._store import place, read
from robust_nas.tables._table import ArchitectureNotInTable, Result, Table, load, non_dominated
from robust_nas.tables.local import append, rows_from_run

__all__ = [
    "IDENTITY",
    "SCHEMA",
    "SCHEMA_VERSION",
    "ArchitectureNotInTable",
    "Column",
    "NoiseFloor",
    "Result",
    "Row",
    "Table",
    "append",
    "load",
    "non_dominated",
    "place",
    "read",
    "rows_from_run",
]
