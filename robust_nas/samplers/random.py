"""Random search: what every search must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.samplers._cells import start_draw

if TYPE_CHECKING:
    from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Random:
    """Independent architectures, each of uniform decisions, such as operations on edges; any number of objectives."""

    def start(self, space: Space, num_objectives: int, seed: int) -> _Draws:
        """Begin a search."""
        return _Draws(space, seed)


class _Draws:
    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed, self._asked = space, seed, 0

    def ask(self) -> AnyArchitecture:
        self._asked += 1
        return start_draw(self._space, self._seed, self._asked - 1)

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        pass
