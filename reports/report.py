"""Everything `cilbench report` writes: run folders → figures, tables and one page, in one folder."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports import aggregate, comparison, evidence
from cilbench.reports import comparability as lint
from cilbench.reports.figures import charts as figures
from cilbench.reports.figures import closeups
from cilbench.reports.figures.drawing import Drawing, draw, getting_ready
from cilbench.reports.figures.styles import Style, styles_by_name
from cilbench.reports.load import LeftOut, Runs, load_published, read_runs
from cilbench.reports.page.page import PageFigure, Section, render_page
from cilbench.reports.provenance import made_with, versions
from cilbench.reports.tables import tables
from cilbench.reports.tables.bibtex import bibliography, published_bibtex
from cilbench.reports.wording import budget_text, conditions_text, protocol_text, repetitions_text, status_text

Progress = Callable[[str, int, int], None]

_PROVENANCE = "provenance.json"


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
    with getting_ready():
        runs = read_runs(run_dirs, partial(progress, "folders read") if progress else None)
        lint.require_known(allow)
        if strict:
            lint.refuse(runs.cells, allow)
        groups = _groups(runs, published)
    close_ups = [group.close_up for group in groups]
    left_out = (*runs.left_out, *(item for close_up in close_ups for item in close_up.left_out))
    inputs_sha256 = _digest([runs.inputs_sha256, *(close_up.inputs_sha256 for close_up in close_ups)])
    provenance = _provenance(runs, left_out, command, inputs_sha256)
    with _stage(out) as stage:
        _write(stage, out, runs, groups, left_out, provenance, progress)
        paths = _settle(stage, out, provenance)
    return ReportResult(out / "index.html", paths, len(runs.cells), left_out)


def _write(
    stage: Path,
    out: Path,
    runs: Runs,
    groups: Sequence["_Group"],
    left_out: Sequence[LeftOut],
    provenance: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    """Everything but provenance.json, into `stage`; it will lie in `out`."""
    stamp = "; ".join(f"{key}: {value}" for key, value in _printed(provenance).items())
    (stage / "figures").mkdir()
    wanted = [item for group in groups for item in group.drawings()]
    drawing = draw(wanted, stage / "figures", stamp)
    compared = [item for group in groups for item in group.compared_drawings()]  # computed while those are drawn
    drawing = chain(drawing, draw(compared, stage / "figures", stamp))
    for name, frame in _csv(runs, groups).items():
        tables.write_csv(frame, stage / f"{name}.csv")
    overlaid = published_bibtex() if any(group.published is not None for group in groups) else []
    bibtex = tables.bib_text(*bibliography([*(text for text in runs.cells["bibtex"] if text), *overlaid]))
    drawn = list(_told(drawing, len(wanted) + len(compared), progress))
    sections = [group.section(drawn) for group in groups]
    page = render_page(sections, runs.cells, left_out, bibtex, _printed(provenance), out)
    for name, text in {"index.html": page, **_texts(groups, sections, left_out, bibtex, stamp)}.items():
        (stage / name).write_text(text, encoding="utf-8", newline="\n")


def _texts(
    groups: Sequence["_Group"], sections: Sequence[Section], left_out: Sequence[LeftOut], bibtex: str, stamp: str
) -> dict[str, str]:
    """File name → content of what goes into papers."""
    head = f"% {tables.one_line(stamp)}\n"
    figures_in_order = [figure for section in sections for figure in section.figures]
    includes = [tables.latex_figure(figure.stem, figure.caption, figure.stem) for figure in figures_in_order]
    return {
        "results.md": _markdown(groups, left_out, stamp),
        "results.tex": "\n".join(
            [f"{head}% needs \\usepackage{{booktabs,graphicx}}", *(text for group in groups for text in group.latex())]
        ),
        "figures.tex": "\n".join([f"{head}% needs \\usepackage{{graphicx}}", *includes]),
        "standalone.tex": f"{head}{tables.latex_document()}",
        "references.bib": f"{head}{bibtex}",
    }


def _told(drawing: Iterable[PageFigure], number: int, progress: Progress | None) -> Iterator[PageFigure]:
    for done, item in enumerate(drawing, 1):
        if progress:
            progress("figures drawn", done, number)
        yield item


# ------------------------------------------------------------------------------------------------ one group


def _groups(runs: Runs, published: bool) -> list["_Group"]:
    if runs.cells.empty:
        return []
    methods, slugs = sorted(set(runs.cells["method"])), _Slugs()
    overlay = load_published() if published else None
    return [
        _Group(group, frame, runs, slugs.of(group), styles_by_name(frame, methods), overlay)
        for group, frame in lint.groups(runs.stages)
    ]


# What figures do not need of a frame of stages: it is sent to other processes.
_UNDRAWN = ["folder", "title", "arxiv", "bibtex", "port", "config", "class_names", "platform", "git_commit"]


_ON_THE_PAGE = ("memory", "classes", "bytes", "balance", "transfer", "ranks", "confusion", "norms", "remembered")


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
        self.spending = aggregate.spending(self.cells, self.ledger)
        tests = runs.tests[runs.tests["run"].isin(frame["run"])]
        self.close_up = evidence.close_up(evidence.representatives(self.cells), tests)
        self.published, self.without_published = self._published(published)

    @cached_property
    def comparison(self) -> comparison.Comparison:
        return comparison.Comparison(self.frame.drop(columns=_UNDRAWN)).complete()

    @cached_property
    def tables(self) -> list[tables.Table]:
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

    def drawings(self) -> list[Drawing]:
        """Figures that need no statistics."""
        by_kind = partial(figures.bytes_by_kind, self.cells.drop(columns=_UNDRAWN), self.ledger)
        about = (
            "What each method keeps after the last task, by kind and in both accountings, against its budget (line)."
        )
        return [
            self._drawing("bytes", " ".join([about, f"{self.title}.", *lint.within(self.cells)]), by_kind),
            *self._close_ups(),
        ]

    def compared_drawings(self) -> list[Drawing]:
        """Figures of means over repetitions."""
        one = self.comparison
        several = one.summary.loc[one.summary["competes"], "budget_bytes"].nunique() > 1
        wanted = [
            self._drawing(
                "memory",
                self._memory_caption(several),
                partial(figures.accuracy_over_memory, one, styles=self.styles, published=self.published),
            ),
            self._drawing(
                "classes",
                self._caption("Accuracy on all classes seen, after each task, one panel per budget."),
                partial(figures.accuracy_over_classes, one, styles=self.styles),
            ),
        ]
        if len(one.ranks):
            about = "Accuracy on the classes of earlier tasks and on those of the latest, after each."
            about += figures.left_out_of_few(self.frame)
            make: Callable[..., Figure] = partial(figures.old_and_new_classes, one, styles=self.styles)
            wanted.append(self._drawing("balance", self._caption(about), make))
            about = f"Forgetting, backward transfer and intransigence, in points.{self._without_ceiling()}"
            make = partial(figures.forgetting_and_transfer, one, styles=self.styles)
            wanted.append(self._drawing("transfer", self._caption(about), make))
        if several and one.ranks["name"].nunique() > 1:
            about = "Rank at each budget; open markers: the paired comparisons leave other ranks."
            make = partial(figures.rank_over_memory, one, styles=self.styles)
            wanted.append(self._drawing("ranks", self._caption(about, bands=False), make))
        return wanted

    def _drawing(self, name: str, caption: str, make: Callable[..., Figure]) -> Drawing:
        return Drawing(f"{self.slug}-{name}", caption, make)

    def _close_ups(self) -> list[Drawing]:
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
        shown = self.cells[self.cells["run"].isin([item.cell["run"] for item in found])]
        where = " ".join([where, *lint.within(shown)])
        wanted: list[tuple[str, Callable[..., Figure], str]] = [
            (
                "confusion",
                partial(closeups.confusion_matrices, found),
                "Test images by true and predicted class, after the last task.",
            ),
            (
                "norms",
                partial(closeups.weight_norms, found, styles=self.styles),
                "L2 norm of the classifier's weights of each class, after the last task.",
            ),
            (
                "remembered",
                partial(closeups.remembered_images, found),
                "What is carried of each class after the last task, decoded from the stored bytes: exemplars, or "
                "images that the generator makes.",
            ),
        ]
        return [
            self._drawing(name, f"{about} {where}", make)
            for name, make, about in wanted
            if any(getattr(item, name) is not None for item in found)
        ]

    def latex(self) -> list[str]:
        """Every table of the group."""
        return [tables.to_latex(table, f"{table.name}-{self.slug}") for table in self.tables]

    def section(self, drawn: Iterable[PageFigure]) -> Section:
        """The group as a section of the page; `drawn` may hold figures of other groups as well."""
        places = {f"{self.slug}-{name}": place for place, name in enumerate(_ON_THE_PAGE)}
        own = sorted((figure for figure in drawn if figure.stem in places), key=lambda figure: places[figure.stem])
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
            self.slug,
            *titles,
            chips,
            self.comparison.summary,
            tuple(own),
            tuple(self.tables),
            stages=self.frame,
            published=self.published,
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
        if differ or self.frame["budget_label"].isna().any() or self.cells["settings"].any():
            of = " and ".join(differ) or ("budgets" if self.frame["budget_label"].isna().any() else "settings")
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
        read_off = ""
        if self.published is not None:
            sources = "; ".join(sorted(set(self.published["source"])))
            read_off = f" Open markers: published values, read off figures ({sources})."
        return self._caption(f"Accuracy against the memory budget.{areas}{absent}{read_off}{self.without_published}")

    def _without_ceiling(self) -> str:
        known = self.comparison.summary.loc[self.comparison.summary["competes"], "intransigence"].notna().any()
        return "" if known else " Intransigence needs a run of joint on every seed and class order: not all are here."


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
    return "\n".join([*lines, *tables.markdown_left_out(left_out), tables.markdown_text(tables.one_line(stamp)), ""])


_STAGE = ".cilbench-report-"


@contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """A folder in `out` in which a report is made, so that one that is killed leaves the one before as it was; what
    such a one left behind is removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{_STAGE}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STAGE, dir=out) as folder:
        yield Path(folder)


def _settle(stage: Path, out: Path, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
    """Put every file in its place, then provenance.json with a hash of each; remove what an earlier report of ours
    left behind. The paths of all.
    """
    made = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
    written = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
    text = json.dumps({**provenance, "outputs": written}, indent=1, ensure_ascii=False)
    (stage / _PROVENANCE).write_text(text + "\n", encoding="utf-8", newline="\n")
    earlier = _earlier_outputs(out / _PROVENANCE)
    for name in [*written, _PROVENANCE]:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(stage / name, out / name)
    for name, sha256 in earlier.items():
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
    return tuple(out / name for name in [*written, _PROVENANCE])


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
