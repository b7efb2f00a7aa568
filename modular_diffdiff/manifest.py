"""Manifests: the edits of a batch, a row each, from JSONL, CSV or Parquet.

The columns are the parameters of `modular-diffdiff edit` that are about one picture; whatever is a new option there is
a new column here. No heavy import: mistakes are answered before torch is loaded.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from . import asking, cli, editing, ledger, loading, maps
from .blocks import diffdiff_files


EDIT = typer.main.get_command(cli.app).commands["edit"]
OPTIONS = {option.name: option for option in EDIT.params}
# What a job has once: its models, and how they run.
OF_THE_JOB = (
    *(field.name for field in fields(loading.Model) if field.name in OPTIONS),
    *(name for name, option in OPTIONS.items() if set(option.opts) & set(maps.OPTIONS.values())),
)
# Of one command line: its files, and MAP and PROMPT, which are one parameter of it and two columns.
OF_A_COMMAND = ("count", "batch_size", "out", "overwrite", "map_and_prompt")
# What a row has, by column.
COLUMNS = {name: option for name, option in OPTIONS.items() if name not in (*OF_THE_JOB, *OF_A_COMMAND)}
TITLES = {"map": "MAP", **asking.PICTURES}
NAMES = ("id", "prompt", "map", *COLUMNS)
MOST_PROBLEMS = 20  # that are said
LONGEST = 200  # bytes of a part of an id, which becomes a file's name
AT_ONCE = 16  # rows of a Parquet file in memory


class ManifestError(loading.UserError):
    """What is wrong with a manifest, a line for each mistake."""


@dataclass(frozen=True)
class Embedded:
    """A picture whose file is in the manifest."""

    data: bytes
    name: str


@dataclass(frozen=True)
class Row:
    """One edit.

    Attributes:
        number: Its place in the manifest, from 1.
        id: The name of its files, without an ending; "/" makes folders.
        prompt: What the changed regions show.
        change_map: A path, a URL or an embedded picture; None where the parameters say what changes.
        params: All parameters of `edit`, by name; pictures are as `change_map`.
    """

    number: int
    id: str
    prompt: str
    change_map: str | Embedded | None
    params: dict[str, Any]

    @property
    def title(self) -> str:
        return f"row {self.number} ({self.id!r})"

    @property
    def kind(self) -> type[editing.Picture]:
        """What `image` is, as `asking.kind_of` sees it."""
        image = self.params["image"]
        return asking.kind_of(image.name if isinstance(image, Embedded) else editing.file_name(image), self.params)

    def pictures(self) -> dict[str, str | Embedded]:
        """Those that are given, by column."""
        given = {"map": self.change_map, **{name: self.params[name] for name in asking.PICTURES}}
        return {name: picture for name, picture in given.items() if picture is not None}

    def regions(self) -> list[str]:
        """Paths and URLs of regions, those in words left out."""
        return [where for where, _ in asking.split_regions(self.params) if asking.is_picture(where)]


@dataclass(frozen=True)
class Manifest:
    """A file of rows.

    Attributes:
        path: It ends in .jsonl, .ndjson, .csv or .parquet. Paths in it are relative to its folder.
        defaults: The parameters of `edit` where a row says nothing.
    """

    path: Path
    defaults: dict[str, Any]

    @cached_property
    def folder(self) -> str:
        return os.path.abspath(self.path.parent)

    def rows(self, start: int = 0, number: int = 1) -> Iterator[tuple[int, Row]]:
        """The rows from a place on, and the place of each.

        Args:
            start: A place that this function has given, 0 for the first row.
            number: Of the row there.

        Raises:
            UserError: If a row cannot be used.
        """
        for number, (place, given) in enumerate(self._read(start), number):  # noqa: B020 - goes on counting
            yield place, self._row(number, given)

    def ids(self) -> Iterator[str]:
        """The id of each row, of a manifest that has been checked."""
        columns = ["id"] if self.path.suffix.lower() == ".parquet" else None
        for _, given in self._read(0, columns):
            yield _text("id", given["id"])

    def check(self, check_row: Callable[[Row], Hashable] = lambda row: None) -> Iterator[tuple[int, Row, Hashable]]:
        """The place of each row, the row, and what `check_row` says of it; mistakes are raised together at the end.

        Raises:
            ManifestError: If a row cannot be used, by itself, beside others, or as `check_row` sees it.
        """
        problems, found, seen, number = [], 0, {}, 0
        for number, (place, given) in enumerate(self._read(0), 1):
            try:
                row = self._row(number, given)
                for name, picture in row.pictures().items():
                    _look_for(TITLES[name], picture)
                for picture in row.regions():
                    _look_for("--region", picture)
                said = check_row(row)
                before = seen.setdefault(_digest(row.id), number)
                if before != number:
                    raise loading.UserError(f"its id is that of row {before}; files would have the same name.")
            except loading.UserError as error:
                found += 1
                if found <= MOST_PROBLEMS:
                    problems.append(f"Row {number}: {' '.join(str(error).split())}")
                continue
            if not found:
                yield place, row, said
        if found > MOST_PROBLEMS:
            problems.append(f"{found - MOST_PROBLEMS:,} other rows cannot be used either.")
        if not number:
            problems.append(f"{str(self.path)!r} has no rows.")
        if problems:
            raise ManifestError("\n".join(problems))

    def _read(self, start: int, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
        """Each row's place, and its values by column; or, of a row that cannot be read, the error."""
        readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
        suffix = self.path.suffix.lower()
        if suffix not in readers:
            raise loading.UserError(f"MANIFEST takes a .jsonl, .csv or .parquet file, not {str(self.path)!r}.")
        try:
            yield from _read_parquet(self.path, start, columns) if columns else readers[suffix](self.path, start)
        except OSError as error:
            why = error.strerror or error
            raise loading.UserError(f"MANIFEST {str(self.path)!r} cannot be read: {why}.") from error

    def _row(self, number: int, given: Any) -> Row:
        if isinstance(given, Exception):
            raise given
        if not isinstance(given, dict):
            raise loading.UserError("it is not an object with a value for each column.")
        given = {name: value for name, value in given.items() if not _is_missing(value)}
        for name in given:
            if name not in NAMES:
                whose = "is set for the whole job, by its option" if name in OF_THE_JOB else "is not known"
                raise loading.UserError(f"the column {name!r} {whose}; columns are {', '.join(NAMES)}.")
        for name in ("id", "image", "prompt"):
            if name not in given:
                raise loading.UserError(f"it has no {name}.")
        row_id = _check_id(_text("id", given["id"]))
        params = self.defaults | {name: self._value(name, given[name]) for name in COLUMNS if name in given}
        if params["seed"] is None:
            params["seed"] = draw_seed(row_id)
        change_map = self._picture("map", given["map"]) if "map" in given else None
        return Row(number, row_id, _text("prompt", given["prompt"]), change_map, params)

    def _value(self, name: str, value: Any) -> Any:
        """What a column's value means, as the command line would take it."""
        if name in TITLES:
            return self._picture(name, value)
        option = COLUMNS[name]
        if name == "region":
            return [self._region(given) for given in (value if isinstance(value, list) else [value])]
        several = option.nargs != 1 or getattr(option, "multiple", False)
        if several and isinstance(value, str):
            value = value.split()
        if getattr(option, "multiple", False) and isinstance(value, list):
            value = [",".join(map(str, part)) if isinstance(part, list) else str(part) for part in value]
        try:
            return option.process_value(typer.Context(EDIT), value)
        except cli.UsageError as error:
            raise loading.UserError(f"{error.format_message().removesuffix('.')}; it is {value!r}.") from error

    def _region(self, value: Any) -> str:
        """A region, whose picture lies where the manifest does."""
        where, sign, prompt = _text("--region", value).rpartition("=")
        beside = os.path.join(self.folder, where)
        is_path = asking.is_picture(beside) and not diffdiff_files.is_url(where)
        return f"{beside if is_path else where}{sign}{prompt}"

    def _picture(self, name: str, value: Any) -> str | Embedded:
        title, value = TITLES[name], {"bytes": value} if isinstance(value, bytes) else value
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            return Embedded(value["bytes"], Path(value.get("path") or name).name)
        location = value.get("path") if isinstance(value, dict) else value
        if not isinstance(location, str) or location in ("", editing.STDIN):
            raise loading.UserError(f"{title} takes a path, a URL or a picture's bytes, not {value!r}.")
        if diffdiff_files.is_url(location):
            return location
        return os.path.join(self.folder, location)


def draw_seed(row_id: str) -> int:
    """The seed of a row that has none: another for each id, and always the same."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:4], "big")


def _look_for(title: str, picture: str | Embedded) -> None:
    """Refuses paths that lead to no file, which is not read yet."""
    if isinstance(picture, str) and not diffdiff_files.is_url(picture):
        try:
            readable = os.path.isfile(picture) and os.access(picture, os.R_OK)
        except ValueError:  # a NUL in it
            readable = False
        if not readable:
            raise loading.UserError(f"{title} {picture!r} is not a file that can be read.")


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise loading.UserError(f"{name} takes a text, not {value!r}.")
    asking.check_texts({name: str(value)})
    return str(value)


def _check_id(row_id: str) -> str:
    """Refuses ids that are no names of files below a folder, whatever the file system."""
    for part in row_id.split("/"):
        if not part or part.startswith(".") or len(part.encode()) > LONGEST or not part.isprintable() or "\\" in part:
            raise loading.UserError(
                f"its id is {row_id!r}; it takes the name of a file, also in folders (a/b), without a dot in front and "
                f"of at most {LONGEST} bytes."
            )
    for suffix in ledger.SUFFIXES.values():
        if f"{suffix}/" in row_id.lower():
            raise loading.UserError(f"its id is {row_id!r}; a folder in it cannot end in {suffix}.")
    return row_id


def _digest(row_id: str) -> bytes:
    """Equal for ids whose files are one where a file system does not tell capitals apart."""
    return hashlib.sha256(row_id.casefold().encode()).digest()[:10]


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _read_jsonl(path: Path, start: int) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        file.seek(start)
        place = start
        for line in file:
            if line.strip():
                try:
                    yield place, json.loads(line)
                except ValueError as error:
                    yield place, loading.UserError(f"it is not JSON: {error}.")
            place += len(line)


def _read_csv(path: Path, start: int) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        ends = [0]

        def lines() -> Iterator[str]:
            for line in file:
                ends[0] += len(line)
                yield line.decode("utf-8-sig" if ends[0] == len(line) else "utf-8")

        try:
            rows = csv.reader(lines(), strict=True)
            names = next(rows, [])
            if len(set(names)) < len(names):
                raise loading.UserError(f"MANIFEST {str(path)!r} has a column twice: {', '.join(names)}.")
            if start:
                file.seek(start)
                ends[0] = start
            place = ends[0]
            for values in rows:
                if values:
                    wrong = loading.UserError(f"it has {len(values)} values, and there are {len(names)} columns.")
                    yield place, dict(zip(names, values, strict=True)) if len(values) == len(names) else wrong
                place = ends[0]
        except (csv.Error, UnicodeDecodeError) as error:
            raise loading.UserError(f"MANIFEST {str(path)!r} is not CSV in UTF-8: {error}.") from error


def _read_parquet(path: Path, start: int, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        message = "A Parquet manifest needs pyarrow: pip install pyarrow."
        raise loading.UserError(message) from error
    try:
        with parquet.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first + rows > start:
                    place = first
                    for batch in file.iter_batches(AT_ONCE, [group], columns):
                        for row in batch.to_pylist() if place + len(batch) > start else [{}] * len(batch):
                            if place >= start:
                                yield place, row
                            place += 1
                first += rows
    except ArrowException as error:
        raise loading.UserError(f"MANIFEST {str(path)!r} is not a Parquet file: {error}.") from error
