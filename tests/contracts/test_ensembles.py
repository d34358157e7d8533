"""The contract of ensemble rules; a new file in robust_nas/ensembles is tested without writing a test."""

import pytest
import torch

from robust_nas import ensembles
from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.ensembles import EnsembleRule
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)
KINDS = ["intervals", "slopes", "mixed"]


@pytest.fixture(params=ensembles.names())
def rule(request: pytest.FixtureRequest) -> EnsembleRule:
    found: EnsembleRule = ensembles.get(request.param)()
    return found


def some_bounds(kind: str, num: int = 4) -> list[LinearMargins]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 1, 0])
    bounds = []
    for t in range(num):
        offsets = torch.randn(5, 3, generator=generator).scatter(1, labels[:, None], torch.inf)
        slopes = (
            None if kind == "intervals" or (kind == "mixed" and t % 2) else torch.randn(5, 3, 4, generator=generator)
        )
        bounds.append(LinearMargins(offsets, slopes))
    return bounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [1, 4])
def test_weights_are_on_the_simplex_and_scales_are_positive(rule: EnsembleRule, kind: str, num: int) -> None:
    fitted = rule.fit(some_bounds(kind, num), THREAT)
    assert fitted.weights.shape == fitted.scales.shape == (num,)
    assert fitted.weights.dtype == fitted.scales.dtype == torch.float64
    assert (fitted.weights >= 0).all() and abs(float(fitted.weights.sum()) - 1) <= 1e-12
    assert (fitted.scales > 0).all() and fitted.objective == fitted.objectives[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bounds_give_the_same_weights_and_are_left_as_they_were(rule: EnsembleRule, kind: str) -> None:
    bounds, fresh = some_bounds(kind), some_bounds(kind)
    first, second = rule.fit(bounds, THREAT), rule.fit(bounds, THREAT)
    assert torch.equal(first.weights, second.weights) and first.objectives == second.objectives
    for bound, before in zip(bounds, fresh, strict=True):
        assert torch.equal(bound.offsets, before.offsets)
        assert bound.slopes is None or torch.equal(bound.slopes, before.slopes)


def test_bounds_that_a_fit_cannot_rest_on_are_refused(rule: EnsembleRule) -> None:
    bounds = some_bounds("intervals")
    broken = bounds[1].offsets.clone()
    broken[0, 1] = torch.nan
    with pytest.raises(InputError, match="at least one member"):
        rule.fit([], THREAT)
    with pytest.raises(InputError, match="Member 1 has bounds that are not finite"):
        rule.fit([bounds[0], LinearMargins(broken)], THREAT)
    with pytest.raises(InputError, match="Member 1 is bounded on other images"):
        rule.fit([bounds[0], LinearMargins(bounds[1].offsets.roll(1, 0))], THREAT)
    with pytest.raises(InputError, match="Member 1 is bounded on other images"):
        rule.fit([bounds[0], LinearMargins(bounds[1].offsets[:3])], THREAT)
