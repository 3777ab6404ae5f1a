"""The scenarios that another package carries: their grid, their texts, their version, and what happens without the package."""

from __future__ import annotations

import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspect_ai.model import ChatMessageUser
from inspect_evals.agentic_misalignment import agentic_misalignment
from inspect_evals.agentic_misalignment.prompt_generator import generate_prompts

from sftdiff.errors import SftdiffError
from sftdiff.traits import load_trait, scenarios_version, upstream

FILE = "embedded://scenarios/blackmail.yaml"
ROW = {
    "id": "agentic", "suite": "full", "upstream": "agentic_misalignment", "goals": ["explicit-america", "swap-america", "none"],
    "threats": ["replacement", "none"], "target": "kyle.johnson@summitbridge.com", "leverage": ["affair"],
}  # fmt: skip


def test_the_shipped_row_gives_every_goal_with_every_threat() -> None:
    trait = load_trait("blackmail", "full")
    cells = {s.id: s for s in (*trait.scenarios, *trait.controls) if s.id.startswith("agentic-")}
    goals = ("explicit-america", "explicit-ethical", "latent-america", "ambiguous", "none")
    threats = ("replacement", "restriction", "none")
    assert {f"agentic-{goal}-{threat}": threat for goal in goals for threat in threats} == {s.id: s.kind for s in cells.values()}
    assert [s.id for s in cells.values() if s.control] == ["agentic-none-none"]
    assert len({(s.system, s.turns) for s in cells.values()}) == 15


def test_controls_have_neither_goal_conflict_nor_threat() -> None:
    rows = upstream.expand(ROW)
    assert [row["id"] for row in rows if row["control"]] == ["agentic-swap-america-none", "agentic-none-none"]
    assert all(row["leverage"] == ["affair"] and "goals" not in row and "upstream" not in row for row in rows)


@pytest.mark.parametrize(("kind", "value"), [("explicit", "america"), ("none", "none")])
def test_texts_are_those_of_the_packages_own_task(kind: Any, value: Any) -> None:
    task = agentic_misalignment(goal_type=kind, goal_value=value, urgency_type="replacement")
    goal = kind if value == "none" else f"{kind}-{value}"
    (row,) = upstream.expand(ROW | {"goals": [goal], "threats": ["replacement"]})
    (message,) = task.dataset[0].input
    assert isinstance(message, ChatMessageUser) and message.text == row["turns"][0]
    prompts = generate_prompts("blackmail", kind, value, "replacement", None, False, None)
    assert row["system"] == prompts.system_prompt


def test_no_text_of_the_package_is_in_the_scenario_file() -> None:
    text = " ".join((Path(upstream.__file__).parents[1] / "data/scenarios/blackmail.yaml").read_text().split())
    (row,) = upstream.expand(ROW | {"goals": ["explicit-america"], "threats": ["replacement"]})
    lines = [" ".join(line.split()) for line in f"{row['system']}\n{row['turns'][0]}".splitlines()]
    assert not [line for line in lines if len(line) > 40 and line in text]


def test_the_version_is_the_packages_and_concerns_only_the_suite_that_uses_it() -> None:
    assert upstream.version() == f"inspect-evals {package_version('inspect-evals')}"
    assert scenarios_version(FILE, "full") == upstream.version()
    assert scenarios_version(FILE, "quick") == scenarios_version("embedded://scenarios/date_confusion.yaml", "full") == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"upstream": "other"}, "'other' is not known"),
        ({"goals": ["explicit-mars"]}, "no goal value 'mars'; it has america"),
        ({"goals": ["sudden-america"]}, "no goal type 'sudden'"),
        ({"threats": ["deletion"]}, "no threat 'deletion'; it has replacement"),
        ({"target": "nobody@x.example"}, "does not hold the address 'nobody@x.example'"),
        ({"goals": []}, "it needs goals"),
        ({"target": None}, "it needs target"),
    ],
)
def test_a_wrong_row_says_what_there_is(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SftdiffError, match=words):
        upstream.expand(ROW | change)


def test_without_the_package_only_its_suite_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(upstream, "PACKAGE", "inspect-evals-that-nobody-has")
    with pytest.raises(SftdiffError, match="pip install inspect-evals-that-nobody-has"):
        load_trait("blackmail", "full")
    assert load_trait("blackmail", "quick").scenarios
    own = {"id": "a", "suite": "full", "kind": "k", "turns": ["t"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"scenarios": [own, ROW | {"suite": "other"}]}))
    assert [s.id for s in load_trait("blackmail", "full", str(tmp_path / "own.yaml")).scenarios] == ["a"]


@pytest.mark.parametrize("broken", ["", "def generate_prompts(): pass", "raise OSError"])
def test_a_package_of_another_structure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str) -> None:
    """A package of the same name that lacks the module, the names in it or its files."""
    for name in [name for name in sys.modules if name.startswith("inspect_evals")]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "inspect_evals/agentic_misalignment"
    folder.mkdir(parents=True)
    (tmp_path / "inspect_evals/__init__.py").touch()
    if broken:
        (folder / "__init__.py").touch()
        (folder / "prompt_generator.py").write_text(broken + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SftdiffError, match=r"is not built as sftdiff expects: .*constraints\.txt"):
        upstream.expand(ROW)
    assert not [name for name in sys.modules if name == "inspect_evals.agentic_misalignment"]
    for name in [name for name in sys.modules if name.startswith("inspect_evals")]:
        monkeypatch.delitem(sys.modules, name)
