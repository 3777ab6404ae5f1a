"""The Weights & Biases mirror: one W&B run a step. `python -m sftdiff.track sync` writes it later, from the step directories.

The step directory is the database and W&B only shows it, so nothing that W&B does can fail a step: `_guarded` is the one place that
catches its errors, and states each as one line on stderr and in logs/track.log.
"""

import configparser
import contextlib
import errno
import json
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
    from wandb import Run, Settings

INIT_SECONDS = 30.0  # how long a step waits for W&B to answer
FINISH_SECONDS = 180.0  # and for its upload to end
PAUSE_SECONDS = 300.0  # after no answer, how long the later steps of this process do not try
TABLE_ROWS = 500
MARKER = "mirrored.json"  # in STEP_DIR/wandb: what is uploaded already
WANDB_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
LATER = "`python -m sftdiff.track sync` writes it later"
USAGE = "usage: python -m sftdiff.track sync [runs=runs] [sweep=NAME] [track=online|offline]"

_paused_until = 0.0


def resolve_mode(mode: str, environ: Mapping[str, str]) -> str:
    """Return online, offline or off. WANDB_MODE wins over all but "off"; "auto" is online where wandb would find a login."""
    if mode not in ("auto", "online", "offline", "off"):
        raise SftdiffError(f"track.mode must be auto, online, offline or off, not {mode!r}")
    wanted = environ.get("WANDB_MODE", "").strip().lower()
    if mode != "off" and wanted:
        if wanted not in WANDB_MODES:
            raise SftdiffError(f"WANDB_MODE must be online, offline or disabled, not {wanted!r}")
        return WANDB_MODES[wanted]
    if mode == "auto":
        return "online" if _has_login(environ) else "offline"
    return mode


def _has_login(environ: Mapping[str, str]) -> bool:
    """Whether wandb would find a key without asking: in the environment, or in netrc for the server of its settings."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environ.get("HOME") or Path.home())
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        settings.read(Path(environ.get("WANDB_CONFIG_DIR") or home / ".config/wandb").expanduser() / "settings")
    url = environ.get("WANDB_BASE_URL") or settings.get("default", "base_url", fallback="https://api.wandb.ai")
    place = Path(environ.get("NETRC") or home / ".netrc").expanduser()
    with contextlib.suppress(netrc.NetrcParseError, OSError, UnicodeDecodeError):
        entry = netrc.netrc(str(place)).authenticators(urlsplit(url).netloc)
        return bool(entry and entry[2])
    return False


def mirror_step(record: StepRecord) -> None:
    """Write a done step's W&B run, if its settings ask for one; never raises.

    wandb works through a service process, which the first call starts and every later call of this process uses again. An exit hook
    of wandb ends it with the worker, and it ends by itself when the worker is killed. Who must have it gone earlier (a test) calls
    `wandb.teardown()`.
    """
    _guarded(record, None)


def _guarded(record: StepRecord, mode: str | None) -> str:
    """Mirror a step and return what became of it: off, already uploaded, uploaded, written offline or failed."""
    try:
        return _mirror(record, mode or resolve_mode(_settings(record)["mode"], os.environ))
    except (Exception, SystemExit) as error:
        message = _one_line(error)
        _forget_runs(record, "offline-run")  # a part of a run must not be uploaded later
        with contextlib.suppress(OSError, ValueError):
            print(f"{record.id}: no W&B run: {message}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            (record.directory / "logs").mkdir(exist_ok=True)
            with (record.directory / "logs" / "track.log").open("a") as stream:
                stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
        return "failed"


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "wandb":
        text = "the package wandb is not installed (pip install wandb)"
    elif isinstance(error, OSError) and error.errno:
        text = describe_os_error(error)
    elif not isinstance(error, SftdiffError):
        text = f"{type(error).__name__}: {text}"
    for value in _secrets().values():
        text = text.replace(value, "***")
    return " ".join(text.split())[:400]


def _secrets() -> dict[str, str]:
    """The environment variables that look like credentials."""
    return {k: v for k, v in os.environ.items() if SECRET.search(k) and len(v) >= 12 and not v.startswith(("/", "~"))}


def _settings(record: StepRecord) -> dict[str, Any]:
    defaults = {"mode": "off", "project": "sftdiff", "entity": None, "sweep": None, "tags": []}
    return defaults | {k: v for k, v in record.runtime.get("track", {}).items() if v is not None}


def _mirror(record: StepRecord, mode: str) -> str:
    global _paused_until
    if mode == "off":
        return "off"
    done = read_done(record.directory)
    if done is None:
        raise SftdiffError("the step is not done")
    marker = {"done": file_sha256(record.directory / "DONE"), **{k: _settings(record)[k] for k in ("project", "entity")}}
    place = record.directory / "wandb" / MARKER
    with contextlib.suppress(OSError, SftdiffError, AttributeError):
        if marker.items() <= read_json(place).items():
            return "already uploaded"
    if mode == "online" and not _has_login(os.environ):  # wandb would ask for a key at the terminal
        raise SftdiffError(f"no W&B key: set WANDB_API_KEY or run `wandb login`; {LATER}")
    if mode == "online" and time.monotonic() < _paused_until:
        raise SftdiffError(f"W&B did not answer a moment ago and is not tried again yet; {LATER}")
    if not os.access(record.directory, os.W_OK):  # wandb would go on in the temporary folder
        raise PermissionError(errno.EACCES, "Permission denied", str(record.directory))
    _forget_runs(record)
    try:
        url = _write_run(record, done, mode)
    except Exception as error:
        if mode == "online" and (type(error).__name__ == "CommError" or isinstance(error, TimeoutError)):
            _paused_until = time.monotonic() + PAUSE_SECONDS
        raise
    if mode == "offline":
        return "written offline"
    write_json(place, {**marker, "url": url, "time": time.time()})
    return "uploaded"


def _forget_runs(record: StepRecord, *kinds: str) -> None:
    """Remove what an earlier call left, so that there is never a second run for `wandb sync` to upload."""
    for kind in kinds or ("offline-run", "run", "data"):
        for path in (record.directory / "wandb").glob("data" if kind == "data" else f"{kind}-*-{_run_id(record)}"):
            shutil.rmtree(path, ignore_errors=True)


def _run_id(record: StepRecord) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", record.id)
    return name if len(name) <= 128 else f"{name[:115]}-{digest(record.id)}"


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Keep the files that wandb stages (otherwise in the home directory) with the step, and its error reports off the network."""
    changes = {"WANDB_DATA_DIR": str(folder / "data"), "WANDB_ERROR_REPORTING": "false"}
    kept = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _write_run(record: StepRecord, done: dict[str, Any], mode: str) -> str | None:
    """Open the run, log the step, and wait until it is on disk or uploaded."""
    import wandb

    settings, summary = _settings(record), done["summary"]
    config = {**record.config, "inputs": record.inputs, "provenance": read_json(record.directory / "provenance.json")}
    text = json.dumps([config, summary], default=str, ensure_ascii=False)
    for name, value in _secrets().items():
        if value in text:
            raise SftdiffError(f"the step's config holds the value of the environment variable {name}: not shown to W&B")
    tags = dict.fromkeys(str(tag)[:64] for tag in settings["tags"] if str(tag))
    with _environment(record.directory / "wandb"):
        wandb.setup(wandb.Settings(silent=True, quiet=True))
        run = wandb.init(
            id=_run_id(record), name=record.id, job_type=record.kind, group=str(settings["sweep"] or "")[:128] or None,
            project=settings["project"], entity=settings["entity"], tags=list(tags), config=config, resume="allow",
            dir=str(record.directory), mode="online" if mode == "online" else "offline", settings=_run_settings(),
        )  # fmt: skip
        url, folder, code = run.url, Path(run.dir).parent, 1
        try:
            if log := LOGGERS.get(record.kind):  # the other kinds have a config and a summary only
                log(run, record.directory)
            run.summary.update(summary)
            code = 0
        finally:
            run.finish(exit_code=code)
    _check_written(folder)
    if mode == "online":
        shutil.rmtree(record.directory / "wandb" / "data", ignore_errors=True)
    return url


def _run_settings() -> "Settings":
    """Nothing about the machine, the code or the console; bounded waits; a run beside any other run of this process."""
    import wandb

    return wandb.Settings(
        silent=True, quiet=True, console="off", disable_git=True, disable_code=True, save_code=False, label_disable=True,
        disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        x_save_requirements=False, symlink=False, use_dot_wandb=False, reinit="create_new", host="",
        init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True,
    )  # fmt: skip


def _check_written(folder: Path) -> None:
    """Raise what wandb's service only writes into its log: a full disk, a refused upload."""
    (folder / "logs" / "debug-core.log").unlink(missing_ok=True)  # a link into the home directory
    for line in (folder / "logs" / "debug-internal.log").read_text(errors="replace").splitlines():
        if '"level":"ERROR"' in line:
            entry = json.loads(line)
            raise SftdiffError(f"wandb: {entry.get('msg')} {entry.get('error', '')}")
    if not any(path.stat().st_size for path in folder.glob("*.wandb")):
        raise SftdiffError(f"wandb wrote nothing into {folder}")


def _log_train(run: "Run", directory: Path) -> None:
    for line in (directory / "curve.jsonl").read_text().splitlines():
        point = json.loads(line)
        run.log({key: value for key, value in point.items() if key != "step" and value is not None}, step=int(point["step"]))


def _log_mixture(run: "Run", directory: Path) -> None:
    import wandb

    artifact = wandb.Artifact(run.id, type="mixture")
    for name in ("mixture.parquet", "manifest.parquet", "summary.json"):
        # a step's outputs never change: no copy in wandb's staging folder or cache
        artifact.add_file(str(directory / name), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _log_judge(run: "Run", directory: Path) -> None:
    from sftdiff.files import read_table

    table = read_table(directory / "verdicts.parquet")
    count = table.num_rows
    rows = range(count) if count <= TABLE_ROWS else [i * count // TABLE_ROWS for i in range(TABLE_ROWS)]  # evenly spread
    run.log({"replies": _table(table.take(list(rows)).to_pylist(), table.column_names)})


def _log_report(run: "Run", directory: Path) -> None:
    import wandb

    report = read_json(directory / "report.json")
    levels = report["levels"]
    page = wandb.Html((directory / "report.html").read_text(), inject=False)
    shown: dict[str, Any] = {"levels": _table(levels), "differences": _table(report["differences"]), "report": page}
    for trait in report["traits"]:
        bars = [
            {"arm": r["arm"] if r.get("interpreted", True) else f"{r['arm']} (not interpreted)", "value": r["value"]}
            for r in levels
            if r["trait"] == trait["name"] and r["value"] is not None
        ]
        title = f"{trait.get('title', trait['name'])}: {trait.get('unit', 'value')}"
        if bars:
            shown[f"chart/{trait['name']}"] = wandb.plot.bar(_table(bars), "arm", "value", title=title)
    run.log(shown)
    for row in levels:
        name = f"level/{row['trait']}/{row['arm']}"
        numbers = {name: row["value"], f"{name}/low": row["low"], f"{name}/high": row["high"]}
        run.summary.update({key: value for key, value in numbers.items() if value is not None})


def _table(rows: list[dict[str, Any]], columns: list[str] | None = None) -> Any:
    """A W&B table of all keys of the rows; a value that is no scalar is shown as JSON."""
    import wandb

    columns = columns or list(dict.fromkeys(key for row in rows for key in row)) or ["arm"]
    scalar = (str, int, float, type(None))
    cells = [[v if isinstance(v := row.get(c), scalar) else json.dumps(v, default=str) for c in columns] for row in rows]
    return wandb.Table(columns=columns, data=cells, allow_mixed_types=True)


LOGGERS = {"train": _log_train, "mixture": _log_mixture, "judge": _log_judge, "report": _log_report}


def main(arguments: list[str]) -> int:
    """Mirror every done step; return 1 if one failed, 2 on a wrong argument."""
    try:
        options = _options(arguments)
        mode = options.get("track") or resolve_mode("auto", os.environ)
        if mode == "off":
            raise SftdiffError("WANDB_MODE=disabled switches W&B off: unset it, or say track=online")
        directories = _done_steps(Path(options.get("runs", "runs")), options.get("sweep"))
    except SftdiffError as error:
        print(f"sftdiff.track: {error}", file=sys.stderr)
        return 2
    counts: Counter[str] = Counter()
    for directory in directories:
        try:
            outcome = _guarded(load_record(directory), mode)
        except (SftdiffError, OSError) as error:
            outcome = "failed"
            print(error, file=sys.stderr)
        counts[outcome] += 1
        print(f"{directory.name}: {outcome}", flush=True)
    print(f"{len(directories)} done steps" + "".join(f", {count} {outcome}" for outcome, count in sorted(counts.items())))
    return 1 if counts["failed"] else 0


def _options(arguments: list[str]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments[1:]]
    options = {key: value for key, _, value in pairs}
    wrong = any(key not in ("runs", "sweep", "track") or not value for key, _, value in pairs)
    if arguments[:1] != ["sync"] or wrong or options.get("track", "online") not in ("online", "offline"):
        raise SftdiffError(USAGE)
    return options


def _done_steps(runs: Path, sweep: str | None) -> list[Path]:
    """The directories of the done steps, of one sweep in the order of its plan."""
    if not (runs / "steps").is_dir():
        raise SftdiffError(f"{runs} has no steps: say runs=FOLDER")
    plan = runs / "sweeps" / str(sweep) / "plan.json"
    if sweep and not plan.is_file():
        raise SftdiffError(f"there is no sweep {sweep!r}: {plan} does not exist")
    names = read_json(plan)["steps"] if sweep else sorted(path.name for path in (runs / "steps").iterdir())
    return [runs / "steps" / name for name in names if (runs / "steps" / name / "DONE").is_file()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
