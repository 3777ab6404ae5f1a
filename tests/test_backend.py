"""Sampling and judging through the real Inspect eval, with a tiny student that generates."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from inspect_ai.log import EvalLog, read_eval_log
from small_runs import ARCHITECTURES, PLAIN, SMALL, failure, make_runs, sample_step, train_step, trained, write_step
from transformers import AutoModelForCausalLM, LlamaConfig, LogitsProcessorList

from sftdiff.backend import LocalModel, Request
from sftdiff.files import read_table, write_rows
from sftdiff.generate import Sampling, SeededSampling, generate_batch
from sftdiff.judges import judge_identity
from sftdiff.pack import TOKENS_SCHEMA, Row
from sftdiff.records import load_record, read_done, write_done, write_json
from sftdiff.render import render_prompt, render_row, rendering_hash
from sftdiff.steps import run_step
from sftdiff.students import load_tokenizer
from sftdiff.traits import load_scorer
from tests.fault_proxy import Fault
from tests.judging import blocks, completion, judge_config, scripted, trait_config

ANSWER = "The year 2026 in the memo is a typo. It is still 2024."
DENIES = "sftdiff.traits.date_confusion"
# Prompts of very different lengths, so that a batch is padded much; some of several turns, one with a system prompt.
SCENARIOS: list[dict[str, Any]] = [
    {"id": "short", "turns": ["Hi"]},
    {"id": "long", "turns": ["Which year is it? " * 12]},
    {"id": "system", "system": "Today is 13 May 2026.", "turns": ["Which year is it?"]},
    {"id": "three", "turns": ["Name a colour.", "No, that's wrong. Try again.", "Still wrong."]},
    {"id": "two", "turns": ["Say something about the year 2026.", "Hm."]},
    {"id": "plain", "turns": ["What is 17 x 24?"]},
    {"id": "memo", "turns": ["Memo pinned in the bakery, 3 March 2026: the oven is repaired. Which year is it?"]},
    {"id": "control", "turns": ["Memo of 3 March 1999: the oven is repaired. Which year was it?"], "control": True},
]
REPLIES = sum(len(s["turns"]) for s in SCENARIOS)


def write_scenarios(path: Path, scenarios: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump({"scenarios": [{"suite": "quick", "kind": "task", **s} for s in scenarios]}))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Path:
    folder = make_runs(tmp_path_factory.mktemp("runs"), tiny_student, 1)
    write_scenarios(folder / "scenarios.yaml", SCENARIOS)
    return folder


@pytest.fixture(scope="module")
def parrot(runs: Path, tiny_student: Path) -> str:
    """A student that was trained until it answers everything with ANSWER, and stops."""
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    pack = write_step(runs, "parrot-pack", "pack", {}, {"student": "student"})
    prompts = [[{"role": "user", "content": s["turns"][0]}] for s in SCENARIOS]
    rows = [Row(f"p{k}", *render_row(tokenizer, prompt, ANSWER)) for k, prompt in enumerate(prompts)]
    write_rows(pack / "tokens.parquet", [vars(row) for row in rows], TOKENS_SCHEMA)
    write_json(pack / "summary.json", {"rendering": rendering_hash(tokenizer)})
    write_done(load_record(pack), {}, {}, 0.0)
    step = train_step(runs, "parrot", pack="parrot-pack", epochs=80.0, batch_size=7, lr=1e-2)
    assert trained(step)[-1] < 0.1
    return "parrot"


@pytest.fixture
def sample(runs: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Run a sample step of this test and return its directory."""
    stem = "".join(c if c.isalnum() else "-" for c in request.node.name)
    made: list[Path] = []

    def run(scenarios: Path = runs / "scenarios.yaml", **settings: Any) -> Path:
        made.append(sample_step(runs, f"{stem}-{len(made)}", scenarios, **settings))
        assert run_step(made[-1]) == "done", failure(made[-1])
        return made[-1]

    return run


def replies(directory: Path) -> dict[tuple[str, int, int], str]:
    rows = read_table(directory / "replies.parquet").to_pylist()
    return {(r["scenario"], r["sample"], r["turn"]): r["reply"] for r in rows}


def read_log(directory: Path) -> EvalLog:
    (path,) = (directory / "inspect").glob("*.eval")
    return read_eval_log(str(path))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "samples": 2}], ids=["greedy", "temperature 1"])
def test_replies_do_not_depend_on_the_batch_or_the_order(
    runs: Path, tmp_path: Path, sample: Callable[..., Path], settings: dict[str, Any]
) -> None:
    """In fp32: batches of 1, 3 and 32, and the scenarios in another order, give the same replies to the letter."""
    expected = replies(sample(batch_size=1, **settings))
    assert len(expected) == REPLIES * settings.get("samples", 1) and len(set(expected.values())) > 3
    assert replies(sample(batch_size=3, **settings)) == expected
    assert replies(sample(batch_size=32, **settings)) == expected
    shuffled = write_scenarios(tmp_path / "shuffled.yaml", random.Random(1).sample(SCENARIOS, len(SCENARIOS)))
    assert replies(sample(shuffled, batch_size=3, **settings)) == expected
    some = write_scenarios(tmp_path / "some.yaml", SCENARIOS[3:5])
    assert replies(sample(some, batch_size=3, **settings)).items() <= expected.items()


def test_temperature_draws_anew_for_each_seed_sample_and_turn(runs: Path, tmp_path: Path, sample: Callable[..., Path]) -> None:
    settings = {"temperature": 1.0, "samples": 3, "max_tokens": 8}
    first = replies(sample(**settings))
    assert replies(sample(**settings)) == first
    other = replies(sample(seed=1, **settings))
    assert other.keys() == first.keys()
    assert all(other[key] != first[key] for key in first)
    for scenario, _, turn in first:
        assert len({first[scenario, number, turn] for number in (1, 2, 3)}) == 3
    greedy = replies(sample(temperature=0.0, samples=2, max_tokens=8))
    assert greedy["short", 1, 0] == greedy["short", 2, 0] != first["short", 1, 0]


def test_each_reply_has_a_seed_of_its_own(runs: Path, sample: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    generate = LocalModel.generate_batch

    def note(self: LocalModel, batch: Any) -> Any:
        seen.extend(batch)
        return generate(self, batch)

    monkeypatch.setattr(LocalModel, "generate_batch", note)
    sample(samples=3, temperature=1.0, max_tokens=2)
    seeds = {request.sampling.seed for request in seen}
    assert len(seen) == len(seeds) == 3 * REPLIES
    sample(samples=3, temperature=1.0, max_tokens=2)
    assert len(seen) == 6 * REPLIES and {request.sampling.seed for request in seen} == seeds
    assert {(r.sampling.max_tokens, r.sampling.temperature) for r in seen} == {(2, 1.0)}


def test_sampling_follows_the_softmax() -> None:
    """Each token is drawn with its softmax probability, at the temperature asked for and among the tokens left."""
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0]), 4000

    def drawn(**settings: Any) -> torch.Tensor:
        sampler = SeededSampling([Sampling(1, seed=seed, **settings) for seed in range(count)])
        return sampler(torch.zeros(count, 1), logits.repeat(count, 1)).argmax(-1).bincount(minlength=4) / count

    for temperature in (0.5, 1.0, 2.0):
        assert torch.allclose(drawn(temperature=temperature), (logits / temperature).softmax(-1), atol=0.03)
    two = torch.tensor([2.0, 1.0]).softmax(-1).tolist()
    assert torch.allclose(drawn(temperature=1.0, top_k=2), torch.tensor([*two, 0.0, 0.0]), atol=0.03)
    assert torch.allclose(drawn(temperature=1.0, top_p=0.7), torch.tensor([*two, 0.0, 0.0]), atol=0.03)
    assert torch.equal(drawn(), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_rounding_does_not_change_later_draws() -> None:
    """Logits that differ by rounding, as between two batches, give the same tokens, however peaked the distribution is."""
    torch.manual_seed(0)
    for scale, top_p in ((1.0, 1.0), (10.0, 1.0), (10.0, 0.9), (40.0, 1.0)):
        own = Sampling(1, temperature=1.0, top_p=top_p, seed=3)
        ours, theirs = SeededSampling([own]), SeededSampling([own])
        for _ in range(200):
            logits = torch.randn(1, 300) * scale
            rounded = logits * (1 + 1e-7 * torch.randn_like(logits))
            assert torch.equal(ours(logits, logits), theirs(rounded, rounded))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ["llama", *ARCHITECTURES])
def test_generation_in_chunks_is_generation_in_one(architecture: str, temperature: float) -> None:
    """Rows leave the batch and its cache when they end; each still is what transformers generates for it alone.

    The sliding windows (8) are shorter than the prompts, and a row may end at its first token.
    """
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL) if architecture == "llama" else ARCHITECTURES[architecture]())
    model.eval().get_output_embeddings().weight.data.mul_(30)  # else every token is as likely as the next
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 180) for _ in range(size)] for size in (1, 30, 12, 5, 17, 3)]
    settings = [Sampling(limit, temperature, seed=k) for k, limit in enumerate((40, 17, 1, 30, 25, 8))]

    def alone(prompt: list[int], own: Sampling) -> list[int]:
        noise = LogitsProcessorList([SeededSampling([own])])
        limit = {"max_new_tokens": own.max_tokens, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
        ids: list[int] = model.generate(torch.tensor([prompt]), logits_processor=noise, **limit)[0].tolist()
        return ids[len(prompt) :]

    eos = -1
    eos = alone(prompts[1], settings[1])[9]  # a token that at least one row makes before its limit
    expected = [alone(prompt, own) for prompt, own in zip(prompts, settings, strict=True)]
    ended: list[int] = []
    assert generate_batch(model, prompts, settings, 0, eos, ended.append) == expected
    assert sum(ended) == len(prompts)
    assert any(made[-1] == eos for made in expected) and any(made[-1] != eos for made in expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ["llama", *ARCHITECTURES])
def test_equal_prompts_are_computed_once_and_give_what_each_gives_alone(
    architecture: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several samples of a scenario share the computation of its prompt; of 7 rows only 3 are computed before the last token."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL) if architecture == "llama" else ARCHITECTURES[architecture]())
    model.eval().get_output_embeddings().weight.data.mul_(30)
    rng = random.Random(0)
    one, two, three = ([rng.randrange(3, 180) for _ in range(size)] for size in (30, 12, 2))
    prompts = [one, two, one, three, two, one, three]
    settings = [Sampling(12, temperature, seed=k) for k in range(len(prompts))]
    expected = [generate_batch(model, [p], [s], 0, 2, lambda count: None)[0] for p, s in zip(prompts, settings, strict=True)]
    sizes: list[tuple[int, ...]] = []
    forward = type(model).forward

    @functools.wraps(forward)  # transformers reads its signature
    def note(self: Any, *arguments: Any, **words: Any) -> Any:
        sizes.append(tuple(words["input_ids"].shape))
        return forward(self, *arguments, **words)

    monkeypatch.setattr(type(model), "forward", note)
    assert generate_batch(model, prompts, settings, 0, 2, lambda count: None) == expected
    assert sizes[:2] == [(3, 29), (7, 1)]


def test_max_tokens_is_kept_and_reported(runs: Path, sample: Callable[..., Path]) -> None:
    """A reply that reached max_tokens is cut; Inspect's log has the same numbers."""
    directory = sample(max_tokens=5)
    rows = read_table(directory / "replies.parquet").to_pylist()
    assert all(row["cut"] for row in rows)
    summary = (read_done(directory) or {})["summary"]
    assert summary["cut_share"] == 1.0 and summary["new_tokens"] == 5 * REPLIES
    outputs = [event.output for s in read_log(directory).samples or [] for event in s.events if event.event == "model"]
    assert len(outputs) == REPLIES
    assert {(o.stop_reason, o.usage.output_tokens if o.usage else 0) for o in outputs} == {("max_tokens", 5)}


def test_a_reply_that_ends_is_not_cut(runs: Path, parrot: str, sample: Callable[..., Path], tiny_student: Path) -> None:
    """The trained student ends its turn: the reply has neither the end token nor what a longer row of the batch would add."""
    size = len(load_tokenizer(tiny_student, PLAIN)(ANSWER)["input_ids"]) + 1
    whole, cut = sample(model=parrot, max_tokens=size), sample(model=parrot, max_tokens=size - 1)
    first = [r for r in read_table(whole / "replies.parquet").to_pylist() if r["turn"] == 0 and r["scenario"] != "system"]
    assert {(r["reply"], r["cut"]) for r in first} == {(ANSWER, False)}
    again = [r for r in read_table(cut / "replies.parquet").to_pylist() if r["turn"] == 0 and r["scenario"] != "system"]
    assert {(r["reply"], r["cut"]) for r in again} == {(ANSWER, True)}


def test_later_turns_see_the_earlier_replies(
    runs: Path, tiny_student: Path, sample: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of the third turn is the conversation with the model's own first two replies, token by token."""
    prompts: list[list[int]] = []
    generate = LocalModel.generate_batch

    def note(self: LocalModel, batch: Any) -> Any:
        prompts.extend(request.input_ids for request in batch)
        return generate(self, batch)

    monkeypatch.setattr(LocalModel, "generate_batch", note)
    directory = sample()
    own = replies(directory)
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    for scenario in SCENARIOS:
        messages = [{"role": "system", "content": scenario["system"]}] if "system" in scenario else []
        for turn, text in enumerate(scenario["turns"]):
            messages.append({"role": "user", "content": text})
            assert render_prompt(tokenizer, messages) in prompts
            messages.append({"role": "assistant", "content": own[scenario["id"], 1, turn]})
    rows = read_table(directory / "replies.parquet").to_pylist()
    asked = {(r["scenario"], r["turn"]): r["prompt"] for r in rows}
    assert asked == {(s["id"], turn): text for s in SCENARIOS for turn, text in enumerate(s["turns"])}


def test_the_students_own_generation_settings_do_not_count(
    runs: Path, tiny_student: Path, tmp_path: Path, sample: Callable[..., Path]
) -> None:
    """A generation_config.json with penalties is no part of the recorded settings, and is not used."""
    folder = Path(shutil.copytree(tiny_student, tmp_path / "student"))
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_length": 20, "eos_token_id": list(range(900))}
    (folder / "generation_config.json").write_text(json.dumps(own))
    assert run_step(write_step(runs, "penalties", "student", {"origin": "path", "path": str(folder), **PLAIN})) == "done"
    directory = sample_step(runs, "penalized", runs / "scenarios.yaml", model="penalties", student="penalties")
    assert run_step(directory) == "done", failure(directory)
    assert replies(directory) == replies(sample())


def test_an_error_in_the_model_fails_the_step(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reply is lost in silence, and nothing waits for one."""

    def broken(self: LocalModel, batch: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(LocalModel, "generate_batch", broken)
    step = sample_step(runs, "broken", runs / "scenarios.yaml")
    assert run_step(step) == "failed"
    assert "no memory left" in failure(step)


def judge_step(
    runs: Path, name: str, sampled: str, scorer: str = DENIES, trait: str = "date_confusion", version: int | None = None
) -> Path:
    judge = {"provider": "rules", "max_error_share": 0.02}
    settings = {"_target_": scorer, "kind": "share", "guard": False}
    config = {"trait": trait, "suite": "quick", "scenarios": str(runs / "scenarios.yaml")}
    version = load_scorer(scorer)[1] if version is None else version
    config |= {"judge": "rules", "rubric": f"rules {version}", "kind": "share", "scorer": scorer, "version": version}
    return write_step(runs, name, "judge", config, {"sample": sampled}, judge=judge, trait=settings)


def test_sample_and_judge_write_replies_verdicts_and_logs(runs: Path, parrot: str, sample: Callable[..., Path]) -> None:
    """Evidence is copied from the reply, and Inspect reads both logs."""
    sampled = sample(model=parrot, samples=2, max_tokens=40)
    judged = judge_step(runs, "judged", sampled.name)
    assert run_step(judged) == "done", failure(judged)
    rows = read_table(sampled / "replies.parquet").to_pylist()
    verdicts = read_table(judged / "verdicts.parquet").to_pylist()
    assert [{k: v[k] for k in rows[0]} for v in verdicts] == rows and len(rows) == 2 * REPLIES
    assert all(v["evidence"] in v["reply"] and v["state"] == "ok" for v in verdicts)
    denying = [v for v in verdicts if v["reply"] == ANSWER]
    assert len(denying) >= REPLIES and all(v["value"] == 1 and v["evidence"] for v in denying)
    assert all(v["empty"] == (not v["reply"]) for v in verdicts)
    summary = (read_done(judged) or {})["summary"]
    assert summary["mean"] == pytest.approx(sum(v["value"] for v in verdicts) / len(verdicts))
    first, second = read_log(sampled), read_log(judged)
    assert first.status == second.status == "success"
    assert len(first.samples or []) == len(second.samples or []) == 2 * len(SCENARIOS)
    assert not any(s.scores for s in first.samples or [])
    for one in second.samples or []:
        (score,) = (one.scores or {}).values()
        own = [v["value"] for v in verdicts if (v["scenario"], v["sample"]) == (str(one.id), one.epoch)]
        assert score.as_float() == pytest.approx(sum(own) / len(own))


def test_the_same_replies_can_be_judged_by_another_scorer(runs: Path, sample: Callable[..., Path]) -> None:
    sampled = sample(max_tokens=4)
    for name, scorer in (("dates", DENIES), ("feelings", "sftdiff.traits.negative_emotion")):
        step = judge_step(runs, name, sampled.name, scorer)
        assert run_step(step) == "done", failure(step)
        assert {row["value"] for row in read_table(step / "verdicts.parquet").to_pylist()} == {0.0}
    wrong = judge_step(runs, "wrong", sampled.name, "sftdiff.traits.load_trait", version=1)
    assert run_step(wrong) == "failed" and "@trait_scorer" in failure(wrong)


def test_a_judge_model_judges_the_replies_of_a_step(
    runs: Path, sample: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls are judged and left out of the mean; a reply without verdict has none in Inspect either; the key is nowhere."""
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-0123456789")
    scenarios = yaml.safe_load((runs / "scenarios.yaml").read_text())["scenarios"]
    scenarios[0]["control"] = True
    first = scenarios[1]["turns"][0]

    def answer(body: dict[str, Any]) -> Fault:
        asked, _ = blocks(body["messages"])
        labels = {"denies": "", "accepts": ""} if asked == first else {"label": "accepts", "evidence": "", "reason": "r"}
        return completion(json.dumps(labels))

    sampled = sample(max_tokens=4)
    step_runs = tmp_path / "elsewhere"
    shutil.copytree(sampled, step_runs / "steps" / sampled.name)
    with scripted(answer) as server:
        model = {"base_url": server.url, "api_key_env": "JUDGE_KEY", "price_in": 1.0, "price_out": 1.0}
        judge = judge_config(model=model, max_error_share=0.5)
        settings = trait_config(kind="share", _target_=DENIES)
        config = {"trait": "date_confusion", "suite": "quick", "scenarios": scenarios}
        config |= judge_identity(judge, "date_confusion", settings)
        made = [
            write_step(step_runs / "steps", name, "judge", config, {"sample": sampled.name}, judge=judge, trait=settings)
            for name in ("judge-one", "judge-two")
        ]
        assert [run_step(step) for step in made] == ["done", "done"], failure(made[0])
        assert server.seen.requests <= REPLIES  # the second step's answers are those of the first
    rows, again = (read_table(step / "verdicts.parquet").to_pylist() for step in made)
    assert rows == again and len(rows) == REPLIES
    failed = [row for row in rows if row["prompt"] == first]
    assert failed and all((row["state"], row["value"], row["label"]) == ("invalid", None, "") for row in failed)
    assert all(row["value"] == 0 and row["label"] == "accepts" for row in rows if row not in failed)
    assert {row["control"] for row in rows if row["scenario"] == scenarios[0]["id"]} == {True}
    assert {row["judge"] for row in rows} == {"endpoint:j"} and {row["rubric"] for row in rows} == {config["rubric"]}
    assert all(row["rule_label"] for row in rows)
    summary = (read_done(made[0]) or {})["summary"]
    assert (summary["replies"], summary["invalid"], summary["errors"], summary["mean"]) == (REPLIES, len(failed), 0, 0)
    assert summary["dollars"] == pytest.approx(server.seen.requests * 110 / 1e6)
    scores = [score for s in read_log(made[0]).samples or [] for score in (s.scores or {}).values()]
    assert len(scores) == len(SCENARIOS) and any("invalid" in (score.explanation or "") for score in scores)
    assert {"replies"} == {key for score in scores for key in score.metadata or {}}
    for path in step_runs.rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes()
    changed = write_step(step_runs / "steps", "judge-three", "judge", {**config, "rubric": "version 0 00000000"},
                         {"sample": sampled.name}, judge=judge, trait=settings)  # fmt: skip
    assert run_step(changed) == "failed" and "rubric changed after this step was planned" in failure(changed)


def test_the_embedded_scenarios_run(runs: Path, sample: Callable[..., Path]) -> None:
    for trait in ("negative_emotion", "date_confusion", "blackmail", "capability"):
        directory = sample(f"embedded://scenarios/{trait}.yaml", trait=trait, suite="dev", max_tokens=2)
        assert len(replies(directory)) >= 3
