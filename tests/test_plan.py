"""Plans: what is shared is planned once, an identity changes with what changes a result and with nothing else.

tests/golden/plan.json holds the step ids of the main command. After a change of an identity that is meant:
`env -u PYTHONSAFEPATH PYTHONPATH=. python tests/test_plan.py` writes it again.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import cells, ids, plan

from launch.data import content_hash, uses_other
from launch.forecast import detectable
from launch.local import precision_warning
from launch.plan import Plan, build_plan
from sftdiff.errors import SftdiffError
from sftdiff.identity import digest, step_identity
from sftdiff.rows import TREATMENTS

GOLDEN = Path(__file__).parent / "golden" / "plan.json"
COMMAND = ["teacher=gemini,olmo", "filter=none,keyword"]
RESULTS = ("student", "prompts", "rollouts", "scores", "mixture", "pack", "train", "sample", "judge")


def results(*overrides: str) -> set[str]:
    """Return the ids of all steps but the report."""
    planned = plan(*overrides)
    return {i for kind in RESULTS for i in ids(planned, kind)}


@functools.cache
def default() -> set[str]:
    return results()


def kinds(names: set[str]) -> set[str]:
    return {name.partition("-")[0] for name in names}


def test_the_ids_of_the_main_command_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["command"] == COMMAND
    changed = sorted(set(plan(*COMMAND).steps) - set(golden["steps"]))
    regenerate = "if that is meant, run `PYTHONPATH=. python tests/test_plan.py`"
    assert len(changed) == 0, f"identities changed, {kinds(set(changed))}; {regenerate}"
    assert len(golden["steps"]) == 59


def test_inputs_come_before_the_steps_that_read_them() -> None:
    planned = plan("teacher=gemini,olmo", "filter=none,random", "seed=1,2", "prompt_subset.treatment=keep,swap")
    seen: set[str] = set()
    for step in planned.steps.values():
        assert set(step.inputs.values()) <= seen
        seen.add(step.id)
    assert list(planned.steps)[-1] == planned.report


def test_five_seeds_share_everything_before_training() -> None:
    planned = plan("seed=range(0,5)")
    assert len(ids(planned, "train")) == 5
    for kind in ("student", "prompts", "rollouts", "mixture", "pack"):
        assert len(ids(planned, kind)) == 1
    assert len({c.arm for c in planned.cells if not c.untrained}) == 1
    assert sorted(c.seed for c in planned.cells if not c.untrained) == [0, 1, 2, 3, 4]


def test_two_teachers_and_two_filters_share_rollouts_scores_and_the_untrained_student() -> None:
    planned = plan(*COMMAND)
    counted = {kind: len(ids(planned, kind)) for kind in RESULTS}
    assert counted == {
        "student": 1, "prompts": 1, "rollouts": 2, "scores": 2, "mixture": 4, "pack": 4, "train": 4, "sample": 20, "judge": 20
    }  # fmt: skip


def test_a_trait_added_later_leaves_every_other_step() -> None:
    before, after = results(*COMMAND, "trait_eval=date_confusion"), results(*COMMAND, "trait_eval=all")
    assert before < after
    assert kinds(after - before) == {"sample", "judge"}
    assert results(*COMMAND, "trait_eval=date_confusion,blackmail") < after


def test_thresholds_and_treatments_share_scores() -> None:
    planned = plan("filter=keyword", "filter.threshold=1,2,3", "filter.treatment=drop,swap")
    assert (len(ids(planned, "scores")), len(ids(planned, "mixture"))) == (1, 6)
    top = plan("filter=keyword", "filter.threshold=null", "filter.top=5,0.1")
    assert ids(top, "scores") == ids(planned, "scores")
    assert len(ids(top, "mixture")) == 2
    for change in ("filter.part=prompt", "filter.params.traits=[blackmail]", "teacher=olmo", "prompts.sample=9"):
        assert ids(plan("filter=keyword", change), "scores") != ids(planned, "scores")


def test_the_random_control_shares_the_scores_of_the_filter_that_it_matches() -> None:
    planned = plan("filter=keyword,random", "teacher=gemini", "seed=1,2")
    assert (len(ids(planned, "scores")), len(ids(planned, "mixture"))) == (1, 2)
    seeds = plan("filter=random", "filter.params.seed=1,2,3", "filter.match_by=count,source")
    assert ids(seeds, "scores") == ids(planned, "scores")
    assert len(ids(seeds, "mixture")) == 6


@pytest.mark.parametrize(
    "settings",
    [
        ["deepspeed=zero3"],
        ["deepspeed.offload=true"],
        ["train.micro_batches=4"],
        ["train.save_steps=5"],
        ["sampling.batch_size=7"],
        ["track=off"],
        ["track.project=other"],
        ["runs=/elsewhere"],
        ["sweep=my-name"],
        ["hydra.launcher.processes=2"],
        ["hydra/launcher=submitit_slurm"],
        ["report.examples=9", "report.resamples=10"],
        ["train.lora.r=4"],  # not read by train=full
        ["teacher@other_teacher=kimi"],  # nothing is swapped
        ["teacher=gemini"],  # the default, said again
        ["missing_rollouts=fail"],
        ["teacher.generation.concurrency=3"],
        ["teacher.generation.max_cost=5"],
        ["teacher.model.id=another"],  # its rollouts are stored
        ["teacher.truth=null"],
        ["prompt_subset.seed=4"],  # prompt_subset=all has none
        ["prompt_subset.top=3"],
        ["filter.threshold=7"],  # there is no filter
    ],
    ids=" ".join,
)
def test_what_changes_no_result_changes_no_identity(settings: list[str]) -> None:
    assert results(*settings) == default()


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("train.precision=fp32", {"train", "sample", "judge"}),
        ("train.lr=3e-4", {"train", "sample", "judge"}),
        ("train.epochs=7", {"train", "sample", "judge"}),
        ("train.batch_size=3", {"train", "sample", "judge"}),
        ("train.packing=false", {"train", "sample", "judge"}),
        ("train=lora", {"train", "sample", "judge"}),
        ("seed=1", {"train", "sample", "judge"}),
        ("train.max_length=512", {"pack", "train", "sample", "judge"}),
        ("filter=keyword", {"scores", "mixture", "pack", "train", "sample", "judge"}),
        ("missing_rollouts=leave_out", {"mixture", "pack", "train", "sample", "judge"}),
        ("teacher=kimi", {"rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("prompts.sample=8", {"prompts", "rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("prompts.unusable=leave_out", {"prompts", "rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("teacher.reasoning=keep", {"rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("teacher.samples=2", {"rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("missing_rollouts=leave_out_both", {"rollouts", "mixture", "pack", "train", "sample", "judge"}),
        ("train.match=rows", set()),  # the cell is what it would be held equal to
        ("model.chat_template=x", {"student", "pack", "train", "sample", "judge"}),
        ("model.revision=abc", {"student", "pack", "train", "sample", "judge"}),
        ("sampling.precision=fp32", {"sample", "judge"}),
        ("sampling.seed=1", {"sample", "judge"}),
        ("trait_eval.blackmail.max_tokens=9", {"sample", "judge"}),
        ("trait_eval.blackmail.suite=full", {"sample", "judge"}),
        ("judge=openai judge.model.id=m", {"judge"}),
        ("trait_eval.blackmail._target_=sftdiff.traits.date_confusion", {"judge"}),
    ],
)
def test_what_changes_a_result_changes_what_follows_and_nothing_else(setting: str, changed: set[str]) -> None:
    assert kinds(results(*setting.split()) - default()) == changed


def test_lora_settings_count_where_they_are_read() -> None:
    assert results("train=lora", "train.lora.r=4") != results("train=lora")


def _reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reordered(value[key]) for key in reversed(value)}
    return [_reordered(v) for v in value] if isinstance(value, list) else value


def test_the_order_of_keys_changes_no_identity() -> None:
    given = cells(*COMMAND)
    reordered = [(axes, _reordered(config)) for axes, config in given]
    assert list(reordered[0][1]) != list(given[0][1])
    assert set(build_plan(reordered, "").steps) - {build_plan(reordered, "").report} == results(*COMMAND)


def test_an_identity_is_of_kind_config_inputs_and_files() -> None:
    first = step_identity("train", {"a": 1, "b": 2}, {"x": "y"}, {"f": "0"})
    assert first == step_identity("train", {"b": 2, "a": 1}, {"x": "y"}, {"f": "0"}) and len(first) == 12
    others = {
        step_identity("pack", {"a": 1, "b": 2}, {"x": "y"}, {"f": "0"}),
        step_identity("train", {"a": 1, "b": 2.5}, {"x": "y"}, {"f": "0"}),
        step_identity("train", {"a": 1, "b": 2}, {"x": "z"}, {"f": "0"}),
        step_identity("train", {"a": 1, "b": 2}, {"x": "y"}, {"f": "1"}),
    }
    assert len(others | {first}) == 5


def test_the_content_of_an_external_file_counts(tmp_path: Path) -> None:
    found = []
    for text in ("one", "two"):
        (tmp_path / "rollouts.jsonl").write_text(text)
        content_hash.cache_clear()
        found.append(results("teacher=stored", f"teacher.path={tmp_path}/rollouts.jsonl"))
    assert kinds(found[0] - found[1]) == {"rollouts", "mixture", "pack", "train", "sample", "judge"}


def test_the_files_of_a_data_sets_folder_count(tmp_path: Path) -> None:
    found = []
    for name, text in (("a.jsonl", "one"), ("a.jsonl", "two"), ("b.jsonl", "")):
        (tmp_path / name).write_text(text)
        content_hash.cache_clear()
        found.append(set(ids(plan("prompts=file", f"prompts.path={tmp_path}"), "prompts")))
    assert len(set.union(*found)) == 3


def test_the_files_of_a_students_folder_count(tmp_path: Path) -> None:
    found = []
    for text in ("{}", '{"a": 1}'):
        (tmp_path / "config.json").write_text(text)
        content_hash.cache_clear()
        found.append(set(ids(plan("model=path", f"model.path={tmp_path}"), "student")))
    assert found[0] != found[1]


TREATED = [("filter", t) for t in ("drop", "swap")] + [("prompt_subset", t) for t in TREATMENTS]


@pytest.mark.parametrize(("part", "treatment"), TREATED)
def test_every_swap_has_rollouts_of_the_other_teacher(part: str, treatment: str) -> None:
    planned = plan("filter=keyword", f"{part}.treatment={treatment}", "teacher@other_teacher=kimi")
    swaps = treatment.startswith("swap")
    for step in planned.steps.values():
        if step.kind == "mixture":
            assert ("other_rollouts" in step.inputs) == swaps
            assert step.config["teachers"].get("other") == ("kimi" if swaps else None)
    assert len(ids(planned, "rollouts")) == (2 if swaps else 1)
    assert uses_other(planned.cells[-1].config) == swaps


@pytest.mark.parametrize("overrides", [[], ["teacher=gemini,olmo"], ["seed=1,2,3"], ["train.lr=1e-5,1e-4", "filter=keyword"]])
def test_the_untrained_student_is_always_there_and_first(overrides: list[str]) -> None:
    planned = plan(*overrides)
    untrained = [c for c in planned.cells if c.untrained]
    assert [c.label for c in untrained] == ["untrained"]
    assert planned.cells[0] is untrained[0]
    assert "train" not in untrained[0].steps
    assert set(untrained[0].judges) == {"negative_emotion", "date_confusion", "blackmail", "capability"}


def _untrained(planned: Plan) -> list[str]:
    return [c.label for c in planned.cells if c.untrained]


def test_each_student_has_an_untrained_arm_of_its_own_name(tmp_path: Path) -> None:
    assert _untrained(plan("model=gemma3_4b,qwen3_4b", "model.revision=0123abc")) == ["untrained gemma3_4b", "untrained qwen3_4b"]
    assert _untrained(plan("model=hub", "model.id=a/b,c/d", "model.revision=0123abc")) == ["untrained a/b", "untrained c/d"]
    assert len(set(_untrained(plan("model.chat_template=x,y")))) == 2  # of one name
    for name in "ab":
        (tmp_path / name).mkdir()
    found = _untrained(plan("model=path", f"model.path={tmp_path}/a,{tmp_path}/b"))
    assert found == [f"untrained {tmp_path}/a", f"untrained {tmp_path}/b"]


def test_the_arms_of_a_sweep_are_named_by_what_is_swept() -> None:
    planned = plan("filter=none,keyword", "train.lr=1e-4,1e-5", "seed=1,2", "trait_eval=date_confusion,blackmail")
    arms = {c.label for c in planned.cells}
    assert arms == {"untrained", *(f"filter={f} train.lr={lr}" for f in ("none", "keyword") for lr in ("0.0001", "1e-05"))}
    assert all(set(c.judges) == {"date_confusion", "blackmail"} for c in planned.cells)


def test_the_sweeps_name_is_the_hash_of_its_cells() -> None:
    planned = plan(*COMMAND)
    evaluated = sorted([c.steps["model"], *sorted(c.judges.values())] for c in planned.cells)
    assert planned.sweep == digest(json.dumps(evaluated, separators=(",", ":")), 10)
    same = [
        plan("filter=keyword,none", "teacher=olmo,gemini"),
        plan(*COMMAND, "track=off", "runs=elsewhere"),
    ]
    assert {p.sweep for p in same} == {planned.sweep}
    others = [
        plan(*COMMAND, "seed=1"),
        plan(*COMMAND[:1]),
        plan(*COMMAND, "train.lr=3e-4"),
        plan(*COMMAND, "trait_eval=blackmail"),  # of the same models; its plan must not take the place of the first
        plan(*COMMAND, "trait_eval.blackmail.max_tokens=9"),
    ]
    assert len({p.sweep for p in [*others, planned]}) == 6
    assert plan(*COMMAND, "sweep=mine").sweep == "mine"


@pytest.mark.parametrize("name", ["..", "-x", "a/b", "x" * 61])
def test_a_name_that_is_no_folder_and_no_job_is_refused(name: str) -> None:
    with pytest.raises(SftdiffError, match="names jobs and folders"):
        plan(f"sweep={name}")


def test_equal_cells_are_planned_once() -> None:
    assert len(plan("seed=1,1,1").cells) == 2
    assert len(ids(plan("train.lr=1e-4,0.0001"), "train")) == 1


def test_a_sweep_without_cells_is_refused() -> None:
    with pytest.raises(SftdiffError, match="no cells"):
        build_plan([], "")


def write_golden() -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"command": COMMAND, "steps": sorted(plan(*COMMAND).steps)}, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()


@pytest.mark.parametrize(
    ("flags", "gpu", "overrides", "warned"),
    [
        ("fpu avx avx2", False, [], True),
        ("fpu avx avx2", True, [], False),
        ("fpu avx2 avx512bw avx512_bf16", False, [], False),
        ("fpu avx avx2", False, ["train.precision=fp32", "sampling.precision=fp32"], False),
        ("fpu avx avx2", False, ["train.precision=fp32"], True),
    ],
)
def test_a_processor_without_bf16_is_named(tmp_path: Path, flags: str, gpu: bool, overrides: list[str], warned: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    if gpu:
        (tmp_path / "gpu").touch()
    text = precision_warning(plan(*overrides), tmp_path / "cpuinfo", tmp_path / "gpu")
    assert ("train.precision=fp32" in text) == warned


def test_the_smallest_difference_that_a_sweep_can_find() -> None:
    once = {title: (value, unit) for title, value, unit in detectable(plan("teacher=gemini,olmo"))}
    # (1.960 + 0.842) * sqrt(2 * 0.15 * 0.85 / 28 scenarios), in points; and the same with 2 of 10 as the spread
    assert once["Date confusion"] == (pytest.approx(26.7, abs=0.1), "points")
    assert once["Negative emotion"] == (pytest.approx(1.50, abs=0.01), "of 10")
    four = {title: value for title, value, _ in detectable(plan("teacher=gemini,olmo", "seed=0,1,2,3"))}
    # A fifth of the variance stays; t(0.975) is 3.182 for 4 seeds and 2.052 for 28 scenarios, both parts weigh the same.
    quantile = (3.182 + 2.052) / 2
    wanted = once["Date confusion"][0] * (quantile + 0.842) / (1.960 + 0.842) * math.sqrt(0.8 / 4 + 0.2)
    assert four["Date confusion"] == pytest.approx(wanted, rel=1e-3)


def test_scores_depend_on_no_file_that_happens_to_lie_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = plan("filter=keyword,bm25")
    (tmp_path / "sweep.log").write_text("something")
    after = plan("filter=keyword,bm25")
    assert ids(after, "scores") == ids(before, "scores")
    assert all(str(file).startswith("embedded://") for s in after.steps.values() if s.kind == "scores" for file in s.files)
