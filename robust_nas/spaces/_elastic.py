"""Elastic supernets: one set of weights for the networks of all depths and widths of a space.

A network of fewer blocks has the first blocks of each stage (Cai et al. 2020, arXiv:1908.09791); one of fewer channels
has the first channels of each layer (Yu et al. 2019, arXiv:1812.08928; BigNAS, arXiv:2003.11142).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from robust_nas.datasets import DataForm
from robust_nas.models.complexity import count_parameters
from robust_nas.spaces import extreme

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces import ElasticSpace, Space

Slices = tuple[slice, ...]

_KEPT = 64
"""Sub-networks whose outlines a supernet remembers."""


_DRAWS = (Tensor.normal_, Tensor.uniform_, nn.init.uniform_, nn.init.kaiming_uniform_)
"""The draws of initialisations, where torch asks a mode."""


class _WithoutDraws(TorchFunctionMode):
    """Leaves out the draws of initialisations, which cost time, and global random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def outline(space: Space, architecture: AnyArchitecture, form: DataForm) -> nn.Module:
    """Return an architecture's network without values, on torch's meta device: modules, names and shapes."""
    # Made where there is memory, of which nothing is touched: on the meta device, every operation takes far longer.
    with _WithoutDraws():
        return space.network(architecture, form).to("meta")


class ElasticCosts:
    """The costs of an elastic space's networks, from their outlines; `models.complexity` counts the same.

    Args:
        space: the space.
        form: the form of the images.
    """

    def __init__(self, space: ElasticSpace, form: DataForm) -> None:
        self._space, self._form = space, form
        self._positions: dict[str, int] = {}
        self._known: dict[AnyArchitecture, dict[str, int]] = {}

    def of(self, architecture: AnyArchitecture) -> dict[str, int]:
        """Return the trainable parameters, and the multiply-adds for an image."""
        if architecture not in self._known:
            network, names = outline(self._space, architecture, self._form), self._space.shared_names(architecture)
            layers = {_renamed(f"{name}.", names): module for name, module in _layers(network).items()}
            if not layers.keys() <= self._positions.keys():
                self._measure(architecture, names)
            self._known[architecture] = {
                "parameters": count_parameters(network),
                "multiply_adds": sum(self._positions[name] * each.weight.numel() for name, each in layers.items()),
            }
        return self._known[architecture]

    def _measure(self, architecture: AnyArchitecture, names: Mapping[str, str]) -> None:
        """Take note of how many positions each layer has: the pixels of its output, whatever depth and width are."""
        with _WithoutDraws():
            network = self._space.network(architecture, self._form)
        layers = {module: _renamed(f"{name}.", names) for name, module in _layers(network).items()}

        def note(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            self._positions[layers[module]] = output[0].numel() // len(module.weight)

        for module in layers:
            module.register_forward_hook(note)
        with torch.no_grad():
            network.eval()(torch.zeros(1, *self._form.image_shape))


class ElasticSupernet(nn.Module):
    """The weights that a space's networks share, and these networks, which have the first of them.

    A network's parameter is the beginning, along each dimension, of the shared one of the same name, which is as large
    as that of any network. Sub-networks have the batch's own statistics in batch norm, in either mode: running ones
    would be of all of them at once. `choose` gives networks with running statistics, which are to be measured.

    Args:
        space: the space.
        data: the form of the images.
        options: of the decisions of depth and width, the values that there are; of others, the space's.
        prepare: changes the largest network before its weights are taken.
        device: of the weights.

    Attributes:
        largest: the architecture of the largest option of every decision, whose weights are the supernet's start.
        smallest: that of the smallest.
    """

    def __init__(
        self,
        space: ElasticSpace,
        data: NetworkData,
        options: Mapping[str, Sequence[str]],
        prepare: Callable[[nn.Module], None] = lambda network: None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.space, self.form = space, DataForm.of(data)
        self.options = {name: tuple(values) for name, values in options.items()}
        self.largest, self.smallest = (extreme(space, self.options, choose) for choose in (max, min))
        self._parts: OrderedDict[AnyArchitecture, tuple[nn.Module, dict[str, tuple[str, Slices]]]] = OrderedDict()
        self.shared = nn.Module()
        self._begin(prepare)
        self.to(device)

    def _begin(self, prepare: Callable[[nn.Module], None]) -> None:
        """Take the weights of the largest network, and what it lacks from those that differ from it in one decision.

        Where it keeps the channels and a narrower one does not, only that one has a convolution in its shortcut.
        """
        sizes: dict[str, list[int]] = {}
        origins: dict[str, AnyArchitecture] = {}
        for architecture in self._around_the_largest():
            for name, parameter in self._named(architecture, outline(self.space, architecture, self.form)).items():
                have = sizes.setdefault(name, list(parameter.shape))
                sizes[name] = [max(pair) for pair in zip(have, parameter.shape, strict=True)]
                origins.setdefault(name, architecture)
        networks: dict[AnyArchitecture, dict[str, Tensor]] = {}
        for name, architecture in origins.items():
            if architecture not in networks:
                network = _without_statistics(self.space.network(architecture, self.form))
                prepare(network)
                networks[architecture] = self._named(architecture, network)
            own = networks[architecture][name]
            if list(own.shape) != sizes[name]:  # no network has all of it; what is missing begins at 0
                larger = own.new_zeros(sizes[name])
                larger[_slices(own)] = own.detach()
                own = nn.Parameter(larger)
            _hold(self.shared, name, own)

    def _around_the_largest(self) -> list[AnyArchitecture]:
        """Return the largest architecture and those that differ from it in one decision."""
        found, own = [self.largest], self.space.decisions_of(self.largest)
        for place, name in enumerate(self.space.decisions):
            others = [value for value in self.options.get(name, ()) if value != own[place]]
            found += [self.space.decided((*own[:place], value, *own[place + 1 :])) for value in others]
        return found

    def _named(self, architecture: AnyArchitecture, network: nn.Module) -> dict[str, Tensor]:
        """Return a network's parameters and buffers by the names that they have here."""
        names = self.space.shared_names(architecture)
        tensors = {**dict(network.named_parameters()), **dict(_without_statistics(network).named_buffers())}
        return {_renamed(name, names): tensor for name, tensor in tensors.items()}

    def _part(self, architecture: AnyArchitecture) -> tuple[nn.Module, dict[str, tuple[str, Slices]]]:
        """Return a network's outline, and of each of its tensors the shared one, with its part."""
        if architecture in self._parts:
            self._parts.move_to_end(architecture)
            return self._parts[architecture]
        network = _without_statistics(outline(self.space, architecture, self.form))
        names = self.space.shared_names(architecture)
        tensors = [*network.named_parameters(), *network.named_buffers()]
        self._parts[architecture] = (
            network,
            {name: (_renamed(name, names), _slices(tensor)) for name, tensor in tensors},
        )
        if len(self._parts) > _KEPT:
            self._parts.popitem(last=False)
        return self._parts[architecture]

    def weights_of(self, architecture: AnyArchitecture) -> dict[str, Tensor]:
        """Return an architecture's parameters and buffers, parts of the shared ones, by its own network's names."""
        shared = {**dict(self.shared.named_parameters()), **dict(self.shared.named_buffers())}
        _, parts = self._part(architecture)
        return {
            name: shared[common] if shared[common].shape == _shape(slices) else shared[common][slices]
            for name, (common, slices) in parts.items()
        }

    def forward(self, images: Tensor, architecture: AnyArchitecture) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W], of an architecture's network."""
        network, _ = self._part(architecture)
        logits: Tensor = torch.func.functional_call(network, self.weights_of(architecture), (images,))
        return logits

    def at(self, architecture: AnyArchitecture) -> SubNetwork:
        """Return an architecture's network with the shared weights, for training and for an attack."""
        return SubNetwork(self, architecture)

    @torch.no_grad()
    def choose(self, architecture: AnyArchitecture) -> nn.Module:
        """Return an architecture's own network with copies of the weights; batch norm's statistics are 0 and 1."""
        weights = self.weights_of(architecture)
        with _WithoutDraws():
            network = self.space.network(architecture, self.form)
        network.to(next(iter(weights.values())))
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name in weights:
                tensor.copy_(weights[name])
        return network

    @property
    def structure(self) -> dict[str, Any]:
        """The options that it has weights for, as JSON values."""
        return {"sizes": {name: list(self.options[name]) for name in self.space.sizes}}


class SubNetwork(nn.Module):
    """An elastic supernet with its architecture held fixed: images to logits, like any network."""

    def __init__(self, supernet: ElasticSupernet, architecture: AnyArchitecture) -> None:
        super().__init__()
        self.supernet, self.architecture = supernet, architecture

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.supernet(images, self.architecture)
        return logits


def _layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the modules that multiply and add, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def _without_statistics(network: nn.Module) -> nn.Module:
    """Take the running statistics from batch norms, which then have the batch's in either mode."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """Return a tensor's name where a module that it is in has another one."""
    found = next((module for module in modules if name.startswith(f"{module}.")), None)
    return name if found is None else modules[found] + name.removeprefix(found)


def _slices(tensor: Tensor) -> Slices:
    return tuple(slice(size) for size in tensor.shape)


def _shape(slices: Slices) -> tuple[int, ...]:
    return tuple(own.stop for own in slices)


def _hold(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a parameter or buffer of a name with dots, in modules of its own."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor)
