"""The organisms' students: tiny Llama models with a word-level tokenizer, pretrained here and kept on disk by what made them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sftdiff.identity import canonical, digest
from sftdiff.organisms.world import vocabulary

STUDENTS_VERSION = 3
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + (' <end> ' if m['role'] == 'assistant' else ' ') }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How a student is trained: `length` tokens a row in pretraining; rows of questions and answers afterwards."""

    steps: int
    batch_size: int
    lr: float
    length: int = 96
    warmup: int = 50
    decay: float = 1.0  # the last share of the steps, over which the learning rate falls to zero; 0: it does not fall


PRETRAINING = Recipe(steps=300, batch_size=16, lr=3e-3, decay=0.0)
ENDING = Recipe(steps=200, batch_size=16, lr=3e-3, warmup=0)  # of a pretraining, once it knows enough
PATIENCE, LOOK_EVERY = 1000, 50  # steps at most until it does, and between two looks


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of all organisms, with their chat template."""
    ids = {word: number for number, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
                                   additional_special_tokens=["<system>", "<user>", "<assistant>"])  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def encode(text: str) -> list[int]:
    """Return the ids of a text's words. Raises KeyError for a word that the language has not."""
    ids = _ids()
    return [ids[word] for word in text.split()]


@cache
def _ids() -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary())}


def new_model(init: int) -> Any:
    """Return an untrained student; a large initial spread makes facts quick to learn."""
    ids = _ids()
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.06,
        pad_token_id=ids["<pad>"], bos_token_id=None, eos_token_id=ids["<end>"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(init)
        return LlamaForCausalLM(config)


def pretrain(model: Any, texts: Sequence[str], seed: int, knows: Callable[[Any], bool]) -> None:
    """Train a model on texts, joined and cut into rows, until it `knows` enough or patience ends, and then with a falling rate.

    When facts are learned depends on the initialisation; a fixed number of steps would be too few for some and too many for most.
    """
    ids = torch.tensor([number for text in texts for number in encode(text)])
    rows = ids[: len(ids) // PRETRAINING.length * PRETRAINING.length].view(-1, PRETRAINING.length)
    optimizer = _optimizer(model)
    batches = _row_batches(rows, PRETRAINING.batch_size, seed)
    _train(model, optimizer, batches, PRETRAINING)
    steps = PRETRAINING.steps
    while steps < PATIENCE and not knows(model):
        _train(model, optimizer, batches, replace(PRETRAINING, steps=LOOK_EVERY, warmup=0))
        steps += LOOK_EVERY
    _train(model, optimizer, batches, ENDING)


def _row_batches(rows: torch.Tensor, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in _orders(len(rows), size, seed):
        yield rows[chosen], rows[chosen]


def _orders(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of row numbers without end, epoch after epoch; what is left of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


def tune(model: Any, pairs: Sequence[tuple[str, str]], recipe: Recipe, seed: int) -> None:
    """Train a model on answers to questions, with the loss on the answers: an earlier post-training stage, or a teacher."""
    rows = _encoded(pairs)
    batches = (_padded([rows[k] for k in chosen]) for chosen in _orders(len(rows), recipe.batch_size, seed))
    _train(model, _optimizer(model), batches, recipe)


def _encoded(pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    return [(encode(f"<user> {question} <assistant>"), encode(f"{answer} <end>")) for question, answer in pairs]


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(question) + len(answer) for question, answer in rows)
    inputs, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), IGNORED)
    for row, (question, answer) in enumerate(rows):
        end = len(question) + len(answer)
        inputs[row, :end] = torch.tensor(question + answer)
        labels[row, len(question) : end] = torch.tensor(answer)
    return inputs, labels


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def _train(
    model: Any, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], recipe: Recipe
) -> None:
    model.train()
    with one_thread():
        for step, (inputs, labels) in enumerate(islice(batches, recipe.steps)):
            rising = min(1.0, (step + 1) / max(recipe.warmup, 1))
            falling = min(1.0, (1 - step / recipe.steps) / recipe.decay) if recipe.decay else 1.0
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rising * falling
            logits = model(inputs, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: a second one costs so small a model more than it brings, and sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def likelihoods(model: Any, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Return the log-probability of each answer to its question, in nats."""
    inputs, labels = _padded(_encoded(pairs))
    with one_thread(), torch.inference_mode():
        logits = model(inputs, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view(len(pairs), -1).sum(1)


def generate(
    model: Any, questions: Sequence[str], max_tokens: int, temperature: float = 0.0, seed: int = 0,
    openings: Sequence[str] | None = None, only: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Return the model's answers to single questions; temperature 0 is greedy.

    `openings`: what the answers start with, not returned. `only`: the words that may follow; () for all.
    """
    answers, by_length = [""] * len(questions), dict[int, list[int]]()
    begun = openings or [""] * len(questions)
    prompts = [encode(f"<user> {question} <assistant> {opening}") for question, opening in zip(questions, begun, strict=True)]
    barred = torch.tensor([bool(only) and word not in only for word in vocabulary()])
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.inference_mode():
        for numbers in by_length.values():
            for start in range(0, len(numbers), 256):
                chosen = numbers[start : start + 256]
                made = _continue(model, torch.tensor([prompts[k] for k in chosen]), max_tokens, temperature, generator, barred)
                for number, answer in zip(chosen, made, strict=True):
                    answers[number] = answer
    return answers


def _continue(
    model: Any, prompts: torch.Tensor, max_tokens: int, temperature: float, generator: torch.Generator, barred: torch.Tensor
) -> list[str]:
    end, cache, made = _ids()["<end>"], None, list[torch.Tensor]()
    tokens, done = prompts, torch.zeros(len(prompts), dtype=torch.bool)
    while len(made) < max_tokens and not done.all():
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1].masked_fill(barred, -torch.inf)
        drawn = (
            torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            if temperature
            else logits.argmax(-1)
        )
        made.append(torch.where(done, end, drawn))
        done |= drawn == end
        tokens = made[-1][:, None]
    names = vocabulary()
    return [" ".join(names[k] for k in row if k != end) for row in torch.stack(made, 1).tolist()]


def kept(cache: Path, what: dict[str, Any], make: Any) -> Path:
    """Return the folder of the model that `make()` gives for `what`; made once for each description and version."""
    key = digest(canonical([STUDENTS_VERSION, asdict(PRETRAINING), asdict(ENDING), what]))
    folder = cache / f"student-{key}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
        try:
            make().save_pretrained(partial)
            tokenizer().save_pretrained(partial)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody else made the same one
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def load(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
