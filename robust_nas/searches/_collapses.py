"""The memory of a watched search: its last healthy states, and its collapses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_nas.searches._mixtures import Step
from robust_nas.searches._stability import dominance, largest_eigenvalue

if TYPE_CHECKING:
    from robust_nas.searches._mixtures import Mixtures
    from robust_nas.searches._stability import CollapseMonitor
    from robust_nas.threat import ThreatModel


class Collapses:
    """The collapses of a search, as a monitor finds them.

    Args:
        monitor: says what a collapse is.
    """

    def __init__(self, monitor: CollapseMonitor) -> None:
        self.monitor = monitor
        self.healthy: list[dict[str, Any]] = []
        """States after the last epochs, oldest first."""
        self.found: list[dict[str, Any]] = []

    @property
    def are_too_many(self) -> bool:
        """Whether the search has collapsed once more than it may."""
        return len(self.found) > self.monitor.restarts

    def forget_states(self) -> None:
        """Forget the healthy states: a new stage has other sizes."""
        self.healthy = []

    def judge(
        self, trajectory: Sequence[dict[str, Any]], state: Callable[[], dict[str, Any]], *, since: int
    ) -> dict[str, Any] | None:
        """Return the state to go back to, if the search has collapsed in its last epoch; else keep its present one.

        Args:
            trajectory: the snapshots after every epoch.
            state: gives the present state.
            since: the epoch in which the present stage began: mixtures of another are of other operations, and its
                eigenvalues of another network.
        """
        since = max(since, self.found[-1]["epoch"] if self.found else 0)
        rows = [row for row in trajectory if row["epoch"] > since]
        reason = self.monitor.has_collapsed([row["eigenvalue"] for row in rows], [row["dominance"] for row in rows])
        epoch = trajectory[-1]["epoch"]
        if reason is None:
            self.healthy = [*self.healthy, copy.deepcopy({"epoch": epoch, **state()})][-self.monitor.window :]
            return None
        # Those after the first are of the search that collapsed.
        self.healthy = self.healthy[:1]
        back_to = self.healthy[0] if self.healthy else None
        self.found.append({"epoch": epoch, "reason": reason, "back_to": epoch if back_to is None else back_to["epoch"]})
        return back_to

    def last_said(self, epochs: int) -> str:
        """Return the sentence on the last collapse of a search of as many epochs."""
        last = self.found[-1]
        ends = self.are_too_many or last["epoch"] == epochs
        then = "ends at" if ends else "goes on, with ten times the anchor, from"
        return (
            f"search: collapsed in epoch {last['epoch']}: {last['reason']}; it {then} the state of epoch "
            f"{last['back_to']}"
        )

    def signs(self, mixtures: Mixtures, threat: ThreatModel, epoch: int, *, learns: bool) -> dict[str, float | None]:
        """Return the share of edges without parameters and the largest eigenvalue; None before alpha learns."""
        if not learns:
            return {"dominance": None, "eigenvalue": None}
        share = dominance(mixtures.relaxation.mean(), mixtures.space.operations)
        eigenvalue = self._eigenvalue(mixtures, threat, epoch) if self.monitor.growth else None
        return {"dominance": share, "eigenvalue": eigenvalue}

    def _eigenvalue(self, mixtures: Mixtures, threat: ThreatModel, epoch: int) -> float:
        """Return the largest eigenvalue of the Hessian of the validation loss in alpha."""
        relaxation, supernet, world, images = mixtures.relaxation, mixtures.supernet, mixtures.world, mixtures.data
        statistics = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
        supernet.train()
        indices = torch.arange(min(self.monitor.images, len(images.validation)), device=world.device)
        step = Step(threat, 1.0, (epoch, 0))
        _, batch, crafted = mixtures.crafted(step, "stability", images.validation, indices)

        def loss(alpha: Tensor) -> Tensor:
            kept, relaxation.alpha = relaxation.alpha, alpha
            mixture = relaxation.expected().to(world.device)
            relaxation.alpha = kept
            return mixtures.loss(supernet.at(mixture), crafted, batch)

        # One process's: each has crafted examples of its own, and all have to decide alike.
        found = world.broadcast(largest_eigenvalue(loss, relaxation.alpha))
        for name, buffer in supernet.named_buffers():
            buffer.copy_(statistics[name])
        return found
