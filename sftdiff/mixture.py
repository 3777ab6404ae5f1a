"""The mixture step: which rows SFT sees, and the manifest of what happened to each prompt and why.

A mixture refers to its rows: the texts stay in the tables of the prompts and the rollouts, which are aligned with the manifest by
position. So a cell that differs in a share or a threshold costs no copy of the data. `mixture_rows` reads the rows themselves.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.prompts import PromptIndex, load_index
from sftdiff.records import load_record, write_json
from sftdiff.rows import (
    ACTIONS,
    ERROR,
    KEPT,
    SWAPPED,
    TEACHER,
    Assignment,
    Codes,
    Mask,
    actions_of,
    matched_random,
    selected,
    treat,
)
from sftdiff.scores import load_scores
from sftdiff.sorting import GROUP, tables_of, texts_of
from sftdiff.subsets import View, subset_mask
from sftdiff.teachers import load_contents, rollouts_file

WORDS = pa.dictionary(pa.int32(), pa.string())
MANIFEST_SCHEMA = pa.schema(
    [("prompt_id", pa.string()), *((name, WORDS) for name in ("source", "action", "teacher", "reason")), ("content", pa.uint64())]
)
COLUMNS = {"prompts": ["prompt_id", "source", "messages"]}
INPUTS = {"teacher": "rollouts", "other": "other_rollouts"}


def run_mixture(step: Any) -> dict[str, Any]:
    """Apply the prompt subset's treatment and the filters', and write manifest.parquet and summary.json."""
    config, prompts = step.config, load_index(step.input("prompts", "index.parquet"))
    contents = {slot: _contents(step, slot) for slot, name in INPUTS.items() if name in step.record.inputs}
    view = View(
        prompts,
        lambda: step.input("prompts", "prompts.parquet") / "prompts.parquet",
        lambda: contents["teacher"][2],
        lambda name: load_scores(step.input(name)),
    )
    inside = subset_mask(config["prompt_subset"], view)
    assignment, flagged = Assignment.of_subset(treat(inside, config["prompt_subset"]["treatment"])), []
    for settings in config["filters"]:
        mask = flagged_rows(settings, view, assignment.slots == TEACHER)
        flagged.append({"filter": settings["name"], "rows": int(mask.sum())})
        assignment = assignment.filtered(mask, settings["name"], settings["treatment"])
    usable = [contents[slot][0] for slot in contents]
    actions = actions_of(assignment.slots, usable, "both" if config["missing"] == "leave_out_both" else "own")
    manifest = _manifest(prompts, assignment, actions, contents, config)
    pq.write_table(manifest, step.directory / "manifest.parquet", compression="zstd")
    summary = summarize(prompts, actions) | {"content": content_hash(manifest), "subset": int(inside.sum()), "flagged": flagged}
    write_json(step.directory / "summary.json", summary)
    _refuse(manifest, actions, config)
    return {**summary["totals"], "rows": int((actions <= SWAPPED).sum()), "content": summary["content"]}


def _contents(step: Any, slot: str) -> Any:
    name, sample = INPUTS[slot], step.config["samples"][slot]
    file = rollouts_file(Path(), sample, "index").name
    return load_contents(step.input(name, file), sample)


def flagged_rows(settings: Mapping[str, Any], view: View, eligible: Mask) -> Mask:
    """Return the flagged rows among those that are the teacher's still, so that a matched count is what is treated."""
    if settings.get("match"):
        target = flagged_rows(settings["match"], view, eligible)
        strata, seed = view.strata(settings["match_by"]), ("random filter", settings["seed"])
        return matched_random(target, view.prompts.ids, strata, eligible, seed)
    return selected(view.scores(settings["input"]), view.prompts.ids, settings["threshold"], settings["top"], eligible)


def _manifest(
    prompts: PromptIndex, assignment: Assignment, actions: Codes, contents: Mapping[str, Any], config: Mapping[str, Any]
) -> pa.Table:
    names = [config["teachers"][slot] for slot in contents]
    reasons = [*assignment.texts, *(f"{name} has no usable rollout for this prompt" for name in names)]
    codes = assignment.reasons.astype(np.int32)
    failed = actions == ERROR
    for number, slot in enumerate(contents):
        lacking = failed & ~contents[slot][0] & ((assignment.slots == number) | (config["missing"] == "leave_out_both"))
        codes[lacking] = len(assignment.texts) + number
    used = actions <= SWAPPED
    content = np.zeros(len(prompts), np.uint64)
    for number, slot in enumerate(contents):
        mine = used & (assignment.slots == number)
        content[mine] = contents[slot][1][mine]
    columns = [
        texts_of(prompts.ids),
        _words(prompts.codes, prompts.sources),
        _words(actions, ACTIONS),
        _words(np.where(used, assignment.slots, 0), names, ~used),
        _words(codes, reasons),
        pa.array(content, mask=~used),
    ]
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _words(codes: np.ndarray[Any, Any], words: Sequence[str], missing: Mask | None = None) -> pa.DictionaryArray:
    """Return words by their numbers, each word once: of a dictionary that has one twice, Arrow writes other words to Parquet.

    What lies under a null must be a number of a word too, as Arrow looks it up for the statistics.
    """
    distinct = list(dict.fromkeys(words))
    numbers = np.array([distinct.index(word) for word in words], np.int32)[codes]
    return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=missing), pa.array(distinct, pa.string()))


def content_hash(manifest: pa.Table) -> str:
    """Return a hash of the rows of a mixture: of each row's prompt_id and completion, whatever teacher it is from."""
    rows = manifest.filter(manifest["content"].is_valid()).combine_chunks()  # how it lies in memory must not count
    hashed = hashlib.sha256()
    for batch in rows.select(["prompt_id", "content"]).to_batches(1 << 16):
        hashed.update("".join(batch["prompt_id"].to_pylist()).encode())
        hashed.update(batch["content"].to_numpy(zero_copy_only=False).astype("<u8").tobytes())
    return hashed.hexdigest()


def summarize(prompts: PromptIndex, actions: Codes) -> dict[str, Any]:
    """Count the actions in all and by source; the counts of the four actions add up to the number of prompts."""
    by_source = []
    for code, source in enumerate(prompts.sources):
        counts = np.bincount(actions[prompts.codes == code], minlength=len(ACTIONS))
        by_source.append({"source": source} | {action: int(n) for action, n in zip(ACTIONS, counts, strict=True)})
    return {"totals": {action: sum(row[action] for row in by_source) for action in ACTIONS}, "by_source": by_source}


def _refuse(manifest: pa.Table, actions: Codes, config: Mapping[str, Any]) -> None:
    errors = np.flatnonzero(actions == ERROR)
    if len(errors) and config["missing"] == "fail":
        first = manifest.slice(int(errors[0]), 1).to_pylist()[0]
        raise SftdiffError(
            f"{len(errors)} of {len(actions)} prompts need a rollout that is missing, e.g. {first['prompt_id']}: "
            f"{first['reason']}; the manifest lists all; train without them with missing_rollouts=leave_out"
        )
    if not (actions <= SWAPPED).any():
        subset, filters = config["prompt_subset"], " and ".join(f["name"] for f in config["filters"]) or "none"
        raise SftdiffError(
            f"the mixture is empty: of {len(actions)} prompts none is left after "
            f"prompt_subset={subset['name']} ({subset['treatment']}) and filter={filters}"
        )


def mixture_rows(mixture: Path, batch: int = GROUP) -> Iterator[dict[str, Any]]:
    """Yield the rows that SFT sees, in the order of their prompt_ids: prompt_id, source, messages, completion and teacher.

    The tables that the mixture refers to must be there; who needs them unchanged verifies them as inputs of its own step.
    """
    record = load_record(mixture)
    tables = {"prompts": record.input_directory("prompts") / "prompts.parquet"}
    for slot, name in INPUTS.items():
        if name in record.inputs:
            tables[slot] = rollouts_file(record.input_directory(name), record.config["samples"][slot])
    manifest = read_table(mixture / "manifest.parquet", ["action"])
    actions = np.array([ACTIONS.index(w) for w in _dictionary(manifest["action"])])[_codes(manifest["action"])]
    streams = [tables_of(path, COLUMNS.get(name, ["completion"]), batch) for name, path in tables.items()]
    start = 0
    for parts in zip(*streams, strict=True):
        found: dict[str, pa.Table] = dict(zip(tables, parts, strict=True))
        part = actions[start : start + len(parts[0])]
        start += len(part)
        yield from _used_rows(found, part, record.config["teachers"])


def _used_rows(found: Mapping[str, pa.Table], actions: Any, teachers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    rows = np.flatnonzero((actions == KEPT) | (actions == SWAPPED))
    prompts = found["prompts"].take(pa.array(rows)).to_pylist()
    other = {"teacher": KEPT, "other": SWAPPED}
    texts = {slot: found[slot]["completion"] for slot in other if slot in found}
    for row, prompt in zip(rows, prompts, strict=True):
        slot = "teacher" if actions[row] == KEPT else "other"
        yield prompt | {"completion": texts[slot][int(row)].as_py(), "teacher": teachers[slot]}


def _dictionary(column: pa.ChunkedArray) -> list[str]:
    return list(column.combine_chunks().dictionary.to_pylist())


def _codes(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks().indices.to_numpy()
