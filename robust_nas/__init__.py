"""robust-nas: search neural architectures that hold up under attack, measure and certify how robust they are.

    import robust_nas as rn

    threat = rn.ThreatModel(norm="linf", epsilon=0.2)
    space, data = rn.spaces.load("nasbench201", channels=8, cells_per_stage=1), rn.datasets.load("digits")
    found = rn.search(space, data, threat, method="dirichlet", epochs=40)
    model = rn.train(found.best, data, threat, space=space, method="pgd_at")
    print(rn.evaluate(model, data.test, threat, attacks=["pgd", "apgd"]))

Importing this package imports nothing slow; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FROM = {
    "Architecture": "architectures.cell",
    "Dataset": "datasets",
    "Ensemble": "ensembles",
    "Genotype": "architectures.genotype",
    "ImageSet": "datasets",
    "InputError": "core.errors",
    "ThreatModel": "threat",
    "build_ensemble": "api",
    "certify": "api",
    "create": "api",
    "derive": "api",
    "evaluate": "api",
    "export_onnx": "integrations.onnx",
    "export_python": "integrations.python_module",
    "load_models": "intake",
    "load_run": "api",
    "plan_scaling": "studies.scaling.calls",
    "run": "api",
    "scale": "studies.scaling.calls",
    "search": "api",
    "show_progress": "runtime.progress",
    "smooth": "api",
    "train": "api",
    "write_benchmark": "integrations.vnnlib",
    "write_report": "api",
    "write_vnnlib": "integrations.vnnlib",
}
_MODULES = (
    "attacks",
    "bounds",
    "datasets",
    "ensembles",
    "evaluation",
    "intake",
    "proxies",
    "samplers",
    "searches",
    "spaces",
    "tables",
    "training",
)

__all__ = [
    "Architecture",
    "Dataset",
    "Ensemble",
    "Genotype",
    "ImageSet",
    "InputError",
    "ThreatModel",
    "__version__",
    "attacks",
    "bounds",
    "build_ensemble",
    "certify",
    "create",
    "datasets",
    "derive",
    "ensembles",
    "evaluate",
    "evaluation",
    "export_onnx",
    "export_python",
    "intake",
    "load_models",
    "load_run",
    "plan_scaling",
    "proxies",
    "run",
    "samplers",
    "scale",
    "search",
    "searches",
    "show_progress",
    "smooth",
    "spaces",
    "tables",
    "train",
    "training",
    "write_benchmark",
    "write_report",
    "write_vnnlib",
]

if TYPE_CHECKING:
    from robust_nas import (
        attacks,
        bounds,
        datasets,
        ensembles,
        evaluation,
        intake,
        proxies,
        samplers,
        searches,
        spaces,
        tables,
        training,
    )
    from robust_nas.api import (
        build_ensemble,
        certify,
        create,
        derive,
        evaluate,
        load_run,
        run,
        search,
        smooth,
        train,
        write_report,
    )
    from robust_nas.architectures.cell import Architecture
    from robust_nas.architectures.genotype import Genotype
    from robust_nas.core.errors import InputError
    from robust_nas.datasets import Dataset, ImageSet
    from robust_nas.ensembles import Ensemble
    from robust_nas.intake import load_models
    from robust_nas.integrations.onnx import export_onnx
    from robust_nas.integrations.python_module import export_python
    from robust_nas.integrations.vnnlib import write_benchmark, write_vnnlib
    from robust_nas.runtime.progress import show_progress
    from robust_nas.studies.scaling.calls import plan_scaling, scale
    from robust_nas.threat import ThreatModel


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"robust_nas.{_FROM[name]}"), name)
    if name in _MODULES:
        return import_module(f"robust_nas.{name}")
    raise AttributeError(f"module 'robust_nas' has no attribute '{name}'")
