import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.attacks.pgd import PGD
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.distributed import World
from robust_nas.errors import InputError
from robust_nas.progress import Progress
from robust_nas.run_dir import Stage, read_metrics
from robust_nas.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training._augment import crop_and_flip
from robust_nas.training._loop import fit
from robust_nas.training._plan import Training
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
    assert {**whole.record, "seconds": 0} == {**resumed.record, "seconds": 0}
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_the_best_epoch_by_validation_robust_accuracy_is_kept(data, tmp_path):
    fitted = fit(_model(), data, THREAT, dataclasses.replace(QUICK, epochs=6, learning_rate=0.3), _stage(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    best = max(rows, key=lambda row: (row["validation_robust"], row["validation_clean"], -row["step"]))
    assert fitted.record["best_epoch"] == best["step"]
    assert fitted.record["validation"] == {"clean": best["validation_clean"], "robust": best["validation_robust"]}
    # And the weights are those of that epoch: their clean validation accuracy is the logged one.
    with torch.no_grad():
        logits = fitted.model(data.validation.images)
    assert float((logits.argmax(1) == data.validation.labels).double().mean()) == pytest.approx(
        best["validation_clean"]
    )


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
    robust = fit(_model(), data, threat, quick, _stage()).record["validation"]
    plain = fit(_model(), data, threat, dataclasses.replace(quick, method=Standard()), _stage()).record["validation"]
    assert robust["robust"] > plain["robust"] + 0.1


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule):
    plan = Training(schedule=schedule, learning_rate=0.2, warm_up=0.25)
    assert plan.learning_rate_at(0.0) == 0.0
    assert plan.learning_rate_at(0.125) == pytest.approx(0.1)
    assert plan.learning_rate_at(0.25) == pytest.approx(0.2)
    assert plan.learning_rate_at(1.0) == pytest.approx(0.0, abs=1e-12)
    assert plan.learning_rate_at(0.625) == pytest.approx(0.1)


def test_the_piecewise_schedule_drops_twice_by_ten():
    plan = Training(schedule="piecewise", learning_rate=1.0)
    assert [plan.learning_rate_at(share) for share in (0, 0.74, 0.75, 0.89, 0.9)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_every_crop_is_a_window_of_the_padded_image_and_all_windows_occur_equally_often():
    image = torch.arange(1, 10, dtype=torch.float32).view(1, 1, 3, 3) / 10
    many = crop_and_flip(image.expand(9000, -1, -1, -1), 1, False, torch.Generator().manual_seed(0))
    padded = F.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {tuple(padded[r : r + 3, c : c + 3].flatten().tolist()): 0 for r in range(3) for c in range(3)}
    for crop in many:
        windows[tuple(crop.flatten().tolist())] += 1
    assert len(windows) == 9
    # Each of 9 windows is expected 1,000 times with deviation sqrt(9000 * 1/9 * 8/9) = 29.8.
    assert all(abs(count - 1000) < 5 * math.sqrt(9000 * 8 / 81) for count in windows.values())


def test_half_of_the_images_are_mirrored_and_the_rest_left_alone():
    image = torch.tensor([[[[0.1, 0.2, 0.3]]]])
    many = crop_and_flip(image.expand(4000, -1, -1, -1), 0, True, torch.Generator().manual_seed(0))
    mirrored = (many == image.flip(3)).all(dim=(1, 2, 3))
    kept = (many == image).all(dim=(1, 2, 3))
    assert bool((mirrored ^ kept).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * math.sqrt(1000)


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
