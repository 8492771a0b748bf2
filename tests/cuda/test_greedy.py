"""The kernel that chooses tokens against argmax and log-softmax: on a GPU, and on a CPU by g++."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dmtd_demo.cuda import greedy
from dmtd_demo.errors import ModelError
from dmtd_demo.sampling import Sampler

HERE = Path(__file__).resolve().parent
THREADS, PARTS = 64, 4  # of the one on a CPU


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def emulated(request, tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("greedy") / "greedy.so"
    source = Path(greedy.__file__).with_suffix(".cu")
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            "-w",
            "-include",
            HERE / "emulated.h",
            f'-DSOURCE="{source}"',
            "-DGREEDY",
            f"-DWIDE={int(request.param == torch.float32)}",
            f"-DTHREADS={THREADS}",
            f"-DPARTS={PARTS}",
            HERE / "run.cpp",
            "-o",
            library,
        ],
        check=True,
    )
    loaded, done = ctypes.CDLL(str(library)), torch.zeros(8, dtype=torch.int32)

    def run(logits: torch.Tensor) -> list[list[float]]:
        rows, size = logits.shape
        partial, out = torch.full((rows * PARTS, 3), torch.nan), torch.full((rows, 2), torch.nan)
        tensors = (logits.to(request.param).contiguous(), partial, done, out)
        loaded.run_greedy(rows * PARTS, *(ctypes.c_void_p(t.data_ptr()) for t in tensors), size)
        assert not done.any()
        return out.tolist()

    return run, request.param


def check(found: list[list[float]], logits: torch.Tensor) -> None:
    # PyTorch's own sum of 151,936 terms in float32 was 1.8e-5 off where the kernel's was 5e-8 off
    wanted = logits.double().log_softmax(-1)
    for (token, logprob), row, plain in zip(found, wanted, logits):
        if not math.isfinite(row.max()):
            assert not math.isfinite(logprob)
            continue
        assert int(token) == int((plain == plain.max()).nonzero()[0, 0])  # the first of equal ones
        # some 20 roundings of a float32 on the way of each term, and those of e^x
        assert logprob == pytest.approx(row[int(token)].item(), abs=3e-6, rel=1e-6)


def examples(size: int) -> torch.Tensor:
    """Ordinary rows, equal ones, ruled out ones, damaged ones."""
    torch.manual_seed(size)
    rows = torch.randn(8, size).bfloat16().float() * 4
    rows[1] = 0.5
    rows[2, : size // 2] = -torch.inf
    rows[3, 1:] = -torch.inf
    rows[4] = -torch.inf
    rows[5, size // 3] = torch.nan
    rows[6, size // 3] = torch.inf
    rows[7, -1] = 90
    return rows


@pytest.mark.parametrize("size", [5, 257, 1000])
def test_the_kernel_is_argmax_and_log_softmax(emulated, size):
    run, dtype = emulated
    logits = examples(size).to(dtype)
    check(run(logits), logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 4096, 151936])
def test_on_cuda_it_is_argmax_and_log_softmax(dtype, size):
    logits = examples(size).to(dtype).cuda()
    found = greedy.greedy(logits)
    assert found is not None
    check(found, logits.cpu())
    assert found[:4] == greedy.greedy(logits)[:4]
    chosen = Sampler(device="cuda").choose(logits[[0, 2, 3, 7]])
    assert [c.id for c in chosen] == [int(found[row][0]) for row in (0, 2, 3, 7)]
    for bad in (4, 5, 6):
        with pytest.raises(ModelError):
            Sampler(device="cuda").choose(logits[bad : bad + 1])
