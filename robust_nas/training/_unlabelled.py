"""The part of a recipe's [train] section about images without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_nas.core.checks import check_at_least
from robust_nas.core.config import Section
from robust_nas.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Unlabelled(Section):
    """The images without labels that a method such as `dat` trains on beside the training split.

    Args:
        unlabelled: a folder of images, in it or in the folders in it, or an array in a `.npy` file; see
            `datasets.unlabelled`.
        unlabelled_batch: of them in each step, on all processes together; as many as labelled ones, if not given. An
            epoch is one pass over the labelled images; the unlabelled ones go round at their own pace.
    """

    unlabelled: Path | None = None
    unlabelled_batch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabelled_batch is not None:
            check_at_least("train.unlabelled_batch", self.unlabelled_batch, 1)
            if self.unlabelled is None:
                raise InputError("train.unlabelled_batch counts images of train.unlabelled; give that folder as well.")
