"""Models as people bring them: modes, hooks, wrappers, outputs, weights."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from checks import refused, right_or_refused, same, situation, true
from small_models import (
    Wrapped,
    answers,
    attacked,
    certified,
    exact_margins,
    few_digits,
    images,
    linear,
    modes,
    quiet,
    small_network,
)
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.datasets import ImageSet

KIND = "models as people bring them"


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#21")
def the_mode_is_what_it_is_now_and_not_what_it_was_when_an_attack_was_made(_: Path) -> None:
    model, points = small_network(), images()
    attack = rn.attacks.get("pgd")()
    for training in (True, False, True):
        model.train(training)
        attack.perturb(model, points, torch.zeros(24, dtype=torch.int64), rn.ThreatModel(epsilon=0.1))
        true(modes(model) == [training] * len(modes(model)), f"a model in mode {training} is in {modes(model)} after")


@situation(KIND, "soran-ghaderi/torchebm#303")
def a_frozen_child_of_a_model_in_training_mode_stays_frozen(_: Path) -> None:
    model, points = small_network().train(), images()
    model[1].eval()
    labels, before = answers(model, points), modes(model)
    attacked(model, points, labels, attacks=["pgd", "square"])
    certified(model, points[:4], labels[:4], bound="crown")
    rn.smooth(model, sigma=0.25, num_samples=20).predict(points[:2])
    rn.Ensemble([model]).predict(points)
    true(modes(model) == before, f"the modes {before} have become {modes(model)}")


@situation(KIND, "bethgelab/foolbox#74")
def a_model_in_training_mode_is_measured_in_evaluation_mode(_: Path) -> None:
    model, points = nn.Sequential(small_network(), nn.Dropout(0.5)).eval(), images()
    labels = answers(model, points)
    wanted = attacked(model, points, labels)
    same(attacked(model.train(), points, labels), wanted, "what survives")


@situation(KIND, "BorealisAI/advertorch#113")
def gradients_of_parameters_do_not_accumulate_under_attack(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    F.cross_entropy(model(points), labels).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    attacked(model, points, labels, attacks=["pgd", "apgd", "fab"])
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        same(parameter.grad, gradient, "a parameter's gradient")


@situation(KIND, "meta-pytorch/captum#156")
def relu_in_place_computes_the_same(_: Path) -> None:
    plain, points = small_network(), images()
    model = small_network()
    model[2] = nn.ReLU(inplace=True)
    labels = answers(plain, points)
    same(attacked(model, points, labels, 0.05), attacked(plain, points, labels, 0.05), "what survives")
    for bound in ("interval", "crown", "alpha_crown"):
        found, wanted = (certified(each, points[:6], labels[:6], bound=bound) for each in (model, plain))
        same(found, wanted, f"the margins of {bound}", 1e-9)


@situation(KIND, "meta-pytorch/captum#578")
def one_relu_module_that_is_used_twice_is_bounded_twice(_: Path) -> None:
    torch.manual_seed(0)
    relu, first, second, last = nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 8), nn.Linear(8, 3)
    shared = nn.Sequential(nn.Flatten(), first, relu, second, relu, last).eval()
    apart = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last).eval()
    points = images()
    labels = answers(apart, points)
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown"):
        found, wanted = (certified(each, points, labels, bound=bound) for each in (shared, apart))
        same(found, wanted, f"the margins of {bound}", 1e-9)


@situation(KIND, "meta-pytorch/captum#199")
def a_forward_hook_that_changes_an_output_is_part_of_the_model(_: Path) -> None:
    model, plain, points = small_network(), small_network(), images()
    model[1].register_forward_hook(lambda module, given, output: 0.5 * output)
    plain.insert(2, Wrapped(nn.Identity(), after=lambda output: 0.5 * output))
    labels = answers(plain, points)
    same(attacked(model, points, labels, 0.05), attacked(plain, points, labels, 0.05), "what survives")
    found, wanted = (certified(each, points, labels, bound="crown") for each in (model, plain.eval()))
    same(found, wanted, "the proved margins", 1e-9)
    true(len(model[1]._forward_hooks) == 1, "the hook is gone after it")


@situation(KIND, "fastai/fastai#1352")
def a_model_inside_data_parallel_is_the_model(_: Path) -> None:
    model, points = small_network(), images()
    labels, parallel = answers(model, points), nn.DataParallel(model)
    same(attacked(parallel, points, labels, 0.05), attacked(model, points, labels, 0.05), "what survives")
    found, wanted = (certified(each, points, labels, bound="crown") for each in (parallel, model))
    same(found, wanted, "the proved margins", 1e-9)


@situation(KIND, "MadryLab/robustness#123")
def weights_with_a_wrappers_prefix_are_the_networks_own_and_others_are_refused_by_their_key(folder: Path) -> None:
    from safetensors.torch import save_file

    model, points = small_network(), images()
    for prefix in ("module.", "_orig_mod.", "backbone."):
        save_file({f"{prefix}{key}": value for key, value in model.state_dict().items()}, folder / "w.safetensors")
        other = small_network()
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        if prefix == "backbone.":
            refused(
                lambda other=other: rn.intake.load_weights(other, folder / "w.safetensors"), "0.weight", "do not fit"
            )
        else:
            rn.intake.load_weights(other, folder / "w.safetensors")
            same(other(points), model(points), "the logits")


@situation(KIND, "pytorch/pytorch#101107")
def a_compiled_model_is_the_model(_: Path) -> None:
    model, points = small_network(), images()
    labels, compiled = answers(model, points), torch.compile(model, backend="eager")
    attack, threat = rn.attacks.get("fgsm")(), rn.ThreatModel(epsilon=0.05)
    found, wanted = (attack.perturb(each, points, labels, threat) for each in (compiled, model))
    same(found, wanted, "the examples", 1e-6)
    found, wanted = (certified(each, points, labels, bound="crown") for each in (compiled, model))
    same(found, wanted, "the proved margins", 1e-9)


@situation(KIND, "pytorch/pytorch#102981")
def weight_norm_after_a_pass_with_gradients_can_be_held_still(_: Path) -> None:
    points = images()
    torch.manual_seed(0)
    with quiet():
        normed = nn.utils.weight_norm(nn.Linear(16, 3))
    model = nn.Sequential(nn.Flatten(), normed).eval()
    model(points).sum().backward()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    plain[1].load_state_dict({"weight": normed.weight.detach(), "bias": normed.bias.detach()})
    labels = answers(plain, points)
    wanted = exact_margins(plain, points, labels, 0.02)
    same(attacked(model, points, labels), exact_margins(plain, points, labels, 0.1) > 0, "what survives")
    same(certified(model, points, labels, bound="crown"), wanted, "the proved margins", 1e-5)
    true((rn.smooth(model, sigma=0.25, num_samples=20).predict(points[:2]) >= -1).all(), "no classes")


@situation(KIND, "safetensors/safetensors#98")
def an_ensemble_with_tied_weights_is_saved_and_loaded(folder: Path) -> None:
    torch.manual_seed(0)
    layer, last = nn.Linear(16, 16), nn.Linear(16, 3)
    first = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), last).eval()
    second = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(16, 3)).eval()
    ensemble, points = rn.Ensemble([first, second], [0.3, 0.7]).eval(), images()
    ensemble.save(folder / "saved")
    fresh = [nn.Sequential(*[type(part)(*_form(part)) for part in member]) for member in (first, second)]
    loaded = rn.Ensemble.load(folder / "saved", members=fresh)
    same(loaded(points), ensemble(points), "a loaded ensemble's logits", 1e-6)


def _form(part: nn.Module) -> tuple[int, ...]:
    return (part.in_features, part.out_features) if isinstance(part, nn.Linear) else ()


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#201")
def a_model_that_returns_a_dictionary_is_refused_with_what_to_do(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: {"logits": logits}).eval(), images()
    labels = answers(linear(), points)
    refused(lambda: attacked(model, points, labels), "dict")
    refused(lambda: certified(model, points, labels), "dict")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "dict")


@situation(KIND, "bethgelab/foolbox#608")
def a_model_with_several_outputs_is_refused_with_what_to_do(_: Path) -> None:
    points, labels = images(), answers(linear(), images())
    for kind in (list, tuple):
        model = Wrapped(linear(), after=lambda logits, kind=kind: kind([logits, logits])).eval()
        refused(lambda model=model: attacked(model, points, labels), kind.__name__)
        for bound in ("interval", "crown", "auto"):
            refused(lambda model=model, bound=bound: certified(model, points, labels, bound=bound), kind.__name__)


@situation(KIND, "bethgelab/foolbox#736")
def a_model_that_returns_an_output_object_is_refused_with_what_to_do(_: Path) -> None:
    @dataclass
    class Output:
        logits: Tensor

    model, points = Wrapped(linear(), after=Output).eval(), images()
    labels = answers(linear(), points)
    refused(lambda: attacked(model, points, labels), "Output")
    refused(lambda: certified(model, points, labels), "Output")
    refused(lambda: rn.build_ensemble([model], ImageSet.of(points, labels), rn.ThreatModel(epsilon=0.01)), "Output")


@situation(KIND, "layumi/Person_reID_baseline_pytorch#77")
def a_squeeze_that_loses_the_batch_of_a_single_image_is_noticed(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: logits.squeeze()).eval(), images(25)
    labels = answers(linear(), points)
    wanted = exact_margins(linear(), points, labels, 0.1) > 0
    # 25 images in chunks of 8 leave one alone; and early stopping leaves single images.
    right_or_refused(lambda: same(attacked(model, points, labels, batch_size=8), wanted, "what survives"), "logits")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "logits")


@situation(KIND, "yaodongyu/TRADES#3")
def a_model_whose_answers_depend_on_the_batch_is_named(_: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    points = images(40)
    labels = answers(model, points)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.05), attacks=["fgsm"])
    except rn.InputError:
        return
    true(any("batch" in str(each.message) for each in said), "nothing is said of a model that mixes its batch")


@situation(KIND, "bethgelab/foolbox#673")
def log_probabilities_are_attacked_as_well_as_logits(_: Path) -> None:
    model, points = linear(), images()
    labels, wrapped = answers(model, points), Wrapped(model, after=lambda logits: logits.log_softmax(1)).eval()
    wanted = exact_margins(model, points, labels, 0.1) > 0
    for attack in ("pgd", "apgd", "fab"):
        found = attacked(wrapped, points, labels, attacks=[attack])
        same(found, attacked(model, points, labels, attacks=[attack]), f"what survives {attack}")
        true(not (wanted & ~found).any(), f"{attack} fools what cannot be fooled")


@situation(KIND, "bethgelab/foolbox#402")
def probabilities_in_place_of_logits_are_named(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: logits.softmax(1)).eval(), images()
    labels = answers(model, points)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.05), attacks=["pgd"])
    true(any("probabilities" in str(each.message) for each in said), "nothing is said of probabilities")
    prepared = rn.intake.prepared(model, outputs="probabilities")
    same(attacked(prepared, points, labels), exact_margins(linear(), points, labels, 0.1) > 0, "what survives")


@situation(KIND, "bethgelab/foolbox#80")
def a_model_without_parameters_works_everywhere(_: Path) -> None:
    class Means(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.mean((2, 3))

    model, points = Means().eval(), images(24, (3, 4, 4))
    labels = answers(model, points)
    # A channel's mean goes down by epsilon and another's up, but not beyond 0 and 1.
    low = (points - 0.02).clamp(0, 1).mean((2, 3)).gather(1, labels[:, None])
    high = (points + 0.02).clamp(0, 1).mean((2, 3)).scatter(1, labels[:, None], -math.inf)
    wanted = (low - high).amin(1)
    same(certified(model, points, labels, bound="crown"), wanted, "the proved margins", 1e-6)
    same(attacked(model, points, labels, 0.02), wanted > 0, "what survives")
    same(rn.Ensemble([model]).predict(points), labels, "an ensemble's classes")


@situation(KIND, "safetensors/safetensors#202")
def a_model_on_the_meta_device_is_refused_in_one_sentence(_: Path) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    points, labels = images(), torch.zeros(24, dtype=torch.int64)
    refused(lambda: attacked(model, points, labels), "meta")
    refused(lambda: certified(model, points, labels), "meta")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "meta")


class Returning(nn.Module):
    """A model whose `train` does not return it, so that neither does `eval`."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.model = small_network(num_classes)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        """Keep batch norm as it is."""
        super().train(mode)
        self.model[1].eval()

    def forward(self, points: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(points)
        return logits


@situation(KIND, "jacobgil/pytorch-grad-cam#578")
def a_model_whose_eval_returns_nothing_is_the_model(_: Path) -> None:
    model, plain, points = Returning(), small_network(), images()
    labels, threat = answers(plain, points), rn.ThreatModel(epsilon=0.02)
    same(attacked(model, points, labels, 0.05), attacked(plain, points, labels, 0.05), "what survives")
    found, wanted = (certified(each, points, labels, bound="crown") for each in (model, plain))
    same(found, wanted, "the proved margins", 1e-9)
    found, wanted = (rn.smooth(each, sigma=0.25, num_samples=20).predict(points[:2]) for each in (model, plain))
    same(found, wanted, "the smoothed answers")
    built = rn.build_ensemble([model], ImageSet.of(points, labels), threat)
    same(built.predict(points), labels, "the ensemble's answers")


@situation(KIND, "Zhenye-Na/DA-RNN#21")
def a_model_whose_train_returns_nothing_is_returned_by_its_training(_: Path) -> None:
    model = Returning(10)
    model.model[4] = nn.Linear(256, 10)
    trained = rn.train(model, few_digits(), rn.ThreatModel(epsilon=0.05), method="pgd_at", epochs=1, batch_size=16)
    true(trained is model, f"the training returns {trained!r}")
    true(not any(modes(trained)), "the trained model is not in evaluation mode")


@situation(KIND, "pytorch/pytorch#83168")
def a_lazy_module_that_was_never_called_is_refused_by_its_name(_: Path) -> None:
    model, points = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), images()
    labels, threat = torch.zeros(24, dtype=torch.int64), rn.ThreatModel(epsilon=0.05)
    refused(lambda: attacked(model, points, labels), "1.weight")
    refused(lambda: certified(model, points, labels), "1.weight")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "1.weight")
    refused(lambda: rn.attacks.get("pgd")().perturb(model, points, labels, threat), "1.weight")
    with torch.no_grad():
        model(points)
    same(attacked(model, points, answers(model, points), 1e-6), torch.ones(24, dtype=torch.bool), "what survives")


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#366")
def a_model_in_double_precision_is_attacked_and_bounded(_: Path) -> None:
    model, points = linear().double(), images()
    labels = answers(linear(), points)
    wanted = exact_margins(linear(), points, labels, 0.1)
    right_or_refused(lambda: same(attacked(model, points, labels), wanted > 0, "what survives"), "float")
    margins = exact_margins(linear(), points, labels, 0.02)
    right_or_refused(
        lambda: same(certified(model, points, labels, bound="crown"), margins, "the proved margins", 1e-6), "float"
    )


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#498")
def an_attack_inside_no_grad_is_the_same_attack(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    wanted = attacked(model, points, labels, 0.05, attacks=["pgd", "apgd", "fab"])
    with torch.no_grad():
        same(attacked(model, points, labels, 0.05, attacks=["pgd", "apgd", "fab"]), wanted, "what survives")


@situation(KIND, "Lightning-AI/pytorch-lightning#19910")
def an_attack_inside_inference_mode_is_right_or_refused(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    wanted = attacked(model, points, labels, 0.05)
    proved = certified(model, points[:4], labels[:4], bound="crown")

    def inside() -> None:
        with torch.inference_mode():
            same(attacked(model, points.clone(), labels.clone(), 0.05), wanted, "what survives")
            found = certified(model, points[:4].clone(), labels[:4].clone(), bound="crown")
            same(found, proved, "the proved margins", 1e-9)

    right_or_refused(inside, "inference_mode")


@situation(KIND, "softwaremill/FoXAI#146")
def images_that_were_made_in_inference_mode_can_be_attacked(_: Path) -> None:
    model = small_network()
    with torch.inference_mode():
        points = images().clone()
        labels = model(points).argmax(1)
    wanted = attacked(model, images(), answers(model, images()), 0.05)
    right_or_refused(lambda: same(attacked(model, points, labels, 0.05), wanted, "what survives"), "inference")
    bounded = certified(model, images()[:4], answers(model, images()[:4]), bound="alpha_crown")
    found = certified(model, points[:4], labels[:4], bound="alpha_crown")
    same(found, bounded, "the proved margins", 1e-9)


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#57")
def images_that_require_gradients_keep_them_and_nothing_is_added(_: Path) -> None:
    model, points = small_network(), images().requires_grad_()
    labels = answers(model, points)
    for name in ("pgd", "apgd", "fab", "square"):
        found = rn.attacks.get(name)().perturb(model, points, labels, rn.ThreatModel(epsilon=0.05))
        true(points.grad is None and points.requires_grad, f"{name} left a gradient on the images")
        true(not found.requires_grad and found.grad_fn is None, f"{name} returns images with a graph")
        same(points, images(), f"the images after {name}")
    certified(model, points, labels, bound="crown")
    same(points, images(), "the images after certify")


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#155")
def a_model_that_detaches_its_images_is_not_called_robust(_: Path) -> None:
    model, points = Wrapped(linear(), before=lambda given: given.detach()).eval(), images()
    labels = answers(model, points)
    for attack in ("fgsm", "pgd", "apgd", "fab"):
        refused(lambda attack=attack: attacked(model, points, labels, attacks=[attack]), "gradient", "square")

    class Own(nn.Module):  # what requires a gradient in it does not depend on the images
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = linear()(points.detach()) * torch.ones(1, requires_grad=True)
            return logits

    refused(lambda: attacked(Own(), points, labels, attacks=["pgd"]), "gradient", "square")
    wanted = exact_margins(linear(), points, labels, 0.1) > 0
    found = attacked(model, points, labels, attacks=["square"])
    true(not (found & ~wanted).any() and not (~found & wanted).any(), "Square misses some")
