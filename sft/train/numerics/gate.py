"""The numerics gate: before the first step, check on the real weights that this kernel in this precision is correct.

Two forward passes that must agree bit for bit, one per document and, where one process holds all weights, a forward
and backward pass against fp32. The gate leaves no trace: no gradient, no random state, no setting.

Shape letters: T tokens of the pack without padding, S supervised ones among them, D width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from sft.config.model import Precision
from sft.data.batches.batch import IGNORE, Batch, join
from sft.data.shards import Pack, Split
from sft.errors import NumericsError, listed
from sft.model.attention import backend
from sft.model.base import LanguageModel
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.forward import Measure
from sft.train.engine.fsdp import local
from sft.train.engine.precision import HALF
from sft.train.numerics.reference import computed, reference

ROUNDING: dict[Precision, float] = {"fp32": 2.0**-17, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""Relative error of one rounding, the unit of all bounds below.

fp32 has seven bits of slack: its own 2^-24 says little about a long sum that another kernel adds in another order.
"""
LOSS_BOUND, TOKEN_BOUND, HIDDEN_BOUND, WORST_HIDDEN_BOUND, ANGLE_BOUND = 0.5, 64, 16, 64, 128
"""Roundings allowed in the mean loss (relative, in nats below 1), a token's loss (nats, root mean square), the hidden
states (relative, root mean square and worst token) and a gradient (angle in radians).

Source: measured on the CPU in bf16 and fp16 on six models of 4 to 16 layers and width 128 to 512: fresh, with weights
enlarged until logits spread by 2.7 as those of trained models do, and trained until the loss was almost 0. Healthy: at
most 0.05, 6, 2.1, 3.1 and 27 roundings (4 before the loss vanishes and the gradient with it). Attention that crosses
documents, starts them a token early or sees a token ahead: in bf16 hidden states are off by 23 to 280 roundings, the
worst token by 140 to 380, the first layer's gradient by 90 to 370. The losses of fresh models hardly show such
faults; they check head, targets and sums.
"""
NUM_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Check:
    """A measured number and its upper bound."""

    what: str
    measured: float
    bound: float

    @property
    def is_passed(self) -> bool:
        return self.measured <= self.bound  # False for NaN

    def __str__(self) -> str:
        return f"{self.what}: {self.measured:.3g}, allowed {self.bound:.3g}"


def pick(split: Split, packs: Sequence[int]) -> int:
    """The first of these packs in which more than one document has loss, or else the first pack."""
    for index in packs:
        pack = split[index]
        if sum(pack.loss_mask_T[place][1:].any() for _, place in pack.documents()) > 1:
            return index
    return packs[0]


def kernel_name(model: LanguageModel, precision: Precision) -> str:
    """The attention kernel that this model uses in this precision on its device."""
    return backend(next(model.parameters()).device, HALF.get(precision, torch.float32), model.config.head_dim)


def require_exact(
    measure: Measure,
    model: LanguageModel,
    pack: Pack,
    precision: Precision,
    ranks: RankGroup,
    pack_name: str,
    *,
    is_shared: bool = False,
) -> list[Check]:
    """Refuse to train unless every check passes on every process; all of them call it together.

    Raises: NumericsError naming the pack, the kernel, the precision and each number that is too large.
    """
    place = f"{pack_name}, {kernel_name(model, precision)}, {precision}"
    require_finite_weights(model, place, ranks)
    checks = all_checks(measure, model, pack, precision, ranks, is_shared=is_shared)
    with ranks.raise_on_all():
        require(checks, place)
    return checks


def all_checks(
    measure: Measure,
    model: LanguageModel,
    pack: Pack,
    precision: Precision,
    ranks: RankGroup,
    *,
    is_shared: bool = False,
) -> list[Check]:
    """Every check that is possible with the weights as they are divided; all processes call it together.

    Only the engine can compute with a model that is divided among processes.
    """
    checks = measured_checks(measure, pack, precision, model.config.vocab_size, ranks)
    if not is_shared:
        checks += reference_checks(model, pack, precision)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # training allocates in other sizes
    return checks


def require(checks: Sequence[Check], place: str) -> None:
    """Refuse numbers above their bounds.

    Raises: NumericsError naming each of them.
    """
    failed = [check for check in checks if not check.is_passed]
    if failed:
        raise NumericsError(
            f"the model does not compute what it should:{listed(failed)}",
            on=place,
            hint="`sft doctor --model` compares precisions here; take another one or another version of the attention "
            "kernel (health.numerics_gate=false trains all the same)",
        )


def measured_checks(
    measure: Measure, pack: Pack, precision: Precision, vocab_size: int, ranks: RankGroup
) -> list[Check]:
    """The checks of token losses, for weights on one or many processes: targets, isolation, causality, packing."""
    batch = join([pack])
    targets = Check("targets other than the tokens with loss", _num_wrong_targets(batch, pack), 0)
    if not targets.is_passed:
        return [targets]  # further numbers would belong to other tokens
    nll_S, _ = measure(batch)
    changed, kept_S = _disturbed(batch, vocab_size)
    changed_nll_S, _ = measure(changed)
    is_moved_S = kept_S & np.isfinite(nll_S) & (nll_S != changed_nll_S)
    found = [np.sum(~np.isfinite(nll_S)), np.sum(is_moved_S), nll_S.sum(), *_one_by_one(measure, pack, nll_S, ranks)]
    table = ranks.gather([float(value) for value in found])
    num_bad, num_moved, loss_sum = table[:, :3].max(axis=0)
    squares, alone_sum = table[:, 3:].sum(axis=0)
    rms, unit = math.sqrt(squares / max(len(nll_S), 1)), ROUNDING[precision]
    return [
        targets,
        Check("tokens whose loss is not finite", num_bad, 0),
        Check("tokens that see ahead or other documents", num_moved, 0),
        Check(
            "loss, packed against one by one",
            loss_error(loss_sum, alone_sum, len(nll_S)),
            LOSS_BOUND * unit,
        ),
        Check("nats per token, packed against one by one", rms, TOKEN_BOUND * unit),
    ]


def reference_checks(model: LanguageModel, pack: Pack, precision: Precision) -> list[Check]:
    """The chosen kernel and precision against fp32 without a kernel, where one process holds the weights."""
    trained = {what: _trained(model, name) for what, name in model.gate_layers().items()}
    weights = [parameter for parameter in trained.values() if parameter is not None]
    names = [what for what, parameter in trained.items() if parameter is not None]
    found, expected = computed(model, pack, precision, weights), reference(model, pack, weights)
    # A token's error is relative to its own norm, so that all tokens count alike.
    error_T = (found.hidden_TD - expected.hidden_TD).norm(dim=1) / expected.hidden_TD.norm(dim=1)
    rms, worst = error_T.square().mean().sqrt().item(), error_T.max().item()
    unit = ROUNDING[precision]
    angles = map(angle, found.gradients, expected.gradients)
    return [
        Check(
            "loss against fp32",
            loss_error(found.loss_sum, expected.loss_sum, pack.num_supervised),
            LOSS_BOUND * unit,
        ),
        Check("hidden states against fp32", rms, HIDDEN_BOUND * unit),
        Check("hidden states against fp32, worst token", worst, WORST_HIDDEN_BOUND * unit),
        *(
            Check(f"radians, gradient of {name}", it, ANGLE_BOUND * unit)
            for name, it in zip(names, angles, strict=True)
        ),
    ]


def _trained(model: LanguageModel, layer: str) -> nn.Parameter | None:
    """The matrix of a layer that is trained, which may be that of an adapter; None if there is none."""
    parameters = dict(model.named_parameters())
    found = (parameters.get(f"{layer}.{name}") for name in ("weight", "lora_b"))
    return next((parameter for parameter in found if parameter is not None and parameter.requires_grad), None)


def loss_error(found: float, expected: float, num_tokens: int) -> float:
    """The error of a summed loss, relative to the expected loss or to 1 nat per token, whichever is larger."""
    return abs(found - expected) / max(abs(expected), num_tokens, 1)


def angle(left: Tensor, right: Tensor) -> float:
    """The angle between two gradients, in radians; by the chord, which stays exact where the cosine is almost 1."""
    chord = (normalize(left.flatten().double(), dim=0) - normalize(right.flatten().double(), dim=0)).norm().item()
    return 2 * math.asin(min(chord / 2, 1.0))


def require_finite_weights(model: LanguageModel, place: str, ranks: RankGroup) -> None:
    """Refuse weights that are not finite, on any process; all processes call it together.

    Raises: NumericsError naming some of them.
    """
    mine = [name for name, parameter in model.named_parameters() if not local(parameter.detach()).isfinite().all()]
    damaged = list(dict.fromkeys(name for names in ranks.gather_json(mine) for name in names))
    if damaged:
        shown = ", ".join(damaged[:NUM_NAMES_SHOWN]) + (", …" if len(damaged) > NUM_NAMES_SHOWN else "")
        raise NumericsError(
            f"{len(damaged)} parameters hold values that are not finite: {shown}",
            on=place,
            hint="the weights are damaged: take an earlier checkpoint, or fetch the model again",
        )


def _num_wrong_targets(batch: Batch, pack: Pack) -> int:
    expected_T = np.full(pack.num_tokens, IGNORE, np.int64)
    for _, place in pack.documents():
        has_loss, ids = pack.loss_mask_T[place][1:] > 0, pack.input_ids_T[place][1:].astype(np.int64)
        expected_T[place][:-1] = np.where(has_loss, ids, IGNORE)
    return int((expected_T != batch.targets_T).sum())


def _disturbed(batch: Batch, vocab_size: int) -> tuple[Batch, NDArray[np.bool_]]:
    """The same targets after other tokens, and the supervised tokens whose loss must not change.

    Every second document with loss keeps its tokens up to its middle target; all other tokens are replaced.
    """
    is_target_T = batch.targets_T != IGNORE
    is_kept_T, is_changed_T = np.zeros_like(is_target_T), np.ones_like(is_target_T)
    starts = np.cumsum((0, *batch.doc_lengths))[:-1]
    targets = [
        start + np.flatnonzero(is_target_T[start : start + size])
        for start, size in zip(starts, batch.doc_lengths, strict=True)
    ]
    with_loss = [(start, places) for start, places in zip(starts, targets, strict=True) if len(places)]
    for start, places in with_loss[::-2]:
        kept = places[: len(places) // 2 + 1]
        is_kept_T[kept] = True
        is_changed_T[start : kept[-1] + 1] = False
    ids_T = np.where(is_changed_T, (batch.input_ids_T + vocab_size // 2) % vocab_size, batch.input_ids_T)
    return replace(batch, input_ids_T=ids_T), is_kept_T[is_target_T]


def _one_by_one(measure: Measure, pack: Pack, nll_S: NDArray[np.float64], ranks: RankGroup) -> tuple[float, float]:
    """This process's share of the documents, one by one: sum of squared token loss differences, summed loss."""
    alone = [join([document]) for document in _alone(pack)]
    ends = np.cumsum([batch.num_supervised for batch in alone])
    squares = loss_sum = 0.0
    for first in range(0, len(alone), ranks.size):
        number = first + ranks.rank
        if number >= len(alone):
            measure(Batch.empty())  # the others wait for this process's share of the weights
            continue
        batch = alone[number]
        found_S, _ = measure(batch)
        packed_S = nll_S[ends[number] - batch.num_supervised : ends[number]]
        squares += float(np.square(found_S - packed_S).sum())
        loss_sum += float(found_S.sum())
    return squares, loss_sum


def _alone(pack: Pack) -> Iterator[Pack]:
    for doc_id, place in pack.documents():
        mask_t = pack.loss_mask_T[place]
        yield Pack(pack.input_ids_T[place], mask_t, np.array([len(mask_t)]), np.array([doc_id]), int(mask_t.sum()))
