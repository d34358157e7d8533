import sys

import pytest

from robust_nas import attacks
from robust_nas import training as trainings
from robust_nas.attacks.pgd import PGD
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.training import Training


def test_a_component_is_found_by_its_files_name():
    assert attacks.get("pgd") is PGD
    assert "pgd" in attacks.names()
    assert not any(name.startswith("_") for name in attacks.names())
    assert name_of(PGD(steps=1)) == "pgd"


def test_an_unknown_name_is_refused_with_a_suggestion_and_what_there_is():
    with pytest.raises(
        InputError, match=r"robust_nas.attacks has no 'pdg'. Did you mean 'pgd'\? Available: .*fgsm, opt, pgd"
    ):
        attacks.get("pdg")


@pytest.mark.parametrize("name", ["../x", "./x", ".x", "a..b", "x.", "a/b.c", "..", ".", "", " .x"])
def test_a_path_is_no_name_of_a_module(name):
    with pytest.raises(InputError, match=r"robust_nas\.attacks has no '.*Available"):
        attacks.get(name)


def test_a_dotted_name_is_a_plugin_in_anybodys_package(tmp_path, monkeypatch):
    (tmp_path / "my_attacks.py").write_text(
        "from dataclasses import dataclass\n"
        "from robust_nas.attacks import Attack\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Attack):\n"
        "    def perturb(self, model, images, labels, threat, *, seed=0):\n"
        "        return images\n"
    )
    package = tmp_path / "outside"
    package.mkdir()
    (tmp_path / "my_attacks.py").rename(package / "mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    component = attacks.get("outside.mine")
    assert name_of(component()) == "outside.mine"
    with pytest.raises(InputError, match="cannot be imported"):
        attacks.get("outside.other")
    sys.modules.pop("outside.mine")


def test_a_module_without_exactly_one_component_is_refused():
    with pytest.raises(InputError, match="exactly one public class with a method 'perturb'"):
        attacks.get("robust_nas.threat")


def test_a_component_without_its_groups_base_class_is_refused_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "method.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Loose:\n"
        "    def craft(self, model, batch):\n"
        "        return batch.images\n"
        "    def loss(self, forward, crafted, batch):\n"
        "        return forward(crafted).sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"loose\.method\.Loose must inherit robust_nas.training.TrainingMethod"):
        trainings.get("loose.method")
    loose = sys.modules.pop("loose.method").Loose
    with pytest.raises(InputError, match=r"must inherit robust_nas.training.TrainingMethod"):
        build(Training, {"method": loose()}, "train")
