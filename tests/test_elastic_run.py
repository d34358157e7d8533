"""A run with an elastic supernet, as a user starts it."""

import pytest

import robust_nas as rn
from robust_nas.core.files import read_json
from robust_nas.recipes import for_space, load
from robust_nas.runtime.run_folder import unfinished_stages

SETTINGS = [
    "space.stage_depths=[[1,2],[1],[1]]",
    "space.stage_widths=[[0.25,0.5],[0.25],[0.25,0.5]]",
    "search.name=elastic",
    "search.epochs=1",
    "search.batch_size=512",
    "search.trials=3",
    "search.attack=fgsm",
    "search.num_images=16",
    "search.validation_attack=fgsm",
    "search.validation_images=16",
    "search.resource.quantity=multiply_adds",
    "search.resource.limit=100000",
    "derive.count=2",
    "derive.pool=3",
    "derive.num_images=16",
    "ensemble.num_images=8",
    "evaluation.masking_images=0",
]


def test_the_best_networks_within_the_limit_go_through_training_attacks_certificates_and_robboost(
    command, tmp_path, quickly
):
    searched = command("search", "elastic-resnet-small", "--data", "digits", "--out", tmp_path, *quickly, *SETTINGS)
    assert searched.returncode == 0, searched.stderr
    assert "largest network, cifar-resnet-10" in searched.stdout
    (folder,) = tmp_path.iterdir()
    assert command("run", "--resume", folder).returncode == 0
    record, models = read_json(folder / "search.json"), read_json(folder / "train.json")["models"]
    assert len(models) == 2 and {model["architecture"] for model in models} <= set(record["measured"])
    assert all(model["multiply_adds"] <= 100_000 for model in models)
    counted = {trial["architecture"]: trial["multiply_adds"] for trial in record["trials"]}
    assert all(counted[model["architecture"]] == model["multiply_adds"] for model in models)
    assert all(one["validation_robust"] is not None for one in read_json(folder / "derive.json")["candidates"])
    assert set(read_json(folder / "certification.json")["models"]) == {"model-0", "model-1", "uniform", "ensemble"}
    assert unfinished_stages(folder) == []
    page = (folder / "report.html").read_text()
    assert "Largest network" in page and "3 of them measured with these weights" in page
    assert str(rn.load_run(folder).models["model-0"].built_from.architecture) == models[0]["architecture"]


@pytest.mark.parametrize("word", ["search=elastic", "search.name=elastic"])
def test_an_elastic_search_of_a_space_has_the_objective_and_the_length_of_the_recipe_s_search(word):
    chosen, own = for_space("elastic-resnet-small", [word, "search.trials=7"], data="digits"), load("digits")
    assert chosen.search.objective == own.search.objective and chosen.search.epsilon_ramp == own.search.epsilon_ramp
    assert (chosen.search.epochs, chosen.search.trials) == (own.search.epochs, 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "resnet-depth-small", "--data", "digits", "search=elastic"], 'space.norms=["batch"]'),
        (["search", "nasbench201", "--data", "digits", "search=elastic"], "decides neither"),
        (["run", "digits", "search=elastic"], "decides neither"),
        (
            ["search", "elastic-resnet-small", "--data", "digits", "search=elastic", "derive.method=samples"],
            "derive.method 'samples' is for mixtures",
        ),
        (
            ["search", "elastic-resnet-small", "--data", "digits", "search=elastic", "search.resource.limit=100"],
            "the smallest network of elastic-resnet-small, 'cifar-resnet-8 width=0.25', has",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_there_is_a_folder(command, tmp_path, words, said):
    refused = command(*words, "--out", tmp_path / "runs")
    assert refused.returncode == 2 and not (tmp_path / "runs").exists()
    assert said in refused.stderr and "Traceback" not in refused.stderr
