"""`modular-diffdiff map`: what it writes, that it can be made again, and what it refuses."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff.blocks import diffdiff_preview
from modular_diffdiff.blocks.diffdiff_map import load_maps
from modular_diffdiff.blocks.diffdiff_shape import shape
from modular_diffdiff.blocks.diffdiff_sources import keep_where_alike, linear_gradient, radial_gradient
from modular_diffdiff.cli import app
from modular_diffdiff.still_life.scene import Scene, masks, render

from .helpers import picture


WIDTH, HEIGHT = 30, 22
STEP = 1 / 65_535  # of 16 bits


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a photo, the same painted over, and a mask."""
    monkeypatch.chdir(tmp_path)
    picture(HEIGHT, WIDTH).save("photo.png")
    painted = picture(HEIGHT, WIDTH)
    painted.paste("white", (4, 5, 12, 9))
    painted.save("painted.png")
    picture(HEIGHT, WIDTH, 1).convert("L").save("mask.png")
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["map", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def written(path: str = "photo-map.png") -> torch.Tensor:
    with Image.open(path) as image:
        assert image.mode == "I;16"
        assert image.size == (WIDTH, HEIGHT)
        return load_maps(image)[0]


def test_what_is_written_is_what_the_functions_make():
    run("photo.png", "--gradient", "30", "--feather", "2", "--limits", "0.2", "0.9")
    expected = shape(linear_gradient(30, HEIGHT, WIDTH), map_feather=2, map_limits=(0.2, 0.9))
    torch.testing.assert_close(written(), expected, atol=STEP / 2 + 1e-7, rtol=0)


def test_files_and_several_sources():
    run("painted.png", "--difference", "photo.png", "--mask", "mask.png", "--combine", "change", "--out", "map.png")
    mask = 1 - torch.from_numpy(np.asarray(Image.open("mask.png")) / 255).float()
    alike = keep_where_alike(Image.open("painted.png"), Image.open("photo.png"))
    torch.testing.assert_close(written("map.png"), torch.minimum(alike, mask), atol=STEP / 2 + 1e-7, rtol=0)


def test_inverted_it_is_the_mask():
    run("photo.png", "--mask", "mask.png", "--invert")
    expected = torch.from_numpy(np.asarray(Image.open("mask.png")) / 255)[None, None].float()
    torch.testing.assert_close(written(), expected, atol=STEP, rtol=0)


def test_the_file_says_how_to_make_it_again():
    run(
        "photo.png",
        "--gradient",
        "radial",
        "--mask",
        "mask.png",
        "--grow",
        "1.5",
        "--levels",
        "0.1",
        "0.8",
        "--gamma",
        "2",
    )
    told = json.loads(Image.open("photo-map.png").info["modular-diffdiff"])
    for name, file in (("image", "photo.png"), ("mask_image", "mask.png")):
        with open(file, "rb") as data:
            assert told[name] == {"name": file, "sha256": hashlib.sha256(data.read()).hexdigest()}
    arguments = [told["image"]["name"], "--gradient", told["map_gradient"], "--mask", told["mask_image"]["name"]]
    arguments += ["--grow", str(told["map_grow"]), "--gamma", str(told["map_gamma"]), "--combine", told["map_combine"]]
    run(*arguments, "--levels", *map(str, told["map_levels"]), "--out", "again.png")
    with open("photo-map.png", "rb") as first, open("again.png", "rb") as second:
        assert first.read() == second.read()


def test_the_preview_is_redder_the_more_may_change():
    run("photo.png", "--gradient", "radial", "--preview", "shown.png")
    shown = np.asarray(Image.open("shown.png")).astype(float)[:HEIGHT]
    grey = np.asarray(Image.open("photo.png").convert("L")).astype(float)[..., None]
    strength = 1 - radial_gradient(HEIGHT, WIDTH)[0, 0, ..., None].numpy()
    expected = (
        grey * (1 - diffdiff_preview.OPACITY * strength)
        + np.array(diffdiff_preview.CHANGED) * diffdiff_preview.OPACITY * strength
    )
    assert abs(shown - expected).max() <= 0.51
    inverted = diffdiff_preview.draw_preview(Image.open("photo.png"), np.ones((HEIGHT, WIDTH)))
    assert inverted.height > HEIGHT  # the scale stands below


def test_the_embedded_models_need_no_name():
    """A click and a box find the one object of a still life, which is what is left to change."""
    scene = Scene("apple", "red", "striped", light=0.3)
    Image.fromarray(render(scene)).save("apple.png")
    apple = masks(scene)["apple"] > 127
    rows, columns = np.nonzero(apple)
    click = f"{int(columns.mean())},{int(rows.mean())}"
    box = f"{columns.min()},{rows.min()},{columns.max() + 1},{rows.max() + 1}"
    for option, value in (("--point", click), ("--box", box), ("--text", "the apple")):
        run("apple.png", option, value, "--out", "map.png", "--overwrite")
        with Image.open("map.png") as image:
            told, changes = json.loads(image.info["modular-diffdiff"]), load_maps(image)[0][0, 0].numpy() < 0.5
        assert list(told["map_models"].values()) == ["still-life"]
        assert (changes & apple).sum() > 0.9 * (changes | apple).sum()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Nothing says what may change"),
        (("--threshold", "0.5"), "Nothing says what may change"),
        (("--text", " "), "--text is ' '; it takes a text that is not blank"),
        (("--text", "a pear", "--threshold", "2"), "--threshold is 2.0; it takes a number in [0, 1]"),
        (("--text", "a pear", "--segmenter", "missing"), "--segmenter 'missing' is neither a folder"),
        (("--text", "a pear", "--segmenter", "."), "--segmenter '.' is a folder without a config.json"),
        (("--point", "3"), "--point is '3'; it takes 2 or 3 whole numbers"),
        (("--point", "3,4,5", "--mask-generator", "a/b"), "--point is [(3, 4, 5)]; it takes a list of points"),
        (("--point", "3,4", "--mask-generator", "missing"), "--mask-generator 'missing' is neither a folder"),
        (("--gradient", "0", "--segmenter", "a/b"), "--segmenter needs --text"),
        (("--box", "9,1,3,5", "--mask-generator", "a/b"), "--box is [(9, 1, 3, 5)]; it takes four whole numbers"),
        (("--depth", "0.5", "0.5"), "--depth is (0.5, 0.5); it takes two numbers in [0, 1] that differ"),
        (("--gradient", "up"), "--gradient is 'up'; it takes an angle in degrees, or radial"),
        (("--gradient", "nan"), "--gradient is nan; it takes an angle"),
        (("--mask", "missing.png"), "--mask 'missing.png' cannot be read"),
        (("--difference", "tall.png"), "it takes a picture of the image's size, 30 x 22 pixels"),
        (("--gradient", "0", "--grow", "nan"), "--grow is nan"),
        (("--gradient", "0", "--out", "map.jpg"), "--out takes the path of a .png file"),
        (("--gradient", "0", "--preview", "photo.png"), "'photo.png' exists; --overwrite replaces it"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line_and_writes_nothing(folder, arguments, says):
    picture(40, 20).save("tall.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    printed = run("photo.png", *arguments, code=2)
    assert says in printed
    assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
