from __future__ import annotations

import pytest
import torch

from nanollama.monitor.memory import Work, is_out_of_memory, out_of_memory

GIB = 2**30


def test_batch_and_memory_figures_and_what_to_lower_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB // 4, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 70 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 79.5 * GIB)
    assert out_of_memory(Work(64, 2, 2, 1024, 124_000_000), torch.device("cuda", 1)) == (
        "the CUDA is out of memory with 16 sequences of 1024 tokens at a time (batch 64 over 2 ranks x 2 accumulation "
        "steps) and 124,000,000 parameters; of 80.00 GiB 0.25 are free, and this run holds 70.00, 79.50 at its peak - "
        "use optim.grad_acc_steps=4, which trains on the same batches in smaller parts"
    ).replace("the CUDA", "CUDA device 1")


@pytest.mark.parametrize(("batch", "steps", "proposed"), [(12, 1, 2), (12, 2, 3), (12, 4, 6), (9, 1, 3), (7, 1, 7)])
def test_the_next_number_of_parts_that_divides_the_batch_is_proposed(batch: int, steps: int, proposed: int) -> None:
    message = out_of_memory(Work(batch, 1, steps, 16, 1), torch.device("cpu"))
    assert f"use optim.grad_acc_steps={proposed}," in message


def test_with_single_sequences_the_learner_or_the_sequences_must_be_smaller() -> None:
    assert "lower data.seq_len, model.emb_dim" in out_of_memory(Work(8, 2, 4, 16, 1), torch.device("cpu"))


def test_want_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
