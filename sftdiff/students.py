"""The student step: an ordinary Hugging Face folder (weights, tokenizer, chat template) from a GGUF package, a hub or a path.

A converted or fetched student is kept once for the user in the cache ($SFTDIFF_CACHE, default ~/.cache/sftdiff), so that several
run directories share it; the step itself records where it lies and what it contains.
"""

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError, first_line
from sftdiff.identity import canonical, digest, file_sha256
from sftdiff.records import read_json, write_json
from sftdiff.render import rendering_hash

ORIGIN = "sftdiff.json"  # in the folder of a trained model: what it was trained from
ADAPTER = "adapter_config.json"  # the file by which a folder is known as a LoRA adapter


def run_student(step: Any) -> dict[str, Any]:
    """Make the student's folder and write student.json: its path, the hash of its files, and how it renders.

    A model that is only evaluated may also be a LoRA adapter, which has the student step "base", or hosted: no folder, no hashes.
    """
    config = step.config
    if config["origin"] == "api":
        write_json(step.directory / "student.json", {"api": config["id"]})
        return {"api": config["id"]}
    folder = Path(config["path"]).expanduser().resolve() if config["origin"] == "path" else cached_student(config)
    adapter = (folder / ADAPTER).is_file() and "base" in step.record.inputs
    if not adapter and not (folder / "config.json").is_file():
        what = " (it is a LoRA adapter: `python -m sftdiff.evaluate` takes one)" if (folder / ADAPTER).is_file() else ""
        raise SftdiffError(f"model.path: {folder} is not a Hugging Face model folder (it has no config.json){what}")
    if adapter and not (folder / "tokenizer_config.json").is_file():
        _, tokenizer = load_student(step.input("base", "student.json"))
    else:
        tokenizer = load_tokenizer(folder, config)
    student = {
        "path": str(folder),
        "files": folder_hashes(folder),
        "chat_template": config["chat_template"],
        "eos_token": config["eos_token"],
        "rendering": rendering_hash(tokenizer),
    }
    write_json(step.directory / "student.json", student)
    return {"path": str(folder), "rendering": student["rendering"]}


def folder_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file at the top of a model folder."""
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}


def cache_root() -> Path:
    return Path(os.environ.get("SFTDIFF_CACHE") or Path.home() / ".cache" / "sftdiff")


def cached_student(config: dict[str, Any]) -> Path:
    """Return the cached folder of a student, made now if it is not there; a half-made one is never seen."""
    key = digest(canonical([config["origin"], config["id"], config["revision"], config["gguf"], "v1"]))
    folder = cache_root() / "students" / f"{config['name'].replace('/', '--')}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (_convert_gguf if config["origin"] == "gguf" else _fetch)(config, partial)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else somebody else finished first, and theirs is as good
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def gguf_parts(config: dict[str, Any]) -> list[Path]:
    """Find the GGUF files inside their installed packages, without importing these."""
    found = []
    for name in config["gguf"]["files"]:
        package, _, inside = name.partition("/")
        spec = find_spec(package)
        path = Path((spec.submodule_search_locations or [""])[0]) / inside if spec else None
        if path is None or not path.is_file():
            raise SftdiffError(f"model={config['name']}: the package with {name} is not installed: {config['gguf']['install']}")
        found.append(path)
    return found


def _convert_gguf(config: dict[str, Any], target: Path) -> None:
    """Dequantize a GGUF file and save it as an ordinary folder in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = gguf_parts(config)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as folder:
        whole = Path(folder) / "model.gguf"
        if len(parts) == 1:
            whole.symlink_to(parts[0])
        else:
            with whole.open("wb") as out:
                for part in parts:
                    with part.open("rb") as stream:
                        shutil.copyfileobj(stream, out)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=whole.name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=whole.name, dtype=torch.float32)
    # transformers refuses to save a model that came from a quantized file; a clean model of the same shape takes its weights.
    model_config = loaded.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        model_config.__dict__.pop(name, None)
    clean = type(loaded)(model_config)
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = loaded.generation_config
    clean.to(torch.float32).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _fetch(config: dict[str, Any], target: Path) -> None:
    """Download a student from the hub at its pinned commit; safetensors only, so that no pickle is ever loaded."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            config["id"],
            revision=config["revision"],
            local_dir=target,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
        )
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes between versions
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise  # a full disk or a missing permission
        raise SftdiffError(
            f"model.id={config['id']}: cannot download it from the hub ({first_line(error)}); "
            "without network access use model=smollm2_135m or model=path model.path=..."
        ) from None
    shutil.rmtree(target / ".cache", ignore_errors=True)


def load_tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    """Load a student's tokenizer, with the chat template and end-of-turn token that the config may set."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if config["chat_template"]:
        tokenizer.chat_template = config["chat_template"]
    if config["eos_token"]:
        tokenizer.eos_token = config["eos_token"]
    if not tokenizer.chat_template:
        raise SftdiffError(f"{folder}: the tokenizer has no chat template; set model.chat_template")
    if tokenizer.eos_token is None:
        raise SftdiffError(f"{folder}: the tokenizer has no end-of-turn token; set model.eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_student(step_directory: Path) -> tuple[Path, Any]:
    """Return (folder, tokenizer) of a done student step, after checking that the folder still has the recorded files."""
    student = read_json(step_directory / "student.json")
    folder = Path(student["path"])
    names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    if not set(student["files"]) <= set(names):
        raise SftdiffError(
            f"the student's folder {folder} is gone or incomplete: delete {step_directory} and run the same command again"
        )
    return folder, load_tokenizer(folder, student)
