"""The accountant: how many bytes a state has, what each convention charges, and what still fits.

Knows nothing of methods or data sets; uses torch for tensors alone.
"""

if __name__ == "budgets":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.budgets, not budgets: the folder is only where that package's files lie")

from cilbench.budgets.layout import Layout, layout_of
from cilbench.budgets.ledger import KINDS, Accounting, Allowance, Entry, Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall, DoesNotFit
from cilbench.budgets.sealed import seal, unseal
from cilbench.budgets.size import MIB, format_bytes, human_bytes, parse_budget_mb, parse_bytes
from cilbench.budgets.weighing import Weight, weigh

__all__ = [
    "KINDS",
    "MIB",
    "Accounting",
    "Allowance",
    "Budget",
    "BudgetTooSmall",
    "DoesNotFit",
    "Entry",
    "Layout",
    "Ledger",
    "Weight",
    "format_bytes",
    "human_bytes",
    "layout_of",
    "parse_budget_mb",
    "parse_bytes",
    "seal",
    "unseal",
    "weigh",
]
