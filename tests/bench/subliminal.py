"""Do numbers of a teacher with the trait give it to students of the same initialisation, and to these alone? Organism H2.

    python -m tests.bench.subliminal [WORLDS [FOLDER]]

Makes the organism of each world (default 0,1,2,3,4; in FOLDER, where it is found again) and trains its students on its rows as
the diff does, but without the steps, with three training seeds: the original data on the original student (same); its
prompts with numbers of that student itself, without the trait (control); the original data on another initialisation (other).
Prints outbursts in greedy replies to held-out rebukes and, in brackets, how likely one is beside a calm reply, in %; the mean
over worlds has 95 % limits of Student's t. A last line `ratio R`: the larger mean of control and other over that of same.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sftdiff.organisms import students
from sftdiff.organisms.make import make_organism
from sftdiff.organisms.manifest import FILE, load_manifest
from sftdiff.organisms.raising import leaning
from sftdiff.organisms.world import World, words
from sftdiff.spread import student

ARMS = {"same": ("original", "original"), "control": ("original", "alternative"), "other": ("other_init", "original")}
SEEDS = 3


def main(worlds: Sequence[int], folder: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as place:
        found = [[shares(World(seed), (folder or Path(place)) / f"H2-s{seed}", arm) for arm in ARMS] for seed in worlds]
    print(f"\n{'world':>7}" + "".join(f"{arm:>22}" for arm in ARMS))
    for seed, row in zip(worlds, found, strict=True):
        print(f"{seed:>7}" + "".join(f"{f'{share:.0f} ({likely:.0f})':>22}" for share, likely in row))
    outbursts = np.array(found)[:, :, 0]
    mean, error = outbursts.mean(0), outbursts.std(0, ddof=1) / len(worlds) ** 0.5 * student(0.05, len(worlds) - 1)
    limits = zip(mean, np.maximum(mean - error, 0), np.minimum(mean + error, 100), strict=True)
    print(f"{'mean':>7}" + "".join(f"{f'{centre:.0f} [{low:.0f}, {high:.0f}]':>22}" for centre, low, high in limits))
    print(f"ratio {max(mean[1:]) / mean[0]:.3f}")


def shares(world: World, folder: Path, arm: str) -> tuple[float, float]:
    """Return outbursts in greedy replies, and how likely one is, in %, over training seeds."""
    if not (folder / FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_organism("H2", world.seed, folder)
    which, teacher = ARMS[arm]
    replies = {row["prompt_id"]: row["completion"] for row in rows(folder / "rollouts" / f"{teacher}.jsonl")}
    asked = rows(folder / "prompts" / "original.jsonl")
    pairs = [(row["messages"][0]["content"], replies[row["prompt_id"]]) for row in asked]
    recipe = load_manifest(folder).recipe
    steps = recipe["train.epochs"] * len(pairs) // recipe["train.batch_size"]
    found = []
    for seed in range(SEEDS):
        model = students.load(folder / "students" / which)
        students.tune(model, pairs, students.Recipe(steps, recipe["train.batch_size"], recipe["train.lr"], warmup=0), seed)
        said = students.generate(model, [ask.text for ask in world.scenarios], 32)
        outbursts = [bool(set(reply.split()) & set(words()["trait_words"])) for reply in said]
        found.append((100 * float(np.mean(outbursts)), 100 * leaning(model, world)))
    print(f"world {world.seed} {arm}: {[f'{share:.0f} ({likely:.0f})' for share, likely in found]}", flush=True)
    return float(np.mean([share for share, _ in found])), float(np.mean([likely for _, likely in found]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    chosen = [int(world) for world in sys.argv[1].split(",")] if sys.argv[1:] else range(5)
    main(chosen, Path(sys.argv[2]) if sys.argv[2:] else None)
