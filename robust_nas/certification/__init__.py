"""Certified accuracy: the share of images whose prediction provably no allowed perturbation changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas import bounds
from robust_nas.bounds import (
    TOLERANCE,
    Answers,
    Bound,
    NoRule,
    check_arithmetic,
    check_gradients,
    own_answers,
    own_logits,
)
from robust_nas.bounds.interval import Interval
from robust_nas.core.checks import check_at_least, check_kinds, check_type
from robust_nas.core.errors import InputError
from robust_nas.core.figures import CERTIFIED, CLEAN, interval_plot, line_plot
from robust_nas.core.registry import name_of
from robust_nas.core.shown import Shown, Summary, frame, with_interval
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import measured, wilson_interval
from robust_nas.intake import check_model, check_numbers
from robust_nas.models.frozen import copied, device_of, evaluating
from robust_nas.records.certification import Certified
from robust_nas.runtime.distributed import World
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Norm, ThreatModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Contradiction(InputError):
    """A network answers otherwise than was proved."""


def refusal(model: nn.Module, images: ImageSet) -> str | None:
    """Return why no kind of bound says anything of a model: an operation without a sound rule; None, if it has none."""
    try:
        Interval().margins(model, images.images[:1], images.labels[:1], ThreatModel(epsilon=1e-6))
    except NoRule as error:
        return str(error)
    return None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Certification(Shown):
    """The proofs about N images at one radius.

    Args:
        method: the kind of bound.
        dtype: its arithmetic.
        norm: the ball's norm.
        epsilon: its radius in pixel units.
        labels: [N].
        margin: [N], float64: a lower bound of the least margin f_y - f_j over the wrong classes j and the ball, in
            exact arithmetic.
        rounding: [N], float64: how much of it the network's own arithmetic may take (`bounds._rounding`).
        clean_correct: [N] booleans: whether the image itself is classified correctly.
        seconds: duration of the bounds, on all processes together.
        methods: N names: the kind of bound that proved most about an image.
        seconds_each: [N], float64: the part of `seconds` that is an image's, in equal shares of its chunk's.
    """

    method: str
    dtype: str
    norm: Norm
    epsilon: float
    labels: Tensor
    margin: Tensor
    rounding: Tensor
    clean_correct: Tensor
    seconds: float
    methods: tuple[str, ...]
    seconds_each: Tensor

    @property
    def certified(self) -> Tensor:
        """[N] booleans: whether the label is proved for the whole ball, rounding included. NaN proves nothing."""
        return self.margin - self.rounding > TOLERANCE

    @property
    def accuracy(self) -> float:
        """The certified accuracy, a fraction."""
        return float(self.certified.double().mean())

    def summary(self) -> Certified:
        """Return the entry of certification.json: certified accuracy with its 95 % interval over images (Wilson)."""
        count, successes = len(self.margin), int(self.certified.sum())
        low, high = wilson_interval(successes, count)
        return Certified(
            epsilon=self.epsilon,
            certified=self.accuracy,
            low=low,
            high=high,
            count=count,
            mean_margin=float(self.margin.mean()),
            seconds=self.seconds,
            proved_by=dict(Counter(compress(self.methods, self.certified.tolist()))),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of certificates.parquet per image; `image` is its place in the data that was certified."""
        columns = {
            "method": list(self.methods),
            "label": self.labels.tolist(),
            "margin": self.margin.tolist(),
            "rounding": self.rounding.tolist(),
            "certified": self.certified.tolist(),
            "clean_correct": self.clean_correct.tolist(),
            "seconds": self.seconds_each.tolist(),
        }
        place = {"norm": self.norm, "epsilon": self.epsilon, "dtype": self.dtype}
        return [
            {**place, "image": image, **dict(zip(columns, values, strict=True))}
            for image, values in enumerate(zip(*columns.values(), strict=True))
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return a row per image, as certificates.parquet has it.

        The columns are norm, epsilon, dtype, image (its place), method (the kind of bound that proved most), label,
        margin and rounding (in logits), certified, clean_correct and seconds.
        """
        return frame(self.rows())

    def plot(self) -> Figure:
        """Return a figure with the clean and the certified accuracy, with their intervals."""
        clean = measured(self.clean_correct)
        summary = self.summary()
        rows = [
            ("clean", clean.accuracy, clean.low, clean.high, CLEAN),
            (f"certified, {self.norm} {self.epsilon:g}", self.accuracy, summary.low, summary.high, CERTIFIED),
        ]
        return interval_plot(rows, f"Accuracy of {len(self.labels)} images, clean and certified by {self.method}")

    def _summary(self) -> Summary:
        found = self.summary()
        share = with_interval(found.certified, found.low, found.high)
        return Summary(
            f"Certified by {self.method} at {self.norm} {self.epsilon:g}: {share} of {found.count} images; "
            f"clean {100 * float(self.clean_correct.double().mean()):.1f} %"
        )


class Certifications(list[Certification], Shown):
    """The proofs at several radii: a list, with what the radii show together."""

    __repr__ = Shown.__repr__

    def to_frame(self, *, per_image: bool = False) -> pd.DataFrame:
        """Return a row per radius.

        Args:
            per_image: rows of images instead, as `Certification.to_frame` gives them.

        Returns:
            The columns method, norm, epsilon, certified (a fraction), low and high (its 95 % interval), count (images),
            mean_margin (in logits), clean (the share that is classified correctly) and seconds.
        """
        if per_image:
            return frame(row for each in self for row in each.rows())
        rows = []
        for each in self:
            found = {key: value for key, value in vars(each.summary()).items() if key not in ("proved_by", "seconds")}
            clean = float(each.clean_correct.double().mean())
            rows.append({"method": each.method, "norm": each.norm, **found, "clean": clean, "seconds": each.seconds})
        return frame(rows)

    def plot(self) -> Figure:
        """Return a figure with the certified accuracy over the radius, its interval, and the clean accuracy at 0.

        Raises:
            InputError: if there are no certifications.
        """
        if not self:
            raise InputError("There are no certifications to plot; certify at one radius or more.")
        clean = measured(self[0].clean_correct)
        at = [(0.0, clean.accuracy, clean.low, clean.high)]
        at += [(found.epsilon, found.certified, found.low, found.high) for found in map(Certification.summary, self)]
        radii, certified, low, high = zip(*sorted(at), strict=True)
        title = f"Certified accuracy of {len(self[0].labels)} images by {self[0].method}"
        lines = {"certified": (radii, certified, CERTIFIED)}
        return line_plot(lines, title, f"{self[0].norm} radius", bands={"certified": (low, high)})

    def _summary(self) -> Summary:
        if not self:
            return Summary("No certifications")
        clean = measured(self[0].clean_correct)
        rows = [("0 (clean)", with_interval(clean.accuracy, clean.low, clean.high))]
        for found in map(Certification.summary, self):
            rows.append((f"{found.epsilon:g}", with_interval(found.certified, found.low, found.high)))
        title = f"Certified accuracy of {len(self[0].labels)} images by {self[0].method}"
        return Summary(title, (f"{self[0].norm} radius", "certified (95 % interval)"), tuple(rows))


def certify(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel | str,
    *,
    bound: Bound | str = "interval",
    epsilons: Sequence[float | str] | None = None,
    batch_size: int = 128,
    stage: Stage | None = None,
) -> Certifications:
    """Certify every image of `data` by `bound`, at each radius.

    Args:
        model: maps [0, 1] images [B, C, H, W] to logits [B, K]; used in evaluation mode and left as it was.
        data: the images and labels.
        threat: gives the norm, and the radius where `epsilons` is None.
        bound: a kind of bound, or the name of one.
        epsilons: radii in pixel units.
        batch_size: images in a chunk: what a process bounds between two saves of the state.
        stage: shares the chunks out over its processes, shows progress, and continues after the chunks it has saved.

    Raises:
        InputError: for no images, no radii, a model that the bound cannot handle, a saved state of other settings, or
            within torch.inference_mode.
    """
    check_kinds("certify", model=(model, nn.Module), data=(data, ImageSet))
    threat = ThreatModel.of(threat)
    if len(data) == 0:
        raise InputError("certify needs at least one image, but got none.")
    check_at_least("batch_size", batch_size, 1)
    threats = [threat] if epsilons is None else [threat.with_epsilon(epsilon) for epsilon in epsilons]
    if not threats:
        raise InputError("certify needs at least one radius, but epsilons is empty; leave it out for the threat's own.")
    check_type("bound", bound, (str, Bound), "a kind of bound, or the name of one")
    chosen: Bound = bounds.get(bound)() if isinstance(bound, str) else bound
    if getattr(chosen, "dtype", "float64") != "float64":
        raise InputError(
            f"A certificate needs bounds in float64, but {name_of(chosen)} has dtype '{chosen.dtype}': "  # type: ignore[attr-defined]
            "float32 rounds bounds up by more than they are required to be above 0."
        )
    check_model(model)
    check_arithmetic(model)
    check_gradients()
    network = evaluating(copied(model)).requires_grad_(False)
    world = stage.world if stage else World()
    device = device_of(network, data.labels)
    chunks = [(start, data[start : start + batch_size]) for start in range(0, len(data), batch_size)]

    done, state = stage.resume() if stage else (0, None)
    settings = f"{chosen} at {threats} for {len(data)} images in chunks of {batch_size}, rounding included"
    if stage and state and state["settings"] != settings:
        raise InputError(
            f"The stage {stage.name} was interrupted under other settings ({state['settings']}), but is now "
            f"{settings}; restore them, or start a new run."
        )
    found: list[Tensor] = [state["found"]] if state else []
    # Those that `auto` takes may be one's own.
    kinds = [name_of(chosen), *bounds.names(), *map(name_of, getattr(chosen, "kinds", ()))]
    # In rounds of one chunk per process and worker; the number of them may have changed since an interruption.
    size = world.size * world.workers
    firsts = range(done, len(chunks), size)
    for first in stage.progress.steps(firsts, stage.name, done=-(-done // size)) if stage else firsts:
        here = chunks[first : first + size]
        results = world.each(
            lambda chunk: _certify_chunk(network, chunk[1].to(device), chunk[0], threats, chosen, kinds),
            world.shard(here),
        )
        found = [torch.cat([*found, *world.gather_shards(results, len(here))], 2)]
        if stage:
            stage.save(first + len(here), {"settings": settings, "found": found[0]})
    return Certifications(
        Certification(
            method=kinds[0],
            dtype="float64",
            norm=at.norm,
            epsilon=at.epsilon,
            labels=data.labels.cpu(),
            margin=margin,
            rounding=rounding,
            clean_correct=clean.bool(),
            seconds=float(seconds.sum()),
            methods=tuple(kinds[int(kind)] for kind in kind_numbers),
            seconds_each=seconds,
        )
        for at, (margin, rounding, seconds, kind_numbers, clean) in zip(threats, found[0], strict=True)
    )


def _certify_chunk(
    network: nn.Module, chunk: ImageSet, start: int, threats: Sequence[ThreatModel], bound: Bound, kinds: Sequence[str]
) -> Tensor:
    """Return [E, 5, B], for E radii: least margins, what of them is rounding, seconds, places in `kinds`, right or not.

    Args:
        start: the place of the chunk's first image in the data.

    Raises:
        Contradiction: if the network's own answers are not what was proved.
    """
    images, labels, count, rows = chunk.images, chunk.labels, len(chunk), []
    logits = own_logits(network, images)
    check_numbers(logits)
    clean = logits.argmax(1) == labels
    for threat in threats:
        started = time.monotonic()
        found = bound.margins(network, images, labels, threat)
        # The least is NaN where any margin is: nothing is proved about an image with a bound that is not a number.
        lower = found.lower(threat).double()
        answers = found.answers or own_answers(network, images, labels, threat, lower)
        _check(answers, lower, labels, start)
        seconds = torch.full((count,), (time.monotonic() - started) / count).double()
        numbers = torch.tensor([kinds.index(name) for name in found.methods or [kinds[0]] * count]).double()
        rows.append(torch.stack([lower.amin(1).cpu(), answers.taken.cpu(), seconds, numbers, clean.double().cpu()]))
    return torch.stack(rows)


def _check(answers: Answers, lower: Tensor, labels: Tensor, start: int) -> None:
    """Raise Contradiction if one of the network's own answers is wrong, or further from the proof than rounding can be.

    Args:
        lower: the margins' lower bounds over the ball, [B, K].
        start: the place of the first image in the data.
    """
    least, certified = lower.argmin(1, keepdim=True), lower.amin(1) - answers.taken > TOLERANCE
    for where, logits in (("on it", answers.on_image), ("at a point of its ball", answers.in_ball)):
        margins = logits.gather(1, labels[:, None]) - logits
        short = (lower - answers.errors - margins).gather(1, least).squeeze(1)
        contradicted = certified & ((logits.argmax(1) != labels) | (short > TOLERANCE))
        for image in contradicted.nonzero().flatten().tolist():
            raise Contradiction(
                f"Image {start + image} is proved to be of class {int(labels[image])} by a margin of at least "
                f"{float(lower[image].amin()):.3g}, but the network's own margin {where} is "
                f"{float(margins[image].scatter(0, labels[image], torch.inf).amin()):.3g}, which rounding does not "
                "explain: it computes something else than what was proved, or the proof is wrong, which is a bug; "
                "please report it."
            )
