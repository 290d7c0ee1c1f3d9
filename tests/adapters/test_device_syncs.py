"""Where a request waits for its device: only where the list below says, and how often does not depend on the video.

What is counted are operations whose result the host needs before it can go on: numbers read back (`.item()`,
`.tolist()`, `bool()`, `int()`), and shapes that depend on values (`nonzero`, masks as indices, `unique`). On the CPU
they cost nothing, and on a GPU each stops the host until the device has caught up. Waits of transformers itself are
not ours to count.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapters.test_qwen2_vl import VISION
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from adapters.tiny import IDS, ROPE_3D, TEXT
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import vidsieve
from vidsieve import applied, load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import default
from vidsieve.testing.adapter_decoder_kit import KeepKeys, TopKV
from vidsieve.testing.adapter_kit import Row, policy_of

Site = tuple[str, str]
ONCE_A_REQUEST = "what prompt and videos are, read once a request"
SHAPES = "once a plan: the shapes of what goes on depend on what stays, and each plan is checked in one read"
HOST = "counts that are worked out on the host; these tensors never were on the device"
ROUNDS = "a loop of the method ends, or its next step begins, where the content says; on a GPU few rounds"
PIECES = "pieces the content makes (clusters, segments, components) are counted before they are gathered"
FRAMES = "frames are chosen before the vision tower, whose input is then cut on the host"
ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    ONCE_A_REQUEST: {
        "adapters/generate_arguments.py": ("refuse_right_padding",),
        "adapters/layouts.py": ("_rows",),
        "adapters/prompt/columns.py": ("Columns.visual_counts",),
        "adapters/prompt/positions.py": ("beyond",),
        "adapters/prompt/reading.py": ("question_ids", "videos_by_row"),
        "adapters/prompt/shortening.py": ("visual_placeholders",),
        "adapters/decoder/layer_prefill.py": ("Prefill.__init__",),
        "adapters/decoder/layer_rows.py": ("rows_of_prompt",),
        "adapters/decoder/eviction.py": ("Eviction.check",),
    },
    SHAPES: {
        "adapters/prompt/shortening.py": ("PlannedVideo.rows", "PlannedVideo.stays", "_drop", "_plan"),
        "framework/planning/checks.py": ("_refuse", "check_merge"),
        "framework/planning/layer_cut.py": ("cut_of", "_melted"),
        "framework/planning/pipeline.py": ("_Video.shape", "plan_video", "reconcile"),
        "framework/plans.py": ("Merge.assign",),
        "policies/framefusion.py": ("FrameFusionMerge.merge_tokens",),
        "policies/visionzip.py": ("VisionZip.merge_tokens", "_joined"),
        "policies/sparsevlm.py": ("raters", "pruned"),
        "policies/fastvid.py": ("FastVIDMerge._weighted",),
        "policies/uniform_frames.py": ("UniformFrames.select_tokens",),
    },
    "once a decode step in which a KV stage chooses: the widths of the choice, and what is new in the slots": {
        "adapters/decoder/decode_kv.py": ("DecodeKV._narrow",),
    },
    HOST: {
        "policies/dycoke.py": ("TemporalMerge.attainable.<locals>.<genexpr>", "frame_roles"),
        "policies/shared/counting.py": ("counts_of_frames",),
    },
    "the counts of frames, which the stage then works with on the host": {
        "policies/dycoke.py": ("TemporalMerge.select_tokens",),
        "framework/plans.py": ("apportion",),
    },
    ROUNDS: {
        "policies/cdpruner.py": ("_Kernel.after",),
        "policies/divprune.py": ("_Distance.__init__", "_Distance.block", "_least_alike"),
        "policies/shared/greedy.py": ("LazyChoice.__init__", "field_of"),
        "policies/shared/dpc_knn.py": ("smallest",),
        "policies/tome.py": ("_rounds", "soft_matching"),
        "policies/sttm.py": ("Pyramid.nodes", "STTM._melted", "lasting"),
        "policies/llava_scissor.py": ("components", "forest", "strongest_links", "_enough", "_true"),
    },
    PIECES: {
        "policies/fastvid.py": ("joined", "shared_out"),
        "policies/holitom.py": ("HoliTomSegments.segment_frames",),
        "policies/prunevid.py": ("DpcKnnSegments.segment_frames",),
        "policies/static_merge.py": ("StaticMerge.merge_tokens",),
        "policies/llava_scissor.py": ("Links.first.<locals>.<genexpr>", "_means", "_melted", "_represent"),
    },
    FRAMES: {
        "adapters/prompt/shortening.py": ("_encoded.<locals>.<listcomp>", "_encoded"),
        "adapters/towers.py": ("_grid_parts", "_grid_without", "_grid_without.<locals>.<listcomp>", "_unit_pixels"),
        "framework/planning/frames.py": ("plan_frames", "_refuse_other_count"),
    },
}
SITES: set[Site] = {
    (file, function) for files in ALLOWED.values() for file, functions in files.items() for function in functions
}
OURS, THEIRS = (str(Path(package.__file__).parent) + "/" for package in (vidsieve, transformers))  # type: ignore[arg-type]
READ = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}


class Waits(TorchDispatchMode):
    """Count operations that the host waits for, by the file and function of ours that is nearest to them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Site] = Counter()

    def note(self) -> None:
        frame: Any = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(THEIRS):
                return
            if name.startswith(OURS):
                self.found[name.removeprefix(OURS), frame.f_code.co_qualname] += 1
                return
            frame = frame.f_back

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READ or (name == "repeat_interleave" and len(args) == 1):
            self.note()
        elif name.startswith("index"):
            indices = args[1] if name in ("index", "index_put", "index_put_") else ()
            if any(one is not None and one.dtype == torch.bool for one in indices):
                self.note()
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Count copies to the host that are no operation of their own on the CPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "cpu", "numpy"):
            self.waits.note()
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[Site]]:
    """While open, count where ours waits for the device."""
    waits = Waits()
    with waits, Copies(waits):
        yield waits.found


def build(layers: int) -> Any:
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=TEXT | ROPE_3D | {"num_hidden_layers": layers, "layer_types": None}, vision_config=VISION, **IDS
    )
    return Qwen2VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def models() -> dict[int, Any]:
    """Four layers, and as many as the released forms of methods name."""
    return {layers: build(layers) for layers in (4, 26)}


def requested(model: Any, policy: Policy, frames: int = 8, steps: int = 3) -> Counter[Site]:
    """Where one request waits: planning, prefill and decode."""
    inputs = Qwen2VL().make_inputs(model, Row(frames=(frames,)))
    with applied(model, policy), counted() as found:
        model.generate(**inputs, max_new_tokens=steps, do_sample=False)
    return found


def waits(model: Any, policy: Policy, **how: int) -> Counter[Site]:
    """The same without counts on the host, which are kept from one request to the next."""
    found = requested(model, policy, **how)
    return Counter({site: count for site, count in found.items() if site[1] not in ALLOWED[HOST].get(site[0], ())})


def published(name: str) -> Policy:
    """A policy at a ratio that four layers can meet."""
    policy = load_policy(name)
    if policy.retention_ratio is None or name.endswith("-released"):
        return policy
    return policy.with_(retention_ratio=max(policy.retention_ratio, 0.5))


DEEP = {"pyramiddrop-released", "sparsevlm-released", "sparsevlm-plus-released", "v2drop-released"}


@pytest.mark.filterwarnings("ignore:.*removed none")
@pytest.mark.parametrize("name", sorted(default().policies))
def test_a_published_policy_waits_only_where_the_list_says(models: dict[int, Any], name: str) -> None:
    found = requested(models[26 if name in DEEP else 4], published(name), steps=2)
    assert set(found) - SITES == set()


def test_a_wait_that_is_not_on_the_list_is_found(models: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from vidsieve.policies import vidcom2

    source = "def read(values):\n    return bool(values.sum() > 0), values[values > 0], values.tolist()\n"
    made: dict[str, Any] = {}
    exec(compile(source, f"{OURS}policies/vidcom2.py", "exec"), made)
    score = vidcom2.TokenScore.score_tokens

    def slow(self: Any, tokens: Any) -> Any:
        made["read"](tokens.features)
        return score(self, tokens)

    with counted() as found:
        slow(vidcom2.TokenScore(), _tokens())
    assert found["policies/vidcom2.py", "read"] == 3


def _tokens() -> Any:
    from vidsieve.testing import video_tokens

    return video_tokens(2, 4, 8)


@pytest.mark.parametrize("name", ["dycoke", "fastv", "key-norm", "vidcom2"])
def test_how_often_it_waits_depends_neither_on_frames_nor_on_layers(models: dict[int, Any], name: str) -> None:
    policy = published(name)
    expected = waits(models[4], policy)
    assert waits(models[4], policy, frames=16) == expected
    assert waits(models[26], policy) == expected


@pytest.mark.parametrize(
    ("policy", "each"),
    [
        (published("none"), 0),
        (published("vidcom2"), 0),
        (published("fastv"), 0),
        (published("snapkv"), 0),
        (published("dycoke"), 1),
        (policy_of(TopKV(parked=True)), 1),
        (policy_of(KeepKeys(), TopKV()), 1),
    ],
    ids=["none", "vidcom2", "fastv", "snapkv", "dycoke", "parked", "evicted and chosen"],
)
def test_a_decode_step_waits_at_most_once_and_only_for_a_choice(
    models: dict[int, Any], policy: Policy, each: int
) -> None:
    few, more = (waits(models[4], policy, steps=steps).total() for steps in (3, 8))
    assert more - few == 5 * each


def test_the_list_names_functions_that_are_there() -> None:
    missing = []
    for file, function in SITES:
        text = Path(OURS, file).read_text(encoding="utf-8")
        if f"def {function.split('.<locals>')[0].rpartition('.')[2]}(" not in text:
            missing.append((file, function))
    assert missing == []
