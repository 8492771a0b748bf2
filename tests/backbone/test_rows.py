"""Some rows of a linear, held as it is, against the same rows of its own products."""

from __future__ import annotations

import pytest
import torch

from dmtd_demo.backbone import integers
from dmtd_demo.backbone.cpu_packed import Int4Linear, Int8Linear
from dmtd_demo.backbone.integers import ByBytesInt4, ByBytesInt8
from dmtd_demo.backbone.linears import picked
from dmtd_demo.backbone.onednn import BlockedLinear
from dmtd_demo.backbone.packed import ROWS_AT_ONCE
from dmtd_demo.backbone.row_blocks import DTYPES, RowBlockLinear


def large(linear):
    packed = Int8Linear.of(linear)
    packed.large = True
    return packed


KINDS = {
    "dense": lambda linear: linear,
    "oneDNN": lambda linear: BlockedLinear(linear.weight, linear.bias),
    "blocks by the package": lambda linear: RowBlockLinear(linear.weight, linear.bias),
    "8 bits": Int8Linear.of,
    "LM head in 8 bits": large,
    "4 bits": Int4Linear.of,
    "8 bits by the package": ByBytesInt8.of,
    "4 bits by the package": ByBytesInt4.of,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_picked_rows_are_those_of_the_whole(kind, bias):
    able = torch.bfloat16 in DTYPES if "blocks" in kind else integers.KERNEL is not None
    if "by the package" in kind and not able:
        pytest.skip("needs `pip install ./vnni` and a CPU with its instructions")
    torch.manual_seed(0)
    out = ROWS_AT_ONCE + 192
    linear = torch.nn.Linear(96, out, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    whole = KINDS[kind](linear)
    rows = torch.randperm(out)[:128]
    part = picked(whole, rows)
    assert type(part) is type(whole)
    if kind != "dense":
        assert torch.equal(part.dense(), whole.dense()[rows])
    x = torch.randn(3, 96).bfloat16()
    with torch.no_grad():
        got, wanted = part(x), whole(x)[:, rows]
    if "by the package" in kind:
        assert torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-7)


def test_what_is_of_no_known_kind_is_not_divided():
    linear = torch.nn.Linear(8, 128)
    linear._hf_hook = object()
    assert picked(linear, torch.arange(64)) is None
