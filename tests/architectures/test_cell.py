import itertools
import json
import random
import re

import networkx
import pytest
import torch

from robust_nas.architectures.cell import OPERATIONS, Architecture, edges_of
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.spaces.cell.network import Cell, make_operation

ALL = list(Architecture.enumerate())


def test_edges_come_in_the_published_order():
    assert edges_of(4) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_every_architecture_survives_its_string_and_its_digits_form():
    assert len(ALL) == 15625
    for architecture in ALL:
        assert Architecture.parse(str(architecture)) == architecture
        assert Architecture.parse(architecture.digits()) == architecture


def test_the_published_index_0_has_its_published_string():
    # NAS-RobBench-201's index 0 is 421211; NAS-Bench-201 writes it like this.
    published = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert str(Architecture.parse("421211")) == published


def test_the_canonical_form_gives_6466_classes():
    assert len({architecture.canonical for architecture in ALL}) == 6466


def test_the_classes_are_the_published_partition(shared_data):
    folder = shared_data / "nas-robbench-201"
    digits = re.findall(r"\d{6}", (folder / "ops.json").read_text())
    rows = json.loads((folder / "NAS-RobBench-201_html.json").read_text().partition("=")[2].strip().rstrip(";"))
    representatives = {int(i) for i in (folder / "NasBenchID_6466_idx.txt").read_text().split()}
    classes: dict[str, set[str]] = {}
    for index, code in enumerate(digits):
        value = rows[str(index)]
        published = str(index) if isinstance(value, list) else str(value)
        assert isinstance(value, list) == (index in representatives)
        classes.setdefault(Architecture.parse(code).canonical, set()).add(published)
    assert len(digits) == 15625
    # As many classes as published ones, each within exactly one published class: the same partition.
    assert len(classes) == 6466
    assert all(len(published) == 1 for published in classes.values())
    assert len({next(iter(published)) for published in classes.values()}) == 6466


@pytest.mark.parametrize(
    ("digits", "other", "why"),
    [
        ("030001", "000300", "a skip of a sum is the sum"),
        ("130100", "000100", "what does not lead to the output"),
        ("002001", "003001", "batch norm after a convolution of zero leaves a constant"),
        ("002002", "002001", "a 1x1 convolution of a constant is one"),
        ("002004", "002001", "the average of a constant is one"),
        ("002003", "002001", "not equal: a 3x3 convolution of a constant sees the padding"),
        ("400001", "002001", "not equal: pooling zero gives zero, without a constant"),
        ("033033", "033133", "not equal: a skip from the input more"),
    ],
)
def test_the_simplified_form_is_equal_where_trainings_differ_by_chance_alone(digits, other, why):
    one, two = Architecture.parse(digits), Architecture.parse(other)
    assert (one.function == two.function) == (not why.startswith("not equal")), (one.function, two.function)


def test_the_published_representatives_have_about_as_many_functions_as_was_found_elsewhere(shared_data):
    folder = shared_data / "nas-robbench-201"
    digits = re.findall(r"\d{6}", (folder / "ops.json").read_text())
    chosen = [int(index) for index in (folder / "NasBenchID_6466_idx.txt").read_text().split()]
    # A count with a slightly different rule for constants gave 5,009.
    assert len({Architecture.parse(digits[index]).function for index in chosen}) == 5006


def _cell(architecture: Architecture) -> Cell:
    """A cell as networks have it, whose edges' parameters depend on nothing but what the edge computes."""

    def edge(number: int) -> torch.nn.Module:
        operation = make_operation(architecture.pruned.operations[number], 2, affine=True)
        term = architecture.edge_terms[number]
        generator = generator_at("cpu", 0, term)
        for parameter in operation.parameters():
            parameter.data.normal_(generator=generator)
        return operation.double().eval()

    return Cell(architecture.num_nodes, edge)


def test_equivalent_architectures_compute_the_same_function_with_equal_corresponding_parameters():
    classes: dict[str, list[Architecture]] = {}
    for architecture in ALL:
        classes.setdefault(architecture.canonical, []).append(architecture)
    several = [members for members in classes.values() if len(members) > 1]
    images = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for members in random.Random(0).sample(several, 60):
            first, *others = random.Random(1).sample(members, min(3, len(members)))
            expected = _cell(first)(images)
            for other in others:
                torch.testing.assert_close(_cell(other)(images), expected, rtol=1e-12, atol=1e-12)


def test_architectures_of_different_classes_usually_compute_different_functions():
    # The check above could pass on cells that are all alike: these must differ.
    images = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [
            _cell(Architecture.parse(code))(images) for code in ("333333", "333331", "322222", "123412", "444444")
        ]
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.allclose(one, other)


def test_an_architecture_is_connected_when_its_graph_has_a_path_from_input_to_output():
    for architecture in random.Random(0).sample(ALL, 500):
        graph = architecture.graph()
        graph.remove_edges_from([(i, j) for i, j, name in graph.edges(data="operation") if name == "none"])
        assert architecture.is_connected == networkx.has_path(graph, 0, 3)


def test_pruning_keeps_exactly_the_edges_on_a_way_to_the_output():
    for architecture in random.Random(1).sample(ALL, 500):
        graph = architecture.graph()
        graph.remove_edges_from([(i, j) for i, j, name in graph.edges(data="operation") if name == "none"])
        leading = networkx.ancestors(graph, 3) | {3}
        terms = architecture.edge_terms
        kept = [target in leading and terms[edge] != "#" for edge, (_, target, _) in enumerate(architecture.edges)]
        expected = tuple(name if keep else "none" for keep, name in zip(kept, architecture.operations, strict=True))
        assert architecture.pruned.operations == expected
        assert architecture.pruned.canonical == architecture.canonical


def test_the_graph_carries_the_operations():
    graph = Architecture.parse("421213").graph()
    assert list(graph.nodes) == [0, 1, 2, 3]
    assert graph.edges[2, 3]["operation"] == OPERATIONS[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|nor_conv_3x3~0|+|none~0|", "must have edge 1-2"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_5x5~2|", "unknown operation 'nor_conv_5x5' on edge 2-3"),
        ("|none~1|", "must have edge 0-1, but got 'none~1'"),
        ("|none~0|none~1|", "only 1 edges into node 1"),
        ("none~0", "malformed"),
        ("32313", "5 operations"),
        ("323135", "has the digit 5"),
        ("", "malformed"),
    ],
)
def test_a_malformed_string_is_refused_and_the_message_names_the_place(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Architecture.parse(text)


def test_any_text_is_read_as_the_architecture_that_it_writes_or_refused():
    generator = random.Random(0)
    letters = "|~+0123456789 noneskip_convral" + "\u0665\x00"
    read = 0
    for _ in range(5000):
        text = list(generator.choice([str, Architecture.digits])(generator.choice(ALL)))
        for _ in range(generator.randrange(3)):
            place = generator.randrange(len(text))
            text[place : place + generator.randrange(3)] = generator.choices(letters, k=generator.randrange(3))
        try:
            found = Architecture.parse("".join(text))
        except InputError:
            continue
        read += 1
        assert found.digits() == "".join(text).strip() or str(found) == re.sub(r"\s", "", "".join(text))
        assert Architecture.parse(str(found)) == found and found.is_equivalent(found.pruned)
    assert read > 1500
