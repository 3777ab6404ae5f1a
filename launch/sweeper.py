"""Expand overrides into cells: each distinct choice of groups is composed once, value axes are set on the composed tree.

Hydra composes at tens of milliseconds a cell; most cells of a sweep differ in values only (seed, share, threshold). A property
test compares the result with full composition.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sftdiff.errors import SftdiffError

# prompt_subset@prompt_subset.of=..., filter@filter.chain.first=...; `locator` and `match` have a choice in the files already.
PUT_INSIDE = re.compile(r"(filter|prompt_subset)@\1(\.\w+)*\.(of|sets\.\w+|chain\.\w+)")
INSIDE = re.compile(r"(filter|prompt_subset)\.(of|sets|chain|locator|match)\.")


@dataclass(frozen=True)
class Axis:
    """One override: the `key=value` strings that it stands for, as Hydra would get them one at a time."""

    key: str
    choices: tuple[str, ...]
    swept: bool


def split_axes(arguments: Sequence[str], loader: ConfigLoader) -> list[Axis]:
    """Return the overrides of a command line in its order. A later override of a key replaces an earlier one."""
    parser = OverridesParser.create(config_loader=loader)
    axes: dict[str, Axis] = {}
    for override in parser.parse_overrides(list(arguments)):
        key = override.get_key_element()
        axes.pop(key, None)
        axes[key] = Axis(key, _choices(override, key), override.is_sweep_override())
    return list(axes.values())


def _choices(override: Override, key: str) -> tuple[str, ...]:
    if not override.is_sweep_override():
        return (override.input_line or f"{key}={override.get_value_element_as_str()}",)
    if not override.is_discrete_sweep():
        raise SftdiffError(f"{override.input_line}: only lists, choice(), range() and glob() can be swept")
    choices = tuple(f"{key}={value}" for value in override.sweep_string_iterator())
    if not choices:
        raise SftdiffError(f"{override.input_line}: this sweep has no values")
    return choices


def expand(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield (axes, resolved config without the hydra node) for each cell, in the order of the stock sweeper."""
    axes = split_axes(arguments, loader)
    values = _value_axes(axes, loader)
    trees: dict[tuple[str, ...], Tree] = {}
    for choice in itertools.product(*(axis.choices for axis in axes)):
        chosen = list(zip(axes, choice, strict=True))
        composed = tuple(text for axis, text in chosen if axis.key not in values)
        if composed not in trees:
            # This cell's values are composed too, so that a wrong key or type fails as Hydra words it.
            trees[composed] = Tree(_compose(loader, master, choice))
        names = {axis.key.lstrip("+"): text.partition("=")[2] for axis, text in chosen if axis.swept}
        yield names, trees[composed].with_values({a.key: values[a.key][text] for a, text in chosen if a.key in values})


def as_hydra_wants(override: str) -> str:
    """Return an override with the sign that Hydra asks for where a filter or subset is put inside of another one.

    No file lists what may be inside, and the schema there is a plain dict: check_cell tells which keys there are.
    """
    key = override.partition("=")[0]
    if "@" in key:
        return f"+{override}" if PUT_INSIDE.fullmatch(key) else override
    return f"++{override}" if INSIDE.match(key) else override


def _compose(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
    try:
        return loader.load_sweep_config(master, [as_hydra_wants(override) for override in overrides])
    except ValueError as error:  # of group=null
        raise SftdiffError(f"{' '.join(overrides)}: {error}; ~GROUP leaves a group out") from error


def _value_axes(axes: Sequence[Axis], loader: ConfigLoader) -> dict[str, dict[str, Any]]:
    """Return {key: {choice: parsed value}} of the axes that can be set on a composed tree; all others are composed.

    Left to composition: groups, appended and deleted keys, list elements, dicts (they are merged, not set), and keys that lie
    inside the key of another value or around it.
    """
    parser, found = OverridesParser.create(config_loader=loader), dict[str, dict[str, Any]]()
    written = [axis for axis in axes if not _is_group(axis, loader)]
    for axis in (axis for axis in written if axis.swept and axis.key[0] not in "+~"):
        parts = axis.key.split(".")
        if any(part.isdigit() for part in parts) or any(_overlap(parts, other) for other in written if other is not axis):
            continue
        parsed = {text: parser.parse_override(text).value() for text in axis.choices}
        if not any(isinstance(value, dict) for value in parsed.values()):
            found[axis.key] = parsed
    return found


def _is_group(axis: Axis, loader: ConfigLoader) -> bool:
    """Tell whether an override chooses a group's option; group={...} writes values."""
    chooses = not any(text.partition("=")[2].startswith("{") for text in axis.choices)
    return "@" in axis.key or (chooses and loader.get_group_options(axis.key.lstrip("+~")) != [])


def _overlap(parts: Sequence[str], other: Axis) -> bool:
    path = other.key.lstrip("+~").split(".")
    return all(a == b for a, b in zip(parts, path, strict=False))


WORD = re.compile(r"[^\W.]+(?:-\w+)*")
COMPUTED = re.compile(r"\$\{[.\s]*\$\{")  # an interpolation that says what it reads by another one


class Tree:
    """A composed config, kept both as OmegaConf tree and as plain data, of which value axes change only what they touch."""

    def __init__(self, config: DictConfig) -> None:
        with open_dict(config):
            config.pop("hydra", None)
        OmegaConf.set_readonly(config, False)
        self.config = config
        try:
            raw: Any = OmegaConf.to_container(config, resolve=False)
            self.interpolations = {key: _value(raw, key) for key in _interpolations(config, "")}
            self._read: dict[tuple[str, ...], list[str]] = {}
            _require_values(config)
            self.plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise _readable(error) from error

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the resolved config with some values set; shares all untouched parts with other results: read only."""
        result = self.plain
        for key, value in values.items():
            try:
                OmegaConf.update(self.config, key, value, merge=True)
            except OmegaConfBaseException as error:
                raise CompactHydraException(f"Error merging override {key}={value}") from error
        for key in [*values, *self._reading(tuple(values))]:
            result = _set(result, key.split("."), _plain(self.config, key))
        return result

    def _reading(self, keys: tuple[str, ...]) -> list[str]:
        """Return the interpolations that may read one of the keys: those that name a part of it, or of one that does so."""
        if keys not in self._read:
            names, found = {part for key in keys for part in key.split(".")}, list[str]()
            left = {key: text for key, text in self.interpolations.items() if key not in keys}
            while reading := [k for k, text in left.items() if COMPUTED.search(text) or names & set(WORD.findall(text))]:
                found += reading
                names.update(part for key in reading for part in key.split("."))
                for key in reading:
                    del left[key]
            self._read[keys] = found
        return self._read[keys]


def _value(tree: Any, key: str) -> str:
    for part in key.split("."):
        tree = tree[part]
    return str(tree)


def _plain(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise _readable(error) from error


def _readable(error: OmegaConfBaseException) -> SftdiffError:
    if no_suite := re.search(r"'suites\.([^.']*)\.", str(error)):
        trait = str(error.full_key).rpartition(".")[0]
        return SftdiffError(f"{trait}.suite: there is no suite {no_suite[1]!r} (suite=dev|quick|full)")
    return SftdiffError(f"{error.full_key}: {str(error).partition(chr(10))[0]}")


def _require_values(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SftdiffError(f"missing: {', '.join(missing)}; give a value, e.g. {missing[0]}=...")


def _interpolations(node: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of all values that refer to other values; lists that hold one count as a whole."""
    for key in node:
        path = f"{prefix}{key}"
        if OmegaConf.is_interpolation(node, key):
            yield path
        elif OmegaConf.is_missing(node, key):
            continue
        elif OmegaConf.is_dict(node[key]):
            yield from _interpolations(node[key], f"{path}.")
        elif OmegaConf.is_list(node[key]) and "${" in str(OmegaConf.to_container(node[key], resolve=False)):
            yield path


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of nested dicts with one value set; only the dicts along the path are copied."""
    head, *rest = path
    return {**tree, head: _set(tree[head], rest, value) if rest else value}
