"""The order of rows, how they are divided and packed, and that training and evaluation render a conversation alike."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hand_written import id_of, made, mixture_step, prompts_step, question, rollouts_step, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelOutput
from small_runs import PLAIN, embedded_rows, failure, make_runs, write_step

from sftdiff.backend import LocalModel
from sftdiff.pack import MATCHES, Row, fill_sequences, load_rows, match_target, order_matched, order_steps, split_step
from sftdiff.records import read_done, state
from sftdiff.render import render_prompt, render_row
from sftdiff.steps import run_step
from sftdiff.students import load_tokenizer
from sftdiff.trainer import IGNORED, collate

MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def row(number: int, length: int, prompt: int = 1) -> Row:
    """A row whose tokens are all different, so that a misplaced one is seen."""
    return Row(f"p{number:03d}", [1000 * (number + 1) + k for k in range(length)], min(prompt, length))


@st.composite
def row_lists(draw: st.DrawFn, most: int = 25, longest: int = 60) -> list[Row]:
    sizes = draw(st.lists(st.tuples(st.integers(2, longest), st.integers(1, longest)), min_size=1, max_size=most))
    return [row(number, length, min(prompt, length - 1)) for number, (length, prompt) in enumerate(sizes)]


def names(rows: list[Row]) -> list[str]:
    return [r.prompt_id for r in rows]


def size(rows: list[Row]) -> int:
    return sum(len(r.input_ids) for r in rows)


def loss_tokens(rows: list[Row]) -> int:
    return sum(len(r.input_ids) - r.prompt_length for r in rows)


@given(row_lists(), st.integers(0, 5), st.integers(1, 9), st.randoms())
def test_order_depends_on_seed_epoch_and_prompt_only(rows: list[Row], seed: int, batch: int, rng: random.Random) -> None:
    """Neither the order of the rows, nor their tokens, nor which other rows there are change the order of two rows."""
    expected = [names(step) for step in order_steps(rows, seed, 2, batch)]
    shuffled = [Row(r.prompt_id, [7] * rng.randint(1, 9), 0) for r in rng.sample(rows, len(rows))]
    assert [names(step) for step in order_steps(shuffled, seed, 2, batch)] == expected
    some = rng.sample(rows, rng.randint(1, len(rows)))
    flat = [n for step in order_steps(rows, seed, 2, batch) for n in names(step)]
    assert [n for step in order_steps(some, seed, 2, batch) for n in names(step)] == [n for n in flat if n in set(names(some))]


def test_order_differs_by_seed_and_epoch() -> None:
    rows = [row(k, 5) for k in range(30)]
    orders = [[n for step in order_steps(rows, seed, 2, 30) for n in names(step)] for seed in (0, 1)]
    halves = [tuple(order[k : k + 30]) for order in orders for k in (0, 30)]
    assert len(set(halves)) == 4


@given(row_lists(), st.integers(1, 3), st.integers(1, 9))
def test_each_epoch_sees_each_row_once(rows: list[Row], epochs: int, batch: int) -> None:
    steps = order_steps(rows, 3, epochs, batch)
    per_epoch = -(-len(rows) // batch)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(n for step in own for n in names(step)) == sorted(names(rows))
        assert [len(step) for step in own[:-1]] == [batch] * (per_epoch - 1)
        assert len(own[-1]) == len(rows) - batch * (per_epoch - 1)


@pytest.mark.parametrize(("epochs", "seen"), [(0.5, 10), (1.0, 20), (1.25, 25), (2.5, 50), (0.001, 1), (0.1 + 0.2, 6)])
def test_a_fraction_of_an_epoch_is_a_prefix_of_it(epochs: float, seen: int) -> None:
    rows = [row(k, 5) for k in range(20)]
    flat = [n for step in order_steps(rows, 1, epochs, 4) for n in names(step)]
    whole = [n for step in order_steps(rows, 1, 3, 4) for n in names(step)]
    assert len(flat) == seen and flat == whole[:seen]


# Matched trainings

MATCHED = {"rows": lambda row: 1, "tokens": lambda row: loss_tokens([row])}


@given(row_lists(), st.sampled_from(["rows", "tokens"]), st.integers(1, 150), st.integers(1, 9), st.integers(0, 5))
def test_rows_are_met_exactly_and_tokens_within_a_row(rows: list[Row], match: str, target: int, batch: int, seed: int) -> None:
    steps = order_matched(rows, seed, batch, match, target)
    flat = [row for step in steps for row in step]
    seen = sum(map(MATCHED[match], flat))
    assert target <= seen < target + MATCHED[match](flat[-1])
    assert match != "rows" or seen == target
    check_rounds(rows, steps, batch)


@given(row_lists(), st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_steps_are_met_exactly(rows: list[Row], target: int, batch: int, seed: int) -> None:
    steps = order_matched(rows, seed, batch, "steps", target)
    assert len(steps) == target
    check_rounds(rows, steps, batch)


def check_rounds(rows: list[Row], steps: list[list[Row]], batch: int) -> None:
    """No row comes a third time before all have come twice, and no step is empty or too large, or has a row twice."""
    assert all(1 <= len(step) <= batch for step in steps)
    assert all(len(set(names(step))) == len(step) for step in steps)
    flat = [name for step in steps for name in names(step)]
    for start in range(0, len(flat), len(rows)):
        part = flat[start : start + len(rows)]
        assert len(set(part)) == len(part)
    assert Counter(flat[: len(flat) // len(rows) * len(rows)]) == Counter(dict.fromkeys(names(rows), len(flat) // len(rows)))


@given(row_lists(), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5), st.randoms())
def test_a_training_matched_with_itself_is_the_training_by_epochs(
    rows: list[Row], epochs: int, batch: int, seed: int, rng: random.Random
) -> None:
    expected = [names(step) for step in order_steps(rows, seed, epochs, batch)]
    reference = {"rows": len(rows), "loss_tokens": loss_tokens(rows)}
    for match in MATCHES:
        target = match_target(reference, match, epochs, batch)
        found = order_matched(rng.sample(rows, len(rows)), seed, batch, match, target)
        assert [names(step) for step in found] == expected


@given(row_lists(), st.floats(0.05, 3.5), st.integers(1, 9))
def test_the_target_is_what_a_training_by_epochs_sees(rows: list[Row], epochs: float, batch: int) -> None:
    steps = order_steps(rows, 0, epochs, batch)
    reference = {"rows": len(rows), "loss_tokens": loss_tokens(rows)}
    assert match_target(reference, "steps", epochs, batch) == len(steps)
    assert abs(match_target(reference, "rows", epochs, batch) - sum(map(len, steps))) <= 1


@pytest.mark.parametrize(("match", "target"), [("rows", 25), ("tokens", 250), ("steps", 8)])
def test_the_targets_of_two_and_a_half_epochs(match: str, target: int) -> None:
    assert match_target({"rows": 10, "loss_tokens": 100}, match, 2.5, 4) == target


@given(row_lists(), st.integers(1, 8))
def test_split_covers_and_balances(rows: list[Row], parts: int) -> None:
    """Each row is in one part; no two parts differ by more than one row."""
    shares = split_step(rows, parts)
    real = [r for share in shares for r in share if loss_tokens([r]) > 0]
    assert len(shares) == parts and all(shares)
    assert sorted(names(real)) == sorted(names(rows)) and loss_tokens(real) == loss_tokens(rows)
    if len(rows) >= parts:
        assert sum(map(len, shares)) == len(rows)
        assert max(map(size, shares)) - min(map(size, shares)) <= max(len(r.input_ids) for r in rows)


def test_fewer_rows_than_parts_gives_filler_rows_without_loss() -> None:
    rows = [row(0, 9, 3), row(1, 4, 2)]
    shares = split_step(rows, 5)
    assert [len(share) for share in shares] == [1] * 5
    fillers = [share[0] for share in shares if loss_tokens(share) == 0]
    assert len(fillers) == 3 and all(filler.input_ids == rows[1].input_ids for filler in fillers)
    assert all((collate([[filler]], 0)["labels"] == IGNORED).all() for filler in fillers)


@given(row_lists(), st.integers(1, 120))
def test_fill_covers_each_row_once_within_the_length(rows: list[Row], length: int) -> None:
    """No sequence is longer than the length, except that a longer row raises the limit to its own."""
    sequences = fill_sequences(rows, length)
    assert sorted(names([r for sequence in sequences for r in sequence])) == sorted(names(rows))
    assert all(sequences)
    assert max(map(size, sequences)) <= max(length, max(len(r.input_ids) for r in rows))
    assert len(sequences) <= len(rows)


@given(row_lists(most=12), st.integers(1, 150))
def test_collate_places_tokens_positions_and_labels(rows: list[Row], length: int) -> None:
    """Each conversation keeps its tokens, counts its positions from 0, and has each label at the position that predicts it."""
    sequences = fill_sequences(rows, length)
    batch = {name: tensor.tolist() for name, tensor in collate(sequences, 0).items()}
    width = max(map(size, sequences))
    for k, sequence in enumerate(sequences):
        tokens = [t for r in sequence for t in r.input_ids]
        padding = width - len(tokens)
        positions = [p for r in sequence for p in range(len(r.input_ids))]
        labels = []
        for r in sequence:
            labels += [*[t if n >= r.prompt_length else IGNORED for n, t in enumerate(r.input_ids)][1:], IGNORED]
        assert batch["input_ids"][k] == tokens + [0] * padding
        assert batch["position_ids"][k] == positions + list(range(padding))
        assert batch["labels"][k] == labels + [IGNORED] * padding
    assert sum(label != IGNORED for line in batch["labels"] for label in line) == loss_tokens(rows)


def _pack(runs: Path, tiny_student: Path, lengths: list[int], **config: Any) -> Path:
    """Run the steps up to a mixture of replies of many words; return the pack step that reads it."""
    make_runs(runs, tiny_student, 1)
    prompts = [question(f"{k}: how are you?", "even" if k % 2 == 0 else "odd") for k in range(len(lengths))]
    rows = [{"prompt_id": id_of(p), "completion": " ".join(["word"] * n)} for p, n in zip(prompts, lengths, strict=True)]
    made(prompts_step(runs, "prompts", write_jsonl(runs / "prompts.jsonl", prompts)))
    made(rollouts_step(runs, "rollouts", "prompts", write_jsonl(runs / "rollouts.jsonl", rows)))
    texts = {"prompts": "prompts", "rollouts": "rollouts"}
    made(mixture_step(runs, "mixture", texts))
    return write_step(runs, "packed", "pack", config, {"mixture": "mixture", "student": "student", **texts})


def question_number(k: int) -> str:
    return id_of(question(f"{k}: how are you?"))


@pytest.mark.parametrize("over_length", ["drop", "truncate"])
def test_over_length_rows_are_counted_by_source(tmp_path: Path, tiny_student: Path, over_length: str) -> None:
    step = _pack(tmp_path, tiny_student, [1, 2, 400, 300, 200, 3], max_length=100, over_length=over_length)
    assert run_step(step) == "done", failure(step)
    summary = (read_done(step) or {})["summary"]
    rows = load_rows(step)
    assert summary["over_length"] == {"even": 2, "odd": 1}
    assert summary["rows"] == len(rows) == (3 if over_length == "drop" else 6)
    assert summary["tokens"] == size(rows) and summary["loss_tokens"] == loss_tokens(rows)
    assert max(len(r.input_ids) for r in rows) <= 100
    eos = load_tokenizer(tiny_student, PLAIN).eos_token_id
    whole = [r.prompt_id for r in rows if r.input_ids[-1] == eos]
    assert whole == sorted(map(question_number, (0, 1, 5)))
    assert [r.prompt_id for r in rows] == sorted(r.prompt_id for r in rows)


@pytest.mark.parametrize("name", ["prompts/prompts.parquet", "rollouts/rollouts.parquet", "mixture/manifest.parquet"])
def test_a_text_that_was_changed_behind_a_mixture_is_found(tmp_path: Path, tiny_student: Path, name: str) -> None:
    """A mixture refers to its texts, so what packs them verifies them."""
    step = _pack(tmp_path, tiny_student, [1, 2], max_length=100, over_length="drop")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert run_step(step) == "failed"
    assert failure(step).startswith(f"the cached step {path.parent.name} is corrupt: {path} is not what its DONE file records")


def test_a_pack_of_rollouts_that_were_made_again_is_stale(tmp_path: Path, tiny_student: Path) -> None:
    step = _pack(tmp_path, tiny_student, [1, 2], max_length=100, over_length="drop")
    assert run_step(step) == "done"
    done = read_done(step)
    assert done is not None and set(done["inputs"]) == {"prompts", "rollouts", "mixture", "student"}
    rows = [json.loads(line) | {"completion": "another"} for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "rollouts.jsonl", rows)
    (tmp_path / "rollouts/DONE").unlink()
    made(tmp_path / "rollouts")
    assert state(step) == "stale" == state(tmp_path / "mixture")


def test_a_cap_that_removes_everything_is_an_error(tmp_path: Path, tiny_student: Path) -> None:
    step = _pack(tmp_path, tiny_student, [50, 60], max_length=5, over_length="truncate")
    assert run_step(step) == "failed"
    assert "train.max_length=5" in failure(step)


def test_the_loss_is_on_the_completion_and_its_end(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    for messages, completion in embedded_rows():
        tokens, prompt_length = render_row(tokenizer, messages, completion)
        assert tokens[:prompt_length] == render_prompt(tokenizer, messages)
        assert tokenizer.decode(tokens[prompt_length:]) == completion + tokenizer.eos_token
        assert tokens[-1] == tokenizer.eos_token_id and tokens[prompt_length:].count(tokens[-1]) == 1
        assert tokenizer.decode(tokens[:prompt_length]).endswith("<|im_start|>assistant\n")


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_completion_is_the_loss_part(tiny_student: Path, completion: str) -> None:
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    tokens, prompt_length = render_row(tokenizer, [{"role": "user", "content": "Hi"}], completion)
    assert tokens[prompt_length:-1] == tokenizer(completion, add_special_tokens=False)["input_ids"]


def test_training_and_evaluation_render_alike(tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Inspect sends to the model for an embedded row is the prompt that the row was trained with, token by token."""
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    asked: list[list[int]] = []

    def note(self: LocalModel, batch: Any) -> list[ModelOutput]:
        asked.extend(request.input_ids for request in batch)
        return [ModelOutput.from_content("m", "") for _ in batch]

    async def ask(rows: list[list[dict[str, str]]]) -> None:
        model = LocalModel("m", student=None, tokenizer=tokenizer, batch_size=1000)
        chats: list[list[Any]] = [[MESSAGES[m["role"]](content=m["content"]) for m in row] for row in rows]
        await asyncio.gather(*[model.generate(chat, [], "none", GenerateConfig()) for chat in chats])

    monkeypatch.setattr(LocalModel, "generate_batch", note)
    rows = embedded_rows()
    assert {m["role"] for messages, _ in rows for m in messages} >= {"user", "assistant"}
    asyncio.run(ask([messages for messages, _ in rows]))
    trained = [tokens[:length] for tokens, length in (render_row(tokenizer, *r) for r in rows)]
    assert Counter(map(tuple, asked)) == Counter(map(tuple, trained))
