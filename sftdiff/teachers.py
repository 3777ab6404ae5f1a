"""The rollouts step: one teacher's completions on a prompt set, stored or generated, aligned with the prompts by position.

A rollout row is `{"prompt_id": ...}` or `{"messages": ...}` with `completion`; or a whole conversation that ends with the reply;
or `error` where generation failed. Every prompt of the set gets a row: its completion, or the reason why there is none.
"""

import re
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.identity import digest, prompt_id
from sftdiff.prompts import PromptIndex, load_index
from sftdiff.reasoning import split_reasoning, with_reasoning
from sftdiff.records import write_json
from sftdiff.sorting import AlignedWriter, SortedRows, id_text, ids_of
from sftdiff.sources import Unusable, completion_of, conversation, read_source

ROLLOUTS_VERSION = 1
EMPTY, MISSING = "empty completion", "no row for this prompt"
FOUND_SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("sample", pa.int32()), ("completion", pa.string()), ("error", pa.string())]
)
ROLLOUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt_id", "completion", "error", "content")])
INDEX_SCHEMA = pa.schema([("content", pa.uint64()), ("characters", pa.int32())])
ID = re.compile("[0-9a-f]{16}")
MAX_SAMPLES = 1 << 31


def rollouts_file(directory: Path, sample: int = 0, name: str = "rollouts") -> Path:
    """Return the Parquet file of one sample: `rollouts` has the texts, `index` their hashes and lengths."""
    return directory / (f"{name}.parquet" if sample == 0 else f"{name}-{sample}.parquet")


def run_rollouts(step: Any) -> dict[str, Any]:
    """Write rollouts.parquet and index.parquet for each sample, and summary.json with what is usable, by source."""
    teacher, prompts = step.config["teacher"], load_index(step.input("prompts", "index.parquet"))
    facts, others = dict[str, Any](), Counter[str]()
    with SortedRows(FOUND_SCHEMA, step.directory, then=["sample", "completion", "error"]) as rows:
        if teacher["origin"] == "stored":
            found = stored_rollouts(teacher, membership(prompts), others)
        else:
            from sftdiff.generated import generate_for_step  # brings the client of endpoints, which stored rollouts do not need

            found, facts = generate_for_step(step)
        for number, row in enumerate(found, 1):
            rows.add(row)
            if number % 10_000 == 0:
                step.progress(number, max(len(prompts), number), "rows read")
        counts = _align(step.directory, rows, prompts, teacher)
    facts |= {"rows_of_other_prompts": others.total()} if others else {}
    # What the generation took is no part of what it made: it stands in DONE alone.
    write_json(step.directory / "summary.json", {"prompts": len(prompts), "by_source": counts})
    return {"prompts": len(prompts), "errors": sum(row["unusable"] for row in counts), **facts}


def membership(prompts: PromptIndex) -> Callable[[str], bool]:
    """Return a function that tells whether a prompt_id is in the set."""
    ids = array("Q", prompts.ids.tobytes())  # in rising order, and a tenth of the memory of a set

    def inside(key: str) -> bool:
        place = bisect_left(ids, number := int(key, 16))
        return place < len(ids) and ids[place] == number

    return inside


def stored_rollouts(
    teacher: Mapping[str, Any], inside: Callable[[str], bool], others: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield a row of FOUND_SCHEMA for each stored rollout of a prompt for which `inside` holds, and count the others.

    An empty completion is an error row, never a reply; so is one beside an error.
    """
    for place, row in read_source(teacher):
        key, completion = row.get("prompt_id"), completion_of(row, place, teacher)
        if not key:
            try:
                messages, reply = conversation(row, place, teacher)
            except Unusable as reason:  # such a prompt is in no prompt set
                others[str(reason)] += 1
                continue
            key = prompt_id(messages)
            completion = reply if completion is None else completion
        error, sample = row.get("error"), row.get("sample") or 0
        counted = isinstance(sample, int) and 0 <= sample < MAX_SAMPLES
        if not isinstance(key, str) or not isinstance(error, str | None) or not counted:
            raise SftdiffError(f"{place}: 'prompt_id' and 'error' must be texts, and 'sample' a number that counts from 0")
        if not ID.fullmatch(key):
            raise SftdiffError(f"{place}: {key!r} is not a prompt_id (16 hex digits)")
        if not inside(key):
            others["other prompts"] += 1
            continue
        if completion is None and not error:
            name = teacher["completion_column"]
            raise SftdiffError(f"{place}: a rollout needs {name!r} (teacher.completion_column), or 'error' where it failed")
        if error:
            completion = None
        if completion is not None:
            completion = with_reasoning(*split_reasoning(completion), teacher["reasoning"])
            if not completion.strip():
                completion, error = None, EMPTY
        yield {"prompt_id": key, "sample": sample, "completion": completion, "error": None if completion else error}


def _align(directory: Path, rows: SortedRows, prompts: PromptIndex, teacher: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write one row a prompt and sample; return counts by source: usable, unusable, and the reasons of those."""
    samples = range(teacher["samples"])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        texts = [stack.enter_context(AlignedWriter(rollouts_file(directory, k), ROLLOUT_SCHEMA)) for k in samples]
        index = [stack.enter_context(AlignedWriter(rollouts_file(directory, k, "index"), INDEX_SCHEMA)) for k in samples]
        start = 0
        for table, last in _with_last(rows.tables()):
            ids = ids_of(table["prompt_id"])
            _refuse_different(table, ids, teacher)
            end = len(prompts) if last else start + int(np.searchsorted(prompts.ids[start:], ids[-1:], "right").sum())
            for k in samples:
                aligned = _aligned(table, ids, k, prompts.ids[start:end], teacher)
                texts[k].write(aligned)
                index[k].write(_index(aligned))
                _count(counts, aligned, prompts, slice(start, end))
            start = end
    return [{"source": s, "usable": c.pop("", 0), "unusable": c.total(), "reasons": dict(c)} for s, c in sorted(counts.items())]


def _with_last(tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, bool]]:
    previous = next(tables)
    for table in tables:
        yield previous, False
        previous = table
    yield previous, True


def _refuse_different(table: pa.Table, ids: np.ndarray[Any, Any], teacher: Mapping[str, Any]) -> None:
    """Raise SftdiffError if a prompt has two rollouts of one sample that differ; the same one twice counts once."""
    samples = table["sample"].to_numpy()
    for k in np.flatnonzero((ids[1:] == ids[:-1]) & (samples[1:] == samples[:-1])):
        one, two = table.slice(k, 2).to_pylist()
        if one != two:
            where = teacher["path"] or teacher["id"]
            raise SftdiffError(
                f"{where}: two different rollouts for prompt {one['prompt_id']}; several rollouts of one prompt need a "
                "'sample' column that counts them from 0"
            )


def _aligned(table: pa.Table, ids: np.ndarray[Any, Any], sample: int, wanted: Any, teacher: Mapping[str, Any]) -> pa.Table:
    """Return the rollouts of one sample for the prompts `wanted`, in their order, with a reason where there is none."""
    rows = np.flatnonzero(table["sample"].to_numpy() == sample)
    places = np.searchsorted(ids[rows], wanted)
    found = np.zeros(len(wanted), bool)
    inside = places < len(rows)
    found[inside] = ids[rows][places[inside]] == wanted[inside]
    take = np.zeros(len(wanted), np.int64)
    take[found] = rows[places[found]]
    chosen = table.take(pa.array(take, mask=~found))
    where = teacher["path"] or teacher["id"] or teacher["name"]
    errors = pa.compute.if_else(pa.array(found), chosen["error"], f"{where} has {MISSING}")
    completions = chosen["completion"].to_pylist()
    contents = pa.array([None if text is None else digest(text, 16) for text in completions], pa.string())
    keys = pa.array([id_text(number) for number in wanted], pa.string())
    return pa.table([keys, chosen["completion"], errors, contents], schema=ROLLOUT_SCHEMA)


def _index(aligned: pa.Table) -> pa.Table:
    missing = aligned["content"].is_null().to_numpy()
    numbers = ids_of(aligned["content"].fill_null("0" * 16))
    lengths = pa.compute.utf8_length(aligned["completion"])
    return pa.table([pa.array(numbers, mask=missing), lengths], schema=INDEX_SCHEMA)


def _count(counts: dict[str, Counter[str]], aligned: pa.Table, prompts: PromptIndex, part: slice) -> None:
    usable = aligned["content"].is_valid().to_numpy()
    codes = prompts.codes[part]
    for code, number in enumerate(np.bincount(codes[usable], minlength=len(prompts.sources))):
        if number:
            counts[prompts.sources[code]][""] += int(number)
    errors = aligned["error"].filter(pa.array(~usable)).to_pylist()
    for code, error in zip(codes[~usable], errors, strict=True):
        counts[prompts.sources[code]][error] += 1


def load_contents(directory: Path, sample: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return (usable, content, characters) of a teacher's rollouts, one entry a prompt: bool, uint64, int32."""
    table = read_table(rollouts_file(directory, sample, "index"))
    usable = table["content"].is_valid().to_numpy()
    content, characters = (table[name].fill_null(0).to_numpy() for name in ("content", "characters"))
    return usable, content, characters
