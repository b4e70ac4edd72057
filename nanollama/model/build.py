"""From a model spec to a learner."""

from __future__ import annotations

from torch import nn

from nanollama.model.hawk import Hawk
from nanollama.model.learner import Learner
from nanollama.model.mamba import Mamba
from nanollama.model.minrnn import MinGRU, MinLSTM
from nanollama.model.transformer import Transformer
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.model import HawkSpec, MambaSpec, MinGRUSpec, MinLSTMSpec, ModelSpec


def build_model(spec: ModelSpec, vocab_size: int) -> Learner:
    """A freshly initialised learner that maps tokens [B, T] to logits [B, T, V]; torch's generator draws the weights.

    Args:
        spec: the learner; its `vocab_size`, where given, is V.
        vocab_size: number of symbols of the data; V when the spec leaves it out.

    Raises:
        SpecError: the spec's vocabulary is smaller than that of the data.
    """
    if spec.vocab_size is not None and spec.vocab_size < vocab_size:
        message = f"vocab_size {spec.vocab_size} is below the {vocab_size} symbols of the data"
        remedy = f"remove it or use at least {vocab_size}"
        raise SpecError([Problem(path="model.vocab_size", message=message, remedy=remedy)])
    vocab_size = spec.vocab_size or vocab_size
    if isinstance(spec, MinGRUSpec):
        return MinGRU(spec, vocab_size)
    if isinstance(spec, MinLSTMSpec):
        return MinLSTM(spec, vocab_size)
    if isinstance(spec, HawkSpec):
        return Hawk(spec, vocab_size)
    if isinstance(spec, MambaSpec):
        return Mamba(spec, vocab_size)
    return Transformer(spec, vocab_size)


def num_parameters(model: nn.Module) -> int:
    """Number of trainable numbers; a weight that is shared counts once."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
