"""`mtp-heads`: heads alone, head 0 in the LM head's place.

The head-backbone competition that the CLP paper argues against (arXiv 2606.10935).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import torch

from dmtd_demo.decoders.base import Steps
from dmtd_demo.decoders.mtp import HeadsDecoder, unverified_steps
from dmtd_demo.sampling import Sampler

if TYPE_CHECKING:
    from dmtd_demo.models.model import Model


class HeadsOnly(HeadsDecoder):
    """Head 0 makes token n + 1, heads 1..k the tokens after it, and all of them are accepted.

    The text repeats itself, and that is the point.
    """

    name = "mtp-heads"
    label = "MTP heads alone"
    needs = frozenset({"mtp_heads", "head0"})

    @torch.inference_mode()
    def steps(self, model: Model, prompt_ids: Sequence[int], sampler: Sampler) -> Steps:
        options = self.resolve(self.options, model)
        head0, heads = model.addons["head0"], model.addons["mtp_heads"]
        yield from unverified_steps(
            model,
            prompt_ids,
            sampler,
            lambda h: (
                model.backbone.logits(torch.cat([head0(h)[0], heads(h, options.k)[0]])),
                (),
            ),
            first="mtp",
        )
