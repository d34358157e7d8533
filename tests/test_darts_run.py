"""A whole run in the DARTS space, as a user starts it."""

import pytest
import torch

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.core.files import read_json
from robust_nas.recipes import for_space
from robust_nas.runtime.run_folder import RunFolder

SETTINGS = [
    "space.channels=2",
    "space.num_cells=3",
    "space.num_nodes=2",
    "space.final_channels=4",
    "search.epochs=1",
    "search.batch_size=256",
    "search.validation_images=16",
    "search.objective=standard",
    "derive.count=1",
    "derive.pool=2",
    "derive.num_images=16",
    "derive.calibration_batches=1",
    "train.drop_path=0.2",
    "train.auxiliary=0.4",
]


@pytest.fixture(scope="module")
def run(command, tmp_path_factory, quickly):
    out = tmp_path_factory.mktemp("runs")
    searched = command("search", "darts", "--data", "digits", "--threat", "linf:0.1", "--out", out, *SETTINGS, *quickly)
    assert searched.returncode == 0, searched.stderr
    (folder,) = out.iterdir()
    found = command("info", folder)
    assert "most probable: Genotype(normal=[" in found.stdout and "not done yet: derive" in found.stdout
    resumed = command("run", "--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    return folder, resumed


def test_a_search_of_the_space_goes_through_to_the_report(run):
    folder, resumed = run
    (model,) = read_json(folder / "train.json")["models"]
    space = rn.spaces.load("darts", num_nodes=2)
    genotype = space.parse(model["architecture"])
    assert (folder / "architecture.txt").read_text() == f"{genotype}\n"
    assert read_json(folder / "search.json")["edge_names"][:2] == ["normal 0-2", "normal 1-2"]
    assert read_json(folder / "record.json") == {"table": None, "rows": 0}
    assert "record: left out, as the table is of cells" in resumed.stdout + resumed.stderr
    page = (folder / "report.html").read_text()
    assert "Normal cell" in page and "Reduction cell" in page and "The derived cell over time" in page
    assert page.count("Edge normal ") == page.count("Edge reduce ") == 5
    for place, (name, source) in enumerate(genotype.reduce):
        assert f'id="cell-model-0-reduce-edge-{source}-{2 + place // 2}"' in page
        assert f"{name} from node {source} to node {2 + place // 2}" in page


def test_the_trained_network_is_read_back_with_its_final_width_and_no_head(run):
    folder, _ = run
    (model,) = read_json(folder / "train.json")["models"]
    network = rn.load_run(folder).models["model-0"]
    assert network.stem[0].out_channels == 3 * 4
    assert sum(parameter.numel() for parameter in network.parameters()) == model["parameters"]
    assert not any("head" in name for name, _ in network.named_modules())


def test_the_trained_network_is_exported_as_python_with_its_accuracies(run, command, tmp_path):
    folder, _ = run
    done = command("export", folder, "--python", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_0.pt", "model_0.py"]
    text, network = (tmp_path / "model_0.py").read_text(), rn.load_run(folder).models["model-0"]
    clean = read_json(folder / "evaluation.json")["models"]["model-0"]["clean"]
    assert f"{100 * clean['accuracy']:.1f} % of 16 test images" in text and f"{folder.name}, model-0, seed 0" in text
    (loaded,) = rn.load_models(f"{tmp_path}/model_0.py:Network@{tmp_path}/model_0.pt", device="cpu").values()
    images = rn.datasets.load("digits").test[:8].images
    torch.testing.assert_close(loaded.eval()(images), network.eval()(images), atol=1e-5, rtol=1e-5)
    assert f"robust-nas export runs/{folder.name} --python" in (folder / "report.html").read_text()
    refused = command("export", folder, "--python", "--epsilon", "0.1")
    assert refused.returncode == 2 and "--epsilon is for verifiers" in refused.stderr


def test_genotypes_are_not_put_into_a_table_of_cells(run):
    with pytest.raises(InputError, match=r"The table is of cells.* has trained 'Genotype\(normal="):
        rn.tables.rows_from_run(RunFolder.open(run[0]))


def test_a_recipe_of_another_kind_of_space_gives_no_sizes_to_it():
    chosen = for_space("darts-7", data="digits", progressive=True, threat="linf:0.1")
    assert chosen.space == rn.spaces.load("darts-7")
    assert chosen.search.kept_operations == (7, 4) and chosen.search.partial_channels == (4, 2)
    cells = for_space("nasbench201", data="digits", progressive=True)
    assert cells.space.channels == 8 and cells.search.partial_channels == (4, 2)


def test_a_genotype_is_explained_and_a_wrong_one_is_named(command):
    text = "Genotype(normal=[('skip_connect', 0), ('max_pool_3x3', 1)], normal_concat=[2], "
    text += "reduce=[('sep_conv_3x3', 0), ('skip_connect', 1)], reduce_concat=range(2, 3))"
    explained = command("info", text)
    assert "normal node 2: skip_connect of 0 + max_pool_3x3 of 1" in explained.stdout
    wrong = command("info", text.replace("max_pool", "median_pool"))
    assert wrong.returncode == 2 and "unknown operation 'median_pool_3x3'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_python_calls_take_genotypes():
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    space = rn.spaces.load("darts", channels=2, num_cells=3, num_nodes=1)
    text = "Genotype(normal=[('skip_connect', 0), ('max_pool_3x3', 1)], normal_concat=range(2, 3), "
    text += "reduce=[('sep_conv_3x3', 0), ('skip_connect', 1)], reduce_concat=range(2, 3))"
    assert rn.Genotype.parse(text) == space.parse(text)
    with pytest.raises(InputError, match="train takes an architecture, its string, or a module"):
        rn.train(3, data, threat, space=space, method="standard", epochs=1)
    with pytest.raises(InputError, match="is malformed at"):  # of the default space, nasbench201
        rn.train(space.parse(text), data, threat, method="standard", epochs=1)
    model = rn.train(space.parse(text), data, threat, space=space, method="standard", epochs=1, batch_size=512)
    assert model.built_from.architecture == space.parse(text)
