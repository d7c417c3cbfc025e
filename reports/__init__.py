"""Reports: run folders → tables, figures and one page. Reads files only; needs neither torch nor the methods.

    from cilbench import reports
    frame = reports.load("runs")                      # a row per run, stage and head
    reports.accuracy_over_memory(frame)               # a matplotlib Figure

`write_report` makes everything at once, as `cilbench report` does; docs/reports.md has every figure and what stands
behind each number.
"""

if __name__ == "reports":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.reports, not reports: the folder is only where that package's files lie")

from cilbench.reports.before_after import Compared, compare, write_comparison
from cilbench.reports.comparability import MixedComparisonError, MixedRunsError, UnknownAspectError
from cilbench.reports.comparison import Comparison
from cilbench.reports.evidence import CloseUp, Evidence, close_up, representatives
from cilbench.reports.figures.balance import old_and_new_classes
from cilbench.reports.figures.changes import changes_of_cells
from cilbench.reports.figures.classes import accuracy_over_classes
from cilbench.reports.figures.confusion import confusion_matrices
from cilbench.reports.figures.kinds import bytes_by_kind
from cilbench.reports.figures.memory import accuracy_over_memory
from cilbench.reports.figures.norms import weight_norms
from cilbench.reports.figures.pareto import accuracy_over_costs
from cilbench.reports.figures.ranks import rank_over_memory
from cilbench.reports.figures.remembered import remembered_images
from cilbench.reports.figures.styles import save
from cilbench.reports.figures.transfer import forgetting_and_transfer
from cilbench.reports.load import LeftOut, Runs, load, load_published, read_runs
from cilbench.reports.output import ForeignFolderError
from cilbench.reports.report import NothingToReportError, ReportResult, write_report

__all__ = [
    "CloseUp",
    "Compared",
    "Comparison",
    "Evidence",
    "ForeignFolderError",
    "LeftOut",
    "MixedComparisonError",
    "MixedRunsError",
    "NothingToReportError",
    "ReportResult",
    "Runs",
    "UnknownAspectError",
    "accuracy_over_classes",
    "accuracy_over_costs",
    "accuracy_over_memory",
    "bytes_by_kind",
    "changes_of_cells",
    "close_up",
    "compare",
    "confusion_matrices",
    "forgetting_and_transfer",
    "load",
    "load_published",
    "old_and_new_classes",
    "rank_over_memory",
    "read_runs",
    "remembered_images",
    "representatives",
    "save",
    "weight_norms",
    "write_comparison",
    "write_report",
]
