"""Mixture batch norm: one set of statistics for clean images and one for adversarial ones.

Xie and Yuille 2020 (arXiv:1906.03787, section 4.1); AdvProp's auxiliary batch norm (Xie et al. 2020, arXiv:1911.09665).
Scales and shifts are two sets as well, or, in separate batch norm, one: which of the two matters is an open question
(arXiv:2403.19150).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from torch import Tensor, nn

Branch = Literal["clean", "adversarial"]


class MixtureBatchNorm2d(nn.Module):
    """Two batch norms, of which one is in use.

    Args:
        norm: the start of both.
        shared: whether the two have one scale and one shift, and only statistics of their own; its state then names
            these parameters twice, and its parameters have them once.
    """

    def __init__(self, norm: nn.BatchNorm2d, *, shared: bool = False) -> None:
        super().__init__()
        self.clean, self.adversarial = norm, copy.deepcopy(norm)
        if shared:
            self.adversarial.weight, self.adversarial.bias = norm.weight, norm.bias
        self.branch: Branch = "adversarial"

    @property
    def in_use(self) -> nn.BatchNorm2d:
        """The batch norm that the images go through."""
        return self.clean if self.branch == "clean" else self.adversarial

    def forward(self, x: Tensor) -> Tensor:
        return self.in_use(x)


def mix(model: nn.Module, *, shared: bool = False) -> int:
    """Put a mixture in place of every `nn.BatchNorm2d` in `model`; return how many there were.

    Args:
        shared: whether the two batch norms of a mixture share scale and shift.
    """
    return _replace(
        model, lambda module: MixtureBatchNorm2d(module, shared=shared) if type(module) is nn.BatchNorm2d else None
    )


def is_mixed(model: nn.Module) -> bool:
    """Whether there are mixtures in a model."""
    return any(isinstance(module, MixtureBatchNorm2d) for module in model.modules())


def unmix(model: nn.Module, branch: Branch) -> None:
    """Put a branch in place of every mixture in `model`, which is then the plain network again."""
    _replace(model, lambda module: getattr(module, branch) if isinstance(module, MixtureBatchNorm2d) else None)


def unused_branches(model: nn.Module) -> set[Branch]:
    """Return the branches that no batch of a training has gone through in any mixture."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureBatchNorm2d)]
    branches: tuple[Branch, ...] = get_args(Branch) if mixtures else ()
    counts = {branch: [getattr(mixture, branch).num_batches_tracked for mixture in mixtures] for branch in branches}
    return {branch for branch, found in counts.items() if all(count is not None and not count for count in found)}


def _replace(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> int:
    count = 0
    for parent in list(model.modules()):
        if not isinstance(parent, MixtureBatchNorm2d):
            for name, child in list(parent.named_children()):
                if (other := replacement(child)) is not None:
                    setattr(parent, name, other)
                    count += 1
    return count


@contextlib.contextmanager
def through(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Send the images through a branch; a model without mixtures is not touched."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureBatchNorm2d)]
    before = [mixture.branch for mixture in mixtures]
    try:
        for mixture in mixtures:
            mixture.branch = branch
        yield
    finally:
        for mixture, old in zip(mixtures, before, strict=True):
            mixture.branch = old


def plain_state(model: nn.Module, branch: Branch) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers that `unmix(model, branch)` would leave."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, MixtureBatchNorm2d):
            prefix = f"{name}." if name else ""
            for key in module.in_use.state_dict():
                kept, other = (f"{prefix}{each}.{key}" for each in (branch, _OTHER[branch]))
                state[f"{prefix}{key}"] = state.pop(kept)
                del state[other]
    return state


_OTHER: dict[str, str] = {"clean": "adversarial", "adversarial": "clean"}
