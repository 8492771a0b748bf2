"""What decoders write on tiny models, and what transformers' own generate does."""

from __future__ import annotations

import random

import torch

from dmtd_demo.decoders import DECODERS
from dmtd_demo.race.panels import PanelSpec, make_decoder
from dmtd_demo.sampling import Sampler, Sampling
from tiny import VOCABULARY

KIND = "qwen3_5_text"


def steps_of(model, panel: PanelSpec, prompt: list[int], new: int, sampling: Sampling = Sampling()):
    """Steps until `new` tokens were emitted."""
    decoder = make_decoder(panel)
    decoder.options = decoder.resolve(decoder.options, model)
    steps, count = [], 0
    for step in decoder.steps(model, prompt, Sampler(sampling)):
        steps.append(step)
        count += len(step.tokens)
        if count >= new:
            return steps


# those that run on every Qwen which has the add-ons
ANYWHERE = [name for name, decoder in DECODERS.items() if "native_mtp" not in decoder.needs]


def kind_for(name: str) -> str:
    """A family that this decoder runs on."""
    return "qwen3" if name in ANYWHERE else KIND


def tokens_of(steps) -> list:
    return [token for step in steps for token in step.tokens]


def ids_of(steps) -> list[int]:
    return [token.id for token in tokens_of(steps)]


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [1 + i * (longest - 1) // (count - 1) for i in range(count)]
    return [[rng.randrange(VOCABULARY) for _ in range(n)] for n in lengths]


def generated(model, prompt: list[int], new: int) -> list[int]:
    """What transformers' own generate writes, greedy."""
    ids = torch.tensor([prompt])
    out = model.backbone.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
