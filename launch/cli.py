"""What all Hydra entry modules share: plugins, schema, subcommands, and errors that a user can read."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import hydra
import hydra._internal.utils as hydra_utils
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from launch.faults import with_faults
from sftdiff.config import Config
from sftdiff.errors import SftdiffError
from sftdiff.packages import prefer_beside

# Groups whose options are names; where a file or an id belongs instead.
FORMS = {
    "model": "model=path model.path={0}, model=hub model.id={0}, or (to evaluate it) model=api model.id={0}",
    "prompts": "prompts=file prompts.path={0}",
    "teacher": "teacher=stored teacher.name=NAME teacher.path={0}",
    "other_teacher": "teacher@other_teacher=stored other_teacher.name=NAME other_teacher.path={0}",
    "trait_eval": "trait_eval.NAME.scenarios={0}",
    "filter": "filter=keyword filter.params.lists={0}",
}


def run_hydra(task: Callable[[DictConfig], None]) -> None:
    """Run Hydra on sys.argv with sftdiff's config tree, schema and plugins."""
    if os.environ.get("HYDRA_FULL_ERROR") != "1":
        sys.tracebacklimit = 0
        # Hydra has no other place at which the errors of its first composition can be told in other words.
        hydra_utils.run_and_report = with_faults(hydra_utils.run_and_report)  # type: ignore[assignment]
    try:
        check_overrides(sys.argv[1:])
        check_groups(sys.argv[1:])
    except SftdiffError as error:
        sys.exit(f"{error}")
    register_all()
    from launch.sweeper import as_hydra_wants

    sys.argv[1:] = [as_hydra_wants(argument) for argument in sys.argv[1:]]  # it composes once before it calls the sweeper
    main = hydra.main(version_base="1.3", config_path="pkg://sftdiff.conf", config_name="config")
    main(task)()


def register_all() -> None:
    """Make the schema and the plugins known to Hydra."""
    prefer_beside("hydra_plugins.sftdiff", "launch/hydra_plugin")
    from hydra_plugins.sftdiff import register

    register()
    ConfigStore.instance().store(name="schema", node=Config, provider="sftdiff")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse an override that cannot be read, by name; Hydra does not say which one it was."""
    parser = OverridesParser.create()
    for argument in arguments:
        if "=" in argument and not argument.startswith("-"):
            try:
                parser.parse_override(argument)
            except HydraException as error:
                reason = str(error).partition("\n")[0].partition(" expecting")[0]
                raise SftdiffError(f"{argument}: cannot be read ({reason}); quote special characters: 'key=\"...\"'") from None


def check_groups(arguments: Sequence[str]) -> None:
    """Refuse a path or an id as a group's option, with the form that takes it."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group = key.split("@")[-1] if key.startswith("teacher@") else key.split("@")[0]
        if not equals or group not in FORMS or value.startswith("{"):
            continue
        for option in value.strip("'\"").split(","):
            if "/" in option or option.endswith((".jsonl", ".json", ".parquet", ".yaml", ".yml")):
                raise SftdiffError(f"{key}={option}: {key} takes the name of an option; write {FORMS[group].format(option)}")


def subcommand(commands: Mapping[str, Callable[[list[str]], int]], also: Sequence[str] = ()) -> None:
    """Run the subcommand that the first word names, if it is one (a word without "=" and not an option), and exit.

    `also`: those that the caller takes itself.
    """
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in commands:
        try:
            sys.exit(commands[word](sys.argv[2:]))
        except SftdiffError as error:
            sys.exit(str(error))
    if word and "=" not in word and not word.startswith(("-", "+", "~")):
        known = f"; known are {', '.join((*also, *commands))}" if commands else ""
        sys.exit(f"{word!r} is not a subcommand{known}; settings are written key=value")


def with_default(override: str) -> None:
    """Put a group's option beside the other overrides of the command line, unless one chooses it there."""
    group = override.partition("=")[0]
    places = [n for n, argument in enumerate(sys.argv) if n and "=" in argument and not argument.startswith("-")]
    if not any(sys.argv[n].startswith(f"{group}=") for n in places):
        sys.argv.insert(places[0] if places else len(sys.argv), override)


def take_subcommand(word: str) -> None:
    """Take the one subcommand that a module has off the command line; exit with a message if it is not there."""
    if sys.argv[1:2] != [word]:
        sys.exit(f"the subcommand is missing: {word}")
    del sys.argv[1]


def run_cell(config: DictConfig) -> None:
    """Run one cell in this process's place: what the stock launchers call for each of their jobs."""
    from launch.run import run_sweep

    run_sweep([({}, _plain(config))], dry_run=False, processes=1)


def run_evaluation(config: DictConfig) -> None:
    """Evaluate one model in this process's place."""
    from launch.evaluate import build_evaluation
    from launch.run import run_sweep

    run_sweep([({}, _plain(config))], dry_run=False, processes=1, build=build_evaluation)


def run_rollouts(config: DictConfig) -> None:
    """Generate the rollouts of one cell."""
    part_of("run_rollouts")([({}, _plain(config))], dry_run=False)


def run_filter_report(config: DictConfig) -> None:
    """Report on the filter of one cell."""
    part_of("run_filter_report")([({}, _plain(config))], dry_run=False)


def run_calibrate(config: DictConfig) -> None:
    """Compare a judge with the rows whose verdicts are known."""
    part_of("run_calibrate")([({}, _plain(config))], dry_run=False)


def run_diff(config: DictConfig) -> None:
    """Stand for a diff, which plans its own cells: sftdiff's sweeper never calls it."""
    raise SftdiffError("a diff needs sftdiff's own sweeper and launchers (hydra/launcher=local or slurm)")


def run_search(config: DictConfig) -> None:
    """Stand for a search, as `run_diff` does for a diff."""
    run_diff(config)


def run_tda(config: DictConfig) -> None:
    """Stand for a comparison of rankings, as `run_diff` does for a diff."""
    run_diff(config)


def run_organisms(arguments: list[str]) -> int:
    """Run the diffs of planted organisms, each as a command of its own; return the exit status."""
    return int(import_module("launch.organisms").run_organisms(arguments))


# What sftdiff's own sweeper calls with all cells at once, in place of these for each cell.
PARTS = {
    "run_rollouts": "launch.parts:make_rollouts",
    "run_filter_report": "launch.parts:report_filters",
    "run_calibrate": "launch.calibrate:calibrate",
}


# What plans its own cells, in rounds.
ROUNDS = {"run_diff": "launch.diff:run_diff", "run_search": "launch.search:run_search", "run_tda": "launch.tda:run_tda"}


def rounds_of(task: str) -> Any:
    """Return the function (arguments, master config, loader, execute, dry_run, ZeRO stage) of a task with rounds, or None."""
    module, _, name = ROUNDS.get(task, "").partition(":")
    return getattr(import_module(module), name) if module else None


def part_of(task: str) -> Any:
    """Return the function (cells, dry_run) that does all of a task's cells, or None if they are planned as a sweep."""
    module, _, name = PARTS.get(task, "").partition(":")
    return getattr(import_module(module), name) if module else None


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
