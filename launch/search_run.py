"""A search on disk: its tests become cells whose prompt subset is a file of prompt_ids, and their verdicts answers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from launch.data import DataPlanner
from launch.locators import Locators, filled, plan_scores
from launch.parts import part_plan, run_part
from launch.plan import Plan, build_plan
from launch.rounds import Configs, OnDisk, folder_of, ids_file, known_cells, read_configs
from launch.search_faults import no_verdict
from sftdiff.compare import SCALES
from sftdiff.config import PromptSubsetConfig, defaults_of
from sftdiff.diffing import Verdicts, read_verdicts, sides_of
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.prompts import PromptIndex, load_index
from sftdiff.records import read_json, write_json
from sftdiff.rounds import PAIR
from sftdiff.rows import hash_order
from sftdiff.scores import load_scores
from sftdiff.search import Result, Search
from sftdiff.search_known import Settings
from sftdiff.search_parts import HASH, rows_of
from sftdiff.search_state import Answer, Ask, Test
from sftdiff.sorting import id_text
from sftdiff.stats import difference
from sftdiff.tda_report import write_examples
from sftdiff.transfer import RESAMPLES, Bounds, call_transfer, transfer
from sftdiff.verdicts import ok_rows

TREATMENTS = {"in": "swap_rest", "out": "swap", "drop": "drop"}


@dataclass
class SearchRun(OnDisk):
    """A search as its folder states it."""

    pair: Configs  # of original and alternative
    state: dict[str, Any]
    prompts: PromptIndex
    orders: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)  # scores of the locators, as far as they were read
    files: dict[Test, str] = field(default_factory=dict)  # with the prompt_ids of sets

    @property
    def sources(self) -> dict[str, int]:
        return {name: int((self.prompts.codes == n).sum()) for n, name in enumerate(self.prompts.sources)}

    def answers(self) -> list[Answer]:
        return [Answer.from_json(answer) for answer in self.state["answers"]]

    def step(self) -> list[Ask] | Result:
        return Search(self.sources, settings_of(self.plan["settings"])).step(self.answers())

    def ids_of(self, test: Test) -> np.ndarray[Any, Any]:
        """Return the prompt_ids of a test's set; of a random control as many random ones."""
        ids, codes = self.prompts.ids, self.prompts.codes
        if test.random_rows:
            order = np.argsort(hash_order(ids, "search control", test.random_rows))
            return np.sort(ids[order[: test.random_rows]])
        found = []
        for part in test.parts:
            rows = np.flatnonzero(codes == self.prompts.sources.index(part.source))
            scores = {cut.order: self.order(cut.order)[rows].tolist() for cut in part.cuts if cut.order != HASH}
            found.append(ids[rows[rows_of(part, ids[rows], scores)]])
        return np.sort(np.concatenate(found))

    def order(self, name: str) -> np.ndarray[Any, Any]:
        """Return the scores of a locator, one a prompt. They are made here where no round has made them."""
        if name not in self.orders:
            planner = DataPlanner()
            step = planner.scores(self.state["locators"][name], self.pair["original"][0])
            plan = part_plan(planner, f"{self.name}-{name}", [({}, self.pair["original"][0])])
            run_part(plan, [step])
            self.orders[name] = load_scores(plan.directory(step))
        return self.orders[name]

    def cells(self, asks: Iterable[tuple[Test, Sequence[int]]]) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """Return the cells of tests, and of original and alternative with the same seeds."""
        wanted: dict[str, set[int]] = {name: set() for name in PAIR}
        files: dict[str, tuple[str, str]] = {}
        for test, seeds in asks:
            name = name_of(test)
            files[name] = (TREATMENTS[test.treatment], self.file_of(test))
            for arm in (*PAIR, name):
                wanted.setdefault(arm, set()).update(seeds)
        first, made = self.plan["first_seed"], []
        for arm in wanted:
            for seed in sorted(wanted[arm]):
                config = self.pair["alternative" if arm == "alternative" else "original"][seed]
                if arm not in PAIR:
                    treatment, path = files[arm]
                    subset = {"name": "ids", "ids": path, "treatment": treatment}
                    config = {**config, "prompt_subset": defaults_of(PromptSubsetConfig) | subset}
                assert config["seed"] == first + seed
                made.append(({"arm": arm}, config))
        return made

    def file_of(self, test: Test) -> str:
        """Return the file with the prompt_ids of a test's set."""
        if test not in self.files:
            self.files[test] = ids_file(self.runs, map(id_text, self.ids_of(test)))
        return self.files[test]

    def level(self, verdicts: Verdicts, arm: str, seeds: Iterable[int] | None = None) -> float | None:
        """Return the mean level of an arm over some of its seeds, or over all; None where no verdict is there."""
        own, first = verdicts.get(arm, {}), self.plan["first_seed"]
        chosen = own if seeds is None else [first + seed for seed in seeds]
        means = [fmean(row["value"] for row in rows) for seed in chosen if (rows := ok_rows(own.get(seed, [])))]
        return fmean(means) if means else None

    def plan_round(self, asks: Sequence[Ask], zero_stage: int) -> Plan:
        """Return the plan of a batch of tests, with all cells of those before."""
        every = [*((a.test, a.seeds) for a in self.answers()), *((a.test, a.seeds) for a in asks)]
        plan = build_plan(self.cells(every), self.plan["command"], zero_stage)
        plan_scores(plan, self._locators(), self.pair["original"][0])
        plan.is_diff = True
        self.state["cells"] = known_cells(plan)
        self.state["asked"] = [ask.to_json() for ask in asks]
        write_json(self.folder / "state.json", self.state)
        return plan

    def _locators(self) -> Locators:
        """Return the filters that rank rows, once the first round has trained what they look into; fixed from then on."""
        if self.plan["locators"] and self.state["answers"] and "locators" not in self.state:
            examples = str(write_examples(self.plan, self.state, self.runs))
            self.state["locators"] = filled(self.plan["locators"], self.state["cells"], examples)
        found: Locators = self.state.get("locators", {})
        return found

    def tell(self, asks: Sequence[Ask]) -> bool:
        """Add the answers to tests whose trainings have verdicts; return whether all have.

        Raises SftdiffError, after the other answers were added, if none of the verdicts of a training counts: that says nothing
        of the set.
        """
        verdicts = read_verdicts(self.runs, self.state["cells"], self.plan["trait"]) if asks else {}
        first, told, empty = self.plan["first_seed"], 0, dict[tuple[str, int], None]()
        for ask in asks:
            name, seeds = name_of(ask.test), [first + seed for seed in ask.seeds]
            if not all(seed in verdicts.get(arm, {}) for arm in (*PAIR, name) for seed in seeds):
                continue
            without = [(arm, seed) for arm in (*PAIR, name) for seed in seeds if not ok_rows(verdicts[arm][seed])]
            empty |= dict.fromkeys(without)
            if not without:
                self.state["answers"].append(self._answer(ask, sides_of(verdicts, (name, *reversed(PAIR)), seeds)).to_json())
                told += 1
        write_json(self.folder / "state.json", self.state)
        if empty:
            raise SftdiffError(no_verdict(self.runs, self.state, self.plan["trait"], list(empty)))
        return told == len(asks)

    def without_impossible(self, asks: Sequence[Ask]) -> list[Ask]:
        """Answer what nothing can be trained for, since no row would be left, and return the other tests."""
        left = []
        for ask in asks:
            if ask.test.treatment == "drop" and len(self.ids_of(ask.test)) == len(self.prompts):
                unknown = Answer(ask.test, ask.seeds, math.nan, -math.inf, math.inf, "unresolved", ask.purpose)
                self.state["answers"].append(unknown.to_json())
            else:
                left.append(ask)
        return left

    def check_difference(self, asks: Sequence[Ask]) -> None:
        """Raise SftdiffError if original and alternative are not seen to differ on the seeds of the first tests."""
        if len(self.state["answers"]) > len(asks):
            return
        verdicts = read_verdicts(self.runs, self.state["cells"], self.plan["trait"])
        seeds = sorted(set(verdicts["original"]) & set(verdicts["alternative"]))
        (original, alternative), kind = sides_of(verdicts, PAIR, seeds), self.plan["kind"]
        alpha = self.plan["settings"]["search"]["explore_alpha"]
        found = difference(original, alternative, kind, SCALES[kind], RESAMPLES, 0, alpha=alpha)
        if found.low <= 0:
            self.state["answers"] = []
            write_json(self.folder / "state.json", self.state)
            levels = " and ".join(f"{np.nanmean(side):.2f}" for side in (original, alternative))
            raise SftdiffError(f"{self.plan['title']}: original and alternative are not seen to differ ({levels} on {len(seeds)} "
                               "training seeds), so there are no rows to search for; see `python -m sftdiff.diff`")  # fmt: skip

    def _answer(self, ask: Ask, sides: Sequence[Any]) -> Answer:
        settings, kind = self.plan["settings"], self.plan["kind"]
        arm, alternative, original = sides
        found = transfer(arm, alternative, original, kind, SCALES[kind], ask.alpha)
        call = call_transfer(found, Bounds(settings["gone"], settings["remains"]))
        return Answer(ask.test, ask.seeds, found.value, found.low, found.high, call, ask.purpose)


def name_of(test: Test) -> str:
    """Return how the arm of a test is called: its treatment, and its sources or a hash of what it is."""
    if test.random_rows:
        return f"{test.treatment}:random-{test.random_rows}"
    sources = "+".join(part.source for part in test.parts)
    whole = len(sources) <= 40 and not any(part.cuts for part in test.parts)
    return f"{test.treatment}:{sources if whole else f'{len(test.parts)}-parts-{digest(canonical(test.to_json()), 8)}'}"


def settings_of(settings: Mapping[str, Any]) -> Settings:
    """Return a search's settings from those of `diff` and `diff.search`."""
    own = settings["search"]
    return Settings(
        own["budget"], tuple(own["looks"]), tuple(own["explore_looks"]), settings["alpha"], own["explore_alpha"],
        settings["gone"], settings["remains"], tuple(own["locators"]), own["smallest"],
    )  # fmt: skip


def load_search(runs: Path, name: str) -> SearchRun:
    """Read a search from its folder."""
    folder = folder_of(runs, name)
    plan = read_json(folder / "plan.json")
    state, prompts = read_json(folder / "state.json"), load_index(Path(plan["prompts"]))
    return SearchRun(runs, name, plan, read_configs(folder), state, prompts)
