"""A few rows of attention, made from queries and keys: no weights are asked of the model, no square is formed."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.adapters.decoder.attention_taps import AttentionCall, tapped
from vidsieve.adapters.transformers_internals import unread_configuration
from vidsieve.framework.errors import ModelError


@dataclass(frozen=True, eq=False, kw_only=True)
class Tapped:
    """Queries and keys of a layer in one pass, rotated; keys of earlier turns stand in front.

    `real` marks the columns of the pass that are no padding, `past` the same for what the cache held before.
    """

    query: Float[Tensor, "rows heads new dim"]
    key: Float[Tensor, "rows kv_heads keys dim"]
    scaling: float
    real: Bool[Tensor, "prompts new"]
    past: Bool[Tensor, "prompts past"]

    def rows(
        self, batch_row: int, prompt: int, asked: Int[Tensor, " asked"], visual: Int[Tensor, " visual"]
    ) -> Float[Tensor, "heads asked visual"]:
        """Softmax over every key a query may see, at the visual columns; float32, keys shared by groups of heads."""
        key = self.key[batch_row].float()
        asked, visual = asked.to(key.device), visual.to(key.device)
        query = self.query[batch_row, :, asked].float()
        grouped = query.view(key.shape[0], -1, *query.shape[1:])
        logits = torch.einsum("kgqd,ksd->kgqs", grouped, key) * self.scaling
        place = torch.arange(self.real.shape[1], device=key.device)
        new = self.real[prompt].to(key.device) & (place <= asked[:, None])
        past = self.past[prompt].to(key.device).expand(len(asked), -1)
        logits = logits.masked_fill(~torch.cat([past, new], dim=1), -torch.inf)
        weights = logits.softmax(dim=-1)[..., self.past.shape[1] + visual]
        return weights.flatten(0, 1)

    def keys(self, batch_row: int, places: Int[Tensor, " asked"]) -> Float[Tensor, "kv_heads asked dim"]:
        """The keys of some columns of the pass, in float32."""
        return self.key[batch_row, :, self.past.shape[1] + places.to(self.key.device)].float()


def ones_rotated(
    decoder: Any,
    rotation: tuple[Float[Tensor, "rows new turned"], Float[Tensor, "rows new turned"]],
    batch_row: int,
    asked: Int[Tensor, " asked"],
    visual: Int[Tensor, " visual"],
    head_dim: int,
) -> Float[Tensor, "asked visual"]:
    """Scaled product of queries and keys whose `head_dim` channels are all one, rotated as a layer does, in float32.

    Two ones turned by the angles a and b give 2 cos(a - b), however a model pairs channels; channels that are not
    turned give one each.

    Raises:
        ModelError: the cosines have an axis for each axis of M-RoPE, which this release does not mix.
    """
    cosine, sine = rotation
    if cosine.dim() != 3:
        raise ModelError(
            f"rotary weights of {type(decoder).__name__}: cosines of (rows, tokens, channels) asked, got "
            f"{tuple(cosine.shape)}; leave out the setting that reads them."
        )
    row = min(batch_row, len(cosine) - 1)
    both = torch.cat([cosine[row], sine[row]], dim=-1).float()
    pairs = getattr(decoder.rotary_emb, "inv_freq", cosine[0, 0, ::2]).numel()
    turned = both[asked.to(both.device)] @ both[visual.to(both.device)].T * (2 * pairs / cosine.shape[-1])
    return (turned + head_dim - 2 * pairs) / head_dim**0.5


def scaling_of(call: AttentionCall) -> float:
    """What a kernel multiplies its logits with."""
    given = call.options.get("scaling")
    return float(call.query.shape[-1] ** -0.5 if given is None else given)


def queries_and_keys(layer: Any, number: int, hidden: Float[Tensor, "rows new dim"], embeddings: Any) -> AttentionCall:
    """What a decoder layer's attention would be called with on `hidden`: its norm, projections and rotation only."""
    found: list[AttentionCall] = []

    def grab(call: AttentionCall) -> Any:
        found.append(call)
        return torch.zeros_like(call.query.transpose(1, 2)), None

    with tapped({number: layer.self_attn}, grab):
        layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=embeddings,
            attention_mask=None,
            past_key_values=None,
        )
    if not found:
        raise unread_configuration(layer.self_attn)
    return found[0]
