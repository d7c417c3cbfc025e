"""Everything `cilbench report` writes: run folders → figures, tables and one page, in one folder."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from cilbench.reports import comparability, evidence
from cilbench.reports.analyses.write import Link, links_to_analyses
from cilbench.reports.figures.drawing import Drawn, draw
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.figures.styles import missing_letters
from cilbench.reports.group import Group, groups_of
from cilbench.reports.load import LeftOut, Runs, load_published, read_runs
from cilbench.reports.output import require_ours, settle, stage_in
from cilbench.reports.page.book import Section
from cilbench.reports.page.page import render_page
from cilbench.reports.provenance import printed, provenance_of
from cilbench.reports.tables import render
from cilbench.reports.tables.auc import auc_table
from cilbench.reports.tables.bibtex import TOOL, bibliography, published_bibtex
from cilbench.reports.tables.compute import compute_table
from cilbench.reports.tables.crossings import crossing_table
from cilbench.reports.tables.frontier import frontier_table
from cilbench.reports.tables.iqm import iqm_table
from cilbench.reports.tables.pairs import pair_table
from cilbench.reports.tables.paper import paper_table
from cilbench.reports.tables.ranks import rank_table
from cilbench.reports.tables.results import results_table
from cilbench.reports.tables.table import Table, each_note_once
from cilbench.reports.tables.transfer import transfer_table
from cilbench.reports.tables.variance import variance_table

Progress = Callable[[str, int, int], None]


class NothingToReportError(ValueError):
    """No run could be used; the message is one line and says why not."""


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
    strict: bool = False,
    allow: Collection[str] = (),
    captions: bool = False,
    progress: Progress | None = None,
) -> ReportResult:
    """Read every run under `run_dirs` and write the report into `out`. Never touches a run folder.

    What `cilbench analyse` wrote beside the runs is linked. `command` is printed as what made the report; `published`
    overlays published points on sections of their protocol, recipe and budgets; `captions` writes captions into the PNG
    figures, for slides; `progress` is told (what, done, all). A folder or file that cannot be used is in `left_out`
    with its reason. Files that an earlier report wrote into `out` and this one does not are removed, unless somebody
    changed them.

    Raises NothingToReportError where no run can be used; ForeignFolderError where a file of this report would replace
    one that no report wrote; with `strict` MixedComparisonError where runs differ in anything that `allow` does not
    name (`comparability.ASPECTS`); UnknownAspectError for a name there is not. Nothing is written then.
    """
    comparability.require_known(allow)
    runs = read_runs(run_dirs, partial(progress, "folders read") if progress else None)
    if runs.cells.empty:
        reasons = "; ".join(f"{item.folder.name}: {item.reason}" for item in runs.left_out[:3]) or "there is none"
        raise NothingToReportError(f"no run can be used: {reasons}")
    if strict:
        comparability.refuse(runs.cells, allow)
    require_ours(out)
    groups = groups_of(runs, load_published() if published else None)
    close_ups = [group.close_up for group in groups]
    left_out = (*runs.left_out, *(item for close_up in close_ups for item in close_up.left_out))
    inputs = [runs.inputs_sha256, *(close_up.inputs_sha256 for close_up in close_ups)]
    provenance = provenance_of(runs, left_out, command, hashlib.sha256("\n".join(inputs).encode()).hexdigest())
    analyses = links_to_analyses(run_dirs, list(runs.cells["run"]), out)
    with stage_in(out) as stage:
        _write(stage, runs, groups, left_out, printed(provenance), captions, progress, analyses)
        paths = settle(stage, out, provenance)
    return ReportResult(out / "index.html", paths, len(runs.cells), left_out)


def _write(
    stage: Path,
    runs: Runs,
    groups: Sequence[Group],
    left_out: Sequence[LeftOut],
    provenance: Mapping[str, str],
    captions: bool,
    progress: Progress | None,
    analyses: Sequence[Link],
) -> None:
    """Everything but provenance.json, into `stage`. `provenance` says what made it, `analyses` which of these runs lie
    beside them.
    """
    stamp = "; ".join(f"{key}: {value}" for key, value in provenance.items())
    (stage / "figures").mkdir()
    drawings = [drawing for group in groups for drawing in drawings_of(group)]
    drawing = draw(drawings, stage / "figures", stamp, captions)  # lazy: others draw while this process writes tables
    for name, frame in _csv(runs, groups).items():
        render.write_csv(frame, stage / f"{name}.csv")
    overlaid = published_bibtex() if any(group.published is not None for group in groups) else []
    bibtex = render.bib_text(*bibliography([TOOL, *(text for text in runs.cells["bibtex"] if text), *overlaid]))
    letters = missing_letters(text for group in groups for text in group.texts())
    remarks = [group.wanted for group in groups if group.wanted]
    remarks += [f"No font here has these letters of names: {letters} Figures show boxes for them."] if letters else []
    drawn = list(_with_progress(drawing, len(drawings), progress))
    sections = [section_of(group, drawn) for group in groups]
    page = render_page(sections, runs.cells, left_out, bibtex, provenance, remarks, analyses)
    for name, text in {"index.html": page, **_texts(sections, left_out, bibtex, stamp, remarks)}.items():
        (stage / name).write_text(text, encoding="utf-8", newline="\n")


def tables_of(group: Group) -> list[Table]:
    """Every table that has a row, the paper's first."""
    computed, conditions = group.comparison, group.conditions
    tables = [paper_table(conditions, computed.summary, group.cells)]
    if len(computed.aucs):
        tables.append(auc_table(conditions, computed.aucs, group.cells, group.published_aucs))
    tables.append(results_table(conditions, computed.summary, group.cells))
    if computed.ranks["name"].nunique() > 1:
        tables.append(rank_table(conditions, computed.ranks, group.cells))
    if computed.comparisons["p"].notna().any():
        tables.append(pair_table(conditions, computed.comparisons, group.cells))
    if len(computed.variances):
        tables.append(variance_table(conditions, computed.variances, group.cells))
    if len(computed.interquartile_means):
        tables.append(iqm_table(conditions, computed.interquartile_means, group.cells))
    if (computed.crossings["measure"] == "avg").any():
        tables.append(crossing_table(conditions, computed.crossings, group.cells))
    if group.anything_finished:
        tables.append(transfer_table(conditions, computed.summary, group.cells))
    if len(computed.costs):
        tables.append(compute_table(conditions, computed.costs, group.cells))
    if len(computed.frontiers):
        tables.append(frontier_table(conditions, computed.frontiers, group.cells))
    return each_note_once(tables)


def section_of(group: Group, drawn: Iterable[Drawn]) -> Section:
    """The group as a section of the page; `drawn` may hold figures of other groups as well."""
    return Section(
        anchor=group.slug,
        conditions=group.conditions,
        chips=group.facts(),
        summary=group.comparison.summary,
        figures={
            item.stem.removeprefix(f"{group.slug}-"): item for item in drawn if item.stem.startswith(f"{group.slug}-")
        },
        tables=tuple(tables_of(group)),
        finished=group.comparison.finished,
        stages=group.frame,
        published=group.published,
    )


def _texts(
    sections: Sequence[Section], left_out: Sequence[LeftOut], bibtex: str, stamp: str, remarks: Sequence[str]
) -> dict[str, str]:
    """File name → content of what goes into papers."""
    head = f"% {render.one_line(stamp)}\n"
    named = [(f"{section.title}; {section.conditions_text}", section.tables) for section in sections]
    latex: dict[bool, list[str]] = {False: [], True: []}
    for section in sections:
        for table in section.tables:
            latex[table.supplement].append(render.to_latex(table, f"{table.name}-{section.anchor}"))
    needs = "% needs \\usepackage{booktabs,graphicx,siunitx}\n"
    figures = render.latex_figures([figure for section in sections for figure in section.figures.values()])
    foot = "\n\n".join([*remarks, render.one_line(stamp)])
    return {
        "results.md": render.to_markdown("Results", named, left_out, foot),
        "results.tex": head + needs + "\n".join(latex[False]),
        "supplement.tex": head + needs + "\n".join(latex[True]),
        "figures.tex": head + needs + figures,
        "standalone.tex": head + render.latex_document("results", "figures", "supplement"),
        "references.bib": f"{head}{bibtex}",
    }


def _with_progress(drawing: Iterable[Drawn], number: int, progress: Progress | None) -> Iterator[Drawn]:
    """The figures as they come, each of them said to `progress`."""
    for done, figure in enumerate(drawing, 1):
        if progress:
            progress("figures drawn", done, number)
        yield figure


def _csv(runs: Runs, groups: Sequence[Group]) -> dict[str, pd.DataFrame]:
    """Every number of every table and figure, tidy; the columns `run` and `runs` say where it comes from."""
    found = [item for group in groups for item in group.close_up.evidence]
    computed = [group.comparison for group in groups]
    of_all = {
        "results": [each.summary for each in computed],
        "auc": [each.aucs for each in computed],
        "curves": [each.curves for each in computed],
        "comparisons": [each.comparisons for each in computed],
        "variance": [each.variances for each in computed],
        "iqm": [each.interquartile_means for each in computed],
        "ranks": [each.ranks for each in computed],
        "crossings": [each.crossings for each in computed],
        "spending": [group.spending for group in groups],
        "compute": [each.costs for each in computed],
        "frontiers": [each.frontiers for each in computed],
        "held": [each.held for each in computed],
        "splits": [group.splits for group in groups],
    }
    return {name: pd.concat(frames, ignore_index=True) for name, frames in of_all.items()} | {
        "confusion": evidence.confusion_frame(found),
        "norms": evidence.norm_frame(found),
        "stages": runs.stages.drop(columns=["folder", "bibtex", "config", "class_names"]),
        "runs": runs.cells.drop(columns=["folder", "bibtex", "class_names"]),
        "bytes": runs.ledger,
    }
