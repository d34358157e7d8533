from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas.api import build_ensemble
from robust_nas.bounds import LinearMargins
from robust_nas.bounds.auto import Auto
from robust_nas.bounds.interval import Interval
from robust_nas.certification import Certification, Contradiction, certify
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import wilson_interval
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)


def two_classes() -> nn.Module:
    """Return a linear network on one pixel x with margin 2x - 1 for class 1, in training mode with batch norm."""
    model = nn.Sequential(nn.BatchNorm2d(1, eps=1e-5), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].running_var.fill_(1 - 1e-5)  # with eps, a deviation of 1
        model[2].weight.copy_(torch.tensor([[0.0], [2.0]]))
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    return model


def pixels_and_labels() -> ImageSet:
    # The pixels 0, .4, .6 and 1 have the margins 1, .2, .2 and -1 for their labels.
    return ImageSet(torch.tensor([0, 102, 153, 255], dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 0, 1, 0]))


def stage(folder: Path | None, world: World | None = None) -> Stage:
    return Stage("certify", 0, world or World(), Progress(quiet=True), folder)


def test_margins_and_certificates_are_the_closed_form_at_every_radius() -> None:
    model = two_classes()
    small, large = certify(model, pixels_and_labels(), THREAT, epsilons=[0.05, "0.15"])
    expected = torch.tensor([0.9, 0.1, 0.1, -1.0], dtype=torch.float64)
    torch.testing.assert_close(small.margin, expected, atol=1e-7, rtol=0)
    assert small.certified.tolist() == [True, True, True, False] and small.accuracy == 0.75
    assert large.certified.tolist() == [True, False, False, False] and large.epsilon == 0.15
    assert small.clean_correct.tolist() == [True, True, True, False]
    assert (small.method, small.norm) == ("interval", "linf")
    assert model.training and [c.epsilon for c in certify(model, pixels_and_labels(), THREAT)] == [0.1]


def test_summary_and_rows_say_what_the_run_folder_holds() -> None:
    (found,) = certify(two_classes(), pixels_and_labels(), THREAT.with_epsilon(0.05))
    summary = found.summary()
    assert set(vars(summary)) == {"epsilon", "certified", "low", "high", "count", "mean_margin", "seconds", "proved_by"}
    assert summary.proved_by == {"interval": 3}
    assert (summary.certified, summary.count) == (0.75, 4)
    assert (summary.low, summary.high) == wilson_interval(3, 4)
    assert summary.mean_margin == pytest.approx(0.1 / 4, abs=1e-6)
    rows = found.rows()
    assert [row["image"] for row in rows] == [0, 1, 2, 3] and [row["label"] for row in rows] == [0, 0, 1, 0]
    assert rows[3] == {
        "method": "interval", "dtype": "float64", "norm": "linf", "epsilon": 0.05, "image": 3, "label": 0,
        "margin": pytest.approx(-1.0), "rounding": 0.0, "certified": False, "clean_correct": False,
        "seconds": rows[3]["seconds"],
    }  # fmt: skip


@pytest.mark.parametrize("margin", [float("nan"), 0.0, 1e-7, -1.0])
def test_a_margin_that_is_not_clearly_positive_proves_nothing(margin: float) -> None:
    one = torch.ones(1, dtype=torch.bool)
    made = Certification(
        method="interval", dtype="float64", norm="linf", epsilon=0.1, labels=torch.zeros(1),
        margin=torch.tensor([margin]).double(), rounding=torch.zeros(1).double(), clean_correct=one, seconds=0.0,
        methods=("interval",),
        seconds_each=torch.zeros(1),
    )  # fmt: skip
    assert not made.certified.any()


class Interrupted:
    """Interval bounds that stop before the chunk number `stop`, and remember which images they were asked for."""

    def __init__(self, stop: int = 99) -> None:
        self.stop, self.seen = stop, list[float]()

    def __repr__(self) -> str:
        return "Interrupted()"

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        self.seen += images.flatten().tolist()
        return Interval().margins(model, images, labels, threat)


def test_an_interrupted_stage_continues_after_its_last_chunk_to_the_same_result(tmp_path: Path) -> None:
    model, data = two_classes(), pixels_and_labels()
    with pytest.raises(KeyboardInterrupt):
        certify(model, data, THREAT, bound=Interrupted(stop=2), batch_size=1, stage=stage(tmp_path))
    rest = Interrupted()
    (resumed,) = certify(model, data, THREAT, bound=rest, batch_size=1, stage=stage(tmp_path))
    assert rest.seen == data.images.flatten()[2:].tolist()
    (whole,) = certify(model, data, THREAT)
    torch.testing.assert_close(resumed.margin, whole.margin, atol=1e-12, rtol=0)
    assert torch.equal(resumed.clean_correct, whole.clean_correct)
    with pytest.raises(InputError, match="other settings"):
        certify(model, data, THREAT.with_epsilon(0.2), bound=rest, batch_size=1, stage=stage(tmp_path))


def test_processes_share_the_chunks_and_get_the_result_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pixels_and_labels()
    whole = certify(two_classes(), data, THREAT)[0]
    results: list[list] = []

    def gather(self: World, value: list) -> list:
        # What the second process would send is computed beforehand, one image at a time.
        return [value, results.pop(0)]

    for start in (0, 2):
        part = certify(two_classes(), data[start + 1 : start + 2], THREAT)[0]
        rows = part.margin, part.rounding, part.seconds_each, torch.zeros(1), part.clean_correct
        results.append([torch.stack([row.double() for row in rows])[None]])
    monkeypatch.setattr(World, "gather", gather)
    monkeypatch.setattr(World, "barrier", lambda self: None)
    mine = Interrupted()
    (found,) = certify(two_classes(), data, THREAT, bound=mine, batch_size=1, stage=stage(None, World(rank=0, size=2)))
    assert mine.seen == data.images.flatten()[::2].tolist()
    torch.testing.assert_close(found.margin, whole.margin)


def test_no_images_or_radii_are_refused() -> None:
    data = pixels_and_labels()
    with pytest.raises(InputError, match="at least one image"):
        certify(two_classes(), data[:0], THREAT)
    with pytest.raises(InputError, match="at least one radius"):
        certify(two_classes(), data, THREAT, epsilons=[])


class Shifted(nn.Module):
    """The same logits, and a number more."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.by


def test_an_image_is_proved_by_the_cheapest_kind_that_can() -> None:
    # A ReLU network whose margins intervals lose by the ReLUs' common input, and that nothing proves far out.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[1].bias.zero_()
        model[3].weight.copy_(torch.tensor([[1.0, -0.8], [0.0, 0.0]]))
        model[3].bias.zero_()
    images = torch.tensor([0.9, 0.3, 0.9]).view(-1, 1, 1, 1)
    data = ImageSet.of(images, torch.tensor([0, 0, 1]))
    (found,) = certify(model, data, ThreatModel(epsilon=0.08), bound="auto")
    # x - 0.8 x: intervals need 0.98 x > 1.8 epsilon, linear bounds x > epsilon; the last image is misclassified.
    assert found.certified.tolist() == [True, True, False]
    assert found.methods[0] == "interval" and found.methods[1] == "crown_ibp" and found.methods[2] == "interval"
    torch.testing.assert_close(found.margin[1], torch.tensor(0.2 * 0.22, dtype=torch.float64))
    # Each logit rounds by up to 1/64 then: more than the .036 that intervals prove of the first image, with room, and
    # less than the .164 of linear bounds.
    model = nn.Sequential(model, Shifted(2.0**18))
    (found,), (loose,) = (
        certify(model, data[:1], ThreatModel(epsilon=0.08), bound=kind) for kind in ("auto", "interval")
    )
    assert found.certified.item() and found.methods == ("crown_ibp",)
    assert loose.margin.item() > 0 and not loose.certified.item()


class Wrapped(nn.Module):
    """A function around `two_classes`."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self.function = two_classes(), function

    def forward(self, images: Tensor) -> Any:
        return self.function(self.network, images)


def under_autocast(network: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return network(images).float()


OTHER_ARITHMETIC: dict[str, Callable[[], nn.Module]] = {
    "under autocast": lambda: Wrapped(under_autocast),
    "Tensor.half": lambda: Wrapped(lambda network, x: network(x.half().float())),
    "a conversion from .* to torch.bfloat16": lambda: Wrapped(
        lambda network, x: network(x.to(torch.bfloat16).to(x.dtype))
    ),
    "Tensor.int": lambda: Wrapped(lambda network, x: network((255 * x).int() / 255)),
    "weight' is torch.float16": lambda: two_classes().half(),
    "weight' is torch.bfloat16": lambda: two_classes().bfloat16(),
    "returned a tuple": lambda: Wrapped(lambda network, x: (network(x), x)),
    "returned a dict": lambda: Wrapped(lambda network, x: {"logits": network(x)}),
}


@pytest.mark.parametrize("named", OTHER_ARITHMETIC)
def test_a_network_of_fewer_digits_or_without_logits_is_refused_by_name(named: str) -> None:
    data, model = pixels_and_labels(), OTHER_ARITHMETIC[named]()
    with pytest.raises(InputError, match=named):
        certify(model, data, THREAT)
    with pytest.raises(InputError, match=named):
        build_ensemble([model, two_classes()], data, THREAT)


def test_nothing_is_certified_inside_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="autocast is on"):
        certify(two_classes(), pixels_and_labels(), THREAT)


SAME_FUNCTION: dict[str, Callable[[], nn.Module]] = {
    "in float64": lambda: two_classes().double(),
    "writes into its input": lambda: Wrapped(lambda network, x: network(x.sub_(0.25).add_(0.25))),
    "weights with a history": lambda: with_history(two_classes()),
}


def with_history(model: nn.Module) -> nn.Module:
    norm: Any = nn.utils.weight_norm  # type: ignore[attr-defined]
    norm(model[2], dim=None)  # type: ignore[index]
    model.eval()(torch.rand(2, 1, 1, 1)).sum().backward()
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("named", SAME_FUNCTION)
def test_a_network_that_is_written_in_another_way_has_the_same_certificates(named: str) -> None:
    data, model = pixels_and_labels(), SAME_FUNCTION[named]()
    before = data.images.clone()
    (found,), (expected,) = certify(model, data, THREAT), certify(two_classes(), data, THREAT)
    torch.testing.assert_close(found.margin, expected.margin, atol=1e-6, rtol=0)
    assert torch.equal(found.clean_correct, expected.clean_correct) and torch.equal(data.images, before)
    weights = build_ensemble([model, two_classes()], data, THREAT, rule="uniform", bound="interval").weights
    assert weights == [0.5, 0.5] and torch.equal(data.images, before)


class Linear(nn.Module):
    """A linear network of 16 pixels between two functions that are the identity, or a shift, in exact arithmetic."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.before, self.after = nn.Linear(16, 3), before, after
        # Most images are of the last class then, which loses where logits are rounded to the same number.
        self.last.weight.data, self.last.bias.data = self.last.weight.data.flip(0), self.last.bias.data.flip(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.last(self.before(images).flatten(1)))


def unchanged(values: Tensor) -> Tensor:
    return values


ROUNDS: dict[str, Callable[[], nn.Module]] = {
    "pixels": lambda: Linear(lambda x: (x + 2e5) - 2e5, unchanged),
    "pixels in place": lambda: Linear(lambda x: x.add_(2e5).sub_(2e5), unchanged),
    "logits": lambda: Linear(unchanged, lambda logits: logits + 1e6),
    "scaled logits": lambda: Linear(unchanged, lambda logits: 1e3 * logits + 1e9),
}


@pytest.mark.parametrize("named", ROUNDS)
def test_no_certified_image_is_wrong_by_rounding_at_the_largest_radius_that_exact_arithmetic_proves(named: str) -> None:
    model, exact = ROUNDS[named](), Linear(unchanged, unchanged)
    images = 0.2 + 0.6 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels, weight = exact(images).argmax(1), exact.last.weight.detach()
    logits = exact(images).detach()
    margins = (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], torch.inf)
    # The margin of class j falls by |w_y - w_j|_1 for each unit of the radius.
    radii, classes = (margins / (weight[labels][:, None] - weight).abs().sum(2)).nan_to_num(torch.inf).min(1)
    directions = (weight[classes] - weight[labels]).sign().view_as(images)
    wrong, proved = 0, 0
    for image in (radii < 0.2).nonzero().flatten().tolist():
        threat = ThreatModel(epsilon=0.9999 * float(radii[image]))
        (found,) = certify(model, ImageSet.of(images[image][None], labels[image][None]), threat)
        shrunk = torch.cat([torch.tensor([1.0]), 1 - 0.2 * torch.rand(200)]).view(-1, 1, 1, 1) * threat.epsilon
        points = threat.around(images[image].expand(201, 1, 4, 4)).project(images[image] + shrunk * directions[image])
        broken = bool((model(points).argmax(1) != labels[image]).any())
        assert not (broken and found.certified.item())
        wrong, proved = wrong + broken, proved + int(found.margin > 1e-6)
    assert wrong > 2 and proved > 8  # what exact arithmetic proves is wrong


def test_rounding_takes_nothing_of_account_from_a_network_of_ordinary_numbers() -> None:
    (found,) = certify(two_classes(), pixels_and_labels(), THREAT.with_epsilon(0.05))
    assert ((found.rounding > 0) & (found.rounding < 1e-5)).tolist() == [True, True, True, False]


def test_what_a_network_writes_into_after_its_use_is_certified_as_it_was_used() -> None:
    def counted(x: Tensor, count: Callable[[Tensor], Tensor]) -> Tensor:
        index, pixels, columns = torch.zeros(1, dtype=torch.long), x.flatten(1), list[Tensor]()
        for _ in range(16):
            columns.append(pixels[:, index])
            index = count(index)
        values = torch.sigmoid(torch.cat(columns, 1))
        return 2 * values - count(values)  # the sigmoid's derivative is of its value

    in_place, out_of_place = (
        certify(Linear(lambda x, count=count: counted(x, count), unchanged), data, ThreatModel(epsilon=1e-4))[0]
        for data in [ImageSet(torch.rand(3, 1, 4, 4), torch.arange(3))]
        for count in (lambda values: values.add_(1), lambda values: values + 1)
    )
    assert torch.equal(in_place.margin, out_of_place.margin) and in_place.certified.any()
    assert torch.equal(in_place.rounding, out_of_place.rounding)


class Wrong:
    """Bounds that prove every image to be of its label, whatever the network says."""

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        return LinearMargins(torch.full((len(images), 2), 0.1).scatter(1, labels[:, None], torch.inf))


@pytest.mark.parametrize(
    ("place", "epsilon", "where"),
    [
        (3, 0.15, "on it is -1"),
        (1, 0.15, "at a point of its ball is -0.1"),
        (1, 0.06, "at a point of its ball is 0.08"),
    ],
)
def test_a_proof_that_the_networks_own_answers_contradict_is_an_error(place: int, epsilon: float, where: str) -> None:
    # The pixel .4 is right by .2, and by .2 - 2 epsilon at the end of its ball, where .1 is proved; 1 is wrong by 1.
    with pytest.raises(Contradiction, match=f"Image 0 is proved to be of class 0 by .* {where}"):
        certify(two_classes(), pixels_and_labels()[place : place + 1], THREAT.with_epsilon(epsilon), bound=Wrong())


class Unknowing:
    """Margins that are no numbers, in float32."""

    name = "unknowing"

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        return LinearMargins(torch.full((len(images), 2), torch.nan).scatter(1, labels[:, None], torch.inf))


def test_a_kind_of_ones_own_that_proves_nothing_is_followed_by_the_next() -> None:
    (expected,) = certify(two_classes(), pixels_and_labels(), THREAT)
    (found,) = certify(two_classes(), pixels_and_labels(), THREAT, bound=Auto(kinds=(Unknowing(), Interval())))
    assert found.margin.equal(expected.margin) and set(found.methods) == {"interval"}
    (nothing,) = certify(two_classes(), pixels_and_labels(), THREAT, bound=Auto(kinds=(Unknowing(),)))
    assert not nothing.certified.any() and set(nothing.methods) == {"unknowing"}


class Doubled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.to(torch.float64) + 1e4


@pytest.mark.parametrize("bound", ["interval", "auto"])
def test_the_networks_own_answers_are_held_to_the_digits_that_they_have(bound: str) -> None:
    # In float32, a logit near 10000 is up to .0005 off, which no rounding of the network's explains.
    data = pixels_and_labels()
    found, expected = (
        certify(model, data, THREAT, bound=bound)[0]
        for model in (nn.Sequential(two_classes(), Doubled()), two_classes())
    )
    assert found.certified.any() and found.certified.equal(expected.certified)


def test_rounding_that_a_kind_of_bound_has_looked_at_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = certify(two_classes(), pixels_and_labels(), THREAT)
    monkeypatch.setattr("robust_nas.certification.own_answers", None)
    (found,) = certify(two_classes(), pixels_and_labels(), THREAT, bound="auto")
    assert found.rounding.equal(expected.rounding) and found.rounding.any()


def test_nothing_is_certified_without_its_rounding() -> None:
    data = pixels_and_labels()
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode nothing has a gradient"):
        certify(two_classes(), data, THREAT)
    model = two_classes()
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode nothing has a gradient"):
        Auto().margins(model, data.images, data.labels, THREAT)
    expected = certify(two_classes(), pixels_and_labels(), THREAT)[0].rounding
    with torch.no_grad():
        found = certify(two_classes(), pixels_and_labels(), THREAT)[0].rounding
    assert found.amax() > 0 and found.equal(expected)


def test_images_that_the_network_cannot_take_are_refused() -> None:
    data = ImageSet.of(torch.zeros(2, 4, 4, 3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="cannot take images of 4 x 4 x 3 pixels"):
        certify(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)), data, THREAT)
