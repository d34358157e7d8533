"""Holding a model still, and the losses."""

import copy

import pytest
import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas import attacks
from robust_nas.attacks._leaving import next_best
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.models.frozen import device_of, frozen
from robust_nas.models.losses import (
    cross_entropy,
    dlr,
    kl,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from robust_nas.models.scores import input_gradient
from robust_nas.threat import ThreatModel


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_batch_statistics_are_those_of_training_mode_and_are_not_kept(model: nn.Module, images: torch.Tensor) -> None:
    expected = copy.deepcopy(model).train()(images)
    model.eval()
    before = [buffer.clone() for buffer in model.buffers()]
    with frozen(model, "batch"):
        assert torch.allclose(model(images), expected)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))
    assert not torch.allclose(model(images), expected)


def test_a_loss_computed_before_an_attack_can_still_be_differentiated_after_it(
    model: nn.Module, images: torch.Tensor
) -> None:
    loss = model.eval()(images).sum()
    with frozen(model):
        model(images)
    loss.backward()
    assert model[0].weight.grad is not None


def test_a_buffer_that_the_forward_pass_writes_or_replaces_gets_its_value_back(images: torch.Tensor) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("written", torch.zeros(2))
            self.register_buffer("replaced", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.written += 1
            self.replaced = self.replaced + 1
            return x.flatten(1)

    counter = Counter()
    written, replaced = counter.written, counter.replaced
    with pytest.raises(KeyError), frozen(counter):
        counter(images)
        raise KeyError
    assert counter.written is written and written.sum() == 0
    assert counter.replaced is replaced and replaced.sum() == 0


def test_a_gradient_that_is_replaced_inside_is_put_back(model: nn.Module) -> None:
    gradient = model[0].weight.grad = torch.ones_like(model[0].weight)
    with frozen(model):
        model[0].weight.grad = None
        model[4].weight.grad = torch.ones_like(model[4].weight)
    assert model[0].weight.grad is gradient and model[4].weight.grad is None


def test_the_input_gradient_is_that_of_the_summed_losses(model: nn.Module, images: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    points = images.clone().requires_grad_()
    expected_losses = nn.functional.cross_entropy(model.eval()(points), labels, reduction="none")
    expected_losses.sum().backward()
    with frozen(model):
        logits, losses, gradient = input_gradient(model, images, labels, cross_entropy)
    assert torch.allclose(gradient, points.grad) and torch.allclose(losses, expected_losses.detach())
    assert not (logits.requires_grad or losses.requires_grad or images.requires_grad)


def test_the_losses_have_the_values_computed_by_hand() -> None:
    logits, labels = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]]), torch.tensor([0, 1])
    assert margin(logits, labels).tolist() == [-1.0, 3.0]
    # (3 - 4) / (4 - 1) where the label is the largest, (4 - 1) / (4 - 1) where it is not.
    assert dlr(logits, labels).tolist() == pytest.approx([-1 / 3, 1.0])


def test_the_targeted_losses_have_the_values_computed_by_hand() -> None:
    logits, pair = torch.tensor([[4.0, 1.0, 3.0, 0.0]]), torch.tensor([[0, 2]])
    assert targeted_margin(logits, pair).tolist() == [-1.0]
    # (3 - 4) / (4 - (1 + 0) / 2).
    assert targeted_dlr(logits, pair).item() == pytest.approx(-1 / 3.5)
    assert targeted_cross_entropy(logits, pair).item() == pytest.approx(logits.log_softmax(1)[0, 2].item())
    assert next_best(logits, torch.tensor([0]), 9).tolist() == [[2, 1, 3]]
    assert next_best(logits, torch.tensor([1]), 2).tolist() == [[0, 2]]


def test_kl_is_the_divergence_from_the_clean_prediction() -> None:
    logits, clean = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    assert torch.allclose(kl(logits, clean), expected)
    assert kl(clean, clean).abs().max() < 1e-12


def test_the_targeted_dlr_loss_of_three_classes_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4 classes, but the model has 3"):
        targeted_dlr(torch.zeros(1, 3), torch.tensor([[0, 1]]))


def test_the_cross_entropy_of_a_sure_model_is_not_rounded_to_zero() -> None:
    logits, labels = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True), torch.tensor([0])
    loss = cross_entropy(logits, labels)
    # log(1 + 2 exp(-40)) = 2 exp(-40) up to its square.
    loss.sum().backward()
    assert nn.functional.cross_entropy(logits, labels) == 0
    assert loss.item() == pytest.approx(2 * 4.248354e-18, rel=1e-5)
    assert logits.grad is not None and logits.grad[0, 0].item() == pytest.approx(-2 * 4.248354e-18, rel=1e-5)


def test_scaling_and_shifting_the_logits_leaves_the_dlr_loss_as_it_is() -> None:
    logits, labels = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    assert torch.allclose(dlr(1e3 * logits - 7, labels), dlr(logits, labels))


def test_the_dlr_loss_of_two_classes_is_refused() -> None:
    with pytest.raises(InputError, match="at least 3 classes, but the model has 2"):
        dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


class OneByOne(nn.Module):
    """A network that takes a Sequential's modules one by one, with a ReLU between convolution and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = nn.Linear(8 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.parts[1](self.parts[0](images).relu())
        logits: Tensor = self.last(hidden.flatten(1))
        return logits


def test_attacks_see_the_function_that_the_model_is_however_it_uses_its_modules() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 1, 4, 4)
    whole = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    for model in (OneByOne(), whole):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
                nn.init.uniform_(module.weight, -2, 2)
        model.eval()
        expected = model(images)
        with frozen(model):
            assert torch.allclose(model(images), expected, atol=1e-5)
            inside = [type(module).__name__ for module in model.modules()]
        assert torch.equal(model(images), expected)
        assert inside == [type(module).__name__ for module in model.modules()]


class Squeezed(nn.Module):
    """Loses the batch of a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).squeeze()


def test_a_model_that_squeezes_a_single_image_is_refused_by_every_attack(images: Tensor) -> None:
    for name in ("fgsm", "pgd", "apgd", "fab", "square", "opt"):
        with pytest.raises(InputError, match=r"logits \[B, K\] .* for 1 image it returned \[3\]"):
            attacks.get(name)().perturb(Squeezed(), images[:1], torch.tensor([0]), ThreatModel(epsilon=0.1))


def test_attacks_inside_inference_mode_say_so_and_inside_no_grad_are_the_same(model: nn.Module, images: Tensor) -> None:
    labels, threat = torch.arange(6) % 3, ThreatModel(epsilon=0.1)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode nothing has a gradient"):
        attacks.get("pgd")().perturb(model, images, labels, threat)
    expected = attacks.get("pgd")().perturb(model, images, labels, threat)
    with torch.no_grad():
        assert torch.equal(attacks.get("pgd")().perturb(model, images, labels, threat), expected)


class Returning(nn.Module):
    """A model whose `train`, and so its `eval`, does not return it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def test_a_model_whose_eval_returns_nothing_is_bounded_smoothed_and_joined(model: nn.Module, images: Tensor) -> None:
    data, threat = ImageSet.of(images, torch.arange(6) % 3), ThreatModel(epsilon=0.01)
    for call in (
        lambda network: rn.certify(network, data, threat)[0].margin,
        lambda network: rn.smooth(network, sigma=0.25, num_samples=20).predict(images),
        lambda network: rn.build_ensemble([network], data, threat, rule="uniform", bound="interval").predict(images),
    ):
        assert torch.equal(call(Returning(model)), call(model))


def test_logits_that_depend_on_something_else_than_the_images_are_refused(images: Tensor) -> None:
    class Own(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.detach().flatten(1)[:, :3] * torch.ones(1, requires_grad=True)

    with pytest.raises(InputError, match="nothing that has a gradient"):
        attacks.get("fgsm")().perturb(Own(), images, torch.arange(6) % 3, ThreatModel(epsilon=0.1))


def test_a_model_is_where_its_weights_are_or_its_statistics_or_the_images() -> None:
    images = torch.zeros(1)
    for module in (nn.Linear(1, 1, device="meta"), nn.BatchNorm2d(1, affine=False, device="meta")):
        assert device_of(module, images).type == "meta"
    assert device_of(nn.ReLU(), images).type == "cpu"
