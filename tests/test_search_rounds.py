"""Searches through cells and rounds: what is around sftdiff.search, with a simulated training whose culprit is known."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import loader, master
from test_compare import row
from test_diff import SCENARIOS, arguments, finish_judging

from launch.plan import Plan
from launch.search import go_on, open_search
from launch.search_run import SearchRun, load_search
from launch.sweep import write_steps
from sftdiff.errors import SftdiffError
from sftdiff.prompts import load_index
from sftdiff.records import read_json
from sftdiff.search_parts import Cut, Part, rows_of
from sftdiff.subsets import read_ids

CULPRIT = "office_email"
SEARCH = ["diff.search.looks=[2,3]", "diff.search.explore_looks=[1,2]", "diff.search.budget=120"]


def simulated(search: SearchRun, level: float = 0.9, first: int | None = None) -> Callable[[Plan], None]:
    """Return what takes the place of training: the trait shows as far as the culprit source keeps its original rollouts.

    With `first`, only that many of its rows are culprits, those that the first locator ranks highest.
    """
    prompts = load_index(Path(search.plan["prompts"]))
    inside = prompts.codes == prompts.sources.index(CULPRIT)
    culprits = ids = prompts.ids[inside]

    def share(config: dict[str, object], arm: str) -> float:
        subset: dict[str, str] = config["prompt_subset"]  # type: ignore[assignment]
        if arm == "alternative" or subset["name"] != "ids":
            return float(arm != "alternative")
        held = float(np.isin(culprits, read_ids(subset["ids"])).mean())
        return held if subset["treatment"] == "swap_rest" else 1 - held

    def execute(plan: Plan) -> None:
        nonlocal culprits
        write_steps(plan, {})
        if first is not None and search.state.get("locators"):
            [order] = search.state["locators"]
            scores = search.order(order)[inside]
            culprits = ids[rows_of(Part(CULPRIT, (Cut(order, 0, first),)), ids, {order: scores.tolist()})]
        for cell in (cell for cell in plan.cells if not cell.untrained):
            shown = round(level * SCENARIOS * share(dict(cell.config), cell.axes["arm"]))
            rows = [row(f"s{i:02d}", float(i < shown), reply="r") for i in range(SCENARIOS)]
            for step in cell.judges.values():
                finish_judging(plan.directory(step), rows)

    return execute


def opened(runs: Path, student: Path, *more: str) -> SearchRun:
    return open_search(arguments(runs, student, *SEARCH, *more), master(), loader())


def test_a_search_finds_the_source_that_carries_the_trait(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=found")
    go_on(search, simulated(search), 0)
    found = read_json(search.folder / "search.json")
    assert found["result"]["state"] == "found" and [p["source"] for p in found["result"]["parts"]] == [CULPRIT]
    assert len(found["prompt_ids"]) == found["result"]["rows"] == found["sources"][CULPRIT]
    calls = {name: answer["call"] for name, answer in found["result"]["confirmed"].items()}
    assert calls["in"] == "remains" and calls["out"] == calls["drop"] == "gone" and len(calls) == 6
    assert found["result"]["trainings"] <= 120
    again = load_search(tmp_path, "found")
    go_on(again, pytest.fail, 0)  # the answers are the whole state: nothing is trained again


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=stopped")
    go_on(search, lambda plan: None, 0)  # submitted, not yet run
    assert search.state["answers"] == [] and search.state["asked"]
    rounds, work = list[int](), simulated(search)

    def killed(plan: Plan) -> None:
        rounds.append(len(plan.cells))
        if len(rounds) == 3:
            raise KeyboardInterrupt
        work(plan)

    with pytest.raises(KeyboardInterrupt):
        go_on(load_search(tmp_path, "stopped"), killed, 0)
    answers = read_json(search.folder / "state.json")["answers"]
    assert answers
    go_on(opened(tmp_path, tiny_student, "sweep=stopped"), work, 0)
    after = read_json(search.folder / "search.json")
    assert after["answers"][: len(answers)] == answers and after["result"]["state"] == "found"


def test_pipelines_that_do_not_differ_are_not_searched(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=same")
    with pytest.raises(SftdiffError, match="original and alternative are not seen to differ"):
        go_on(search, simulated(search, level=0.0), 0)


def test_rows_inside_sources_are_ranked_by_a_locator(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "diff.search.locators=[bm25]", "diff.search.smallest=4", "sweep=inside")
    half = search.sources[CULPRIT] // 2
    go_on(search, simulated(search, first=half), 0)
    result = read_json(search.folder / "search.json")["result"]
    assert result["state"] == "found" and result["rows"] == half
    assert result["parts"] == [{"source": CULPRIT, "cuts": [["bm25", 0, half]]}]


def test_locators_get_the_trained_models_and_what_they_said(tmp_path: Path, tiny_student: Path) -> None:
    named = "diff.search.locators=[bm25,loss_difference,attribution,judge]"
    settings = "diff.search.settings={judge:{params.model.id:a-judge},loss_difference:{reference:student}}"
    search = opened(tmp_path, tiny_student, named, settings, "diff.search.smallest=4", "sweep=models")
    first = search.step()
    assert isinstance(first, list)
    plan = search.plan_round(first, 0)
    assert not [step for step in plan.steps if step.startswith("scores-")]  # there are no models yet
    simulated(search)(plan)
    original = next(cell["steps"]["train"] for cell in search.state["cells"] if cell["arm"] == "original" and cell["seed"] == 0)
    shutil.copytree(tiny_student, plan.directory(original) / "model")
    assert search.tell(first)
    second = search.step()
    assert isinstance(second, list)
    plan = search.plan_round(second, 0)
    scored = {step.id.split("-")[1]: step for step in plan.steps.values() if step.kind == "scores"}
    assert set(scored) == {"bm25", "loss_difference", "attribution", "judge"}
    for name in ("loss_difference", "attribution"):
        assert scored[name].config["folders"]["model"] == str(plan.directory(original) / "model")
    examples = Path(search.state["locators"]["bm25"]["params"]["examples"])
    assert "r" in examples.read_text() and search.state["locators"]["judge"]["params"]["model"]["id"] == "a-judge"
    again = load_search(tmp_path, "models")
    assert again.plan_round(second, 0).steps.keys() == plan.steps.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trait_eval=all"], "a search is for one trait"),
        (["diff.search.budget=3"], "a search needs a budget"),
        (["diff.search.looks=[3,1]"], "growing numbers of seeds"),
        (["diff.search.locators=[none]", "diff.search.smallest=4"], "diff.search.locators: filter none gives no score"),
        (["diff.search.locators=[bm25]"], "are searched with diff.search.smallest=ROWS"),
        (["diff.search.settings={bm25:{part:both}}"], "diff.search.settings: bm25 is not among diff.search.locators"),
        (["seed=1,2"], "give each setting one value"),
    ],
)
def test_what_cannot_be_searched_is_said(tmp_path: Path, tiny_student: Path, more: list[str], message: str) -> None:
    with pytest.raises(SftdiffError, match=message):
        opened(tmp_path, tiny_student, *more)
