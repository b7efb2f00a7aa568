"""Checkpoints and what goes with them: which one a name means, and a pipeline of them that is ready to run.

Heavy libraries are imported where they are used: a mistake in a name is answered before they are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import catalog, few_steps
from .still_life import (
    CHECKPOINT,
    COMPANIONS,
    DEPTH_ESTIMATOR,
    FLOW_CHECKPOINT,
    FLOW_GUIDANCE_SCALE,
    GUIDANCE_SCALE,
    IP_ADAPTER_NAME,
    LCM_LORA,
    MASK_GENERATOR,
    TEXT_SEGMENTER,
)


EMBEDDED, EMBEDDED_UNION, EMBEDDED_FLOW = "still-life", "still-life-union", "still-life-flow"
# What makes change maps of the embedded models' pictures, by the command line's option.
MAP_MODELS = {
    "--segmenter": TEXT_SEGMENTER,
    "--mask-generator": MASK_GENERATOR,
    "--depth-estimator": DEPTH_ESTIMATOR,
}
_MODEL_INDEXES = ("modular_model_index.json", "model_index.json")
_HUB_TIMEOUT = 10  # seconds
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILE = re.compile(rf"(?P<repo>{_HUB_NAME.pattern})/(?:(?P<folder>.+)/)?(?P<name>[^/]+\.(?:safetensors|bin))")


class UserError(Exception):
    """A mistake of the user's; the message names the input."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, what steers it, and how it runs.

    Attributes:
        model: "still-life" or "still-life-flow" (the embedded ones), a folder with a model_index.json, or a Hub
            repository "owner/name".
        device: Where it runs, a name that torch has; None for `choose_device` to decide.
        dtype: Of its weights, a name that torch has; None likewise.
        offload: Whether its parts wait in main memory until they run.
        threads: How many CPU threads torch uses, which decides the last bits of pixels; None for torch's own number.
        controlnet: "still-life" (on edges), "still-life-union", a folder, or a Hub repository; None for none.
        ip_adapter: "still-life", a weights file, or one on the Hub, "owner/name/folder/file"; None for none.
        ip_adapter_scale: How much an image prompt counts, 0 for nothing; None without an IP-Adapter.
        lora: "still-life", a weights file, a folder, or a Hub repository, also with the file's name after it; None for
            none.
        family: Its name in `catalog.FAMILIES`, as `find_family` sees it.
    """

    model: str
    device: str | None
    dtype: str | None
    offload: bool = False
    threads: int | None = None
    controlnet: str | None = None
    ip_adapter: str | None = None
    ip_adapter_scale: float | None = None
    lora: str | None = None
    family: str = "sdxl"

    @property
    def title(self) -> str:
        return catalog.FAMILIES[self.family].title


class WeightsFile(NamedTuple):
    """A file as diffusers' loaders take it; without a name, they look for it."""

    source: str
    subfolder: str
    name: str | None


def find_model(location: str) -> str:
    """What diffusers calls a `Model.model`: a folder, or a repository's name.

    Raises:
        UserError: If it can be neither.
    """
    embedded = {EMBEDDED: CHECKPOINT, EMBEDDED_FLOW: FLOW_CHECKPOINT}
    return embedded[location] if location in embedded else _find(location, "--model", _MODEL_INDEXES)


def find_controlnet(location: str) -> str:
    """The same for a `Model.controlnet`."""
    embedded = {EMBEDDED: "controlnet", EMBEDDED_UNION: "controlnet_union"}
    if location in embedded:
        return str(Path(COMPANIONS, embedded[location]))
    return _find(location, "--controlnet", ("config.json",))


def find_map_model(location: str, option: str) -> str:
    """The same for a model that makes change maps.

    Args:
        option: The command line's: --segmenter, --mask-generator or --depth-estimator.
    """
    if location == EMBEDDED:
        return MAP_MODELS[option]
    return _find(location, option, ("config.json",))


def load_map_model(location: str, option: str, kinds: tuple[tuple[str, type], ...]) -> dict[str, Any]:
    """The components of a source of change maps.

    Args:
        kinds: Names of components, and what has `from_pretrained` for each.

    Raises:
        UserError: If one cannot be loaded.
        OSError: If it would have to come from the Hub, and that cannot be reached.
    """
    found = find_map_model(location, option)
    _ask_hub(option, found)
    with _named(option, location):
        return {name: kind.from_pretrained(found) for name, kind in kinds}


def _find(location: str, option: str, indexes: tuple[str, ...]) -> str:
    if Path(location).is_dir():
        if not any(Path(location, index).is_file() for index in indexes):
            raise UserError(f"{option} {location!r} is a folder without a {indexes[-1]}.")
    elif Path(location).exists() or not _HUB_NAME.fullmatch(location):
        raise UserError(f"{option} {location!r} is neither a folder nor a repository's name on the Hub (owner/name).")
    return location


def find_ip_adapter(location: str) -> WeightsFile:
    """The file that a `Model.ip_adapter` means.

    Raises:
        UserError: If it can be none.
    """
    if location == EMBEDDED:
        return WeightsFile(COMPANIONS, "ip_adapter", IP_ADAPTER_NAME)
    found = _find_file(location)
    if found is None:
        raise UserError(
            f"--ip-adapter {location!r} is neither a file nor a file's name on the Hub (owner/name/folder/file)."
        )
    if Path(location).is_file() and not Path(found.source, image_encoder_folder(found)).is_dir():
        raise UserError(f"--ip-adapter {location!r} has no folder image_encoder beside it.")
    return found


def image_encoder_folder(adapter: WeightsFile) -> str:
    """Where, in its source, an IP-Adapter's image encoder lies: beside it, as diffusers' pipelines have it."""
    if adapter.source == "h94/IP-Adapter" and "vit-h" in adapter.name:
        return "models/image_encoder"  # that repository shares it with Stable Diffusion 1.5's adapters
    return str(Path(adapter.subfolder, "image_encoder"))


def find_lora(location: str) -> WeightsFile:
    """The file or files that a `Model.lora` means.

    Raises:
        UserError: If it can be none.
    """
    if location == EMBEDDED:
        return WeightsFile(COMPANIONS, LCM_LORA.parent.name, LCM_LORA.name)
    found = _find_file(location)
    if found is None and (Path(location).is_dir() or _HUB_NAME.fullmatch(location)):
        return WeightsFile(location, "", None)
    if found is None:
        raise UserError(
            f"--lora {location!r} is neither a file or folder nor a name on the Hub (owner/name, or a file in it)."
        )
    return found


def _find_file(location: str) -> WeightsFile | None:
    path = Path(location)
    if path.is_file():
        return WeightsFile(str(path.parent), "", path.name)
    on_hub = _HUB_FILE.fullmatch(location)
    return on_hub and WeightsFile(on_hub["repo"], on_hub["folder"] or "", on_hub["name"])


def default_for(model: str, option: str, union: bool = False) -> str:
    """What goes with the embedded model, where this option is not given.

    Raises:
        UserError: If another model is asked for: nothing goes with it by default.
    """
    if model != EMBEDDED:
        raise UserError(f"{option} is needed: it names what goes with --model {model!r}.")
    return EMBEDDED_UNION if union else EMBEDDED


def check_names(model: Model) -> None:
    """Looks for all that a model names, as far as can be seen without loading it.

    Raises:
        UserError: If a name can mean nothing.
    """
    find_model(model.model)
    steering = (
        ("--controlnet", find_controlnet, model.controlnet),
        ("--ip-adapter", find_ip_adapter, model.ip_adapter),
        ("--lora", find_lora, model.lora),
    )
    for option, find, location in steering:
        if location in (EMBEDDED, EMBEDDED_UNION) and model.model != EMBEDDED:
            raise UserError(f"{option} {location!r} fits only the embedded model, not {model.model!r}.")
        if location is not None:
            find(location)


def find_family(model: Model) -> Model:
    """The same with the family that the checkpoint's index names.

    Raises:
        UserError: If there is no such checkpoint, its family is unknown, or its family does not take what
            steers it.
        OSError: If it would have to come from the Hub, and that cannot be reached.
    """
    location = find_model(model.model)
    _ask_hub("--model", location)
    with _named("--model", model.model):
        model = replace(model, family=catalog.recognize(location))
    taken = set(catalog.FAMILIES[model.family].blocks_class().input_names)
    for option, location, name in (
        ("--controlnet", model.controlnet, "control_image"),
        ("--ip-adapter", model.ip_adapter, "ip_adapter_image"),
    ):
        if location is not None and name not in taken:
            raise UserError(f"{option} {location!r}: {model.title} takes none.")
    return model


def check_steering(model: Model, control_mode: int | None) -> None:
    """Refuses, before any weights are read, what cannot steer, and modes that a ControlNet does not have.

    Raises:
        UserError: Naming the option.
        OSError: If something would have to come from the Hub, and that cannot be reached.
    """
    from diffusers import ControlNetModel

    if model.ip_adapter is not None:
        _ask_hub("--ip-adapter", find_ip_adapter(model.ip_adapter).source)
    if model.lora is not None:
        _ask_hub("--lora", find_lora(model.lora).source)
    if model.controlnet is None:
        return
    location, title = find_controlnet(model.controlnet), f"--controlnet {model.controlnet!r}"
    _ask_hub("--controlnet", location)
    with _named("--controlnet", model.controlnet):
        config = ControlNetModel.load_config(location)
        kind = config["_class_name"]
    if "ControlNet" not in kind:
        raise UserError(f"{title} is a {kind}, not a ControlNet.")
    if kind != "ControlNetUnionModel":
        if control_mode is not None:
            raise UserError(f"--control-mode is {control_mode}, but {title} has no modes; a ControlNet-Union has.")
        return
    modes = config["num_control_type"]
    if control_mode is None or control_mode >= modes:
        given = "is needed" if control_mode is None else f"is {control_mode}"
        raise UserError(f"--control-mode {given}; {title} takes 0 to {modes - 1}.")


def _ask_hub(option: str, location: str) -> None:
    """Asks the Hub once for a repository that its cache does not hold: downloads would try for a minute.

    Raises:
        UserError: If there is no such repository.
        OSError: If the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    if Path(location).exists():
        return
    try:
        snapshot_download(location, local_files_only=True)
        return
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(f"{option} {location!r} cannot be a repository's name on the Hub.") from error
    try:
        HfApi().model_info(location, timeout=_HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        hint = "if it is private, log in with `hf auth login`"
        raise UserError(f"{option} {location!r} is neither a folder nor a repository on the Hub; {hint}.") from error
    except Exception as error:  # each version of the Hub's client has its own
        raise OSError(f"{option} {location!r} is not in the cache, and the Hub cannot be reached: {error}") from error


def suggest(model: Model) -> tuple[int, float | None]:
    """How many steps and which guidance scale suit a model whose family is known; None for the model's own scale."""
    recipe = few_steps.find(model)
    if recipe is not None:
        has_guider = "guider" in catalog.FAMILIES[model.family].blocks_class().component_names
        return recipe.steps, few_steps.NO_GUIDANCE if has_guider else None
    embedded = {EMBEDDED: GUIDANCE_SCALE, EMBEDDED_FLOW: FLOW_GUIDANCE_SCALE}
    return few_steps.STEPS, embedded.get(model.model, 7.5 if model.family == "sdxl" else None)


def choose_device(model: Model) -> Model:
    """Fills in what was left open: this machine's accelerator or its CPU, in float32 on a CPU, else as SDXL likes it
    (float16) and the other families do (bfloat16), and torch's own number of threads.

    Raises:
        UserError: If there is no such device, or no accelerator to offload from.
    """
    import torch
    from diffusers.utils.torch_utils import get_device

    accelerator = get_device()
    try:
        found = torch.device(accelerator if model.device is None else model.device)
        torch.zeros(1, device=found).cpu()
    # no such name (or no UTF-8: a ValueError), a build without it, a device that torch knows and cannot use
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"--device {model.device!r} cannot be used here: {error}") from error
    if model.offload and found.type == "cpu":
        lack = "this machine has none" if accelerator == "cpu" else f"--device is {model.device}"
        raise UserError(f"--offload needs an accelerator to move the model's parts to while they run, and {lack}.")
    on_accelerator = "float16" if model.family == "sdxl" else "bfloat16"
    dtype = model.dtype or ("float32" if found.type == "cpu" else on_accelerator)
    return replace(model, device=str(found), dtype=dtype, threads=model.threads or torch.get_num_threads())


def set_threads(model: Model) -> None:
    """Lets torch use as many CPU threads as a model says."""
    import torch

    torch.set_num_threads(model.threads)


def load_pipeline(model: Model, guidance_scale: float | None):
    """The differential diffusion pipeline of a checkpoint and what steers it, ready to run.

    Args:
        guidance_scale: Of classifier-free guidance, for families with a guider; None leaves it as it is.

    Raises:
        UserError: If there is no such checkpoint, or something cannot be loaded.
    """
    import torch
    from diffusers import ComponentsManager

    from .blocks.diffdiff_loop import with_callback

    dtype = getattr(torch, model.dtype)
    steering = _load_controlnet(model, dtype) | _load_image_encoder(model, dtype)
    blocks = with_callback(catalog.FAMILIES[model.family].blocks_class().get_workflow(_workflow(steering)))
    manager = ComponentsManager() if model.offload else None
    with _named("--model", model.model):
        pipe = blocks.init_pipeline(find_model(model.model), components_manager=manager)
    set_guidance(pipe, guidance_scale)
    pipe.update_components(**steering)
    with _named("--model", model.model):
        pipe.load_components(dtype=dtype)
    for name in [name for name in pipe.null_component_names if name not in _map_components()]:
        try:
            pipe.update_components(
                **{name: pipe.get_component_spec(name).load(dtype=dtype)}
            )  # now it says why it fails
        except Exception as error:
            raise UserError(f"--model {model.model!r} gives no {name}: {error}") from error
    _load_adapters(pipe, model)
    if model.offload:
        manager.enable_auto_cpu_offload(device=model.device)
    else:
        pipe.to(model.device)
    return pipe


def _map_components() -> set[str]:
    """What makes change maps in a pipeline; here they are made before it runs."""
    from .blocks.diffdiff_make_map import SOURCES

    return {name for source in SOURCES for name in getattr(source, "models", ())}


def set_guidance(pipe, scale: float | None) -> None:
    """Sets the scale of guidance, of both stages where there are two, if there is a guider; None leaves it as it is."""
    from .blocks.diffdiff_block import GUIDERS

    for name in GUIDERS:
        if scale is not None and name in pipe.component_names:
            guider = getattr(pipe, name)
            pipe.update_components(**{name: guider.from_config(guider.config, guidance_scale=scale)})


def sources_of(model: Model) -> set[str]:
    """The folders and repositories that a model is loaded from, by the names that they were given."""
    named = {
        model.model,
        model.controlnet,
        model.ip_adapter and find_ip_adapter(model.ip_adapter).source,
        model.lora and find_lora(model.lora).source,
    }
    return named - {None}


def cached_commits(model: Model) -> dict[str, str]:
    """The commits that the Hub's cache holds, as its main branch, of the repositories that a model is loaded from."""
    return commits_of(sources_of(model))


def commits_of(named: set[str]) -> dict[str, str]:
    """The same for these names."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {
        repository.repo_id: repository.refs["main"].commit_hash
        for repository in cached
        if repository.repo_id in named and not Path(repository.repo_id).exists() and "main" in repository.refs
    }


def _workflow(steering: dict[str, Any]) -> str:
    """Which of the automatic blocks' workflows takes these components."""
    from diffusers import ControlNetUnionModel

    adapter = "ip_adapter_" if "image_encoder" in steering else ""
    union = "union_" if isinstance(steering.get("controlnet"), ControlNetUnionModel) else ""
    return f"{adapter}controlnet_{union}diffdiff" if "controlnet" in steering else f"{adapter}diffdiff"


@contextmanager
def _named(option: str, location: str | None) -> Iterator[None]:
    """Names the option in whatever keeps its models from being loaded; libraries raise all kinds of errors there."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, catalog.UnknownFamilyError) as error:
        first = str(error.__cause__ or error).split(". ")[0]  # others speak of Python
        raise UserError(f"{option} {location!r} cannot be loaded: {first}") from error
    except Exception as error:  # whose message may be a name alone
        raise UserError(f"{option} {location!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _load_controlnet(model: Model, dtype) -> dict[str, Any]:
    from diffusers import AutoModel

    if model.controlnet is None:
        return {}
    with _named("--controlnet", model.controlnet):
        return {"controlnet": AutoModel.from_pretrained(find_controlnet(model.controlnet), torch_dtype=dtype)}


def _load_image_encoder(model: Model, dtype) -> dict[str, Any]:
    """The image encoder of an IP-Adapter, and the feature extractor for pictures of its size."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    if model.ip_adapter is None:
        return {}
    weights = find_ip_adapter(model.ip_adapter)
    with _named("--ip-adapter", model.ip_adapter):
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            weights.source, subfolder=image_encoder_folder(weights), torch_dtype=dtype
        )
    size = encoder.config.image_size
    return {"image_encoder": encoder, "feature_extractor": CLIPImageProcessor(size=size, crop_size=size)}


def _load_adapters(pipe, model: Model) -> None:
    """Puts an IP-Adapter and a LoRA into a pipeline's models."""
    if model.ip_adapter is not None:
        source, subfolder, name = find_ip_adapter(model.ip_adapter)
        with _named("--ip-adapter", model.ip_adapter):
            pipe.load_ip_adapter(source, subfolder=subfolder, weight_name=name)
        pipe.set_ip_adapter_scale(model.ip_adapter_scale)
    if model.lora is not None:
        source, subfolder, name = find_lora(model.lora)
        with _named("--lora", model.lora):
            pipe.load_lora_weights(source, subfolder=subfolder or None, weight_name=name)
            if not any(pipe.get_list_adapters().values()):
                raise UserError(f"--lora {model.lora!r} has no weights for this model.")
        _fit_scheduler(pipe, few_steps.of_lora(model.lora))


def _fit_scheduler(pipe, recipe: few_steps.Recipe | None) -> None:
    """Gives a pipeline the scheduler that its LoRA was distilled for."""
    import diffusers

    if recipe is not None and recipe.scheduler is not None:
        kind = getattr(diffusers, recipe.scheduler)
        pipe.update_components(scheduler=kind.from_config(pipe.scheduler.config, **recipe.config))
