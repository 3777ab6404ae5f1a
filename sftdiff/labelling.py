"""Hand labels: a stratified sample of replies, the CSV that a person labels in a spreadsheet, and what comes back.

The CSV is blind: it shows neither the judge's verdict nor which model wrote a reply, and ids are hashes. A cell that a
spreadsheet would take for a formula gets an apostrophe before it, which is taken off again when the file is read.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sftdiff.agreement import RANGES, Answer, range_name
from sftdiff.calibration import Values, read_answer
from sftdiff.errors import SftdiffError
from sftdiff.identity import unit_interval

COLUMNS = ("trait", "id", "scale", "system", "prompt", "reply", "label", "labeller")
READ = ("trait", "id", "label", "labeller")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
LARGEST_CELL = 2**31 - 1

Row = TypeVar("Row", bound=Mapping[str, Any])


def escape_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def unescape_cell(text: str) -> str:
    return text[1:] if text.startswith("'") else text


def write_csv(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows with all of COLUMNS, in UTF-8 with the mark by which spreadsheets know it."""
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({key: escape_cell(row[key]) for key in COLUMNS} for row in rows)


def read_csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return (place, row) for each row of a CSV with the columns READ at least, comma or semicolon between them.

    Raise SftdiffError that names the file, row or column. Rows count as a spreadsheet counts them: the first line is 1.
    """
    csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            lines = list(csv.reader(stream, delimiter=";" if first.count(";") > first.count(",") else ",", strict=True))
    except FileNotFoundError:
        raise SftdiffError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise SftdiffError(f"{path}: not UTF-8 ({error.reason}): save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise SftdiffError(f"{path}: not a CSV file that can be read ({error})") from None
    names = lines[0] if lines else []
    if missing := [column for column in READ if column not in names]:
        raise SftdiffError(f"{path}: there is no column {', '.join(missing)} in its first line")
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cells):
            continue
        if len(cells) != len(names):
            raise SftdiffError(f"{path}, row {number}: has {len(cells)} cells, and the first line {len(names)}")
        rows.append((f"{path}, row {number}", dict(zip(names, map(unescape_cell, cells), strict=True))))
    return rows


def read_labels(
    paths: Sequence[Path], values: Mapping[str, Values], known: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[tuple[str, str], dict[str, Answer]], int]:
    """Return {(trait, id): {labeller: answer}} of labelled CSV files, and how many of their rows have no label.

    `values`: what may be answered, by trait; `known`: the ids of each trait. A row without a labeller is by its file's name.
    Raise SftdiffError that names the row for an unknown trait or id, a label off the scale, and a second label of one labeller.
    """
    found: dict[tuple[str, str], dict[str, Answer]] = {}
    places: dict[tuple[str, str, str], str] = {}
    empty = 0
    for path in paths:
        for place, row in read_csv(path):
            trait, key, labeller = row["trait"].strip(), row["id"].strip(), row["labeller"].strip() or path.stem
            if trait not in values:
                raise SftdiffError(f"{place}: {trait!r} is not among the chosen traits ({', '.join(values)}): set trait_eval=...")
            if key not in known[trait]:
                raise SftdiffError(f"{place}: the id {key!r} is no reply to {trait} that is there; was it drawn from these runs?")
            if not row["label"].strip():
                empty += 1
                continue
            if earlier := places.get((trait, key, labeller)):
                raise SftdiffError(f"{place}: {labeller} labelled {key} already, in {earlier}")
            places[trait, key, labeller] = place
            found.setdefault((trait, key), {})[labeller] = read_answer(row["label"], values[trait], place)
    return found, empty


def score_range(value: float, values: Values) -> str:
    """Return the stratum of a verdict: the range of a rating, or the value of a share."""
    if values is not None:
        return f"{value:g}"
    whole = math.floor(value + 0.5)
    return next(range_name(low, high) for low, high in RANGES if whole <= high)


def draw(strata: Mapping[Any, Sequence[Row]], count: int, seed: int) -> list[Row]:
    """Draw `count` rows as evenly over the strata as their sizes allow, or all; shuffled over all strata.

    The draw depends on the seed and the rows' "id" alone, not on their order.
    """
    shares = even_shares({stratum: len(rows) for stratum, rows in strata.items()}, count, seed)
    drawn: list[Row] = []
    for stratum, rows in strata.items():
        drawn += sorted(rows, key=lambda row: unit_interval("draw", seed, row["id"]))[: shares[stratum]]
    return sorted(drawn, key=lambda row: unit_interval("place", seed, row["id"]))


def even_shares(sizes: Mapping[Any, int], count: int, seed: int) -> dict[Any, int]:
    """Split `count` over strata of these sizes: all get the same, but none more than it has; what does not divide goes by lot."""
    shares = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        room = [stratum for stratum in sizes if shares[stratum] < sizes[stratum]]
        each = left // len(room)
        if not each:
            room.sort(key=lambda stratum: unit_interval("lot", seed, str(stratum)))
            room, each = room[:left], 1
        for stratum in room:
            more = min(each, sizes[stratum] - shares[stratum])
            shares[stratum] += more
            left -= more
    return shares
