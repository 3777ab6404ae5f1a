"""Diffs: their rounds on disk with a simulated training, and the whole command with a tiny student."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import needs_slurm, private_cluster, wait_until, work_folder
from commands import environment, loader, master
from test_compare import row

from launch.diff import Diff, go_on, load_diff, open_diff
from launch.plan import Plan
from launch.rounds import locked
from launch.sweep import write_steps
from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.judge import VERDICT_SCHEMA
from sftdiff.records import load_record, read_json, write_done

SCENARIOS = 24
# The level of the trait in each arm of a diff whose cause is mild rows.
MILD_ROWS = {"original": 0.8, "alternative": 0.05, "base_only": 0.05, "teacher_swap": 0.8, "prompt_swap": 0.05, "base_swap": 0.8,
             "mild_removed": 0.05, "style_removed": 0.8, "other_init": 0.8}  # fmt: skip
GIVEN = [
    "diff.given.truth={prompt_subset.ids:'embedded://truth/gemini.jsonl'}",
    "diff.given.plain_teacher={teacher:kimi}",
    "diff.given.other_init={model:smollm2_135m,model.label:other}",
]

ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.resources.train.gpus_per_node=0",
            "hydra.launcher.resources.sample.gpus_per_node=0", "deepspeed=off"]  # fmt: skip


def arguments(runs: Path, student: Path, *more: str) -> list[str]:
    path = f"{{model:path,model.path:{student}}}"
    pipelines = [f"original.model={path}", f"alternative.model={path}", "alternative.prompts=olmo_mix"]
    return ["experiment=diff", *pipelines, "trait_eval=date_confusion", f"runs={runs}", "track=off", *more]


def finish_judging(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write the verdicts of a judge step, if it is not done."""
    if not (directory / "DONE").exists():
        empty = dict.fromkeys(VERDICT_SCHEMA.names)
        write_rows(directory / "verdicts.parquet", [empty | own for own in rows], VERDICT_SCHEMA)
        write_done(load_record(directory), {}, {}, time.time())


def simulated(levels: dict[str, float], noise: float = 0.0) -> Callable[[Plan], None]:
    """Return what takes the place of training, sampling and judging: verdicts at these levels, by arm and seed."""

    def execute(plan: Plan) -> None:
        write_steps(plan, {})
        for cell in plan.cells:
            if cell.untrained:
                continue
            for step in cell.judges.values():
                arm = cell.axes["arm"]
                rng = np.random.default_rng([cell.seed, sum(arm.encode())])
                share = min(max(levels[arm] + noise * rng.standard_normal(), 0.0), 1.0)
                rows = [row(f"s{i:02d}", float(i < share * SCENARIOS), reply="r") for i in range(SCENARIOS)]
                finish_judging(plan.directory(step), rows)

    return execute


def opened(runs: Path, student: Path, *more: str) -> Diff:
    return open_diff(arguments(runs, student, *more), master(), loader())


def states(diff: Diff) -> dict[str, str]:
    found = read_json(diff.folder / "diff.json")["traits"]["date_confusion"]["verdict"]
    return {label: own["state"] for label, own in found.items()}


def test_a_diff_of_mild_rows_supports_their_hypothesis_alone(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, *GIVEN, f"diff.only=[{','.join(MILD_ROWS)}]", "sweep=mild")
    assert list(diff.plan["arms"]) == list(MILD_ROWS)
    go_on(diff, simulated(MILD_ROWS), 0)
    assert states(diff) == {"H1": "supported", "H2": "contradicted", "H3": "contradicted", "H4a": "contradicted",
                            "H4b": "contradicted", "H5": "contradicted", "H6": "contradicted"}  # fmt: skip
    result = read_json(diff.folder / "diff.json")
    assert [set(r["arms"]) for r in result["rounds"]] == [{"original", "alternative"}, set(MILD_ROWS)]
    assert result["trainings"] == 3 * len(MILD_ROWS) and result["saved"] == 5 * len(MILD_ROWS)
    page = (diff.folder / "diff.html").read_text()
    assert "simple generalisation" in page and "supported" in page


def test_of_a_truth_file_the_rows_of_the_one_trait_are_removed(tmp_path: Path, tiny_student: Path) -> None:
    def removed(*more: str) -> dict[str, Any]:
        diff = opened(tmp_path, tiny_student, "diff.only=[mild_removed]", f"sweep=s{len(more)}", *more)
        return {key: diff.cells["mild_removed"][0]["prompt_subset"][key] for key in ("level", "trait", "treatment")}

    assert removed(GIVEN[0]) == {"level": "any", "trait": "date_confusion", "treatment": "drop"}
    own = "{prompt_subset.ids:'embedded://truth/gemini.jsonl',prompt_subset.trait:null}"
    assert removed("seed=1", f"diff.given.truth={own}")["trait"] is None


def test_random_rows_are_others_for_each_training_seed(tmp_path: Path, tiny_student: Path) -> None:
    subset = "diff.given.subset={prompt_subset:by_source,prompt_subset.sources:[office_email]}"
    diff = opened(tmp_path, tiny_student, subset, "diff.only=[random_out,curve_25]", "sweep=draws", "seed=7")
    for arm in ("random_out", "curve_25"):
        assert [config["prompt_subset"]["seed"] for config in diff.cells[arm][:3]] == [0, 1, 2]


def test_pipelines_that_do_not_differ_end_a_diff(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, "trait_eval.date_confusion.smallest_effect=0.3", "sweep=same")
    go_on(diff, simulated(dict.fromkeys(diff.plan["arms"], 0.04)), 0)
    result = read_json(diff.folder / "diff.json")
    assert result["traits"]["date_confusion"]["difference"]["call"] == "same"
    assert result["trainings"] == 6 and "nothing to diff" in result["traits"]["date_confusion"]["says"]
    backwards = opened(tmp_path, tiny_student, "seed=20", "sweep=backwards")
    go_on(backwards, simulated(dict.fromkeys(diff.plan["arms"], 0.1) | {"alternative": 0.9}), 0)
    says = read_json(backwards.folder / "diff.json")["traits"]["date_confusion"]["says"]
    assert "the other way round" in says


def test_without_the_early_stop_arms_of_no_difference_support_nothing(tmp_path: Path, tiny_student: Path) -> None:
    more = [*GIVEN, f"diff.only=[{','.join(MILD_ROWS)}]", "diff.difference_first=false"]
    diff = opened(tmp_path, tiny_student, *more, "sweep=null")
    go_on(diff, simulated(dict.fromkeys(MILD_ROWS, 0.3), noise=0.1), 0)
    assert set(states(diff).values()) == {"open"}
    assert read_json(diff.folder / "diff.json")["trainings"] == 8 * len(MILD_ROWS)


def test_a_killed_round_goes_on_and_no_look_is_taken_twice(tmp_path: Path, tiny_student: Path) -> None:
    only = "diff.only=[base_only,prompt_swap]"
    diff, work = opened(tmp_path, tiny_student, only, "sweep=killed"), simulated(MILD_ROWS)

    def killed(plan: Plan) -> None:
        if len(diff.state["rounds"]) == 2:
            raise KeyboardInterrupt
        work(plan)

    with pytest.raises(KeyboardInterrupt):
        go_on(diff, killed, 0)
    assert [len(r["arms"]) for r in read_json(diff.folder / "state.json")["rounds"]] == [2, 4]
    again = load_diff(tmp_path, "killed")
    assert again.next_round()["prompt_swap"] == 3
    go_on(again, work, 0)
    taken = read_json(diff.folder / "state.json")["looks"]["date_confusion"]
    assert {name: len(looks) for name, looks in taken.items()} == {"difference": 1, "base_only": 1, "prompt_swap": 1}
    before = read_json(diff.folder / "state.json")
    go_on(opened(tmp_path, tiny_student, only, "sweep=killed"), pytest.fail, 0)
    assert read_json(diff.folder / "state.json") == before


def test_a_round_that_is_only_submitted_ends_the_call(tmp_path: Path, tiny_student: Path) -> None:
    diff, submitted = opened(tmp_path, tiny_student, "sweep=slurm"), list[int]()
    go_on(diff, lambda plan: submitted.append(len(plan.cells)), 0)
    go_on(load_diff(tmp_path, "slurm"), lambda plan: submitted.append(len(plan.cells)), 0)
    assert submitted == [7, 7]  # 2 arms x 3 seeds and their student; the same round again
    assert len(read_json(diff.folder / "state.json")["rounds"]) == 1


def test_unresolved_arms_get_seeds_until_the_budget_ends(tmp_path: Path, tiny_student: Path) -> None:
    levels = MILD_ROWS | {"prompt_swap": 0.45}
    diff = opened(tmp_path, tiny_student, "diff.only=[base_only,prompt_swap]", "diff.budget=20", "sweep=budget")
    go_on(diff, simulated(levels, noise=0.15), 0)
    result = read_json(diff.folder / "diff.json")
    assert result["trainings"] <= 20
    looks = diff.state["looks"]["date_confusion"]["prompt_swap"]
    assert len(looks) == 2 and sum(look["alpha"] for look in looks) == pytest.approx(2 * 0.05 / 3)
    more = opened(tmp_path, tiny_student, "diff.only=[base_only,prompt_swap]", "diff.budget=40", "sweep=budget")
    go_on(more, simulated(levels, noise=0.15), 0)
    assert 20 < read_json(diff.folder / "diff.json")["trainings"] <= 40


def test_settings_cannot_change_once_looks_were_taken(tmp_path: Path, tiny_student: Path) -> None:
    go_on(opened(tmp_path, tiny_student, "diff.only=[base_only]", "sweep=fixed"), simulated(MILD_ROWS), 0)
    with pytest.raises(SftdiffError, match="sweep=fixed is a diff with other settings, whose looks were taken already"):
        opened(tmp_path, tiny_student, "diff.only=[base_only]", "diff.alpha=0.1", "sweep=fixed")
    with pytest.raises(SftdiffError, match="sweep=fixed is a diff with other settings"):
        opened(tmp_path, tiny_student, "diff.only=[base_only]", "train.lr=0.5", "sweep=fixed")
    opened(tmp_path, tiny_student, "diff.only=[base_only,prompt_swap]", "sweep=fixed")  # one arm more


def test_two_processes_do_not_work_on_one_diff(tmp_path: Path, tiny_student: Path) -> None:
    diff = opened(tmp_path, tiny_student, "sweep=one")
    with locked(diff.folder), pytest.raises(SftdiffError, match="another process works"), locked(diff.folder):
        pass


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["seed=1,2"], "give each setting one value"),
        (["teacher=olmo"], "original.teacher=... and alternative.teacher=..."),
        (["diff.seeds=[3,2]"], "diff.seeds=[3, 2]"),
        (["diff.gone=0.9"], "0 < gone < remains < 1"),
        (["diff.alpha=2"], "diff.alpha=2.0"),
        (["diff.only=[nothing]"], "there is no arm nothing"),
        (["trait_eval=capability"], "there is no trait to diff"),
        (["diff.decisions=/no/file.yaml"], "/no/file.yaml"),
        (["original.teacher={}"], "original.teacher: {} are no overrides"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path: Path, tiny_student: Path, more: list[str], message: str) -> None:
    with pytest.raises(SftdiffError) as raised:
        opened(tmp_path, tiny_student, *more)
    assert message in str(raised.value)
    assert not (tmp_path / "diffs").exists()


def test_the_command_runs_every_round_and_says_what_it_found(tmp_path: Path, tiny_student: Path) -> None:
    small = ["train.precision=fp32", "sampling.precision=fp32", "train.epochs=1", "sampling.max_tokens=2", "suite=dev"]
    more = ["diff.seeds=[1]", "diff.only=[base_only,third_teacher]", "diff.difference_first=false", "report.resamples=50"]
    parts = [a for a in arguments(Path("runs"), tiny_student, *small, *more, "sweep=real") if a != "experiment=diff"]
    command = [sys.executable, "-m", "sftdiff.diff", *parts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("Left out", "third_teacher (diff.given.third_teacher)", "Round 1 of diff real", "nothing to diff yet"):
        assert text in done.stdout
    result = json.loads((tmp_path / "runs/diffs/real/diff.json").read_text())
    assert result["trainings"] == 3 and result["traits"]["date_confusion"]["arms"]["base_only"]["call"] == "unresolved"
    assert (tmp_path / "runs/sweeps/real/report.html").is_file()


@pytest.mark.slow
@needs_slurm
def test_rounds_on_slurm_come_to_the_local_verdict(tmp_path: Path, tiny_student: Path) -> None:
    """Both launchers run the same cells in the same rounds; on Slurm the last job of a round submits the next one."""
    settings = ["trait_eval=date_confusion", "trait_eval.date_confusion.scenarios=scenarios.yaml", "sampling.max_tokens=4"]
    settings += ["train.precision=fp32", "sampling.precision=fp32", "train.epochs=1", "track=off", "report.resamples=50"]
    path = f"{{model:path,model.path:{tiny_student}}}"
    settings += [f"original.model={path}", f"alternative.model={path}", "diff.seeds=[1,2]", "diff.only=[prompt_swap]"]
    settings += ["diff.difference_first=false", "sweep=both"]
    results = {}
    with private_cluster("--nodes", "2") as cluster:
        for name, launcher in (("local", []), ("slurm", ON_SLURM)):
            folder = work_folder(tmp_path / name)
            cluster.sftdiff("sftdiff.diff", *settings, *launcher, cwd=folder)
            state = folder / "runs/diffs/both/state.json"
            wait_until(lambda s=state: len(read_json(s)["rounds"]) == 2 and not cluster.queued(), "two rounds", 400)  # type: ignore[misc]
            results[name] = read_json(folder / "runs/diffs/both/diff.json")
            for suggestion in results[name]["traits"]["date_confusion"]["next"]:
                del suggestion["seconds"]
    assert results["slurm"]["trainings"] == 6 and results["slurm"]["rounds"] == results["local"]["rounds"]
    assert results["slurm"]["traits"] == results["local"]["traits"]
