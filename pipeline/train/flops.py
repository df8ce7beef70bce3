"""Peak arithmetic of known GPUs, for the utilisation on the log line."""

from __future__ import annotations

import torch

# Dense peak without the sparsity factor, TFLOP/s: datasheets of each card.
_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "H100": {"bf16": 989, "fp16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 19.5},
    "L40S": {"bf16": 362, "fp16": 362, "fp32": 91.6},
    "L4": {"bf16": 121, "fp16": 121, "fp32": 30.3},
    "A10": {"bf16": 125, "fp16": 125, "fp32": 31.2},
    "V100": {"fp16": 125, "fp32": 15.7},
    "T4": {"fp16": 65, "fp32": 8.1},
    "RTX 4090": {"bf16": 165, "fp16": 165, "fp32": 82.6},
    "RTX 3090": {"bf16": 71, "fp16": 71, "fp32": 35.6},
}


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Dense peak of the device in FLOP/s, or None where it is not known: then no MFU is shown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for card, peaks in _PEAK_TFLOPS.items():
        if card in name:
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None
