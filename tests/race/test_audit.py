"""The audit: what `ar` says of a text, position by position."""

from __future__ import annotations

import pytest
import torch

from dmtd_demo.backbone.cpu_packed import pack
from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.decoders.stack import Stack
from dmtd_demo.race.audit import logits_before
from tiny import VOCABULARY, sums_alike, tiny_model


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@torch.inference_mode()
def test_in_16_bits_it_reads_what_steps_read(family):
    """Bit for bit: near-ties fall as they fell for `ar`, and nothing of its own text is marked."""
    if not sums_alike():
        pytest.skip("this CPU's bfloat16 products depend on how many positions a pass has")
    model = tiny_model(family, dtype=torch.bfloat16, intermediate_size=64)
    pack(model.backbone.module, "fast-int4")
    model.quantization, model.backbone = "fast-int4", Backbone(model.backbone.module)
    assert model.alike
    generator = torch.Generator().manual_seed(0)
    for length in (1, 40):
        prompt, ids = torch.randint(VOCABULARY, (2, 100), generator=generator).tolist()
        stack = Stack(model.backbone, model.split)
        outs = [stack.full(prompt[:length])[0][0, -1:]]
        outs += [stack.full([i])[0][0] for i in ids[:-1]]
        steps = [model.backbone.logits(model.backbone.final_norm(out)) for out in outs]
        found, wanted = zip(*logits_before(model, prompt[:length], ids))
        assert torch.cat(wanted).tolist() == ids
        assert torch.equal(torch.cat(found), torch.cat(steps))
