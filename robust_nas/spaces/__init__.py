"""Search spaces: declarations in `search_spaces/NAME.toml`, kinds of space in `robust_nas/spaces/KIND/`.

`spaces.load("nasbench201", channels=8)` reads the declaration and sets some of its keys; a path to a TOML file is a
space of one's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robust_nas import architectures
from robust_nas.core import catalogue
from robust_nas.core.checks import check_path
from robust_nas.core.config import build, read_toml, to_dict
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import Group, named, offered
from robust_nas.datasets import DataForm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset, NetworkData
    from robust_nas.spaces._elastic import ElasticCosts as ElasticCosts
    from robust_nas.spaces._elastic import ElasticSupernet as ElasticSupernet
    from robust_nas.spaces.cell.supernet import Supernet


@dataclass(frozen=True)
class BuiltFrom:
    """The space, the architecture and the form of the images that a network can be built from again.

    Args:
        space: the search space.
        architecture: one of its architectures.
        data: the form of the images.
    """

    space: Space
    architecture: AnyArchitecture
    data: DataForm

    @classmethod
    def of(cls, space: Space, architecture: AnyArchitecture, data: NetworkData) -> BuiltFrom:
        """Return the same with the form of the data that a network is built for."""
        return cls(space, architecture, DataForm(data.name, data.classes, data.image_shape))


@dataclass(frozen=True)
class Site:
    """A place in a space's networks where the operation of an edge is computed.

    Args:
        shape: [C, H, W] of its input.
        stride: 2 if it halves the resolution.
    """

    shape: tuple[int, int, int]
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """A network as Python code that needs torch alone, for `integrations.python_module`.

    The code may use `nn`, `Tensor`, `torch`, `F` (torch.nn.functional) and `math`. It leaves out branches that have no
    effect, and has no names of classes or data in it, which are others' text.

    Args:
        classes: the classes of the network's blocks, each with what it uses before it.
        layers: the lines of the network's `__init__` that make its layers.
        forward: those of its `forward`, from the normalised images x [B, C, H, W] to `return` of the logits [B, K].
        names: of modules that have other names in the code than in `network`: {"cells.0.edges.1": "cells.0.edge_0_2"}.
    """

    classes: str
    layers: tuple[str, ...]
    forward: tuple[str, ...]
    names: Mapping[str, str]

    def renamed(self, key: str) -> str:
        """Return the name in the code of one of the network's weights."""
        found = next((name for name in self.names if key.startswith(f"{name}.")), None)
        return key if found is None else self.names[found] + key.removeprefix(found)


@runtime_checkable
class Space(Protocol):
    """A search space."""

    @property
    def name(self) -> str:
        """The declaration's name."""

    def parse(self, text: str) -> AnyArchitecture:
        """Read an architecture of this space."""

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """The parts of an architecture, by name, each with its possible values: samplers draw and change these."""

    def decided(self, values: Sequence[str]) -> AnyArchitecture:
        """Return the architecture of the values of `decisions`."""

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The choices that a search has probabilities of, a row each: the name, such as an edge's, and the options."""

    def indices_of(self, architecture: AnyArchitecture) -> list[int | None]:
        """Return the index of an architecture's option in each of `choices`; None where it has none."""

    def posterior(self, probabilities: Sequence[Sequence[float]]) -> Sequence[Mapping[tuple[str, ...], float]]:
        """Return the probabilities of `decisions` at probabilities of `choices`, one part after the other.

        Each part has the probability of the values of one or more decisions; parts are independent.
        """

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> nn.Module:
        """Return the discrete network, [0, 1] images to logits, initialised from torch's global random state.

        Its attribute `built_from` says its origin.
        """


@runtime_checkable
class WritesSource(Space, Protocol):
    """A space that writes its networks as Python code."""

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""


@runtime_checkable
class MixedSpace(Space, Protocol):
    """A space with a supernet: one network has all architectures in it, and every edge can be a mixture.

    Their `choices` are the edges, of which each chooses among `operations`.
    """

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that an edge of the supernet mixes."""

    @property
    def final_operations(self) -> tuple[str, ...]:
        """Those of them that an architecture can have on an edge."""

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The (source, target) pairs of the cell, or of one cell after the other: the rows of a mixture."""

    @property
    def edge_names(self) -> list[str]:
        """The names of the edges: "0-1"."""

    def is_connected(self, choice: Sequence[int]) -> bool:
        """Whether the output depends on the input where each edge has the operation at its place in `operations`."""

    def marginals(self, mixture: Tensor) -> Tensor:
        """Return the `posterior` probability that an architecture has an operation on an edge, for mixtures [E, O]."""

    def sites(self, data: NetworkData) -> list[list[Site]]:
        """Return for each edge where the space's networks compute its operation."""

    def operation_at(self, name: str, site: Site) -> nn.Module:
        """Return an operation as it is in the networks of `network`."""

    def supernet(self, data: Dataset, *, partial: int = 1) -> Supernet:
        """Return the network in which every edge is a mixture of all operations, on 1/`partial` of the channels."""


@runtime_checkable
class ElasticSpace(Space, Protocol):
    """A space whose networks can share weights along depth and width: `ElasticSupernet` has those of all.

    A network of fewer blocks has the first blocks of each stage, one of fewer channels the first channels.
    """

    @property
    def sizes(self) -> tuple[str, ...]:
        """The decisions of depth and width: their values are numbers, and the higher one makes the larger network."""

    @property
    def unshared(self) -> Mapping[str, Sequence[object]]:
        """The keys that list several options of what weights are not shared between, with these options."""

    def shared_names(self, architecture: AnyArchitecture) -> Mapping[str, str]:
        """Return the modules of an architecture's network whose names depend on its depth, by their names in all."""


def extreme(space: ElasticSpace, options: Mapping[str, Sequence[str]], choose: Callable[..., str]) -> AnyArchitecture:
    """Return the architecture of the largest or smallest (`max` or `min`) of some options of depth and width."""
    chosen = {name: choose(options[name], key=float) for name in space.sizes}
    return space.decided([chosen.get(name, values[0]) for name, values in space.decisions.items()])


def elastic(space: Space, search: str) -> ElasticSpace:
    """Return a space whose networks can share weights along depth and width, for the search of a name.

    Raises:
        InputError: if it decides neither, or has several options of something else.
    """
    if not isinstance(space, ElasticSpace) or all(len(space.decisions[name]) == 1 for name in space.sizes):
        raise InputError(
            f"The search '{search}' shares weights along depth and width, but the space {space.name} decides neither; "
            "take one that does, such as elastic-resnet-small."
        )
    if unshared := space.unshared:
        remedy = " ".join(f"space.{key}={json.dumps([options[0]])}" for key, options in unshared.items())
        raise InputError(
            f"The search '{search}' shares weights along depth and width alone, but {space.name} has several options "
            f"of space.{', space.'.join(unshared)}; keep one, as in '{remedy}'."
        )
    return space


def mixed(space: Space, search: str) -> MixedSpace:
    """Return a space that has a supernet, for the search of a name.

    Raises:
        InputError: if the space has none.
    """
    if isinstance(space, MixedSpace):
        return space
    raise InputError(
        f"The search '{search}' trains a supernet, but the space {space.name} has none: its architectures are lists of "
        "decisions. Searches that work: 'sampled', with search.training (a short training of every trial) or "
        "search.objectives = [\"score\"]; 'elastic', where they decide depth and width alone; and 'given'."
    )


@dataclass(frozen=True)
class _Catalogue(Group):
    """Spaces by the name of their declaration, or by their kind where a table has all of their settings itself."""

    def names(self) -> list[str]:
        return sorted(catalogue.files("search_spaces"))

    def resolve(self, table: Mapping[str, Any], where: str) -> tuple[type[Any], dict[str, Any]]:
        name = table.get("name", "")
        if "kind" not in table:
            own, declared = self._declared(name)
            return own, {**declared, **table}
        kind = table["kind"]
        given = _KINDS.component(kind if isinstance(kind, str) else str(kind), f"{where}.kind")
        settings = {key: value for key, value in table.items() if key != "kind"}
        if name not in self.names():
            return given, settings
        own, declared = self._declared(name)
        if own is not given:
            raise InputError(
                f"The space {name} is not of the kind '{table['kind']}' that its section has; space={name} takes all "
                "of its settings."
            )
        return given, {**declared, **settings}

    def identity(self, component: object) -> dict[str, str]:
        module = type(component).__module__
        return {"kind": module.removeprefix(f"{__name__}.")}

    def _declared(self, name: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the kind of a declared space, and its settings."""
        declared = catalogue.files("search_spaces")
        path = declared.get(name) or Path(name)
        if name not in declared and path.suffix != ".toml":
            raise InputError(
                f"There is no search space '{name}'. {suggest(name, declared)} A path to a .toml file works too."
            )
        table = read_toml(path)
        kind = table.pop("kind", None)
        if not isinstance(kind, str) or kind not in _KINDS.names():
            raise InputError(
                f"{_place_in(path, 'kind')} must have a 'kind', one of {', '.join(_KINDS.names())}, but got {kind!r}."
            )
        found = _KINDS.component(kind, str(path))
        _check_alone(found, {"name": name, **table}, path)
        return found, {"name": name, **table}


def _check_alone(kind: type[Any], declared: Mapping[str, Any], path: Path) -> None:
    """Say in which line of a declaration the mistake is that the space would be refused for.

    A key that it leaves out may be given elsewhere, and has no line.
    """
    try:
        build(kind, declared, "space")
    except InputError as error:
        mentions = {key: re.search(rf"\b{re.escape(key)}\b", str(error)) for key in declared if key != "name"}
        places = {key: found.start() for key, found in mentions.items() if found}
        if places:
            raise InputError(f"{_place_in(path, min(places, key=places.__getitem__))}: {error}") from None


def _place_in(path: Path, key: str) -> str:
    """Return a file with the line in which it sets a key, if it does."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (number for number, line in enumerate(lines, start=1) if re.match(rf"\s*['\"]?{re.escape(key)}\b", line))
    number = next(found, None)
    return str(path) if number is None else f"{path}, line {number}"


def names() -> list[str]:
    """Return the names of the declared search spaces."""
    return _GROUP.names()


def load(name: str, **options: Any) -> Space:
    """Load a search space by its declaration's name or path, with some of its keys set.

    Raises:
        InputError: for an unknown space, or a mistake in its declaration.
    """
    check_path("A space's name", name)
    return _built(named({"name": name, **options}), f"space {name}")


def describe(space: Space) -> dict[str, Any]:
    """Return a space as a table with its kind and all of its settings, which needs no declaration to be read again."""
    return {**_GROUP.identity(space), **to_dict(space)}


def described(table: Mapping[str, Any]) -> Space:
    """Return the space of a table that `describe` gave.

    Raises:
        InputError: for an unknown kind, or a mistake in it.
    """
    return _built(table, "space")


def alone(text: str) -> Space | None:
    """Return the space that has the architecture of a text alone; None where the text does not say all of a network.

    Raises:
        InputError: if it is malformed.
    """
    kind = architectures.kind_of(text)
    table = None if kind is None else kind.parse(text).own_space
    return None if table is None else described(table)


def _built(table: Mapping[str, Any], where: str) -> Space:
    kind, settings = _GROUP.resolve(table, where)
    space: Space = build(kind, settings, where)
    return space


_KINDS = Group(__name__, "Kind", "decided")
_GROUP = _Catalogue(__name__, "Space", "decided")

__getattr__ = offered(
    __name__,
    {
        "ElasticCosts": "_elastic",
        "ElasticSupernet": "_elastic",
    },
)
