"""The report of a run: one HTML page that opens anywhere, from the files in the run folder.

    report.write_report(RunDir.open("runs/20260101-digits-1a2b3c"))      # writes report.html there

`html` is the page, `findings` the sentences that are drawn from the numbers, `plots` and `drawing` the figures.
"""

from robust_nas.report.html import write_report

__all__ = ["write_report"]
