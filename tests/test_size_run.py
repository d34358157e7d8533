"""A run in the size space, as a user starts it."""

import robust_nas as rn
from robust_nas import searches
from robust_nas.core import config
from robust_nas.core.files import read_json
from robust_nas.runtime.run_folder import unfinished_stages

SETTINGS = [
    "space.channels=[2,3]",
    "search.trials=3",
    "search.objectives=['score','parameters']",
    "search.sampler=nsga2",
    "search.proxy=num_params",
    "derive.count=1",
    "derive.pool=2",
]


def test_a_search_by_a_score_and_costs_goes_through_to_the_report(command, tmp_path, quickly):
    searched = command("search", "nasbench201-size", "--data", "digits", "--out", tmp_path, *SETTINGS, *quickly)
    assert searched.returncode == 0, searched.stderr
    (folder,) = tmp_path.iterdir()
    assert command("run", "--resume", folder).returncode == 0
    record = read_json(folder / "search.json")
    (model,) = read_json(folder / "train.json")["models"]
    assert model["architecture"] == record["measured"][0] and len(model["architecture"].split(":")) == 5
    assert list(record["decisions"]) == [f"layer {number}" for number in range(1, 6)]
    assert unfinished_stages(folder) == [] and model["architecture"] in (folder / "report.html").read_text()
    scores, parameters = zip(*(trial["values"] for trial in record["trials"]), strict=True)
    assert scores == tuple(-value for value in parameters) and max(scores) == model["parameters"]
    assert str(rn.load_run(folder).models["model-0"].built_from.architecture) == model["architecture"]


def test_sizes_are_given_as_the_benchmark_writes_them(command):
    assert "layer 3  64 channels" in command("info", "8:16:64:48:32").stdout
    # TOML reads three sizes as a time of day.
    for architecture in ("8:16:64:48:32", "16:16:24"):
        override = config.override({"search": {}}, [f"search.architecture={architecture}"])
        chosen = config.build(searches.get("given"), override["search"], "search")
        assert chosen.architecture == architecture
