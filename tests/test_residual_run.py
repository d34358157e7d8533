"""A whole run in a space without a supernet, as a user starts it."""

import pytest

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.core.files import read_json
from robust_nas.recipes import for_space
from robust_nas.runtime.run_folder import RunFolder, unfinished_stages

SETTINGS = [
    "space.depths=[[1],[1,2]]",
    "space.widths=[[4],[4,8]]",
    "space.stems=[4]",
    "space.activations=['relu','silu']",
    "search.trials=3",
    "search.attack=fgsm",
    "search.num_images=16",
    "search.training.method=standard",
    "search.training.selection_attack=fgsm",
    "derive.count=2",
    "derive.pool=2",
]
BATCH, GROUP = ["space.norms=['batch']"], ["space.norms=['group']"]


def _run(command, out, *settings):
    given = ["search", "robust-resnet-small", "--data", "digits", "--threat", "linf:0.1", "--out", out]
    searched = command(*given, *SETTINGS, *settings)
    assert searched.returncode == 0, searched.stderr
    (folder,) = out.iterdir()
    resumed = command("run", "--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    return folder, resumed.stdout + resumed.stderr


@pytest.fixture(scope="module")
def run(command, tmp_path_factory, quickly):
    return _run(command, tmp_path_factory.mktemp("runs"), *GROUP, *quickly)


def test_the_best_of_the_trials_are_trained_and_reported_with_a_drawing_of_their_stages(run):
    folder, _ = run
    searched, models = read_json(folder / "search.json"), read_json(folder / "train.json")["models"]
    assert [model["architecture"] for model in models] == searched["measured"][:2]
    assert list(searched["decisions"])[:4] == ["depth 1", "depth 2", "width 1", "width 2"] and "edges" not in searched
    page = (folder / "report.html").read_text()
    assert (
        "Activation" in page
        and "2 stages: 1 block" in page
        and "Cell of" not in page
        and "in the order of what the search has measured" in page
    )
    loaded = rn.load_run(folder).models["model-0"]
    assert str(loaded.built_from.architecture) == models[0]["architecture"]


def test_networks_without_sound_bounds_are_left_out_of_certification_by_name(run):
    folder, said = run
    assert "certify: model-0 is left out: Bounds have no sound rule for" in said and "group_norm" in said
    assert "ensemble: left out, as its weights are of bounds" in said
    assert list(read_json(folder / "certification.json")["left_out"]) == ["model-0", "model-1"]
    assert unfinished_stages(folder) == []
    assert "Nothing was proved of model-1" in (folder / "report.html").read_text()


def test_what_is_certified_on_request_is_refused_by_name(run, command):
    asked = command("certify", run[0], "--method", "crown")
    assert asked.returncode == 2 and "no sound rule for" in asked.stderr and "Traceback" not in asked.stderr


def test_residual_networks_are_not_put_into_a_table_of_cells(run):
    assert "record: left out, as the table is of cells" in run[1]
    with pytest.raises(InputError, match="has trained 'depths="):
        rn.tables.rows_from_run(RunFolder.open(run[0]))


def test_networks_with_sound_bounds_are_certified_and_joined(command, tmp_path, quickly):
    folder, _ = _run(command, tmp_path, *BATCH, *quickly, "ensemble.num_images=8")
    assert set(read_json(folder / "certification.json")["models"]) == {"model-0", "model-1", "uniform", "ensemble"}
    assert unfinished_stages(folder) == []


def test_a_trial_has_a_tenth_of_the_recipe_s_epochs_and_all_else_of_its_training():
    chosen = for_space("robust-resnet-small", data="digits", threat="linf:0.1")
    own = chosen.train
    assert chosen.search.training.epochs == 1 and own.epochs == 16
    assert chosen.search.training.method == own.method and chosen.search.training.learning_rate == own.learning_rate
    longer = for_space("robust-resnet-small", ["train.epochs=50", "search.training.epochs=7"], data="digits")
    assert (longer.train.epochs, longer.search.training.epochs) == (50, 7)
    knots = for_space("robust-resnet-small", data="fast-imagenet")
    assert knots.search.training.knots[-1].epoch / knots.search.training.epochs == pytest.approx(
        knots.train.knots[-1].epoch / knots.train.epochs
    )


@pytest.mark.parametrize(
    "words",
    [
        ["search", "robust-resnet-small", "--data", "digits", "--relaxation", "gumbel"],
        ["search", "robust-resnet-small", "--data", "digits", "--progressive"],
        ["search", "robust-resnet-small", "--data", "digits", "search.name=random_sharing"],
        ["search", "robust-resnet-small", "--data", "digits", "search=sampled"],
        ["run", "digits", "space=robust-resnet-small"],
    ],
)
def test_searches_that_need_a_supernet_are_refused_before_there_is_a_folder(command, tmp_path, words):
    refused = command(*words, "--out", tmp_path / "runs")
    assert refused.returncode == 2 and not (tmp_path / "runs").exists()
    assert "has none: its architectures are lists of decisions" in refused.stderr and "'sampled'" in refused.stderr


def test_an_architecture_of_another_space_is_refused_before_there_is_a_folder(command, tmp_path):
    refused = command("run", "digits", "space=robust-resnet-small", "search=given", "--out", tmp_path / "runs")
    assert refused.returncode == 2 and not (tmp_path / "runs").exists()
    assert "is written depths=2-3-1" in refused.stderr and "but got '323133'" in refused.stderr


def test_the_python_calls_search_by_scores_and_train_what_is_given():
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    space = rn.spaces.load("robust-resnet-small", depths=((1,), (1,)), widths=((4,), (4, 8)), stems=(4,))
    with pytest.raises(InputError, match="'dirichlet' trains a supernet"):
        rn.search(space, data, threat)
    found = rn.search(
        space, data, threat, method="sampled", objectives=("score",), trials=3, sampler={"name": "random"}
    )
    assert len(found.record["measured"]) == 3
    text = "depths=1-1 widths=4-8 kernel=3 activation=silu norm=batch se=relu block=bottleneck stem=4"
    model = rn.train(text, data, threat, space=space, method="standard", epochs=1, batch_size=512)
    assert str(model.built_from.architecture) == text
    given = rn.search(space, data, threat, method="given", architecture=text)
    assert str(given.best) == text and given.log_probability(given.best) == 0


def test_a_trial_that_the_training_refuses_is_named():
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    space = rn.spaces.load("robust-resnet-small", depths=((1,), (1,)), widths=((4,), (4,)), norms=("instance",))
    with pytest.raises(InputError, match=r"The trial depths=1-1 .* cannot be trained .*: .*instance_norm"):
        rn.search(space, data, threat, method="sampled", training={"method": "ibp", "epochs": 1})


def test_an_architecture_is_explained_and_a_wrong_one_is_named(command):
    text = "depths=2-3-1 widths=16-32-64 kernel=3 activation=silu norm=batch se=none block=basic stem=16"
    assert "activation  silu" in command("info", text).stdout
    wrong = command("info", text.replace("silu", "sillu"))
    assert wrong.returncode == 2 and "but got 'sillu'" in wrong.stderr and "Traceback" not in wrong.stderr
