"""Hugging Face's Trainer as a job to be measured: the same packs from the same weights.

T = tokens of one pack.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from measured import Job
from steps import BETAS, CLIP_NORM, EPS, LR, WEIGHT_DECAY, Watch, Work

IGNORE = -100
ROWS, FLATTENED, OWN_ATTENTION = KINDS = ("rows", "flattened", "own-attention")
"""Packs as rows; padding-free, by the library's own collator; the latter with an attention function written for it."""


def prepare_peer(work: Work, kind: str) -> Job:
    """Hugging Face's Trainer with documents isolated by their positions, optimizer and schedule as ours."""
    import torch
    from transformers import GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils import logging

    torch.set_num_threads(work.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if kind == OWN_ATTENTION:
        _register_attention(OWN_ATTENTION)
    attention = OWN_ATTENTION if kind == OWN_ATTENTION else "sdpa"
    model = GPTNeoXForCausalLM.from_pretrained(work.weights, attn_implementation=attention, dtype=torch.float32)
    model.config.use_cache = False  # with a cache, documents in a pack would see each other
    watch = Watch()
    losses: list[list[float]] = []

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.tick()
            losses.append([])

    class Recording(Trainer):
        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            losses[-1].append(float(loss))
            return loss

    arguments = TrainingArguments(
        output_dir=str(work.scratch / "peer"),
        per_device_train_batch_size=work.micro_batch_packs,
        gradient_accumulation_steps=work.batch_packs // work.micro_batch_packs,
        max_steps=work.num_steps,
        max_grad_norm=CLIP_NORM,
        lr_scheduler_type="constant",
        learning_rate=LR,
        bf16=work.precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # Given ready: the Trainer's own would leave biases and norms without weight decay and so do other work.
    optimizer = torch.optim.AdamW(model.parameters(), LR, BETAS, EPS, WEIGHT_DECAY, fused=True)
    trainer = Recording(
        model,
        arguments,
        data_collator=_collator(kind),
        train_dataset=_packs(work),
        optimizers=(optimizer, None),
        callbacks=[Ticks()],
    )
    trainer.remove_callback(PrinterCallback)

    def describe(_: Any) -> dict[str, Any]:
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        return watch.described([sum(parts) for parts in losses], norms)

    return trainer.train, describe


def _packs(work: Work) -> list[dict[str, Any]]:
    """The packs in the order in which ours reads them, as tensors in memory."""
    import torch

    from sft.data.batches.sampler import Order
    from sft.data.shards import Shards

    split = Shards.open(work.shards).split("train")
    order = Order(len(split), work.batch_packs, 1.0, 0, work.num_steps)
    numbers = [number for step in range(order.num_steps) for number in order.batch(step)]
    return [{name: torch.from_numpy(row_T) for name, row_T in _row(split[number]).items()} for number in numbers]


def _row(pack: Any) -> dict[str, Any]:
    """One pack with its padding, which is a document of its own that nothing is learned from."""
    ids_T = pack.input_ids_T.astype(np.int64)
    labels_T = np.where(pack.loss_mask_T.astype(bool), ids_T, IGNORE)
    positions_T = np.arange(len(ids_T))
    for start in (*(place.start for _, place in pack.documents()), pack.num_tokens):
        labels_T[start : start + 1] = IGNORE
        positions_T[start:] = np.arange(len(ids_T) - start)
    labels_T[pack.num_tokens :] = IGNORE
    return {"input_ids": ids_T, "labels": labels_T, "position_ids": positions_T}


def _collator(kind: str) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    from transformers import DataCollatorWithFlattening, default_data_collator

    if kind == ROWS:
        return default_data_collator
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=kind == OWN_ATTENTION)
    return lambda rows: flatten([document for row in rows for document in _documents(row)])


def _documents(row: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The documents of a row; its padding is dropped."""
    starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
    for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
        yield {name: row[name][start:end] for name in ("input_ids", "labels")}


def _register_attention(name: str) -> None:
    """Give the library what it has no CPU kernel for: causal attention document by document."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AttentionInterface

    def attend(_module: Any, query: Any, key: Any, value: Any, _mask: Any, scaling: float, **options: Any) -> Any:
        lengths = options["cu_seq_lens_q"].diff().tolist()
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        out = [scaled_dot_product_attention(*part, is_causal=True, scale=scaling) for part in parts]
        return torch.cat(out, dim=2).transpose(1, 2), None

    AttentionInterface.register(name, attend)
