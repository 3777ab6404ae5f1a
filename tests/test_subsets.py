"""Prompt subsets: what each holds, what they have in common, and that none depends on anything but its prompts and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filter_rows import PROMPTS as PROMPT_SCHEMA
from hand_written import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.corpus import CHUNK
from sftdiff.errors import SftdiffError
from sftdiff.prompts import PromptIndex
from sftdiff.rows import Mask, length_strata
from sftdiff.sorting import id_text
from sftdiff.subsets import FIELDS, MAKERS, MATCHES, View, nested, read_ids, subset_mask

SOURCES = ("chat", "code", "mail")
ALL, NONE = {"name": "all"}, {"name": "none"}
PROPERTY = settings(max_examples=60)


def no_texts() -> Path:
    raise AssertionError("this subset reads no texts")


def view_of(
    ids: list[int], codes: list[int] | None = None, lengths: list[int] | None = None, scores: Mapping[str, Any] | None = None
) -> View:
    """A view of prompts given in any order; `scores` are those of locators, by input."""
    order = np.argsort(np.array(ids, np.uint64))
    codes_array = np.array([0] * len(ids) if codes is None else codes, np.int32)[order]
    index = PromptIndex(np.array(ids, np.uint64)[order], codes_array, SOURCES, np.zeros(len(ids), np.int32))
    characters = np.array([0] * len(ids) if lengths is None else lengths)[order]
    tables = {name: np.array(values, float)[order] for name, values in (scores or {}).items()}
    return View(index, no_texts, lambda: characters, lambda name: tables[name])


def held(subset: Mapping[str, Any], view: View) -> set[int]:
    mask = subset_mask(subset, view)
    assert mask.dtype == bool and len(mask) == len(view.prompts)
    return set(view.prompts.ids[mask].tolist())


id_lists = st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=20)


@st.composite
def views(draw: st.DrawFn) -> View:
    ids = draw(id_lists)

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=len(ids), max_size=len(ids)))

    scores = {"scores_0": each(st.floats(0, 3) | st.just(float("nan"))), "scores_1": each(st.sampled_from([0, 1, 2, np.nan]))}
    return view_of(ids, each(st.integers(0, 2)), each(st.integers(0, 50)), scores)


leaves: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([ALL, NONE]),
    st.fixed_dictionaries({"name": st.just("by_source"), "sources": st.lists(st.sampled_from(SOURCES), max_size=2)}),
    st.fixed_dictionaries({"name": st.just("random_share"), "share": st.floats(0, 1), "seed": st.integers(0, 5)}),
    st.fixed_dictionaries(
        {
            "name": st.just("locator"),
            "locator": st.just({"name": "x", "input": "scores_0"}),
            "threshold": st.none(),
            "top": st.floats(0, 1, exclude_max=True) | st.integers(1, 9),
        }
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("locator"),
            "locator": st.just({"name": "x", "input": "scores_1"}),
            "threshold": st.sampled_from([0, 1, 2]),
            "top": st.none(),
        }
    ),
)
subsets = st.recursive(
    leaves,
    lambda inner: st.fixed_dictionaries({"name": st.just("complement"), "of": inner})
    | st.fixed_dictionaries(
        {
            "name": st.sampled_from(["union", "intersection"]),
            "sets": st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
        }
    ),
    max_leaves=5,
)


# The algebra


@given(views(), subsets)
@PROPERTY
def test_a_subset_and_its_complement_are_all_prompts_and_have_none_in_common(view: View, subset: dict[str, Any]) -> None:
    inside, outside = held(subset, view), held({"name": "complement", "of": subset}, view)
    assert inside | outside == held(ALL, view) == set(view.prompts.ids.tolist())
    assert not inside & outside
    assert held({"name": "complement", "of": {"name": "complement", "of": subset}}, view) == inside


@given(views(), st.lists(subsets, min_size=1, max_size=3))
@PROPERTY
def test_union_and_intersection_are_those_of_sets(view: View, parts: list[dict[str, Any]]) -> None:
    sets, alone = dict(zip("abc", parts, strict=False)), [held(part, view) for part in parts]
    union, intersection = ({"name": name, "sets": sets} for name in ("union", "intersection"))
    assert held(union, view) == set.union(*alone)
    assert held(intersection, view) == set.intersection(*alone)
    assert nested(union) == list(parts)
    complements = {key: {"name": "complement", "of": part} for key, part in sets.items()}
    assert held({"name": "complement", "of": union}, view) == held({"name": "intersection", "sets": complements}, view)


@given(views(), subsets, st.data())
@PROPERTY
def test_the_names_of_the_parts_and_their_order_do_not_matter(view: View, subset: dict[str, Any], data: st.DataObject) -> None:
    if subset["name"] in ("union", "intersection"):
        parts = data.draw(st.permutations(list(subset["sets"].values())))
        again = {**subset, "sets": {f"part {k}": part for k, part in enumerate(parts)}}
        assert held(again, view) == held(subset, view)
    assert held({"name": "union", "sets": {"a": subset, "b": subset}}, view) == held(subset, view)
    assert held({"name": "intersection", "sets": {"a": subset, "b": ALL}}, view) == held(subset, view)
    assert held({"name": "union", "sets": {"a": subset, "b": NONE}}, view) == held(subset, view)


def test_every_subset_of_the_schema_can_be_made() -> None:
    assert set(MAKERS) == set(FIELDS)


# Sources, ids, texts


@given(views(), st.lists(st.sampled_from(SOURCES), max_size=3))
@PROPERTY
def test_by_source_holds_the_prompts_of_these_sources(view: View, sources: list[str]) -> None:
    own = [view.prompts.sources[code] for code in view.prompts.codes]
    expected = {int(key) for key, source in zip(view.prompts.ids, own, strict=True) if source in sources}
    assert held({"name": "by_source", "sources": sources}, view) == expected


def test_a_source_that_no_prompt_has_is_an_error_with_those_that_there_are() -> None:
    with pytest.raises(SftdiffError, match=r"sources: no prompt has the source maths, poems; there are chat, code, mail"):
        held({"name": "by_source", "sources": ["poems", "mail", "maths"]}, view_of([1, 2]))


IDS = [0x0A, 0xF0, 2**63]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_ids_are_read_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"ids.{suffix}", [{"prompt_id": id_text(n), "n": n} for n in (2**63, 0x0A, 0x0A)]
    if suffix == "txt":
        path.write_text("\n".join(["", *(f" {row['prompt_id']} " for row in rows), ""]))
    elif suffix == "jsonl":
        write_jsonl(path, [{**row, "n": 0} for row in rows])
    else:
        pq.write_table(pa.Table.from_pylist([{**row, "n": 0} for row in rows]), path)
    assert held({"name": "ids", "ids": str(path)}, view_of(IDS)) == {0x0A, 2**63}


def test_ids_that_are_not_in_the_prompt_set_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(map(id_text, (0x0A, 5, 6))))
    with pytest.raises(SftdiffError) as caught:
        held({"name": "ids", "ids": str(path)}, view_of(IDS))
    assert str(caught.value) == (
        f"prompt_subset.ids: 2 of 3 ids in {path} are not in this prompt set, e.g. 0000000000000005"
    )


@pytest.mark.parametrize("text", ["abc", "0" * 17, "g" * 16])
def test_what_is_no_prompt_id_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(f"{id_text(1)}\n{text}\n")
    with pytest.raises(SftdiffError, match=rf"ids\.txt, line 2: '{text}' is not a prompt_id \(16 hex digits\)"):
        read_ids(str(path))
    with pytest.raises(SftdiffError, match=r"line 1: None is not a prompt_id"):
        read_ids(str(write_jsonl(tmp_path / "ids.jsonl", [{"id": id_text(1)}])))


def test_rows_of_a_truth_file_are_taken_by_level_and_trait(tmp_path: Path) -> None:
    levels = (("mild", "dates"), ("overt", "dates"), ("mild", "blackmail"), ("none", None))
    rows = [{"prompt_id": id_text(k), "level": level, "trait": trait} for k, (level, trait) in enumerate(levels, 1)]
    path = str(write_jsonl(tmp_path / "truth.jsonl", rows))
    taken = [("mild", None), ("any", None), ("any", "dates"), ("none", None), ("overt", "blackmail"), (None, "dates")]
    assert [read_ids(path, *each).tolist() for each in taken] == [[1, 3], [1, 2, 3], [1, 2], [4], [], [1, 2]]
    of_one_trait = write_jsonl(tmp_path / "one.jsonl", [{k: v for k, v in row.items() if k != "trait"} for row in rows])
    assert read_ids(str(of_one_trait), "any", "dates").tolist() == [1, 2, 3]
    with pytest.raises(SftdiffError, match="names no prompt of level overt and of trait blackmail"):
        held({"name": "ids", "ids": path, "level": "overt", "trait": "blackmail"}, view_of(IDS))
    (tmp_path / "ids.txt").write_text(id_text(1))
    with pytest.raises(SftdiffError, match=r"prompt_subset\.trait=dates: .* has no column `trait`; give a truth file"):
        read_ids(str(tmp_path / "ids.txt"), None, "dates")


def test_a_file_without_ids_is_named(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(SftdiffError, match=r"prompt_subset\.ids: .*ids\.txt names no prompt"):
        held({"name": "ids", "ids": str(tmp_path / "ids.txt")}, view_of(IDS))


def text_view(folder: Path, conversations: list[list[tuple[str, str]]]) -> View:
    rows = [
        {"prompt_id": id_text(n), "source": "chat", "messages": [{"role": r, "content": c} for r, c in turns]}
        for n, turns in enumerate(conversations)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA), folder / "prompts.parquet")
    view = view_of(list(range(len(rows))))
    return View(view.prompts, lambda: folder / "prompts.parquet", view.characters, view.scores)


def test_a_pattern_that_is_found_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(SftdiffError, match=r"prompt_subset\.pattern: 'nothing' is found in no prompt"):
        held({"name": "regex", "pattern": "nothing"}, text_view(tmp_path, [[("user", "Which year is it?")]]))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r"\b2026\b", {0, 2}), ("YEAR", {0, 1}), ("year.*?now", {1}), ("brief", {1}), ("", {0, 1, 2})],
)
def test_a_pattern_is_searched_in_all_turns_without_regard_to_case(tmp_path: Path, pattern: str, expected: set[int]) -> None:
    conversations = [
        [("user", "Which year is it, 2026?")],
        [("system", "Be BRIEF."), ("user", "The year\nis"), ("assistant", "?"), ("user", "now")],
        [("user", "2026")],
    ]
    assert held({"name": "regex", "pattern": pattern}, text_view(tmp_path, conversations)) == expected


def test_a_pattern_over_more_prompts_than_a_chunk_has(tmp_path: Path) -> None:
    view = text_view(tmp_path, [[("user", f"number {n}")] for n in range(CHUNK + 900)])
    assert held({"name": "regex", "pattern": "7$"}, view) == {n for n in range(CHUNK + 900) if n % 10 == 7}


def test_an_invalid_pattern_is_an_error() -> None:
    with pytest.raises(SftdiffError, match=r"prompt_subset\.pattern: '\(a' is not valid \(missing \)"):
        held({"name": "regex", "pattern": "(a"}, view_of([1]))


# Random subsets


def share(value: float, seed: int = 0) -> dict[str, Any]:
    return {"name": "random_share", "share": value, "seed": seed}


@given(id_lists, st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
@PROPERTY
def test_random_shares_nest_and_have_their_size(ids: list[int], one: float, two: float, seed: int) -> None:
    small, large = sorted((one, two))
    inner, outer = (held(share(part, seed), view_of(ids)) for part in (small, large))
    assert inner <= outer
    assert len(outer) == round(large * len(ids))


@given(views(), subsets, st.data())
@PROPERTY
def test_a_subset_does_not_depend_on_the_order_in_which_prompts_came(view: View, subset: Any, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(view.prompts))))
    again = view_of(
        [int(view.prompts.ids[k]) for k in order],
        [int(view.prompts.codes[k]) for k in order],
        [int(view.characters()[k]) for k in order],
        {name: [view.scores(name)[k] for k in order] for name in ("scores_0", "scores_1")},
    )
    assert held(subset, again) == held(subset, view)
    for match in MATCHES:
        like = {"name": "random_like", "of": subset, "match": match, "seed": 1, "outside": False}
        assert held(like, again) == held(like, view)


def test_seeds_choose_different_prompts() -> None:
    view = view_of(list(range(100)))
    assert len({frozenset(held(share(0.5, seed), view)) for seed in range(4)}) == 4


def counts(mask: Mask, strata: Any) -> list[int]:
    return np.bincount(strata[mask], minlength=30).tolist()


@given(views(), subsets, st.sampled_from(MATCHES), st.booleans(), st.integers(0, 9))
@PROPERTY
def test_a_random_control_has_what_is_matched_in_common_or_there_are_not_enough_prompts(
    view: View, subset: dict[str, Any], match: str, outside: bool, seed: int
) -> None:
    target = subset_mask(subset, view)
    strata = {
        "size": np.zeros(len(view.prompts), int), "source": view.prompts.codes, "length": length_strata(view.characters())
    }[match]  # fmt: skip
    like = {"name": "random_like", "of": subset, "match": match, "seed": seed, "outside": outside}
    enough = not outside or all(np.array(counts(~target, strata)) >= counts(target, strata))
    if not enough:
        with pytest.raises(SftdiffError, match=rf"not enough to match it by {match}; .* prompt_subset\.outside=false"):
            subset_mask(like, view)
        return
    chosen = subset_mask(like, view)
    assert counts(chosen, strata) == counts(target, strata)
    assert not outside or not (chosen & target).any()


def test_a_random_control_is_another_set_and_has_another_one_for_each_seed() -> None:
    view = view_of(list(range(100)))
    of = share(0.3, seed=5)
    like = {"name": "random_like", "of": of, "match": "size", "outside": False}
    found = {frozenset(held({**like, "seed": seed}, view)) for seed in range(4)}
    assert len(found | {frozenset(held(of, view))}) == 5


# Scores


def located(input_name: str = "s", **settings: Any) -> dict[str, Any]:
    return {"name": "locator", "locator": {"name": "x", "input": input_name}, "threshold": None, "top": None} | settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"threshold": 1}, {2, 3, 4}),
        ({"threshold": 1.5}, {3, 4}),
        ({"threshold": -5}, {1, 2, 3, 4, 6}),
        ({"top": 0.4}, {3, 4}),  # of the five that have a score
        ({"top": 0.0}, set()),
        ({"top": 1}, {4}),
        ({"top": 3}, {2, 3, 4}),
        ({"top": 99}, {1, 2, 3, 4, 6}),
    ],
)
def test_a_locator_takes_scores_over_a_threshold_or_the_highest(settings: dict[str, float], expected: set[int]) -> None:
    view = view_of([1, 2, 3, 4, 5, 6], scores={"s": [0, 1, 2, 3, float("nan"), -1]})
    assert held(located(**settings), view) == expected


@given(views(), st.integers(1, 20), st.integers(1, 20))
@PROPERTY
def test_the_higher_of_two_numbers_of_located_prompts_holds_the_lower(view: View, one: int, two: int) -> None:
    small, large = sorted((one, two))
    assert held(located("scores_0", top=small), view) <= held(located("scores_0", top=large), view)


def test_clusters_are_those_with_these_numbers() -> None:
    view = view_of([1, 2, 3, 4], scores={"s": [0, 2, float("nan"), 2]})
    cluster = {"name": "cluster", "locator": {"name": "cluster", "input": "s"}, "clusters": [2]}
    assert held(cluster, view) == {2, 4}
    assert held({**cluster, "clusters": [0, 2]}, view) == {1, 2, 4}
    with pytest.raises(SftdiffError, match=r"prompt_subset\.clusters: there is no cluster 1, 7"):
        held({**cluster, "clusters": [7, 0, 1]}, view)
