"""What trains: packed batches in a fixed order, and transformers' Trainer with the loss on answer tokens alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import Trainer

from sftdiff.pack import Row, fill_sequences, split_step

IGNORED = -100


class PackedSteps(Dataset[dict[str, torch.Tensor]]):
    """The micro-batches of a whole training in order: item (step * micro_batches + micro) * ranks + rank."""

    def __init__(self, steps: list[list[Row]], parts: int, pack_length: int | None, pad_id: int) -> None:
        self.batches = [part for rows in steps for part in split_step(rows, parts)]
        self.pack_length, self.pad_id = pack_length, pad_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = self.batches[index]
        sequences = fill_sequences(rows, self.pack_length) if self.pack_length else [[row] for row in rows]
        return collate(sequences, self.pad_id)


def collate(sequences: list[list[Row]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return input_ids, position_ids and labels, each (sequences, longest).

    Positions restart with each conversation, from which transformers builds the mask that keeps conversations apart. A label lies
    at the position that predicts it (shifted already). Padding at the end counts as a conversation of its own.
    """
    length = max(sum(len(r.input_ids) for r in sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), length), pad_id)
    position_ids = torch.zeros((len(sequences), length), dtype=torch.long)
    labels = torch.full((len(sequences), length), IGNORED)
    for k, sequence in enumerate(sequences):
        start = 0
        for row in sequence:
            ids = torch.tensor(row.input_ids)
            end = start + len(ids)
            input_ids[k, start:end] = ids
            position_ids[k, start:end] = torch.arange(len(ids))
            labels[k, start + row.prompt_length - 1 : end - 1] = ids[row.prompt_length :]
            start = end
        position_ids[k, start:] = torch.arange(length - start)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


class AnswerLogits:
    """Lets the output layer see only the positions that carry loss: the logits of the others are the memory limit.

    A pre-hook on the output embedding works for every architecture and under ZeRO, and stays inside autocast.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.mask: torch.Tensor | None = None
        head = model.get_output_embeddings()  # type: ignore[operator]
        head.register_forward_pre_hook(self._select)

    def _select(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return None if self.mask is None else (inputs[0][self.mask], *inputs[1:])


class SftTrainer(Trainer):
    """Trainer with the loss on answer tokens, as a mean over all answer tokens of the optimizer step."""

    def __init__(self, *args: Any, answers: AnswerLogits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answers = answers
        self.model_accepts_loss_kwargs = False
        self.compute_loss_func = lambda *_, **__: None  # makes Trainer count the step's labels; compute_loss is ours
        self._loss_shifts_labels = False  # ours are shifted already: the first position counts as well

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        self.answers.mask = labels != IGNORED
        if not self.answers.mask.any():  # a filler batch: keep the graph, without a contribution
            self.answers.mask[:, 0] = True
            labels[:, 0] = 0
            weight = 0.0
        else:
            weight = 1.0
        logits = model(**inputs, use_cache=False).logits
        total = F.cross_entropy(logits.float(), labels[self.answers.mask], reduction="sum") * weight
        # Gradients are averaged over ranks, while the mean is over the answer tokens of all ranks.
        loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the order is decided already
