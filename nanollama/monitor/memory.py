"""What to say when the memory of a device is too small for a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Work:
    """What one rank computes at a time.

    Attributes:
        batch_size: sequences per step, over all ranks.
        ranks: number of ranks.
        grad_acc_steps: micro-batches per step.
        seq_len: tokens per sequence.
        num_parameters: weights of the learner.
    """

    batch_size: int
    ranks: int
    grad_acc_steps: int
    seq_len: int
    num_parameters: int

    @property
    def own_batch(self) -> int:
        """Sequences of one rank per step."""
        return self.batch_size // self.ranks


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ended for want of memory, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def out_of_memory(work: Work, device: torch.device) -> str:
    """The message for a device that is too small: what was tried, what memory there is, and what to lower."""
    micro_batch = work.own_batch // work.grad_acc_steps
    name = f"CUDA device {device.index or 0}" if device.type == "cuda" else "this machine"
    tried = (
        f"{name} is out of memory with {micro_batch} sequences of {work.seq_len} tokens at a time"
        f" (batch {work.batch_size} over {work.ranks} ranks x {work.grad_acc_steps} accumulation steps)"
        f" and {work.num_parameters:,} parameters"
    )
    more_steps = next((n for n in range(work.grad_acc_steps + 1, work.own_batch + 1) if work.own_batch % n == 0), None)
    if more_steps is not None:
        remedy = f"use optim.grad_acc_steps={more_steps}, which trains on the same batches in smaller parts"
    else:
        remedy = "a part is a single sequence already: lower data.seq_len, model.emb_dim or model.nb_layers"
    return f"{tried}{_figures(device)} - {remedy}"


def _figures(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    held, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    sizes = [f"{size / 2**30:.2f}" for size in (total, free, held, peak)]
    return f"; of {sizes[0]} GiB {sizes[1]} are free, and this run holds {sizes[2]}, {sizes[3]} at its peak"
