"""The answers of `robust-nas list` and `info`. Listing imports nothing slow."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas import architectures
from robust_nas.core import catalogue, config
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.files import is_there, read_toml
from robust_nas.core.pixels import format_pixels
from robust_nas.core.text import aligned, warnings
from robust_nas.records import checked, read, read_stage
from robust_nas.runtime.run_folder import is_run, unfinished_stages

if TYPE_CHECKING:
    from robust_nas.records.evaluation import Distances, EvaluationRecord

GROUPS = {
    "attacks": "attacks",
    "bounds": "bounds",
    "datasets": "datasets",
    "ensembles": "ensembles",
    "formats": "tables.formats",
    "proxies": "proxies",
    "samplers": "samplers",
    "searches": "searches",
    "trainings": "training",
}

CATALOGUES = {"recipes": "recipes", "spaces": "search_spaces", "tables": "tables"}

SECTIONS = {
    "train": "training._plan.Training",
    "derive": "derivation.Derivation",
    "evaluation": "evaluation.plan.EvaluationPlan",
    "smoothing": "smoothing.Smoothing",
}
"""The settings that are of no component: a recipe's sections, and those of `certify --method smoothing[...]`."""


def names(what: str) -> list[str]:
    """Return the names of all things of a kind: spaces, recipes, tables, or a group of components.

    Raises:
        InputError: for an unknown kind.
    """
    if what in CATALOGUES:
        return sorted(catalogue.files(CATALOGUES[what]))
    if what not in GROUPS:
        raise InputError(f"There is nothing called '{what}' to list. {suggest(what, [*GROUPS, *CATALOGUES])}")
    found: list[str] = import_module(f"robust_nas.{GROUPS[what]}").names()
    return found


def describe(thing: str) -> str:
    """Describe an architecture, a run folder or a component, as text.

    Raises:
        InputError: if `thing` is none of these.
    """
    if architectures.kind_of(thing) is not None:
        return architectures.parse(thing).describe()
    if is_run(thing):
        return describe_run(Path(thing))
    if (Path(thing) / "attack.toml").is_file():
        return describe_attacked(Path(thing))
    if any(Path(thing).glob("part-*.parquet")):
        from robust_nas import tables
        from robust_nas.tables import answers

        return answers.overview(tables.load(thing)).text()
    if thing in SECTIONS:
        module, _, name = SECTIONS[thing].rpartition(".")
        kind = "method of certify" if thing == "smoothing" else "section of a recipe"
        return _describe_component(kind, getattr(import_module(f"robust_nas.{module}"), name), thing)
    # A data set and a recipe, or a table and a recipe, may share a name: all are shown.
    found = []
    if thing in catalogue.files("tables"):
        from robust_nas.tables import cards

        found.append(cards.load(thing).describe())
    found += [
        _describe_component(kind, import_module(f"robust_nas.{package}").get(thing), thing)
        for kind, package in GROUPS.items()
        if thing in names(kind)
    ]
    for kind in ("search_spaces", "recipes"):
        if thing in catalogue.files(kind):
            found.append(catalogue.files(kind)[thing].read_text(encoding="utf-8").rstrip())
    if found:
        return "\n\n".join(found)
    known = [*SECTIONS, *(name for kind in [*GROUPS, *CATALOGUES] for name in names(kind))]
    raise InputError(f"'{thing}' is neither an architecture nor a run folder nor a component. {suggest(thing, known)}")


def _describe_component(kind: str, component: Any, name: str) -> str:
    about = [inspect.cleandoc(part.__doc__ or "") for part in (component, *config.parts(component))]
    lines = [f"{name} ({kind})", "", "\n\n".join(about), "", "Defaults:"]
    for field in dataclasses.fields(component):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines.append(f"  {field.name} = {'(required)' if default is dataclasses.MISSING else default}")
    return "\n".join(lines if dataclasses.fields(component) else lines[:3])


def describe_run(path: Path) -> str:
    """Return a run's results so far, a line per model."""
    from robust_nas.records.derivation import DerivationRecord
    from robust_nas.records.training import TrainingRecord

    missing = unfinished_stages(path)
    lines = [f"run {path}"]
    if is_there(path / "train.json"):
        lines += [f"{model.name}: {model.architecture}" for model in read(path / "train.json", TrainingRecord).models]
    elif is_there(path / "derive.json"):
        lines += [f"derived: {text}" for text in read(path / "derive.json", DerivationRecord).chosen]
    elif is_there(path / "search.json"):
        lines += _searched(read_stage(path / "search.json"))
    if (is_there(path / "train.json") or is_there(path / "derive.json")) and is_there(path / "search.json"):
        lines += resource_note(read_stage(path / "search.json"))
    if is_there(path / "evaluation.json"):
        lines += ["", *_results(path)]
        lines += warnings(_evaluation(path).notes)
    if missing:
        lines.append(f"not done yet: {', '.join(missing)} (robust-nas run --resume {path})")
    if (path / "report.html").is_file():
        lines.append(f"report: {path / 'report.html'}")
    return "\n".join(lines)


def _searched(found: dict[str, Any]) -> list[str]:
    """Describe a search's probabilities, before anything is derived from them."""
    from robust_nas import spaces
    from robust_nas.searches import SearchResult, last_row

    space, measured = spaces.described({"kind": "cell", **found["space"]}), found.get("measured")
    result = SearchResult(space, found["probabilities"], None, found, measured)
    kind = "most probable" if measured is None else "best of the trials"
    lines = ["all architectures are equally probable"] if result.is_undecided else [f"{kind}: {result.best}"]
    if found["trajectory"]:
        end = last_row(found)
        accuracies = ", ".join(f"{kind} {value:.1%}" for kind, value in end["validation"].items())
        lines.append(f"supernet on validation images: {accuracies}; entropy of the mixture {end['entropy']:.2f} nats")
    for collapse in found.get("collapses", []):
        lines.append(f"collapsed in epoch {collapse['epoch']}: {collapse['reason']}; back to {collapse['back_to']}")
    return [*lines, *resource_note(found)]


def resource_note(found: dict[str, Any]) -> list[str]:
    """The note in search.json on a limit that was not kept to, as no or one line."""
    note = (found.get("resource") or {}).get("note")
    return warnings([note]) if note else []


def describe_attacked(path: Path) -> str:
    """Describe the models that were attacked in a folder of their own, a line per model."""
    from robust_nas.records.run import AttackSettings

    settings = checked(path / "attack.toml", AttackSettings, "begin anew", read_toml)
    lines = [f"attacked models {path}: {', '.join(settings['models'])}"]
    if not (path / "report.html").is_file():
        lines.append("not finished: repeat the command 'robust-nas attack ...' that began it")
    if is_there(path / "evaluation.json"):
        lines += ["", *_results(path)]
        for model, found in _evaluation(path).models.items():
            lines += warnings([f"{model}: {sentence}" for sentence in found.notes])
            lines += warnings(
                [
                    f"{model}: accuracies at {check.norm} {format_pixels(check.epsilon or 0.0)} may be too high: "
                    f"this does not hold: {check.check} ({check.detail})"
                    for check in found.masking
                    if not check.passed
                ]
            )
            lines += [_nearest(model, item) for item in found.distortions]
    if (path / "report.html").is_file():
        lines.append(f"report: {path / 'report.html'}")
    return "\n".join(lines)


def describe_certified(path: Path) -> str:
    """Describe the certificates of another plan than the recipe's, a line per model and radius."""
    found = read_stage(path / "certification.json")
    if found["method"] == "smoothing":
        return "\n".join(_smoothed(found, path))
    lines = [
        f"certified by {found['method']} bounds, {found['num_images']} test images: {path / 'certificates.parquet'}"
    ]
    for model, results in found["models"].items():
        for item in results:
            proved = ", ".join(f"{count} by {kind}" for kind, count in item["proved_by"].items())
            lines.append(
                f"{model}: {100 * item['certified']:.1f} % at {format_pixels(item['epsilon'])} "
                f"[{100 * item['low']:.1f}, {100 * item['high']:.1f}] in {item['seconds']:.0f} s"
                + (f" ({proved})" if proved else "")
            )
    return "\n".join(lines)


def _smoothed(found: dict[str, Any], path: Path) -> list[str]:
    """Describe the certificates of smoothed classifiers, a line per model and radius."""
    lines = [
        f"smoothed classifiers (sigma {format_pixels(found['sigma'])}, {found['num_samples']} samples), certified in "
        f"{found['norm']} up to {found['largest_radius']:.3g}, {found['num_images']} test images: "
        f"{path / 'certificates.parquet'}"
    ]
    for model, results in found["models"].items():
        first = results[0]
        lines.append(
            f"{model}, smoothed: {100 * first['correct']:.1f} % right, {100 * first['abstained']:.1f} % abstained, "
            f"average radius {first['average_radius']:.3f}, in {first['seconds']:.0f} s"
        )
        lines += [
            f"{model}, smoothed: {100 * item['certified']:.1f} % at {format_pixels(item['epsilon'])} "
            f"[{100 * item['low']:.1f}, {100 * item['high']:.1f}]"
            for item in results
        ]
    return lines


def _nearest(model: str, item: Distances) -> str:
    parts = ", ".join(
        f"{100 * float(share):g} % {'-' if value is None else f'{value:.4g}'}"
        for share, value in item.quantiles.items()
    )
    return f"{model}: nearest adversarial examples by {item.attack}, {item.norm} quantiles: {parts}"


def _evaluation(path: Path) -> EvaluationRecord:
    from robust_nas.records.evaluation import EvaluationRecord

    return read(path / "evaluation.json", EvaluationRecord)


def _results(path: Path) -> list[str]:
    """Return the table of accuracies in percent; a dash where something was not measured."""
    from robust_nas.records.certification import CertificationRecord

    evaluation, certified_file = _evaluation(path), path / "certification.json"
    certification = read(certified_file, CertificationRecord) if is_there(certified_file) else None
    rows: dict[str, dict[str, float]] = {}
    for model, found in evaluation.models.items():
        row = rows[model] = {"clean": found.clean.accuracy}
        # With one norm, which every table of a run has, its name would only widen the columns.
        several = len({attack.norm for attack in found.attacks}) > 1
        for attack in found.attacks:
            norm = f"{attack.norm}:" if several else ""
            row[f"{attack.name}@{norm}{format_pixels(attack.epsilon)}"] = attack.accuracy
        if len(found.threats) > 1:
            for threat in found.threats:
                row[f"worst@{threat.norm}:{format_pixels(threat.epsilon)}"] = threat.accuracy
            if found.average is not None:
                row["average"] = found.average
            row["union"] = found.worst_case.accuracy
        else:
            row["worst case"] = found.worst_case.accuracy
        for certificate in certification.models.get(model, ()) if certification else ():
            row[f"certified@{certificate.epsilon:g}"] = certificate.certified
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns.sort(key=lambda column: column.startswith("certified"))
    heads = ["model", *columns]
    body = [
        [model, *(f"{100 * row[column]:.1f}" if column in row else "-" for column in columns)]
        for model, row in rows.items()
    ]
    counted = f"% of {evaluation.num_images} {evaluation.split} images"
    if certification and certification.models:
        counted += f", certified: of {certification.num_images}"
    return [*aligned([heads, *body]), counted]
