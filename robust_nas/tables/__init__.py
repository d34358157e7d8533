"""Robust-accuracy tables: what a network with this architecture, trained like this, keeps under that attack.

One documented and versioned schema (`Row`, one measured accuracy per row) for every table. `record` a finished run:

    tables.append("runs/table", tables.rows_from_run(RunDir.open("runs/20260101-digits-1a2b3c")))
    tables.read("runs/table", dataset="digits", attack="clean")      # a pyarrow.Table

Importing this package imports pyarrow, but neither torch nor pandas.
"""

from robust_nas.tables._schema import SCHEMA, SCHEMA_VERSION, Row
from robust_nas.tables.local import append, read, rows_from_run

__all__ = ["SCHEMA", "SCHEMA_VERSION", "Row", "append", "read", "rows_from_run"]
