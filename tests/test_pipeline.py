"""The whole pipeline in real processes: run, killed and resumed, on two ranks, stage by stage."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import robust_nas as rn
from robust_nas import pipeline
from robust_nas.bounds.crown import CROWN
from robust_nas.core import seeds
from robust_nas.core.errors import InputError
from robust_nas.recipes import load as load_recipe
from robust_nas.recipes import rehearsal
from robust_nas.report._contents import Contents
from robust_nas.report.findings import check_consistency
from robust_nas.runtime.per_sample import read_outcomes
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder, unfinished_stages
from robust_nas.runtime.stages import read_metrics
from robust_nas.runtime.states import load_state

# A run of a few seconds that goes through every stage; the search space and the data are the real ones.
TINY = [
    "space.channels=2",
    "space.stages=1",
    "search.epochs=2",
    "search.batch_size=512",
    "derive.count=2",
    "derive.pool=3",
    "train.epochs=3",
    "train.batch_size=256",
    "train.method.attack.steps=2",
    "train.selection_attack.steps=2",
    "evaluation.attacks=['fgsm', {name='pgd', steps=3}]",
    "evaluation.strongest=[{name='square', queries=20}]",
    "evaluation.curve_epsilons=[0.05, 0.2]",
    "evaluation.num_images=200",
    "evaluation.batch_size=100",
    "evaluation.masking_images=8",
    "certification.epsilons=[0.00001, 0.01]",
]
COMMAND = [sys.executable, "-m", "robust_nas"]


def robust_nas(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done


Command = Callable[..., subprocess.CompletedProcess[str]]


def in_process(command: Command, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = command(*arguments)
    assert done.returncode == code, done.stderr
    return done


def only_run(root: Path) -> Path:
    (path,) = [child for child in root.iterdir() if (child / "config.toml").exists()]
    return path


def numbers(value: Any) -> Any:
    """The contents of a result, without durations."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key != "seconds"}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def results(run: Path) -> dict[str, Any]:
    files = ("search", "derive", "train", "evaluation", "certification", "ensemble")
    found = {name: numbers(json.loads((run / f"{name}.json").read_text())) for name in files}
    weights = {
        path.name: load_state(path)["weights"] for path in sorted((run / "checkpoints").glob("model-?.safetensors"))
    }
    found["weights"] = {name: {key: value.tolist() for key, value in state.items()} for name, state in weights.items()}
    found["outcomes"] = read_outcomes(run / "evaluation.parquet").to_pylist()
    found["metrics"] = numbers(read_metrics(run / "metrics.jsonl"))
    return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by the command line once for all processes of the suite, of which each has a copy."""
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    with (together / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (together / "run").exists():
            done = robust_nas("run", "digits", *TINY, "--out", together / "making")
            assert "report:" in done.stdout
            (together / "making").rename(together / "run")
    return only_run(shutil.copytree(together / "run", tmp_path_factory.mktemp("runs"), dirs_exist_ok=True))


def test_a_run_leaves_every_file_and_nothing_half_written(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "architecture.txt",
        "search.json",
        "derive.json",
        "train.json",
        "evaluation.json",
        "evaluation.parquet",
        "certification.json",
        "certificates.parquet",
        "ensemble.json",
        "record.json",
        "report.html",
        "checkpoints",
    } <= names
    assert not [path for path in finished.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert not list((finished / "checkpoints").glob("*.state.safetensors"))


def test_the_derived_architectures_are_functionally_different_and_the_first_is_the_argmax(finished: Path) -> None:
    chosen = [rn.Architecture.parse(line) for line in (finished / "architecture.txt").read_text().split()]
    assert len({architecture.canonical for architecture in chosen}) == len(chosen) == 2
    search = json.loads((finished / "search.json").read_text())
    argmax = tuple(search["operations"][row.index(max(row))] for row in search["probabilities"])
    first = rn.Architecture(argmax)
    assert chosen[0] == first or not first.is_connected


def test_every_image_is_certified_only_if_it_survives_every_attack_and_survives_only_if_it_is_clean(
    finished: Path,
) -> None:
    outcomes, certificates = (
        read_outcomes(finished / name).to_pandas() for name in ("evaluation.parquet", "certificates.parquet")
    )
    correct = outcomes.pivot_table(index=["model", "image"], columns="attack", values="correct", aggfunc="first")
    for attack in set(correct.columns) - {"clean"}:
        attacked = correct[correct[attack].notna()]
        assert not (attacked[attack].astype(bool) & ~attacked["clean"].astype(bool)).any()
    small = certificates[certificates.epsilon == 1e-5].set_index(["model", "image"])
    assert small.certified.any()
    assert not (small.certified & ~correct["clean"].reindex(small.index).astype(bool)).any()
    large = certificates[certificates.epsilon == 0.01].set_index(["model", "image"])
    assert not (large.certified & ~small.certified).any()


def test_the_summary_counts_the_per_image_outcomes(finished: Path) -> None:
    outcomes = read_outcomes(finished / "evaluation.parquet").to_pandas()
    for model, summary in json.loads((finished / "evaluation.json").read_text())["models"].items():
        rows = outcomes[outcomes.model == model]
        by_attack = rows.groupby("attack").correct.mean()
        assert summary["clean"]["accuracy"] == pytest.approx(by_attack["clean"])
        for attack in summary["attacks"]:
            assert attack["accuracy"] == pytest.approx(by_attack[attack["name"]])
        worst = rows.groupby("image").correct.all().mean()
        assert summary["worst_case"]["accuracy"] == pytest.approx(worst)


def test_a_finished_run_resumes_to_itself_and_computes_nothing_again(command: Command, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.json")}
    in_process(command, "run", "--resume", finished)
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.json")} == before


def test_trained_networks_are_in_the_table_beside_the_runs(command: Command, finished: Path) -> None:
    rows = rn.tables.read(finished.parent / "table", attack="pgd").to_pylist()
    evaluation = json.loads((finished / "evaluation.json").read_text())["models"]
    assert {row["model"] for row in rows} == {"model-0", "model-1"}
    for row in rows:
        (pgd,) = [attack for attack in evaluation[row["model"]]["attacks"] if attack["name"] == "pgd"]
        assert (row["accuracy"], row["num_images"], row["epsilon"]) == (pgd["accuracy"], 200, 0.2)
    code = rn.Architecture.parse(rows[0]["architecture"]).digits()
    assert code in in_process(command, "table", "top", finished.parent / "table", "attack=pgd").stdout
    assert "worst_case" in in_process(command, "table", "query", finished.parent / "table", code).stdout


def test_a_run_is_loaded_back_in_python(finished: Path) -> None:
    run = rn.load_run(finished)
    accuracy = rn.evaluate(run.models["model-0"], run.data.test[:200], run.threat, attacks=["fgsm"])
    recorded = run.read("evaluation.json")["models"]["model-0"]
    assert accuracy.clean_accuracy == recorded["clean"]["accuracy"]
    assert accuracy.robust_accuracy == recorded["attacks"][0]["accuracy"]
    ensemble = rn.build_ensemble(list(run.models.values()), run.data.validation, run.threat.with_epsilon(1e-5))
    assert ensemble(run.data.test.images[:3]).shape == (3, 10)


def _kill_when(process: subprocess.Popen[bytes], condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("stages", ["search, training and attack", pytest.param("all", marks=pytest.mark.slow)])
def test_a_run_killed_in_its_stages_ends_with_the_numbers_of_one_that_was_not(
    finished: Path, tmp_path: Path, stages: str
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "digits", *TINY, "--out", str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )

    def state(stage: str) -> Any:
        return lambda: list(tmp_path.glob(f"*/checkpoints/{stage}.state.safetensors"))

    def file(name: str) -> Any:
        return lambda: list(tmp_path.glob(f"*/{name}"))

    def evaluated(model: str) -> Any:
        return lambda: any(model in path.read_text() for path in tmp_path.glob("*/evaluation.json"))

    # Inside the search, between stages, inside the second training, between models under attack, inside the ensemble.
    moments = [state("search"), file("derive.json"), state("train-1"), evaluated("model-0"), file("ensemble.json")]
    for moment in moments if stages == "all" else [moments[0], moments[2], moments[3]]:
        _kill_when(process, moment)
        run = only_run(tmp_path)
        process = subprocess.Popen(
            [*COMMAND, "run", "--resume", str(run)], stderr=subprocess.PIPE, start_new_session=True
        )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    interrupted, whole = results(only_run(tmp_path)), results(finished)
    for name in whole:
        assert interrupted[name] == whole[name], name


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="the workers are found with pgrep, which is not here")
def test_a_run_whose_workers_outlive_it_can_be_resumed_at_once(tmp_path: Path) -> None:
    slow = ["workers=2", "threads=1", "evaluation.strongest=[{name='square', queries=100000}]"]
    process = subprocess.Popen(
        [*COMMAND, "run", "digits", *TINY, *slow, "--out", str(tmp_path)], stderr=subprocess.DEVNULL
    )

    def working() -> bool:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        return bool(list(tmp_path.glob("*/train.json"))) and len(children.stdout.split()) == 2

    deadline = time.monotonic() + 120
    while not working():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()  # the parent alone
    process.wait()
    held = RunFolder.open(only_run(tmp_path))
    held.lock()
    held.unlock()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "digits", *TINY, "search.epochs=50", "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what it runs in the background with interrupts ignored, and so would start this test's run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/checkpoints/search.state.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert f"robust-nas run --resume {only_run(tmp_path)}" in errors


def test_stages_run_one_by_one_give_the_numbers_of_the_whole(command: Command, finished: Path, tmp_path: Path) -> None:
    in_process(command, "search", "digits", *TINY, "--out", tmp_path)
    run = only_run(tmp_path)
    missing = in_process(command, "train", run, code=2)
    assert "no derive.json" in missing.stderr and "Traceback" not in missing.stderr
    for stage in ("derive", "train", "attack", "certify", "ensemble", "report"):
        in_process(command, stage, run)
    assert (run / "report.html").exists()
    one_by_one, whole = results(run), results(finished)
    for name in whole:
        assert one_by_one[name] == whole[name], name


def test_a_training_goes_on_from_given_weights_and_the_next_network_is_boosted(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    first = (finished / "architecture.txt").read_text().split()[0]
    quick = [setting for setting in TINY if not setting.startswith(("search.", "derive."))]
    given = [*quick, "search=given", f"search.architecture='{first}'", "derive.count=1", "derive.pool=1"]
    weights = finished / "checkpoints" / "model-0.safetensors"
    start = [f"train.start_from={weights}", "train.learning_rate=1e-9", "train.epochs=1", "train.keep=last"]
    in_process(command, "search", "digits", *given, *start, "--out", tmp_path / "more")
    run = only_run(tmp_path / "more")
    in_process(command, "derive", run)
    in_process(command, "train", run)
    before, after = (load_state(path)["weights"] for path in (weights, run / "checkpoints" / "model-0.safetensors"))
    for key in [key for key in before if "running" not in key and "num_batches" not in key]:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)

    missing = in_process(
        command, "run", "digits", *given, "train.start_from=no.safetensors", "--out", tmp_path / "no", code=2
    )
    assert "There are no weights no.safetensors" in missing.stderr and not (tmp_path / "no").exists()

    pairs = ["derive.count=2", "derive.pool=2", "derive.diversity=0.5"]
    diverse = in_process(command, "run", "digits", *given, *pairs, "--out", tmp_path / "no", code=2)
    assert "this search leaves no supernet" in diverse.stderr and not (tmp_path / "no").exists()

    boosted = tmp_path / "boosted"
    shutil.copytree(finished, boosted)
    for path in ("train.json", "checkpoints/model-1.safetensors"):
        (boosted / path).unlink()
    settings = boosted / "config.toml"
    settings.write_text(settings.read_text().replace("boosting = false", "boosting = true"))
    in_process(command, "train", boosted)
    records = json.loads((boosted / "train.json").read_text())["models"]
    assert "beside" not in records[0] and set(records[1]["beside"]) == {"clean", "robust"}
    kept, frozen = (load_state(at / "checkpoints" / "model-0.safetensors")["weights"] for at in (finished, boosted))
    assert all(torch.equal(kept[key], frozen[key]) for key in kept)


def test_smoothed_classifiers_are_certified_beside_the_run_and_compared_with_no_attack_on_the_networks(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    smoothing, before = "smoothing[sigma=0.25,num_samples=100]", Contents.read(RunFolder.open(run))
    done = in_process(command, "certify", run, "--method", smoothing, "--images", 6, "--epsilon", 0.1)
    assert "certified in l2" in done.stdout and "model-1, smoothed:" in done.stdout
    (folder,) = run.glob("certify-*")
    rows = read_outcomes(folder / "certificates.parquet").to_pandas()
    models = {"model-0", "model-1", "uniform", "ensemble"}
    assert len(rows) == 6 * 4 and set(rows.model) == models and set(rows.norm) == {"l2"}
    # An interrupted command, another radius: what is there is read, and what is missing computed to the same rows.
    kept = rows[rows.model != "uniform"]
    pq.write_table(pa.Table.from_pandas(kept, preserve_index=False), folder / "certificates.parquet")
    said = json.loads((folder / "certification.json").read_text())
    del said["models"]["uniform"]
    (folder / "certification.json").write_text(json.dumps(said))
    in_process(command, "certify", run, "--method", smoothing, "--images", 6, "--epsilon", 0.2, "--epsilon", 0.1)
    again = read_outcomes(folder / "certificates.parquet").to_pandas()
    order = ["model", "image"]
    columns = [column for column in rows.columns if column != "seconds"]
    assert again.sort_values(order)[columns].values.tolist() == rows.sort_values(order)[columns].values.tolist()
    assert again[again.model != "uniform"].seconds.tolist() == kept.seconds.tolist()
    said = json.loads((folder / "certification.json").read_text())
    assert (said["method"], said["norm"], said["sigma"], said["num_images"]) == ("smoothing", "l2", 0.25, 6)
    for model in models:
        radius = rows[(rows.model == model) & rows.correct].radius
        certified = {item["epsilon"]: item["certified"] for item in said["models"][model]}
        assert certified == {0.1: (radius > 0.1).sum() / 6, 0.2: (radius > 0.2).sum() / 6}
    # The report shows them apart; what it compares with attacks, and its certified accuracies, are the networks'.
    after = Contents.read(RunFolder.open(run))
    assert after.certified == before.certified and check_consistency(after) == check_consistency(before)
    in_process(command, "report", run)
    text = (run / "report.html").read_text()
    assert 'id="smoothed-classifiers"' in text and "100 samples of each of 6 test images" in text


def test_a_run_is_not_resumed_under_another_configuration(command: Command, finished: Path) -> None:
    done = in_process(command, "run", "--resume", finished, "train.epochs=7", code=2)
    assert "train.epochs (3 -> 7)" in done.stderr and "Traceback" not in done.stderr
    in_process(command, "run", "--resume", finished, "train.epochs=3")


def _class_folders(root: Path) -> None:
    """Write 2 classes of 20 images each, of one colour each."""
    for name, colour in {"black": 0, "white": 255}.items():
        (root / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), colour + (number if colour == 0 else -number)).save(root / name / f"{number}.png")


def _exchange(one: Path, other: Path) -> None:
    for path, name in ((one, "kept"), (other, one.name), (one.with_name("kept"), other.name)):
        path.rename(path.with_name(name))


def test_a_run_is_not_gone_on_with_on_other_images_labels_or_classes(command: Command, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "runs"
    _class_folders(images)
    sizes = ["space.channels=1", "space.stages=1", "data.size=8", "search={name='given', architecture='323133'}"]
    settings = [*sizes, "derive.count=1", "derive.pool=1", "train.batch_size=8", "derive.batch_size=8"]
    in_process(command, "search", images, *settings, "--out", out)
    run, black, white = only_run(out), images / "black", images / "white"
    in_process(command, "derive", run)

    def refused(*words: str | Path) -> str:
        done = in_process(command, *words, code=2)
        assert "Traceback" not in done.stderr and "has changed since the run began" in done.stderr
        return done.stderr

    _exchange(black, white)
    for words in (["run", "--resume", run], ["train", run]):
        assert "the train split has other images" in refused(*words)
    assert "the test split has other images" in refused("attack", run, "--images", "4")
    with pytest.raises(InputError, match="has changed since the run began"):
        rn.load_run(run)
    _exchange(black, white)
    black.rename(images / "dark")
    assert "the classes are dark, white instead of black, white" in refused("train", run)
    (images / "dark").rename(black)
    (black / "0.png").unlink()
    assert "images instead of" in refused("train", run)
    Image.new("L", (8, 8), 0).save(black / "0.png")
    (run / "derive.json").unlink()
    in_process(command, "derive", run)
    (run / "data.json").write_text("[]")
    assert "delete the file, and resume without this check" in in_process(command, "train", run, code=2).stderr
    # A run of an older version says nothing of its images.
    (run / "data.json").unlink()
    _exchange(black, white)
    (run / "derive.json").unlink()
    in_process(command, "derive", run)


def test_each_session_is_noted_and_another_number_of_processes_goes_on_only_where_it_changes_nothing(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["earlier"] == []
    begun = {**environment, "world_size": 2, "torch": "2.0.0", "started": "2026-01-01T00:00:00+00:00"}
    (run / "environment.json").write_text(json.dumps(begun))
    (run / "train.json").unlink()
    sentence = in_process(command, "train", run, code=2).stderr
    assert "begun by 2 processes, but would be gone on with by 1" in sentence
    assert f"torchrun --standalone --nproc-per-node=2 -m robust_nas run --resume {run}" in sentence
    shutil.copy(finished / "train.json", run)
    # Images are shared out, not numbers: the attacks' outcomes are those of any number of processes.
    for name in ("evaluation.json", "record.json"):
        (run / name).unlink()
    in_process(command, "attack", run)
    (session, now) = [
        *json.loads((run / "environment.json").read_text())["earlier"],
        json.loads((run / "environment.json").read_text()),
    ]
    assert session == begun and now["world_size"] == 1
    in_process(command, "record", run)
    (row, *_) = rn.tables.rows_from_run(RunFolder.open(run))
    assert ", 2 processes, torch 2.0.0; then " in row.hardware and row.hardware.endswith(f"torch {torch.__version__}")
    assert row.started is not None and row.started.year == 2026 and row.started.month == 1
    in_process(command, "report", run)
    assert "the sessions were on different machines or versions" in (run / "report.html").read_text()
    # A command that computes nothing is no session.
    assert len(json.loads((run / "environment.json").read_text())["earlier"]) == 1


@pytest.mark.parametrize("channels", ["[2, 1]", "[4, 2]"])
def test_a_progressive_search_is_derived_from_in_another_process(
    command: Command, tmp_path: Path, channels: str
) -> None:
    progressive = ["search.kept_operations=[5, 3]", f"search.partial_channels={channels}", "space.channels=4"]
    in_process(command, "search", "digits", *TINY, *progressive, "--out", tmp_path)
    run = only_run(tmp_path)
    in_process(command, "derive", run)
    assert len(json.loads((run / "derive.json").read_text())["chosen"]) == 2


def _torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "robust_nas"]
    return subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


def test_two_ranks_run_the_pipeline_and_rank_0_alone_writes(tmp_path: Path) -> None:
    done = _torchrun("run", "digits", *TINY, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)  # one folder, not one per rank
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert len(read_metrics(run / "metrics.jsonl")) == 2 + 2 * 3
    assert (run / "report.html").exists()
    # What two ranks measured is what one measures on the same weights: the images were shared out, not the numbers.
    # Every attack and bound is compared by the slow test below.
    loaded = rn.load_run(run)
    alone = rn.evaluate(loaded.models["model-0"], loaded.data.test[:200], loaded.threat, attacks=["fgsm"])
    recorded = loaded.read("evaluation.json")["models"]["model-0"]
    assert alone.clean_accuracy == recorded["clean"]["accuracy"]
    assert alone.robust_accuracy == recorded["attacks"][0]["accuracy"]
    assert recorded["clean"]["count"] == 200


def test_a_start_foretells_hours_of_bounds_and_does_not_take_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def each(_bound: Any, _model: Any, image: Any, _label: Any, threats: list[Any]) -> list[float]:
        assert len(image) == 1
        return [90.0 for _ in threats]

    monkeypatch.setattr(rehearsal, "foretold_seconds", each)
    monkeypatch.setattr(CROWN, "bound", lambda *_: pytest.fail("CROWN bounded an image before the search"))
    settings = ["workers=2", "certification.bound=crown", "certification.num_images=20", "ensemble.num_images=10"]
    chosen = load_recipe("digits", [*TINY, *settings, "ensemble.epsilon=0.01", "ensemble.bound=auto"])
    pipeline.start(chosen, tmp_path, Progress(), [])
    # 2 networks and 2 ensembles of both, on 20 images at 2 radii; 2 networks on 10 images; 2 workers: 260 x 90 s / 2.
    assert "about 3.2 hours" in capsys.readouterr().err
    monkeypatch.undo()
    pipeline.start(load_recipe("digits", TINY), tmp_path, Progress(), [])
    assert "hours" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_images_of_mixed_sizes_and_modes_in_three_classes_is_run_to_its_end(
    command: Command, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for place, name in enumerate(("red", "green", "blue")):
        (images / name).mkdir(parents=True)
        for number in range(30):
            noise = seeds.generator_at("cpu", number, name)
            pixels = torch.randint(0, 120, (20 + number, 60 - number, 3), generator=noise, dtype=torch.uint8)
            pixels[..., place] += 130
            mode = ("RGB", "CMYK", "RGBA", "P")[number % 4]
            suffix = "jpg" if mode in ("RGB", "CMYK") else "png"
            Image.fromarray(pixels.numpy()).convert(mode).save(images / name / f"{number}.{suffix}")
    quick = ["space.channels=2", "space.stages=1", "search.epochs=2", "train.epochs=6", "evaluation.num_images=8"]
    quick += ["evaluation.masking_images=4", "certification.num_images=8", "ensemble.num_images=8"]
    done = in_process(command, "run", images, *quick, "--out", tmp_path / "runs")
    assert "without apgd-t" in done.stderr and "hours" not in done.stderr
    run = only_run(tmp_path / "runs")
    assert unfinished_stages(run) == []
    evaluated = json.loads((run / "evaluation.json").read_text())["models"]
    certified = json.loads((run / "certification.json").read_text())["models"]
    assert set(certified) == {"model-0", "model-1", "uniform", "ensemble"}
    for name, radii in certified.items():
        shares = [radius["certified"] for radius in radii]
        assert evaluated[name]["clean"]["accuracy"] >= shares[0] >= shares[-1], name
    assert max(radii[0]["certified"] for radii in certified.values()) > 0
    assert "apgd-t" in (run / "report.html").read_text()


@pytest.mark.slow
def test_two_ranks_evaluate_a_run_to_the_same_outcomes_as_one(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for name in ("evaluation.json", "evaluation.parquet", "certification.json", "certificates.parquet"):
        (copy / name).unlink()
    for stage in ("attack", "certify"):
        done = _torchrun(stage, copy)
        assert done.returncode == 0, done.stderr
    before, after = (json.loads((run / "evaluation.json").read_text())["models"] for run in (finished, copy))
    assert numbers(after) == numbers({name: before[name] for name in after})
    rows = read_outcomes(finished / "evaluation.parquet").to_pylist()
    assert read_outcomes(copy / "evaluation.parquet").to_pylist() == [row for row in rows if row["model"] in after]


def test_one_given_architecture_is_trained_and_measured_and_makes_no_ensemble(tmp_path: Path) -> None:
    quick = [setting for setting in TINY if not setting.startswith(("search.", "derive."))]
    run = rn.run("digits", *quick, "search=given", "derive.count=1", "derive.pool=1", out=tmp_path)
    evaluation, trained = run.read("evaluation.json"), run.read("train.json")["models"]
    # All six edges of 323133 in the space's digits.
    assert [model["architecture"].count("nor_conv_3x3") for model in trained] == [4]
    assert set(evaluation["models"]) == {"model-0"}
    assert not (run.path / "ensemble.json").exists()
    assert unfinished_stages(run.path) == []
    best, last = trained[0]["best_epoch"], trained[0]["last_epoch"]
    assert set(evaluation["other_epochs"]) == (set() if best == last else {"model-0"})


def test_the_epoch_that_is_not_kept_is_attacked_too(tmp_path: Path) -> None:
    # At this learning rate the first epoch is the best.
    quick = [setting for setting in TINY if not setting.startswith(("search.", "derive."))]
    knots = "train.knots=[{epoch=0,learning_rate=0.3},{epoch=1,learning_rate=0.0},{epoch=3,learning_rate=20.0}]"
    common = [*quick, "search=given", "derive.count=1", "derive.pool=1", "train.schedule=linear", knots]
    for keep, other in (("best", "last"), ("last", "best")):
        run = rn.run("digits", *common, f"train.keep={keep}", out=tmp_path / keep)
        (trained,) = run.read("train.json")["models"]
        assert (trained["kept"], trained["best_epoch"] < trained["last_epoch"]) == (keep, True)
        evaluation = run.read("evaluation.json")
        kept, beside = evaluation["models"]["model-0"], evaluation["other_epochs"]["model-0"]
        assert beside["epoch"] == other
        saved = {path.stem for path in (run.path / "checkpoints").glob("model-*.safetensors")}
        assert saved == {"model-0", f"model-0-{other}"}
        assert {item["name"] for item in beside["attacks"]} <= {item["name"] for item in kept["attacks"]}
        assert f"the {other} epoch" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.norm=mixture", "clean_weight"),
        ("train.method={name='fast', start='n_fgsm'} threat.norm=l2", "is for linf"),
        ("train.method=cat threat.norm=l2", "CAT is for linf"),
        ("train.padding=8", "leaves nothing of images of 8"),
        ("search.partial_channels=[3]", "Partial channels of 1/3 must divide space.channels"),
        ("search.kept_operations=[4, 2]", "must begin with all 5 operations of nasbench201"),
        ("evaluation.strongest=[{name='szvr_g'}] threat.norm=l1", "but got an l1 threat model"),
        ("evaluation.strongest=[{name='transfer', surrogates=['gone']}]", "gone"),
        ("evaluation.distortion=pgd", "looks for no smallest change"),
        ("certification.bound={name='crown',dtype='float32'}", "needs bounds in float64"),
    ],
)
def test_what_cannot_work_is_refused_before_the_search(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rn.run("digits", *override.rsplit(" ", 1 if " threat" in override else 0), out=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_in_which_an_attack_breaks_what_is_certified_ends_in_an_error(
    command: Command, finished: Path, tmp_path: Path, beside: bool
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    certified = run / "certificates.parquet"
    rows = read_outcomes(certified).to_pylist()
    broken = {
        (row["model"], row["image"])
        for row in read_outcomes(run / "evaluation.parquet").to_pylist()
        if row["attack"] != "clean" and not row["correct"]
    }
    for row in rows:
        row["epsilon"], row["certified"] = 1.0, (row["model"], row["image"]) in broken
    assert any(row["certified"] for row in rows)
    if beside:
        certified = run / "certify-other" / "certificates.parquet"
        certified.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), certified)
    done = in_process(command, "run", "--resume", run, code=2)
    assert "contradicts evaluation.parquet" in done.stderr and "certified at 1 and" in done.stderr
