"""Whose code runs: what the user names, and not what a stranger's files name."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas import attacks, spaces
from robust_nas.attacks.transfer import Transfer
from robust_nas.core import config, registry
from robust_nas.core.errors import InputError
from robust_nas.core.registry import allowing_code
from robust_nas.datasets._files import read_image
from robust_nas.recipes import from_table, load
from robust_nas.report import plots
from robust_nas.runtime.distributed import World
from robust_nas.tables import transfer

Command = Callable[..., subprocess.CompletedProcess[str]]

EVIL = """
import pathlib
from dataclasses import dataclass
from torch import nn
from robust_nas.attacks import Attack
from robust_nas.searches import Search
from robust_nas.training import TrainingMethod
pathlib.Path({marker!r}).write_text("run")

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

@dataclass(frozen=True, kw_only=True)
class Anything(Attack, Search, TrainingMethod):
    def perturb(self, model, images, labels, threat, *, seed=0):
        return images
    def margins(self, *_): ...
    def search(self, *_): ...
    def fit(self, *_): ...
    def craft(self, *_): ...
    def loss(self, *_): ...
    def score(self, *_): ...
    def start(self, *_): ...
    def load_splits(self): ...
    def decided(self, *_): ...
    def read(self, *_): ...
"""

SURROGATES = '[[evaluation.attacks]]\nname = "transfer"\nsurrogates = ["{folder}/evil.py:Net"]\n'

# What a recipe or the config.toml of a run can say, each in place of the whole section; and the key that names code.
SAYS = {
    "data": '[data]\nname = "gift.evil"\n',
    "space.kind": '[space]\nname = "gift"\nkind = "gift.evil"\n',
    "search": '[search]\nname = "gift.evil"\n',
    "search.sampler": '[search]\nname = "sampled"\nsampler = "gift.evil"\n',
    "search.proxy": '[search]\nname = "sampled"\nproxy = "gift.evil"\n',
    "train.method": '[train]\nmethod = "gift.evil"\n',
    "train.selection_attack": '[train]\nselection_attack = "gift.evil"\n',
    "evaluation.attacks": '[evaluation]\nattacks = ["gift.evil"]\n',
    "evaluation.attacks[0].surrogates": SURROGATES,
    "evaluation.attacks[0].surrogates, of a module": SURROGATES.replace("{folder}/evil.py", "gift.evil"),
    "certification.bound": '[certification]\nbound = "gift.evil"\n',
    "ensemble.rule": '[ensemble]\nrule = "gift.evil"\n',
}

SECTIONS = {
    "data": '[data]\nname = "digits"\n',
    "threat": '[threat]\nnorm = "linf"\nepsilon = 0.1\n',
    "space": '[space]\nname = "nasbench201"\nchannels = 4\ncells_per_stage = 1\n',
    "search": '[search]\nname = "given"\narchitecture = "323133"\n',
}


def settings(says: str) -> str:
    """Return the text of a recipe with one section that says something else."""
    section = says.strip("[").partition("]")[0].partition(".")[0]
    return 'name = "gift"\n' + "".join(text for name, text in SECTIONS.items() if name != section) + says


def of_a_run(says: str = "") -> str:
    """Return the text of a run's config.toml, which has every setting, with a section that says something else."""
    table = from_table(tomllib.loads(settings("")), "the recipe").to_dict()
    return config.to_toml({**table, **tomllib.loads(says)})


@pytest.fixture
def gift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a stranger's folder, in which the user is, and where modules are looked for."""
    folder = tmp_path / "gift"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def ran(gift: Path) -> bool:
    """Whether the stranger's code has run since this was last asked."""
    marker = gift.parent / "marker"
    found = marker.exists()
    marker.unlink(missing_ok=True)
    for name in [name for name in sys.modules if name.startswith("gift")]:
        del sys.modules[name]
    return found


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_a_recipes_file_runs_no_code_that_it_names(gift: Path, says: str) -> None:
    key = next(key for key, text in SAYS.items() if text == says).partition(",")[0]
    (gift / "recipe.toml").write_text(settings(says.format(folder=gift)))
    with pytest.raises(InputError, match="--allow-code") as refusal:
        load(str(gift / "recipe.toml"))
    assert not ran(gift)
    assert str(refusal.value).startswith(key)


def verbs(run: Path) -> list[list[str]]:
    """Return every command that reads a run folder."""
    folder = str(run)
    return [
        ["info", folder],
        ["report", folder],
        ["run", "--resume", folder],
        ["search", folder],
        *([verb, folder] for verb in ("work", "derive", "train", "attack", "certify", "ensemble", "export", "record")),
        ["certify", folder, "--method", "crown"],
        ["attack", folder, "--attack", "fgsm"],
        ["attack", "robust_nas.spaces.cell.network:CellNetwork", "--attack", f"transfer[surrogates=['{folder}']]"],
        ["ensemble", "build", "--from", folder, folder],
    ]


@pytest.mark.parametrize("says", ["train.method", "evaluation.attacks[0].surrogates", "space.kind"])
def test_no_verb_runs_code_that_a_run_folder_names(gift: Path, command: Command, says: str) -> None:
    (gift / "config.toml").write_text(of_a_run(SAYS[says].format(folder=gift)))
    (gift / "environment.json").write_text("{}")
    (gift / "train.json").write_text(json.dumps({"models": []}))
    for words in verbs(gift):
        done = command(*words)
        assert not ran(gift), words
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (words, done.stderr)
        if words[0] not in ("info", "attack"):
            assert done.returncode == 2 and says in done.stderr and "--allow-code" in done.stderr, (words, done.stderr)
    command("report", "--allow-code", str(gift))
    assert ran(gift) == ("surrogates" not in says)  # those are run when they are asked


def test_files_beside_a_runs_settings_run_nothing_either(gift: Path, command: Command) -> None:
    (gift / "config.toml").write_text(of_a_run())
    space = {"kind": "gift.evil", "name": "gift"}
    derived = {"chosen": ["323133"], "spaces": [space], "candidates": [], "num_validation": 1, "seconds": 0.0}
    (gift / "derive.json").write_text(json.dumps(derived))
    (gift / "search.json").write_text(json.dumps({"space": space, "probabilities": [], "trajectory": []}))
    trained = {
        "name": "model-0", "architecture": "323133", "validation": {"clean": 1.0, "robust": 1.0},
        "method": "pgd_at", "parameters": 1, "multiply_adds": 1, "epochs": 1, "seconds": 1.0,
    }  # fmt: skip
    (gift / "train.json").write_text(json.dumps({"models": [trained]}))
    (gift / "trials").mkdir()
    (gift / "trials" / "queue.json").write_text(json.dumps({"sampler": "gift.evil"}))
    (gift / "checkpoints").mkdir()
    (gift / "checkpoints" / "model-0.safetensors").write_bytes(b"")
    for words in verbs(gift):
        with contextlib.suppress(Exception):  # what else is wrong with these files
            command(*words)
        assert not ran(gift), words
    with pytest.raises(InputError, match="allow_code=True"):
        rn.load_run(gift)
    assert not ran(gift)


def test_the_results_of_a_search_that_a_verb_prints_at_its_end_run_nothing(gift: Path, command: Command) -> None:
    (gift / "config.toml").write_text(of_a_run())
    space = {"kind": "gift.evil", "name": "gift"}
    found = {"space": space, "probabilities": [[0.2] * 5] * 6, "trajectory": [], "seconds": 0.0, "search": {}}
    found |= {"decisions": {str(edge): list("01234") for edge in range(6)}}
    (gift / "search.json").write_text(json.dumps(found))
    (gift / "record.json").write_text(json.dumps({"table": None, "rows": 0}))
    # It has nothing to do: what is left are the results, and the space of the settings is the run's.
    done = command("record", gift)
    assert not ran(gift)
    assert done.returncode == 0 and "all architectures are equally probable" in done.stdout, done.stderr


def test_the_folder_of_an_attack_and_that_of_an_ensemble_run_nothing(gift: Path, command: Command) -> None:
    (gift / "attack.toml").write_text(
        'models = ["gift/evil.py:Net"]\nseed = 0\n[data]\nname = "gift.evil"\n[[threats]]\nepsilon = 0.1\n'
    )
    (gift / "evaluation.json").write_text(json.dumps({"models": {}, "num_images": 1, "split": "test"}))
    for words in (["info", str(gift)], ["report", str(gift)], ["attack", str(gift)]):
        command(*words)
        assert not ran(gift), words


def test_a_tables_card_runs_no_format_that_it_names(gift: Path, command: Command) -> None:
    text = Path(rn.__file__).parent.parent.joinpath("benchmarks/tables/nas-robbench-201.toml").read_text()
    card = gift / "card.toml"
    card.write_text(text.replace('format = "nas-robbench-201-web"', 'format = "gift.evil"'))
    for words in (
        ["table", "info", str(card)],
        ["table", "import", "--source", str(gift), "--name", str(card), "--no-check"],
        ["proxies", "rank", str(card)],
    ):
        command(*words)
        assert not ran(gift), words
    assert "--allow-code" in command("table", "import", "--source", gift, "--name", card, "--no-check").stderr
    with pytest.raises(Exception):  # noqa: B017 (the format's own: it was asked for by its name)
        transfer.import_published(gift, format="gift.evil", name=str(card), check=False)
    assert ran(gift)


def test_what_the_user_names_runs_in_python_and_on_the_command_line(gift: Path) -> None:
    assert attacks.get("gift.evil").__name__ == "Anything" and ran(gift)
    assert load("digits", ["train.method=gift.evil"]).train.method.__module__ == "gift.evil" and ran(gift)
    assert config.component("gift.evil")["name"] == "gift.evil"
    surrogates = Transfer(surrogates=("gift/evil.py:Net",))
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), torch.rand(2, 1, 8, 8)
    surrogates.perturb(model, images, torch.tensor([0, 1]), rn.ThreatModel(epsilon=0.1))
    assert ran(gift)


def test_a_search_spaces_file_and_what_tables_say_of_networks_run_nothing(gift: Path, command: Command) -> None:
    (gift / "space.toml").write_text('kind = "gift.evil"\n')
    assert "must have a 'kind', one of" in command("search", gift / "space.toml", "--data", "digits").stderr
    with pytest.raises(InputError, match="must have a 'kind', one of"):
        spaces.load(str(gift / "space.toml"))
    # A path is no name of a module, and is not looked for.
    for kind, reason in {"gift.evil": r"space\.kind names code", "gift/evil.py": "has no 'gift/evil.py'"}.items():
        with pytest.raises(InputError, match=reason):
            spaces.described({"name": "nasbench201", "kind": kind})
    assert not ran(gift)


def test_a_run_of_ones_own_code_is_resumed_with_a_word(gift: Path, command: Command) -> None:
    (gift / "config.toml").write_text(of_a_run(SAYS["evaluation.attacks"]))
    sentence = command("run", "--resume", gift).stderr
    assert "evaluation.attacks[0] names code" in sentence and "'gift.evil'" in sentence
    assert not ran(gift)
    # Further on, and stopped by what it has no data for: the code that is named has run.
    command("derive", gift, "--allow-code")
    assert ran(gift)


def test_what_was_allowed_once_is_not_allowed_for_good(gift: Path) -> None:
    (gift / "recipe.toml").write_text(settings(SAYS["train.method"]))
    with allowing_code():
        load(str(gift / "recipe.toml"))
    assert ran(gift)
    with pytest.raises(InputError, match="allow-code"):
        load(str(gift / "recipe.toml"))
    assert not ran(gift)


def test_modules_of_the_current_folder_do_not_stand_in_for_installed_ones(gift: Path) -> None:
    marker = str(gift.parent / "marker")
    for name in ("torch", "tomli_w", "matplotlib", "triton"):
        (gift / f"{name}.py").write_text(f"open({marker!r}, 'w')\n")
    (gift / "config.toml").write_text(of_a_run(SAYS["train.method"]))
    environment = {**os.environ, "PYTHONPATH": str(Path(rn.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "robust_nas", "report", "."],
        cwd=gift,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "train.method names code" in done.stderr, done.stderr
    assert not ran(gift)


ENDINGS = {"sys.exit(0)": "SystemExit", "exit()": "SystemExit", "raise GeneratorExit": "GeneratorExit"}


@pytest.mark.parametrize(
    ("place", "ending"),
    [("on import", "sys.exit(0)"), ("in the making", "raise GeneratorExit")]
    + [("when called", ending) for ending in ENDINGS],
)
def test_a_models_file_that_ends_the_program_does_not_end_it_well(
    tmp_path: Path, command: Command, place: str, ending: str
) -> None:
    ends = {key: ending if key == place else "pass" for key in ("on import", "in the making", "when called")}
    (tmp_path / "mine.py").write_text(
        f"""
import sys
from torch import nn
{ends["on import"]}
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        {ends["in the making"]}
    def forward(self, images):
        {ends["when called"]}
        return super().forward(images)
"""
    )
    done = command("attack", "mine.py:Net", "--data", "digits", "--threat", "linf:0.1", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "mine.py" in done.stderr and ENDINGS[ending] in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Ends(nn.Module):
    """A model whose pass ends the program."""

    def __init__(self, end: type[BaseException]) -> None:
        super().__init__()
        self.end, self.weight = end, nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise self.end


@pytest.mark.parametrize("end", [SystemExit, GeneratorExit])
def test_a_model_that_ends_the_program_is_a_wrong_input_of_every_call(tmp_path: Path, end: type[BaseException]) -> None:
    data, threat, model = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1), Ends(end)
    calls: list[Callable[[], object]] = [
        lambda: rn.evaluate(model, data.test[:2], threat),
        lambda: rn.certify(model, data.test[:2], threat),
        lambda: rn.smooth(model, sigma=0.25).certify(data.test[:2]),
        lambda: rn.smooth(model, sigma=0.25).predict(data.test[:2].images),
        lambda: rn.train(model, data, threat, method="standard", epochs=1),
        lambda: rn.build_ensemble([model], data.test[:2], threat),
        lambda: rn.export_onnx(model, tmp_path / "model.onnx", data.image_shape),
    ]
    for call in calls:
        with pytest.raises(InputError, match=rf"test_trust\.py, line \d+, ended the program \({end.__name__}"):
            call()
    with pytest.raises(KeyboardInterrupt):
        rn.certify(Ends(KeyboardInterrupt), data.test[:2], threat)


def test_a_model_that_ends_a_worker_is_said_to() -> None:
    def ends(item: int) -> torch.Tensor:
        raise SystemExit(item)

    with pytest.raises(InputError, match=r"test_trust\.py, line \d+, ended the program \(SystemExit\(0\)\)"):
        World(workers=2).each(ends, [0, 0])


def test_an_image_that_is_a_program_for_ghostscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, image = tmp_path / "marker", tmp_path / "image.png"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(str(image), lambda file: file.convert("L"))
    assert not marker.exists()


def test_settings_of_figures_in_the_current_folder_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    expected = plots.entropy_plot([0, 1], [1.0, 0.5], "entropy", "name")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "lines.color", "red")
    assert plots.entropy_plot([0, 1], [1.0, 0.5], "entropy", "name") == expected
    assert matplotlib.rcParams["text.usetex"]


def test_names_that_the_person_at_work_gave_are_allowed_in_files_and_no_others() -> None:
    with registry.allowing_names(["/home/me/net.py:Net"]):
        registry.check_model_name("/home/me/net.py:Net", "space.models[0]")
        with pytest.raises(InputError, match="--allow-code"):
            registry.check_model_name("/home/me/net.py:Other", "space.models[0]")
    with pytest.raises(InputError, match="--allow-code"):
        registry.check_model_name("/home/me/net.py:Net", "space.models[0]")
