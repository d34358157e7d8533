"""Saved ensembles of models of one's own: made again from where they are defined, or refused with the reason."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.core.registry import allowing_code
from robust_nas.ensembles import Ensemble
from robust_nas.intake import LogProbabilities, Normalised
from robust_nas.jobs import attack_models as assessment

CPU = torch.device("cpu")

Command = Callable[..., subprocess.CompletedProcess[str]]

OWN = """
import pathlib
import torch
from torch import nn
from torch.nn import functional as F

with (pathlib.Path(__file__).parent / "ran").open("a") as file:
    file.write("x")

class Net(nn.Module):
    def __init__(self, slope=0.1, act=F.relu):
        super().__init__()
        self.slope, self.act = slope, act
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        self.register_buffer("shift", torch.full((8,), 0.25), persistent=False)
    def forward(self, images):
        return self.last(self.act(self.first(images.flatten(1)) + self.shift) + self.slope)

def make():
    return nn.Sequential(Net(0.5), nn.Softmax(1))

needing = type("Needing", (Net,), {"__init__": lambda self, width: Net.__init__(self)})
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module of the user's own, own_net.py in the current folder, which says in a file that it has run."""
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_net")
    del sys.modules["own_net"]


def logits(model: nn.Module) -> torch.Tensor:
    """Return a model's outputs."""
    with torch.no_grad():
        return model.eval()(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_members_of_a_file_are_the_same_function_again_and_are_asked_for(own: Any) -> None:
    torch.manual_seed(3)
    (loaded,) = rn.load_models("own_net.py:make", device="cpu").values()
    members = [own.Net(), Normalised(own.Net(), [0.5], [0.25]), LogProbabilities(loaded)]
    ensemble = Ensemble(members, [0.2, 0.3, 0.5])
    folder = ensemble.save("saved")
    Path("ran").unlink()
    with pytest.raises(InputError, match=r"Member 0 of saved names code .*own_net\.py:Net.*allow_code=True"):
        Ensemble.load(folder)
    assert not Path("ran").exists()
    assert torch.equal(logits(Ensemble.load(folder, allow_code=True)), logits(ensemble))


def test_an_ensemble_of_ones_own_is_attacked_on_the_command_line(own: Any, command: Command) -> None:
    ensemble = Ensemble([own.Net(), own.Net()])
    ensemble.save("saved")
    words = ["attack", "saved", "--data", "digits", "--threat", "linf:0.05", "--attack", "fgsm", "--images", "8"]
    refused = command(*words)
    assert refused.returncode == 2 and "--allow-code" in refused.stderr and "Member 0" in refused.stderr
    exported = command("export", "saved", "--data", "digits", "--epsilon", "0.05")
    assert exported.returncode == 2 and "--allow-code" in exported.stderr
    # What the command attacks with --allow-code; the attack itself takes a while.
    with allowing_code():
        loaded = assessment.from_words(["saved"], data="digits", threat=["linf:0.05"]).load(CPU)
    assert torch.equal(logits(loaded["saved"]), logits(ensemble))


def test_a_torchvision_member_needs_no_code_to_be_allowed(tmp_path: Path) -> None:
    (model,) = rn.load_models("torchvision:squeezenet1_1?num_classes=3", device="cpu").values()
    found = Ensemble([model]).save(tmp_path)
    assert json.loads((found / "config.json").read_text())["members"] == [
        {"made_by": "torchvision:squeezenet1_1?num_classes=3"}
    ]
    assert type(Ensemble.load(found).members[0]).__name__ == "SqueezeNet"


def hooked(net: Any) -> Any:
    """Return a network with a hook."""
    net.last.register_forward_hook(lambda module, given, result: -result)
    return net


@pytest.mark.parametrize(
    "member, why",
    [
        (lambda own: own.Net(slope=0.7), "differs in 'slope' of itself"),
        (lambda own: own.Net(act=torch.tanh), "differs in 'act' of itself"),
        (lambda own: hooked(own.Net()), "differs in the hooks of last"),
        (lambda own: own.make(), "it is a Sequential of torch's"),
        (lambda own: own.needing(3), "cannot be made without arguments"),
        (lambda own: type("Local", (own.Net,), {"__module__": "__main__"})(), "defined in the program itself"),
    ],
)
def test_a_member_that_would_come_back_as_another_function_is_not_made_again(
    own: Any, member: Callable[[Any], nn.Module], why: str
) -> None:
    folder = Ensemble([member(own), own.Net()]).save("saved")
    with pytest.raises(InputError, match=f"Member 0 of saved cannot be made again: .*{why}.*members="):
        Ensemble.load(folder, allow_code=True)
    # With the members given, no code of the folder's is run.
    assert torch.equal(
        logits(Ensemble.load(folder, [member(own), own.Net()])), logits(Ensemble.load(folder, [member(own), own.Net()]))
    )


def test_a_file_that_is_no_longer_there_is_said_to_be_missing(own: Any) -> None:
    folder = Ensemble([own.Net()]).save("saved")
    Path("own_net.py").unlink()
    with pytest.raises(InputError, match=r"There is no file .*own_net\.py"):
        Ensemble.load(folder, allow_code=True)


@pytest.mark.parametrize("entry", [{"made_by": 3}, {"made_by": "nothing"}, {"of": None}, {"normalised": {}, "of": {}}])
def test_a_member_that_is_described_otherwise_is_damage(own: Any, entry: dict[str, Any]) -> None:
    folder = Ensemble([own.Net()]).save("saved")
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "members": [entry]}))
    with pytest.raises(InputError):
        Ensemble.load(folder, allow_code=True)
