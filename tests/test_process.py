"""A public call leaves the process as it was: its random states, threads, kernels, filters, variables and folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import pytest
import torch

import robust_nas as rn
from robust_nas import pipeline
from robust_nas.api import Run
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.runtime.distributed import World, in_group
from robust_nas.runtime.process import HELD

TINY = [
    "space.channels=1",
    "space.stages=1",
    "search.epochs=1",
    "search.batch_size=512",
    "derive.count=2",
    "derive.pool=2",
    "train.batch_size=512",
    "threads=1",
]


def snapshot() -> dict[str, Any]:
    """The state of the process that a call might change, read in other ways than the code's own where possible."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "filters": list(warnings.filters),
        "backend": dict.__getitem__(matplotlib.rcParams, "backend"),
        "drawing": {key: str(value) for key, value in dict.items(matplotlib.rcParams)},
        "variables": dict(os.environ),
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "group": in_group(),
        "locked": list(HELD),
    }


@pytest.fixture(autouse=True, scope="module")
def unusual() -> Any:
    """A process whose kernels are not those that the package would choose."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(number: int) -> Any:
    """Another number of threads than a run with `threads = 1` takes; a call that computes much would be slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quickly: list[str]) -> Run:
    """A run that has left the process as it was."""
    with threads(2):
        before = snapshot()
        run = rn.run("digits", *TINY, *quickly, out=tmp_path_factory.mktemp("runs"))
        after = snapshot()
    assert {key for key in before if before[key] != after[key]} == set()
    return run


def few(data: Dataset) -> Dataset:
    return dataclasses.replace(data, train=data.train[:128], validation=data.validation[:32])


Call = Callable[[Run, Path], Any]


def _load_ensemble(run: Run, _: Path) -> Any:
    return rn.Ensemble.load(run.path / "ensemble")


def _derive(run: Run, _: Path) -> Any:
    space, data = rn.spaces.load("nasbench201", channels=1, stages=1), few(run.data)
    found = rn.search(space, data, run.threat, epochs=1, batch_size=32)
    return rn.derive(found, space, data, run.threat, count=1, pool=2)


def _write_benchmark(run: Run, path: Path) -> Any:
    return rn.write_benchmark(run.models, run.data.test[:2], [run.threat.with_epsilon(0.01)], path / "onnx")


CALLS: dict[str, Call] = {
    "derive": _derive,
    "export_onnx": lambda run, path: rn.export_onnx(run.models["model-0"], path / "model.onnx", (1, 8, 8)),
    "export_python": lambda run, path: rn.export_python(run.models["model-0"], path / "model_0.py"),
    "write_benchmark": _write_benchmark,
    "write_vnnlib": lambda run, path: rn.write_vnnlib(
        path / "image.vnnlib", run.data.test.images[0], 1, 10, run.threat
    ),
    "write_report": lambda run, path: rn.write_report(run.path),
    "load_run": lambda run, path: rn.load_run(run.path),
    "load_models": lambda run, path: rn.load_models(str(run.path), device="cpu"),
    "Ensemble.load": _load_ensemble,
    "datasets.load": lambda run, path: rn.datasets.load("digits"),
    "create": lambda run, path: rn.create("cifar-resnet-8 width=0.25", run.data),
    "search": lambda run, path: rn.search(
        rn.spaces.load("nasbench201", channels=1, stages=1), few(run.data), run.threat, epochs=1, batch_size=32
    ),
    "train": lambda run, path: rn.train(
        "323133", few(run.data), run.threat, method="standard", epochs=1, batch_size=32
    ),
    "evaluate": lambda run, path: rn.evaluate(
        run.models["model-0"], run.data.test[:8], run.threat, attacks=["autoattack"], folder=path / "new"
    ),
    "certify": lambda run, path: rn.certify(run.models["model-0"], run.data.test[:4], run.threat),
    "smooth": lambda run, path: rn.smooth(run.models["model-0"], sigma=0.1, num_samples=10).certify(run.data.test[:2]),
    "build_ensemble": lambda run, path: rn.build_ensemble(
        list(run.models.values()), run.data.validation[:8], run.threat.with_epsilon(1e-4), bound="interval"
    ),
}


def modes(run: Run) -> list[bool]:
    return [module.training for model in run.models.values() for module in model.modules()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "write_benchmark" else name for name in CALLS]
)
def test_a_call_leaves_the_process_and_the_models_as_they_were(run: Run, tmp_path: Path, name: str) -> None:
    if name != "build_ensemble":  # whose result has the models themselves, in evaluation mode
        next(run.models["model-0"].children()).train()  # one part of the model is in another mode than the rest
    before = {**snapshot(), "modes": modes(run)}
    CALLS[name](run, tmp_path)
    after = {**snapshot(), "modes": modes(run)}
    run.models["model-0"].eval()
    assert {key for key in before if before[key] != after[key]} == set()


@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError, RuntimeError])
def test_a_call_that_is_interrupted_or_fails_leaves_the_process_as_it_was_and_its_folder_free(
    run: Run, tmp_path: Path, end: type[BaseException]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        assert HELD
        torch.rand(1), random.random(), np.random.rand()
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("ignore")
        os.environ["ROBUST_NAS_TEST"] = "1"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise end("here")

    with threads(2):
        before = snapshot()
        with mock.patch.object(pipeline, "search", interrupted), pytest.raises(end):
            rn.run("digits", *TINY, out=tmp_path)
        with mock.patch("robust_nas.evaluation.evaluate", interrupted), pytest.raises(end):
            rn.evaluate(run.models["model-0"], run.data.test[:8], run.threat, folder=tmp_path / "new")
        after = snapshot()
    assert {key for key in before if before[key] != after[key]} == set()


def test_a_group_that_a_call_joins_is_left(tmp_path: Path) -> None:
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0"}

    def joined(*_: Any) -> World:
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
        raise InputError("after the group was joined")

    with mock.patch.dict(os.environ, alone), mock.patch.object(World, "start", joined):
        with pytest.raises(InputError, match="after the group"):
            rn.run("digits", *TINY, out=tmp_path)
        assert not torch.distributed.is_initialized()
