"""Compressed means of gradients: against closed forms, torch's own hooks, and in real process groups."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.core.config import build
from robust_nas.core.errors import InputError, Interrupted
from robust_nas.runtime.compression import (
    LEVELS,
    PowerSGD,
    dequantised,
    quantised,
    reduction_of,
    segment_lengths,
)
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, fit
from tests.test_distributed import on_two_ranks

KINDS = ["fp16", "bf16", "powersgd", "int8"]


def _rounded(values: torch.Tensor, times: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(segment_lengths(len(values)))
    draws = (torch.rand(len(values), generator=generator) for _ in range(times))
    return torch.stack([dequantised(*quantised(values, lengths, draw), lengths) for draw in draws])


def test_the_8_bit_quantiser_is_unbiased_and_its_variance_is_the_closed_form_below_the_published_bound() -> None:
    generator, times = torch.Generator().manual_seed(1), 4000
    # A whole segment, and a short one.
    values = torch.randn(600, generator=generator) * torch.logspace(-3, 0, 600)
    found = _rounded(values, times)
    for segment in values.split(512):
        norm = segment.norm()
        fraction = (segment.abs() / norm * LEVELS).frac()
        # Bernoulli: p (1 - p), in units of |s| / 127.
        variance = ((norm / LEVELS) ** 2 * fraction * (1 - fraction)).double()
        rounds = found[:, :512] if len(segment) == 512 else found[:, 512:]
        errors = (rounds - segment).double()
        deviation = (errors.mean(0) / (variance / times).sqrt().clamp_min(1e-9)).abs()
        assert float(deviation.max()) < 5  # of 600 standard normal numbers
        assert float(errors.square().sum(1).mean()) == pytest.approx(float(variance.sum()), rel=0.02)
        bound = min(len(segment) / LEVELS**2, math.sqrt(len(segment)) / LEVELS) * norm**2
        assert float(errors.square().sum(1).mean()) <= float(bound)


def test_zeros_stay_the_largest_value_fits_and_what_is_no_number_is_passed_on() -> None:
    assert torch.equal(_rounded(torch.zeros(5), 2), torch.zeros(2, 5))
    alone = torch.tensor([3.0])
    torch.testing.assert_close(_rounded(alone, 50), alone.expand(50, 1))
    for value in (math.inf, math.nan):
        found = _rounded(torch.tensor([1.0, value, -2.0]), 1)
        assert not bool(found.isfinite().any())


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 10))


def _gradients(world: World, kind: Any, *, steps: int = 1, rank: int = 2) -> Any:
    """Return what is left in the parameters, and the bytes sent, by DDP with a reduction or a hook of torch."""
    data, model = datasets.load("digits").train, _model()
    reduction = reduction_of(kind, world, model.parameters(), rank=rank, seed=7) if isinstance(kind, str) else None
    wrapped = world.wrap(model, reduction)
    if not isinstance(kind, str):
        kind(wrapped)
    found = []
    for step in range(steps):
        part = data[torch.arange(step * 32 + world.rank, step * 32 + 32, world.size)]
        model.zero_grad()
        F.cross_entropy(wrapped(part.images), part.labels).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        if reduction is not None:
            reduction.step += 1
    return {"found": found, "sent": reduction.sent if reduction is not None else 0}


def test_half_precision_is_what_torchs_hooks_make_of_it(tmp_path: Path) -> None:
    for kind, hook in (("fp16", default_hooks.fp16_compress_hook), ("bf16", default_hooks.bf16_compress_hook)):

        def with_torchs(wrapped: nn.Module, hook: Any = hook) -> None:
            wrapped.register_comm_hook(None, lambda state, bucket: hook(state, bucket))

        def loose(world: World, kind: Any = kind) -> Any:
            model = _model()
            part = datasets.load("digits").train[torch.arange(world.rank, 32, 2)]
            F.cross_entropy(model(part.images), part.labels).backward()
            world.mean_gradients(model, reduction_of(kind, world, model.parameters()))
            return [parameter.grad for parameter in model.parameters()]

        ours = on_two_ranks(lambda world, kind=kind: _gradients(world, kind), tmp_path)
        torchs = on_two_ranks(lambda world, hook=with_torchs: _gradients(world, hook), tmp_path)
        for rank in range(2):
            assert all(map(torch.equal, ours[rank]["found"][0], torchs[rank]["found"][0]))
        if kind == "bf16":
            unwrapped = on_two_ranks(loose, tmp_path)[0]
            assert all(map(torch.equal, unwrapped, torchs[0]["found"][0]))


def test_powersgd_is_torchs_from_the_same_start_and_sends_what_its_matrices_take(tmp_path: Path) -> None:
    def torchs(wrapped: nn.Module) -> None:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=1
        )
        # The bucket is cut anew after the first of two exact steps; its matrices then lie in this order.
        parameters = [each for each in wrapped.parameters() if each.dim() > 1]

        def hook(state: Any, bucket: Any) -> Any:
            if state.iter == 2:
                order = [each for each in bucket.parameters() if each.dim() > 1]
                places = {each: place for place, each in enumerate(wrapped.parameters())}
                assert len(order) == len(parameters)
                starts = []
                for each in order:
                    generator = torch.Generator().manual_seed(_seed(places[each]))
                    starts.append(torch.randn(each[0].numel(), 2, generator=generator))
                state.q_memory_dict[0] = torch.cat([start.flatten() for start in starts])
                state.p_memory_dict[0] = torch.empty(sum(2 * len(each) for each in order))
            return powerSGD_hook.powerSGD_hook(state, bucket)

        wrapped.register_comm_hook(state, lambda state, bucket: hook(state, bucket))

    theirs = on_two_ranks(lambda world: _gradients(world, torchs, steps=6), tmp_path)

    def ours(world: World) -> Any:
        return _gradients_from(world, 2)

    mine = on_two_ranks(ours, tmp_path)
    for rank in range(2):
        for found, expected in zip(mine[rank]["found"], theirs[rank]["found"][2:], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    # P [8, 2], Q [9, 2]; [40, 2], [288, 2]; [10, 2], [40, 2]; biases of 8, 40 and 10: 4 bytes each, once on two ranks.
    assert mine[0]["sent"] == 4 * 4 * (2 * (8 + 9) + 2 * (40 + 288) + 2 * (10 + 40) + 58)


def _seed(place: int) -> int:
    from robust_nas.core.seeds import seed_at

    return seed_at(7, "powersgd", place)


def _gradients_from(world: World, first: int) -> Any:
    data, model = datasets.load("digits").train, _model()
    reduction = reduction_of("powersgd", world, model.parameters(), rank=2, seed=7)
    wrapped, found = world.wrap(model, reduction), []
    for step in range(first, 6):
        part = data[torch.arange(step * 32 + world.rank, step * 32 + 32, world.size)]
        model.zero_grad()
        F.cross_entropy(wrapped(part.images), part.labels).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return {"found": found, "sent": reduction.sent}


def test_quantised_gradients_are_equal_on_all_ranks_right_on_average_and_a_quarter_in_bytes(tmp_path: Path) -> None:
    exact = _gradients(World(), "none")["found"][0]

    def many(world: World) -> Any:
        model, count = _model(), 200
        reduction = reduction_of("int8", world, model.parameters(), seed=7)
        part = datasets.load("digits").train[torch.arange(world.rank, 32, 2)]
        F.cross_entropy(model(part.images), part.labels).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        rounds = []
        for _ in range(count):
            rounds.append(reduction.mean(list(model.parameters()), gradients))
            reduction.step += 1
        return {"rounds": [torch.stack(each) for each in zip(*rounds, strict=True)], "sent": reduction.sent / count}

    first, second = on_two_ranks(many, tmp_path)
    for ours, others, expected in zip(first["rounds"], second["rounds"], exact, strict=True):
        assert torch.equal(ours, others)
        # The mean of 200 rounds is as far from the exact one as their variance says.
        error, variance = (ours.mean(0) - expected).square().sum(), ours.var(0).sum() / len(ours)
        assert 0.5 * variance < error < 1.5 * variance
    total = sum(each.numel() for each in exact)
    assert first["sent"] < 1.03 * total  # of the 4 bytes a value that an exact mean on two ranks sends


def _fitted(world: World, folder: Path, kind: str, *, stop: int | None = None, own: bool = False) -> Any:
    """Train in a folder, in a network of a space (through DDP) or one of one's own; break off after some epochs."""
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:48], validation=digits.validation[:8])
    table = {"method": "pgd_at", "epochs": 2, "batch_size": 16, "selection_attack": "fgsm", "learning_rate": 0.05}
    plan = build(Training, {**table, "compression": kind, "powersgd_rank": 1}, "train")
    if own:
        model = _model()
    else:
        space = spaces.load("robust-resnet-small")
        torch.manual_seed(0)
        model = space.network(
            space.parse("depths=1-1-1 widths=8-16-16 kernel=3 activation=silu norm=group se=none block=basic stem=8"),
            data,
        )
    stage = Stage("train", 0, world, Progress(quiet=True), folder)
    if stop is not None:
        real = Stage.save

        def save(self: Stage, step: int, state: Any) -> None:
            real(self, step, state)
            if self.name == "train" and step == stop:
                raise Interrupted("here")

        Stage.save = save  # type: ignore[method-assign]
        try:
            fit(model, data, ThreatModel(epsilon=0.1), plan, stage)
        except Interrupted:
            return None
        finally:
            Stage.save = real  # type: ignore[method-assign]
    return fit(model, data, ThreatModel(epsilon=0.1), plan, stage).last


@pytest.mark.parametrize(
    ("kind", "own"), [("powersgd", False), ("int8", True)], ids=["powersgd-ddp", "int8-own-module"]
)
def test_a_compressed_training_that_is_gone_on_with_ends_in_the_same_weights(
    kind: str, own: bool, tmp_path: Path
) -> None:
    def trained(world: World, name: str, stop: int | None) -> Any:
        if world.is_main:
            (tmp_path / name / "checkpoints").mkdir(parents=True, exist_ok=True)
        world.barrier()
        return _fitted(world, tmp_path / name, kind, stop=stop, own=own)

    whole = on_two_ranks(lambda world: trained(world, "whole", None), tmp_path)
    on_two_ranks(lambda world: trained(world, "stopped", 1), tmp_path)
    resumed = on_two_ranks(lambda world: trained(world, "stopped", None), tmp_path)
    for name, value in whole[0].items():
        assert torch.equal(value, whole[1][name]) and torch.equal(value, resumed[0][name])
    (tmp_path / "exact" / "checkpoints").mkdir(parents=True)
    exact = on_two_ranks(lambda world: _fitted(world, tmp_path / "exact", "none", own=own), tmp_path)[0]
    assert any(not torch.equal(value, exact[name]) for name, value in whole[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_in_one_process_nothing_is_compressed(kind: str) -> None:
    model = _model()
    assert reduction_of(kind, World(), model.parameters()) is None  # type: ignore[arg-type]


def test_errors_of_another_number_of_ranks_keep_their_mean() -> None:
    model = _model()
    reduction = PowerSGD(World(rank=1, size=3), model.parameters())
    reduction.load_state({"step": 4, "errors": {0: torch.tensor([[[2.0]], [[4.0]]])}, "queries": {}})
    assert reduction._errors[0].tolist() == [[3.0]]


def test_what_cannot_be_compressed_is_refused() -> None:
    with pytest.raises(InputError, match="bfloat16"):
        build(Training, {"compression": "powersgd", "precision": "float16"}, "train")
    with pytest.raises(InputError, match="int8"):
        build(Training, {"compression": "gzip"}, "train")
