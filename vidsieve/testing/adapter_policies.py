"""The contract between any policy and any model family, as one function: every published pair can be put through it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.planning.attainable import prune_points
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.report import Report
from vidsieve.testing.adapter_kit import (
    STEPS,
    ModelKit,
    Row,
    kept_columns,
    language_inputs,
    layouts_of,
    logits,
    places_of,
    run,
    traces,
    unpatched,
    visual_places,
)

FRAMES = 8
"""Some released code needs more than four."""
BATCH = (Row(seed=1, words=9, frames=(FRAMES,)), Row(videos=2, words=4, frames=(FRAMES,)))
DEEP = 25
"""Decoder layers that absolute layer numbers of released code fit in."""


def missing(adapter: Any, policy: Policy) -> list[str]:
    """Hooks, inputs and signals that a policy cannot do without and the family does not have; none if they fit."""
    hooks = {hook for bound in policy.stages for hook in bound.stage.hooks()}
    return sorted((hooks - adapter.runs) | (policy.needs() - adapter.offers))


def needs_depth(policy: Policy) -> bool:
    """Whether the policy names decoder layers that a tiny model of four layers does not have."""
    try:
        policy.attainable(VideoShape(FRAMES, 6, 4))
    except PolicyError:
        return True
    return False


def within_reach(policy: Policy, shape: VideoShape) -> Policy:
    """The policy at its own ratio, or in the middle of its reach where a tiny model's shape does not allow that."""
    ratio = policy.retention_ratio
    low, high = policy.attainable(shape)
    if ratio is None or low <= ratio <= high:
        return policy
    return policy.with_(retention_ratio=round((low + high) / 2, 2))


def check_policy(kit: ModelKit, model: Any, policy: Policy) -> Report:
    """Put a policy through the contract on a family's tiny model; the report of a single prompt.

    It generates; the attained retention is the one asked for or declared; no text is touched; each row of a padded
    batch comes out as alone; nothing of ours is left on the model.

    Raises:
        AssertionError: a law does not hold; the message says which.
        VidsieveError: the policy is refused.
    """
    inputs = kit.make_inputs(model, BATCH[0])
    unpatched(model, inputs, max_new_tokens=1)  # transformers installs hooks of its own at a model's first call
    state = traces(model)
    (layout,) = [layout for layout in layouts_of(model, inputs) if layout.visual]
    shape = VideoShape(layout.frames, layout.tokens, model.config.get_text_config().num_hidden_layers)
    policy = within_reach(policy, shape)
    with _prompts(model) as seen:
        output, report = run(model, policy, inputs)
    width = inputs["input_ids"].shape[1]
    assert output.sequences.shape == (1, width + STEPS), "generates: the answer is not as long as asked"
    assert torch.equal(output.sequences[:, :width], inputs["input_ids"]), "generates: the prompt came back changed"
    assert bool(logits(output).isfinite().all()), "generates: logits are not finite"
    check_ratio(policy, report, shape)
    unseen = unencoded_leads(model, inputs, report) if policy.frame_stages else None
    check_text(model, inputs, report, seen[0], output.past_key_values, unseen=unseen)
    alone = [(output, report), run(model, policy, kit.make_inputs(model, BATCH[1]))]
    check_batch(run(model, policy, kit.make_inputs(model, *BATCH)), alone, kit.tolerance)
    assert traces(model) == state, "left behind: something of ours stays on the model"
    return report


def check_ratio(policy: Policy, report: Report, shape: VideoShape) -> None:
    """Attained is what was asked, to the token; for counts that a file or the data decide, what the stages declare."""
    asked, attained, total = policy.retention_ratio, report.attained_ratio, report.baseline_tokens
    if asked is None or not policy.exact:
        low, high = policy.attainable(shape)
        slack = shape.frames / total
        assert low - slack <= attained <= high + slack, f"retention: {attained:.4f}, declared {low:.4f} to {high:.4f}"
    elif policy.layer_stages:
        slack = (1 + len(prune_points(policy, shape.layers))) / total
        assert asked - slack <= attained <= asked + 1e-9, f"retention: {attained:.4f} over layers, asked {asked:.4f}"
    elif policy.closer is None and policy.frame_stages:
        assert abs(attained - asked) <= 1 / shape.frames, f"retention: {attained:.4f} in frames, asked {asked:.4f}"
    else:
        wanted = tokens_to_keep(total, asked)
        fewer = report.kept_tokens < wanted and bool(report.notes)  # fewer reached the closer, and the report says so
        assert report.kept_tokens == wanted or fewer, f"retention: kept {report.kept_tokens} tokens, asked {wanted}"


def check_text(
    model: Any, inputs: dict[str, Any], report: Report, prompt: Tensor, cache: Any, *, unseen: Tensor | None = None
) -> None:
    """Text and structural rows enter the decoder bit for bit, all and in order, and no layer loses one.

    `unseen` are columns of structural rows that the vision tower was not asked to make.
    """
    visual, keep = visual_places(model, inputs), kept_columns(model, inputs, report)
    if unseen is not None:
        keep = keep & ~unseen
    whole = language_inputs(model, inputs)["inputs_embeds"][0]
    assert prompt.shape[0] == int(keep.sum()), f"text: {prompt.shape[0]} rows in the prompt, {int(keep.sum())} expected"
    assert torch.equal(prompt[~visual[keep]], whole[keep & ~visual]), "text: rows that are no visual tokens changed"
    text = int((keep & ~visual).sum())
    for layer, entered in enumerate(report.layer_tokens[0] if report.layer_tokens else ()):
        held = cache.get_seq_length(layer) - (STEPS - 1)
        assert held == text + entered, f"text: layer {layer} holds {held} rows of {text} of text and {entered} visual"


def unencoded_leads(model: Any, inputs: dict[str, Any], report: Report) -> Bool[Tensor, " columns"]:
    """The columns of rows before frames (such as [CLS]) whose frame has no token left in the one video of a prompt."""
    places = places_of(model, inputs["input_ids"])[0]
    (layout,) = [layout for layout in layouts_of(model, inputs) if layout.visual]
    rows = torch.zeros(layout.frames, layout.lead + layout.tokens, dtype=torch.bool)
    rows[:, : layout.lead] = ~report.keeps[0].any(dim=1, keepdim=True)
    alive = torch.ones(rows.numel(), dtype=torch.bool) if layout.alive is None else layout.alive.flatten()
    flags = torch.cat([rows.flatten()[alive], torch.zeros(layout.structural, dtype=torch.bool)])
    return torch.zeros_like(places).masked_scatter(places, flags)


def check_batch(together: tuple[Any, Report], alone: Sequence[tuple[Any, Report]], tolerance: float) -> None:
    """Each row of a padded batch, one with two videos, gives the logits and plans it gives alone."""
    keeps = iter(together[1].keeps)
    for index, (output, report) in enumerate(alone):
        apart = float((logits(together[0])[index] - logits(output)[0]).abs().max())
        assert apart <= tolerance, f"batch: row {index} is {apart:.1e} away from itself alone"
        assert all(torch.equal(keep, next(keeps)) for keep in report.keeps), f"batch: row {index} keeps other tokens"
    assert next(keeps, None) is None, "batch: it has more videos than its rows"


@contextmanager
def _prompts(model: Any) -> Iterator[list[Tensor]]:
    """While open, the embeddings of each first row that the decoder is called with."""
    seen: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("inputs_embeds") is not None:
            seen.append(kwargs["inputs_embeds"][0])

    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def pairs(policies: dict[str, Policy], adapters: dict[str, Any], each: int = 3) -> list[tuple[str, str]]:
    """(family, policy) such that every family has `each` policies that it can run, and every policy a family at least.

    The policy that was taken least comes first, so that new ones join by themselves.
    """
    found: list[tuple[str, str]] = []
    taken = dict.fromkeys(policies, 0)
    for family, adapter in sorted(adapters.items()):
        fit = [name for name in sorted(policies) if not missing(adapter, policies[name])]
        for name in sorted(fit, key=lambda name: taken[name])[:each]:
            found.append((family, name))
            taken[name] += 1
    for number, name in enumerate(name for name in sorted(taken) if not taken[name]):
        homes = [family for family, adapter in sorted(adapters.items()) if not missing(adapter, policies[name])]
        found += [(homes[number % len(homes)], name)] if homes else []
    return found
