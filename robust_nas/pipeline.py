"""The pipeline: `run` is the whole of it, and every stage is a line in it.

A stage reads what earlier stages wrote to the run folder and writes its own result there, once: a stage whose result
exists is read back instead of computed, and a stage that was interrupted continues from its last state.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robust_nas import derivation, intake, records, spaces
from robust_nas import recipes as recipe
from robust_nas.architectures import AnyArchitecture
from robust_nas.bounds import Bound, LinearMargins
from robust_nas.certification import Contradiction, refusal
from robust_nas.certification.plan import Place, Plan, leave_out
from robust_nas.core import catalogue, config
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, is_there
from robust_nas.core.registry import name_of
from robust_nas.core.seeds import seeded
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import SPLITS, Dataset, DataSource, ImageSet, changes, check_batch
from robust_nas.ensembles import Ensemble, fit_with
from robust_nas.ensembles.uniform import Uniform
from robust_nas.evaluation import costs_text, evaluate, save_examples
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.recipes import Recipe, budget
from robust_nas.recipes.rehearsal import rehearse, settle_threads
from robust_nas.records import Record, read_stage
from robust_nas.records.ensemble import EnsembleRecord, Weighting
from robust_nas.records.evaluation import EvaluationRecord, OtherEpoch
from robust_nas.records.run import RecordedRows
from robust_nas.records.search import SearchRecord
from robust_nas.records.training import Trained, TrainingRecord
from robust_nas.report import write_report
from robust_nas.runtime import storages
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import add_session, is_restarted, launched, sessions_of
from robust_nas.runtime.per_sample import check_outcomes, compare_outcomes
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder, resume_words
from robust_nas.runtime.stages import Stage, check_states
from robust_nas.runtime.states import load_state, save_state
from robust_nas.runtime.threads import recorded
from robust_nas.searches import SearchResult
from robust_nas.searches.sampled import TrialSearch, study_of
from robust_nas.spaces import MixedSpace, Space
from robust_nas.spaces.cell import CellSpace
from robust_nas.tables import local
from robust_nas.threat import ThreatModel

R = TypeVar("R", bound=Record)

DATA = "data.json"
"""The file in the run folder that says which images it was made with."""

_OTHER_SIZE = (
    "{0} was begun by {1} processes, but would be gone on with by {2}: each has its part of every batch of the search "
    "and the training, so that the numbers would be others. Go on with: {3} run --resume {0}"
)


def launch(processes: int) -> str:
    """Return the command that starts so many processes."""
    if processes == 1:
        return "robust-nas"
    return f"torchrun --standalone --nproc-per-node={processes} -m robust_nas"


@dataclass
class Job:
    """A recipe at work in its run folder."""

    recipe: Recipe
    folder: RunFolder
    world: World
    progress: Progress
    loaded: Dataset | None = None
    noted: bool = False

    @property
    def data(self) -> Dataset:
        """The data set, on this process's device; read when it is first needed."""
        if self.loaded is None:
            self.loaded = load_data(self.recipe, self.world)
            check_same_data(self.folder.path, self.loaded)
        return self.loaded

    def begin(self, *, in_shares: bool = False) -> None:
        """Note in environment.json that this session computes something; each stage calls it before it does.

        Args:
            in_shares: whether the result depends on how many processes share out a batch: then it must be the number
                that the run was begun with.

        Raises:
            InputError: if it is not.
        """

        def note() -> None:
            before = sessions_of(self.folder)
            size = before[0].world_size if before else self.world.size
            if in_shares and size != self.world.size:
                raise InputError(_OTHER_SIZE.format(self.folder.path, size, self.world.size, launch(size)))
            if not self.noted:
                add_session(self.folder, self.world, sys.argv[1:])

        self.world.on_main(note)
        self.noted = True

    def stage(self, name: str) -> Stage:
        """Return a stage's place in the run."""
        chosen = self.recipe
        return Stage(name, chosen.seed, self.world, self.progress, self.folder.path, chosen.save_steps)

    def has(self, name: str) -> bool:
        """Whether a result file exists, as rank 0 sees it."""
        return self.world.broadcast(is_there(self.folder / name))

    def write(self, name: str, record: Record | Mapping[str, Any]) -> None:
        """Write a JSON result, from rank 0."""
        if self.world.is_main:
            write_json(self.folder / name, records.plain(record))
        self.world.barrier()

    def read(self, name: str, kind: type[R]) -> R:
        """Read a JSON result.

        Raises:
            InputError: if it is missing, or has not the shape of its record.
        """
        return records.read(self.folder / name, kind)

    def so_far(self, name: str, start: R) -> R:
        """Return a JSON result to which models are added one by one, as far as it has come; its start before the first.

        Raises:
            InputError: as `read` does.
        """
        return self.read(name, type(start)) if self.has(name) else start

    def say(self, message: str) -> None:
        """Print a line, on rank 0."""
        self.progress.say(message)

    def close(self) -> None:
        """Let other processes work on the folder, and leave the group of this one."""
        self.folder.unlock()
        self.world.stop()

    @property
    def how_to_go_on(self) -> str:
        """The sentence with the command that resumes it."""
        return f"Go on with: {launch(self.world.size)} {resume_words(self.folder.path)}"


def load_data(recipe: Recipe, world: World) -> Dataset:
    """Return a recipe's data set on this process's device.

    Raises:
        InputError: if it is not there, or does not fit the recipe.
    """
    data = read_data(recipe.data, world)
    # Said before the search starts, not after it.
    derivation_sizes = [recipe.derive.batch_size]
    sizes = {"search": recipe.search.batch_sizes, "derive": derivation_sizes, "train": recipe.train.batch_sizes}
    for section, batches in sizes.items():
        sharing = recipe.train.trainers(world.size) if section == "train" else world.size
        for size in batches:
            check_batch(f"{section}.batch_size", size, len(data.train), replace(world, size=sharing))
    return data.to(world.device)


def read_data(source: DataSource, world: World) -> Dataset:
    """Return a data set; rank 0 reads it first, so that only one process downloads it."""
    loaded: list[Dataset] = []
    world.on_main(lambda: loaded.append(source.load_splits()))
    return loaded[0] if world.is_main else source.load_splits()


def check_same_data(run: Path, data: Dataset, splits: Sequence[str] = SPLITS) -> None:
    """Raise InputError if a run was made with other images, labels or classes than `data` has now.

    Of training images that stay in files, their names and sizes are compared, not what is in them.
    """
    if not is_there(run / DATA):  # deleted, as the advice below has it
        return
    advice = "if the data is as it was, delete the file, and resume without this check; else start a new run"
    if changed := changes(read_stage(run / DATA, advice), data.fingerprint(splits), splits):
        raise InputError(
            f"The data of {run} has changed since the run began: {'; '.join(changed)}. Put {data.name} back as it was, "
            "or start a new run."
        )


def run(job: Job) -> None:
    """Search, derive, train, attack, certify, ensemble, record and report."""
    job.world.on_main(lambda: check_states(job.folder.path))
    job.progress.plan(_work(job))
    search(job)
    derive(job)
    job.progress.plan(_work(job))  # it may have found fewer networks than were asked for
    train(job)
    attack(job)
    certify(job)
    ensemble(job)
    record(job)
    report(job)


def run_after_costs(job: Job) -> None:
    """Say how long each stage is expected to take, from a little of each, and run the pipeline."""
    job.say(budget.text(budget.expected(job.recipe, job.data, job.world), job.world))
    run(job)


def _work(job: Job) -> dict[str, float]:
    """Return the work of the whole pipeline that its stages do in units: networks, epochs of training.

    What an earlier session has finished is left out, or is a unit that is over at once.
    """
    derived, epochs = job.has("derive.json"), job.recipe.train.epochs
    chosen = len(chosen_architectures(job)) if derived else job.recipe.derive.count
    trained = [f"checkpoints/{name}.safetensors" for name in chosen_architectures(job)] if derived else []
    work = {
        "search": 0.0 if job.has("search.json") else 1.0,
        "derive": 0.0 if derived else 1.0,
        "train": 0.0 if job.has("train.json") else epochs * (chosen - sum(map(job.has, trained))),
        "attack": chosen - 1,
        "attack: the best": 1,
        "attack: other epochs": chosen,
        "certify": chosen,
    }
    if chosen > 1:  # an ensemble is as much work as its networks together: the uniform average, and the fitted one
        work["attack"] += chosen
        work["attack: the best"] += chosen
        work["certify"] += 2 * chosen
        work["ensemble"] = 0.0 if job.has("ensemble.json") else 1.0
    return work


def search(job: Job) -> None:
    """Train the supernet and its Dirichlet distributions; write search.json and the supernet's weights."""
    recipe, stage = job.recipe, job.stage("search")
    if job.has("search.json"):
        stage.finish()
        return
    job.begin(in_shares=True)
    with job.progress.unit("search", one_loop=True):
        found = recipe.search.search(recipe.space, job.data, recipe.threat, stage)
    if job.world.is_main and found.supernet is not None:
        save_state(job.folder / "checkpoints" / "supernet.safetensors", {"weights": found.supernet.state_dict()})
    settings = {"space": spaces.describe(recipe.space), "search": config.to_dict(recipe.search)}
    job.write(
        "search.json",
        {
            **settings,
            **_rows(recipe.space),
            "probabilities": found.probabilities,
            **found.record,
            **({} if found.supernet is None else {"supernet": found.supernet.structure}),
        },
    )
    stage.finish()


def work(place: str, progress: Progress, *, study: str | None = None, data_root: Path | None = None) -> None:
    """Measure trials of a search that another process runs, until it is over.

    Args:
        place: its run folder; or the storage of its trials, on machines that share no folder with it.
        study: the search's name in the storage; the only one that is under way, if not given.
        data_root: the folder of the data set's files, where it is another one here.

    Raises:
        InputError: if it is no run folder or storage, or one whose search has nothing to share.
    """
    if storages.is_url(place):
        storage = storages.normal(place)
        name, table = study_of(storage, study, progress)
        where, path, table = f"{name} in {storage}", None, {**table}
    else:
        if study is not None:
            raise InputError(f"--study names a study in a storage, but {place} is a folder; leave it out.")
        folder = RunFolder.open(place)
        where, path, table = place, folder.path, config.read_toml(folder / "config.toml")
    if data_root is not None:
        config.set_key(table, "data.root", str(catalogue.expanded(data_root).resolve()))
    chosen = recipe.from_table(table, where if path is None else str(path / "config.toml"))
    if not isinstance(chosen.search, TrialSearch):
        raise InputError(
            f"'robust-nas work' measures trials, but the search of {where} has none; that needs search=sampled."
        )
    if path is not None and (path / "search.json").is_file():
        progress.say(f"The search of {where} is over: there is nothing to measure.")
        return
    threads = chosen.threads or (None if path is None else recorded(sessions_of(RunFolder(path))))
    # The storage as it was reached from here: the one that runs the search may know it by another host's name.
    searched = chosen.search if path is not None else replace(chosen.search, storage=storage, study=name)
    world = World.start(chosen.device, threads, chosen.workers, chosen.patience)
    torch.use_deterministic_algorithms(world.device.type == "cpu")
    try:
        stage, data = Stage("search", chosen.seed, world, progress, path), load_data(chosen, world)
        if path is not None:
            check_same_data(path, data)
        progress.say(f"measuring trials of {where}; Ctrl-C ends this, not the search")
        count = searched.work(chosen.space, data, chosen.threat, stage)
    finally:
        world.stop()
    progress.say(f"The search of {where} is over; {count} of its trials were measured here.")


def _rows(space: Space) -> dict[str, Any]:
    """Return the names of the rows of search.json's probabilities: edges' operations, or decisions' values."""
    if not isinstance(space, MixedSpace):
        return {"decisions": {name: list(values) for name, values in space.choices.items()}}
    edges = [list(edge) for edge in space.edges]
    return {"operations": list(space.operations), "edges": edges, "edge_names": space.edge_names}


def load_search(job: Job) -> SearchResult:
    """Return the search's result from the run folder.

    Raises:
        InputError: if the search has not been run.
    """
    path, weights = job.folder / "search.json", job.folder / "checkpoints" / "supernet.safetensors"
    saved, supernet = records.read(path, SearchRecord), None
    if weights.is_file():
        if saved.supernet is None:
            raise InputError(damaged(path, f"it has no supernet, but there is {weights.name}"))
        supernet = job.recipe.search.supernet_of(job.recipe.space, job.data, records.plain(saved.supernet))
        intake.load_weights(supernet, weights, "delete the file and the stage's JSON file, and resume the run")
        supernet.to(job.world.device)
    probabilities = [list(row) for row in saved.probabilities]
    return SearchResult(job.recipe.space, probabilities, supernet, {}, saved.measured)


def derive(job: Job) -> None:
    """Choose architectures; write derive.json and architecture.txt."""
    if job.has("derive.json"):
        return
    job.begin(in_shares=True)
    recipe, started = job.recipe, time.monotonic()
    found = load_search(job)
    with job.progress.unit("derive"):
        candidates = derivation.derive(found, recipe.space, job.data, recipe.threat, recipe.derive, job.stage("derive"))
    chosen = candidates[: recipe.derive.count]
    if job.world.is_main:
        write_text(job.folder / "architecture.txt", "".join(f"{candidate.architecture}\n" for candidate in chosen))
    seconds = time.monotonic() - started
    job.write("derive.json", derivation.to_record(candidates, recipe.derive, len(job.data.validation), seconds))


def chosen_architectures(job: Job) -> dict[str, AnyArchitecture]:
    """Return the derived architectures by model name, best first."""
    return intake.chosen_architectures(job.folder.path, job.recipe.space)


def train(job: Job) -> None:
    """Train every derived architecture from scratch; write their weights and train.json."""
    if job.has("train.json"):
        return
    job.begin(in_shares=True)
    recipe = job.recipe
    trained: list[Trained] = []
    for index, (name, architecture) in enumerate(chosen_architectures(job).items()):
        weights, stage = job.folder / "checkpoints" / f"{name}.safetensors", job.stage(f"train-{index}")
        if not job.has(f"checkpoints/{name}.safetensors"):
            with seeded(recipe.seed, "train", name):
                model = recipe.space.network(architecture, job.data).to(job.world.device)
            if recipe.train.start_from is not None:
                intake.load_weights(model, recipe.train.start_from, "name those of the same architecture and space")
            frozen = [load_model(job, other.name) for other in trained] if recipe.train.boosting else []
            with job.progress.unit("train", recipe.train.epochs, one_loop=True):
                fitted = fit_with(frozen, model, job.data, recipe.threat, recipe.train, stage)
            facts = Trained(
                name=name,
                architecture=str(architecture),
                parameters=count_parameters(model),
                multiply_adds=count_multiply_adds(model, job.data.image_shape),
                method=config.to_dict(recipe.train)["method"]["name"],
                **vars(fitted.record),
            )
            if job.world.is_main:
                for epoch, state in {"best": fitted.best, "last": fitted.last}.items():
                    if epoch != fitted.record.kept:
                        save_state(job.folder / "checkpoints" / f"{name}-{epoch}.safetensors", {"weights": state})
                save_state(weights, {"weights": model.state_dict(), "record": records.plain(facts)})
            job.world.barrier()
        stage.finish()
        trained.append(records.build(Trained, load_state(weights).get("record"), weights))
    job.write("train.json", TrainingRecord(models=tuple(trained)))


def train_given(job: Job) -> None:
    """Train the one model of a recipe that searches nothing, `recipes.for_model`."""
    search(job)
    derive(job)
    train(job)


def load_models(job: Job) -> dict[str, nn.Module]:
    """Return the trained models by name, in evaluation mode.

    Raises:
        InputError: if they have not been trained, or their weights do not fit their architecture.
    """
    trained_models(job)
    return {name: load_model(job, name) for name in chosen_architectures(job)}


def load_model(job: Job, name: str) -> nn.Module:
    """Return a trained model, in evaluation mode.

    Raises:
        InputError: if its weights are not there, or do not fit its architecture.
    """
    space, architecture = intake.chosen_networks(job.folder.path, job.recipe.space)[name]
    weights = job.folder / "checkpoints" / f"{name}.safetensors"
    return intake.trained_network(space, architecture, job.data, weights).to(job.world.device)


def best_single(job: Job) -> str:
    """Return the name of the model with the best robust accuracy on the validation split."""
    trained = trained_models(job)
    return max(trained, key=lambda model: (model.validation["robust"], model.validation["clean"])).name


def trained_models(job: Job) -> tuple[Trained, ...]:
    """Return the records of the trained networks."""
    return job.read("train.json", TrainingRecord).models


def attack(job: Job) -> None:
    """Attack every trained model on the test images; write evaluation.json and evaluation.parquet."""
    best, models = best_single(job), load_models(job)
    check_outcomes(job.folder / "evaluation.parquet")
    for name, model in models.items():
        with job.progress.unit("attack: other epochs"):
            _attack_other_epoch(job, name)
        with job.progress.unit(_kind_of_attack(strongest=name == best)):
            _attack_one(job, name, model, strongest=name == best)
    check_proofs(job)
    if job.world.is_main:
        save_examples(
            job.folder.path,
            best,
            models[best],
            _attacked_images(job),
            job.recipe.threat,
            job.recipe.evaluation.curve_attack,
            num_classes=len(job.data.classes),
            seed=job.recipe.seed,
        )


def attack_after_costs(job: Job) -> None:
    """Say what attacking every trained model is expected to cost, from a few of the images, and do it."""
    best, threats, test = best_single(job), [job.recipe.threat], _attacked_images(job)
    for name, model in load_models(job).items():
        plan = job.recipe.evaluation
        costs = plan.costs(model, test, threats, job.world, job.recipe.seed, strongest=name == best)
        if (epoch := _other_epoch(job, name)) is not None:
            again = costs[: len(plan.named(strongest=False))]
            costs += [replace(cost, label=f"{cost.label}, {epoch} epoch") for cost in again]
        job.say(costs_text(name, costs, len(test), job.world))
    attack(job)


def _kind_of_attack(*, strongest: bool) -> str:
    """Return the kind of work that it is: the strongest attacks take far longer."""
    return "attack: the best" if strongest else "attack"


def _attacked_images(job: Job) -> ImageSet:
    return job.data.test[: job.recipe.evaluation.num_images]


def _evaluation_so_far(job: Job) -> EvaluationRecord:
    """Return the contents of evaluation.json so far, or its start without any model."""
    data, count = job.data, len(_attacked_images(job))
    begun = EvaluationRecord(models={}, num_images=count, data=data.name, classes=data.classes, notes=data.notes)
    return job.so_far("evaluation.json", begun)


def _other_epoch(job: Job, name: str) -> str | None:
    """Return the epoch of a network, "best" or "last", that was not kept; None if both are the same."""
    trained = next((model for model in trained_models(job) if model.name == name), None)
    if trained is None:
        reason = f"it has no {name}, which derive.json lists"
        raise InputError(damaged(job.folder / "train.json", reason, "delete both and resume the run"))
    if trained.kept is None or trained.best_epoch == trained.last_epoch:
        return None
    return "last" if trained.kept == "best" else "best"


def _attack_other_epoch(job: Job, name: str) -> None:
    """Attack a network as it was after the last epoch (or the best one, if the last is kept), unless that is done.

    Beside the one that is kept, it shows what robust overfitting costs (Rice et al. 2020, arXiv:2002.11569).
    """
    done, epoch = _evaluation_so_far(job), _other_epoch(job, name)
    if epoch is None:
        return
    recipe, stage = job.recipe, job.stage(f"attack-{name}-{epoch}")
    if name in done.other_epochs:
        stage.finish()
        return
    job.begin()
    weights = job.folder / "checkpoints" / f"{name}-{epoch}.safetensors"
    model = intake.trained_network(recipe.space, chosen_architectures(job)[name], job.data, weights)
    named, size = recipe.evaluation.named(strongest=False), recipe.evaluation.batch_size
    result = evaluate(
        model.to(job.world.device),
        _attacked_images(job),
        recipe.threat,
        list(named.values()),
        labels=list(named),
        batch_size=size,
        stage=stage,
    )
    entry = OtherEpoch(epoch=epoch, **vars(result.summary()))
    job.write("evaluation.json", replace(done, other_epochs={**done.other_epochs, name: entry}))
    stage.finish()


def _attack_one(job: Job, name: str, model: nn.Module, *, strongest: bool) -> None:
    """Attack one model and add it to evaluation.json, unless it is there."""
    done = _evaluation_so_far(job)
    plan, stage, test, threats = (
        job.recipe.evaluation,
        job.stage(f"attack-{name}"),
        _attacked_images(job),
        [job.recipe.threat],
    )
    if name not in done.models:
        job.begin()
        result = plan.assess(model, test, threats, stage, strongest=strongest)
        if job.world.is_main:
            result.save_outcomes(job.folder.path, name)
        job.write("evaluation.json", done.with_model(name, result.summary()))
    plan.finish(stage, threats)


def certify(job: Job) -> None:
    """Certify every trained model on the test images; write certification.json and certificates.parquet.

    A model that has an operation without sound bounds is left out, by the record too: searches of what blocks are made
    of may find some.
    """
    check_outcomes(job.folder / "certificates.parquet")
    for name, model in load_models(job).items():
        if reason := refusal(model, job.data.test):
            job.say(f"certify: {name} is left out: {reason}")
            with job.progress.unit("certify"):
                leave_out(job.folder.path, name, reason, job.world)
        else:
            with job.progress.unit("certify", one_loop=True):
                _certify_one(job, name, model)
    check_proofs(job)


def check_proofs(job: Job) -> None:
    """Raise Contradiction if an image is certified, by the run or beside it, and an attack of the run broke it."""

    def compare() -> None:
        attacked = job.folder / "evaluation.parquet"
        for certified in [job.folder / "certificates.parquet", *job.folder.path.glob("certify-*/certificates.parquet")]:
            if found := compare_outcomes(attacked, certified).contradictions:
                more = f" (and {len(found) - 1} more such findings)" if len(found) > 1 else ""
                raise Contradiction(
                    f"{certified} contradicts {attacked.name}: {found[0].rstrip('.')}{more}; one of them is wrong, "
                    "which is a bug: please report it."
                )

    job.world.on_main(compare)


def certify_with(job: Job, plan: Plan) -> str:
    """Certify every model of a run, the ensembles too, by another plan than the recipe's, or its smoothed classifier.

    Returns:
        The folder in the run that has the results, named by the plan: the same plan goes on where it ended.
    """
    folder = f"certify-{config.digest(plan.fixed())}"
    for name, model in load_models_and_ensembles(job).items():
        _certify_one(job, name, model, plan, folder)
    check_proofs(job)
    return folder


def _certify_one(job: Job, name: str, model: nn.Module, plan: Plan | None = None, folder: str = ".") -> None:
    """Certify one model, or its smoothed classifier, and add it to certification.json, unless it is there."""
    plan = plan or job.recipe.certification
    stage = job.stage(f"certify-{name}" if folder == "." else f"{folder}-{name}")
    plan.keep(model, job.data.test, job.recipe.threat, Place(job.folder / folder, name, stage, job.begin))


def ensemble(job: Job) -> None:
    """Fit the ensemble's weights on validation bounds, then attack and certify it beside the uniform average."""
    models, plan = load_models(job), job.recipe.ensemble
    if len(models) == 1:
        job.say("ensemble: left out, as one network is no ensemble")
        return
    if refused := [name for name, model in models.items() if refusal(model, job.data.test)]:
        job.say(f"ensemble: left out, as its weights are of bounds, and {refused[0]} has none that are sound")
        return
    if not job.has("ensemble.json"):
        job.begin()
        threat, bound = job.recipe.ensemble_threat, plan.bound or job.recipe.certification.bound
        validation, started = job.data.validation[: plan.num_images], time.monotonic()
        with job.progress.unit("ensemble", one_loop=True):
            bounds = [
                _margins(job, bound, model, validation, threat)
                for model in job.progress.steps(list(models.values()), "ensemble: bounds on validation images")
            ]
        trained = trained_models(job)
        parameters, multiply_adds = [each.parameters for each in trained], [each.multiply_adds for each in trained]
        fitted = plan.rule.fit(bounds, threat, parameters=parameters, multiply_adds=multiply_adds)
        uniform = Uniform().fit(bounds, threat)
        if job.world.is_main:
            Ensemble(list(models.values()), fitted.weights, fitted.scales).save(job.folder / "ensemble")
        job.write(
            "ensemble.json",
            EnsembleRecord(
                name=name_of(plan.rule),
                members=tuple(models),
                weights=tuple(fitted.weights.tolist()),
                scales=tuple(fitted.scales.tolist()),
                epsilon=threat.epsilon,
                objective=fitted.objective,
                least_objective=fitted.lower,
                uniform=Weighting(weights=tuple(uniform.weights.tolist()), scales=tuple(uniform.scales.tolist())),
                uniform_objective=uniform.objective,
                best_single=best_single(job),
                num_validation=len(validation),
                seconds=time.monotonic() - started,
            ),
        )
    for name, joined in _ensembles(job, models).items():
        with job.progress.unit(_kind_of_attack(strongest=name == "ensemble"), len(models)):
            _attack_one(job, name, joined, strongest=name == "ensemble")
        with job.progress.unit("certify", len(models), one_loop=True):
            _certify_one(job, name, joined)
    check_proofs(job)


def _margins(job: Job, bound: Bound, model: nn.Module, images: ImageSet, threat: ThreatModel) -> LinearMargins:
    """Return a model's bounds on all images, which processes and workers share out."""
    world = job.world
    size = -(-len(images) // (world.size * world.workers))
    chunks = [images[start : start + size] for start in range(0, len(images), size)]

    def packed(chunk: ImageSet) -> Tensor:
        found = bound.margins(model, chunk.images, chunk.labels, threat)
        return found.packed().cpu()

    parts = world.gather_shards(world.each(packed, world.shard(chunks)), len(chunks))
    return LinearMargins.unpacked(torch.cat(parts), images.images)


def load_models_and_ensembles(job: Job) -> dict[str, nn.Module]:
    """Return the trained models and, where their weights are known, the ensembles, by name."""
    models = load_models(job)
    return {**models, **(_ensembles(job, models) if job.has("ensemble.json") else {})}


def _ensembles(job: Job, models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the uniform average and the fitted ensemble as models."""
    saved = job.read("ensemble.json", EnsembleRecord)
    return {
        name: Ensemble(list(models.values()), rule.weights, rule.scales).to(job.world.device).eval()
        for name, rule in (("uniform", saved.uniform), ("ensemble", saved))
    }


def record(job: Job) -> None:
    """Add every trained network of a cell space to the table beside the run folders; write record.json."""
    if job.has("record.json"):
        return
    if not isinstance(job.recipe.space, CellSpace):
        job.write("record.json", RecordedRows(table=None, rows=0))
        job.say(f"record: left out, as the table is of cells, which {job.recipe.space.name} does not have")
        return
    table = job.folder.path.resolve().parent / "table"
    rows = 0
    if job.world.is_main:
        found = local.rows_from_run(job.folder)
        local.append(table, found)
        rows = len(found)
    job.write("record.json", RecordedRows(table=str(table), rows=rows))
    job.say(f"recorded in the table {table}")


def report(job: Job) -> None:
    """Write report.html from the files in the run folder."""
    job.say("report")
    if job.world.is_main:
        write_report(job.folder)
    job.world.barrier()


def start(
    chosen: Recipe,
    root: Path,
    progress: Progress,
    arguments: list[str],
    fill: Callable[[RunFolder, Dataset], None] | None = None,
    *,
    path: Path | None = None,
) -> Job:
    """Make a new run folder for a recipe, on rank 0, and return the job.

    The data set is read first: a run that cannot start leaves no folder.

    Args:
        fill: writes what there is already, up to the training, which is then not rehearsed.
        path: the run folder; one of a new name in `root`, if not given.
    """
    if fill is None and chosen.derive.diversity and not chosen.search.needs_supernet:
        raise InputError(derivation.NO_WEIGHTS.format(chosen.derive.diversity))
    world = World.start(chosen.device, chosen.threads, chosen.workers, chosen.patience)
    world.check_same("configuration", chosen.to_dict())
    if (begun := world.on_main(lambda: _begun(chosen, root))) is not None:
        progress.say(f"torchrun has started this again: going on with {begun}")
        if chosen.threads is None and (threads := recorded(sessions_of(RunFolder.open(begun)))) is not None:
            torch.set_num_threads(threads)
        return _job(chosen, begun, world, progress)
    world.on_main(chosen.search.reach)
    data = load_data(chosen, world)
    tried = settle_threads(chosen, data, world)
    warnings = rehearse(chosen, data, world, trains=fill is None)
    for warning in warnings if world.is_main else ():
        progress.warn(warning)

    def make_folder() -> Path:
        with RunFolder.making(root, chosen.name, path) as folder:
            if fill is not None:
                fill(folder, data)
            write_json(folder / DATA, data.fingerprint())
            add_session(folder, world, arguments)
            folder.settle(chosen.to_dict(), "config.toml")
        return folder.path

    job = _job(chosen, world.on_main(make_folder), world, progress)
    if tried:
        job.say(tried)
    job.loaded, job.noted = data, True
    return job


def _begun(chosen: Recipe, root: Path) -> Path | None:
    """Return the run folder of a recipe that this launch by torchrun has begun before a restart; None if there is none.

    A restart has the command's words again, which would begin anew.
    """
    if not is_restarted():
        return None
    for place in sorted(root.glob("*/config.toml"), key=lambda each: each.stat().st_mtime, reverse=True):
        sessions = sessions_of(RunFolder.open(place.parent))
        if sessions and sessions[0].launch == launched() and config.read_toml(place) == chosen.to_dict():
            return place.parent
    return None


def resume(path: Path, overrides: list[str], progress: Progress) -> Job:
    """Return the job of an existing run folder.

    Raises:
        InputError: if it is none, or if `overrides` would change its configuration, naming the keys that differ.
    """
    folder = RunFolder.open(path)
    table = config.read_toml(folder / "config.toml")
    saved = recipe.from_table(table, str(folder / "config.toml"))
    folder.check_unchanged(saved.to_dict(), recipe.from_table(config.override(table, overrides), "").to_dict())
    threads = saved.threads or recorded(sessions_of(folder))
    return _job(saved, path, World.start(saved.device, threads, saved.workers, saved.patience), progress)


def _job(chosen: Recipe, path: Path, world: World, progress: Progress) -> Job:
    folder = RunFolder.open(path)
    world.on_main(folder.lock)
    if not world.is_main:
        progress = Progress(quiet=True)
    if chosen.device == "auto" and world.is_main:
        progress.say(f"device: {world.device}" + (f", {world.size} processes" if world.size > 1 else ""))
    # The same operations in the same order give the same bits; nondeterministic kernels would not.
    torch.use_deterministic_algorithms(world.device.type == "cpu")
    return Job(chosen, folder, world, progress)
