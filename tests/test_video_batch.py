"""Batches of videos: each row is what `edit` makes of it, and what is done stays done."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import batch
from modular_diffdiff.batch import run_batch
from modular_diffdiff.cli import app
from modular_diffdiff.manifest import ManifestError

from .batches import Here
from .clips import frame_of, make_clip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with clips and maps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "_make_engine", lambda name, job, *_: Here(job))
    keep = np.full((48, 64), 255, np.uint8)
    keep[:, 32:] = 0
    Image.fromarray(keep).save("map.png")
    Image.fromarray(frame_of(0)).save("photo.png")
    Path("map.mp4").write_bytes(make_clip([np.repeat(keep[..., None], 3, 2)] * 5, sound=None))
    Path("a.mp4").write_bytes(make_clip(5))
    Path("b.webm").write_bytes(make_clip(5, muxer="webm", encoder="libvpx-vp9", sound="libopus"))
    return tmp_path


ROWS = [
    {"id": "plain", "image": "a.mp4", "map": "map.png"},
    {"id": "films/moving", "image": "a.mp4", "map": "map.mp4"},
    {"id": "other", "image": "b.webm", "gradient": 0},
]


def write(rows: list[dict]) -> None:
    rows = [{"prompt": "a pear", "seed": 3, **row} for row in rows]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def run(checkpoint: Path, **options):
    return run_batch("rows.jsonl", "done", model=str(checkpoint), steps=2, **options)


def test_each_row_is_what_edit_makes_of_it_and_is_not_made_again(wan_checkpoint):
    write(ROWS)
    progress = run(wan_checkpoint, batch_size=2)
    assert (progress.done, progress.failed) == (3, 0)
    for row in ROWS:
        source = [row["map"], "a pear"] if "map" in row else ["a pear", "--gradient", "0"]
        how = ["--seed", "3", "--steps", "2", "--threads", "1", "--model", str(wan_checkpoint), "--out", "alone.mp4"]
        result = CliRunner().invoke(app, ["edit", row["image"], *source, *how, "--overwrite"])
        assert result.exit_code == 0, result.output
        assert Path(f"done/videos/{row['id']}.mp4").read_bytes() == Path("alone.mp4").read_bytes()
    table = [json.loads(line) for line in Path("done/results.jsonl").read_text().splitlines()]
    assert [row["path"] for row in table] == [f"videos/{row['id']}.mp4" for row in ROWS]
    Path("b.webm").write_bytes(make_clip(4, muxer="webm", encoder="libvpx-vp9", sound="libopus"))
    Path("done/videos/plain.mp4").unlink()
    assert run(wan_checkpoint, batch_size=2).wanted == 2


def test_maps_that_stay_are_written_and_a_damaged_clip_is_a_row_with_an_error(wan_checkpoint):
    Path("cut.mp4").write_bytes(make_clip(5)[:2000])
    write([ROWS[0], {"id": "cut", "image": "cut.mp4", "map": "map.png"}])
    progress = run(wan_checkpoint, with_maps=True)
    assert (progress.done, progress.failed) == (1, 1)
    assert np.asarray(Image.open("done/maps/plain.png")).shape == (48, 64)
    errors = [json.loads(line)["error"] for line in Path("done/results.jsonl").read_text().splitlines()]
    assert errors[0] is None
    assert errors[1].endswith("cut.mp4' cannot be read: it is damaged, or not a video.")


def test_what_cannot_be_edited_is_a_mistake_of_its_row(wan_checkpoint):
    mistakes = [
        ({"image": "photo.png"}, "is a picture, and Wan 2.1 edits videos"),
        ({"match_colors": True}, "--match-colors is for pictures"),
        ({"image": "photo.png", "map": "map.mp4"}, "is a picture, and Wan 2.1 edits videos"),
        ({"id": "a.mp4/b"}, "a folder in it cannot end in .mp4"),
    ]
    write([ROWS[0] | {"id": str(number)} | row for number, (row, _) in enumerate(mistakes, 1)])
    with pytest.raises(ManifestError) as refusal:
        run(wan_checkpoint)
    for number, (_, says) in enumerate(mistakes, 1):
        assert re.search(f"Row {number}: .*{says}", str(refusal.value))


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        ({}, {"model": "still-life"}, "is a video, and Stable Diffusion XL edits pictures"),
        ({"map": "map.mp4"}, {"with_maps": True}, "--maps writes one map for a row"),
    ],
)
def test_what_the_command_cannot_do_with_a_row_is_a_mistake_too(wan_checkpoint, row, options, says):
    write([ROWS[0] | row])
    with pytest.raises(ManifestError, match=f"^Row 1: .*{says}"):
        run_batch("rows.jsonl", "done", **{"model": str(wan_checkpoint), "steps": 2} | options)
