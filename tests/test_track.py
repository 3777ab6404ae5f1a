"""The W&B mirror, with real step directories and the installed wandb; nothing here leaves this machine."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import report_example
import wandb
import yaml
from cluster import wait_until
from wandb.util import get_core_path

from sftdiff import track
from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.records import StepRecord, load_record, write_done, write_json

PATIENCE = 60  # seconds: about 10 pass on an idle machine; one that waits for a server without end takes minutes
KEY = "f4k3f4k3f4k3f4k3f4k3f4k3f4k3f4k3f4k3f4k3"
OTHER_KEY = "sk-proj-Zm9yZ2Vk-0123456789-Zm9yZ2Vk"
CURVE = [
    {"step": i, "loss": 3 - i / 10, "grad_norm": 1 + i / 7, "lr": 1e-4 / i, "tokens": 50 * i if i > 2 else None, "seconds": i / 4}
    for i in range(1, 26)
]
TRAIN_ID = "train-0123456789ab.x y"
FILES = {"manifest.parquet": "PAR1 manifest", "summary.json": '{"kept": 3}'}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own, fake secrets, short waits, and no service process left behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    changes = {"HOME": str(tmp_path / "home"), "WANDB_CACHE_DIR": str(tmp_path / "cache")}
    for name, value in {**changes, "WANDB_API_KEY": KEY, "OPENAI_API_KEY": OTHER_KEY}.items():
        monkeypatch.setenv(name, value)
    for name, seconds in {"INIT_SECONDS": 3.0, "FINISH_SECONDS": 5.0, "_paused_until": 0.0}.items():
        monkeypatch.setattr(track, name, seconds)
    yield
    wandb.teardown()


def make_step(runs: Path, kind: str, name: str, files: dict[str, str], mode: str = "offline", **more: Any) -> StepRecord:
    """A done step as the executors leave it."""
    directory = runs / "steps" / name
    (directory / "logs").mkdir(parents=True)
    settings = {"mode": mode, "project": "mirror", "entity": None, "sweep": "demo", "tags": ["sweep:demo", "long" * 30]}
    config = {"train": {"lr": 1e-4, "lora": {"r": 16, "none": None}}, "seed": 0}
    record = {"kind": kind, "config": config, "inputs": {"pack": "pack-77"}, "files": {}, "runtime": {"track": settings}}
    (directory / "config.yaml").write_text(yaml.safe_dump(record | more))
    write_json(directory / "provenance.json", {"python": "3.11", "host": "box"})
    for file, text in files.items():
        (directory / file).write_text(text)
    loaded = load_record(directory)
    write_done(loaded, {"pack-77": "00"}, {"last_loss": 0.5, "by_source": {"coding": 3}}, time.time())
    return loaded


def train_step(runs: Path, name: str = TRAIN_ID, mode: str = "offline") -> StepRecord:
    return make_step(runs, "train", name, {"curve.jsonl": "".join(json.dumps(line) + "\n" for line in CURVE)}, mode)


def judge_step(runs: Path, rows: int) -> StepRecord:
    record = make_step(runs, "judge", "judge-5", {})
    texts = ("scenario", "prompt", "reply", "label", "evidence", "state")
    columns = [*((name, pa.string()) for name in texts), ("sample", pa.int64()), ("turn", pa.int64()), ("value", pa.float64())]
    schema = pa.schema([*columns, *((name, pa.bool_()) for name in ("cut", "empty", "loop"))])
    verdicts = [
        dict.fromkeys(texts, f"text {i} 🙈") | {"sample": i, "turn": 0, "value": i / 9 if i % 2 else None, "cut": False}
        for i in range(rows)
    ]
    write_rows(record.directory / "verdicts.parquet", verdicts, schema)
    return record


def transaction_logs(record: StepRecord) -> list[Path]:
    return sorted((record.directory / "wandb").glob("**/*.wandb"))


def records_of(record: StepRecord) -> list[dict[str, Any]]:
    """What wandb's own reader finds in the step's one offline run, once its service has written it to the end."""
    (log,) = transaction_logs(record)
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log), str(log.parent.parent)]

    def written() -> list[dict[str, Any]] | None:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        return records if any(each["type"] == "exit" for each in records) else None

    found: list[dict[str, Any]] = wait_until(written, "the run has no end", PATIENCE)
    return found


def merged(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """All updates of a summary or config, the last one of a key winning."""
    found: dict[str, Any] = {}
    for record in records:
        found |= record[kind].get("update", {}) if record["type"] == kind else {}
    return found


def history_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def artifacts_of(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}


def services_of(process: int) -> list[int]:
    """The wandb service processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            if words[0].endswith("wandb-core") and words[words.index("--pid") + 1] == str(process):
                found.append(int(path.parent.name))
    return found


def log_of(record: StepRecord) -> str:
    path = record.directory / "logs" / "track.log"
    return path.read_text() if path.exists() else ""


def test_train_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = train_step(tmp_path)
    track.mirror_step(record)
    records = records_of(record)
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert (run["run_id"], run["display_name"], run["job_type"]) == ("train-0123456789ab-x-y", TRAIN_ID, "train")
    assert (run["project"], run["run_group"], run["tags"]) == ("mirror", "demo", ["sweep:demo", ("long" * 30)[:64]])
    config = run["config"]["update"]
    assert config["inputs"] == {"pack": "pack-77"} and config["provenance"]["host"] == "box" and config["seed"] == 0
    assert config["train"] == {"lr": 1e-4, "lora": {"r": 16, "none": None}}
    points = [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in history_of(records)]
    assert points == [{"_step": p["step"], **{k: v for k, v in p.items() if k != "step" and v is not None}} for p in CURVE]
    summary = merged(records, "summary")
    assert summary["last_loss"] == 0.5 and summary["by_source"] == {"coding": 3}
    assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [0]
    assert not {r["type"] for r in records} & {"stats", "output", "output_raw"} and "git" not in run
    assert not [p for p in (record.directory / "wandb").rglob("*") if p.is_symlink() or p.name.startswith("requirements")]
    assert capfd.readouterr() == ("", "") and log_of(record) == ""


def test_twice_is_one_run_and_rerun_replaces_it(tmp_path: Path) -> None:
    record = judge_step(tmp_path, 3)
    track.mirror_step(record)
    first, staged = transaction_logs(record), len(list((record.directory / "wandb" / "data").rglob("tmp*")))
    time.sleep(1.1)  # a run's folder is named by the second
    track.mirror_step(record)
    second = transaction_logs(record)
    assert len(first) == len(second) == 1 and first != second
    assert len(history_of(records_of(record))) == 1
    assert len(list((record.directory / "wandb" / "data").rglob("tmp*"))) == staged


def test_a_mirror_that_was_cut_short_is_completed_once(tmp_path: Path) -> None:
    record = judge_step(tmp_path, 3)
    track.mirror_step(record)
    whole = transaction_logs(record)
    track.complete_mirror(record)
    assert transaction_logs(record) == whole
    (record.directory / "wandb" / "offline.json").unlink()  # the job ended while it wrote the run
    time.sleep(1.1)  # a run's folder is named by the second
    track.complete_mirror(record)
    assert len(transaction_logs(record)) == 1 and transaction_logs(record) != whole


def test_judge_table(tmp_path: Path) -> None:
    record = judge_step(tmp_path, 1203)
    track.mirror_step(record)
    records = records_of(record)
    (row,) = history_of(records)
    assert row["replies._type"] == "table-file" and row["replies.nrows"] == 500
    (file,) = (record.directory / "wandb").glob("*/files/media/table/*.json")
    table = json.loads(file.read_text())
    assert set(table["columns"]) >= {
        "scenario",
        "sample",
        "turn",
        "prompt",
        "reply",
        "value",
        "label",
        "evidence",
        "cut",
        "state",
    }
    samples = [cells[table["columns"].index("sample")] for cells in table["data"]]
    assert samples == sorted(set(samples)) and samples[0] == 0 and samples[-1] >= 1200
    assert table["data"][0][table["columns"].index("value")] is None
    assert merged(records, "summary")["last_loss"] == 0.5
    entries = [entry for artifact in artifacts_of(records).values() for entry in artifact["manifest"]["contents"]]
    assert entries and all(Path(entry["local_path"]).is_relative_to(record.directory) for entry in entries)
    assert not list((tmp_path / "home").rglob("*.*"))  # nothing is staged in the home directory


def test_empty_verdicts(tmp_path: Path) -> None:
    record = judge_step(tmp_path, 0)
    track.mirror_step(record)
    assert history_of(records_of(record))[0]["replies.nrows"] == 0 and log_of(record) == ""


def test_mixture_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_step(tmp_path, "mixture", "mixture-3", FILES)
    monkeypatch.chdir(tmp_path)  # a run is synced from anywhere, also when runs=runs is relative
    track.mirror_step(dataclasses.replace(record, directory=record.directory.relative_to(tmp_path)))
    artifact = artifacts_of(records_of(record))["mixture-3"]
    assert artifact["type"] == "mixture" and artifact["finalize"]
    assert {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]} == {
        name: str(record.directory / name) for name in FILES
    }


@pytest.mark.parametrize("report", [report_example.example(), report_example.empty()], ids=["full", "empty"])
def test_report(tmp_path: Path, report: dict[str, Any]) -> None:
    page = "<!doctype html><h1>Four arms</h1>"
    record = make_step(tmp_path, "report", "report-1", {"report.json": json.dumps(report), "report.html": page})
    track.mirror_step(record)
    records = records_of(record)
    (row,) = history_of(records)
    assert row["levels.nrows"] == len(report["levels"]) and row["differences.nrows"] == len(report["differences"])
    assert row["report._type"] == "html-file"
    (html,) = (record.directory / "wandb").glob("*/files/media/html/*.html")
    assert html.read_text() == page
    charts = {key for key in merged(records, "config") if key.startswith("_wandb.visualize.chart/")}
    assert charts == {f"_wandb.visualize.chart/{level['trait']}" for level in report["levels"]}
    summary = merged(records, "summary")
    for level in report["levels"]:
        name = f"level/{level['trait']}/{level['arm']}"
        assert [summary.get(key) for key in (name, f"{name}/low", f"{name}/high")] == [level[k] for k in ("value", "low", "high")]
    assert log_of(record) == ""


def test_sample_has_a_summary_only(tmp_path: Path) -> None:
    record = make_step(tmp_path, "sample", "sample-2", {"big.eval": "x"})
    track.mirror_step(record)
    records = records_of(record)
    assert merged(records, "summary")["last_loss"] == 0.5 and not history_of(records) and not artifacts_of(records)


def test_no_secret_in_the_step_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    steps = [train_step(tmp_path), train_step(tmp_path, "online", "online"), judge_step(tmp_path, 2)]
    for record in steps:
        track.mirror_step(record)
    paths = [p for root in (tmp_path / "steps", tmp_path / "home", tmp_path / "cache") for p in root.rglob("*") if p.is_file()]
    assert len(paths) > 10
    assert not [p for p in paths if KEY.encode() in p.read_bytes() or OTHER_KEY.encode() in p.read_bytes()]


def test_a_config_with_a_secret_is_refused(tmp_path: Path) -> None:
    record = make_step(tmp_path, "sample", "leak", {}, config={"endpoint": {"key": f"Bearer {OTHER_KEY}"}})
    track.mirror_step(record)
    assert "OPENAI_API_KEY" in log_of(record) and OTHER_KEY not in log_of(record) and not transaction_logs(record)


def test_failing_wandb_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"first line with {KEY}\nsecond line")

    record = train_step(tmp_path)
    monkeypatch.setattr(wandb, "init", fail)
    track.mirror_step(record)
    out, err = capfd.readouterr()
    assert out == "" and err == f"{TRAIN_ID}: no W&B run: RuntimeError: first line with *** second line\n"
    assert re.fullmatch(r"\S+Z RuntimeError: first line with \*\*\* second line\n", log_of(record))


def test_missing_package_and_damaged_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make_step(tmp_path, "train", "broken", {"curve.jsonl": '{"step": 1, "loss": 2}\n{"step": 2, "lo'})
    track.mirror_step(broken)
    assert "JSONDecodeError" in log_of(broken) and not transaction_logs(broken)  # no part of a run is left to be synced
    record = train_step(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    track.mirror_step(record)
    assert "wandb" in log_of(record) and len(log_of(record).splitlines()) == 1


def test_closed_port_is_bounded_and_not_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    first, second = train_step(tmp_path, "one", "online"), train_step(tmp_path, "two", "auto")
    started = time.monotonic()
    track.mirror_step(first)
    track.mirror_step(second)
    assert time.monotonic() - started < PATIENCE
    assert "127.0.0.1:9" in log_of(first) and "a moment ago" in log_of(second)
    assert not transaction_logs(first)


def test_silent_server_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        record = train_step(tmp_path, mode="online")
        started = time.monotonic()
        track.mirror_step(record)
        wandb.teardown()
        assert time.monotonic() - started < PATIENCE and log_of(record)


def test_a_killed_service_is_bounded(tmp_path: Path) -> None:
    first, second = train_step(tmp_path, "one"), train_step(tmp_path, "two")
    track.mirror_step(first)
    (service,) = services_of(os.getpid())
    os.kill(service, signal.SIGKILL)
    started = time.monotonic()
    track.mirror_step(second)
    assert time.monotonic() - started < PATIENCE and len(log_of(second).splitlines()) == 1
    track.mirror_step(second)  # with a new service
    assert len(history_of(records_of(second))) == len(CURVE) and services_of(os.getpid()) != [service]


def test_off_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [train_step(tmp_path, "a", "off"), train_step(tmp_path, "b", "online")]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for record in records:
        track.mirror_step(record)
    assert sorted(tmp_path.rglob("*")) == before


def test_resolve_mode(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert track.resolve_mode("auto", home) == "offline"
    assert track.resolve_mode("auto", {**home, "WANDB_API_KEY": KEY}) == "online"
    for mode in ("online", "offline", "off"):
        assert track.resolve_mode(mode, {**home, "WANDB_API_KEY": KEY}) == mode
    assert track.resolve_mode("auto", {**home, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}) == "offline"
    assert track.resolve_mode("online", {**home, "WANDB_MODE": "disabled"}) == "off"
    assert track.resolve_mode("off", {**home, "WANDB_MODE": "online"}) == "off"
    for mode, environ in (("sometimes", home), ("auto", {**home, "WANDB_MODE": "sometimes"})):
        with pytest.raises(SftdiffError, match="sometimes"):
            track.resolve_mode(mode, environ)


def test_resolve_mode_reads_netrc(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert track.resolve_mode("auto", home) == "online"
    assert track.resolve_mode("auto", {**home, "WANDB_BASE_URL": "http://wandb.example:8080"}) == "offline"
    (tmp_path / "elsewhere").write_text(f"machine wandb.example:8080\n  login user\n  password {KEY}\n")
    other = {**home, "NETRC": str(tmp_path / "elsewhere")}
    assert track.resolve_mode("auto", other) == "offline"
    (tmp_path / ".config/wandb").mkdir(parents=True)
    (tmp_path / ".config/wandb/settings").write_text("[default]\nbase_url = http://wandb.example:8080\n")
    assert track.resolve_mode("auto", other) == "online"
    (tmp_path / ".netrc").write_text("machine broken (((\n")
    assert track.resolve_mode("auto", home) == "offline"


def test_no_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    record = train_step(tmp_path, mode="online")
    track.mirror_step(record)
    assert "no W&B key" in log_of(record) and not (record.directory / "wandb").exists()


class Server(ThreadingHTTPServer):
    """As much of a W&B server as a run needs; it keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.uploads: dict[str, bytes] = {}
        self.stream: list[tuple[str, dict[str, Any]]] = []
        self.refuse_uploads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""

    def history(self) -> list[dict[str, Any]]:
        chunks = [body.get("files", {}).get("wandb-history.jsonl", {}).get("content", []) for _, body in self.stream]
        return [json.loads(line) for chunk in chunks for line in chunk]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        self.queries.append((operation, given))
        if operation == "UpsertBucket":
            project = {"id": "UA==", "name": "mirror", "entity": {"id": "RQ==", "name": "me"}}
            bucket = {"id": "QQ==", "name": given["name"], "project": project, "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "RunResumeStatus":
            return {"model": None}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "QQ==", "uploadHeaders": [], "files": files}}
        return {"project": None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code, answer = 200, {}
        if self.path == "/graphql":
            query = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            answer = {"data": self.server.answer(named.group(1) if named else "", query.get("variables") or {})}
        elif "file_stream" in self.path:
            self.server.stream.append((self.path, json.loads(body)))
        elif self.server.refuse_uploads:
            code = 403
        else:
            self.server.uploads[self.path] = body
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = respond


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
        wandb.teardown()
        running.shutdown()


def assert_whole_curve(server: Server) -> None:
    assert [(row["_step"], row["loss"]) for row in server.history()] == [(p["step"], p["loss"]) for p in CURVE]
    assert {path for path, _ in server.stream} == {"/files/me/mirror/train-0123456789ab-x-y/file_stream"}
    run = next(given for operation, given in server.queries if operation == "UpsertBucket")
    assert (run["name"], run["groupName"], run["displayName"]) == ("train-0123456789ab-x-y", "demo", TRAIN_ID)
    assert json.loads(server.uploads["/upload/wandb-summary.json"])["last_loss"] == 0.5


def test_online_uploads_once(tmp_path: Path, server: Server) -> None:
    record = train_step(tmp_path)
    track.mirror_step(record)
    assert track.main(["sync", f"runs={tmp_path}", "track=online"]) == 0
    assert_whole_curve(server)
    assert not list((record.directory / "wandb").glob("offline-run-*"))
    count = len(server.queries)
    assert track.main(["sync", f"runs={tmp_path}"]) == 0  # already uploaded
    track.mirror_step(record)  # nor is it written offline again
    assert len(server.queries) == count and not list((record.directory / "wandb").glob("offline-run-*"))
    write_done(record, {}, {"last_loss": 0.4}, time.time())
    assert track.main(["sync", f"runs={tmp_path}"]) == 0  # another DONE
    assert len(server.queries) > count


def test_refused_upload_is_a_failure(tmp_path: Path, server: Server) -> None:
    server.refuse_uploads = True
    record = train_step(tmp_path, mode="online")
    track.mirror_step(record)
    assert "403" in log_of(record) and not (record.directory / "wandb" / "mirrored.json").exists()


def test_wandb_sync_uploads_the_offline_run(tmp_path: Path, server: Server) -> None:
    record = train_step(tmp_path)
    track.mirror_step(record)
    (log,) = transaction_logs(record)
    command = [sys.executable, "-m", "wandb", "sync", str(log.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert_whole_curve(server)
    count = len(server.queries)
    assert track.main(["sync", f"runs={tmp_path}", "track=online"]) == 0  # it knows that wandb did it
    assert len(server.queries) == count


def test_sync_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_step(tmp_path, "train-1", "off")
    make_step(tmp_path, "mixture", "mixture-1", FILES)
    (tmp_path / "steps" / "open-1").mkdir()
    (tmp_path / "sweeps" / "demo").mkdir(parents=True)
    write_json(tmp_path / "sweeps" / "demo" / "plan.json", {"steps": ["mixture-1", "open-1", "never-1"]})
    assert track.main(["sync", f"runs={tmp_path}", "sweep=demo", "track=offline"]) == 0
    assert capsys.readouterr().out == "mixture-1: written offline\n1 done steps, 1 written offline\n"
    (tmp_path / "steps" / "mixture-1" / "summary.json").unlink()
    assert track.main(["sync", f"runs={tmp_path}", "track=offline"]) == 1
    out, err = capsys.readouterr()
    assert out == "mixture-1: failed\ntrain-1: written offline\n2 done steps, 1 failed, 1 written offline\n"
    assert err.startswith("mixture-1: no W&B run: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["push"], ["sync", "now"], ["sync", "track=off"], ["sync", "color=red"], ["sync", "runs=/nowhere"]]
)
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert track.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("sftdiff.track: ")


def test_the_service_ends_with_the_process(tmp_path: Path) -> None:
    train_step(tmp_path, "one")
    train_step(tmp_path, "two")
    command = [sys.executable, "-m", "sftdiff.track", "sync", f"runs={tmp_path}", "track=offline"]
    root = Path(track.__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == "" and out.endswith("2 done steps, 2 written offline\n")
    assert not services_of(process.pid)


def test_import_needs_neither_wandb_nor_hydra() -> None:
    code = "import sys, sftdiff.track; print([m for m in ('wandb', 'hydra', 'torch', 'launch', 'pyarrow') if m in sys.modules])"
    root = Path(track.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
