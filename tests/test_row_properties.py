"""What must hold for any prompts, rollouts, subsets and filters, through the real steps from prompts to the order of training."""

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hand_written import id_of, made, manifest_of, mixture_step, prompts_step, question, rollouts_step, scores_step, write_jsonl
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from sftdiff.mixture import content_hash, mixture_rows
from sftdiff.pack import Row, order_matched, order_steps
from sftdiff.records import read_json
from sftdiff.rows import ACTIONS, TREATMENTS
from sftdiff.steps import run_step

LOCATED = {"name": "locator", "locator": {"name": "x", "input": "scores"}, "threshold": None}
# Each example runs five steps or more, so a failing one is shown as it was drawn.
PROPERTY = settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))
SLOTS = {"one": "rollouts", "two": "other_rollouts"}
folders = itertools.count()


@dataclasses.dataclass(frozen=True)
class World:
    """The files of two teachers over one prompt set."""

    prompts: list[dict[str, Any]]
    replies: dict[str, dict[str, str]]  # teacher -> prompt_id -> completion; not of every prompt

    @property
    def ids(self) -> list[str]:
        return sorted(map(id_of, self.prompts))


@st.composite
def worlds(draw: st.DrawFn, whole: bool = False) -> World:
    sources = st.sampled_from(["mail", "chat", "code"])
    pairs = draw(st.lists(st.tuples(st.integers(0, 40), sources), min_size=2, max_size=12, unique_by=lambda pair: pair[0]))
    prompts = [question(f"question {n}", source) for n, source in pairs]
    texts = st.text("abc é\n<€", min_size=1, max_size=6).filter(str.strip)
    replies = {}
    for teacher in SLOTS:
        given_to = [p for p in prompts if whole or draw(st.integers(0, 4))]
        replies[teacher] = {id_of(p): f"{teacher}: {draw(texts)}" for p in given_to}
    return World(prompts, replies)


subsets = st.one_of(
    st.just({"name": "all"}),
    st.fixed_dictionaries({"name": st.just("random_share"), "share": st.floats(0, 1), "seed": st.integers(0, 3)}),
    st.integers(1, 6).map(lambda top: LOCATED | {"top": top}),
    st.fixed_dictionaries({"name": st.just("regex"), "pattern": st.sampled_from(["1", "[02468]$", "question"])}),
)
filters = st.lists(
    st.builds(
        lambda top, treatment: {"name": "long", "input": "scores", "top": top, "treatment": treatment},
        st.integers(1, 4),
        st.sampled_from(["drop", "swap"]),
    ),
    max_size=2,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


def runs_of(place: Path, world: World, shuffled: Any = None) -> Path:
    """Write a world's files, in an order of their own each if `shuffled` gives one, and run prompts, rollouts and scores."""
    folder = place / f"world-{next(folders)}"
    folder.mkdir()

    def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return shuffled.sample(found, len(found)) if shuffled else found

    made(prompts_step(folder, "prompts", write_jsonl(folder / "prompts.jsonl", rows(world.prompts))))
    for teacher, replies in world.replies.items():
        found = [{"prompt_id": key, "completion": text} for key, text in replies.items()]
        path = write_jsonl(folder / f"{teacher}.jsonl", rows(found))
        made(rollouts_step(folder, SLOTS[teacher], "prompts", path))
    made(scores_step(folder, "scores", "prompts", "rollouts", "own_filters.long_scores", {}))
    return folder


def mixture(
    runs: Path, subset: Any, treatment: str = "keep", chain: Any = (), missing: str = "leave_out", back: bool = False
) -> Path:
    """Run a mixture; with `back` the teachers' rollouts stand the other way round."""
    slots = {"rollouts": "rollouts", "other_rollouts": "other_rollouts"}
    if back:
        slots = {"rollouts": "other_rollouts", "other_rollouts": "rollouts"}
    inputs = {"prompts": "prompts", "scores": "scores"} | slots
    directory = mixture_step(runs, f"mixture-{next(folders)}", inputs, {**subset, "treatment": treatment}, chain, missing)
    run_step(directory)  # one that is empty fails, and has its manifest and summary too
    failed = directory / "FAILED"
    assume(not failed.exists() or "is found in no prompt" not in failed.read_text())  # that is refused, before any manifest
    return directory


def touched(directory: Path) -> set[str]:
    return {key for key, row in manifest_of(directory).items() if row["reason"] == "prompt_subset" and row["action"] != "kept"}


def texts_of(directory: Path) -> dict[str, str]:
    return {row["prompt_id"]: row["completion"] for row in mixture_rows(directory)}


def content_of(directory: Path) -> str:
    return str(read_json(directory / "summary.json")["content"])


@given(worlds(), subsets, st.sampled_from(TREATMENTS), filters, st.sampled_from(["leave_out", "leave_out_both"]))
@PROPERTY
def test_every_input_row_is_in_exactly_one_action(
    place: Path, world: World, subset: Any, treatment: str, chain: Any, missing: str
) -> None:
    directory = mixture(runs_of(place, world), subset, treatment, chain, missing)
    manifest, summary = manifest_of(directory), read_json(directory / "summary.json")
    assert list(manifest) == world.ids
    assert summary["totals"] == {a: sum(row["action"] == a for row in manifest.values()) for a in ACTIONS}
    assert sum(summary["totals"].values()) == len(world.prompts)
    used = {"kept": "one", "swapped": "two"}
    expected = {key: world.replies[used[row["action"]]][key] for key, row in manifest.items() if row["action"] in used}
    assert texts_of(directory) == expected
    words = {"kept": {"teacher"}, "swapped": {"prompt_subset", "filter long"}, "dropped": {"prompt_subset", "filter long"}}
    for key, row in manifest.items():
        lacking = {f"{teacher} has no usable rollout for this prompt" for teacher in SLOTS if key not in world.replies[teacher]}
        assert row["reason"] in (words | {"error": lacking})[row["action"]]


@given(worlds(whole=True), subsets)
@PROPERTY
def test_swap_and_then_swap_back_is_identity(place: Path, world: World, subset: Any) -> None:
    """Both teachers' mixtures with S swapped: S from one of them and the rest from the other is the first teacher's again."""
    runs = runs_of(place, world)
    there, back = mixture(runs, subset, "swap"), mixture(runs, {**subset, "name": subset["name"]}, "swap_rest", back=True)
    keep = mixture(runs, {"name": "all"})
    assert content_of(there) == content_of(back)  # to swap S is to swap the rest of the other teacher's
    inside, first, other = touched(there), texts_of(there), texts_of(mixture(runs, subset, "swap", back=True))
    assert {key: (other if key in inside else first)[key] for key in world.ids} == texts_of(keep) == world.replies["one"]
    assert (content_of(there) == content_of(keep)) == (not inside)


@given(worlds(whole=True), subsets)
@PROPERTY
def test_swap_and_drop_touch_the_same_prompts_and_only_the_rest(place: Path, world: World, subset: Any) -> None:
    runs = runs_of(place, world)
    swapped, dropped, only = (mixture(runs, subset, treatment) for treatment in ("swap", "drop", "only"))
    assert touched(swapped) == touched(dropped) == set(world.ids) - touched(only)
    kept = [set(texts_of(directory)) for directory in (dropped, only)]
    assert kept[0] | kept[1] == set(world.ids) and not kept[0] & kept[1]
    complement = {"name": "complement", "of": subset}
    assert content_of(mixture(runs, complement, "drop")) == content_of(only)


@given(worlds(whole=True), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.integers(0, 3))
@PROPERTY
def test_the_mixtures_of_growing_shares_nest(place: Path, world: World, shares: list[float], seed: int) -> None:
    runs = runs_of(place, world)
    small, large = (
        touched(mixture(runs, {"name": "random_share", "share": share, "seed": seed}, "swap")) for share in sorted(shares)
    )
    assert small <= large
    assert len(large) == round(max(shares) * len(world.ids))


def orders_of(directory: Path) -> list[list[str]]:
    """The prompt_ids of each optimizer step of a training on a mixture, by epochs and by a matched number of rows."""
    rows = [Row(row["prompt_id"], list(row["completion"].encode()), 0) for row in mixture_rows(directory)]
    steps = order_steps(rows, 3, 2, 4) + order_matched(rows, 3, 4, "rows", 2 * len(rows) + 1) if rows else []
    return [[row.prompt_id for row in step] for step in steps]


@given(worlds(), subsets, st.sampled_from(TREATMENTS), filters, st.randoms(use_true_random=False))
@PROPERTY
def test_the_order_of_the_rows_in_the_files_changes_neither_a_mixture_nor_the_order_of_training(
    place: Path, world: World, subset: Any, treatment: str, chain: Any, rng: random.Random
) -> None:
    found = [mixture(runs_of(place, world, order), subset, treatment, chain) for order in (None, rng)]
    assert content_of(found[0]) == content_of(found[1])
    assert manifest_of(found[0]) == manifest_of(found[1])
    assert (found[0] / "manifest.parquet").read_bytes() == (found[1] / "manifest.parquet").read_bytes()
    assert list(mixture_rows(found[0])) == list(mixture_rows(found[1]))
    assert orders_of(found[0]) == orders_of(found[1])


@given(worlds(whole=True), st.sampled_from(["swap", "drop"]), st.data())
@PROPERTY
def test_a_change_of_any_byte_of_content_changes_the_hash(place: Path, world: World, treatment: str, data: st.DataObject) -> None:
    """And a change of what the mixture does not use does not."""
    subset = {"name": "random_share", "share": 0.5, "seed": 0}
    before = mixture(runs_of(place, world), subset, treatment)
    teacher, key = data.draw(st.sampled_from(sorted(SLOTS))), data.draw(st.sampled_from(world.ids))
    text = world.replies[teacher][key]
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "xyZ \t" if c != text[position]]))
    changed = text[:position] + other + text[position + 1 :]
    replies = world.replies | {teacher: world.replies[teacher] | {key: changed}}
    after = mixture(runs_of(place, dataclasses.replace(world, replies=replies)), subset, treatment)
    used = manifest_of(before)[key]["teacher"] == teacher
    assert (content_of(after) != content_of(before)) == used


@given(worlds(whole=True), st.data())
@PROPERTY
def test_a_change_of_any_prompt_changes_the_hash(place: Path, world: World, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(world.prompts) - 1))
    old = world.prompts[number]
    new = question(old["messages"][0]["content"] + data.draw(st.sampled_from([" ", "?", "\n"])), old["source"])
    replies = {t: {id_of(new) if key == id_of(old) else key: text for key, text in r.items()} for t, r in world.replies.items()}
    changed = World([*world.prompts[:number], new, *world.prompts[number + 1 :]], replies)
    before, after = (mixture(runs_of(place, w), {"name": "all"}) for w in (world, changed))
    assert content_of(before) != content_of(after)


rows_of_a_manifest = st.dictionaries(st.integers(0, 2**64 - 1), st.none() | st.integers(0, 2**64 - 1), max_size=6)


def hash_of(rows: dict[int, int | None]) -> str:
    keys = sorted(rows)
    columns = [pa.array([f"{key:016x}" for key in keys]), pa.array([rows[key] for key in keys], pa.uint64())]
    return content_hash(pa.table(columns, names=["prompt_id", "content"]))


@given(rows_of_a_manifest, rows_of_a_manifest)
def test_equal_hashes_are_equal_rows(one: dict[int, int | None], two: dict[int, int | None]) -> None:
    used = [{key: content for key, content in rows.items() if content is not None} for rows in (one, two)]
    assert (hash_of(one) == hash_of(two)) == (used[0] == used[1])


def test_a_hash_does_not_depend_on_how_a_manifest_lies_in_memory() -> None:
    rows = dict.fromkeys(range(100), 7)
    columns = [pa.array([f"{key:016x}" for key in rows]), pa.array(list(rows.values()), pa.uint64())]
    table = pa.table(columns, names=["prompt_id", "content"])
    parts = pa.concat_tables([table.slice(0, 30), table.slice(30, 1), table.slice(31)])
    assert content_hash(parts) == content_hash(table) == hash_of(rows)
