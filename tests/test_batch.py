"""Batches without a model: what is done stays done, whatever dies; and what a manifest may hold."""

import csv
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path

import PIL.Image
import pyarrow
import pytest
from pyarrow import parquet

from modular_diffdiff.batch import run_batch
from modular_diffdiff.ledger import JobError, Ledger
from modular_diffdiff.loading import UserError
from modular_diffdiff.manifest import OPTIONS, Manifest, ManifestError

from . import batches
from .batches import edits, run, start, statuses, table, wait_for_edits, write
from .clients import files_in
from .noop import content


pytestmark = pytest.mark.usefixtures("folder_in_memory")


# Whatever dies


def test_killed_ten_times_it_loses_nothing():
    batches.check_kills("local", rows=150, commands=5, workers=1)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_that_kills_its_worker_is_an_error_after_three_attempts(batch_size):
    write([{"id": name, "prompt": "die" if name == "c" else "a pear"} for name in "abcdef"])
    progress = run(batch_size=batch_size)
    assert (progress.done, progress.failed) == (5, 1)
    assert statuses() == {name: "failed" if name == "c" else "done" for name in "abcdef"}
    assert "never ended" in table()["c"]["error"]
    assert edits()["c"] == table()["c"]["attempts"] == 3
    run(batch_size=batch_size)
    assert edits()["c"] == 3


def test_a_full_disk_ends_the_job_and_loses_nothing():
    write(6)
    most = 50_000

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = start(f"size={most + 1}", preexec_fn=fill)
    said, errors = command.communicate(timeout=60)
    assert command.returncode == 1, said + errors
    assert "images/00000.png' cannot be written" in errors
    assert "0 of 6 rows done, 0 failed; the same command goes on" in errors
    assert set(statuses().values()) == {"pending"}
    assert {row["attempts"] for row in table().values()} == {0}
    assert run().done == 6


def test_a_second_command_on_the_same_folder_is_refused():
    write(100)
    first = start("seconds=0.2")
    wait_for_edits()
    with pytest.raises(UserError, match="is another command's that runs now"):
        run()
    first.kill()
    first.communicate()
    assert run().done == 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number):
    write([{"id": name, "prompt": "hang" if name == "c" else "a pear"} for name in "abcdef"])
    command = start()
    wait_for_edits(3)
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    assert errors.splitlines()[-1] == "Stopped. 2 of 6 rows done, 0 failed; the same command goes on."
    assert statuses() == {name: "done" if name in "ab" else "pending" for name in "abcdef"}
    assert table()["c"]["attempts"] == 0


def test_what_hangs_is_named():
    write([{"id": name, "prompt": "hang" if name == "b" else "a pear"} for name in "abc"])
    with pytest.raises(JobError, match=r"No row ended for 1 seconds; the workers were at row 2 \('b'\)"):
        run(timeout=1)
    assert statuses() == {"a": "done", "b": "pending", "c": "pending"}


def test_memory_does_not_grow_with_the_manifest():
    peaks = []
    for rows in (1_000, 6_000):
        write(rows)
        command = start()
        said, errors = command.communicate(timeout=170)
        assert command.returncode == 0, errors
        assert f"({rows:,} of {rows:,} rows done, 0 failed)" in said
        peaks.append([int(peak) for peak in said.splitlines()[-1].split()])
    for few, many in zip(*peaks, strict=True):
        assert many < 1.1 * few


# What is done anew


def change_a_file():
    Path("other.png").write_bytes(b"changed")


def change_a_seed():
    write([{"id": "a"}, {"id": "b", "map": "other.png", "seed": 2}])


def lose_a_picture():
    Path("out/images/b.png").unlink()


def lose_a_state():
    Path("out/ledger/b.json").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "options", "again"),
    [
        (lambda: None, {}, ""),
        (lambda: None, {"workers": 2}, ""),
        (lambda: None, {"batch_size": 4}, ""),
        (change_a_file, {}, "b"),
        (change_a_seed, {}, "b"),
        (lose_a_picture, {}, "b"),
        (lose_a_state, {}, "b"),
        (lambda: None, {"steps": 30}, "ab"),
        (lambda: None, {"with_maps": True}, "ab"),  # the editor makes none
    ],
)
def test_what_has_changed_is_done_anew_and_nothing_else(change, options, again):
    change_a_file()
    Path("other.png").write_bytes(b"before")
    write([{"id": "a"}, {"id": "b", "map": "other.png"}])
    run()
    change()
    run(**options)
    assert edits() == {name: 2 if name in again else 1 for name in "ab"}


def test_rows_that_shared_a_call_are_done_anew_where_they_may_not():
    write([{"id": name, "steps": 5 if name == "c" else 4} for name in "abcde"])
    run(batch_size=2)
    assert {name: row["batch"] for name, row in table().items()} == {"a": 2, "b": 2, "c": 1, "d": 2, "e": 2}
    run(batch_size=1)
    assert {row["batch"] for row in table().values()} == {1}
    assert edits() == {name: 1 if name == "c" else 2 for name in "abcde"}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_bad_row_is_an_error_and_the_others_go_on(batch_size):
    write([{"id": name, "prompt": "fail" if name == "b" else "a pear"} for name in "abc"])
    assert run(batch_size=batch_size).failed == 1
    assert table()["b"]["error"] == "ValueError: a bad row"
    times = edits()["b"]
    assert run(batch_size=batch_size).failed == 1
    assert edits()["b"] == times
    run(batch_size=batch_size, retry_errors=True)
    assert edits()["b"] == times + 1
    write([{"id": name} for name in "abc"])
    assert run(batch_size=batch_size).done == 3
    assert edits()["c"] == edits()["a"] == batch_size // 4 + 1  # its call failed with it


def test_the_exit_code_says_whether_rows_failed():
    write([{"id": "a"}, {"id": "b", "prompt": "fail"}])
    command = start()
    command.communicate(timeout=60)
    assert command.returncode == 1


def test_what_is_still_to_be_done_anew_is_pending():
    write(3)
    run()
    assert run(steps=30, limit=1).pending == 2
    assert list(statuses().values()) == ["done", "pending", "pending"]
    assert run().pending == 0
    assert edits() == {"00000": 3, "00001": 1, "00002": 1}


def test_a_limit_leaves_the_rest():
    write(5)
    assert run(limit=2).pending == 3
    assert list(statuses().values()) == ["done"] * 2 + ["pending"] * 3
    assert run(limit=2).pending == 1
    assert run().pending == 0
    assert set(edits().values()) == {1}


def test_the_table_says_what_the_ledger_knows():
    write([{"id": "a/b", "seed": 7}, {"id": "c", "seed": None}])
    run()
    first, second = table().values()
    assert first["path"] == "images/a/b.png"
    assert Path("out", first["path"]).read_bytes() == content("a/b", 7)
    assert first["seed"] == 7
    assert Path("out", second["path"]).read_bytes() == content("c", second["seed"])


# Manifests


def read(path: str, **defaults) -> list:
    given = {name: option.default for name, option in OPTIONS.items()} | defaults
    return [row for _, row, _ in Manifest(Path(path).absolute(), given).check()]


def test_the_three_formats_say_the_same():
    rows = [
        {"id": "a", "image": "photo.png", "prompt": 'a "pear",\nripe', "gradient": "90", "steps": 3, "overlay": True},
        {"id": "b", "image": "photo.png", "prompt": "ein Apfel, süß", "text": "the cup", "levels": [0.1, 0.9]},
        {"id": "c", "image": "https://host/a.png", "prompt": "x", "point": ["1,2", "3,4,0"], "strength": 0.5},
    ]
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    parquet.write_table(
        pyarrow.Table.from_pylist(
            rows,
            pyarrow.schema(
                {
                    "id": pyarrow.string(),
                    "image": pyarrow.string(),
                    "prompt": pyarrow.string(),
                    "gradient": pyarrow.string(),
                    "steps": pyarrow.float64(),  # as pandas writes whole numbers beside missing ones
                    "overlay": pyarrow.bool_(),
                    "text": pyarrow.string(),
                    "levels": pyarrow.list_(pyarrow.float64()),
                    "point": pyarrow.list_(pyarrow.string()),
                    "strength": pyarrow.float64(),
                }
            ),
        ),
        "rows.parquet",
        row_group_size=2,
    )
    with open("rows.csv", "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        table.writeheader()
        for row in rows:
            table.writerow(
                {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in row.items()}
            )
    from_jsonl = read("rows.jsonl")
    assert from_jsonl == read("rows.csv") == read("rows.parquet")
    a, b, c = from_jsonl
    assert (a.prompt, a.params["steps"], a.params["overlay"]) == ('a "pear",\nripe', 3, True)
    assert a.params["image"] == os.path.abspath("photo.png")
    assert (b.params["levels"], c.params["point"]) == ((0.1, 0.9), ["1,2", "3,4,0"])
    assert c.params["image"] == "https://host/a.png"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_reading_goes_on_anywhere(suffix):
    rows = [{"id": f"{n:03}", "image": "photo.png", "prompt": "pear\n" * (n % 3) + "x"} for n in range(50)]
    if suffix == "jsonl":
        Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == "csv":
        with open("rows.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet", row_group_size=20)
    manifest = Manifest(Path(f"rows.{suffix}").absolute(), {name: option.default for name, option in OPTIONS.items()})
    places = list(manifest.rows())
    for number in (0, 1, 19, 20, 37, 49):
        assert list(manifest.rows(places[number][0], number + 1)) == places[number:]


@pytest.mark.parametrize("embedded", [False, True])
def test_a_dataset_that_was_exported_is_a_manifest(embedded):
    from datasets import Dataset, Features, Image, Value

    colours = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name, colour in zip("ab", colours, strict=True):
        colour.save(f"{name}.png")
    features = Features({name: Value("string") for name in ("id", "prompt", "gradient")} | {"image": Image()})
    images = colours if embedded else ["a.png", "b.png"]
    rows = {"id": ["x", "y"], "prompt": ["p", "q"], "gradient": ["0", "radial"], "image": images}
    Dataset.from_dict(rows, features).to_parquet("rows.parquet")
    images = [row.params["image"] for row in read("rows.parquet")]
    if embedded:
        read_back = [PIL.Image.open(io.BytesIO(image.data)) for image in images]
        assert [image.tobytes() for image in read_back] == [colour.tobytes() for colour in colours]
    else:
        assert images == [os.path.abspath("a.png"), os.path.abspath("b.png")]


MISTAKES = [
    ({"id": "x", "image": "photo.png"}, "it has no prompt"),
    ({"image": "photo.png", "prompt": "x"}, "it has no id"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "colour": 1}, "the column 'colour' is not known; columns are id"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "model": "y"}, "the column 'model' is set for the whole job"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "lora": "y"}, "the column 'lora' is set for the whole job"),
    ({"id": "x", "image": "missing.png", "prompt": "x"}, "missing.png' is not a file that can be read"),
    ({"id": "x", "image": "photo.png", "mask": "no.png", "prompt": "x"}, "--mask"),
    ({"id": "x", "image": "-", "prompt": "x"}, "IMAGE takes a path, a URL or a picture's bytes, not '-'"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "steps": 0}, "'--steps'"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "steps": 2.5}, "it is 2.5"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "seam": "up"}, "'up' is not one of"),
    ({"id": "x", "image": "photo.png", "prompt": "x", "levels": [0.5]}, "2 values are required"),
    ({"id": "x", "image": "photo.png", "prompt": ["x"]}, "prompt takes a text, not ['x']"),
    *(
        ({"id": name, "image": "photo.png", "prompt": "x"}, f"its id is {name!r}")
        for name in ("../x", "/x", "a/../b", "a//b", ".x", "a/", "x" * 201, "a\n", "a\\b", "a.png/b")
    ),
    ({"id": "FIRST", "image": "photo.png", "prompt": "x"}, "its id is that of row 1"),
    ([1, 2], "it is not an object"),
]


def test_everything_wrong_with_a_manifest_is_said_at_once_before_anything_is_made(monkeypatch):
    good = {"id": "first", "image": "photo.png", "map": "photo.png", "prompt": "x"}
    monkeypatch.setattr("modular_diffdiff.manifest.MOST_PROBLEMS", len(MISTAKES) + 1)
    lines = [good, *(row for row, _ in MISTAKES)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{not JSON\n")
    with pytest.raises(ManifestError) as refused:
        read("rows.jsonl")
    said = str(refused.value).splitlines()
    for number, ((_, expected), line) in enumerate(zip([*MISTAKES, (None, "it is not JSON")], said, strict=True), 2):
        assert line.startswith(f"Row {number}: "), line
        assert expected in line


def test_a_manifest_that_is_refused_leaves_an_earlier_batch_as_it_was():
    write(2)
    run()
    before = {name: path.read_bytes() for name, path in files_in("out").items()}
    write([{"id": "../x"}])
    with pytest.raises(ManifestError):
        run()
    assert {name: path.read_bytes() for name, path in files_in("out").items()} == before


def test_many_mistakes_are_counted():
    write([{"id": "../x"}] * 50)
    with pytest.raises(ManifestError, match="30 other rows cannot be used either"):
        run()
    assert not Path("out/images").exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("rows.txt", b"", "takes a .jsonl, .csv or .parquet file"),
        ("missing.jsonl", None, "cannot be read: No such file"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.csv", b"id,image,id\n", "has a column twice"),
        ("rows.csv", b"id,image,prompt\na,photo.png\n", "it has 2 values, and there are 3 columns"),
        ("rows.csv", b"id,image,prompt\na,photo.png,\xff\n", "is not CSV in UTF-8"),
        ("rows.parquet", b"PAR1", "is not a Parquet file"),
    ],
)
def test_what_is_no_manifest_is_refused(name, data, says):
    if data is not None:
        Path(name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        read(name)


def test_a_folder_of_other_files_is_refused():
    write(1)
    Path("out").mkdir()
    Path("out/precious.png").touch()
    with pytest.raises(UserError, match="holds other files"):
        run()
    assert [path.name for path in Path("out").iterdir()] == ["precious.png"]


@pytest.mark.parametrize("option", ["colour", "count", "overwrite", "image"])
def test_an_option_that_is_of_no_batch_is_refused(option):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        run_batch(write(1), "out", **{option: 1})


def test_without_the_extra_the_local_engine_works_alone(monkeypatch):
    for name in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "modular_diffdiff.batch_ray", raising=False)
    write(2)
    assert run().done == 2
    assert Path("out/results.jsonl").read_text().count('"done"') == 2
    assert not Path("out/results.parquet").exists()
    with pytest.raises(UserError, match="--engine ray needs Ray"):
        run(engine="ray")
    Path("rows.parquet").touch()
    with pytest.raises(UserError, match="A Parquet manifest needs pyarrow"):
        read("rows.parquet")


def test_a_mark_of_a_dead_machine_counts():
    """As if the power had gone three times in the same row."""
    write(2)
    run(limit=1)
    ledger = Ledger(Path("out").absolute())
    state = json.loads(Path("out/ledger/00000.json").read_text())
    mark = state | {"status": "begun", "attempts": 3, "run": "another"}
    Path("out/ledger/00000.json").write_text(json.dumps(mark))
    assert run().failed == 1
    assert ledger.read("00000").status == "failed"
    assert run(retry_errors=True).done == 2
