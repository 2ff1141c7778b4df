from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_pictures import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, huge_png, noise, png, saved
from PIL import Image

from mms_sdk.compute.data.kinds import image
from mms_sdk.errors import InvalidInput

H, W = 7, 5


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours seen through their alpha on white paper."""
    share = alpha.astype(np.float64) / 255
    return np.rint(colours * share + 255 * (1 - share))


def luma(colours: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, which Pillow and JPEG use."""
    return (colours.astype(np.float64) @ [0.299, 0.587, 0.114])[:, :, None]


def assert_near(found: np.ndarray, expected: np.ndarray, *, within: float) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=within, rtol=0)


# What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_files_decode_to_their_pixels(kind: str) -> None:
    colours = noise(H, W)
    data = saved(colours, kind, **({"lossless": True} if kind == "WEBP" else {}))

    np.testing.assert_array_equal(image.decode(data, color="rgb"), colours)
    assert image.inspect(data) == image.Facts(size=(H, W), gray=False)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_files_decode_to_one_channel_or_three_equal_ones(kind: str) -> None:
    levels = noise(H, W, 1)
    data = saved(levels, kind)

    np.testing.assert_array_equal(image.decode(data, color="gray"), levels)
    np.testing.assert_array_equal(image.decode(data, color="rgb"), np.repeat(levels, 3, axis=2))
    assert image.inspect(data).gray


def test_a_jpeg_decodes_to_nearly_its_pixels() -> None:
    ramp = np.stack(np.meshgrid(np.arange(64) * 2, np.arange(48) * 3, indexing="xy"), -1).astype(np.uint8)
    colours = np.concatenate([ramp, np.full((48, 64, 1), 90, np.uint8)], -1)

    assert_near(image.decode(saved(colours, "JPEG", quality=98, subsampling=0), color="rgb"), colours, within=5)


def test_colours_become_grey_by_their_brightness() -> None:
    colours = noise(H, W)

    assert_near(image.decode(saved(colours), color="gray"), luma(colours), within=0.51)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_spread_over_the_whole_range(bits: int) -> None:
    levels = np.random.default_rng(0).integers(0, 2**bits, (H, W, 1))

    assert_near(image.decode(png(levels, GRAY, bits=bits), color="gray"), levels * 255 / (2**bits - 1), within=0)


def test_16_bits_of_grey_are_rounded_to_8() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (H, W, 1))
    levels[0, 0], levels[0, 1] = 0, 65535
    files = {
        "PNG": png(levels, GRAY, bits=16),
        "TIFF, little-endian": saved(Image.fromarray(levels[:, :, 0].astype("<u2")), "TIFF"),
        "TIFF, big-endian": big_endian_tiff(levels[:, :, 0]),
        "PGM": b"P5 %d %d 65535\n" % (W, H) + levels.astype(">u2").tobytes(),
    }

    for what, data in files.items():
        assert_near(image.decode(data, color="gray"), np.rint(levels / 257), within=0)
        assert image.inspect(data).gray, what
        assert "16 bits scaled to 8" in image.inspect(data).notes, what


@pytest.mark.parametrize(("color_type", "channels"), [(RGB, 3), (RGBA, 4), (GRAY_ALPHA, 2)])
def test_16_bits_of_colour_become_8(color_type: int, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (H, W, channels))
    alpha = samples[:, :, -1:] / 257 if channels in (2, 4) else np.full((H, W, 1), 255.0)
    colours = samples[:, :, :1] if channels == 2 else samples[:, :, :3]

    found = image.decode(png(samples, color_type, bits=16), color="gray" if channels == 2 else "rgb")

    assert_near(found, over_white(colours / 257, alpha), within=2)  # Pillow cuts the low byte off


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_the_colours_one_sees(kind: str) -> None:
    inks = np.tile(np.array([[30, 90, 200, 40]], np.uint8), (16, 16, 1)).reshape(16, 16, 4)
    if kind == "TIFF":
        inks = noise(16, 16, 4)
    data = saved(Image.frombytes("CMYK", (16, 16), inks.tobytes()), kind)
    expected = (255 - inks[:, :, :3].astype(np.float64)) * (255 - inks[:, :, 3:]) / 255

    assert_near(image.decode(data, color="rgb"), expected, within=1 if kind == "TIFF" else 4)
    assert image.inspect(data).notes == ("CMYK converted",)


def test_a_palette_becomes_its_colours() -> None:
    palette, places = noise(1, 200)[0], np.random.default_rng(1).integers(0, 200, (H, W, 1))

    data = png(places, PALETTE, chunks={b"PLTE": palette.tobytes()})

    np.testing.assert_array_equal(image.decode(data, color="rgb"), palette[places[:, :, 0]])
    assert not image.inspect(data).gray


def test_a_palette_of_greys_is_grey() -> None:
    palette, places = noise(1, 200, 1)[0].repeat(3, axis=1), np.random.default_rng(1).integers(0, 200, (H, W, 1))

    data = png(places, PALETTE, chunks={b"PLTE": palette.tobytes()})

    np.testing.assert_array_equal(image.decode(data, color="gray"), palette[places[:, :, 0]][:, :, :1])
    assert image.inspect(data).gray


def test_transparency_is_laid_over_white() -> None:
    colours, alpha, levels = noise(H, W), noise(H, W, 1, seed=1), noise(H, W, 1, seed=2)
    palette, places = noise(1, 200, seed=3)[0], np.random.default_rng(1).integers(0, 200, (H, W, 1))
    see_through = np.random.default_rng(2).integers(0, 256, 200)
    key_rgb, key_gray = colours[2, 3], levels[2, 3]
    files = [
        (png(np.concatenate([colours, alpha], 2), RGBA), over_white(colours, alpha)),
        (png(np.concatenate([levels, alpha], 2), GRAY_ALPHA), over_white(levels, alpha)),
        (
            png(places, PALETTE, chunks={b"PLTE": palette.tobytes(), b"tRNS": see_through.astype(np.uint8).tobytes()}),
            over_white(palette[places[:, :, 0]], see_through[places]),
        ),
        (  # one colour that stands for nothing
            png(colours, RGB, chunks={b"tRNS": key_rgb.astype(">u2").tobytes()}),
            np.where((colours == key_rgb).all(2, keepdims=True), 255, colours),
        ),
        (
            png(levels, GRAY, chunks={b"tRNS": key_gray.astype(">u2").tobytes()}),
            np.where(levels == key_gray, 255, levels),
        ),
        (
            saved(Image.fromarray(np.concatenate([colours, alpha], 2)), "WEBP", lossless=True, exact=True),
            over_white(colours, alpha),
        ),
    ]

    for data, expected in files:
        color = "gray" if expected.shape[2] == 1 else "rgb"
        assert_near(image.decode(data, color=color), expected, within=1)
        assert image.inspect(data).notes == ("transparency laid over white",)
        assert image.inspect(data).gray == (color == "gray")


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.32, table 6: where row 0 and column 0 are
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_is_turned_upright_by_its_exif_orientation(orientation: int, kind: str) -> None:
    stored = np.repeat(np.repeat(noise(3, 2), 8, axis=0), 8, axis=1)  # even blocks, which JPEG keeps
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = saved(stored, kind, exif=exif, **options)

    found, facts = image.decode(data, color="rgb"), image.inspect(data)

    assert_near(found, UPRIGHT[orientation](stored), within=3 if kind == "JPEG" else 0)
    assert facts.size == found.shape[:2]
    assert facts.notes == (("turned upright by its EXIF orientation",) if orientation > 1 else ())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.fromarray(np.full((H, W, 3), level, np.uint8)) for level in (10, 120, 250)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])

    assert_near(image.decode(data, color="rgb"), np.full((H, W, 3), 10.0), within=1)
    assert "animated: first of 3 frames taken" in image.inspect(data).notes


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) | {"LAB", "HSV", "YCbCr", "La", "RGBa", "PA", "RGBX"} - {"F"}))
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_whatever_mode_a_file_opens_in_there_is_a_way_to_pixels(mode: str, color: image.Color) -> None:
    found = image.to_array(Image.new(mode, (W, H)), color=color)

    assert found.shape == (H, W, image.CHANNELS[color])
    assert found.dtype == np.uint8


def test_lab_colours_are_nearly_those_one_sees() -> None:
    data = saved(Image.merge("LAB", [Image.new("L", (4, 4), level) for level in (136, 128, 128)]), "TIFF")

    # L* 53.3, a* 0, b* 0 is a grey of 127 in sRGB (CIE 1976; D50).
    assert_near(image.decode(data, color="rgb"), np.full((4, 4, 3), 127.0), within=3)
    assert_near(image.decode(data, color="gray"), np.full((4, 4, 1), 127.0), within=3)


def test_one_pixel_is_a_picture() -> None:
    np.testing.assert_array_equal(image.decode(png(np.full((1, 1, 1), 9), GRAY), color="rgb"), np.full((1, 1, 3), 9))


def test_what_is_encoded_as_png_decodes_to_itself() -> None:
    for channels, color in ((1, "gray"), (3, "rgb")):
        array = noise(H, W, channels)
        np.testing.assert_array_equal(image.decode(image.encode_png(array), color=color), array)


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_by_a_whole_factor_is_nearly_the_mean_of_blocks(channels: int) -> None:
    levels = np.add.outer(np.arange(32) * 3, np.arange(48) * 2)[:, :, None].astype(np.uint8).repeat(channels, 2)

    found = image.resize(levels, (8, 12))

    blocks = levels.reshape(8, 4, 12, 4, channels).mean((1, 3))
    assert_near(found[1:-1, 1:-1], blocks[1:-1, 1:-1], within=1)
    assert image.resize(levels, (32, 48)) is levels


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + bytes(100),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        saved(noise(4, 4), "ICO"),
        saved(noise(4, 4), "PCX"),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_picture_of_a_known_format_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"not a readable picture \(.+\); .*PNG, JPEG"):
        image.inspect(data)
    with pytest.raises(InvalidInput):
        image.decode(data, color="rgb")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused_and_no_grey_half_is_made_up(kind: str, share: float) -> None:
    data = saved(noise(40, 40), kind)

    with pytest.raises(InvalidInput, match="not a readable picture"):
        image.inspect(data[: int(share * len(data))])


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = huge_png(12_000)
    assert len(data) < 100_000

    tracemalloc.start()
    with pytest.raises(InvalidInput, match=r"at most 50,000,000 pixels .*raise max_pixels"):
        image.inspect(data)
    with pytest.raises(InvalidInput, match=r"at most 99 pixels .*this one has 10×10 = 100 pixels"):
        image.decode(png(np.zeros((10, 10, 1), int), GRAY), color="gray", max_pixels=99)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**20
    assert image.decode(png(np.zeros((10, 10, 1), int), GRAY), color="gray", max_pixels=100).shape == (10, 10, 1)


def test_floating_point_pixels_are_refused() -> None:
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")

    with pytest.raises(InvalidInput, match="whole numbers; this one has 4×4 = 16 pixels, mode F"):
        image.inspect(data)


SEEDS = [
    saved(noise(9, 8), "PNG"),
    saved(noise(9, 8), "JPEG"),
    saved(noise(9, 8), "GIF"),
    saved(noise(9, 8), "TIFF", compression="tiff_lzw"),
    saved(noise(9, 8), "WEBP"),
    saved(noise(9, 8), "BMP"),
    png(np.zeros((4, 4, 1), int), PALETTE, chunks={b"PLTE": bytes(9), b"tRNS": b"\0\1"}),
]


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large])
def test_garbled_files_are_refused_or_decode_to_what_was_found_and_nothing_else_is_raised(data: st.DataObject) -> None:
    garbled = bytearray(data.draw(st.sampled_from(SEEDS)))
    for at in data.draw(st.lists(st.integers(0, len(garbled) - 1), min_size=1, max_size=6)):
        garbled[at] = data.draw(st.integers(0, 255))
    del garbled[data.draw(st.integers(len(garbled) // 2, len(garbled))) :]

    try:
        facts = image.inspect(bytes(garbled), max_pixels=100_000)
    except InvalidInput:
        return
    assert image.decode(bytes(garbled), color="rgb", max_pixels=100_000).shape == (*facts.size, 3)
    assert image.decode(bytes(garbled), color="gray", max_pixels=100_000).shape == (*facts.size, 1)


def big_endian_tiff(levels: np.ndarray) -> bytes:
    """A grey TIFF of 16 bits in Motorola order, by the letter of TIFF 6.0."""
    height, width = levels.shape
    body = levels.astype(">u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(body))]
    out = io.BytesIO()
    out.write(b"MM\0*" + (8 + len(body)).to_bytes(4, "big") + body)
    out.write(len(tags).to_bytes(2, "big"))
    for tag, kind, value in tags:
        out.write(tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big"))
        out.write(value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
    out.write(bytes(4))
    return out.getvalue()
