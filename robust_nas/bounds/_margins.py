"""From a network's logits, as a box, to lower bounds of its margins."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._box import Box, in_autocast
from robust_nas.bounds._graph import Leaf, MixedImages, Node, largest_value, lower_bound
from robust_nas.bounds._memory import TooManyImages, limited, memory
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.intake.independence import dependence
from robust_nas.models.scores import checked_logits, logits_of, taking
from robust_nas.threat import ThreatModel

Precision = Literal["float64", "float32"]

Network = Callable[[Tensor], Tensor]
"""Images [B, C, H, W], or a box of them, to logits [B, K]."""

LowerBound = Callable[[Node, Tensor, Leaf | None], tuple[Tensor, Tensor | None]]

_ROWS = 2**20
"""Numbers of one value's coefficients that are held at once where memory allows it: more are slower on a CPU."""


_IN_USE = 64
"""The growth of resident memory by a substitution, in units of the coefficients of its largest value in use."""


def rows_at_once(node: Node) -> int:
    """Return the number of functions of a value to bound at once.

    Raises:
        TooManyImages: if one takes more than there is, and there is more than one image.
    """
    largest, free = largest_value(node), memory().numbers - memory().held
    if free < _IN_USE * largest and node.shape[0] > 1:
        raise TooManyImages
    return max(1, int(min(_ROWS, free / _IN_USE) // largest))


def box_around(images: Tensor, threat: ThreatModel) -> Box:
    """Return the smallest box that holds the ball (of any norm), cut with the valid images [0, 1]."""
    return Box((images - threat.epsilon).clamp(0, 1), (images + threat.epsilon).clamp(0, 1))


def margin_bounds(
    logits: Tensor, labels: Tensor, source: Leaf | None = None, bound: LowerBound = lower_bound
) -> tuple[Tensor, Tensor | None]:
    """Return offsets [B, K] and slopes [B, K, D]: f_y(x) - f_j(x) >= <slopes_j, x> + offsets_j for all x in the box.

    For j = y the offset is +inf, and the slopes are 0.

    Args:
        logits: [B, K], a box, or a plain tensor where the network does not look at its input.
        labels: y, [B].
        source: the network's input; without it, slopes are None, and the offsets are bounds over the whole box.
        bound: bounds linear functions of the logits.
    """
    check_logits(logits, len(labels))
    batch, num_classes = logits.shape
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise InputError(
            f"Labels must be from 0 to {num_classes - 1}, the model's classes, but are from {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    own = labels[:, None]
    if not isinstance(logits, Box):
        return (logits.gather(1, own) - logits).scatter(1, own, torch.inf), None
    # Row s is for the wrong class s where s < y, and s + 1 elsewhere.
    classes = torch.arange(num_classes - 1, device=labels.device).expand(batch, -1)
    classes = classes + (classes >= own).long()
    like, parts = logits.lower, []
    for rows in classes.split(rows_at_once(logits.node), dim=1):
        margins = like.new_zeros(rows.shape[1], batch, num_classes)
        margins = margins.scatter(2, own.expand(rows.shape[1], -1, -1), 1.0).scatter(2, rows.T.unsqueeze(2), -1.0)
        try:
            parts.append(bound(logits.node, margins, source))
        except MixedImages:
            if source is not None:
                raise
            return (logits.lower.gather(1, own) - logits.upper).scatter(1, own, torch.inf), None
    offsets = like.new_full((batch, num_classes), torch.inf)
    if not parts:
        return offsets, None
    offsets = offsets.scatter(1, classes, torch.cat([offset for offset, _ in parts], 1))
    slopes = None
    if all(part is not None for _, part in parts):
        found = torch.cat([part for _, part in parts if part is not None], 1)
        places = classes.unsqueeze(2).expand(found.shape)
        slopes = found.new_zeros(batch, num_classes, found.shape[2]).scatter(1, places, found)
    return offsets, slopes


def in_chunks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    bound: Callable[[Network, Tensor, Tensor], LinearMargins],
) -> LinearMargins:
    """Return the margins of `bound` for every image, in the settings' arithmetic and without gradients.

    `model` is used in evaluation mode and left as it was.

    Raises:
        InputError: for images outside [0, 1], labels that do not go with the images, a model that is no function of one
            image, or what `check_arithmetic` raises.
    """
    check_arithmetic(model)
    images, labels = unit_images_and_labels(images, labels)
    if len(images) == 0:
        raise InputError("Bounds need at least one image, but got none.")
    dtype: torch.dtype = getattr(torch, settings.dtype)
    images = images.to(dtype)
    parts: list[LinearMargins] = []
    clean: list[Tensor] = []
    done, size = 0, settings.batch_size
    with torch.no_grad(), _evaluated(model, dtype) as network:
        while done < len(images):
            some, own = images[done : done + size], labels[done : done + size]
            try:
                with limited(settings.memory * 2**30 / dtype.itemsize):
                    parts.append(bound(network, some, own))
            except TooManyImages:
                size = max(1, len(some) // 2)
                continue
            if done == 0 and (reason := dependence(model, some)) is not None:
                raise InputError(f"{reason} No single image can be certified.")
            # A copy: a network may change its input in place.
            clean.append(margin_bounds(network(some.clone()), own)[0])
            _check_at_image(parts[-1], clean[-1])
            done += len(some)
    sloped = [part.slopes for part in parts if part.slopes is not None]
    return LinearMargins(
        torch.cat([part.offsets for part in parts]),
        torch.cat(sloped) if len(sloped) == len(parts) else None,
        torch.cat(clean),
        images if parts[0].images is not None else None,
    )


def check_arithmetic(model: nn.Module) -> None:
    """Raise InputError for a model that does not compute in float32 or float64, as the proofs do.

    Within autocast, or with weights of fewer digits, its answers are another function's.
    """
    if in_autocast():
        raise InputError(
            "Bounds and exports are of a network in its own precision, but autocast is on, which computes in a lower "
            "one; call this outside of torch.autocast."
        )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in (torch.float32, torch.float64):
            advice = "; convert it with model.float() and take that"
            raise InputError(
                f"Bounds and exports need a model in float32 or float64, but its '{name}' is {tensor.dtype}"
                f"{'' if tensor.is_complex() else advice}."
            )


def own_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [B, K] of images [B, C, H, W] in the model's own arithmetic, without gradients.

    Raises:
        InputError: if what it returns is none.
    """
    logits: Any
    with torch.no_grad(), taking(images):
        logits = logits_of(model, images.detach())
    return checked_logits(logits, len(images))


def check_logits(logits: Any, num_images: int) -> None:
    """Raise InputError unless what a model returned is one tensor [B, K]."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_images:
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"Bounds need a model that maps images to one tensor of logits [B, K], but for {num_images} images it "
            f"returned {found}; wrap the model so that it does."
        )


def _check_at_image(found: LinearMargins, clean: Tensor) -> None:
    """Raise InputError if a bound is above the margin of the image itself, which is in the ball."""
    excess = torch.where(clean.isposinf(), -torch.inf, found.offsets - clean)
    if (excess > 1e-3 * (1 + clean.abs())).any():
        raise InputError(
            "The network's own output at an image contradicts its bounds: it does not compute the same function every "
            "time (randomness, or a state that changes), and cannot be bounded."
        )


@contextlib.contextmanager
def _evaluated(model: nn.Module, dtype: torch.dtype) -> Iterator[Network]:
    """Give the network in evaluation mode, computing with parameters and buffers of another type.

    Not a copy of the model, which would cost more than the bounds of one image.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            "Bounds need a model whose operations they see one by one, but got one that torch.jit compiled; give the "
            "original."
        )
    modes = [(module, module.training) for module in model.modules()]
    slots: list[dict[str, Any]] = [
        tensors for module, _ in modes for tensors in (module._parameters, module._buffers) if tensors
    ]
    given = [dict(tensors) for tensors in slots]
    # Tensors that the network writes to, or computes into its attributes (`weight_norm` does), are copies too.
    plain = [(vars(module), name, value) for module, _ in modes for name, value in _tensors(vars(module))]
    converted = {
        tensor: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for tensors in given
        for tensor in tensors.values()
        if tensor is not None
    }
    device = next((tensor.device.type for tensor in converted), "cpu")
    try:
        if any(training for _, training in modes):
            model.eval()
        for tensors in slots:
            tensors.update({name: converted[tensor] for name, tensor in tensors.items() if tensor is not None})
        with torch.autocast(device, enabled=False), _uncompiled():
            yield model
    finally:
        for tensors, before in zip(slots, given, strict=True):
            tensors.clear()
            tensors.update(before)
        for attributes, name, value in plain:
            attributes[name] = value
        for module, training in modes:
            if module.training != training:
                module.training = training


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run what `torch.compile` made as it was written: bounds see operations one by one."""
    # Without this module, whose import takes longer than many bounds, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _tensors(attributes: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in attributes.items() if isinstance(value, Tensor)]


class Settings(Protocol):
    """The settings of every kind of bound."""

    @property
    def dtype(self) -> Precision:
        """Arithmetic."""

    @property
    def batch_size(self) -> int:
        """Images that are bounded at once, at most."""

    @property
    def memory(self) -> float:
        """GiB that intermediate values may take."""


def check_settings(settings: Settings) -> None:
    """Raise InputError for another `dtype` than there is, a `batch_size` below 1, or no `memory`."""
    name = type(settings).__name__
    if settings.dtype not in get_args(Precision):
        raise InputError(f"{name}.dtype must be one of {', '.join(get_args(Precision))}, but got '{settings.dtype}'.")
    if settings.batch_size < 1:
        raise InputError(f"{name}.batch_size must be at least 1, but got {settings.batch_size}.")
    if not settings.memory > 0:
        raise InputError(f"{name}.memory must be a number of GiB above 0, but got {settings.memory}.")
