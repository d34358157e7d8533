"""The contents of a run folder, as far as its stages have run, and of the folder of a stand-alone attack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from robust_nas import architectures, records
from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import OPERATIONS
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, is_there, parse_toml, read_json, text_of
from robust_nas.core.text import visible
from robust_nas.records import Record
from robust_nas.runtime.run_folder import STAGE_FILES, RunFolder
from robust_nas.runtime.stages import METRICS, read_metrics
from robust_nas.runtime.states import load_state

if TYPE_CHECKING:
    import numpy as np

    from robust_nas.records import (
        CertificationRecord,
        DerivationRecord,
        EnsembleRecord,
        EnvironmentRecord,
        EvaluationRecord,
        ModelSettings,
        RecordedRows,
        RunSettings,
        SavedExamples,
        SearchRecord,
        SmoothingRecord,
        TrainingRecord,
    )
    from robust_nas.records.certification import Certified
    from robust_nas.records.evaluation import Attack, Attacked, Point, StepPoint, WorstCase
    from robust_nas.records.run import Settings
    from robust_nas.records.training import Trained

    Pixels = np.ndarray[Any, np.dtype[np.float64]]

R = TypeVar("R", bound=Record)

Threat = tuple[str, float]
"""A threat model's norm and radius."""


class Rated(Protocol):
    """An accuracy, clean, under attack or certified, with its 95 % interval, over `count` images."""

    @property
    def accuracy(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def count(self) -> int: ...


@dataclass(frozen=True)
class Examples:
    """The adversarial examples of one model.

    Args:
        about: the model, the attack and the predictions.
        originals: images [M, C, H, W].
        adversarial: the same, attacked.
    """

    about: SavedExamples
    originals: Pixels
    adversarial: Pixels


@dataclass(frozen=True)
class Measurements:
    """The common contents of both kinds of folder: the settings, the environment, the outcomes of attacks on models.

    Args:
        path: the folder.
        config_text: its settings, word for word.
        settings: the same, read.
        environment: the contents of environment.json, or None.
        evaluation: the contents of evaluation.json, or None.
        examples: for each model that has some, its adversarial examples.
    """

    path: Path
    config_text: str
    settings: Settings
    environment: EnvironmentRecord | None
    evaluation: EvaluationRecord | None
    examples: list[Examples]

    @property
    def seed(self) -> int:
        """The seed of all that was measured."""
        return self.settings.seed

    @property
    def data(self) -> str:
        """The data set's name."""
        return (self.evaluation and self.evaluation.data) or self.settings.data.name

    @property
    def split(self) -> str:
        """The name of the split that was attacked."""
        return self.evaluation.split if self.evaluation else "test"

    @property
    def num_images(self) -> int:
        """The number of images that were attacked."""
        return self.evaluation.num_images if self.evaluation else 0

    @cached_property
    def attacked(self) -> Mapping[str, Attacked]:
        """The entry of each model in evaluation.json, by name."""
        return self.evaluation.models if self.evaluation else {}

    @property
    def notes(self) -> list[str]:
        """The warnings about the images, and about the whole."""
        return list(self.evaluation.notes) if self.evaluation else []

    @cached_property
    def certified(self) -> Mapping[str, tuple[Certified, ...]]:
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
        found = [item.threat for result in self.attacked.values() for item in (*result.worst_cases, *result.attacks)]
        return list(dict.fromkeys(threat for threat in found if threat is not None))

    @cached_property
    def norms(self) -> list[str]:
        """The norms in which anything was measured by attacks."""
        found = [norm for norm, _ in self.threats]
        found += [point.norm for result in self.attacked.values() for point in result.curve]
        return list(dict.fromkeys(found))

    @cached_property
    def measured(self) -> list[tuple[str, str, float]]:
        """The attacks (name, norm, epsilon) that were run on any model, in the order of the file."""
        found = [
            (attack.name, attack.norm, attack.epsilon) for result in self.attacked.values() for attack in result.attacks
        ]
        return list(dict.fromkeys(found))

    @cached_property
    def certified_epsilons(self) -> list[float]:
        """The radii that were certified for any model, ascending."""
        return sorted({item.epsilon for results in self.certified.values() for item in results})

    @property
    def quoted_radius(self) -> float | None:
        """The certified radius to quote: that of the attacks where it was certified, and else the smallest."""
        radii, attacked = self.certified_epsilons, {epsilon for _, epsilon in self.threats}
        return next((radius for radius in radii if radius in attacked), radii[0] if radii else None)

    def attack_on(self, model: str, attack: tuple[str, str, float]) -> Attack | None:
        """Return an attack's outcome on a model, or None if it was not run on it."""
        ran = self.attacked[model].attacks if model in self.attacked else ()
        return next((item for item in ran if (item.name, item.norm, item.epsilon) == attack), None)

    def worst_case_of(self, model: str, threat: Threat) -> Attack | WorstCase | None:
        """Return a model's worst case over all attacks of one threat model, or None if it was not attacked there."""
        found = self.attacked[model].worst_cases if model in self.attacked else ()
        return next((item for item in found if item.threat == threat), None)

    def union_of(self, model: str) -> WorstCase | None:
        """Return a model's worst case over several threat models, or None if there is only one."""
        worst = self.attacked[model].worst_case if model in self.attacked else None
        return worst if worst is not None and worst.threat is None else None

    def certificate_of(self, model: str, epsilon: float) -> Certified | None:
        """Return a model's certified accuracy at a radius, or None if it was not computed."""
        return next((item for item in self.certified.get(model, ()) if item.epsilon == epsilon), None)

    def curve_of(self, model: str, norm: str) -> list[Point]:
        """Return a model's accuracies over epsilon in one norm, ascending; [] if there are none."""
        points = self.attacked[model].curve if model in self.attacked else ()
        return sorted((point for point in points if point.norm == norm), key=lambda point: point.epsilon)

    @cached_property
    def stepped(self) -> list[Threat]:
        """The threat models at which accuracy over the steps of an ascent was measured."""
        found = [(point.norm, point.epsilon) for result in self.attacked.values() for point in result.steps]
        return list(dict.fromkeys(found))

    def steps_of(self, model: str, threat: Threat) -> list[StepPoint]:
        """Return a model's accuracies over the steps of an ascent, ascending; [] if there are none."""
        points = self.attacked[model].steps if model in self.attacked else ()
        return sorted(
            (point for point in points if (point.norm, point.epsilon) == threat), key=lambda point: point.steps
        )

    def class_name(self, label: int) -> str:
        """Return a class's name, its number where the file names none."""
        names = (self.evaluation and self.evaluation.classes) or ()
        return names[label] if label < len(names) else str(label)


@dataclass(frozen=True)
class Contents(Measurements):
    """The files of a run folder that the report is made of; the record of a stage that has not run is None."""

    settings: RunSettings
    search: SearchRecord | None
    derivation: DerivationRecord | None
    training: TrainingRecord | None
    certification: CertificationRecord | None
    ensemble: EnsembleRecord | None
    recorded: RecordedRows | None
    metrics: list[Mapping[str, Any]]

    @classmethod
    def read(cls, run: RunFolder) -> Contents:
        """Read the folder.

        Raises:
            InputError: if one of its files is damaged.
        """

        def stage(name: str, kind: type[R]) -> R | None:
            return _read(run / STAGE_FILES[name], kind)

        config_text, settings = _read_settings(run / "config.toml", records.RunSettings)
        return cls(
            path=run.path,
            config_text=config_text,
            settings=settings,
            environment=_read(run / "environment.json", records.EnvironmentRecord),
            evaluation=stage("attack", records.EvaluationRecord),
            examples=_read_examples(run.path),
            search=stage("search", records.SearchRecord),
            derivation=stage("derive", records.DerivationRecord),
            training=stage("train", records.TrainingRecord),
            certification=stage("certify", records.CertificationRecord),
            ensemble=stage("ensemble", records.EnsembleRecord),
            recorded=stage("record", records.RecordedRows),
            metrics=_shown(read_metrics(run / METRICS)),
        )

    @property
    def notes(self) -> list[str]:
        """The warnings about the images, and about a limit that the search did not keep to."""
        resource = self.search and self.search.resource
        return [*super().notes, *([resource.note] if resource and resource.note else [])]

    @property
    def norm(self) -> str:
        """The threat's norm."""
        return self.settings.threat.norm

    @property
    def epsilon(self) -> float:
        """The threat's radius."""
        return self.settings.threat.epsilon

    @property
    def threat(self) -> Threat:
        """The threat model that the run is about."""
        return self.norm, self.epsilon

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that an edge can have; in a joined run, in any of its networks' spaces."""
        own = [space.get("operations") for space in (self.derivation and self.derivation.spaces) or ()]
        named = own or [self.settings.space.operations]
        return tuple(dict.fromkeys(name for names in named for name in (OPERATIONS if names is None else names)))

    @property
    def joined(self) -> list[str]:
        """The runs that the networks of a joined run come from; none in others."""
        origins = [model.from_ for model in self.trained.values() if model.from_ is not None]
        return list(dict.fromkeys(origin.partition("/")[0] for origin in origins))

    def parse(self, text: str) -> AnyArchitecture | None:
        """Read an architecture of the run; None for one of a kind that is none of ours."""
        return None if architectures.kind_of(text) is None else architectures.parse(text, self.operations)

    def short(self, text: str) -> str:
        """Return an architecture's digits form, or its string form where it has none or digits would not do."""
        architecture = self.parse(text)
        return text if architecture is None else architecture.short(self.operations)

    @cached_property
    def trained(self) -> Mapping[str, Trained]:
        """The entry of each network in train.json, by name."""
        return {model.name: model for model in self.training.models} if self.training else {}

    @cached_property
    def certified(self) -> Mapping[str, tuple[Certified, ...]]:
        """The entry of each model in certification.json, by name."""
        return self.certification.models if self.certification else {}

    @cached_property
    def smoothed(self) -> list[SmoothingRecord]:
        """The smoothed classifiers in certification.json, for each noise that `certify --method` was given."""
        found = [
            records.read_certificates(path, _read_shown) for path in self.path.glob("certify-*/certification.json")
        ]
        return sorted(
            (item for item in found if isinstance(item, records.SmoothingRecord)),
            key=lambda item: (item.sigma, item.num_samples, item.num_images),
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
            rule = (self.ensemble and self.ensemble.name) or ""
            return f"{ {'robboost': 'RobBoost'}.get(rule, rule) } ensemble".strip()
        return "Uniform average" if model == "uniform" else model

    def digits_of(self, model: str) -> str:
        """Return the digits form of a network's architecture, "" for an ensemble, and where there is none."""
        text = self.trained[model].architecture if model in self.trained else ""
        short = self.short(text) if text else ""
        return "" if short == text else short

    def is_combined(self, model: str) -> bool:
        """Whether a model is made of others: an average or an ensemble."""
        return model not in self.trained


@dataclass(frozen=True)
class AttackContents(Measurements):
    """The files of a folder that `robust-nas attack MODEL ...` made."""

    settings: ModelSettings

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
        config_text, settings = _read_settings(folder / "attack.toml", records.ModelSettings)
        return cls(
            path=folder,
            config_text=config_text,
            settings=settings,
            environment=_read(folder / "environment.json", records.EnvironmentRecord),
            evaluation=records.read(folder / STAGE_FILES["attack"], records.EvaluationRecord, reader=_read_shown),
            examples=_read_examples(folder),
        )


def _read_settings(path: Path, kind: type[R]) -> tuple[str, R]:
    text, advice = text_of(path), "mend it, or begin anew"
    return text, records.read(path, kind, advice, lambda path, advice: _shown(parse_toml(text, str(path), advice)))


def _read_examples(folder: Path) -> list[Examples]:
    # A run has examples of one model in examples.safetensors, or of each in examples-MODEL.safetensors.
    paths = sorted((folder / "checkpoints").glob("examples*.safetensors"))
    found = [_examples_in(path) for path in paths if not path.name.endswith(".state.safetensors")]
    return list({examples.about.model: examples for examples in found}.values())


def _examples_in(path: Path) -> Examples:
    import numpy as np

    state = load_state(path)
    images = [np.asarray(state.pop(key, ()), dtype=np.float64) for key in ("originals", "adversarial")]
    state |= {key: value.tolist() for key, value in state.items() if hasattr(value, "tolist")}
    about = records.read(path, records.SavedExamples, reader=lambda path, advice: _shown(state))
    if any(array.ndim != 4 or len(array) != len(about.labels) for array in images):
        raise InputError(damaged(path, "it must have an original and an adversarial image for each label"))
    return Examples(about, *images)


def _read(path: Path, kind: type[R]) -> R | None:
    return records.read(path, kind, reader=_read_shown) if is_there(path) else None


def _read_shown(path: Path, advice: str | None) -> Any:
    return _shown(read_json(path, advice))


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
