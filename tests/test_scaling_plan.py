"""The plan of a scaling study, against published sizes, real counts and measured memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import robust_nas as rn
from robust_nas import recipes, spaces
from robust_nas.architectures.resnet import ResNetArchitecture
from robust_nas.core.errors import InputError
from robust_nas.models.checkpointing import blocks_of
from robust_nas.models.metering import measure_pass
from robust_nas.recipes import Recipe
from robust_nas.records.scaling import StudyData
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.studies import scaling
from robust_nas.studies.scaling import costs
from robust_nas.studies.scaling.calibration import Candidate, Pace, evaluation_passes, load_of, validation_passes
from robust_nas.studies.scaling.planning import _Planner


def data(side: int = 32, classes: int = 10) -> StudyData:
    return StudyData(
        name="images",
        image_shape=(3, side, side),
        num_classes=classes,
        num_train=1000,
        num_validation=100,
    )


def network(text: str) -> ResNetArchitecture:
    return ResNetArchitecture.parse(text)


def real(text: str, side: int = 32) -> nn.Module:
    return costs.made(network(text), costs.form_of(data(side), (3, side, side)))


PUBLISHED = {18: (11.69, 1.814), 50: (25.56, 4.089), 101: (44.55, 7.801), 152: (60.19, 11.514)}
"""Millions of parameters and thousand millions of multiply-adds at 224 px, as torchvision's documentation has them."""


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(depth):
    size = costs.size(network(f"resnet-{depth}"), data(224, 1000))
    assert (round(size.parameters / 1e6, 2), round(size.multiply_adds / 1e9, 3)) == PUBLISHED[depth]


@pytest.mark.parametrize(
    "text", ["cifar-resnet-20 width=2", "wrn-10-2", "resnet-18 stem=cifar se=relu denoise=gaussian"]
)
def test_multiply_adds_are_those_of_torchs_own_counter(text):
    model = real(text).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert costs.size(network(text), data()).multiply_adds == counter.get_total_flops() // 2


class _Saved:
    """Bytes of distinct storages that autograd saves on the CPU, those of the model and its input left out."""

    def __init__(self, model: nn.Module, *given: torch.Tensor) -> None:
        self.own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *given)}
        self.found: dict[int, torch.UntypedStorage] = {}

    def __enter__(self) -> _Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.found[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.found.values())


@pytest.mark.parametrize(
    "text", ["cifar-resnet-8 width=0.5", "resnet-10 width=0.25 stem=cifar block=basic", "wrn-10-1"]
)
def test_activations_on_the_meta_device_are_what_autograd_saves_on_the_cpu(text):
    model, images, labels = real(text).train(), torch.rand(6, 3, 32, 32), torch.zeros(6, dtype=torch.int64)
    with _Saved(model, images, labels) as saved:
        loss = F.cross_entropy(model(images.clone()), labels)
    planned = costs.network_cost(costs.on_meta(network(text), costs.form_of(data(), (3, 32, 32))), (3, 32, 32), 6, 4)
    assert loss.requires_grad and planned.training.kept == saved.bytes
    assert planned.activations == saved.bytes / 6


def _checkpoint(model: nn.Module) -> None:
    """Have torch's own checkpointing compute the model's blocks again."""
    for block in blocks_of(model):
        forward = block.forward
        block.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)  # type: ignore[method-assign]


@pytest.mark.parametrize("text", ["cifar-resnet-20", "wrn-16-2", "preact-resnet-18 width=0.25"])
def test_activations_with_checkpointing_are_those_of_torchs_own_on_the_cpu(text):
    planned = costs.network_cost(costs.on_meta(network(text), costs.form_of(data(), (3, 32, 32))), (3, 32, 32), 8, 4)
    model = real(text).train()
    _checkpoint(model)
    found = measure_pass(model, torch.rand(8, 3, 32, 32))
    largest = planned.training.blocks.largest
    assert planned.activations_checkpointed == (found.kept + largest) / 8
    held = max(found.forward_peak, found.peak - planned.gradients)
    assert planned.step_checkpointed == pytest.approx(held, rel=0.1)
    assert planned.step_checkpointed < 0.6 * planned.step


@pytest.mark.parametrize("steps", [1, 4])
def test_pgd_k_takes_2k_plus_3_passes_and_a_running_mean_or_awp_what_they_add(steps):
    def passes(*settings: str) -> float:
        method = f"train.method={{name='pgd_at',attack={{name='pgd',steps={steps}}}}}"
        recipe = recipes.for_model("cifar-resnet-20", [method, *settings], data="digits")
        return costs.step_of(recipe, network("cifar-resnet-20"), replace(data(8), image_shape=(1, 8, 8))).passes

    # The first layer, whose images need no gradient in the last backward pass, is left out.
    assert passes() == pytest.approx(2 * steps + 3, abs=0.05)
    assert passes("train.clean_weight=1.0") == pytest.approx(2 * steps + 6, abs=0.1)
    assert passes("train.awp=0.01") == pytest.approx(2 * steps + 6, abs=0.1)


def test_steps_that_differentiate_two_passes_together_hold_two_passes_activations():
    def graphs(*settings: str) -> float:
        recipe = recipes.for_model("cifar-resnet-20", settings, data="digits")
        return costs.step_of(recipe, network("cifar-resnet-20"), data(16)).graphs

    assert graphs("train.method=standard") == pytest.approx(1, abs=0.1)
    assert graphs("train.method=trades") == pytest.approx(2, abs=0.15)


def test_weights_copies_and_the_optimisers_state_are_counted():
    step = costs.StepCost(passes=23, graphs=1, copies=3, optimiser=2)
    cost = costs.network_cost(
        costs.on_meta(network("cifar-resnet-8"), costs.form_of(data(), (3, 32, 32))), (3, 32, 32), 4, 4
    )
    found = costs.peak_memory(cost, step, averages=True)
    assert cost.gradients == 4 * cost.size.parameters
    assert (found.gradients, found.optimiser) == (4 * cost.gradients, 2 * cost.gradients)
    assert found.weights == 3 * cost.state and cost.state > cost.gradients  # running statistics


def test_training_flops_are_passes_of_all_images_in_whole_batches():
    recipe = recipes.for_model("cifar-resnet-8", ["train.epochs=3", "train.batch_size=64"], data="digits")
    own = replace(data(8), image_shape=(1, 8, 8))
    passes = costs.step_of(recipe, network("cifar-resnet-8"), own).passes
    each = 2 * costs.size(network("cifar-resnet-8"), own).multiply_adds
    assert costs.training_flops(recipe, network("cifar-resnet-8"), own) == pytest.approx(3 * 960 * passes * each)


def test_a_network_that_no_machine_holds_is_planned_on_the_meta_device():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    form = costs.form_of(data(224, 1000), (3, 224, 224))
    found = costs.network_cost(costs.on_meta(network("resnet-152 width=8"), form), (3, 224, 224), 4096, 250)
    assert found.size.parameters > 3e9 and found.step > 2**40
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < found.gradients / 20


def test_attacks_are_counted_without_a_network_as_if_no_image_fell():
    def recipe(steps: int) -> Recipe:
        attacks = [f"evaluation.attacks=[{{name='pgd',steps={steps}}}]", "evaluation.strongest=[]"]
        settings = ["train.selection_attack={name='pgd',steps=3}", "evaluation.masking_images=0", *attacks]
        return recipes.for_model("cifar-resnet-8", settings, data="digits")

    form = costs.form_of(data(), (3, 32, 32))
    # A pass says which images are right, each step is one both ways, and a last pass judges.
    assert validation_passes(recipe(4), form) == 3 * 2 + 2
    more = evaluation_passes(recipe(14), form, 50) - evaluation_passes(recipe(4), form, 50)
    assert more == pytest.approx(50 * 10 * 2)


@pytest.fixture(scope="module")
def pace() -> Iterator[Pace]:
    """A device of a thousand million multiplications a second, without other costs."""
    yield Pace(rates=(1e-9, 0.0, 0.0), sizes=(1.0,), ratios=(1.0,), timed=(), overhead=1.0)


def test_seconds_are_the_rates_times_the_load_and_ratios_go_between_networks(pace):
    meta = costs.on_meta(network("cifar-resnet-8"), costs.form_of(data(), (3, 32, 32)))
    cost = costs.network_cost(meta, (3, 32, 32), 8, 4)
    assert pace.seconds(cost, 32) == pytest.approx(4 * cost.training.flops * 1e-9)
    assert load_of(cost, 8) == (cost.training.flops, cost.training.traffic, cost.training.kernels)
    own = cost.training.flops / 8
    between = replace(pace, sizes=(own / 4, own * 4), ratios=(1.0, 4.0))
    assert between.seconds(cost, 32) == pytest.approx(2 * pace.seconds(cost, 32))


def test_calibration_finds_the_rate_of_a_clock_that_counts_multiplications(monkeypatch):
    from robust_nas.models.metering import Meter
    from robust_nas.studies.scaling import calibration

    recipe = recipes.for_model("cifar-resnet-8", ["train.method.attack.steps=1"], data="digits")
    form = costs.form_of(data(8), (3, 8, 8))

    def candidate(text: str) -> Candidate:
        cost = costs.network_cost(costs.on_meta(network(text), form), (3, 8, 8), 8, 4)
        return Candidate(lambda: costs.made(network(text), form), cost, (3, 8, 8))

    with Meter() as meter:
        trial = calibration.Trial(
            recipe,
            form,
            costs.step_of(recipe, network("cifar-resnet-8"), data(8)),
            World(),
            2**30,
            1e9,
            clock=lambda: meter.flops * 1e-9,
        )
        found = calibration.calibrate([candidate("cifar-resnet-8 width=0.5"), candidate("cifar-resnet-14")], trial)
    other = costs.network_cost(costs.on_meta(network("cifar-resnet-20"), form), (3, 8, 8), 8, 4)
    assert found.seconds(other, 64) == pytest.approx(8 * other.training.flops * 1e-9, rel=0.03)


def plan(*settings: str, **words):
    given = {"depths": "8", "data": "digits", "widths": "0.5", **words}
    own = {name: given.pop(name) for name in ("memory", "size", "classes", "num_images") if name in given}
    grid = scaling.from_words(["device=cpu", "threads=1", *settings], size=own.get("size"), **given)
    return scaling.plan(grid, seconds=0.2, attacks=False, **own)


def test_a_plan_has_a_row_per_network_and_setting_and_counts_all_seeds():
    found = plan("train.method.attack.steps=1", depths="8,14", seeds="3", epochs="2,4")
    assert [(row.depth, row.epochs, row.fits) for row in found.networks] == [
        (8, 2, "yes"),
        (8, 4, "yes"),
        (14, 2, "yes"),
        (14, 4, "yes"),
    ]
    first, second, third, _ = found.networks
    assert found.cells == 12 and found.data.num_train == 1077
    assert second.flops == 2 * first.flops and second.seconds == pytest.approx(2 * first.seconds)
    assert third.parameters > first.parameters and third.seconds > first.seconds
    assert found.flops == pytest.approx(3 * sum(row.flops + row.validation_flops for row in found.networks))
    assert first.steps == 2 * (1077 // 64) and first.passes == pytest.approx(5, abs=0.1)
    assert len(found.to_frame()) == 4 and "cifar-resnet-14 width=0.5" in found.text()
    assert "4 networks" in repr(found)


GIB = 2**30

FITS = [
    (21.0, "yes", None),
    (
        11.0,
        "with checkpointing",
        "batch 64: 16 GiB of activations, 4 GiB with checkpointing, but 10 GiB are left of 11",
    ),
    (
        5.0,
        "with checkpointing and train.accumulate=2",
        "cifar-resnet-20 at 32 px, batch 64: 16 GiB of activations, 4 GiB with checkpointing; 100 validation images "
        "under attack: 6 GiB of activations, 2 GiB with checkpointing, but 4 GiB are left of 5",
    ),
    (3.5, "with checkpointing and train.accumulate=3 and train.selection_batch=75", "2.5 GiB are left"),
    (
        1.9,
        "no",
        "cifar-resnet-20 at 32 px does not fit: 1 GiB of weights, gradients and the optimiser's state, but 0.9",
    ),
]


@pytest.mark.parametrize(("memory", "fits", "reason"), FITS)
def test_what_does_not_fit_says_what_is_too_large_and_what_would_fit(memory, fits, reason):
    settings = ["train.batch_size=64", "train.selection_batch=100"]
    grid = scaling.from_words(settings, data="digits", depths="20", size=32)
    (cell,) = grid.cells()
    planner = _Planner(data(), 100, 0, World(), memory, Progress(quiet=True))
    needed = costs.PeakMemory(
        weights=GIB // 2,
        gradients=GIB // 4,
        optimiser=GIB // 4,
        step=16 * GIB,
        step_checkpointed=4 * GIB,
        validation=6 * GIB,
        validation_checkpointed=2 * GIB,
    )
    found, words = planner.fit(cell, planner.largest(cell), needed, GIB)
    assert found == fits
    assert (words is None) if reason is None else (reason in words)


def test_images_that_are_not_here_are_planned_by_their_numbers():
    found = plan(
        "train.phases=[]",
        "train.batch_size=2",
        data="fast-imagenet",
        net="resnet",
        depths="18",
        size=64,
        classes=1000,
        num_images=1281167,
    )
    (row,) = found.networks
    assert row.parameters == 11_689_512 * 1 or row.parameters < 11_689_512  # of width 0.5
    assert row.image_size == 64 and row.images_per_epoch == 1_281_166


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"memory": 0}, "--memory is a number of GiB above 0"),
        ({"size": 0}, "--size must be at least 1"),
        ({"classes": 1}, "--classes must be at least 2"),
        ({"depths": "9"}, "the nearest are 8 and 14"),
        ({"depths": "8,x"}, "--depths are whole numbers"),
        ({"seeds": "0"}, "--seeds says how many"),
        ({"seeds": "20000"}, "The grid has 20,000 cells"),
        ({"vary": ["train.awp"]}, "A setting that varies is written"),
        ({"options": "norm=group:5"}, "no multiple of the 5 groups"),
    ],
)
def test_a_wrong_word_is_said_in_one_sentence(words, message):
    with pytest.raises(InputError, match=message):
        plan(**words)


def test_a_large_grid_is_planned_where_it_is_meant():
    grid = scaling.from_words([], data="digits", depths="8", seeds="20000", yes=True)
    assert len(grid) == 20_000


def test_networks_of_other_kinds_of_spaces_are_counted_too():
    space = spaces.load("nasbench201", channels=8, cells_per_stage=1)
    form = costs.form_of(data(), (3, 32, 32))
    with torch.device("meta"):
        meta = space.network(space.parse("323133"), form)
    cost = costs.network_cost(meta, (3, 32, 32), 8, 4)
    model, images, labels = (
        rn.create("323133", form, space=space).train(),
        torch.rand(8, 3, 32, 32),
        torch.zeros(8).long(),
    )
    with _Saved(model, images, labels) as saved:
        loss = F.cross_entropy(model(images.clone()), labels)
    assert loss.requires_grad and cost.training.kept == saved.bytes
