"""Where and how PyTorch computes: device, precision, memory, oneDNN's layout, processes."""

import ctypes
import math
import mmap
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from statistics import median

from speech.cli import RANK, WORLD, InputError

import torch
from torch import nn

TRIED_SECONDS = 10  # other work comes and goes; to try takes 40 ms
suitable = {"threads": 1, "until": -math.inf}
MOST_THREADS = torch.get_num_threads()  # as many as there are cores, or OMP_NUM_THREADS
MALLOC = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4, "arena_max": -8}  # mallopt's


# --- device and precision -----------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator where PyTorch sees one; torchrun gives each process its own."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: PyTorch cannot use it here; try cpu") from error
    return torch.device(name)


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 natively."""
    if not hasattr(torch.cpu, "get_capabilities"):  # it is new in PyTorch 2.11
        return torch.cpu._is_avx512_bf16_supported()
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def pick_precision(name: str, device: torch.device) -> AbstractContextManager:
    """The autocast context for auto, fp32 or bf16.

    auto is bf16 where the processor or GPU multiplies it natively; elsewhere bf16 is slower.
    """
    if device.type == "cpu":
        native = multiplies_bf16()
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = name == "bf16" or (name == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


# --- threads ------------------------------------------------------------------------------------


def quickest_threads(worth: float = 1.15) -> int:
    """As many threads as PyTorch finds, or 1 if these are no quicker just now.

    Beside other work the threads of a step wait for the one that has to share its core: two are
    then slower than one. Tried on a convolution as the CNN-DNN's, for some 40 ms.

    Args:
        worth: how much quicker many have to be, as one does not suffer from what begins later.
    """
    if MOST_THREADS == 1:
        return 1
    x, weight = torch.ones(2, 32, 64, 64), torch.ones(64, 32, 3, 3)
    seconds = {1: [], MOST_THREADS: []}
    for count in tuple(seconds) * 5:
        torch.set_num_threads(count)
        start = time.perf_counter()
        torch.conv2d(x, weight)
        seconds[count].append(time.perf_counter() - start)
    torch.set_num_threads(MOST_THREADS)
    one, most = (median(times[1:]) for times in seconds.values())
    return MOST_THREADS if one > worth * most else 1


def suit_threads() -> None:
    """Makes what this thread computes next take the number that was quickest a moment ago."""
    if time.monotonic() > suitable["until"]:
        suitable.update(threads=quickest_threads(), until=time.monotonic() + TRIED_SECONDS)
    torch.set_num_threads(suitable["threads"])


# --- memory -------------------------------------------------------------------------------------


def set_malloc(**options: int) -> None:
    """Sets how the C library takes and keeps memory, where that is glibc: MALLOC's options."""
    with suppress(AttributeError, TypeError, OSError):  # other systems have no mallopt
        for name, value in options.items():
            ctypes.CDLL(None).mallopt(MALLOC[name], value)


def keep_little_memory() -> None:
    """Makes glibc keep little of what is freed, and large tensors not at all.

    At rest some 60 MB more than if nothing were kept, after 400 calls of up to 70 clips; flat.

    Of two clips the CNN's largest tensor takes 8 MiB, 10 in huge pages. With 64 KiB in the place
    of the 16 MiB every tensor came from the system, which clears it first: 1.7 times the time.
    Threads share a heap, instead of keeping one each.
    """
    set_malloc(mmap_threshold=2**24, trim_threshold=2**25, arena_max=1)


@cache
def reuse_freed_memory(reserve: int = 2**32) -> None:
    """Makes glibc keep what tensors free for those to come, and in huge pages.

    Otherwise every step waits for the system to clear the same memory again: up to twice the time.

    Args:
        reserve: bytes of address space that get huge pages. No memory is taken until it is used.
    """
    set_malloc(mmap_max=0, trim_threshold=-1)
    with suppress(AttributeError, TypeError, OSError):
        advice, libc = mmap.MADV_HUGEPAGE, ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        if start := libc.malloc(ctypes.c_size_t(reserve)):
            page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # the first whole one
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(start + reserve - page), advice)
            libc.free(ctypes.c_void_p(start))


# --- oneDNN -------------------------------------------------------------------------------------


def to_onednn(x: torch.Tensor) -> torch.Tensor:
    """`x` in oneDNN's own layout on processors for which it has fast code, otherwise as it is.

    Batch-norm and pooling in that layout make a step 1.2 times faster than in PyTorch's own.
    """
    bf16 = torch.is_autocast_enabled("cpu")
    fast = torch.backends.cpu.get_cpu_capability() in (("AVX512",) if bf16 else ("AVX512", "AVX2"))
    if x.device.type != "cpu" or not (fast and torch.backends.mkldnn.is_available()):
        return x
    return x.to_mkldnn(torch.bfloat16 if bf16 else torch.float32)


def convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`conv(x)`; in oneDNN's layout torch.nn refuses bf16, which oneDNN itself takes."""
    if not x.is_mkldnn:
        return conv(x)
    bias, how = conv.bias.to(x.dtype), (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.mkldnn_convolution(x, conv.weight, bias, *how)


# --- several processes --------------------------------------------------------------------------


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether another process of torchrun's has gone; gloo reports it as a plain RuntimeError."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def joined_processes(device: torch.device) -> Iterator[None]:
    """Joins the other processes of torchrun, if there are any; reports one that is lost.

    Raises:
        InputError: another process has ended, or memory ran out.
    """
    try:
        if WORLD > 1:
            # Of a convolution with one input channel, whose strides can be given in two ways.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"{device} ran out of memory: lower --batch-size") from error
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise InputError("another process of this run has ended: go on with --resume") from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def wait_for_first(work) -> None:
    """Runs `work()` on the first process only, while the others wait."""
    if RANK == 0:
        work()
    if WORLD > 1:
        torch.distributed.barrier()
