"""The words that users type, and the answer to mistakes: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from robust_nas import __version__, attacks, cli
from robust_nas import recipes as recipe
from robust_nas.cli import answer, ending, listing
from robust_nas.core import commands
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.states import save_state

Command = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refusal."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("robust-nas: ")]
    return sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digist"], "There is no recipe 'digist'. Did you mean 'digits'?"),
        (["run", "../imgs"], "There is no data set or folder '../imgs'"),
        (["search", "nasbench201", "--data", "./imgs"], "There is no data set or folder './imgs'"),
        (["run"], "takes a recipe, such as digits"),
        (["run", "digits", "threat.epsilon=8"], "did you mean 8/255?"),
        (["run", "digits", "threat.epsilon=51"], "did you mean 51/255?"),
        (["run", "digits", "train.epoch=3"], "no key 'epoch'. Did you mean 'epochs'?"),
        (["run", "digits", "search.objective.attack=pdg"], "has no 'pdg'. Did you mean 'pgd'?"),
        (["run", "digits", "data=digitz"], "has no 'digitz'. Did you mean 'digits'?"),
        (
            ["run", "digits", "space.name=nasbench202"],
            "There is no search space 'nasbench202'. Did you mean 'nasbench201'?",
        ),
        (["run", "digits", "train.method=pgd-at"], "has no 'pgd-at'. Did you mean 'pgd_at'?"),
        (["run", "digits", "search=dirichlett"], "has no 'dirichlett'. Did you mean 'dirichlet'?"),
        (["run", "digits", "train.epochs"], "key=value"),
        (["run", "digits", "train.batch_size=5000"], "train.batch_size of 5000 is larger than the 1077 images"),
        (["run", "digits", "device=cuda"], "device=cpu"),
        (["run", "digits", "device=tpu"], "device must be"),
        (["run", "digits", "version=0"], "version 0, but this robust-nas reads version 2"),
        (["run", "mnist", "data.download=false", "--data-root", "/nonexistent"], "--data-root"),
        (["run", "--resume", "nowhere"], "not a run folder"),
        (["derive", "nowhere"], "not a run folder"),
        (["work", "nowhere"], "not a run folder"),
        (["info", "|nor_conv_3x3~0|+|none~0|"], "must have edge 1-2"),
        (["info", "|nor_conv_9x9~0|+|none~0|none~1|+|none~0|none~1|none~2|"], "unknown operation 'nor_conv_9x9'"),
        (["info", "pdg"], "Did you mean 'pgd'?"),
        (["list", "attack"], "Did you mean 'attacks'?"),
        (["table", "top", "nowhere"], "There is no table 'nowhere'"),
        (["table", "top", "runs", "-n", "0"], "--count must be at least 1"),
        (["search", "digits", "--budget", "3"], "--budget belongs to the search of a table"),
        (["search"], "takes a recipe, such as digits, or --on table:NAME"),
        (["search", "--on", "nas-robbench-201", "--objective", "clean"], "--on table:NAME --objective LABEL"),
        (["search", "--on", "table:x"], "and 0 objectives"),
        (["search", "--on", "table:nas-robench-201", "--objective", "clean"], "Did you mean 'nas-robbench-201'"),
        (["search", "digits", "--on", "table:x"], "takes no recipe or data, but got 'digits'"),
        (["table", "tpo"], "has no command 'tpo'. Did you mean 'top'?"),
        (["rnu"], "has no command 'rnu'. Did you mean 'run'?"),
        (["--resume"], "has no option '--resume'"),
        (
            ["run", "digits", "--epochs", "3"],
            "arguments: --epochs 3; settings are written KEY=VALUE, such as",
        ),
        (["derive"], "arguments are required: RUN; 'robust-nas derive --help'"),
        (["train"], "arguments are required: MODEL; 'robust-nas train --help'"),
        (["info", "x" * 300 + "~0|"], "malformed"),
        (["run", "digits", "search.weight_decay=-1"], "search.weight_decay must not be negative"),
        (["run", "digits", "derive.batch_size=0"], "derive.batch_size must be at least 1"),
        (["run", "digits", "derive.batch_size=5000"], "derive.batch_size of 5000 is larger"),
        (["run", "digits", "evaluation.num_images=-5"], "evaluation.num_images must be a whole number of at least 1"),
        (["run", "digits", "evaluation.curve_epsilons=[8]"], "evaluation.curve_epsilons: "),
        (["run", "digits", "ensemble.epsilon=0"], "ensemble.epsilon: "),
        (["run", "digits", "evaluation.strongest=['fgsm']"], "listed twice"),
        (["run", "digits", "name=../x"], "part of a folder's name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_sentence_and_leaves_nothing(
    command: Command, arguments: list[str], message: str, tmp_path: Path
) -> None:
    sentence = refused(command(*arguments, cwd=tmp_path))
    assert message in sentence
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".json", ".parquet", ".html", ".safetensors")]
    assert left == []


def test_a_folder_with_one_class_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "images" / "cats" / "1.png").write_bytes(b"")
    assert "two or more class folders" in refused(command("run", "images", cwd=tmp_path))


def started_run(command: Command, root: Path) -> Path:
    """A run folder whose search is done and whose weights can be damaged."""
    done = command(
        "search",
        "digits",
        "search.epochs=1",
        "search.batch_size=1024",
        "space.channels=1",
        "space.stages=1",
        "--out",
        root,
    )
    assert done.returncode == 0, done.stderr
    (path,) = root.iterdir()
    return path


@pytest.fixture(scope="module")
def run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started_run(command, tmp_path_factory.mktemp("runs"))


def test_who_would_measure_trials_hears_that_there_are_none_or_that_the_search_is_over(
    command: Command, run: Path, tmp_path: Path
) -> None:
    assert "needs search=sampled" in refused(command("work", run))
    trials = "search={name='sampled', objectives=['score'], proxy='num_params', trials=2}"
    small = ["space.channels=1", "space.stages=1", "threads=1", trials]
    assert command("search", "digits", *small, "--out", tmp_path).returncode == 0
    (sampled,) = tmp_path.iterdir()
    done = command("work", sampled)
    assert done.returncode == 0
    assert "is over: there is nothing to measure" in done.stderr
    (sampled / "search.json").unlink()
    assert "is 1: the sampler waits for each trial" in refused(command("work", sampled))


def test_a_corrupt_checkpoint_is_named(command: Command, run: Path) -> None:
    weights = run / "checkpoints" / "supernet.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x00" * 64):
        weights.write_bytes(damaged)
        sentence = refused(command("derive", run))
        assert "supernet.safetensors" in sentence and "damaged" in sentence
    weights.write_bytes(whole)


def test_a_half_written_result_is_named(command: Command, run: Path) -> None:
    result = run / "search.json"
    whole = result.read_text()
    result.write_text(whole[:100])
    assert "search.json is damaged" in refused(command("derive", run))
    result.write_text(whole)


def test_a_configuration_of_an_older_version_is_refused(command: Command, run: Path) -> None:
    config = run / "config.toml"
    whole = config.read_text()
    config.write_text(whole.replace("version = 2", "version = 0", 1))
    assert "version 0" in refused(command("derive", run))
    config.write_text(whole.replace("[train]", "[train", 1))
    assert "not valid TOML" in refused(command("derive", run))
    config.write_text(whole)


def test_a_state_of_another_network_is_refused(command: Command, run: Path) -> None:
    weights = run / "checkpoints" / "supernet.safetensors"
    whole = weights.read_bytes()
    save_state(weights, {"weights": {"x": torch.ones(1)}})
    assert "supernet.safetensors do not fit" in refused(command("derive", run))
    weights.write_bytes(whole)


def test_a_space_is_searched_on_a_data_set_with_the_settings_of_its_recipe() -> None:
    chosen = recipe.for_space(
        "nasbench201",
        ["search.epochs=6"],
        data="digits",
        threat="l2:0.5",
        relaxation="softmax",
        progressive=True,
    )
    own = recipe.load("digits")
    assert (chosen.space.name, chosen.threat.norm, chosen.threat.epsilon) == ("nasbench201", "l2", 0.5)
    assert (chosen.search.kept_operations, chosen.search.partial_channels) == ((5, 3), (4, 2))
    assert name_of(chosen.search) == "darts" and chosen.search.epochs == 6
    assert (chosen.train, chosen.evaluation, chosen.data) == (own.train, own.evaluation, own.data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nasbench201", "--data", "cifar"], "no recipe for the data set 'cifar'"),
        (["nasbench200", "--data", "digits"], "no search space 'nasbench200'"),
        (["nasbench201", "--data", "digits", "--relaxation", "dirichelt"], "no relaxation 'dirichelt'"),
        (["nasbench201", "--data", "digits", "--threat", "8/255"], "written as norm:epsilon"),
        (["digits", "--progressive"], "--progressive belongs to the search of a space"),
        (["--data", "digits"], "--data goes with a search space"),
    ],
)
def test_a_search_of_a_space_that_cannot_be_is_said_in_a_sentence(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        cli.app.run(["search", *words, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_in_one_sentence_and_half_writes_nothing(tmp_path: Path) -> None:
    """A file-size limit of a few blocks stands in for a full disk: writes fail in the middle."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "from robust_nas.cli import main; sys.argv[1:] = sys.argv[1:]; main()"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            script,
            "search",
            "digits",
            "search.epochs=1",
            "search.batch_size=1024",
            "--out",
            "runs",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert "File too large; free some space and resume the run" in refused(done)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("search.json"))


def test_a_read_only_run_folder_is_named_and_left_as_it_was(command: Command, run: Path) -> None:
    # Permissions do not stop root, so the operating system's answer is put in its place.
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path.parent))

    before = sorted(run.rglob("*"))
    with mock.patch("robust_nas.core.writing._temporary", refuse):
        sentence = refused(command("derive", run))
    assert "Read-only file system" in sentence and str(run) in sentence
    assert sorted(run.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_refused_before_any_work(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(command("run", "digits", "--out", tmp_path / "file"))
    assert "--out" in sentence


@pytest.mark.parametrize(("program", "part"), list(cli.app), ids=lambda value: value if isinstance(value, str) else "")
def test_every_help_ends_with_examples_that_its_command_takes(
    program: str, part: commands.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part.examples
    for example in part.examples:
        words = shlex.split(example.removeprefix(f"{program} "))
        assert example != " ".join(words) and part.parsed(program, words)
    with pytest.raises(commands.End):
        part.run(program, ["--help"])
    shown = capsys.readouterr().out.rstrip().splitlines()
    assert [line.strip() for line in shown[-len(part.examples) :]] == list(part.examples)


def test_help_and_lists_import_nothing_slow() -> None:
    for arguments in (["--help"], ["list", "attacks"], ["list", "recipes"], ["info", "323133"], ["--version"]):
        code = (
            f"import sys; sys.argv = ['robust-nas', *{arguments!r}]\n"
            "from robust_nas.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            "slow = {'torch', 'torchvision', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
            "assert not slow, slow\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_lists_name_what_there_is(command: Command) -> None:
    assert command("list", "attacks").stdout.split() == attacks.names()
    assert "nasbench201" in command("list", "spaces").stdout.split()
    assert {"digits", "mnist", "cifar10"} <= set(command("list", "recipes").stdout.split())


def test_info_describes_an_architecture_a_component_and_a_run(command: Command, run: Path) -> None:
    assert "digits     323133" in command("info", "323133").stdout
    assert "Projected gradient ascent" in command("info", "pgd").stdout
    assert "not done yet: derive, train" in command("info", run).stdout


def test_two_processes_on_one_run_folder_are_refused(run: Path) -> None:
    held = RunFolder(run)
    held.lock()
    done = subprocess.run(
        [sys.executable, "-m", "robust_nas", "derive", str(run)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Another process is working on" in refused(done)
    held.unlock()


def test_a_damaged_parquet_is_named(command: Command, tmp_path: Path) -> None:
    from robust_nas.runtime.per_sample import add_outcomes, read_outcomes

    path = tmp_path / "evaluation.parquet"
    add_outcomes(path, "model-0", [{"image": number, "correct": True} for number in range(1000)])
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:20] + b"\xff" * 40 + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            read_outcomes(path)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("train", ["section of a recipe", "awp", "milestones"]),
        ("derive", ["section of a recipe", "diversity", "pool"]),
        ("evaluation", ["section of a recipe", "masking_images"]),
        ("smoothing", ["method of certify", "sigma", "num_samples"]),
        ("fast", ["fast (trainings)", "n_fgsm"]),
        # A table and a recipe of one name: both.
        ("nas-robbench-201", ["arXiv:2403.13134", "search.architecture=323133"]),
    ],
)
def test_info_shows_everything_of_a_name(thing: str, expected: list[str]) -> None:
    text = listing.describe(thing)
    assert all(part in text for part in expected)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_written_with_escapes(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robust_nas", "info", b"a\xff\x1b[31m\xe7\x8b\x97"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        check=False,
    )
    shown = "\u72d7".encode() if encoding == "utf-8" else b"\\u72d7"
    assert done.returncode == 2 and b"'a\\xff\\x1b[31m" + shown + b"' is neither" in done.stderr, done.stderr


def test_settings_are_text(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "images\udcff"
    sentence = refused(command("run", "folder", f"data.root={folder}"))
    assert "data.root must be UTF-8 text" in sentence and r"images\xff" in sentence


def test_a_warning_is_a_line_without_a_place_in_our_code(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning
        with ending.warnings_said():
            warnings.warn("the images are dark", stacklevel=1)
        assert warnings.showwarning is show
    assert capsys.readouterr().err == "beware: the images are dark\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list"], lambda found: "pgd" in found["attacks"]),
        (["list", "attacks"], lambda found: "autoattack" in found),
        (["list", "runs", "--out", "."], lambda found: found == []),
        (["info", "pgd"], lambda found: found["kinds"] == ["attacks"] and "Madry" in found["text"]),
        (["info", "333333"], lambda found: found["architecture"].count("nor_conv_3x3") == 6),
        (["info", "digits"], lambda found: found["recipe"]["threat"] == {"norm": "linf", "epsilon": 0.2}),
        (["table", "info", "nas-robbench-201"], lambda found: "2403.13134" in str(found)),
    ],
)
def test_an_answer_as_json_is_one_value_on_standard_output(
    command: Command, tmp_path: Path, words: list[str], expected: Callable[..., bool]
) -> None:
    done = command(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0 and expected(json.loads(done.stdout)), done


def test_what_is_no_number_is_null_in_json_and_paths_are_text() -> None:
    found = {"a": [math.nan, 0.5, Path("x")], 1: (math.inf, None)}
    assert answer.strict(found) == {"a": [None, 0.5, "x"], "1": [None, None]}


def test_a_long_command_says_what_it_does_before_torch_is_imported() -> None:
    # Where torch cannot be imported, the first line is all that there is to see.
    program = """
import sys

class NoTorch:
    def find_spec(name, *_):
        if name == "torch":
            raise ImportError("there is no torch")

sys.meta_path.insert(0, NoTorch)
sys.argv[1:] = ["run", "digits"]
from robust_nas.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[0] == f"robust-nas {__version__}: loading torch and the data"
    assert done.returncode != 0 and "torch" in done.stderr.splitlines()[-1]
