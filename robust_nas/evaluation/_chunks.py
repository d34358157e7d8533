"""A set of images judged chunk by chunk, on many processes, continuing where it was interrupted.

Only correctly classified images are attacked. They are cut into chunks; a chunk's attack is seeded by the run's seed,
the attack's label and the chunk's number, so the outcome depends neither on the number of processes nor on
interruptions. A forward pass of its own judges an image's class, after the returned image was found to be inside the
threat model. The model is left as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import intake
from robust_nas.attacks import Attack
from robust_nas.core.checks import check_at_least, check_type
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import ImageSet
from robust_nas.models.frozen import device_of, frozen
from robust_nas.models.scores import scores
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

BATCH_SIZE = 250
"""Images in a chunk, where nothing else is said: a chunk's number is a part of its seed."""

Judge = Callable[[Tensor, int], Tensor]
"""A chunk's image indices [B] and its number to what was found about each image, [B]."""


def stage_or_alone(stage: Stage | None, seed: int | None) -> Stage:
    """Return `stage`, or one in this process that keeps nothing."""
    return stage or Stage("evaluation", seed or 0, World(), Progress(quiet=True))


class Chunks:
    """One model under evaluation on one set of images.

    Args:
        seed: root of the attacks' seeds; the stage's seed if not given.
        settings: all that the outcome depends on besides model, images, batch size and seed.

    Raises:
        InputError: without images, or if the stage was interrupted under other settings.
    """

    def __init__(
        self, model: nn.Module, data: ImageSet, batch_size: int, seed: int | None, stage: Stage, settings: object = None
    ) -> None:
        if len(data) == 0:
            raise InputError("An evaluation needs at least one image, but got none.")
        check_at_least("batch_size", batch_size, 1)
        check_type("seed", stage.seed if seed is None else seed, Integral, "a whole number")
        self.model, self._data, self._batch_size, self._stage = model, data, batch_size, stage
        self._seed = stage.seed if seed is None else seed
        self._device = device_of(model, data.labels)
        # Only where something is kept can it be mistaken for another evaluation's.
        self._settings = digest_of(model, data, batch_size, self._seed, settings) if stage.folder else ""
        self._weights = _digest_of_tensors(_tensors_of(model))
        self._step, state = stage.resume()
        # By name: how many chunks are done, what they found, and the seconds they took.
        self._done: dict[str, Any] = {}
        if state is not None:
            if state["settings"] != self._settings:
                raise InputError(
                    f"The evaluation {stage.name} was interrupted under other settings (model, images, attacks, batch "
                    f"size or seed); restore them, start in another folder, or delete {stage.checkpoint}."
                )
            self._done = state["done"]

    def images(self, indices: Tensor) -> Tensor:
        """Return images [B, C, H, W] by index, on the model's device."""
        return self._data[indices.to(self._data.labels.device)].images.to(self._device)

    def labels(self, indices: Tensor) -> Tensor:
        """Return labels [B] by index, on the model's device."""
        return self._data.labels[indices.to(self._data.labels.device)].to(self._device)

    def split(self, indices: Tensor) -> list[Tensor]:
        """Return `indices` in chunks."""
        return list(indices.split(self._batch_size)) if len(indices) else []

    def seed(self, name: str, number: int) -> int:
        """Return the seed of an attack's chunk."""
        return seed_at(self._seed, name, number)

    def clean_predictions(self) -> Tensor:
        """Return the prediction for every image itself, [N] int64.

        Raises:
            InputError: for NaN logits, or labels that the model has no logit for.
        """

        def classify(chunk: Tensor, _: int) -> Tensor:
            labels = self.labels(chunk)
            with frozen(self.model, fold=False):
                logits = scores(self.model, self.images(chunk))
            intake.check_numbers(logits)
            intake.check_labels(labels, logits.shape[1])
            return logits.argmax(1)

        return self.judged(torch.arange(len(self._data)), "clean", classify)[0]

    def num_classes(self) -> int:
        """Return the number of the model's classes."""
        with frozen(self.model, fold=False):
            return scores(self.model, self.images(torch.zeros(1, dtype=torch.int64))).shape[1]

    def clean(self) -> Tensor:
        """Return whether every image itself is classified correctly, [N]."""
        return self.clean_predictions() == self._data.labels.cpu()

    def predictions(self, indices: Tensor, threat: ThreatModel, attack: Attack, name: str) -> tuple[Tensor, float]:
        """Return the predictions for the images `indices` after `attack`, [B] int64, and the wall time."""

        def classify(chunk: Tensor, number: int) -> Tensor:
            return self.attacked(chunk, threat, attack, name, number)[1].argmax(1)

        found = self.judged(indices, f"{name} {threat.norm} {threat.epsilon!r}", classify, title=name)
        self.check_model_is_as_it_was(name)
        return found

    def survivors(self, indices: Tensor, threat: ThreatModel, attack: Attack, name: str) -> tuple[Tensor, float]:
        """Return a mask of the images `indices` still classified correctly after `attack`, and the wall time."""
        predictions, seconds = self.predictions(indices, threat, attack, name)
        return predictions == self._data.labels.cpu()[indices], seconds

    def attacked(
        self, chunk: Tensor, threat: ThreatModel, attack: Attack, name: str, number: int
    ) -> tuple[Tensor, Tensor]:
        """Return one chunk's adversarial images [B, C, H, W] and their logits [B, K].

        Raises:
            InputError: if an image is not allowed by the threat model.
        """
        images = self.images(chunk)
        # A copy: an attack that writes into its input must not move what it is measured from.
        points = attack.perturb(self.model, images.clone(), self.labels(chunk), threat, seed=self.seed(name, number))
        return points, self.logits(points, images, threat, name)

    def check_model_is_as_it_was(self, name: str) -> None:
        """Raise InputError if an attack has changed the model: later measurements would be of another model."""
        if _digest_of_tensors(_tensors_of(self.model)) != self._weights:
            raise InputError(
                f"The attack {name} has changed the model; its perturb() must leave weights and buffers as they were."
            )

    def logits(self, points: Tensor, images: Tensor, threat: ThreatModel, name: str) -> Tensor:
        """Return the logits [B, K] of the adversarial images that an attack made of `images`.

        Raises:
            InputError: if it is not allowed by the threat model, or the model's logits of it are NaN.
        """
        if not isinstance(points, Tensor):
            raise InputError(f"The attack {name} returned a {type(points).__name__}; perturb() must return images.")
        if points.shape != images.shape or not threat.around(images).contains(points).all():
            raise InputError(
                f"The attack {name} returned images outside the {threat.norm} ball of radius {threat.epsilon:g} or "
                "outside [0, 1]; its perturb() must end with a projection."
            )
        with frozen(self.model, fold=False):
            logits = scores(self.model, points)
        # Their argmax would pass for a wrong class.
        if logits.isnan().any():
            raise InputError(f"The model's logits are NaN at images that {name} found; it cannot be judged there.")
        return logits

    def judged(self, indices: Tensor, name: str, judge: Judge, *, title: str | None = None) -> tuple[Tensor, float]:
        """Return `judge` of all chunks of `indices`, joined [B], and the wall time.

        In rounds of one chunk per process and worker; a finished round is kept.
        """
        world, chunks = self._stage.world, self.split(indices)
        done = self._done.setdefault(name, {"chunks": 0, "found": [], "seconds": 0.0})
        # The number of processes may have changed since the interruption: rounds are counted from what is done.
        size = world.size * world.workers
        starts = range(done["chunks"], len(chunks), size)
        title, finished = f"{self._stage.name}: {title or name}", done["chunks"] // size
        for first in self._stage.progress.steps(starts, title, total=finished + len(starts), done=finished):
            started = time.monotonic()
            numbers = range(first, min(first + size, len(chunks)))
            mine = world.each(lambda number: judge(chunks[number], number).cpu(), world.shard(numbers))
            found = torch.cat([*done["found"], *world.gather_shards(mine, len(numbers))])
            done["found"], done["chunks"] = [found], numbers.stop
            done["seconds"] += time.monotonic() - started
            self._step += 1
            self._stage.save(self._step, {"settings": self._settings, "done": self._done})
        return done["found"][0] if done["found"] else torch.zeros(0, dtype=torch.int64), done["seconds"]


def digest_of(model: nn.Module, data: ImageSet | None = None, *settings: object) -> str:
    """Return a digest of a model, images and settings, by which an evaluation is recognised.

    Of a model, it covers weights, buffers, plain attributes, and the source files of classes that are neither torch's
    nor ours; of settings, the weights of models in them and the files that surrogates are read from.
    """
    images = {} if data is None else {"pixels": data.pixels, "labels": data.labels}
    digest = hashlib.blake2b(_digest_of_tensors({**_tensors_of(model), **images}), digest_size=16)
    kinds: set[type] = set()
    for name, module in model.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training" and key[0] != "_"
        }
        digest.update(f"{name} {type(module).__qualname__} {plain}".encode())
        kinds.add(type(module))
    digest.update(repr(settings).encode())
    for value in _parts_of(settings):
        if isinstance(value, nn.Module):
            digest.update(digest_of(value).encode())
        elif isinstance(value, str):
            for path in intake.files_of(value):
                digest.update(path.read_bytes())
        else:
            kinds.add(type(value))
    for source in sorted({source for kind in kinds if (source := _source_of(kind)) is not None}):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _parts_of(value: object) -> Iterator[object]:
    """Yield what settings consist of: dataclasses, such as attacks, their surrogates' names, and models."""
    if isinstance(value, nn.Module | str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts_of(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            # Of the other strings none names a file.
            if field.name == "surrogates" or not isinstance(getattr(value, field.name), str):
                yield from _parts_of(getattr(value, field.name))


def _source_of(kind: type) -> Path | None:
    """Return the file of a class that somebody else's code defines, or None."""
    package = kind.__module__.partition(".")[0]
    if package in ("torch", "torchvision", "robust_nas", "builtins"):
        return None
    try:
        return Path(inspect.getfile(kind))
    except (TypeError, OSError):
        return None
