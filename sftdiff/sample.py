"""The sample step: a model's replies to a trait's scenarios, as an Inspect log and as replies.parquet.

Each reply is in a journal as soon as it is made: after a kill the same step goes on with the replies that are missing.
"""

import gc
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, get_model

from sftdiff.backend import LocalModel, quiet_inspect, vllm_engine, vllm_is_usable
from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.hosted import Hosted, hosted_config, hosted_model
from sftdiff.identity import canonical, digest
from sftdiff.journal import Journal
from sftdiff.loading import Loadable, find_model, load_for_sampling
from sftdiff.local_teacher import VLLM_WINDOW, end_of_turn
from sftdiff.pace import Pace
from sftdiff.records import read_json
from sftdiff.replies import REPLY_SCHEMA
from sftdiff.steps import Step
from sftdiff.traits import Trait, load_trait
from sftdiff.traits.tasks import replies, trait_task

MOST_FAILURES = 20  # conversations with a hosted model: then it is taken to be gone


def run_sample(step: Step) -> dict[str, Any]:
    """Sample every reply of one trait's scenarios and controls from one model."""
    config = step.config
    trait = load_trait(config["trait"], config["suite"], config["scenarios"])
    total = sum(len(s.turns) for s in (*trait.scenarios, *trait.controls)) * config["samples"]
    name = read_json(step.input("model") / "student.json").get("api") if _is_student(step.input("model")) else None
    backend = "api" if name else _backend(config)
    folder = step.directory / "checkpoints"
    with Journal(folder / f"{digest(canonical([step.read, backend]))}.jsonl") as journal:
        resumed = len(journal)
        pace = Pace(step.progress, total, resumed)
        hosted = hosted_model(name, step.record.runtime, hosted_config(config)) if name else None
        model, made = (hosted.model, {"model": name}) if hosted else _local_model(step, backend, pace)
        log = _play(step, trait, model, journal, pace, hosted)
    rows = reply_rows(log)
    if len(rows) != total:
        raise SftdiffError(f"{step.record.id}: {len(rows)} of {total} replies were sampled: run the same command again")
    write_rows(step.directory / "replies.parquet", rows, REPLY_SCHEMA)
    shutil.rmtree(folder)
    summary = {"replies": len(rows), "resumed": resumed, "cut_share": sum(row["cut"] for row in rows) / len(rows)}
    if isinstance(api := model.api, LocalModel):
        made |= {"new_tokens": api.generated_tokens}
        made |= {"tokens_per_second": round(api.generated_tokens / max(api.generate_seconds, 1e-9), 1)}
    return summary | {"backend": backend} | made


def _is_student(directory: Path) -> bool:
    return (directory / "student.json").is_file()


def _backend(config: dict[str, Any]) -> str:
    """Return what generates here: transformers or vllm."""
    wanted = str(config.get("backend", "transformers"))
    return wanted if wanted != "auto" else "vllm" if vllm_is_usable() else "transformers"


def _local_model(step: Step, backend: str, pace: Pace) -> tuple[Model, dict[str, Any]]:
    """Load the step's model and check that it is what it should be; return it and what was checked."""
    config, found = step.config, find_model(step)
    loaded = load_for_sampling(found.student, found.trained, found.content, config["precision"])
    tokenizer = found.tokenizer
    end = tokenizer.eos_token_id if found.eos_is_end else end_of_turn(tokenizer, loaded.ends_with)
    batch = {"tokenizer": tokenizer, "end": end, "on_finished": pace.add}
    if backend == "vllm":
        size, provider = VLLM_WINDOW, "sftdiff_vllm"
        loaded = vllm_engine(_vllm_folder(step, found, loaded), config["precision"])
    else:
        size, provider = step.record.runtime["batch_size"], "sftdiff"
    settings = {k: config[k] for k in ("temperature", "top_k", "top_p", "max_tokens")}
    name = f"{provider}/{step.record.inputs['model']}"
    model = get_model(name, config=GenerateConfig(**settings), memoize=False, student=loaded, batch_size=size, **batch)
    return model, {"checked": found.checked}


def _vllm_folder(step: Step, found: Loadable, loaded: Any) -> str:
    """Return a folder for vLLM, with an adapter merged into its model; the model that was checked leaves memory."""
    folder = found.trained or found.student
    if not (Path(folder) / "config.json").is_file():
        merged = step.directory / "checkpoints" / "merged"
        loaded.save_pretrained(merged)
        found.tokenizer.save_pretrained(merged)
        folder = str(merged)
    load_for_sampling.cache_clear()
    del loaded
    gc.collect()
    return folder


def _play(step: Step, trait: Trait, model: Model, journal: Journal, pace: Pace, hosted: Hosted | None) -> EvalLog:
    """Play all conversations through Inspect. Raise SftdiffError if one of them has no reply; those that are there are kept."""
    config = step.config
    key = f"{config['seed']}:{step.record.inputs['model']}"
    limits: dict[str, Any] = {"max_samples": 10_000, "fail_on_error": True}
    if hosted:
        size = step.record.runtime["concurrency"]
        limits = {"max_samples": size, "max_connections": size, "fail_on_error": MOST_FAILURES}
    on_reply = pace.add if hosted else lambda: None  # a local model tells it itself, as each reply ends
    asking = hosted.asking if hosted else nullcontext
    with quiet_inspect():
        log = inspect_eval(
            trait_task(trait, config["samples"], model.config, key, journal, on_reply, asking),
            model=model,
            score=False,
            display="none",
            log_dir=str(step.directory / "inspect"),
            log_format="eval",
            log_level="warning",
            log_realtime=False,  # it copies every event into a database; the journal keeps what is done
            retry_on_error=0,
            metadata={"step": step.record.id},
            **limits,
        )[0]
    failed = [s for s in log.samples or [] if s.error]
    if failed and hosted:
        shutil.rmtree(step.directory / "inspect")  # providers repeat a key in their errors
        if hosted.refused:
            raise SftdiffError(hosted.refused)
        reason = hosted.without_key(_reason(failed[0].error.message if failed[0].error else ""))
        raise SftdiffError(
            f"{step.record.id}: {len(failed)} of {len(log.samples or [])} conversations have no reply; the first is scenario "
            f"{failed[0].id}, sample {failed[0].epoch}: {reason}. What was sampled is kept; the same command goes on from there"
        )
    if log.status != "success":
        raise SftdiffError(f"{step.record.id}: sampling failed: {log.error.message if log.error else log.status}")
    return log


def _reason(message: str) -> str:
    """Return what a provider said, without the copy of the request that Inspect puts before it."""
    said = message.replace("\\n", "\n").strip().rpartition("\n\n")[2]
    return " ".join(said.replace("\\", "").split()).rstrip("'\").")


def reply_rows(log: EvalLog) -> list[dict[str, Any]]:
    """Return one row a reply, in a fixed order."""
    rows = []
    for sample in log.samples or []:
        for turn, (prompt, reply) in enumerate(replies(sample.messages)):
            cut = sample.store.get(f"stop_{turn}") == "max_tokens"
            row = {"scenario": str(sample.id), "sample": sample.epoch, "turn": turn, "prompt": prompt, "reply": reply}
            rows.append(row | {"cut": cut})
    return sorted(rows, key=lambda r: (r["scenario"], r["sample"], r["turn"]))
