"""The plugin on stand-ins for the few names of vLLM it uses: what it registers, mends and refuses."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vidsieve.integrations.vllm import plugin, vllm_internals
from vidsieve.integrations.vllm.grid_videos import GridModel, GridProcessor
from vidsieve.integrations.vllm.places import CHANNELS
from vidsieve.integrations.vllm.pruning import CountingProcessor, updates_for_videos


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


def test_a_class_of_vllm_that_lost_a_method_ends_the_import() -> None:
    vllm_internals.require(Parent, "_get_mm_hashes")
    with pytest.raises(ImportError, match=r"vLLM's Parent has no _get_mm_data; tried with vLLM 0\.32"):
        vllm_internals.require(Parent, "_get_mm_hashes", "_get_mm_data")


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


class Vision(torch.nn.Module):
    """Stands for a model of vLLM: its tower gives the tokens that it is handed as pixels."""

    def _process_video_input(self, video_input: Any) -> tuple[torch.Tensor, ...]:
        assert video_input["type"] == "pixel_values_videos"
        return (video_input["pixel_values_videos"][::4],)


def token_rows(grid: tuple[int, int, int]) -> torch.Tensor:
    """Features of a grid's tokens."""
    return torch.randn(grid[0] * grid[1] * grid[2], 4, generator=torch.Generator().manual_seed(0))


class Model(GridModel, Vision):
    """A model of 4 columns whose tokens are squares of 2 x 2 patches; a step in time takes 1.5 positions a second."""

    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=2), get_text_config=lambda: SimpleNamespace(hidden_size=4)
    )

    def time_factor(self, seconds: float | None) -> float:
        return 1.5 * (1.0 if seconds is None else seconds)


GRID = (10, 2, 3)
KEPT = 15
IDS: list[int] = [0, 0, *[1] * KEPT, 0, *[2] * 4, 0, 0]


def feature(modality: str, offset: int, length: int, patches: list[int], seconds: float | None = None) -> Any:
    data = {f"{modality}_grid_thw": SimpleNamespace(data=torch.tensor(patches))}
    data |= {} if seconds is None else {"second_per_grid_ts": SimpleNamespace(data=torch.tensor(seconds))}
    return SimpleNamespace(modality=modality, data=data, mm_position=SimpleNamespace(offset=offset, length=length))


def test_text_keeps_the_positions_of_the_whole_prompt_and_kept_tokens_get_theirs(
    environment: Callable[..., None],
) -> None:
    environment("vidcom2", "0.25")
    model, patches = Model(), torch.tensor([10, 4, 6])
    features = [feature("image", 18, 4, [1, 4, 4]), feature("video", 2, KEPT, patches.tolist(), 2.0)]
    positions, delta = model.get_mrope_input_positions(IDS, features)
    # behind the video's nine steps of three positions from position 2, and behind the image's two from 31
    assert positions[:, [0, 1, 17, 22, 23]].tolist() == [[0, 1, 30, 33, 34]] * 3
    assert delta == 35 - 24
    tokens = token_rows(GRID)
    given = {
        "type": "pixel_values_videos",
        "pixel_values_videos": tokens.repeat_interleave(4, dim=0),
        "video_grid_thw": patches[None],
        "second_per_grid_ts": torch.tensor([2.0]),
    }
    [rows] = model._process_video_input(given)
    kept, index = plugin.served().rows(tokens, GRID, dim=4)
    assert rows.shape == (KEPT, 4 + CHANNELS)
    image = torch.randn(4, 4)
    [video, same], placed, again = model.recompute_mrope_positions(IDS, [rows, image], positions, 0)
    assert again == delta
    assert torch.equal(same, image) and torch.equal(video, kept)
    assert placed[0, 2:17].tolist() == (index // 6 * 3 + 2).tolist()
    assert placed[1, 2:17].tolist() == (index // 3 % 2 + 2).tolist()
    assert placed[2, 2:17].tolist() == (index % 3 + 2).tolist()
    assert torch.equal(placed[:, 17:], positions[:, 17:])


def test_a_chunk_without_media_changes_nothing(environment: Callable[..., None]) -> None:
    environment("vidcom2", "0.25")
    model = Model()
    positions, delta = model.get_mrope_input_positions(IDS[:17], [feature("video", 2, KEPT, [10, 4, 6])])
    rows, placed, again = model.recompute_mrope_positions(IDS[:17], [], positions, 16)
    # the prompt ends in the video: the answer goes on behind the whole of it, 14 from position 2
    assert rows == [] and placed is positions and again == delta == 2 + 14 - 17


def test_videos_that_were_encoded_elsewhere_are_refused(environment: Callable[..., None]) -> None:
    environment("vidcom2", "0.25")
    with pytest.raises(ValueError, match="video_embeds were encoded where no policy ran"):
        Model()._process_video_input({"type": "video_embeds"})


class Prompts:
    """vLLM's own processor."""

    info = SimpleNamespace(
        get_hf_config=lambda: SimpleNamespace(video_token_id=9, vision_config=SimpleNamespace(spatial_merge_size=2))
    )

    def _get_prompt_updates(self, *_: Any) -> list[Update]:
        return [Update("video", None)]

    def get_dummy_mm_inputs(self, patches: list[int]) -> int:
        return len(self.placeholders(patches))


class Counted(GridProcessor, Prompts):
    def placeholders(self, patches: list[int]) -> list[int]:
        items = {"video": [{"video_grid_thw": SimpleNamespace(data=torch.tensor(patches))}]}
        [update] = self._get_prompt_updates(None, {}, items)
        return update.replacement(0)


def test_placeholders_are_as_many_as_stay_but_the_engine_is_sized_with_whole_videos(
    environment: Callable[..., None],
) -> None:
    environment("evs", "0.1")
    assert Counted().placeholders([16, 8, 12]) == [9] * 38
    # nothing is out of reach there: the videos are made up
    assert Counted().get_dummy_mm_inputs([2, 8, 12]) == 48
    with pytest.raises(ValueError, match="it reaches"):
        Counted().placeholders([2, 8, 12])
