"""DrNAS (arXiv:2006.10355): each edge's mixture is a sample of a Dirichlet distribution, whose concentrations learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robust_nas.relaxations.dirichlet import DirichletRelaxation
from robust_nas.searches._differentiable import DifferentiableSearch

if TYPE_CHECKING:
    from torch import Tensor

    from robust_nas.relaxations.relaxation import Relaxation


@dataclass(frozen=True, kw_only=True)
class Dirichlet(DifferentiableSearch):
    """Search with one Dirichlet distribution per edge.

    Args:
        anchor: "l2" holds alpha near 0, "kl" holds each edge's distribution near the uniform one.
        sharpness: divisor of concentrations when a mixture is sampled, at the start and at the end; the mean
            stays. Above 1, samples are nearer to single operations, as in the found cell.
    """

    anchor: Literal["l2", "kl"] = "l2"
    sharpness: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_schedule("sharpness", self.sharpness)

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return the distributions that mixtures are drawn from."""
        return DirichletRelaxation(num_edges, num_operations, seed=seed, sharpness=self.sharpness)

    def anchored(self, relaxation: Relaxation) -> Tensor:
        """Return the term added to alpha's loss, times `anchor_scale`."""
        return relaxation.anchor(self.anchor)
