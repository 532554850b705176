"""How a fine-tuning starts: the base's weights by name, new rows and adapters, and what is frozen.

Enters: a fresh ``Step``, the base's weights, the job's ``finetune`` section. Leaves: the module ready for the engine,
and what a person is shown of it. Driver and workers run this same function, the driver first, so that every mistake is
found before a worker starts. Surprising choice: a parameter that the base does not have may not be frozen: it would
stay random for ever.

Shape legend: N rows, D width, P parts of a table, C attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distft.data.encode import Encoder
from distft.errors import ArtefactError, UsageError
from distft.job import Job
from distft.models.adapters import GrownEmbedding, LowRankLinear, replace_module
from distft.models.base import Model
from distft.models.memo import Memo
from distft.schema import NUM_RESERVED, UNKNOWN
from distft.sections.train import Finetune
from distft.storage import Storage
from distft.train.base import find_base, rows_of
from distft.train.freeze import counted, frozen_modules, is_added, names_by_group, selected
from distft.train.step import Step

LOSS_GROUP = "loss"


@dataclass(frozen=True)
class Start:
    """``rate_factors``: what the learning rate of a parameter is multiplied by. ``used``: the base's weights that the
    module has now. ``summary``: matched, missing, unexpected, grown, the table of groups, and what is cached or trains
    later, as values. ``thawed``: what begins to train with the epoch that was asked for.
    """

    rate_factors: dict[str, float]
    used: dict[str, Tensor]
    summary: dict[str, Any]
    thawed: set[str]


def opened(job: Job, dataset: Storage) -> Start | None:
    """How the training of a job starts on a dataset, found out before any worker does; None without a base.

    Raises what ``find_base``, ``rows_of`` and ``start`` raise.
    """
    section = job.train
    if not isinstance(section, Finetune):
        return None
    base = find_base(section.from_)
    encoder = Encoder.of_dataset(dataset)
    rows_of(base.encoder(), encoder, dataset)
    catalog = encoder.catalog()
    model = job.model.build(catalog)
    return start(Step(model, job.loss.build(catalog, model.state_dim)), base.weights(), encoder, section)


def start(module: Step, weights: Mapping[str, Tensor], encoder: Encoder, section: Finetune, epoch: int = 0) -> Start:
    """Gives the module its base's weights, freezes what the section says for an epoch, and tells of it.

    ``weights``: of the plain model that the base was. Raises ArtefactError where nothing matches or a shape differs,
    UsageError for words that mean nothing, where everything is frozen, or what is frozen is not in the base.
    """
    model = module.model
    groups = names_by_group(model)
    reset = selected(section.reset, "finetune.reset", groups)
    frozen = selected(section.freeze, "finetune.freeze", groups)
    schedule = thawed(section, groups, frozen)
    given = {name: tensor for name, tensor in weights.items() if name not in reset}
    grown = _grow(model, given, encoder)
    used, missing = _load(model, given)
    random = sorted(frozen & missing)
    if random:
        raise UsageError(
            f"finetune.freeze holds what the base does not have: {_listed(random)}",
            "layers that start from the base",
            "Freeze less, or reset less: what starts anew must train.",
        )
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if section.lora is not None:
        _adapt(model, section.lora.rank)  # beside all that is frozen at first, so that the adapters stay the same
    for name in (name for after, names in schedule.items() if after <= epoch for name in names):
        model.get_parameter(name).requires_grad_(True)
    groups = names_by_group(model)
    prefix = "model."
    module_groups = {group: [prefix + name for name in names] for group, names in groups.items()}
    of_loss = [f"loss.{name}" for name, _ in module.loss.named_parameters()]
    module_groups |= {LOSS_GROUP: of_loss} if of_loss else {}
    table = counted(module_groups, module, section)
    if not table[-1]["trainable"]:
        raise UsageError(
            f"finetune.freeze {list(section.freeze)} freezes all {table[-1]['parameters']:,} parameters",
            "at least one that trains",
            f"Leave one of {', '.join(groups)} out.",
        )
    module.frozen = frozen_modules(module)
    module.train()  # all but these
    kept = _remembered(model, groups, epoch) if section.cache else []
    factors: dict[str, float] = {}
    for word, rate in section.learning_rates.items():
        names = selected([word], "finetune.learning_rates", groups)
        factors |= {prefix + name: rate / section.learning_rate for name in names}
    summary = {
        "matched": sorted(used),
        "missing": sorted(missing),
        "unexpected": sorted(given.keys() - used.keys()),
        "grown": grown,
        "groups": table,
        "cached": kept,
        "later": {str(after): sorted({_group_of(name, groups) for name in names}) for after, names in schedule.items()},
    }
    return Start(factors, used, summary, {prefix + name for name in schedule.get(epoch, ())})


def thawed(section: Finetune, groups: Mapping[str, Sequence[str]], frozen: Collection[str]) -> dict[int, set[str]]:
    """Epochs taken → names of the parameters that train from then on. Raises UsageError for what is not frozen then."""
    found: dict[int, set[str]] = {}
    left = set(frozen)
    for one in section.unfreeze:
        for word in one.layers:
            names = selected([word], "finetune.unfreeze", groups) & left
            if not names:
                raise UsageError(
                    f"finetune.unfreeze: '{word}' is not frozen after {one.after_epochs} epochs",
                    f"layers of finetune.freeze {list(section.freeze)} that do not train yet",
                    "Freeze it, or leave it out.",
                )
            found.setdefault(one.after_epochs, set()).update(names)
            left -= names
    return found


def _remembered(model: Model, groups: Mapping[str, Sequence[str]], epoch: int) -> list[str]:
    """The layer groups whose outputs are kept. Raises UsageError where there are none from the start."""
    kept = model.remember(Memo())
    if kept or epoch:
        return kept
    trains = [name for name in groups["embeddings"] if model.get_parameter(name).requires_grad]
    why = f"of the embeddings {_listed(trains)} trains" if trains else "this kind of model has no such layers"
    raise UsageError(
        f"finetune.cache: there are no outputs to keep: {why}",
        "a sequence model whose embeddings are frozen, and no new items",
        "Leave finetune.cache out.",
    )


def _group_of(name: str, groups: Mapping[str, Sequence[str]]) -> str:
    return next(group for group, names in groups.items() if name in names)


def _load(model: Model, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """(What the model took, the names that it did not find)."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not is_added(name)}
    used = {name: tensor for name, tensor in given.items() if name in own}
    wrong = [
        f"{name} is {list(tensor.shape)} in the base and {list(own[name].shape)} in this job"
        for name, tensor in sorted(used.items())
        if tensor.shape != own[name].shape
    ]
    if wrong or not used:
        raise ArtefactError(
            f"The base's weights do not fit this job's model: {_listed(wrong) or 'no name of them is in it'}",
            "the base's shapes; only tables of a vocabulary that continues the base's may grow",
            "Leave the model section out, keep data.events' types and data.items' features as in the base's job, or "
            "name what starts anew in finetune.reset.",
        )
    model.load_state_dict(used, strict=False)
    return used, own.keys() - used.keys()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _adapt(model: Model, rank: int) -> None:
    """Puts an adapter beside every frozen linear layer of the blocks."""
    members = {id(one) for name, group in model.layer_groups().items() if name.startswith("blocks.") for one in group}
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) in members and not layer.weight.requires_grad
    ]
    if not layers:
        raise UsageError(
            "finetune.lora has no layer to stand beside: no block with linear layers is frozen",
            "frozen blocks",
            "Add blocks to finetune.freeze, or leave finetune.lora out.",
        )
    for path, layer in layers:
        replace_module(model, path, LowRankLinear(layer, min(rank, *layer.weight.shape)))


# -- new rows ----------------------------------------------------------------------------------------------


def _grow(model: Model, given: Mapping[str, Tensor], encoder: Encoder) -> dict[str, int]:
    """Gives tables that have more rows than the base's a segment for these; the number of new rows of each."""
    grown = {}
    vocabularies, parts = model.vocabularies(), model.table_parts()
    # A table of several parts tells its rows only together with how often it holds them: a plain one tells them alone.
    tables = [(path, given[f"{path}.weight"]) for path in vocabularies if f"{path}.weight" in given]
    num_base = {vocabularies[path]: len(weight) for path, weight in tables if path not in parts}
    for path, weight in tables:
        table, num_parts, num_old = model.get_submodule(path), parts.get(path, 1), num_base.get(vocabularies[path], 0)
        assert isinstance(table, nn.Embedding)
        num_new = table.num_embeddings // num_parts - num_old
        if num_new <= 0 or weight.shape != (num_parts * num_old, table.embedding_dim):
            continue
        old_PND = weight.view(num_parts, num_old, -1)
        new_PND = old_PND[:, UNKNOWN, None].repeat(1, num_new, 1)
        if vocabularies[path] == "items":
            for old_ND, new_ND in zip(old_PND, new_PND, strict=True):
                _from_likes(new_ND, old_ND, encoder)
        old = nn.Embedding(len(weight), table.embedding_dim, table.padding_idx)
        replace_module(model, path, GrownEmbedding(old, new_PND))
        grown[vocabularies[path]] = num_new
    return grown


def _from_likes(new_ND: Tensor, old_ND: Tensor, encoder: Encoder) -> None:
    """Sets each new item to the mean of the base's items with the same attributes, if there are any."""
    codes_NC = _attributes(encoder)
    if codes_NC is None:
        return
    num_old = len(old_ND)
    known_N: NDArray[np.bool_] = np.any(codes_NC >= NUM_RESERVED, axis=1)
    kinds_N: NDArray[np.int64] = np.unique(codes_NC, axis=0, return_inverse=True)[1].reshape(-1)
    like_N = torch.from_numpy(kinds_N)
    usable_N = torch.from_numpy(known_N[:num_old] & (np.arange(num_old) >= NUM_RESERVED))
    size = int(like_N.max()) + 1
    sum_KD = torch.zeros(size, old_ND.shape[1]).index_add_(0, like_N[:num_old][usable_N], old_ND[usable_N].float())
    count_K = torch.bincount(like_N[:num_old][usable_N], minlength=size)
    mean_ND = (sum_KD / count_K.clamp(min=1)[:, None])[like_N[num_old:]]
    found_N = (count_K[like_N[num_old:]] > 0) & torch.from_numpy(known_N[num_old:])
    new_ND[found_N] = mean_ND[found_N].to(new_ND.dtype)


def _attributes(encoder: Encoder) -> NDArray[np.int32] | None:
    """codes_NC: the categories of every item; None where the shop tells none."""
    columns = [column for column in encoder.features if column.spec.kind == "category"]
    return np.concatenate([column.padded_codes() for column in columns], 1) if columns else None
