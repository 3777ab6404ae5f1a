"""The steps that make mixtures, as a plan has them: subsets with locators, filter chains, teachers, and matched trainings."""

from pathlib import Path
from typing import Any

import pytest
from commands import ids, plan, refusal

from launch.data import PlannedStep, content_hash
from launch.plan import Plan

RANDOM = ["prompt_subset=random_share", "prompt_subset.share=0.5", "prompt_subset.treatment=drop"]
LOCATOR = ["prompt_subset=locator", "filter@prompt_subset.locator=keyword", "prompt_subset.top=5", "prompt_subset.treatment=drop"]


def of_kind(planned: Plan, kind: str) -> list[PlannedStep]:
    return [step for step in planned.steps.values() if step.kind == kind]


def only(planned: Plan, kind: str) -> PlannedStep:
    (step,) = of_kind(planned, kind)
    return step


# Prompts and rollouts


def test_all_teachers_read_one_prompts_step() -> None:
    planned = plan("teacher=gemini,olmo,kimi", *RANDOM[:2], "prompt_subset.treatment=swap,drop", "filter=none,keyword")
    prompts = only(planned, "prompts")
    assert len(of_kind(planned, "rollouts")) == 3
    readers = [step for step in planned.steps.values() if step.kind in ("rollouts", "scores", "mixture", "pack")]
    assert {step.inputs["prompts"] for step in readers} == {prompts.id}


def test_a_pack_reads_the_texts_that_its_mixture_refers_to() -> None:
    planned = plan(*RANDOM[:2], "prompt_subset.treatment=swap,drop")
    for pack in of_kind(planned, "pack"):
        mixture = planned.steps[pack.inputs["mixture"]]
        texts = {name: i for name, i in mixture.inputs.items() if name in ("prompts", "rollouts", "other_rollouts")}
        assert {**pack.inputs, **texts} == pack.inputs
        assert ("other_rollouts" in pack.inputs) == ("swap" in mixture.id)


def test_a_teacher_without_stored_rollouts_is_asked_and_its_settings_count() -> None:
    def rollouts(*overrides: str) -> PlannedStep:
        return only(plan("teacher=gemma", *overrides), "rollouts")

    step = rollouts()
    teacher = step.config["teacher"]
    assert (teacher["origin"], teacher["model"]["id"], step.files) == ("endpoint", "google/gemma-3-27b-it", {})
    text = str(step.config)
    assert "base_url" not in text and "api_key_env" not in text and "price" not in text  # they change no rollout
    assert step.runtime["model"]["base_url"] == "http://localhost:8000/v1"
    for same in ("teacher.model.base_url=http://other", "teacher.model.price_in=3", "teacher.generation.max_attempts=2"):
        assert rollouts(same).id == step.id
    for other in ("teacher.model.temperature=0.5", "teacher.model.system=Hi", "teacher.cut=keep", "teacher.samples=3"):
        assert rollouts(other).id != step.id


@pytest.mark.parametrize(
    ("overrides", "origin"),
    [
        ([], "stored"),
        (["prompts=olmo_mix"], "stored"),
        (["prompts=file", "prompts.path={}"], "endpoint"),  # what the package ships is for the prompts that it ships
        (["prompts=file", "prompts.path={}", "teacher.path={}"], "stored"),
        (["prompts=file", "prompts.path={}", "teacher.id=who/what", "teacher.path=null", "teacher.revision=0123abc"], "stored"),
        (["teacher.origin=endpoint"], "endpoint"),
        (["teacher=stored", "teacher.path={}"], "stored"),
    ],
    ids=str,
)
def test_where_rollouts_come_from(tmp_path: Path, overrides: list[str], origin: str) -> None:
    (tmp_path / "rows.jsonl").write_text("x")
    step = only(plan(*(o.replace("{}", f"{tmp_path}/rows.jsonl") for o in overrides)), "rollouts")
    assert step.config["teacher"]["origin"] == origin
    assert bool(step.files) == (origin == "stored" and not step.config["teacher"]["id"])


# Subsets


def test_the_scores_of_a_locator_are_an_input_of_the_mixture() -> None:
    planned = plan(*LOCATOR)
    mixture, scores = only(planned, "mixture"), only(planned, "scores")
    assert mixture.inputs["scores_0"] == scores.id
    assert mixture.config["prompt_subset"] == {
        "name": "locator", "treatment": "drop", "locator": {"name": "keyword", "input": "scores_0"}, "threshold": None, "top": 5
    }  # fmt: skip
    assert ids(plan(*LOCATOR, "prompt_subset.top=1,2,0.3", "prompt_subset.treatment=swap,drop"), "scores") == [scores.id]
    assert ids(plan("filter=keyword"), "scores") == [scores.id]


def test_a_filter_and_a_locator_that_score_alike_share_an_input() -> None:
    planned = plan(*LOCATOR, "filter=keyword")
    mixture = only(planned, "mixture")
    assert [name for name in mixture.inputs if name.startswith("scores")] == ["scores_0"]
    assert mixture.config["filters"][0]["input"] == "scores_0"
    other = only(plan(*LOCATOR, "filter=keyword", "filter.part=prompt"), "mixture")
    assert other.inputs["scores_0"] != other.inputs["scores_1"]
    assert other.config["filters"][0]["input"] == "scores_1"


def test_locators_inside_of_other_subsets_are_found(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("")
    planned = plan(
        "prompt_subset=intersection", "prompt_subset.treatment=drop",
        "prompt_subset@prompt_subset.sets.a=complement", "prompt_subset@prompt_subset.sets.a.of=locator",
        "filter@prompt_subset.sets.a.of.locator=keyword", "prompt_subset.sets.a.of.threshold=1",
        "prompt_subset@prompt_subset.sets.b=ids", f"prompt_subset.sets.b.ids={tmp_path}/ids.txt",
        "prompt_subset@prompt_subset.sets.c=random_like", "prompt_subset@prompt_subset.sets.c.of=all",
    )  # fmt: skip
    mixture = only(planned, "mixture")
    assert mixture.inputs["scores_0"] == only(planned, "scores").id
    sets = mixture.config["prompt_subset"]["sets"]
    assert sets["a"]["of"]["locator"] == {"name": "keyword", "input": "scores_0"}
    assert sets["c"] == {"name": "random_like", "of": {"name": "all"}, "match": "size", "seed": 0, "outside": False}
    assert list(mixture.files) == [f"{tmp_path}/ids.txt"]
    content_hash.cache_clear()
    (tmp_path / "ids.txt").write_text("0123456789abcdef")
    sources = ["prompt_subset=ids", "prompt_subset.treatment=drop", f"prompt_subset.ids={tmp_path}/ids.txt"]
    assert list(only(plan(*sources), "mixture").files.values()) != list(mixture.files.values())


@pytest.mark.parametrize("setting", ["share=0.6", "seed=1", "treatment=only"])
def test_what_a_subset_reads_changes_its_mixture_and_nothing_before(setting: str) -> None:
    before, after = plan(*RANDOM), plan(*RANDOM[:-1], "prompt_subset.treatment=drop", f"prompt_subset.{setting}")
    assert ids(before, "mixture") != ids(after, "mixture")
    assert ids(before, "rollouts") == ids(after, "rollouts")


# Chains

CHAIN = ["filter=chain", "filter@filter.chain.first=keyword", "filter@filter.chain.second=keyword"]


def test_a_chain_has_its_filters_in_their_order() -> None:
    planned = plan(*CHAIN, "filter.chain.second.part=prompt", "filter.chain.second.treatment=swap")
    mixture = only(planned, "mixture")
    assert len(of_kind(planned, "scores")) == 2
    assert [(f["name"], f["treatment"], f["input"]) for f in mixture.config["filters"]] == [
        ("keyword", "drop", "scores_0"), ("keyword", "swap", "scores_1")
    ]  # fmt: skip
    assert planned.steps[mixture.inputs["scores_1"]].config["part"] == "prompt"
    assert "other_rollouts" in mixture.inputs


def test_the_same_filter_twice_in_a_chain_is_scored_once() -> None:
    planned = plan(*CHAIN, "filter.chain.second.threshold=3")
    assert [f["threshold"] for f in only(planned, "mixture").config["filters"]] == [1, 3]
    assert only(planned, "scores").id in only(planned, "mixture").inputs.values()
    assert "other_rollouts" not in only(planned, "mixture").inputs


def test_a_chain_of_one_filter_is_that_filter() -> None:
    one, alone = plan("filter=chain", "filter@filter.chain.x=keyword"), plan("filter=keyword")
    assert only(one, "mixture").config == only(alone, "mixture").config
    assert only(one, "mixture").inputs == only(alone, "mixture").inputs


# Matched trainings


def references(planned: Plan) -> dict[str, str | None]:
    """Return the pack that each arm's training is held equal to."""
    trains = {cell.label: planned.steps[cell.steps["train"]] for cell in planned.cells if not cell.untrained}
    for train in trains.values():
        assert (train.config["train"]["match"] is None) == ("reference" not in train.inputs)
    return {arm: train.inputs.get("reference") for arm, train in trains.items()}


@pytest.mark.parametrize("match", ["rows", "tokens", "steps"])
def test_a_matched_training_reads_the_pack_of_the_sweep_without_subset_and_filter(match: str) -> None:
    planned = plan("filter=none,keyword,random", f"train.match={match}")
    packs = {cell.label: cell.steps["pack"] for cell in planned.cells if not cell.untrained}
    reference = packs["filter=none"]
    assert references(planned) == {"filter=none": None, "filter=keyword": reference, "filter=random": reference}
    assert len(of_kind(planned, "pack")) == 3


def test_the_reference_is_planned_where_no_cell_is_it_and_is_the_first_cells() -> None:
    planned = plan(*RANDOM[:2], "prompt_subset.treatment=drop,only", "filter=keyword", "train.match=rows", "seed=1,2")
    (reference,) = set(references(planned).values())
    assert reference is not None and len(of_kind(planned, "pack")) == 3
    mixture = planned.steps[planned.steps[reference].inputs["mixture"]]
    assert (mixture.config["prompt_subset"], mixture.config["filters"]) == ({"name": "all", "treatment": "keep"}, [])
    teachers = plan("teacher=gemini,kimi", "train.match=rows")
    packs = {cell.label: cell.steps["pack"] for cell in teachers.cells if not cell.untrained}
    assert references(teachers) == {"teacher=gemini": None, "teacher=kimi": packs["teacher=gemini"]}


def test_each_student_has_a_reference_of_its_own() -> None:
    planned = plan("filter=keyword", "train.match=tokens", "model.chat_template=x,y")
    found = references(planned)
    assert len(set(found.values())) == 2 and None not in found.values()
    for cell in planned.cells:
        if not cell.untrained:
            assert planned.steps[found[cell.label] or ""].inputs["student"] == cell.steps["student"]


def test_a_match_changes_the_training_alone() -> None:
    found: list[dict[str, Any]] = [
        {kind: ids(plan("filter=keyword", *more), kind) for kind in ("mixture", "train")}
        for more in ([], ["train.match=rows"], ["train.match=steps"])
    ]
    assert found[0]["mixture"][0] in found[1]["mixture"]
    assert len({made["train"][0] for made in found}) == 3


def test_an_unknown_match_is_refused() -> None:
    assert "train.match: 'epochs' is not one of None, rows, tokens, steps" in refusal("train.match=epochs")


# As a user writes it

OF_CODING = {"name": "by_source", "sources": ["coding"]}
LIKE_CODING = {"name": "random_like", "of": OF_CODING, "match": "size", "seed": 0, "outside": False}

@pytest.mark.parametrize(
    ("overrides", "subset"),
    [
        (
            ["prompt_subset=random_like", "prompt_subset@prompt_subset.of=by_source", "prompt_subset.of.sources=[coding]"],
            LIKE_CODING,
        ),
        (
            ["prompt_subset=complement", "prompt_subset@prompt_subset.of=random_share", "prompt_subset.of.share=0.5"],
            {"name": "complement", "of": {"name": "random_share", "share": 0.5, "seed": 0}},
        ),
        (
            ["prompt_subset=union", "prompt_subset@prompt_subset.sets.a=regex", 'prompt_subset.sets.a.pattern="x"',
             "prompt_subset@prompt_subset.sets.b=none"],
            {"name": "union", "sets": {"a": {"name": "regex", "pattern": "x"}, "b": {"name": "none"}}},
        ),
    ],
    ids=["random_like", "complement", "union"],
)  # fmt: skip
def test_subsets_of_subsets_are_written_like_any_other_choice(overrides: list[str], subset: dict[str, Any]) -> None:
    mixture = only(plan(*overrides, "prompt_subset.treatment=drop"), "mixture")
    assert mixture.config["prompt_subset"] == subset | {"treatment": "drop"}


def test_a_setting_inside_of_another_subset_can_be_swept() -> None:
    complement = ["prompt_subset=complement", "prompt_subset@prompt_subset.of=random_share", "prompt_subset.treatment=swap"]
    planned = plan(*complement, "prompt_subset.of.share=0.1,0.2,0.5", "seed=1,2")
    assert len(of_kind(planned, "mixture")) == 3
    assert {cell.arm for cell in planned.cells if not cell.untrained} == {f"prompt_subset.of.share={x}" for x in (0.1, 0.2, 0.5)}
    chosen = plan(*complement[::2], "prompt_subset@prompt_subset.of=all,none")
    shares = {step.config["prompt_subset"]["of"]["name"] for step in of_kind(chosen, "mixture")}
    assert shares == {"all", "none"}
