"""What a server would do with a policy, told without starting one and without vLLM."""

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import ModelError, RetentionError, UsageError
from vidsieve.harness.model_choice import choose, fetched
from vidsieve.harness.setup import Setup
from vidsieve.integrations.vllm.vllm_internals import MODELS, SUPPORTED

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ServeCheck:
    """The verdict: `reasons` against serving, none where it works; tokens of one video, before and after.

    `remarks` say what a server that may serve the policy does otherwise than transformers.
    """

    policy: str
    policy_hash: str
    retention_ratio: float | None
    model: str
    architecture: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    frames: int
    height: int
    width: int
    grid: tuple[int, int, int] | None
    visual_tokens: int | None
    kept_tokens: int | None
    command: str
    vllm: tuple[str, ...] = SUPPORTED

    def to_dict(self) -> dict[str, Any]:
        """As one JSON document."""
        return asdict(self) | {"servable": not self.reasons}


def serve_check(
    policy: "Policy",
    given: str,
    setup: Setup,
    registry: "Registry",
    *,
    frames: int,
    height: int,
    width: int,
    retention: float | None = None,
) -> ServeCheck:
    """Say whether `policy`, which the user named `given` at this `retention`, can be served on the model, and how.

    Sizes are those of the source; the model's own processor decides what they become.

    Raises:
        UsageError, ModelError: the model is not there, or cannot be read.
    """
    if min(frames, height, width) < 1:
        raise UsageError(f"a video of {frames} frames of {width} x {height} pixels: must be at least 1 of each.")
    from transformers import AutoConfig

    from vidsieve.integrations.vllm.served_policy import ServedPolicy, reasons_against, remarks_on

    choice = fetched(choose(setup.model, setup.checkpoint, registry))
    assert choice.folder is not None
    config = AutoConfig.from_pretrained(choice.folder)
    architecture = (config.architectures or ["of no known kind"])[0]
    reasons = []
    if architecture in MODELS:
        served = MODELS[architecture]
        reasons += reasons_against(policy, positions=served.positions, frames=served.frames)
    else:
        reasons.append(f"model {choice.name} is {architecture}; served are {', '.join(MODELS)}")
    grid = None if architecture not in MODELS else _grid(choice, config, setup, registry, (frames, height, width))
    kept = None
    if grid is not None and not reasons:
        try:
            kept = ServedPolicy(policy).length(grid)
        except RetentionError as error:
            reasons.append(str(error))
    ratio = "" if retention is None else f"VIDSIEVE_RETENTION={retention:g} "
    path = choice.name if choice.kind in ("hub", "cached") else str(choice.folder)
    return ServeCheck(
        policy=policy.name,
        policy_hash=policy.hash,
        retention_ratio=policy.retention_ratio,
        model=choice.name,
        architecture=architecture,
        reasons=tuple(reasons),
        remarks=() if reasons else tuple(remarks_on(policy)),
        frames=frames,
        height=height,
        width=width,
        grid=grid,
        visual_tokens=None if grid is None else grid[0] * grid[1] * grid[2],
        kept_tokens=kept,
        command=f"{ratio}VIDSIEVE_POLICY={shlex.quote(given)} vllm serve {shlex.quote(path)}",
    )


def _grid(
    choice: Any, config: Any, setup: Setup, registry: "Registry", size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Visual tokens (t, h, w) that the model's processor makes of a video of this size."""
    import torch

    from vidsieve.harness.model_loading import processor_of
    from vidsieve.media.clip import Clip

    frames, height, width = size
    found = [one for one in registry.models.values() if config.architectures[0] in one.model_classes]
    if not found:
        raise ModelError(f"model {choice.name}: no adapter for {config.architectures[0]}.")
    clip = Clip(
        frames=torch.zeros(frames, 3, height, width, dtype=torch.uint8),
        timestamps_s=torch.arange(frames, dtype=torch.float32),
        fps=1.0,
        duration_s=float(frames),
        source="a blank video",
        frame_index=torch.arange(frames),
        source_frames=frames,
    )
    inputs = dict(processor_of(choice, setup).build_inputs(["?"], [[clip]]))
    if found[0].modality == "image":
        # a lone frame would pass for an image; vLLM is told that it is a video
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == config.image_token_id)
    [layout] = found[0].layouts(config, inputs)
    grid: tuple[int, int, int] = layout.grid
    return grid
