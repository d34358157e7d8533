"""A run folder as the stages write it, with made-up numbers that keep the rules (certified <= attacked <= clean)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas.architectures.cell import OPERATIONS, Architecture, edges_of
from robust_nas.report import write_report
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.states import save_state

NUM_IMAGES = 360
CHOSEN = ("323133", "431340", "302023")
CERTIFIED = (0.002, 0.005, 0.01, 0.02)
CURVE = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
CONFIG = """\
version = 2
name = "digits"
seed = 0
device = "auto"

[data]
name = "digits"

[threat]
norm = "linf"
epsilon = 0.2

[space]
name = "nasbench201"
num_nodes = 4
operations = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
channels = 8
cells_per_stage = 1
stages = 3

[search]
name = "dirichlet"
epochs = 40
alpha_learning_rate = 0.006  # <b>not bold</b> & "quoted"

[search.objective]
name = "pgd_at"

[search.objective.attack]
name = "fgsm"
random_start = true

[train]
epochs = 30

[train.method]
name = "pgd_at"

[evaluation]
batch_size = 250

[certification]
epsilons = [0.002, 0.005, 0.01, 0.02]

[ensemble.rule]
name = "robboost"
"""


def wilson(correct: int, count: int) -> dict[str, Any]:
    """Return an accuracy as the stages write it, with its Wilson interval."""
    share, z = correct / count, 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return {"accuracy": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "count": count}


def write_run(path: Path) -> RunFolder:
    """Write a finished run into `path`."""
    random = np.random.default_rng(0)
    (path / "checkpoints").mkdir(parents=True)
    files: dict[str, Any] = {
        "environment": {
            "version": "0.1.0", "commit": "0123abc", "python": "3.13.1", "torch": "2.11.0",
            "packages": {"torch": "2.11.0", "numpy": "2.4.0"}, "device": "cpu", "cpu": "A & B <CPU>", "cores": 2,
            "threads": 2, "world_size": 1, "arguments": ["run", "digits"], "started": "2026-01-02T03:04:05+00:00",
        },
        "search": _search(random),
        "derive": _derive(),
        "train": {"models": [_trained(index, digits) for index, digits in enumerate(CHOSEN)]},
        "ensemble": {
            "name": "robboost", "members": ["model-0", "model-1", "model-2"], "weights": [0.52, 0.31, 0.17],
            "scales": [3.1, 2.7, 4.4], "epsilon": 0.002, "objective": 0.412, "least_objective": 0.41,
            "uniform_objective": 0.437,
            "uniform": {"weights": [1.0, 1.0, 1.0], "scales": [3.1, 2.7, 4.4]},
            "best_single": "model-0", "num_validation": 359, "seconds": 1.5,
        },
        "record": {"table": "runs/table", "rows": 27},
    }  # fmt: skip
    files |= _measured(path, random)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    (path / "config.toml").write_text(CONFIG)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics(random)))
    save_state(path / "checkpoints" / "examples.safetensors", _examples(random))
    return RunFolder.open(path)


def _search(random: np.random.Generator) -> dict[str, Any]:
    edges, trajectory = edges_of(4), []
    drift = random.normal(size=(6, 5)) + np.array([-0.3, 0.1, 0.2, 0.9, 0.0])
    for epoch in range(41):
        share = max(0, epoch / 40 - 0.15)
        concentration = 1 + 1.2 * np.tanh(drift * share * 1.2) * 0.8 + 0.02 * random.normal(size=(6, 5))
        mean = concentration / concentration.sum(axis=1, keepdims=True)
        trajectory.append(
            {
                "epoch": epoch,
                "concentration": concentration.tolist(),
                "mixture": mean.tolist(),
                "entropy": float(-(mean * np.log(mean)).sum(axis=1).mean()),
                "validation": {
                    "clean": 0.1 + 0.82 * (1 - math.exp(-epoch / 8)) + 0.01 * random.normal() * (epoch > 0),
                    "robust": 0.05 + 0.4 * (1 - math.exp(-epoch / 14)) + 0.01 * random.normal() * (epoch > 0),
                },
            }
        )
    return {
        "space": {"name": "nasbench201", "kind": "cell"}, "operations": list(OPERATIONS),
        "edges": [list(edge) for edge in edges], "edge_names": [f"{source}-{target}" for source, target in edges],
        "probabilities": mean.tolist(), "trajectory": trajectory, "epoch": 40, "seconds": 71.3, "hold_sample": True,
        "search": {"name": "dirichlet", "objective": {"name": "pgd_at"}},
    }  # fmt: skip


def _derive() -> dict[str, Any]:
    candidates = []
    for rank, digits in enumerate((*CHOSEN, "323033"), start=1):
        architecture = Architecture.parse(digits)
        candidates.append(
            {
                "architecture": str(architecture), "canonical": architecture.canonical,
                "log_posterior": -6.2 - 0.1 * rank,
                "validation_clean": 0.91 - 0.01 * rank, "validation_robust": 0.46 - 0.015 * rank,
                "validation_certified": None,
                "rank": rank if rank <= 3 else None,
            }
        )  # fmt: skip
    chosen = [candidate["architecture"] for candidate in candidates[:3]]
    return {"candidates": candidates, "chosen": chosen, "num_validation": 359, "seconds": 4.2}


def _trained(index: int, digits: str) -> dict[str, Any]:
    return {
        "name": f"model-{index}", "architecture": str(Architecture.parse(digits)), "parameters": 21_482 + 1000 * index,
        "multiply_adds": 1_203_840, "epochs": 30, "kept": "best", "best_epoch": 24 - 9 * index, "last_epoch": 30,
        "method": "pgd_at", "seconds": 31.0, "validation": {"clean": 0.972, "robust": 0.631},
        "best": {"clean": 0.972, "robust": 0.631}, "last": {"clean": 0.978, "robust": 0.618},
    }  # fmt: skip


def _measured(path: Path, random: np.random.Generator) -> dict[str, Any]:
    outcomes: list[dict[str, Any]] = []
    certificates: list[dict[str, Any]] = []
    evaluation: dict[str, Any] = {"split": "test", "num_images": NUM_IMAGES, "models": {}}
    certification: dict[str, Any] = {"method": "interval", "dtype": "float64", "num_images": NUM_IMAGES, "models": {}}
    for index, model in enumerate(("model-0", "model-1", "model-2", "uniform", "ensemble")):
        # An image's radius: it withstands less than it, and is proved robust below a fiftieth of it.
        radius = np.clip(random.normal(0.23 + 0.01 * (index - 1), 0.09, NUM_IMAGES), 0, None)
        clean = radius > 0.05
        radius = np.where(clean, radius, 0)
        attacks = {"fgsm": radius > 0.17, "pgd": radius > 0.2, "apgd": radius > 0.203}
        if model in ("model-0", "ensemble"):
            attacks["autoattack_reference"] = radius > 0.207
        worst = np.logical_and.reduce(list(attacks.values()))
        for attack, correct in {"clean": clean, **attacks}.items():
            outcomes += [
                {"model": model, "attack": attack, "norm": "linf", "epsilon": 0.0 if attack == "clean" else 0.2,
                 "image": image, "label": image % 10, "correct": bool(value)}
                for image, value in enumerate(correct)
            ]  # fmt: skip
        checks = (
            ("An unbounded attack reaches 0 %.", True, "0 of 128 images stay correct at radius 1."),
            ("More steps never help the defender.", True, "PGD 10: 61.7 %, PGD 50: 61.1 %."),
            ("A black-box attack never beats a white-box one.", index != 2, "Square 60.3 %, PGD 61.1 %."),
        )
        evaluation["models"][model] = {
            "clean": wilson(int(clean.sum()), NUM_IMAGES),
            "attacks": [
                {
                    "name": attack,
                    "norm": "linf",
                    "epsilon": 0.2,
                    "seconds": 2.5,
                    **wilson(int(correct.sum()), NUM_IMAGES),
                }
                for attack, correct in attacks.items()
            ],
            "worst_case": {
                "name": "worst case",
                "norm": "linf",
                "epsilon": 0.2,
                **wilson(int(worst.sum()), NUM_IMAGES),
            },
            "masking": [
                {"check": check, "passed": passed, "detail": detail, "norm": "linf", "epsilon": 0.2}
                for check, passed, detail in checks
            ],
            "curve": [
                {"norm": "linf", "epsilon": epsilon, **wilson(int((radius > epsilon).sum()), NUM_IMAGES)}
                for epsilon in CURVE
            ],
        }
        certification["models"][model] = []
        for epsilon in CERTIFIED:
            margin = np.where(clean, radius / 20 + 0.0015 - epsilon, -1.0)
            entry = wilson(int((margin > 0).sum()), NUM_IMAGES)
            entry["certified"] = entry.pop("accuracy")
            more = {"epsilon": epsilon, "mean_margin": float(margin.mean()), "seconds": 0.4}
            certification["models"][model].append({**entry, **more})
            certificates += [
                {"model": model, "method": "interval", "norm": "linf", "epsilon": epsilon, "image": image,
                 "label": image % 10, "margin": float(value), "certified": bool(value > 0),
                 "clean_correct": bool(right)}
                for image, (value, right) in enumerate(zip(margin, clean, strict=True))
            ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(outcomes), path / "evaluation.parquet")
    pq.write_table(pa.Table.from_pylist(certificates), path / "certificates.parquet")
    return {"evaluation": evaluation, "certification": certification}


def _metrics(random: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for index in range(3):
        for epoch in range(1, 31):
            clean, robust = 0.98 - 0.5 * math.exp(-epoch / 4), 0.63 - 0.4 * math.exp(-epoch / 6)
            noise = 0.008 * random.normal(size=2)
            rows.append(
                {"stage": f"train-{index}", "step": epoch, "loss": 1.0 / epoch, "validation_clean": clean + noise[0],
                 "validation_robust": robust + noise[1], "learning_rate": 0.1, "seconds": float(epoch)}
            )  # fmt: skip
    return rows


def _examples(random: np.random.Generator) -> dict[str, Any]:
    import torch

    waves = [np.outer(np.sin(np.arange(8) * (k + 1) / 4), np.cos(np.arange(8) / (k + 1))) for k in range(9)]
    originals = torch.tensor(np.array(waves), dtype=torch.float32).abs().unsqueeze(1)
    noise = torch.tensor(random.uniform(-0.2, 0.2, originals.shape), dtype=torch.float32)
    own = torch.arange(9)
    return {
        "originals": originals, "adversarial": (originals + noise).clamp(0, 1), "labels": own,
        "predictions": (own + 3) % 10, "clean_predictions": own, "model": "model-0", "attack": "pgd", "norm": "linf",
        "epsilon": 0.2,
    }  # fmt: skip


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; copy it to change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "20260102-digits-1a2b3c").path


@pytest.fixture(scope="session")
def finished_page(finished_run: Path) -> Path:
    """The report of the finished run."""
    return write_report(RunFolder.open(finished_run))


@pytest.fixture(scope="session")
def new_browser() -> Callable[..., Any]:
    """Return what starts a browser without a window."""

    def start(*arguments: str, **capabilities: Any) -> Any:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        binary = shutil.which("chromium") or shutil.which("google-chrome")
        service = shutil.which("chromedriver")
        if not binary or not service:
            pytest.skip("there is no chromium or no chromedriver on this machine")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *arguments):
            options.add_argument(f"--{argument}")
        for name, value in capabilities.items():
            options.set_capability(f"goog:{name}", value)
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(service))

    return start


@pytest.fixture(scope="session")
def browser(new_browser: Callable[..., Any]) -> Iterator[Any]:
    """A browser without a window, from which the pages' own facts can be read."""
    driver = new_browser()
    yield driver
    driver.quit()
