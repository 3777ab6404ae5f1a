"""Expand overrides into cells: each distinct choice of groups is composed once, value axes are set on the composed tree.

Hydra composes at tens of milliseconds a cell; most cells of a sweep differ in values only (seed, share, threshold). A property test
compares the result with full composition.
"""

import itertools
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


@dataclass(frozen=True)
class Axis:
    """One override that takes several values: `key=value` strings as Hydra would get them one at a time."""

    key: str
    choices: tuple[str, ...]
    is_value: bool  # set on the composed tree; else composed


def split_axes(arguments: Sequence[str], loader: ConfigLoader) -> tuple[list[str], list[Axis]]:
    """Return the fixed overrides and the axes of a command line. A later override of a key replaces an earlier one."""
    parser = OverridesParser.create(config_loader=loader)
    fixed: dict[str, str] = {}
    axes: dict[str, Axis] = {}
    for override in parser.parse_overrides(list(arguments)):
        key = override.get_key_element()
        fixed.pop(key, None)
        axes.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = override.input_line or f"{key}={override.get_value_element_as_str()}"
            continue
        if not override.is_discrete_sweep():
            raise SftdiffError(f"{override.input_line}: only lists, choice(), range() and glob() can be swept")
        choices = tuple(f"{key}={value}" for value in override.sweep_string_iterator())
        if not choices:
            raise SftdiffError(f"{override.input_line}: this sweep has no values")
        axes[key] = Axis(key, choices, _is_plain_value(override, loader))
    return list(fixed.values()), list(axes.values())


def _is_plain_value(override: Override, loader: ConfigLoader) -> bool:
    is_group = override.package is not None or loader.get_group_options(override.key_or_group) != []
    return not (is_group or override.is_add() or override.is_force_add() or override.is_delete())


def expand(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield (axes, resolved config without the hydra node) for each cell, in the order of the stock sweeper."""
    fixed, axes = split_axes(arguments, loader)
    group_axes = [a for a in axes if not a.is_value]
    value_axes = [a for a in axes if a.is_value]
    parser = OverridesParser.create(config_loader=loader)
    parsed = {c: parser.parse_override(c).value() for a in value_axes for c in a.choices}
    trees: dict[tuple[str, ...], Tree] = {}
    for combination in itertools.product(*(a.choices for a in axes)):
        chosen = dict(zip((a.key for a in axes), combination, strict=True))
        groups = tuple(chosen[a.key] for a in group_axes)
        if groups not in trees:
            trees[groups] = Tree(_compose(loader, master, fixed, groups, value_axes))
        values = {a.key: parsed[chosen[a.key]] for a in value_axes}
        names = {key: text.partition("=")[2] for key, text in chosen.items()}
        yield names, trees[groups].with_values(values)


def _compose(
    loader: ConfigLoader, master: DictConfig, fixed: Sequence[str], groups: Sequence[str], value_axes: Sequence[Axis]
) -> DictConfig:
    # The first value of each value axis is composed too, so that a wrong key or type fails as Hydra words it.
    first = [a.choices[0] for a in value_axes]
    return loader.load_sweep_config(master, [*fixed, *groups, *first])


class Tree:
    """A composed config, kept both as OmegaConf tree and as plain data, of which value axes change only what they touch."""

    def __init__(self, config: DictConfig) -> None:
        with open_dict(config):
            config.pop("hydra", None)
        OmegaConf.set_readonly(config, False)
        self.config = config
        self.interpolations = list(_interpolations(config, ""))
        _require_values(config)
        self.plain: dict[str, Any] = _resolved(config)

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the resolved config with some values set; shares all untouched parts with other results: read only."""
        if not values:
            return self.plain
        interpolations = set(self.interpolations)
        for key, value in values.items():
            try:
                OmegaConf.update(self.config, key, value, merge=True)
            except OmegaConfBaseException as error:
                raise CompactHydraException(f"Error merging override {key}={value}: {error}") from error
            if isinstance(value, str) and "${" in value:
                interpolations.add(key)
        result = self.plain
        for key in [*values, *interpolations]:
            selected = OmegaConf.select(self.config, key, throw_on_missing=True)
            result = _set(result, key.split("."), _plain(selected))
        return result


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _resolved(config: DictConfig) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return plain


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
