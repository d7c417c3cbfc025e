"""`cilbench audit`: a finished run's sealed files weighed again, from their headers, and compared with its record."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cilbench.budgets.layout import check_layout
from cilbench.budgets.ledger import Allowance, Ledger
from cilbench.records import schema
from cilbench.records.files import MIB, UNREADABLE, printable, sha256_of, size_of
from cilbench.records.schema import CellRecord, LedgerRow


def audit(folder: Path) -> list[str]:
    """Every difference between a finished run and its record, a line each.

    No method's code is imported and nothing in the folder is executed. Nothing is signed: a run that was edited
    everywhere at once, within the budget, agrees.
    """
    problems: list[tuple[Path, str]] = []
    try:
        cell = schema.read_cell(folder / schema.CELL, audited=True)
        problems += [(folder / name, what) for name, what in _changed_files(folder, cell.files)]
        run = _Recorded.read(folder, cell)
        problems += [(folder, what) for what in run.contradictions(folder.resolve().name)]
        for path in sorted((folder / "tasks").glob(f"*/{schema.STATE}")):
            problems += [(path, what) for what in run.differences(path)]
        last = folder / "tasks" / str(max(len(cell.tasks) - 1, 0)) / schema.STATE
        if cell.tasks and not last.is_file():
            problems += [(last, "missing")]
    except UNREADABLE as error:
        problems += [(folder, f"not a whole run folder ({error})")]
    return [printable(f"{path}: {what}", 1000) for path, what in problems]


def _changed_files(folder: Path, sums: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files that are missing or not as they were written; the oldest runs list none."""
    for name, digest in sums.items():
        if Path(name).name != name:
            yield schema.CELL, f"lists a file of another folder: {name!r}"
        elif not (folder / name).is_file():
            yield name, "missing"
        elif size_of(folder / name) > (limit := schema.LIMITS.get(name, schema.LIMITS[schema.LOG])):
            yield name, f"larger than {limit // MIB} MiB"
        elif sha256_of(folder / name) != digest:
            yield name, f"its checksum differs from the one in {schema.CELL}"


@dataclass(frozen=True)
class _Recorded:
    """What a run folder says of itself: cell.json, and the rows of ledger.csv by task."""

    cell: CellRecord
    rows: Mapping[int, list[LedgerRow]]

    @classmethod
    def read(cls, folder: Path, cell: CellRecord) -> "_Recorded":
        """Raises one of `UNREADABLE`."""
        rows = dict[int, list[LedgerRow]]()
        for row in schema.read_table(folder / schema.LEDGER, LedgerRow):
            rows.setdefault(row.task, []).append(row)
        return cls(cell, rows)

    def contradictions(self, folder_name: str) -> Iterator[str]:
        """Where cell.json, ledger.csv and the folder's name do not agree; no sealed file is needed."""
        cell = self.cell
        if cell.id != folder_name:
            yield f"the run says that it is {cell.id!r}"
        extra = sorted(set(self.rows) - set(range(len(cell.tasks))))
        if extra and (cell.status != "over_budget" or extra != [len(cell.tasks)]):
            yield f"{schema.LEDGER} lists tasks that the record does not have: {[task + 1 for task in extra]}"
        if cell.status == "done" and len(cell.tasks) != cell.request.tasks:
            yield f"a finished run of {cell.request.tasks} tasks has records of {len(cell.tasks)}"
        for record in cell.tasks:
            for column in ("published_bytes", "strict_bytes"):
                told = getattr(record, column)
                listed = sum(getattr(row, column) for row in self.rows.get(record.task, []))
                if listed != told:
                    yield f"task {record.task + 1}: {column} are {told} in {schema.CELL}, {listed} in {schema.LEDGER}"
            spent = record.published_bytes if cell.request.accounting == "published" else record.strict_bytes
            if spent > cell.request.budget_bytes and (cell.card.competes or cell.card.bounded):
                yield f"task {record.task + 1}: {spent} B of a budget of {cell.request.budget_bytes} B"

    def differences(self, path: Path) -> list[str]:
        """Where a sealed file is not what was recorded of it."""
        record = {str(record.task): record for record in self.cell.tasks}.get(path.parent.name)
        if record is None:
            return ["a sealed state of a task that the record does not have"]
        if (size := size_of(path)) != record.sealed_bytes:
            return [f"sealed bytes: {size} on disk, {record.sealed_bytes} recorded"]
        request = self.cell.request
        try:
            ledger = Ledger.of_sealed(path, Allowance(request.classes, math.prod(request.image_shape)))
            if self.cell.plan and self.cell.plan.layout:
                check_layout(ledger, self.cell.plan.layout, record.task)
        except ValueError as error:
            return [str(error)]
        checks = [
            ("published bytes", ledger.published, record.published_bytes),
            ("strict bytes", ledger.strict, record.strict_bytes),
            ("sha256", sha256_of(path), record.sealed_sha256),
        ]
        found = [f"{what}: {now} on disk, {then} recorded" for what, now, then in checks if now != then]
        weighed = [schema.validated(LedgerRow, {"task": record.task, **row}, schema.STATE) for row in ledger.rows()]
        same = weighed == self.rows.get(record.task, [])
        return found if same else [*found, f"{schema.LEDGER} lists other tensors than the file holds"]
