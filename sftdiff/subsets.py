"""Prompt subsets: which prompts a set S holds. Pure but for reading texts (regex) and an ids file.

A subset is a dict with a `name` and the settings of FIELDS for that name; `of` and `sets` hold other subsets.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.files import read_rows, resolve
from sftdiff.prompts import PromptIndex
from sftdiff.rows import Mask, first_by, hash_order, length_strata, matched_random, selected
from sftdiff.sorting import id_text

FIELDS: dict[str, tuple[str, ...]] = {  # name -> settings that it has; those in OPTIONAL may be null
    "all": (),
    "none": (),
    "by_source": ("sources",),
    "ids": ("ids", "level", "trait"),
    "regex": ("pattern",),
    "random_share": ("share", "seed"),
    "random_like": ("of", "match", "seed", "outside"),
    "cluster": ("locator", "clusters"),
    "locator": ("locator", "threshold", "top"),
    "union": ("sets",),
    "intersection": ("sets",),
    "complement": ("of",),
}
OPTIONAL = ("threshold", "top", "level", "trait")
LEVELS = ("overt", "mild")  # of the rows that show a trait; level=any takes both
MATCHES = ("size", "source", "length")


@dataclass(frozen=True)
class View:
    """What subsets look at. All arrays have one entry a prompt, in the order of the prompt_ids."""

    prompts: PromptIndex
    texts: Callable[[], Path]  # prompts.parquet
    characters: Callable[[], np.ndarray[Any, Any]]  # of the teacher's replies; 0 where there is none
    scores: Callable[[str], np.ndarray[Any, Any]]  # of a locator: float64, NaN for rows without a score

    def strata(self, by: str) -> np.ndarray[Any, Any] | None:
        """Return the groups within which a random control is drawn: by source, by length of the reply, or none."""
        if by == "length":
            return length_strata(self.characters())
        return self.prompts.codes if by == "source" else None


def subset_mask(subset: Mapping[str, Any], view: View) -> Mask:
    """Return which prompts lie in the subset: (prompts,)."""
    return MAKERS[subset["name"]](subset, view)


def nested(subset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the subsets that a subset is made of, in a fixed order."""
    inner = FIELDS[subset["name"]]
    return [subset["of"]] if "of" in inner else [subset["sets"][k] for k in sorted(subset["sets"])] if "sets" in inner else []


def _all(_: Mapping[str, Any], view: View) -> Mask:
    return np.ones(len(view.prompts), bool)


def _none(_: Mapping[str, Any], view: View) -> Mask:
    return np.zeros(len(view.prompts), bool)


def _by_source(subset: Mapping[str, Any], view: View) -> Mask:
    names = view.prompts.sources
    if unknown := set(subset["sources"]) - set(names):
        raise SftdiffError(
            f"prompt_subset.sources: no prompt has the source {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    return np.isin(view.prompts.codes, [names.index(source) for source in subset["sources"]])


def _ids(subset: Mapping[str, Any], view: View) -> Mask:
    level, trait = subset.get("level"), subset.get("trait")
    wanted = read_ids(subset["ids"], level, trait)
    if not len(wanted):
        of = " and".join(f" of {key} {value}" for key, value in (("level", level), ("trait", trait)) if value)
        raise SftdiffError(f"prompt_subset.ids: {subset['ids']} names no prompt{of}")
    known = np.isin(wanted, view.prompts.ids)
    if not level and not trait and not known.all():  # a truth file may be of several prompt sets
        unknown = id_text(wanted[~known][0])
        raise SftdiffError(
            f"prompt_subset.ids: {int((~known).sum())} of {len(wanted)} ids in {subset['ids']} are not in this prompt set, e.g. "
            f"{unknown}"
        )
    return np.isin(view.prompts.ids, wanted)


def read_ids(path: str, level: str | None = None, trait: str | None = None) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Read prompt_ids from a text file, one a line, or from the `prompt_id` column of a JSONL or Parquet file.

    Of a truth file, `level` keeps the rows of that level ("any": overt and mild), and `trait` those that show that trait; where
    the file has no column `trait` it speaks of one trait alone.
    """
    file = resolve(path)
    if file.suffix in (".jsonl", ".parquet"):
        levels = LEVELS if level == "any" else (level,)
        rows = (
            (place, row)
            for place, row in read_rows(file)
            if (level is None or row.get("level") in levels) and trait in (None, row.get("trait", trait))
        )
        found = [(place, row.get("prompt_id")) for place, row in rows]
    elif level or trait:
        key, value = ("level", level) if level else ("trait", trait)
        raise SftdiffError(f"prompt_subset.{key}={value}: {path} has no column `{key}`; give a truth file (JSONL or Parquet)")
    else:
        lines = enumerate(file.read_text().splitlines(), 1)
        found = [(f"{file}, line {number}", line.strip()) for number, line in lines if line.strip()]
    for place, text in found:
        if not isinstance(text, str) or not re.fullmatch("[0-9a-fA-F]{16}", text):
            raise SftdiffError(f"{place}: {text!r} is not a prompt_id (16 hex digits)")
    return np.unique(np.array([int(str(text), 16) for _, text in found], np.uint64))


def _regex(subset: Mapping[str, Any], view: View) -> Mask:
    try:
        pattern = re.compile(subset["pattern"], re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise SftdiffError(f"prompt_subset.pattern: {subset['pattern']!r} is not valid ({error})") from None
    corpus = Corpus(view.texts(), None, "prompt")
    found = np.array([bool(pattern.search(text)) for rows in corpus.chunks() for text in rows.texts], bool)
    if not found.any():
        raise SftdiffError(f"prompt_subset.pattern: {subset['pattern']!r} is found in no prompt")
    return found


def _random_share(subset: Mapping[str, Any], view: View) -> Mask:
    """Nested: the order of the prompts depends on the seed alone, and a smaller share is a shorter beginning of it."""
    ids = view.prompts.ids
    count = round(subset["share"] * len(ids))
    return first_by(hash_order(ids, "subset", subset["seed"]), ids, count, np.ones(len(ids), bool))


def _random_like(subset: Mapping[str, Any], view: View) -> Mask:
    target = subset_mask(subset["of"], view)
    among = ~target if subset["outside"] else np.ones(len(target), bool)
    chosen = matched_random(target, view.prompts.ids, view.strata(subset["match"]), among, ("random_like", subset["seed"]))
    if chosen.sum() != target.sum():
        raise SftdiffError(
            f"prompt_subset=random_like: outside the subset of {int(target.sum())} prompts there are not enough to match it by "
            f"{subset['match']}; take them from all prompts with prompt_subset.outside=false"
        )
    return chosen


def _cluster(subset: Mapping[str, Any], view: View) -> Mask:
    numbers = view.scores(subset["locator"]["input"])
    if unknown := set(subset["clusters"]) - set(numbers[~np.isnan(numbers)].astype(int).tolist()):
        raise SftdiffError(f"prompt_subset.clusters: there is no cluster {', '.join(map(str, sorted(unknown)))}")
    return np.isin(numbers, subset["clusters"])


def _locator(subset: Mapping[str, Any], view: View) -> Mask:
    everything = np.ones(len(view.prompts), bool)
    scores = view.scores(subset["locator"]["input"])
    return selected(scores, view.prompts.ids, subset["threshold"], subset["top"], everything)


def _parts(subset: Mapping[str, Any], view: View) -> Sequence[Mask]:
    return [subset_mask(part, view) for part in nested(subset)]


def _union(subset: Mapping[str, Any], view: View) -> Mask:
    return np.asarray(np.logical_or.reduce(_parts(subset, view)), bool)


def _intersection(subset: Mapping[str, Any], view: View) -> Mask:
    return np.asarray(np.logical_and.reduce(_parts(subset, view)), bool)


def _complement(subset: Mapping[str, Any], view: View) -> Mask:
    return ~subset_mask(subset["of"], view)


MAKERS: dict[str, Callable[[Mapping[str, Any], View], Mask]] = {
    "all": _all, "none": _none, "by_source": _by_source, "ids": _ids, "regex": _regex, "random_share": _random_share,
    "random_like": _random_like, "cluster": _cluster, "locator": _locator, "union": _union, "intersection": _intersection,
    "complement": _complement,
}  # fmt: skip
