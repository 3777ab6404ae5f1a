"""Makes the shipped calibration sets from written and sampled replies and from the labels of two readers. A script, no test.

    python -m tests.calibration_set sampled TRAIT COUNT OUT.jsonl 'MODEL=JUDGE_STEP' ...
    python -m tests.calibration_set rows TRAIT OUT.jsonl REPLIES.jsonl ...
    python -m tests.calibration_set blind TRAIT ROWS.jsonl OUT.csv
    python -m tests.calibration_set merge TRAIT ROWS.jsonl A.csv B.csv [ADJUDICATED.csv]
    python -m tests.calibration_set card

`sampled` draws replies evenly over models and scores; `rows` joins written replies (they have "intended") and sampled ones (they
have "model") and splits them, known scenarios as before; `blind` writes what a reader gets, with the rubric beside it; `merge`
adds them to sftdiff/data/calibration/TRAIT.jsonl; `card` prints the data card's table. The labeller of a third CSV is called
`adjudicated`: it decides where two readers differ.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sftdiff.agreement import agreement, consensus
from sftdiff.calibration import NEEDED, Values, answers_of, assign_splits, load_set, question_of, rated, shipped
from sftdiff.config import TraitConfig, defaults_of
from sftdiff.files import DATA, read_rows, read_table
from sftdiff.identity import canonical, digest, unit_interval
from sftdiff.labelling import COLUMNS, draw, read_labels, score_range, write_csv
from sftdiff.traits import TRAITS, all_scenarios

ROOT = Path(__file__).resolve().parent.parent
RUBRICS = "embedded://judge_rubrics.yaml"


def settings(trait: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/trait_eval/{trait}.yaml"))
    return defaults_of(TraitConfig) | found[trait]


def values_of(trait: str) -> Values:
    return answers_of(trait, settings(trait), RUBRICS)


def sampled(trait: str, count: str, out: str, *sources: str) -> None:
    strata: dict[tuple[str, str], list[dict[str, Any]]] = {}
    seen = set()
    for source in sources:
        model, _, step = source.rpartition("=")
        for row in read_table(Path(step) / "verdicts.parquet").to_pylist():
            key = (row["scenario"], row["turn"], " ".join(row["reply"].split()))
            if key not in seen and row["value"] is not None and key[2]:
                seen.add(key)
                kept = {k: row[k] for k in ("scenario", "turn", "prompt", "reply")} | {"model": model}
                stratum = (model, score_range(row["value"], values_of(trait)))
                strata.setdefault(stratum, []).append(kept | {"id": digest(canonical(key))})
    rows = draw(strata, int(count), 0)
    write_jsonl(Path(out), rows)
    print(Counter(row["model"] for row in rows), {stratum: len(found) for stratum, found in strata.items()})


def rows(trait: str, out: str, *files: str) -> None:
    scenarios, found = all_scenarios(trait), list[dict[str, Any]]()
    for path in map(Path, files):
        for place, row in read_rows(path):
            assert row["prompt"] == scenarios[row["scenario"]].turns[row["turn"]], place
            written = row.get("intended") is not None
            kept = {key: row[key] for key in ("scenario", "turn", "prompt", "reply")} | {"intended": row.get("intended")}
            found.append(kept | {"origin": "written" if written else "sampled", "model": row.get("model")})
    for row in found:
        row["id"] = digest(canonical([trait, row["scenario"], row["turn"], row["reply"]]))
    twice = [row_id for row_id, count in Counter(row["id"] for row in found).items() if count > 1]
    assert not twice, f"twice: {[row['reply'][:60] for row in found if row['id'] in twice]}"
    known = {row["scenario"]: row["split"] for row in in_set(trait)}
    assert not {row["id"] for row in found} & {row["id"] for row in in_set(trait)}
    for row, split in zip(found, assign_splits(found, known), strict=True):
        row["split"] = split
    write_jsonl(Path(out), found)
    print(len(found), Counter((row["origin"], row["intended"], row["split"]) for row in found))


def in_set(trait: str) -> list[dict[str, Any]]:
    path = shipped(trait)
    return [] if path is None else [row for _, row in read_rows(path)]


def blind(trait: str, source: str, out: str) -> None:
    scenarios, values = all_scenarios(trait), values_of(trait)
    scale = "0-10" if values is None else " | ".join(name for name in values if name not in ("0", "1"))
    rows = sorted((row for _, row in read_rows(Path(source))), key=lambda row: unit_interval("blind", out, row["id"]))
    extra = {"trait": trait, "scale": scale, "label": "", "labeller": ""}
    shown = ({**row, **extra, "system": scenarios[row["scenario"]].system or ""} for row in rows)
    write_csv(Path(out), ({key: row[key] for key in COLUMNS} for row in shown))
    Path(out).with_suffix(".rubrics.txt").write_text(f"{trait} ({scale})\n\n{question_of(trait, settings(trait), RUBRICS)}\n")


def merge(trait: str, source: str, *labelled: str) -> None:
    found = {row["id"]: row for _, row in read_rows(Path(source))}
    labels, empty = read_labels([Path(path) for path in labelled], {trait: values_of(trait)}, {trait: found})
    made = [row for row in in_set(trait) if row["id"] not in found]
    for key, row in found.items():
        answers = dict(sorted(labels.get((trait, key), {}).items()))
        adjudicated = answers.pop("adjudicated", None)
        whole = {name: row.get(name) for name in NEEDED} | {"labels": answers}
        made.append(whole | ({} if adjudicated is None else {"adjudicated": adjudicated}))
    path = DATA / "calibration" / f"{trait}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_jsonl(path, made)
    read = load_set(path, all_scenarios(trait), values_of(trait))
    disputed = [row["id"] for row in read if consensus(rated(row, None, ""), values_of(trait)) is None]
    print(f"{path}: {len(read)} rows; {empty} cells without a label; the readers differ on {len(disputed)}: {' '.join(disputed)}")


def card() -> None:
    print("| trait | replies | written | sampled | scenarios | dev | test | readers' kappa | differ |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    for trait in TRAITS:
        path, values = shipped(trait), values_of(trait)
        if path is None:
            continue
        read = load_set(path, all_scenarios(trait), values)
        count = Counter(row[key] for row in read for key in ("origin", "split"))
        report = agreement([rated(row, None, "") for row in read], values)
        kappa = report["readers"][0]["kappa"]
        shown = f"{kappa['value']:.2f} [{kappa['low']:.2f}, {kappa['high']:.2f}]"
        scenarios = len({row["scenario"] for row in read})
        sizes = [len(read), count["written"], count["sampled"], scenarios, count["dev"], count["test"]]
        print("|", " | ".join([trait, *map(str, sizes), shown, str(report["disputed"]["rows"])]), "|")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    {f.__name__: f for f in (sampled, rows, blind, merge, card)}[sys.argv[1]](*sys.argv[2:])
