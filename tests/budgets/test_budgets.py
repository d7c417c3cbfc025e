"""Sizes, ledgers, sealing: exact, inverse, and closed to what is not accounted for."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cilbench.budgets import Allowance, Ledger, format_bytes, human_bytes, parse_budget_mb, parse_bytes, seal, unseal
from cilbench.budgets.ledger import KINDS, LedgerError, feature_width
from cilbench.budgets.planning import whole_fitting
from cilbench.budgets.sealed import DTYPE_NAMES, STORED_KINDS, ledger_of_state, pack_bits, unpack_bits
from cilbench.budgets.shapes import shapes_alone
from cilbench.budgets.weighing import Weight, weigh


@given(st.integers(1, 10**15))
def test_sizes_print_and_parse_as_inverses(size_bytes):
    assert parse_bytes(format_bytes(size_bytes)) == size_bytes
    assert parse_bytes(f"{size_bytes}B") == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("7998016B", 7_998_016),
        ("7,998,016 B", 7_998_016),
        ("7.6MiB", 7_969_177),
        ("8MB", 8_000_000),
        ("24KiB", 24_576),
        ("1 GiB", 2**30),
        ("2kb", 2000),
    ],
)
def test_parse_bytes(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "MB",
        "-8MB",
        "0B",
        "7,6MiB",
        "1,5MB",
        "1,,,0B",
        "9" * 5000 + "B",
        "0.5B",
        "8 XB",
        "1e3B",
        "nanMB",
        "٣MB",
    ],
)
def test_what_is_no_size_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="is not a size") as refusal:
        parse_bytes(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "-1", "0", "nan", "inf", "8MB", "1e-9"])
def test_what_is_no_budget_in_mb_is_refused(text):
    with pytest.raises(ValueError, match="is not a budget"):
        parse_budget_mb(text)


def test_budget_mb_is_mebibytes_unless_it_is_a_label():
    assert parse_budget_mb("8") == (8_388_608, None)
    assert parse_budget_mb("7.6") == (7_969_177, None)
    assert parse_budget_mb("7.60", ("cifar100", 0, 10)) == (7_998_016, "7.6")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(5, "5 B"), (1024, "1 KiB"), (24_576, "24 KiB"), (7_998_016, "7.63 MiB"), (2**30, "1.00 GiB")],
)
def test_human_bytes(size_bytes, text):
    assert human_bytes(size_bytes) == text


def small_state() -> dict[str, torch.Tensor]:
    return {
        "backbone/conv.weight": torch.randn(4, 3, 3, 3),
        "backbone/bn.weight": torch.randn(4),
        "statistics/bn.running_mean": torch.randn(4),
        "head/weight": torch.randn(10, 4),
        "exemplars/payload": torch.randint(0, 256, (100,), dtype=torch.uint8),
        "labels/images_per_class": torch.ones(10, dtype=torch.int32),
        "masks/m": pack_bits(torch.rand(3, 7) < 0.5),
        "other/phi": torch.randn(2, 10),
    }


def test_the_two_sums():
    ledger = Ledger.of_sealed(seal(small_state()))
    assert ledger.published == 4 * (108 + 4) + 100 + 3 + 80
    assert ledger.strict == ledger.published + 4 * 4 + 4 * 40 + 4 * 10
    assert ledger.by_kind("published") == {"backbone": 448, "exemplars": 100, "other": 80, "masks": 3}


def test_the_ledger_of_a_state_is_that_of_its_seal():
    state = small_state()
    meta = {key: value.to("meta") for key, value in state.items()}
    assert ledger_of_state(meta) == ledger_of_state(state) == Ledger.of_sealed(seal(state))


def test_networks_of_shapes_alone_weigh_what_they_do_and_nothing_is_drawn():
    def net():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 2))

    before = torch.get_rng_state()
    with shapes_alone():
        of_shapes = net()
        torch.nn.init.normal_(of_shapes[0].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in of_shapes.state_dict().values())
    assert weigh(of_shapes) == weigh(net())


def test_a_file_weighs_what_its_bytes_weigh(tmp_path):
    sealed = seal(small_state())
    (tmp_path / "s").write_bytes(sealed)
    assert Ledger.of_sealed(tmp_path / "s") == Ledger.of_sealed(sealed)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(sorted(KINDS)), st.text("abc.", min_size=1, max_size=5)).map("/".join),
        st.tuples(st.lists(st.integers(1, 4), max_size=3), st.sampled_from(list(DTYPE_NAMES))),
        max_size=6,
    )
)
def test_every_byte_is_in_the_ledger_and_comes_back(recipe):
    state = {key: torch.ones(shape, dtype=dtype) for key, (shape, dtype) in recipe.items()}
    sealed = seal(state)
    header = struct.unpack("<Q", sealed[:8])[0]
    ledger = Ledger.of_sealed(sealed)
    assert ledger.strict == len(sealed) - 8 - header
    assert 0 <= ledger.published <= ledger.strict
    back = unseal(sealed)
    assert back.keys() == state.keys()
    for key, value in state.items():
        halved = key.partition("/")[0] in STORED_KINDS and value.dtype in (torch.float16, torch.bfloat16)
        assert back[key].dtype == (torch.float32 if halved else value.dtype)  # what was stored small is learned large
        assert torch.equal(back[key].double(), value.double())


def test_a_view_seals_as_what_it_shows():
    data = torch.arange(1000, dtype=torch.uint8)
    sealed = seal({"exemplars/payload": data[10:20], "other/t": torch.randn(4, 6).T})
    assert Ledger.of_sealed(sealed).strict == 10 + 96
    assert unseal(sealed)["exemplars/payload"].untyped_storage().nbytes() == 10


# The dtypes of the safetensors format and their bits (its README and its Rust source).
FORMAT_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64}
FORMAT_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8}
FORMAT_BITS |= {"F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64}


@pytest.mark.parametrize("dtype", FORMAT_BITS)
def test_a_file_of_every_dtype_is_weighed_by_its_header(dtype, tmp_path):
    """4 × 6 entries of each, beside eight bytes of another."""
    size_bytes = 24 * FORMAT_BITS[dtype] // 8
    tensors = {
        "a": {"dtype": dtype, "shape": [4, 6], "data_offsets": [0, size_bytes]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [size_bytes, size_bytes + 8]},
    }
    header = json.dumps(tensors).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size_bytes + 8))
    for given_as in (path, str(path)):
        assert weigh(given_as) == Weight(26, size_bytes + 8)


def test_a_file_of_float8_is_weighed_and_is_no_sealed_state(tmp_path):
    """As its own library writes it."""
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1000).to(torch.float8_e4m3fn), "b": torch.zeros(3)}, path)
    assert weigh(str(path)) == Weight(1003, 1012)
    with pytest.raises(LedgerError, match="F8_E4M3"):
        Ledger.of_sealed(path)


def test_a_dtype_that_the_format_does_not_know_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F2", "shape": [4], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(1))
    with pytest.raises(LedgerError, match="F2"):
        weigh(path)


def test_tied_tensors_are_weighed_twice():
    weight = torch.randn(8)
    assert Ledger.of_sealed(seal({"backbone/a": weight, "backbone/b": weight})).published == 64


@pytest.mark.parametrize(
    "state",
    [
        {"pictures/x": torch.zeros(1)},
        {"backbone": torch.zeros(1)},
        {"backbone/": torch.zeros(1)},
        {"backbone/x": [1, 2]},
        {"backbone/x": b"bytes"},
        {"backbone/x": torch.zeros(2, dtype=torch.complex64)},
        {"backbone/x": torch.eye(2).to_sparse()},
    ],
)
def test_only_dense_tensors_of_known_kinds_pass(state):
    with pytest.raises(LedgerError):
        seal(state)


def test_a_free_kind_is_no_place_to_hide():
    pixels = torch.zeros(3072)
    hidden = {"backbone/bn.weight": torch.ones(4), "statistics/bn.pixels": pixels, "statistics/bn.running_var": pixels}
    assert Ledger.of_sealed(seal(hidden)).published == 16 + 2 * 4 * 3072


def with_header(header: object, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


@pytest.mark.parametrize(
    "sealed",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        with_header({"backbone/a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"123"),
        with_header({"backbone/a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"123"),
        with_header({"backbone/a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 3]}}, b"123"),
        with_header({"backbone/a": {"dtype": "U8", "shape": [-1, -3], "data_offsets": [0, 3]}}, b"123"),
        with_header({"backbone/a": {"dtype": "Q4", "shape": [3], "data_offsets": [0, 3]}}, b"123"),
        with_header({"backbone/a": 7}, b""),
        with_header([1, 2], b""),
    ],
)
def test_bytes_nobody_accounts_for_are_refused(sealed, tmp_path):
    (tmp_path / "s").write_bytes(sealed)
    for source in (sealed, tmp_path / "s"):
        with pytest.raises(LedgerError):
            Ledger.of_sealed(source)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).flatmap(lambda s: st.tuples(st.just(s), st.integers(0, 2**30)))
)
def test_masks_cost_one_bit_an_entry(case):
    shape, seed = case
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(packed, tuple(shape)), mask)


def test_whole_fitting_backbones_largest_first():
    sizes = [("small", 10), ("large", 30), ("middle", 20)]
    found = [whole_fitting(sizes, 2, budget, 5) for budget in (24, 25, 44, 45, 65)]
    assert found == [["small"], ["small"], ["small"], ["middle", "small"], ["large", "middle", "small"]]


@pytest.mark.parametrize(
    "header",
    [
        {"other/" + "a" * 65: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
        {"other/a b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
        {"other/ü": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
        {"other/a": {"dtype": "U8", "shape": [0, 123_456_789], "data_offsets": [0, 0]}},
        {"other/a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "__metadata__": {"a": "b"}},
        {"other/a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "note": "x" * 1000}},
        {"other/a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}},
        {"other/a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}},
    ],
)
def test_a_header_is_no_store_either(header):
    with pytest.raises(LedgerError):
        Ledger.of_sealed(with_header(header, b"" if "0, 123" in str(header) else b"1"))


def test_only_what_is_beyond_the_allowance_is_charged():
    allowance = Allowance(classes=10, image_bytes=64)
    state = {
        "backbone/conv.weight": torch.ones(8, 1, 3, 3),
        "backbone/bn.weight": torch.ones(100),
        "statistics/bn.running_mean": torch.ones(100),
        "head/weight": torch.ones(11, 20),
        "labels/images_per_class": torch.ones(40, dtype=torch.int32),
    }
    published = {e.item: e.published_bytes for e in ledger_of_state(state, "fp32", allowance).entries}
    assert published == {
        "conv.weight": 288,
        "bn.weight": 400,
        "bn.running_mean": 400 - (288 + 400) // 4,
        "weight": 880 - 4 * 11 * (8 + 1),
        "images_per_class": 160 - 80,
    }


def conv(outputs: int, inputs: int) -> torch.Tensor:
    return torch.empty(outputs, inputs, 3, 3, device="meta")


@pytest.mark.parametrize(
    ("shapes", "width"),
    [
        ({"stem.weight": conv(64, 3), "layer4.conv.weight": conv(512, 256), "layer3.conv.weight": conv(256, 128)}, 512),
        ({"branches.0.1.weight": conv(64, 9), "branches.1.1.weight": conv(64, 9), "shared.0.weight": conv(32, 3)}, 128),
        ({"branches.0.1.weight": conv(64, 32), "branches.1.1.weight": conv(32, 1)}, 64),  # no whole branch
        ({"a.weight": torch.empty(10_000, 1)}, 4),  # a layer of one input makes no 10,000 features
        ({"bn.weight": torch.empty(10_000)}, 0),
        ({}, 0),
    ],
    ids=["resnet", "two branches", "a branch that is none", "features of one input", "no layer", "nothing"],
)
def test_features_that_a_backbone_can_hand_to_a_head(shapes, width):
    state = {f"backbone/{name}": value for name, value in shapes.items()}
    assert feature_width(ledger_of_state(state).entries) == width
