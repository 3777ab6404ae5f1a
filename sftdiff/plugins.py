"""Plug points: functions that a config names by `_target_`. Only marked ones are accepted: configs may be somebody else's."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from sftdiff.errors import SftdiffError, first_line

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
    found = find(target, decorator, key)
    if found is None:
        raise SftdiffError(f"{key} {target} is not a function marked with @{decorator}")
    return found


def find(target: str, decorator: str, key: str) -> tuple[Any, int] | None:
    """Return the function that `target` names, and its version; None if there is none with this mark."""
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        marked, version = getattr(function, ATTRIBUTE)
    except (AttributeError, ValueError, TypeError):  # TypeError: a relative module name
        return None
    except ImportError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # the module is there; what it imports is not
            raise SftdiffError(f"{key} {target}: {module} cannot be imported: {first_line(error)}") from error
        return None
    return (function, version) if marked == decorator else None
