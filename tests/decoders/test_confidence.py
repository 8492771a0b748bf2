"""`clp:rule=confidence`: how many guesses are kept by how sure the heads are, without a cache."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from dmtd_demo.decoders.clp import CLPOptions, CollocationLength, accepted_length
from dmtd_demo.errors import UserError
from dmtd_demo.models.addons import ConfidenceReader, load_addons, save_addon
from dmtd_demo.sampling import Sampler
from tiny import tiny_model

PROMPT, NEW = [5, 9, 3, 7], 40


def test_a_reader_of_confidences_decides(tmp_path):
    model = tiny_model("qwen3", addons=True)
    with pytest.raises(UserError, match="needs a reader of confidences.*take cumulative"):
        CollocationLength.resolve(CLPOptions(rule="confidence"), model)
    torch.manual_seed(3)
    reader = ConfidenceReader(32, 2)
    save_addon(tmp_path, "confidence", reader, "tiny", 32, threshold=0.5)
    held, facts = load_addons(tmp_path, 32, torch.float32, torch.device("cpu"))
    model.addons |= held
    model.addon_facts |= facts
    with pytest.raises(UserError, match="needs a value from 1 to 2"):
        CollocationLength.resolve(CLPOptions(k=3, rule="confidence"), model)
    decoder = CollocationLength(CLPOptions(rule="confidence"))
    options = decoder.resolve(decoder.options, model)
    assert (options.k, options.threshold) == (2, 0.5)
    steps = list(islice(decoder.steps(model, PROMPT, Sampler()), NEW))
    text, module = list(PROMPT), model.backbone.module
    kept = []
    for step in steps:
        h = module.model(torch.tensor([text])).last_hidden_state[:, -1]
        logits = module.lm_head(torch.cat([h, model.addons["mtp_heads"](h, 2)[0]]))
        chances = held["confidence"](ConfidenceReader.figures(logits[None])).softmax(-1)[0]
        s = 0
        if len(text) > len(PROMPT):
            s = accepted_length(chances.tolist(), 2, 0.5, "cumulative")
            assert step.lengths == pytest.approx(chances.tolist(), abs=1e-4)
        assert [t.id for t in step.tokens] == logits[: s + 1].argmax(-1).tolist()
        text += [t.id for t in step.tokens]
        kept.append(s)
    # some are and some are not, or nothing was tested
    assert len(set(kept)) > 1
