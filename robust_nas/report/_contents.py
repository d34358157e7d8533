"""The contents of a run folder, as far as its stages have run, and of the folder of a stand-alone attack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_nas import architectures, records
from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import OPERATIONS
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there, parse_toml, text_of
from robust_nas.core.text import visible
from robust_nas.records import Record, checked, read_stage
from robust_nas.runtime.run_folder import METRICS, STAGE_FILES, RunDir, load_state, read_metrics

Threat = tuple[str, float]
"""A threat model's norm and radius."""


@dataclass(frozen=True)
class Measurements:
    """The common contents of both kinds of folder: the settings, the environment, the outcomes of attacks on models.

    Args:
        path: the folder.
        config_text: its settings, word for word.
        config: the same, read.
        environment: the contents of environment.json.
        evaluation: the contents of evaluation.json, or None.
        examples: for each model that has some, its adversarial examples.
    """

    path: Path
    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    examples: list[Mapping[str, Any]]

    @property
    def seed(self) -> int:
        """The seed of all that was measured."""
        return int(self.config["seed"])

    @property
    def data(self) -> str:
        """The data set's name."""
        return str((self.evaluation or {}).get("data") or self.config["data"]["name"])

    @cached_property
    def attacked(self) -> dict[str, dict[str, Any]]:
        """The entry of each model in evaluation.json, by name."""
        return dict((self.evaluation or {"models": {}})["models"])

    @property
    def notes(self) -> list[str]:
        """The warnings about the images, and about the whole."""
        return [str(note) for note in (self.evaluation or {}).get("notes") or []]

    @cached_property
    def certified(self) -> dict[str, list[dict[str, Any]]]:
        """The entry of each model in certification.json, by name."""
        return {}

    @cached_property
    def models(self) -> list[str]:
        """The names of all models."""
        return list(self.attacked)

    def title_of(self, model: str) -> str:
        """Return a model's title on the page."""
        return model

    def digits_of(self, model: str) -> str:
        """Return the digits form of a network's architecture, "" where there is none."""
        return ""

    def is_combined(self, model: str) -> bool:
        """Whether a model is made of others: an average or an ensemble."""
        return False

    @property
    def threat(self) -> Threat | None:
        """The threat model of a run; of other folders, None."""
        return None

    @cached_property
    def threats(self) -> list[Threat]:
        """The threat models that any model was attacked at, in the order of the file."""
        items = [
            item
            for result in self.attacked.values()
            for item in (*result.get("threats", []), *result["attacks"], result["worst_case"])
        ]
        return list(dict.fromkeys((item["norm"], item["epsilon"]) for item in items if "norm" in item))

    @cached_property
    def norms(self) -> list[str]:
        """The norms in which anything was measured by attacks."""
        found = [norm for norm, _ in self.threats]
        for result in self.attacked.values():
            found += [point["norm"] for point in result.get("curve", []) if "norm" in point]
        return list(dict.fromkeys(found))

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

    @property
    def quoted_radius(self) -> float | None:
        """The certified radius to quote: that of the attacks where it was certified, and else the smallest."""
        radii, attacked = self.certified_epsilons, {epsilon for _, epsilon in self.threats}
        return next((radius for radius in radii if radius in attacked), radii[0] if radii else None)

    def attack_on(self, model: str, attack: tuple[str, str, float]) -> dict[str, Any] | None:
        """Return an attack's outcome on a model, or None if it was not run on it."""
        for item in self.attacked.get(model, {}).get("attacks", []):
            if (item["name"], item["norm"], item["epsilon"]) == attack:
                return dict(item)
        return None

    def worst_case_of(self, model: str, threat: Threat) -> dict[str, Any] | None:
        """Return a model's worst case over all attacks of one threat model, or None if it was not attacked there."""
        result = self.attacked.get(model)
        for item in (*result.get("threats", []), result["worst_case"]) if result else ():
            if (item.get("norm"), item.get("epsilon")) == threat:
                return dict(item)
        return None

    def union_of(self, model: str) -> dict[str, Any] | None:
        """Return a model's worst case over several threat models, or None if there is only one."""
        result = self.attacked.get(model)
        return result["worst_case"] if result and "norm" not in result["worst_case"] else None

    def certificate_of(self, model: str, epsilon: float) -> dict[str, Any] | None:
        """Return a model's certified accuracy at a radius, or None if it was not computed."""
        for item in self.certified.get(model, []):
            if item["epsilon"] == epsilon:
                return {**item, "accuracy": item["certified"]}
        return None

    def curve_of(self, model: str, norm: str) -> list[dict[str, Any]]:
        """Return a model's accuracies over epsilon in one norm, ascending; [] if there are none."""
        # A file that names no norm is of one threat model.
        points, only = self.attacked.get(model, {}).get("curve", []), (self.threat or self.threats[0])[0]
        own = [point for point in points if point.get("norm", only) == norm]
        return sorted(own, key=lambda point: float(point["epsilon"]))

    def class_name(self, label: int) -> str:
        """Return a class's name, its number where the file names none."""
        names = (self.evaluation or {}).get("classes") or []
        return str(names[label]) if label < len(names) else str(label)


@dataclass(frozen=True)
class Contents(Measurements):
    """The files of a run folder that the report is made of; a stage that has not run is None."""

    stages: Mapping[str, Any]
    metrics: list[dict[str, Any]]

    @classmethod
    def read(cls, run: RunDir) -> Contents:
        """Read the folder.

        Raises:
            InputError: if one of its files is damaged.
        """
        config_text, config = _read_settings(run / "config.toml", records.RunSettings)
        stages = {stage: _read(run / name) for stage, name in STAGE_FILES.items()}
        return cls(
            path=run.path,
            config_text=config_text,
            config=config,
            environment=_read(run / "environment.json") or {},
            evaluation=stages["attack"],
            examples=_read_examples(run.path),
            stages=stages,
            metrics=_shown(read_metrics(run / METRICS)),
        )

    @property
    def notes(self) -> list[str]:
        """The warnings about the images, and about a limit that the search did not keep to."""
        note = ((self.stages["search"] or {}).get("resource") or {}).get("note")
        return [*super().notes, *([str(note)] if note else [])]

    @property
    def norm(self) -> str:
        """The threat's norm."""
        return str(self.config["threat"]["norm"])

    @property
    def epsilon(self) -> float:
        """The threat's radius."""
        return float(self.config["threat"]["epsilon"])

    @property
    def threat(self) -> Threat:
        """The threat model that the run is about."""
        return self.norm, self.epsilon

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that an edge can have; in a joined run, in any of its networks' spaces."""
        spaces = (self.stages["derive"] or {}).get("spaces", [self.config["space"]])
        return tuple(dict.fromkeys(name for space in spaces for name in space.get("operations", OPERATIONS)))

    @property
    def joined(self) -> list[str]:
        """The runs that the networks of a joined run come from; none in others."""
        return list(dict.fromkeys(m["from"].partition("/")[0] for m in self.trained.values() if "from" in m))

    def parse(self, text: str) -> AnyArchitecture | None:
        """Read an architecture of the run; None for one of a kind that is none of ours."""
        return None if architectures.kind_of(text) is None else architectures.parse(text, self.operations)

    def short(self, text: str) -> str:
        """Return an architecture's digits form, or its string form where it has none or digits would not do."""
        architecture = self.parse(text)
        return text if architecture is None else architecture.short(self.operations)

    @cached_property
    def trained(self) -> dict[str, dict[str, Any]]:
        """The entry of each network in train.json, by name."""
        return {model["name"]: model for model in (self.stages["train"] or {"models": []})["models"]}

    @cached_property
    def certified(self) -> dict[str, list[dict[str, Any]]]:
        """The entry of each model in certification.json, by name."""
        return dict((self.stages["certify"] or {"models": {}})["models"])

    @cached_property
    def smoothed(self) -> list[dict[str, Any]]:
        """The smoothed classifiers in certification.json, for each noise that `certify --method` was given."""
        found = [_read(path) for path in self.path.glob("certify-*/certification.json")]
        return sorted(
            (item for item in found if item["method"] == "smoothing"),
            key=lambda item: (item["sigma"], item["num_samples"], item["num_images"]),
        )

    @cached_property
    def models(self) -> list[str]:
        """The names of all models that were trained or measured: the networks, the uniform average, the ensemble."""
        last = {"uniform": 1, "ensemble": 2}
        names = dict.fromkeys([*self.trained, *self.attacked, *self.certified])
        return sorted(names, key=lambda name: last.get(name, 0))

    def title_of(self, model: str) -> str:
        """Return a model's title on the page."""
        if model == "ensemble":
            rule = str((self.stages["ensemble"] or {}).get("name", ""))
            return f"{ {'robboost': 'RobBoost'}.get(rule, rule) } ensemble".strip()
        return "Uniform average" if model == "uniform" else model

    def digits_of(self, model: str) -> str:
        """Return the digits form of a network's architecture, "" for an ensemble, and where there is none."""
        text = self.trained[model]["architecture"] if model in self.trained else ""
        short = self.short(text) if text else ""
        return "" if short == text else short

    def is_combined(self, model: str) -> bool:
        """Whether a model is made of others: an average or an ensemble."""
        return model not in self.trained


@dataclass(frozen=True)
class AttackContents(Measurements):
    """The files of a folder that `robust-nas attack MODEL ...` made."""

    @classmethod
    def read(cls, folder: Path) -> AttackContents:
        """Read the folder.

        Raises:
            InputError: if it is not such a folder, or one of its files is missing or damaged.
        """
        if not (folder / "attack.toml").is_file():
            raise InputError(
                f"{folder} has no attack.toml, so it is not the folder of an attack; give one made by "
                "'robust-nas attack MODEL'."
            )
        config_text, config = _read_settings(folder / "attack.toml", records.AttackSettings)
        return cls(
            path=folder,
            config_text=config_text,
            config=config,
            environment=_read(folder / "environment.json") or {},
            evaluation=_shown(read_stage(folder / STAGE_FILES["attack"])),
            examples=_read_examples(folder),
        )


def _read_settings(path: Path, kind: type[Record]) -> tuple[str, dict[str, Any]]:
    text, advice = text_of(path), "mend it, or begin anew"
    return text, _shown(checked(path, kind, advice, lambda path, advice: parse_toml(text, str(path), advice)))


def _read_examples(folder: Path) -> list[Mapping[str, Any]]:
    # A run has examples of one model in examples.safetensors, or of each in examples-MODEL.safetensors.
    paths = sorted((folder / "checkpoints").glob("examples*.safetensors"))
    found = [_shown(load_state(path)) for path in paths if not path.name.endswith(".state.safetensors")]
    return list({str(state.get("model")): state for state in found}.values())


def _read(path: Path) -> Any:
    return _shown(read_stage(path)) if is_there(path) else None


def _shown(value: Any) -> Any:
    """Return a file's contents with all names in it as a page or a figure can show them."""
    if isinstance(value, str):
        return visible(value, keep="")
    if isinstance(value, dict):
        return {visible(key, keep="") if isinstance(key, str) else key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value


def format_attack(name: str) -> str:
    """Return an attack's name as its paper writes it; a name that is not known stays as it is."""
    known = {
        "fgsm": "FGSM", "pgd": "PGD", "apgd": "APGD", "fab": "FAB", "square": "Square",
        "opt": "OPT", "sign_opt": "Sign-OPT", "szvr_g": "SZVR-G",
        "autoattack": "AutoAttack", "autoattack_reference": "AutoAttack",
    }  # fmt: skip
    # "pgd[steps=100]" is told from another PGD by its settings, "pgd over epsilon" by its purpose.
    head = re.split(r"[\[ ]", name)[0]
    return f"{known.get(head, head)}{name[len(head) :]}"


def is_autoattack(name: str) -> bool:
    """Whether an attack is AutoAttack."""
    return name.lower().startswith("autoattack")
