"""What a search says of itself: its page, what to run next, and that a training without a verdict stops it and loses nothing."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from test_diff import SCENARIOS
from test_search_rounds import CULPRIT, opened, simulated

from launch.plan import Plan
from launch.search import go_on, next_on_slurm
from launch.search_run import load_search
from launch.sweep import write_plan
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table, write_rows
from sftdiff.judge import VERDICT_SCHEMA
from sftdiff.records import read_json, write_json
from sftdiff.search import Result, Search
from sftdiff.search_known import Settings
from sftdiff.search_parts import Part
from sftdiff.search_report import render, test_text, to_do
from sftdiff.search_state import Answer, Test

EXTERNAL = re.compile(r"""(?:src|href)=["'](?!#)|url\(|<script""")


def test_the_page_holds_set_transfers_tests_in_order_and_cost(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=page")
    go_on(search, simulated(search), 0)
    data, page = read_json(search.folder / "search.json"), (search.folder / "search.html").read_text()
    sources, result = data["sources"], data["result"]
    assert data["singles"] == 3 * len(sources) * 2 and f"{data['singles']} trainings" in page
    assert (
        f"{result['trainings']} trainings" in page
        and f"({result['rows'] / sum(sources.values()):.1%})".replace("%", " %") in page
    )
    for name, answer in result["confirmed"].items():
        assert f"<title>{name}: transfer {answer['value']:.2f} [" in page
    assert [row["test"] for row in data["tried"]] == [answer["test"] for answer in data["answers"]]
    assert page.count("<td>exploration</td>") == sum(answer["purpose"] == "explore" for answer in data["answers"])
    first, last = data["tried"][0], data["tried"][-1]
    assert first["phase"] == "exploration" and first["level"] == 0.0 and last["phase"] == "verification 1"
    own = [row for row in data["tried"] if row["phase"] != "exploration" and row["test"].get("parts")]
    assert {row["treatment"]: round(row["level"] * SCENARIOS) for row in own} == {"in": 22, "out": 0, "drop": 0}
    assert not EXTERNAL.search(page) and "prompt_subset.ids:" in page


def test_names_of_sources_are_escaped_on_the_page(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=escaped")
    go_on(search, simulated(search), 0)
    text = (search.folder / "search.json").read_text().replace(CULPRIT, "<img src=x>`y`")
    (search.folder / "search.json").write_text(text)
    page = render(read_json(search.folder / "search.json"))
    assert "<img" not in page and "&lt;img src=x&gt;" in page


def test_sets_are_named_by_what_is_shorter() -> None:
    sources = {"a": 1, "b": 2, "c": 3}
    parts = [{"source": name, "cuts": []} for name in sources]
    assert test_text({"parts": parts}, sources) == "all 3 sources"
    assert test_text({"parts": parts[1:]}, sources) == "all sources but a"
    assert test_text({"parts": parts[:1]}, sources) == "a" and test_text({"random_rows": 5}, sources) == "5 random rows"
    assert test_text({"parts": [{"source": "c", "cuts": [["keyword", 0, 2]]}]}, sources) == "c, ranks 0 to 2 by keyword"


def test_what_to_run_next_is_an_exact_setting(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=next", "diff.search.budget=20")
    go_on(search, simulated(search), 0)
    data = read_json(search.folder / "search.json")
    assert "the budget ended" in data["result"]["note"]
    [budget] = [int(found[1]) for line in data["to_do"] if (found := re.search(r"diff\.search\.budget=(\d+)", line))]
    less = opened(tmp_path, tiny_student, "sweep=next", f"diff.search.budget={budget - 1}")
    go_on(less, pytest.fail, 0)  # the setting is the least one with which anything is trained
    more, planned = opened(tmp_path, tiny_student, "sweep=next", f"diff.search.budget={budget}"), list[Plan]()
    go_on(more, planned.append, 0)
    assert len(planned) == 1


def test_calls_that_stay_open_ask_for_more_looks() -> None:
    search = Search({"a": 4, "b": 4}, Settings(99, looks=(3, 5, 8)))
    answer = Answer(Test("in", (Part("a"),)), tuple(range(8)), 0.5, 0.2, 0.8, "unresolved", "confirm 0")
    result = Result("unresolved", (Part("a"),), 4, {"in": answer}, (), 24, 1, "swapped in: unresolved; swapped out: unresolved")
    [line] = to_do("mine", result, [answer], search, None)
    assert "sweep=mine-more diff.search.looks=[3,5,8,13]" in line


def test_a_training_without_a_verdict_stops_the_search_and_loses_nothing(tmp_path: Path, tiny_student: Path) -> None:
    search, broken = opened(tmp_path, tiny_student, "sweep=errors"), list[Path]()
    work = simulated(search)

    def without_verdicts(plan: Plan) -> None:
        """The judge of one training of the second batch answered nothing that counts."""
        work(plan)
        if len(search.state["answers"]) == 1 and not broken:
            cell = next(c for c in plan.cells if c.axes.get("arm", "").startswith("in:"))
            broken.append(plan.directory(next(iter(cell.judges.values()))))
            rows = [row | {"state": "error", "value": None} for row in read_table(broken[0] / "verdicts.parquet").to_pylist()]
            write_rows(broken[0] / "verdicts.parquet", rows, VERDICT_SCHEMA)

    with pytest.raises(SftdiffError) as stopped:
        go_on(search, without_verdicts, 0)
    for text in ("no verdict of arm=in:", f"seed=0 counts ({SCENARIOS} error)", str(broken[0]), "run the same command again"):
        assert text in str(stopped.value)
    kept = read_json(search.folder / "state.json")["answers"]
    assert kept and not any(answer["value"] is None for answer in kept) and len(kept) > 1  # the rest of its batch too
    with pytest.raises(SftdiffError, match="no verdict of arm=in:"):  # not mended: the same error, and nothing else
        go_on(load_search(tmp_path, "errors"), work, 0)
    shutil.rmtree(broken[0])
    go_on(load_search(tmp_path, "errors"), work, 0)
    after = read_json(search.folder / "search.json")
    assert after["answers"][: len(kept)] == kept and [p["source"] for p in after["result"]["parts"]] == [CULPRIT]


def test_a_failed_step_is_named_with_its_arm(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=failed")
    work = simulated(search)

    def failing(plan: Plan) -> None:
        work(plan)
        if search.state["answers"]:
            cell = next(c for c in plan.cells if c.axes.get("arm", "").startswith("in:"))
            directory = plan.directory(next(iter(cell.judges.values())))
            write_plan(plan)
            (directory / "DONE").unlink()
            write_json(
                directory / "FAILED", {"error": "24 of 24 replies have no verdict.", "outcome": "failed", "time": time.time()}
            )
            raise SftdiffError("1 of 9 steps did not finish")

    with pytest.raises(SftdiffError) as stopped:
        go_on(search, failing, 0)
    for text in (
        "arm=in:",
        "seed=0 has no verdict",
        "failed: 24 of 24 replies have no verdict.",
        "answers of the search",
        "the same command",
    ):
        assert text in str(stopped.value)
    assert len(read_json(search.folder / "state.json")["answers"]) > 1
    go_on(load_search(tmp_path, "failed"), work, 0)
    assert read_json(search.folder / "search.json")["result"]["state"] == "found"


def test_a_submitted_search_takes_its_answers_and_names_what_failed(tmp_path: Path, tiny_student: Path) -> None:
    search, planned = opened(tmp_path, tiny_student, "sweep=submitted"), list[Plan]()
    sweep, work = type("S", (), {"runs": tmp_path, "name": "submitted"})(), simulated(search)
    go_on(search, planned.append, 0)
    work(planned[0])
    next_on_slurm(sweep, planned.append, 0)  # the last job of the first batch submits the second one
    assert len(planned) == 2 and len(load_search(tmp_path, "submitted").answers()) == 1
    work(planned[1])
    cell = next(c for c in planned[1].cells if c.axes.get("arm", "").startswith("in:"))
    directory = planned[1].directory(next(iter(cell.judges.values())))
    write_plan(planned[1])
    (directory / "DONE").unlink()
    write_json(directory / "FAILED", {"error": "killed", "outcome": "failed", "time": time.time()})
    with pytest.raises(SftdiffError, match=r"has no verdict, since its step judge-.* failed: killed\."):
        next_on_slurm(sweep, pytest.fail, 0)  # what failed says nothing of a set: nothing is submitted
    kept = len(load_search(tmp_path, "submitted").answers())
    assert kept > 1
    work(planned[1])
    next_on_slurm(sweep, planned.append, 0)  # after a retry
    again = load_search(tmp_path, "submitted")
    assert len(planned) == 3 and len(again.answers()) > kept
    go_on(again, work, 0)
    assert read_json(search.folder / "search.json")["result"]["state"] == "found"


def test_another_search_trains_no_set_again(tmp_path: Path, tiny_student: Path) -> None:
    trained = list[set[str]]()
    for name in ("one", "two"):
        search = opened(tmp_path, tiny_student, f"sweep={name}")
        go_on(search, simulated(search), 0)
        trained.append({cell["steps"]["train"] for cell in search.state["cells"]})
    assert trained[0] == trained[1] and len(trained[0]) > 20


def test_an_old_failure_is_not_told_when_a_call_is_stopped(tmp_path: Path, tiny_student: Path) -> None:
    search = opened(tmp_path, tiny_student, "sweep=stop")
    go_on(search, lambda plan: simulated(search)(plan) if not search.state["answers"] else None, 0)

    def stopped(plan: Plan) -> None:
        cell = next(c for c in plan.cells if c.axes.get("arm", "").startswith("in:"))
        path = plan.directory(next(iter(cell.judges.values()))) / "FAILED"
        write_plan(plan)
        write_json(path, {"error": "of yesterday", "outcome": "failed", "time": 0})
        os.utime(path, (1e9, 1e9))
        raise SftdiffError("stopped; the same command goes on from here")

    with pytest.raises(SftdiffError, match=r"^stopped; the same command goes on from here$"):
        go_on(search, stopped, 0)
