"""The diagnosis of a model: the inputs of its logits, its gradients and outputs, the pixels it expects."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.intake.gradients import gradient_note
from robust_nas.intake.independence import dependence
from robust_nas.models.frozen import check_values, frozen
from robust_nas.models.preparation import NORMALISATIONS, LogProbabilities, Normalised
from robust_nas.models.scores import probed, scores

_IN_WORDS = {
    "imagenet": "normalised by ImageNet's mean and standard deviation",
    "cifar10": "normalised by CIFAR-10's mean and standard deviation",
    "cifar100": "normalised by CIFAR-100's mean and standard deviation",
    "mnist": "normalised by MNIST's mean and standard deviation",
    "half": "normalised by a mean and a standard deviation of 0.5",
    "bytes": "multiplied by 255",
}

NUM_DIAGNOSED = 256
"""Images that are enough to tell."""

_FEW = 50
"""Images of which so many may be classified by chance that a low count is no sign of a fault yet."""


def check_model(model: object) -> None:
    """Raise InputError unless `model` is an nn.Module that can be attacked: not TorchScript, and with values."""
    if not isinstance(model, nn.Module):
        raise InputError(f"A model must be an nn.Module, but got {type(model).__name__}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            place = f"The model's part '{name}' is" if name else "The model is"
            raise InputError(
                f"{place} TorchScript, which cannot be held still while it is attacked; give the nn.Module that it "
                "was made from."
            )
    check_values(model)


def diagnose(model: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    """Return the suspicious signs in a model, a sentence each; the model is left as it was.

    Args:
        model: taken to map [0, 1] images to logits.
        images: [B, C, H, W] in [0, 1], of which 256 are looked at.
        labels: [B].

    Raises:
        InputError: if the model cannot take such images, its outputs are not [B, K], or NaN, or it lacks classes.
    """
    check_model(model)
    if len(images) == 0:
        return []
    # Spread over all of them: a data set may come class by class.
    count = min(len(images), NUM_DIAGNOSED)
    places = torch.arange(count, device=images.device) * len(images) // count
    images, labels = images[places].detach(), labels[places]
    with frozen(model, fold=False):
        outputs = _outputs(model, images)
        check_numbers(outputs)
        check_labels(labels, outputs.shape[1])
        # Of what depends on more than the image, gradients and changes by the image say nothing.
        reason = dependence(model, images) or gradient_note(model, images)
        found = [] if reason is None else [reason]
        return [*found, *_on_outputs(model, outputs), *_on_pixels(model, images, labels, outputs)]


def check_numbers(logits: Tensor) -> None:
    """Raise InputError for NaN among logits."""
    if logits.isnan().any():
        raise InputError("The model's logits are NaN; check that its training did not diverge.")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless labels [B], of at least one image, are classes of a model; others would never be right.

    Or always: -1 is the answer of a classifier that abstains.
    """
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= num_classes:
        raise InputError(
            f"The labels are {least} to {most}, but the model has {num_classes} classes, counted from 0; is it one for "
            "this data set?"
        )


def check_outputs(model: nn.Module, images: Tensor) -> tuple[int, list[str]]:
    """Return a model's number of classes, and the suspicious signs in its outputs; the model is left as it was.

    Raises:
        InputError: if the model cannot take such images, or its outputs are not [B, K].
    """
    check_model(model)
    with frozen(model, fold=False):
        outputs = _outputs(model, images)
    return outputs.shape[1], _on_outputs(model, outputs)


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    return probed(model, images).float()


def _on_outputs(model: nn.Module, outputs: Tensor) -> list[str]:
    if any(isinstance(wrapper, LogProbabilities) for wrapper in _wrappers(model)):
        if _are_probabilities(outputs.exp()):
            return []
        return ["The model's outputs are no probabilities: they do not sum to 1; leave --outputs out."]
    if _are_probabilities(outputs):
        return [
            "The model's outputs are probabilities: their gradients vanish where it is sure, so that gradient attacks "
            "look weaker than they are; attack its logits, or log-probabilities (--outputs probabilities)."
        ]
    return []


def _wrappers(model: nn.Module) -> Iterator[Normalised | LogProbabilities]:
    """Yield what is around a model, outermost first."""
    while isinstance(model, Normalised | LogProbabilities):
        yield model
        model = model.model


def _are_probabilities(outputs: Tensor) -> bool:
    # bfloat16 rounds each probability, and so their sum, by up to 1/256 of it.
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 0.01).all())


def _on_pixels(model: nn.Module, images: Tensor, labels: Tensor, outputs: Tensor) -> list[str]:
    """Say what the model's pixels are normalised by, what they should be, and whether it classifies at all.

    Args:
        outputs: of the model for `images`, [B, K].
    """
    notes = [
        f"The model's pixels are normalised by mean {_numbers(wrapper.mean)} and standard deviation "
        f"{_numbers(wrapper.std)}, as {wrapper.source} asks for."
        for wrapper in _wrappers(model)
        if isinstance(wrapper, Normalised) and wrapper.source
    ]
    is_normalised, correct = isinstance(model, Normalised), outputs.argmax(1) == labels
    inside = model.model if isinstance(model, Normalised) else model
    better = _better_pixels(inside, images, labels, correct, as_they_are=is_normalised)
    if better is not None:
        name, share = better
        expected = "as they are, in [0, 1]" if name is None else _IN_WORDS[name]
        advice = "leave --normalise out" if name is None else f"--normalise {name}"
        notes.append(
            f"The model seems to expect pixels {expected}: {share} of {len(labels)} images are classified correctly "
            f"with these and {_percent(correct)} {'as given' if is_normalised else 'without'} ({advice})."
        )
    # With a few images, or those of one class, no model could do better than chance.
    elif _by_chance(labels, labels) < 0.01 <= _by_chance(outputs.argmax(1), labels):
        notes.append(
            f"The model classifies {_percent(correct)} of {len(labels)} images correctly, no more than chance "
            f"{'can in so few' if len(labels) < _FEW else 'does'}: labels in another order, another data set, or other "
            "pre-processing?"
        )
    return notes


def _better_pixels(
    model: nn.Module, images: Tensor, labels: Tensor, correct: Tensor, *, as_they_are: bool
) -> tuple[str | None, str] | None:
    """Return the normalisation (None for none) with which most images are classified correctly, and their share.

    None, if none is clearly better than what gave `correct` [B]: by McNemar's exact test (Psychometrika 12, 1947), on
    the images that one of the two gets right, at p < 0.001.

    Args:
        as_they_are: whether pixels in [0, 1] are another way than what gave `correct`.
    """
    if _sign_test(gained=int((~correct).sum()), lost=0) >= 0.001:
        return None  # not even with all images right
    ways: dict[str | None, Tensor] = {None: images} if as_they_are else {}
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) == images.shape[1] or name in ("half", "bytes"):
            mean_of, std_of = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
            ways[name] = (images - mean_of) / std_of
    found: list[tuple[int, float, str | None, Tensor]] = []
    for way, pixels in ways.items():
        logits = scores(model, pixels)
        right = logits.argmax(1) == labels
        is_better = _sign_test(gained=int((right & ~correct).sum()), lost=int((correct & ~right).sum())) < 0.001
        # One class for all images may be that of many labels.
        if is_better and _by_chance(logits.argmax(1), labels) < 0.01:
            # Similar normalisations classify alike; the right one is surer of the labels.
            found.append((int(right.sum()), -float(F.cross_entropy(logits, labels)), way, right))
    if not found:
        return None
    _, _, best, right = max(found, key=lambda one: one[:2])
    return best, _percent(right)


def _sign_test(gained: int, lost: int) -> float:
    """Return the probability of gaining as many images if gaining and losing one is equally likely."""
    return _at_least(gained, gained + lost, 0.5) if gained + lost else 1.0


def _by_chance(predictions: Tensor, labels: Tensor) -> float:
    """Return the probability that predictions that do not look at the images agree with as many labels.

    They are taken to be independent of the labels with the same shares of the classes, as in Cohen's kappa.
    """
    predicted, wanted = _shares(predictions, labels)
    chance = min(float((predicted * wanted).sum()), 1.0)
    agreed = int((predictions == labels).sum())
    return _at_least(agreed, len(labels), chance)


def _at_least(count: int, trials: int, chance: float) -> float:
    """Return the probability of as many successes or more."""
    # Slow to import, and not for every command.
    from scipy.stats import binomtest

    return float(binomtest(count, trials, chance, alternative="greater").pvalue)


def _shares(*classes: Tensor) -> list[Tensor]:
    size = 1 + max(int(values.max()) for values in classes)
    return [torch.bincount(values, minlength=size).double() / len(values) for values in classes]


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.flatten().tolist())


def _percent(correct: Tensor) -> str:
    return f"{100 * int(correct.sum()) / len(correct):.1f} %"
