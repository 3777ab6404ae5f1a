"""Example transcripts of a trait: what the filters by similarity, the classifier and the attribution look for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import read_rows, resolve


def load_examples(params: Mapping[str, Any]) -> list[str]:
    """Return the texts of the chosen traits' examples, in the order of the file.

    params: `examples`, a JSONL, Parquet or YAML file of {trait, text} rows; `traits`. Raises SftdiffError for a row of another
    form and a trait that has no example.
    """
    name, traits = params["examples"], chosen_traits(params)
    texts: dict[str, list[str]] = {}
    for place, row in _rows(resolve(name)):
        trait, text = row.get("trait"), row.get("text")
        if not isinstance(trait, str) or not isinstance(text, str) or not text.strip():
            raise SftdiffError(f"{place}: an example needs 'trait' and 'text', both texts")
        texts.setdefault(trait, []).append(text)
    for trait in traits:
        if trait not in texts:
            known = ", ".join(sorted(texts)) or "none"
            raise SftdiffError(f"filter.params.traits: {name} has no example of {trait}; it has {known}")
    return [text for trait, found in texts.items() if trait in traits for text in found]


def chosen_traits(params: Mapping[str, Any]) -> list[str]:
    """Return the traits that a filter looks for; raises SftdiffError if they are not a list of names."""
    traits = params["traits"]
    if isinstance(traits, str) or not traits or not all(isinstance(trait, str) for trait in traits):
        raise SftdiffError("filter.params.traits: expected a list of at least one name, e.g. 'filter.params.traits=[blackmail]'")
    return list(traits)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix not in (".yaml", ".yml"):
        yield from read_rows(path)
        return
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SftdiffError(f"{path}: not a YAML file ({one_line(error)})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SftdiffError(f"{path}: expected a list of {{trait, text}} entries")
    for number, row in enumerate(rows, 1):
        yield f"{path}, entry {number}", row
