"""The common parts of searches that measure architectures one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robust_nas.core.errors import InputError
from robust_nas.searches import SearchResult

if TYPE_CHECKING:
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches import SharedWeights
    from robust_nas.spaces import Space


def believed(
    space: Space, supernet: SharedWeights | None, trials: Sequence[dict[str, Any]], seconds: float
) -> SearchResult:
    """Return the trials, best first, and how often the best tenth of them have each operation or decided value.

    As if there were one trial more, with a part of every one of these: none is impossible. Of trials with equal first
    values, one with a higher clean accuracy comes first, if they have been measured on clean images beside.
    """
    ranked = sorted(trials, key=lambda trial: (trial["values"][0], trial.get("clean", 0.0)), reverse=True)
    best = [space.indices_of(space.parse(trial["architecture"])) for trial in ranked[: max(1, len(ranked) // 10)]]
    probabilities = [
        [
            (sum(places[row] == place for places in best) + 1 / len(options)) / (len(best) + 1)
            for place in range(len(options))
        ]
        for row, options in enumerate(space.choices.values())
    ]
    measured = [trial["architecture"] for trial in ranked]
    record = {"trajectory": [], "seconds": seconds, "measured": measured, "trials": list(trials)}
    return SearchResult(space, probabilities, supernet, record, measured)


def check_replay(number: int, before: str, now: str, stage: Stage) -> None:
    """Raise InputError if a sampler that is told the same does not ask the same as before the interruption."""
    if before != now:
        raise InputError(
            f"Trial {number} of {stage.folder} was {before}, but the sampler would now ask for {now}: its package has "
            "changed since; resume with the versions that environment.json names, or start a new run."
        )
