"""Sentences that are drawn from the numbers: the findings and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

from robust_nas.core.pixels import format_pixels
from robust_nas.report._contents import Contents, Measurements, Rated, Threat, format_attack, is_autoattack
from robust_nas.runtime.per_sample import Consistency, compare_outcomes
from robust_nas.runtime.run_folder import unfinished_stages

if TYPE_CHECKING:
    from robust_nas.records import CertificationRecord, EnsembleRecord

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def percent(fraction: float) -> str:
    """Return 0.8139 as "81.4"."""
    return f"{100 * fraction:.1f}"


def resolution(num_images: int) -> float:
    """Return half the width of the 95 % Wilson interval around an observed accuracy of one half."""
    return _Z / 2 / sqrt(num_images + _Z**2)


def enumerate_in_words(items: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def norm_name(norm: str) -> str:
    """Return "l-infinity" for "linf"; other norms are called what they are called."""
    return {"linf": "l-infinity"}.get(norm, norm)


def format_threat(threat: Threat) -> str:
    """Return a threat model as people write it: "linf 8/255"."""
    return f"{threat[0]} {format_pixels(threat[1])}"


def with_interval(item: Rated) -> str:
    """Return an accuracy as "81.4 % (77.0 to 85.1)"."""
    return f"{percent(item.accuracy)} % ({percent(item.low)} to {percent(item.high)})"


def failed_checks(contents: Measurements, model: str) -> int:
    """Count a model's failed checks for gradient masking."""
    return sum(not check.passed for check in contents.attacked[model].masking)


def check_consistency(contents: Measurements) -> Consistency:
    """Compare clean, attacked and certified outcomes, sample by sample where the files have them.

    An image that withstands an attack must be classified correctly when it is clean. An image that is certified at a
    radius must be classified correctly when it is clean, and under every attack of the same norm up to that radius.
    Accuracies along the curve are compared as such, if they are over the same images.
    """
    found = compare_outcomes(contents.path / "evaluation.parquet", contents.path / "certificates.parquet")
    return replace(found, violations=[*found.violations, *found.contradictions, *_curve_violations(contents)])


def _curve_violations(contents: Measurements) -> list[str]:
    violations = []
    for model, result in contents.attacked.items():
        clean = result.clean
        for point in (*result.curve, *result.steps):
            same_norm = contents.threat is not None and point.norm == contents.threat[0]
            if point.accuracy > clean.accuracy and point.count == clean.count:
                violations.append(
                    f"{model}: more images are correct under attack at {point.epsilon:g} than when clean."
                )
            for item in contents.certified.get(model, ()) if same_norm else ():
                smaller_ball = point.epsilon <= item.epsilon
                if item.count == point.count and smaller_ball and item.certified > point.accuracy:
                    violations.append(
                        f"{model}: more images are certified at {item.epsilon:g} than withstand the attack "
                        f"at {point.epsilon:g}."
                    )
    return violations


def summary(contents: Contents) -> list[str]:
    """Return the run in a few sentences, as far as it has come."""
    settings, sentences = contents.settings, []
    threat = f"{norm_name(contents.norm)} perturbations of radius {format_pixels(contents.epsilon)}"
    data, space, search = settings.data.name, settings.space.name, settings.search.name
    if contents.trained:
        count = len(contents.trained)
        method = next(iter(contents.trained.values())).method
        sentences.append(
            f"{count} trained networks of {enumerate_in_words(contents.joined)}, joined, and measured against {threat} "
            f"on {data}."
            if contents.joined
            else f"{count} network{'s' * (count > 1)} of the space {space}, "
            f"{'given' if search == 'given' else f'found by {search} search'} and trained with {method} against "
            f"{threat} on {data}."
        )
    else:
        sentences.append(f"A {search} search in the space {space} against {threat} on {data}.")
    subject = "ensemble" if "ensemble" in contents.attacked else next(iter(contents.attacked), None)
    if subject:
        sentences.append(_headline(contents, subject))
    return sentences


def _headline(contents: Contents, model: str) -> str:
    result, name = contents.attacked[model], contents.title_of(model)
    clean, worst = result.clean, result.worst_case
    attacks = enumerate_in_words(list(dict.fromkeys(format_attack(attack.name) for attack in result.attacks)))
    text = (
        f"On {clean.count} {contents.split} images the "
        f"{name if model == 'ensemble' else f'network {name}'} is correct on {with_interval(clean)} and, under the "
        f"worst of {attacks} for each image, on {with_interval(worst)}"
    )
    if contents.union_of(model):
        text += f" at {enumerate_in_words([format_threat(threat) for threat in contents.threats])} together"
    radius = contents.quoted_radius
    if radius is not None and (proved := contents.certificate_of(model, radius)):
        # An accuracy on fewer images may be above one on all.
        of = "" if proved.count == clean.count else f"of the first {proved.count} images, "
        text += f"; {of}{with_interval(proved)} are proved robust at radius {format_pixels(radius)}"
    return f"{text}."


@dataclass(frozen=True)
class Difference:
    """The gain of the ensemble over another model, on one measurement that both have.

    Args:
        measurement: the measurement.
        points: the ensemble's accuracy minus the other's, in points of a percent.
        apart: whether the two 95 % intervals do not overlap.
    """

    measurement: str
    points: float
    apart: bool


def compare_ensemble(contents: Contents) -> dict[str, list[Difference]]:
    """Compare the ensemble with the best single network and with the uniform average, by their names."""
    best = contents.ensemble.best_single if contents.ensemble else None
    return {name: _differences(contents, name) for name in (best, "uniform") if name and name in contents.models}


def _differences(contents: Contents, other: str) -> list[Difference]:
    pairs: list[tuple[str, Rated | None, Rated | None]] = []
    one, two = contents.attacked.get("ensemble"), contents.attacked.get(other)
    if one and two:
        pairs.append(("clean", one.clean, two.clean))
        # Worst cases are over the attacks that were run on each model, and these may differ: they are not compared.
        for attack in contents.measured:
            name = f"{format_attack(attack[0])}, {attack[1]} {format_pixels(attack[2])}"
            pairs.append((name, contents.attack_on("ensemble", attack), contents.attack_on(other, attack)))
    for epsilon in contents.certified_epsilons:
        name = f"certified at {format_pixels(epsilon)}"
        pairs.append((name, contents.certificate_of("ensemble", epsilon), contents.certificate_of(other, epsilon)))
    return [
        Difference(
            name,
            100 * (mine.accuracy - theirs.accuracy),
            mine.low > theirs.high or mine.high < theirs.low,
        )
        for name, mine, theirs in pairs
        if mine and theirs
    ]


def limits(contents: Contents) -> list[tuple[str, str]]:
    """Return the limits of the measurements, as (subject, a sentence or two)."""
    missing = [stage for stage in unfinished_stages(contents.path) if stage not in ("record", "report")]
    found = []
    if missing:
        found.append(("Stages", f"These stages have not run, or not yet: {', '.join(missing)}."))
    found.append(
        (
            "Seeds",
            "The networks come from runs with seeds of their own: other seeds may give others, and the difference "
            "between two networks includes the noise of their training. The intervals on this page are about the "
            "sample of images only."
            if contents.joined
            else f"Everything comes from one run with one seed ({contents.seed}): another seed may find other "
            "architectures, and the difference between two networks includes the noise of their training. "
            "The intervals on this page are about the sample of images only.",
        )
    )
    if contents.attacked:
        found += about_attacks(contents)
    if contents.certification and contents.certified:
        found.append(("Certification", _about_certification(contents, contents.certification)))
    for name, reason in contents.certification.left_out.items() if contents.certification else ():
        found.append(("Certification", f"Nothing was proved of {name}, and no ensemble was fitted to bounds. {reason}"))
    if contents.ensemble and contents.certified:
        found += _about_weights(contents, contents.ensemble)
    if contents.smoothed:
        found.append(("Smoothing", _about_smoothing(contents)))
    found.append(("Selection", _about_selection(contents)))
    norms = "norms (apart from smoothed classifiers)" if contents.smoothed else "norms"
    found.append(
        (
            "Scope",
            f"One data set ({contents.data}) and {threats_in_words(contents.threats or [contents.threat])}. Other "
            f"{norms}, corruptions, shifts of the data and other search or training methods were not measured here.",
        )
    )
    return found


def threats_in_words(threats: Sequence[Threat]) -> str:
    """Return the number of threat models, and their names."""
    named = enumerate_in_words([f"{norm_name(norm)} up to {format_pixels(epsilon)}" for norm, epsilon in threats])
    return f"one threat, {named}" if len(threats) == 1 else f"{len(threats)} threats, {named}"


def about_attacks(contents: Measurements) -> list[tuple[str, str]]:
    """Return the meaning and the limits of accuracies under attack, as (subject, a sentence or two)."""
    num_images, split = contents.num_images, contents.split
    of_attacks = (
        "An attack that fails proves nothing: accuracy under attack bounds the true robust accuracy from above."
    )
    if any(result.curve for result in contents.attacked.values()):
        of_attacks += " Curves over epsilon use one attack only, so they are less strict than the worst case."
    found = [
        (
            "Sample size",
            f"Accuracies are over {num_images} {split} images. At an accuracy of one half, the 95 % interval is "
            f"±{percent(resolution(num_images))} points. A paired test on the same images could tell closer models "
            "apart; none was made.",
        ),
        ("Attacks", of_attacks),
    ]
    with_autoattack: list[str] = []
    without: list[str] = []
    for model, result in contents.attacked.items():
        ran = any(is_autoattack(attack.name) for attack in result.attacks)
        named = contents.title_of(model)
        article = "the " if contents.is_combined(model) else ""
        (with_autoattack if ran else without).append(article + (named.lower() if model == "uniform" else named))
    if without and with_autoattack:
        text = (
            f"AutoAttack was run on {enumerate_in_words(with_autoattack)} only. The worst case of "
            f"{enumerate_in_words(without)} is over fewer attacks, and would likely be lower with it: do not compare "
            "worst cases across the two groups."
        )
    elif without:
        text = "AutoAttack was not run: the accuracies under attack are likely optimistic."
    else:
        text = f"AutoAttack was run on {enumerate_in_words(with_autoattack)}."
    found.append(("AutoAttack", text))
    failed = sum(failed_checks(contents, model) for model in contents.attacked)
    if failed:
        verb = "checks" if failed > 1 else "check"
        found.append(
            ("Gradient masking", f"{failed} {verb} failed (see above): the accuracies under attack may be too high.")
        )
    unchecked = [contents.title_of(model) for model, result in contents.attacked.items() if not result.masking]
    if unchecked:
        text = f"Not looked for in {enumerate_in_words(unchecked)}: an attack that fails may have had no gradient."
        found.append(("Gradient masking", text))
    return found


def _about_certification(contents: Contents, found: CertificationRecord) -> str:
    smallest, largest = contents.certified_epsilons[0], contents.certified_epsilons[-1]
    text = (
        f"Bounds by {found.method} arithmetic in {found.dtype}, over {found.num_images} "
        f"images, prove {_spread(contents, smallest)} at radius {format_pixels(smallest)}"
    )
    if largest > smallest:
        text += f" and {_spread(contents, largest)} at the largest radius tried, {format_pixels(largest)}"
    text += ". "
    if largest < contents.epsilon:
        ratio = contents.epsilon / largest
        text += f"The threat's radius, {format_pixels(contents.epsilon)}, is {ratio:.3g} times as large: nothing "
        text += "was proved there. "
    return text + (
        "Interval bounds are loose on networks that were not trained for them, so an image without a certificate is "
        "not an image that can be attacked: between the certified and the attacked curve, nothing is known."
    )


def _spread(contents: Contents, epsilon: float) -> str:
    """Return the certified accuracies of all models at a radius, such as "5.0 to 11.4 %"."""
    certificates = (item for results in contents.certified.values() for item in results)
    shares = [item.certified for item in certificates if item.epsilon == epsilon]
    low, high = percent(min(shares)), percent(max(shares))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _about_weights(contents: Contents, ensemble: EnsembleRecord) -> list[tuple[str, str]]:
    epsilon = ensemble.epsilon
    proved = [item for name in ensemble.members if (item := contents.certificate_of(name, epsilon))]
    if not proved or any(item.certified > 0 for item in proved):
        return []
    return [
        (
            "Ensemble",
            f"At radius {format_pixels(epsilon)}, for which the weights were fitted, no image is proved for any "
            "network. The weights follow bounds that prove nothing there, and may be as good as any others.",
        )
    ]


def _about_smoothing(contents: Contents) -> str:
    failures = enumerate_in_words(sorted({f"{found.failure:g}" for found in contents.smoothed}))
    return (
        f"Each certificate of a smoothed classifier may be wrong with a probability of up to {failures}, by the noise "
        "that was drawn, and each is about real numbers, while networks compute in float32. Only "
        "the smoothed classifier's own answers are certified, at the price of its samples."
    )


def _about_selection(contents: Contents) -> str:
    text = "Validation images"
    if contents.derivation:
        text += f" (n = {contents.derivation.num_validation})"
    chosen = {
        "the architectures": contents.settings.search.name != "given",
        "each network's best epoch": contents.settings.train.keep == "best" and not contents.joined,
        "the ensemble's weights": contents.ensemble is not None,
    }
    text += f" selected {enumerate_in_words([what for what, is_chosen in chosen.items() if is_chosen]) or 'nothing'}; "
    measured = contents.attacked or contents.certified or contents.smoothed
    text += "test images only measured. " if measured else "test images have not been looked at. "
    if contents.joined:
        text += "The networks' own runs chose on validation images before. "
    return text + "Validation accuracies are optimistic, since the same images selected."
