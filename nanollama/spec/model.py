"""The learners."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nanollama.spec.base import Problem, Problems, Spec


class TransformerBlock(Spec):
    """One block: causal attention with rotary positions, then a GELU feed-forward."""

    nb_heads: int = Field(default=4, ge=1, description="attention heads; must divide emb_dim")
    rope_theta: float = Field(default=10_000.0, gt=1, description="base of the rotary frequencies")
    hidden_dim: int | None = Field(default=None, ge=1, description="feed-forward width; 4 * emb_dim when absent")


class TransformerSpec(Spec):
    """A pre-norm decoder-only transformer."""

    implementation: Literal["transformer"] = "transformer"
    vocab_size: int | None = Field(default=None, ge=2, description="taken from the observed node when absent")
    emb_dim: int = Field(ge=2, le=2**16, description="width of the residual stream")
    nb_layers: int = Field(ge=1, le=1024, description="number of blocks")
    weight_tying: bool = Field(default=False, description="share the embedding with the output layer")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of the RMS normalisation")
    init_std: float | None = Field(default=None, gt=0, description="std of the weights; 1/sqrt(fan_in) when absent")
    block: TransformerBlock = Field(default_factory=TransformerBlock)

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerSpec:
        heads = self.block.nb_heads
        if self.emb_dim % heads:
            message = f"emb_dim {self.emb_dim} is not divisible by block.nb_heads {heads}"
            raise Problems([Problem(path="emb_dim", message=message, remedy=_near(self.emb_dim, heads))])
        if (self.emb_dim // heads) % 2:
            odd = f"the head dimension emb_dim / nb_heads = {self.emb_dim // heads} is odd"
            message = f"{odd}, but rotary positions turn pairs of channels"
            raise Problems([Problem(path="emb_dim", message=message, remedy=_near(self.emb_dim, heads))])
        return self


def _near(emb_dim: int, heads: int) -> str:
    step = 2 * heads
    low, high = emb_dim // step * step, (emb_dim // step + 1) * step
    return "use " + (f"{low} or {high}" if low else f"{high}")


ModelSpec = TransformerSpec
