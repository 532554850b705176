from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distft.component import SequenceConfig, configs
from distft.data.collate import Side, history_batch
from distft.models.base import Model
from distft.models.looked_up import LookedUp
from distft.schema import PAD, Batch
from tests.factories import catalog, histories

SHOP = catalog()
KINDS = [config for config in configs("models") if issubclass(config, SequenceConfig)]
TABLE = "items.items.weight"


def pair(config: type[SequenceConfig]) -> tuple[Model, Model, Batch]:
    """A model with its table, the same without, and a batch whose rows the latter holds."""
    torch.manual_seed(0)
    whole = config(max_history=16, kind=config.model_fields["kind"].default).build(SHOP).eval()
    without = config(max_history=16, kind=config.model_fields["kind"].default)
    model = without.build(replace(SHOP, has_item_table=False)).eval()
    weights = dict(whole.state_dict())
    weights.pop(TABLE)
    model.load_state_dict(weights)
    return whole, model, history_batch(histories([5, 11, 8], SHOP.num_items), 16, SHOP.has_clock, Side())


def lookup_of(model: Model) -> LookedUp:
    return next(module for module in model.modules() if isinstance(module, LookedUp))


def held(model: Model, rows: Tensor, table: Tensor) -> Tensor:
    leaf = table[rows].clone().requires_grad_()
    lookup_of(model).hold(rows, leaf)
    return leaf


@pytest.mark.parametrize("config", KINDS, ids=lambda config: str(config.model_fields["kind"].default))
def test_a_model_that_is_given_rows_computes_what_one_with_a_table_does(config: type[SequenceConfig]) -> None:
    whole, model, batch = pair(config)
    table = whole.get_parameter(TABLE)
    rows = torch.unique(torch.cat([torch.tensor([PAD, 7, 8]), batch.item_BL.flatten()]))
    leaf = held(model, rows, table.detach())
    for one in (whole, model):
        (one.states(batch).square().sum() + one.item_vectors(torch.tensor([8, 7])).sum()).backward()
    assert torch.equal(whole.states(batch), model.states(batch))
    assert table.grad is not None and leaf.grad is not None
    torch.testing.assert_close(leaf.grad[1:], table.grad[rows[1:]])  # PAD has none in a table
    others = {name: one.grad for name, one in whole.named_parameters() if name != TABLE}
    for name, one in model.named_parameters():
        torch.testing.assert_close(one.grad, others[name])


def test_the_vectors_stay_in_fp32_and_are_computed_with_in_the_type_of_the_weights() -> None:
    lookup = LookedUp(9, 4)
    lookup.dtype = torch.bfloat16
    leaf = torch.randn(2, 4, requires_grad=True)
    lookup.hold(torch.tensor([3, 5]), leaf)
    found = lookup(torch.tensor([[5, 5], [3, 5]]))
    assert found.dtype == torch.bfloat16 and found.shape == (2, 2, 4)
    found.float().sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32
    assert leaf.grad.tolist() == [[1.0] * 4, [3.0] * 4]
    lookup.release()
    with pytest.raises(AssertionError, match="not looked up"):
        lookup(torch.tensor([3]))
