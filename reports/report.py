"""Everything `cilbench report` writes: run folders → figures, tables and one page, in one folder."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed
from matplotlib.figure import Figure

from cilbench.reports import closeups, evidence, figures, lint, summarise, tables
from cilbench.reports.bibtex import bibliography
from cilbench.reports.load import LeftOut, Runs, load_published, read_runs
from cilbench.reports.page import PageFigure, Section, render_page
from cilbench.reports.provenance import made_with, versions
from cilbench.reports.styles import Style, inline_svg, save, styles_by_name
from cilbench.reports.wording import budget_text, conditions_text, protocol_text, repetitions_text, status_text

Progress = Callable[[str, int, int], None]

_PROVENANCE = "provenance.json"
_MOST_PROCESSES = 4  # to draw in: more do not pay for their start


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
    progress: Progress | None = None,
) -> ReportResult:
    """Read every run under `run_dirs` and write the report into `out`. Never touches a run folder.

    `command` is printed as what made the report; `published` overlays published points on sections of their protocol,
    recipe and budgets; `progress` is told (what, done, all). A folder or file that cannot be used is in `left_out` with
    its reason. Files that an earlier report wrote into `out` and this one does not are removed, unless somebody changed
    them. `strict` raises MixedComparisonError, and writes nothing, where runs differ in anything that `allow` does not
    name (`lint.ASPECTS`); UnknownAspectError for a name there is not.
    """
    runs = read_runs(run_dirs, partial(progress, "folders read") if progress else None)
    lint.require_known(allow)
    if strict:
        lint.refuse(runs.cells, allow)
    groups = _groups(runs, published)
    close_ups = [group.close_up for group in groups]
    left_out = (*runs.left_out, *(item for close_up in close_ups for item in close_up.left_out))
    inputs_sha256 = _digest([runs.inputs_sha256, *(close_up.inputs_sha256 for close_up in close_ups)])
    provenance = _provenance(runs, left_out, command, inputs_sha256)
    stamp = "; ".join(f"{key}: {value}" for key, value in _printed(provenance).items())

    (out / "figures").mkdir(parents=True, exist_ok=True)
    drawn = [group.draw(out / "figures", stamp, progress) for group in groups]
    paths = [path for figures_of_group in drawn for item in figures_of_group for path in item.paths]
    paths += [tables.write_csv(frame, out / f"{name}.csv") for name, frame in _csv(runs, groups).items()]
    entries, remarks = bibliography(text for text in runs.cells["bibtex"] if text)
    bibtex = tables.bib_text(entries, remarks)
    pages = [[item.page for item in figures_of_group] for figures_of_group in drawn]
    sections = [group.section(figures_of_group) for group, figures_of_group in zip(groups, pages, strict=True)]
    texts = {
        "index.html": render_page(sections, runs.cells, left_out, bibtex, _printed(provenance), out),
        "results.md": _markdown(groups, left_out, stamp),
        "results.tex": "\n".join(
            [
                f"% {tables.one_line(stamp)}",
                "% needs \\usepackage{booktabs,graphicx}",
                *(t for g in groups for t in g.latex()),
            ]
        ),
        "figures.tex": "\n".join(
            [
                f"% {tables.one_line(stamp)}",
                "% needs \\usepackage{graphicx}",
                *(tables.latex_figure(item.stem, item.caption, item.stem) for page in pages for item in page),
            ]
        ),
        "standalone.tex": f"% {tables.one_line(stamp)}\n{tables.latex_document()}",
        "references.bib": f"% {tables.one_line(stamp)}\n{bibtex}",
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / name)
    _settle(out, paths, provenance)
    return ReportResult(out / "index.html", (*paths, out / _PROVENANCE), len(runs.cells), left_out)


# ------------------------------------------------------------------------------------------------ one group


@dataclass(frozen=True)
class _Drawing:
    """A figure to be made: `make(paper_columns=…)` returns it."""

    stem: str
    caption: str
    make: Callable[..., Figure]


@dataclass(frozen=True)
class _Drawn:
    """A figure as the page has it, and the files that were written."""

    page: PageFigure
    paths: tuple[Path, ...]


def _groups(runs: Runs, published: bool) -> list["_Group"]:
    if runs.cells.empty:
        return []
    methods, slugs = sorted(set(runs.cells["method"])), _Slugs()
    overlay = load_published() if published else None
    return [
        _Group(group, frame, runs, slugs.of(group), styles_by_name(frame, methods), overlay)
        for group, frame in summarise.groups(runs.stages)
    ]


# What figures do not need of a frame of stages: it is sent to other processes.
_UNDRAWN = ["folder", "title", "arxiv", "bibtex", "port", "config", "class_names", "platform", "git_commit"]


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
        self.comparison = summarise.Comparison(frame.drop(columns=_UNDRAWN))
        self.spending = summarise.spending(self.cells, self.ledger)
        tests = runs.tests[runs.tests["run"].isin(frame["run"])]
        self.close_up = evidence.close_up(evidence.representatives(self.cells), tests)
        self.published, self.without_published = self._published(published)
        self.tables = self._tables()

    def _tables(self) -> list[tables.Table]:
        """Only those that have a row."""
        made = [tables.results_table(self.group, self.comparison.summary, self.cells)]
        if len(self.comparison.aucs):
            made.append(tables.auc_table(self.group, self.comparison.aucs, self.cells))
        if self.comparison.ranks["name"].nunique() > 1:
            made.append(tables.rank_table(self.group, self.comparison.ranks, self.cells))
        if (self.comparison.crossings["measure"] == "avg").any():
            made.append(tables.crossing_table(self.group, self.comparison.crossings, self.cells))
        if len(self.comparison.ranks):
            made.append(tables.transfer_table(self.group, self.comparison.summary, self.cells))
        return made

    def draw(self, folder: Path, stamp: str, progress: Progress | None = None) -> list[_Drawn]:
        """Make and save every figure at both widths, in several processes."""
        wanted = self._drawings()
        processes = min(cpu_count(), _MOST_PROCESSES, len(wanted))
        drawn = []
        for item in Parallel(n_jobs=processes, return_as="generator")(
            delayed(_save)(drawing, folder, stamp) for drawing in wanted
        ):
            drawn.append(item)
            if progress:
                progress("figures drawn", len(drawn), len(wanted))
        return drawn

    def _drawings(self) -> list[_Drawing]:
        cells = self.cells.drop(columns=_UNDRAWN)
        several = self.comparison.summary.loc[self.comparison.summary["competes"], "budget_bytes"].nunique() > 1
        over_budgets = partial(
            figures.accuracy_over_memory, self.comparison, styles=self.styles, published=self.published
        )
        wanted: list[tuple[str, Callable[..., Figure], str]] = [
            ("memory", over_budgets, self._memory_caption(several)),
            (
                "classes",
                partial(figures.accuracy_over_classes, self.comparison, styles=self.styles),
                self._caption("Accuracy on all classes seen, after each task, one panel per budget."),
            ),
            (
                "bytes",
                partial(figures.bytes_by_kind, cells, self.ledger),
                "What each method keeps after the last task, by kind and in both accountings, against its budget "
                f"(line). {self.title}.",
            ),
        ]
        if len(self.comparison.ranks):
            wanted += [
                (
                    "balance",
                    partial(figures.old_and_new_classes, self.comparison, styles=self.styles),
                    self._caption("Accuracy on the classes of earlier tasks and on those of the latest, after each."),
                ),
                (
                    "transfer",
                    partial(figures.forgetting_and_transfer, self.comparison, styles=self.styles),
                    self._caption(
                        f"Forgetting, backward transfer and intransigence, in points.{self._without_ceiling()}"
                    ),
                ),
            ]
        if several and self.comparison.ranks["name"].nunique() > 1:
            about = "Rank at each budget; open markers: the paired comparisons leave other ranks."
            wanted.append(
                (
                    "ranks",
                    partial(figures.rank_over_memory, self.comparison, styles=self.styles),
                    self._caption(about, bands=False),
                )
            )
        wanted += self._close_ups()
        return [_Drawing(f"{self.slug}-{name}", caption, make) for name, make, caption in wanted]

    def _close_ups(self) -> list[tuple[str, Callable[..., Figure], str]]:
        """Figures of one run per method; only those that some run has the data of."""
        found = self.close_up.evidence
        if not found:
            return []
        first = found[0].cell
        where = (
            f"One run per method: {budget_text(first['budget_bytes'], first['budget_label'])}, "
            f"seed {_listed([item.cell['seed'] for item in found])}, "
            f"class order {_listed([item.cell['order'] for item in found])}. {self.title}."
        )
        wanted: list[tuple[str, str, Callable[..., Figure], str]] = [
            (
                "confusion",
                "confusion",
                partial(closeups.confusion_matrices, found),
                "Test images by true and predicted class, after the last task.",
            ),
            (
                "norms",
                "norms",
                partial(closeups.weight_norms, found, styles=self.styles),
                "L2 norm of the classifier's weights of each class, after the last task.",
            ),
            (
                "remembered",
                "remembered",
                partial(closeups.remembered_images, found),
                "What is carried of each class after the last task, decoded from the stored bytes: exemplars, or "
                "images that the generator makes.",
            ),
        ]
        return [
            (name, make, f"{about} {where}")
            for name, what, make, about in wanted
            if any(getattr(item, what) is not None for item in found)
        ]

    def latex(self) -> list[str]:
        """Every table of the group."""
        return [tables.to_latex(table, f"{table.name}-{self.slug}") for table in self.tables]

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
        return Section(
            self.slug, *titles, chips, self.comparison.summary, tuple(drawn), tuple(self.tables), stages=self.frame
        )

    def _published(self, published: pd.DataFrame | None) -> tuple[pd.DataFrame | None, str]:
        """Published points of this very protocol, recipe and accounting; or a sentence that says why there are none."""
        if published is None:
            return None, ""
        same = (published["dataset"] == self.group["dataset"]) & (published["base"] == self.group["base"])
        same &= (published["inc"] == self.group["inc"]) & published["budget_mb"].notna()
        differ = [term for term in ("recipe", "accounting") if self.group[term] != "published"]
        if not same.any():
            return None, " No published points: none of this protocol are known."
        if differ or self.frame["budget_label"].isna().any():
            of = " and ".join(differ) or "budgets"
            return None, f" No published points: they are of the published {of}."
        return pd.DataFrame(published[same]), ""

    def _caption(self, what: str, bands: bool = True) -> str:
        done = self.comparison.summary[
            self.comparison.summary["competes"]
            & (self.comparison.summary["n"] > 0)
            & self.comparison.summary["published_head"]
        ]
        n = f"{self.title}; {repetitions_text(done['n'])}."
        said = ""
        if bands and len(done):
            words = tables.interval_words(done["units"])
            said = f" Bands: {words}." if done["n"].max() > 1 else " No interval: one repetition."
        return " ".join(filter(None, [what, n + said, *lint.within(self.cells)]))

    def _memory_caption(self, several: bool) -> str:
        areas = (
            " Beside the names: area under the line, accuracy as a fraction over MB."
            if several and len(self.comparison.aucs)
            else ""
        )
        absent = " ×: no result at that budget." if (self.comparison.summary["n"] == 0).any() else ""
        read_off = " Open markers: published values, read off a figure." if self.published is not None else ""
        return self._caption(f"Accuracy against the memory budget.{areas}{absent}{read_off}{self.without_published}")

    def _without_ceiling(self) -> str:
        known = self.comparison.summary.loc[self.comparison.summary["competes"], "intransigence"].notna().any()
        return "" if known else " Intransigence needs runs of joint on the same seeds and class orders: none here."


def _save(drawing: _Drawing, folder: Path, stamp: str) -> _Drawn:
    """Make one figure at both widths and write its files."""
    wide, narrow = drawing.make(paper_columns=2), drawing.make(paper_columns=1)
    stem = folder / drawing.stem
    paths = save(wide, stem, stamp=stamp) + save(narrow, folder / f"{drawing.stem}-1col", ("pdf",), stamp)
    svgs = inline_svg(wide, f"{drawing.stem}-w"), inline_svg(narrow, f"{drawing.stem}-n")
    return _Drawn(PageFigure(*svgs, drawing.caption, drawing.stem), tuple(paths))


class _Slugs:
    """A short file name for each group, never the same twice."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def of(self, group: Mapping[str, Any]) -> str:
        usual = {"storage": "fp32", "fill": "published", "augmentation": ""}
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


# ------------------------------------------------------------------------------------------------ files


def _csv(runs: Runs, groups: Sequence[_Group]) -> dict[str, pd.DataFrame]:
    """Every number of every table and figure, tidy; the columns `run` and `runs` say where it comes from."""
    if not groups:
        return {}
    found = [item for group in groups for item in group.close_up.evidence]
    return {
        "results": pd.concat([group.comparison.summary for group in groups], ignore_index=True),
        "auc": pd.concat([group.comparison.aucs for group in groups], ignore_index=True),
        "curves": pd.concat([group.comparison.curves for group in groups], ignore_index=True),
        "comparisons": pd.concat([group.comparison.comparisons for group in groups], ignore_index=True),
        "ranks": pd.concat([group.comparison.ranks for group in groups], ignore_index=True),
        "crossings": pd.concat([group.comparison.crossings for group in groups], ignore_index=True),
        "spending": pd.concat([group.spending for group in groups], ignore_index=True),
        "confusion": evidence.confusion_frame(found),
        "norms": evidence.norm_frame(found),
        "stages": runs.stages.drop(columns=["folder", "bibtex", "config", "class_names"]),
        "runs": runs.cells.drop(columns=["folder", "bibtex", "class_names"]),
        "bytes": runs.ledger,
    }


def _markdown(groups: Sequence[_Group], left_out: Sequence[LeftOut], stamp: str) -> str:
    lines = ["# Results\n"]
    for group in groups:
        lines += [f"## {tables.markdown_text(group.title)}\n", *map(tables.to_markdown, group.tables)]
    if left_out:
        items = [f"- {tables.markdown_text(i.folder.name)}: {tables.markdown_text(i.reason)}" for i in left_out]
        lines += ["## Left out\n", *items, ""]
    return "\n".join([*lines, tables.markdown_text(tables.one_line(stamp)), ""])


def _settle(out: Path, paths: Sequence[Path], provenance: Mapping[str, Any]) -> None:
    """Write provenance.json with a hash of every file, and remove what an earlier report of ours left behind."""
    written = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)
    }
    for name, sha256 in _earlier_outputs(out / _PROVENANCE).items():
        path = out / name
        inside = name not in written and ".." not in Path(name).parts and not Path(name).is_absolute()
        # a file that is not as it was written belongs to somebody
        if (
            inside
            and path.is_file()
            and not path.is_symlink()
            and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        ):
            path.unlink()
    text = json.dumps({**provenance, "outputs": written}, indent=1, ensure_ascii=False)
    (out / _PROVENANCE).write_text(text + "\n", encoding="utf-8", newline="\n")


def _earlier_outputs(path: Path) -> dict[str, str]:
    """Files that an earlier report lists as its own; none where there is no such list."""
    try:
        outputs = json.loads(path.read_text(encoding="utf-8"))["outputs"]
        return {str(name): str(sha256) for name, sha256 in outputs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# ------------------------------------------------------------------------------------------------ provenance


def _provenance(runs: Runs, left_out: Sequence[LeftOut], command: str, inputs_sha256: str) -> dict[str, Any]:
    return {
        "command": command,
        **versions(),
        "inputs_sha256": inputs_sha256,
        "runs": list(runs.cells["run"]),
        "left_out": [{"folder": item.folder.name, "reason": item.reason} for item in left_out],
    }


def _printed(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What every output says of its own making."""
    shown = {"Command": provenance["command"]} if provenance["command"] else {}
    return shown | {"Made with": made_with(), "Inputs (sha256)": provenance["inputs_sha256"]}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _listed(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return ", ".join(map(str, found[:6])) + (f", … ({len(found)})" if len(found) > 6 else "")
