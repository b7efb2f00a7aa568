"""Regions and fills from files to files: `edit` and `batch`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import SDXLDiffDiffBlocks, batch, editing, loading, maps
from modular_diffdiff.cli import app
from modular_diffdiff.still_life import TEXT_SEGMENTER
from modular_diffdiff.still_life.scene import Item, Scene, render

from .batches import Here
from .helpers import seeded


SCENE = Scene("apple", "red", "tabletop", (0.28, 0.58), seed=5, beside=Item("cup", "blue", (0.72, 0.58)))
PROMPT, PEAR, BOTTLE = "a red apple and a blue cup on a tabletop", "a green pear", "a purple bottle"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A scene of two things, its change map, and where the left one is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "_make_engine", lambda name, job, *_: Here(job))
    Image.fromarray(render(SCENE, 128)).save("photo.png")
    Image.new("L", (128, 128), 0).save("map.png")
    left = np.zeros((128, 128), np.uint8)
    left[:, :64] = 255
    Image.fromarray(left).save("left.png")
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def edit(*arguments: str):
    return run("edit", "photo.png", "map.png", PROMPT, "--steps", 2, "--seed", 7, *arguments)


def test_edit_draws_what_the_pipeline_draws_and_says_so(folder):
    result = edit("--region", f"left.png={PEAR}", "--region", f"the cup={BOTTLE}", "--out", "edited.png")
    assert result.exit_code == 0, result.output

    model = loading.find_family(loading.Model(loading.EMBEDDED, "cpu", "float32"))
    pipe = loading.load_pipeline(model, 2.0)
    assert set(SDXLDiffDiffBlocks().input_names) >= {"region_prompts", "region_maps"}
    image = Image.open("photo.png")
    request = maps.Request(
        editing.read_picture("photo.png", "IMAGE"), {"map_text": "the cup"}, {"map_text": TEXT_SEGMENTER}
    )
    cup = 1 - maps.make_map(request)
    expected = pipe(
        prompt=PROMPT,
        image=image,
        diffdiff_map="map.png",
        region_prompts=[PEAR, BOTTLE],
        region_maps=["left.png", torch.from_numpy(cup)],
        num_inference_steps=2,
        generator=seeded(7),
        output="images",
    )[0]
    made = Image.open("edited.png")
    assert abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 1
    told = json.loads(made.info[editing.METADATA_KEY])
    assert [
        (one["prompt"], one["where"]["name"] if isinstance(one["where"], dict) else one["where"])
        for one in told["regions"]
    ] == [
        (PEAR, "left.png"),
        (BOTTLE, "the cup"),
    ]
    assert str(folder) not in made.info[editing.METADATA_KEY]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--region", "left.png"), "--region is 'left.png'; it takes MAP_OR_TEXT=PROMPT."),
        (("--region", "=a pear"), "--region is '=a pear'; it takes MAP_OR_TEXT=PROMPT."),
        (("--region", "right.png=a pear"), "--region 'right.png' cannot be read"),
        (("--region", "map.png=a pear"), "--region 'map.png' is black; it takes one that is white where PROMPT holds."),
        (("--region", "the banana=a pear"), "--region finds nothing of 'the banana': that region would be empty."),
        (("--segmenter", "still-life"), "--segmenter needs --text or --region."),
        (("--fill", "white"), "Invalid value for '--fill'"),
    ],
)
def test_bad_regions_and_fills_end_in_a_line(folder, arguments, says):
    result = edit(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not Path("photo-edit.png").exists()


@pytest.mark.parametrize(
    ("option", "family", "says"),
    [
        (
            ("--fill", "blur"),
            "flux-kontext",
            "--fill 'blur': Flux Kontext starts from noise, and never from the picture.",
        ),
    ],
)
def test_families_that_take_none_say_so(folder, monkeypatch, option, family, says):
    monkeypatch.setattr(loading.catalog, "recognize", lambda location: family)
    result = edit(*option)
    assert result.exit_code == 2
    assert says in result.output


def test_a_fill_is_the_pipelines(folder):
    options = ("--strength", 0.5, "--fill", "blur", "--text", "the cup", "--threshold", 0.5)
    assert edit(*options, "--out", "filled.png").exit_code == 0
    assert edit(*options[:2], *options[4:], "--out", "plain.png").exit_code == 0
    filled, plain = (np.asarray(Image.open(name)).astype(int) for name in ("filled.png", "plain.png"))
    assert abs(filled - plain)[50:100, 80:110].mean() > 5
    assert json.loads(Image.open("filled.png").info[editing.METADATA_KEY])["fill"] == "blur"


def test_rows_of_a_batch_are_what_edit_makes_and_notice_another_region(folder):
    region = [f"left.png={PEAR}", f"the cup={BOTTLE}"]
    rows = [
        {"id": "both", "region": region, "seed": 7},
        {"id": "one", "region": region[1], "seed": 7},
        {"id": "filled", "fill": "blur", "strength": 0.5, "seed": 7},
    ]
    shared = {"image": "photo.png", "map": "map.png", "prompt": PROMPT, "steps": 2}
    Path("rows.jsonl").write_text("".join(json.dumps(shared | row) + "\n" for row in rows))
    command = ("batch", "rows.jsonl", "--out", "edited")
    assert run(*command).exit_code == 0
    given = [("--region", region[0], "--region", region[1]), ("--region", region[1])]
    given.append(("--fill", "blur", "--strength", 0.5))
    for row, options in zip(rows, given, strict=True):
        assert edit(*options, "--threads", 1, "--out", f"{row['id']}.png").exit_code == 0
        made, alone = (np.asarray(Image.open(name)) for name in (f"edited/images/{row['id']}.png", f"{row['id']}.png"))
        assert (made == alone).all()

    before = {path.name: path.stat().st_mtime_ns for path in Path("edited/images").iterdir()}
    Image.fromarray(np.asarray(Image.open("left.png"))[:, ::-1].copy()).save("left.png")
    assert run(*command).exit_code == 0
    after = {path.name: path.stat().st_mtime_ns for path in Path("edited/images").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"both.png"}


def test_a_manifest_says_which_region_it_cannot_use(folder):
    shared = {"image": "photo.png", "map": "map.png", "prompt": PROMPT}
    rows = [{"id": "a", "region": "right.png=a pear"}, {"id": "b", "region": "a pear"}, {"id": "c", "region": 3.5}]
    Path("rows.jsonl").write_text("".join(json.dumps(shared | row) + "\n" for row in rows))
    result = run("batch", "rows.jsonl", "--out", "edited")
    assert result.exit_code == 2
    for said in ("Row 1: --region", "Row 2: --region is 'a pear'", "Row 3: --region takes a text, not 3.5"):
        assert said in result.output
