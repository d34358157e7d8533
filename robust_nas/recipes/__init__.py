"""A recipe: the whole configuration of a run, from a TOML file and overrides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from robust_nas import datasets, intake, spaces
from robust_nas.bounds import Bound
from robust_nas.certification.plan import CertificationPlan
from robust_nas.core import catalogue, config
from robust_nas.core.catalogue import expanded
from robust_nas.core.checks import check_at_least, check_path, check_type
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import named
from robust_nas.datasets import DataSource
from robust_nas.derivation import Derivation
from robust_nas.ensembles import EnsembleRule
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.evaluation.plan import EvaluationPlan
from robust_nas.runtime.distributed import PATIENCE
from robust_nas.runtime.run_folder import is_run
from robust_nas.searches import Search
from robust_nas.searches.elastic import Elastic
from robust_nas.spaces import MixedSpace, Space, mixed
from robust_nas.threat import Pixels, ThreatModel
from robust_nas.training import Training

VERSION = 2
"""The configuration's form; a change that older files do not fit raises it."""


LARGEST_WORKERS = 1024
"""The number of processes that a run may fork on one machine."""


@dataclass(frozen=True, kw_only=True)
class EnsemblePlan:
    """The rule that joins the trained models, and its bounds.

    Args:
        rule: gives the members' weights, from their bounds on the validation images.
        epsilon: the radius of these bounds, in pixel units; the smallest certified one, if not given.
        bound: the kind of these bounds; that of the certification, if not given. Linear ones are joined before they are
            minimised over the ball; this is RobBoost's gain.
        num_images: validation images that are bounded, the first ones; all, if not given.
    """

    rule: EnsembleRule = field(default_factory=RobBoost)
    epsilon: Pixels | None = None
    bound: Bound | None = None
    num_images: int | None = None

    def __post_init__(self) -> None:
        if self.num_images is not None:
            check_at_least("ensemble.num_images", self.num_images, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run.

    Args:
        version: the version of the configuration's format.
        name: the run's name.
        seed: the seed of all random draws in the run; the data set's splits do not depend on it.
        device: "auto", "cpu" or "cuda".
        threads: threads per process on the CPU; torch's choice if not given. Small networks are fastest with one.
        workers: forked processes that share out the chunks of an evaluation on the CPU; with
            `threads = 1`, results do not depend on it. Without effect where there is an accelerator.
        patience: seconds that one of several processes waits for the others before it takes them for lost and ends.
        save_steps: optimiser steps of a search or a training after which its state is saved, beside that after every
            epoch; 0 for epochs alone. Whoever stops a run by Ctrl-C or SIGTERM loses no step with any.
    """

    name: str
    data: DataSource
    threat: ThreatModel
    space: Space
    search: Search
    version: int = VERSION
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    workers: int = 1
    patience: float = PATIENCE
    save_steps: int = 0
    derive: Derivation = field(default_factory=Derivation)
    train: Training = field(default_factory=Training)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    certification: CertificationPlan = field(default_factory=CertificationPlan)
    ensemble: EnsemblePlan = field(default_factory=EnsemblePlan)

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not self.name or set(self.name) & set("/\\") or self.name.startswith("."):
            raise InputError(f"name must be usable as a part of a folder's name, but got '{self.name}'.")
        self.search.check(self.space)
        if self.search.needs_supernet:
            self.derive.check(self.space)
        if self.workers > LARGEST_WORKERS:
            raise InputError(f"workers must be at most {LARGEST_WORKERS}, but got {self.workers}.")
        check_at_least("save_steps", self.save_steps, 0)
        if self.train.boosting and self.derive.count == 1:
            raise InputError(
                "train.boosting trains every network after the first beside those before it, but derive.count is 1."
            )
        radii = {
            "evaluation.curve_epsilons": self.evaluation.curve_epsilons,
            "certification.epsilons": self.certification.epsilons,
            "ensemble.epsilon": () if self.ensemble.epsilon is None else (self.ensemble.epsilon,),
        }
        for key, epsilons in radii.items():
            for epsilon in epsilons:
                try:
                    self.threat.with_epsilon(epsilon)
                except InputError as error:
                    raise InputError(f"{key}: {error}") from None

    @property
    def ensemble_threat(self) -> ThreatModel:
        """The threat model at which the ensemble's weights are fitted."""
        smallest = min(self.certification.epsilons)
        return self.threat.with_epsilon(smallest if self.ensemble.epsilon is None else self.ensemble.epsilon)

    def to_dict(self) -> dict[str, Any]:
        """Return the fully resolved configuration."""
        return config.to_dict(self)


def names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(catalogue.files("recipes"))


def load(name: str, overrides: Sequence[str] = (), *, data_root: Path | None = None) -> Recipe:
    """Return a recipe by name, from a TOML file, or for a folder of class folders or tar shards.

    Args:
        name: a recipe's name, a path to a .toml file, or a folder with images (the recipe `folder`).
        overrides: `key=value` assignments.
        data_root: the folder of the data set's files; the same as overriding `data.root`.

    Raises:
        InputError: for an unknown recipe or a mistake in it.
    """
    return _loaded(name, overrides, data_root)


def _loaded(
    name: str, overrides: Sequence[str], data_root: Path | None, keys: Mapping[str, Any] | None = None
) -> Recipe:
    """Return a recipe as `load` does, with some keys' values in place of its own."""
    check_path("A recipe's name", name)
    for override in overrides:
        check_type("An override", override, str, "written as key=value")
    path = Path(name)
    if name in names():
        table = config.read_toml(catalogue.files("recipes")[name])
    elif path.suffix == ".toml":
        table = config.read_toml(path)
    elif is_run(path):
        raise InputError(f"{name} is a run folder, not a recipe; to go on with it, give it to --resume or to a stage.")
    elif path.is_dir():
        table = config.read_toml(catalogue.files("recipes")["folder"])
        config.set_key(table, "data", {**table["data"], **datasets.section(str(path.resolve()))})
        table["name"] = path.resolve().name
    else:
        _check_folder(name)
        raise InputError(
            f"There is no recipe '{name}'. {suggest(name, names())} A path to a .toml file or to a folder of class "
            "folders works too."
        )
    for key, value in (keys or {}).items():
        config.set_key(table, key, value)
    if data_root is not None:
        config.set_key(table, "data.root", str(expanded(data_root).resolve()))
    return from_table(config.override({"name": path.stem, **table}, overrides), name)


TRIAL_SHARE = 10
"""Into how many trainings of trials the epochs of a recipe's training go, where the search of a space gives none."""


def _trial_of(training: Training) -> dict[str, Any]:
    """Return a recipe's training as that of a trial, which has one epoch of every `TRIAL_SHARE`, or one."""
    epochs = max(1, training.epochs // TRIAL_SHARE)
    share = epochs / training.epochs
    knots = [{"epoch": knot.epoch * share, "learning_rate": knot.learning_rate} for knot in training.knots]
    whole = {key: value for key, value in config.to_dict(training).items() if key not in ("phases", "start_from")}
    return {**whole, "epochs": epochs, "knots": knots, "boosting": False}


def _search_named(override: str) -> str | None:
    """Return the name of the search in an override, if it gives one."""
    key, _, value = override.partition("=")
    return value.strip() if key in ("search", "search.name") else None


RELAXATIONS = {"dirichlet": "dirichlet", "softmax": "darts", "gumbel": "gumbel"}
"""The searches, by what relaxes the choice of an operation."""


def for_space(
    space: str,
    overrides: Sequence[str] = (),
    *,
    data: str,
    threat: str | None = None,
    relaxation: str | None = None,
    progressive: bool = False,
    data_root: Path | None = None,
) -> Recipe:
    """Return the recipe of a search of a space: the data set's own, with what is given in its place.

    A space without a supernet is searched by trials ("sampled"), each with the data set's recipe's training, in a tenth
    of its epochs. `search.name=elastic` takes an elastic supernet, and what it has in common with the recipe's search.

    Args:
        space: a search space's name, or a path to its declaration.
        data: a data set that has a recipe, or a folder of class folders.
        threat: such as "linf:8/255"; the data set's recipe's, if not given.
        relaxation: one of `RELAXATIONS`; dirichlet, if not given.
        progressive: whether operations are left out and partial channels widened at half-time, in DrNAS's proportions
            (arXiv:2006.10355, section 4: 4 then 2, the weights alone learn in the first fifth of a stage).

    Raises:
        InputError: for an unknown name, what is for supernets where there is none, or what `load` raises.
    """
    declared = spaces.load(space)
    if not isinstance(declared, MixedSpace) and (relaxation is not None or progressive):
        mixed(declared, RELAXATIONS.get(relaxation or "dirichlet", str(relaxation)))
    relaxation = relaxation or "dirichlet"
    if relaxation not in RELAXATIONS:
        raise InputError(f"There is no relaxation '{relaxation}'. {suggest(relaxation, RELAXATIONS)}")
    _check_data(data)
    # The recipe's sizes are of its own kind of space.
    own = load(data, data_root=data_root)
    given = [f"space.name={space}" if type(declared) is type(own.space) else f"space={space}"]
    keys: dict[str, Any] = {}
    elastic = "elastic" in [value for value in map(_search_named, overrides) if value is not None][-1:]
    if elastic:
        overrides = [override for override in overrides if override.partition("=")[0] != "search"]
        taken = {own_field.name for own_field in fields(Elastic)}
        shared = {key: value for key, value in config.to_dict(own.search).items() if key in taken}
        keys["search"] = {**shared, "name": "elastic"}
    elif isinstance(declared, MixedSpace):
        given.append(f"search.name={RELAXATIONS[relaxation]}")
    else:
        searched = any(_search_named(override) for override in overrides)
        keys["search"] = {} if searched else {"name": "sampled", "training": _trial_of(own.train)}
    if threat is not None:
        keys["threat"] = config.to_dict(ThreatModel.parse(threat))
    if progressive and isinstance(declared, MixedSpace) and not elastic:
        count = len(declared.operations)
        given += [f"search.kept_operations=[{count}, {(count + 1) // 2}]", "search.partial_channels=[4, 2]"]
        given += ["search.alpha_frozen=0.2"]
    return _loaded(data, [*given, *overrides], data_root, keys)


def for_model(
    model: str,
    overrides: Sequence[str] = (),
    *,
    data: str,
    threat: str | None = None,
    normalise: str | None = None,
    data_root: Path | None = None,
) -> Recipe:
    """Return the recipe of a run with one model: the data set's, with this model in place of a search.

    Args:
        model: the name of one's own, package.module:attribute, path/to/file.py:attribute or torchvision:NAME. Weights
            of a file, behind an @, are those that the training starts from. Or an architecture whose string says all of
            its network, such as wrn-28-10.
        data: a data set that has a recipe, or a folder of class folders.
        threat: such as "linf:8/255"; the data set's recipe's, if not given.
        normalise: the pixels that the model expects, if it does not normalise them itself.

    Raises:
        InputError: for a name that is none, a model that cannot be made, or what `load` raises.
    """
    _check_data(data)
    space = spaces.alone(model)
    if space is None:
        name, weights = intake.own_model(model)
        space, title = intake.own_space(name, normalise), intake.short_name(name)
    elif normalise is not None:
        raise InputError(f"{model} normalises the images itself; leave normalise={normalise} out.")
    else:
        name, weights, title = model, None, space.name
    keys: dict[str, Any] = {
        "name": title,
        "space": named(spaces.describe(space)),
        "search": {"name": "given", "architecture": name},
        "derive": {"count": 1},
    }
    if threat is not None:
        keys["threat"] = config.to_dict(ThreatModel.parse(threat))
    if weights is not None:
        keys["train.start_from"] = str(weights)
    return _loaded(data, overrides, data_root, keys)


def from_table(table: dict[str, Any], source: str) -> Recipe:
    """Return the recipe that a table describes.

    Raises:
        InputError: if it is of another version, or has a mistake.
    """
    version = table.get("version", VERSION)
    if version != VERSION:
        raise InputError(
            f"The configuration in {source} has version {version}, but this robust-nas reads version {VERSION}; "
            + ("upgrade robust-nas." if isinstance(version, int) and version > VERSION else "start a new run with it.")
        )
    return config.build(Recipe, table)


def _check_data(data: str) -> None:
    """Raise InputError unless a data set has a recipe, or is a folder."""
    if data not in names() and not Path(data).is_dir():
        _check_folder(data)
        raise InputError(
            f"There is no recipe for the data set '{data}', which says how to train and attack. "
            f"{suggest(data, names())} A folder of class folders works too."
        )


def _check_folder(data: str) -> None:
    """Raise InputError for a path, which names a folder that is not there."""
    if os.sep in data:
        raise InputError(
            f"There is no data set or folder '{data}'. Give the path of a folder of class folders, or one of "
            f"{', '.join(names())}."
        )
