"""Clips: frames are compared with those that were written without loss, counts with the packets in the file."""

from __future__ import annotations

import contextlib
import io
import resource
import sys
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from make_clips import encode, frames

from mms_sdk.compute.data.kinds import video
from mms_sdk.errors import InvalidInput, InvalidRequest, MissingExtra

LOSSLESS = {
    "ffv1 in mkv": {},
    "ffv1 in avi": {"form": "avi"},
    "raw in avi": {"form": "avi", "codec": "rawvideo", "pixels": "bgr24"},
    "raw in mov": {"form": "mov", "codec": "rawvideo", "pixels": "rgb24"},
    "huffyuv in avi": {"form": "avi", "codec": "huffyuv", "pixels": "rgb24"},
    "h264 in mp4": {"form": "mp4", "codec": "libx264rgb", "pixels": "rgb24", "options": {"qp": "0"}},
}
LOSSY = {
    "h264 in mp4": {"form": "mp4", "codec": "libx264", "pixels": "yuv420p"},
    "mpeg4 in mov": {"form": "mov", "codec": "mpeg4", "pixels": "yuv420p"},
    "mjpeg in avi": {"form": "avi", "codec": "mjpeg", "pixels": "yuvj420p"},
    "vp9 in webm": {"form": "webm", "codec": "libvpx-vp9", "pixels": "yuv420p"},
    "h264 in mpeg-ts": {"form": "mpegts", "codec": "libx264", "pixels": "yuv420p"},
    "mpeg2 in mpeg": {"form": "mpeg", "codec": "mpeg2video", "pixels": "yuv420p"},
}


def written(how: dict[str, Any]) -> bytes:
    """The bytes of a file of twelve frames."""
    if how.get("codec", "ffv1") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {how['codec']}")
    return encode(frames(), **how)


def packets(data: bytes) -> int:
    """How many frames there are, by counting packets, not decoding them."""
    with av.open(io.BytesIO(data)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


@pytest.mark.parametrize("how", LOSSLESS.values(), ids=LOSSLESS)
def test_frames_are_bit_for_bit_those_that_were_written_without_loss(how):
    data = written(how)

    np.testing.assert_array_equal(video.decode(data), frames())
    np.testing.assert_array_equal(video.decode(data, begin=5, frames=3), frames()[5:8])
    np.testing.assert_array_equal(video.decode(data, begin=10, frames=99), frames()[10:])
    np.testing.assert_array_equal(video.poster(data), frames()[0])
    facts = video.inspect(data, max_seconds=1)
    assert (facts.size, facts.frames, facts.rate_hz, facts.seconds) == ((32, 48), 12, 25.0, 0.48)


@pytest.mark.parametrize("how", LOSSY.values(), ids=LOSSY)
def test_counts_are_those_of_the_packets(how):
    data = written(how)

    facts = video.inspect(data, max_seconds=10)

    assert facts.frames == packets(data) == len(video.decode(data)) == 12
    assert facts.rate_hz == pytest.approx(25, rel=1e-3)
    assert facts.seconds == pytest.approx(12 / 25, rel=1e-3)


@pytest.mark.parametrize(
    "how", [*LOSSLESS.values(), *LOSSY.values()], ids=[*LOSSLESS, *(f"{how}, lossy" for how in LOSSY)]
)
def test_what_is_cut_short_is_refused(how):
    data = written(how)
    for part in (0.0, 0.01, 0.3, 0.8):
        if part == 0.8 and how.get("form") == "mpegts":
            continue  # it says nowhere how long it is, and what is left of its last frame decodes
        with pytest.raises(InvalidInput, match=r"not a readable clip|cut short|no frame|no video"):
            video.inspect(data[: int(part * len(data))], max_seconds=10)


@pytest.mark.parametrize("how", ["mpeg4 in mov", "mjpeg in avi", "h264 in mpeg-ts", "mpeg2 in mpeg"])
def test_damage_that_a_decoder_meets_is_refused(how):
    data = written(LOSSY[how])
    at = len(data) // 2

    with pytest.raises(InvalidInput, match=r"not a readable clip|damaged"):
        video.inspect(data[:at] + bytes(400) + data[at + 400 :], max_seconds=10)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no clip" * 1000,
        b"\x1aE\xdf\xa3" + bytes(5000),
        b"\0\0\0\x20ftypisom" + b"\xff" * 5000,
        b"RIFF\xff\xff\xff\xffAVI LIST" + b"\xff" * 5000,
    ],
    ids=["empty", "text", "mkv", "mp4", "avi"],
)
def test_garbage_is_refused_with_the_formats_that_are_read(data):
    with pytest.raises(
        InvalidInput, match=r"MMS reads MP4, MOV, Matroska, WebM, AVI, MPEG and Ogg|there is no video in it"
    ):
        video.inspect(data, max_seconds=10)


def test_a_playlist_makes_nothing_else_be_read(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(encode(frames(), form="mpegts", codec="libx264", pixels="yuv420p"))
    for playlist in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret.as_uri()}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ):
        with pytest.raises(InvalidInput, match="not a readable clip"):
            video.inspect(playlist.encode(), max_seconds=10)


def test_a_recording_is_no_clip():
    out = io.BytesIO()
    soundfile.write(out, np.zeros(4000), 8000, format="OGG")

    with pytest.raises(InvalidInput, match="there is no video in it"):
        video.inspect(out.getvalue(), max_seconds=10)


def test_sound_beside_is_not_looked_at_but_where_it_ends():
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        shown, heard = (
            container.add_stream("ffv1", rate=25),
            container.add_stream("pcm_s16le", rate=8000, layout="mono"),
        )
        shown.height, shown.width, shown.pix_fmt = 32, 48, "bgr0"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(heard.encode(sound))
        for picture in frames():
            container.mux(shown.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in (shown, heard):
            container.mux(stream.encode())

    facts = video.inspect(out.getvalue(), max_seconds=10)

    assert (facts.frames, facts.seconds) == (12, 0.48)  # and two seconds of sound
    np.testing.assert_array_equal(video.decode(out.getvalue()), frames())


def test_clips_beyond_the_bounds_are_refused_before_they_are_decoded():
    data = encode(frames(50))
    with pytest.raises(InvalidInput, match="a clip is at most 1 s long"):
        video.inspect(data, max_seconds=1)
    with pytest.raises(InvalidInput, match=r"at most 1,000 pixels; those of this clip have 48×32"):
        video.inspect(data, max_seconds=10, max_pixels=1000)


def test_frames_without_end_at_one_moment_are_refused():
    data = encode(frames(40, height=2, width=2), rate=100_000)
    with pytest.raises(InvalidInput, match="with at most 1,000 frames a second"):
        video.inspect(data, max_seconds=0.03)


def test_a_picture_of_a_billion_pixels_is_refused_in_little_memory():
    data = bytearray(encode(frames(2), form="avi", codec="mjpeg", pixels="yuvj420p"))
    at = data.index(b"\xff\xc0")  # the frame header of a JPEG: length, precision, height, width
    while at >= 0:
        data[at + 5 : at + 9] = (0x7D, 0x00, 0x7D, 0x00)  # 32000×32000
        at = data.find(b"\xff\xc0", at + 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(InvalidInput):
        video.inspect(bytes(data), max_seconds=10)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; a frame would take 1.5 GiB


def test_a_stretch_takes_no_more_memory_than_it_may():
    data = encode(frames(12))
    with pytest.raises(InvalidRequest, match=r"at most 20,000 bytes; frame 4 is beyond; take a stretch"):
        video.decode(data, max_bytes=20_000)
    assert len(video.decode(data, begin=4, frames=4, max_bytes=20_000)) == 4


@pytest.mark.parametrize("stretch", [{"begin": -1}, {"frames": 0}, {"begin": 12}])
def test_a_stretch_that_is_none_is_refused(stretch):
    with pytest.raises(InvalidRequest, match="a stretch"):
        video.decode(encode(frames(12)), **stretch)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
def test_a_clip_is_shown_upright(matrix, turns):
    # ISO 14496-12, 8.3.2: the matrix in a track's header is { a, b, u, c, d, v, x, y, w }, 16.16 but for u, v and w.
    written = frames()
    data = encode(written, form="mov", codec="rawvideo", pixels="rgb24")
    a, b, c, d = (value * 65536 for value in matrix)
    numbers = [a, b, 0, c, d, 0, 0, 0, 0x40000000]
    at = data.index(b"tkhd") + 4 + 40
    turned = data[:at] + b"".join(number.to_bytes(4, "big", signed=True) for number in numbers) + data[at + 36 :]

    facts = video.inspect(turned, max_seconds=10)

    np.testing.assert_array_equal(video.decode(turned), np.rot90(written, turns, axes=(1, 2)))
    assert facts.size == ((48, 32) if turns % 2 else (32, 48))
    assert facts.notes == ("turned upright by its display matrix",)


def test_without_pyav_the_extra_is_named(monkeypatch):
    data = encode(frames())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r'pip install "mms-sdk\[video\]"'):
        video.inspect(data, max_seconds=10)


def test_whatever_is_flipped_in_a_file_it_decodes_or_is_refused():
    rng = np.random.default_rng(0)
    for how in (LOSSLESS["ffv1 in avi"], LOSSY["h264 in mp4"], LOSSY["vp9 in webm"], LOSSY["mpeg2 in mpeg"]):
        right = np.frombuffer(written(how), np.uint8)
        for turn in range(40):
            wrong = right.copy()
            places = rng.integers(
                0, 600 if turn % 2 else len(wrong), 1 + turn % 5
            )  # half of them where the headers are
            wrong[places] = rng.integers(0, 256, len(places))
            for read in (lambda data: video.inspect(data, max_seconds=60), video.poster):
                with contextlib.suppress(InvalidInput):
                    read(wrong.tobytes())
