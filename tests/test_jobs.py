"""How steps become Slurm arrays: the layout is a pure function, checked here on planned sweeps and on random graphs."""

from collections.abc import Sequence

import pytest
from commands import plan
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.jobs import Chunk, Job, OpenStep, dependency, make_chunks, make_jobs
from launch.plan import Plan
from launch.sweep import resources_key

SWEEP = ("teacher=gemini,olmo", "filter=none,keyword")


def open_steps(planned: Plan, done: Sequence[str] = ()) -> list[OpenStep]:
    """Return the steps of a plan, without those of the given kinds (or ids)."""
    steps = [OpenStep(s.id, s.kind, s.inputs, resources_key(planned, s.id)) for s in planned.steps.values()]
    return [step for step in steps if step.kind not in done and step.id not in done]


def chunks_of(steps: Sequence[OpenStep], largest: int = 1000) -> list[Chunk]:
    return make_chunks(make_jobs(steps, {}), largest)


def waits(chunks: Sequence[Chunk]) -> list[str]:
    """Return each chunk as "KIND xJOBS after ...", with numbers of chunks as Slurm ids."""
    found = []
    for chunk in chunks:
        after = dependency(chunk, str, lambda n: len(chunks[n].jobs)) or "nothing"
        found.append(f"{chunk.kind} x{len(chunk.jobs)} after {after}")
    return found


def test_each_training_is_followed_by_its_own_evaluation() -> None:
    assert waits(chunks_of(open_steps(plan("teacher=gemini,olmo")))) == [
        "student x1 after nothing",
        "prompts x1 after nothing",
        "sample x1 after afterok:0",  # the untrained student
        "rollouts x2 after afterany:1",
        "mixture x2 after afterany:0:3",
        "train x2 after aftercorr:4",
        "sample x2 after aftercorr:5",
        "report x1 after afterany:2:6",
    ]


def test_a_matched_training_waits_for_the_pack_that_it_is_held_equal_to() -> None:
    lines = waits(chunks_of(open_steps(plan("filter=none,keyword", "train.match=rows"))))
    mixtures = [number for number, line in enumerate(lines) if line.startswith("mixture")]
    assert [line for line in lines if line.startswith("train")] == [
        f"train x1 after afterok:{mixtures[0]}", f"train x1 after afterany:{mixtures[0]}:{mixtures[1]}"
    ]  # fmt: skip


def test_the_evaluation_of_a_model_is_one_job_and_a_mixture_is_packed_where_it_was_made() -> None:
    jobs = make_jobs(open_steps(plan("teacher=gemini")), {})
    kinds = [[step.partition("-")[0] for step in job.steps] for job in jobs]
    assert ["sample", "judge"] * 4 in kinds or ["sample"] * 4 + ["judge"] * 4 in kinds
    assert ["mixture", "pack"] in kinds


def test_one_mixture_shared_by_five_seeds_is_waited_for_by_one_array() -> None:
    chunks = chunks_of(open_steps(plan("seed=0,1,2,3,4")))
    train = next(chunk for chunk in chunks if chunk.kind == "train")
    assert (len(train.jobs), train.after_each) == (5, None)
    assert [chunks[n].kind for n in train.after_all] == ["mixture"]
    evaluation = [chunk for chunk in chunks if chunk.kind == "sample" and len(chunk.jobs) == 5]
    assert [chunks[c.after_each].kind for c in evaluation if c.after_each is not None] == ["train"]


def test_the_report_waits_for_the_end_of_all_and_for_the_success_of_none() -> None:
    planned = plan()
    left = [step for step in open_steps(planned) if step.kind in ("train", "report")]
    assert waits(chunks_of(left)) == ["train x1 after nothing", "report x1 after afterany:0"]


def test_a_mixture_packed_for_two_students_comes_after_both() -> None:
    chunks = chunks_of(open_steps(plan("model=smollm2_135m,gemma3_270m")))
    students = {n for n, chunk in enumerate(chunks) if chunk.kind == "student"}
    mixture = next(chunk for chunk in chunks if chunk.kind == "mixture")
    assert students <= set(mixture.after_all)
    assert {chunk.resources for chunk in chunks if chunk.kind == "train"} == {"train smollm2_135m", "train gemma3_270m"}


def test_a_half_done_sweep_submits_the_other_half_only() -> None:
    planned = plan(*SWEEP)
    trained = [step.id for step in planned.steps.values() if step.kind == "train"][:2]
    chunks = chunks_of(open_steps(planned, ["student", "prompts", "rollouts", "scores", "mixture", "pack", *trained]))
    assert waits(chunks) == [
        "sample x3 after nothing",  # the untrained student, and the two that are trained
        "train x2 after nothing",
        "sample x2 after aftercorr:1",
        "report x1 after afterany:0:2",
    ]


def test_chunks_of_one_are_plain_jobs_that_wait_for_plain_jobs() -> None:
    chunks = chunks_of(open_steps(plan("teacher=gemini,olmo")), largest=1)
    assert all(len(chunk.jobs) == 1 for chunk in chunks)
    assert not any("aftercorr" in line for line in waits(chunks))
    for chunk in (c for c in chunks if c.kind == "sample" and c.after_each is not None and chunks[c.after_each].kind == "train"):
        model = chunk.jobs[0].steps[0].removeprefix("sample-").partition("-")[2]
        assert model.startswith(chunks[chunk.after_each or 0].jobs[0].steps[0].removeprefix("train-").rpartition("-")[0])


def test_the_number_of_submissions_does_not_grow_with_the_cells() -> None:
    few, many = (len(chunks_of(open_steps(plan(f"seed=range({n})", "teacher=gemini,olmo")))) for n in (5, 60))
    assert few == many


def test_jobs_in_the_queue_are_waited_for() -> None:
    planned = plan("teacher=gemini")
    train = next(step.id for step in planned.steps.values() if step.kind == "train")
    steps = open_steps(planned, ["student", "prompts", "rollouts", "mixture", "pack", train])
    jobs = make_jobs(steps, {train: {"4711"}})
    chunks = make_chunks(jobs, 1000)
    assert "sample x1 after afterany:4711" in waits(chunks)
    left = open_steps(planned, ["student", "prompts", "rollouts", "mixture", "pack"])
    own = make_chunks(make_jobs(left, {train: {"4711"}}), 1000)
    assert waits(own)[1:3] == ["train x1 after afterany:4711", "sample x1 after afterok:1"]


@st.composite
def graphs(draw: st.DrawFn) -> list[OpenStep]:
    """A few students, mixtures, trainings and evaluations with any wiring, in an order in which inputs come first."""
    def some(kind: str, count: int) -> list[str]:
        return [f"{kind}-{n}" for n in range(draw(st.integers(1, count)))]

    def one(names: list[str]) -> str:
        return draw(st.sampled_from(names))

    students, rollouts = some("student", 3), some("rollouts", 3)
    steps = [OpenStep(i, i.partition("-")[0], {}, i.partition("-")[0]) for i in (*students, *rollouts)]
    mixtures = some("mixture", 6)
    steps += [OpenStep(i, "mixture", {"rollouts": one(rollouts)}, "mixture") for i in mixtures]
    packs = some("pack", 6)
    steps += [OpenStep(i, "pack", {"mixture": one(mixtures), "student": one(students)}, "pack") for i in packs]
    trains = some("train", 12)
    steps += [OpenStep(i, "train", {"pack": one(packs)}, one(["train small", "train large"])) for i in trains]
    models = [*trains, *students]
    samples = some("sample", 12)
    steps += [OpenStep(i, "sample", {"model": one(models)}, "sample") for i in samples]
    steps += [OpenStep(f"judge-{i}", "judge", {"sample": i}, "judge") for i in samples]
    kept = [s for s in steps if draw(st.integers(0, 9))]  # some are done
    return [*kept, OpenStep("report", "report", {i.id: i.id for i in steps}, "report")]


def earlier(chunks: list[Chunk], number: int, index: int) -> set[str]:
    """Return the steps that have certainly run before a job starts."""
    chunk, found = chunks[number], set[str]()
    before: list[tuple[int, Sequence[int]]] = [(n, range(len(chunks[n].jobs))) for n in chunk.after_all]
    if chunk.after_each is not None:
        before.append((chunk.after_each, [index]))
    for n, indices in before:
        for k in indices:
            found |= set(chunks[n].jobs[k].steps) | earlier(chunks, n, k)
    return found


@settings(max_examples=200)
@given(graphs(), st.integers(1, 5))
def test_every_step_runs_once_and_after_its_inputs(steps: list[OpenStep], largest: int) -> None:
    chunks = chunks_of(steps, largest)
    by_id, ran = {step.id: step for step in steps}, list[str]()
    for number, chunk in enumerate(chunks):
        assert len(chunk.jobs) <= largest
        assert chunk.after_each is None or (chunk.after_each < number and len(chunks[chunk.after_each].jobs) == len(chunk.jobs))
        assert all(n < number for n in chunk.after_all)
        for index, job in enumerate(chunk.jobs):
            assert {by_id[s].resources.partition(" ")[0] for s in job.steps} <= {"mixture", "pack", "sample", "judge", job.kind}
            before = earlier(chunks, number, index)
            for position, step in enumerate(job.steps):
                needed = {i for i in by_id[step].inputs.values() if i in by_id}
                assert needed <= before | set(job.steps[:position]), step
            ran += job.steps
    assert sorted(ran) == sorted(by_id)


def test_a_parent_that_another_parent_waits_for_is_not_named() -> None:
    steps = [
        OpenStep("student-a", "student", {}, "student"),
        OpenStep("train-a", "train", {"student": "student-a"}, "train"),
        OpenStep("sample-a", "sample", {"model": "train-a", "student": "student-a"}, "sample"),
    ]
    assert [job.parents for job in make_jobs(steps, {})] == [set(), {0}, {1}]


@pytest.mark.parametrize(("ids", "expected"), [(("7",), "afterany:7"), (("7", "9"), "afterany:7:9")])
def test_a_dependency_names_all_that_must_have_ended(ids: tuple[str, ...], expected: str) -> None:
    assert dependency(Chunk("train", "train", [Job("train", "train")], None, (), ids), str, lambda n: 1) == expected
