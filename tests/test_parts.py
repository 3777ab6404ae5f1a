"""The commands that run a part of a plan, as a user runs them: rollouts, the report on filters, and the rows of a cell."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, environment
from hand_written import id_of, question, write_jsonl

from sftdiff.files import read_rows, read_table
from tests.fault_proxy import Fault, FaultProxy, status

PROMPTS = [question(f"question {n}", "chat" if n % 2 else "mail") for n in range(12)]


def run(module: str, *arguments: str, cwd: Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", module, *arguments]
    variables = environment(CUDA_VISIBLE_DEVICES="", COLUMNS="180", **extra)
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, timeout=300, check=False)


def succeed(module: str, *arguments: str, cwd: Path) -> str:
    done = run(module, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def one(folder: Path, kind: str) -> Path:
    (found,) = folder.glob(f"runs/steps/{kind}-*")
    return found


@pytest.fixture
def local_teacher(tmp_path: Path, tiny_student: Path) -> list[str]:
    """Settings of a teacher on this machine, and of a prompt set of one's own."""
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    model = ["teacher.origin=transformers", f"teacher.model.id={tiny_student}", "teacher.model.max_tokens=6", "teacher.cut=keep"]
    return ["prompts=file", "prompts.path=prompts.jsonl", "teacher=qwen", *model, "teacher.generation.precision=fp32"]


def test_rollouts_are_generated_once_and_a_sweep_takes_them(tmp_path: Path, local_teacher: list[str]) -> None:
    dry = succeed("sftdiff.rollouts", *local_teacher, "hydra.launcher.dry_run=true", cwd=tmp_path)
    assert "12 requests" in dry and "Dry run: nothing was generated." in dry
    assert not (one(tmp_path, "rollouts") / "DONE").exists()
    made = succeed("sftdiff.rollouts", *local_teacher, cwd=tmp_path)
    assert "12 replies" in made and "Train on them with the same teacher and prompts settings" in made
    rollouts = one(tmp_path, "rollouts")
    rows = read_table(rollouts / "rollouts.parquet").to_pylist()
    assert sorted(r["prompt_id"] for r in rows) == sorted(map(id_of, PROMPTS))
    assert all((r["completion"] is None) != (r["error"] is None) for r in rows)
    before = (rollouts / "DONE").stat().st_mtime_ns
    succeed("sftdiff.rollouts", *local_teacher, cwd=tmp_path)
    assert (rollouts / "DONE").stat().st_mtime_ns == before
    sweep = succeed("sftdiff.train", *local_teacher, "hydra.launcher.dry_run=true", cwd=tmp_path)
    assert "rollouts 1 (0 to do)" in sweep


def test_a_sweep_never_asks_an_endpoint(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    done = run("sftdiff.train", "teacher=glm", "prompts=file", "prompts.path=prompts.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "the rollouts of teacher glm on these prompts are not generated yet" in done.stderr
    assert "python -m sftdiff.rollouts teacher=glm" in done.stderr
    assert not (tmp_path / "runs/steps").exists()


def test_stored_rollouts_and_a_missing_key_are_refused_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    stored = run("sftdiff.rollouts", "teacher=stored", "teacher.path=x.jsonl", cwd=tmp_path)
    assert stored.returncode == 1 and "choose teacher.origin=endpoint" in stored.stderr
    own = ["teacher=glm", "prompts=file", "prompts.path=prompts.jsonl"]
    keyless = run("sftdiff.rollouts", *own, cwd=tmp_path, OPENROUTER_API_KEY="")
    assert keyless.returncode == 1 and "OPENROUTER_API_KEY" in keyless.stderr


def test_the_report_on_filters_says_what_each_flags_and_how_right_it_is(tmp_path: Path) -> None:
    filters = "filter=keyword,random,bm25"
    shown = succeed("sftdiff.filters", "report", filters, "teacher=gemini", "prompts.sample=null", cwd=tmp_path)
    assert all(text in shown for text in ("Share flagged, by source", "Against the truth", "How alike the filters are"))
    (path,) = tmp_path.glob("runs/sweeps/filters-*/filters.json")
    (report,) = json.loads(path.read_text())
    by_name: dict[str, Any] = {f["name"]: f for f in report["filters"]}
    assert set(by_name) == {"keyword", "random", "bm25"}
    assert by_name["random"]["flagged"] == by_name["keyword"]["flagged"] > 20
    assert by_name["keyword"]["truth"]["precision"] > 0.9 > 0.75 > by_name["random"]["truth"]["precision"]
    assert by_name["bm25"]["truth"]["overt"]["auroc"] > 0.8
    for f in report["filters"]:
        assert sum(row["flagged"] for row in f["by_source"]) == f["flagged"]
        assert sum(row["rows"] for row in f["by_source"]) == report["rows"] == 276
    assert len(report["pairs"]) == 3


def test_thresholds_of_a_filter_are_reported_on_without_scoring_again(tmp_path: Path) -> None:
    succeed("sftdiff.filters", "report", "filter=keyword", "filter.threshold=1,2", cwd=tmp_path)
    scores = one(tmp_path, "scores")
    (path,) = tmp_path.glob("runs/sweeps/filters-*/filters.json")
    (report,) = json.loads(path.read_text())
    assert [f["name"] for f in report["filters"]] == ["keyword threshold=1", "keyword threshold=2"]
    assert report["filters"][0]["flagged"] > report["filters"][1]["flagged"]
    assert (scores / "logs/attempt_1").exists() and not (scores / "logs/attempt_2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "the subcommand is missing: report"), (["report", "filter=none"], "there is nothing to report on")],
)
def test_a_report_without_filters_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("sftdiff.filters", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of two cells whose mixtures are made; what comes after fails at once, for want of the student."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "student").mkdir()
    words = ["filter=none,keyword", "model=path", "model.path=student", "track=off", "prompt_subset=random_share"]
    words += ["prompt_subset.share=0.25", "prompt_subset.treatment=swap"]
    done = run("sftdiff.train", "-m", *words, cwd=folder)
    assert done.returncode == 1 and "config.json" in done.stderr
    return folder


def test_from_a_cell_to_its_rows_and_back(swept: Path) -> None:
    shown = succeed("sftdiff.report", "rows", "cell=filter=keyword", "out=rows.jsonl", "show=3", cwd=swept)
    assert "rows of 80 are as asked for" in shown and "score keyword" in shown
    rows = [row for _, row in read_rows(swept / "rows.jsonl")]
    mixture = next(p for p in swept.glob("runs/steps/mixture-*") if "keyword" in p.name)
    totals = json.loads((mixture / "summary.json").read_text())["totals"]
    assert len(rows) == totals["kept"] + totals["swapped"]
    assert sum(row["teacher"] == "olmo" for row in rows) == totals["swapped"] == 20
    assert all(id_of(row) == row["prompt_id"] and row["completion"] for row in rows)
    dropped = succeed("sftdiff.report", "rows", "cell=filter=keyword", "action=dropped", "out=dropped.jsonl", cwd=swept)
    assert f"{totals['dropped']} rows of 80" in dropped
    _, first = next(iter(read_rows(swept / "dropped.jsonl")))
    back = succeed("sftdiff.report", "rows", f"prompt={first['prompt_id']}", cwd=swept)
    assert "filter=none" in back and "dropped" in back and "filter keyword" in back


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cell=filter=bm25"], "there is no cell 'filter=bm25'; there are:"),
        (["cell=filter"], "'filter' is a part of 2 cells' names"),
        (["cell=filter=none", "show=x"], "show: 'x' is not a number of rows"),
        (["cell=filter=none", "source=foo"], "source: there is no 'foo'; there are arithmetic"),
        (["cell=filter=none", "out=/nowhere/x.jsonl"], "out=/nowhere/x.jsonl: "),
        (["prompt=00"], "prompt: '00' is not a prompt_id"),
        (["cell=filter=none", "action=lost"], "action: 'lost' is not one of kept, swapped, dropped, error"),
        (["cells=x"], "'cells=x' is not a setting of this command"),
        ([], "give either cell= or prompt="),
        (["cell=x", "sweep=none"], "there is no sweep none under runs"),
        (["prompt=ffffffffffffffff"], ""),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(swept: Path, arguments: list[str], message: str) -> None:
    done = run("sftdiff.report", "rows", *arguments, cwd=swept)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == (1 if message else 0)
    if not message:
        assert "not in its prompt set" in done.stdout


def test_the_package_of_filters_can_be_run(tmp_path: Path) -> None:
    assert (ROOT / "sftdiff/filters/__main__.py").is_file()
    assert "keyword" in succeed("sftdiff.filters", "report", "filter=keyword", "hydra.launcher.dry_run=true", cwd=tmp_path)


def test_rollouts_of_an_endpoint_are_whole_after_faults(tmp_path: Path, teacher_server: tuple[str, Path]) -> None:
    """One prompt is refused for good, one fails until the second run; a mixture that needs them says so."""
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    broken = {"question 3": status(400, "content refused"), "question 5": status(500)}

    def plan(number: int, body: dict[str, Any]) -> Fault | None:
        return broken.get(body["messages"][-1]["content"]) or (status(429, Retry_After="0") if number % 5 == 1 else None)

    with FaultProxy(teacher_server[0], plan) as proxy:
        model = [f"teacher.model.base_url={proxy.url}", f"teacher.model.id={teacher_server[1]}", "teacher.model.max_tokens=6"]
        asked = ["teacher.cut=keep", "teacher.generation.max_attempts=4", "teacher.generation.concurrency=3"]
        own = ["teacher=qwen", "prompts=file", "prompts.path=prompts.jsonl", *model, *asked]
        first = succeed("sftdiff.rollouts", *own, cwd=tmp_path)
        assert "12 replies, 2 prompts without a usable one" in first and "the same command tries again" in first
        done = run("sftdiff.train", *own, "track=off", "model=path", f"model.path={teacher_server[1]}", cwd=tmp_path)
        assert done.returncode == 1 and "2 of 12 prompts need a rollout that is missing" in done.stderr
        del broken["question 5"]
        before = proxy.seen.requests
        second = succeed("sftdiff.rollouts", *own, cwd=tmp_path)
        assert "12 replies, 1 prompts without a usable one" in second and "content refused" in second
        assert before < proxy.seen.requests <= before + 2  # the one that may pass, and perhaps a 429
    rows = {row["prompt_id"]: row for row in read_table(one(tmp_path, "rollouts") / "rollouts.parquet").to_pylist()}
    assert sorted(rows) == sorted(map(id_of, PROMPTS))
    assert [key for key, row in rows.items() if row["completion"] is None] == [id_of(PROMPTS[3])]


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        ("filter=chain filter@filter.chain.first=keyword filter@filter.chain.second=bm25", 1),
        ("prompt_subset=random_like prompt_subset@prompt_subset.of=by_source prompt_subset.of.sources=[coding] "
         "prompt_subset.match=size,length prompt_subset.treatment=swap", 2),
        ("prompt_subset=union prompt_subset@prompt_subset.sets.a=by_source prompt_subset.sets.a.sources=[coding],[writing] "
         "prompt_subset@prompt_subset.sets.b=random_share prompt_subset.sets.b.share=0.1 prompt_subset.treatment=drop", 2),
        ("prompt_subset=locator filter@prompt_subset.locator=keyword prompt_subset.top=0.1,0.2 prompt_subset.treatment=only", 2),
    ],
)  # fmt: skip
def test_subsets_and_filters_inside_of_others_are_accepted_as_the_readme_writes_them(
    tmp_path: Path, words: str, cells: int
) -> None:
    for flag in (["-m"], []) if cells == 1 else (["-m"],):
        shown = succeed("sftdiff.train", *flag, *words.split(), "hydra.launcher.dry_run=true", cwd=tmp_path)
        assert f"{cells} cell{'s' * (cells > 1)}," in shown and "+" not in shown.split("state")[1].split("Smallest")[0]
