import dataclasses

import pytest

from robust_nas import derivation, samplers
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.errors import InputError
from robust_nas.models.complexity import count_parameters
from robust_nas.proxies.num_params import NumParams
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.nsga2 import NSGA2
from robust_nas.samplers.random import Random
from robust_nas.samplers.tpe import TPE
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.searches.sampled import TrialSearch
from robust_nas.threat import ThreatModel
from robust_nas.training import Training
from robust_nas.training.standard import Standard

THREAT = ThreatModel(epsilon=0.02)
SHARING = RandomSharing(epochs=1, batch_size=16, validation_attack=FGSM())


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


@pytest.mark.parametrize("sampler", [Evolution(population_size=4, sample_size=2), TPE(random_starts=3)])
def test_the_trials_are_what_the_sampler_asks_for_when_told_their_accuracies(space, data, sampler):
    search = TrialSearch(sampler=sampler, trials=7, sharing=SHARING, attack=FGSM())
    found = search.search(space, data, THREAT, _stage())
    values = {trial["architecture"]: trial["values"] for trial in found.record["trials"]}
    assert len(values) == 7
    from robust_nas.core.seeds import seed_at

    asked = samplers.queries(sampler, space, lambda a: values[str(a)], seed=seed_at(0))
    assert [str(architecture) for architecture, _ in (next(asked) for _ in range(7))] == list(values)
    assert found.best == space.parse(max(values, key=lambda text: values[text][0]))


@pytest.mark.parametrize("killed_after", [0, 1, 4])
def test_an_interrupted_search_resumes_to_the_same_trials(space, data, tmp_path, monkeypatch, killed_after):
    search = TrialSearch(sampler=Evolution(population_size=3, sample_size=2), trials=6, sharing=SHARING, attack=FGSM())
    whole = search.search(space, data, THREAT, _stage())
    save = Stage.save

    def killed(self, done, state):
        save(self, done, state)
        if ("trials" in state) == (killed_after > 0) and done >= killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert resumed.record["trials"] == whole.record["trials"]
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["stage"] == "search"]
    assert [row["architecture"] for row in rows] == [trial["architecture"] for trial in whole.record["trials"]]


def test_a_search_that_is_killed_in_the_supernets_training_goes_on_there(space, data, tmp_path, monkeypatch):
    sharing = dataclasses.replace(SHARING, epochs=3)
    search = TrialSearch(sampler=Random(), trials=1, sharing=sharing, attack=FGSM())
    whole = search.search(space, data, THREAT, _stage())
    save, saved = Stage.save, []

    def killed(self, done, state):
        save(self, done, state)
        if self.folder is not None:
            saved.append((self.name, done))
            if len(saved) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert saved == [("search-sharing", 1), ("search-sharing", 2), ("search-sharing", 3), ("search", 1)]
    assert resumed.record["trials"] == whole.record["trials"]


def test_what_the_sampler_cannot_do_is_said_before_a_supernet_is_trained(space, data, monkeypatch):
    monkeypatch.setattr(RandomSharing, "search", lambda *_: pytest.fail("trained"))
    search = TrialSearch(sampler=Evolution(), objectives=("robust", "parameters"), sharing=SHARING)
    with pytest.raises(InputError, match="objective"):
        search.search(space, data, THREAT, _stage())


def test_batches_are_those_of_the_trainings_that_there_are():
    assert TrialSearch(sharing=SHARING).batch_sizes == [16]
    assert TrialSearch(training=Training(batch_size=32)).batch_sizes == [32]
    assert TrialSearch(objectives=("score",)).batch_sizes == []


def test_several_objectives_go_to_the_sampler_and_the_first_one_ranks(space, data):
    search = TrialSearch(
        sampler=NSGA2(population_size=4),
        trials=6,
        objectives=("robust", "parameters"),
        sharing=SHARING,
        attack=FGSM(),
    )
    found = search.search(space, data, THREAT, _stage())
    for trial in found.record["trials"]:
        network = space.network(space.parse(trial["architecture"]), data)
        assert trial["values"][1] == -count_parameters(network)
    values = {trial["architecture"]: trial["values"][0] for trial in found.record["trials"]}
    ranked = [values[text] for text in found.record["measured"]]
    assert ranked == sorted(ranked, reverse=True)


def test_trials_can_be_trained_from_scratch_and_candidates_keep_their_order(space, data):
    training = Training(epochs=1, batch_size=16, method=Standard(), selection_attack=FGSM())
    search = TrialSearch(sampler=TPE(random_starts=2), trials=4, training=training, attack=FGSM(), num_images=16)
    found = search.search(space, data, THREAT, _stage())
    assert found.supernet is None
    plan = derivation.Derivation(count=1, pool=4)
    chosen = derivation.derive(found, space, data, THREAT, plan, Stage("derive", 0, World(), Progress(quiet=True)))
    connected = [text for text in found.record["measured"] if space.parse(text).is_connected]
    assert str(chosen[0].architecture) == connected[0]


def test_trials_by_a_score_train_nothing_and_find_the_best_scored(space, data):
    search = TrialSearch(sampler=Random(), trials=8, objectives=("score", "parameters"), proxy=NumParams())
    found = search.search(space, data, THREAT, _stage())
    assert found.supernet is None
    for trial in found.record["trials"]:
        cell = space.parse(trial["architecture"])
        count = count_parameters(space.network(cell, data))
        assert trial["values"] == [count if cell.is_connected else -1e30, -count]
    assert found.best == space.parse(max(found.record["trials"], key=lambda trial: trial["values"][0])["architecture"])


def test_wrong_settings_are_refused():
    for options, message in [
        ({"trials": 0}, r"search\.trials must be at least 1"),
        ({"objectives": ()}, "one or more different ones"),
        ({"objectives": ("robust", "robust")}, "one or more different ones"),
        ({"objectives": ("parameters",)}, "what is only cheap computes nothing"),
    ]:
        with pytest.raises(InputError, match=message):
            TrialSearch(**options)


def test_a_trial_whose_training_diverges_is_right_by_chance_and_the_search_goes_on(space, data):
    training = Training(method=Standard(), epochs=1, batch_size=16, learning_rate=1e30, selection_attack=FGSM())
    search = TrialSearch(sampler=Random(), trials=2, training=training, attack=FGSM(), objectives=("clean", "robust"))
    found = search.search(space, data, THREAT, _stage())
    connected = [t["values"] for t in found.record["trials"] if space.parse(t["architecture"]).is_connected]
    assert connected and connected == [[0.1, 0.0]] * len(connected)
