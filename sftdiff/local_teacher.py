"""A teacher that is a model on this machine, through transformers or vLLM; replies are handed on batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from sftdiff.answers import Completion
from sftdiff.endpoint import Request, RequestFailed
from sftdiff.errors import SftdiffError, first_line, one_line
from sftdiff.render import render_prompt

WINDOW_BATCHES = 32  # so many batches are sorted by length together
VLLM_WINDOW = 2048  # requests in one call, which keeps the GPU full and loses little when the process dies
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
REPLY = "reply 7193"  # words of no template
OnResult = Callable[[Request, Completion | RequestFailed], None]


def generate_locally(
    requests: Iterator[Request], teacher: Mapping[str, Any], settings: Mapping[str, Any], on_result: OnResult
) -> None:
    """Generate every request. Raise SftdiffError if the model cannot be loaded."""
    if teacher["origin"] == "vllm":
        _with_vllm(requests, teacher["model"], settings, on_result)
    else:
        _with_transformers(requests, teacher["model"], settings, on_result)


def model_folder(model: Mapping[str, Any], setting: str = "teacher.model") -> Path:
    """Return the folder of a model: a local one, or a hub model at its revision (safetensors only, so that no pickle is read).

    `setting` is the config key that errors name.
    """
    folder = Path(model["id"]).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_absolute() or model["id"].startswith((".", "~")):
        raise SftdiffError(f"{setting}.id: {folder} is not a Hugging Face model folder (it has no config.json)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model["id"], revision=model["revision"], allow_patterns=FILES))
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes between versions
        raise SftdiffError(f"{setting}.id={model['id']}: cannot download it from the hub ({first_line(error)}); "
                           "without network access give a local folder") from None  # fmt: skip


def _windows(requests: Iterator[Request], size: int) -> Iterator[list[Request]]:
    while window := list(islice(requests, size)):
        yield window


def _rendered(tokenizer: Any, window: Sequence[Request], longest: int, on_result: OnResult) -> list[tuple[list[int], Request]]:
    """Return (token ids, request), the longest first; a prompt that cannot be rendered or does not fit is a failed row."""
    fit = []
    for request in window:
        try:
            ids = render_prompt(tokenizer, request.messages)
        except Exception as error:  # templates are code of the model's author: any error is theirs
            on_result(request, RequestFailed(f"the chat template refuses the conversation ({one_line(error)})", transient=False))
            continue
        if len(ids) + request.max_tokens > longest:
            reason = f"{len(ids)} prompt tokens and max_tokens {request.max_tokens} are more than the model's {longest}"
            on_result(request, RequestFailed(reason, transient=False))
        else:
            fit.append((ids, request))
    return sorted(fit, key=lambda pair: -len(pair[0]))


def _with_transformers(
    requests: Iterator[Request], model: Mapping[str, Any], settings: Mapping[str, Any], on_result: OnResult
) -> None:
    from sftdiff.generate import Sampling, generate_batch
    from sftdiff.students import load_tokenizer

    if model["extra"]:
        raise SftdiffError(f"teacher.model.extra: {', '.join(model['extra'])} has no meaning for teacher.origin=transformers")
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder, {"chat_template": None, "eos_token": None})
    loaded, ends = load_model(folder, settings["precision"])
    eos, size = end_of_turn(tokenizer, ends), settings["batch_size"]
    longest = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or 2**31
    for window in _windows(requests, size * WINDOW_BATCHES):
        rendered = _rendered(tokenizer, window, longest, on_result)
        for batch in (rendered[i : i + size] for i in range(0, len(rendered), size)):
            sampling = [Sampling(r.max_tokens, r.temperature or 0.0, r.top_k, 1.0 if r.top_p is None else r.top_p, r.seed or 0)
                        for _, r in batch]  # fmt: skip
            prompts = [ids for ids, _ in batch]
            made = generate_batch(loaded, prompts, sampling, tokenizer.pad_token_id, eos, lambda count: None)
            for (ids, request), tokens in zip(batch, made, strict=True):
                text = tokenizer.decode([t for t in tokens if t != eos], skip_special_tokens=True)
                on_result(request, Completion(text, "", "stop" if eos in tokens else "length", len(ids), len(tokens)))


def load_model(folder: Path, precision: str, setting: str = "teacher.model") -> tuple[Any, list[int]]:
    """Return the model and the tokens with which it says that it ends generation. Raise SftdiffError if a weight is missing."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise SftdiffError(f"{setting}.id: cannot load {folder} ({first_line(error)})") from None
    problems = {k: v for k, v in info.items() if v and k in ("missing_keys", "mismatched_keys", "error_msgs")}
    if problems:
        raise SftdiffError(f"{setting}.id: {folder}: not every weight bound to the model: {problems}")
    ends = loaded.generation_config.eos_token_id
    loaded.generation_config = GenerationConfig()  # its settings are those of the config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval(), ends if isinstance(ends, list) else [ends]


def end_of_turn(tokenizer: Any, ends: Sequence[int]) -> int:
    """Return the token with which the chat template ends a reply: for some models it is not the tokenizer's eos_token."""
    turns = [{"role": "user", "content": "U"}, {"role": "assistant", "content": REPLY}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer(text.rpartition(REPLY)[2], add_special_tokens=False)["input_ids"]
    except Exception:  # templates are code of the model's author; the rows will say what is wrong with it
        after = []
    known = {tokenizer.eos_token_id, *ends}
    return int(next((token for token in after if token in known), tokenizer.eos_token_id))


def _with_vllm(requests: Iterator[Request], model: Mapping[str, Any], settings: Mapping[str, Any], on_result: OnResult) -> None:
    """Generate with vLLM's own batching; `extra` may hold chat_template_kwargs and engine (arguments of vllm.LLM)."""
    if find_spec("vllm") is None:
        raise SftdiffError("teacher.origin=vllm: vLLM is not installed: pip install vllm (it needs a GPU), "
                           "or use teacher.origin=transformers")  # fmt: skip
    vllm = import_module("vllm")
    extra = dict(model["extra"])
    template, engine = extra.pop("chat_template_kwargs", None), extra.pop("engine", {})
    if extra:
        raise SftdiffError(f"teacher.model.extra: {', '.join(extra)} has no meaning for teacher.origin=vllm")
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[settings["precision"]]
    # generation_config="vllm": the teacher's own sampling settings are those of the config
    llm = vllm.LLM(model=str(model_folder(model)), dtype=dtype, generation_config="vllm", **engine)
    longest = llm.llm_engine.model_config.max_model_len
    for window in _windows(requests, VLLM_WINDOW):
        fit = [request for _, request in _rendered(llm.get_tokenizer(), window, longest, on_result)]
        sampling = [
            vllm.SamplingParams(
                max_tokens=r.max_tokens,
                temperature=1.0 if r.temperature is None else r.temperature,
                top_p=1.0 if r.top_p is None else r.top_p,
                top_k=r.top_k or -1,
                seed=r.seed,
            )
            for r in fit
        ]
        conversations = [[dict(m) for m in r.messages] for r in fit]
        outputs = llm.chat(conversations, sampling, use_tqdm=False, chat_template_kwargs=template) if fit else []
        for request, output in zip(fit, outputs, strict=True):
            reply = output.outputs[0]
            counts = len(output.prompt_token_ids), len(reply.token_ids)
            on_result(request, Completion(reply.text, "", reply.finish_reason or "stop", *counts))
