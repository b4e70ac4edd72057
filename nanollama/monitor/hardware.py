"""What a device can do at best, and how much of its memory is in use."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

GIB = 2**30

PEAKS = {
    "B200": (2250e12, 75e12),
    "GH200": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (150e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10": (125e12, 31.2e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX A6000": (155e12, 38.7e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}
"""FLOP/s of dense matrix products in bfloat16 and in float32 by the name of the GPU, from NVIDIA's data sheets. The
first name that a device's own contains counts."""


def peak_flops(device_name: str, *, bfloat16: bool) -> float | None:
    """FLOP/s that a GPU of this name reaches at best in matrix products of the type; None where it is not known."""
    for name, (half, single) in PEAKS.items():
        if name in device_name:
            return half if bfloat16 else single
    return None


def device_peak(device: torch.device, *, bfloat16: bool) -> float | None:
    """As peak_flops, of this device; None for a CPU."""
    return peak_flops(torch.cuda.get_device_name(device), bfloat16=bfloat16) if device.type == "cuda" else None


def memory_in_use(device: torch.device) -> float:
    """GiB: on a GPU the most that this process has allocated on it, else the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # a system without it tells the most there has been, in KiB or, on macOS, in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (GIB if sys.platform == "darwin" else 2**20)
    return pages * resource.getpagesize() / GIB
