"""The Weights & Biases mirror: one W&B run a step. `python -m sftdiff.track sync` writes it later, from the step directories.

The step directory is the database and W&B only shows it, so nothing that W&B does can fail a step: `_guarded` is the one place
that catches its errors, and states each as one line on stderr and in logs/track.log.
"""

import configparser
import contextlib
import json
import logging
import netrc
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.identity import digest, file_sha256
from sftdiff.records import StepRecord, load_record, read_done, read_json, write_json

if TYPE_CHECKING:
    from wandb import Run

INIT_SECONDS = 30.0  # how long a step waits for W&B to answer
FINISH_SECONDS = 180.0  # and for its upload to end
PAUSE_SECONDS = 300.0  # after no answer, how long the later steps of this process do not try
TABLE_ROWS = 500
# Nothing about the machine, the code or the console, and a run beside any other run of this process.
RUN_SETTINGS: dict[str, Any] = {
    "silent": True, "quiet": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False,
    "label_disable": True, "disable_job_creation": True, "x_disable_stats": True, "x_disable_meta": True, "symlink": False,
    "x_disable_machine_info": True, "x_save_requirements": False, "use_dot_wandb": False, "reinit": "create_new",
    "finish_timeout_raises": True,
}  # fmt: skip
LATER = "`python -m sftdiff.track sync` writes it later"
USAGE = "usage: python -m sftdiff.track sync [runs=runs] [sweep=NAME] [track=online|offline]"
_paused_until = 0.0


def resolve_mode(mode: str, environ: Mapping[str, str]) -> str:
    """Return online, offline or off. WANDB_MODE wins over all but "off"; "auto" is online where wandb would find a login."""
    if mode != "off" and (mode := environ.get("WANDB_MODE") or mode):
        mode = {"run": "online", "dryrun": "offline", "disabled": "off"}.get(mode, mode)
    if mode not in ("auto", "online", "offline", "off"):
        raise SftdiffError(f"track (or WANDB_MODE, if set) must be auto, online, offline or off, not {mode!r}")
    return mode if mode != "auto" else "online" if _has_login(environ) else "offline"


def _has_login(environ: Mapping[str, str]) -> bool:
    """Whether wandb would find a key without asking: in the environment, or in netrc for the server of its settings."""
    home = Path(environ.get("HOME") or Path.home())
    settings, entry = configparser.ConfigParser(interpolation=None), None
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        settings.read(Path(environ.get("WANDB_CONFIG_DIR") or home / ".config/wandb").expanduser() / "settings")
    url = environ.get("WANDB_BASE_URL") or settings.get("default", "base_url", fallback="https://api.wandb.ai")
    with contextlib.suppress(netrc.NetrcParseError, OSError, UnicodeDecodeError):
        place = Path(environ.get("NETRC") or home / ".netrc").expanduser()
        entry = netrc.netrc(str(place)).authenticators(str(urlsplit(url).netloc))
    return bool(environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE") or (entry and entry[2]))


def mirror_step(record: StepRecord) -> None:
    """Write a done step's W&B run, if its settings ask for one; never raises.

    wandb works through a service process, which the first call starts and every later call of this process uses again. An exit
    hook of wandb ends it with the worker, and it ends by itself when the worker is killed; `wandb.teardown()` ends it earlier.
    """
    _guarded(record.directory, None, record)


def complete_mirror(record: StepRecord) -> None:
    """Write the W&B run of a step that was done before, if the process that did it was ended before it could; never raises."""
    with contextlib.suppress(OSError, SftdiffError, AttributeError):
        if read_json(record.directory / "wandb" / "offline.json") == _marker(record):
            return
    _guarded(record.directory, None, record)


def _marker(record: StepRecord) -> dict[str, Any]:
    """What a written run is of: this result, in this project."""
    return {"done": file_sha256(record.directory / "DONE")} | {k: _settings(record)[k] for k in ("project", "entity")}


def _guarded(directory: Path, mode: str | None, record: StepRecord | None = None) -> str:
    """Mirror a step and return what became of it: off, already uploaded, uploaded, written offline or failed."""
    try:
        record = record or load_record(directory)
        mode = mode or resolve_mode(_settings(record)["mode"], os.environ)
        return "off" if mode == "off" else _mirror(record, mode)
    except (Exception, SystemExit) as error:
        message = _one_line(error)
    with contextlib.suppress(OSError, ValueError):
        print(f"{directory.name}: no W&B run: {message}", file=sys.stderr, flush=True)
        (directory / "logs").mkdir(exist_ok=True)
        with (directory / "logs" / "track.log").open("a") as stream:
            stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
    return "failed"


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, SftdiffError) else f"{type(error).__name__}: {error}"
    text = describe_os_error(error) if isinstance(error, OSError) and error.errno else text
    for value in _secrets().values():
        text = text.replace(value, "***")
    return " ".join(text.split())[:400]


def _secrets() -> dict[str, str]:
    """The environment variables that look like credentials."""
    like = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
    return {name: v for name, v in os.environ.items() if like.search(name) and len(v) >= 12 and v[0] not in "/~"}


def _settings(record: StepRecord) -> dict[str, Any]:
    defaults: dict[str, Any] = {"mode": "off", "project": "sftdiff", "entity": None, "sweep": None, "tags": []}
    return defaults | {k: v for k, v in record.runtime.get("track", {}).items() if v is not None}


def _mirror(record: StepRecord, mode: str) -> str:
    global _paused_until
    if (done := read_done(record.directory)) is None:
        raise SftdiffError("the step is not done")
    marker = _marker(record)
    if _is_uploaded(record, marker):
        return "already uploaded"
    if mode == "online" and not _has_login(os.environ):  # wandb would ask for a key at the terminal
        raise SftdiffError(f"no W&B key: set WANDB_API_KEY or run `wandb login`; {LATER}")
    if mode == "online" and time.monotonic() < _paused_until:
        raise SftdiffError(f"W&B refused or did not answer a moment ago and is not tried again yet; {LATER}")
    if not os.access(record.directory, os.W_OK):  # wandb would go on in the temporary folder
        raise SftdiffError(f"no permission to write into {record.directory}")
    _forget_runs(record)
    try:
        _write_run(record, done, mode)
    except BaseException as error:  # also of a job that is being ended
        _forget_runs(record)  # a part of a run must not be uploaded later
        with contextlib.suppress(Exception, SystemExit):
            sys.modules["wandb"].teardown()  # its service may be what failed: the next step starts a new one
        if mode == "online" and (type(error).__name__ == "CommError" or isinstance(error, TimeoutError)):
            _paused_until = time.monotonic() + PAUSE_SECONDS
        raise
    write_json(record.directory / "wandb" / ("mirrored.json" if mode == "online" else "offline.json"), marker)
    return "uploaded" if mode == "online" else "written offline"


def _is_uploaded(record: StepRecord, marker: dict[str, Any]) -> bool:
    """Whether this DONE was uploaded: by an online call, which leaves mirrored.json, or by `wandb sync` of an offline run."""
    folder = record.directory / "wandb"
    with contextlib.suppress(OSError, SftdiffError, AttributeError):
        if marker.items() <= read_json(folder / "mirrored.json").items():
            return True
    synced = folder.glob(f"offline-run-*-{run_id(record)}/*.wandb.synced")
    return any(path.stat().st_mtime_ns > (folder.parent / "DONE").stat().st_mtime_ns for path in synced)


def _forget_runs(record: StepRecord) -> None:
    """Remove what an earlier call left, so that there is never a second run for `wandb sync` to upload."""
    folder, name = record.directory / "wandb", run_id(record)
    for path in (*folder.glob(f"offline-run-*-{name}"), *folder.glob(f"run-*-{name}"), folder / "data"):
        shutil.rmtree(path, ignore_errors=True)


def run_id(record: StepRecord) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", record.id)
    return name if len(name) <= 128 else f"{name[:115]}-{digest(record.id)}"


@contextlib.contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """Keep wandb's staged files (else in the home directory) with the step, its error reports off the network, its log quiet."""
    changes = {"WANDB_DATA_DIR": str(folder / "data"), "WANDB_ERROR_REPORTING": "false"}
    kept, raising = {name: os.environ.get(name) for name in changes}, logging.raiseExceptions
    os.environ.update(changes)
    logging.raiseExceptions = False
    try:
        yield
    finally:
        logging.raiseExceptions = raising
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _write_run(record: StepRecord, done: dict[str, Any], mode: str) -> None:
    """Open the run, log the step, and wait until it is on disk or uploaded."""
    import wandb

    track = _settings(record)
    config = {**record.config, "inputs": record.inputs, "provenance": read_json(record.directory / "provenance.json")}
    text = json.dumps([config, done["summary"]], default=str, ensure_ascii=False)
    if leaked := [name for name, value in _secrets().items() if value in text]:
        raise SftdiffError(f"the step's config holds the value of the environment variable {leaked[0]}: not given to W&B")
    with _surroundings(record.directory / "wandb"):
        wandb.setup(wandb.Settings(silent=True, quiet=True))
        settings = wandb.Settings(**RUN_SETTINGS | {"mode": mode}, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        run = wandb.init(
            id=run_id(record), name=record.id, job_type=record.kind, group=str(track["sweep"] or "")[:128] or None,
            project=track["project"], entity=track["entity"], tags=list(dict.fromkeys(tag[:64] for tag in track["tags"] if tag)),
            config=config, resume="allow", dir=str(record.directory), settings=settings,
        )  # fmt: skip
        folder, code = Path(run.dir).parent, 1
        try:
            if log := LOGGERS.get(record.kind):  # the other kinds have a config and a summary only
                log(run, record.directory)
            run.summary.update(done["summary"])
            code = 0
        finally:
            run.finish(exit_code=code)
    _check_written(folder)


def _check_written(folder: Path) -> None:
    """Raise what wandb's service only writes into its log: a full disk, a refused upload."""
    (folder / "logs" / "debug-core.log").unlink(missing_ok=True)  # a link into the home directory
    for line in (folder / "logs" / "debug-internal.log").read_text(errors="replace").splitlines():
        if re.search(r'"level":"ERROR.*(fatal|failed to (save|write|upload|send|log|create|commit)|giving up)', line):
            raise SftdiffError("wandb: " + " ".join(str(v) for k, v in json.loads(line).items() if k not in ("time", "level")))


def _log_train(run: "Run", directory: Path) -> None:
    for line in (directory / "curve.jsonl").read_text().splitlines():
        point = json.loads(line)
        run.log({key: value for key, value in point.items() if key != "step" and value is not None}, step=int(point["step"]))


def _log_mixture(run: "Run", directory: Path) -> None:
    import wandb

    artifact = wandb.Artifact(run.id, type="mixture")
    for name in ("manifest.parquet", "summary.json"):  # a step's outputs never change: no copy is needed
        artifact.add_file(str(directory.resolve() / name), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _log_judge(run: "Run", directory: Path) -> None:
    from sftdiff.files import read_table

    table = read_table(directory / "verdicts.parquet")
    shown = min(table.num_rows, TABLE_ROWS)
    rows = table.take([i * table.num_rows // shown for i in range(shown)]).to_pylist() if shown else []  # evenly spread
    run.log({"replies": _table(rows, table.column_names)})


def _log_report(run: "Run", directory: Path) -> None:
    import wandb

    report = read_json(directory / "report.json")
    page = wandb.Html((directory / "report.html").read_text(), inject=False)
    shown: dict[str, Any] = {"levels": _table(report["levels"]), "differences": _table(report["differences"]), "report": page}
    bars: dict[str, list[dict[str, Any]]] = {}
    for row in report["levels"]:
        name = f"level/{row['trait']}/{row['arm']}"
        numbers = {name: row["value"], f"{name}/low": row["low"], f"{name}/high": row["high"]}
        run.summary.update({key: value for key, value in numbers.items() if value is not None})
        if row["value"] is not None:
            arm = row["arm"] + ("" if row.get("interpreted", True) else " (not interpreted)")
            bars.setdefault(row["trait"], []).append({"arm": arm, "value": row["value"]})
    for name, title in ((t["name"], f"{t['title']}: {t['unit']}") for t in report["traits"] if t["name"] in bars):
        shown[f"chart/{name}"] = wandb.plot.bar(_table(bars[name]), "arm", "value", title=title)
    run.log(shown)


def _table(rows: list[dict[str, Any]], names: list[str] | None = None) -> Any:
    """A W&B table of all keys of the rows; a value that is no scalar is shown as JSON."""
    import wandb

    columns: list[Any] = names or list(dict.fromkeys(key for row in rows for key in row)) or ["arm"]
    cells = [[json.dumps(v) if isinstance(v := row.get(c), dict | list) else v for c in columns] for row in rows]
    return wandb.Table(columns=columns, data=cells, allow_mixed_types=True)


LOGGERS = {"train": _log_train, "mixture": _log_mixture, "judge": _log_judge, "report": _log_report}


def main(arguments: list[str]) -> int:
    """Mirror every done step; return 1 if one failed, 2 on a wrong argument."""
    try:
        options = dict(argument.split("=", 1) for argument in arguments[1:] if "=" in argument)
        mode = options.get("track") or resolve_mode("auto", os.environ)
        known = set(options) <= {"runs", "sweep", "track"} and len(options) == len(arguments) - 1 and arguments[:1] == ["sync"]
        if not known or mode not in ("online", "offline"):
            raise SftdiffError(f"WANDB_MODE switches W&B off; {USAGE}" if known and mode == "off" else USAGE)
        directories = _done_steps(Path(options.get("runs", "runs")), options.get("sweep"))
    except SftdiffError as error:
        print(f"sftdiff.track: {error}", file=sys.stderr)
        return 2
    counts: Counter[str] = Counter()
    for directory in directories:
        counts[outcome := _guarded(directory, mode)] += 1
        print(f"{directory.name}: {outcome}", flush=True)
    print(", ".join([f"{len(directories)} done steps", *(f"{count} {outcome}" for outcome, count in sorted(counts.items()))]))
    return 1 if counts["failed"] else 0


def _done_steps(runs: Path, sweep: str | None) -> list[Path]:
    """The directories of the done steps, of one sweep in the order of its plan."""
    plan = runs / "sweeps" / str(sweep) / "plan.json"
    if not (place := plan if sweep else runs / "steps").exists():
        raise SftdiffError(f"there is no {place}: say runs=FOLDER, and sweep=NAME of a sweep that was started")
    names = read_json(plan)["steps"] if sweep else sorted(path.name for path in place.iterdir())
    return [runs / "steps" / name for name in names if (runs / "steps" / name / "DONE").is_file()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
