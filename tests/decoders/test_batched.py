"""Many texts at once are those that `ar` writes one by one."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from dmtd_demo.backbone import avx512
from dmtd_demo.backbone.batched import BatchCache
from dmtd_demo.decoders import DECODERS
from dmtd_demo.decoders.batched import LOOK, Writing, batched_ar, drawn
from dmtd_demo.errors import Cancelled
from dmtd_demo.models.model import Model
from dmtd_demo.sampling import Sampler, Sampling, truncated
from tiny import VOCABULARY, tiny_model

LONGEST = 40
# few of them: so some texts end at once, some late, and some never
ENDS = frozenset(range(6))


def alone(model: Model, prompt: list[int]) -> list[int]:
    """The text of `ar` up to its end."""
    ids: list[int] = []
    steps = (t.id for s in DECODERS["ar"]().steps(model, prompt, Sampler()) for t in s.tokens)
    for token in islice(steps, LONGEST):
        ids.append(token)
        if token in model.eos_ids:
            break
    return ids


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_5_text"])
def test_ragged_prompts_write_the_texts_of_ar(kind):
    """Also over more places than the cache begins with, in rows that others had, as the batch is
    halved, and one by one where layers are recurrent."""
    model = tiny_model(kind, eos=ENDS)
    rng = random.Random(0)
    lengths = [1, 2, 3, 31, 32, 33, 60, 100, 130, 150, 7, 7, 7, 7, 90, 5, 40, 41, 42, 43, 44, 200]
    prompts = [[rng.randrange(6, VOCABULARY) for _ in range(n)] for n in lengths]
    prompts[-1] = prompts[-1] + prompts[-2] + prompts[-1][:8]  # 252: the context ends it
    wanted = [alone(model, prompt) for prompt in prompts[:-1]]
    assert len({len(text) for text in wanted}) > 5
    for batch in (4,) if kind == "qwen3_5_text" else (1, 4, 6, 64):
        told: list[int] = []
        found = {
            w.index: w
            for w in batched_ar(model, prompts, LONGEST, Writing(batch), tell=told.append)
        }
        assert [found[i].ids for i in range(len(wanted))] == wanted
        assert all(w.ended == (w.ids[-1] in ENDS) and not w.stopped for w in found.values())
        assert len(found[len(wanted)].ids) <= model.context - 252
        assert sum(told) == sum(len(w.ids) for w in found.values())


def test_texts_are_drawn_stopped_and_cancelled():
    model = tiny_model("qwen3")
    prompts = [[5, 9, 3], [5, 9, 3], [7]]

    def texts_of(seed: int) -> list[list[int]]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return [w.ids for w in batched_ar(model, prompts, 12, Writing(sampler=sampler))]

    assert texts_of(1) == texts_of(1) != texts_of(2) and texts_of(1)[0] != texts_of(1)[1]
    texts = list(batched_ar(model, prompts, 50, Writing(go_on=lambda ids: len(ids) < 2 * LOOK)))
    assert [(len(w.ids), w.ended, w.stopped) for w in texts] == [(2 * LOOK, False, True)] * 3
    hybrid = tiny_model("qwen3_5_text")
    texts = list(batched_ar(hybrid, prompts, 50, Writing(go_on=lambda ids: len(ids) < LOOK)))
    assert [(len(w.ids), w.stopped) for w in texts] == [(LOOK, True)] * 3

    def cancel(tokens: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        list(batched_ar(model, prompts, 5, tell=cancel))


def test_below_float32_the_cache_has_the_models_dtype():
    model = tiny_model("qwen2", dtype=torch.bfloat16)
    (text,) = batched_ar(model, [[4, 5, 6]], 9)
    assert len(text.ids) == 9


def test_of_the_likeliest_tokens_each_comes_as_often_as_it_should():
    """Pearson's chi-square against top-k's distribution; 7 degrees of freedom, p = 0.0001."""
    sampling = Sampling(temperature=0.8, top_k=8, seed=3)
    row = torch.randn(50, generator=torch.Generator().manual_seed(0))
    wanted = truncated(row, sampling).softmax(-1)
    counts = torch.bincount(torch.tensor(drawn(Sampler(sampling), row.expand(20_000, -1))))
    counts = F.pad(counts, (0, 50 - len(counts)))
    among = wanted > 0
    expected = wanted[among] * 20_000
    assert counts[~among].sum() == 0 and among.sum() == 8
    assert ((counts[among] - expected) ** 2 / expected).sum() < 29.88


@pytest.mark.skipif(avx512.KERNEL is None, reason="needs `pip install ./vnni` and AVX512")
@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.02), (torch.float32, 1e-5)])
def test_the_packages_attention_is_the_plain_one(dtype, near, monkeypatch):
    model = tiny_model("qwen3", dtype=dtype, hidden_size=64, head_dim=32)
    backbone, texts = model.backbone, [[5, 9, 3], list(range(6, 80)), [7] * 40]
    outs = []
    for kernel in (avx512.KERNEL, None):
        monkeypatch.setattr(avx512, "KERNEL", kernel)
        cache = BatchCache(backbone.layers, len(texts))
        with torch.inference_mode():
            ids = torch.zeros(len(texts), 96, dtype=torch.long)
            for row, text in zip(ids, texts):
                row[: len(text)] = torch.tensor(text)
            backbone.begin_texts(ids, cache, [0, 1, 2])
            cache.lengths = [len(text) for text in texts]
            outs.append(torch.stack([backbone.step_texts([4, 8, 11], cache) for _ in range(70)]))
    distance = (outs[0].float() - outs[1].float()).square().mean().sqrt()
    assert 0 < distance < near * outs[1].float().square().mean().sqrt()
