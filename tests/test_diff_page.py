"""What a diff says beside its verdict: the curve, the subset beside random rows, notes, costs, and what to run next."""

import re
from pathlib import Path
from typing import Any

import pytest
from commands import loader, master
from rich.console import Console
from test_diff import GIVEN, MILD_ROWS, arguments, opened, simulated

from launch.diff import Diff, go_on, open_diff
from launch.search import open_search
from sftdiff.diff_next import cost_text
from sftdiff.diff_report import print_result, render
from sftdiff.diff_subset import swap_against_drop
from sftdiff.records import load_record, read_done, read_json, write_json
from sftdiff.report_html import code_text
from sftdiff.words import difference_text, time_text

TRAIT = "date_confusion"
SUBSET = "diff.given.subset={prompt_subset:by_source,prompt_subset.sources:[office_email]}"
LEVELS = MILD_ROWS | {"subset_in": 0.8, "subset_out": 0.05, "subset_drop": 0.8, "random_in": 0.05, "random_out": 0.8,
                      "random_drop": 0.8, "curve_05": 0.8, "curve_25": 0.6, "curve_50": 0.2, "curve_75": 0.05}  # fmt: skip


def ended(runs: Path, student: Path, name: str, arms: list[str], *more: str, noise: float = 0.0) -> Diff:
    diff = opened(runs, student, f"diff.only=[{','.join(arms)}]", f"sweep={name}", *more)
    go_on(diff, simulated(LEVELS, noise), 0)
    return diff


def printed(diff: Diff) -> str:
    console = Console(width=240, record=True)
    print_result(console, read_json(diff.folder / "diff.json"))
    return console.export_text()


def test_the_curve_goes_from_the_original_to_the_swapped_prompts(tmp_path: Path, tiny_student: Path) -> None:
    arms = ["prompt_swap", "curve_75", "curve_05", "curve_25"]
    diff = ended(tmp_path, tiny_student, "curve", arms)
    result, page = read_json(diff.folder / "diff.json"), (diff.folder / "diff.html").read_text()
    shares = {"original": 0.0, "curve_05": 0.05, "curve_25": 0.25, "curve_75": 0.75, "prompt_swap": 1.0}
    assert result["curve"] == shares and list(result["curve"]) == list(shares)
    [placed] = re.findall(r'<polyline[^>]* points="([^"]+)"', page)
    points = [tuple(map(float, point.split(","))) for point in placed.split()]
    assert [x for x, _ in points] == [0, 50, 250, 750, 1000]
    heights = [y for _, y in points]
    assert heights == sorted(heights) and heights[0] == heights[1] < heights[2] < heights[3] == heights[4]  # y grows downwards
    assert "<title>curve_25: " in page


def test_a_diff_without_arms_of_the_curve_has_no_plot(tmp_path: Path, tiny_student: Path) -> None:
    diff = ended(tmp_path, tiny_student, "plain", ["prompt_swap", "teacher_swap"])
    assert read_json(diff.folder / "diff.json")["curve"] == {}
    assert "Interpolation curve" not in (diff.folder / "diff.html").read_text()


def test_a_subset_stands_beside_random_rows_of_its_size(tmp_path: Path, tiny_student: Path) -> None:
    arms = [f"{kind}_{way}" for kind in ("subset", "random") for way in ("in", "out", "drop")]
    diff = ended(tmp_path, tiny_student, "subset", arms, SUBSET)
    trait = read_json(diff.folder / "diff.json")["traits"][TRAIT]
    gaps = [row["difference"] for row in trait["subset"]["rows"]]
    assert [round(gap["value"], 2) for gap in gaps] == [0.75, -0.75, 0.0]  # 20 less 2 of 24 scenarios
    assert gaps[0]["low"] > 0 > gaps[1]["high"] and gaps[2]["low"] < 0 < gaps[2]["high"]
    page, text = (diff.folder / "diff.html").read_text(), printed(diff)
    for shown in (difference_text(gaps[0], "share"), swap_against_drop(trait)):
        assert shown in page and shown in " ".join(text.split())
    assert "Swapped out, the subset leaves a level of 8 %" in text and "other rows make up for what is dropped." in text


@pytest.mark.parametrize(
    ("limits", "says"),
    [((0.1, 0.5), "other rows make up"), ((-0.5, -0.1), "dropping takes more"), ((-0.04, 0.05), "both do the same"),
     ((-0.3, 0.3), "is not resolved")],
)  # fmt: skip
def test_swap_against_drop_is_one_sentence(limits: tuple[float, float], says: str) -> None:
    level = {"value": 0.5, "low": 0.4, "high": 0.6}
    gap = {"value": sum(limits) / 2, "low": limits[0], "high": limits[1]}
    trait: dict[str, Any] = {"levels": {"subset_out": level, "subset_drop": level}, "arms": {}, "kind": "share",
                             "smallest_effect": 0.1, "subset": {"drop_minus_swap": gap}}  # fmt: skip
    sentence = swap_against_drop(trait)
    assert says in sentence and sentence.endswith(".") and sentence.count(". ") == 0
    assert swap_against_drop(trait | {"levels": {"subset_out": level}}) == ""


def test_an_unresolved_arm_says_what_its_limits_rest_on(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, "diff.only=[base_only,prompt_swap]", "diff.seeds=[1]", "sweep=note")
    go_on(diff, simulated(MILD_ROWS | {"prompt_swap": 0.45}), 0)
    arms = read_json(diff.folder / "diff.json")["traits"][TRAIT]["arms"]
    assert arms["prompt_swap"]["call"] == "unresolved" and "given this one training" in arms["prompt_swap"]["note"]
    [row] = [line for line in printed(diff).splitlines() if "│ prompt_swap" in line]
    assert "unresolved: Fieller's set" in row and "gone: " not in printed(diff)


def test_the_next_arm_has_its_cost_in_trainings_and_time(tmp_path: Path, tiny_student: Path) -> None:
    """One training takes the seconds of its train, sample and judge steps."""
    diff = ended(tmp_path, tiny_student, "cost", ["prompt_swap", "base_swap"], *GIVEN)
    for cell in diff.state["cells"]:
        judge = tmp_path / "steps" / next(iter(cell["judges"].values()))
        sample = load_record(judge).input_directory("sample")
        for directory, seconds in ((tmp_path / "steps" / cell["steps"]["train"], 30), (sample, 20), (judge, 10)):
            empty = {"content": "x", "outputs": {}, "inputs": {}, "absent": [], "summary": {}}
            write_json(directory / "DONE", (read_done(directory) or empty) | {"seconds": seconds})
    diff.look()
    result = read_json(diff.folder / "diff.json")
    first = result["traits"][TRAIT]["next"][0]
    assert result["seconds_a_training"] == 60 and first["seconds"] == 60 * first["trainings"]
    assert f"{first['arm']} (needs diff.only), {first['bits']:.2f} bits for 3 trainings, about 3 min one after" in printed(diff)
    assert "<td>3 min</td>" in (diff.folder / "diff.html").read_text()
    assert cost_text(1, None) == "1 training" and time_text(20_000) == "5.6 h"


def next_of(diff: Diff) -> str:
    lines = read_json(diff.folder / "diff.json")["to_do"]
    assert printed(diff).count("Next: ") == len(lines)
    return " ".join(lines)


def test_a_diff_that_left_something_open_says_the_setting_that_goes_on(tmp_path: Path, tiny_student: Path) -> None:
    arms = ["prompt_swap", "base_swap"]
    limited = ended(tmp_path, tiny_student, "limited", arms)
    assert "`diff.only=[prompt_swap,base_swap,mild_removed]`" in next_of(ended(tmp_path, tiny_student, "given", arms, *GIVEN))
    assert re.search(r"`'diff\.given\.\w+=\{KEY:VALUE\}' diff\.only=\[prompt_swap,base_swap,\w+\]`", next_of(limited))
    every = [*MILD_ROWS][2:]
    assert next_of(ended(tmp_path, tiny_student, "closed", every, *GIVEN)) == ""


def test_a_budget_that_ended_is_given_with_what_it_would_take(tmp_path: Path, tiny_student: Path) -> None:
    more = ["diff.only=[base_only,prompt_swap]", "sweep=budget"]
    diff = opened(tmp_path, tiny_student, *more, "diff.budget=8")
    go_on(diff, simulated(LEVELS), 0)
    assert read_json(diff.folder / "diff.json")["trainings"] == 6
    [found] = re.findall(r"`diff\.budget=(\d+)` or more goes on \(6 trainings", next_of(diff))
    assert int(found) == 12
    go_on(opened(tmp_path, tiny_student, *more, f"diff.budget={found}"), simulated(LEVELS), 0)
    assert read_json(diff.folder / "diff.json")["trainings"] == 12


def test_pipelines_that_are_not_told_apart_get_more_seeds(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, "diff.seeds=[1,2]", "sweep=apart")
    go_on(diff, simulated(dict.fromkeys(diff.plan["arms"], 0.3)), 0)
    assert "`sweep=apart-more diff.seeds=[1,2,4]`" in next_of(diff) and "4 trainings" in next_of(diff)
    assert "<code>sweep=apart-more" in (diff.folder / "diff.html").read_text()


def test_pipelines_in_which_no_reply_shows_the_trait_are_told_apart_by_scenarios(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, "diff.seeds=[1,2]", "sweep=none")
    go_on(diff, simulated(dict.fromkeys(diff.plan["arms"], 0.0)), 0)
    assert read_json(diff.folder / "diff.json")["traits"]["date_confusion"]["difference"]["call"] == "unresolved"
    said = next_of(diff)
    assert "in both pipelines no reply shows it" in said and "`trait_eval.date_confusion.scenarios=FILE`" in said


def test_the_page_escapes_what_is_between_backticks_too(tmp_path: Path, tiny_student: Path) -> None:
    assert code_text("a `<b>` <c>") == "a <code>&lt;b&gt;</code> &lt;c&gt;"
    diff = ended(tmp_path, tiny_student, "escape", ["prompt_swap", "base_swap"])
    result = read_json(diff.folder / "diff.json") | {"to_do": ["`<img src=x>`"]}
    assert "<img" not in render(result)


def test_a_found_set_goes_into_a_diff_as_a_search_writes_it(tmp_path: Path, tiny_student: Path) -> None:
    search = open_search(arguments(tmp_path, tiny_student, "sweep=found"), master(), loader())
    file = tmp_path / "a set.txt"
    file.write_text("".join(f"{int(i):016x}\n" for i in search.prompts.ids[:4]))
    given = f'diff.given.subset={{prompt_subset:ids,prompt_subset.ids:"{file}"}}'
    diff = open_diff(arguments(tmp_path, tiny_student, given, "diff.only=[subset_in,random_in]", "sweep=of"), master(), loader())
    assert diff.cells["subset_in"][0]["prompt_subset"]["ids"] == str(file)
