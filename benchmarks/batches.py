"""Batches: what they cost beside a plain loop, and that nothing is lost when a job or a machine is killed.

    python -m benchmarks.batches [speed | ceiling | cluster | killed [NUMBER ...]]

A part prints its section of `RESULTS.md` and writes it there; without a name, all of them run. With other numbers than
its function has, it is a trial, which is not written.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow import parquet

from modular_diffdiff.batch import Progress, run_batch
from modular_diffdiff.demo import keep_left
from modular_diffdiff.ledger import Ledger
from modular_diffdiff.still_life import CHECKPOINT, GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, SIZE, Scene, render
from tests.noop import NoOp

from .cost import RESULTS
from .measure import put_section


STEPS = 4
PROMPT = "a green pear on a striped background"


def write_manifest(folder: Path, rows: int) -> Path:
    """Edits of the right half of small still lifes, each of a seed of its own."""
    Image.fromarray(keep_left(1 / 2).astype("uint8") * 255).save(folder / "map.png")
    scenes = [Scene("apple", colour, background) for colour in COLOURS for background in BACKGROUNDS][:8]
    for number, scene in enumerate(scenes):
        Image.fromarray(render(scene)).save(folder / f"photo-{number}.png")
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for seed in range(rows):
            row = {"image": f"photo-{seed % len(scenes)}.png", "map": "map.png", "prompt": PROMPT, "seed": seed}
            file.write(json.dumps({"id": f"{seed:05}", **row, "steps": STEPS}) + "\n")
    return path


# Speed


def make_loop() -> Callable[[Path], float]:
    """What one writes without a batch, in this process: seconds an edit of a manifest takes."""
    import torch
    from diffusers import ClassifierFreeGuidance

    from modular_diffdiff import SDXLDiffDiffBlocks

    torch.set_num_threads(1)
    pipe = SDXLDiffDiffBlocks().init_pipeline(CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=GUIDANCE_SCALE))
    pipe.set_progress_bar_config(disable=True)

    def run(manifest: Path) -> float:
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        ends = [time.perf_counter()]
        for row in rows:
            with Image.open(manifest.parent / row["image"]) as image:
                result = pipe(
                    prompt=row["prompt"],
                    image=image.convert("RGB"),
                    diffdiff_map=str(manifest.parent / row["map"]),
                    num_inference_steps=row["steps"],
                    generator=torch.Generator().manual_seed(row["seed"]),
                    output="images",
                )[0]
            result.save(manifest.parent / f"{row['id']}.png")
            ends.append(time.perf_counter())
        return (ends[-1] - ends[1]) / (len(rows) - 1)  # the first one warms up

    return run


def time_batch(manifest: Path, **options: Any) -> float:
    """Seconds an edit takes of a batch, from when each of its workers has ended its first call."""
    ends: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        ends.append((time.perf_counter(), progress.settled))

    with tempfile.TemporaryDirectory(dir=manifest.parent) as out:
        progress = run_batch(manifest, Path(out, "out"), on_progress=note, **options)
    assert progress.done == progress.total, progress
    warm = options.get("workers", 1) * options.get("batch_size", 1)
    start, before = next((end, settled) for end, settled in ends if settled >= warm)
    return (ends[-1][0] - start) / (progress.total - before)


def speed(rows: int = 24, turns: int = 3) -> Iterator[str]:
    """Batches against the loop, measured in turns."""
    cores = os.cpu_count()
    ways = [{"workers": count} for count in (1, 2, 4) if count <= cores]
    ways += [{"batch_size": size} for size in (2, 4, 8)]
    if cores > 1:
        ways.append({"engine": "ray", "workers": 1})
    yield f"{rows} edits of the embedded model, {SIZE} x {SIZE} pixels, {STEPS} steps with guidance, a thread a worker."
    yield f"Medians of {turns} turns, without loading. Below 1, a batch is faster than a plain loop."
    yield "All rows have one prompt, which a worker encodes once."
    yield from ("", "| | seconds an edit | of the loop's |", "|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        manifest, loop = write_manifest(Path(folder), rows), make_loop()
        loops = [loop(manifest)]
        for way in ways:
            pairs = []
            for _ in range(turns):
                pairs.append((time_batch(manifest, **way), loops[-1]))
                loops.append(loop(manifest))
            seconds = statistics.median(one for one, _ in pairs)
            ratio = statistics.median(one / other for one, other in pairs)
            name = ", ".join(f"`--{option.replace('_', '-')} {value}`" for option, value in way.items())
            yield f"| {name} | {seconds:.3f} | {ratio:.3f} |"
        yield f"| the loop | {statistics.median(loops):.3f} | 1 |"


def ceiling(rows: int = 2000) -> Iterator[str]:
    """How many rows a second there could be, if an edit took no time."""
    yield from (
        "Rows a second of an editor that does nothing: reading, ledger, files.",
        "",
        "| | rows a second |",
        "|---|---|",
    )
    ways = [{"engine": "local", "workers": count} for count in (1, 2)] + [{"engine": "ray", "workers": 1}]
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_manifest(Path(folder), rows)
            seconds = time_batch(manifest, editor=NoOp(Path(folder, "log")), **way)
        yield f"| `--engine {way['engine']} --workers {way['workers']}` | {1 / seconds:,.0f} |"


# Nothing is lost


def cluster(rows: int = 400) -> Iterator[str]:
    """A cluster of three nodes, in which one dies."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    others = [nodes.add_node(num_cpus=2) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        with tempfile.TemporaryDirectory() as folder:
            manifest, log = write_manifest(Path(folder), rows), Path(folder, "log")

            def kill() -> None:
                while not log.exists() or len(log.read_text().splitlines()) < rows // 3:
                    time.sleep(0.1)
                nodes.remove_node(others[0], allow_graceful=False)

            threading.Thread(target=kill, daemon=True).start()
            out = Path(folder, "out")
            start = time.perf_counter()
            progress = run_batch(manifest, out, engine="ray", workers=5, timeout=120, editor=NoOp(log, seconds=0.1))
            seconds = time.perf_counter() - start
            table = parquet.read_table(out / "results.parquet").to_pylist()
    finally:
        ray.shutdown()
        nodes.shutdown()
        del os.environ["RAY_ADDRESS"]
    done = collections.Counter(re.search(r"/(\w+):", row["worker"])[1] for row in table)
    yield f"{rows} rows of 0.1 s that edit nothing, on a Ray cluster of three nodes of two CPUs each, on this machine."
    yield f"One of them was killed after a third of the rows: {progress.done} are done, {progress.failed} failed,"
    yield f"in {seconds:.0f} s. Rows of each node: {', '.join(map(str, sorted(done.values())))}."
    assert progress.done == rows
    assert len(done) == 3


def killed(rows: int = 500, times: int = 5, repeated: int = 20) -> Iterator[str]:
    """A job that is killed, and started again by the same command; its rows against `edit` alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, ledger, draw = write_manifest(folder, rows), Ledger(folder / "out"), random.Random(0)
        line = [
            "modular-diffdiff",
            "batch",
            manifest.name,
            "--out",
            "out",
            "--workers",
            str(min(2, os.cpu_count() or 1)),
        ]
        command = [sys.executable, "-m", "modular_diffdiff.cli", *line[1:]]
        yield from (f"{rows} edits of {STEPS} steps with the embedded model, killed {times} times:", "", "```console")
        for turn in range(times + 1):
            yield f"$ {shlex.join(line)}"
            process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if turn < times:
                before = count_done(ledger, rows)
                while count_done(ledger, rows) < before + rows // (times + 1):
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.2)
                time.sleep(draw.uniform(0, 1))
                process.kill()
            said, errors = process.communicate()
            yield next(told for told in errors.splitlines() if told.endswith("rows to do."))
            if turn < times:
                yield f"Killed, at {count_done(ledger, rows)} rows"
            else:
                yield said.strip()
        table = {row["id"]: row for row in parquet.read_table(folder / "out" / "results.parquet").to_pylist()}
        assert len(table) == rows
        assert {row["status"] for row in table.values()} == {"done"}
        same = 0
        for row in map(json.loads, draw.sample(manifest.read_text().splitlines(), repeated)):
            same += edit_alone(row, folder) == (folder / "out" / table[row["id"]]["path"]).read_bytes()
        yield "```"
        begun = sum(row["attempts"] > 1 for row in table.values())
        yield f"\n{len(table)} rows, all done; {begun} had to begin again."
        yield f"Of {repeated} that `edit` made alone, {same} were the same, byte for byte."


def count_done(ledger: Ledger, rows: int) -> int:
    states = (ledger.read(f"{number:05}") for number in range(rows))
    return sum(state is not None and state.status == "done" for state in states)


def edit_alone(row: dict[str, Any], folder: Path) -> bytes:
    line = [row["image"], row["map"], row["prompt"], "--seed", str(row["seed"]), "--steps", str(row["steps"])]
    line += ["--threads", "1", "--out", "alone.png", "--overwrite"]
    command = [sys.executable, "-m", "modular_diffdiff.cli", "edit", *line]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return (folder / "alone.png").read_bytes()


PARTS = {
    "speed": ("A batch beside a plain loop", speed),
    "ceiling": ("A batch that edits nothing", ceiling),
    "cluster": ("A batch on a cluster, and a machine that dies", cluster),
    "killed": ("A batch that is killed five times", killed),
}


def main(name: str | None = None, *numbers: str) -> None:
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers", "ray"))
    where = f"a CPU ({platform.machine()}, {os.cpu_count()} cores); {packages}"
    for part in [name] if name else PARTS:
        title, measure = PARTS[part]
        lines = [f"Measured by `python -m benchmarks.batches {part}` on {where}.", ""]
        print(f"## {title}\n")
        for line in measure(*map(int, numbers)):
            print(line, flush=True)
            lines.append(line)
        if not numbers:
            put_section(RESULTS, title, lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
