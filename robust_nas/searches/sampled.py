"""Search by trials: a sampler proposes architectures, each is trained briefly or takes a supernet's weights.

The baselines of differentiable search: regularised evolution, TPE, NSGA-II, random search, or any other sampler.
Several processes can measure trials of one search side by side (`TrialSearch.work`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from robust_nas import spaces
from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.datasets import epoch_batches
from robust_nas.evaluation import evaluate
from robust_nas.intake import load_weights
from robust_nas.models.calibration import calibrated
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.proxies import Proxy
from robust_nas.proxies.synflow import Synflow
from robust_nas.runtime import storages
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import is_run
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import save_state
from robust_nas.samplers import Questions, Sampler, Study
from robust_nas.samplers.evolution import Evolution
from robust_nas.searches import Search, SearchResult
from robust_nas.searches._measured import believed, check_replay
from robust_nas.searches._sharing import (
    SEEN,
    Guest,
    OpenTrials,
    Patience,
    check_agreement,
    joined,
    measured_together,
    to_agree_on,
    welcoming,
)
from robust_nas.searches._studies import StoredTrials, searches_in
from robust_nas.searches._trials import FOLDER, Trials
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

SHARED = 4
"""The trials that are open at a time in a storage, if nothing else is asked for."""

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
            the order in which it asked: the result depends on this number, but not on the number of processes. 1, or
            with a storage 4, if not given.
        storage: where the trials are for other machines: a journal in a folder that they share, or a database, such as
            journal:///shared/trials.log or postgresql://user@host/base. Any number of `robust-nas work STORAGE`
            measure them. Its password is written nowhere.
        study: the name of the search's study in the storage; the run folder's, if not given, or one of its settings.

    Raises:
        InputError: for a value outside its range, or a storage that is none.
    """

    sampler: Sampler = field(default_factory=Evolution)
    trials: int = 50
    objectives: tuple[Objective, ...] = ("robust",)
    proxy: Proxy = field(default_factory=Synflow)
    training: Training | None = None
    sharing: RandomSharing = field(default_factory=RandomSharing)
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    num_images: int | None = None
    num_parallel: int | None = None
    storage: str | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        if self.storage is not None:
            object.__setattr__(self, "storage", storages.normal(self.storage))
        elif self.study is not None:
            raise InputError("search.study names a study in a storage; give search.storage, too, or leave it out.")
        if self.study is not None and (not self.study.strip() or not self.study.isprintable() or len(self.study) > 200):
            raise InputError("search.study must be a name of at most 200 characters that can be printed.")
        if self.num_parallel is None:
            object.__setattr__(self, "num_parallel", 1 if self.storage is None else SHARED)
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

    def reach(self) -> None:
        """See `Search.reach`: open the storage, so that one that does not answer is said before anything is made."""
        if self.storage is not None:
            storages.opened(self.storage)

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: if the sampler does not take as many objectives, if it asks other questions than before an
                interruption, if the storage cannot be used, or what training and evaluation raise.
        """
        seed = seed_at(stage.seed)
        # The sampler and the storage refuse before the supernet is trained.
        self.sampler.start(space, len(self.objectives), seed)
        queue = self._place(space, data, threat, stage)
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
        shares = self._open(queue, data, stage, supernet, trials[:done])
        questions = Questions(self.sampler, space, len(self.objectives), seed)
        pending: deque[AnyArchitecture] = deque()

        def measure(architecture: AnyArchitecture) -> list[float]:
            return self._measure(architecture, space, data, threat, stage, supernet)

        left = stage.progress.steps(range(done, self.trials), "trials", total=self.trials, done=done)
        with contextlib.nullcontext() if shares is None else welcoming(shares):
            for number in range(1, self.trials + 1):
                while len(pending) < min(self._num_open, self.trials + 1 - number):
                    asked = questions.ask()
                    if asked is None:
                        break
                    pending.append(asked)
                    if shares is not None and number + len(pending) - 1 > done:
                        shares.ask(number + len(pending) - 1, asked)
                if not pending:
                    break
                if number <= done:
                    check_replay(number, trials[number - 1]["architecture"], str(pending.popleft()), stage)
                    questions.answer(trials[number - 1]["values"])
                    continue
                if shares is None:
                    values = measure(pending[0])
                else:
                    values = measured_together(shares, number, pending, measure, stage)
                questions.answer(values)
                trials.append({"architecture": str(pending.popleft()), "values": values})
                stage.log(number, **trials[-1])
                seconds, started = seconds + time.monotonic() - started, time.monotonic()
                stage.save(number, {"trials": trials, "seconds": seconds})
                if shares is not None:
                    shares.forget(number)
                self._keep(questions, stage)
                next(left, None)
        self._keep(questions, stage)
        next(left, None)
        if queue is not None:
            queue.close()
        sharing.finish()
        return believed(space, supernet, trials, seconds)

    @property
    def _num_open(self) -> int:
        return self.num_parallel or 1

    def _place(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> OpenTrials | None:
        """Return the place of the open trials, for other processes to take part; None where none can."""
        if self.storage is None:
            shared = self._num_open > 1 and stage.folder is not None and stage.world.is_main
            return Trials(stage.folder / FOLDER) if shared and stage.folder is not None else None
        if stage.world.size > 1:
            raise InputError(
                "A search with a storage is run by one process; start it without torchrun, and beside it as many of "
                f"'robust-nas work {self.storage}' as there are processors or accelerators."
            )
        settings = {name: value for name, value in config.to_dict(self).items() if name not in ("storage", "study")}
        identity = config.digest(
            {
                "space": spaces.describe(space),
                "search": settings,
                "threat": config.to_dict(threat),
                "seed": stage.seed,
                "data": data.fingerprint(SEEN),
            }
        )
        storage = storages.opened(self.storage)
        assert storage is not None
        name = self.study or (stage.folder.name if stage.folder is not None else f"{space.name}-{identity}")
        queue = StoredTrials(
            storage, name, space, identity=identity, seed=stage.seed, leads_alone=stage.folder is not None
        )
        known = stage.folder is not None and is_run(stage.folder)
        recipe = config.read_toml(stage.folder / "config.toml") if known and stage.folder is not None else None
        names = [name if name in ("robust", "clean", "score") else f"-{name}" for name in self.objectives]
        queue.begin(names, recipe)
        stage.progress.say(f"trials: study {queue.place}; to take part: robust-nas work {self.storage}")
        return queue

    def _open(
        self,
        queue: OpenTrials | None,
        data: Dataset,
        stage: Stage,
        supernet: SharedWeights | None,
        done: list[dict[str, Any]],
    ) -> OpenTrials | None:
        """Open the trials for other processes, if there is a place; return it, unless processes of torchrun share."""
        if queue is None:
            return None
        if isinstance(queue, Trials):
            queue.folder.mkdir(exist_ok=True)
        if supernet is not None and stage.folder is not None:
            (stage.folder / FOLDER).mkdir(exist_ok=True)
            save_state(stage.folder / FOLDER / WEIGHTS, {"weights": supernet.state_dict()})
        structure = None if supernet is None else supernet.structure
        processes = stage.world.size
        queue.open({**to_agree_on(data), "processes": processes, "supernet": structure}, done)
        return queue if processes == 1 else None

    def _keep(self, questions: Questions, stage: Stage) -> None:
        """Add to the journal of an Optuna study in the run folder what was told; a storage has its own study."""
        if self.storage is not None or stage.folder is None or not stage.world.is_main:
            return
        if isinstance(questions.proposer, Study):
            questions.proposer.keep(stage.folder / JOURNAL)

    def work(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> int:
        """Measure trials of the search that another process runs, in the stage's folder or a storage, until it is over.

        Any number of processes can do so at a time, and end at any time.

        Returns:
            How many trials this process has measured.

        Raises:
            InputError: if the search asks for one architecture at a time, or is another process group's alone, if this
                process has another version or other data than the one that asks, or if the folder is not shared.
        """
        place = str(stage.folder or self.storage)
        if self._num_open == 1:
            raise InputError(
                f"search.num_parallel of {place} is 1: the sampler waits for each trial, and nothing can be "
                "shared; start a run with search.num_parallel=4, or as many as there are processes."
            )
        if stage.world.size > 1:
            raise InputError("A trial is measured by one process here; start 'robust-nas work' without torchrun.")
        again = "the command that began it" if stage.folder is None else f"robust-nas run --resume {stage.folder}"
        if self.storage is None:
            assert stage.folder is not None
            queue: OpenTrials = Trials(stage.folder / FOLDER)
        else:
            name = self.study or (stage.folder.name if stage.folder is not None else "")
            queue = StoredTrials(joined(self.storage, stage.progress), name, space)
        guest, is_joined, count = Guest(queue, stage.progress, again), False, 0
        supernet: SharedWeights | None = None

        def measure(architecture: AnyArchitecture) -> list[float]:
            return self._measure(architecture, space, data, threat, stage, supernet)

        while not queue.is_over():
            agreed = queue.agreed()
            if agreed is not None and not is_joined:
                check_agreement(agreed, data, place)
                supernet, is_joined = self._shared_supernet(agreed["supernet"], space, data, stage), True
            if agreed is not None and guest.is_welcome() and self._measure_one(queue, space, measure, stage):
                count += 1
                guest.measured()
                continue
            guest.waits()
        return count

    def _measure_one(
        self, queue: OpenTrials, space: Space, measure: Callable[[AnyArchitecture], list[float]], stage: Stage
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
        self, structure: dict[str, Any] | None, space: Space, data: Dataset, stage: Stage
    ) -> SharedWeights | None:
        if structure is None:
            return None
        if stage.folder is None:
            raise InputError(
                f"The trials of {self.storage} take the weights of a supernet, which are in the run folder: "
                "'robust-nas work RUN' on machines that share it; or search by short trainings, search.training."
            )
        supernet = self.sharing.supernet_of(space, data, structure)
        load_weights(supernet, stage.folder / FOLDER / WEIGHTS, "resume the run, which writes them anew")
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


def study_of(storage: str, study: str | None, progress: Progress) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the recipe of a search in a storage, as soon as there is one.

    Args:
        storage: as `storages.normal` gives it.
        study: its name; that of the only one that is not over, if not given.

    Raises:
        InputError: if the storage does not answer, if several searches are under way, or if it has no recipe.
    """
    opened = joined(storage, progress)
    waiting = Patience(
        progress, f"no search under way in {storage} yet; begin one with --storage, or end this by Ctrl-C"
    )
    while True:
        found = {name: facts for name, facts in searches_in(opened).items() if "agreed" in facts}
        if study is not None and study in found:
            name = study
        else:
            under_way = [name for name, facts in found.items() if not facts.get("over")]
            if study is None and len(under_way) > 1:
                raise InputError(
                    f"{storage} has several searches under way: {', '.join(sorted(under_way))}; name one: --study NAME."
                )
            if study is not None or not under_way:
                waiting.wait()
                continue
            (name,) = under_way
        recipe = found[name].get("recipe")
        if recipe is None:
            raise InputError(
                f"The search {name} in {storage} was begun in Python, and its data is nowhere written; make the same "
                "call of rn.search in every process that takes part."
            )
        return name, recipe
