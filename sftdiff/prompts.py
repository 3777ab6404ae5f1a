"""The prompts step: a prompt set, read, checked, counted once each, sampled by source, and sorted by prompt_id.

A prompt row is `{"messages": [{"role", "content"}, ...], "source": "..."}`; messages may end with the assistant's reply, which is
then left out. Every row that is read ends in exactly one count: a prompt of the set, or why it is not in it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.identity import prompt_id, unit_interval
from sftdiff.records import write_json
from sftdiff.sorting import AlignedWriter, Ids, SortedRows, ids_of
from sftdiff.sources import Unusable, conversation, read_source

PROMPTS_VERSION = 1
FATES = ("prompts", "duplicates", "unusable", "over_long", "not_sampled")
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPT_SCHEMA = pa.schema([("prompt_id", pa.string()), ("source", pa.string()), ("messages", pa.list_(MESSAGE))])
INDEX_SCHEMA = pa.schema([("prompt", pa.uint64()), ("source", pa.string()), ("characters", pa.int32())])
NO_SOURCE = "unknown"


@dataclass(frozen=True)
class PromptIndex:
    """A prompt set without its texts. All arrays have one entry a prompt, in the order of the prompt_ids."""

    ids: Ids
    codes: np.ndarray[Any, np.dtype[np.int32]]  # numbers of `sources`
    sources: tuple[str, ...]
    characters: np.ndarray[Any, np.dtype[np.int32]]

    def __len__(self) -> int:
        return len(self.ids)


class Fates:
    """What became of the rows of each source, and the reasons of those that cannot be used."""

    def __init__(self) -> None:
        self.by_source: dict[str, Counter[str]] = defaultdict(Counter)
        self.reasons: Counter[str] = Counter()

    def count(self, source: str, fate: str, number: int = 1) -> None:
        self.by_source[source][fate] += number

    def summary(self) -> dict[str, Any]:
        totals = sum(self.by_source.values(), Counter[str]())
        return {
            "read": totals.total(),
            "totals": {fate: totals[fate] for fate in FATES},
            "by_source": [{"source": s} | {fate: c[fate] for fate in FATES} for s, c in sorted(self.by_source.items())],
            "reasons": dict(self.reasons),
        }


def run_prompts(step: Any) -> dict[str, Any]:
    """Write prompts.parquet (texts), index.parquet (what subsets and mixtures need) and summary.json (counts by source)."""
    config, fates = step.config, Fates()
    with SortedRows(PROMPT_SCHEMA, step.directory, then=["source"]) as rows:
        for number, row in enumerate(read_prompts(config, fates), 1):
            rows.add(row)
            if number % 10_000 == 0:
                step.progress(number, number, "rows read")
        chosen = _sampled(rows, config)
        with AlignedWriter(step.directory / "prompts.parquet", PROMPT_SCHEMA) as texts, \
                AlignedWriter(step.directory / "index.parquet", INDEX_SCHEMA) as index:  # fmt: skip
            start = 0
            for table in rows.tables():
                table = _once_each(table, config, fates)
                end = start + table.num_rows
                if chosen is not None:
                    _count_sources(fates, table.filter(pa.array(~chosen[start:end])), "not_sampled")
                    table = table.filter(pa.array(chosen[start:end]))
                start = end
                _count_sources(fates, table, "prompts")
                texts.write(table)
                index.write(_index(table))
    summary = fates.summary()
    write_json(step.directory / "summary.json", summary)
    if not summary["totals"]["prompts"]:
        raise SftdiffError(f"{config['path'] or config['id']} has no prompts that can be used: {summary['reasons'] or 'no rows'}")
    return {"prompts": summary["totals"]["prompts"], "read": summary["read"]} | {k: summary[k] for k in ("totals", "reasons")}


def read_prompts(config: Mapping[str, Any], fates: Fates) -> Iterator[dict[str, Any]]:
    """Yield a row of PROMPT_SCHEMA for each row that can be used; a malformed one is an error with its file and line."""
    for place, row in read_source(config):
        source = _source(row, place, config)
        try:
            messages, _ = conversation(row, place, config)
        except Unusable as reason:
            if config["unusable"] == "fail":
                raise SftdiffError(f"{place}: {reason}; leave such rows out with prompts.unusable=leave_out") from None
            fates.count(source, "unusable")
            fates.reasons[str(reason)] += 1
            continue
        if config["max_characters"] and sum(len(m["content"]) for m in messages) > config["max_characters"]:
            fates.count(source, "over_long")
            continue
        yield {"prompt_id": prompt_id(messages), "source": source, "messages": messages}


def _source(row: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> str:
    column = config["source_column"]
    if column is None:
        return NO_SOURCE
    source = row.get(column)
    if not isinstance(source, str) or not source:
        hint = "set prompts.source_column to the right name, or to null if there is none"
        raise SftdiffError(f"{place}: no text under {column!r} ({hint})")
    return source


def _once_each(table: pa.Table, config: Mapping[str, Any], fates: Fates | None) -> pa.Table:
    """Keep the first of the rows with one prompt_id (their sources are sorted), and count the others."""
    ids = ids_of(table["prompt_id"])
    again = np.zeros(len(ids), bool)
    again[1:] = ids[1:] == ids[:-1]
    if not again.any():
        return table
    if config["duplicates"] == "fail":
        first = table["prompt_id"][int(np.argmax(again))]
        raise SftdiffError(f"prompt {first} is there more than once; count it once with prompts.duplicates=merge")
    if fates is not None:
        _count_sources(fates, table.filter(pa.array(again)), "duplicates")
    return table.filter(pa.array(~again))


def _count_sources(fates: Fates, table: pa.Table, fate: str) -> None:
    for item in table["source"].value_counts().to_pylist():
        fates.count(item["values"], fate, item["counts"])


def _index(table: pa.Table) -> pa.Table:
    lengths = pa.compute.utf8_length(pa.compute.struct_field(pa.compute.list_flatten(table["messages"]), "content"))
    parents = pa.compute.list_parent_indices(table["messages"]).to_numpy()
    characters = np.bincount(parents, weights=lengths.to_numpy(), minlength=table.num_rows)[: table.num_rows]
    columns = [pa.array(ids_of(table["prompt_id"])), table["source"]]
    return pa.table([*columns, pa.array(characters.astype(np.int32))], schema=INDEX_SCHEMA)


def _sampled(rows: SortedRows, config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Return which of the distinct prompts, in their order, the sample holds; None if it is all of them."""
    if config["sample"] is None:
        return None
    ids, sources = list[str](), list[str]()
    for table in rows.tables():
        table = _once_each(table.select(["prompt_id", "source"]), config, None)
        ids += table["prompt_id"].to_pylist()
        sources += table["source"].to_pylist()
    return sample_by_source(ids, sources, config["sample"], config["sample_seed"])


def sample_by_source(ids: Sequence[str], sources: Sequence[str], count: int, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask of exactly `count` rows, with each source's share kept (largest remainders), chosen by a seeded hash."""
    if not 0 < count <= len(ids):
        raise SftdiffError(f"prompts.sample: cannot take {count} of {len(ids)} prompts; prompts.sample=null takes all")
    groups: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        groups[source].append(number)
    exact = {source: count * len(group) / len(ids) for source, group in groups.items()}
    take = {source: int(value) for source, value in exact.items()}
    by_remainder = sorted(groups, key=lambda s: (take[s] - exact[s], s))
    for source in by_remainder[: count - sum(take.values())]:
        take[source] += 1
    chosen = np.zeros(len(ids), bool)
    for source, group in groups.items():
        ranked = sorted(group, key=lambda k: (unit_interval("sample", seed, ids[k]), ids[k]))
        chosen[ranked[: take[source]]] = True
    return chosen


def load_index(directory: Path) -> PromptIndex:
    """Read the index of a prompts step."""
    table = read_table(directory / "index.parquet")
    encoded = table["source"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda k: names[k])  # so that no number depends on the order of the rows
    rank = np.argsort(np.array(order, np.int32)).astype(np.int32)
    codes = rank[encoded.indices.to_numpy()] if len(names) else np.empty(0, np.int32)
    ids, characters = (table[name].to_numpy() for name in ("prompt", "characters"))
    return PromptIndex(ids, codes, tuple(names[k] for k in order), characters)
