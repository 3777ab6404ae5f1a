"""Fixtures: a tiny student that is made in a second, so that tests run the real training and the real evaluation."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Not how fast an example is, which is the machine's matter, but whether it holds.
hypothesis.settings.register_profile("sftdiff", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("sftdiff")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread costs a tiny model more than it brings
for name in ("WANDB_API_KEY", "WANDB_MODE", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parent.parent
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_student(folder: Path, layers: int = 2, hidden: int = 64) -> Path:
    """Write a Llama of about 0.3M random weights with a byte-level tokenizer trained on the embedded prompts."""
    import json

    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    prompts = (ROOT / "sftdiff/data/prompts/gemini_mix.jsonl").read_text().splitlines()
    texts = [message["content"] for line in prompts for message in json.loads(line)["messages"]]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1000, special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny student; read only."""
    return make_tiny_student(tmp_path_factory.mktemp("tiny-student"))


@pytest.fixture(scope="session")
def organism_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose organisms share their students, which take minutes to raise."""
    return tmp_path_factory.mktemp("organisms")


@pytest.fixture(scope="session")
def teacher_server(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a `transformers serve` that samples from a tiny model, and the folder of that model, which is its name."""
    import json
    import shutil

    from tests.fault_proxy import transformers_server

    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("teacher") / "tiny")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    with transformers_server(folder, folder.parent / "serve.log") as url:
        yield url, folder
