"""Weights that are cut in shards, one a rank: FSDP2, and whole tensors from shards and back.

Importing this takes a second: only runs that use it do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(model: nn.Module) -> None:
    """Cut the weights of a learner in place: a layer's are gathered when it computes, the others with the first."""
    layers = model.get_submodule("layers")
    for layer in layers.children():
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "hidden_states")


def whole(value: Any, *, keep: bool = True) -> Any:
    """Nested mappings and lists with whole tensors in place of shards. Every rank must ask for the same.

    Args:
        value: what to look through.
        keep: whether this rank wants the tensors; where not, shards become None, and their memory is let go at once.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.detach() if keep else None
    if isinstance(value, Mapping):
        return {key: whole(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep=keep) for item in value)
    return value


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a model whose weights may be cut; every rank holds them all."""
    places = model.state_dict()
    model.load_state_dict({name: _like(weight, places[name]) for name, weight in weights.items()})


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the whole state of an optimizer whose weights may be cut; every rank holds it all."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        number: {name: _like(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _like(value: Any, place: Tensor) -> Any:
    """A tensor of the shape of `place`, cut as that is; all else as it is."""
    if not isinstance(place, DTensor) or not isinstance(value, Tensor) or value.shape != place.shape:
        return value
    return distribute_tensor(value.detach().to(place.device), place.device_mesh, place.placements)
