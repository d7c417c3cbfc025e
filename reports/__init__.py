"""Reports: run folders → tables, figures and one page. Reads files only; needs neither torch nor the methods.

    from cilbench import reports
    frame = reports.load("runs")                      # a row per run, stage and head
    reports.accuracy_over_memory(frame)               # a matplotlib Figure

`write_report` makes everything at once, as `cilbench report` does.
"""

if __name__ == "reports":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.reports, not reports: the folder is only where that package's files lie")

from cilbench.reports.figures import accuracy_over_classes, accuracy_over_memory, bytes_by_kind
from cilbench.reports.load import LeftOut, Runs, load, load_published, read_runs
from cilbench.reports.report import ReportResult, write_report
from cilbench.reports.styles import save
from cilbench.reports.summarise import MixedRunsError

__all__ = [
    "LeftOut",
    "MixedRunsError",
    "ReportResult",
    "Runs",
    "accuracy_over_classes",
    "accuracy_over_memory",
    "bytes_by_kind",
    "load",
    "load_published",
    "read_runs",
    "save",
    "write_report",
]
