"""The runs of planted organisms: what organisms.json says of a diff, and the table."""

from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from launch import organisms
from launch.organisms import (
    add_run,
    confusion,
    known_names,
    print_confusion,
    print_runs,
    read_runs,
    recipe_of,
    run_of,
    run_organisms,
    targets,
)
from sftdiff.errors import SftdiffError


def result(states: dict[str, str], call: str = "higher") -> dict[str, Any]:
    trait = {
        "verdict": {label: {"state": state} for label, state in states.items()},
        "difference": {"call": call},
        "arms": {"prompt_swap": {"call": "gone", "value": 0.1, "low": 0.0, "high": 0.2}},
        "levels": {"original": {"value": 0.9, "low": 0.8, "high": 1.0}, "prompt_swap": {"value": 0.1}},
    }
    return {"traits": {"outburst": trait}, "arms": dict.fromkeys("abcd"), "trainings": 12, "saved": 20,
            "settings": {"seeds": [3, 5, 8]}}  # fmt: skip


def test_a_run_states_the_truth_beside_the_verdict() -> None:
    run = run_of("H1", 3, result({"H1": "supported", "H2": "contradicted", "H3": "open"}))
    assert run == {
        "truth": "H1", "organism": "H1", "seed": 3, "supported": ["H1"], "contradicted": ["H2"], "open": ["H3"],
        "cells": 4, "trainings": 12, "looks": [3, 5, 8], "saved": 20, "difference": "higher", "calls": {"prompt_swap": "gone"},
        "levels": {"original": [0.9, 0.8, 1.0]}, "transfers": {"prompt_swap": [0.1, 0.0, 0.2]},
    }  # fmt: skip


def test_the_table_counts_what_is_supported_by_truth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    monkeypatch.setattr(organisms, "console", Console(width=200))
    runs = [run_of("H1", seed, result({"H1": state, "H3": "supported"})) for seed, state in enumerate(("supported", "open"))]
    runs += [run_of("null", 0, result({"H1": "open", "H3": "open"}, "same"))]
    print_confusion(runs, ["H1", "H3", "null"])
    shown = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert {line[0]: line[1:] for line in lines} == {"H1": ["2", "1", "2", "0", "12"], "null": ["1", "0", "0", "0", "12"]}


def test_a_verdict_that_supports_everything_or_nothing_misses_the_targets() -> None:
    def met(states: dict[str, str]) -> list[bool]:
        runs = [run_of(name, 0, result(states)) for name in ("H1", "null")]
        return [found for _, found in targets(runs, [])]

    one_false = {"H1": "supported", "H3": "supported", "H2": "contradicted"}
    assert met(one_false) == [True, True, True, False, False]  # one a run is borne if it is equivalent; of the null organism none
    assert met(dict.fromkeys(("H1", "H2", "H3"), "supported")) == [True, True, False, False, False]
    assert met({"H1": "open"}) == [False, True, True, True, True]
    assert met({"H1": "contradicted"}) == [False, False, True, True, True]
    searches = [{"planted_sources": ["a"], "source_precision": 1.0, "source_recall": r, "trainings": n, "singly": 90}
                for r, n in ((1.0, 30), (0.5, 31))]  # fmt: skip
    assert [found for _, found in targets([], searches[:1])] == [True, True]
    assert [found for _, found in targets([], searches)] == [False, False]
    assert targets([], [{"planted_sources": []}]) == []  # rows inside sources have no target


def test_a_run_takes_the_place_of_its_earlier_one_and_leaves_others(tmp_path: Path) -> None:
    file = tmp_path / "organisms.json"
    for name, seed, state in (("null-noise", 0, "open"), ("H1", 1, "open"), ("H1", 0, "open"), ("H1", 1, "supported")):
        add_run(file, run_of(name, seed, result({"H1": state})))
    assert [(run["truth"], run["seed"], run["supported"]) for run in read_runs(file)] == [
        ("H1", 0, []), ("H1", 1, ["H1"]), ("null", 0, []),
    ]  # fmt: skip


def test_what_is_kept_of_the_same_recipe_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = list[tuple[str, ...]]()

    def diffed(name: str, seed: int, sweep: str, *_: Any) -> tuple[None, int]:
        made.append((name, sweep))
        return None, 1

    monkeypatch.setattr(organisms, "_diff", diffed)
    file = tmp_path / "organisms.json"
    add_run(file, run_of("H1", 0, result({"H1": "supported"})) | {"recipe": recipe_of("H1")})
    add_run(file, run_of("H1", 1, result({"H1": "open"})) | {"recipe": "of before"})
    assert run_organisms(["H1", "seeds=0", f"runs={tmp_path}"]) == 0
    assert made == [] and "organisms.json already" in capsys.readouterr().out
    assert run_organisms(["H1", "seeds=0,1,2", f"runs={tmp_path}"]) == 1
    assert made == [("H1", "organism-H1-s1"), ("H1", "organism-H1-s2")]
    run_organisms(["H1", "seeds=0", "diff.seeds=[1]", "track=off", f"runs={tmp_path}"])
    assert made[2][1].startswith("organism-H1-s0-")  # a diff of its own: the looks of the other one stay
    add_run(file, run_of("H1", 0, result({"H1": "open"})) | {"recipe": recipe_of("H1"), "settings": {"diff.seeds": "[1]"}})
    assert len(read_runs(file)) == 3
    capsys.readouterr()
    print_runs(file)
    shown = " ".join(capsys.readouterr().out.split())
    assert "H1, seed 0 with diff.seeds=[1]: supported: none (does not count below)" in shown
    assert "truth supported in 1 of 2 runs" in shown


def test_an_unknown_organism_is_refused() -> None:
    with pytest.raises(SftdiffError, match="there is no organism H9; there are H1"):
        run_organisms(["H9"])
    with pytest.raises(SftdiffError, match="seeds: whole numbers"):
        run_organisms(["H1", "seeds=a"])


def test_a_damaged_file_of_runs_is_named_and_nothing_else_is_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "organisms.json").write_text('{"runs": [')
    with pytest.raises(SftdiffError, match=r"organisms\.json is not an organisms\.json that can be read: move it away"):
        run_organisms(["report", str(tmp_path / "organisms.json")])
    with pytest.raises(SftdiffError, match="organisms report FILE"):
        run_organisms(["report"])


def test_the_table_in_the_readme_is_that_of_the_kept_runs_and_these_meet_the_targets() -> None:
    file = ROOT / "results" / "organisms.json"
    rows = [line.strip("|") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row.split("|")] for row in rows]
    start = next(number for number, line in enumerate(lines) if line[0] == "planted")
    table = confusion(read_runs(file), known_names())
    assert [lines[start], *lines[start + 2 : start + 1 + len(table)]] == table
    assert [text for text, met in targets(read_runs(file), read_runs(file, "searches")) if not met] == []
