"""Matrices that are read ahead of their products: the same results, chosen by a measurement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmtd_demo.backbone import reading
from dmtd_demo.backbone.linears import Dense


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_read_ahead_is_the_same_bit_for_bit(bias: bool) -> None:
    torch.manual_seed(0)
    product = Dense(nn.Linear(64, 48, bias=bias), nn.Linear(64, 16, bias=bias))
    alone = Dense(nn.Linear(64, 64, bias=False))
    h, x = torch.randn(2, 3, 64)
    with torch.inference_mode():
        plain = product(x), alone.add_to(h, x)
        product.ahead = alone.ahead = True
        assert torch.equal(product(x), plain[0])
        assert torch.equal(alone.add_to(h, x), plain[1])


@pytest.mark.parametrize("ahead_is_faster", [False, True])
def test_the_faster_way_is_kept(monkeypatch: pytest.MonkeyPatch, ahead_is_faster: bool) -> None:
    product, seconds = Dense(nn.Linear(64, 64)), 0.0

    def step() -> torch.Tensor:
        nonlocal seconds
        seconds += 1.0 if product.ahead is ahead_is_faster else 2.0
        return torch.zeros(1)

    # so little lies in a cache
    assert reading.choose([product], step) is None
    monkeypatch.setattr(reading, "LARGE", 0)
    monkeypatch.setattr(reading.time, "perf_counter", lambda: seconds)
    assert reading.choose([product], step) is not None
    assert product.ahead is ahead_is_faster
