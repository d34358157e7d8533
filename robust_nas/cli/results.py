"""The words for the results in a folder: of a run, of attacked models, of certificates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas import records
from robust_nas.cli import slow
from robust_nas.core.files import is_there, read_toml
from robust_nas.core.pixels import format_pixels
from robust_nas.core.text import aligned, warnings
from robust_nas.records import plain, read, read_certificates, read_stage
from robust_nas.runtime.run_folder import STAGE_FILES, resume_words, unfinished_stages

if TYPE_CHECKING:
    from robust_nas.records import EvaluationRecord, SearchRecord, SmoothingRecord
    from robust_nas.records.evaluation import Distances
    from robust_nas.spaces import Space


def of_run(path: Path, space: Space | None = None) -> str:
    """Return a run's results so far, a line per model.

    Args:
        path: its folder.
        space: its search space, where a job has it; else it is the one that search.json describes, whose code may not
            run.
    """
    missing = unfinished_stages(path)
    lines = [f"run {path}"]
    if is_there(path / "train.json"):
        lines += [
            f"{model.name}: {model.architecture}" for model in read(path / "train.json", records.TrainingRecord).models
        ]
    elif is_there(path / "derive.json"):
        lines += [f"derived: {text}" for text in read(path / "derive.json", records.DerivationRecord).chosen]
    elif is_there(path / "search.json"):
        lines += _searched(read(path / "search.json", records.SearchRecord), space)
    if (is_there(path / "train.json") or is_there(path / "derive.json")) and is_there(path / "search.json"):
        lines += _resource_note(read(path / "search.json", records.SearchRecord))
    if is_there(path / "evaluation.json"):
        evaluation = read(path / "evaluation.json", records.EvaluationRecord)
        lines += ["", *_results(path, evaluation), *warnings(evaluation.notes)]
    if missing:
        lines.append(f"not done yet: {', '.join(missing)} (robust-nas {resume_words(path)})")
    if (path / "report.html").is_file():
        lines.append(f"report: {path / 'report.html'}")
    return "\n".join(lines)


def facts_of_run(path: Path) -> dict[str, Any]:
    """Return a run's results so far as data: the records of its stages, by name."""
    found = {stage: read_stage(path / file) for stage, file in STAGE_FILES.items() if is_there(path / file)}
    report = path / "report.html"
    return {
        "run": path,
        "missing": unfinished_stages(path),
        **{stage: plain(record) for stage, record in found.items() if stage != "report"},
        **({"report": report} if report.is_file() else {}),
    }


def facts_of_attacked(path: Path) -> dict[str, Any]:
    """Return what attacks found on models, in a folder of their own, as data."""
    settings = read(path / "attack.toml", records.ModelSettings, "begin anew", read_toml)
    evaluation = path / "evaluation.json"
    report = path / "report.html"
    return {
        "folder": path,
        "attacked": list(settings.models),
        **(plain(read(evaluation, records.EvaluationRecord)) if is_there(evaluation) else {}),
        **({"report": report} if report.is_file() else {}),
    }


def facts_of_certificates(path: Path) -> dict[str, Any]:
    """Return the certificates of a folder as data."""
    return {"folder": path, **plain(read_certificates(path / "certification.json"))}


def _searched(found: SearchRecord, space: Space | None) -> list[str]:
    """Describe a search's probabilities, before anything is derived from them."""
    space, probabilities = space or slow.spaces.described(found.space), [list(row) for row in found.probabilities]
    result = slow.searches.SearchResult(space, probabilities, None, {}, found.measured)
    kind = "most probable" if found.measured is None else "best of the trials"
    lines = ["all architectures are equally probable"] if result.is_undecided else [f"{kind}: {result.best}"]
    if found.trajectory:
        accuracies = ", ".join(f"{kind} {value:.1%}" for kind, value in found.end.validation.items())
        lines.append(
            f"supernet on validation images: {accuracies}; entropy of the mixture {found.end.entropy:.2f} nats"
        )
    if found.elastic is not None:
        for role in ("largest", "smallest"):
            measured = getattr(found.elastic.epochs[-1], role)
            accuracies = ", ".join(f"{kind} {value:.1%}" for kind, value in measured.items())
            lines.append(f"{role} network, {getattr(found.elastic, role)}, with the shared weights: {accuracies}")
    for collapse in found.collapses:
        lines.append(f"collapsed in epoch {collapse.epoch}: {collapse.reason}; back to {collapse.back_to}")
    return [*lines, *_resource_note(found)]


def _resource_note(found: SearchRecord) -> list[str]:
    """The note in search.json on a limit that was not kept to, as no or one line."""
    return warnings([found.resource.note]) if found.resource and found.resource.note else []


def of_attacked(path: Path) -> str:
    """Describe the models that were attacked in a folder of their own, a line per model."""
    settings = read(path / "attack.toml", records.ModelSettings, "begin anew", read_toml)
    lines = [f"attacked models {path}: {', '.join(settings.models)}"]
    if not (path / "report.html").is_file():
        lines.append("not finished: repeat the command 'robust-nas attack ...' that began it")
    if is_there(path / "evaluation.json"):
        evaluation = read(path / "evaluation.json", records.EvaluationRecord)
        lines += ["", *_results(path, evaluation)]
        for model, found in evaluation.models.items():
            lines += warnings([f"{model}: {sentence}" for sentence in found.notes])
            lines += warnings(
                [
                    f"{model}: accuracies at {check.norm} {format_pixels(check.epsilon)} may be too high: "
                    f"this does not hold: {check.check} ({check.detail})"
                    for check in found.masking
                    if not check.passed
                ]
            )
            lines += [_nearest(model, item) for item in found.distortions]
    if (path / "report.html").is_file():
        lines.append(f"report: {path / 'report.html'}")
    return "\n".join(lines)


def of_certificates(path: Path) -> str:
    """Describe the certificates of another plan than the recipe's, a line per model and radius."""
    found = read_certificates(path / "certification.json")
    if isinstance(found, records.SmoothingRecord):
        return "\n".join(_smoothed(found, path))
    lines = [f"certified by {found.method} bounds, {found.num_images} test images: {path / 'certificates.parquet'}"]
    for model, results in found.models.items():
        for item in results:
            proved = ", ".join(f"{count} by {kind}" for kind, count in item.proved_by.items())
            lines.append(
                f"{model}: {100 * item.certified:.1f} % at {format_pixels(item.epsilon)} "
                f"[{100 * item.low:.1f}, {100 * item.high:.1f}] in {item.seconds:.0f} s"
                + (f" ({proved})" if proved else "")
            )
    return "\n".join(lines)


def _smoothed(found: SmoothingRecord, path: Path) -> list[str]:
    """Describe the certificates of smoothed classifiers, a line per model and radius."""
    lines = [
        f"smoothed classifiers (sigma {format_pixels(found.sigma)}, {found.num_samples} samples), certified in "
        f"{found.norm} up to {found.largest_radius:.3g}, {found.num_images} test images: "
        f"{path / 'certificates.parquet'}"
    ]
    for model, results in found.models.items():
        first = results[0]
        lines.append(
            f"{model}, smoothed: {100 * first.correct:.1f} % right, {100 * first.abstained:.1f} % abstained, "
            f"average radius {first.average_radius:.3f}, in {first.seconds:.0f} s"
        )
        lines += [
            f"{model}, smoothed: {100 * item.certified:.1f} % at {format_pixels(item.epsilon)} "
            f"[{100 * item.low:.1f}, {100 * item.high:.1f}]"
            for item in results
        ]
    return lines


def _nearest(model: str, item: Distances) -> str:
    parts = ", ".join(
        f"{100 * float(share):g} % {'-' if value is None else f'{value:.4g}'}"
        for share, value in item.quantiles.items()
    )
    return f"{model}: nearest adversarial examples by {item.attack}, {item.norm} quantiles: {parts}"


def _results(path: Path, evaluation: EvaluationRecord) -> list[str]:
    """Return the table of accuracies in percent; a dash where something was not measured."""
    certified_file = path / "certification.json"
    certification = read(certified_file, records.CertificationRecord) if is_there(certified_file) else None
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
            row[f"certified@{format_pixels(certificate.epsilon)}"] = certificate.certified
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
