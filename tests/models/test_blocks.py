from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distft.models.blocks import ItemEmbedding, rotated
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


@torch.inference_mode()
def test_rotated_products_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)

    def product(first: int, second: int) -> float:
        turned = rotated(torch.stack([q, k])[:, None, None], torch.tensor([first, second]))
        return float(turned[0, 0, 0] @ turned[1, 0, 0])

    assert product(7, 3) == pytest.approx(product(14, 10), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
    assert product(5, 5) == pytest.approx(float(q @ k), abs=1e-5)
