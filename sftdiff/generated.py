"""A rollouts step that generates: its prompts, its settings, and what its journal holds, in the terms of sftdiff.generation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.generation import JOURNAL, Messages, estimate, finished, generate, read_generated, records
from sftdiff.journal import Journal, Key
from sftdiff.records import StepRecord, load_record
from sftdiff.sorting import tables_of

FOLDER = "checkpoints"  # what a new attempt of the step goes on from


class PromptTexts:
    """The prompts of a prompts step, read again at each pass."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "prompts.parquet"

    def __iter__(self) -> Iterator[tuple[str, Messages]]:
        for table in tables_of(self.path, ["prompt_id", "messages"], 1024):
            for row in table.to_pylist():
                yield row["prompt_id"], row["messages"]


def teacher_of(record: StepRecord) -> dict[str, Any]:
    """Return the teacher with all its settings: those that decide what it says, and those of where and how it is asked."""
    teacher = record.config["teacher"]
    return {**teacher, "model": {**teacher["model"], **record.runtime["model"]}}


def generate_for_step(step: Any) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """Generate what is left; return the rollouts (prompt_id, sample, completion, error) and what the generation took."""
    teacher, prompts = teacher_of(step.record), PromptTexts(step.input("prompts"))
    folder = step.directory / FOLDER
    folder.mkdir(exist_ok=True)
    summary = generate(prompts, teacher, step.record.runtime["generation"], folder, step.progress)
    facts = summary.as_dict() | {"transient": _transient(folder), "origin": teacher["origin"]}
    facts["error_reasons"] = facts.pop("errors")
    keys = ("prompt_id", "sample", "completion", "error")
    return ({key: row[key] for key in keys} for row in read_generated(prompts, teacher, folder)), facts


def _transient(folder: Path) -> int:
    """Return how many replies failed for a reason that passes: the same command tries them again."""
    with Journal(folder / JOURNAL) as journal:
        return sum(record["transient"] for _, record in records(journal))


def estimate_for_step(directory: Path) -> str:
    """Return one line about what is left to generate and what it can cost."""
    record = load_record(directory)
    journal, done = directory / FOLDER / JOURNAL, set[Key]()
    if journal.exists():
        with Journal(journal) as opened:
            done = finished(opened)
    prompts = record.input_directory("prompts")
    if not (prompts / "prompts.parquet").is_file():
        raise SftdiffError(f"{prompts} is not made yet")
    return estimate(PromptTexts(prompts), teacher_of(record), record.runtime["generation"], done).text
