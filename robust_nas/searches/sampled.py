"""Search by trials: a sampler proposes architectures, each is trained briefly or takes a supernet's weights.

The baselines of differentiable search: regularised evolution, TPE, NSGA-II, random search, or any other sampler.
Several processes can measure trials of one search side by side (`TrialSearch.work`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from robust_nas import __version__
from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.datasets import changes, epoch_batches
from robust_nas.evaluation import evaluate
from robust_nas.intake import load_weights
from robust_nas.models.calibration import calibrated
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.proxies import Proxy
from robust_nas.proxies.synflow import Synflow
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import STAGE_FILES
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import save_state
from robust_nas.samplers import Questions, Sampler, Study
from robust_nas.samplers.evolution import Evolution
from robust_nas.searches import Search, SearchResult
from robust_nas.searches._measured import believed, check_replay
from robust_nas.searches._trials import FOLDER, PATIENCE, Trials, wait
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.spaces import mixed
from robust_nas.training import Diverged, Training, fit

if TYPE_CHECKING:
    from torch import nn

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.searches import SharedWeights
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel

Objective = Literal["robust", "clean", "score", "parameters", "multiply_adds"]

WEIGHTS = "supernet.safetensors"

JOURNAL = "study.journal"
"""The file in the run folder with what Optuna's samplers were told."""

_SEEN = ("train", "validation")
"""The splits that a search looks at."""

SCORED = 32
"""Images of the batch that untrained networks are scored on."""

LEAST_SCORE = -1e30
"""That of a network whose output does not depend on its input."""


@dataclass(frozen=True, kw_only=True)
class TrialSearch(Search):
    """Measure as many architectures as there are trials, and prefer the best of them.

    Args:
        sampler: chooses the next architecture to measure.
        trials: architectures that are measured; equivalent ones count once.
        objectives: of trials: accuracy under attack or on clean images of the validation split, a high score of the
            untrained network, few parameters or multiply-adds. The first one ranks; others are for samplers that take
            several, such as nsga2.
        proxy: that score, on a batch of training images.
        training: the training of every trial, from scratch; without it, trials take the weights of a supernet.
        sharing: the training of that supernet.
        attack: attacks the trials.
        num_images: validation images that measure them, the first ones; all, if not given.
        num_parallel: architectures that the sampler asks for before it hears the first one's values, so that as many
            processes can measure them: `robust-nas work RUN`, beside the one that runs the search. It hears values in
            the order in which it asked: the result depends on this number, but not on the number of processes.

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
    num_parallel: int = 1

    def __post_init__(self) -> None:
        counts = {"trials": self.trials, "num_images": self.num_images, "num_parallel": self.num_parallel}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"search.{name} must be at least 1, but got {count}.")
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise InputError(f"search.objectives must be one or more different ones, but got {list(self.objectives)}.")
        if not {"robust", "clean", "score"} & set(self.objectives):
            raise InputError(
                f"search.objectives must have robust, clean or score among them, but got {list(self.objectives)}: what "
                "is only cheap computes nothing."
            )

    @property
    def needs_supernet(self) -> bool:
        """Whether trials take a supernet's weights, which architectures can inherit after the search, too."""
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
            InputError: if the sampler does not take as many objectives, if it asks other questions than before an
                interruption, or what training and evaluation raise.
        """
        seed = seed_at(stage.seed)
        # The sampler refuses before the supernet is trained.
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
        queue = self._open(data, stage, supernet, done)
        questions = Questions(self.sampler, space, len(self.objectives), seed)
        pending: deque[AnyArchitecture] = deque()

        def measure(architecture: AnyArchitecture) -> list[float]:
            return self._measure(architecture, space, data, threat, stage, supernet)

        left = stage.progress.steps(range(done, self.trials), "trials", total=self.trials, done=done)
        for number in range(1, self.trials + 1):
            while len(pending) < min(self.num_parallel, self.trials + 1 - number):
                asked = questions.ask()
                if asked is None:
                    break
                pending.append(asked)
                if queue is not None and number + len(pending) - 1 > done:
                    queue.ask(number + len(pending) - 1, asked)
            if not pending:
                break
            if number <= done:
                check_replay(number, trials[number - 1]["architecture"], str(pending.popleft()), stage)
                questions.answer(trials[number - 1]["values"])
                continue
            values = measure(pending[0]) if queue is None else _shared(queue, number, pending, measure, stage)
            questions.answer(values)
            trials.append({"architecture": str(pending.popleft()), "values": values})
            stage.log(number, **trials[-1])
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            stage.save(number, {"trials": trials, "seconds": seconds})
            if queue is not None:
                queue.forget(number)
            _keep(questions, stage)
            next(left, None)
        _keep(questions, stage)
        next(left, None)
        if self.num_parallel > 1 and stage.folder is not None and stage.world.is_main:
            Trials(stage.folder / FOLDER).close()
        sharing.finish()
        return believed(space, supernet, trials, seconds)

    def _open(self, data: Dataset, stage: Stage, supernet: SharedWeights | None, done: int) -> Trials | None:
        """Return the trials in the run folder, for other processes to take part; None where none can."""
        if self.num_parallel == 1 or stage.folder is None or not stage.world.is_main:
            return None
        queue, processes = Trials(stage.folder / FOLDER), stage.world.size
        if supernet is not None:
            save_state(queue.folder / WEIGHTS, {"weights": supernet.state_dict()})
        structure = None if supernet is None else supernet.structure
        queue.open({**_to_agree_on(data), "processes": processes, "supernet": structure}, done)
        return queue if processes == 1 else None

    def work(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> int:
        """Measure trials of the search that another process runs in the stage's folder, until it is over.

        Any number of processes can do so at a time, and end at any time.

        Returns:
            How many trials this process has measured.

        Raises:
            InputError: if the search asks for one architecture at a time, or is another process group's alone, or if
                this process has another version or other data than the one that asks.
        """
        assert stage.folder is not None
        if self.num_parallel == 1:
            raise InputError(
                f"search.num_parallel of {stage.folder} is 1: the sampler waits for each trial, and nothing can be "
                "shared; start a run with search.num_parallel=4, or as many as there are processes."
            )
        if stage.world.size > 1:
            raise InputError("A trial is measured by one process here; start 'robust-nas work' without torchrun.")
        queue, over = Trials(stage.folder / FOLDER), stage.folder / STAGE_FILES["search"]
        count, idle, joined = 0, time.monotonic(), False
        supernet: SharedWeights | None = None

        def measure(architecture: AnyArchitecture) -> list[float]:
            return self._measure(architecture, space, data, threat, stage, supernet)

        while stage.folder.is_dir() and not over.exists():
            agreed = queue.agreed()
            if agreed is not None and not joined:
                _check_agreement(agreed, data, stage)
                supernet, joined = self._shared_supernet(agreed["supernet"], space, data, queue, stage), True
            if agreed is not None and self._measure_one(queue, space, measure, stage):
                count, idle = count + 1, time.monotonic()
                continue
            if time.monotonic() - idle > PATIENCE:
                stage.progress.say(
                    f"nothing to measure for {PATIENCE:.0f} s; if nobody runs the search: robust-nas run --resume "
                    f"{stage.folder}"
                )
                idle = math.inf  # said once
            wait()
        return count

    def _measure_one(
        self, queue: Trials, space: Space, measure: Callable[[AnyArchitecture], list[float]], stage: Stage
    ) -> bool:
        """Measure the oldest open trial that nobody else measures; return whether there was one."""
        for number in queue.numbers():
            with queue.claim(number) as text:
                if text is None:
                    continue
                architecture, started = space.parse(text), time.monotonic()
                values, seconds = measure(architecture), time.monotonic() - started
                queue.answer(number, architecture, values, seconds)
            found = ", ".join(f"{name} {value:g}" for name, value in zip(self.objectives, values, strict=True))
            stage.progress.say(f"trial {number}: {text}: {found}, in {seconds:.1f} s")
            return True
        return False

    def _shared_supernet(
        self, structure: dict[str, Any] | None, space: Space, data: Dataset, queue: Trials, stage: Stage
    ) -> SharedWeights | None:
        if structure is None:
            return None
        supernet = self.sharing.supernet_of(space, data, structure)
        load_weights(supernet, queue.folder / WEIGHTS, "resume the run, which writes them anew")
        return supernet.to(stage.world.device)

    def _measure(
        self,
        architecture: AnyArchitecture,
        space: Space,
        data: Dataset,
        threat: ThreatModel,
        stage: Stage,
        supernet: SharedWeights | None,
    ) -> list[float]:
        """Return an architecture's objectives, the higher the better.

        A constant network, or one whose training diverges, is right by chance.
        """
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


def _shared(
    queue: Trials,
    number: int,
    pending: Sequence[AnyArchitecture],
    measure: Callable[[AnyArchitecture], list[float]],
    stage: Stage,
) -> list[float]:
    """Return the values of the oldest open trial, `number`; meanwhile measure open trials that nobody else does."""
    idle = time.monotonic()
    while (values := queue.values(number)) is None:
        for place, architecture in enumerate(pending, start=number):
            with queue.claim(place) as text:
                if text is None:
                    continue
                started = time.monotonic()
                queue.answer(place, architecture, measure(architecture), time.monotonic() - started)
            idle = time.monotonic()
            break
        else:
            if time.monotonic() - idle > PATIENCE:
                stage.progress.say(f"waiting for trial {number}, which {queue.claimant(number)} measures")
                idle = math.inf  # said once
            wait()
    return values


def _keep(questions: Questions, stage: Stage) -> None:
    """Add to the journal of an Optuna study what was told."""
    if isinstance(questions.proposer, Study) and stage.folder is not None and stage.world.is_main:
        questions.proposer.keep(stage.folder / JOURNAL)


def _to_agree_on(data: Dataset) -> dict[str, Any]:
    """Return the data that all processes of a search's trials must share, beside the run's configuration."""
    versions = {"robust-nas": __version__, "torch": torch.__version__}
    return {"versions": versions, "device": data.train.device.type, "data": data.fingerprint(_SEEN)}


def _check_agreement(agreed: dict[str, Any], data: Dataset, stage: Stage) -> None:
    """Raise InputError if this process cannot take part in a search."""
    if agreed["processes"] > 1:
        raise InputError(
            f"The trials of {stage.folder} are measured by {agreed['processes']} processes of torchrun together, which "
            "take no other ones; resume the run without torchrun."
        )
    own = _to_agree_on(data)
    for package, version in own["versions"].items():
        if agreed["versions"][package] != version:
            raise InputError(
                f"{stage.folder} runs with {package} {agreed['versions'][package]}, but this is {version}; use the "
                "same one."
            )
    if agreed["device"] != own["device"]:
        raise InputError(
            f"{stage.folder} runs on {agreed['device']}, but this is {own['device']}, which rounds otherwise; use the "
            "same kind of device."
        )
    if changed := changes(agreed["data"], own["data"], _SEEN):
        raise InputError(
            f"The images of {data.name} here are not those of {stage.folder}: {'; '.join(changed)}; use the same files."
        )
