"""Certified training: bounds on the network that is being trained, and the loss at its worst case.

Batch norm is a constant map in the bounds: its mean and variance are those of the clean batch, through which the
gradient flows too. The bounds are then those of the function that the clean images see, and the running statistics that
a step leaves behind are the clean images' alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from robust_nas.bounds import Box, box_around, margin_bounds
from robust_nas.core.checks import check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, TrainingMethod

Initialisation = Literal["given", "tight"]
Statistics = dict[_BatchNorm, list[tuple[Tensor, Tensor]]]
"""Mean and biased variance [C] of what went into each batch norm, one pair for every call of it."""
Margins = Callable[[Tensor], Tensor]
"""Labels y [B] to lower bounds [B, K] of f_y - f_j over the ball; the entry j = y is not looked at."""


@dataclass(frozen=True, kw_only=True)
class CertifiedTraining(TrainingMethod):
    """The base class of methods that bound the network.

    kappa CE(f(x), y) + (1 - kappa) robust loss, where kappa goes from its first value to its last as epsilon goes from
    0 to its full size (`curriculum`, if `train.epsilon_warm_up` and `train.epsilon_ramp` are not given): the first
    bounds of a deep network are astronomically large, and all that they teach at once is to predict the same for every
    image.
    Published recipes clip gradients at 10 (`train.gradient_clip`) and keep the last epoch (`train.keep`).

    Args:
        kappa: weight of the clean images' loss when epsilon has its full size.
        kappa_start: the same while epsilon is 0.
        l1: weight of the sum of the absolute weights of convolutions and linear layers, which is added to the loss.
        initialisation: "given" keeps the weights that the network comes with; "tight" draws them anew (see `tight`).

    Raises:
        InputError: for a value outside its range.
    """

    bounds_network: ClassVar[bool] = True
    curriculum: ClassVar[tuple[float, float]] = (0.1, 0.5)

    kappa: float = 0.0
    kappa_start: float = 1.0
    l1: float = 0.0
    initialisation: Initialisation = "given"

    def __post_init__(self) -> None:
        for name in ("kappa", "kappa_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{type(self).__name__}.{name} must be in [0, 1], but got {getattr(self, name)}.")
        if not self.l1 >= 0:
            raise InputError(f"{type(self).__name__}.l1 must not be negative, but got {self.l1}.")
        check_choice(f"{type(self).__name__}.initialisation", self.initialisation, Initialisation)

    def prepare(self, model: nn.Module, seed: int) -> None:
        """Initialise `model`, before its first step."""
        if self.initialisation == "tight":
            tight(model, seed)

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images as they are: bounds need no examples."""
        return batch.images

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the clean images' and the robust loss."""
        network, kappa = network_of(forward), self.kappa_start + batch.epsilon_scale * (self.kappa - self.kappa_start)
        weight = 1 - kappa
        with recorded(network) as statistics:
            loss = F.cross_entropy(forward(batch.images), batch.targets)
        if weight > 0:
            with shared(network, statistics):
                robust = self.robust_loss(network, crafted, batch)
            loss = robust if weight == 1 else (1 - weight) * loss + weight * robust
        return loss + self.l1 * absolute_weights(network) if self.l1 else loss

    def robust_loss(self, network: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss; `network` is in evaluation mode, and normalises by the clean batch's statistics."""
        raise NotImplementedError


def network_of(forward: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return the network behind a step's forward pass.

    Under `DistributedDataParallel`, gradients that reach its parameters are averaged whatever pass they come from, as
    long as one pass of the step went through the wrapper: that of the clean images does.
    """
    network: nn.Module = forward if isinstance(forward, nn.Module) else forward.model  # type: ignore[attr-defined]
    return network


def interval(network: nn.Module, images: Tensor, threat: ThreatModel) -> Margins:
    """Return interval bounds (Gowal et al. 2018, arXiv:1810.12715) around `images` [B, C, H, W], with their gradient.

    The last linear layer is merged with the differences of logits.
    """
    logits = network(box_around(images, threat))
    return lambda labels: margin_bounds(logits, labels)[0]


def worst_cross_entropy(margins: Margins, targets: Tensor) -> Tensor:
    """Return the mean over the batch of an upper bound of the cross-entropy over the ball.

    log sum_j exp(f_j - f_y) with every f_y - f_j at its lower bound. With probabilities as targets [B, K], the mean
    over the classes of their bounds.
    """
    if targets.ndim == 1:
        return _worst(margins, targets).mean()
    classes = range(targets.shape[1])
    losses = [_worst(margins, torch.full((len(targets),), k, device=targets.device)) for k in classes]
    return (torch.stack(losses, 1) * targets).sum(1).mean()


def _worst(margins: Margins, labels: Tensor) -> Tensor:
    """Return the bound of each image's cross-entropy with labels [B], [B]."""
    logits = (-margins(labels)).scatter(1, labels.unsqueeze(1), 0.0)
    return F.cross_entropy(logits, labels, reduction="none")


@contextlib.contextmanager
def recorded(network: nn.Module) -> Iterator[Statistics]:
    """Give the statistics that the batch norms of `network` normalise by, as they are called, with their gradient.

    A batch norm in evaluation mode uses its running statistics, and has none here.
    """
    statistics: Statistics = {}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if norm.training or norm.running_mean is None:
            # Running statistics are float32 under autocast as well.
            values = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
            over = [dim for dim in range(values.ndim) if dim != 1]
            variance, mean = torch.var_mean(values, over, correction=0)
            statistics.setdefault(norm, []).append((mean, variance))

    hooks = [module.register_forward_pre_hook(record) for module in network.modules() if isinstance(module, _BatchNorm)]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def shared(network: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Let the batch norms of `network` normalise by `statistics`, call by call, in any number of passes.

    Inside, `network` is in evaluation mode and in full precision; afterwards it is as it was.
    """
    modules = list(network.modules())
    modes = [module.training for module in modules]
    running = {norm: (norm.running_mean, norm.running_var) for norm in statistics}
    calls = {norm: itertools.cycle(pairs) for norm, pairs in statistics.items()}

    def take(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = next(calls[norm])

    hooks = [norm.register_forward_pre_hook(take) for norm in statistics]
    kind = next((parameter.device.type for parameter in network.parameters()), "cpu")
    try:
        network.eval()
        with torch.autocast(kind, enabled=False), _DifferentiableStatistics():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (mean, variance) in running.items():
            norm.running_mean, norm.running_var = mean, variance
        for module, training in zip(modules, modes, strict=True):
            module.training = training


class _DifferentiableStatistics(TorchFunctionMode):
    """Batch norm of images, with a gradient for the statistics, which torch's has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mean = args[1] if func is F.batch_norm and len(args) > 1 and not isinstance(args[0], Box) else None
        differentiable = isinstance(mean, Tensor) and mean.requires_grad
        return (_batch_norm if differentiable else func)(*args, **(kwargs or {}))


def _batch_norm(
    values: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = (1, -1, *[1] * (values.ndim - 2))
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return values * scale.view(shape) + shift.view(shape)


def layers(network: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the convolutions and linear layers, in the order in which the network lists them."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def absolute_weights(network: nn.Module) -> Tensor:
    """Return the sum of the absolute weights of convolutions and linear layers, a scalar."""
    return torch.stack([layer.weight.abs().sum() for layer in layers(network)]).sum()


@torch.no_grad()
def tight(network: nn.Module, seed: int) -> None:
    """Draw all weights that learn, but the last layer's, anew: intervals then keep about their width behind a layer.

    Weights are normal with deviation sqrt(2 pi) / fan_in: then sum_i |w_i| is 2 on average, of which a ReLU takes half
    (Shi et al. 2021, arXiv:2103.17268). Biases and batch norms stay. The authors also halve the weights of
    layers behind a sum of two branches, which modules do not tell; a batch norm behind a layer undoes either scale.
    """
    with seeded(seed, "tight"):
        learning = [layer for layer in layers(network) if layer.weight.requires_grad]
        for layer in learning[:-1]:
            normal = torch.randn(layer.weight.shape, dtype=layer.weight.dtype)
            layer.weight.copy_(normal * math.sqrt(2 * math.pi) / layer.weight[0].numel())
