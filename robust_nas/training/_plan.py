"""The settings of a training: a recipe's [train] section."""

from __future__ import annotations

from dataclasses import dataclass

from robust_nas.core.errors import InputError
from robust_nas.training._communication import Communication
from robust_nas.training._sections import (
    Augmentation,
    Curriculum,
    Knot,
    Length,
    Normalisation,
    Numerics,
    Objective,
    Optimisation,
    Phase,
    Regularisation,
    Selection,
    Start,
)
from robust_nas.training._unlabelled import Unlabelled

__all__ = ["Knot", "Phase", "Training"]


@dataclass(frozen=True, kw_only=True)
class Training(
    Unlabelled,
    Communication,
    Selection,
    Start,
    Numerics,
    Regularisation,
    Normalisation,
    Augmentation,
    Curriculum,
    Optimisation,
    Length,
    Objective,
):
    """The plan of a training: all parts together, and the rules that they must agree on.

    Raises:
        InputError: for a value outside its range, or settings that contradict each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        method = self.method
        if method.fixed_size and len({(phase.size, phase.batch_size) for phase in self.phases}) > 1:
            raise InputError(
                "train.phases change the size of images or batches, but what this method carries from batch to "
                "batch has one size; leave them out, or take another method."
            )
        if self.compile and method.differentiates_twice:
            raise InputError(
                "train.compile cannot be used where the loss has a gradient in it (grad_align); leave it out."
            )
        if method.bounds_network and (self.compile or self.mixes):
            raise InputError(
                "This method bounds the network as it is, with the batch norms of the clean images; leave out "
                "train.compile, and train.norm or set it to 'batch'."
            )
        if self.norm_sync == "synchronised" and (self.compile or method.bounds_network):
            raise InputError(
                "train.norm_sync 'synchronised' is for networks that are neither compiled nor bounded in training; "
                "leave out train.compile, take a method that does not bound the network, or set it to 'local'."
            )
        if self.unlabelled is not None:
            self._check_unlabelled()
        if self.compression == "powersgd" and self.precision == "float16":
            raise InputError(
                "train.compression 'powersgd' keeps what it leaves out for the next step, but gradients in float16 "
                "change their scale between steps; set train.precision to 'bfloat16'."
            )
        if self.checkpointing and (self.compile or method.bounds_network):
            raise InputError(
                "train.checkpointing is for networks that are neither compiled nor bounded in training; leave out "
                "train.compile, take a method that does not bound the network, or set it to false."
            )
        if self.accumulate > 1 and not method.accumulates:
            raise InputError(
                f"train.accumulate takes a batch in parts, but the loss of {type(method).__name__} as it is set is of "
                "all its images together; set it to 1, or take another method."
            )
        for name, weight in (("drop_path", self.drop_path), ("auxiliary", self.auxiliary)):
            if weight and (self.compile or method.bounds_network):
                raise InputError(
                    f"train.{name} changes the network in training, which is neither compiled nor bounded so; leave "
                    "out train.compile, and take a method that does not bound the network, or set it to 0."
                )

    def trainers(self, processes: int) -> int:
        """Return how many of as many processes take steps.

        Raises:
            InputError: if half of them are to craft, but their number is odd.
        """
        if self.method.ahead and processes % 2:
            raise InputError(
                "train.method.crafters 'others' has one half of the processes craft for the other, but there "
                f"{'is' if processes == 1 else 'are'} {processes}; start an even number of them by torchrun, or set it "
                "to 'own'."
            )
        return processes // 2 if self.method.ahead else processes

    def check_learns(self, num_images: int) -> None:
        """Raise InputError where the schedule gives every step the learning rate 0, as falling ones do a single step.

        Args:
            num_images: of the training split.
        """
        steps = [
            max(num_images // (self.phase_at(epoch).batch_size or self.batch_size), 1) * self.method.replays
            for epoch in range(self.epochs)
        ]
        shares = (
            (epoch + (step + 1) / count) / self.epochs for epoch, count in enumerate(steps) for step in range(count)
        )
        if not any(self.learning_rate_at(share) > 1e-9 * self.learning_rate for share in shares):
            raise InputError(
                f"The schedule '{self.schedule}' has fallen to a learning rate of 0 when a training of {sum(steps)} "
                f"{'steps' if sum(steps) > 1 else 'step'} takes it; set train.epochs higher or train.batch_size lower, "
                "or train.schedule='piecewise'."
            )

    def _check_unlabelled(self) -> None:
        if not self.method.takes_unlabelled:
            raise InputError(
                f"train.unlabelled gives images without labels, but {type(self.method).__name__} has no loss of them; "
                "take the method dat, or leave it out."
            )
        given = {"mixtures": self.mixes, "pairing": self.pairing, "auxiliary": self.auxiliary}
        given["accumulate"] = self.accumulate > 1
        if wrong := [name for name, value in given.items() if value]:
            what = "train.norm" if wrong[0] == "mixtures" else f"train.{wrong[0]}"
            raise InputError(
                f"{what} is of labelled images alone, and cannot be used with train.unlabelled; leave out one of them."
            )
