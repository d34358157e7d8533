"""Free adversarial training, against the published algorithm written out step by step."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.free import Free

EPSILON, SAMPLES, RATE = 0.1, 12, 0.2
THREAT = ThreatModel(epsilon=EPSILON)


def _images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Some pixels are at 0 and at 1, where the perturbation and the image with it are clipped apart.
    images = torch.randn(SAMPLES, 1, 6, 6, generator=generator).add(0.5).clamp(0, 1)
    return images, torch.randint(0, 3, (SAMPLES,), generator=generator)


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()


def _batch(memory: Memory, ids: list[int], threat: ThreatModel = THREAT, places: list[int] | None = None) -> Batch:
    images, labels = _images()
    rows = torch.tensor(ids)
    return Batch(
        images=images[rows],
        labels=labels[rows],
        targets=labels[rows],
        threat=threat,
        seed=0,
        ids=rows,
        places=torch.arange(len(ids)) if places is None else torch.tensor(places),
        num_samples=SAMPLES,
        batch_size=4,
        memory=memory,
    )


def _step(method: Free, model: nn.Module, batch: Batch) -> Tensor:
    """Take one step of gradient descent, and return the images that it was taken at."""
    crafted = method.craft(model, batch)
    model.zero_grad(set_to_none=True)
    method.loss(model, crafted, batch).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= RATE * parameter.grad
    return crafted


BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [3, 9, 0, 6], [1, 2, 4, 5]]


@pytest.mark.parametrize("carry", ["batch", "sample"])
@pytest.mark.parametrize("replays", [1, 3])
def test_free_training_equals_fgsm_steps_with_a_carried_perturbation(carry: str, replays: int) -> None:
    method, memory, model = Free(replays=replays, carry=carry), Memory(), _model()
    for ids in BATCHES:
        for _ in range(method.replays):
            _step(method, model, _batch(memory, ids))

    # Algorithm 1, with its gradients taken one by one.
    plain, (images, labels) = _model(), _images()
    carried = torch.zeros(4 if carry == "batch" else SAMPLES, 1, 6, 6)
    for ids in BATCHES:
        rows = list(range(4)) if carry == "batch" else ids
        for _ in range(replays):
            points = (images[ids] + carried[rows]).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(plain(points), labels[ids])
            gradient, *slopes = torch.autograd.grad(loss, [points, *plain.parameters()])
            carried[rows] = (carried[rows] + EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON)
            with torch.no_grad():
                for parameter, slope in zip(plain.parameters(), slopes, strict=True):
                    parameter -= RATE * slope

    assert torch.equal(memory.tables["perturbations"], carried)
    for one, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_first_step_is_standard_training_and_leaves_fgsms_perturbation_behind() -> None:
    memory, model = Memory(), _model()
    batch = _batch(memory, [0, 1, 2, 3])
    points = batch.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(copy.deepcopy(model)(points), batch.labels), points)
    assert torch.equal(_step(Free(), model, batch), batch.images)
    assert torch.equal(memory.tables["perturbations"], EPSILON * gradient.sign())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("step_size", [None, 0.03])
def test_the_carried_perturbation_never_leaves_the_ball(norm: str, step_size: float | None) -> None:
    memory, model = Memory(), _model()
    moved = []
    for step, ids in enumerate(BATCHES * 2):
        # Epsilon grows, as on a ramp.
        threat = ThreatModel(norm=norm, epsilon=0.05 + 0.02 * step)
        batch = _batch(memory, ids, threat)
        crafted = _step(Free(step_size=step_size), model, batch)
        assert bool(threat.around(batch.images).contains(crafted).all())
        lengths = threat.lengths(memory.tables["perturbations"])
        assert bool((lengths <= threat.epsilon + 1e-6).all())
        moved.append(float(lengths.min()))
    assert moved[0] > 0


def test_the_gradient_of_the_weights_alone_leaves_the_perturbation_where_it_is() -> None:
    method, memory, model = Free(), Memory(), _model()
    batch = _batch(memory, [0, 1, 2, 3])
    loss = method.loss(model, method.craft(model, batch), batch)
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert not memory.tables["perturbations"].any()
    loss.backward()
    assert bool(memory.tables["perturbations"].any())


def test_a_step_takes_one_forward_pass() -> None:
    method, model, passes = Free(), _model(), 0
    batch = _batch(Memory(), [0, 1, 2, 3])

    def forward(images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return model(images)

    method.loss(forward, method.craft(model, batch), batch).backward()
    assert passes == 1


def test_an_images_own_perturbation_is_found_again_in_another_order() -> None:
    method, memory, model = Free(carry="sample"), Memory(), _model()
    _step(method, model, _batch(memory, [0, 1, 2, 3]))
    _step(method, model, _batch(memory, [4, 5, 6, 7]))
    batch = _batch(memory, [2, 7, 0, 5])
    kept = memory.tables["perturbations"][[2, 7, 0, 5]].clone()
    assert torch.equal(method.craft(model, batch), THREAT.around(batch.images).project(batch.images + kept))
    assert not memory.tables["perturbations"][8:].any()


def test_a_last_smaller_batch_leaves_the_other_places_alone() -> None:
    method, memory, model = Free(), Memory(), _model()
    _step(method, model, _batch(memory, [0, 1, 2, 3]))
    before = memory.tables["perturbations"].clone()
    _step(method, model, _batch(memory, [4, 5], ThreatModel(epsilon=0.3)))
    assert torch.equal(memory.tables["perturbations"][2:], before[2:])
    assert not torch.equal(memory.tables["perturbations"][:2], before[:2])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_that_overflowed_is_not_carried_on(norm: str) -> None:
    method, memory, model = Free(), Memory(), _model()
    threat = ThreatModel(norm=norm, epsilon=0.1)
    _step(method, copy.deepcopy(model), _batch(memory, [0, 1, 2, 3], threat))
    before = memory.tables["perturbations"].clone()
    assert bool(before.any())
    for bad in (float("nan"), float("inf")):
        batch = _batch(memory, [0, 1, 2, 3], threat)
        method.loss(lambda images, bad=bad: bad * model(images), method.craft(model, batch), batch).backward()
        assert torch.allclose(memory.tables["perturbations"], before, atol=1e-5)
        assert bool(memory.tables["perturbations"].isfinite().all())


@pytest.mark.parametrize("carry", ["batch", "sample"])
def test_two_ranks_remember_what_one_process_does_with_the_same_global_batch(carry: str) -> None:
    method, alone, ranks = Free(carry=carry), Memory(), [Memory(), Memory()]
    for ids in BATCHES[:2]:
        _step(method, nn.Sequential(nn.Flatten(), _linear()), _batch(alone, ids))
        for memory, part in zip(ranks, [slice(0, 2), slice(2, 4)], strict=True):
            batch = _batch(memory, ids[part], places=list(range(4))[part])
            _step(method, nn.Sequential(nn.Flatten(), _linear()), batch)
    _merge(ranks)
    for memory in ranks:
        assert torch.equal(memory.tables["perturbations"], alone.tables["perturbations"])


def _linear() -> nn.Module:
    with seeded(0, "model"):
        return nn.Linear(36, 3)


def _merge(memories: list[Memory]) -> None:
    """Merge two ranks' memories: first see what each would send, then give each the sums."""
    sent: list[list[Tensor]] = [[], []]
    for memory, log in zip(copy.deepcopy(memories), sent, strict=True):
        memory.merge(SimpleNamespace(sum=lambda value, log=log: (log.append(value.clone()), value)[1]))
    for memory in memories:
        sums = iter([one + other for one, other in zip(*sent, strict=True)])
        memory.merge(SimpleNamespace(sum=lambda _, sums=sums: next(sums)))


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="replays"):
        Free(replays=0)
    with pytest.raises(InputError, match="carry"):
        Free(carry="image")
    with pytest.raises(InputError, match=r"8/255"):
        Free(step_size=8)
