from __future__ import annotations

import torch
from torch.nn import functional as F

from distft.models.blocks import ItemEmbedding
from tests.factories import catalog


def test_one_hot_categories_go_through_a_matrix() -> None:
    shop = catalog()
    embedding = ItemEmbedding(shop, 8, features=True)
    items = torch.tensor([[2, 3], [39, 0]])
    category, tags, price = shop.features
    codes_NM = torch.as_tensor(tags.codes)
    one_hot_NC = F.one_hot(codes_NM.long(), tags.size).sum(1).float()
    one_hot_NC[:, 0] = 0  # PAD
    price_N1 = torch.as_tensor(price.values)[:, None]
    label, matrix = embedding.categories
    everything_ND = (
        embedding.items.weight
        + label(torch.as_tensor(category.codes))
        + one_hot_NC @ matrix.weight
        + embedding.numbers(price_N1)
    )
    torch.testing.assert_close(embedding(items), everything_ND[items])
    assert (codes_NM > 0).sum(1).max() > 1
