import random

import pytest

import robust_nas as rn
from robust_nas import recipes, spaces
from robust_nas.core.errors import InputError
from robust_nas.samplers import classes


def _space(**options):
    return spaces.described({"kind": "resnet", "name": "mine", "net": "cifar-resnet", **options})


def test_depth_and_width_are_decided_in_whole_or_stage_by_stage():
    whole = _space(depths=[8, 14], widths=[0.5, 1, 2], splits=["even", "2:1:1"])
    # Of three blocks, both splits are 1-1-1: samplers may draw the same network twice, and count it once.
    assert len(whole.decisions) == 7 and len(set(map(str, classes(whole)))) == (1 + 2) * 3
    parts = _space(stage_depths=[[1, 2], [1], [1, 3]], stage_widths=[[1], [1, 2], [0.5]])
    assert list(parts.decisions)[:6] == ["blocks 1", "blocks 2", "blocks 3", "width 1", "width 2", "width 3"]
    found = parts.parse("cifar-resnet-14 split=2-1-3 width=1-2-0.5")
    assert parts.decisions_of(found)[:6] == ("2", "1", "3", "1", "2", "0.5")
    assert len({str(architecture) for architecture in classes(parts)}) == 2**3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depths": [8, 21]}, "makes no cifar-resnet of depth 21; the nearest are 20 and 26"),
        ({"depths": [8], "widths": [1, 1.5], "norms": ["batch", "group:16"]}, "24 channels of stage 1 .* 16 groups"),
        ({"depths": [8], "widths": [1, 1]}, "space.widths must list one or more different options"),
        ({"depths": [8], "norms": []}, "space.norms must list one or more"),
        ({"depths": [8], "denoise": ["mean"]}, "denoise of a ResNet is one of none, gaussian, dot, but got 'mean'"),
        ({}, "must list the depths"),
        ({"depths": [8], "stage_depths": [[1], [1], [1]]}, "must list the depths, and one alone"),
        ({"depths": [8], "widths": [1], "stage_widths": [[1], [1], [1]]}, "must list the widths, and not both"),
        ({"stage_depths": [[1], [1]]}, "for each of the 3 stages of cifar-resnet, but got 2"),
        ({"net": "resnext", "depths": [50]}, "no line of ResNets 'resnext'"),
        ({"depths": [8], "se_reduction": 0}, "se_reduction must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        _space(**options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("wrn-10-1", "are of cifar-resnet, but 'wrn-10-1' is of wrn"),
        ("cifar-resnet-20", "The depth of an architecture of mine is one of 8, 14, but '.*' has 20"),
        ("cifar-resnet-14 split=3-2-1", "The blocks of an architecture of mine is 2-2-2 here, but '.*' has 3-2-1"),
        ("cifar-resnet-8 width=1-2-2", "The width of an architecture of mine is one of 1, 2, but '.*' has 1-2-2"),
        ("cifar-resnet-8 stem=imagenet", "The stem of an architecture of mine is cifar here, but '.*' has imagenet"),
    ],
)
def test_an_architecture_of_another_space_is_named(text, sentence):
    with pytest.raises(InputError, match=sentence):
        _space(depths=[8, 14], widths=[1, 2]).parse(text)


@pytest.mark.parametrize("name", ["resnet-depth", "resnet-depth-small"])
def test_an_architecture_alone_makes_its_space(name):
    space, generator = spaces.load(name), random.Random(0)
    for _ in range(10):
        drawn = space.decided([generator.choice(values) for values in space.decisions.values()])
        alone = spaces.alone(str(drawn))
        assert alone.parse(str(drawn)) == drawn == alone.decided([values[0] for values in alone.decisions.values()])
    assert spaces.alone("323133") is None and spaces.alone("runs/2026") is None


def test_networks_are_trained_and_searched_by_their_names():
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    chosen = recipes.for_model("cifar-resnet-8 width=0.25", data="digits")
    assert (chosen.name, chosen.search.architecture) == ("cifar-resnet-8", "cifar-resnet-8 width=0.25")
    with pytest.raises(InputError, match="normalises the images itself"):
        recipes.for_model("cifar-resnet-8", data="digits", normalise="imagenet")
    model = rn.train("wrn-10-0.25", data, threat, method="standard", epochs=1, batch_size=512)
    assert str(model.built_from.architecture) == "wrn-10-0.25"
    untrained = rn.create("wrn-10-0.25", data)
    assert untrained.state_dict().keys() == model.state_dict().keys() and untrained.mean.equal(model.mean)
    form = rn.datasets.DataForm("photos", ("cat", "dog"), (3, 32, 64))
    assert rn.create("resnet-10 width=0.125", form, seed=1).fc.out_features == 2
    assert rn.create("323133", data).built_from.space.name == "nasbench201"
    with pytest.raises(InputError, match="create takes an architecture or its string, but got 3"):
        rn.create(3, data)
    space = _space(depths=[8, 14], widths=[0.25])
    options = {"objectives": ("score",), "trials": 2, "sampler": {"name": "random"}}
    assert len(rn.search(space, data, threat, method="sampled", **options).record["measured"]) == 2
