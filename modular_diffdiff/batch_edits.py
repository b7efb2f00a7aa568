"""The editor of real batches: rows to pictures, by what `modular-diffdiff edit` does.

Heavy libraries are imported where they are used: in the workers, not in the command that watches them.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import os
import traceback
from collections.abc import Hashable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from . import asking, editing, loading, maps
from .batch_work import Editor, Made
from .blocks import diffdiff_files
from .ledger import IMAGES, MAPS, SUFFIXES, VIDEOS
from .manifest import TITLES, Embedded, Row


# Of the pipeline's inputs, those that a call takes for each row.
OF_A_ROW = ("prompt", "negative_prompt", "image", "diffdiff_map", "generator")


@dataclass(frozen=True)
class Prepared:
    """A row whose pictures are read and whose map is made."""

    row: Row
    asked: editing.Edit
    pictures: editing.Pictures
    request: maps.Request
    keep: np.ndarray
    regions: list[tuple[str, np.ndarray]]

    @property
    def call(self) -> Hashable:
        """Common to rows that start at the same step: samplers with a history repeat a run only from there."""
        import torch

        from .blocks.diffdiff_map import release_by_step, turn_down

        darkest = turn_down(torch.tensor(self.keep.min()), self.asked.strength)
        return self.pictures.image.pixels.size, release_by_step(darkest, torch.arange(self.asked.steps)).item()


class PictureEditor(Editor):
    """Edits with the model of a job.

    Args:
        device: The job's parameter.
        with_maps: Whether the maps are asked for too.
    """

    def __init__(self, device: str | None = None, with_maps: bool = False):
        self.device, self.with_maps = device, with_maps
        self._pipe, self._model, self._told = None, None, {}
        self._encoding = ExitStack()
        self._map_models: dict[tuple, dict[str, Any]] = {}

    def check(self, row: Row) -> loading.Model:
        asking.check_words(row.prompt, row.params)
        if row.change_map is None and not maps.are_asked(row.params):
            raise loading.UserError("nothing says what may change: it needs a map, text, gradient or the like.")
        asking.check_inverted(row.change_map, row.params)
        _, models = asking.ask_map(row.params)
        for name, location in models.items():
            loading.find_map_model(location, maps.OPTIONS[name])
        if self.with_maps and row.kind is editing.Clip and (models or _is_video(row.change_map)):
            raise loading.UserError("--maps writes one map for a row, and that of this video changes with its frames.")
        model, _ = _settle(row)
        editing.check_kind(model, f"IMAGE {_name(row.params['image'])!r}", row.kind)
        return model

    def places(self) -> list[dict[str, str]]:
        import torch

        if self.device not in (None, "cuda") or torch.cuda.device_count() < 2:
            return [{}]
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
        return [{"CUDA_VISIBLE_DEVICES": number} for number in shown.split(",")]

    def load(self, row: Row) -> None:
        from .encodings import encode_once

        model, _ = _settle(row)
        if model != self._model:
            self._encoding.close()
            self._pipe = self._model = None
            gc.collect()  # the next one may need its memory
            loading.set_threads(model)
            with editing.quiet_libraries():
                self._pipe = loading.load_pipeline(model, None)
            self._encoding.enter_context(encode_once(self._pipe))
            self._model, self._told = model, editing.describe_model(self._pipe, model)
            facts_of.cache_clear()  # a download has a commit

    def facts(self, row: Row) -> dict[str, Any]:
        _, models = asking.ask_map(row.params)
        return facts_of(_settle(row)[0], tuple(models.values()))

    def call_of(self, row: Row) -> Hashable:
        alone = ("crop", "control_image", "ip_adapter_image")  # their boxes and lists are of a whole call
        if any(row.params[name] is not None for name in alone) or row.params["region"] or row.kind is editing.Clip:
            return None
        model, asked = _settle(row)
        shared = replace(asked, prompt="", negative_prompt=asked.negative_prompt and "")
        return model, shared, _shape(row.params["image"])

    def edit(self, rows: list[Row]) -> list[Made]:
        import torch

        try:
            return self._edit(rows)
        except torch.AcceleratorError:  # nothing runs on it in this process any more: another one takes over
            traceback.print_exc()
            os._exit(1)

    def _edit(self, rows: list[Row]) -> list[Made]:
        warnings: list[str] = []
        with editing.quiet_libraries(warnings.append):
            calls: dict[Hashable, list[int]] = {}
            prepared = [self._prepare(row) for row in rows]
            for number, ready in enumerate(prepared):
                calls.setdefault(ready.call, []).append(number)
            results = {}
            for numbers in calls.values():
                results |= dict(zip(numbers, self._call([prepared[number] for number in numbers]), strict=True))
            return [replace(results[number], warnings=tuple(warnings)) for number in range(len(rows))]

    def _prepare(self, row: Row) -> Prepared:
        given = {name: _open(name, picture, row.kind) for name, picture in row.pictures().items()}
        change_map = given.pop("map", None)
        _, asked = _settle(row)
        pictures, request = asking.ask_pictures(change_map, row.params | given)
        suffix = SUFFIXES[_edited(pictures.image)]
        pictures.image.check_output(suffix, f"{pictures.image.title} goes to {suffix}, which")
        editing.check_pictures(pictures, asked)
        maps.check_pictures(request)
        maps.check_regions(request)
        editing.warn_of_long_texts(self._pipe, asked)
        load = self._load_map_model
        made = maps.make_maps(request, load), maps.make_regions(request, load)
        return Prepared(row, asked, pictures, request, *made)

    def _load_map_model(self, *asked: Any) -> dict[str, Any]:
        if asked not in self._map_models:
            self._map_models[asked] = loading.load_map_model(*asked)
        return self._map_models[asked]

    def _call(self, prepared: list[Prepared]) -> list[Made]:
        """One call of the pipeline. A row alone is what `edit` makes, byte for byte."""
        loading.set_guidance(self._pipe, prepared[0].asked.guidance_scale)
        asked = [
            editing.inputs_of(
                self._pipe, ready.asked, ready.pictures, ready.keep, ready.row.params["seed"], ready.regions
            )
            for ready in prepared
        ]
        inputs = asked[0]
        if len(asked) > 1:
            inputs = inputs | {name: [each[name] for each in asked] for name in OF_A_ROW if name in inputs}
        with editing.spoken(prepared[0].pictures.titles() if len(asked) == 1 else {}):
            results = self._pipe(**inputs, output=prepared[0].pictures.image.outputs)
        return [
            Made(self._files(ready, result, place, len(prepared)), len(prepared))
            for place, (ready, result) in enumerate(zip(prepared, results, strict=True))
        ]

    def _files(self, ready: Prepared, result: Any, place: int, batch: int) -> dict[str, bytes]:
        image = ready.pictures.image
        told = maps.describe(ready.request)
        settings = told | editing.describe_edit(ready.asked, ready.pictures) | self._told
        settings |= {"seed": ready.row.params["seed"]} | editing.describe_place(batch, place)
        edited = _edited(image)
        files = {edited: image.encode(result, settings, SUFFIXES[edited])}
        if self.with_maps:
            files[MAPS] = editing.encode_png(maps.as_png(ready.keep), told)
        return files


def _settle(row: Row) -> tuple[loading.Model, editing.Edit]:
    """The model and the edit of a row, with what is left open filled in; what many rows share is looked up once."""
    model, asked = asking.ask_edit(row.prompt, row.params)
    own = {"prompt": "", "negative_prompt": asked.negative_prompt and "", "strength": 1.0, "softness": 0.0}
    model, settled = _settle_model(model, replace(asked, **own))
    return model, replace(asked, steps=settled.steps, guidance_scale=settled.guidance_scale)


_settle_model = functools.lru_cache(maxsize=1024)(asking.settle_model)


@functools.lru_cache(maxsize=1024)
def facts_of(model: loading.Model, map_models: tuple[str, ...]) -> dict[str, Any]:
    """What decides pixels beside a row: the models, their commits or files, and versions."""
    named = loading.sources_of(model) | set(map_models)
    return {
        "model": asdict(model),
        "map_models": map_models,
        "commits": loading.commits_of(named),
        "files": {name: _stamp(Path(name)) for name in sorted(named) if Path(name).exists()},
        "versions": {name: editing.find_version(name) for name in editing.VERSIONS},
    }


def _stamp(path: Path) -> str:
    """Of a file, or those in a folder: names, sizes, and when they were changed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    seen = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _edited(image: editing.Picture) -> str:
    """Where what is made of it goes."""
    return VIDEOS if isinstance(image, editing.Clip) else IMAGES


def _name(picture: str | Embedded) -> str:
    return picture.name if isinstance(picture, Embedded) else picture


def _is_video(change_map: str | Embedded | None) -> bool:
    return change_map is not None and asking.can_be_video(_name(change_map))


def _open(name: str, picture: str | Embedded, kind: type[editing.Picture]) -> editing.Picture:
    title = TITLES[name]
    is_clip = asking.is_clip(title, _name(picture), kind)
    if isinstance(picture, Embedded):
        return (editing.open_clip if is_clip else editing.open_picture)(picture.data, title, picture.name)
    return (editing.read_clip if is_clip else editing.read_picture)(picture, title)


def _shape(picture: str | Embedded) -> tuple[int, ...] | None:
    """The size that a picture's header says; None where it says none, or lies elsewhere."""
    if isinstance(picture, str) and diffdiff_files.is_url(picture):
        return None
    try:
        with PIL.Image.open(io.BytesIO(picture.data) if isinstance(picture, Embedded) else picture) as image:
            return image.size
    except (OSError, PIL.Image.DecompressionBombError):
        return None
