"""Encodings of exemplars: bytes to the byte, pixels to the pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cilbench.budgets.codecs import Box, Encoded, Jpeg, Latent, LowRes, Raw, fixed_codec, shape_of


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=_generator(seed))


def decoded_by_hand(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """What the box codec must show, pixel by pixel."""
    top, left, height, width = (2 * side for side in box)
    out = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            inside = top <= y < top + height and left <= x < left + width
            out[:, y, x] = image[:, y, x] if inside else image[:, y - y % 2, x - x % 2]
    return out


@st.composite
def boxed_images(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A batch of any shape, odd sides too, with a box in every image; empty boxes and whole images among them."""
    count, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    boxes = []
    for _ in range(count):
        box = []
        for specs in ((height + 1) // 2, (width + 1) // 2):
            start = draw(st.integers(0, specs - 1))
            box.append((start, draw(st.integers(0, specs - start))))
        (top, box_height), (left, box_width) = box
        boxes.append([top, left, box_height, box_width])
    images = pictures(count, channels, height, width, draw(st.integers(0, 99)))
    return images, torch.tensor(boxes, dtype=torch.int16)


@settings(max_examples=60, deadline=None)
@given(boxed_images())
def test_box_shows_the_inside_exactly_and_the_rest_at_a_quarter(case: tuple[Tensor, Tensor]) -> None:
    images, boxes = case
    encoded = Box().encode(images, boxes)
    shown = Box().decode(encoded, shape_of(images))
    for image, box, picture in zip(images, boxes.tolist(), shown, strict=True):
        assert torch.equal(picture, decoded_by_hand(image, tuple(box)))
    assert int(encoded.lengths.sum()) == len(encoded.payload)
    assert torch.equal(encoded.lengths, Box().lengths(len(images), boxes, shape_of(images)))
    assert (encoded.lengths >= Box().min_bytes(shape_of(images))).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 3]), st.data())
def test_box_costs_its_formula_on_even_sides(
    half_height: int,
    half_width: int,
    channels: int,
    data: st.DataObject,
) -> None:
    height, width = 2 * half_height, 2 * half_width
    box_height = data.draw(st.integers(0, half_height))
    box_width = data.draw(st.integers(0, half_width))
    top, left = data.draw(st.integers(0, half_height - box_height)), data.draw(st.integers(0, half_width - box_width))
    boxes = torch.tensor([[top, left, box_height, box_width]], dtype=torch.int16)
    encoded = Box().encode(pictures(1, channels, height, width), boxes)
    inside = (2 * box_height) * (2 * box_width)  # bh · bw in pixels
    assert len(encoded.payload) * 4 == channels * (4 * inside + height * width - inside)


@pytest.mark.parametrize(
    ("shape", "least", "whole"), [((3, 32, 32), 768, 3072), ((1, 8, 8), 16, 64), ((3, 7, 5), 36, 105)]
)
def test_box_of_nothing_and_of_everything(shape: tuple[int, int, int], least: int, whole: int) -> None:
    images = pictures(1, *shape)
    specs = [(shape[1] + 1) // 2, (shape[2] + 1) // 2]
    nothing = Box().encode(images, torch.zeros(1, 4, dtype=torch.int16))
    everything = Box().encode(images, torch.tensor([[0, 0, *specs]]))
    assert Box().min_bytes(shape) == len(nothing.payload) == least
    assert len(everything.payload) == whole
    assert torch.equal(Box().decode(everything, shape), images)


@settings(max_examples=40, deadline=None)
@given(boxed_images(), st.integers(0, 800), st.sampled_from([0, 8]))
def test_within_keeps_the_longest_prefix_that_fits(case: tuple[Tensor, Tensor], limit: int, overhead: int) -> None:
    images, boxes = case
    encoded = Box().encode(images, boxes)
    kept = encoded.within(limit, overhead)
    costs = [int(length) + overhead for length in encoded.lengths]
    assert len(kept) == max(n for n in range(len(costs) + 1) if sum(costs[:n]) <= limit)
    assert len(kept.payload) + overhead * len(kept) <= limit or not len(kept)
    assert torch.equal(kept.payload, encoded.payload[: len(kept.payload)])
    assert kept.boxes is not None
    assert torch.equal(kept.boxes, boxes[: len(kept)])


def test_raw_is_the_pixels() -> None:
    images = pictures(5, 3, 4, 6)
    encoded = Raw().encode(images)
    assert encoded.boxes is None
    assert encoded.lengths.tolist() == [72] * 5
    assert torch.equal(Raw().decode(encoded, (3, 4, 6)), images)
    images.zero_()  # the bytes are no view of the images
    assert encoded.payload.any()


def test_a_box_is_needed_and_fits_in_16_bits() -> None:
    with pytest.raises(ValueError, match="needs a box"):
        Box().encode(pictures(1, 1, 8, 8))
    encoded: Encoded = Box().encode(pictures(1, 1, 8, 8), torch.tensor([[1, 1, 2, 2]]))
    assert encoded.boxes is not None
    assert encoded.boxes.dtype == torch.int16


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([Jpeg(1), Jpeg(50), Jpeg(100), LowRes(2), LowRes(3), LowRes(64)]),
    st.integers(0, 4),
    st.sampled_from([1, 3]),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_fixed_codecs_decode_to_the_shape_they_encoded(codec, count, channels, height, width) -> None:
    images = pictures(count, channels, height, width)
    encoded = codec.encode(images)
    decoded = codec.decode(encoded, (channels, height, width))
    assert (decoded.shape, decoded.dtype) == (images.shape, torch.uint8)
    assert encoded.payload.dtype == torch.uint8
    assert int(encoded.lengths.sum()) == encoded.payload.numel()
    if count:
        assert codec.min_bytes((channels, height, width)) <= int(encoded.lengths.min())


def test_lowres_is_the_mean_of_its_blocks() -> None:
    images = pictures(3, 3, 8, 12)
    encoded = LowRes(2).encode(images)
    blocks = images.double().reshape(3, 3, 4, 2, 6, 2).mean((3, 5))
    assert (encoded.payload.reshape(3, 3, 4, 6).double() - blocks).abs().max() <= 0.5
    flat = torch.full((1, 3, 9, 7), 77, dtype=torch.uint8)
    assert torch.equal(LowRes(4).decode(LowRes(4).encode(flat), (3, 9, 7)), flat)


def test_jpeg_is_a_jpeg_file_and_quality_is_closeness() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 255, size=(32, 32), mode="bilinear").to(
        torch.uint8
    )
    errors, sizes = [], []
    for quality in (10, 50, 95):
        codec = Jpeg(quality)
        encoded = codec.encode(smooth)
        assert encoded.payload[:2].tolist() == [0xFF, 0xD8]
        errors.append(float((codec.decode(encoded, (3, 32, 32)).float() - smooth.float()).abs().mean()))
        sizes.append(int(encoded.lengths.sum()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 3


@pytest.mark.parametrize(("stored_as", "feature_bytes"), [("fp32", 256), ("fp16", 128), ("int8", 66)])
def test_a_feature_costs_its_numbers_and_comes_back_as_near_as_they_are(stored_as, feature_bytes) -> None:
    features = 5 * torch.randn(7, 64, 1, 1, generator=_generator(1))
    features[2] = 0
    codec = Latent(stored_as)
    encoded = codec.encode(features)
    assert codec.min_bytes((64, 1, 1)) == codec.enough_bytes((64, 1, 1)) == feature_bytes
    assert encoded.lengths.tolist() == 7 * [feature_bytes]
    assert (encoded.payload.dtype, encoded.payload.numel()) == (torch.uint8, 7 * feature_bytes)
    decoded = codec.decode(encoded, (64, 1, 1))
    assert (decoded.dtype, decoded.shape) == (torch.float32, features.shape)
    largest = features.abs().amax(1, keepdim=True)
    step = {"fp32": 0.0, "fp16": 2**-11, "int8": 0.51 / 127 + 2**-9}[stored_as]  # half a step, and of bf16 scales
    assert ((decoded - features).abs() <= step * largest).all()
    assert stored_as == "fp32" or not torch.equal(decoded, features)
    assert torch.equal(codec.encode(decoded).payload, encoded.payload)
    assert torch.equal(codec.decode(encoded.first(3), (64, 1, 1)), decoded[:3])


@pytest.mark.parametrize("stored_as", ["fp32", "fp16", "int8"])
def test_feature_maps_of_any_shape_and_none_at_all_are_encoded(stored_as) -> None:
    for count, shape in ((0, (3, 2, 2)), (1, (1, 1, 1)), (2, (3, 5, 4))):
        maps = torch.rand(count, *shape, generator=_generator(2))
        decoded = Latent(stored_as).decode(Latent(stored_as).encode(maps), shape)
        assert decoded.shape == maps.shape
        assert torch.allclose(decoded, maps, atol=0.01)
    assert Latent("fp16").decode(Latent("fp16").encode(torch.full((1, 1, 1, 1), 1e9)), (1, 1, 1)) == 65504


def test_enough_is_enough_for_pictures_of_any_kind() -> None:
    kinds = [pictures(4, 3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8), pictures(4, 3, 16, 16) // 128 * 255]
    for codec in (Raw(), LowRes(2), Jpeg(50), Jpeg(95)):
        for images in kinds:
            largest = int(codec.encode(images).lengths.max())
            assert codec.min_bytes((3, 16, 16)) <= largest <= codec.enough_bytes((3, 16, 16))


@pytest.mark.parametrize(
    "text", ["jpeg", "jpeg:0", "jpeg:101", "jpeg:x", "jpeg:-5", "lowres:1", "lowres:65", "lowres", "raw:1", "box", ""]
)
def test_what_is_no_codec_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"whole number|codecs are") as refusal:
        fixed_codec(*text.partition(":")[::2])
    assert "\n" not in str(refusal.value)
