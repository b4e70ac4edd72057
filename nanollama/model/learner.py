"""What all learners have in common: the residual stream around their layers, generation, and what a token costs.

Shapes: B batch, T positions, D residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanollama.model.norm import RMSNorm
from nanollama.model.recurrent import BlockLinear
from nanollama.spec.model import LearnerSpec

LayerState = dict[str, Tensor]
"""What a layer keeps of the tokens before, by name; empty before the first. The layer reads it and writes it anew."""

TO_STREAM = (".out.weight", ".contract.weight")
"""Ends of the names of the weights that write to the residual stream."""


@dataclass(frozen=True)
class Flops:
    """Floating point operations of matrix products, 2mnk for [m, k] times [k, n]; elementwise work is not counted."""

    forward: float
    backward: float

    @classmethod
    def of_products(cls, forward: float) -> Flops:
        """Of products whose factors both get a gradient: one more product for each."""
        return cls(forward, 2 * forward)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> float:
        """Of a training step."""
        return self.forward + self.backward


class Layer(nn.Module):
    """One step along the residual stream."""

    def forward(self, x_BTD: Tensor, state: LayerState | None, *shared: Any) -> Tensor:
        """The stream after this layer, [B, T, D]; with a state, x_BTD continues the tokens that the state has seen."""
        raise NotImplementedError

    def mixing_flops(self, seq_len: int) -> Flops:  # noqa: ARG002 - most need no length
        """Per token, of the products of activations with each other, as in attention; those with weights aside."""
        return Flops(0, 0)


class Learner(nn.Module):
    """Predicts each next token from those up to it: embedding, layers, normalisation, output."""

    def __init__(self, spec: LearnerSpec, vocab_size: int, make_layer: Callable[[], Layer]) -> None:
        """`make_layer` is called once for each of spec.nb_layers; torch's generator draws the weights."""
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, spec.emb_dim)
        self.layers = nn.ModuleList(make_layer() for _ in range(spec.nb_layers))
        self.norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.output = nn.Linear(spec.emb_dim, vocab_size, bias=False)
        if spec.weight_tying:
            self.output.weight = self.embedding.weight
        self._initialise(spec.init_std)

    def forward(self, tokens_BT: Tensor, state: Sequence[LayerState] | None = None) -> Tensor:
        """Logits [B, T, V] of the token that follows each of tokens_BT (integers in [0, V)).

        Given a state, the tokens continue those that the state has seen, and it is brought up to date.
        """
        for x_BTD in self._streams(tokens_BT, state):
            last_BTD = x_BTD
        logits_BTV: Tensor = self.output(self.norm(last_BTD))
        return logits_BTV

    def hidden_states(self, tokens_BT: Tensor) -> list[Tensor]:
        """The residual stream [B, T, D] after the embedding and after each layer."""
        return list(self._streams(tokens_BT, None))

    def initial_state(self) -> list[LayerState]:
        """A state that has seen no token, for `forward`."""
        return [{} for _ in self.layers]

    @torch.no_grad()
    def generate(
        self, prompt_BT: Tensor, num_tokens: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The prompts and num_tokens more, [B, T + num_tokens], each drawn given all before it.

        Args:
            prompt_BT: at least one token a sequence.
            num_tokens: how many to add.
            temperature: the logits are divided by it; 0 takes the likeliest token.
            generator: of the draws, on the device of the prompt; torch's own when absent.

        Raises:
            ValueError: an empty prompt, or a negative number of tokens or temperature.
        """
        if prompt_BT.ndim != 2 or prompt_BT.shape[1] == 0:
            raise ValueError(f"a prompt needs the shape [B, T] with T >= 1, found {list(prompt_BT.shape)}")
        if num_tokens < 0 or temperature < 0:
            raise ValueError(f"num_tokens {num_tokens} and temperature {temperature} must not be negative")
        state, pieces = self.initial_state(), [prompt_BT]
        for _ in range(num_tokens):
            logits_BV = self._uncompiled(pieces[-1], state)[:, -1].float()
            if temperature == 0:
                next_BT = logits_BV.argmax(dim=-1, keepdim=True)
            else:
                next_BT = (logits_BV / temperature).softmax(dim=-1).multinomial(1, generator=generator)
            pieces.append(next_BT)
        return torch.cat(pieces, dim=1)

    def flops_per_token(self, seq_len: int) -> Flops:
        """Of one token of a sequence of seq_len, on average.

        Each weight meets each token once. Attention is counted over the whole square of positions, as torch's counter
        and the usual 12 * layers * D * T do, although causal kernels skip half of it; what a kernel computes anew in
        its backward pass is not counted.
        """
        products = [module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear | BlockLinear)]
        total = Flops.of_products(2.0 * sum(products))
        for layer in self.layers:
            assert isinstance(layer, Layer)
            total += layer.mixing_flops(seq_len)
        return total

    def shared(self, x_BTD: Tensor, state: Sequence[LayerState] | None) -> tuple[Any, ...]:  # noqa: ARG002
        """Further arguments of every layer, computed once."""
        return ()

    def _streams(self, tokens_BT: Tensor, state: Sequence[LayerState] | None) -> Iterator[Tensor]:
        x_BTD = self.embedding(tokens_BT)
        shared = self.shared(x_BTD, state)
        yield x_BTD
        for i, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, None if state is None else state[i], *shared)
            yield x_BTD

    def _uncompiled(self, tokens_BT: Tensor, state: Sequence[LayerState]) -> Tensor:
        """Call this module without torch.compile: the growing state would have it compiled again at every token."""
        with torch.compiler.set_stance("force_eager"):
            logits_BTV: Tensor = self(tokens_BT, state)
        return logits_BTV

    @torch.no_grad()
    def _initialise(self, std: float | None) -> None:
        """Draw every matrix from a normal cut at three deviations, std or 1/sqrt(fan_in).

        The weights that write to the residual stream are scaled down by the root of their number, so that the
        stream's variance does not grow with depth (Radford et al. 2019). The embedding counts as a matrix of fan-in D,
        which is what it is when it is shared with the output layer. Gains, biases and decays are as their modules
        leave them.
        """
        matrices = {name: weight for name, weight in self.named_parameters() if weight.ndim >= 2}
        depth_scale = sum(name.endswith(TO_STREAM) for name in matrices) ** -0.5
        for name, weight in matrices.items():
            deviation = std if std is not None else weight.shape[1] ** -0.5
            if name.endswith(TO_STREAM):
                deviation *= depth_scale
            nn.init.trunc_normal_(weight, std=deviation, a=-3 * deviation, b=3 * deviation)
