import dataclasses

import pytest
import torch
from torch.nn import functional as F

from robust_nas import datasets, searches
from robust_nas.attacks.pgd import PGD
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.relaxations.relaxation import Relaxation
from robust_nas.relaxations.softmax import SoftmaxRelaxation
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._smoothness import Smoothness
from robust_nas.searches.darts import DARTS
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.searches.gumbel import Gumbel
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.spaces.cell.supernet import CellSupernet
from robust_nas.threat import ThreatModel
from robust_nas.training.ibp import IBP
from robust_nas.training.standard import Standard

THREAT = ThreatModel(epsilon=0.1)
QUICK = {"epochs": 2, "batch_size": 16, "validation_attack": PGD(steps=0)}
PROGRESSIVE = {"epochs": 4, "kept_operations": (5, 2), "partial_channels": (2, 1), "widening": 0.5}


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


def test_half_way_operations_are_left_out_and_all_channels_mixed(space, data):
    found = Dirichlet(**{**QUICK, **PROGRESSIVE}, alpha_learning_rate=0.1).search(space, data, THREAT, _stage())
    trajectory = found.record["trajectory"]
    before, after = ([sum(w > 0 for w in row) for row in trajectory[epoch]["mixture"]] for epoch in (2, 3))
    assert before == [5] * 6 and after == [2] * 6
    # Those that were left have the largest weights of the second epoch's end.
    for row, kept in zip(trajectory[2]["mixture"], trajectory[3]["mixture"], strict=True):
        largest = sorted(range(5), key=row.__getitem__)[-2:]
        assert {place for place in range(5) if kept[place] > 0} == set(largest)
    widths = {mixed.width for _, mixed in found.supernet.mixed_operations}
    assert widths == {2}
    assert all(mixed.passing == 0 for _, mixed in found.supernet.mixed_operations)


def test_the_auxiliary_skip_is_gone_at_the_end_of_the_search(space, data, monkeypatch):
    scales, add = [], CellSupernet.add_skip
    monkeypatch.setattr(CellSupernet, "add_skip", lambda self, scale: scales.append(scale) or add(self, scale))
    found = Dirichlet(**QUICK, auxiliary_skip=0.5).search(space, data, THREAT, _stage())
    assert scales[0] == 0.5 and scales[-1] == 0 and scales == sorted(scales, reverse=True)
    assert 0.25 in scales  # half-way
    assert all(mixed.auxiliary == 0 for _, mixed in found.supernet.mixed_operations)


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_progressive_search_resumes_to_the_same_result(space, data, tmp_path, monkeypatch, killed_after):
    search = Gumbel(**{**QUICK, **PROGRESSIVE}, alpha_learning_rate=0.1)
    whole = search.search(space, data, THREAT, _stage())
    save, calls = Stage.save, []

    def killed(self, done, state):
        save(self, done, state)
        calls.append(done)
        if done == killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert resumed.probabilities == whole.probabilities
    states = (result.supernet.state_dict() for result in (resumed, whole))
    for (key, one), (other_key, other) in zip(*(state.items() for state in states), strict=True):
        assert key == other_key and torch.equal(one, other)


def test_the_optimisers_momentum_goes_with_the_weights_into_the_wider_supernet(space, data):
    trainer = Dirichlet(**{**QUICK, **PROGRESSIVE}).trainer(space, data, THREAT, _stage())

    def momenta():
        state = trainer.weights.optimiser.state
        return {name: state[p]["momentum_buffer"].clone() for name, p in trainer.supernet.named_parameters()}

    trainer.learn(0)
    before = momenta()
    trainer.begin(1)
    assert set(momenta()) < set(before)
    for name, after in momenta().items():
        if after.shape == before[name].shape:
            assert torch.equal(after, before[name])
        else:
            size = len(before[name])
            assert torch.equal(after[:size, :size], before[name])
            assert after.abs().sum() == before[name].abs().sum()


@pytest.mark.parametrize("momentum", [0, 1])
def test_the_second_order_gradient_is_that_of_the_validation_loss_after_the_optimisers_step(
    space, data, monkeypatch, momentum
):
    # Finite differences, in float64, of a validation loss whose weights an SGD of torch's own has moved by one step.
    small = dataclasses.replace(data, train=data.train[:16], validation=data.validation[:16])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: None)  # alpha stays; its gradient tells
    search = DARTS(
        epochs=1 + momentum,
        batch_size=16,
        objective=Standard(),
        order="second",
        validation_attack=PGD(steps=0),
        anchor_scale=1e-12,
        gradient_clip=1e9,
    )
    trainer = search.trainer(space, small, THREAT, _stage())
    gradients, states = [], []
    take, sample = trainer.alpha.take, trainer.mixtures.sample

    def noted(*arguments, **options):
        trainer.supernet.double()
        state_of = trainer.weights.optimiser.state
        momenta = [state_of[parameter].get("momentum_buffer") for parameter in trainer.supernet.parameters()]
        for parameter, kept in zip(trainer.supernet.parameters(), momenta, strict=True):
            if kept is not None:
                state_of[parameter]["momentum_buffer"] = kept.double()
        weights = {key: value.clone() for key, value in trainer.supernet.state_dict().items()}
        copies = [None if kept is None else kept.double().clone() for kept in momenta]
        states.append((weights, copies, trainer.weights.optimiser.param_groups[0]["lr"]))
        take(*arguments, **options)
        gradients.append(trainer.relaxation.alpha.grad.double().clone())

    monkeypatch.setattr(trainer.mixtures, "sample", lambda *place: sample(*place).double())
    monkeypatch.setattr(trainer.alpha, "take", noted)
    images = datasets.ImageSet.images.fget
    monkeypatch.setattr(datasets.ImageSet, "images", property(lambda self: images(self).double()))
    for epoch in range(1 + momentum):
        trainer.learn(epoch)
    state, momenta, rate = states[momentum]
    with seeded(0, "search", "weights"):
        supernet = space.supernet(small).double().train()
    alpha = SoftmaxRelaxation(6, 5, seed=seed_at(0, "search")).alpha.detach().double()

    def loss_at(alpha):
        supernet.load_state_dict(state)
        optimiser = torch.optim.SGD(supernet.parameters(), rate, 0.9, weight_decay=search.weight_decay)
        for parameter, kept in zip(supernet.parameters(), momenta, strict=True):
            if kept is not None:
                optimiser.state[parameter]["momentum_buffer"] = kept.clone()
        mixture = alpha.softmax(-1)
        F.cross_entropy(supernet(small.train.images, mixture), small.train.labels).backward()
        optimiser.step()
        supernet.zero_grad()
        with torch.no_grad():
            return float(F.cross_entropy(supernet(small.validation.images, mixture), small.validation.labels))

    for edge, operation in ((0, 3), (2, 1), (5, 4)):
        nudge = torch.zeros_like(alpha)
        nudge[edge, operation] = 1e-5
        slope = (loss_at(alpha + nudge) - loss_at(alpha - nudge)) / 2e-5
        assert float(gradients[momentum][edge, operation]) == pytest.approx(slope, rel=2e-3, abs=1e-7)


def test_a_virtual_step_of_weights_on_single_paths_is_one_on_the_mixture(space, data, monkeypatch):
    # Else alpha would have no part in the step, and the second order no part in its gradient.
    seen = []
    options = {**QUICK, "epochs": 1, "order": "second", "single_path": True, "hold_sample": False}
    trainer = Dirichlet(**options).trainer(space, data, THREAT, _stage())
    crafted = trainer.mixtures.crafted

    def noted(step, level, *arguments):
        mixture, *others = crafted(step, level, *arguments)
        seen.append((level, mixture.requires_grad))
        return mixture, *others

    monkeypatch.setattr(trainer.mixtures, "crafted", noted)
    trainer.learn(0)
    assert set(seen) == {("virtual", True), ("alpha", True), ("weights", False)}


def test_a_finished_search_that_is_read_again_believes_the_same(space, data, tmp_path):
    search = DARTS(**QUICK, temperature=(5.0, 0.01), alpha_learning_rate=0.1)
    whole = search.search(space, data, THREAT, _stage(tmp_path))
    assert search.search(space, data, THREAT, _stage(tmp_path)).probabilities == whole.probabilities


def test_weights_that_diverge_are_named(space, data):
    search = Dirichlet(**QUICK, objective=Standard(), learning_rate=1e25, alpha_interval=2)
    with pytest.raises(InputError, match=r"search\.learning_rate lower than 1e\+25"):
        search.search(space, data, THREAT, _stage())


def test_a_search_that_has_come_to_constant_cells_alone_ends(space, data, monkeypatch):
    init = Relaxation.__init__

    def decided(self, *arguments, **options):
        init(self, *arguments, **options)
        self.alpha.data[:, space.operations.index("none")] = 1e4

    monkeypatch.setattr(Relaxation, "__init__", decided)
    with pytest.raises(InputError, match="output does not depend on their input"):
        Gumbel(**QUICK).search(space, data, THREAT, _stage())


@pytest.mark.parametrize("kept", [(7, 3), (4, 3)])
def test_a_search_begins_with_all_operations(space, data, kept):
    with pytest.raises(InputError, match="must begin with all 5 operations of nasbench201"):
        DARTS(**QUICK, kept_operations=kept).search(space, data, THREAT, _stage())


@pytest.mark.parametrize("key", ["kept_operations", "alpha_frozen", "order", "resource", "anchor_scale"])
def test_random_sharing_has_no_setting_of_what_alpha_learns(key):
    assert key in {field.name for field in dataclasses.fields(DARTS)}
    with pytest.raises(InputError, match=f"has no key '{key}'"):
        build(RandomSharing, {key: 1}, "search", "random_sharing")


def test_random_sharing_learns_nothing_of_the_operations_and_never_draws_a_constant_cell(space, data, monkeypatch):
    drawn = []
    original = CellSupernet.forward
    monkeypatch.setattr(CellSupernet, "forward", lambda self, x, m: drawn.append(m) or original(self, x, m))
    found = RandomSharing(**{**QUICK, "epochs": 10}).search(space, data, THREAT, _stage())
    assert found.probabilities == [pytest.approx([0.2] * 5)] * 6
    single = [mixture for mixture in drawn if bool((mixture.max(-1).values == 1).all())]
    assert len(single) > 40
    assert all(space.is_connected(mixture.argmax(-1).tolist()) for mixture in single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept_operations": (5, 3), "partial_channels": (4, 2, 1)}, "one number for each of the 3 stages"),
        ({"kept_operations": (3, 5)}, "none above the one before"),
        ({"kept_operations": (5, 3), "epochs": 1}, "at least 1 for each of the 2 stages"),
        ({"order": "second", "objective": IBP()}, "cannot be taken through"),
        ({"smoothness": Smoothness(weight=0.1), "objective": IBP()}, "leave one of them out"),
        ({"validation_images": 0}, r"validation_images must be at least 1"),
    ],
)
def test_a_wrong_setting_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        DARTS(**options)


def test_a_schedule_at_zero_is_refused():
    for name, option in {"dirichlet": "sharpness", "darts": "temperature", "gumbel": "temperature"}.items():
        with pytest.raises(InputError, match=f"search.{option} must be above 0"):
            searches.get(name)(**{option: (1.0, 0.0)})
