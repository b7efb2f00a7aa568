"""Video files: what is read is what was in them, what is written is what is read, and the sound stays."""

import io
import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from modular_diffdiff import BadInputError, clips, read_video, write_video
from modular_diffdiff.loading import UserError

from .clips import SIZE, frame_of, frames_of, make_clip, metadata_of, rate_of, sound_of


LOSS = 4  # of a codec, in 8-bit steps on average
WRITTEN = tuple(clips.WRITERS)


@pytest.fixture
def file(tmp_path):
    """Puts bytes into a file, and gives its path."""

    def put(data: bytes, name: str = "clip.mp4") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return put


def difference(a, b) -> float:
    """The mean of the differences of two videos, which have the same frames and size."""
    a, b = (np.stack([np.asarray(frame) for frame in frames]).astype(float) for frames in (a, b))
    assert a.shape == b.shape
    return np.abs(a - b).mean()


# Reading


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"muxer": "mov", "sound": "alac"},
        {"muxer": "matroska", "rate": Fraction(30000, 1001)},
        {"muxer": "webm", "encoder": "libvpx-vp9", "sound": "libopus"},
        {"muxer": "gif", "encoder": "gif", "pixel_format": "rgb8", "sound": None, "rate": 10},
        {"muxer": "mpegts"},
        {"pixel_format": "yuvj420p"},
        {"pixel_format": "yuv444p", "frames": 1},
        {"encoder": "ffv1", "muxer": "matroska", "pixel_format": "gray"},
    ],
    ids=str,
)
def test_a_file_is_read_as_its_frames_and_its_rate(file, kind):
    video = read_video(file(make_clip(**kind)))
    expected = [frame_of(place) for place in range(kind.get("frames", 9))]
    if kind.get("pixel_format") == "gray":
        expected = [np.asarray(Image.fromarray(one).convert("L").convert("RGB")) for one in expected]
    coarse = 20 if kind.get("pixel_format") == "rgb8" else 0
    assert difference(video.frames, expected) < LOSS + coarse
    assert video.frame_rate == kind.get("rate", 24)
    assert (video.sound is None) == ("sound" in kind and kind["sound"] is None)


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_frames_are_turned_as_the_file_says(file, turned):
    video = read_video(file(make_clip(turned=turned)))
    assert difference(video.frames, [np.rot90(frame_of(place), turned // 90) for place in range(9)]) < LOSS


@pytest.mark.parametrize(("size", "matrix"), [((1280, 720), "ITU709"), (SIZE, "ITU601")])
def test_colours_without_a_matrix_are_those_that_players_show(tmp_path, size, matrix):
    orange = np.full((size[1], size[0], 3), (220, 120, 20), np.uint8)
    frame = av.VideoFrame.from_ndarray(orange).reformat(format="yuv420p", dst_colorspace=matrix)
    frame.colorspace = clips.UNSPECIFIED
    with av.open(str(tmp_path / "a.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        target.mux([*stream.encode(frame), *stream.encode()])
    assert difference(read_video(tmp_path / "a.mp4").frames, [orange]) < LOSS


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lambda: b"", "it is damaged, or not a video"),
        (lambda: b"no video", "it is damaged, or not a video"),
        (lambda: make_clip()[:2000], "it is damaged, or not a video"),
        (lambda: make_clip(places=[0, 1, 2, 3, 8, 9, 10, 11, 12]), "its frame rate is not constant"),
        (lambda: make_clip(pixel_format="yuv420p10le"), "it has more than 8 bits per colour"),
        (lambda: make_clip(ratio=Fraction(4, 3)), "its pixels are not square but 4/3"),
        (lambda: make_clip(rate=2000), "it has 2000 frames a second; up to 1000 are taken"),
        (
            lambda: make_clip([np.full((48, 64, 4), 90, np.uint8)], 10, "matroska", "ffv1", "bgra", None),
            "it is transparent in places",
        ),
    ],
)
def test_what_cannot_be_read_says_why(file, data, why):
    path = file(data())
    with pytest.raises(UserError, match=f"^{re.escape(repr(str(path)))} cannot be read: {why}"):
        read_video(path)


def test_a_file_without_frames_is_refused(file):
    with av.open(str(file(b"")), "w") as target:
        sound = target.add_stream("aac", rate=48_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 48_000
        target.mux([*sound.encode(silence), *sound.encode()])
    with pytest.raises(UserError, match="it holds no video"):
        read_video(target.name)


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n"])
def test_a_playlist_opens_no_other_file(file, playlist):
    other = file(make_clip())
    with pytest.raises(UserError, match="not a video"):
        read_video(file(playlist.format(other).encode(), "list.mp4"))


@pytest.mark.parametrize(("limit", "value"), [("MOST_FRAMES", 8), ("MOST_PIXELS", 9 * 64 * 48 - 1)])
def test_what_is_too_large_by_its_header_is_refused_before_it_is_decoded(file, monkeypatch, limit, value):
    monkeypatch.setattr(clips, limit, value)
    monkeypatch.setattr(clips, "_decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="it holds more than"):
        read_video(file(make_clip()))


def test_what_is_too_large_against_its_header_is_decoded_no_further(file, monkeypatch):
    decoded, decode = [], clips._decode
    monkeypatch.setattr(clips, "MOST_FRAMES", 3)
    monkeypatch.setattr(clips, "_decode", lambda *given: (decoded.append(0) or one for one in decode(*given)))
    with pytest.raises(UserError, match="it holds more than 3 frames"):
        read_video(file(make_clip(muxer="matroska")))  # whose header has no number of frames
    assert len(decoded) == 4


def test_without_pyav_both_say_what_to_install(file, monkeypatch):
    clip = file(make_clip())
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (lambda: read_video(clip), lambda: write_video(clip, [Image.new("RGB", SIZE)], 24)):
        with pytest.raises(UserError, match=r"Videos need PyAV: pip install 'modular-diffdiff\[video\]'"):
            use()


# Writing


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("size", [SIZE, (63, 47), (1, 1)], ids=str)
def test_what_is_written_is_what_is_read(tmp_path, suffix, size):
    frames = [Image.fromarray(frame_of(place, size)) for place in range(9)]
    write_video(tmp_path / f"a{suffix}", frames, Fraction(30000, 1001))
    video = read_video(tmp_path / f"a{suffix}")
    assert difference(video.frames, frames) < LOSS
    assert (video.frame_rate, video.sound) == (Fraction(30000, 1001), None)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_the_same_frames_and_sound_give_the_same_file(tmp_path, suffix):
    frames, sound = [frame_of(place) for place in range(9)], make_clip(sound="libmp3lame")
    sound = make_clip(muxer="webm", encoder="libvpx-vp9", sound="libopus") if suffix == ".webm" else sound
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}{suffix}", np.stack(frames), 24, sound)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    "frames",
    [
        lambda arrays: [Image.fromarray(one) for one in arrays],
        lambda arrays: arrays,
        lambda arrays: (arrays / 255).astype(np.float32),
        lambda arrays: torch.from_numpy(arrays / 255).permute(0, 3, 1, 2),
    ],
    ids=["pil", "uint8", "floats", "tensor"],
)
def test_frames_of_every_form_make_the_same_file(tmp_path, frames):
    arrays = np.stack([frame_of(place) for place in range(9)])
    write_video(tmp_path / "a.mp4", list(map(Image.fromarray, arrays)), 24)
    write_video(tmp_path / "b.mp4", frames(arrays), 24.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


KEPT = [
    *((suffix, {}) for suffix in (".mp4", ".mov", ".mkv")),
    *((suffix, {"muxer": "webm", "encoder": "libvpx-vp9", "sound": "libopus"}) for suffix in (".mp4", ".mkv", ".webm")),
    *((suffix, {"sound": "libmp3lame"}) for suffix in (".mp4", ".mov", ".mkv")),
    (".mkv", {"muxer": "matroska", "sound": "flac"}),
]


@pytest.mark.parametrize(("suffix", "kind"), KEPT, ids=str)
def test_the_sound_is_copied_up_to_the_end_of_the_frames(tmp_path, file, suffix, kind):
    data = make_clip(30, **kind)
    video = read_video(file(data))
    write_video(tmp_path / f"a{suffix}", video.frames, video.frame_rate, video.sound)
    copied, original = sound_of((tmp_path / f"a{suffix}").read_bytes()), sound_of(data)
    heard = [packet for packet in original if packet[0] < 30 / 24]
    assert len(heard) < len(original)
    assert [packet for _, packet in copied] == [packet for _, packet in heard]
    late = np.array([time for time, _ in copied]) - [time for time, _ in heard]
    assert np.ptp(late) <= 0.002  # Matroska's milliseconds
    begin = frames_begin((tmp_path / f"a{suffix}").read_bytes())
    assert abs(late[0] - begin) <= 0.002


def frames_begin(data: bytes) -> float:
    """When the first frame is shown, in seconds."""
    with av.open(io.BytesIO(data)) as source:
        return next(source.decode(video=0)).time


def test_sound_from_before_the_frames_stays_out(tmp_path, file):
    data = make_clip(30, begin=Fraction(1), muxer="matroska")
    video = read_video(file(data))
    write_video(tmp_path / "a.mkv", video.frames, video.frame_rate, video.sound)
    written = (tmp_path / "a.mkv").read_bytes()
    heard = {packet: time for time, packet in sound_of(data)}
    lags = [heard[packet] - time for time, packet in sound_of(written)]
    assert lags == pytest.approx([1 - frames_begin(written)] * len(lags), abs=0.003)
    assert min(time for time, _ in sound_of(written)) >= -0.1


def test_a_file_without_sound_gives_none(tmp_path):
    silent = make_clip(sound=None)
    write_video(tmp_path / "a.mp4", [Image.new("RGB", SIZE)], 24, silent)
    assert read_video(tmp_path / "a.mp4").sound is None


@pytest.mark.parametrize(
    ("suffix", "kind", "says"),
    [
        (".webm", {}, r"cannot hold the sound as it is (aac); .mp4, .mov or .mkv can."),
        (".mov", KEPT[3][1], r"cannot hold the sound as it is (opus); .mp4, .mkv or .webm can."),
    ],
)
def test_a_file_that_cannot_hold_the_sound_is_refused(tmp_path, suffix, kind, says):
    with pytest.raises(UserError, match=re.escape(says)):
        write_video(tmp_path / f"a{suffix}", [Image.new("RGB", SIZE)], 24, make_clip(**kind))
    assert not (tmp_path / f"a{suffix}").exists()


@pytest.mark.parametrize(
    ("name", "frames", "rate", "sound", "says"),
    [
        ("a.gif", [Image.new("RGB", SIZE)], 24, None, "`path` takes a file that ends in .mp4, .mov, .mkv or .webm"),
        ("a.mp4", [Image.new("RGB", SIZE)], 0, None, "`frame_rate` is 0; it takes a number above 0"),
        ("a.mp4", [Image.new("RGB", SIZE)], float("nan"), None, "`frame_rate` is nan; it takes"),
        ("a.mp4", [Image.new("RGB", SIZE)], 1001, None, "`frame_rate` is 1001; it takes"),
        ("a.mp4", [], 24, None, "`video` is empty"),
        ("a.mp4", [Image.new("RGB", SIZE), Image.new("RGB", (8, 8))], 24, None, "frames of different sizes"),
        ("a.mp4", [Image.new("RGB", SIZE)], 24, b"no sound", "`sound` cannot be read"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path, name, frames, rate, sound, says):
    with pytest.raises((UserError, BadInputError), match=re.escape(says)):
        write_video(tmp_path / name, frames, rate, sound)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_comment_of_any_length_is_kept(suffix):
    text = "a green pear, 梨 " * 6000
    data = clips.encode_video([Image.new("RGB", SIZE)], Fraction(24), suffix, comment=text)
    assert metadata_of(data)["comment"] == text
    assert (len(frames_of(data)), rate_of(data)) == (1, 24)
