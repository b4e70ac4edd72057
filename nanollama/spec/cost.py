"""What a learner costs, by closed forms: its parameters, and the operations of a token in training.

They agree with the modules of nanollama.model to the last number, and need none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanollama.spec.model import HawkSpec, MambaSpec, MinGRUSpec, MinLSTMSpec, ModelSpec, TransformerSpec


@dataclass(frozen=True)
class Layer:
    """Of one layer.

    Attributes:
        products: entries of the matrices by which every token is multiplied.
        others: gains, biases, decays and convolutions.
    """

    products: int
    others: int


@dataclass(frozen=True)
class Cost:
    """Of a learner.

    Attributes:
        parameters: trainable numbers; a weight that is shared counts once.
        flops_per_token: of matrix products, forward and backward, as Learner.flops_per_token counts them.
    """

    parameters: int
    flops_per_token: float


def cost_of(spec: ModelSpec, *, vocab: int, seq_len: int) -> Cost:
    """What a learner costs on sequences of `seq_len` tokens, the start token included, over `vocab` symbols."""
    symbols = spec.vocab_size or vocab
    return Cost(num_parameters(spec, symbols), flops_per_token(spec, symbols, seq_len - 1))


def num_parameters(spec: ModelSpec, vocab_size: int) -> int:
    """Trainable numbers of a learner over `vocab_size` symbols."""
    layer = layer_of(spec)
    tables = 1 if spec.weight_tying else 2
    return tables * vocab_size * spec.emb_dim + spec.emb_dim + spec.nb_layers * (layer.products + layer.others)


def flops_per_token(spec: ModelSpec, vocab_size: int, seq_len: int) -> float:
    """Operations of a token in training, of sequences of which `seq_len` tokens go in."""
    products = spec.nb_layers * layer_of(spec).products + vocab_size * spec.emb_dim
    return 3 * (2.0 * products + spec.nb_layers * mixing_flops(spec, seq_len))


def layer_of(spec: ModelSpec) -> Layer:
    """The numbers of one layer of a learner."""
    if isinstance(spec, TransformerSpec):
        return _transformer(spec)
    if isinstance(spec, HawkSpec):
        return _hawk(spec)
    if isinstance(spec, MambaSpec):
        return _mamba(spec)
    return _minimal(spec)


def mixing_flops(spec: ModelSpec, seq_len: int) -> float:
    """Operations forward, for a token and layer, of the products of activations with each other."""
    if isinstance(spec, TransformerSpec):
        return 4.0 * seq_len * spec.emb_dim
    if isinstance(spec, MambaSpec):
        block = spec.block
        num_chunks = math.ceil(seq_len / block.ssm_chunk_size)
        size = math.ceil(seq_len / num_chunks)
        within = 2.0 * size * (block.nb_groups * block.state_dim + spec.hidden_dim)
        return (within + 4.0 * block.state_dim * spec.hidden_dim) * num_chunks * size / seq_len
    return 0.0


def _transformer(spec: TransformerSpec) -> Layer:
    width, head_dim = spec.emb_dim, spec.emb_dim // spec.block.nb_heads
    attention = width * (width + 2 * spec.nb_kv_heads * head_dim) + width * width
    matrices = 3 if spec.block.feed_forward == "swiglu" else 2
    return Layer(attention + matrices * width * spec.hidden_dim, 2 * width)


def _minimal(spec: MinGRUSpec | MinLSTMSpec) -> Layer:
    block, width, hidden = spec.block, spec.emb_dim, spec.hidden_dim
    gates = 2 if isinstance(spec, MinGRUSpec) else 3
    feed_forward = 2 * width * block.ffn_dim if block.ffn_dim else 0
    gains = width if block.ffn_dim is None else 2 * width
    products = gates * width * hidden // block.nb_heads + hidden * width + feed_forward
    return Layer(products, gates * hidden + _convolution(width, block.conv_size) + gains)


def _hawk(spec: HawkSpec) -> Layer:
    width, hidden = spec.emb_dim, spec.hidden_dim
    products = 3 * width * hidden + 2 * hidden * hidden // spec.block.nb_heads + 3 * width * spec.ffn_dim
    return Layer(products, 3 * hidden + _convolution(hidden, spec.block.conv_size) + 2 * width)


def _mamba(spec: MambaSpec) -> Layer:
    block, width, hidden = spec.block, spec.emb_dim, spec.hidden_dim
    mixed = hidden + 2 * block.nb_groups * block.state_dim
    products = width * (hidden + mixed + block.nb_heads) + hidden * width
    return Layer(products, _convolution(mixed, block.conv_size) + 3 * block.nb_heads + width + hidden)


def _convolution(channels: int, width: int | None) -> int:
    """Weights and biases of a convolution of each channel by itself."""
    return 0 if width is None else channels * (width + 1)
