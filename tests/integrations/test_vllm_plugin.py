"""The plugin on stand-ins for the few names of vLLM it uses: what it registers, mends and refuses."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from vidsieve.integrations.vllm import plugin, vllm_internals
from vidsieve.integrations.vllm.places import CHANNELS
from vidsieve.integrations.vllm.pruning import CountingProcessor, ShorteningModel, updates_for_videos


@dataclass
class FakeVllm:
    """What stands where vLLM's modules are looked for."""

    registered: dict[str, str] = field(default_factory=dict)
    config: Any = None
    runner: Any = None


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm()

    class VllmConfig:
        verified = 0
        use_v2_model_runner = False

        def try_verify_and_update_config(self) -> None:
            self.verified += 1

    class CPUModelRunner:
        is_multimodal_pruning_enabled = False

        def load_model(self) -> None:
            self.model = SimpleNamespace(supports_multimodal_pruning=True)

        def get_model(self) -> Any:
            return self.model

    registry = SimpleNamespace(register_model=fake.registered.__setitem__)
    names: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.config": {"VllmConfig": VllmConfig},
        "vllm.multimodal": {"MULTIMODAL_REGISTRY": object()},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {"ModelRegistry": registry},
        "vllm.model_executor.models.interfaces": {
            "SupportsMultiModalPruning": SimpleNamespace(recompute_mrope_positions=1)
        },
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": SimpleNamespace(_gather_mm_embeddings=1)},
        "vllm.v1.worker.cpu_model_runner": {"CPUModelRunner": CPUModelRunner},
    }
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    fake.config, fake.runner = VllmConfig, CPUModelRunner
    return fake


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the plugin's environment; what another test was served is forgotten."""

    def set_to(policy: str = "", retention: str = "") -> None:
        plugin._served.cache_clear()
        monkeypatch.setenv("VIDSIEVE_POLICY", policy)
        monkeypatch.setenv("VIDSIEVE_RETENTION", retention)

    set_to()
    yield set_to
    plugin._served.cache_clear()


def configuration(fake: FakeVllm, **changes: Any) -> Any:
    """A sound configuration of Qwen2-VL with some fields of its parts changed."""
    pruned = changes.pop("pruned", False)
    media = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: pruned, mm_encoder_tp_mode="weights", enable_mm_embeds=False,
        video_pruning_rate=None,
    )  # fmt: skip
    config = fake.config()
    architectures = changes.pop("architectures", ["Qwen2VLForConditionalGeneration"])
    hf_config = SimpleNamespace(architectures=architectures)
    config.model_config = SimpleNamespace(model="some/model", hf_config=hf_config, multimodal_config=media)
    config.speculative_config = None
    config.parallel_config = SimpleNamespace(pipeline_parallel_size=1)
    config.compilation_config = SimpleNamespace(cudagraph_mm_encoder=False)
    for path, value in changes.items():
        part, _, name = path.partition("__")
        setattr({"media": media, "parallel": config.parallel_config, "compilation": config.compilation_config}.get(
            part, config), name or part, value)  # fmt: skip
    return config


def test_without_a_policy_nothing_of_vllm_is_touched(environment: Callable[..., None]) -> None:
    plugin.register()  # there is no vLLM here: looking for it would end in a refusal
    environment("none")
    plugin.register()


def test_a_policy_registers_the_models_and_passes_a_sound_configuration(
    vllm: FakeVllm, environment: Callable[..., None]
) -> None:
    environment("vidcom2", "0.25")
    plugin.register()
    assert vllm.registered.keys() == vllm_internals.MODELS.keys()
    config = configuration(vllm)
    config.try_verify_and_update_config()
    assert config.verified == 1
    assert config.model_config.multimodal_config.video_pruning_rate == 0.75


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "some/model is GemmaForCausalLM, served are Qwen2VL"),
        ({"architectures": ["LlavaOnevisionForConditionalGeneration"]}, "can be served with `positions: compact`"),
        ({"pruned": True}, "--video-pruning-rate prunes too"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"media__mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data"),
        ({"media__enable_mm_embeds": True}, "--enable-mm-embeds"),
        ({"compilation__cudagraph_mm_encoder": True}, "CUDA graphs of the encoder"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ],
)
def test_what_cannot_be_served_ends_in_a_sentence_before_the_engine_starts(
    vllm: FakeVllm, environment: Callable[..., None], changes: dict[str, Any], words: str
) -> None:
    environment("vidcom2")
    plugin.register()
    with pytest.raises(SystemExit, match=r"^vidsieve: policy 'vidcom2' \(.*cannot be served: ") as refused:
        configuration(vllm, **changes).try_verify_and_update_config()
    assert words in str(refused.value)


def test_the_cpu_runner_is_told_that_prompts_are_shortened(vllm: FakeVllm, environment: Callable[..., None]) -> None:
    environment("vidcom2")
    plugin.register()
    runner = vllm.runner()
    runner.load_model()
    assert runner.is_multimodal_pruning_enabled


@pytest.mark.parametrize(
    ("policy", "retention", "words"),
    [("vidcom3", "", "vidcom2"), ("", "0.5", "names no policy"), ("evs", "x", "must be a number")],
)
def test_a_wrong_policy_ends_in_a_sentence(
    environment: Callable[..., None], policy: str, retention: str, words: str
) -> None:
    environment(policy, retention)
    with pytest.raises(SystemExit, match=words) as refused:
        plugin.register()
    assert str(refused.value).startswith("vidsieve: ")


def test_a_vllm_that_lacks_a_name_is_refused(
    vllm: FakeVllm, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment("vidcom2")
    monkeypatch.delattr(vllm.config, "try_verify_and_update_config")
    monkeypatch.setitem(sys.modules, "vllm.multimodal", None)
    with pytest.raises(SystemExit) as refused:
        plugin.register()
    assert "VllmConfig.try_verify_and_update_config" in str(refused.value)
    assert "vllm.multimodal" in str(refused.value)


class Parent:
    """vLLM's own processor."""

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        return {"video": ["a", "b"], "image": ["c"]}


class Processor(CountingProcessor, Parent):
    pass


def test_caches_tell_policies_apart(environment: Callable[..., None]) -> None:
    found = []
    for ratio in ("0.25", "0.5"):
        environment("vidcom2", ratio)
        hashes = Processor()._get_mm_hashes(None)
        assert hashes.keys() == {"video", "image"}
        found += [one for all_ in hashes.values() for one in all_]
    assert len(set(found)) == 6


def test_the_processor_counts_as_the_policy_keeps(environment: Callable[..., None]) -> None:
    environment("vidcom2", "0.25")
    assert Processor().kept((8, 4, 6)) == 48


def test_a_video_too_short_for_the_ratio_is_answered_with_a_sentence(environment: Callable[..., None]) -> None:
    environment("evs", "0.1")
    assert Processor().kept((16, 4, 6)) == 38
    with pytest.raises(ValueError, match=r"vidsieve: policy 'evs': retention ratio 0\.1 asked.*it reaches"):
        Processor().kept((2, 4, 6))


@dataclass(frozen=True)
class Update:
    modality: str
    replacement: object


def test_only_the_update_of_videos_is_exchanged() -> None:
    image, video = Update("image", 1), Update("video", 2)
    assert updates_for_videos([image, video], 3) == [image, Update("video", 3)]


class Model(ShorteningModel):
    """A model of 4 columns with a video (10, 2, 3) of which 7 tokens stay, and an image (1, 2, 2)."""

    config = SimpleNamespace(video_token_id=1, image_token_id=2, get_text_config=lambda: SimpleNamespace(hidden_size=4))
    ids: ClassVar[list[int]] = [0, 0, *[1] * 7, 0, *[2] * 4, 0, 0]

    def iter_mm_grid_thw(self, features: list[Any]) -> Any:
        sizes = {2: (2, 10, 2, 3, 1.0), 10: (10, 1, 2, 2, 1.0)}
        return [sizes[feature.mm_position.offset] for feature in features]


def test_text_keeps_the_positions_of_the_whole_prompt_and_kept_tokens_get_theirs() -> None:
    model = Model()
    features = [
        SimpleNamespace(mm_position=SimpleNamespace(offset=10, length=4)),
        SimpleNamespace(mm_position=SimpleNamespace(offset=2, length=7)),
    ]
    positions, delta = model.get_mrope_input_positions(model.ids, features)
    text = [0, 1, 9, 14, 15]
    # behind the video's ten steps from position 2, and behind the image's two from 13
    assert positions[:, text].tolist() == [[0, 1, 12, 15, 16]] * 3
    assert delta == 17 - 16
    index = torch.tensor([0, 8, 13, 26, 33, 45, 59])
    rows = model.place_rows(torch.randn(7, 4), index, (10, 2, 3), 1.0)
    assert rows.shape == (7, 4 + CHANNELS)
    image = torch.randn(4, 4)
    [video, same], placed, again = model.recompute_mrope_positions(model.ids, [rows, image], positions, 0)
    assert again == delta
    assert torch.equal(same, image) and torch.equal(video, rows[:, :4])
    assert placed[0, 2:9].tolist() == (index // 6 + 2).tolist()
    assert placed[1, 2:9].tolist() == (index // 3 % 2 + 2).tolist()
    assert placed[2, 2:9].tolist() == (index % 3 + 2).tolist()
    assert torch.equal(placed[:, 9:], positions[:, 9:])


def test_a_chunk_without_media_changes_nothing() -> None:
    model = Model()
    positions = torch.arange(16).expand(3, -1) + 5
    rows, placed, delta = model.recompute_mrope_positions(model.ids, [], positions, 14)
    assert rows == [] and placed is positions and delta == 5
