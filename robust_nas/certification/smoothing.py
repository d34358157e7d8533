"""Randomised smoothing: l2 certificates of any network, however deep (Cohen et al. 2019, arXiv:1902.02918).

The certificates are not of the network f but of the smoothed classifier that is made of it,

    g(x) = argmax_c P(f(x + sigma N) = c),  N standard Gaussian,

which answers as f does most often under noise. Wherever P(f(x + sigma N) = c) >= p > 1/2, g answers c at every image
closer to x than sigma Phi^-1(p) (theorem 1). So nothing here is a bound of f, nor comparable with attacks on f; who
wants the guarantee has to answer with g, as `SmoothedClassifier.predict` does.

The noise leaves [0, 1] and is not clipped: the theorem needs Gaussian noise on what f is given, and with clipping it
would be about another network, one that clips first. The radius holds for every image in the ball, in [0, 1] or not.

The probability is known from samples, so that a certificate holds with probability 1 - `failure` over the noise, for
each image by itself: of N images, `failure` N false ones are to be expected at most. The theorem is about real
numbers, while noise and logits are float32, as is usual.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor, nn

from robust_nas import intake
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.figures import CERTIFIED, line_plot
from robust_nas.core.pixels import unit_images
from robust_nas.core.seeds import generator_at
from robust_nas.core.shown import Shown, Summary, frame, with_interval
from robust_nas.datasets import ImageSet, image_set
from robust_nas.evaluation import wilson_interval
from robust_nas.models.frozen import copied, device_of, evaluating
from robust_nas.models.scores import scores
from robust_nas.records.certification import Smoothed
from robust_nas.runtime.distributed import World
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import of_call
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Norm, Pixels, check_pixels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ABSTAIN = -1
"""The answer of a smoothed classifier that abstains."""

NORM: Norm = "l2"

LARGEST_SIGMA = 10.0
"""The most noise that is accepted."""

SAMPLES_PER_SAVE = 10_000
"""Noisy images after which a process saves what it has found, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The noise, and the number of its samples. The defaults are those of the paper.

    Args:
        sigma: standard deviation of the noise, in pixel units of [0, 1]: that with which the network was trained.
        num_selection: samples by which the class to certify is chosen.
        num_samples: fresh samples by which its probability is bounded, or by which an image is classified.
        failure: the probability with which a certificate or an answer may be wrong, over the noise.
        batch_size: noisy images in one pass through the network; the noise, drawn pass by pass, depends on it.

    Raises:
        InputError: for a value outside its range, or so few samples that even if all agree, nothing is certified.
    """

    sigma: Pixels
    num_selection: int = 100
    num_samples: int = 100_000
    failure: float = 0.001
    batch_size: int = 500

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_pixels("Smoothing.sigma", self.sigma, high=LARGEST_SIGMA))
        for name in ("num_selection", "num_samples", "batch_size"):
            check_at_least(f"Smoothing.{name}", getattr(self, name), 1)
        if not 0 < self.failure < 1:
            raise InputError(f"Smoothing.failure must be a probability above 0 and below 1, but got {self.failure}.")
        if not self.largest_radius > 0:
            needed = math.floor(math.log(self.failure) / math.log(0.5)) + 1
            raise InputError(
                f"Smoothing.num_samples of {self.num_samples} certify nothing at a failure of {self.failure:g}, even "
                f"if all agree; set it to {needed} or more."
            )

    @property
    def largest_radius(self) -> float:
        """The radius of an image of whose samples all agree, in pixel units."""
        return float(self.radius(np.array([self.num_samples]))[0])

    def check_answering(self) -> None:
        """Raise InputError if there are too few samples for an answer, even if all agree."""
        # Two-sided, as `SmoothedClassifier.predict` tests it: 2 * 0.5 ** n.
        needed = math.ceil(1 - math.log2(self.failure))
        if self.num_samples < needed:
            raise InputError(
                f"Smoothing.num_samples of {self.num_samples} give no answer at a failure of {self.failure:g}, even if "
                f"all agree; set it to {needed} or more."
            )

    def radius(self, counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the certified radii [N] where `counts` [N] of the samples are of the chosen class; 0: abstain."""
        lower = lower_bound(counts, self.num_samples, self.failure)
        return np.where(lower > 0.5, self.sigma * ndtri(lower), 0.0)


def lower_bound(counts: np.ndarray[Any, Any], num_samples: int, failure: float) -> np.ndarray[Any, Any]:
    """Return exact lower bounds [N] of the probabilities of which `num_samples` trials showed `counts` [N].

    One-sided (Clopper & Pearson 1934, Biometrika 26, 404-413): the p at which so many or more are seen with probability
    `failure`. It is above the true one with no more than that probability, whatever that is.
    """
    seen = np.asarray(counts, dtype=np.float64)
    # At least k of n uniform numbers are below p where the k-th smallest is: a Beta(k, n - k + 1) variable.
    bound = betaincinv(np.maximum(seen, 1.0), num_samples - np.maximum(seen, 1.0) + 1, failure)
    return np.where(seen > 0, bound, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SmoothedCertification(Shown):
    """The certificates of a smoothed classifier for N images.

    Args:
        smoothing: the noise and the samples.
        labels: [N].
        selected: [N], the class that was chosen for each image.
        counts: [N], how many of the fresh samples are classified as that.
        seconds: [N], float64: what each image took.
    """

    smoothing: Smoothing
    labels: Tensor
    selected: Tensor
    counts: Tensor
    seconds: Tensor

    @property
    def radius(self) -> Tensor:
        """[N], float64, in pixel units: inside this l2 distance the answer is the same; 0 where there is none."""
        return torch.from_numpy(self.smoothing.radius(self.counts.numpy()))

    @property
    def abstained(self) -> Tensor:
        """[N] booleans: whether there is no answer, as its probability may be 1/2 or less."""
        return self.radius == 0

    @property
    def predictions(self) -> Tensor:
        """[N]: the answers, and `ABSTAIN` where there is none."""
        return torch.where(self.abstained, ABSTAIN, self.selected)

    @property
    def correct(self) -> Tensor:
        """[N] booleans: whether the answer is the label."""
        return ~self.abstained & (self.selected == self.labels)

    def certified(self, epsilon: float) -> Tensor:
        """Return [N] booleans: whether the answer is the label in the whole ball of radius `epsilon`, its edge too."""
        # The theorem is about the inside of the ball.
        return self.correct & (self.radius > epsilon)

    def accuracy(self, epsilon: float) -> float:
        """Return the certified accuracy at a radius, a fraction."""
        return float(self.certified(epsilon).double().mean())

    def summary(self, epsilon: float) -> Smoothed:
        """Return the entry of certification.json: certified accuracy with its 95 % interval over images (Wilson).

        `average_radius` counts 0 where the answer is wrong or missing; `seconds` are those of all radii together.
        """
        count, successes = len(self.labels), int(self.certified(epsilon).sum())
        low, high = wilson_interval(successes, count)
        return Smoothed(
            epsilon=epsilon,
            certified=successes / count,
            low=low,
            high=high,
            count=count,
            correct=float(self.correct.double().mean()),
            abstained=float(self.abstained.double().mean()),
            average_radius=float((self.radius * self.correct).mean()),
            seconds=float(self.seconds.sum()),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of certificates.parquet per image; `image` is its place in the data that was certified."""
        columns = {
            "label": self.labels.tolist(),
            "prediction": self.predictions.tolist(),
            "abstained": self.abstained.tolist(),
            "correct": self.correct.tolist(),
            "radius": self.radius.tolist(),
            "selected": self.selected.tolist(),
            "agreeing": self.counts.tolist(),
            "seconds": self.seconds.tolist(),
        }
        place = {"method": "smoothing", "norm": NORM, "sigma": self.smoothing.sigma}
        place |= {"num_samples": self.smoothing.num_samples, "failure": self.smoothing.failure}
        return [
            {**place, "image": image, **dict(zip(columns, values, strict=True))}
            for image, values in enumerate(zip(*columns.values(), strict=True))
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return a row per image, as certificates.parquet has it.

        The columns are method, norm, sigma, num_samples, failure, image (its place), label, prediction (-1 where the
        classifier abstains), abstained, correct, radius (certified, l2 in pixel units), selected, agreeing (samples)
        and seconds.
        """
        return frame(self.rows())

    def plot(self) -> Figure:
        """Return a figure with the certified accuracy over the l2 radius, and its interval."""
        largest = self.smoothing.largest_radius
        radii = [largest * place / 100 for place in range(101)]
        found = [self.summary(radius) for radius in radii]
        line = (radii, [each.certified for each in found], CERTIFIED)
        ends = [each.low for each in found], [each.high for each in found]
        return line_plot({"certified": line}, self._title, f"{NORM} radius", bands={"certified": ends})

    @property
    def _title(self) -> str:
        return f"Certified accuracy of {len(self.labels)} images, smoothed with sigma {self.smoothing.sigma:g}"

    def _summary(self) -> Summary:
        largest = self.smoothing.largest_radius
        rows = []
        for share in (0, 0.25, 0.5, 0.75):
            found = self.summary(share * largest)
            rows.append((f"{share * largest:.3g}", with_interval(found.certified, found.low, found.high)))
        title = f"{self._title}; {100 * float(self.abstained.double().mean()):.1f} % abstained"
        return Summary(title, (f"{NORM} radius", "certified (95 % interval)"), tuple(rows))

    @classmethod
    def of_rows(cls, smoothing: Smoothing, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Return the certification that `rows` were made of."""
        label, selected, agreeing, seconds = (
            torch.tensor([row[name] for row in sorted(rows, key=lambda row: int(row["image"]))])
            for name in ("label", "selected", "agreeing", "seconds")
        )
        return cls(smoothing=smoothing, labels=label, selected=selected, counts=agreeing, seconds=seconds.double())


@dataclass(frozen=True, eq=False, repr=False)
class SmoothedClassifier:
    """The classifier g(x) = argmax_c P(f(x + sigma N) = c) of a network f, and its certificates.

        smoothed = rn.smooth(model, sigma=0.25, num_samples=1000)
        smoothed.predict(images)                    # [B] classes, -1 where it abstains
        smoothed.certify(data.test[:100]).accuracy(0.5)

    Args:
        model: f; maps images [B, C, H, W] to logits [B, K], each image by itself. Used in evaluation mode and left as
            it was.
        smoothing: the noise and the samples.
    """

    model: nn.Module
    smoothing: Smoothing

    def __repr__(self) -> str:
        return f"SmoothedClassifier({type(self.model).__name__}, {self.smoothing})"

    @unchanged_process()
    def predict(self, images: Tensor, *, seed: int = 0, progress: bool = True) -> Tensor:
        """Return the class of each of `images` [B, C, H, W], or `ABSTAIN`, [B] (the paper's PREDICT).

        An answer is not that of g with probability `failure` at most. An image's noise depends on `seed` and its place
        among `images` alone.

        Raises:
            InputError: for images outside [0, 1], a model that is no classifier of single images, or so few samples
                that it would abstain even if all agree.
        """
        images = unit_images(images)
        if len(images) == 0:
            raise InputError("predict needs at least one image, but got none.")
        self.smoothing.check_answering()
        sampler = _Sampler(self.model, self.smoothing, images[:1], seed)
        shown = of_call(progress).steps(enumerate(images), "predict", total=len(images))
        return torch.tensor(
            [self._answer(sampler.counts(image, place, "predict")) for place, image in shown],
            dtype=torch.int64,
        )

    def _answer(self, counts: Tensor) -> int:
        from scipy.stats import binomtest

        (most, second), (answer, _) = (found.tolist() for found in counts.topk(2))
        # Two-sided: is the first not just as probable as the second?
        by_chance = binomtest(most, most + second, 0.5).pvalue
        # The last count is of samples that are of no class.
        return answer if by_chance <= self.smoothing.failure and answer < len(counts) - 1 else ABSTAIN

    @unchanged_process()
    def certify(
        self,
        data: ImageSet,
        *,
        seed: int = 0,
        stage: Stage | None = None,
        chunk_size: int | None = None,
        progress: bool = True,
    ) -> SmoothedCertification:
        """Certify the smoothed classifier's answer on every image of `data` (the paper's CERTIFY).

        An image's noise depends on the seed and its place in `data` alone.

        Args:
            data: the images and labels.
            seed: of the noise; the stage's, if there is one.
            stage: shares the images out over its processes, shows progress, and goes on after those it has saved.
            chunk_size: images that a process certifies between two saves; so many as take 10,000 samples, if not given.
            progress: whether to show it without a stage, where it takes longer than a second.

        Raises:
            InputError: for no images, labels that are no classes, a model that is no classifier of single images, or a
                saved state of other settings.
        """
        data = image_set(data)
        if len(data) == 0 or (chunk_size is not None and chunk_size < 1):
            raise InputError(
                "certify needs at least one image and a chunk_size of at least 1, but got "
                f"{len(data)} and {chunk_size}."
            )
        stage = stage or Stage("smoothing", seed, World(), of_call(progress))
        sampler, world = _Sampler(self.model, self.smoothing, data[:1].images, stage.seed), stage.world
        intake.check_labels(data.labels, sampler.num_classes)
        done, state = stage.resume()
        settings = f"{self.smoothing} for {len(data)} images with the seed {stage.seed}"
        if state and state["settings"] != settings:
            raise InputError(
                f"The stage {stage.name} was interrupted under other settings ({state['settings']}), but is now "
                f"{settings}; restore them, or start a new run."
            )
        found: list[Tensor] = [state["found"]] if state else []
        size = chunk_size or -(-SAMPLES_PER_SAVE // self.smoothing.num_samples)
        # In rounds of one chunk per process and worker; the size and number of them may have changed meanwhile.
        together = size * world.size * world.workers
        firsts = range(done, len(data), together)
        for first in stage.progress.steps(firsts, stage.name, done=-(-done // together)):
            end = min(first + together, len(data))
            chunks = [range(start, min(start + size, end)) for start in range(first, end, size)]
            results = world.each(lambda chunk: sampler.certify(data, chunk), world.shard(chunks))
            found = [torch.cat([*found, *world.gather_shards(results, len(chunks))], 1)]
            stage.save(end, {"settings": settings, "found": found[0]})
        selected, counts, seconds = found[0]
        return SmoothedCertification(
            smoothing=self.smoothing,
            labels=data.labels.cpu(),
            selected=selected.long(),
            counts=counts.long(),
            seconds=seconds,
        )


class _Sampler:
    """Classifies noisy copies of images.

    Args:
        image: [1, C, H, W], such as there will be.
        seed: of the noise.

    Raises:
        InputError: if the model is no classifier of such images, each by itself.
    """

    def __init__(self, model: nn.Module, smoothing: Smoothing, image: Tensor, seed: int) -> None:
        intake.check_model(model)
        self._model, self._smoothing, self._seed = evaluating(copied(model)), smoothing, seed
        self._device = device_of(model, image)
        image = image.to(self._device)
        self.num_classes, _ = intake.check_outputs(self._model, image)
        if reason := intake.dependence(self._model, image):
            raise InputError(f"{reason} No single image can be certified.")

    def counts(self, image: Tensor, place: int, purpose: str) -> Tensor:
        """Count the noisy copies of an image [C, H, W] in each class, [K + 1]; the last are in none.

        Args:
            place: the image's, which is a part of the seed, as is
            purpose: "select", "estimate" or "predict".
        """
        left = self._smoothing.num_selection if purpose == "select" else self._smoothing.num_samples
        generator = generator_at(self._device, self._seed, "smoothing", purpose, place)
        image, total = image.to(self._device), torch.zeros(1, dtype=torch.int64)
        while left > 0:
            size = min(left, self._smoothing.batch_size)
            noise = torch.randn((size, *image.shape), device=self._device, generator=generator)
            logits = scores(self._model, image + self._smoothing.sigma * noise)
            # A NaN is the largest for argmax; a network that gives some knows no class there.
            classes = torch.where(logits.isnan().any(1), logits.shape[1], logits.argmax(1))
            total = total + classes.cpu().bincount(minlength=logits.shape[1] + 1)
            left -= size
        return total

    def certify(self, data: ImageSet, places: range) -> Tensor:
        """Return each image's chosen class, how many samples agree, and the seconds it took: [3, B], float64."""
        found = []
        for place, image in zip(places, data[places.start : places.stop].images, strict=True):
            started = time.monotonic()
            selected = int(self.counts(image, place, "select")[:-1].argmax())
            # Fresh samples: those that chose the class would find it more probable than it is.
            agreeing = int(self.counts(image, place, "estimate")[selected])
            found.append([selected, agreeing, time.monotonic() - started])
        return torch.tensor(found, dtype=torch.float64).T
