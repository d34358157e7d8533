"""Training methods, which craft examples and define the loss; one loop (`fit`) trains with any of them.

One file is one method: a frozen, keyword-only dataclass with `craft` and `loss` that inherits `TrainingMethod`.
`training.get("pgd_at")`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from robust_nas.core.errors import InputError
from robust_nas.core.registry import Group, offered

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.runtime.distributed import World
    from robust_nas.threat import ThreatModel
    from robust_nas.training._costs import StepCost as StepCost
    from robust_nas.training._costs import step_cost as step_cost
    from robust_nas.training._costs import trainer_of as trainer_of
    from robust_nas.training._loop import Diverged as Diverged
    from robust_nas.training._loop import Trainer as Trainer
    from robust_nas.training._loop import TrainingResult as TrainingResult
    from robust_nas.training._loop import fit as fit
    from robust_nas.training._loop import rehearse as rehearse
    from robust_nas.training._options import Forward as Forward
    from robust_nas.training._plan import Training as Training

Norm = Literal["batch", "mixture", "separate"]


@dataclass
class Memory:
    """The memory of a method from step to step; it is saved and resumed with the training.

    Args:
        shared: values by name (tensors, numbers, mappings of them) that every rank computes alike.
        tables: tensors [rows, ...] by name, of which every rank reads and writes the rows of its own batches only.
    """

    shared: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    _written: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def table(self, name: str, shape: tuple[int, ...], device: Any = "cpu") -> Tensor:
        """Return a table, all zeros at first; read it by `table[batch.ids]`, and change it by `write` alone.

        Raises:
            InputError: if its shape has changed.
        """
        import torch

        if name not in self.tables:
            self.tables[name] = torch.zeros(shape, device=device)
        if self.tables[name].shape != shape:
            raise InputError(
                f"What the training method remembers as '{name}' is of shape {list(self.tables[name].shape)}, but is "
                f"needed as {list(shape)}: this method is not for images or batches whose size changes (train.phases)."
            )
        if name not in self._written:
            self._written[name] = torch.zeros(shape[0], dtype=torch.bool, device=device)
        return self.tables[name]

    def write(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Replace the rows [B] of a table by `values` [B, ...]."""
        self.tables[name][rows] = values.detach()
        self._written[name][rows] = True

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"shared": self.shared, "tables": self.tables}

    def load_state(self, state: dict[str, Any], device: Any) -> None:
        """Go back to a checkpoint, on a device."""
        self.shared, self.tables = (on_device(device, state[name]) for name in ("shared", "tables"))

    def merge(self, world: World) -> None:
        """Give every rank the rows that the others have written since the last time; each row has one writer."""
        import torch

        for name, written in self._written.items():
            table = self.tables[name]
            mine = written.view(-1, *[1] * (table.dim() - 1))
            total = world.sum(torch.where(mine, table, torch.zeros_like(table)))
            writers = world.sum(written.float()).view_as(mine)
            self.tables[name] = torch.where(writers > 0, total, table)
            written.zero_()


def on_device(device: Any, value: Any) -> Any:
    """Return nested tensors on a device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(device, item) for key, item in value.items()}
    return [on_device(device, item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Batch:
    """The input of a method in one step: this rank's part of a global batch.

    Args:
        images: [B, C, H, W], float32 in [0, 1], augmented.
        labels: [B].
        targets: what the loss compares predictions with: the labels [B], or probabilities of the classes [B, K] where
            labels are smoothed or mixed. `F.cross_entropy` takes either.
        threat: the threat model of this step (epsilon may still be growing).
        seed: of all that is drawn in this step; ranks, steps and replays have seeds of their own.
        ids: [B], the images' places in the training split, whatever the order of the epoch.
        places: [B], the images' places in the global batch.
        num_samples: images of the training split.
        batch_size: images of the global batch.
        memory: the method's memory; the same object in every step.
        mean: the mean of a tensor over all ranks.
        epsilon_scale: how far epsilon has grown, in [0, 1]; 0 while it has not begun to.
        whole: images of this rank's batch, where this is a part of it; all of them, if not given.
        first: the place of the part's first image among them.
        unlabelled: images [U, C, H, W] without labels, augmented, for methods that take them.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    threat: ThreatModel
    seed: int
    ids: Tensor
    places: Tensor
    num_samples: int
    batch_size: int
    memory: Memory
    mean: Callable[[Tensor], Tensor] = lambda value: value
    epsilon_scale: float = 1.0
    whole: int | None = None
    first: int = 0
    unlabelled: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """Return the batch in as many parts, whose sizes differ by one image at most."""
        ends = [len(self.images) * number // count for number in range(count + 1)]
        return [self] if count == 1 else [self._part(slice(*pair)) for pair in pairwise(ends)]

    def _part(self, rows: slice) -> Batch:
        sliced = {name: getattr(self, name)[rows] for name in ("images", "labels", "targets", "ids", "places")}
        return replace(self, **sliced, whole=len(self.images), first=rows.start)

    def drawn(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return this part's rows [B, ...] of what is drawn for the whole batch: as many as `draw` is called with.

        What is drawn from a generator goes through here, so that an image gets the same numbers in a part.
        """
        count = len(self.images)
        return draw(self.whole or count)[self.first : self.first + count]


class TrainingMethod(ABC):
    """The base class of training methods; most methods keep its defaults.

    A method overrides what is a property here by one of its own, by a field, or by a class variable.
    """

    norm: ClassVar[Norm] = "batch"
    """"mixture" gives clean and adversarial images batch norms of their own, if `train.norm` does not say otherwise;
    "separate" gives them statistics of their own only."""

    fixed_size: ClassVar[bool] = False
    """Whether images and batches must keep their size."""

    bounds_network: ClassVar[bool] = False
    """Whether the loss bounds the network with the clean images' batch norms.

    Such a network is neither compiled nor has mixtures, and certified accuracy selects the epoch.
    """

    curriculum: ClassVar[tuple[float, float]] = (0.0, 0.0)
    """The shares of the steps in which epsilon is almost 0, and grows, if the training does not give them."""

    takes_unlabelled: ClassVar[bool] = False
    """Whether it has a loss of a batch's unlabelled images, whose examples `craft` returns after the others'."""

    stays_in_pixels: ClassVar[bool] = True
    """Whether the crafted images are in [0, 1]."""

    @property
    def stays_in_ball(self) -> bool:
        """Whether the crafted images are inside the threat model."""
        return True

    @property
    def replays(self) -> int:
        """The number of steps that each batch is taken for."""
        return 1

    @property
    def ahead(self) -> int:
        """The steps ahead of a batch's own at which other processes craft its examples; 0 if each crafts its own.

        Then every second process crafts, and `craft` is called there, with the model in the state that it had as many
        steps before the batch's own.
        """
        return 0

    @property
    def watch(self) -> float:
        """The fall of robust accuracy below the best epoch's at which the training stops; 0 never stops."""
        return 0.0

    @property
    def differentiates_twice(self) -> bool:
        """Whether the loss has a gradient in it, through which compiled networks cannot be differentiated."""
        return False

    @property
    def accumulates(self) -> bool:
        """Whether a batch's examples are those of its parts, and its loss is the mean of theirs, image by image."""
        return True

    @property
    def fits_searches(self) -> bool:
        """Whether a search can minimise it; replayed batches and mixtures of batch norms are for trainings."""
        return self.replays == 1 and self.norm == "batch"

    def prepare(self, model: nn.Module, seed: int) -> None:
        """Change the network before its first step."""

    @abstractmethod
    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images [B, C, H, W] to train on, detached; `model`, in training mode, is left as it was."""

    @abstractmethod
    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the batch's scalar loss.

        `forward` maps images to logits [B, K] with the model in training mode. It remembers its result for a tensor, so
        that losses added to a method's cost no pass of their own. It is the model itself, or has it as `forward.model`,
        for what is not an ordinary pass.
        """


def together(forward: Callable[[Tensor], Tensor], crafted: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of adversarial images and of clean ones that go in with them, for a method's loss.

    One pass of both together, but for a forward pass that knows of a mixture (`Forward.together`).

    Args:
        forward: as a method's `loss` is given it.
        crafted: [B, C, H, W].
        clean: all or the first ones of the batch's own images.
    """
    import torch

    # A search's forward pass, or a model, has no mixture to choose in.
    own: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = getattr(forward, "together", None)
    if own is not None:
        return own(crafted, clean)
    first, second = forward(torch.cat([crafted, clean])).split([len(crafted), len(clean)])
    return first, second


_GROUP = Group(__name__, "TrainingMethod", "craft")
get, names = _GROUP.get, _GROUP.names

__getattr__ = offered(
    __name__,
    {
        "StepCost": "_costs",
        "step_cost": "_costs",
        "trainer_of": "_costs",
        "Diverged": "_loop",
        "Trainer": "_loop",
        "TrainingResult": "_loop",
        "fit": "_loop",
        "rehearse": "_loop",
        "Forward": "_options",
        "Training": "_plan",
    },
)
