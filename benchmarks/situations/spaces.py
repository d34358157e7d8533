"""Architectures and spaces."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from checks import refused, right_or_refused, same, situation, true
from small_models import answers, attacked, certified, few_digits, sound

import robust_nas as rn

KIND = "architectures and spaces"


@situation(KIND, "automl/NASLib#171")
def a_string_its_digits_and_its_edges_are_one_architecture(_: Path) -> None:
    text = "|nor_conv_1x1~0|+|avg_pool_3x3~0|avg_pool_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|avg_pool_3x3~2|"
    found = rn.Architecture.parse(text)
    true(str(found) == text and found.digits() == "244434", f"it reads {found} as {found.digits()}")
    true(rn.Architecture.parse("244434") == found, "the digits are another")


@situation(KIND, "microsoft/nni#2721")
def the_order_of_edges_in_a_string_is_checked(_: Path) -> None:
    right = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|none~0|none~1|nor_conv_3x3~2|"
    turned = "|nor_conv_3x3~0|+|avg_pool_3x3~1|none~0|+|none~0|none~1|nor_conv_3x3~2|"
    true(rn.Architecture.parse(right).operations[1] == "none", "an edge is another's")
    refused(lambda: rn.Architecture.parse(turned), "edge 0-2")


@situation(KIND, "D-X-Y/NATS-Bench#48")
def a_string_of_the_size_space_is_no_cell(_: Path) -> None:
    refused(lambda: rn.Architecture.parse("64:64:64:64:64"), "64:64:64:64:64")
    cell = str(rn.Architecture.parse("323133"))
    refused(lambda: rn.spaces.load("nasbench201-size").parse(cell), "channels")
    for given in ("323133 ", "\n323133\r\n", f" {cell}\n"):
        true(rn.Architecture.parse(given).digits() == "323133", f"{given!r} is another")


@situation(KIND, "D-X-Y/AutoDL-Projects#58")
def a_cell_of_skips_alone_computes_copies_of_its_input(_: Path) -> None:
    cell = "|skip_connect~0|+|skip_connect~0|none~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    points = data.test.images[:4]
    torch.manual_seed(0)
    network = space.network(space.parse(cell), data).eval()
    (inside,) = [module for module in network.modules() if type(module).__name__ == "Cell"]
    given = torch.randn(2, 4, 8, 8)
    # Node 1 is x, node 2 is x, and node 3 is x + x + x.
    same(inside(given), 3 * given, "the cell's output", 1e-5)
    trained = rn.train(cell, data, rn.ThreatModel(epsilon=0.1), space=space, method="standard", epochs=1, batch_size=16)
    labels = answers(trained, points)
    sound(trained, points, certified(trained, points, labels, 0.02, bound="crown"), labels, 0.02)


@situation(KIND, "automl/ConfigurableOptimizer#68")
def a_cell_that_is_not_connected_says_so_and_is_certified_as_constant(_: Path) -> None:
    cell = rn.Architecture.parse("000000")
    true(not cell.is_connected and rn.Architecture.parse("111111").is_connected, "connection is not seen")
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    torch.manual_seed(0)
    network = space.network(cell, data).eval()
    points = data.test.images[:8]
    logits = network(points)
    same(logits, logits[:1].expand_as(logits), "the logits of a constant network", 1e-6)
    labels = answers(network, points)
    true((certified(network, points, labels, 1.0, bound="crown") > 0).all(), "a constant is not certified")
    right_or_refused(
        lambda: true(attacked(network, points, labels, 1.0, attacks=["pgd", "apgd"]).all(), "a constant is fooled"),
        "gradient",
    )


@situation(KIND, "quark0/darts#101")
def a_genotype_as_it_is_printed_is_read_and_written(_: Path) -> None:
    text = (
        "Genotype(normal=[('dil_conv_5x5', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', 0), ('avg_pool_3x3', 2), "
        "('max_pool_3x3', 2), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), "
        "('dil_conv_5x5', 2), ('dil_conv_5x5', 2), ('dil_conv_5x5', 3), ('sep_conv_5x5', 3), ('max_pool_3x3', 1)], "
        "reduce_concat=range(2, 6))"
    )
    true(str(rn.Genotype.parse(text)) == text, f"it is read as {rn.Genotype.parse(text)}")
    listed = text.replace("range(2, 6)", "[2, 3, 4, 5]")
    true(rn.Genotype.parse(listed) == rn.Genotype.parse(text), "a list of nodes is another genotype")


@situation(KIND, "automl/ConfigurableOptimizer#63")
def none_in_a_genotype_is_refused_by_its_node(_: Path) -> None:
    pairs = "[('none', 0), ('sep_conv_3x3', 1)]"
    text = f"Genotype(normal={pairs}, normal_concat=range(2, 3), reduce={pairs}, reduce_concat=range(2, 3))"
    refused(lambda: rn.Genotype.parse(text), "none", "node 2")


@situation(KIND, "D-X-Y/AutoDL-Projects#110")
def the_second_order_search_with_none_among_the_operations_runs(_: Path) -> None:
    data = few_digits()
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    with contextlib.redirect_stderr(io.StringIO()):
        found = rn.search(
            space,
            data,
            rn.ThreatModel(epsilon=0.1),
            method="darts",
            order="second",
            epochs=1,
            batch_size=24,
            objective="standard",
        )
    true(str(found.best) in {str(each) for each in rn.Architecture.enumerate()}, "no architecture")
