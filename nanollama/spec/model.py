"""The learners: a union told apart by `implementation`, the transformer where it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from nanollama.spec.base import Problem, Problems, Spec, did_you_mean

LEARNERS = ("transformer", "mingru", "minlstm", "hawk", "mamba")
"""Values of `implementation`."""

Width = Annotated[int, Field(ge=1, le=2**20)]
ConvSize = Annotated[int, Field(ge=2, le=4)]
SpecT = TypeVar("SpecT", bound=Spec)


class LearnerSpec(Spec):
    """What every learner has: an embedding, residual layers, a normalisation and an output layer."""

    vocab_size: int | None = Field(default=None, ge=2, description="taken from the observed node when absent")
    emb_dim: int = Field(ge=2, le=2**16, description="width of the residual stream")
    nb_layers: int = Field(ge=1, le=1024, description="number of layers")
    weight_tying: bool = Field(default=False, description="share the embedding with the output layer")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of the RMS normalisation")
    init_std: float | None = Field(default=None, gt=0, description="std of the weights; 1/sqrt(fan_in) when absent")


class TransformerBlock(Spec):
    """One layer: causal attention with rotary positions, then a feed-forward."""

    nb_heads: int = Field(default=4, ge=1, description="attention heads; must divide emb_dim")
    nb_kv_heads: int | None = Field(default=None, ge=1, description="heads of keys and values; nb_heads when absent")
    rope_theta: float = Field(default=10_000.0, gt=1, description="base of the rotary frequencies")
    feed_forward: Literal["gelu", "swiglu"] = Field(default="gelu", description="what the feed-forward computes")
    hidden_dim: Width | None = Field(default=None, description="feed-forward width; 4 * emb_dim when absent")


class TransformerSpec(LearnerSpec):
    """A pre-norm decoder-only transformer."""

    implementation: Literal["transformer"] = "transformer"
    block: TransformerBlock = Field(default_factory=TransformerBlock)

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward."""
        return self.block.hidden_dim or 4 * self.emb_dim

    @property
    def nb_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.block.nb_kv_heads or self.block.nb_heads

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerSpec:
        heads = self.block.nb_heads
        problems = []
        if self.emb_dim % heads:
            message = f"emb_dim {self.emb_dim} is not divisible by block.nb_heads {heads}"
            problems.append(Problem(path="emb_dim", message=message, remedy=_near(self.emb_dim, 2 * heads)))
        elif (self.emb_dim // heads) % 2:
            odd = f"the head dimension emb_dim / nb_heads = {self.emb_dim // heads} is odd"
            message = f"{odd}, but rotary positions turn pairs of channels"
            problems.append(Problem(path="emb_dim", message=message, remedy=_near(self.emb_dim, 2 * heads)))
        if heads % self.nb_kv_heads:
            message = f"nb_kv_heads {self.nb_kv_heads} does not divide nb_heads {heads}"
            problems.append(Problem(path="block.nb_kv_heads", message=message, remedy=_divisors(heads)))
        return _unless(problems, self)


class MinimalBlock(Spec):
    """One layer: an elementwise gated recurrence, then, if wanted, a feed-forward."""

    nb_heads: int = Field(default=1, ge=1, description="blocks of the gates' maps; must divide emb_dim and hidden_dim")
    conv_size: ConvSize | None = Field(default=None, description="width of the convolution before; none when absent")
    hidden_dim: Width | None = Field(default=None, description="width of the recurrence; 3 * emb_dim when absent")
    ffn_dim: Width | None = Field(default=None, description="width of a GELU feed-forward; none when absent")


class _MinimalSpec(LearnerSpec):
    block: MinimalBlock = Field(default_factory=MinimalBlock)

    @property
    def hidden_dim(self) -> int:
        """Width of the recurrence."""
        return self.block.hidden_dim or 3 * self.emb_dim

    @model_validator(mode="after")
    def _check_heads(self) -> _MinimalSpec:
        heads = self.block.nb_heads
        problems = _undivided("emb_dim", self.emb_dim, heads)
        if self.block.hidden_dim is not None:  # 3 * emb_dim is divisible where emb_dim is
            problems += _undivided("block.hidden_dim", self.hidden_dim, heads)
        return _unless(problems, self)


class MinGRUSpec(_MinimalSpec):
    """Layers of minGRU, a GRU whose gates see the input alone."""

    implementation: Literal["mingru"] = "mingru"


class MinLSTMSpec(_MinimalSpec):
    """Layers of minLSTM, an LSTM whose gates see the input alone."""

    implementation: Literal["minlstm"] = "minlstm"


class HawkBlock(Spec):
    """One layer: a gated linear recurrence behind a convolution, then a gated feed-forward."""

    nb_heads: int = Field(default=4, ge=1, description="blocks of the gates' maps; must divide hidden_dim")
    conv_size: ConvSize | None = Field(default=4, description="width of the convolution; null for none")
    hidden_dim: Width | None = Field(default=None, description="width of the recurrence; 4 * emb_dim when absent")
    ffn_dim: Width | None = Field(default=None, description="width of the feed-forward; 4 * emb_dim when absent")


class HawkSpec(LearnerSpec):
    """Hawk: real-gated linear recurrent units and gated feed-forwards."""

    implementation: Literal["hawk"] = "hawk"
    block: HawkBlock = Field(default_factory=HawkBlock)

    @property
    def hidden_dim(self) -> int:
        """Width of the recurrence."""
        return self.block.hidden_dim or 4 * self.emb_dim

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward."""
        return self.block.ffn_dim or 4 * self.emb_dim

    @model_validator(mode="after")
    def _check_heads(self) -> HawkSpec:
        return _unless(_undivided("block.hidden_dim", self.hidden_dim, self.block.nb_heads), self)


class MambaBlock(Spec):
    """One layer: a selective state space whose decay is one number a head and position."""

    nb_heads: int = Field(default=4, ge=1, description="heads, each with its own decay; must divide hidden_dim")
    nb_groups: int = Field(default=1, ge=1, description="groups of heads that share B and C; must divide nb_heads")
    conv_size: ConvSize | None = Field(default=4, description="width of the convolution; null for none")
    hidden_dim: Width | None = Field(default=None, description="width of all heads; 3 * emb_dim when absent")
    state_dim: int = Field(default=128, ge=1, le=2**12, description="states that each channel of a head keeps")
    ssm_chunk_size: int = Field(default=64, ge=1, le=2**12, description="positions computed at once; speed only")


class MambaSpec(LearnerSpec):
    """Mamba-2: state space duality."""

    implementation: Literal["mamba"] = "mamba"
    block: MambaBlock = Field(default_factory=MambaBlock)

    @property
    def hidden_dim(self) -> int:
        """Width of all heads together."""
        return self.block.hidden_dim or 3 * self.emb_dim

    @model_validator(mode="after")
    def _check_heads(self) -> MambaSpec:
        heads, groups = self.block.nb_heads, self.block.nb_groups
        problems = _undivided("block.hidden_dim", self.hidden_dim, heads)
        if heads % groups:
            message = f"nb_groups {groups} does not divide nb_heads {heads}"
            problems.append(Problem(path="block.nb_groups", message=message, remedy=_divisors(heads)))
        return _unless(problems, self)


def _undivided(path: str, width: int, heads: int) -> list[Problem]:
    if width % heads == 0:
        return []
    message = f"{path.rpartition('.')[2]} {width} is not divisible by block.nb_heads {heads}"
    return [Problem(path=path, message=message, remedy=_near(width, heads))]


def _near(width: int, step: int) -> str:
    low, high = width // step * step, (width // step + 1) * step
    return "use " + (f"{low} or {high}" if low else f"{high}")


def _divisors(number: int) -> str:
    return "use " + ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _unless(problems: list[Problem], spec: SpecT) -> SpecT:
    if problems:
        raise Problems(problems)
    return spec


def _known_learner(value: Any) -> Any:
    """Fill in the learner that was left out, and refuse one that is unknown at the key that names it."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("implementation")
    if name in (None, ""):
        return {**value, "implementation": LEARNERS[0]}
    if name in LEARNERS:
        return value
    remedy = did_you_mean(name, LEARNERS) if isinstance(name, str) else "known: " + ", ".join(LEARNERS)
    raise Problems([Problem(path="implementation", message=f"no learner is called {name!r}", remedy=remedy)])


def _implementation(value: Any) -> str:
    name = value.get("implementation") if isinstance(value, Mapping) else getattr(value, "implementation", None)
    return name if isinstance(name, str) else LEARNERS[0]


ModelSpec = Annotated[
    Annotated[
        Annotated[TransformerSpec, Tag("transformer")]
        | Annotated[MinGRUSpec, Tag("mingru")]
        | Annotated[MinLSTMSpec, Tag("minlstm")]
        | Annotated[HawkSpec, Tag("hawk")]
        | Annotated[MambaSpec, Tag("mamba")],
        Discriminator(_implementation),
    ],
    BeforeValidator(_known_learner),
]
