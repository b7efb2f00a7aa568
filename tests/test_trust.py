"""What a user who passes `trust_remote_code=True` lets in: seen on the code, and by Python's audit hooks."""

import ast
import json
import sys
from pathlib import Path

import pytest

import modular_diffdiff
from modular_diffdiff import publishing
from modular_diffdiff.still_life import CHECKPOINT, FLOW_CHECKPOINT

from .clients import run_python
from .helpers import picture


PACKAGE = Path(modular_diffdiff.__file__).parent
FILES = [
    *(PACKAGE / name for name in ("presets.py", "families.py", "videos.py", "map_blocks.py")),
    *(PACKAGE / "blocks").glob("*.py"),
]
LIBRARIES = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub"}
STANDARD = {
    *("__future__", "collections", "copy", "dataclasses", "functools", "importlib", "inspect", "itertools", "os"),
    *("math", "pathlib", "re", "shutil", "typing", "warnings"),
}
# of modules that can do more, what is used of them
NARROW = {
    "importlib": {"importlib.metadata"},
    "os": {"os.PathLike", "os.fspath"},
    "shutil": {"shutil.copyfile"},
}
# whatever has a method of this name can write, delete or fetch
WRITES = {
    "write_text",
    "write_bytes",
    "unlink",
    "rmdir",
    "rmtree",
    "touch",
    "symlink_to",
    "chmod",
    "urlopen",
    "push_to_hub",
}
# A map given as a path or a URL is read by this file; no other fetches.
FETCHES = "diffdiff_files.py"
FOR_FETCHING = {"http.client", "io", "string", "urllib.error", "urllib.parse", "urllib.request"}
RUNS_CODE = {"eval", "exec", "compile", "__import__", "open", "getattr_static", "breakpoint"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_imports_and_calls_nothing_but_what_is_listed(file):
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
            assert all(alias.asname is None for alias in node.names if alias.name in NARROW), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            imported = [] if node.level else [node.module]
            # of these, names are used with the module's in front, where they are seen below
            assert node.module not in NARROW, ast.unparse(node)
        else:
            imported = []
        for name in imported:
            listed = name.split(".")[0] in LIBRARIES | STANDARD
            assert listed or (file.name == FETCHES and name in FOR_FETCHING), name
            if name.split(".")[0] == "importlib":
                assert name in NARROW["importlib"]
        if isinstance(node, ast.Attribute):
            assert node.attr not in WRITES, ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in NARROW:
            assert f"{node.value.id}.{node.attr}" in NARROW[node.value.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in RUNS_CODE


# Every event while a frame of the remote code is on the stack, from its import to the end of a run.
AUDITED = """
    import json, os, sys
    events = []
    WATCHED = ("socket.", "subprocess.", "os.", "shutil.", "open", "urllib.", "http.", "tempfile.", "ctypes.dlopen",
               "exec", "webbrowser.", "ftplib.", "pty.", "sqlite3.", "glob.")

    def audit(event, arguments):
        if not event.startswith(WATCHED):
            return
        frame, ours = sys._getframe(1), False
        while frame is not None and not ours:
            ours = "diffusers_modules" in frame.f_code.co_filename
            frame = frame.f_back
        if ours:
            events.append([event, [str(argument) for argument in arguments]])

    sys.addaudithook(audit)
    import torch
    from diffusers import ModularPipeline
    from diffusers.utils import load_image

    pipe = ModularPipeline.from_pretrained({repo!r}, trust_remote_code=True)
    pipe.load_components(
        workflow="diffdiff", pretrained_model_name_or_path={checkpoint!r}, subfolder={{"vae": "vae"}}, variant=None,
        dtype=torch.float32,
    )
    events.append(["run", []])
    pipe(
        prompt="a pear", image=load_image("photo.png"), diffdiff_map="map.png", num_inference_steps=2,
        padding_map_crop=8, output="images",
    )
    pipe.doc
    {more}
    with open("events.json", "w") as file:
        json.dump(events, file)
"""


# What a block does that breaks every promise.
BREACH = """
    events.append(["breach", []])
    module = sys.modules[type(pipe.blocks).__module__]
    code = "import socket, subprocess; socket.socket().close(); open('written', 'w').close(); subprocess.run(['true'])"
    exec(compile(code, module.__file__, "exec"))"""
CHECKPOINTS = {"sdxl": CHECKPOINT, "z-image": FLOW_CHECKPOINT}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def audited(request, tmp_path_factory):
    """A folder, and what the published code of a family does there.

    Returns:
        The folder; the events from the import of the code to the end of a run with the embedded checkpoint; and those
        of a breach after it.
    """
    folder, family = tmp_path_factory.mktemp("audited"), request.param
    publishing.blocks_of(family).assemble(folder / "repo")
    picture(64, 64).save(folder / "photo.png")
    picture(64, 64, seed=1).convert("L").save(folder / "map.png")
    code = AUDITED.format(repo="repo", checkpoint=CHECKPOINTS[family], more=BREACH)
    run_python(code, None, folder, PYTHONDONTWRITEBYTECODE="1")
    events = json.loads((folder / "events.json").read_text())
    end = events.index(["breach", []])
    return folder, events[:end], events[end + 1 :]


def is_reading(event: str, arguments: list[str]) -> bool:
    """Whether an `open` is for reading: (path, mode, flags)."""
    write_flags = 0o3 | 0o100 | 0o1000 | 0o2000  # WRONLY or RDWR, CREAT, TRUNC, APPEND
    return event == "open" and not set(arguments[1]) & set("wax+") and not int(arguments[2]) & write_flags


def test_a_run_opens_no_socket_starts_no_process_and_writes_no_file(audited):
    folder, events, _ = audited
    start = events.index(["run", []])
    assert start > 0, "the import of the code was not seen"
    looks = ("os.listdir", "os.scandir", "exec")  # Python's import of modules
    for event, arguments in events:
        assert event in ("run", *looks) or is_reading(event, arguments), (event, arguments)
    python = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, *filter(None, sys.path))}
    read = {str(Path(folder, arguments[0]).resolve()) for event, arguments in events if event == "open"}
    strangers = {name for name in read if not any(name.startswith(path) for path in python)}
    remote_code = {name for name in strangers if "diffusers_modules" in name}
    assert strangers - remote_code == {str(folder / "map.png")}


def test_the_hook_sees_what_it_is_there_for(audited):
    _, _, seen = audited
    assert {"socket.__new__", "subprocess.Popen"} <= {event for event, _ in seen}
    assert [arguments for event, arguments in seen if event == "open" and not is_reading(event, arguments)]
