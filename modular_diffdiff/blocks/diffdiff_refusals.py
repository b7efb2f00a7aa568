"""The one error for what a user can put right."""

from __future__ import annotations

from typing import Any, NoReturn


class BadInputError(ValueError):
    """An input that the pipeline cannot work with; the message names it, what it got and what it takes."""


def refuse(name: str, value: Any, takes: str) -> NoReturn:
    """Raises a BadInputError for the input `name`."""
    raise BadInputError(f"`{name}` is {value!r}; it takes {takes}.")
