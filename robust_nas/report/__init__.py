"""The reports: one HTML page that opens anywhere, from the files in a folder.

    report.write_report(RunFolder.open("runs/20260101-digits-1a2b3c"))      # of a run: writes report.html there
    report.write_attack_report(Path("runs/attack-1a2b3c4d"))             # of `robust-nas attack MODEL ...`

`html` is the page of a run and `attack_page` that of a stand-alone attack; the sections that both have are in
`_results`, `_pictures` and `_checks`. `findings` has the sentences that are drawn from the numbers; `plots`,
`attack_plots` and `drawing` have the figures.
"""

from robust_nas.report.attack_page import write_attack_report
from robust_nas.report.html import write_report

__all__ = ["write_attack_report", "write_report"]
