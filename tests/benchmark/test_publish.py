"""`cilbench publish`: what agrees goes into a results repository, everything else stays out; its leaderboard."""

import csv
import io
import json
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from nursery import nursery

from cilbench.errors import RequestError
from cilbench.protocol.hub import uploader
from cilbench.protocol.verify import Verdict
from cilbench.records.repository import SCHEMAS, place, runs_in
from cilbench.records.schema import read_cell

OPTIONS = ["--dataset", "tiny", "--recipe", "smoke", "--device", "cpu", "--precision", "fp32", "--jobs", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish")
    code, said = nursery().run(
        ["run", "--methods", "finetune,icarl", "--budget", "12KiB", *OPTIONS, "--out", "runs"], folder
    )
    assert code == 0, said
    return folder / "runs"


@pytest.fixture
def copied(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path


class Rows(HTMLParser):
    """Cells of the rows of a page."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "small")
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_what_agrees_is_published_by_method_revision_and_protocol_and_listed(copied):
    code, said = nursery().run(["publish", "runs", "--into", "repository"], copied)
    assert code == 0, said
    found = dict(runs_in(copied / "repository"))
    assert list(found.values()) == [True, True]
    methods = [folder.relative_to(copied / "repository").parts[0] for folder in found]
    assert methods == ["finetune", "icarl"]
    for folder in found:
        assert folder.parent.name == "tiny-b0i2-smoke-published"
        assert (folder / "predictions.npz").is_file()
        assert not (folder / "tasks").exists()
        cell = json.loads((folder / "cell.json").read_text())
        assert cell["tasks"][-1]["sealed_sha256"]  # in place of the state
        rows = list(csv.DictReader(io.StringIO((folder / "ledger.csv").read_text())))
        schema = json.loads((copied / "repository" / "schema" / "ledger-row.json").read_text())
        assert set(schema["required"]) <= set(rows[0])
    assert {path.stem for path in (copied / "repository" / "schema").iterdir()} == set(SCHEMAS)
    rows = [row for row in Rows((copied / "repository" / "index.html").read_text()).rows if row]
    assert sorted((row[1], row[-1]) for row in rows) == [("Finetuning", "yes"), ("iCaRL", "yes")]
    before = (copied / "repository" / "index.html").read_bytes()
    assert nursery().run(["publish", "runs", "--into", "repository"], copied)[0] == 0  # again: nothing new
    assert (copied / "repository" / "index.html").read_bytes() == before


def test_states_are_copied_where_asked_for_and_audit_agrees_there(copied):
    code, said = nursery().run(["publish", "runs", "--into", "repository", "--states"], copied)
    assert code == 0, said
    (protocol,) = (copied / "repository").glob("icarl/*/*")
    code, said = nursery().run(["audit", str(protocol)], copied)
    assert code == 0, said


def test_a_run_that_was_edited_stays_out(copied):
    (folder,) = (copied / "runs").glob("icarl-*")
    (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text().replace(",100.0", ",99.0"))
    with (folder / "ledger.csv").open("a") as ledger:
        ledger.write("0,head,more,1,F32,4,0,4\n")
    code, said = nursery().run(["publish", "runs", "--into", "repository"], copied)
    assert code == 1
    assert "refused" in said
    assert "does not agree with its record" in said
    assert {path.name for path in (copied / "repository").iterdir() if path.is_dir()} == {"finetune", "schema"}


def test_a_run_that_predicts_otherwise_stays_out(copied, monkeypatch):
    from cilbench.errors import RequestError
    from cilbench.protocol import publish

    (folder,) = (copied / "runs").glob("icarl-*")
    monkeypatch.setattr(publish, "verify", lambda *given: Verdict("", ("task 0: other classes",)))
    with pytest.raises(RequestError, match="does not predict what it recorded: task 0"):
        publish.publish(folder, copied / "repository", None, "cpu")
    assert not (copied / "repository").exists()


def test_a_run_put_there_by_hand_is_not_verified(copied):
    assert nursery().run(["publish", "runs", "--into", "repository"], copied)[0] == 0
    (folder,) = (copied / "repository").glob("icarl/*/*/*")
    cell = (folder / "cell.json").read_text()
    (folder / "cell.json").write_text(cell + "\n")
    assert dict(runs_in(copied / "repository"))[folder] is False


def test_no_name_of_a_run_leaves_the_repository(runs):
    (folder,) = runs.glob("icarl-*")
    cell = read_cell(folder / "cell.json")
    request = SimpleNamespace(**{**cell.request.model_dump(), "method": "../../up", "dataset": "a/b"})
    odd = SimpleNamespace(request=request, environment={"cilbench": "..", "git_commit": None}, id="x")
    assert place(odd).parts[1:] == ("_", "a_b-b0i2-smoke-published", "x")
    assert len(place(odd).parts) == 4


class Client:
    """Stands in for huggingface_hub.HfApi; `calls` of all of them."""

    calls: list = []  # noqa: RUF012
    fails = None

    def create_repo(self, repo, **given):
        self.calls.append(("create_repo", repo, given))

    def upload_folder(self, **given):
        if self.fails:
            raise ConnectionError(self.fails)
        self.calls.append(("upload_folder", given))
        return f"https://hub/{given['repo_id']}"


@pytest.fixture
def client(monkeypatch):
    made = type("HfApi", (Client,), {"calls": []})
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=made))
    return made


def test_a_repository_is_uploaded_whole(client, tmp_path):
    assert uploader("huggingface:someone/results")(tmp_path) == "https://hub/someone/results"
    (created, repo, how), (uploaded, given) = client.calls
    assert (created, repo, how) == ("create_repo", "someone/results", {"repo_type": "dataset", "exist_ok": True})
    assert uploaded == "upload_folder"
    assert given["folder_path"] == str(tmp_path)
    assert given["repo_type"] == "dataset"


@pytest.mark.parametrize("hub", ["huggingface", "huggingface:results", "huggingface:a/b/c", "zenodo:a/b", ":"])
def test_where_to_upload_is_asked_before_anything_else(hub, client):
    with pytest.raises(RequestError, match="allowed is huggingface:OWNER/NAME"):
        uploader(hub)
    assert not client.calls


def test_a_failed_upload_is_one_line_and_loses_nothing(client, tmp_path):
    client.fails = "401\nnot logged in"
    with pytest.raises(RequestError, match="ConnectionError: 401 not logged in") as refusal:
        uploader("huggingface:someone/results")(tmp_path)
    assert f"{tmp_path} is whole" in str(refusal.value)


def test_without_the_extra_publish_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RequestError, match=r"pip install 'cilbench\[hf\]'"):
        uploader("huggingface:someone/results")
