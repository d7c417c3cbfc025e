"""`--weights FILE`: what a backbone starts from; a frozen one is charged in full, or free by its checksum."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from nursery import nursery
from safetensors.torch import load_file, save_file
from test_conformance import learn_all, weighed
from toy import CPU, toy_spec

from cilbench import reports
from cilbench.budgets import BudgetTooSmall, unseal
from cilbench.budgets.planning import DoesNotFit
from cilbench.data.weights import FOLDER, pretrained
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan, Pretrained
from cilbench.methods.networks.timm_models import downloaded
from cilbench.options import RunOptions
from cilbench.protocol import estimate
from cilbench.protocol.restore import restore_learner
from cilbench.request import check_feasible, specs

METHODS = ("simplecil", "ranpac", "fecam")
OPTIONS = ["--dataset", "tiny", "--recipe", "smoke", "--device", "cpu", "--precision", "fp32", "--jobs", "1"]


@pytest.fixture(scope="module")
def weights(toy, tmp_path_factory):
    """The sealed state of a learner of the toy data: what `--weights` takes for one of cilbench's own networks."""
    path = tmp_path_factory.mktemp("weights") / "public.safetensors"
    path.write_bytes(learn_all(toy_spec("replay", toy, seed=5), toy, tasks=1)[0])
    return path


def on(weights, name, toy, charged, **terms):
    given = Pretrained(hashlib.sha256(weights.read_bytes()).hexdigest(), weights, charged)
    spec = toy_spec(name, toy, **terms)
    return replace(spec, scenario=replace(spec.scenario, pretrained=given))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_charged_it_weighs_as_any_backbone_and_free_as_32_bytes(name, accounting, toy, weights):
    public = {k: v for k, v in load_file(weights).items() if k.startswith(("backbone/", "statistics/"))}
    fixed = {"settings": {"ranpac.projections": "20"}} if name == "ranpac" else {}
    charged, free = (on(weights, name, toy, paid, accounting=accounting, **fixed) for paid in (True, False))
    assert charged.plan().strict_bytes == toy_spec(name, toy, accounting=accounting, **fixed).plan().strict_bytes
    states, ledgers = [], []
    for spec in (charged, free):
        sealed = learn_all(spec, toy)[-1]
        states.append(unseal(sealed))
        ledgers.append(ledger := weighed(spec, sealed))
        assert ledger.published <= spec.plan().published_bytes[-1]
        assert ledger.strict <= spec.plan().strict_bytes[-1]
    assert all(torch.equal(states[0][key], value) for key, value in public.items())
    assert not set(public) & set(states[1])
    assert ledgers[0].strict - ledgers[1].strict == sum(4 * value.numel() for value in public.values()) - 32
    (digest,) = (e for e in ledgers[1].entries if e.item == "weights_sha256")
    assert digest.published_bytes == digest.strict_bytes == 32
    # What `published` leaves out beside a network that is paid for is paid for where the network is not.
    assert ledgers[1].published == ledgers[1].strict


@pytest.mark.parametrize("name", METHODS)
def test_both_accountings_predict_the_same_and_train_nothing(name, toy, weights):
    lines, scores = [], []
    for charged in (True, False):
        spec = on(weights, name, toy, charged, settings={"ranpac.projections": "20"} if name == "ranpac" else {})
        learner = restore_learner(spec, spec.plan(), learn_all(spec, toy, log=lines.append)[-1], CPU)
        with torch.no_grad():
            scores.append(learner.scores(torch.from_numpy(toy.test.images)))
    assert not lines
    assert all(torch.equal(scores[0][head], scores[1][head]) for head in scores[0])


def test_free_the_state_and_the_named_file_make_the_learner_and_no_other_file_does(toy, weights, tmp_path):
    spec = on(weights, "simplecil", toy, False)
    sealed = learn_all(spec, toy, tasks=1)[0]
    other = tmp_path / "other.safetensors"
    tensors = load_file(weights)
    save_file({key: value + 1 for key, value in tensors.items()}, other)
    swapped = replace(spec.scenario.pretrained, path=other)
    with pytest.raises(ValueError, match=r"its SHA-256 is [0-9a-f]{64}, not " + swapped.sha256):
        restore_learner(replace(spec, scenario=replace(spec.scenario, pretrained=swapped)), spec.plan(), sealed, CPU)
    renamed = replace(swapped, sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="not the weights that the state names"):
        restore_learner(replace(spec, scenario=replace(spec.scenario, pretrained=renamed)), spec.plan(), sealed, CPU)


def test_free_a_budget_needs_no_backbone(toy, weights):
    needs = []
    for charged in (True, False):
        with pytest.raises(BudgetTooSmall) as refusal:
            on(weights, "simplecil", toy, charged, budget_bytes=1).plan()
        needs.append(refusal.value.smallest_bytes)
    assert needs == [2952, 32 + 4 * 6 * 12]


TRAINING = ("finetune", "icarl", "foster", "der", "memo", "fetril", "icarl+cim")


@pytest.mark.parametrize("name", TRAINING)
def test_what_trains_its_backbone_starts_from_the_file(name, toy, weights):
    source = toy_spec("replay", toy, seed=5)
    teacher = restore_learner(source, source.plan(), weights.read_bytes(), CPU)
    spec = on(weights, name, toy, charged=True)
    learner = spec.method.build(spec.plan(), spec.scenario, CPU)
    learner.add_branch()
    images = torch.from_numpy(toy.test.images[:8])
    for net in (teacher.net, learner.net):
        net.eval()
    assert torch.equal(learner.features(images), teacher.features(images))


def test_only_the_first_branch_of_a_growing_network_is_of_the_file(toy, weights):
    spec = on(weights, "der", toy, charged=True)
    states = learn_all(spec, toy, tasks=2)
    first, second = map(unseal, states)
    key = "backbone/branches.0.0.0.0.weight"
    assert not torch.equal(first[key], load_file(weights)[key])
    assert torch.equal(first[key], second[key])


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A network learned by one run and given to others, under both accountings."""
    folder = tmp_path_factory.mktemp("ran")
    code, said = nursery().run(
        ["run", "--methods", "icarl", "--budget", "12KiB", *OPTIONS, "--out", "first", "--seeds", "7"], folder
    )
    assert code == 0, said
    (state,) = folder.glob("first/*/tasks/*/state.safetensors")
    state.rename(folder / "public.safetensors")
    asked = ["run", "--methods", "simplecil,ranpac,fecam", "--budget", "24KiB", *OPTIONS, "--out", "runs"]
    said = {}
    for cost in ("charged", "free"):
        code, said[cost] = nursery().run([*asked, "--weights", "public.safetensors", "--weights-cost", cost], folder)
        assert code == 0, said[cost]
    return folder, said


def test_records_ids_and_the_terminal_name_the_weights(ran):
    folder, said = ran
    digest = hashlib.sha256((folder / "public.safetensors").read_bytes()).hexdigest()
    paths = list((folder / "runs").glob("*/cell.json"))
    assert len(paths) == 6  # three methods, charged and free
    for path in paths:
        given = json.loads(path.read_text())["request"]["weights"]
        assert given["sha256"] == digest
        assert f"-weights-{digest[:8]}-{given['cost']}-" in path.parent.name
    for cost, text in said.items():
        assert f"backbone from weights (SHA-256 {digest[:12]}), {'FREE' if cost == 'free' else 'charged'}" in text
        assert " ".join(text.split()).count(f"on {'free ' * (cost == 'free')}weights {digest[:8]}") >= 1


@pytest.mark.long
def test_free_and_charged_runs_are_never_in_one_table(ran, tmp_path):
    folder, _ = ran
    runs = reports.read_runs([folder / "runs"])
    digest = hashlib.sha256((folder / "public.safetensors").read_bytes()).hexdigest()
    assert set(runs.cells["weights"]) == {"", digest[:12]}
    code, said = nursery().run(["report", "runs", "--out", str(tmp_path / "report")], folder)
    assert code == 0, said
    tex = (tmp_path / "report" / "results.tex").read_text()
    tables = tex.split(r"\begin{table")[1:]
    free = [table for table in tables if "free weights" in table]
    assert free
    assert len(free) < len(tables)
    for table in tables:
        caption = f"not charged, SHA-256 {digest[:12]}" in " ".join(table.split())
        assert caption == ("free weights" in table)
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"FREE frozen backbone (not charged, SHA-256 {digest[:12]})" in page
    for caption in (tmp_path / "report").rglob("*.caption.txt"):
        assert "weights" not in caption.name or "FREE frozen backbone" in caption.read_text()


def test_verify_and_rerun_find_the_weights_by_their_checksum_and_say_where_to_put_them(ran):
    folder, _ = ran
    assert nursery().run(["audit", "runs"], folder)[0] == 0
    assert nursery().run(["verify", "runs"], folder)[0] == 0
    (run,) = (folder / "runs").glob("simplecil-weights-*-free-*")
    code, said = nursery().run(["run", "--from", f"{run}/cell.json", "--out", "again", "--device", "cpu"], folder)
    assert code == 0, said
    assert "predictions: identical" in said
    digest = json.loads((run / "cell.json").read_text())["request"]["weights"]["sha256"]
    kept = nursery().data_dir / FOLDER / f"{digest}.safetensors"
    kept.rename(folder / "away.safetensors")
    code, said = nursery().run(["verify", str(run)], folder)
    (folder / "away.safetensors").rename(kept)
    assert code == 2
    assert f"put the file that has this SHA-256 at {kept}" in " ".join(said.split())


# ------------------------------------------------------------------------------------------------ refusals


def refused(folder, **asked):
    request = {"dataset": "digits", "budget": "24KiB", "methods": "simplecil", "data_dir": folder / "data"}
    with pytest.raises(RequestError) as refusal:
        specs(RunOptions(**(request | asked)))
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@pytest.mark.parametrize(
    ("method", "cost", "why"),
    [
        ("icarl", "free", "--weights-cost free: it trains its backbone; those that keep it are simplecil, ranpac"),
        ("dgm", "charged", "--weights: it has networks of its own"),
        ("dgm", "free", "--weights: it has networks of its own"),
    ],
)
def test_a_method_that_has_no_use_for_them_refuses_itself_alone(method, cost, why, tmp_path, weights):
    request = {"dataset": "digits", "budget": "68KiB", "backbone": "tinyconv6", "data_dir": tmp_path}
    request["weights"] = str(weights)
    asked = specs(RunOptions(**request, weights_cost=cost, methods=f"{method},simplecil"))
    plans = {spec.method.name: check_feasible(asked)[spec.id] for spec in asked}
    assert isinstance(plans[method], DoesNotFit)
    assert str(plans[method]).startswith(why)
    assert isinstance(plans["simplecil"], Plan)
    with pytest.raises(RequestError, match=f"^--methods {method}: {why}"):
        check_feasible(asked[:1])


def test_what_cannot_be_is_one_line(tmp_path, weights):
    file = str(weights)
    assert "No such file" in refused(tmp_path, weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("text")
    assert "no safetensors file" in refused(tmp_path, weights=str(tmp_path / "text.safetensors"))
    assert "is [6, 1, 3, 3], that of tinyconv8 is [8, 1, 3, 3]" in refused(tmp_path, weights=file, backbone="tinyconv8")
    assert "add --weights FILE" in refused(tmp_path, weights_cost="free")
    assert "allowed are charged, free" in refused(tmp_path, weights=file, weights_cost="gratis")
    assert "64 hexadecimal digits" in refused(tmp_path, weights="sha256:12")
    assert "--backbone timm:NAME" in refused(tmp_path, weights="timm")


def test_weights_of_timm_that_cannot_be_downloaded_are_refused_in_one_line(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")

    def offline(*args, **kwargs):
        if kwargs.get("pretrained"):
            raise OSError("the hub\ncannot be reached")
        return made(*args, **kwargs)

    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    said = refused(tmp_path, weights="timm", backbone="timm:test_resnet", dataset="cifar10", budget="4MiB")
    assert said == "--weights timm: timm's weights of test_resnet cannot be had (the hub cannot be reached)"


def test_a_checkpoint_of_timm_is_the_network_of_timm(toy, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")
    made, calls = timm.create_model, []

    def local(*args, **kwargs):
        calls.append(kwargs.pop("pretrained", False))
        return made(*args, **kwargs, pretrained=False)

    monkeypatch.setattr(timm, "create_model", local)
    one, two = (pretrained("timm", "free", "timm:test_resnet", tmp_path) for _ in range(2))
    assert one == two
    assert calls == [True]  # downloaded once
    request = {"dataset": "cifar10", "budget": "4MiB", "methods": "simplecil", "data_dir": tmp_path}
    (spec,) = specs(RunOptions(**request, weights="timm", backbone="timm:test_resnet"))
    learner = spec.method.build(spec.plan(), spec.scenario, CPU)
    from cilbench.methods.networks.pretrained import load_pretrained

    learner.net.add_branch()
    load_pretrained(learner.net, spec.scenario.pretrained)
    learner.net.eval()
    whole = made("test_resnet", num_classes=0).eval()
    whole.load_state_dict({k: v for k, v in load_file(one.path).items() if not k.startswith("fc.")})
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(learner.net.features(x), whole.forward_features(x).mean((2, 3)), atol=1e-5)
    assert spec.scenario.mean == tuple(timm.models.get_pretrained_cfg("test_resnet").mean)
    assert downloaded("timm:test_resnet").keys() == load_file(one.path).keys()


@pytest.mark.parametrize("name", METHODS)
def test_how_long_it_takes_is_told_by_its_predictions_where_nothing_is_trained(name, toy, weights, monkeypatch):
    asked, real = [], estimate.figures
    monkeypatch.setattr(estimate, "figures", lambda *given, **how: asked.append(given[2]) or real(*given, **how))
    fixed = {"settings": {"ranpac.projections": "20"}} if name == "ranpac" else {}
    spec = on(weights, name, toy, False, **fixed)
    assert estimate.rate(spec, spec.plan(), CPU) > 0
    trained = toy_spec(name, toy, **fixed)
    assert estimate.rate(trained, trained.plan(), CPU) > 0
    assert asked[0] == f"{asked[1]} on {spec.weights.name}"  # neither is told what was measured of the other
