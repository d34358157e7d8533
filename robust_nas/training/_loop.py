"""The training loop: data, craft, loss, step, log, checkpoint. A method supplies the crafting and the loss."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.fgsm import FGSM
from robust_nas.certification import certify
from robust_nas.core.errors import InputError, NotFinite
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.datasets import check_batch, unlabelled
from robust_nas.evaluation import evaluate
from robust_nas.models import DropsPaths
from robust_nas.models.checkpointing import Recomputed, blocks_of, checkpointed, failures_said
from robust_nas.models.frozen import copied, evaluating
from robust_nas.models.history import Epoch, History
from robust_nas.models.metering import size_of
from robust_nas.models.mixture_norm import mix, plain_state, through, unmix, unused_branches
from robust_nas.models.scores import NoGradient, probed
from robust_nas.models.synchronised_norm import check_synchronisable, synchronised
from robust_nas.records.training import Course
from robust_nas.runtime.compression import reduction_of, ring_bytes
from robust_nas.runtime.distributed import Pair, World
from robust_nas.runtime.progress import Progress, accuracies_in_words
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.stepping import Steps
from robust_nas.spaces import BuiltFrom
from robust_nas.spaces.module import ModuleSpace
from robust_nas.training import Batch, Memory, on_device
from robust_nas.training._batches import batches_of, steps_of
from robust_nas.training._concurrent import losses_of
from robust_nas.training._optimisers import make_optimiser
from robust_nas.training._options import Average, Forward, added_losses, auxiliary_head, moved_weights, parts_of_a_step
from robust_nas.training._plan import Training
from robust_nas.training._sections import Precision

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.threat import ThreatModel


class Diverged(NotFinite):
    """The loss is no number any more."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Args:
        model: with the weights that are kept: of the best epoch by the validation split, or of the last one.
        best: the weights of the best epoch.
        last: the weights after the last epoch.
        record: the course of the training.
        history: its epochs.
    """

    model: nn.Module
    best: dict[str, Tensor]
    last: dict[str, Tensor]
    record: Course
    history: History


def fit(model: nn.Module, data: Dataset, threat: ThreatModel, training: Training, stage: Stage) -> TrainingResult:
    """Train `model`, which is on the device of `stage.world`, as `data` is; the test split is not used.

    Robust accuracy on the validation split says which epoch was the best (robust overfitting: Rice et al. 2020,
    arXiv:2002.11569); where the method bounds the network, certified accuracy.

    Raises:
        InputError: if a batch does not fit, no step would change a weight, the loss is no longer a number, or a batch
            norm of a mixture is not used.
    """
    training.check_learns(len(data.train))
    training.trainers(stage.world.size)
    return _fit(model, data, threat, training, stage, stage.world.pair() if training.method.ahead else None)


def _fit(
    model: nn.Module, data: Dataset, threat: ThreatModel, training: Training, stage: Stage, pair: Pair | None = None
) -> TrainingResult:
    at_work = stage if pair is None else replace(stage, world=pair.world)
    for size in training.batch_sizes:
        check_batch("train.batch_size", size, len(data.train), at_work.world)
        if size // at_work.world.size < training.accumulate:
            raise InputError(
                f"train.accumulate takes a batch in {training.accumulate} parts, but each process has "
                f"{size // at_work.world.size} images of a batch of {size}; set it lower."
            )
    training.check_size(min([*data.image_shape[1:], *(phase.size for phase in training.phases if phase.size)]))
    for size in {phase.size for phase in training.phases if phase.size}:
        probed(evaluating(copied(model)), data.train[:2].images.new_zeros(2, data.image_shape[0], size, size))
    if training.precision == "float16" and stage.world.device.type == "cpu":
        stage.progress.say(f"{stage.name}: float16 is slow on a CPU; train.precision=float32 is faster")
    if training.mixes and not mix(model, shared=training.shares_affine) and training.norm is not None:
        raise InputError(
            f"train.norm '{training.norm}' puts two batch norms in place of each nn.BatchNorm2d, but this network has "
            "none; set it to 'batch'."
        )
    if training.norm_sync == "synchronised":
        check_synchronisable(model)
    if training.drop_path and not isinstance(model, DropsPaths):
        raise InputError(
            "train.drop_path is for networks with paths to drop, such as those of the DARTS space; set it to 0."
        )
    try:
        best, last, record, history = _train(model, data, threat, training, stage, pair)
    except NoGradient as error:
        if torch.is_inference_mode_enabled():
            raise
        raise InputError(
            f"{str(error).rpartition(';')[0]}; train it without: train.method=standard and "
            "train.selection_attack=square."
        ) from error
    finally:
        unmix(model, training.serve)
        if training.drop_path and isinstance(model, DropsPaths):
            model.drop_path = 0.0
    model.load_state_dict(best if record.kept == "best" else last)
    return TrainingResult(evaluating(model), best, last, record, history)


def rehearse(model: nn.Module, data: Dataset, threat: ThreatModel, training: Training) -> None:
    """Train a network of one's own for one step on a few images, so that a misfit shows before a search.

    Raises:
        InputError: what `fit` would raise before or in its first step.
    """
    training.check_learns(len(data.train))
    count = min(len(data.train), 8)
    few = data.train[torch.arange(count)]
    once = replace(
        training,
        epochs=1,
        phases=(),
        batch_size=count,
        epsilon_warm_up=0.0,  # so that what bounds the network does
        epsilon_ramp=0.0,
        compile=False,
        accumulate=min(training.accumulate, count),
        schedule="one_cycle",
        base_batch=None,
        warm_up_epochs=None,
        unlabelled_batch=None,
        knots=(),
        milestones=Training.milestones,
        cycles=1,
        selection_attack=FGSM(),
    )
    stage = Stage("rehearsal", 0, World(device=data.train.device), Progress(quiet=True))
    _fit(model, replace(data, train=few, validation=few), threat, once, stage)


def _train(
    model: nn.Module, data: Dataset, threat: ThreatModel, training: Training, stage: Stage, pair: Pair | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Course, History]:
    """Return the weights of the best and of the last epoch, the record of the training, and its epochs."""
    watch = training.method.watch
    world, at_work = (stage.world, stage) if pair is None else (pair.world, replace(stage, world=pair.world))
    is_certified = training.method.bounds_network
    done, state = stage.resume()
    if state is None:
        training.method.prepare(model, seed_at(stage.seed, stage.name, "prepare"))
    trainer = Trainer(model, training, world, seed=seed_at(stage.seed, stage.name, "auxiliary"))
    if pair is not None:
        trainer.share(stage.world)
    extra = None if training.unlabelled is None else unlabelled(training.unlabelled, data)
    history: list[dict[str, Any]] = []
    course: list[dict[str, Any]] = []
    best_weights: dict[str, Tensor] = {}
    seconds, started = 0.0, time.monotonic()
    if state is not None:
        trainer.load_state(state["trainer"])
        history, best_weights, seconds = state["history"], state["best_weights"], state["seconds"]
        course = state["course"]

    def under_way() -> dict[str, Any]:
        now = seconds + time.monotonic() - started
        facts = {"history": history, "course": course, "best_weights": best_weights, "seconds": now}
        return {"trainer": trainer.state(), **facts}

    for epoch in stage.progress.steps(range(done, training.epochs), stage.name, total=training.epochs, done=done):
        if _collapsed(history, watch):
            break
        if training.drop_path and isinstance(model, DropsPaths):
            model.drop_path = training.drop_path * epoch / training.epochs
        model.train()
        total, share = steps_of(data, training, epoch), partial(trainer.memory.merge, world)
        with Steps(stage, epoch, total, under_way, trainer.own, share, pair) as steps:
            steps.go_on(state or {})
            state = None
            batches = batches_of(data, threat, training, trainer.memory, at_work, epoch, extra, steps.done)
            losses = losses_of(trainer, batches, pair, training.method.ahead, total - steps.done)
            with contextlib.closing(losses):
                for loss in losses:
                    steps.add(loss)
        trainer.agree()
        if pair is not None:
            trainer.share(stage.world)
        mean_loss = steps.mean_loss()
        if not math.isfinite(mean_loss):
            raise Diverged(
                f"The loss of {stage.name} is {mean_loss} in epoch {epoch + 1}; set train.learning_rate lower "
                f"than {training.learning_rate}."
            )
        within = stage.within("validation")
        with steps.kept(), trainer.average.held(), through(model, training.serve), trainer.checkpointed():
            attacks, chunk = [training.selection_attack], training.selection_batch
            result = evaluate(model, data.validation, threat, attacks, batch_size=chunk, stage=within)
            accuracies = {"clean": result.clean_accuracy, "robust": result.robust_accuracy}
            if is_certified:
                (proved,) = certify(model, data.validation, threat, bound="interval", stage=within)
                accuracies["certified"] = proved.accuracy
            served = plain_state(model, training.serve)
        history.append({"epoch": epoch + 1, **accuracies})
        if _best(history) is history[-1]:
            best_weights = served
        seconds, started = seconds + time.monotonic() - started, time.monotonic()
        rate = training.learning_rate_at((epoch + 1) / training.epochs)
        course.append({"epoch": epoch + 1, "loss": mean_loss, "learning_rate": rate, "seconds": seconds})
        stage.log(
            epoch + 1,
            loss=mean_loss,
            **{f"validation_{kind}": accuracy for kind, accuracy in accuracies.items()},
            learning_rate=rate,
            seconds=seconds,
        )
        stage.progress.note(accuracies_in_words(accuracies, mean_loss))
        stage.save(epoch + 1, under_way())
        if _collapsed(history, watch):
            stage.progress.say(
                f"{stage.name}: stopped, as the robust accuracy on validation images fell from "
                f"{_best(history)['robust']:.1%} in epoch {_best(history)['epoch']}, whose weights are kept, to "
                f"{history[-1]['robust']:.1%} in epoch {epoch + 1}."
            )
    with trainer.average.held():
        last_weights = plain_state(model, training.serve)
    best, last, collapsed = _best(history), history[-1], _collapsed(history, watch)
    # The weights that the watch has stopped are not worth keeping.
    kept = "best" if collapsed else training.keep
    chosen = best if kept == "best" else last
    stage.progress.say(
        f"{stage.name}: epoch {chosen['epoch']} is kept: {chosen['clean']:.1%} of the validation images right, "
        f"{chosen['robust']:.1%} under attack"
        + (f", {chosen['certified']:.1%} certified by intervals" if "certified" in chosen else "")
        + f"; epoch {last['epoch']}, the last: {', '.join(f'{value:.1%}' for value in _accuracies(last).values())}"
    )
    record = Course(
        epochs=training.epochs,
        kept=kept,
        best_epoch=best["epoch"],
        last_epoch=last["epoch"],
        validation=_accuracies(chosen),
        best=_accuracies(best),
        last=_accuracies(last),
        collapsed=collapsed,
        seconds=seconds,
    )
    epochs = tuple(Epoch(**facts, validation=_accuracies(row)) for facts, row in zip(course, history, strict=True))
    return best_weights, last_weights, record, History(epochs, chosen["epoch"], training.epochs)


class Trainer:
    """A network in training, and all that its steps change.

    Raises:
        InputError: if an auxiliary head is wanted of a network that offers none.
    """

    def __init__(self, model: nn.Module, training: Training, world: World, *, seed: int = 0) -> None:
        self._format = torch.channels_last if training.channels_last else torch.contiguous_format
        model.to(memory_format=self._format)
        self.model, self._training, self._world = model, training, world
        # Compiled, it has one graph for the attack and one for the step.
        self._called: nn.Module = torch.compile(model) if training.compile else model  # type: ignore[assignment]
        self._head = auxiliary_head(model, training, world, seed)
        # The head learns with the network, and is no part of it.
        self._learning = model if self._head is None else nn.ModuleList([model, self._head])
        self._reduction = reduction_of(
            training.compression, world, self._learning.parameters(), rank=training.powersgd_rank, seed=seed
        )
        # A pass through a network of one's own may leave out some of its parameters, for which DDP would wait.
        self._wrapped = world.wrap(self._called, self._reduction) if _uses_all(model) else self._called
        self._unreduced = [model] if self._wrapped is self._called else []
        if self._unreduced:
            world.share_start(model)
        self._unreduced += [] if self._head is None else [self._head]
        self._optimiser = make_optimiser(self._learning, training)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=training.precision == "float16")
        self._blocks = blocks_of(model) if training.checkpointing else []
        self._checked = False
        self.average, self.memory = Average(model, training.ema), Memory()
        self.steps = 0

    @property
    def optimiser_size(self) -> int:
        """The bytes of the optimiser's state."""
        return size_of(
            value for state in self._optimiser.state.values() for value in state.values() if isinstance(value, Tensor)
        )

    @property
    def bytes_sent(self) -> int:
        """The bytes of gradients that this process has sent, if they go around a ring of all; 0 where it is alone."""
        if self._reduction is not None:
            return self._reduction.sent
        learning = (weight for weight in self._learning.parameters() if weight.requires_grad)
        return self.steps * ring_bytes(self._world, size_of(learning))

    def craft(self, batch: Batch) -> Tensor:
        """Return the batch's examples, crafted with the model as it is: for the step of another process."""
        with self.checkpointed():
            return torch.cat(self._crafted(batch.parts(self._training.accumulate)))

    def _crafted(self, parts: Sequence[Batch]) -> list[Tensor]:
        precision = self._training.craft_precision or self._training.precision
        with self._cast(precision), through(self.model, "adversarial"):
            return [self._training.method.craft(self._called, part) for part in parts]

    def step(self, batch: Batch, progress: float, examples: Tensor | None = None) -> Tensor:
        """Craft, compute the loss, step; return the loss.

        Args:
            batch: of the step.
            progress: the share of the training that is done after it.
            examples: of the batch, if they are crafted already.
        """
        model, training = self.model, self._training
        parts = batch.parts(training.accumulate)
        shares = [len(part.images) / len(batch.images) for part in parts]
        with self.checkpointed() as passes:
            sizes = [len(part.images) for part in parts]
            crafted = self._crafted(parts) if examples is None else examples.split(sizes)
            terms = [partial(self._term, self._called, *each) for each in zip(shares, crafted, parts, strict=True)]
            with self._synchronised(), moved_weights(model, training.awp, terms, batch.mean):
                loss = self._differentiated(shares, crafted, parts)
        if passes and not any(each.calls for each in passes):
            raise InputError(
                f"The network calls none of its {len(passes)} blocks as modules, so that their activations cannot be "
                "computed again; call them (block(x)), or set train.checkpointing to false."
            )
        for part in self._unreduced:
            self._world.mean_gradients(part, self._reduction)
        if not self._checked:
            _check_branches(model)
            self._checked = True
        for group in self._optimiser.param_groups:
            group["lr"] = training.learning_rate_at(progress)
            if "momentum" in group:
                group["momentum"] = training.momentum_at(progress)
        if training.gradient_clip:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._learning.parameters(), training.gradient_clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.average.update()
        self.steps += 1
        if self._reduction is not None:
            self._reduction.step += 1
        return loss

    def _differentiated(self, shares: Sequence[float], crafted: Sequence[Tensor], parts: Sequence[Batch]) -> Tensor:
        """Return the batch's loss, of which the parameters have the gradient afterwards."""
        total = torch.zeros((), device=self._world.device)
        for number, share in enumerate(parts_of_a_step(self._learning, shares)):
            is_last = number == len(parts) - 1
            with contextlib.nullcontext() if is_last else self._world.alone(self._wrapped):
                loss = self._term(self._wrapped, share, crafted[number], parts[number])
                if not loss.requires_grad:
                    raise InputError(
                        "The network's loss depends on its weights by nothing that has a gradient (detach, argmax or "
                        "no_grad in it?), so that it cannot be trained; take that out of it."
                    )
                if number == 0:
                    self._optimiser.zero_grad(set_to_none=True)
                self._scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _synchronised(self) -> contextlib.AbstractContextManager[None]:
        if self._training.norm_sync == "local":
            return contextlib.nullcontext()
        return synchronised(self._learning, self._world)

    @contextlib.contextmanager
    def checkpointed(self) -> Iterator[list[Recomputed]]:
        """Within it, the network's activations are computed again where the training says so."""
        with checkpointed(self._blocks) as passes, failures_said():
            yield passes

    def _term(self, called: nn.Module, share: float, crafted: Tensor, batch: Batch) -> Tensor:
        """Return a part's contribution to the batch's loss."""
        return share * self._loss(called, crafted, batch)

    def _loss(self, called: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        training, head = self._training, self._head
        tapped = None if head is None else self.model.auxiliary_at
        forward = Forward(self.model, called, batch.images, self._format, tapped)  # type: ignore[arg-type]
        # Seeded for dropout; what AWP moves the weights along has the same mask.
        place = ("model", batch.first) if batch.first else ("model",)
        with self._cast(training.precision), seeded(batch.seed, *place, device=self._world.device):
            loss = training.method.loss(forward, crafted, batch) + added_losses(training, forward, crafted, batch)
            if head is not None:
                logits = head(forward.features(crafted)).float()
                loss = loss + training.auxiliary * F.cross_entropy(logits, batch.targets)
            return loss

    def _cast(self, precision: Precision) -> torch.autocast:
        return torch.autocast(self._world.device.type, getattr(torch, precision), enabled=precision != "float32")

    def own(self) -> dict[str, Tensor]:
        """Return the running statistics, which differ from rank to rank until they `agree`, by name."""
        running = {f"buffer/{name}": value for name, value in self._learning.named_buffers()}
        return running | {f"average/{name}": value for name, value in self.average.buffers.items()}

    def agree(self) -> None:
        """Give all ranks the same buffers and memory."""
        self._world.mean_buffers(self._learning)
        self.average.agree(self._world.mean)
        self.memory.merge(self._world)

    def share(self, world: World) -> None:
        """Give all processes of `world` the weights and statistics of its rank 0, and their averages."""
        world.share([*self.model.state_dict().values(), *self.average.values.values()])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, the same on all ranks after `agree`; all ranks must call this."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": {"values": self.average.values, "steps": self.average.steps},
            "memory": self.memory.state(),
            **({} if self._head is None else {"head": self._head.state_dict()}),
            **({} if self._reduction is None else {"reduction": self._reduction.state()}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.model.load_state_dict(state["model"])
        if self._head is not None:
            self._head.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        device, average = self._world.device, state["average"]
        self.average.values, self.average.steps = on_device(device, average["values"]), average["steps"]
        self.memory.load_state(state["memory"], device)
        if self._reduction is not None and "reduction" in state:
            self._reduction.load_state(state["reduction"])


def _uses_all(model: nn.Module) -> bool:
    """Whether every pass uses all parameters, as those through networks of search spaces do."""
    built: BuiltFrom | None = getattr(model, "built_from", None)
    return built is not None and not isinstance(built.space, ModuleSpace)


def _accuracies(row: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of an epoch on validation images."""
    return {kind: accuracy for kind, accuracy in row.items() if kind != "epoch"}


def _best(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the epoch of the best accuracy on validation images: certified where there is one, robust, then clean.

    Of equal epochs, the first.
    """
    return max(history, key=lambda row: (row.get("certified", 0.0), row["robust"], row["clean"]))


def _collapsed(history: list[dict[str, Any]], watch: float) -> bool:
    """Whether the robust accuracy is `watch` below the best one (catastrophic overfitting, arXiv:2001.03994).

    The authors compare neighbouring epochs, on a training batch; a fall that takes two epochs would escape that.
    """
    return bool(watch) and bool(history) and _best(history)["robust"] - history[-1]["robust"] >= watch


def _check_branches(model: nn.Module) -> None:
    advice = {
        "clean": "set train.clean_weight above 0, or clean_images of the method pgd_at, or train.norm to 'batch'",
        "adversarial": "take a method that crafts examples, with train.clean_weight above 0 (or pgd_at with "
        "clean_images), or set train.norm to 'batch'",
    }
    for branch in sorted(unused_branches(model)):
        raise InputError(f"No image goes through the {branch} batch norm of the mixture; {advice[branch]}.")
