"""Simulated search: the same result however it is computed, and statistics that agree with scipy's and brute force."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import load
from robust_nas.models import complexity
from robust_nas.samplers.predictor import Predictor
from robust_nas.spaces.cell import CellSpace
from robust_nas.studies import simulation
from robust_nas.tables._schema import measured

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
CONSTANT = {
    "skeleton": "cells_per_stage=1,channels=4,stages=2",
    "dataset": "digits",
    "split": "test",
    "recipe": "pgd_at",
    "num_images": 100,
    "source": "made up",
}
SEEDS, BUDGET = 25, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a made-up table of all classes of a space of three nodes."""
    path = tmp_path_factory.mktemp("table")
    space = path / "tiny.toml"
    space.write_text(f'kind = "cell"\nnum_nodes = 3\noperations = {json.dumps(OPERATIONS)}\n')
    cells = {cell.canonical: str(cell) for cell in Architecture.enumerate(3, OPERATIONS)}
    for attack, threat in (("clean", {}), ("pgd", {"norm": "linf", "epsilon": 8 / 255})):
        accuracies = [random.Random(attack + canonical).randint(0, 100) / 100 for canonical in cells]
        rows = measured(
            {**CONSTANT, "space": str(space), "attack": attack, **threat},
            architecture=list(cells.values()),
            accuracy=accuracies,
        )
        pq.write_table(rows, path / f"part-{attack}.parquet")
    return path


@pytest.fixture(scope="module")
def table(folder: Path) -> tables.Table:
    return tables.Table(folder, "tiny")


def simulated(table: tables.Table, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "objectives": ["pgd@8/255"],
        "dataset": "digits",
        "samplers": ["local", "predictor[random_starts=3]"],
        "budget": BUDGET,
        "seeds": SEEDS,
        "noise_floor": 0.05,
    }
    return simulation.run(table, **{**options, **changes}, out=out)


def curves(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "curves.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def done(table: tables.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole simulation."""
    out = tmp_path_factory.mktemp("simulated")
    simulated(table, out)
    return out


def test_curves_bands_and_regret_follow_from_the_rows(table: tables.Table, done: Path) -> None:
    result = json.loads((done / "simulation.json").read_text())
    values = table.values("pgd@8/255")
    assert result["optimum"] == values.max()
    rows = curves(done)
    assert len(rows) == 2 * SEEDS * BUDGET
    for label in ("local", "predictor[random_starts=3]"):
        best = np.empty((SEEDS, BUDGET))
        for row in (row for row in rows if row["sampler"] == label):
            assert row["pgd@8/255"] == table.query(row["architecture"], "pgd@8/255").mean
            best[row["seed"], row["query"] - 1] = row["pgd@8/255"]
        best = np.maximum.accumulate(best, axis=1)
        assert [row["curve"] for row in rows if row["sampler"] == label] == best.ravel().tolist()
        curve = result["curves"][label]
        np.testing.assert_allclose(curve["mean"], best.mean(axis=0))
        low, high = stats.t.interval(0.95, SEEDS - 1, best.mean(axis=0), stats.sem(best, axis=0))
        np.testing.assert_allclose(curve["low"], low)
        np.testing.assert_allclose(curve["high"], high)
        np.testing.assert_allclose(curve["regret"], (values.max() - best.mean(axis=0)) / 0.05, atol=1e-12)
        assert curve["num_at_optimum"] == (best == values.max()).sum(axis=0).tolist()


def test_no_search_measures_a_class_twice(done: Path) -> None:
    searches: dict[tuple[str, int], list[str]] = {}
    for row in curves(done):
        classes = searches.setdefault((row["sampler"], row["seed"]), [])
        classes.append(Architecture.parse(row["architecture"]).canonical)
    assert len(searches) == 2 * SEEDS
    assert all(len(set(classes)) == BUDGET for classes in searches.values())


def test_two_workers_find_what_one_finds(table: tables.Table, done: Path, tmp_path: Path) -> None:
    simulated(table, tmp_path, workers=2)
    assert curves(tmp_path) == curves(done)


@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_a_simulation_that_was_stopped_is_completed_to_the_same_result(
    end: str, table: tables.Table, done: Path, tmp_path: Path
) -> None:
    original, searched = simulation.simulate, []

    def stopping(*arguments: Any) -> Any:
        searched.append(arguments)
        if len(searched) == 4:  # after three chunks
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return original(*arguments)

    def begin() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulation, "simulate", stopping)
            simulated(table, tmp_path)

    if end == "killed":
        process = multiprocessing.get_context("fork").Process(target=begin)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    else:
        with pytest.raises(KeyboardInterrupt):
            begin()
    assert not (tmp_path / "simulation.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "queries").iterdir()}
    assert len(kept) == 3
    simulated(table, tmp_path)
    assert curves(tmp_path) == curves(done)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_folder_with_other_settings_is_refused_and_left_as_it_is(table: tables.Table, done: Path) -> None:
    before = (done / "simulation.json").read_bytes()
    with pytest.raises(InputError, match=r"other settings: budget \(12 -> 13\), seeds \(25 -> 30\)"):
        simulated(table, done, budget=13, seeds=30)
    assert (done / "simulation.json").read_bytes() == before
    simulated(table, done)  # the lock is free


def test_the_description_has_the_mean_after_some_queries_and_says_that_the_images_were_test_images(done: Path) -> None:
    result = json.loads((done / "simulation.json").read_text())
    text = simulation.describe(result)
    lines = {line.split()[0]: line.split() for line in reversed(text.splitlines()) if line}
    heads, first = lines["after"], lines["local"]
    assert heads[:5] == ["after", "1", "5", "10", "12"]
    means = result["curves"]["local"]["mean"]
    assert first[:5] == ["local", *(f"{100 * means[query - 1]:.2f}" for query in (1, 5, 10, 12))]
    assert "paired over seeds (Wilcoxon, Holm, 5%)" in text
    assert "beware: pgd@8/255: measured on test images, on which these searches select." in text


def test_the_figure_is_well_formed_and_has_every_sampler(done: Path) -> None:
    from xml.etree import ElementTree

    root = ElementTree.parse(done / "curves.svg").getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"local", "predictor[random_starts=3]", "queries"} <= texts


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(num_objectives: int) -> None:
    generator = np.random.default_rng(num_objectives)
    reference = np.full(num_objectives, -0.2)
    for _ in range(20):
        points = generator.random((7, num_objectives)).round(1)  # with ties
        points[0] = -1  # does not reach the reference point
        exact = sum(
            (-1) ** (size + 1) * np.prod(np.maximum(np.min(subset, axis=0) - reference, 0))
            for size in range(1, 8)
            for subset in itertools.combinations(points, size)
        )
        assert simulation.hypervolume(points, reference) == pytest.approx(exact)


def test_with_several_objectives_the_curve_is_the_share_of_the_tables_hypervolume(
    table: tables.Table, tmp_path: Path
) -> None:
    objectives = ["clean", "pgd@8/255", "flops"]
    result = simulated(table, tmp_path, objectives=objectives, samplers=["nsga2", "predictor"], seeds=3)
    assert result["noise_floor"] is None
    space = CellSpace(name="tiny", num_nodes=3, operations=OPERATIONS, channels=4, cells_per_stage=1, stages=2)
    costs = [-simulation.multiply_adds(space, space.parse(text)) / 1e6 for text in table.architectures]
    values = np.stack([table.values("clean"), table.values("pgd@8/255"), costs], axis=1)
    low, high = values.min(axis=0), values.max(axis=0)
    assert result["reference_point"] == low.tolist()
    whole = simulation.hypervolume((values - low) / (high - low), np.zeros(3))
    rows = curves(tmp_path)
    for start in range(0, len(rows), BUDGET):
        points = np.array([[row[name] for name in objectives] for row in rows[start : start + BUDGET]])
        for query in (1, 4, BUDGET):
            share = simulation.hypervolume((points[:query] - low) / (high - low), np.zeros(3)) / whole
            assert rows[start + query - 1]["curve"] == pytest.approx(share)
    assert "hypervolume" in simulation.describe(result)


def test_multiply_adds_differ_as_those_counted_in_whole_networks_do() -> None:
    digits = load("digits")
    space = CellSpace(name="tiny", num_nodes=3, operations=OPERATIONS, channels=4, cells_per_stage=2, stages=2)
    counted, closed = [], []
    for text in ("321", "130", "023", "333"):
        cell = space.parse(text)
        with torch.random.fork_rng():
            network = space.network(cell, digits)
        counted.append(complexity.count_multiply_adds(network, (1, 32, 32)))
        closed.append(simulation.multiply_adds(space, cell))
    assert np.diff(counted).tolist() == np.diff(closed).tolist()


def test_a_sampler_is_called_by_its_name_and_its_changed_options() -> None:
    assert simulation.label_of(Predictor()) == "predictor"
    assert simulation.label_of(Predictor(prior="parameters", noise=0.2)) == "predictor[noise=0.2,prior=parameters]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "needs at least 2 seeds, but got 1"),
        ({"budget": 1000}, "The budget must be from 1 to"),
        ({"objectives": ["flops"]}, "at least one of them a column such as pgd@8/255, but got flops"),
        ({"objectives": ["clean", "clean"]}, "must be different ones"),
        ({"objectives": ["autoattack"]}, "has no column 'autoattack'"),
        ({"objectives": ["clean", "pgd@8/255"]}, "'local' maximises one objective, but got 2"),
        ({"samplers": ["locla"]}, "Did you mean 'local'?"),
        ({"samplers": ["predictor[prio=none]"]}, "has no key 'prio'"),
    ],
)
def test_wrong_questions_are_answered_with_a_sentence(
    changes: dict[str, Any], message: str, table: tables.Table, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace("?", r"\?")):
        simulated(table, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_table_that_lacks_a_class_is_not_searched(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.parquet"):
        rows = pq.read_table(path)
        pq.write_table(rows.slice(1) if "pgd" in path.name else rows, tmp_path / path.name)
    with pytest.raises(InputError, match=r"every class of the space, but the table partial lacks 1 of \d+ in pgd"):
        simulated(tables.Table(tmp_path, "partial"), tmp_path / "out")
