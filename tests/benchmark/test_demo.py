"""`cilbench demo`: runs and a report in an empty folder, without make and without a clone."""

import json
from pathlib import Path

import pytest
from nursery import nursery


@pytest.mark.long
def test_the_demo_ends_with_a_page_and_goes_on_where_it_was(tmp_path: Path) -> None:
    code, said = nursery().run(["demo", "--recipe", "smoke"], tmp_path)
    assert code == 0, said
    cells = [json.loads(path.read_text()) for path in (tmp_path / "demo" / "runs").glob("*/cell.json")]
    assert len(cells) == 15
    assert {cell["status"] for cell in cells} == {"done"}
    page = tmp_path / "demo" / "report" / "index.html"
    assert f"the page: {page.as_uri()}" in said
    assert page.stat().st_size > 10_000
