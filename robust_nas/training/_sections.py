"""The parts of a recipe's [train] section: each has the settings of one concern, and checks its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.config import Section
from robust_nas.core.errors import InputError
from robust_nas.evaluation import BATCH_SIZE
from robust_nas.models.mixture_norm import Branch
from robust_nas.threat import epsilon_scale_at
from robust_nas.training import Norm, TrainingMethod
from robust_nas.training.pgd_at import PGDAT

Schedule = Literal["one_cycle", "one_cycle_lr", "cosine", "piecewise", "cyclic", "linear"]
OptimiserName = Literal["sgd", "adamw", "lars", "lamb"]
Precision = Literal["float32", "bfloat16", "float16"]
Kept = Literal["best", "last"]
NormSync = Literal["local", "synchronised"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training with its own resolution and batch.

    Args:
        epochs: number of epochs.
        size: pixels a side of the training images; the data set's own, if not given.
        batch_size: global batch; the training's, if not given.
    """

    epochs: int
    size: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("size", self.size), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"train.phases: {name} must be at least 1, but got {value}.")


@dataclass(frozen=True, kw_only=True)
class Knot:
    """A learning rate at a point of the training, given in epochs."""

    epoch: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Objective(Section):
    """The objective.

    Args:
        method: the examples and the loss.
    """

    method: TrainingMethod = field(default_factory=PGDAT)


@dataclass(frozen=True, kw_only=True)
class Length(Section):
    """The length of a training.

    Args:
        epochs: passes over the training split; the sum of the phases', where there are some.
        batch_size: global batch.
        phases: parts with resolutions and batches of their own, one after the other.
    """

    epochs: int = 50
    batch_size: int = 256
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise InputError(f"train.{name} must be at least 1, but got {value}.")
        if self.phases and (total := sum(phase.epochs for phase in self.phases)) != self.epochs:
            raise InputError(
                f"train.phases have {total} epochs together, but train.epochs is {self.epochs}; set that to {total}."
            )

    @property
    def batch_sizes(self) -> list[int]:
        """The global batch of every phase."""
        return [phase.batch_size or self.batch_size for phase in self.phases] or [self.batch_size]

    def phase_at(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 0, with its batch size."""
        left = epoch
        for phase in self.phases:
            if left < phase.epochs:
                return Phase(epochs=phase.epochs, size=phase.size, batch_size=phase.batch_size or self.batch_size)
            left -= phase.epochs
        return Phase(epochs=self.epochs, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Optimisation(Length):
    """The optimiser and its learning rate.

    Args:
        optimiser: "sgd", "adamw", or for large batches "lars" (You et al. 2017, arXiv:1708.03888) or "lamb"
            (You et al. 2020, arXiv:1904.00962).
        learning_rate: the largest learning rate.
        base_batch: the batch that this learning rate is for; it is multiplied by batch_size / base_batch (linear
            scaling, arXiv:1706.02677). If not given, it is for any.
        schedule: "one_cycle" rises linearly over the first `warm_up` share and falls linearly to 0; "one_cycle_lr" is
            torch's `OneCycleLR` as it is by default: along cosines from 1/25 of `learning_rate` up and down to
            1/250000, while the momentum goes from 0.95 down to 0.85 and back; "cosine" rises as "one_cycle" and falls
            along a cosine; "cyclic" rises and falls linearly, `cycles` times, each rise as long as its fall;
            "piecewise" drops by 10 at each of `milestones`; "linear" joins `knots` by straight lines.
        warm_up: share of the steps in which the learning rate rises (one_cycle, one_cycle_lr, cosine).
        warm_up_epochs: the same in epochs, in place of `warm_up`; before "piecewise" as well, whose `milestones` stay
            shares of all epochs.
        cycles: rises of "cyclic".
        milestones: shares of the epochs (piecewise).
        knots: learning rates by epoch, in order (linear).
        momentum: of sgd and lars.
        nesterov: whether their momentum is Nesterov's.
        weight_decay: of all parameters.
        plain_vectors: whether biases, and scales and shifts of norms, are left out of weight decay and of the rates
            that "lamb" has by layer ("lars" leaves them out in any case).
    """

    optimiser: OptimiserName = "sgd"
    learning_rate: float = 0.1
    base_batch: int | None = None
    schedule: Schedule = "one_cycle"
    warm_up: float = 0.3
    warm_up_epochs: float | None = None
    cycles: int = 1
    milestones: tuple[float, ...] = (0.75, 0.9)
    knots: tuple[Knot, ...] = ()
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    plain_vectors: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train.optimiser", self.optimiser, OptimiserName)
        check_choice("train.schedule", self.schedule, Schedule)
        if not self.learning_rate > 0:
            raise InputError(f"train.learning_rate must be above 0, but got {self.learning_rate}.")
        _check_shares(warm_up=self.warm_up, momentum=self.momentum)
        _check_not_negative(weight_decay=self.weight_decay)
        if self.cycles < 1:
            raise InputError(f"train.cycles must be at least 1, but got {self.cycles}.")
        for name, schedule, given in (
            ("knots", "linear", bool(self.knots)),
            ("milestones", "piecewise", self.milestones != Optimisation.milestones),
            ("cycles", "cyclic", self.cycles != 1),
        ):
            if given and self.schedule != schedule:
                raise InputError(
                    f"train.{name} is of the schedule '{schedule}', but train.schedule is '{self.schedule}'."
                )
        self._check_milestones()
        self._check_knots()
        self._check_scaling()

    def _check_scaling(self) -> None:
        if self.base_batch is not None:
            check_at_least("train.base_batch", self.base_batch, 1)
            if self.schedule == "linear" or len(set(self.batch_sizes)) > 1:
                raise InputError(
                    "train.base_batch scales one learning rate for one batch, not train.knots and the batches of "
                    "train.phases; leave it out."
                )
        if self.warm_up_epochs is None:
            return
        if not 0 <= self.warm_up_epochs < self.epochs:
            raise InputError(
                f"train.warm_up_epochs must be at least 0 and below train.epochs, but got {self.warm_up_epochs} of "
                f"{self.epochs}."
            )
        if self.schedule in ("cyclic", "linear"):
            raise InputError(
                f"train.warm_up_epochs is not of the schedule '{self.schedule}', which says itself when it rises; "
                "leave it out."
            )

    @property
    def peak_rate(self) -> float:
        """The largest learning rate, for this batch."""
        return self.learning_rate * (1 if self.base_batch is None else self.batch_size / self.base_batch)

    @property
    def warm_up_share(self) -> float:
        """The share of the epochs in which the learning rate rises, where the schedule begins by that."""
        return self.warm_up if self.warm_up_epochs is None else self.warm_up_epochs / self.epochs

    def _check_milestones(self) -> None:
        if not all(0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise InputError(
                "train.milestones are shares of the epochs, rising and between 0 and 1, but got "
                f"{list(self.milestones)}."
            )

    def _check_knots(self) -> None:
        rates = [knot.learning_rate for knot in self.knots]
        if rates and not (min(rates) >= 0 and max(rates) > 0):
            raise InputError(f"train.knots must have learning rates of at least 0, and one above it, but got {rates}.")
        epochs = [knot.epoch for knot in self.knots]
        rising = len(epochs) >= 2 and epochs == sorted(set(epochs))
        if self.schedule == "linear" and not (rising and epochs[0] == 0 and epochs[-1] == self.epochs):
            raise InputError(
                f"train.knots of the linear schedule must have rising epochs from 0 to {self.epochs} "
                f"(train.epochs), but got {epochs}."
            )

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate when a share of the epochs, in [0, 1], is done."""
        if self.schedule == "piecewise":
            if self.warm_up_epochs is not None and progress < self.warm_up_share:
                return self.peak_rate * progress / self.warm_up_share
            return self.peak_rate * 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        if self.schedule == "cyclic":
            place = math.fmod(progress * self.cycles, 1.0)
            return self.peak_rate * (1 - abs(2 * place - 1))
        if self.schedule == "linear":
            return self._between_knots(progress * self.epochs)
        if self.schedule == "one_cycle_lr":
            return self._along_cosines(progress, self.peak_rate / 25, self.peak_rate, self.peak_rate / 25e4)
        if progress < self.warm_up_share:
            return self.peak_rate * progress / self.warm_up_share
        falling = (progress - self.warm_up_share) / (1 - self.warm_up_share)
        left_over = 1 - falling if self.schedule == "one_cycle" else (1 + math.cos(math.pi * falling)) / 2
        return self.peak_rate * left_over

    def momentum_at(self, progress: float) -> float:
        """Return the momentum when a share of the epochs, in [0, 1], is done."""
        return self._along_cosines(progress, 0.95, 0.85, 0.95) if self.schedule == "one_cycle_lr" else self.momentum

    def _between_knots(self, epoch: float) -> float:
        for left, right in zip(self.knots, self.knots[1:], strict=False):
            if epoch <= right.epoch:
                between = (epoch - left.epoch) / (right.epoch - left.epoch)
                return left.learning_rate + between * (right.learning_rate - left.learning_rate)
        return self.knots[-1].learning_rate

    def _along_cosines(self, progress: float, first: float, middle: float, last: float) -> float:
        """Return the value that half a cosine leads to, from `first` to `middle` in the warm-up, then to `last`."""
        start, end, place = first, middle, progress / max(self.warm_up_share, 1e-12)
        if progress >= self.warm_up_share:
            start, end, place = middle, last, (progress - self.warm_up_share) / (1 - self.warm_up_share)
        return end + (start - end) * (1 + math.cos(math.pi * place)) / 2


@dataclass(frozen=True, kw_only=True)
class Curriculum(Objective):
    """The growth of epsilon.

    Args:
        epsilon_ramp: share of the steps over which epsilon grows linearly to its full size; large radii need it.
        epsilon_warm_up: share of the steps before that, in which epsilon is almost 0. If neither is given, the method
            decides: 0.5 after 0.1 where it bounds the network, and else 0.
    """

    epsilon_ramp: float | None = None
    epsilon_warm_up: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(epsilon_ramp=self.epsilon_ramp, epsilon_warm_up=self.epsilon_warm_up)
        if sum(self.curriculum) > 1:
            raise InputError(
                f"train.epsilon_warm_up and train.epsilon_ramp must be at most 1 together, but got "
                f"{self.epsilon_warm_up} and {self.epsilon_ramp}; epsilon would not reach its full size."
            )

    @property
    def curriculum(self) -> tuple[float, float]:
        """The shares of the steps in which epsilon is almost 0, and in which it grows."""
        if self.epsilon_warm_up is None and self.epsilon_ramp is None:
            return self.method.curriculum
        return self.epsilon_warm_up or 0.0, self.epsilon_ramp or 0.0

    def epsilon_scale_at(self, progress: float) -> float:
        """Return the factor of epsilon when a share of the epochs, in [0, 1], is done."""
        return epsilon_scale_at(progress, *self.curriculum)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Section):
    """The augmentation of training images and their labels.

    Args:
        padding: random crops from images padded by this many zeros; 0 for none.
        flip: random mirroring, left to right.
        cutout: side of a square hole in each image, in pixels; 0 for none (arXiv:1708.04552).
        mix_up: alpha of the Beta distribution by which two images and their labels are mixed; 0 for none
            (arXiv:1710.09412).
        label_smoothing: the part of each label that is spread over all classes.
    """

    padding: int = 0
    flip: bool = False
    cutout: int = 0
    mix_up: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_negative(padding=self.padding, cutout=self.cutout, mix_up=self.mix_up)
        _check_shares(label_smoothing=self.label_smoothing)

    def check_size(self, side: int) -> None:
        """Raise InputError if nothing is left of images of as many pixels a side."""
        for name, pixels in (("padding", self.padding), ("cutout", self.cutout)):
            if pixels >= side:
                raise InputError(f"train.{name} of {pixels} pixels leaves nothing of images of {side}; set it lower.")


@dataclass(frozen=True, kw_only=True)
class Normalisation(Objective):
    """Batch norms of clean and adversarial images.

    Args:
        norm: "mixture" gives clean and adversarial images batch norms of their own (arXiv:1906.03787); "separate" gives
            them statistics of their own, and one scale and shift; "batch" gives all one; if not given, the method
            decides.
        serve: the batch norm of a mixture that the trained network keeps, or the statistics of a separate one:
            "adversarial" or "clean".
        norm_sync: the images whose statistics batch norms take in training, where several processes train: "local"
            takes those of each process, "synchronised" those of all, with one message for each norm and pass. Attacks
            take those of each process in either case, and running statistics are equal on all before every evaluation
            and checkpoint.
    """

    norm: Norm | None = None
    serve: Branch = "adversarial"
    norm_sync: NormSync = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train.serve", self.serve, Branch)
        check_choice("train.norm_sync", self.norm_sync, NormSync)
        if self.norm is not None:
            check_choice("train.norm", self.norm, Norm)
        if self.serve == "clean" and not self.mixes:
            raise InputError(
                "train.serve 'clean' chooses a branch of a mixture; set train.norm to 'mixture' and train.clean_weight "
                "above 0 as well (or train.norm to 'separate', or clean_images of the method pgd_at above 0)."
            )

    @property
    def mixes(self) -> bool:
        """Whether clean and adversarial images have statistics of their own in training."""
        return (self.norm or self.method.norm) != "batch"

    @property
    def shares_affine(self) -> bool:
        """Whether they have these alone, and one scale and shift."""
        return (self.norm or self.method.norm) == "separate"


@dataclass(frozen=True, kw_only=True)
class Regularisation(Section):
    """The terms added to the method's loss, and the changes of the network and its weights in training.

    Args:
        clean_weight: weight of the clean images' cross-entropy, which is added to the method's loss. With a mixture
            and 1: AdvProp (arXiv:1911.09665).
        pairing: weight of the mean squared difference between the logits of crafted and clean images (adversarial
            logit pairing, arXiv:1803.06373).
        drop_path: the probability with which, at the end of the training, an operation's output is dropped from a
            node's sum, image by image, identities excepted; it grows linearly from 0, epoch by epoch (arXiv:1806.09055,
            appendix A.2: 0.2; Zoph et al. 2018, arXiv:1707.07012). For networks of the DARTS space. Attacks see the
            network without.
        auxiliary: weight of the cross-entropy, at the crafted images, of an auxiliary head at 2/3 of the depth, which
            is trained with the network and then left out (arXiv:1806.09055, appendix A.2: 0.4). For networks of the
            DARTS space.
        awp: length of the weights' move up the loss before each step, as a share of their norm (adversarial weight
            perturbation, arXiv:2004.05884); the paper's values are 0.01 with pgd_at and 0.005 with trades.
        ema: largest decay of the running mean of weights and buffers; this mean is evaluated and kept; 0 for none.
            After t steps the decay is at most (t + 1) / (t + 10).
    """

    clean_weight: float = 0.0
    pairing: float = 0.0
    drop_path: float = 0.0
    auxiliary: float = 0.0
    awp: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(drop_path=self.drop_path, ema=self.ema)
        _check_not_negative(
            clean_weight=self.clean_weight, pairing=self.pairing, auxiliary=self.auxiliary, awp=self.awp
        )


@dataclass(frozen=True, kw_only=True)
class Numerics(Section):
    """The computation of a step.

    Args:
        precision: "float32", or "bfloat16" or "float16" of the passes through the network; images, changes,
            projections and weights are float32.
        channels_last: whether images and weights lie in memory channel by channel last, which convolutions of
            accelerators prefer.
        gradient_clip: the largest Euclidean length of the gradient of all parameters, to which a longer one is scaled;
            0 for none. Certified training is published with 10.
        compile: whether the passes are compiled, which takes minutes at first and pays in long trainings.
        craft_precision: the precision in which examples are crafted; `precision`, if not given.
        checkpointing: whether the activations of the network's blocks are computed again in every backward pass, in
            the attacks as well, instead of kept: less memory, one more forward pass for each backward pass, and the
            same numbers (arXiv:1604.06174). Blocks are found by `models.checkpointing.blocks_of`.
        accumulate: parts in which each process crafts, and differentiates, its batch of a step, one after the other:
            less memory. Gradients are the whole batch's, to rounding, but for batch norm: each part is normalised by
            its own statistics, as that of each process is, and the running statistics move once, by the parts' mean.
            Examples are the whole batch's too, unless the attack takes batch statistics; dropout draws by part.
    """

    precision: Precision = "float32"
    craft_precision: Precision | None = None
    checkpointing: bool = False
    accumulate: int = 1
    channels_last: bool = False
    gradient_clip: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train.precision", self.precision, Precision)
        if self.craft_precision is not None:
            check_choice("train.craft_precision", self.craft_precision, Precision)
        if self.accumulate < 1:
            raise InputError(f"train.accumulate must be at least 1, but got {self.accumulate}.")
        _check_not_negative(gradient_clip=self.gradient_clip)


@dataclass(frozen=True, kw_only=True)
class Start(Section):
    """The start of a training, in a run.

    Args:
        start_from: a safetensors file with weights of the same network, such as those in a run's checkpoints. The
            training starts from these instead of random ones: to reach a larger radius, say.
        boosting: whether every network of a run after the first is trained for its contribution to those before it,
            which are frozen. Loss, attacks and bounds are of all together, with equal weights (arXiv:1910.14655,
            section 4).
    """

    start_from: Path | None = None
    boosting: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection(Section):
    """The choice of the epoch that is kept.

    Args:
        selection_attack: attacks the validation split after each epoch.
        keep: "best" keeps the network of the epoch with the best accuracy on the validation split, under attack, or,
            where the method bounds the network, certified by intervals; "last" keeps that of the last epoch, as in
            publications that do not select.
        selection_batch: validation images that are attacked at once; fewer take less memory.
    """

    selection_attack: Attack = field(default_factory=lambda: PGD(steps=10))
    selection_batch: int = BATCH_SIZE
    keep: Kept = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train.keep", self.keep, Kept)
        check_at_least("train.selection_batch", self.selection_batch, 1)


def _check_shares(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise InputError(f"train.{name} must be in [0, 1), but got {value}.")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise InputError(f"train.{name} must not be negative, but got {value}.")
