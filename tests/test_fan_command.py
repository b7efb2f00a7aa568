"""`modular-diffdiff fan`: what it writes, that it can be made again, and what it refuses."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import loading
from modular_diffdiff.cli import app
from modular_diffdiff.fans import STRENGTHS

from .helpers import picture


WIDTH, HEIGHT = 45, 37
FACTOR, GAP = 6, 17  # of such pictures on the sheet
PROMPT = "a green pear"


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    StableDiffusionXLPipeline(**tiny).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a photo and a map that has whites, greys and blacks."""
    monkeypatch.chdir(tmp_path)
    picture(HEIGHT, WIDTH).save("photo.png")
    ramp = np.linspace(255, 0, WIDTH).round().astype(np.uint8)
    Image.fromarray(np.repeat(ramp[None], HEIGHT, 0)).save("map.png")
    return tmp_path


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output if code else result.stdout


def tile(place: int, path: str = "photo-fan.png") -> np.ndarray:
    """A picture of the sheet, at its own size."""
    with Image.open(path) as sheet:
        left = GAP + place * (FACTOR * WIDTH + GAP)
        box = sheet.crop((left, GAP, left + FACTOR * WIDTH, GAP + FACTOR * HEIGHT))
        return np.asarray(box)[::FACTOR, ::FACTOR].astype(int)


def edited(*options) -> np.ndarray:
    run("edit", "photo.png", *options, "--out", "alone.png", "--overwrite")
    with Image.open("alone.png") as image:
        return np.asarray(image).astype(int)


SHAPED = ("--negative", "a red apple", "--guidance-scale", 3, "--invert-map", "--feather", 1.5, "--gamma", 2)
SHAPED += ("--limits", 0.1, 0.9, "--overlay", "--batch-guidance")


@pytest.mark.parametrize("shaping", [(), SHAPED], ids=["plain", "shaped"])
def test_each_picture_is_what_edit_makes_at_its_strength(checkpoint, shaping):
    options = ("--model", checkpoint, "--steps", 4, "--seed", 5, *shaping)
    said = run("fan", "photo.png", PROMPT, "map.png", "--strengths", "0.5,0.75,1", *options)
    assert said == "photo-fan.png (seed 5, Stable Diffusion XL)\n"
    pictures = [edited("map.png", PROMPT, "--strength", strength, *options) for strength in (0.5, 0.75, 1)]
    for place, expected in enumerate(pictures):
        assert abs(tile(place) - expected).max() <= 1
    assert (pictures[0] != pictures[2]).any()


def test_without_a_map_everything_may_change(checkpoint):
    options = ("--model", checkpoint, "--steps", 4, "--seed", 5)
    run("fan", "photo.png", PROMPT, "--strengths", "0.5,1", *options)
    Image.new("L", (WIDTH, HEIGHT)).save("black.png")
    assert abs(tile(0) - edited("black.png", PROMPT, "--strength", 0.5, *options)).max() <= 1
    with Image.open("photo-fan.png") as sheet:
        assert "diffdiff_map" not in json.loads(sheet.text["modular-diffdiff"])


def test_the_file_says_how_to_make_it_again(checkpoint):
    run("fan", "photo.png", PROMPT, "map.png", "--model", checkpoint, "--steps", 2, *SHAPED)
    with Image.open("photo-fan.png") as sheet:
        told = json.loads(sheet.text["modular-diffdiff"])
    for name, file in (("image", "photo.png"), ("diffdiff_map", "map.png")):
        assert told[name] == {"name": file, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
    assert told["strengths"] == list(STRENGTHS)  # the default of the option is the function's
    run(
        *(
            "fan",
            told["image"]["name"],
            told["prompt"],
            told["diffdiff_map"]["name"],
            "--negative",
            told["negative_prompt"],
        ),
        *("--strengths", ",".join(map(str, told["strengths"])), "--model", told["model"], "--steps", told["steps"]),
        *("--guidance-scale", told["guidance_scale"], "--seed", told["seed"], "--device", told["device"]),
        *("--dtype", told["dtype"], "--gamma", told["map_gamma"], "--feather", told["map_feather"]),
        *("--limits", *told["map_limits"], "--out", "again.png"),
        *(["--invert-map"] if told["invert_diffdiff_map"] else []),
        *(["--overlay"] if told["overlay"] else []),
        *(["--batch-guidance"] if told["batch_guidance"] else []),
    )
    assert Path("photo-fan.png").read_bytes() == Path("again.png").read_bytes()


def test_another_family(folder):
    said = run("fan", "photo.png", PROMPT, "--model", "still-life-flow", "--steps", 2, "--strengths", "0.5,1")
    assert said.endswith(", Z-Image)\n")


def test_what_steers_an_edit_steers_its_fan():
    picture(HEIGHT, WIDTH, 1).save("guide.png")
    options = ("--steps", 2, "--seed", 5, "--control-image", "guide.png", "--ip-adapter-image", "guide.png")
    run("fan", "photo.png", PROMPT, "map.png", "--strengths", "0.5,1", *options)
    assert abs(tile(0) - edited("map.png", PROMPT, "--strength", 0.5, *options)).max() <= 1


def test_a_file_is_replaced_only_when_told(checkpoint):
    Path("photo-fan.png").write_bytes(b"there before")
    command = ("fan", "photo.png", PROMPT, "--strengths", "0.5,1", "--steps", 1, "--model", checkpoint)
    assert "'photo-fan.png' exists; --overwrite replaces it" in run(*command, code=2)
    assert Path("photo-fan.png").read_bytes() == b"there before"
    run(*command, "--overwrite")
    assert tile(0).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("photo.png",), "Missing argument 'PROMPT'"),
        (("photo.png", ""), "PROMPT is empty"),
        (("photo.png", "a pear", "missing.png"), "MAP 'missing.png' cannot be read"),
        (("-", "a pear", "-"), "IMAGE and MAP are both -"),
        (("photo.png", "a pear", "--invert-map"), "--invert-map needs MAP"),
        (("photo.png", "a pear", "--control-scale", "1"), "--control-scale needs --control-image"),
        (("photo.png", "a pear", "--strength", "0.5"), "No such option: --strength"),
        *(
            (
                ("photo.png", "a pear", "--strengths", given),
                f"--strengths is {given!r}; it takes numbers separated by commas",
            )
            for given in ("", "x", "0.5,", "0.5;1", "0.5, one")
        ),
        *(
            (("photo.png", "a pear", "--strengths", given), "it takes 2 to 100 rising numbers in [0, 1]")
            for given in ("0.5", "0.5,0.2", "0.5,0.5", "-0.5,1", "0.5,1.1", "0,nan", "0.5,inf")
        ),
    ],
    ids=str,
)
def test_mistakes_are_one_line_before_a_model_is_loaded(folder, monkeypatch, arguments, says):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    printed = run("fan", *arguments, code=2)
    assert says in printed
    assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
