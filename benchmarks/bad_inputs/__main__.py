"""Bad inputs, one by one: is each refused in one sentence, soon, with nothing half-written?

    python benchmarks/bad_inputs run --out bad_inputs.json [--kind "command line" ...] [--only WORD] [--sample 40]
    python benchmarks/bad_inputs table bad_inputs.json [--before earlier.json]

`run` makes a small run, an attack folder, an ensemble, a table and a folder of images, and gives every input to a copy of
them in a process of its own. An input holds if the command ends with 2 and says one sentence (a Python call: raises
InputError), in time, without a traceback, and leaves every file as it was. To measure another checkout, put it first on
PYTHONPATH. `--sample` draws at most so many inputs of each kind, the same ones each time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import attack_folders
import calls
import command_line
import data_folders
import ensembles
import models
import recipes
import run_folders
import spaces
import table_files
from cases import Case
from good_files import command, prepare

SECONDS, PATIENCE, GIB = 12, 120, 10
"""The limits of an input: processor time, time, and address space, of which torch itself has a part."""

ALLOWED = re.compile(r"(^|/)(\.lock|environment\.json)$|__pycache__")
"""Files that a command may touch before it refuses: its lock, and the record of who looked at a run."""

KINDS = (
    *(recipes.recipes, command_line.words, run_folders.run_folders, attack_folders.attack_folders, table_files.tables),
    *(models.weights_files, models.models, data_folders.data_folders, calls.calls, ensembles.ensembles),
    *(spaces.architectures, spaces.spaces),
)
"""The bad inputs, kind by kind."""


def listing(folder: Path) -> dict[str, str]:
    """Return a digest of every file in a folder, links and other things by what they are."""
    found = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if ALLOWED.search(key):
                continue
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    found[key] = hashlib.sha256(file.read()).hexdigest()
            else:
                found[key] = "folder" if os.path.isdir(path) else "other"
    return found


def python(code: str) -> int:
    """Run a Python call as a user would; return 2 for an InputError, whose sentence goes to stderr."""
    import torch
    from torch import nn

    import robust_nas as rn

    torch.manual_seed(0)
    data = rn.datasets.load("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 10))
    nan_net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nan_net[1].weight.data.fill_(float("nan"))
    images, labels = data.test.images[:8], data.test.labels[:8]
    given = {"rn": rn, "torch": torch, "data": data, "net": net, "other": other, "nan_net": nan_net}
    given |= {"images": images, "labels": labels, "threat": rn.ThreatModel(epsilon=0.1)}
    try:
        exec(code, given)
    except rn.InputError as error:
        print(f"robust-nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def child(case: Case, folder: Path, out: Path) -> int:
    """Give a bad input to robust-nas in this process, whose output goes to files."""
    if os.getuid() == 0 and "permission" in case.name:
        os.setgid(65534)
        os.setuid(65534)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS + 5))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 (for the rest of the process)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path.insert(0, "")
    try:
        return python(case.words) if isinstance(case.words, str) else command(case.words)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()


def give(case: Case, base: Path, scratch: Path) -> dict[str, Any]:
    """Return the outcome of one bad input: why it did not hold, "" if it did, and the sentence."""
    folder = scratch / "work"
    shutil.copytree(base, folder, symlinks=True)
    case.change(folder)
    if "permission" in case.name and os.getuid() == 0:
        scratch.chmod(0o777)
        for root, folders, files in os.walk(folder):
            for name in (".", *folders, *files):
                os.chown(os.path.join(root, name), 65534, 65534, follow_symlinks=False)
    before, started = listing(folder), time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(case, folder, scratch)
        finally:
            os._exit(code & 0xFF)
    status: int | None = None
    while time.monotonic() - started < PATIENCE:
        done, waited = os.waitpid(pid, os.WNOHANG)
        if done:
            status = waited
            break
        time.sleep(0.005)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    said = (scratch / "stderr").read_text(errors="backslashreplace") if (scratch / "stderr").exists() else ""
    sentences = [line for line in said.splitlines() if line.startswith("robust-nas: ")]
    after = listing(folder)
    changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        status = None
    last = (said.strip().splitlines() or [""])[-1][:160]
    why = ""
    if status is None:
        why = f"no end after {SECONDS} s"
    elif "Traceback" in said:
        why = f"traceback: {last}"
    elif code == 0 and case.may_work:
        return {"kind": case.kind, "name": case.name, "why": "", "sentence": "", "seconds": round(seconds, 2)}
    elif code != 2:
        why = f"ended with {code}"
    elif len(sentences) != 1 or not re.fullmatch(r".{12,1500}[.?]", sentences[0].removeprefix("robust-nas: ")):
        why = f"{len(sentences)} sentences: {' / '.join(sentences)[:200]}"
    elif changed:
        why = f"changed {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}"
    with contextlib.suppress(OSError):
        for root, folders, _ in os.walk(folder):
            for name in folders:
                with contextlib.suppress(OSError):
                    os.chmod(os.path.join(root, name), 0o700)
    return {
        "kind": case.kind, "name": case.name, "why": why, "sentence": (sentences or [last])[0], "seconds": round(seconds, 2),
    }  # fmt: skip


def drawn(cases: list[Case], sample: int | None) -> list[Case]:
    """At most so many of the cases, in their order: the same ones at each call."""
    if sample is None or len(cases) <= sample:
        return cases
    chosen = random.Random(0).sample(range(len(cases)), sample)
    return [cases[place] for place in sorted(chosen)]


def run(out: Path, kinds: list[str], only: str | None, sample: int | None) -> None:
    """Give the bad inputs, and write what became of them, kind by kind."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "ROBUST_NAS_TRACEBACK"):
        os.environ.pop(name, None)
    home = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    os.environ["ROBUST_NAS_HOME"] = str(home / "home")
    home.chmod(0o755)
    base = home / "base"
    base.mkdir()
    prepare(base)
    # Imported once, here: the children share them.
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import robust_nas
    from robust_nas.integrations import vnnlib  # noqa: F401
    from robust_nas.report import explorer, html  # noqa: F401

    print(f"robust-nas at {Path(robust_nas.__file__).parent}", file=sys.stderr)
    found = []
    for group in KINDS:
        cases = drawn(list(group()), sample)
        if kinds and cases[0].kind not in kinds:
            continue
        for case in cases:
            if only and only not in case.name:
                continue
            scratch = home / "case"
            scratch.mkdir()
            found.append(give(case, base, scratch))
            shutil.rmtree(scratch, ignore_errors=True)
            if found[-1]["why"]:
                print(f"{case.kind}: {case.name}: {found[-1]['why']}", flush=True)
            elif only:
                print(f"{case.kind}: {case.name}: {found[-1]['sentence']}", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(home, ignore_errors=True)
    print(f"{sum(not item['why'] for item in found)} of {len(found)} held")


def table(path: Path, before: Path | None) -> None:
    """Print a table of the kinds of bad inputs, how many were tried and how many hold, and those that do not by name."""
    found = json.loads(path.read_text())
    earlier = {(item["kind"], item["name"]): item for item in json.loads(before.read_text())} if before else None
    print(f"| mistake in | tried |{' held before |' if earlier else ''} hold |")
    print(f"|---|---|{'---|' if earlier else ''}---|")
    for kind in [*dict.fromkeys(item["kind"] for item in found), ""]:
        own = [item for item in found if kind in ("", item["kind"])]
        held = sum(not item["why"] for item in own)
        old = f" {sum(not earlier[item['kind'], item['name']]['why'] for item in own)} |" if earlier else ""
        print(f"| {kind or 'all'} | {len(own)} |{old} {held} |")
    failing = [item for item in found if item["why"]]
    print("\nDo not hold:\n" if failing else "\nAll hold.")
    for item in failing:
        print(f"- {item['kind']}: {item['name']}: {item['why']}")


def main() -> None:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    giving = verbs.add_parser("run")
    giving.add_argument("--out", type=Path, required=True)
    giving.add_argument("--kind", nargs="*", default=[])
    giving.add_argument("--only")
    giving.add_argument("--sample", type=int)
    printing = verbs.add_parser("table")
    printing.add_argument("path", type=Path)
    printing.add_argument("--before", type=Path)
    given = parser.parse_args()
    run(given.out.absolute(), given.kind, given.only, given.sample) if given.verb == "run" else table(
        given.path, given.before
    )


if __name__ == "__main__":
    main()
