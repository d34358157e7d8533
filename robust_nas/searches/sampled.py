"""Search by trials: a sampler proposes architectures, each is trained briefly or takes a supernet's weights.

The baselines of differentiable search: regularised evolution, TPE, NSGA-II, random search, or any other sampler.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.complexity import count_multiply_adds, count_parameters
from robust_nas.datasets._batches import epoch_batches
from robust_nas.derivation import calibrated
from robust_nas.distributed import World
from robust_nas.errors import InputError
from robust_nas.evaluation import evaluate
from robust_nas.progress import Progress
from robust_nas.proxies import Proxy
from robust_nas.proxies.synflow import Synflow
from robust_nas.run_dir import Stage
from robust_nas.samplers import Sampler, queries
from robust_nas.samplers.evolution import Evolution
from robust_nas.searches import SearchResult
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.seeds import seed_at, seeded
from robust_nas.spaces import mixed
from robust_nas.training._plan import Training

if TYPE_CHECKING:
    from torch import nn

    from robust_nas.architecture import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.spaces import Space
    from robust_nas.supernet import Supernet
    from robust_nas.threat import ThreatModel

Objective = Literal["robust", "clean", "score", "parameters", "multiply_adds"]

SCORED = 32
"""Images of the batch that untrained networks are scored on."""

LEAST_SCORE = -1e30
"""That of a network whose output does not depend on its input."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Measure as many architectures as there are trials, and believe in those that were best.

    Args:
        sampler: chooses what to measure next.
        trials: architectures that are measured; equivalent ones count once.
        objectives: what is good: accuracy under attack or on clean images of the validation split, a high score of the
            untrained network, few parameters or multiply-adds. The first one ranks; others are for samplers that take
            several, such as nsga2.
        proxy: that score, on a batch of training images.
        training: of every trial, from scratch; without it, trials take the weights of a supernet.
        sharing: trains that supernet.
        attack: attacks the trials.
        num_images: validation images that measure them, the first ones; all, if not given.

    Raises:
        InputError: for a value outside its range.
    """

    sampler: Sampler = field(default_factory=Evolution)
    trials: int = 50
    objectives: tuple[Objective, ...] = ("robust",)
    proxy: Proxy = field(default_factory=Synflow)
    training: Training | None = None
    sharing: RandomSharing = field(default_factory=RandomSharing)
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    num_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "num_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"search.{name} must be at least 1, but got {getattr(self, name)}.")
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise InputError(f"search.objectives must be one or more different ones, but got {list(self.objectives)}.")
        if not {"robust", "clean", "score"} & set(self.objectives):
            raise InputError(
                f"search.objectives must have robust, clean or score among them, but got {list(self.objectives)}: what "
                "is only cheap computes nothing."
            )

    @property
    def needs_supernet(self) -> bool:
        """Whether trials take a supernet's weights."""
        return self.training is None and bool({"robust", "clean"} & set(self.objectives))

    @property
    def batch_sizes(self) -> list[int]:
        """Global batches of the trainings that there are."""
        if not {"robust", "clean"} & set(self.objectives):
            return []
        return [self.sharing.batch_size] if self.training is None else list(self.training.batch_sizes)

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: if the sampler does not take as many objectives, or what training and evaluation raise.
        """
        seed = seed_at(stage.seed)
        # What the sampler cannot do is said before the supernet is trained.
        self.sampler.start(space, len(self.objectives), seed)
        if self.needs_supernet:
            mixed(space, "sampled")
        supernet, sharing = None, replace(stage, name=f"{stage.name}-sharing")
        done, state = stage.resume()
        seconds = 0.0
        if self.needs_supernet:
            shared = self.sharing.search(space, data, threat, sharing)
            supernet, seconds = shared.supernet, shared.record["seconds"]
        # A sampler that is asked anew and told the same values asks the same questions.
        trials: list[dict[str, Any]] = [] if state is None else state["trials"]
        seconds, started = seconds if state is None else state["seconds"], time.monotonic()
        known = {trial["architecture"]: trial["values"] for trial in trials}

        def measure(architecture: AnyArchitecture) -> Sequence[float]:
            if str(architecture) in known:
                return known[str(architecture)]
            return self._measure(architecture, space, data, threat, stage, supernet)

        asked = queries(self.sampler, space, measure, num_objectives=len(self.objectives), seed=seed)
        left = stage.progress.steps(range(done, self.trials), "trials", total=self.trials, done=done)
        for number, (architecture, values) in enumerate(asked, start=1):
            if number > done:
                trials.append({"architecture": str(architecture), "values": list(values)})
                stage.log(number, **trials[-1])
                seconds, started = seconds + time.monotonic() - started, time.monotonic()
                stage.save(number, {"trials": trials, "seconds": seconds})
                next(left, None)
            if number == self.trials:
                break
        next(left, None)
        sharing.finish()
        return self._believed(space, supernet, trials, seconds)

    def _measure(
        self,
        architecture: AnyArchitecture,
        space: Space,
        data: Dataset,
        threat: ThreatModel,
        stage: Stage,
        supernet: Supernet | None,
    ) -> list[float]:
        """Return an architecture's objectives, the higher the better; a constant network, or one whose
        training diverges, is right by chance.
        """
        from robust_nas.training._loop import Diverged, fit

        with seeded(stage.seed, "trial", str(architecture)):
            network: nn.Module = space.network(architecture, data).to(stage.world.device)
        costs = {
            "parameters": -float(count_parameters(network)),
            "multiply_adds": -float(count_multiply_adds(network, data.image_shape)),
        }
        found = {"robust": 0.0, "clean": 1 / len(data.classes), "score": LEAST_SCORE}
        if architecture.is_connected and "score" in self.objectives:
            (indices, *_) = epoch_batches(len(data.train), SCORED, World(), stage.seed, "score")
            batch = data.train[indices]
            score = self.proxy.score(network, batch.images, batch.labels, threat, seed=stage.seed)
            found["score"] = stage.world.broadcast(score)  # the same on all ranks: they ask the sampler alike
        if architecture.is_connected and {"robust", "clean"} & set(self.objectives):
            if self.training is not None:
                alone = Stage("trial", seed_at(stage.seed, str(architecture)), stage.world, Progress(quiet=True))
                try:
                    network = fit(network, data, threat, self.training, alone).model
                except Diverged:  # worth no more than a constant network
                    return [{**costs, **found}[name] for name in self.objectives]
                except InputError as error:
                    raise InputError(
                        f"The trial {architecture} cannot be trained as search.training says: {error}"
                    ) from None
            else:
                assert supernet is not None
                size = self.sharing.batch_size
                network = calibrated(supernet.choose(architecture), data, stage.world, stage.seed, batch_size=size)
            images = data.validation[: self.num_images]
            outcome = evaluate(network, images, threat, [self.attack], stage=stage.within("validation"))
            found |= {"robust": outcome.robust_accuracy, "clean": outcome.clean_accuracy}
        return [{**costs, **found}[name] for name in self.objectives]

    def _believed(
        self, space: Space, supernet: Supernet | None, trials: list[dict[str, Any]], seconds: float
    ) -> SearchResult:
        """Return the trials, best first, and how often the best tenth of them have each operation or decided value.

        As if there were one trial more, with a part of every one of these: none is impossible.
        """
        ranked = sorted(trials, key=lambda trial: trial["values"][0], reverse=True)
        best = [space.places_of(space.parse(trial["architecture"])) for trial in ranked[: max(1, len(ranked) // 10)]]
        probabilities = [
            [
                (sum(places[row] == place for places in best) + 1 / len(options)) / (len(best) + 1)
                for place in range(len(options))
            ]
            for row, options in enumerate(space.rows.values())
        ]
        measured = [trial["architecture"] for trial in ranked]
        record = {"trajectory": [], "seconds": seconds, "measured": measured, "trials": trials}
        return SearchResult(space, probabilities, supernet, record)
