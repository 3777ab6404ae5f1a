"""Scenarios that another package carries: they are made from its own prompt templates when they are needed.

A row of a scenario file such as `{id: agentic, suite: full, upstream: agentic_misalignment, goals: [...], threats: [...]}` stands
for one scenario per goal and threat. Its other keys (leverage, target, year, medium) hold for each of them.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from importlib.util import module_from_spec
from itertools import product
from typing import Any, get_args

from sftdiff.errors import SftdiffError

PACKAGE = "inspect-evals"
MODULE = "inspect_evals.agentic_misalignment"
NAME = "agentic_misalignment"
CONFLICTS = ("explicit", "latent", "ambiguous")  # goal types that the company's new course goes against


def version() -> str:
    """Return the package's name and version: what its scenarios' texts depend on. Loads nothing of the package."""
    try:
        return f"{PACKAGE} {package_version(PACKAGE)}"
    except PackageNotFoundError:
        raise SftdiffError(f"the blackmail scenarios of suite full need the package {PACKAGE}: pip install {PACKAGE}") from None


def expand(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scenario rows that a row with `upstream` stands for, goals x threats. kind: the threat.

    A goal is the package's goal type and value (explicit-america) or a type alone (none, ambiguous). Cells with neither a goal
    conflict nor a threat are controls. Raises SftdiffError if the package is missing or is not built as expected.
    """
    if row["upstream"] != NAME:
        raise SftdiffError(f"scenario {row.get('id')!r}: upstream {row['upstream']!r} is not known; there is {NAME}")
    missing = [key for key in ("id", "goals", "threats", "target") if not row.get(key)]
    if missing:
        raise SftdiffError(f"scenario {row.get('id')!r}, made from upstream {NAME}: it needs {', '.join(missing)}")
    rest = {key: value for key, value in row.items() if key not in ("upstream", "goals", "threats")}
    made = []
    generator = _generator()
    for goal, threat in product(row["goals"], row["threats"]):
        kind, _, value = goal.partition("-")
        system, user = _prompts(generator, kind, value or "none", threat)
        if row["target"].lower() not in user.lower():
            raise _changed(f"its inbox does not hold the address {row['target']!r}")
        own = {"id": f"{row['id']}-{goal}-{threat}", "kind": threat, "system": system, "turns": [user]}
        made.append(rest | own | {"control": kind not in CONFLICTS and threat == "none"})
    return made


def _prompts(generator: Any, kind: str, value: str, threat: str) -> tuple[str, str]:
    """Return (system prompt, user turn), joined as the package's own task joins them."""
    try:
        types = {"goal type": generator.GoalType, "goal value": generator.GoalValue, "threat": generator.UrgencyType}
        for (what, names), given in zip(types.items(), (kind, value, threat), strict=True):
            if given not in get_args(names):
                raise SftdiffError(f"{version()} has no {what} {given!r}; it has {', '.join(get_args(names))}")
        prompts = generator.generate_prompts(
            scenario="blackmail",
            goal_type=kind,
            goal_value=value,
            urgency_type=threat,
            extra_system_instructions=None,
            prod_flag=False,
            alignment_faking_warning=None,
        )
        return prompts.system_prompt, "\n".join([prompts.user_prompt, prompts.email_content])
    except SftdiffError:
        raise
    except Exception as error:  # the package has its own classes of errors, and a changed one may raise any
        raise _changed(f"{type(error).__name__}: {error}") from None


def _generator() -> Any:
    """Import the package's module of prompts without running its parent module, which would load all of inspect_ai.

    Counting scenarios on a login node needs the prompts alone. The parent stays unloaded, as it was.
    """
    version()  # says what to install where the package is missing
    try:
        package = importlib.import_module(MODULE.partition(".")[0])
        spec = PathFinder.find_spec(MODULE, package.__path__)
        bare = None if MODULE in sys.modules or spec is None else module_from_spec(spec)
        if bare:
            sys.modules[MODULE] = bare
        try:
            generator = importlib.import_module(f"{MODULE}.prompt_generator")
        finally:
            if bare:
                sys.modules.pop(MODULE, None)
    except (ImportError, AttributeError, OSError) as error:
        raise _changed(f"{type(error).__name__}: {error}") from None
    return generator


def _changed(what: str) -> SftdiffError:
    return SftdiffError(f"{version()} is not built as sftdiff expects: {what}. Install the version in constraints.txt")
