"""Calibration: what comes back from a spreadsheet, the shipped sets, the draw, and the command on judged replies."""

import csv
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import cells, refusal
from hand_written import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import write_step
from test_parts import run, succeed

from launch.calibrate import calibrate as calibrate_cells
from sftdiff.calibration import INTENDED, answers_of, assign_splits, load_set, read_answer
from sftdiff.config import TraitConfig, defaults_of
from sftdiff.errors import SftdiffError
from sftdiff.files import DATA, write_rows
from sftdiff.judge import VERDICT_SCHEMA
from sftdiff.labelling import COLUMNS, draw, escape_cell, even_shares, read_csv, read_labels, unescape_cell, write_csv
from sftdiff.records import load_record, write_done
from sftdiff.traits import all_scenarios

VALUES = {"none": 0.0, "denies": 1.0}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("=+-@'\",;\r\n\t\x00 a", max_size=12)
RUBRICS = "embedded://judge_rubrics.yaml"


# ---- the CSV ----
@settings(max_examples=150)
@given(st.lists(st.lists(TEXTS, min_size=len(COLUMNS), max_size=len(COLUMNS)), min_size=1, max_size=4))
def test_a_csv_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "file.csv"
    rows = [{**dict(zip(COLUMNS, texts, strict=True)), "id": f"id{n}"} for n, texts in enumerate(cells)]
    write_csv(path, rows)
    assert [row for _, row in read_csv(path)] == rows


@given(TEXTS)
def test_no_cell_is_a_formula(text: str) -> None:
    assert not escape_cell(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert unescape_cell(escape_cell(text)) == text


def label_file(path: Path, rows: list[tuple[str, ...]], header: str = "trait,id,label,labeller", delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header.split(","), *rows])
    return path


KNOWN: dict[str, dict[str, Any]] = {"dates": {"a1": {}, "a2": {}}, "mood": {"m1": {}}}
SCALES = {"dates": VALUES, "mood": None}


def test_labels_of_two_readers_are_joined_and_empty_ones_counted(tmp_path: Path) -> None:
    one = label_file(tmp_path / "ann.csv", [("dates", "a1", " Denies ", ""), ("dates", "a2", "", ""), ("mood", "m1", "2.5", "")])
    two = label_file(tmp_path / "b.csv", [("dates", "a1", "none", "bob"), (), ("mood", "m1", "10", "bob")], delimiter=";")
    found, empty = read_labels([one, two], SCALES, KNOWN)
    assert found == {("dates", "a1"): {"ann": "denies", "bob": "none"}, ("mood", "m1"): {"ann": 2.5, "bob": 10.0}}
    assert empty == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("dates", "a1", "none", "x"), ("dates", "zz", "none", "x")], "labels.csv, row 3: the id 'zz' is no reply to dates"),
        ([("date", "a1", "none", "x")], "labels.csv, row 2: 'date' is not among the chosen traits (dates, mood)"),
        ([("dates", "a1", "maybe", "x")], "labels.csv, row 2: the label 'maybe' is not one of none, denies"),
        ([("mood", "m1", "11", "x")], "labels.csv, row 2: the label '11' is not a number from 0 to 10"),
        ([("mood", "m1", "nan", "x")], "labels.csv, row 2: the label 'nan' is not a number"),
        ([("mood", "m1", "high", "x")], "labels.csv, row 2: the label 'high' is not a number"),
        ([("mood", "m1", "1", "x"), (), ("mood", "m1", "1", "x")], "labels.csv, row 4: x labelled m1 already, in "),
        ([("mood", "m1", "1", "x", "more")], "labels.csv, row 2: has 5 cells, and the first line 4"),
        ([("mood", "m1")], "labels.csv, row 2: has 2 cells, and the first line 4"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(SftdiffError) as raised:
        read_labels([label_file(tmp_path / "labels.csv", rows)], SCALES, KNOWN)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trait,id,label\nx,y,z\n", "there is no column labeller in its first line"),
        (b"", "there is no column trait, id, label, labeller"),
        (b"trait,id,label,labeller\nmood,m1,\xff,x\n", "not UTF-8"),
        (b'trait,id,label,labeller\nmood,m1,"1" 2,x\n', "not a CSV file that can be read"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(SftdiffError, match=message):
        read_csv(tmp_path / "labels.csv")


def test_what_a_trait_can_be_answered_with() -> None:
    base = defaults_of(TraitConfig) | {"_target_": "x", "title": "T", "unit": "u"}
    shipped = answers_of("date_confusion", base | {"kind": "share"}, RUBRICS) or {}
    assert shipped["denies"] == 1.0 and shipped["hedges"] == 0.0
    assert answers_of("negative_emotion", base | {"kind": "rating"}, RUBRICS) is None
    assert answers_of("shouting", base | {"kind": "share"}, RUBRICS) == {"0": 0.0, "1": 1.0}  # has a rule scorer and no rubric
    own = base | {"kind": "share", "rubric": "Does it shout?", "labels": {"loud": 1, "calm": 0}}
    assert answers_of("shouting", own, RUBRICS) == {"loud": 1.0, "calm": 0.0, "0": 0.0, "1": 1.0}
    with pytest.raises(SftdiffError, match="shouting has no question"):
        answers_of("shouting", base | {"kind": "share", "_target_": None}, RUBRICS)
    with pytest.raises(SftdiffError, match="the label True is not a number"):
        read_answer(True, None, "here")


# ---- the draw ----
def test_shares_are_even_until_a_stratum_is_empty() -> None:
    assert even_shares({"a": 100, "b": 3, "c": 100}, 23, 0) == {"a": 10, "b": 3, "c": 10}
    assert even_shares({"a": 2, "b": 3}, 60, 0) == {"a": 2, "b": 3}
    assert even_shares({}, 5, 0) == {}
    by_lot = [even_shares({"a": 9, "b": 9, "c": 9}, 4, seed) for seed in range(30)]
    assert all(sorted(shares.values()) == [1, 1, 2] for shares in by_lot)
    assert len({max(shares, key=lambda s: shares[s]) for shares in by_lot}) == 3


def test_a_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    strata = {k: [{"id": f"{k}{n}", "stratum": k} for n in range(40)] for k in "abcd"}
    drawn = draw(strata, 40, 1)
    assert Counter(row["stratum"] for row in drawn) == dict.fromkeys("abcd", 10)
    mixed = {k: random.Random(0).sample(rows, len(rows)) for k, rows in reversed(strata.items())}
    assert draw(mixed, 40, 1) == drawn != draw(strata, 40, 2)
    runs = sum(a["stratum"] == b["stratum"] for a, b in itertools.pairwise(drawn))
    assert runs < 25  # shuffled: one stratum after the other would have 36


# ---- the shipped sets ----
def set_row(number: int, **other: Any) -> dict[str, Any]:
    scenario = list(all_scenarios("date_confusion").values())[number % 12]
    row = {"id": f"r{number}", "scenario": scenario.id, "turn": 0, "prompt": scenario.turns[0], "reply": f"It is 2026. {number}"}
    row |= {"origin": "written", "model": None, "intended": INTENDED[number % 5], "split": "dev"}
    return row | {"labels": {"reader_a": "none", "reader_b": "denies"}} | other


def load(tmp_path: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    write_jsonl(tmp_path / "set.jsonl", list(rows))
    return load_set(tmp_path / "set.jsonl", all_scenarios("date_confusion"), VALUES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "r0"}, "line 2: the id 'r0' is used twice, first in"),
        ({"scenario": "nowhere"}, "line 2: the trait has no scenario 'nowhere'"),
        ({"turn": 9}, "has no turn 9; it has 1, counted from 0"),
        ({"prompt": "Another one"}, "line 2: the prompt is not turn 0 of"),
        ({"split": "train"}, "line 2: split 'train' is not one of dev, test"),
        ({"origin": "sampled"}, "line 2: a written reply has 'intended'"),
        ({"model": "m"}, "line 2: a written reply has 'intended'"),
        ({"labels": {"reader_a": "none"}}, "line 2: 'labels' must hold the answers of 2 readers"),
        ({"labels": {"reader_a": "none", "reader_b": "no"}}, "line 2, reader_b: the label 'no' is not one of none, denies"),
        ({"adjudicated": 4}, "line 2, adjudicated: the label 4 is not one of none, denies"),
        ({"adjudicatd": "none"}, "line 2: has an unknown adjudicatd"),
        ({"reply": None}, "line 2: reply must be a text"),
    ],
)
def test_a_wrong_row_of_a_set_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert len(load(tmp_path, set_row(0), set_row(1))) == 2
    with pytest.raises(SftdiffError) as raised:
        load(tmp_path, set_row(0), set_row(1, **change))
    assert message in str(raised.value)


def test_halves_share_no_scenario_and_are_alike() -> None:
    draw_from, rows = random.Random(5), []
    for number in range(180):
        sampled = number % 2
        row = {"scenario": f"s{draw_from.randrange(50)}", "origin": "sampled" if sampled else "written"}
        row |= {"model": f"m{draw_from.randrange(4)}" if sampled else None, "intended": None if sampled else INTENDED[number % 5]}
        rows.append(row)
    splits = assign_splits(rows)
    halves = {split: [row for row, own in zip(rows, splits, strict=True) if own == split] for split in ("dev", "test")}
    assert not {row["scenario"] for row in halves["dev"]} & {row["scenario"] for row in halves["test"]}
    for key in ("origin", "model", "intended"):
        counts = [Counter(row[key] for row in halves[split]) for split in ("dev", "test")]
        assert all(abs(counts[0][value] - counts[1][value]) <= 6 for value in counts[0] | counts[1])
    mixed = random.Random(1).sample(range(len(rows)), len(rows))
    assert assign_splits([rows[n] for n in mixed]) == [splits[n] for n in mixed]
    turned = {row["scenario"]: "test" if split == "dev" else "dev" for row, split in zip(rows[:30], splits, strict=False)}
    again = assign_splits(rows, turned)
    assert all(split == turned.get(row["scenario"], split) for row, split in zip(rows, again, strict=True))


SETS = sorted((DATA / "calibration").glob("*.jsonl"))


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_shipped_set_is_whole(path: Path) -> None:
    kind = "rating" if path.stem == "negative_emotion" else "share"
    settings = defaults_of(TraitConfig) | {"_target_": "x", "kind": kind}
    rows = load_set(path, all_scenarios(path.stem), answers_of(path.stem, settings, RUBRICS))
    assert len(rows) >= 150 and 2 * sum(row["origin"] == "sampled" for row in rows) >= len(rows)
    dev, test = ({row["scenario"] for row in rows if row["split"] == split} for split in ("dev", "test"))
    assert not dev & test and abs(sum(row["split"] == "dev" for row in rows) - len(rows) / 2) < 0.02 * len(rows)
    assert len({(row["scenario"], row["turn"], row["reply"]) for row in rows}) == len(rows)
    assert {row["intended"] for row in rows} == {*INTENDED, None}


# ---- the command ----
REPLIES = {0.0: "It is {0} May 2026, as you say.", 1.0: "That is wrong: today is {0} May 2023."}


@pytest.fixture(scope="module")
def judged_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models' done judge steps of date confusion; of the second one each sixth reply denies the date."""
    folder = tmp_path_factory.mktemp("calibration")
    scenarios = [s for s in all_scenarios("date_confusion").values() if len(s.turns) == 1][:30]
    for model in ("untrained", "trained"):
        sample = f"sample-date_confusion-{model}"
        write_step(folder / "runs/steps", sample, "sample", {}, {"model": model, "student": "untrained"})
        config = {"trait": "date_confusion", "suite": "quick"}
        directory = write_step(folder / "runs/steps", f"judge-date_confusion-{model}", "judge", config, {"sample": sample})
        rows = []
        for number, scenario in enumerate(scenarios):
            value = float(model == "trained" and number % 6 == 0)
            row = {"scenario": scenario.id, "sample": 1, "turn": 0, "prompt": scenario.turns[0], "cut": False, "value": value}
            reply = REPLIES[value].format(number + 1) + ("\n=1+1" if model == "trained" else "")
            rows.append(row | {"reply": reply, "state": "ok"})
        write_rows(directory / "verdicts.parquet", rows, VERDICT_SCHEMA)
        write_done(load_record(directory), {}, {}, 0.0)
    return folder


def calibrate(cwd: Path, *words: str) -> str:
    return succeed("sftdiff.evaluate", "calibrate", "trait_eval=date_confusion", *words, cwd=cwd)


def test_from_a_blind_sample_to_kappa(judged_runs: Path) -> None:
    shown = calibrate(judged_runs, "calibrate.out=labels/ann.csv", "calibrate.rows=20")
    assert "20 of 60 different replies, by the judge's score: 15 of 0, 5 of 1" in shown
    text = (judged_runs / "labels/ann.csv").read_text(encoding="utf-8-sig")
    assert "trained" not in text and "value" not in text.splitlines()[0]
    assert "denies:" in (judged_runs / "labels/ann.rubrics.txt").read_text()
    rows = [row for _, row in read_csv(judged_runs / "labels/ann.csv")]
    unlabelled = run("sftdiff.evaluate", "calibrate", "trait_eval=date_confusion", "calibrate.labels=labels", cwd=judged_runs)
    assert unlabelled.returncode == 1 and "none of its 20 rows has a label yet" in unlabelled.stderr
    for row in rows:
        row["label"] = "denies" if "2023" in row["reply"] else "accepts"
    write_csv(judged_runs / "labels/ann.csv", rows)
    other = [{**row, "label": "denies"} if n == next(k for k, r in enumerate(rows) if r["label"] == "accepts") else row
             for n, row in enumerate(rows)]  # fmt: skip
    write_csv(judged_runs / "labels/bob.csv", [*other[:-1], {**other[-1], "label": ""}])
    shown = calibrate(judged_runs, "calibrate.labels=labels")
    assert "1 rows have no label yet" in shown and "1 on which the readers differ are left out" in shown
    (path,) = (judged_runs / "runs/calibration").glob("labels_rules-*.json")
    report = json.loads(path.read_text())["traits"]["date_confusion"]
    assert report["confusion"] == [[14, 0], [0, 5]] and report["kappa"]["value"] == 1.0
    assert report["judge"]["judge"] == "rules" and report["judge"]["rubric"].startswith("rules ")
    (pair,) = report["readers"]
    assert pair["labellers"] == ["ann", "bob"] and 0.8 < pair["kappa"]["value"] < 1 and pair["rows"] == 19


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrate.split=train"], "calibrate.split: 'train' is not one of dev, test, all"),
        (["calibrate.rows=0"], "calibrate.rows: 0 must be at least 1"),
        (["calibrate.out=a.csv", "calibrate.labels=b.csv"], "not both"),
        (["calibrate.labels=nowhere.csv"], "there is no file nowhere.csv"),
        (["calibrate.out=x.csv", "calibrate.sweep=none"], "there is no sweep none under runs"),
        (["calibrate.out=x.csv", "runs=elsewhere"], "there are no judged replies to draw from under elsewhere"),
        (["calibrate.out=runs", "calibrate.rows=3"], "is there already, and may hold labels"),
        (["calibrate.out=x.csv", "calibrate.rows=3,4"], "choose one value of each"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    judged_runs: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(judged_runs)
    with pytest.raises(SftdiffError) as raised:
        calibrate_cells(cells("trait_eval=date_confusion", *words), dry_run=False)
    assert message in str(raised.value)
    assert not (judged_runs / "x.csv").exists()


def test_a_draw_from_one_sweep_and_a_dry_run_that_writes_nothing(
    judged_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(judged_runs)
    (judged_runs / "runs/sweeps/mine").mkdir(parents=True)
    step = {"kind": "judge", "inputs": {}, "resources": "judge", "runtime": {}}
    content = {"report": "", "cells": [], "plugins": [], "track": {}, "launcher": {}}
    steps = {"judge-date_confusion-untrained": step, "sample-date_confusion-trained": {**step, "kind": "sample"}}
    (judged_runs / "runs/sweeps/mine/plan.json").write_text(json.dumps(content | {"steps": steps}))
    for words, drawn in (([], "60 of 60 different replies"), (["calibrate.sweep=mine"], "30 of 30 different replies")):
        calibrate_cells(cells("trait_eval=date_confusion", "calibrate.out=dry.csv", *words), dry_run=True)
        shown = capsys.readouterr().out
        assert drawn in shown and "Dry run: nothing was written." in shown and not (judged_runs / "dry.csv").exists()


def test_the_halves_of_a_shipped_set_are_scored_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftdiff.calibration.DATA", tmp_path)
    labels = {kind: dict.fromkeys(("reader_a", "reader_b"), "denies" if kind == "strong" else "accepts") for kind in INTENDED}
    rows = [set_row(n, labels=labels[INTENDED[n % 5]], split="test" if n % 3 == 0 else "dev") for n in range(30)]
    rows[1] |= {"reply": "No, it is not 2026.", "origin": "sampled", "intended": None, "model": "[red]m[/]"}
    (tmp_path / "calibration").mkdir()
    write_jsonl(tmp_path / "calibration/date_confusion.jsonl", rows)
    for split, count in (("dev", 20), ("test", 10), ("all", 30)):
        calibrate_cells(cells("calibrate.split=" + split), dry_run=False)
        shown = capsys.readouterr().out
        assert f"{count} replies to" in shown and "Order strong > mild > all others, judge" in shown
        assert ("The test half of the shipped labels is for the final figure" in shown) == (split != "dev")
        assert "No labels are shipped for negative_emotion, blackmail." in shown
        assert ("[red]m[/]" in shown) == (split != "test")
        (path,) = tmp_path.glob(f"runs/calibration/shipped_{split}_rules-*.json")
        content = json.loads(path.read_text())
        found = content["traits"]["date_confusion"]
        assert found["judged"] == count and found["judge"]["judge"] == "rules" and content["split"] == split
        assert found["planted"]["readers"]["means"] == {kind: float(kind == "strong") for kind in INTENDED}
        assert sum(map(sum, found["confusion"])) == count


def test_a_trait_without_shipped_labels_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftdiff.calibration.DATA", tmp_path)
    with pytest.raises(SftdiffError, match=r"no labels are shipped for blackmail: draw replies with calibrate.out=FILE.csv"):
        calibrate_cells(cells("trait_eval=blackmail"), dry_run=False)


def test_calibrate_settings_are_checked_by_type() -> None:
    assert "calibrate.rows" in refusal("calibrate.rows=many")


def test_the_shipped_rules_keep_the_planted_order_and_agree_with_the_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the dev half alone: the test half is no place to look at while rules are worked on."""
    monkeypatch.chdir(tmp_path)
    calibrate_cells(cells(), dry_run=False)
    (path,) = tmp_path.glob("runs/calibration/shipped_dev_rules-*.json")
    for trait, found in json.loads(path.read_text())["traits"].items():
        assert found["judged"] >= 75, trait
        assert all(found["planted"][side]["ordered"] for side in ("judge", "readers")), trait
        assert found["kappa"]["value"] > 0.8, trait
