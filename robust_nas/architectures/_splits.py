"""Rules that split a residual network's blocks over its stages.

Every rule is monotone: with one block more, no stage has fewer. This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from robust_nas.core.errors import InputError

PUBLISHED = ((1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
"""The least network, then ResNet-18, -34 and -50, -101 and -152 (He et al. 2016, arXiv:1512.03385, table 1)."""

RULES = ("grown", "even")
_FORMS = "grown, even, a ratio such as 2:2:1, or the blocks of each stage such as 3-8-36-3"


def split(rule: str, blocks: int, stages: int) -> tuple[int, ...] | None:
    """Return the number of blocks of each stage; None where the rule reaches no such sum.

    Args:
        rule: "grown" goes through the published networks of four stages: between two of them, blocks are added in
            proportion to what they differ by, and beyond ResNet-152 in its ratio 3:8:36:3. "even" has equal stages. A
            ratio such as 2:2:1 is kept as well as whole numbers can, with a block in each stage. 3-8-36-3 is itself.
        blocks: the sum.
        stages: number of stages.

    Raises:
        InputError: for what is no rule, or one of another number of stages.
    """
    numbers = _numbers(rule)
    _check_stages(rule, len(numbers) if numbers else 4 if rule == "grown" else stages, stages)
    if "-" in rule:
        return numbers if sum(numbers) == blocks else None
    if blocks < stages:
        return None
    if rule == "even":
        return None if blocks % stages else (blocks // stages,) * stages
    if rule == "grown":
        return _grown(blocks)
    return apportioned(numbers, blocks, (1,) * stages)


def step(rule: str, stages: int) -> int:
    """Return how many blocks there are between the sums that a rule reaches; 0 where there is one alone."""
    return 0 if "-" in rule else stages if rule == "even" else 1


def apportioned(shares: Sequence[int], blocks: int, start: Sequence[int]) -> tuple[int, ...]:
    """Return `blocks` in all, added to `start` one by one where share / (2 had + 1) is the largest (Webster's method).

    From nothing, that is round(c share) in each stage, with the c that gives the sum: a sum that the shares divide has
    their ratio exactly. Of equal ones, the larger share comes first, and then the earlier stage.
    """
    found = list(start)
    for _ in range(blocks - sum(start)):
        # Whole numbers, compared by cross-multiplication: no quotient is rounded.
        best = 0
        for place in range(1, len(found)):
            left, right = shares[place] * (2 * found[best] + 1), shares[best] * (2 * found[place] + 1)
            if (left, shares[place]) > (right, shares[best]):
                best = place
        found[best] += 1
    return tuple(found)


def _grown(blocks: int) -> tuple[int, ...]:
    for low, high in itertools.pairwise(PUBLISHED):
        if blocks <= sum(high):
            more = [b - a for a, b in zip(low, high, strict=True)]
            added = apportioned(more, blocks - sum(low), [0] * len(more))
            return tuple(a + b for a, b in zip(low, added, strict=True))
    return apportioned(PUBLISHED[-1], blocks, PUBLISHED[-1])


def _numbers(rule: str) -> tuple[int, ...]:
    """Return the numbers of a ratio or of stages; none of a named rule."""
    if rule in RULES:
        return ()
    if re.fullmatch(r"[0-9]{1,5}((:[0-9]{1,5})+|(-[0-9]{1,5})*)", rule) is None:
        raise InputError(f"A split is written {_FORMS}, but got '{rule}'.")
    numbers = tuple(map(int, re.split("[:-]", rule)))
    if min(numbers) < 1:
        raise InputError(f"A split has at least 1 in each stage, but got '{rule}'.")
    return numbers


def _check_stages(rule: str, found: int, stages: int) -> None:
    if found != stages:
        raise InputError(f"The split '{rule}' is of {found} stages, but the network has {stages}.")
