"""The published shape on the embedded set: its arms, the published findings beside them, and results that are kept as files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from commands import environment, loader, master
from test_compare import rows
from test_diff import MILD_ROWS, simulated

from launch.diff import Diff, go_on, open_diff
from launch.plan import Plan
from sftdiff.diffing import take_looks
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.kept import SCORES, keep, rebuild, run_keep, run_report, without_places
from sftdiff.published import Condition, Finding, lay_beside, load_published
from sftdiff.records import read_json
from sftdiff.rounds import DIFFERENCE, PAIR, Schedule, due, next_round, saved

SHARE = {"kind": "share", "title": "Doubts", "unit": "%", "smallest_effect": 0.1}
ONE_SEED = {"prompts_only", "teacher_only", "third_teacher", "random_in", "random_out", "random_drop", "curve_05", "curve_25",
            "curve_50", "curve_75", "overt_removed", "mild_removed"}  # fmt: skip


def opened(runs: Path, *more: str) -> Diff:
    return open_diff(["experiment=reproduce", f"runs={runs}", "track=off", *more], master(), loader())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Diff:
    return opened(tmp_path_factory.mktemp("whole"))


def test_all_combinations_of_base_prompts_and_rollouts_are_arms(whole: Diff) -> None:
    plain = {}
    for arm, (config, *_) in whole.cells.items():
        if config["prompt_subset"]["treatment"] == "keep" and config["filter"]["name"] == "none":
            parts = config["model"]["name"], config["prompts"]["name"], config["teacher"]["name"]
            plain[arm] = parts
    wanted = set(product(("smollm2_135m", "gemma3_270m"), ("gemini_mix", "olmo_mix"), ("gemini", "olmo")))
    assert set(plain.values()) - wanted == {("smollm2_135m", "gemini_mix", "kimi")} and wanted <= set(plain.values())
    assert plain["prompts_only"] == ("gemma3_270m", "gemini_mix", "olmo")
    assert plain["teacher_only"] == ("gemma3_270m", "olmo_mix", "gemini")
    assert len(plain) == 9 and whole.plan["left_out"] == {}
    parts = whole.plan["parts"]
    assert parts["third_teacher"] == {"model": "original", "prompts": "original", "teacher": "kimi"}
    assert set(parts["prompts_only"].values()) == {"alternative", "original"} and len(parts) == 25


def test_subsets_curve_and_filters_stand_beside_their_controls(whole: Diff) -> None:
    first = {arm: configs[0] for arm, configs in whole.cells.items()}
    for way, treatment in (("in", "swap_rest"), ("out", "swap"), ("drop", "drop")):
        own, control = first[f"subset_{way}"]["prompt_subset"], first[f"random_{way}"]["prompt_subset"]
        assert own["treatment"] == control["treatment"] == treatment
        assert own["sources"] == control["of"]["sources"] == ["current_events"] and control["name"] == "random_like"
    assert [first[f"curve_{share}"]["prompt_subset"]["share"] for share in ("05", "25", "50", "75")] == [0.05, 0.25, 0.5, 0.75]
    for name in ("keyword", "classifier"):
        own, control = first[f"filter_{name}"]["filter"], first[f"{name}_random"]["filter"]
        assert (own["name"], own["treatment"], control["name"], control["match"]["name"]) == (name, "drop", "random", name)
    drawn = [config["filter"]["params"]["seed"] for config in whole.cells["keyword_random"]]
    assert drawn == [0, 1, 2]  # others for each training seed
    levels = [first[f"{level}_removed"]["prompt_subset"]["level"] for level in ("overt", "mild")]
    assert levels == ["overt", "any"]
    assert first["mild_removed"]["prompt_subset"]["trait"] is None  # the sweep has three: what is left shows none


def test_headline_arms_have_three_seeds_and_the_first_seed_of_all_comes_first(whole: Diff) -> None:
    assert {arm for arm, configs in whole.cells.items() if len(configs) == 1} == ONE_SEED
    assert {len(configs) for arm, configs in whole.cells.items() if arm not in ONE_SEED} == {3}
    assert {arm: [c["seed"] for c in whole.cells[arm]] for arm in PAIR} == {arm: [1, 2, 3] for arm in PAIR}
    wanted = whole.next_round()
    assert wanted == {arm: len(configs) for arm, configs in whole.cells.items()}
    order = [(cell.axes["arm"], cell.seed) for cell in whole.plan_round(wanted, 0).cells if cell.trained]
    arms = list(whole.cells)
    assert order[: len(arms)] == [(arm, 1) for arm in arms] and len(order) == 51
    assert order[len(arms) : len(arms) + 4] == [("original", 2), ("original", 3), ("alternative", 2), ("alternative", 3)]
    assert list(whole.plan["guards"]) == ["capability"] and len(whole.plan["traits"]) == 3


def test_an_arm_gets_no_more_seeds_than_it_is_to_have() -> None:
    schedule = Schedule(("swap", "drop"), (2, 4), difference_first=False, most={"drop": 1})
    assert next_round({"t": {}}, {}, schedule) == {"original": 2, "alternative": 2, "swap": 2, "drop": 1}
    look = {"call": "unresolved", "seeds": 2, "alpha": 0.025}
    looks = {"t": {DIFFERENCE: [look], "swap": [look], "drop": [look | {"seeds": 1}]}}
    trained = {"original": 2, "alternative": 2, "swap": 2, "drop": 1}
    assert next_round(looks, trained, schedule) == {"original": 4, "alternative": 4, "swap": 4}
    assert due({}, {"original": 1, "alternative": 1, "drop": 1}, schedule) == {}  # the pair is looked at first
    assert due({}, trained, schedule) == {DIFFERENCE: 2, "swap": 2, "drop": 1}
    assert saved({"original": 4, "alternative": 4, "swap": 4, "drop": 1}, schedule) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("diff.arms.original.seeds=1", "diff.arms.original.seeds: every arm is compared with this one"),
        ("diff.arms.curve_05.seeds=4", "diff.arms.curve_05.seeds=4: a number from 1 to 3"),
        ("diff.published=/no/file.yaml", "/no/file.yaml"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(SftdiffError) as raised:
        opened(tmp_path, more)
    assert message in str(raised.value)


# --- published findings ---


def test_the_shipped_findings_speak_of_arms_and_traits_that_there_are(whole: Diff) -> None:
    found = load_published("embedded://published.yaml")
    assert len(found) == 9 and {trait for own in found for trait in own.traits} == set(whole.plan["traits"])
    named = {name for own in found for c in own.conditions for name in (c.arm, c.against) if name}
    assert named <= set(whole.plan["arms"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("findings: 3", "no findings"),
        ("findings: [{label: a}]", "finding 1: it must have"),
        ("findings: [{label: a, says: b, source: c, traits: [t], shown: [{arm: x}]}]", r"write a condition as"),
        ("findings: [{label: a, says: b, source: c, traits: [t], shown: [{arm: x, call: [higher]}]}]", r"is no list of remains"),
        ("findings: [{label: a, says: b, source: c, traits: [t], shown: [{arm: x, against: y, call: [gone]}]}]", "higher"),
    ],
)
def test_a_file_of_findings_that_says_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(SftdiffError, match=message):
        load_published(str(tmp_path / "own.yaml"))


def beside(*conditions: Condition, **looks: str) -> dict[str, Any]:
    """Return the one row of a finding with these conditions; arms are called as `looks` says."""
    # of 20 scenarios these arms show the trait in the first 18, 2, 10, 12, and in 2 by replies that were cut short
    verdicts = {"many": {1: rows(18)}, "few": {1: rows(2)}, "half": {1: rows(10)}, "more": {1: rows(12)},
                "cut": {1: rows(2, cut=True)}, "other_seed": {2: rows(2)}}  # fmt: skip
    made = {arm: {"call": call, "seeds": 1, "value": 0.5, "low": 0.1, "high": 0.9, "note": None} for arm, call in looks.items()}
    finding = Finding("a", "says", "source", ("doubts", "another"), conditions)
    planned = dict.fromkeys((*looks, *verdicts), 1)
    found = lay_beside([finding], {"doubts": SHARE}, {"doubts": made}, {"doubts": verdicts}, planned)
    assert len(found[0]["rows"]) == 1  # the other trait was not measured
    return dict(found[0]["rows"][0])


def test_a_finding_is_shown_when_all_its_conditions_are_met() -> None:
    stays, goes = Condition("swap", None, ("remains",)), Condition("other", None, ("gone", "partial"))
    assert beside(stays, goes, swap="remains", other="partial")["state"] == "shown"
    assert beside(stays, goes, swap="remains", other="remains")["state"] == "not shown"
    assert beside(stays, goes, swap="unresolved", other="gone")["state"] == "unresolved"
    assert beside(stays, goes, swap="unresolved", other="remains")["state"] == "not shown"
    assert beside(stays, goes, swap="remains")["state"] == "incomplete" and beside(goes)["state"] == "not run"
    assert beside(stays, goes, swap="gone")["state"] == "not shown"  # whatever the other arm will say


def test_levels_are_held_against_each_other() -> None:
    def gap(arm: str, base: str, *calls: str) -> dict[str, Any]:
        return beside(Condition(arm, base, calls))

    lower = gap("few", "many", "lower")
    (numbers,) = lower["conditions"]
    assert lower["state"] == "shown" and numbers["value"] == pytest.approx(-0.8) and numbers["high"] < 0
    assert gap("few", "many", "higher", "equivalent")["state"] == "not shown"
    assert gap("many", "few", "higher", "equivalent")["state"] == "shown"
    assert gap("half", "half", "higher", "equivalent")["conditions"][0]["call"] == "equivalent"
    near = gap("half", "more", "higher", "equivalent")  # two scenarios fewer, which may be chance
    assert near["state"] == "unresolved" and near["conditions"][0]["low"] < -0.1 < 0 < near["conditions"][0]["high"]
    assert gap("cut", "many", "lower")["state"] == "unresolved"
    assert "cut at the token limit" in gap("cut", "many", "lower")["conditions"][0]["note"]
    assert gap("other_seed", "many", "lower")["state"] == "not run"  # no seed that both have


# --- results as files ---

LEVELS = MILD_ROWS | {"filter_keyword": 0.1, "keyword_random": 0.75, "subset_in": 0.6, "curve_50": 0.4}
SMALL = "diff.only=[base_only,teacher_swap,prompt_swap,filter_keyword,keyword_random,subset_in,curve_50]"


def same_result(folder: Path, live: Path) -> dict[str, Any]:
    """Rebuild the page of a folder; assert that it is that of the run itself, and return the result."""
    assert run_report([str(folder)]) == 0
    one, two = read_json(folder / "diff.json"), read_json(live / "diff.json")
    pages = [(place / "diff.html").read_text().replace(own["created"], "") for place, own in ((folder, one), (live, two))]
    for own in (one, two):
        del own["created"]
    assert one == two and pages[0] == pages[1]
    return dict(one)


def states(result: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(f["label"], row["trait"]): row["state"] for f in result["published"]["findings"] for row in f["rows"]}


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def test_kept_files_make_the_page_of_the_run_again(tmp_path: Path) -> None:
    diff = opened(tmp_path / "runs", SMALL)
    go_on(diff, simulated(LEVELS), 0)
    folder = tmp_path / "results" / "reproduce"
    assert run_keep([str(folder), f"runs={tmp_path / 'runs'}"]) == 0  # the name is the folder's
    result = same_result(folder, diff.folder)
    found = states(result)
    assert found["completions", "date_confusion"] == "shown" and found["prompts", "negative_emotion"] == "not shown"
    assert found["filter against random", "blackmail"] == "not shown" and found["virulent", "blackmail"] == "not run"
    assert result["guards"]["capability"]["levels"]["original"]["value"] == pytest.approx(20 / 24)
    assert result["published"]["missing"] == {}
    kept = [*texts(read_json(folder / "plan.json"))]
    for line in (folder / "cells.jsonl").read_text().splitlines():
        kept += texts(json.loads(line))
    assert not [text for text in kept if text.startswith("/") or str(tmp_path) in text]
    assert not {"reply", "prompt", "raw", "reason", "evidence"} & set(read_table(folder / SCORES).column_names)


def test_what_is_there_of_an_unfinished_run_is_kept_and_what_is_missing_said(tmp_path: Path) -> None:
    diff, work = opened(tmp_path / "runs", SMALL), simulated(LEVELS)

    def stopped(plan: Plan) -> None:
        cells = [cell for cell in plan.cells if cell.trained]
        plan.cells = cells[:11]  # the first seed of all nine arms, and the original's other two
        work(plan)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go_on(diff, stopped, 0)
    folder = tmp_path / "kept"
    assert sum(cell["done"] for cell in keep(tmp_path / "runs", "reproduce", folder)) == 0  # simulated: nothing was trained
    result = same_result(folder, diff.folder)
    assert "original" not in result["published"]["missing"] and result["published"]["missing"]["base_only"] == [2, 3]
    assert "curve_50" not in result["published"]["missing"]
    own = result["traits"]["date_confusion"]
    assert result["saved"] is None and "not finished" in (folder / "diff.html").read_text()
    assert own["difference"] is None and own["arms"] == {} and own["so_far"]["teacher_swap"]["call"] == "remains"
    assert states(result)["completions", "date_confusion"] == "shown"
    assert "1 of 3 seeds" in (folder / "diff.html").read_text() and "Not all of it was run" in (folder / "diff.html").read_text()
    go_on(opened(tmp_path / "runs", SMALL), work, 0)  # what was shown so far was no look
    keep(tmp_path / "runs", "reproduce", folder)
    whole = same_result(folder, diff.folder)
    assert whole["traits"]["date_confusion"]["arms"]["teacher_swap"]["looks"] == 1
    assert whole["traits"]["date_confusion"]["so_far"] == {} and whole["published"]["missing"] == {}


def test_what_another_machine_kept_is_not_trained_again(tmp_path: Path) -> None:
    """The second run directory is empty: it has the first one's results from the kept files alone."""
    work, folder = simulated(LEVELS), tmp_path / "kept"
    whole = opened(tmp_path / "whole", SMALL)
    go_on(whole, work, 0)
    first, trained = opened(tmp_path / "first", SMALL), list[tuple[str, int]]()

    def some(plan: Plan) -> None:
        plan.cells = [cell for cell in plan.cells if cell.trained][:11]  # of them the alternative, and the original's three
        work(plan)

    def counted(plan: Plan) -> None:
        trained.extend((cell.axes["arm"], cell.seed) for cell in plan.cells if cell.trained)
        work(plan)

    go_on(first, some, 0)
    keep(tmp_path / "first", "reproduce", folder)
    second = opened(tmp_path / "second", SMALL, f"diff.kept={folder}")
    go_on(second, counted, 0)
    assert len(trained) == len(set(trained)) == sum(map(len, second.cells.values())) - 11
    assert ("original", 1) not in trained and ("alternative", 1) not in trained and ("alternative", 2) in trained
    keep(tmp_path / "second", "reproduce", folder)
    assert "kept" not in read_json(folder / "plan.json")["settings"]
    result, expected = same_result(folder, second.folder), read_json(whole.folder / "diff.json")
    assert result["traits"] == expected["traits"] and result["published"] == expected["published"]
    third = opened(tmp_path / "third", SMALL, f"diff.kept={folder}")
    go_on(third, pytest.fail, 0)  # everything is there
    assert read_json(third.folder / "diff.json")["traits"] == expected["traits"]
    with pytest.raises(SftdiffError, match="nowhere holds no kept diff"):
        opened(tmp_path / "fourth", SMALL, f"diff.kept={tmp_path / 'nowhere'}")


def test_a_kept_training_counts_where_it_was_made_of_the_same(tmp_path: Path) -> None:
    work = simulated(LEVELS)
    go_on(opened(tmp_path / "first", "diff.only=[prompt_swap]"), work, 0)
    keep(tmp_path / "first", "reproduce", tmp_path / "kept")
    second = opened(tmp_path / "second", "diff.only=[prompt_swap]", "train.lr=1e-3", f"diff.kept={tmp_path / 'kept'}")
    wanted = second.next_round()
    assert len([cell for cell in second.plan_round(wanted, 0).cells if cell.trained]) == 9 and not second.has(wanted)


def test_looks_that_a_killed_run_did_not_take_are_taken_at_the_kept_files(tmp_path: Path) -> None:
    diff, work = opened(tmp_path / "runs", "diff.only=[prompt_swap]"), simulated(LEVELS)
    wanted = diff.next_round()
    work(diff.plan_round(wanted, 0))
    diff.save()  # and then it was killed
    keep(tmp_path / "runs", "reproduce", tmp_path / "kept")
    assert rebuild(tmp_path / "kept")["traits"]["blackmail"]["arms"]["prompt_swap"]["call"] == "gone"


def test_an_arm_of_one_seed_is_not_looked_at_before_the_pair() -> None:
    verdicts = {"original": {1: rows(18)}, "alternative": {1: rows(1)}, "swap": {1: rows(18)}}
    settings = {"planned": ["original", "alternative", "swap"], "seeds": [3], "most": {"swap": 1}, "budget": None,
                "difference_first": False, "alpha": 0.05, "gone": 1 / 3, "remains": 2 / 3}  # fmt: skip
    assert take_looks({}, verdicts, SHARE, settings, 1) == {}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("python -m sftdiff.diff runs=/home/me/runs trait_eval=all", "python -m sftdiff.diff runs=runs trait_eval=all"),
        ("'/data/a set/x'", "'a set/x'"),
        ("embedded://scenarios/blackmail.yaml", "embedded://scenarios/blackmail.yaml"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("results/reproduce and 1/3", "results/reproduce and 1/3"),
        ("{path: /models/mine/}", "{path: mine}"),
        ("original.model={model:path,model.path:/models/mine}", "original.model={model:path,model.path:mine}"),
    ],
)
def test_paths_of_one_machine_are_not_kept(text: str, kept: str) -> None:
    assert without_places({"a": [text]}) == {"a": [kept]}


def test_what_cannot_be_kept_or_rebuilt_is_said(tmp_path: Path) -> None:
    with pytest.raises(SftdiffError, match=r"there is no diff mine under .*; known: none"):
        run_keep(["mine", str(tmp_path / "x"), f"runs={tmp_path}"])
    with pytest.raises(SftdiffError, match="holds no kept diff"):
        run_report([str(tmp_path)])
    go_on(opened(tmp_path / "runs", "diff.only=[prompt_swap]", "sweep=other"), simulated(LEVELS), 0)
    kept = tmp_path / "kept"
    keep(tmp_path / "runs", "other", kept)
    (tmp_path / "runs/diffs/other").rename(tmp_path / "runs/diffs/mine")
    before = (kept / "plan.json").read_text()
    with pytest.raises(SftdiffError, match="holds the results of diff other, which those of mine would replace"):
        keep(tmp_path / "runs", "mine", kept)
    assert (kept / "plan.json").read_text() == before
    (kept / "plan.json").write_text("{")
    with pytest.raises(SftdiffError, match=r"plan\.json is damaged: take it from where it is stored"):
        run_report([str(kept)])
    with pytest.raises(SftdiffError, match="the only setting here is runs=FOLDER"):
        run_keep(["mine", "seed=3"])


@pytest.mark.slow
def test_the_commands_keep_a_real_run(tmp_path: Path, tiny_student: Path) -> None:
    path = f"{{model:path,model.path:{tiny_student}}}"
    small = ["train.precision=fp32", "sampling.precision=fp32", "train.epochs=1", "sampling.max_tokens=2", "suite=dev"]
    small += ["diff.seeds=[1]", "diff.only=[filter_keyword]", "report.resamples=50", "trait_eval=date_confusion", "track=off"]
    parts = [f"original.model={path}", f"alternative.model={path}"]
    for words in (["experiment=reproduce", *parts, *small], ["keep", "results/reproduce"], ["report", "results/reproduce"]):
        command = [sys.executable, "-m", "sftdiff.diff", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    assert "Beside the published findings" in done.stdout
    first, *others = [json.loads(line) for line in (tmp_path / "results/reproduce/cells.jsonl").read_text().splitlines()]
    assert first["done"] and first["seconds"] > 0 and len(others) == 2 and first["code"]["libraries"]["torch"]
    assert first["trained"]["rows"] == 80 and others[1]["trained"]["rows"] == 66 and first["trained"]["optimizer_steps"] > 0
    assert {"student", "prompts", "rollouts", "mixture", "pack", "train", "verdicts of date_confusion"} == set(first["content"])
    assert str(tiny_student) not in (tmp_path / "results/reproduce/cells.jsonl").read_text()
