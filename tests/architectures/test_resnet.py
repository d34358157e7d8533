import itertools

import pytest

from robust_nas.architectures.resnet import NETS, ResNetArchitecture, split
from robust_nas.core.errors import InputError

parse = ResNetArchitecture.parse


@pytest.mark.parametrize(
    ("depth", "stages"),
    [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))],
)
def test_published_depths_have_the_published_blocks(depth, stages):
    # He et al. 2016, table 1.
    assert parse(f"resnet-{depth}").stages == stages
    assert parse(f"resnet-{depth}").block == ("bottleneck" if depth >= 50 else "basic")


@pytest.mark.parametrize(
    ("rule", "shares"), [("grown", (3, 8, 36, 3)), ("3:8:36:3", (3, 8, 36, 3)), ("2:2:1", (2, 2, 1))]
)
def test_a_split_has_all_blocks_and_with_one_more_no_stage_has_fewer(rule, shares):
    before = (0,) * len(shares)
    for blocks in range(len(shares), 400):
        found = split(rule, blocks, len(shares))
        assert sum(found) == blocks and min(found) >= 1
        assert all(new >= old for new, old in zip(found, before, strict=True))
        before = found
        if rule == "grown" and blocks < 50:
            continue
        # round(c share), at least 1, of one c: no stage's interval of c is beyond another's.
        lows = [(own - 0.5) / share for own, share in zip(found, shares, strict=True) if own > 1]
        highs = [(own + 0.5) / share for own, share in zip(found, shares, strict=True)]
        assert max(lows, default=0) <= min(highs)
    assert split(rule, 10 * sum(shares), len(shares)) == tuple(10 * share for share in shares)


def test_the_deepest_published_network_has_212_bottlenecks_in_the_ratio_of_resnet_152():
    deepest = parse("resnet-638")
    assert (sum(deepest.stages), deepest.block, deepest.depth) == (212, "bottleneck", 638)
    assert deepest.stages == (13, 34, 152, 13)  # 4.24 times 3, 8, 36 and 3, as nearly as whole numbers sum to 212


@pytest.mark.parametrize("text", ["resnet-50", "preact-resnet-18", "cifar-resnet-20", "wrn-28-10", "wrn-34-20"])
def test_a_name_is_what_is_written_of_a_network_as_published(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("resnet-50 denoise=dot width=1.50 stem=imagenet", "resnet-50 width=1.5 denoise=dot"),
        ("resnet-50 split=3-4-6-3 norm=group:32", "resnet-50 norm=group"),
        ("resnet-101 split=3:8:36:3", "resnet-101 split=2-5-24-2"),
        ("wrn-28 width=10-10-8", "wrn-28 width=10-10-8"),
        ("wrn-28 width=4 block=bottleneck split=4-2-2", "wrn-28-4 split=4-2-2 block=bottleneck"),
        ("resnet-50 block=basic", "resnet-50 block=basic"),
    ],
)
def test_what_differs_from_the_published_network_is_written(text, written):
    assert str(parse(text)) == written and parse(written) == parse(text)


def test_an_architecture_with_all_facts_by_name():
    assert parse("resnet-50 width=2 norm=group:8").parts == {
        "net": "resnet", "depth": "50", "blocks": "3-4-6-3", "width": "2-2-2-2", "channels": "512-1024-2048-4096",
        "block": "bottleneck", "stem": "imagenet", "norm": "group:8", "activation": "relu", "se": "none",
        "denoise": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resnet-153", "'grown' of bottleneck blocks .* makes no resnet of depth 153; the nearest are 152 and 155"),
        ("resnet-637 split=even", "the nearest are 626 and 638"),
        ("wrn-29-10", "'even' of basic blocks over 3 stages makes no wrn of depth 29; the nearest are 28 and 34"),
        ("cifar-resnet-3", "of depth 3; the nearest is 8"),
        ("resnet-101 split=3-8-36-3", "3-8-36-3 bottleneck blocks make a resnet of depth 152, but got 101"),
        ("wrn-10-1 split=1-1-1-1", "split '1-1-1-1' is of 4 stages, but the network has 3"),
        ("wrn-10-1 split=grown", "split 'grown' is of 4 stages"),
        ("resnet-18 split=2:0:1:1", "at least 1 in each stage"),
        ("resnet-18 split=odd", "A split is written grown, even, a ratio"),
        ("resnet-99999", "10000 layers at most"),
        ("cifar-resnet-20 norm=group", "The 16 channels of stage 1 of .* no multiple of the 32 groups .*norm=group:8"),
        ("resnet-18 norm=layer", "one of batch, group and group:8, but got 'layer'"),
        ("resnet-18 width=0.3", "0.3 makes 19.2 of 64 channels.*0.296875 makes 19"),
        ("resnet-18 width=1-2", "A resnet has 4 stages, but got 2 numbers for their width"),
        ("resnet-18 width=0", "A multiplier|multiplier of its channels.*but got '0'"),
        ("wrn-28-10 width=2", "is there twice"),
        ("resnet-18 stem=mnist", "stem of a ResNet is one of imagenet, cifar, but got 'mnist'"),
        ("resnet-18 blok=basic", "got 'blok=basic'. Did you mean 'block'"),
        ("resnet-18 se=relu se=none", "has several"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(text)


@pytest.mark.parametrize("net", NETS)
def test_the_nearest_depths_that_are_named_are_reached_and_none_is_nearer(net):
    reached = {}
    for depth, block in itertools.product(range(1, 80), ("basic", "bottleneck")):
        try:
            reached[depth, block] = ResNetArchitecture.of_depth(net, depth, block=block).depth == depth
        except InputError as error:
            named = [int(word) for word in str(error).rpartition("nearest")[2].rstrip(".").split() if word.isdigit()]
            reached[depth, block] = named
    for (depth, block), named in reached.items():
        if named is not True:
            ours = [other for other in range(1, 120) if reached.get((other, block)) is True]
            between = [near for near in ours if min(named) < near < max(named)]
            assert not between and all(reached.get((near, block), True) is True for near in named)
            assert min(named) < depth < max(named) or (len(named) == 1 and depth < named[0])
