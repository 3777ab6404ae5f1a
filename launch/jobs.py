"""From open steps to Slurm arrays: which steps share a job, which jobs an array, and what each array waits for. Pure.

A job is a list of steps. Jobs of one level of the graph, of one kind and with the same resources form an array, cut into chunks.
Where each job of an array needs exactly one job of another, in the same order, it waits for that one alone (aftercorr), so an
evaluation starts when its own training has succeeded. All other arrays wait until the arrays before them have ended in any way
(afterany), and each step looks by itself whether its inputs are there: so one failed mixture of a thousand stops one cell only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Steps that share the job of the step they read: (kind, input). A judge step joins the sample step's job, and that the model's.
JOINS = {"pack": "mixture", "judge": "sample"}
LAST = "report"


@dataclass(frozen=True)
class OpenStep:
    """A step to be run: what the layout needs to know of it."""

    id: str
    kind: str
    inputs: Mapping[str, str]  # name -> step id
    resources: str  # steps of different resources never share an array
    runtime: dict[str, Any] = field(default_factory=dict)  # what the job runs it with; not part of its identity


@dataclass
class Job:
    """Steps that run one after the other in one Slurm job."""

    kind: str
    resources: str
    steps: list[str] = field(default_factory=list)
    parents: set[int] = field(default_factory=set)  # numbers of jobs
    waits: frozenset[str] = frozenset()  # ids of Slurm jobs submitted before


@dataclass
class Chunk:
    """Jobs that are submitted with one sbatch: an array, or a plain job when it is a single one."""

    kind: str
    resources: str
    jobs: list[Job]
    after_each: int | None  # number of the chunk whose job of the same index each job waits for
    after_all: tuple[int, ...]  # numbers of chunks that must have ended
    waits: tuple[str, ...]  # ids of Slurm jobs that must have ended


def job_key(step: OpenStep, steps: Mapping[str, OpenStep]) -> tuple[str, str]:
    """Return what the steps of one job have in common."""
    if step.kind in JOINS and (other := steps.get(step.inputs[JOINS[step.kind]])):
        return job_key(other, steps)
    if step.kind in ("sample", "judge"):  # the whole evaluation of a model; judge: only what needs no samples any more
        return (step.kind, step.inputs.get("model") or step.inputs["sample"])
    return (step.kind, step.id)


def make_jobs(steps: Sequence[OpenStep], held: Mapping[str, Collection[str]]) -> list[Job]:
    """Group open steps, given in an order in which inputs come first, into jobs; the jobs come in such an order as well.

    Args:
        steps: the steps to submit.
        held: step id -> ids of Slurm jobs in the queue that run this step, or that run what a step to submit reads.
    """
    by_id, numbers = {step.id: step for step in steps}, dict[tuple[str, str], int]()
    jobs, of_step = list[Job](), dict[str, int]()
    for step in steps:
        number = numbers.setdefault(job_key(step, by_id), len(jobs))
        if number == len(jobs):
            jobs.append(Job(step.kind, step.resources))
        job = jobs[number]
        job.steps.append(step.id)
        of_step[step.id] = number
        job.parents |= {of_step[i] for i in step.inputs.values() if i in of_step} - {number}
        job.waits |= {job_id for i in (step.id, *step.inputs.values()) for job_id in held.get(i, ())}
    return _reduced(_parents_first(jobs))


def _parents_first(jobs: list[Job]) -> list[Job]:
    """Put jobs into an order in which parents come first, and which else stays: a job may have got a step with a later parent."""
    new_number, ordered = dict[int, int](), list[Job]()

    def visit(number: int) -> None:
        if number not in new_number:
            for parent in sorted(jobs[number].parents):
                visit(parent)
            new_number[number] = len(ordered)
            ordered.append(jobs[number])

    for number in range(len(jobs)):
        visit(number)
    for job in ordered:
        job.parents = {new_number[parent] for parent in job.parents}
    return ordered


def _reduced(jobs: list[Job]) -> list[Job]:
    """Take out parents that other parents wait for anyway."""
    ancestors: list[set[int]] = []
    for job in jobs:
        implied = set[int]().union(*(ancestors[p] for p in job.parents))
        ancestors.append(set() if job.kind == LAST else implied | job.parents)
        job.parents -= implied
        job.waits -= frozenset[str]().union(*(jobs[p].waits for p in job.parents))
    return jobs


def make_chunks(jobs: Sequence[Job], largest: int) -> list[Chunk]:
    """Cut jobs into chunks of at most `largest`, in an order in which a chunk comes after those that it waits for."""
    level, place, chunks = dict[int, int](), dict[int, tuple[int, int]](), list[Chunk]()
    for number, job in enumerate(jobs):
        level[number] = 1 + max((level[p] for p in job.parents), default=-1)
    for depth in range(max(level.values(), default=-1) + 1):
        groups: dict[Any, list[int]] = {}
        for number, job in enumerate(jobs):
            if level[number] == depth:
                before = frozenset(place[p][0] for p in job.parents)
                groups.setdefault((job.kind, job.resources, before, job.waits), []).append(number)
        for (kind, resources, before, waits), members in groups.items():
            single = kind != LAST and all(len(jobs[m].parents) == 1 for m in members)
            after_each, members = _match(members, jobs, place, chunks, before) if single else (None, members)
            for start in range(0, len(members), largest):
                part = members[start : start + largest]
                after_all = () if after_each is not None else tuple(sorted(before))
                place.update({m: (len(chunks), index) for index, m in enumerate(part)})
                chunks.append(Chunk(kind, resources, [jobs[m] for m in part], after_each, after_all, tuple(sorted(waits))))
    return chunks


def _match(
    members: list[int], jobs: Sequence[Job], place: Mapping[int, tuple[int, int]], chunks: Sequence[Chunk], before: frozenset[int]
) -> tuple[int | None, list[int]]:
    """Order jobs like the parents' chunk if there is exactly one for each of its jobs."""
    (parent,) = before
    ordered = sorted(members, key=lambda m: place[next(iter(jobs[m].parents))][1])
    indices = [place[next(iter(jobs[m].parents))][1] for m in ordered]
    return (parent, ordered) if indices == list(range(len(chunks[parent].jobs))) else (None, members)


def dependency(chunk: Chunk, job_ids: Callable[[int], str], sizes: Callable[[int], int]) -> str | None:
    """Return sbatch's --dependency of a chunk, given the Slurm ids and sizes of the chunks before it."""
    parts = []
    if chunk.after_each is not None:
        word = "aftercorr" if sizes(chunk.after_each) > 1 else "afterok"  # a chunk of one is a plain job
        parts.append(f"{word}:{job_ids(chunk.after_each)}")
    ended = [*(job_ids(number) for number in chunk.after_all), *chunk.waits]
    if ended:
        parts.append("afterany:" + ":".join(ended))
    return ",".join(parts) or None
