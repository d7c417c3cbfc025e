"""How the files of a run folder are written."""

from pathlib import Path

from cilbench.records import files


def test_tables_end_their_lines_as_git_keeps_them(tmp_path: Path) -> None:
    """A run folder that was shared through git with `text=auto` is as it was written, checksums and all."""
    files.write_csv(tmp_path / "x.csv", ["a", "b"], [{"a": 1, "b": "x"}])
    assert (tmp_path / "x.csv").read_bytes() == b"a,b\n1,x\n"
