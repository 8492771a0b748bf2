"""CUDA kernels from source by NVRTC, which PyTorch's CUDA wheels bring along: no compiler has to be
installed. Kernels are launched on PyTorch's current stream, so that CUDA graphs capture them."""

from __future__ import annotations

import ctypes
import site
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Sequence

import torch

# https://docs.nvidia.com/cuda/cuda-driver-api, CUlaunchAttributeID
PROGRAMMATIC_STREAM_SERIALIZATION = 6
# the first architecture that has it
OVERLAPS = (9, 0)


class _Value(ctypes.Union):
    _fields_ = [("pad", ctypes.c_char * 64), ("flag", ctypes.c_int)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", _Value)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Kernel:
    """One kernel on one device. overlapping: it may start before the kernel in front of it has
    ended, and waits for that by itself."""

    def __init__(
        self, function: ctypes.c_void_p, threads: int, device: int, overlapping: bool
    ) -> None:
        self._function, self._threads, self._device = function, threads, device
        self._launch = _driver().cuLaunchKernelEx
        self._attribute = None
        if overlapping:
            self._attribute = _Attribute(id=PROGRAMMATIC_STREAM_SERIALIZATION)
            self._attribute.value.flag = 1

    def __call__(self, blocks: int, args: Sequence[torch.Tensor | int | None]) -> None:
        """args: tensors and None as addresses, numbers as int32."""
        if torch.cuda.current_device() != self._device:
            with torch.cuda.device(self._device):
                return self(blocks, args)
        held = [
            ctypes.c_int(a)
            if isinstance(a, int)
            else ctypes.c_void_p(0 if a is None else a.data_ptr())
            for a in args
        ]
        config = _Config(
            grid=(blocks, 1, 1),
            block=(self._threads, 1, 1),
            stream=torch.cuda.current_stream().cuda_stream,
        )
        if self._attribute is not None:
            config.attributes, config.count = ctypes.pointer(self._attribute), 1
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(one) for one in held))
        _check(self._launch(ctypes.byref(config), self._function, pointers, None))


@cache
def kernel(
    source: str,
    name: str,
    macros: tuple[tuple[str, int], ...],
    threads: int,
    device: int,
    overlapping: bool,
) -> Kernel:
    """Compiled once for each device. Raises RuntimeError or OSError with what is in the way."""
    function = ctypes.c_void_p()
    _check(
        _driver().cuModuleGetFunction(
            ctypes.byref(function), _module(source, macros, device), name.encode()
        )
    )
    return Kernel(function, threads, device, overlapping)


@cache
def _module(source: str, macros: tuple[tuple[str, int], ...], device: int) -> ctypes.c_void_p:
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the context is there
        binary = compiled(source, macros, torch.cuda.get_device_capability(device))
        module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), binary))
    return module


def compiled(source: str, macros: Sequence[tuple[str, int]], capability: tuple[int, int]) -> bytes:
    """A cubin. No GPU is needed for it."""
    library = _nvrtc()
    options = [
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}",
        "--std=c++17",
        *(f"-D{name}={value}" for name, value in macros),
    ]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _ok(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
    )
    try:
        listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), listed):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {log.value.decode(errors='replace')}")
        _ok(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        _ok(library.nvrtcGetCUBIN(program, binary))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


@lru_cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@lru_cache
def _nvrtc() -> ctypes.CDLL:
    """The one of PyTorch's CUDA version, from among the installed packages where it lies there,
    with the library that it opens by its name alone; else by the name that the system knows."""
    major = (torch.version.cuda or "13.0").split(".")[0]
    windows = sys.platform == "win32"
    name = f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"
    folders = [Path(torch.__file__).parent / "lib"]
    for packages in (Path(torch.__file__).parent.parent, *map(Path, site.getsitepackages())):
        folders += sorted((packages / "nvidia").glob("*/lib"))
    for folder in folders:
        if (folder / name).is_file():
            for other in sorted(folder.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(folder / name))
    return ctypes.CDLL(name)


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({code})")


def _ok(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC: error {code}")
