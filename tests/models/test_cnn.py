"""The convolutions of every position against those of the paper, computed for one window at a time."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from distft.models.cnn.config import Config
from distft.models.packing import Packing
from tests.factories import catalog
from tests.models.test_attention import batch_of


@torch.inference_mode()
def test_a_state_is_that_of_its_window_alone():
    torch.manual_seed(0)
    model = Config(max_history=20, dim=6, window=4, num_filters=3, num_vertical=2).build(catalog()).eval()
    block = model.blocks[0]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    batch = batch_of([9, 3])
    packing = Packing.of(batch)
    x_ND = torch.randn(12, 6)
    found = block(x_ND, packing, model.look(packing, packing.pack(batch)))
    h_ND = block.norm(x_ND)
    for place, position in enumerate(packing.position_N.tolist()):
        events = [h_ND[place - back] if back <= position else torch.zeros(6) for back in range(4)]
        # The filters of one height slide over the window; those that hang over its early end see zeros there.
        early = [h_ND[place - b] if b <= position else torch.zeros(6) for b in range(8)]
        parts = []
        for height, layer in enumerate(block.horizontal, start=1):
            answers = [F.relu(layer(torch.cat(early[at : at + height]))) for at in range(4 - height + 1)]
            parts.append(torch.stack(answers).amax(0))
        parts += [block.vertical[:, v] @ torch.stack(events) for v in range(2)]
        expected = x_ND[place] + F.relu(block.out(torch.cat(parts)))
        torch.testing.assert_close(found[place], expected, atol=1e-4, rtol=1e-4)
