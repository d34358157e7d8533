"""Tables and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checks import refused, right_or_refused, same, situation, true

import robust_nas as rn

KIND = "tables and studies"


def made_up_table(folder: Path, values: dict[str, Sequence[float | None]]) -> Any:
    """Return a table in the layout of NAS-RobBench-201's, with some architectures' values in two columns.

    The numbering of architectures is the order of their digits.
    """
    from robust_nas.runtime.progress import Progress
    from robust_nas.tables import transfer

    cells = list(rn.Architecture.enumerate())
    first: dict[str, int] = {}
    entries: dict[str, Any] = {"": ["cifar10#val_acc", "cifar10#val_pgd_8_acc"]}
    for number, cell in enumerate(cells):
        own = first.setdefault(cell.canonical, number)
        entries[str(number)] = values.get(cell.digits(), [0.01, 0.01]) if own == number else str(own)
    (folder / "NAS-RobBench-201_html.json").write_text(f"acc={json.dumps(entries)}")
    (folder / "ops.json").write_text(f"arch={json.dumps([cell.digits() for cell in cells])}")
    path = transfer.import_published(folder, name="nas-robbench-201", check=False, progress=Progress(quiet=True))
    return rn.tables.Table(path)


@situation(KIND, "optuna/optuna#3205")
def a_measure_that_is_nan_is_named_and_not_taken_for_a_value(_: Path) -> None:
    space = rn.spaces.load("nasbench201")
    for name in ("random", "evolution", "local", "tpe", "predictor"):
        sampler = rn.samplers.get(name)()

        def call(sampler: Any = sampler) -> None:
            values = iter([0.5, math.nan, *([0.4] * 100)])
            found = rn.samplers.queries(sampler, space, lambda architecture: [next(values)])
            asked = [next(found) for _ in range(20)]
            true(len({each.canonical for each, _ in asked}) == 20, "an architecture is asked for twice")
            raise AssertionError("NaN is taken for a value")

        right_or_refused(call, "nan")


@situation(KIND, "optuna/optuna-dashboard#687")
def a_front_keeps_equals_and_leaves_the_dominated_out(folder: Path) -> None:
    values = {
        "333333": [0.9, 0.1],
        "222222": [0.9, 0.1],
        "323232": [0.5, 0.5],
        "232323": [0.5, 0.4],
        "322222": [0.1, 0.9],
    }
    found = made_up_table(folder, values).pareto(["clean", "pgd@8/255"], dataset="cifar10")
    wanted = ["222222", "322222", "323232", "333333"]
    front = sorted(rn.Architecture.parse(row[0].architecture).digits() for row in found)
    true(front == wanted, f"the front is {front}")


@situation(KIND, "D-X-Y/NATS-Bench#35")
def cifar10_valid_and_cifar10_are_not_confused(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {"323133": [0.75, 0.25]}))
    index = api.query_index_by_arch("323133")
    same(api.get_more_info(index, "cifar10", metric="clean")["test-accuracy"], 75.0, "the accuracy", 1e-6)
    refused(lambda: api.get_more_info(index, "cifar10-valid", metric="clean"), "cifar10-valid", "half")
    refused(lambda: api.get_more_info(index, "cifar100", metric="clean"), "cifar100")
    refused(lambda: api.get_more_info(index, "cifar10", hp="200", metric="clean"), "recipe")


@situation(KIND, "ruocwang/darts-pt#1")
def a_query_by_string_needs_no_recipe_and_refuses_one(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {"323133": [0.75, 0.25]}))
    true("75" in api.query_by_arch(str(rn.Architecture.parse("323133"))), "the accuracy is not in the text")
    refused(lambda: api.query_by_arch("323133", "200"), "200")


@situation(KIND, "GATECH-EIC/HW-NAS-Bench#9")
def indices_and_strings_agree_and_none_is_beyond_the_table(folder: Path) -> None:
    from robust_nas.integrations.nas_bench_201 import NASBench201API

    api = NASBench201API(made_up_table(folder, {}))
    for index in (0, 1, 235, 15_624):
        same(api.query_index_by_arch(api.arch(index)), index, "the index of the string of an index")
        same(api.query_index_by_arch(api[index]), index, "the index of an item")
    for index in (-1, 15_625):
        refused(lambda index=index: api.arch(index), "15624")
    same(len(list(api)), 15_625, "the number of architectures")
