"""Batches on Ray, and the same real edits on both engines. One small cluster stands for all of this file."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from modular_diffdiff import loading
from modular_diffdiff.batch_edits import PictureEditor
from modular_diffdiff.batch_work import Job, Worker
from modular_diffdiff.cli import app
from modular_diffdiff.ledger import JobError, Ledger
from modular_diffdiff.loading import UserError
from modular_diffdiff.manifest import OPTIONS, Manifest, ManifestError
from modular_diffdiff.still_life.scene import Scene, render

from . import batches
from .batches import ROOT, edits, run, statuses, table, write


pytestmark = pytest.mark.usefixtures("folder_in_memory")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of one node with two CPUs, to which this process and its children are connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 10**8},
        )
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_killed_five_times_it_loses_nothing():
    batches.check_kills("ray", rows=150, commands=1, workers=4)


def test_a_row_that_kills_its_worker_is_an_error_after_three_attempts():
    write([{"id": name, "prompt": {"c": "die", "e": "fail"}.get(name, "a pear")} for name in "abcdef"])
    progress = run(engine="ray", batch_size=3)
    assert (progress.done, progress.failed) == (4, 2)
    assert statuses() == {name: "failed" if name in "ce" else "done" for name in "abcdef"}
    assert edits()["c"] == table()["c"]["attempts"] == 3


def test_what_hangs_is_named():
    write([{"id": name, "prompt": "hang" if name == "b" else "a pear"} for name in "abc"])
    with pytest.raises(JobError, match=r"No row ended for 5 seconds\. .* rows that have begun are b\."):
        run(engine="ray", timeout=5)
    assert statuses()["b"] == "pending"


def test_workers_leave_a_cpu_to_ray():
    write(1)
    with pytest.raises(UserError, match="--workers 2 are too many: Ray has 1 nodes, 2 CPUs"):
        run(engine="ray", workers=2)


# Real edits


def save(scene: Scene, path: str, size: int = 64) -> None:
    Image.fromarray(render(scene, size)).save(path)


def edit_alone(row: dict, path: str) -> None:
    """What `modular-diffdiff edit` makes of the same row."""
    given = dict(row)
    arguments = [given.pop("image"), *([given.pop("map")] if "map" in given else []), given.pop("prompt")]
    del given["id"]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, *(value if isinstance(value, list) else [value])]
    line = ["edit", *map(str, arguments), "--threads", "1", "--out", path]
    ended = CliRunner().invoke(app, line)
    assert ended.exit_code == 0, ended.output


def test_eight_real_edits_are_those_of_edit_byte_for_byte_on_both_engines(monkeypatch):
    monkeypatch.setattr(loading, "load_pipeline", functools.cache(loading.load_pipeline))  # for `edit_alone`
    save(Scene("apple", "red", "striped", light=0.3), "apple.png")
    save(Scene("lemon", "yellow", "checked", light=0.4), "lemon.png", 72)
    Image.linear_gradient("L").resize((64, 64)).save("ramp.png")
    few = {"steps": 2, "seed": 3}
    rows = [
        {"image": "apple.png", "map": "ramp.png", "prompt": "a green pear", **few},
        {"image": "apple.png", "map": "ramp.png", "prompt": "a cup", **few, "seed": 4, "negative": "a pear"},
        {"image": "lemon.png", "gradient": "90", "prompt": "a purple lemon", **few, "levels": [0.1, 0.9]},
        {"image": "lemon.png", "text": "the lemon", "prompt": "a pear", **few, "overlay": True, "feather": 2.0},
        {"image": "apple.png", "control_image": "lemon.png", "map": "ramp.png", "prompt": "a pear", **few},
        {"image": "lemon.png", "mask": "ramp.png", "prompt": "a pear", **few, "crop": 4, "guidance_scale": 3.0},
        {"image": "apple.png", "map": "ramp.png", "prompt": "a pear", **few, "strength": 0.7, "softness": 0.2},
        {"image": "apple.png", "map": "ramp.png", "prompt": "a pear", **few, "ip_adapter_image": "lemon.png"},
    ]
    rows = [{"id": f"{number}", **row} for number, row in enumerate(rows)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for engine in ("local", "ray"):
        ended = CliRunner().invoke(app, ["batch", "rows.jsonl", "--out", engine, "--engine", engine, "--maps"])
        assert ended.exit_code == 0, ended.output
        assert ended.stdout == f"{engine}/results.parquet (8 of 8 rows done, 0 failed)\n"
    for row in rows:
        edit_alone(row, "alone.png")
        for engine in ("local", "ray"):
            assert Path(engine, "images", f"{row['id']}.png").read_bytes() == Path("alone.png").read_bytes(), row
        Path("alone.png").unlink()
    ended = CliRunner().invoke(app, ["map", "lemon.png", "--text", "the lemon", "--feather", "2", "--out", "map.png"])
    assert ended.exit_code == 0, ended.output
    assert Path("ray/maps/3.png").read_bytes() == Path("map.png").read_bytes()


def prepare(rows: list[dict], **options) -> Worker:
    """A worker of the job, in this process."""
    write(rows)
    defaults = {name: option.default for name, option in OPTIONS.items()} | {"threads": 1, "steps": 2}
    batch_size = options.pop("batch_size", 1)
    manifest = Manifest(Path("rows.jsonl").absolute(), defaults | options)
    ledger = Ledger(Path(f"out-{batch_size}").absolute())
    ledger.open()
    return Worker(Job(manifest, ledger, PictureEditor(), batch_size))


def test_rows_that_share_a_call_differ_by_rounding_and_say_so():
    save(Scene("apple", "red", "striped", light=0.3), "photo.png")
    save(Scene("lemon", "yellow", "checked", light=0.4), "lemon.png")
    save(Scene("lemon", "yellow", "checked", light=0.4), "large.png", 72)
    Image.linear_gradient("L").resize((64, 64)).save("ramp.png")
    Image.new("L", (64, 64), 128).save("grey.png")  # it begins later
    rows = [
        {"id": "a", "map": "ramp.png"},
        {"id": "b", "map": "ramp.png", "image": "lemon.png", "prompt": "a cup", "seed": 2},
        {"id": "c", "map": "grey.png"},
        {"id": "d", "map": "ramp.png", "image": "large.png"},
        {"id": "e", "map": "ramp.png", "seed": 3, "grow": 2.0},
        {"id": "f", "map": "ramp.png", "overlay": True},
        {"id": "g", "map": "ramp.png", "crop": 2},
    ]
    for batch_size in (1, 4):
        worker = prepare(rows, batch_size=batch_size)
        for part, pipeline in worker.plan(False, None).steps():
            for call in part.rows(worker.job.manifest, pipeline, batch_size):
                assert {outcome.status for outcome in worker.do(call)} == {"done"}
    sizes = {}
    for name in "abcdefg":
        with Image.open(f"out-1/images/{name}.png") as alone, Image.open(f"out-4/images/{name}.png") as together:
            assert abs(np.asarray(alone, dtype=int) - np.asarray(together, dtype=int)).max() <= 1
            sizes[name] = json.loads(together.text["modular-diffdiff"]).get("batch", {}).get("size", 1)
            assert worker.job.ledger.read(name).batch == sizes[name]
    assert sizes == dict.fromkeys("abe", 3) | dict.fromkeys("cdfg", 1)


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        ({"map": None}, {}, "nothing says what may change"),
        ({"threshold": 0.5}, {}, "--threshold needs --text"),
        ({"control_scale": 0.5}, {}, "--control-scale needs --control-image"),
        ({"negative": "a cup", "guidance_scale": -1}, {}, "--guidance-scale is -1"),
        ({"control_image": "photo.png"}, {"model": "still-life-flow"}, "--controlnet is needed"),
        ({"gradient": "up"}, {}, "--gradient is 'up'"),
        ({"point": "1,2,3,4"}, {}, "--point is '1,2,3,4'"),
    ],
    ids=str,
)
def test_what_an_edit_refuses_is_a_mistake_of_its_row(monkeypatch, row, options, says):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    worker = prepare([{"id": "good"}, {"id": "bad", **row}], **options)
    with pytest.raises(ManifestError, match=f"^Row 2: .*{re.escape(says)}[^\n]*$"):
        worker.plan(False, None)


def test_a_damaged_picture_is_an_error_row():
    Image.new("RGB", (64, 64)).save("good.png")
    Path("bad.png").write_bytes(b"no picture")
    worker = prepare(
        [{"id": "a", "image": "bad.png", "map": "good.png"}, {"id": "b", "image": "good.png", "map": "good.png"}]
    )
    part, pipeline = next(worker.plan(False, None).steps())
    for call in part.rows(worker.job.manifest, pipeline, 1):
        worker.do(call)
    assert worker.job.ledger.read("a").error == f"IMAGE {str(Path('bad.png').absolute())!r} cannot be read: " + (
        "it is in no image format that PIL knows."
    )
    assert worker.job.ledger.read("b").status == "done"


@pytest.mark.parametrize(("shown", "places"), [(None, ["0", "1", "2"]), ("4,6,7", ["4", "6", "7"])])
def test_each_accelerator_gets_a_worker(monkeypatch, shown, places):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown) if shown else monkeypatch.delenv("CUDA_VISIBLE_DEVICES", False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in PictureEditor().places()] == places
    assert PictureEditor("cuda:1").places() == PictureEditor("cpu").places() == [{}]


@pytest.mark.parametrize("option", ["threads", "guidance_scale", "dtype"])
def test_options_of_the_job_are_in_the_fingerprint(option):
    changed = {"threads": 2, "guidance_scale": 3.0, "dtype": "float16"}
    first, second = (prepare([{"id": "a"}], **options) for options in ({}, {option: changed[option]}))
    prints = {worker.fingerprint(row) for worker in (first, second) for _, row in worker.job.manifest.rows()}
    assert len(prints) == 2
