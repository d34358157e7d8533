"""How well scores rank a table's architectures: statistics against SciPy, and the command as people use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.runtime.progress import Progress
from robust_nas.studies import ranking

if TYPE_CHECKING:
    from robust_nas.tables import Table

SMALL = ["space.channels=1", "space.cells_per_stage=1", "space.stem_stride=2"]


def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return two related variables with ties, [60], and how often each pair occurs, [8, 60]."""
    generator = np.random.default_rng(0)
    one = generator.integers(12, size=60).astype(float)
    other = one + generator.normal(size=60) * 4
    other[::7] = other[0]
    return one, other, generator.integers(4, size=(8, 60)).astype(float)


def test_the_correlations_of_weighted_values_are_scipy_s_of_repeated_ones() -> None:
    one, other, weights = sample()
    for statistic, reference in ((ranking.kendall, stats.kendalltau), (ranking.spearman, stats.spearmanr)):
        found = statistic(one, other, weights)
        for row, value in zip(weights.astype(int), found, strict=True):
            assert value == pytest.approx(reference(one.repeat(row), other.repeat(row)).statistic, abs=1e-12)


def test_a_correlation_with_what_does_not_vary_is_not_a_number() -> None:
    one, _, weights = sample()
    for statistic in (ranking.kendall, ranking.spearman):
        assert np.isnan(statistic(one, np.ones(60), weights)).all()


def test_the_top_decile_has_a_tenth_of_the_sample_and_ties_share_its_edge() -> None:
    weights = np.ones((1, 20))
    share = ranking.top_membership(np.arange(20.0), weights)
    assert share[0].tolist() == [0.0] * 18 + [1.0, 1.0]
    # One is above the edge; the three at it share the other place.
    tied = ranking.top_membership(np.array([9.0, 5, 5, 5, *range(-16, 0)]), weights)
    assert tied[0].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3] + [0] * 16)
    one, _, weights = sample()
    sizes = (weights * ranking.top_membership(one, weights)).sum(axis=1)
    assert sizes.tolist() == pytest.approx(np.round(weights.sum(axis=1) / 10).tolist())


def test_a_perfect_score_a_reversed_one_and_a_constant_one() -> None:
    values = np.random.default_rng(1).normal(size=100)
    scores = {"same": np.stack([values, values**3]), "reversed": -values[None], "constant": np.ones((1, 100))}
    found = ranking.agreement(scores, values)
    for name, wanted in {"same": 1.0, "reversed": -1.0}.items():
        for measure in ("kendall", "spearman", "top_spearman"):
            assert found["proxies"][name][measure]["mean"] == pytest.approx(wanted)
    assert [found["proxies"][name]["top_overlap"]["mean"] for name in scores] == pytest.approx([1.0, 0.0, 0.1])
    assert np.isnan(found["proxies"]["constant"]["spearman"]["mean"])
    difference = found["differences"][0]
    assert (difference["first"], difference["second"]) == ("same", "reversed")
    assert difference["mean"] == pytest.approx(2.0) == pytest.approx(difference["low"])


def test_the_interval_is_that_of_normal_theory_for_independent_normal_values() -> None:
    # Spearman's correlation of n independent pairs has the standard deviation 1 / sqrt(n - 1).
    generator = np.random.default_rng(2)
    found = ranking.agreement({"noise": generator.normal(size=(1, 200))}, generator.normal(size=200))
    interval = found["proxies"]["noise"]["spearman"]
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 / 199**0.5, rel=0.15)
    assert interval["low"] < interval["mean"] < interval["high"]


def test_the_statistics_are_of_each_seed_and_their_mean() -> None:
    values = np.arange(30.0)
    noise = values + np.random.default_rng(3).normal(size=30) * 10
    found = ranking.agreement({"proxy": np.stack([values, noise])}, values)["proxies"]["proxy"]["spearman"]
    wanted = [1.0, stats.spearmanr(noise, values).statistic]
    assert found["seeds"] == pytest.approx(wanted) and found["mean"] == pytest.approx(np.mean(wanted))


# The command


@pytest.fixture
def rank(
    command: Callable[..., CompletedProcess[str]], robbench: Table, tmp_path: Path
) -> Callable[..., CompletedProcess[str]]:
    """Return a caller of `robust-nas proxies rank` on the published table and the digits, in its own folder."""

    def run(*words: str) -> CompletedProcess[str]:
        with mock.patch.object(tables, "load", lambda _: robbench):
            return command("proxies", "rank", "nas-robbench-201", "--out", tmp_path, *words)

    return run


QUICK = ["--data", "digits", "--architectures", "20", "--seeds", "1", "--batch-size", "4", *SMALL]


def folder_of(tmp_path: Path) -> Path:
    (folder,) = tmp_path.iterdir()
    return folder


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(tmp_path) / "scores.jsonl").read_text().splitlines()]


def test_the_command_prints_how_scores_rank_every_column_that_was_asked_for(
    rank: Callable[..., CompletedProcess[str]], tmp_path: Path, robbench: Table
) -> None:
    words = ["dataset=cifar10", "--proxy", "num_params", "--proxy", "zen[alpha=0.02]", *QUICK]
    done = rank(*words)
    assert done.returncode == 0, done.stderr
    assert "20 architectures" in done.stdout and "zen[alpha=0.02]" in done.stdout
    assert "cifar10 pgd@8/255:" in done.stdout and "cifar10 autoattack" in done.stdout and "cifar100" not in done.stdout
    result = json.loads((folder_of(tmp_path) / "ranking.json").read_text())
    rows = rows_of(tmp_path)
    assert len(rows) == 20 * 2 and len({row["architecture"] for row in rows}) == 20
    # The statistics are those of the rows that were written, and of the published numbers.
    scores = [row["score"] for row in rows if row["proxy"] == "num_params"]
    for given in result["columns"]:
        (column,) = (one for one in robbench.columns if f"{one.dataset} {one.label}" == given["name"])
        values = [
            robbench.query(row["architecture"], **asdict(column)).mean for row in rows if row["proxy"] == "num_params"
        ]
        found = given["proxies"]["num_params"]
        assert found["kendall"]["mean"] == pytest.approx(stats.kendalltau(scores, values).statistic)
        assert found["spearman"]["mean"] == pytest.approx(stats.spearmanr(scores, values).statistic)
    again = rank(*words)
    assert again.stdout == done.stdout and rows_of(tmp_path) == rows


def test_an_interrupted_ranking_goes_on_and_more_may_be_asked_of_its_folder(
    rank: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ["pgd@8/255", "dataset=cifar10", "--proxy", "snip"]
    assert rank(*words, *QUICK).returncode == 0
    whole = rows_of(tmp_path)
    # Killed while it wrote the seventh line.
    path = folder_of(tmp_path) / "scores.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:20])
    assert rank(*words, *QUICK).returncode == 0
    found = rows_of(tmp_path)
    assert [(row["architecture"], row["score"]) for row in found] == [
        (row["architecture"], row["score"]) for row in whole
    ]
    assert found[:6] == whole[:6], "what was there is not done again"
    # More architectures, seeds and scores: the first ones are kept.
    more = [word for word in QUICK if word not in ("20", "1")]
    more[more.index("--architectures") + 1 : more.index("--architectures") + 1] = ["22"]
    more[more.index("--seeds") + 1 : more.index("--seeds") + 1] = ["2"]
    assert rank(*words, "--proxy", "num_params", *more).returncode == 0
    extended = rows_of(tmp_path)
    assert extended[:20] == found and len(extended) == 22 * 2 * 2
    assert len({(row["architecture"], row["seed"], row["proxy"]) for row in extended}) == len(extended)


def test_a_seed_has_other_images_and_other_weights(rank: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    words = [*QUICK[:5], "2", *QUICK[6:]]
    assert rank("pgd@8/255", "dataset=cifar10", "--proxy", "grad_norm", *words).returncode == 0
    first, second = ([row["score"] for row in rows_of(tmp_path) if row["seed"] == seed] for seed in (0, 1))
    connected = [Architecture.parse(row["architecture"]).is_connected for row in rows_of(tmp_path) if not row["seed"]]
    assert all(one != other for one, other, known in zip(first, second, connected, strict=True) if known)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pgd@8/255", "--proxy", "ntkk"], "has no 'ntkk'. Did you mean 'ntk'?"),
        (["pgd@8/255", "--proxy", "ntk[chunks=3]"], "has no key 'chunks'. Did you mean 'chunk_size'?"),
        (["pgd@9/255"], "has no column 'pgd@9/255'"),
        (["dataset=cifar11"], "Did you mean 'cifar10'?"),
        (["clean", "pgd@8/255"], "and one label, such as pgd@8/255, but got 'pgd@8/255'"),
        (["clean", "--architectures", "5"], "The number of architectures must be a whole number of at least 20"),
        (["clean", "--architectures", "7000"], "has 6466 classes in all columns that were asked for, but 7000"),
        (["clean", "--seeds", "0"], "The number of seeds must be a whole number of at least 1"),
        (["clean", "--threat", "linf"], "such as linf:8/255, but got 'linf'"),
        (["clean", "--data", "nothing"], "no data set or folder 'nothing'"),
        (["clean", "--batch-size", "100000"], "A batch of 100000 is larger than the"),
        (["clean", "space.channel=8"], "has no key 'channel'. Did you mean 'channels'?"),
        (["dataset=imagenet16-120"], "give images with --data"),
    ],
)
def test_a_mistake_is_said_in_a_sentence_and_leaves_nothing(
    rank: Callable[..., CompletedProcess[str]], tmp_path: Path, words: list[str], message: str
) -> None:
    data = [] if "--data" in words or "dataset=imagenet16-120" in words else ["--data", "digits"]
    done = rank(*words, *data)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())
    assert "Traceback" not in done.stderr


def test_a_table_that_is_not_there_is_named(command: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    done = command("proxies", "rank", tmp_path / "no-table")
    assert done.returncode == 2 and "There is no table" in done.stderr


def test_columns_of_two_kinds_of_network_are_refused(robbench: Table) -> None:
    from dataclasses import replace

    column = robbench.columns[0]
    with pytest.raises(InputError, match="are of 2 kinds of network"):
        ranking.from_words(robbench, [column, replace(column, skeleton="channels=3")], data="digits")


def test_the_same_from_python(robbench: Table, tmp_path: Path) -> None:
    columns = robbench.select("pgd@8/255", dataset="cifar10")
    scoring = ranking.from_words(
        robbench, columns, SMALL, data="digits", proxy=["num_params"], num_architectures=20, seeds=1
    )
    result = ranking.run(robbench, columns, scoring, tmp_path, Progress(quiet=True))
    assert result["columns"][0]["proxies"]["num_params"]["spearman"]["mean"] > 0.5
    assert "num_params" in ranking.text(result)
