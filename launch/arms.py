"""From the arms of a diff to the overrides that make their cells. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from sftdiff.errors import SftdiffError
from sftdiff.rounds import PAIR

PARTS = ("model", "prompts", "teacher")  # of a pipeline; each is a config group
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)\Z)[a-z_][\w./-]*", re.IGNORECASE)  # a word that Hydra reads as a text
OF_ARMS = (*PARTS, "teacher@other_teacher", "prompt_subset", "other_teacher")  # what arms set, and a command cannot


def check_command(arguments: Sequence[str]) -> None:
    """Raise SftdiffError if a command line sets what the arms of a diff set."""
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] in OF_ARMS or key.partition("@")[0] in PARTS:
            part = "teacher" if "teacher" in key else key.partition(".")[0].partition("@")[0]
            form = f"original.{part}=... and alternative.{part}=..." if part in PARTS else "'diff.given.subset={...}'"
            raise SftdiffError(f"{argument}: the arms of a diff set this; write {form}")


def arm_overrides(name: str, config: Mapping[str, Any]) -> list[str] | None:
    """Return the overrides of an arm, in the order in which they win, or None if what it needs is not given.

    `config` is the composed config of the command: its `original`, `alternative` and `diff`.

    Raises:
        SftdiffError: the arm names a pipeline or a setting that there is not.
    """
    arm, where = config["diff"]["arms"][name], f"diff.arms.{name}"
    layers = [_part(config, arm[part], part, f"{where}.{part}") for part in PARTS]
    other = _part(config, arm["other_teacher"], "teacher", f"{where}.other_teacher")
    layers.append(_moved(other, "teacher", "teacher@other_teacher", "other_teacher"))
    given = dict[str, Any]()
    if arm["given"] is not None:
        known = config["diff"]["given"]
        if arm["given"] not in known:
            raise SftdiffError(f"{where}.given: there is no diff.given.{arm['given']}; there are: {', '.join(known) or 'none'}")
        if not known[arm["given"]]:
            return None
        given = _overrides(known[arm["given"]], f"diff.given.{arm['given']}")
    if arm["inside"]:
        given = _moved(given, "prompt_subset", "prompt_subset@prompt_subset.of", "prompt_subset.of")
    chosen = dict[str, Any]()
    for layer in (*layers, arm["set"] | given):
        groups = tuple(f"{key}." for key in layer if "." not in key and "@" not in key)
        chosen = {key: value for key, value in chosen.items() if not key.startswith(groups)} | layer
    groups_first = sorted(chosen.items(), key=lambda item: "." in item[0].partition("@")[0])
    return [f"{key}={hydra_text(value)}" for key, value in groups_first]


def _part(config: Mapping[str, Any], pipeline: str, part: str, where: str) -> dict[str, Any]:
    if pipeline not in PAIR:
        raise SftdiffError(f"{where}: {pipeline!r} is no pipeline; write original or alternative")
    value = config[pipeline][part]
    return {part: value} if isinstance(value, str) else _overrides(value, f"{pipeline}.{part}")


def _overrides(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return dict(value)
    raise SftdiffError(f"{where}: {value!r} are no overrides; write '{where}={{KEY:VALUE,KEY.OF.IT:VALUE}}'")


def _moved(overrides: Mapping[str, Any], group: str, new_group: str, new_key: str) -> dict[str, Any]:
    """Write the overrides of one group for another place of the config."""
    moved = {}
    for key, value in overrides.items():
        inside = key.startswith(f"{group}.")
        moved[new_group if key == group else f"{new_key}{key.removeprefix(group)}" if inside else key] = value
    return moved


def hydra_text(value: Any) -> str:
    """Write a value as Hydra reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    return "[" + ",".join(map(hydra_text, value)) + "]" if isinstance(value, Sequence) else str(value)
