"""The repository on a Hub, with real clients: each has an empty cache, and who loads from it a fresh process."""

import inspect
import json
import re
from importlib.metadata import version

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import SDXLDiffDiffAutoBlocks, cli, publishing
from modular_diffdiff.catalog import FAMILIES, PACKAGE
from modular_diffdiff.cli import app
from modular_diffdiff.map_blocks import MAP_BLOCKS
from modular_diffdiff.publishing import BLOCKS_REPO, CHECKPOINT_REPO

from .clients import files_in, run_command, run_python
from .hub import TOKEN, File, Repository


LOAD = f"""
    from diffusers import ModularPipeline
    pipe = ModularPipeline.from_pretrained("{BLOCKS_REPO}", trust_remote_code=True)
"""
SAY_WHAT = """
    import sys
    assert "modular_diffdiff" not in sys.modules
    print(type(pipe.blocks).__module__.split(".")[0], type(pipe.blocks).__name__)
"""
OURS, PLAIN = "diffusers_modules SDXLDiffDiffAutoBlocks\n", "diffusers StableDiffusionXLAutoBlocks\n"


@pytest.fixture
def publish(hub, tmp_path, monkeypatch):
    """Publishes from `tmp_path`, as a user whom the Hub knows."""
    monkeypatch.chdir(tmp_path)
    # what huggingface_hub read from the environment when it was imported
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def publish(*arguments, code=0):
        result = CliRunner().invoke(app, ["publish", *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return publish


@pytest.fixture
def unchecked(monkeypatch):
    """What is published is not loaded first, as others do with the same files."""
    monkeypatch.setattr(publishing, "check", lambda content, folder: "")


@pytest.fixture
def repository(hub):
    """The published repository; what a test does to it is undone."""
    before = hub.repositories[BLOCKS_REPO]
    hub.repositories[BLOCKS_REPO] = Repository(
        before.private, dict(before.commits), dict(before.branches), list(before.messages)
    )
    yield hub.repositories[BLOCKS_REPO]
    hub.repositories[BLOCKS_REPO] = before


# Publishing


@pytest.mark.usefixtures("unchecked")
def test_it_is_one_commit_that_makes_the_repository_what_the_package_is(hub, publish, repository):
    expected = repository.commits[repository.branches["main"]]
    del hub.repositories[BLOCKS_REPO]
    publish(BLOCKS_REPO)
    published = hub.repositories[BLOCKS_REPO]
    assert published.messages == ["initial commit", f"modular-diffdiff {version('modular-diffdiff')}"]

    def files() -> dict[str, str]:
        return {name: file.oid for name, file in published.commits[published.branches["main"]].items()}

    assert files() == {name: file.oid for name, file in expected.items()}
    publish(BLOCKS_REPO)
    assert len(published.messages) == 2
    # what is left from an earlier version goes
    published.commit(published.commits[published.branches["main"]] | {"blocks/diffdiff_old.py": File(b"")})
    publish(BLOCKS_REPO)
    assert files() == {name: file.oid for name, file in expected.items()}


def test_the_checkpoint_is_published_with_its_companions(hub, publish):
    expected = hub.repositories.pop(CHECKPOINT_REPO)
    publish(CHECKPOINT_REPO, "--checkpoint")
    trees = [
        {name: file.oid for name, file in repository.commits[repository.branches["main"]].items()}
        for repository in (expected, hub.repositories[CHECKPOINT_REPO])
    ]
    assert trees[0] == trees[1]
    assert {"unet/config.json", "controlnet/config.json", "mask_generator/model.safetensors"} < trees[0].keys()


def test_the_page_is_published_as_a_space_that_starts_and_edits(hub, publish):
    published = publish("ada/page", "--space")
    assert "starts, and edits" in published.stdout
    space = hub.repositories.pop("ada/page")
    files = space.commits[space.branches["main"]]
    package = {f"modular_diffdiff/{name}" for name in files_in(PACKAGE) if "__pycache__" not in name}
    assert files.keys() - package == {
        *("app.py", "settings.json", "requirements.txt", "README.md", "LICENSE", ".gitattributes"),
    }
    assert package <= files.keys()
    card = files["README.md"].read().decode()
    assert f"sdk: gradio\nsdk_version: {version('gradio')}\napp_file: app.py\n" in card
    assert json.loads(files["settings.json"].read()) == {}


def test_a_familys_space_names_the_models_that_it_edits_with(publish, tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    publishing.space_of("flux").assemble(folder)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings.keys() <= inspect.signature(cli.edit).parameters.keys()
    assert settings["model"] == FAMILIES["flux"].model
    listed = re.search(r"^models:\n((?:- .*\n)*)---", (folder / "README.md").read_text(), re.MULTILINE)[1]
    assert set(listed.replace("- ", "").split()) == set(settings.values())
    assert "no checkpoint" in publish("ada/page", "--space", "--family", "flux3", code=2).stderr


def test_a_dry_run_writes_the_files_that_are_published_and_asks_nobody(hub, publish, tmp_path):
    before = len(hub.requests)
    said = publish(BLOCKS_REPO, "--dry-run", "--out", "folder").stdout
    assert len(hub.requests) == before
    published = hub.repositories[BLOCKS_REPO]
    files = published.commits[published.branches["main"]]
    for name, file in files.items():
        if name != ".gitattributes":
            assert (tmp_path / "folder" / name).read_bytes() == file.read(), name
            assert f"{len(file.read()):,}  {name}" in said
    assert "loads as SDXLDiffDiffAutoBlocks" in said
    assert "folder exists" in publish(BLOCKS_REPO, "--dry-run", "--out", "folder", code=2).stderr


@pytest.mark.usefixtures("unchecked")
def test_card_and_node_name_the_repository_that_they_are_in(hub, publish):
    publish("ada/my-edits", "--private", "--revision", "next")
    repository = hub.repositories.pop("ada/my-edits")
    assert repository.private
    assert repository.commits[repository.branches["main"]].keys() == {".gitattributes"}
    files = repository.commits[repository.branches["next"]]
    card = files["README.md"].read().decode()
    assert 'from_pretrained("ada/my-edits"' in card
    assert BLOCKS_REPO not in card
    assert json.loads(files["mellon_pipeline_config.json"].read())["default_repo"] == "ada/my-edits"


@pytest.mark.usefixtures("unchecked")
def test_a_failed_upload_changes_nothing(hub, publish, repository, tmp_path):
    before = repository.commits[repository.branches["main"]]
    repository.commit(before | {"README.md": File(b"changed")})
    changed = dict(repository.branches)
    hub.refuse_commits = True
    try:
        said = publish(BLOCKS_REPO, "--revision", "next", code=1).stderr
        assert "507" in said
        assert said.count("\n") == 1
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/README.md").write_text("new")
        with pytest.raises(OSError, match="507"):
            publishing.upload(publishing.blocks_of("sdxl"), "ada/new", tmp_path / "folder", False, None)
    finally:
        hub.refuse_commits = False
    assert repository.branches == changed
    assert "ada/new" not in hub.repositories


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["no-owner"], {}, "REPO_ID 'no-owner' cannot be a repository's name"),
        (["ada/v1.5"], {}, "REPO_ID 'ada/v1.5' has a dot in it"),
        (["ada/new"], {"HF_TOKEN": ""}, "There is no token"),
        (["bob/new"], {}, "this token may write to ada, modular-diffdiff, and not to 'bob'"),
        (["ada/taken"], {}, "REPO_ID 'ada/taken' is taken"),
        ([CHECKPOINT_REPO], {}, "is taken"),
        ([BLOCKS_REPO, "--private"], {}, "exists and is public"),
        (["ada/weights"], {}, "is taken: it exists, and holds something else, among it unet/config.json"),
        ([BLOCKS_REPO, "--revision", "other"], {}, "among it model.onnx"),
        ([BLOCKS_REPO, "--out", "folder"], {}, "--out needs --dry-run"),
        ([BLOCKS_REPO, "--dry-run", "--private"], {}, "--dry-run takes no --private"),
        ([BLOCKS_REPO, "--checkpoint", "--family", "flux"], {}, "--family and --checkpoint name several repositories"),
        (["ada/-x"], {}, "REPO_ID 'ada/-x' cannot be a repository's name"),
    ],
)
def test_what_cannot_be_published_is_said_before_anything_is_sent(
    hub, publish, repository, tmp_path, monkeypatch, arguments, environment, said
):
    hub.repositories.setdefault("ada/taken", Repository()).commit({"model.safetensors": File(b"theirs")})
    # somebody's own pipeline, saved with our code
    files = repository.commits[repository.branches["main"]]
    hub.repositories.setdefault("ada/weights", Repository()).commit(files | {"unet/config.json": File(b"{}")})
    main = repository.branches["main"]
    repository.commit(files | {"model.onnx": File(b"theirs")}, "other")
    assert repository.branches["main"] == main
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = len(hub.requests)
    assert said in publish(*arguments, code=2).stderr
    assert {method for method, _ in hub.requests[before:]} <= {"GET", "HEAD"}
    assert not list(tmp_path.glob("*/presets.py"))


def test_an_unreachable_hub_is_one_line(publish, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = publish("ada/new", code=1).stderr
    assert said.startswith("Error: the Hub cannot be reached")
    assert said.count("\n") == 1


# Loading


def test_a_workflow_loads_the_models_that_it_needs_and_no_others(hub, tmp_path):
    before = len(hub.requests)
    code = f"""
    from diffusers import ModularPipeline
    pipe = ModularPipeline.from_pretrained("{BLOCKS_REPO}", trust_remote_code=True, workflow="diffdiff")
    pipe.load_components()
    print(sorted(pipe.null_component_names))
    """
    assert run_python(code, hub, tmp_path) == "[]\n"
    asked = {path.split("/resolve/")[0].strip("/") for _, path in hub.requests[before:] if "/resolve/" in path}
    assert asked == {BLOCKS_REPO, "stabilityai/stable-diffusion-xl-base-1.0", "madebyollin/sdxl-vae-fp16-fix"}


def test_two_revisions_of_the_code_do_not_mix(hub, repository, tmp_path):
    first = repository.branches["main"]
    files = repository.commits[first]

    def with_line(name: str, line: str) -> dict[str, File]:
        return files | {name: File(files[name].read() + line.encode())}

    second = repository.commit(with_line("blocks/diffdiff_map.py", "\nKEEP_TOLERANCE = 0.25\n"))
    code = f"""
    import sys
    from diffusers import ModularPipeline
    for revision in ("{first}", "{second}", "main", "{first}"):
        pipe = ModularPipeline.from_pretrained("{BLOCKS_REPO}", revision=revision, trust_remote_code=True)
        module = type(pipe.blocks).__module__
        maps = sys.modules[module.replace("presets", "blocks.diffdiff_map")]
        pixels = sys.modules[module.replace("presets", "blocks.diffdiff_pixels")].diffdiff_map
        print(maps.KEEP_TOLERANCE, pixels.KEEP_TOLERANCE)
    """
    assert run_python(code, hub, tmp_path).split("\n")[:4] == ["1e-06 1e-06", "0.25 0.25", "0.25 0.25", "1e-06 1e-06"]


def test_from_a_warm_cache_without_a_network(hub, tmp_path):
    from_folder = f"""
    from diffusers import ModularPipeline
    from huggingface_hub import snapshot_download
    folder = snapshot_download("{BLOCKS_REPO}")
    pipe = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    """
    both = LOAD + SAY_WHAT + from_folder + SAY_WHAT
    assert run_python(both, hub, tmp_path) == OURS + OURS
    before = len(hub.requests)
    # upstream's loader cannot ask for the code's commit, and silently builds its own pipeline
    assert run_python(both, None, tmp_path) == PLAIN + OURS
    assert len(hub.requests) == before


def test_the_schema_from_the_hub_has_type_default_and_sentence_for_every_input(hub, tmp_path):
    command = ["diffusers-cli", "--format", "json", "schema", "--model", BLOCKS_REPO, "--trust-remote-code"]
    schema = json.loads(run_command(command, hub, tmp_path))
    assert schema["pipeline_class"] == "SDXLDiffDiffAutoBlocks"
    told = {entry["name"]: (entry["required"], entry["description"]) for entry in schema["inputs"]}
    assert told == {param.name: (param.required, param.description) for param in SDXLDiffDiffAutoBlocks().inputs}
    for entry in schema["inputs"]:
        assert entry["type_hint"] not in (None, "None"), entry
        assert entry["description"].endswith("."), entry
        assert {"default", "required"} <= entry.keys()
    numbers = [entry for entry in schema["inputs"] if re.match(r"(<class ')?(int|float)\b", entry["type_hint"])]
    assert len(numbers) > 15
    for entry in numbers:
        if entry["name"] not in ("guidance_scale", "conditioning_scale"):  # not taken, and made by a block
            assert re.search(r"[\[(]-?\d+(\.\d+)?, \d+[\])]|from \d+ to \d+", entry["description"]), entry


# Families


@pytest.fixture(scope="module")
def family_repos(hub, tmp_path_factory):
    """Each family's repository, by the name of its class."""
    repos = {}
    for name, family in FAMILIES.items():
        content, folder = publishing.blocks_of(name), tmp_path_factory.mktemp("family")
        content.assemble(folder)
        hub.add(f"ada/{family.blocks}", files_in(folder))
        repos[family.blocks] = folder
    return repos


def test_every_family_loads_from_a_repository_of_its_own(hub, family_repos, tmp_path):
    code = f"""
    from diffusers import ModularPipeline
    for name in {list(family_repos)}:
        pipe = ModularPipeline.from_pretrained("ada/" + name, trust_remote_code=True)
        assert "TODO" not in pipe.doc, name
        if name in ("FluxDiffDiffAutoBlocks", "WanDiffDiffAutoBlocks"):
            one = ModularPipeline.from_pretrained("ada/" + name, trust_remote_code=True, workflow="diffdiff")
            assert len(one.blocks.inputs) <= len(pipe.blocks.inputs), name
        print(type(pipe.blocks).__module__.split(".")[0], type(pipe.blocks).__name__)
    """
    loaded = run_python(code, hub, tmp_path).splitlines()
    assert loaded == [f"diffusers_modules {name}" for name in family_repos]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.module != "presets"])
def test_a_familys_card_and_index_name_its_components(family_repos, name):
    family = FAMILIES[name]
    folder = family_repos[family.blocks]
    card = (folder / "README.md").read_text()
    assert f'from_pretrained("modular-diffdiff/{name.replace(".", "-")}"' in card
    assert (f"base_model: {family.model}" in card) == (family.model is not None)
    for picture_link in re.findall(r"!\[.*?\]\((.+?)\)", card):
        assert (folder / picture_link).exists()
    index = json.loads((folder / "modular_model_index.json").read_text())
    assert index["_blocks_class_name"] == family.blocks
    for component in ("transformer", "vae"):
        source = index[component][2]
        assert (source["pretrained_model_name_or_path"], source["subfolder"]) == (family.model, component)


@pytest.mark.usefixtures("unchecked")
def test_a_family_is_published_and_another_is_not_laid_over_it(hub, publish):
    publish("ada/edits", "--family", "flux-kontext")
    files = hub.repositories["ada/edits"].commits[hub.repositories["ada/edits"].branches["main"]]
    assert b"families.FluxKontextDiffDiffAutoBlocks" in files["modular_config.json"].read()
    assert "is taken" in publish("ada/edits", "--family", "flux", code=2).stderr
    assert "it takes one of sdxl, sd3" in publish("ada/edits", "--family", "fluxx", code=2).stderr


# Blocks alone


@pytest.fixture(scope="session")
def block_repos(hub, tmp_path_factory) -> list[str]:
    for name in MAP_BLOCKS:
        folder = tmp_path_factory.mktemp("block")
        publishing.block_of(name).assemble(folder)
        hub.add(f"ada/{name}", files_in(folder))
    return list(MAP_BLOCKS)


def test_blocks_load_by_their_names_and_work_together(hub, block_repos, tmp_path):
    """What they make is what the package's own block makes; `test_sources.py` has them in front of inpainting."""
    code = f"""
    from diffusers import ModularPipelineBlocks
    from PIL import Image
    load = ModularPipelineBlocks.from_pretrained
    blocks = {{name: load("ada/" + name, trust_remote_code=True) for name in {block_repos}}}
    import sys
    assert "modular_diffdiff" not in sys.modules
    print(*(type(block).__name__ for block in blocks.values()))
    from diffusers.modular_pipelines import SequentialPipelineBlocks
    parts = {{name: blocks[name] for name in ("map-gradient", "shape-map", "map-to-mask")}}
    pipe = SequentialPipelineBlocks.from_blocks_dict(parts).init_pipeline()
    pipe(image=Image.new("RGB", (5, 4)), map_gradient=0, output="mask_image").save("mask.png")
    """
    said = run_python(code, hub, tmp_path)
    assert said.split() == [kind.__name__ for kind in MAP_BLOCKS.values()]
    pipe = MAP_BLOCKS["map-gradient"]().init_pipeline()
    change_map = pipe(image=Image.new("RGB", (5, 4)), map_gradient=0, output="diffdiff_map")
    mask = np.asarray(Image.open(tmp_path / "mask.png")) / 255
    np.testing.assert_allclose(mask, 1 - change_map[0, 0], atol=0.5 / 255 + 1e-6)


def test_a_blocks_repository_carries_what_it_needs_and_says_how_to_use_it(hub, publish):
    publish("ada/words", "--block", "map-text")
    files = hub.repositories["ada/words"].commits[hub.repositories["ada/words"].branches["main"]]
    card = files["README.md"].read().decode()
    assert 'from_pretrained("ada/words", trust_remote_code=True)' in card
    assert "`text_segmenter` (a `CLIPSegForImageSegmentation`)" in card
    assert "blocks/diffdiff_family.py" not in files
    assert "is taken" in publish("ada/words", "--block", "map-depth", code=2).stderr
    assert (
        "--block is 'map-words'; it takes one of map-text"
        in publish("ada/words", "--block", "map-words", code=2).stderr
    )
    both = publish("ada/words", "--block", "map-text", "--checkpoint", code=2).stderr
    assert "--checkpoint and --block name several repositories" in both
