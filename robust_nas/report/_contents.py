"""What a run folder holds, as far as its stages have run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_nas.architecture import OPERATIONS, Architecture
from robust_nas.errors import InputError
from robust_nas.run_dir import METRICS, STAGE_FILES, RunDir, load_state, read_json, read_metrics


@dataclass(frozen=True)
class Contents:
    """The files of a run folder that the report is made of; a stage that has not run is None."""

    path: Path
    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    examples: Mapping[str, Any] | None

    @classmethod
    def read(cls, run: RunDir) -> Contents:
        """Read the folder.

        Raises:
            InputError: if one of its files is damaged.
        """
        config_text = (run / "config.toml").read_text(encoding="utf-8")
        try:
            config = tomllib.loads(config_text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{run / 'config.toml'} is not valid TOML: {error}.") from None
        examples = run / "checkpoints" / "examples.safetensors"
        return cls(
            path=run.path,
            config_text=config_text,
            config=config,
            environment=_read(run / "environment.json") or {},
            stages={stage: _read(run / name) for stage, name in STAGE_FILES.items()},
            metrics=read_metrics(run / METRICS),
            examples=load_state(examples) if examples.exists() else None,
        )

    @property
    def norm(self) -> str:
        """The threat's norm."""
        return str(self.config["threat"]["norm"])

    @property
    def epsilon(self) -> float:
        """The threat's radius."""
        return float(self.config["threat"]["epsilon"])

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that an edge can have."""
        return tuple(self.config["space"].get("operations", OPERATIONS))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    def parse(self, text: str) -> Architecture:
        """Read an architecture of the run's space."""
        return Architecture.parse(text, self.operations)

    @cached_property
    def trained(self) -> dict[str, dict[str, Any]]:
        """What train.json says about each network, by name."""
        return {model["name"]: model for model in (self.stages["train"] or {"models": []})["models"]}

    @cached_property
    def attacked(self) -> dict[str, dict[str, Any]]:
        """What evaluation.json says about each model, by name."""
        return dict((self.stages["attack"] or {"models": {}})["models"])

    @cached_property
    def certified(self) -> dict[str, list[dict[str, Any]]]:
        """What certification.json says about each model, by name."""
        return dict((self.stages["certify"] or {"models": {}})["models"])

    @cached_property
    def models(self) -> list[str]:
        """The names of all models that were trained or measured: the networks, the uniform average, the ensemble."""
        last = {"uniform": 1, "ensemble": 2}
        names = dict.fromkeys([*self.trained, *self.attacked, *self.certified])
        return sorted(names, key=lambda name: last.get(name, 0))

    def title_of(self, model: str) -> str:
        """Return what the page calls a model."""
        if model == "ensemble":
            rule = str((self.stages["ensemble"] or {}).get("name", ""))
            return f"{ {'robboost': 'RobBoost'}.get(rule, rule) } ensemble".strip()
        return "Uniform average" if model == "uniform" else model

    def digits_of(self, model: str) -> str:
        """Return the digits form of a network's architecture, "" for an ensemble."""
        if model not in self.trained or len(self.operations) > 10:
            return ""
        return self.parse(self.trained[model]["architecture"]).digits(self.operations)

    @cached_property
    def measured(self) -> list[tuple[str, str, float]]:
        """The attacks (name, norm, epsilon) that were run on any model, in the order of the file."""
        found = [
            (attack["name"], attack["norm"], attack["epsilon"])
            for result in self.attacked.values()
            for attack in result["attacks"]
        ]
        return list(dict.fromkeys(found))

    @cached_property
    def certified_epsilons(self) -> list[float]:
        """The radii that were certified for any model, ascending."""
        return sorted({item["epsilon"] for results in self.certified.values() for item in results})

    def attack_on(self, model: str, attack: tuple[str, str, float]) -> dict[str, Any] | None:
        """Return what an attack did to a model, or None if it was not run on it."""
        for item in self.attacked.get(model, {}).get("attacks", []):
            if (item["name"], item["norm"], item["epsilon"]) == attack:
                return dict(item)
        return None

    def certificate_of(self, model: str, epsilon: float) -> dict[str, Any] | None:
        """Return a model's certified accuracy at a radius, or None if it was not computed."""
        for item in self.certified.get(model, []):
            if item["epsilon"] == epsilon:
                return {**item, "accuracy": item["certified"]}
        return None


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def format_attack(name: str) -> str:
    """Return an attack's name as its paper writes it; a name that is not known stays as it is."""
    known = {
        "fgsm": "FGSM", "pgd": "PGD", "apgd": "APGD", "fab": "FAB", "square": "Square",
        "opt": "OPT", "sign_opt": "Sign-OPT", "szvr_g": "SZVR-G",
        "autoattack": "AutoAttack", "autoattack_reference": "AutoAttack",
    }  # fmt: skip
    head = name.partition("[")[0]  # "pgd[steps=100]" is told from another PGD by its settings
    return f"{known.get(head, head)}{name[len(head) :]}"


def is_autoattack(name: str) -> bool:
    """Whether an attack is AutoAttack."""
    return name.lower().startswith("autoattack")
