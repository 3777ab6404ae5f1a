"""Faults of what Hydra composes, a user's YAML files and the keys of the command line, as one message with the way on."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

COMPOSED = re.compile(r"In '([^']+)': (.*)")  # how Hydra begins what it says of a file
WITHOUT_A_NAME = (UnicodeDecodeError, GrammarParseError, YAMLError)
Report = Callable[[Callable[[], Any]], Any]


def with_faults(run_and_report: Report) -> Report:
    """Return Hydra's run_and_report, which prints errors at length, so that these faults end the process with one message."""

    def run(task: Callable[[], Any]) -> Any:
        def told() -> Any:
            try:
                return task()
            except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
                if unknown := unknown_key(error):
                    raise SystemExit(unknown) from error
                if (fault := fault_of_file(error, config_folders(sys.argv[1:]))) is None:
                    raise
                raise SystemExit(f"{fault}. Mend the file and run the same command again") from error

        return run_and_report(told)

    return run


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders whose files are composed: the user's, and sftdiff's own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    given = parser.parse_known_args(list(arguments))[0].config_dir
    return [*([given] if given else []), *map(Path, import_module("sftdiff.conf").__path__)]


def unknown_key(error: Exception) -> str | None:
    """Return which key of the command line there is none of, with the known ones beside it; None for another error."""
    cause = error.__cause__ or error.__context__
    if not str(error).startswith("Could not override '") or not isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return None
    key = str(cause.full_key)
    known = sorted(name for name in map(str, cause.parent_node or ()) if name != "_target_")
    like = difflib.get_close_matches(str(cause.key), known, n=1)
    meant = f"; did you mean {like[0]}?" if like else "."
    where = f" in {folder}" if (folder := key.rpartition(".")[0]) else ""
    new = f". A new one is added with +{key}=..." if _takes_new(cause.parent_node) else ""
    return f"{key}: there is no such setting{meant} Known{where}: {', '.join(known) or 'none'}{new}"


def _takes_new(node: Any) -> bool:
    """Tell whether a user names the keys of a node: where it is a dictionary, not one of the schema's classes."""
    return isinstance(node, DictConfig) and not dataclasses.is_dataclass(OmegaConf.get_type(node))


def fault_of_file(error: Exception, folders: Sequence[Path]) -> str | None:
    """Return what is wrong with which file; None for an error that is no fault of a file."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, HydraException) and not str(error) and isinstance(cause, Exception):
        return fault_of_file(cause, folders)
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem or error.context})"
    if isinstance(error, WITHOUT_A_NAME):
        path = next((p for folder in folders for p in sorted(folder.rglob("*.yaml")) if _raises(type(error), p)), None)
        return f"{path}: cannot be read ({_first_line(error)})" if path else None
    option, said = composed.groups() if (composed := COMPOSED.match(str(error))) else ("", "")
    place = next((p for folder in folders if (p := folder / f"{option}.yaml").is_file()), None)
    if place is None or option == "config":  # what that one is told is what the command line says
        return None
    if isinstance(cause, ConfigKeyError) and dataclasses.is_dataclass(cause.object_type):
        known = ", ".join(field.name for field in dataclasses.fields(cause.object_type))
        return f"{place}: there is no setting {cause.full_key}; known there: {known}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{place}: {cause.full_key or 'the whole'}: {_first_line(cause)}"
    return f"{place}: {said.rstrip('.')}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _raises(kind: type[Exception], path: Path) -> bool:
    try:
        OmegaConf.load(path)
    except kind:
        return True
    except Exception:  # another fault of another file, which was not asked for
        return False
    return False
