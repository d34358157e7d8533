"""The modules whose import takes a moment: each is imported when a verb first uses it, as `slow.pipeline`.

So help, and questions to a table, are answered at once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from robust_nas import __version__

if TYPE_CHECKING:
    from robust_nas import api as api
    from robust_nas import ensembles as ensembles
    from robust_nas import pipeline as pipeline
    from robust_nas import recipes as recipes
    from robust_nas import searches as searches
    from robust_nas import spaces as spaces
    from robust_nas import tables as tables
    from robust_nas.certification import plan as plan
    from robust_nas.cli import answer as answer
    from robust_nas.cli import listing as listing
    from robust_nas.cli import results as results
    from robust_nas.core import config as config
    from robust_nas.core import files as files
    from robust_nas.core import registry as registry
    from robust_nas.integrations import python_module as python_module
    from robust_nas.integrations import vnnlib as vnnlib
    from robust_nas.jobs import attack_models as attack_models
    from robust_nas.jobs import certify_models as certify_models
    from robust_nas.jobs import merged_runs as merged_runs
    from robust_nas.report import explorer as explorer
    from robust_nas.report import table_plots as table_plots
    from robust_nas.runtime import distributed as distributed
    from robust_nas.runtime import run_folder as run_folder
    from robust_nas.runtime import run_list as run_list
    from robust_nas.studies import ranking as ranking
    from robust_nas.studies import scaling as scaling
    from robust_nas.studies import simulation as simulation
    from robust_nas.tables import answers as answers
    from robust_nas.tables import cards as cards
    from robust_nas.tables import transfer as transfer

_PACKAGES = {
    "answer": "cli",
    "answers": "tables",
    "attack_models": "jobs",
    "cards": "tables",
    "certify_models": "jobs",
    "config": "core",
    "distributed": "runtime",
    "explorer": "report",
    "files": "core",
    "listing": "cli",
    "merged_runs": "jobs",
    "plan": "certification",
    "python_module": "integrations",
    "ranking": "studies",
    "registry": "core",
    "results": "cli",
    "run_folder": "runtime",
    "run_list": "runtime",
    "scaling": "studies",
    "simulation": "studies",
    "table_plots": "report",
    "transfer": "tables",
    "vnnlib": "integrations",
}
"""The packages of modules that are in one."""

_ROOMS = ("api", "ensembles", "pipeline", "recipes", "searches", "spaces", "tables")


_WITH_TORCH = ("api", "attack_models", "certify_models", "merged_runs", "pipeline", "scaling")
"""The modules of long jobs: torch alone takes seconds to import."""


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH and "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print(f"robust-nas {__version__}: loading torch and the data", file=sys.stderr, flush=True)
    if name in _PACKAGES:
        return import_module(f"robust_nas.{_PACKAGES[name]}.{name}")
    if name in _ROOMS:
        return import_module(f"robust_nas.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
