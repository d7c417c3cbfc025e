"""Everything `cilbench report` writes: run folders → figures, tables and one page, in one folder."""

import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports import figures, summarise, tables
from cilbench.reports.bibtex import bibliography
from cilbench.reports.load import LeftOut, Runs, load_published, read_runs
from cilbench.reports.page import PageFigure, Section, render_page
from cilbench.reports.styles import PaperColumns, Style, inline_svg, save, styles_of
from cilbench.reports.wording import budget_text, conditions_text, protocol_text, repetitions_text, status_text


@dataclass(frozen=True)
class ReportResult:
    """What was written, what was read and what was left out. `index` is the page."""

    index: Path
    paths: tuple[Path, ...]
    runs: int
    left_out: tuple[LeftOut, ...]


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    command: str = "",
    published: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ReportResult:
    """Read every run under `run_dirs` and write the report into `out`. Never touches a run folder.

    `command` is printed as what made the report; `published` overlays published points on sections of their protocol,
    recipe and budgets; `progress` is told (done, all) while folders are read. A folder that cannot be used is in
    `left_out` with its reason.
    """
    runs = read_runs(run_dirs, progress)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    provenance = _provenance(runs, command)
    entries, remarks = bibliography(text for text in runs.cells["bibtex"] if text)
    paths: list[Path] = []
    sections: list[Section] = []
    markdown, latex, latex_figures = ["# Results\n"], [], []
    if not runs.cells.empty:
        stages = runs.stages
        styles = styles_of(runs.cells["method"])
        overlay = load_published() if published else None
        slugs = _Slugs()
        for group, frame in summarise.groups(stages):
            part = _Group(group, frame, runs, slugs.of(group), styles, overlay)
            drawn = part.draw(out / "figures")
            paths += part.paths
            sections.append(part.section(drawn))
            markdown.append(f"## {tables.markdown_text(part.title)}\n")
            for table in part.tables:
                markdown.append(tables.to_markdown(table))
                latex.append(tables.to_latex(table, f"{table.name}-{part.slug}"))
            latex_figures += [tables.latex_figure(item.stem, item.caption, item.stem) for item in drawn]
        paths += [
            tables.write_csv(summarise.summary(stages), out / "results.csv"),
            tables.write_csv(summarise.aucs(stages), out / "auc.csv"),
            tables.write_csv(stages.drop(columns=["folder", "bibtex", "config"]), out / "stages.csv"),
            tables.write_csv(runs.cells.drop(columns=["folder", "bibtex"]), out / "runs.csv"),
            tables.write_csv(runs.ledger, out / "bytes.csv"),
        ]
    stamp = f"cilbench {provenance['cilbench']}, inputs sha256 {runs.inputs_sha256}"
    bibtex = tables.bib_text(entries, remarks)
    page = render_page(sections, runs.cells, runs.left_out, bibtex, _printed(provenance))
    texts = {
        "index.html": page,
        "results.md": "\n".join([*markdown, *_markdown_left_out(runs.left_out), f"<!-- {stamp} -->", ""]),
        "results.tex": "\n".join([f"% {stamp}", "% needs \\usepackage{booktabs,graphicx}", *latex]),
        "figures.tex": "\n".join([f"% {stamp}", "% needs \\usepackage{graphicx}", *latex_figures]),
        "standalone.tex": tables.latex_document(),
        "references.bib": bibtex,
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / name)
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths.append(out / "provenance.json")
    return ReportResult(out / "index.html", tuple(paths), len(runs.cells), runs.left_out)


# ------------------------------------------------------------------------------------------------ one group


class _Group:
    """The figures and tables of one set of comparable runs."""

    def __init__(
        self,
        group: Mapping[str, Any],
        frame: pd.DataFrame,
        runs: Runs,
        slug: str,
        styles: Mapping[str, Style],
        published: pd.DataFrame | None,
    ) -> None:
        self.group, self.frame, self.slug, self.styles = group, frame, slug, styles
        self.title = f"{protocol_text(group)}; {conditions_text(group)}"
        self.cells = runs.cells[runs.cells["run"].isin(frame["run"])]
        self.ledger = runs.ledger[runs.ledger["run"].isin(frame["run"])]
        self.summary, self.aucs = summarise.summary(frame), summarise.aucs(frame)
        self.published = self._published(published)
        self.paths: list[Path] = []
        self.tables = [tables.results_table(group, self.summary, self.cells)]
        if len(self.aucs):
            self.tables.append(tables.auc_table(group, self.aucs, self.cells))

    def draw(self, folder: Path) -> list[PageFigure]:
        """Make and save every figure at both widths."""

        def classes(columns: PaperColumns) -> Figure:
            return figures.accuracy_over_classes(self.frame, columns, self.styles)

        def memory(columns: PaperColumns) -> Figure:
            return figures.accuracy_over_memory(self.frame, columns, self.styles, self.published)

        def spending(columns: PaperColumns) -> Figure:
            return figures.bytes_by_kind(self.cells, self.ledger, columns)

        several = self.summary.loc[self.summary["competes"], "budget_bytes"].nunique() > 1
        wanted: list[tuple[str, Callable[[PaperColumns], Figure], str]] = [
            ("memory", memory, self._memory_caption(several)),
            ("classes", classes, self._caption("Accuracy on all classes seen, after each task, one panel per budget.")),
            ("bytes", spending, self._spending_caption()),
        ]
        return [self._save(folder, name, make, caption) for name, make, caption in wanted]

    def section(self, drawn: Iterable[PageFigure]) -> Section:
        """The group as a section of the page."""
        budgets = self.cells.drop_duplicates("budget_bytes").sort_values("budget_bytes")
        sizes = zip(budgets["budget_bytes"], budgets["budget_label"], strict=True)
        counts = self.cells["status"].value_counts().sort_index()
        chips = (
            ("protocol", f"Base-{self.group['base']} Inc-{self.group['inc']}, {self.cells['tasks'].max()} tasks"),
            ("recipe", str(self.group["recipe"])),
            ("accounting", str(self.group["accounting"])),
            ("precision", str(self.group["precision"])),
            ("stored as", str(self.group["storage"])),
            ("fill", str(self.group["fill"])),
            ("budgets", ", ".join(f"{budget_text(size, label)} ({size:,} B)" for size, label in sizes)),
            ("seeds", _listed(self.cells["seed"])),
            ("class orders", _listed(self.cells["order"])),
            ("device", ", ".join(sorted(set(self.cells["device"])))),
            ("runs", ", ".join(f"{count} {status_text(str(status))}" for status, count in counts.items())),
        )
        titles = protocol_text(self.group), conditions_text(self.group)
        return Section(self.slug, *titles, chips, self.summary, tuple(drawn), tuple(self.tables))

    def _save(self, folder: Path, name: str, make: Callable[[PaperColumns], Figure], caption: str) -> PageFigure:
        stem = f"{self.slug}-{name}"
        wide, narrow = make(2), make(1)
        self.paths += save(wide, folder / stem) + save(narrow, folder / f"{stem}-1col", ("pdf",))
        return PageFigure(inline_svg(wide, f"{stem}-w"), inline_svg(narrow, f"{stem}-n"), caption, stem)

    def _published(self, published: pd.DataFrame | None) -> pd.DataFrame | None:
        """Published points of this very protocol and recipe, over labelled budgets."""
        if published is None or self.group["recipe"] != "published" or self.frame["budget_label"].isna().any():
            return None
        same = (published["dataset"] == self.group["dataset"]) & (published["base"] == self.group["base"])
        same &= (published["inc"] == self.group["inc"]) & published["budget_mb"].notna()
        return pd.DataFrame(published[same])

    def _caption(self, what: str) -> str:
        done = self.summary[self.summary["competes"] & (self.summary["n"] > 0) & self.summary["published_head"]]
        counts = sorted(set(done["n"]))
        bands = (
            " Bands: 95 % bootstrap intervals over seeds × class orders."
            if counts and max(counts) > 1
            else " No interval: one repetition."
        )
        return f"{what} {self.title}; {repetitions_text(counts)}.{bands if counts else ''}"

    def _memory_caption(self, several: bool) -> str:
        areas = (
            " Beside the names: area under the line, accuracy as a fraction over MB."
            if several and len(self.aucs)
            else ""
        )
        absent = " ×: no result at that budget." if (self.summary["n"] == 0).any() else ""
        read_off = " Open markers: published values, read off a figure." if self.published is not None else ""
        return self._caption(f"Accuracy against the memory budget.{areas}{absent}{read_off}")

    def _spending_caption(self) -> str:
        return f"What each method keeps after the last task, by kind, against its budget (line). {self.title}."


class _Slugs:
    """A short file name for each group, never the same twice."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def of(self, group: Mapping[str, Any]) -> str:
        usual = {"storage": "fp32", "fill": "published"}
        named = [
            column for column in ("recipe", "accounting", "precision", *usual) if group[column] != usual.get(column)
        ]
        conditions = "-".join(str(group[column]) for column in named)
        text = f"{group['dataset']}-b{group['base']}-inc{group['inc']}-{conditions}"
        slug = wanted = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "group"
        number = 1
        while slug in self.used:
            number += 1
            slug = f"{wanted}-{number}"
        self.used.add(slug)
        return slug


# ------------------------------------------------------------------------------------------------ provenance


def _provenance(runs: Runs, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "cilbench": _version("cilbench"),
        "python": platform.python_version(),
        "pandas": _version("pandas"),
        "matplotlib": _version("matplotlib"),
        "numpy": _version("numpy"),
        "inputs_sha256": runs.inputs_sha256,
        "runs": list(runs.cells["run"]),
        "left_out": [{"folder": item.folder.name, "reason": item.reason} for item in runs.left_out],
    }


def _printed(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What the page says of its own making."""
    versions = ", ".join(
        f"{name} {provenance[name]}" for name in ("cilbench", "python", "pandas", "matplotlib", "numpy")
    )
    shown = {"Command": provenance["command"]} if provenance["command"] else {}
    return shown | {"Made with": versions, "Inputs (sha256)": provenance["inputs_sha256"]}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _markdown_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    return [
        "## Left out\n",
        *(f"- {tables.markdown_text(item.folder.name)}: {tables.markdown_text(item.reason)}" for item in left_out),
        "",
    ]


def _listed(numbers: "pd.Series[int]") -> str:
    found = sorted(set(numbers))
    return ", ".join(map(str, found[:6])) + (f", … ({len(found)})" if len(found) > 6 else "")
