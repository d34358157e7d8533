"""No search: a given architecture, trained and measured like one that was found."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator

from robust_nas.core.errors import InputError
from robust_nas.searches import Search, SearchResult

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


def _as_text(value: object) -> object:
    """Return values that TOML reads otherwise as text: digits as a number, three sizes as a time of day."""
    return str(value) if isinstance(value, int | datetime.time) and not isinstance(value, bool) else value


@dataclass(frozen=True, kw_only=True)
class Given(Search):
    """All probability on one architecture; data and threat model are not used.

    Args:
        architecture: an architecture string of the space, or its digits. The default is the NAS-Bench-201 cell with the
            highest accuracy under PGD at 8/255 in the CIFAR-10 part of NAS-RobBench-201 (arXiv:2403.13134).
    """

    needs_supernet: ClassVar[bool] = False

    architecture: Annotated[str, BeforeValidator(_as_text)] = "323133"

    def check(self, space: Space) -> None:
        """Raise InputError unless the architecture is one of `space` whose output depends on its input."""
        self._chosen(space)

    def _chosen(self, space: Space) -> AnyArchitecture:
        chosen = space.parse(self.architecture)
        if not chosen.is_connected:
            raise InputError(
                f"search.architecture must lead from the input to the output, but {chosen} does not; give another one."
            )
        return chosen

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Return the architecture.

        Raises:
            InputError: what `check` raises.
        """
        chosen = self._chosen(space)
        probabilities = [
            [float(place == taken) for place in range(len(row))]
            for row, taken in zip(space.choices.values(), space.indices_of(chosen), strict=True)
        ]
        return SearchResult(space, probabilities, supernet=None, record={"trajectory": [], "seconds": 0.0})
