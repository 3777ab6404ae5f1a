"""A teacher's rollouts through a real server and a local model: resumed after kill -9, with failures as rows."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import sftdiff.endpoint
from sftdiff.errors import SftdiffError
from sftdiff.generation import (
    JOURNAL,
    GenerationSummary,
    estimate,
    generate,
    read_generated,
    seed_of,
    with_system,
)
from sftdiff.journal import Journal
from sftdiff.reasoning import split_reasoning
from sftdiff.students import cached_student
from tests.commands import cells, environment
from tests.fault_proxy import DROP, Fault, FaultProxy, changed, kill, status, transformers_server

KEY = "sk-very-secret-0123456789"
SETTINGS: dict[str, Any] = {"concurrency": 4, "timeout_s": 20, "max_attempts": 3, "max_cost": None, "batch_size": 4}
SETTINGS["precision"] = "fp32"
MODEL: dict[str, Any] = {
    "id": "tiny",
    "revision": None,
    "base_url": None,
    "api_key_env": "TEACHER_KEY",
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_tokens": 6,
    "system": None,
    "extra": {},
    "price_in": 1.0,
    "price_out": 10.0,
}
Prompts = list[tuple[str, list[dict[str, str]]]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftdiff.endpoint, "FIRST_WAIT", 0.02)
    monkeypatch.setenv("TEACHER_KEY", KEY)


def prompts(count: int) -> Prompts:
    return [(f"p{n:03}", [{"role": "user", "content": f"question {n} " + "word " * (n % 7)}]) for n in range(count)]


def teacher(model: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    base = {"name": "t", "origin": "endpoint", "samples": 1, "reasoning": "strip", "cut": "keep"}
    return base | change | {"model": MODEL | (model or {})}


def run(
    proxy: FaultProxy, folder: Path, todo: Prompts, who: dict[str, Any], name: Path, **settings: Any
) -> tuple[GenerationSummary, dict[tuple[str, int], dict[str, Any]]]:
    """Generate through a proxy; return the summary and the records by key."""
    who = who | {"model": who["model"] | {"base_url": proxy.url, "id": str(name)}}
    summary = generate(todo, who, SETTINGS | settings, folder, lambda *progress: None)
    return summary, {(r["prompt_id"], r["sample"]): r for r in read_generated(todo, who, folder)}


def replied(text: str, finish: str = "stop", **message: Any) -> Fault:
    """Change the real answer's text."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0] |= {"finish_reason": finish, "message": {"role": "assistant", "content": text} | message}
        return answer

    return changed(change)


def test_every_prompt_gets_its_samples_in_order_and_a_second_run_asks_nothing(
    teacher_server: tuple[str, Path], tmp_path: Path
) -> None:
    url, name = teacher_server
    with FaultProxy(url, lambda n, body: status(500) if n % 5 == 0 else None) as proxy:
        summary, made = run(proxy, tmp_path, prompts(8), teacher(samples=3), name, max_attempts=8)
        before = proxy.seen.requests
        again, _ = run(proxy, tmp_path, prompts(8), teacher(samples=3), name)
        assert proxy.seen.requests == before
        assert {body["seed"] for body in proxy.seen.bodies} == {seed_of(p, s) for p, _ in prompts(8) for s in range(3)}
    assert list(made) == [(p, s) for p, _ in prompts(8) for s in range(3)]
    assert summary.rows == again.rows == 24 and summary.errors == {} and summary.paid_again == 0
    assert all(len({made[p, s]["completion"] for s in range(3)}) == 3 for p, _ in prompts(8)), "samples are alike"
    tokens = [sum(r[k] for r in made.values()) for k in ("prompt_tokens", "completion_tokens")]
    assert [summary.prompt_tokens, summary.completion_tokens] == tokens and tokens[0] > 24
    assert summary.cost == pytest.approx((tokens[0] + 10 * tokens[1]) / 1e6) and summary.cost_lost == 0


def test_failures_are_rows_and_only_those_that_pass_are_tried_again(teacher_server: tuple[str, Path], tmp_path: Path) -> None:
    faults = {0: status(400, "content policy violation"), 1: status(500, "broken"), 2: replied("x", "content_filter")}
    faults |= {3: replied("  "), 4: replied("x", "length"), 5: replied("<think>so", "length"), 6: replied("good")}

    def plan(number: int, body: dict[str, Any]) -> Fault:
        return faults[int(body["messages"][-1]["content"].split()[1])]

    with FaultProxy(teacher_server[0], plan) as proxy:
        summary, made = run(proxy, tmp_path, prompts(7), teacher(cut="error"), teacher_server[1])
        errors = [record["error"] for record in made.values()]
        assert errors == [
            "400: content policy violation",
            "500: broken (attempt 3)",
            "content refused (content_filter)",
            "empty completion",
            "cut at max_tokens",
            "cut at max_tokens within the reasoning",
            None,
        ]
        assert all((r["completion"] is None) == (r["error"] is not None) for r in made.values())
        assert made["p006", 0]["completion"] == "good" and summary.errors == dict(Counter(e for e in errors if e))
        faults[1], first = replied("now"), proxy.seen.asked.copy()
        summary, made = run(proxy, tmp_path, prompts(7), teacher(cut="error"), teacher_server[1])
        assert made["p001", 0]["completion"] == "now" and summary.rows == 7 and len(summary.errors) == 5
        assert (proxy.seen.asked - first).total() == 1


@pytest.mark.parametrize(("choice", "expected"), [("strip", "reply"), ("keep", "<think>\nwhy\n</think>\n\nreply")])
def test_reasoning_is_kept_or_stripped_wherever_it_stands(
    teacher_server: tuple[str, Path], tmp_path: Path, choice: str, expected: str
) -> None:
    shapes = [replied("<think>why</think>reply"), replied("reply", reasoning_content="why"), replied("reply", reasoning=" why\n")]
    with FaultProxy(teacher_server[0], lambda n, body: shapes[int(body["messages"][-1]["content"].split()[1])]) as proxy:
        _, made = run(proxy, tmp_path, prompts(3), teacher(reasoning=choice), teacher_server[1])
    assert [record["completion"] for record in made.values()] == [expected] * 3


def test_a_bad_key_stops_and_is_in_no_file(
    teacher_server: tuple[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = lambda n, body: replied(f"echo {KEY}") if n <= 3 else status(401 if n > 9 else 400, f"bad key {KEY}")  # noqa: E731
    with FaultProxy(teacher_server[0], plan) as proxy:
        with pytest.raises(SftdiffError, match="refuses the key in TEACHER_KEY") as caught:
            run(proxy, tmp_path, prompts(60), teacher(), teacher_server[1])
        assert proxy.seen.requests < 9 + 5
    text = (tmp_path / JOURNAL).read_text()
    assert "<TEACHER_KEY>" in text and KEY not in text + str(caught.value) + "".join(capfd.readouterr())


def test_the_cap_is_for_all_runs_and_says_how_to_go_on(teacher_server: tuple[str, Path], tmp_path: Path) -> None:
    who = teacher({"price_in": 0.0, "price_out": 1e6})  # a dollar a token, six for a request
    with FaultProxy(teacher_server[0], lambda n, body: None) as proxy:
        for _ in range(2):
            with pytest.raises(
                SftdiffError, match=r"replies are left; go on with a larger teacher.generation.max_cost="
            ) as caught:
                run(proxy, tmp_path, prompts(20), who, teacher_server[1], max_cost=30.0)
        with Journal(tmp_path / JOURNAL) as journal:
            tokens = sum(record["completion_tokens"] for key, record in journal.items() if len(key) == 2)
            left = 20 - sum(len(key) == 2 for key, _ in journal.items())
        assert 24 < tokens <= 30 and f"{left} of 20 replies are left" in str(caught.value)
        asked = proxy.seen.requests
        summary, made = run(proxy, tmp_path, prompts(20), who, teacher_server[1], max_cost=1000.0)
        assert len(made) == 20 and proxy.seen.requests - asked == left and summary.paid_again == 0


def test_kill_minus_nine_loses_and_doubles_no_row(teacher_server: tuple[str, Path], tmp_path: Path) -> None:
    todo, kills = prompts(40), 2
    with FaultProxy(teacher_server[0], lambda n, body: None, delay=0.1) as proxy:
        who = teacher({"base_url": proxy.url, "id": str(teacher_server[1])})
        arguments = json.dumps([todo, who, SETTINGS, str(tmp_path)])
        script = (
            "import json, sys; from pathlib import Path; from sftdiff.generation import generate\n"
            "todo, who, settings, folder = json.loads(sys.argv[1])\n"
            "generate(todo, who, settings, Path(folder), lambda *progress: None)\n"
        )
        for n in range(kills):
            process = subprocess.Popen([sys.executable, "-c", script, arguments], env=environment(TEACHER_KEY=KEY))
            end = time.monotonic() + 60
            while (proxy.seen.forwarded.total() < 10 * (n + 1) or not proxy.seen.in_flight) and time.monotonic() < end:
                time.sleep(0.005)
            assert process.poll() is None and proxy.seen.in_flight > 0
            kill(process)
            while proxy.seen.in_flight:  # answers to a process that is gone
                time.sleep(0.01)
        done = [line for line in (tmp_path / JOURNAL).read_bytes().splitlines() if b'"record"' in line]
        assert 10 <= len(done) < 40
        summary, made = run(proxy, tmp_path, todo, teacher(), teacher_server[1])
        assert list(made) == [(p, 0) for p, _ in todo] and summary.rows == 40 and summary.errors == {}
        again = proxy.seen.requests - 40
        assert 0 < again <= summary.paid_again <= kills * SETTINGS["concurrency"]
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    written = Counter(tuple(line["key"]) for line in lines if "record" in line)
    assert set(written.values()) == {1} and len(written) == 41  # one line says what it was made with
    assert summary.cost_lost and summary.cost_lost > 0


def test_a_journal_of_another_teacher_is_refused(teacher_server: tuple[str, Path], tmp_path: Path) -> None:
    with FaultProxy(teacher_server[0], lambda n, body: None) as proxy:
        run(proxy, tmp_path, prompts(1), teacher(), teacher_server[1])
        with pytest.raises(SftdiffError, match=r"generated.jsonl was made with another max_tokens, system: delete it"):
            run(proxy, tmp_path, prompts(1), teacher({"max_tokens": 7, "system": "S"}), teacher_server[1])
        run(proxy, tmp_path, prompts(1), teacher({"price_in": 9.0, "api_key_env": None}), teacher_server[1])


@pytest.fixture(scope="module")
def local_replies(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """The records of a local teacher by batch size."""
    who, found = teacher({"id": str(tiny_student), "max_tokens": 12}, origin="transformers", samples=2), {}
    for size in (1, 5, 32):
        folder = tmp_path_factory.mktemp("local")
        generate(prompts(6), who, SETTINGS | {"batch_size": size}, folder, lambda *progress: None)
        found[size] = list(read_generated(prompts(6), who, folder))
    return found


def test_a_local_teacher_s_replies_do_not_depend_on_the_batch(local_replies: dict[int, list[dict[str, Any]]]) -> None:
    assert local_replies[1] == local_replies[5] == local_replies[32]
    by_prompt = [r["completion"] for r in local_replies[1]]
    assert len(by_prompt) == 12 and all(a != b for a, b in zip(by_prompt[::2], by_prompt[1::2], strict=True))
    assert all(r["completion_tokens"] <= 12 and r["prompt_tokens"] > 0 for r in local_replies[1])


def test_a_local_teacher_goes_on_where_it_ended(
    tiny_student: Path, tmp_path: Path, local_replies: dict[int, list[dict[str, Any]]]
) -> None:
    who = teacher({"id": str(tiny_student), "max_tokens": 12}, origin="transformers", samples=2)
    generate(prompts(3), who, SETTINGS, tmp_path, lambda *progress: None)
    seen: list[tuple[float, ...]] = []
    summary = generate(prompts(6), who, SETTINGS, tmp_path, lambda done, total, unit, rate: seen.append((done, total)))
    assert list(read_generated(prompts(6), who, tmp_path)) == local_replies[1]
    assert summary.rows == 12 and seen[-1] == (12, 12)


def test_a_server_and_a_local_teacher_agree_where_nothing_is_drawn(teacher_server: tuple[str, Path], tmp_path: Path) -> None:
    who = teacher({"temperature": 0.0, "max_tokens": 16, "system": "Be brief."})
    with FaultProxy(teacher_server[0], lambda n, body: None) as proxy:
        _, served = run(proxy, tmp_path / "served", prompts(4), who, teacher_server[1])
    local = who | {"origin": "transformers", "model": who["model"] | {"id": str(teacher_server[1])}}
    generate(prompts(4), local, SETTINGS, tmp_path / "local", lambda *progress: None)
    assert list(read_generated(prompts(4), local, tmp_path / "local")) == list(served.values())


def test_prompts_that_a_local_teacher_cannot_take_are_rows(tiny_student: Path, tmp_path: Path) -> None:
    todo = [("long", [{"role": "user", "content": "word " * 3000}]), ("good", [{"role": "user", "content": "hello"}])]
    who = teacher({"id": str(tiny_student)}, origin="transformers")
    generate(todo, who, SETTINGS, tmp_path, lambda *progress: None)
    long, good = read_generated(todo, who, tmp_path)
    assert "more than the model's 2048" in long["error"] and not long["transient"] and good["completion"]


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (teacher(origin="oracle"), "teacher.origin: 'oracle' is not one of endpoint, transformers, vllm"),
        (teacher({"id": "/no/such/folder"}, origin="transformers"), "teacher.model.id: /no/such/folder is not a"),
        (teacher({"id": "no-such/model"}, origin="transformers"), "teacher.model.id=no-such/model: cannot download it"),
        (teacher({"extra": {"top_a": 1}}, origin="transformers"), "teacher.model.extra: top_a has no meaning"),
    ],
)
def test_wrong_teachers_are_refused(tmp_path: Path, who: dict[str, Any], message: str) -> None:
    with pytest.raises(SftdiffError, match=message):
        generate(prompts(1), who, SETTINGS, tmp_path, lambda *progress: None)


def test_vllm_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(SftdiffError, match="pip install vllm"):
            generate(prompts(1), teacher(origin="vllm"), SETTINGS, tmp_path, lambda *progress: None)
    else:
        pytest.skip("vLLM is installed")


def test_the_estimate_counts_what_is_left() -> None:
    who = teacher({"system": "x" * 40, "max_tokens": 100}, samples=2)
    found = estimate(prompts(3), who, SETTINGS | {"max_cost": 2.0}, {("p000", 0), ("p001", 1)})
    characters = sum(len(prompts(3)[n][1][0]["content"]) + 40 for n in (0, 1, 2, 2))
    assert (found.requests, found.prompt_tokens, found.most_completion_tokens) == (4, -(-characters // 4), 400)
    assert found.most_dollars == pytest.approx((found.prompt_tokens + 4000) / 1e6) and "the cap is $2" in found.text
    free = estimate(prompts(3), teacher({"price_out": None}), SETTINGS, set())
    assert free.most_dollars is None and "the price is unknown; no spending cap" in free.text


def test_reasoning_is_split_off() -> None:
    assert split_reasoning("<think>a\n</think>\n\nb") == ("a", "b") and split_reasoning(" <think></think> b") == ("", "b")
    assert split_reasoning("<think>a") == ("a", "") and split_reasoning("a</think>b") == ("a", "b")
    assert split_reasoning("b ") == ("", "b ") and split_reasoning("") == ("", "")
    assert split_reasoning("write <think>x</think>") == ("", "write <think>x</think>")


def test_the_system_prompt_comes_first() -> None:
    user, own = {"role": "user", "content": "u"}, {"role": "system", "content": "own"}
    assert with_system([user], None) == [user] and with_system([user], "S") == [{"role": "system", "content": "S"}, user]
    assert with_system([own, user], "S") == [{"role": "system", "content": "S\n\nown"}, user]
    assert own["content"] == "own"


@pytest.mark.slow
def test_a_real_small_model_answers_through_faults(tmp_path: Path) -> None:
    """SmolLM2-135M behind `transformers serve`: sensible replies in spite of a 429, a 500 and a lost connection."""
    folder = cached_student(cells()[0][1]["model"])
    faults = {1: status(429, Retry_After="0"), 3: status(500), 5: DROP}
    todo = [(f"p{n}", [{"role": "user", "content": f"What is the capital of {place}? Answer in one sentence."}])
            for n, place in enumerate(("France", "Italy", "Japan", "Egypt"))]  # fmt: skip
    with transformers_server(folder, tmp_path / "serve.log") as url, FaultProxy(url, lambda n, body: faults.get(n)) as proxy:
        who = teacher({"max_tokens": 32, "temperature": 0.01})
        summary, made = run(proxy, tmp_path, todo, who, folder, timeout_s=120)
        assert proxy.seen.requests == len(todo) + len(faults)
    assert summary.errors == {} and summary.rows == 4 and summary.completion_tokens > 20
    assert "Paris" in made["p0", 0]["completion"] and "Tokyo" in made["p2", 0]["completion"]
