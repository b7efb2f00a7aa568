"""The command line: what it makes, what it refuses, and what it leaves behind."""

import copy
import hashlib
import http.server
import importlib.metadata
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageCms, ImageFont
from safetensors.torch import save_file
from scipy import ndimage
from typer.testing import CliRunner

import modular_diffdiff
from modular_diffdiff import demo, editing, loading, still_life
from modular_diffdiff.cli import app
from modular_diffdiff.still_life.scene import SIZE, Scene, masks, render

from . import fresh
from .helpers import adapter_weights, picture, seeded


WIDTH, HEIGHT = 45, 37


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Path:
    """A tiny SDXL checkpoint in a folder, as diffusers saves them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    StableDiffusionXLPipeline(**tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a photo and a map that has whites, greys and blacks."""
    monkeypatch.chdir(tmp_path)
    picture(HEIGHT, WIDTH).save("photo.png")
    ramp = np.linspace(255, 0, WIDTH).round().astype(np.uint8)
    Image.fromarray(np.repeat(ramp[None], HEIGHT, 0)).save("map.png")
    return tmp_path


@pytest.fixture
def run(folder):
    """Runs a command in the folder and checks its exit code."""

    def run(*arguments, code: int = 0, stdin: bytes | None = None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


@pytest.fixture
def edit(run, checkpoint):
    """Edits photo.png under map.png in two steps with the tiny checkpoint."""

    def edit(*options, image="photo.png", change_map="map.png", prompt="a green pear", **expected):
        return run("edit", image, change_map, prompt, "--model", checkpoint, "--steps", 2, *options, **expected)

    return edit


# An edit whose picture of this name is {}.
PICTURES = {
    "IMAGE": ("{}", "map.png", "a pear"),
    "MAP": ("photo.png", "{}", "a pear"),
    "--control-image": ("photo.png", "map.png", "a pear", "--control-image", "{}"),
    "--ip-adapter-image": ("photo.png", "map.png", "a pear", "--ip-adapter-image", "{}"),
}


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def settings(path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.text["modular-diffdiff"])


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def the_line_of(result) -> str:
    """The one line that a refused command has to say."""
    (line,) = result.stderr.splitlines()
    assert not result.stdout
    return line


# What it makes


def test_the_same_command_writes_the_same_file(edit):
    edit("--seed", 5, "--out", "a.png")
    edit("--seed", 5, "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_file_tells_how_to_make_it_again(edit, run):
    changed = ("--negative", "a red apple", "--guidance-scale", 3, "--strength", 0.8, "--softness", 0.5)
    changed += ("--match-colors", "--overlay", "--crop", 2, "--batch-guidance")
    shaped = (
        "--levels",
        0.1,
        0.9,
        "--gamma",
        0.5,
        "--grow",
        -2,
        "--feather",
        1.5,
        "--seam",
        "inside",
        "--limits",
        0,
        0.9,
    )
    edit("--seed", 5, *changed, *shaped, "--limits", 0, 0.9, "--invert-map", "--out", "a.png")
    told = settings("a.png")
    run(
        *(
            "edit",
            told["image"]["name"],
            told["diffdiff_map"]["name"],
            told["prompt"],
            "--negative",
            told["negative_prompt"],
        ),
        *("--model", told["model"], "--steps", told["steps"], "--guidance-scale", told["guidance_scale"]),
        *("--seed", told["seed"], "--device", told["device"], "--dtype", told["dtype"], "--out", "b.png"),
        *("--strength", told["strength"], "--crop", told["crop"], "--levels", *told["map_levels"]),
        *("--gamma", told["map_gamma"], "--grow", told["map_grow"], "--feather", told["map_feather"]),
        *("--seam", told["map_seam"], "--limits", *told["map_limits"]),
        *("--softness", told["softness"]),
        *(["--match-colors"] if told["match_colors"] else []),
        *(["--batch-guidance"] if told["batch_guidance"] else []),
        *(["--invert-map"] if told["invert_diffdiff_map"] else []),
        *(["--overlay"] if told["overlay"] else []),
    )
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_file_tells_what_it_was_made_from(edit):
    edit("--out", "a.png", prompt="eine grüne Birne, 梨")
    told = settings("a.png")
    assert told["prompt"] == "eine grüne Birne, 梨"
    assert told["image"] == {"name": "photo.png", "sha256": sha256("photo.png")}
    assert told["diffdiff_map"] == {"name": "map.png", "sha256": sha256("map.png")}
    assert told["scheduler"] == "EulerDiscreteScheduler"
    assert told["versions"]["torch"] == torch.__version__
    assert told["versions"]["transformers"] == transformers.__version__


@pytest.fixture
def mask(folder) -> np.ndarray:
    """mask.png, white in the middle."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[10:25, 12:30], values[14:20, 16:22] = 255, 120
    Image.fromarray(values).save("mask.png")
    return values


def test_a_source_stands_in_place_of_the_map(run, mask, checkpoint):
    options = ("--model", checkpoint, "--steps", 2, "--seed", 5, "--grow", 2)
    run("edit", "photo.png", "a pear", "--mask", "mask.png", *options, "--out", "a.png")
    run("edit", "photo.png", "mask.png", "a pear", "--invert-map", *options, "--out", "b.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    told = settings("a.png")
    assert told["mask_image"] == {"name": "mask.png", "sha256": sha256("mask.png")}
    assert (told["map_grow"], told["map_combine"], told["prompt"]) == (2.0, "keep", "a pear")


def test_an_edit_tells_how_its_map_was_made(run, mask, checkpoint):
    run("map", "photo.png", "--mask", "mask.png", "--feather", 2, "--out", "made.png")
    run("edit", "photo.png", "made.png", "a pear", "--model", checkpoint, "--steps", 1, "--out", "a.png")
    assert settings("a.png")["diffdiff_map"]["made"] == settings("made.png")


def test_a_source_joins_the_map(run, mask, checkpoint):
    Image.fromarray(np.minimum(pixels("map.png"), 255 - mask)).save("both.png")
    options = ("--model", checkpoint, "--steps", 2, "--seed", 5)
    run(
        "edit",
        "photo.png",
        "map.png",
        "a pear",
        "--mask",
        "mask.png",
        "--combine",
        "change",
        *options,
        "--out",
        "a.png",
    )
    run("edit", "photo.png", "both.png", "a pear", *options, "--out", "b.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_words_place_an_edit_of_the_embedded_model(run):
    scene = Scene("apple", "red", "tabletop", light=0.3)
    Image.fromarray(render(scene)).save("apple.png")
    words = ("--text", "the apple", "--threshold", 0.5, "--grow", 6)
    run("edit", "apple.png", "a green pear on a tabletop", *words, "--overlay", "--steps", 2, "--seed", 5)
    told = settings("apple-edit.png")
    assert (told["map_text"], told["map_models"]) == ("the apple", {"map_text": "still-life"})
    changed = (pixels("apple-edit.png") != render(scene)).any(-1)
    apple = masks(scene)["apple"] > 0
    assert changed[apple].mean() > 0.9
    assert not changed[ndimage.distance_transform_edt(~apple) > 16].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("photo.png", "a pear", "--text", "a dog", "--model", "owner/name"), "--segmenter is needed: it names"),
        (("photo.png", "a pear", "--point", "3,4", "--model", "owner/name"), "--mask-generator is needed: it names"),
        (("photo.png", "map.png", "a pear", "--depth-estimator", "a/b"), "--depth-estimator needs --depth"),
        (("photo.png", "a pear"), "Nothing says what may change: give MAP before PROMPT"),
        (("photo.png", "map.png", "a pear", "a lemon"), "'a lemon' is one argument too many"),
        (("photo.png", "a pear", "--gradient", "0", "--invert-map"), "--invert-map needs MAP"),
        (("photo.png", "map.png", "a pear", "--threshold", "0.5"), "--threshold needs --text"),
        (("photo.png", "a pear", "--mask", "map.png", "--feather", "-1"), "--feather is -1.0; it takes a number in"),
        (("photo.png", "a pear", "--mask", "glass.png"), "--mask 'glass.png' is transparent in places"),
    ],
)
def test_a_map_that_cannot_be_had_is_refused_before_a_model_is_loaded(run, monkeypatch, arguments, says):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    Image.new("LA", (WIDTH, HEIGHT)).save("glass.png")
    assert says in the_line_of(run("edit", *arguments, code=2))


def test_a_seed_that_was_drawn_is_told(edit):
    edit("--out", "a.png")
    edit("--out", "b.png")
    assert settings("a.png")["seed"] != settings("b.png")["seed"]
    edit("--out", "c.png", "--seed", settings("a.png")["seed"])
    np.testing.assert_array_equal(pixels("c.png"), pixels("a.png"))


def test_a_model_of_another_family_is_recognized_and_said(run):
    result = run("edit", "photo.png", "map.png", "a pear", "--model", "still-life-flow", "--steps", 2, "--seed", 5)
    assert result.stdout == "photo-edit.png (seed 5, Z-Image)\n"
    assert settings("photo-edit.png")["family"] == "z-image"
    assert Image.open("photo-edit.png").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("pipeline", "options", "said"),
    [
        ("FluxPipeline", ("--negative", "blurry"), "--negative 'blurry': Flux takes none."),
        ("FluxPipeline", ("--batch-guidance",), "--batch-guidance: Flux is called once a step anyway."),
        (
            "FluxPipeline",
            ("--control-image", "map.png", "--controlnet", "a/b"),
            "--controlnet 'a/b': Flux takes none",
        ),
        (
            "QwenImagePipeline",
            ("--control-image", "map.png", "--controlnet", "a/b", "--control-mode", 1),
            "--control-mode 1",
        ),
        ("CogVideoXPipeline", (), "is a CogVideoXPipeline, which belongs to no known family; known are sdxl, sd3"),
    ],
)
def test_what_a_family_does_not_take_is_said_before_anything_is_loaded(run, folder, pipeline, options, said):
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    result = run("edit", "photo.png", "map.png", "a pear", "--model", "model", *options, code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_each_of_several_outputs_is_what_its_seed_gives_alone(edit):
    written = edit("--count", 2, "--seed", 5, "--out", "many.png").stdout
    assert written.splitlines() == [f"many-{n}.png (seed {n}, Stable Diffusion XL)" for n in (5, 6)]
    edit("--seed", 6, "--out", "alone.png")
    np.testing.assert_array_equal(pixels("many-6.png"), pixels("alone.png"))
    assert settings("many-6.png") == settings("alone.png")
    assert (pixels("many-5.png") != pixels("alone.png")).any()


STEERED = ("--control-image", "photo.png", "--controlnet", "controlnet", "--crop", 2, "--guidance-scale", 3)


@pytest.mark.parametrize("options", [(), STEERED], ids=["plain", "steered"])
def test_seeds_share_a_call_and_the_png_says_so(edit, controlnet, options):
    controlnet.save_pretrained("controlnet")
    forward = UNet2DConditionModel.forward
    with mock.patch.object(UNet2DConditionModel, "forward", autospec=True, side_effect=forward) as unet:
        edit("--count", 3, "--batch-size", 2, "--seed", 5, "--out", "many.png", *options)
        together = unet.call_count
        for n in (5, 6, 7):
            edit("--seed", n, "--out", f"alone-{n}.png", *options)
    assert 3 * together == 2 * (unet.call_count - together)
    for n, batch in ((5, {"batch": {"size": 2, "place": 0}}), (6, {"batch": {"size": 2, "place": 1}}), (7, {})):
        many, alone = f"many-{n}.png", f"alone-{n}.png"
        assert settings(many) == settings(alone) | batch
        assert abs(pixels(many).astype(int) - pixels(alone)).max() <= (1 if batch else 0)


@pytest.mark.parametrize(
    "options",
    [
        *(("--negative", "a red apple"), ("--guidance-scale", 1), ("--steps", 3), ("--seed", 6), ("--invert-map",)),
        *(("--strength", 0.5), ("--overlay",), ("--crop", 2)),
    ],
    ids=lambda options: options[0],
)
def test_every_setting_counts(edit, options):
    edit("--seed", 5, "--out", "a.png")
    edit("--seed", 5, "--out", "b.png", *options)
    assert (pixels("a.png") != pixels("b.png")).any()


@pytest.mark.parametrize(("grey", "prompt_counts"), [(255, False), (0, True)])
def test_white_keeps_the_image_from_the_prompt_and_black_does_not(edit, grey, prompt_counts):
    Image.new("L", (WIDTH, HEIGHT), grey).save("grey.png")
    for prompt in ("pear", "lemon"):
        edit("--seed", 5, "--out", f"{prompt}.png", change_map="grey.png", prompt=prompt)
    assert (pixels("pear.png") != pixels("lemon.png")).any() == prompt_counts


def test_an_inverted_map_read_inverted_is_the_map(edit):
    Image.fromarray(255 - pixels("map.png")).save("inverted.png")
    edit("--seed", 5, "--out", "plain.png")
    edit("--seed", 5, "--out", "inverted-twice.png", "--invert-map", change_map="inverted.png")
    np.testing.assert_allclose(pixels("plain.png"), pixels("inverted-twice.png").astype(float), atol=1)


def test_the_result_has_the_size_of_the_image_as_it_is_seen(edit):
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turned by a quarter
    picture(WIDTH, HEIGHT).save("turned.jpg", exif=orientation)
    edit("--out", "a.png", image="turned.jpg")
    assert Image.open("a.png").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("options", [("--overlay",), ("--crop", 3)])
def test_the_images_own_pixels_and_its_transparency_come_back(edit, options):
    image = picture(HEIGHT, WIDTH)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save("glass.png")
    keep = np.full((HEIGHT, WIDTH), 255, np.uint8)
    keep[10:25, 12:30] = 0
    Image.fromarray(keep).save("spot.png")
    edit("--out", "a.png", *options, image="glass.png", change_map="spot.png")
    result, original = pixels("a.png"), np.asarray(image)
    np.testing.assert_array_equal(result[keep == 255], original[keep == 255])
    np.testing.assert_array_equal(result[..., 3], original[..., 3])
    assert (result[keep == 0] != original[keep == 0]).any()


def profile(space: str) -> bytes:
    """An ICC profile for a colour space: the header that the standard has, and no tables."""
    return bytes(16) + space.encode().ljust(4) + b"XYZ ".ljust(16) + b"acsp" + bytes(88)


@pytest.mark.parametrize("options", [(), ("--crop", 3)])
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_the_images_colour_profile_and_resolution_are_kept(edit, options, kind):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture(HEIGHT, WIDTH).save(f"photo.{kind}", icc_profile=srgb, dpi=(300, 150))
    edit("--out", "a.png", *options, image=f"photo.{kind}")
    with Image.open("a.png") as result:
        assert result.info["icc_profile"] == srgb
        np.testing.assert_allclose(result.info["dpi"], (300, 150), atol=0.1)


@pytest.mark.parametrize(("mode", "space"), [("CMYK", "CMYK"), ("L", "GRAY")])
def test_a_profile_of_another_colour_space_is_left_out_and_this_is_said(edit, mode, space):
    picture(HEIGHT, WIDTH).convert(mode).save("photo.tiff", icc_profile=profile(space))
    said = edit("--out", "a.png", "--overlay", image="photo.tiff").stderr
    assert f"Warning: IMAGE 'photo.tiff' has a colour profile for {space}" in said
    with Image.open("a.png") as result:
        assert result.mode == "RGB"
        assert "icc_profile" not in result.info


def test_a_file_without_profile_and_resolution_gets_none(edit):
    edit("--out", "a.png", "--overlay")
    assert not {"icc_profile", "dpi"} & set(Image.open("a.png").info)


class SilentServer(http.server.SimpleHTTPRequestHandler):
    """Serves the current folder."""

    def log_message(self, *_):
        pass


def test_urls_are_files(edit):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SilentServer) as server:
        threading.Thread(target=server.serve_forever).start()
        site = f"http://127.0.0.1:{server.server_port}"
        edit("--seed", 5, image=f"{site}/photo.png?token=secret", change_map=f"{site}/map.png")
        missing = edit("--out", "b.png", image=f"{site}/missing.png", code=2)
        server.shutdown()
    edit("--seed", 5, "--out", "a.png")
    assert Path("photo-edit.png").read_bytes() == Path("a.png").read_bytes()
    assert "missing.png" in the_line_of(missing)
    assert "404" in missing.stderr


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("https://example.org/a%20b/%C3%BC.png?x=/y.png", "ü.png"),
        ("http://example.org/--overlay.png", "overlay.png"),
        ("HTTP://example.org/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("http://example.org/a%5Cb.png#/c", "b.png"),
        ("http://example.org/a%00%0Ab.png", "ab.png"),
        ("http://example.org/---", "picture"),
        ("http://example.org/", "picture"),
        ("http://[::1/a.png", "a.png"),
        ("folder/-a b.png", "-a b.png"),
        ("-", "stdin"),
    ],
)
def test_names_of_files_are_made_of_locations(location, name):
    assert editing.file_name(location) == name


@pytest.mark.parametrize("argument", ["IMAGE", "MAP", "--control-image"])
def test_a_picture_may_come_from_stdin(run, argument):
    arguments = PICTURES[argument]
    options = ("--steps", 2, "--seed", 5, "--out")
    file = {"MAP": "map.png"}.get(argument, "photo.png")
    run("edit", *(part.format(file) for part in arguments), *options, "file.png")
    run("edit", *(part.format("-") for part in arguments), *options, "stdin.png", stdin=Path(file).read_bytes())
    np.testing.assert_array_equal(pixels("file.png"), pixels("stdin.png"))
    key = {"IMAGE": "image", "MAP": "diffdiff_map"}.get(argument, "control_image")
    assert settings("stdin.png")[key] == {"name": "stdin", "sha256": sha256(file)}


def test_stdin_is_read_once(run):
    line = the_line_of(run("edit", "-", "-", "a pear", code=2, stdin=Path("photo.png").read_bytes()))
    assert line == "Error: IMAGE and MAP are both -, and stdin can be read once."


def test_a_result_of_stdin_is_named_after_it(edit):
    assert edit("--seed", 5, image="-", stdin=Path("photo.png").read_bytes()).stdout.startswith("stdin-edit.png ")


def test_a_map_of_another_shape_is_announced(edit):
    Image.new("L", (WIDTH, 2 * HEIGHT)).save("tall.png")
    shown = edit("--out", "a.png", change_map="tall.png").stderr
    assert f"Warning: MAP is {WIDTH} x {2 * HEIGHT} pixels" in shown


# What steers it


@pytest.fixture(scope="session")
def steering(tiny, controlnet, union, image_encoder, tmp_path_factory) -> Path:
    """Tiny ControlNets, an IP-Adapter and a LoRA in a folder, in the forms that upstream reads."""
    folder = tmp_path_factory.mktemp("steering")
    controlnet.save_pretrained(folder / "controlnet")
    union.save_pretrained(folder / "union")
    image_encoder.save_pretrained(folder / "ip_adapter/image_encoder")
    weights = {
        f"{part}.{name}": weight
        for part, named in adapter_weights(tiny["unet"], seed=1).items()
        for name, weight in named.items()
    }
    save_file(weights, folder / "ip_adapter/weights.safetensors")
    width = tiny["unet"].mid_block.attentions[0].transformer_blocks[0].attn1.to_q.in_features
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {
        f"{name}.lora_A.weight": torch.randn(2, width, generator=seeded(1)),
        f"{name}.lora_B.weight": torch.randn(width, 2, generator=seeded(2)),
    }
    save_file(lora, folder / "lora.safetensors")
    save_file({f"nothing.{name}": weight for name, weight in lora.items()}, folder / "empty.safetensors")
    return folder


@pytest.fixture
def guides(folder):
    """Two pictures that steer."""
    picture(HEIGHT, WIDTH, seed=3).save("control.png")
    picture(50, 40, seed=4).save("prompt.png")


STEERED = {
    "controlnet": ("--control-image", "control.png", "--controlnet", "{}/controlnet"),
    "controlnet_union": ("--control-image", "control.png", "--control-mode", "1", "--controlnet", "{}/union"),
    "ip_adapter": ("--ip-adapter-image", "prompt.png", "--ip-adapter", "{}/ip_adapter/weights.safetensors"),
    "lora": ("--lora", "{}/lora.safetensors"),
}
STEERED["all"] = (*STEERED["controlnet_union"], *STEERED["ip_adapter"], *STEERED["lora"])


@pytest.mark.usefixtures("guides")
@pytest.mark.parametrize("how", STEERED)
def test_what_steers_an_edit_shows_and_is_told(edit, run, steering, how):
    options = [option.format(steering) for option in STEERED[how]]
    edit("--seed", 5, "--out", "plain.png")
    edit("--seed", 5, "--out", "a.png", *options)
    assert (pixels("a.png") != pixels("plain.png")).any()
    told = settings("a.png")
    repeated = [
        *(("--controlnet", told["controlnet"]) if told["controlnet"] else ()),
        *(("--control-image", told["control_image"]["name"]) if told["control_image"] else ()),
        *(("--control-mode", told["control_mode"]) if told["control_mode"] is not None else ()),
        *(("--control-scale", told["control_scale"]) if told["control_scale"] is not None else ()),
        *(("--ip-adapter", told["ip_adapter"]) if told["ip_adapter"] else ()),
        *(("--ip-adapter-image", told["ip_adapter_image"]["name"]) if told["ip_adapter_image"] else ()),
        *(("--ip-adapter-scale", told["ip_adapter_scale"]) if told["ip_adapter_scale"] is not None else ()),
        *(("--lora", told["lora"]) if told["lora"] else ()),
    ]
    edit("--seed", told["seed"], "--out", "b.png", *repeated)
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    for name, file in (("control_image", "control.png"), ("ip_adapter_image", "prompt.png")):
        assert told[name] is None or told[name] == {"name": file, "sha256": sha256(file)}


@pytest.mark.usefixtures("guides")
@pytest.mark.parametrize(("how", "scale"), [("controlnet", "--control-scale"), ("ip_adapter", "--ip-adapter-scale")])
def test_a_scale_of_zero_is_no_steering(edit, steering, how, scale):
    options = [option.format(steering) for option in STEERED[how]]
    edit("--seed", 5, "--out", "plain.png")
    edit("--seed", 5, "--out", "a.png", *options, scale, 0)
    np.testing.assert_allclose(pixels("a.png"), pixels("plain.png").astype(float), atol=1)
    edit("--seed", 5, "--out", "b.png", *options, scale, 0.5)
    edit("--seed", 5, "--out", "c.png", *options)
    assert (pixels("b.png") != pixels("c.png")).any()


@pytest.mark.usefixtures("guides")
@pytest.mark.parametrize(
    "options",
    [
        ("--control-image", "control.png"),
        ("--control-image", "control.png", "--control-mode", "1"),
        ("--ip-adapter-image", "prompt.png"),
    ],
    ids=["edges", "depth", "image prompt"],
)
def test_the_embedded_model_has_its_own(run, options):
    arguments = ("edit", "photo.png", "map.png", "a green pear", "--steps", 2, "--seed", 5)
    run(*arguments, "--out", "plain.png")
    run(*arguments, "--out", "a.png", *options)
    assert (pixels("a.png") != pixels("plain.png")).any()
    told = settings("a.png")
    assert {told["controlnet"], told["ip_adapter"]} & {loading.EMBEDDED, loading.EMBEDDED_UNION}


def test_the_encoder_of_an_ip_adapter_is_found_where_its_repository_has_it():
    """The three layouts of h94/IP-Adapter, as its README lists them."""
    folders = {
        "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors": "sdxl_models/image_encoder",
        "h94/IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors": "models/image_encoder",
        "someone/adapter/weights.safetensors": "image_encoder",
    }
    for location, folder in folders.items():
        assert loading.image_encoder_folder(loading.find_ip_adapter(location)) == folder


def test_a_lora_is_named_in_any_form_that_upstream_loads(steering):
    assert loading.find_lora("someone/lora") == ("someone/lora", "", None)
    assert loading.find_lora("someone/lora/deep/er/name.safetensors") == ("someone/lora", "deep/er", "name.safetensors")
    assert loading.find_lora(str(steering)) == (str(steering), "", None)
    assert loading.find_lora(str(steering / "lora.safetensors")) == (str(steering), "", "lora.safetensors")


LOSSY = {
    "16 bits": lambda: Image.new("I;16", (WIDTH, HEIGHT), 40000),
    "32 bits": lambda: Image.new("I", (WIDTH, HEIGHT), 40000),
    "floats": lambda: Image.new("F", (WIDTH, HEIGHT), 2),
    "alpha": lambda: Image.new("LA", (WIDTH, HEIGHT), (100, 254)),
}


@pytest.mark.parametrize(
    ("argument", "loss"),
    [(argument, loss) for argument in PICTURES for loss in LOSSY if (argument, loss) != ("MAP", "16 bits")],
)
def test_a_picture_that_would_lose_something_is_refused_before_a_model_is_loaded(run, monkeypatch, argument, loss):
    LOSSY[loss]().save("lossy.tiff")
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    arguments = [part.format("lossy.tiff") for part in PICTURES[argument]]
    line = the_line_of(run("edit", *arguments, "--steps", 2, code=2))
    assert line.startswith(f"Error: {argument} 'lossy.tiff' ")


@pytest.mark.parametrize("argument", PICTURES)
def test_the_first_picture_of_several_is_used_and_this_is_said(run, argument):
    first = picture(HEIGHT, WIDTH, seed=5)
    first.save("first.png")
    first.save("frames.png", save_all=True, append_images=[picture(HEIGHT, WIDTH, seed=6)])
    for name in ("first", "frames"):
        arguments = [part.format(f"{name}.png") for part in PICTURES[argument]]
        said = run("edit", *arguments, "--steps", 2, "--seed", 5, "--out", f"{name}-edit.png").stderr
        warned = f"Warning: {argument} 'frames.png' holds 2 pictures; only the first is used." in said
        assert warned == (name == "frames")
    np.testing.assert_array_equal(pixels("first-edit.png"), pixels("frames-edit.png"))


@pytest.mark.parametrize(
    ("size", "stretched"), [((WIDTH, HEIGHT), False), ((2 * WIDTH, 2 * HEIGHT), False), ((40, 40), True)]
)
def test_a_control_image_of_another_shape_is_announced(run, size, stretched):
    picture(*size[::-1]).save("control.png")
    said = run("edit", "photo.png", "map.png", "a pear", "--steps", 2, "--control-image", "control.png").stderr
    assert ("Warning: --control-image 'control.png' is 40 x 40 pixels" in said) == stretched


@pytest.mark.parametrize("option", ["PROMPT", "--negative"])
@pytest.mark.parametrize("model", ["still-life", "still-life-flow"])
def test_the_end_of_a_text_that_the_model_does_not_see_is_named(run, model, option):
    long = " ".join(["pear"] * 600 + ["lemon"])
    texts = ("a pear", "--negative", long) if option == "--negative" else (long,)
    said = run("edit", "photo.png", "map.png", *texts, "--model", model, "--steps", 2).stderr
    warned = [line for line in said.splitlines() if line.startswith(f"Warning: {option} has ")]
    assert len(warned) == 1
    assert "it does not see 'pear pear" in warned[0]


def test_a_text_that_the_model_sees_whole_is_not_warned_of(run, tokenizer):
    """With the marks of beginning and end, a word is a token."""
    whole = " ".join(["pear"] * (tokenizer.model_max_length - 2))
    changed = [
        run("edit", "photo.png", "map.png", text, "--steps", 2, "--overwrite").stderr
        for text in (whole, f"{whole} pear")
    ]
    assert ["PROMPT has" in said for said in changed] == [False, True]


def test_what_white_keeps_has_gone_through_the_autoencoder_as_the_help_says(run):
    Image.new("L", (WIDTH, HEIGHT), 255).save("white.png")
    for keeps in (("white.png", "a pear"), ("map.png", "a pear", "--strength", 0)):
        run("edit", "photo.png", *keeps, "--steps", 2, "--out", "a.png", "--overwrite")
        run("edit", "photo.png", *keeps, "--steps", 2, "--out", "b.png", "--overwrite", "--overlay")
        assert (pixels("a.png") != pixels("photo.png")).any()
        np.testing.assert_array_equal(pixels("b.png"), pixels("photo.png"))


# What it refuses

NEEDS = {
    "--control-mode": ("--control-mode", "1"),
    "--control-scale": ("--control-scale", "1"),
    "--controlnet": ("--controlnet", "{}/controlnet"),
    "--ip-adapter": ("--ip-adapter", "{}/ip_adapter/weights.safetensors"),
    "--ip-adapter-scale": ("--ip-adapter-scale", "1"),
}


@pytest.mark.parametrize("option", NEEDS)
def test_an_option_that_would_be_lost_is_refused(edit, steering, option):
    options = [part.format(steering) for part in NEEDS[option]]
    needed = "--control-image" if "control" in option else "--ip-adapter-image"
    assert f"{option} needs {needed}" in the_line_of(edit(*options, code=2))


BROKEN_STEERING = {
    "a ControlNet that nobody named": (("--control-image", "control.png"), "--controlnet is needed"),
    "an IP-Adapter that nobody named": (("--ip-adapter-image", "prompt.png"), "--ip-adapter is needed"),
    "a control image that is text": (("--control-image", "text.png", "--controlnet", "{}/controlnet"), "text.png"),
    "a control scale below zero": ((*STEERED["controlnet"], "--control-scale", "-1"), "--control-scale"),
    "a folder that is no ControlNet": (("--control-image", "control.png", "--controlnet", "{}"), "config.json"),
    "a UNet as ControlNet": (
        ("--control-image", "control.png", "--controlnet", "{checkpoint}/unet"),
        "not a ControlNet",
    ),
    "a ControlNet for another model": (
        ("--control-image", "control.png", "--controlnet", f"{still_life.COMPANIONS}/controlnet"),
        "--controlnet",
    ),
    "a control image without a name": (("--control-image", "", "--controlnet", "{}/controlnet"), "--control-image"),
    "an image prompt without a name": (("--ip-adapter-image", ""), "--ip-adapter"),
    "a mode for what has none": ((*STEERED["controlnet"], "--control-mode", "1"), "--control-mode"),
    "a union without a mode": (("--control-image", "control.png", "--controlnet", "{}/union"), "--control-mode"),
    "a mode that the union lacks": (
        ("--control-image", "control.png", "--controlnet", "{}/union", "--control-mode", "9"),
        "--control-mode",
    ),
    "the embedded ControlNet with another model": (
        ("--control-image", "control.png", "--controlnet", "still-life"),
        "--controlnet",
    ),
    "adapter weights without an encoder": (
        ("--ip-adapter-image", "prompt.png", "--ip-adapter", "{}/lora.safetensors"),
        "image_encoder",
    ),
    "adapter weights that are none": (("--ip-adapter-image", "prompt.png", "--ip-adapter", "nowhere"), "nowhere"),
    "a LoRA that is not there": (("--lora", "./nowhere.safetensors"), "nowhere"),
    "a LoRA for something else": (("--lora", "{}/empty.safetensors"), "empty.safetensors"),
}


@pytest.mark.usefixtures("guides")
@pytest.mark.parametrize("mistake", BROKEN_STEERING)
def test_a_mistake_in_steering_is_told_in_a_line_and_leaves_nothing(edit, steering, checkpoint, mistake):
    Path("text.png").write_text("no picture")
    before = sorted(Path().rglob("*"))
    options, named = BROKEN_STEERING[mistake]
    options = [option.format(steering, checkpoint=checkpoint) for option in options]
    assert named in the_line_of(edit(*options, code=2))
    assert sorted(Path().rglob("*")) == before


BROKEN = {
    "a missing image": ({"image": "nowhere.png"}, (), "nowhere.png"),
    "a missing map": ({"change_map": "nowhere.png"}, (), "nowhere.png"),
    "a map that is a folder": ({"change_map": "empty"}, (), "empty"),
    "an image that is text": ({"image": "text.png"}, (), "text.png"),
    "a map that breaks off": ({"change_map": "short.png"}, (), "short.png"),
    "a transparent image": ({"image": "glass.png"}, (), "IMAGE 'glass.png'"),
    "a transparent map": ({"change_map": "glass.png"}, (), "MAP 'glass.png'"),
    "a URL of nobody": ({"image": "http://127.0.0.1:9/photo.png"}, (), "http://127.0.0.1:9/photo.png"),
    "a URL that is none": ({"image": "http://no host/photo.png"}, (), "no host"),
    "an output that is no PNG": ({}, ("--out", "a.jpg"), "a.jpg"),
    "an output in no folder": ({}, ("--out", "nowhere/a.png"), "nowhere"),
    "a model folder without an index": ({}, ("--model", "empty"), "empty"),
    "a model folder that is not there": ({}, ("--model", "./nowhere"), "./nowhere"),
    "a model that is a file": ({}, ("--model", "empty/file.safetensors"), "file.safetensors' is neither a folder"),
    "a model without a component": ({}, ("--model", "part"), "unet"),
    "a device that is not there": ({}, ("--device", "abacus"), "abacus"),
    "a prompt that is no UTF-8": ({"prompt": os.fsdecode(b"a p\xe4r")}, (), "PROMPT is not UTF-8"),
    "a negative that is no UTF-8": ({}, ("--negative", os.fsdecode(b"\xff")), "--negative is not UTF-8"),
    "a device that is no UTF-8": ({}, ("--device", os.fsdecode(b"\xff")), "--device"),
    "an output with a name too long": ({}, ("--out", "a" * 300 + ".png"), "--out"),
    "a guidance scale beyond all models": ({}, ("--guidance-scale", "1e38"), "--guidance-scale is 1e+38"),
    "steps beyond all schedules": ({}, ("--steps", "1000000000"), "--steps"),
    "an unknown option": ({}, ("--bogus",), "--bogus"),
    "a guidance scale that is no number": ({}, ("--guidance-scale", "nan"), "--guidance-scale"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(edit, checkpoint, mistake):
    Path("empty").mkdir()
    Path("empty/file.safetensors").touch()
    Path("text.png").write_text("no picture")
    Path("short.png").write_bytes(Path("map.png").read_bytes()[:60])
    Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 100)).save("glass.png")
    shutil.copytree(checkpoint, "part", ignore=shutil.ignore_patterns("unet"))
    before = sorted(Path().rglob("*"))
    inputs, options, named = BROKEN[mistake]
    assert named in the_line_of(edit(*options, **inputs, code=2))
    assert sorted(Path().rglob("*")) == before


BROKEN_INDEX = {
    "a list": {"model_index.json": "[1, 2]"},
    "null": {"model_index.json": "null"},
    "no JSON": {"model_index.json": "{"},
    "a modular list": {"modular_model_index.json": "[]"},
    "no modular JSON": {"modular_model_index.json": "{"},
    "a class that is a number": {"model_index.json": '{"_class_name": 5}'},
    "no class": {"model_index.json": "{}"},
    "a part that is a number": {"model_index.json": '{"_class_name": "StableDiffusionXLPipeline", "unet": 5}'},
    "a part without a type": {
        "modular_model_index.json": json.dumps(
            {
                "_class_name": "StableDiffusionXLModularPipeline",
                "_blocks_class_name": "StableDiffusionXLAutoBlocks",
                "unet": ["diffusers", "UNet2DConditionModel", {"subfolder": "unet"}],
            }
        )
    },
}


@pytest.mark.parametrize("broken", BROKEN_INDEX)
def test_an_index_that_is_broken_is_told_in_a_line(edit, folder, broken):
    (folder / "model").mkdir()
    for name, text in BROKEN_INDEX[broken].items():
        (folder / "model" / name).write_text(text)
    assert the_line_of(edit("--model", "model", code=2)).startswith("Error: --model 'model' ")


@pytest.mark.parametrize("wrong", ["controlnet", "control_mode", "union", "no modes"])
def test_what_a_controlnet_is_not_is_said_before_the_checkpoint_is_read(edit, steering, monkeypatch, wrong):
    options = {
        "controlnet": ("--controlnet", steering / "ip_adapter/image_encoder"),
        "control_mode": ("--controlnet", steering / "union", "--control-mode", 4),
        "union": ("--controlnet", steering / "union"),
        "no modes": ("--controlnet", steering / "controlnet", "--control-mode", 0),
    }[wrong]
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    assert "--control" in the_line_of(edit("--control-image", "photo.png", *options, code=2))


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("part", ["unet", "--ip-adapter", "--lora", "--controlnet"])
def test_pickles_are_not_run(edit, steering, checkpoint, folder, part):
    """Of weights that are pickles, torch reads tensors only."""
    trap = pickle.dumps(Trap(), protocol=2)
    if part == "unet":
        shutil.copytree(checkpoint, "model")
        next(Path("model/unet").glob("*.safetensors")).unlink()
        Path("model/unet/diffusion_pytorch_model.bin").write_bytes(trap)
        options = ("--model", "model")
    elif part == "--controlnet":
        shutil.copytree(steering / "controlnet", "controlnet")
        next(Path("controlnet").glob("*.safetensors")).unlink()
        Path("controlnet/diffusion_pytorch_model.bin").write_bytes(trap)
        options = ("--control-image", "photo.png", "--controlnet", "controlnet")
    elif part == "--ip-adapter":
        shutil.copytree(steering / "ip_adapter", "ip_adapter")
        Path("ip_adapter/weights.bin").write_bytes(trap)
        options = ("--ip-adapter-image", "photo.png", "--ip-adapter", "ip_adapter/weights.bin")
    else:
        Path("lora.bin").write_bytes(trap)
        options = ("--lora", "lora.bin")
    the_line_of(edit(*options, code=2))
    assert not Path("sprung").exists()
    pickle.loads(trap)
    assert Path("sprung").exists(), "the trap does not work"


def test_code_that_an_index_names_is_not_run(edit, folder):
    (folder / "model").mkdir()
    for name in ("model/trap.py", "trap.py"):
        Path(name).write_text("import os; os.mkdir('sprung')")
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["trap", "Trap"]}
    Path("model/model_index.json").write_text(json.dumps(index))
    Path("model/modular_config.json").write_text(json.dumps({"auto_map": {"ModularPipelineBlocks": "trap.Trap"}}))
    the_line_of(edit("--model", "model", code=2))
    assert not Path("sprung").exists()


@pytest.mark.parametrize("argument", PICTURES)
def test_only_the_web_is_fetched(run, folder, argument):
    arguments = [part.format((folder / "photo.png").as_uri()) for part in PICTURES[argument]]
    assert "No such file" in the_line_of(run("edit", *arguments, code=2))


@pytest.mark.parametrize(
    "inputs", [{"image": "nowhere.png"}, {"change_map": "glass.png"}, {}], ids=["image", "map", "existing output"]
)
def test_what_can_be_seen_before_is_refused_before_a_model_is_loaded(edit, monkeypatch, inputs):
    Image.new("LA", (WIDTH, HEIGHT)).save("glass.png")
    Path("photo-edit.png").touch()
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    edit(*(["--out", "a.png"] if inputs else []), **inputs, code=2)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_offloading_needs_an_accelerator(edit):
    assert "--offload needs an accelerator" in the_line_of(edit("--offload", code=2))


@pytest.mark.parametrize(
    "options",
    [("--steps", 0), ("--count", 0), ("--seed", -1), ("--dtype", "int8"), ("--strength", 2), ("--strength", "nan")],
)
def test_values_out_of_range_are_a_mistake(edit, options):
    assert options[0] in edit(*options, code=2).stderr


@pytest.mark.parametrize(
    "options", [("--grow", "nan"), ("--feather", -1), ("--levels", 0.9, 0.1), ("--gamma", 0), ("--limits", 0, 2)]
)
def test_no_map_is_shaped_by_what_makes_no_sense(edit, options):
    line = the_line_of(edit(*options, code=2))
    assert f"{options[0]} is " in line
    assert "it takes" in line


def test_a_shaped_map_is_the_map_shaped_by_hand(edit):
    values = np.full((HEIGHT, WIDTH), 255, np.uint8)
    values[:, 30:] = 0
    Image.fromarray(values).save("map.png")
    edit("--seed", 5, "--grow", 10, "--out", "a.png")
    values[:, 20:] = 0
    Image.fromarray(values).save("map.png")
    edit("--seed", 5, "--out", "b.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_a_file_is_replaced_only_when_told(edit):
    Path("a.png").write_bytes(b"mine")
    assert "a.png" in the_line_of(edit("--out", "a.png", code=2))
    assert Path("a.png").read_bytes() == b"mine"
    edit("--out", "a.png", "--overwrite")
    assert pixels("a.png").shape == (HEIGHT, WIDTH, 3)


def test_no_output_is_made_where_one_of_them_exists(edit):
    Path("a-6.png").write_bytes(b"mine")
    edit("--out", "a.png", "--count", 2, "--seed", 5, code=2)
    assert not Path("a-5.png").exists()
    assert Path("a-6.png").read_bytes() == b"mine"


def test_a_file_that_appears_during_the_run_is_kept(edit, monkeypatch):
    def run_slowly(*_):
        Path("a.png").write_bytes(b"mine")
        return [picture()]

    monkeypatch.setattr(editing, "run_edits", run_slowly)
    edit("--out", "a.png", code=2)
    assert Path("a.png").read_bytes() == b"mine"


# Of processes that have all seen that there is no such file yet.
RACE = """
import os, sys, time
from pathlib import Path
from PIL import Image
from modular_diffdiff import editing

def refuse(*_):
    raise OSError(1, "Operation not permitted")

if sys.argv[2] == "without links":
    os.link = refuse
editing.check_outputs = lambda *_: None
Path(f"ready-{sys.argv[1]}").touch()
while not Path("go").exists():
    time.sleep(0.001)
try:
    editing.write_png(Image.new("L", (300, 300), int(sys.argv[1])), Path("a.png"), overwrite=False)
except editing.UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("file_system", ["with links", "without links"])
def test_of_several_processes_one_writes_and_the_others_say_so(folder, file_system):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(grey), file_system],
            env=os.environ | {"PYTHONPATH": str(Path(modular_diffdiff.__file__).parents[1])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for grey in range(4)
    ]
    while len(list(folder.glob("ready-*"))) < 4:
        assert not any(process.poll() for process in started)
        time.sleep(0.01)
    Path("go").touch()
    said = [process.communicate()[1] for process in started]
    (winner,) = (grey for grey, process in enumerate(started) if process.returncode == 0)
    assert (pixels("a.png") == winner).all()
    assert sorted(said) == ["", *["--out 'a.png' exists; --overwrite replaces it.\n"] * 3]
    assert not list(folder.glob(".*"))


WRITES = """
import itertools, signal
from pathlib import Path
from PIL import Image
from modular_diffdiff import editing

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs these tests in the background ignores it
for n in itertools.count():
    editing.write_png(Image.effect_noise((700, 700), 50), Path("a.png"), overwrite=True)
    Path("writing").touch()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_who_is_killed_leaves_a_whole_file(folder, how):
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITES],
            env=os.environ | {"PYTHONPATH": str(Path(modular_diffdiff.__file__).parents[1])},
            stderr=subprocess.DEVNULL,
        )
        while not Path("writing").exists():
            time.sleep(0.001)
        time.sleep(0.005)
        writer.send_signal(how)
        writer.wait(timeout=60)
        assert pixels("a.png").shape == (700, 700)
        Path("writing").unlink()
    if how is signal.SIGINT:
        assert not list(folder.glob(".*"))


def test_a_full_disk_leaves_what_was_there(folder):
    Path("a.png").write_bytes(b"mine")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    ended = subprocess.run(
        [sys.executable, "-c", full + WRITES],
        env=os.environ | {"PYTHONPATH": str(Path(modular_diffdiff.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.splitlines()[-1] == "OSError: --out 'a.png' cannot be written: File too large."
    assert Path("a.png").read_bytes() == b"mine"
    assert not list(folder.glob(".*"))


def test_a_link_is_written_through(edit, folder):
    (folder / "elsewhere").mkdir()
    Path("a.png").symlink_to("elsewhere/b.png")
    edit("--out", "a.png")
    assert Path("a.png").is_symlink()
    first = Path("elsewhere/b.png").read_bytes()
    assert "--out 'a.png' exists" in the_line_of(edit("--out", "a.png", code=2))
    edit("--out", "a.png", "--overwrite")
    assert Path("a.png").is_symlink()
    assert Path("elsewhere/b.png").read_bytes() != first


def test_seeds_that_are_written_can_be_given(edit):
    last = 2**32 - 1
    assert "--count 3" in the_line_of(edit("--seed", last, "--count", 3, code=2))
    edit("--seed", last - 1, "--count", 2, "--out", "a.png")
    edit("--seed", last, "--out", "b.png")
    assert Path(f"a-{last}.png").read_bytes() == Path("b.png").read_bytes()


def test_a_failed_write_leaves_what_was_there(edit, folder, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    Path("a.png").write_bytes(b"mine")
    before = sorted(folder.iterdir())
    monkeypatch.setattr(os, "replace", refuse)
    result = edit("--out", "a.png", "--overwrite", code=1)
    assert result.stderr.splitlines()[-1] == "Error: --out 'a.png' cannot be written: No space left on device."
    assert sorted(folder.iterdir()) == before
    assert Path("a.png").read_bytes() == b"mine"


# The process


@pytest.fixture
def process(folder):
    """Runs a new Python in the folder."""

    def process(*arguments, **environment):
        package = Path(modular_diffdiff.__file__).parents[1]
        return fresh.run(*arguments, folder=folder, environment=os.environ | {"PYTHONPATH": str(package)} | environment)

    return process


def test_what_a_block_refuses_ends_the_process_with_2_and_a_line(process, checkpoint):
    strange = Path(still_life.COMPANIONS, "controlnet")
    edit = ("-m", "modular_diffdiff.cli", "edit", "photo.png", "map.png", "a pear", "--model", checkpoint)
    ended = process(*edit, "--control-image", "photo.png", "--controlnet", strange)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: --controlnet is 'a ControlNetModel for text embeddings of")
    assert ended.stderr.count("\n") == 1


def test_a_model_that_answers_with_nan_ends_with_1_and_a_line(run, tiny, folder):
    unet = copy.deepcopy(tiny["unet"])
    torch.nn.init.constant_(unet.conv_out.bias, float("nan"))
    StableDiffusionXLPipeline(**tiny | {"unet": unet}).save_pretrained(folder / "spoilt")
    Image.new("L", (WIDTH, HEIGHT)).save("map.png")
    ended = run("edit", "photo.png", "map.png", "a pear", "--steps", 2, "--model", "spoilt", code=1)
    assert "\nError: The model's answer at timestep 999, evaluation 1 of 2, made latents that are not" in ended.output
    assert not (folder / "photo-edit.png").exists()


def test_what_nobody_foresaw_keeps_its_traceback(folder, checkpoint, monkeypatch):
    """A ValueError of a scheduler's is no mistake of the user's."""
    monkeypatch.setattr(EulerDiscreteScheduler, "step", lambda *_, **__: (_ for _ in ()).throw(ValueError("a step")))
    ended = CliRunner().invoke(app, ["edit", "photo.png", "map.png", "a pear", "--model", str(checkpoint)])
    assert isinstance(ended.exception, ValueError)
    assert str(ended.exception) == "a step"
    assert "Error:" not in ended.output


def test_the_demo_needs_no_edge_detector(process):
    """kornia is for training and for benchmarks."""
    planned = "from modular_diffdiff import demo; print(len(demo.plan_steered()))"
    ended = process("-c", f"import sys; sys.modules['kornia'] = None; {planned}")
    assert (ended.returncode, ended.stdout) == (0, "2\n"), ended.stderr


def test_a_model_in_the_cache_of_the_hub(process, folder, checkpoint):
    """Also: but for the Hub's own words, the process tells the file's name and the progress, and nothing else."""
    repository, commit = folder / "hub/models--someone--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    ended = process(
        *("-m", "modular_diffdiff.cli", "edit", "photo.png", "map.png", "a pear"),
        *("--model", "someone/tiny", "--steps", "2", "--seed", "5"),
        HF_HUB_CACHE=str(folder / "hub"),
        HF_HUB_OFFLINE="1",
    )
    assert (ended.returncode, ended.stdout) == (0, "photo-edit.png (seed 5, Stable Diffusion XL)\n"), ended.stderr
    assert "1/1" in ended.stderr  # the map keeps everything during the first of the two steps
    said = [line for line in ended.stderr.splitlines() if line and "it/s]" not in line]
    expected = ("Could not reach the Hub", "Warning: MAP has greys of 0.56 to 0.92 that 2 steps")
    assert all(line.startswith(expected) for line in said), said
    assert settings("photo-edit.png")["model"] == "someone/tiny"
    assert settings("photo-edit.png")["commits"] == {"someone/tiny": commit}


def test_the_hub_is_asked_once_when_it_cannot_be_reached(process):
    """Its own downloads try for a minute."""
    started = time.monotonic()
    ended = process(
        *("-m", "modular_diffdiff.cli", "edit", "photo.png", "map.png", "a pear", "--model", "someone/model"),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert time.monotonic() - started < 30
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "Error: --model 'someone/model' is not in the cache, and the Hub cannot be reached: "
    )
    assert ended.stderr.count("\n") == 1


def test_the_version_is_the_packages(run):
    assert run("--version").stdout == f"modular-diffdiff {importlib.metadata.version('modular-diffdiff')}\n"


def test_help_does_not_wait_for_torch():
    code = "import modular_diffdiff.cli, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", [(), ("demo",), ("edit",), ("fan",)])
def test_help_has_an_example(run, command):
    shown = run(*command, "--help").stdout
    assert "Example" in shown
    assert f"  modular-diffdiff {' '.join(command)}" in shown


def test_the_libraries_speak_again_after_a_run(edit):
    before = diffusers_logging.get_verbosity(), transformers.logging.get_verbosity()
    edit("--out", "a.png")
    edit("--out", "a.png", "--device", "abacus", "--overwrite", code=2)
    assert (diffusers_logging.get_verbosity(), transformers.logging.get_verbosity()) == before
    assert before[0] < logging.CRITICAL
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers.logging.is_progress_bar_enabled()


# The demo


def test_the_demo_writes_a_sheet_and_pictures_to_try_and_says_where(run, folder, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 4)
    before = (folder / "photo.png").read_bytes()
    assert "'photo.png' exists" in the_line_of(run("demo", code=2))
    assert (folder / "photo.png").read_bytes() == before

    (folder / "drawn").mkdir()
    written = [Path(line) for line in run("demo", "--out", folder / "drawn").stdout.splitlines()]
    sheet = folder / "drawn" / "modular-diffdiff-demo.png"
    assert written[0] == sheet
    assert sorted(written) == sorted((folder / "drawn").iterdir())
    assert "exists" in the_line_of(run("demo", "--out", folder / "drawn", code=2))
    run("demo", "--out", folder / "nowhere", code=2)

    row = demo.plan_rows()[0]
    original, _, *results = (
        np.asarray(Image.open(sheet).crop((left, top, left + SIZE, top + SIZE)), float)
        for left, top in (np.add(demo.MARGIN, demo.tile_corner(k, True)) for k in range(2 + len(row.edits)))
    )
    np.testing.assert_array_equal(original, render(row.scene))
    for edit, result in zip(row.edits, results, strict=True):
        kept, free = edit.change_map == 1, edit.change_map == 0
        np.testing.assert_array_equal(result[kept], original[kept])
        assert np.abs(result - original)[free].mean() > 10


def test_the_labels_of_the_sheet_fit():
    title_font, caption_font = (ImageFont.load_default(size) for size in (demo.TITLE_SIZE, demo.CAPTION_SIZE))
    for row in demo.plan_rows():
        assert title_font.getlength(row.title) < 5 * SIZE
        assert max(caption_font.getlength(edit.caption) for edit in row.edits) <= SIZE + demo.GAP


def test_the_sheet_shows_one_map_whole_and_several_in_strips():
    def shown(*maps):
        return np.asarray(demo.shown_map([demo.Edit("", "", values) for values in maps])) / 255

    np.testing.assert_allclose(shown(demo.gradient_map(), demo.gradient_map()), demo.gradient_map(), atol=1 / 255)
    low, high = np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE))
    np.testing.assert_array_equal(shown(low, high), 1 - demo.keep_left(1 / 2))
    half = demo.keep_left(1 / 2).T
    assert shown(half, half)[0].min() == 1  # rows stay rows
