"""The optional package as it is found, and tokens chosen by it."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from dmtd_demo import vnni
from dmtd_demo.errors import ModelError
from dmtd_demo.sampling import Sampler, Sampling

needs_kernel = pytest.mark.skipif(
    vnni.KERNEL is None, reason="needs `pip install ./vnni` and a CPU with AVX512"
)
# parts of a vector, and of what is read at once
SIZES = [1, 15, 16, 47, 2048, 2049, 4999]


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request):
    return request.param


def exact(logits: torch.Tensor) -> list[float]:
    """The log-probability of each row's largest entry."""
    return logits.double().log_softmax(-1).amax(-1).tolist()


@needs_kernel
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_first_largest_alone_and_beside_others(size, dtype, threads):
    torch.manual_seed(size)
    logits = (4 * torch.randn(16, size)).to(dtype)
    # ties of a row's halves, of all of it, of its last ones; one that stands out; hardly any chance
    logits[1] = logits[1].abs().neg()
    logits[1, [size // 3, size // 2, -1]] = 1
    logits[2] = -7
    logits[3, size // 2 :] = 90
    logits[4, -1] = 1e30
    logits[5] = -1e30
    logits[6, : size // 2] = -math.inf
    found = vnni.likeliest(logits)
    assert [i for i, _ in found] == logits.float().argmax(-1).tolist()
    assert [logprob for _, logprob in found] == pytest.approx(exact(logits), rel=1e-5, abs=1e-6)
    for rows in range(1, 17):
        assert vnni.likeliest(logits[:rows]) == found[:rows]
        assert vnni.likeliest(logits[rows - 1 : rows]) == found[rows - 1 : rows]


@needs_kernel
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("size", SIZES)
def test_a_row_that_is_not_finite_is_an_error(bad, size, dtype):
    torch.manual_seed(size)
    for place in {0, size // 2, size - 1}:
        logits = torch.randn(3, size).to(dtype)
        wanted = vnni.likeliest(logits)
        logits[1, place] = bad
        found = vnni.likeliest(logits)
        assert math.isnan(found[1][1]) and found[::2] == wanted[::2]
        with pytest.raises(ModelError, match="finite"):
            Sampler().choose(logits)
    # as with PyTorch: no token is left
    with pytest.raises(ModelError, match="finite"):
        Sampler().choose(torch.full((1, size), -math.inf, dtype=dtype))


@needs_kernel
def test_choices_are_those_of_pytorch(dtype, monkeypatch):
    """Of rows that lie apart as well, and where drafts are verified."""
    torch.manual_seed(0)
    logits = torch.randn(12, 700).to(dtype)[:, ::2]
    drafts = logits.argmax(-1)[:5].tolist()
    drafts[3] += 1
    ways = []
    for kernel in (vnni.KERNEL, None):
        monkeypatch.setattr(vnni, "KERNEL", kernel)
        assert (vnni.likeliest(logits) is None) == (kernel is None)
        sampler = Sampler()
        ways.append([*sampler.choose(logits), sampler.verify(drafts, None, logits[:6])[1]])
        assert sampler.verify(drafts, None, logits[:6])[0] == 3
    assert [choice.id for choice in ways[0]] == [choice.id for choice in ways[1]]
    near = pytest.approx([choice.logprob for choice in ways[1]], abs=1e-5)
    assert [choice.logprob for choice in ways[0]] == near


@needs_kernel
def test_what_it_does_not_choose_from(monkeypatch):
    assert vnni.likeliest(torch.zeros(1, 8, dtype=torch.float16)) is None
    monkeypatch.setattr(vnni, "likeliest", None)
    for sampler in (Sampler(top=2), Sampler(Sampling(temperature=1))):
        assert len(sampler.choose(torch.zeros(2, 8))) == 2


@needs_kernel
def test_it_refuses_what_it_cannot_do():
    with pytest.raises(TypeError, match="numbers"):
        vnni.KERNEL.likeliest(0, 1)
    with pytest.raises(TypeError):
        vnni.KERNEL.likeliest(0, "1", 1, 1, 1)
    with pytest.raises(MemoryError):
        vnni.KERNEL.likeliest(0, 2**61, 1, 1, 1)


@pytest.mark.skipif(importlib.util.find_spec("dmtd_vnni") is None, reason="needs the package")
def test_another_version_of_the_package_is_left_alone(monkeypatch):
    monkeypatch.setattr(__import__("dmtd_vnni"), "VERSION", 3)
    with pytest.warns(UserWarning, match="of another version"):
        assert vnni._kernel() is None
