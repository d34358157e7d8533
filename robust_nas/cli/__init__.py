"""The command line: a file for each family of verbs, put together here. A verb reads words and calls one function."""

from __future__ import annotations

import io
import sys

from robust_nas import __version__
from robust_nas.cli import attack, ending, ensemble, info, proxies, run, scale, search, table
from robust_nas.core.commands import Commands
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.threads import wait_passively

app = Commands(
    "robust-nas",
    "Search neural architectures that hold up under adversarial attack, measure and certify how robust they are.",
    "Start with: robust-nas run digits",
)
app.add("run", run.run)
app.add("search", search.search)
app.add("work", run.work)
app.add("derive", run.derive)
app.add("train", run.train)
app.add("attack", attack.attack)
app.add("certify", run.certify)
app.add("ensemble", ensemble.ensemble)
app.add("report", run.report)
app.add("export", run.export)
app.add("record", run.record)
app.add("list", info.list_)
app.add("info", info.info)
app.add("table", table.app)
app.add("proxies", proxies.app)
app.add("scale", scale.app)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal's encoding lacks are written with escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    wait_passively()
    with unchanged_process(), ending.warnings_said(), ending.answered():
        words = sys.argv[1:]
        if words == ["--version"]:
            print(f"robust-nas {__version__}")
        else:
            app.run(words)
