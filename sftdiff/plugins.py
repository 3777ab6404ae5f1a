"""Plug points: functions that a config names by `_target_`. Only marked ones are accepted: configs may be somebody else's."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from sftdiff.errors import SftdiffError

Function = TypeVar("Function", bound=Callable[..., Any])
ATTRIBUTE = "sftdiff_plugin"


def mark(decorator: str, version: int) -> Callable[[Function], Function]:
    """Return a decorator that marks a function for the plug point of this decorator's name, with its version."""

    def marked(function: Function) -> Function:
        setattr(function, ATTRIBUTE, (decorator, version))
        return function

    return marked


def load(target: str, decorator: str, key: str) -> tuple[Any, int]:
    """Return the function that `target` names, and its version; `key` is the setting that an error names."""
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        found, version = getattr(function, ATTRIBUTE)
    except (ImportError, AttributeError, ValueError, TypeError):  # TypeError: a relative module name
        found, version = "", 0
    if found != decorator:
        raise SftdiffError(f"{key} {target} is not a function marked with @{decorator}")
    return function, version
