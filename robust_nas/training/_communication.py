"""The part of a recipe's [train] section about what processes send each other."""

from __future__ import annotations

from dataclasses import dataclass

from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.config import Section
from robust_nas.runtime.compression import Compression


@dataclass(frozen=True, kw_only=True)
class Communication(Section):
    """The gradients that processes exchange; nothing of it matters to one process.

    Args:
        compression: the form in which gradients are sent: "none" as they are; "fp16" and "bf16" in half precision;
            "powersgd" as matrices of low rank, with what they leave out added to the next step's (arXiv:1905.13727);
            "int8" rounded at random to 8 bits, so that their mean is right (arXiv:2206.06257, arXiv:1610.02132).
        powersgd_rank: rank of these matrices.
    """

    compression: Compression = "none"
    powersgd_rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train.compression", self.compression, Compression)
        check_at_least("train.powersgd_rank", self.powersgd_rank, 1)
