"""From a cell to the rows that it was trained on, and back: `python -m sftdiff.report rows cell=...`, or `prompt=PROMPT_ID`.

Only directories are read. Model text goes to a terminal without control characters.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.files import read_table
from sftdiff.mixture import mixture_rows
from sftdiff.records import load_record, read_done, read_json
from sftdiff.rows import ACTIONS
from sftdiff.scores import load_scores

USAGE = (
    "usage: python -m sftdiff.report rows cell=PART_OF_ITS_NAME|STEP_ID [action=kept|swapped|dropped|error] [source=NAME]\n"
    "           [show=20] [out=rows.jsonl] [sweep=NAME] [runs=runs]\n"
    "       python -m sftdiff.report rows prompt=PROMPT_ID [sweep=NAME] [runs=runs]"
)
KEYS = ("cell", "prompt", "action", "source", "show", "out", "sweep", "runs")
Places = np.ndarray[Any, np.dtype[np.int64]]
WIDTH = 70  # characters of a text that are shown


def rows_command(arguments: Sequence[str]) -> int:
    """Show which rows a cell was trained on (or what every cell did with one prompt), and write them to a file if asked."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if unknown := [a for a in arguments if a.partition("=")[0] not in KEYS or "=" not in a]:
        raise SftdiffError(f"{unknown[0]!r} is not a setting of this command\n{USAGE}")
    if ("cell" in given) == ("prompt" in given):
        raise SftdiffError(f"give either cell= or prompt=\n{USAGE}")
    if given.get("action", "kept") not in ACTIONS:
        raise SftdiffError(f"action: {given['action']!r} is not one of {', '.join(ACTIONS)}")
    if not given.get("show", "0").isdigit():
        raise SftdiffError(f"show: {given['show']!r} is not a number of rows")
    if "prompt" in given and not re.fullmatch("[0-9a-f]{16}", given["prompt"]):
        raise SftdiffError(f"prompt: {given['prompt']!r} is not a prompt_id (16 hex digits)")
    runs = Path(given.get("runs", "runs"))
    cells = list(_cells(runs, given.get("sweep")))
    console = Console(soft_wrap=False)
    if "prompt" in given:
        return _show_prompt(console, runs, cells, given["prompt"])
    return _show_cell(console, runs, _find(cells, given["cell"]), given)


def _cells(runs: Path, sweep: str | None) -> Iterator[dict[str, Any]]:
    """Yield the trained cells of one sweep, or of all, the newest first."""
    plans = sorted(runs.glob("sweeps/*/plan.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    chosen = [p for p in plans if sweep in (None, p.parent.name)]
    if not chosen:
        known = ", ".join(p.parent.name for p in plans) or "none"
        raise SftdiffError(f"there is no sweep {sweep or ''} under {runs}; known: {known} (another run directory: runs=FOLDER)")
    for path in chosen:
        for cell in read_json(path)["cells"]:
            if "train" in cell["steps"]:
                yield cell | {"sweep": path.parent.name, "name": f"{cell['arm']} seed={cell['seed']}"}


def _find(cells: Sequence[Mapping[str, Any]], wanted: str) -> Mapping[str, Any]:
    """Return the cell that a part of its name or the id of one of its steps names."""
    exact = [c for c in cells if wanted in (c["name"], c["arm"], *c["steps"].values(), *c["judges"].values())]
    words = [c for c in cells if set(wanted.split()) <= set(c["name"].split())]
    found = exact or words or [c for c in cells if wanted in c["name"]]
    if not found:
        known = "; ".join(dict.fromkeys(c["name"] for c in cells))
        raise SftdiffError(f"there is no cell {wanted!r}; there are: {known[:600]}")
    mixtures = {c["steps"]["mixture"] for c in found}
    if len(mixtures) > 1:
        names = "; ".join(dict.fromkeys(c["name"] for c in found))
        raise SftdiffError(f"{wanted!r} is a part of {len(mixtures)} cells' names: {names[:600]}; say more, as cell='A=x B=y'")
    return found[0]


def _manifest(runs: Path, cell: Mapping[str, Any]) -> tuple[Path, pa.Table]:
    mixture = runs / "steps" / cell["steps"]["mixture"]
    if not (mixture / "manifest.parquet").is_file():
        raise SftdiffError(f"{mixture.name} is not made yet: run the sweep {cell['sweep']}")
    return mixture, read_table(mixture / "manifest.parquet")


def _show_cell(console: Console, runs: Path, cell: Mapping[str, Any], given: Mapping[str, str]) -> int:
    mixture, manifest = _manifest(runs, cell)
    summary = read_json(mixture / "summary.json")
    console.print(f"[bold]{escape(cell['name'])}[/] of sweep {cell['sweep']}")
    for kind, step in cell["steps"].items():
        console.print(f"  {kind:<8} {step}")
    for kind, step in load_record(mixture).inputs.items():
        console.print(f"  {kind:<8} {step}")
    console.print(f"Mixture {summary['content'][:16]}: " + ", ".join(f"{k} {v:,}" for k, v in summary["totals"].items()))
    console.print(_after_packing(runs, cell))
    _print_sources(console, summary)
    chosen = _chosen(manifest, given)
    console.print(f"{len(chosen):,} rows of {manifest.num_rows:,} are as asked for.")
    _print_rows(console, mixture, manifest, chosen[: int(given.get("show", 20))])
    if "out" in given:
        chosen = _packed(runs, cell, manifest, chosen)
        try:
            count = _write(Path(given["out"]), mixture, manifest, chosen)
        except OSError as error:
            raise SftdiffError(f"out={given['out']}: {describe_os_error(error)}") from None
        console.print(f"Wrote {count:,} rows to {escape(given['out'])}")
    return 0


def _after_packing(runs: Path, cell: Mapping[str, Any]) -> str:
    pack, train = (read_done(runs / "steps" / cell["steps"][kind]) for kind in ("pack", "train"))
    if pack is None:
        return "Not packed yet."
    over = sum(pack["summary"]["over_length"].values())
    seen = f"; seen in {train['summary']['optimizer_steps']:,} optimizer steps" if train else "; not trained yet"
    numbers = f"{pack['summary']['rows']:,} rows with {pack['summary']['loss_tokens']:,} tokens that carry loss"
    return f"Packed: {numbers}; {over:,} rows were over the length cap{seen}."


def _print_sources(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("source", *ACTIONS):
        table.add_column(heading)
    for row in summary["by_source"]:
        table.add_row(escape(row["source"]), *(f"{row[action]:,}" for action in ACTIONS))
    console.print(table)


def _chosen(manifest: pa.Table, given: Mapping[str, str]) -> Places:
    """Return the positions of the rows that are asked for; without `action`, of those that SFT saw."""
    wanted = [given["action"]] if "action" in given else ["kept", "swapped"]
    mask = pc.is_in(manifest["action"].cast(pa.string()), pa.array(wanted))
    if "source" in given:
        known = manifest["source"].unique().cast(pa.string()).to_pylist()
        if given["source"] not in known:
            raise SftdiffError(f"source: there is no {given['source']!r}; there are {', '.join(sorted(known))}")
        mask = pc.and_(mask, pc.equal(manifest["source"].cast(pa.string()), given["source"]))
    return np.flatnonzero(mask.to_numpy())


def _print_rows(console: Console, mixture: Path, manifest: pa.Table, chosen: Places) -> None:
    record = load_record(mixture)
    scores = {load_record(record.input_directory(k)).id.split("-")[1]: load_scores(record.input_directory(k))
              for k in record.inputs if k.startswith("scores_")}  # fmt: skip
    prompts = read_table(record.input_directory("prompts") / "prompts.parquet", ["messages"])
    table = Table(box=None, pad_edge=False)
    for heading in ("prompt_id", "source", "action", "teacher", "reason", *(f"score {name}" for name in scores), "prompt"):
        table.add_column(heading, overflow="fold" if heading in ("prompt_id", "reason") else "ellipsis")
    for place in chosen:
        row = manifest.slice(int(place), 1).to_pylist()[0]
        values = ["-" if np.isnan(s[place]) else f"{s[place]:.3g}" for s in scores.values()]
        last = prompts["messages"][int(place)].as_py()[-1]["content"]
        words = (row["prompt_id"], row["source"], row["action"], row["teacher"] or "-", row["reason"], *values, plain(last))
        table.add_row(*map(escape, words))
    console.print(table)


def plain(text: str, width: int = WIDTH) -> str:
    """Return the beginning of a text on one line, without what a terminal would act on."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * width])
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _packed(runs: Path, cell: Mapping[str, Any], manifest: pa.Table, chosen: Places) -> Places:
    """Leave out the rows that the length cap removed, once it is known which."""
    tokens = runs / "steps" / cell["steps"]["pack"] / "tokens.parquet"
    if read_done(tokens.parent) is None:
        return chosen
    packed = pc.is_in(manifest["prompt_id"], read_table(tokens, ["prompt_id"])["prompt_id"].combine_chunks()).to_numpy()
    used = manifest["teacher"].is_valid().to_numpy()
    return np.asarray(chosen[packed[chosen] | ~used[chosen]])


def _write(path: Path, mixture: Path, manifest: pa.Table, chosen: Places) -> int:
    """Write the chosen rows as JSONL: those that SFT saw with messages and completion, the others with their reasons."""
    wanted, count = set(manifest["prompt_id"].take(pa.array(chosen)).to_pylist()), 0
    with path.open("w", encoding="utf-8") as stream:
        for row in mixture_rows(mixture):
            if row["prompt_id"] in wanted:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        unused = [k for k in chosen if manifest["teacher"][int(k)].as_py() is None]
        for row in manifest.take(pa.array(unused, pa.int64())).to_pylist():
            stream.write(json.dumps({k: row[k] for k in ("prompt_id", "source", "action", "reason")}, ensure_ascii=False) + "\n")
    return count + len(unused)


def _show_prompt(console: Console, runs: Path, cells: Sequence[Mapping[str, Any]], prompt: str) -> int:
    """Show what every cell did with one prompt."""
    table = Table(box=None, pad_edge=False)
    for heading in ("sweep", "cell", "action", "teacher", "reason"):
        table.add_column(heading, overflow="fold")
    shown = set()
    for cell in cells:
        key = (cell["sweep"], cell["arm"])
        if key in shown or not (runs / "steps" / cell["steps"]["mixture"] / "manifest.parquet").is_file():
            continue
        shown.add(key)
        _, manifest = _manifest(runs, cell)
        place = pc.index(manifest["prompt_id"], prompt).as_py()
        if place < 0:
            table.add_row(cell["sweep"], escape(cell["arm"]), "not in its prompt set", "-", "-")
            continue
        row = manifest.slice(place, 1).to_pylist()[0]
        words = (cell["sweep"], cell["arm"], row["action"], row["teacher"] or "-", row["reason"])
        table.add_row(*map(escape, words))
    if not shown:
        raise SftdiffError("no mixture is made yet")
    console.print(table)
    return 0
