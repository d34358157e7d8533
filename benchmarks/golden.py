"""Five short jobs with fixed seeds, and the numbers that they end with: what a change of structure must not change.

    python benchmarks/golden.py record before.json      # at the commit before
    python benchmarks/golden.py compare before.json     # at the commit after, on the same machine

The jobs are `digits` through all stages, `digits-certified`, a search of the DARTS space that shrinks, a simulated
search of a published table, and an attack of trained networks. Compared are the values of all result files but times,
places, versions and folders' names, digests of all weights, and the rows of all per-image tables. It takes three
minutes on a core; the table must be there (`robust-nas table fetch nas-robbench-201`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QUICK = [
    "workers=1",
    "threads=1",
    "train.epochs=2",
    "evaluation.num_images=16",
    "evaluation.masking_images=8",
    "evaluation.curve_epsilons=[0.1]",
    "certification.num_images=4",
    "derive.count=2",
    "derive.pool=3",
    "ensemble.num_images=8",
]

COMMANDS = {
    "digits": "run digits search.epochs=3",
    "digits-certified": "run digits-certified search.epochs=3",
    "darts": "search darts-7 --data digits --threat linf:0.2 space.channels=4 space.num_cells=3 search.epochs=2 "
    "search.batch_size=128 search.alpha_frozen=0 search.kept_operations=[7,3] search.partial_channels=[2,1] "
    "search.watch.growth=1.33 workers=1 threads=1",
    "table": "search --on table:nas-robbench-201 --dataset cifar10 --objective pgd@8/255 --budget 20 --seeds 2 "
    "--sampler evolution --sampler tpe --sampler random",
    "attack": "attack RUN --threat linf:0.2 --threat l2:1 --images 16 --distances fab",
}
JOBS = {name: [*command.split(), *(QUICK if command.startswith("run") else [])] for name, command in COMMANDS.items()}

# What differs between two runs that are equal.
PASSING = ("seconds", "time", "commit", "started", "arguments", "environment", "folder", "path", "table", "processes")


def main() -> None:
    """Record, or record and compare."""
    parser = argparse.ArgumentParser(description="Short jobs whose numbers a change of structure must not change.")
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--job", action="append", choices=list(JOBS), help="only this one; repeatable")
    chosen = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.job or JOBS:
            found[name] = run(name, Path(folder))
            if chosen.what == "record":
                chosen.file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if chosen.what == "record":
        return
    before, different = json.loads(chosen.file.read_text(encoding="utf-8")), 0
    for name, values in found.items():
        changes = differences(before[name], values)
        print(f"{name}: {len(values)} values, {len(changes)} different")
        for change in changes[:20]:
            print(f"  {change}")
        different += len(changes)
    sys.exit(different > 0)


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a job in `folder` and return its numbers by file and key."""
    words = list(JOBS[name])
    if "RUN" in words:
        if not (folder / "digits").is_dir():
            run("digits", folder)
        words[words.index("RUN")] = str(next(path for path in (folder / "digits").iterdir() if path.name != "table"))
    out = folder / name
    print(f"robust-nas {' '.join(JOBS[name])}", file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-P", "-m", "robust_nas", *words, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    is_run = words[0] == "run" or "--data" in words
    made = [path for path in out.iterdir() if path.is_dir() and path.name != "table"] if is_run else [out]
    return {key: value for path in made for key, value in numbers(path).items()}


def numbers(folder: Path) -> dict[str, Any]:
    """Return every value of a folder's result files by file and key."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and path.name not in ("environment.json", "record.json"):
            flatten(name, json.loads(path.read_text(encoding="utf-8")), found)
        elif path.name == "metrics.jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                flatten(f"{name}:{number}", json.loads(line), found)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            for key, tensor in load_file(path).items():
                found[f"{name}:{key}"] = hashlib.blake2b(tensor.numpy().tobytes(), digest_size=8).hexdigest()
        elif path.suffix == ".parquet":
            import pandas as pd

            for column, values in pd.read_parquet(path).items():
                if not is_passing(str(column)):
                    found[f"{name}:{column}"] = [str(value) for value in values]
        elif path.name == "architecture.txt":
            found[name] = path.read_text(encoding="utf-8")
    return found


def flatten(name: str, value: Any, found: dict[str, Any]) -> None:
    """Add what a JSON value holds to `found`, a number or word at a time."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not is_passing(key):
                flatten(f"{name}:{key}", item, found)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            flatten(f"{name}:{number}", item, found)
    else:
        found[name] = str(value)


def is_passing(key: str) -> bool:
    """Whether a key's value may differ between two runs that are equal."""
    return any(word in key for word in PASSING)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences, a line each; folders' ids do not count."""
    before, after = (
        {re.sub(r"-[0-9a-f]{6,8}/", "/", key): value for key, value in of.items()} for of in (before, after)
    )
    return [
        f"{key}: {str(before.get(key, 'nothing'))[:60]} -> {str(after.get(key, 'nothing'))[:60]}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


if __name__ == "__main__":
    main()
