"""What diffs, searches and comparisons share: composed arms, sets of rows as files, the folder runs/diffs/NAME/ and its lock."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from launch.arms import arm_overrides, check_command
from launch.plan import Plan, build_plan, report_cell, traits
from launch.sweeper import expand
from sftdiff.errors import SftdiffError
from sftdiff.identity import digest
from sftdiff.rounds import PAIR

NOT_OF_CELLS = ("diff", "original", "alternative")
Execute = Callable[[Plan], None]
Configs = dict[str, list[dict[str, Any]]]  # arm -> its config by training seed


class Command:
    """The command line of a diff or a search, composed."""

    def __init__(self, arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, what: str) -> None:
        """Raises SftdiffError if the arguments set what arms set, or have several values; `what` names the command in words."""
        check_command(arguments)
        self.arguments, self.master, self.loader = arguments, master, loader
        composed = [config for _, config in expand(arguments, master, loader)]
        if len(composed) != 1:
            raise SftdiffError(f"a {what} plans its own sweep, and its training seeds: give each setting one value")
        self.config = composed[0]

    def arm(self, name: str, *more: str) -> list[dict[str, Any]] | None:
        """Return the configs of an arm with further overrides (a seed axis), or None if what it needs is not given."""
        overrides = arm_overrides(name, self.config)
        if overrides is None:
            return None
        plain = [argument for argument in self.arguments if not argument.startswith("seed=")]
        return [config for _, config in expand([*plain, *overrides, *more], self.master, self.loader)]

    def seeded(self, name: str, count: int, *more: str) -> list[dict[str, Any]] | None:
        """Return the configs of an arm for the first `count` training seeds, with further overrides, as a folder keeps them."""
        first = self.config["seed"]
        made = self.arm(name, f"seed={','.join(map(str, range(first, first + count)))}", *more)
        return None if made is None else [_of_cell(config) for config in made]

    def pair(self, count: int) -> Configs:
        """Return the configs of original and alternative for the first `count` training seeds. Raises SftdiffError."""
        pair = Configs()
        for name in PAIR:
            made = self.seeded(name, count)
            if made is None:
                raise SftdiffError(f"diff.arms.{name} needs a diff.given that is not given, and every transfer rests on it")
            pair[name] = made
        return pair

    def own_traits(self) -> dict[str, dict[str, Any]]:
        """Return the traits that are diffed: those that are no guard."""
        return {name: trait for name, trait in traits(self.config).items() if not trait["guard"]}

    def only_trait(self, what: str) -> tuple[str, dict[str, Any]]:
        """Return the name and the settings of the one trait that is no guard; raises SftdiffError, beginning with `what`."""
        known = self.own_traits()
        if len(known) != 1:
            raise SftdiffError(f"{what} for one trait; here are {', '.join(known) or 'none'}: choose trait_eval=NAME")
        [(name, settings)] = known.items()
        return name, settings


def _of_cell(config: Mapping[str, Any]) -> dict[str, Any]:
    cell = {key: value for key, value in config.items() if key not in NOT_OF_CELLS}
    if cell["report"]["baseline"] == "untrained":
        cell["report"] = {**cell["report"], "baseline": "arm=alternative"}
    return cell


def known_cells(plan: Plan) -> list[dict[str, Any]]:
    """Return what a diff needs to know of its trained cells to find their verdicts and what they cost."""
    cells = [report_cell(cell) for cell in plan.cells if cell.trained]
    return [{key: cell[key] for key in ("seed", "steps", "judges")} | {"arm": cell["axes"]["arm"]} for cell in cells]


def results_of(configs: Configs) -> dict[str, list[str]]:
    """Return arm -> the steps of its first seed that make its verdicts: what its results are, before they are there."""
    plan = build_plan([({"arm": arm}, own[0]) for arm, own in configs.items()], "")
    return {cell.axes["arm"]: [cell.steps["model"], *cell.judges.values()] for cell in plan.cells if cell.trained}


def ids_file(runs: Path, ids: Iterable[str]) -> str:
    """Write prompt_ids, once, and return the file: named by what it holds, so that no search or comparison trains a set again."""
    text = "".join(f"{prompt_id}\n" for prompt_id in ids)
    path = runs / "sets" / f"{digest(text, 12)}.txt"
    path.parent.mkdir(exist_ok=True)
    if not path.is_file():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        os.replace(temporary, path)
    return str(path)


def folder_of(runs: Path, name: str) -> Path:
    return runs / "diffs" / name


@dataclass
class OnDisk:
    """What a diff, a search and a comparison of rankings have in common: where they lie, and their plan."""

    runs: Path
    name: str
    plan: dict[str, Any]

    @property
    def folder(self) -> Path:
        return folder_of(self.runs, self.name)


def write_configs(folder: Path, name: str, configs: Configs) -> None:
    """Write cells.jsonl, with which a round can be planned where there is no Hydra. All cells get the name of the sweep."""
    for own in configs.values():
        for config in own:
            config["sweep"] = name
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"arm": arm, "config": config}) + "\n" for arm, own in configs.items() for config in own)
    (folder / "cells.jsonl").write_text("".join(lines))


def read_configs(folder: Path) -> Configs:
    """Read cells.jsonl."""
    configs: Configs = {}
    for line in (folder / "cells.jsonl").read_text().splitlines():
        row = json.loads(line)
        configs.setdefault(row["arm"], []).append(row["config"])
    return configs


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a diff or search; raises SftdiffError if another process works on it."""
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SftdiffError(f"another process works on this diff ({folder}): let it end, or stop it first") from None
        yield
