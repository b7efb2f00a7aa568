"""`modular-diffdiff edit` of videos: the frames change where the map says so, and all else of the file stays."""

import hashlib
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import clips, editing, loading, maps
from modular_diffdiff.cli import app
from modular_diffdiff.still_life.scene import Scene, render

from .clips import frame_of, frames_of, make_clip, metadata_of, rate_of, sound_of


LOSS = 3  # of a codec, in 8-bit steps on average
WEBM = {"muxer": "webm", "encoder": "libvpx-vp9", "sound": "libopus"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a clip, and a map that keeps the left half and changes the right one."""
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(make_clip())
    Path("clip.webm").write_bytes(make_clip(**WEBM))
    Image.fromarray(half()).save("map.png")
    Image.fromarray(frame_of(0)).save("photo.png")
    return tmp_path


def half(white: bool = False) -> np.ndarray:
    """(48, 64), uint8: a map that keeps the left half; a white one keeps all."""
    values = np.full((48, 64), 255, np.uint8)
    values[:, 32:] = 255 if white else 0
    return values


@pytest.fixture
def run(folder):
    """Runs a command in the folder and checks its exit code."""

    def run(*arguments, code: int = 0, stdin: bytes | None = None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


@pytest.fixture
def edit(run, wan_checkpoint):
    """Edits a clip in two steps with the tiny checkpoint."""

    def edit(*options, video="clip.mp4", change_map="map.png", **expected):
        given = ("--model", wan_checkpoint, "--steps", 2, "--seed", 5)
        return run("edit", video, change_map, "a green pear", *given, *options, **expected)

    return edit


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return np.abs(a.astype(float) - b).mean()


# What it makes


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_what_changes_is_what_the_map_says(edit, name):
    result = edit("--overlay", video=name)
    made = f"clip-edit{Path(name).suffix}"
    assert result.stdout == f"{made} (seed 5, Wan 2.1)\n"
    edited, original = frames_of(Path(made).read_bytes()), frames_of(Path(name).read_bytes())
    assert difference(edited[:, :, :28], original[:, :, :28]) < LOSS
    assert difference(edited[:, :, 36:], original[:, :, 36:]) > 10 * LOSS


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ({}, ".mp4"),
        ({"rate": Fraction(30000, 1001)}, ".mov"),
        ({"rate": 12, "sound": "libmp3lame"}, ".mkv"),
        (WEBM, ".webm"),
    ],
)
def test_frame_rate_and_sound_are_kept(edit, kind, suffix):
    data = make_clip(11, **kind)
    Path("talk.mkv").write_bytes(data)
    edit("--out", f"a{suffix}", video="talk.mkv")
    made = Path(f"a{suffix}").read_bytes()
    assert frames_of(made).shape == (11, 48, 64, 3)
    rate = kind.get("rate", 24)
    assert rate_of(made) == rate
    heard = [packet for time, packet in sound_of(data) if time < 11 / rate]
    assert [packet for _, packet in sound_of(made)] == heard


@pytest.mark.parametrize("size", [(63, 47), (96, 40)])
def test_a_clip_of_any_size_comes_back_at_its_size(edit, size):
    data = make_clip([frame_of(place, size) for place in range(6)], **WEBM)
    Path("odd.webm").write_bytes(data)
    edit(video="odd.webm")
    assert frames_of(Path("odd-edit.webm").read_bytes()).shape == (6, size[1], size[0], 3)


def test_a_map_can_be_a_video_with_a_map_for_each_frame(edit):
    keeps = [half(white=place < 5) for place in range(9)]
    Path("map.mp4").write_bytes(make_clip([np.repeat(keep[..., None], 3, 2) for keep in keeps], sound=None))
    edit("--overlay", change_map="map.mp4")
    edited, original = (frames_of(Path(name).read_bytes()) for name in ("clip-edit.mp4", "clip.mp4"))
    assert difference(edited[:5], original[:5]) < LOSS
    assert difference(edited[5:, :, 36:], original[5:, :, 36:]) > 10 * LOSS
    assert difference(edited[5:, :, :28], original[5:, :, :28]) < LOSS


def test_a_video_of_one_map_is_that_map(edit):
    Path("one.mkv").write_bytes(
        make_clip(
            [np.repeat(half()[..., None], 3, 2)], muxer="matroska", encoder="ffv1", pixel_format="bgr0", sound=None
        )
    )
    edit("--out", "a.mp4")
    edit("--out", "b.mp4", change_map="one.mkv")
    np.testing.assert_array_equal(*(frames_of(Path(name).read_bytes()) for name in ("a.mp4", "b.mp4")))


def test_a_gif_is_a_video_for_a_model_that_edits_videos(edit, run):
    Path("a.gif").write_bytes(make_clip(5, 10, "gif", "gif", "rgb8", None))
    edit(video="a.gif")
    made = Path("a-edit.mp4").read_bytes()
    assert (frames_of(made).shape, rate_of(made)) == ((5, 48, 64, 3), 10)
    said = run("edit", "a.gif", "map.png", "a pear", "--steps", 1).stderr
    assert "IMAGE 'a.gif' holds 5 pictures; only the first is used." in said


def test_a_clip_comes_through_a_pipe(edit):
    edit("--out", "a.mp4")
    edit("--out", "b.mp4", video="-", stdin=Path("clip.mp4").read_bytes())
    np.testing.assert_array_equal(*(frames_of(Path(name).read_bytes()) for name in ("a.mp4", "b.mp4")))


def test_a_file_says_how_to_make_it_again(edit, run):
    edit("--negative", "a red apple", "--strength", 0.8, "--crop", 4, "--feather", 1.5, "--out", "a.mp4")
    told = json.loads(metadata_of(Path("a.mp4").read_bytes())["comment"])
    assert told["image"] == {"name": "clip.mp4", "sha256": hashlib.sha256(Path("clip.mp4").read_bytes()).hexdigest()}
    assert (told["family"], told["seed"], told["versions"]["av"]) == ("wan", 5, editing.find_version("av"))
    run(
        *("edit", told["image"]["name"], told["diffdiff_map"]["name"], told["prompt"]),
        *("--negative", told["negative_prompt"], "--model", told["model"], "--steps", told["steps"]),
        *("--seed", told["seed"], "--strength", told["strength"], "--crop", told["crop"]),
        *("--feather", told["map_feather"], "--out", "b.mp4"),
    )
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_what_models_see_is_looked_for_in_each_frame(folder):
    scenes = [Scene("apple", "red", "tabletop", light=0.3), Scene("pear", "green", "tabletop", light=0.3)]
    pictures = [Image.fromarray(render(scene)) for scene in scenes]
    for number, picture in enumerate(pictures):
        picture.save(f"{number}.png")
    clip = editing.Clip("IMAGE", "clip.mp4", "0", pictures[0], clips.Video(pictures, Fraction(24)))
    words = {"map_text": "the apple"}, {"map_text": loading.EMBEDDED}
    found = maps.make_maps(maps.Request(clip, *words))
    alone = [maps.make_map(maps.Request(editing.read_picture(f"{n}.png", "IMAGE"), *words)) for n in range(2)]
    np.testing.assert_array_equal(found, np.stack(alone))
    assert np.abs(found[0] - found[1]).max() > 0.5


# What it refuses


def files() -> dict[str, bytes]:
    return {
        "empty.mp4": b"",
        "text.mp4": b"no video",
        "short.mp4": make_clip(8, sound=None),
        "uneven.mp4": make_clip(places=[0, 1, 2, 3, 8, 9, 10, 11, 12]),
        "deep.mp4": make_clip(pixel_format="yuv420p10le"),
        "there.mp4": b"there before",
    }


PLAIN = ("edit", "clip.mp4", "map.png", "a pear")
REFUSED = [
    (("edit", "nowhere.mp4", *PLAIN[2:]), "IMAGE 'nowhere.mp4' cannot be read: No such file"),
    (("edit", "empty.mp4", *PLAIN[2:]), "IMAGE 'empty.mp4' cannot be read: it is damaged, or not a video"),
    (("edit", "text.mp4", *PLAIN[2:]), "IMAGE 'text.mp4' cannot be read: it is damaged, or not a video"),
    (("edit", "uneven.mp4", *PLAIN[2:]), "IMAGE 'uneven.mp4' cannot be read: its frame rate is not constant"),
    (("edit", "deep.mp4", *PLAIN[2:]), "IMAGE 'deep.mp4' cannot be read: it has more than 8 bits per colour"),
    (("edit", "photo.png", *PLAIN[2:]), "IMAGE 'photo.png' is a picture, and Wan 2.1 edits videos"),
    (("edit", "clip.mp4", "short.mp4", "a pear"), "MAP 'short.mp4' has 8 frames and IMAGE 'clip.mp4' 9; MAP takes"),
    (("edit", "clip.mp4", "text.mp4", "a pear"), "MAP 'text.mp4' cannot be read: it is damaged, or not a video"),
    (("edit", "photo.png", "short.mp4", "a pear"), "MAP 'short.mp4' is a video; it takes a picture here"),
    (("edit", "clip.mp4", "a pear"), "Nothing says what may change"),
    (("edit", "clip.mp4", "a pear", "--mask", "clip.mp4"), "--mask 'clip.mp4' is a video; it takes a picture here"),
    (("fan", "clip.mp4", "a pear"), "IMAGE 'clip.mp4' is a video; it takes a picture here"),
    (("fan", "photo.png", "a pear"), "IMAGE 'photo.png' is a picture, and Wan 2.1 edits videos"),
    ((*PLAIN, "--out", "a.png"), "--out takes the path of a .mp4, .mov, .mkv or .webm file, not 'a.png'"),
    ((*PLAIN, "--out", "a.gif"), "--out takes the path of a .mp4, .mov, .mkv or .webm file, not 'a.gif'"),
    ((*PLAIN, "--out", "there.mp4"), "--out 'there.mp4' exists; --overwrite replaces it"),
    ((*PLAIN, "--out", "a.webm"), "--out 'a.webm' cannot hold the sound as it is (aac); .mp4, .mov or .mkv can"),
    ((*PLAIN, "--region", "map.png=a pear"), "--region is for pictures, and IMAGE 'clip.mp4' is a video"),
    ((*PLAIN, "--fill", "blur"), "--fill is for pictures"),
    ((*PLAIN, "--match-colors"), "--match-colors is for pictures"),
    ((*PLAIN, "--control-image", "photo.png"), "--control-image is for pictures"),
    ((*PLAIN, "--ip-adapter-image", "photo.png"), "--ip-adapter-image is for pictures"),
    ((*PLAIN, "--difference", "photo.png"), "--difference is for pictures"),
    ((*PLAIN, "--count", "2"), "--count is for pictures"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_mistakes_are_one_line_before_a_model_is_loaded(run, wan_checkpoint, monkeypatch, arguments, says):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    for name, data in files().items():
        Path(name).write_bytes(data)
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    (line,) = run(*arguments, "--model", wan_checkpoint, code=2).stderr.splitlines()
    assert line.startswith(f"Error: {says}")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_a_clip_is_refused_by_a_model_that_edits_pictures(run):
    (line,) = run(*PLAIN, code=2).stderr.splitlines()
    assert line.startswith("Error: IMAGE 'clip.mp4' is a video, and Stable Diffusion XL edits pictures")


def test_a_clip_without_pyav_says_what_to_install(edit, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (line,) = edit(code=2).stderr.splitlines()
    assert line == "Error: Videos need PyAV: pip install 'modular-diffdiff[video]'."
