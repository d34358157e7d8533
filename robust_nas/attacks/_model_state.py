"""What the attacks share: the model held still while it is attacked, the input gradient, the losses."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from robust_nas.attacks._fold import folded
from robust_nas.errors import InputError

BatchNorm = Literal["running", "batch"]
"""Whether batch norm uses its running statistics (evaluation mode) or the attacked batch's own."""

LOOK_EVERY = 10
"""Steps between two looks at who can leave the batch, where looking waits."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, K] and what they are compared with ([B, ...], mostly labels) to losses [B]; attacks make them larger."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that shares nothing with it.

    `copy.deepcopy` refuses tensors with a history, such as the weights that `weight_norm` computed in the last pass.
    """
    given = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in given if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def evaluating(model: nn.Module) -> nn.Module:
    """Put `model` into evaluation mode and return it, which a `train` of somebody's own may not do."""
    model.eval()
    return model


def check_values(model: nn.Module) -> None:
    """Raise InputError if a parameter or buffer has no values: on the meta device, or of a lazy module."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"The model's '{name}' has no size yet, as it is a lazy module's; call the model once with images."
            )
        if tensor.is_meta:
            raise InputError(
                f"The model's '{name}' is on torch's meta device, where it has no values; make the model on a real one "
                "and load its weights."
            )


def own_dtype(model: nn.Module) -> torch.dtype:
    """Return the type of the images that a model takes: float64 where all its weights are, and float32."""
    kinds = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


@contextlib.contextmanager
def frozen(model: nn.Module, batch_norm: BatchNorm = "running", *, fold: bool = True) -> Iterator[None]:
    """Hold `model` still: inside, it is in evaluation mode and no parameter requires a gradient.

    Afterwards, also after an exception, the mode of every submodule and every parameter's `requires_grad` and `grad`
    are what they were, and every buffer holds the values that it held.

    Args:
        batch_norm: "running", or "batch": batch norm normalises by the batch at hand and updates no statistics.
        fold: whether "running" batch norms are folded into the convolutions before them (see `folded`): less work for
            an attack, but logits that differ by rounding, so not for a judgement.
    """
    check_values(model)
    modules = list(model.modules())
    modes = [module.training for module in modules]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    # The version tells whether a buffer was written to: writing it back needlessly would invalidate the graph of a
    # forward pass that the caller has not yet differentiated.
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
        if batch_norm == "batch":
            # Without running statistics, batch norm in evaluation mode takes the batch's and has nothing to update.
            for module in modules:
                if isinstance(module, _BatchNorm):
                    module.running_mean = module.running_var = None
        with folded(model) if fold and batch_norm == "running" else contextlib.nullcontext():
            yield
    finally:
        for module, name, buffer, version, values in buffers:
            module._buffers[name] = buffer
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(values)
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def input_gradient(model: nn.Module, points: Tensor, against: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits [B, K], the losses [B] and the gradient of their sum with respect to `points` [B, C, H, W].

    `against` is the loss's second argument. One forward and one backward pass, nothing that waits for the device; all
    three are detached.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = _logits(model, points)
        losses = loss(logits, against)
        if not losses.requires_grad:
            raise InputError(_without_gradient())
        (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True)
        if gradient is None:
            raise InputError(_without_gradient())
    return logits.detach(), losses.detach(), gradient


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits [B, K] of `images` [B, C, H, W], of which the model gets a copy.

    Some models write into what they are given (`images.sub_(mean)`, a first ReLU in place): what an attack starts from,
    or is measured from, would be another image afterwards, and a leaf that requires a gradient cannot be written to.
    The first layer alone costs many times the copy.
    """
    return model(images.clone())


def scores(model: nn.Module, points: Tensor) -> Tensor:
    """Return the logits [B, K] of `points`, without a graph."""
    with torch.no_grad():
        return _logits(model, points)


@contextlib.contextmanager
def taking(images: Tensor) -> Iterator[None]:
    """Say in one sentence that a model cannot take images [B, C, H, W], where a pass through it fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        size = " x ".join(str(number) for number in images.shape[1:])
        raise InputError(
            f"The model cannot take images of {size} pixels ({reason}); is it one for this data set?"
        ) from error


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each prediction is wrong, [B]."""
    return logits.argmax(1) != labels


def _logits(model: nn.Module, points: Tensor) -> Tensor:
    """Return the model's logits [B, K] of `points`, in full precision.

    Raises:
        InputError: if it returns something else, as a model may that squeezes a batch of one image.
    """
    logits: Any = logits_of(model, points)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(points):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"The model must return logits [B, K] of a batch of any size, but for a batch of {len(points)} it returned "
            f"{found}; wrap it so that it does."
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _without_gradient() -> str:
    """Say why there may be none."""
    if torch.is_inference_mode_enabled():
        return "Within torch.inference_mode nothing has a gradient; call this outside of it, or within torch.no_grad."
    return (
        "The model's logits depend on the images by nothing that has a gradient (detach, argmax or no_grad in it?), so "
        "that attacks which follow gradients say nothing; attack it with square."
    )


def check_finite(attack: object, *values: Tensor) -> None:
    """Raise InputError if any of `values` holds a NaN. Waits for the device: once per attack, not per step."""
    if any(bool(value.isnan().any()) for value in values):
        raise InputError(
            f"{type(attack).__name__} got NaN in the model's logits or gradients; "
            "if it is being trained, a lower learning rate helps."
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise InputError unless `value` is one of the values of the Literal `choices`."""
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, but got {value!r}.")


def check_at_least(name: str, value: int, low: int) -> None:
    """Raise InputError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"{name} must be a whole number of at least {low}, but got {value!r}.")


def check_leaving(name: str, early_stop: bool, batch_norm: BatchNorm) -> None:
    """Raise InputError if samples are to leave a batch whose statistics the others need."""
    if early_stop and batch_norm == "batch":
        raise InputError(
            f"{name}.early_stop takes samples out of the batch, which changes what batch_norm='batch' makes of the "
            "others; set batch_norm='running'."
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)_y, [B].

    As softplus(log sum_{i != y} exp z_i - z_y): a sure model's loss and gradient are small but not rounded to zero, as
    the usual form's are in float32 from a margin of about 17 on, where they would stop an attack.
    """
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return F.softplus(others - logits.gather(1, own).squeeze(1))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{i != y} z_i - z_y, [B]: positive where the model is wrong."""
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return others - logits.gather(1, own).squeeze(1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, [B], which no scaling or shift of the logits changes.

    (max_{i != y} z_i - z_y) / (z_p1 - z_p3) with z_p1 >= z_p2 >= ... (arXiv:2003.01690, equation 6).

    Raises:
        InputError: for fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise InputError(
            f"The DLR loss needs at least 3 classes, but the model has {logits.shape[1]}; use loss='cross_entropy'."
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(logits)), [B], with the logits of the clean images [B, K]."""
    wanted = clean.log_softmax(1)
    return (wanted.exp() * (wanted - logits.log_softmax(1))).sum(1)


def targeted_cross_entropy(logits: Tensor, pair: Tensor) -> Tensor:
    """Return log softmax(logits)_t, [B], for pairs [B, 2] of label and target t."""
    return -cross_entropy(logits, pair[:, 1])


def targeted_margin(logits: Tensor, pair: Tensor) -> Tensor:
    """Return z_t - z_y, [B], for pairs [B, 2] of label y and target t."""
    own, target = logits.gather(1, pair).unbind(1)
    return target - own


def targeted_dlr(logits: Tensor, pair: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, [B], for pairs [B, 2] of label y and target t.

    (z_t - z_y) / (z_p1 - (z_p3 + z_p4) / 2) with z_p1 >= z_p2 >= ... (arXiv:2003.01690, equation 7).

    Raises:
        InputError: for fewer than 4 classes.
    """
    if logits.shape[1] < 4:
        raise InputError(
            f"The targeted DLR loss needs at least 4 classes, but the model has {logits.shape[1]}; use loss='margin'."
        )
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, pair) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr, "kl": kl}
TARGETED_LOSSES: dict[str, Loss] = {
    "cross_entropy": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


def next_best(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes of the largest logits except the label's, best first, [B, min(count, K - 1)]."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def cheap_batch(images: Tensor) -> int:
    """Return how many images like these [B, C, H, W] a pass can take before their number decides what it costs.

    Below that, the calls themselves take most of the time.
    """
    numbers = 2**15 if images.device.type == "cpu" else 2**21
    return numbers // max(images[0].numel(), 1)


def next_targets(first: int, count: int, images: Tensor) -> range:
    """Return which of `count` targets of the images [B, C, H, W] to aim at in one batch, from the `first` on.

    As many as make a cheap batch; but the nearest target, which fools most images, goes alone.
    """
    size = max(cheap_batch(images) // len(images), 1) if first else 1
    return range(first, min(first + size, count))


def superseded(fooled: Tensor, copies: int) -> Tensor:
    """Return whether each of several copies of a batch [copies * B] is fooled, or an earlier copy of its image is."""
    return (fooled.view(copies, -1).cumsum(0) > 0).flatten()


def looking_is_free(points: Tensor) -> bool:
    """Return whether values can be looked at without waiting: an accelerator would first finish what it was given."""
    return points.device.type == "cpu"


def due(points: Tensor, step: int) -> bool:
    """Return whether to look for samples that can leave the batch."""
    return looking_is_free(points) or step % LOOK_EVERY == 0


def per_sample(values: Tensor) -> Tensor:
    """Return [B] values as [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def choose(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return `one` [B, C, H, W] for the samples where `condition` [B] holds, and `other` for the rest."""
    return torch.where(per_sample(condition), one, other)
