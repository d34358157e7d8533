import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.evaluation import evaluate
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.runtime.states import load_state, save_state
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, TrainingResult, fit, rehearse
from robust_nas.training._plan import Knot, Phase
from robust_nas.training.fast import Fast
from robust_nas.training.pgd_at import PGDAT
from robust_nas.training.standard import Standard

THREAT = ThreatModel(epsilon=0.1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    digits = datasets.load("digits")
    return dataclasses.replace(
        digits, train=digits.train[:256], validation=digits.validation[:64], test=digits.test[:64]
    )


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
        )


def _stage(folder=None, name="train-0") -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage(name, 0, World(), Progress(quiet=True), folder)


QUICK = Training(
    epochs=3,
    batch_size=32,
    method=PGDAT(attack=PGD(steps=2, step_size=0.05)),
    selection_attack=PGD(steps=3, step_size=0.05),
    padding=1,
    flip=True,
)


def test_equal_seeds_train_to_equal_bits_and_an_interrupted_run_resumes_to_them(data, tmp_path, monkeypatch):
    whole = fit(_model(), data, THREAT, QUICK, _stage())
    calls = 0
    craft = PGDAT.craft

    def interrupted(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 20:  # in the third epoch of 8 batches
            raise KeyboardInterrupt
        return craft(self, *arguments, **options)

    monkeypatch.setattr(PGDAT, "craft", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(_model(), data, THREAT, QUICK, _stage(tmp_path))
    monkeypatch.undo()
    resumed = fit(_model(), data, THREAT, QUICK, _stage(tmp_path))
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert dataclasses.replace(whole.record, seconds=0) == dataclasses.replace(resumed.record, seconds=0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_the_best_epoch_by_validation_robust_accuracy_is_kept(data, tmp_path):
    fitted = fit(_model(), data, THREAT, dataclasses.replace(QUICK, epochs=6, learning_rate=0.3), _stage(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    best = max(rows, key=lambda row: (row["validation_robust"], row["validation_clean"], -row["step"]))
    assert fitted.record.best_epoch == best["step"]
    assert fitted.record.validation == {"clean": best["validation_clean"], "robust": best["validation_robust"]}
    # And the weights are those of that epoch: their clean validation accuracy is the logged one.
    with torch.no_grad():
        logits = fitted.model(data.validation.images)
    assert float((logits.argmax(1) == data.validation.labels).double().mean()) == pytest.approx(
        best["validation_clean"]
    )


def test_the_last_epoch_is_kept_where_that_is_asked_for(data):
    fitted = fit(_model(), data, THREAT, dataclasses.replace(QUICK, keep="last"), _stage())
    assert all(torch.equal(value, fitted.model.state_dict()[name]) for name, value in fitted.last.items())
    assert (fitted.record.kept, fitted.record.last_epoch) == ("last", 3)
    assert fitted.record.validation == fitted.record.last
    best = fit(_model(), data, THREAT, QUICK, _stage())
    assert fitted.record.best == best.record.validation
    assert all(torch.equal(value, best.model.state_dict()[name]) for name, value in fitted.best.items())


def test_the_test_split_is_never_looked_at(data):
    quick = dataclasses.replace(QUICK, epochs=1)
    blind = fit(_model(), dataclasses.replace(data, test=None), THREAT, quick, _stage())
    seen = fit(_model(), data, THREAT, quick, _stage())
    assert torch.equal(blind.model[0].weight, seen.model[0].weight)


def test_one_step_of_standard_training_is_a_step_of_nesterov_sgd(data):
    # One batch, no momentum history: v = g + wd w, step = lr (g + m v) = lr (1 + m) (g + wd w) in torch's form.
    small = dataclasses.replace(data, train=data.train[:32])
    plan = Training(epochs=1, batch_size=32, method=Standard(), warm_up=0.0, schedule="piecewise", learning_rate=0.1)
    model, reference = _model(), _model()
    fitted = fit(model, small, THREAT, plan, _stage())
    reference.train()
    F.cross_entropy(reference(small.train.images), small.train.labels).backward()
    for trained, before in zip(fitted.model.parameters(), reference.parameters(), strict=True):
        # Piecewise: after the last step the share is 1, two drops of 10.
        expected = before - 0.001 * 1.9 * (before.grad + 5e-4 * before)
        torch.testing.assert_close(trained, expected, atol=1e-6, rtol=1e-5)


def test_adversarial_training_is_more_robust_than_standard_training(data):
    threat, attack = ThreatModel(epsilon=0.2), PGD(steps=5, step_size=0.08)
    quick = dataclasses.replace(QUICK, epochs=15, padding=0, flip=False, method=PGDAT(attack=attack))
    robust = fit(_model(), data, threat, quick, _stage()).record.validation
    plain = fit(_model(), data, threat, dataclasses.replace(quick, method=Standard()), _stage()).record.validation
    assert robust["robust"] > plain["robust"] + 0.1


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule):
    plan = Training(schedule=schedule, learning_rate=0.2, warm_up=0.25)
    assert plan.learning_rate_at(0.0) == 0.0
    assert plan.learning_rate_at(0.125) == pytest.approx(0.1)
    assert plan.learning_rate_at(0.25) == pytest.approx(0.2)
    assert plan.learning_rate_at(1.0) == pytest.approx(0.0, abs=1e-12)
    assert plan.learning_rate_at(0.625) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("schedule", "more"),
    [("one_cycle", {}), ("cosine", {}), ("cyclic", {"cycles": 2, "batch_size": 128})],
)
def test_a_training_whose_every_step_has_the_learning_rate_0_is_refused_also_before_the_search(data, schedule, more):
    plan = Training(epochs=1, schedule=schedule, **{"batch_size": 256, **more})
    for refused in (
        lambda: fit(_model(), data, THREAT, plan, _stage()),
        lambda: rehearse(_model(), data, THREAT, plan),
    ):
        with pytest.raises(InputError, match=f"schedule '{schedule}' .* learning rate of 0 .*batch_size lower"):
            refused()


def test_the_piecewise_schedule_drops_twice_by_ten():
    plan = Training(schedule="piecewise", learning_rate=1.0)
    assert [plan.learning_rate_at(share) for share in (0, 0.74, 0.75, 0.89, 0.9)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "train.epochs must be at least 1"),
        ({"warm_up": 1.0}, r"train.warm_up must be in \[0, 1\)"),
        ({"learning_rate": -1.0}, "must be above 0"),
        ({"padding": -1}, "must not be negative"),
    ],
)
def test_a_wrong_setting_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Training(**options)


def test_a_batch_larger_than_the_split_is_refused(data):
    with pytest.raises(InputError, match="larger than the 256 images"):
        fit(_model(), data, THREAT, dataclasses.replace(QUICK, batch_size=512), _stage())


def test_a_diverging_training_stops_with_a_sentence(data):
    with pytest.raises(InputError, match=r"learning_rate lower|lower learning rate"):
        fit(_model(), data, THREAT, dataclasses.replace(QUICK, learning_rate=1e25, epochs=2), _stage())


def test_an_image_set_slices_like_a_tensor(data):
    part: ImageSet = data.train[torch.tensor([3, 1])]
    assert torch.equal(part.labels, data.train.labels[[3, 1]])
    assert len(part) == 2


STATEFUL = {
    "free": {"method": {"name": "free", "replays": 2}},
    "free by sample": {"method": {"name": "free", "replays": 2, "carry": "sample"}},
    "cat": {"method": {"name": "cat", "attack": {"name": "pgd", "steps": 2, "step_size": 0.05}, "eta": 0.05, "c": 3.0}},
    "sprout": {"method": "sprout"},
    "conadv": {"method": {"name": "conadv", "staleness": 2}},
    "everything": {
        "method": {"name": "pgd_at", "attack": {"name": "fgsm"}},
        "norm": "mixture",
        "clean_weight": 1.0,
        "pairing": 0.5,
        "awp": 0.01,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "mix_up": 0.2,
        "cutout": 2,
        "optimiser": "lamb",
        "learning_rate": 0.01,
    },
    "separate": {
        "method": {"name": "pgd_at", "clean_images": 0.5, "attack": {"name": "fgsm"}},
        "norm": "separate",
        "awp": 0.01,
        "ema": 0.9,
    },
    "bfloat16": {"method": "trades", "precision": "bfloat16", "optimiser": "adamw", "learning_rate": 0.001},
    "lars": {"method": "fast", "optimiser": "lars", "channels_last": True},
}


@pytest.mark.parametrize("options", STATEFUL.values(), ids=STATEFUL.keys())
def test_whatever_a_training_remembers_an_interrupted_one_resumes_to_its_bits(data, tmp_path, monkeypatch, options):
    plan = build(Training, {"epochs": 3, "batch_size": 32, "padding": 1, "selection_attack": "fgsm", **options})
    whole = fit(_model(), data, THREAT, plan, _stage())
    kind, calls = type(plan.method), 0
    craft = kind.craft

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 2 * 8 * getattr(self, "replays", 1) + 4:  # in the third epoch of 8 batches
            raise KeyboardInterrupt
        return craft(self, *arguments)

    monkeypatch.setattr(kind, "craft", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(_model(), data, THREAT, plan, _stage(tmp_path))
    monkeypatch.undo()
    resumed = fit(_model(), data, THREAT, plan, _stage(tmp_path))
    for name, value in whole.last.items():
        assert torch.equal(value, resumed.last[name]), name
    assert dataclasses.replace(whole.record, seconds=0) == dataclasses.replace(resumed.record, seconds=0)


def test_two_runs_with_a_memory_differ_from_one_whose_memory_is_lost(data, tmp_path):
    # The test above would also pass if the memory changed nothing.
    plan = build(Training, {"epochs": 2, "batch_size": 32, "method": {"name": "free", "replays": 2}})
    whole = fit(_model(), data, THREAT, plan, _stage())
    fit(_model(), data, THREAT, dataclasses.replace(plan, epochs=1), _stage(tmp_path))
    state = load_state(tmp_path / "checkpoints" / "train-0.state.safetensors")
    state["state"]["trainer"]["memory"]["tables"]["perturbations"].zero_()
    save_state(tmp_path / "checkpoints" / "train-0.state.safetensors", state)
    forgetful = fit(_model(), data, THREAT, plan, _stage(tmp_path))
    assert not torch.equal(whole.last["0.weight"], forgetful.last["0.weight"])


def test_a_trained_mixture_is_the_plain_network_with_the_branch_that_was_asked_for(data):
    options = {"method": PGDAT(attack=PGD(steps=1)), "norm": "mixture", "clean_weight": 1.0, "epochs": 4}
    fitted = {
        branch: fit(_model(), data, THREAT, dataclasses.replace(QUICK, **options, serve=branch), _stage())
        for branch in ("adversarial", "clean")
    }
    for branch, found in fitted.items():
        assert found.model.state_dict().keys() == _model().state_dict().keys() == found.last.keys(), branch
    # Trained alike, served differently: the last weights differ in batch norm alone.
    differing = {
        key for key, value in fitted["clean"].last.items() if not torch.equal(value, fitted["adversarial"].last[key])
    }
    assert differing == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_a_mixture_needs_batch_norms_and_images_through_both(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="this network has none"):
        fit(model, data, THREAT, dataclasses.replace(QUICK, norm="mixture"), _stage())
    with pytest.raises(InputError, match="adversarial batch norm of the mixture; take a method"):
        fit(_model(), data, THREAT, dataclasses.replace(QUICK, norm="mixture", method=Standard()), _stage())


def test_a_training_that_fails_leaves_the_network_plain(data):
    model = _model()
    with pytest.raises(InputError, match="lower learning rate"):
        fit(
            model,
            data,
            THREAT,
            dataclasses.replace(QUICK, norm="mixture", clean_weight=1.0, learning_rate=1e25),
            _stage(),
        )
    assert type(model[1]) is nn.BatchNorm2d


def test_dropout_is_drawn_from_the_seed_alone(data):
    def trained(noise: int) -> torch.Tensor:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        with seeded(0, "m"):
            model[2].reset_parameters()
        torch.manual_seed(noise)
        return fit(model, data, THREAT, dataclasses.replace(QUICK, epochs=1), _stage()).last["2.weight"]

    assert torch.equal(trained(1), trained(2))


def test_a_mixture_of_which_a_branch_is_never_trained_is_refused(data):
    with pytest.raises(InputError, match="No image goes through the clean batch norm"):
        fit(_model(), data, THREAT, dataclasses.replace(QUICK, norm="mixture"), _stage())


def test_the_watch_stops_a_training_that_collapses_and_keeps_the_best_epoch(data, tmp_path):
    # From the fifth epoch on the learning rate is absurd.
    knots = tuple(Knot(epoch=epoch, learning_rate=rate) for epoch, rate in ((0, 0.1), (6, 0.1), (7, 300), (12, 300)))
    plan = Training(method=Fast(watch=0.2), epochs=12, batch_size=32, schedule="linear", knots=knots)
    fitted = fit(_model(), data, THREAT, plan, _stage(tmp_path))
    rows = [row["validation_robust"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert fitted.record.collapsed
    assert fitted.record.last_epoch == len(rows) < 12
    assert rows[-2] - rows[-1] >= 0.2
    assert fitted.record.validation["robust"] == max(rows)
    # Resumed, it stays stopped; and what has collapsed is not kept, even where the last epoch is asked for.
    again = fit(_model(), data, THREAT, dataclasses.replace(plan, keep="last"), _stage(tmp_path))
    assert (again.record.last_epoch, again.record.kept) == (len(rows), "best")
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in fitted.best.items())


def _larger(part: ImageSet) -> ImageSet:
    return dataclasses.replace(part, pixels=part.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3))


def _collapse(start: str, watch: float) -> TrainingResult:
    """Train without batch norm on digits of 16 x 16 pixels, at a radius for which one step is not enough."""
    digits = datasets.load("digits")
    splits = {split: _larger(getattr(digits, split)) for split in ("train", "validation", "test")}
    with seeded(0, "m"):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
    plan = Training(
        method=Fast(start=start, watch=watch),
        epochs=20,
        batch_size=64,
        schedule="cosine",
        weight_decay=0,
        epsilon_ramp=0.3,
        selection_attack=PGD(steps=10),
    )
    return fit(model, dataclasses.replace(digits, **splits), ThreatModel(epsilon=0.3), plan, _stage(name="t"))


def test_one_step_without_a_random_start_overfits_catastrophically_and_the_watch_catches_it():
    fitted = _collapse("none", watch=0.15)
    record = fitted.record
    assert record.collapsed
    assert record.last_epoch > record.best_epoch
    assert record.validation["robust"] >= record.last["robust"] + 0.15
    # What was kept is the good state: attacked again, it has the robust accuracy that was recorded.
    images = _larger(datasets.load("digits").validation)
    threat = ThreatModel(epsilon=0.3)
    again = evaluate(fitted.model, images, threat, [PGD(steps=10)]).robust_accuracy
    assert again == pytest.approx(record.validation["robust"], abs=0.03)
    # And what was stopped is an overfit to the one step, which it withstands while it falls to ten.
    fitted.model.load_state_dict(fitted.last)
    assert evaluate(fitted.model, images, threat, [FGSM()]).robust_accuracy > record.last["robust"] + 0.2


@pytest.mark.slow
def test_from_a_random_start_the_same_training_does_not_collapse():
    assert _collapse("uniform", watch=0.15).record.collapsed is False


def test_the_network_is_evaluated_with_its_average_weights(data, tmp_path):
    plan = dataclasses.replace(QUICK, ema=0.5, epochs=1)
    fitted = fit(_model(), data, THREAT, plan, _stage(tmp_path))
    kept = load_state(tmp_path / "checkpoints" / "train-0.state.safetensors")["state"]["trainer"]
    assert all(torch.equal(fitted.last[name], value) for name, value in kept["average"]["values"].items())
    assert not torch.equal(fitted.last["0.weight"], kept["model"]["0.weight"])


def test_channels_last_trains_to_the_same_weights_up_to_rounding(data):
    plan = dataclasses.replace(QUICK, epochs=1, method=Standard())
    one = fit(_model(), data, THREAT, plan, _stage()).last
    other = fit(_model(), data, THREAT, dataclasses.replace(plan, channels_last=True), _stage()).last
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_trains_nearly_alike_and_crafts_in_the_ball(data, precision, monkeypatch):
    inside = []
    craft = PGDAT.craft

    def checked(self, model, batch):
        crafted = craft(self, model, batch)
        inside.append(
            crafted.dtype == torch.float32 and bool(batch.threat.around(batch.images).contains(crafted).all())
        )
        return crafted

    monkeypatch.setattr(PGDAT, "craft", checked)
    full = fit(_model(), data, THREAT, QUICK, _stage()).record.last
    reduced = fit(_model(), data, THREAT, dataclasses.replace(QUICK, precision=precision), _stage())
    assert all(inside) and len(inside) == 2 * 3 * 8
    assert reduced.model[0].weight.dtype == torch.float32
    assert reduced.record.last["robust"] == pytest.approx(full["robust"], abs=0.15)


def test_phases_change_resolution_and_batch(data, monkeypatch):
    seen = []
    craft = PGDAT.craft
    monkeypatch.setattr(
        PGDAT, "craft", lambda self, model, batch: seen.append(batch.images.shape) or craft(self, model, batch)
    )
    with seeded(0, "model"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.append(nn.Linear(4, 10))
    phases = (Phase(epochs=1, size=6, batch_size=64), Phase(epochs=1))
    fit(model, data, THREAT, dataclasses.replace(QUICK, epochs=2, phases=phases), _stage())
    assert seen == [torch.Size([64, 1, 6, 6])] * 4 + [torch.Size([32, 1, 8, 8])] * 8


@pytest.mark.slow
def test_a_compiled_training_gives_nearly_the_same_weights(data):
    plan = dataclasses.replace(QUICK, epochs=1)
    one = fit(_model(), data, THREAT, plan, _stage()).last
    other = fit(_model(), data, THREAT, dataclasses.replace(plan, compile=True), _stage()).last
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=5e-3, rtol=5e-2)
