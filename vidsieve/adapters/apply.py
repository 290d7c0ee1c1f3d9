"""`applied` and `compress`: a policy around an ordinary `model.generate(**inputs)`, or around a plain forward."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.generate_call import GenerateCall
from vidsieve.adapters.prompt.positions import has_mrope, model_positions, text_positions
from vidsieve.adapters.prompt.reading import filler_id, read_mask
from vidsieve.adapters.prompt.shortening import Request, Shortened, shorten
from vidsieve.adapters.vision.encoding import encode, vision_names
from vidsieve.framework import registry
from vidsieve.framework.errors import InputError, ModelError, PolicyError, UsageError
from vidsieve.framework.hookspecs import STAGE_HOOKS
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


def adapter_for(model: VideoModel) -> Adapter:
    """The adapter of a model's family.

    Raises:
        ModelError: no adapter fits its class; the message lists the classes that have one.
    """
    adapters = registry.default().models.values()
    for adapter in adapters:
        if adapter.fits(type(model)):
            return adapter
    known = ", ".join(sorted(name for adapter in adapters for name in adapter.model_classes))
    raise ModelError(
        f"model: no adapter for {type(model).__name__}. Adapters exist for: {known}. Pass the "
        "...ForConditionalGeneration model itself, or write an adapter."
    )


def check_policy(adapter: Adapter, policy: Policy) -> None:
    """Refuse, before the model runs, a policy that this family cannot carry out.

    Raises:
        PolicyError: a stage acts where the adapter cannot, or needs an input the adapter does not offer.
    """
    for bound in policy.stages:
        where = f"policy {policy.name!r}, stage {bound.label!r}"
        for hook in bound.stage.hooks():
            if hook not in adapter.runs:
                can = ", ".join(name for name in STAGE_HOOKS if name in adapter.runs)
                raise PolicyError(
                    f"{where}: acts in {hook}, which the adapter for {adapter.family} does not carry out (it runs "
                    f"{can}). Use a policy without that stage."
                )
        missing = sorted(bound.stage.needs() - adapter.offers)
        if missing:
            raise PolicyError(
                f"{where}: needs {', '.join(missing)}, which the adapter for {adapter.family} does not offer (it "
                f"offers {', '.join(sorted(adapter.offers))}). Use another stage or model family."
            )


@dataclass(eq=False)
class Applied:
    """What `applied` yields. `reports[-1]` tells what the policy did in the last call of `generate`."""

    model: VideoModel
    adapter: Adapter
    policy: Policy
    seed: int = 0
    reports: list[Report] = field(default_factory=list)


@contextmanager
def applied(model: VideoModel, policy: Policy, *, seed: int = 0) -> Iterator[Applied]:
    """While open, `model.generate(**inputs)` runs under `policy`; callers keep their inputs and outputs.

    Returned sequences hold the original prompt, `max_length` counts it, and a cache that a call returned may be given
    to the next one together with the full-length ids. Streamers and stopping rules: a streamer sees the original
    prompt once; logits processors and stopping criteria see the shortened one. Plain `model(**inputs)` is not
    touched (see `compress`). One call at a time; not for use from several threads. When the block ends, also by an
    exception, the model is as it was.

    Args:
        model: a transformers video LLM whose family has an adapter.
        policy: what `load_policy` gave.
        seed: of stages that draw random numbers.

    Raises:
        ModelError: no adapter for this class.
        PolicyError: the family cannot carry the policy out.
        UsageError: a policy is already applied to this model.
    """
    adapter = adapter_for(model)
    check_policy(adapter, policy)
    found = vars(model).get("generate")
    if isinstance(found, _Generate):
        raise UsageError(
            f"applied: policy {found.handle.policy.name!r} is already applied to this model; leave its `with` block "
            f"before applying {policy.name!r}."
        )
    handle = Applied(model, adapter, policy, seed)
    model.generate = _Generate(handle, model.generate)
    try:
        yield handle
    finally:
        if found is None:
            del model.generate
        else:
            model.generate = found


class _Generate:
    """Stands for `model.generate` on the instance while a policy is applied."""

    def __init__(self, handle: Applied, original: Any) -> None:
        self.handle, self.original = handle, original
        self.__wrapped__ = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handle = self.handle
        call = GenerateCall(handle.adapter, handle.model, handle.policy, handle.seed)
        output, report = call.run(self.original, args, kwargs)
        handle.reports.append(report)
        return output


def compress(
    model: VideoModel, inputs: Mapping[str, Any], policy: Policy, *, seed: int = 0
) -> tuple[dict[str, Any], Report]:
    """Inputs for a plain `model(**inputs)` with the policy's tokens removed, and what was done.

    Vision runs here, once: the returned inputs hold features instead of pixels, and explicit positions. A loop that
    decodes by hand must go on passing `position_ids` (the last ones plus one) and a growing mask. Stages
    inside the language model and KV stages need `applied`; the Report names them in `not_run`.

    Raises:
        as `applied`; InputError when placeholders and videos do not fit.
    """
    adapter = adapter_for(model)
    check_policy(adapter, policy)
    ids = inputs.get("input_ids")
    if ids is None:
        raise InputError("compress: input_ids are missing; pass what the processor returned.")
    config = getattr(model, "generation_config", None) or model.config
    pad_id = getattr(config, "pad_token_id", None)
    request = Request(
        adapter=adapter,
        model=model,
        policy=policy,
        inputs=inputs,
        ids=ids,
        mask=read_mask(ids, inputs.get("attention_mask"), None, ()),
        pad_id=filler_id(model, pad_id),
        seed=seed,
    )
    short = shorten(request)
    return _forward_inputs(request, short), short.report


def _forward_inputs(request: Request, short: Shortened) -> dict[str, Any]:
    """What `model(...)` is given. The mask is always there: it keeps position gaps from looking like packed prompts."""
    model, columns = request.model, short.columns
    with torch.no_grad():
        image = None if request.adapter.modality == "image" else encode(model, "image", request.inputs)
    named = {"image": image} | {request.adapter.modality: short.features}
    features = {name: value for name, value in named.items() if value is not None}
    spent = {*vision_names(model, "image"), *vision_names(model, "video"), *request.adapter.spent}
    rest = {name: value for name, value in request.inputs.items() if name not in spent}
    rest |= {"input_ids": columns.ids, "attention_mask": columns.mask, **columns.others}
    rest["position_ids"] = model_positions(columns)
    if features:
        rest["mm_encoder_outputs"] = features
    if has_mrope(model):
        last = text_positions(columns.mask)[:, -1:]
        model.base_model.rope_deltas = columns.positions[0, :, -1:] - last
    return rest
