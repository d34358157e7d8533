"""The training loop: data, craft, loss, step, log, checkpoint. A method supplies the crafting and the loss."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.datasets._batches import epoch_batches
from robust_nas.errors import InputError
from robust_nas.evaluation import evaluate
from robust_nas.seeds import generator_at, seed_at
from robust_nas.training import Method
from robust_nas.training._augment import crop_and_flip
from robust_nas.training.pgd_at import PGDAT

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.run_dir import Stage
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained.

    Args:
        method: what the examples and the loss are.
        epochs: passes over the training split.
        batch_size: global batch.
        learning_rate: the largest learning rate of SGD with Nesterov momentum.
        schedule: "one_cycle" rises linearly over the first `warm_up` share and falls linearly to 0; "cosine" rises
            likewise and falls along a cosine; "piecewise" drops by 10 after 3/4 and again after 9/10 of the epochs.
        warm_up: share of the steps in which the learning rate rises (one_cycle, cosine).
        momentum: of SGD.
        weight_decay: of all parameters.
        epsilon_ramp: share of the steps over which epsilon grows linearly to its full size; large radii need it.
        padding: random crops from images padded by this many zeros; 0 for none.
        flip: random mirroring, left to right.
        selection_attack: attacks the validation split after each epoch; the best epoch by robust accuracy is kept.

    Raises:
        InputError: for a value outside its range.
    """

    method: Method = field(default_factory=PGDAT)
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 0.1
    schedule: Literal["one_cycle", "cosine", "piecewise"] = "one_cycle"
    warm_up: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    epsilon_ramp: float = 0.0
    padding: int = 0
    flip: bool = False
    selection_attack: Attack = field(default_factory=lambda: PGD(steps=10))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1, but got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise InputError(f"train.learning_rate must be above 0, but got {self.learning_rate}.")
        for name in ("warm_up", "momentum", "epsilon_ramp"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} must be in [0, 1), but got {getattr(self, name)}.")
        for name in ("weight_decay", "padding"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} must not be negative, but got {getattr(self, name)}.")

    def learning_rate_at(self, share: float) -> float:
        """Return the learning rate when a share of the steps, in [0, 1], is done."""
        if self.schedule == "piecewise":
            return self.learning_rate * (0.1 ** ((share >= 0.75) + (share >= 0.9)))
        if share < self.warm_up:
            return self.learning_rate * share / self.warm_up
        falling = (share - self.warm_up) / (1 - self.warm_up)
        left = 1 - falling if self.schedule == "one_cycle" else (1 + math.cos(math.pi * falling)) / 2
        return self.learning_rate * left


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Args:
        model: with the weights of the best epoch by validation robust accuracy.
        last: the weights after the last epoch.
        record: what `train.json` says about the model.
    """

    model: nn.Module
    last: dict[str, Tensor]
    record: dict[str, Any]


def fit(model: nn.Module, data: Dataset, threat: ThreatModel, training: Training, stage: Stage) -> Fitted:
    """Train `model`, which is on the device of `stage.world`, as `data` is; the test split is not looked at.

    The weights of the best epoch by robust accuracy on the validation split are kept (robust overfitting: Rice et al.
    2020, arXiv:2002.11569).

    Raises:
        InputError: if a batch does not fit, or the loss is no longer a number.
    """
    world, method = stage.world, training.method
    wrapped = world.wrap(model)
    optimiser = torch.optim.SGD(
        model.parameters(),
        training.learning_rate,
        training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    done, state = stage.resume()
    best: dict[str, Any] = {"epoch": 0, "clean": -1.0, "robust": -1.0}
    best_weights: dict[str, Tensor] = {}
    last: dict[str, Any] = {}
    seconds, started = 0.0, time.monotonic()
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        best, best_weights, last, seconds = state["best"], state["best_weights"], state["last"], state["seconds"]

    for epoch in stage.progress.steps(range(done, training.epochs), stage.name, total=training.epochs, done=done):
        model.train()
        batches = epoch_batches(len(data.train), training.batch_size, world, stage.seed, stage.name, epoch)
        losses = []
        for iteration, indices in enumerate(batches):
            batch = data.train[indices]
            place = (stage.name, epoch, iteration, "rank", world.rank)
            images = crop_and_flip(
                batch.images,
                training.padding,
                training.flip,
                generator_at(batch.pixels.device, stage.seed, *place, "augment"),
            )
            ramped = threat.ramped((epoch + iteration / len(batches)) / training.epochs, training.epsilon_ramp)
            crafted = method.craft(model, images, batch.labels, ramped, seed=seed_at(stage.seed, *place, "craft"))
            loss = method.loss(wrapped, crafted, images, batch.labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate_at((epoch + (iteration + 1) / len(batches)) / training.epochs)
            optimiser.step()
            losses.append(loss.detach())
        world.mean_buffers(model)
        mean_loss = float(world.mean(torch.stack(losses).mean()))
        if not math.isfinite(mean_loss):
            raise InputError(
                f"The loss of {stage.name} is {mean_loss} in epoch {epoch + 1}; set train.learning_rate lower "
                f"than {training.learning_rate}."
            )
        result = evaluate(model, data.validation, threat, [training.selection_attack], stage=stage.within("validation"))
        last = {"epoch": epoch + 1, "clean": result.clean_accuracy, "robust": result.robust_accuracy}
        if (last["robust"], last["clean"]) > (best["robust"], best["clean"]):
            best, best_weights = last, copy.deepcopy(model.state_dict())
        seconds, started = seconds + time.monotonic() - started, time.monotonic()
        stage.log(
            epoch + 1,
            loss=mean_loss,
            validation_clean=last["clean"],
            validation_robust=last["robust"],
            learning_rate=training.learning_rate_at((epoch + 1) / training.epochs),
            seconds=seconds,
        )
        stage.save(
            epoch + 1,
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "best": best,
                "best_weights": best_weights,
                "last": last,
                "seconds": seconds,
            },
        )
    last_weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    model.eval()
    record = {
        "epochs": training.epochs,
        "best_epoch": best["epoch"],
        "validation": {"clean": best["clean"], "robust": best["robust"]},
        "last": {"clean": last["clean"], "robust": last["robust"]},
        "seconds": seconds,
    }
    return Fitted(model, last_weights, record)
