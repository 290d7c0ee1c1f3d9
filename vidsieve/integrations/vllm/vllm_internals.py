"""Every name and assumption of vLLM that the integration rests on, checked when it is installed."""

import logging
from dataclasses import dataclass
from typing import Any

from vidsieve.integrations.partner_names import missing_names, release
from vidsieve.integrations.vllm.served_policy import ServedPolicy, reasons_against, remarks_on

SUPPORTED = ("0.32",)
"""Releases it was tried with."""


@dataclass(frozen=True)
class ServedModel:
    """A class of `models`, the ways to number kept tokens that it can do, whether frames can be left unencoded."""

    target: str
    positions: frozenset[str]
    frames: bool = True


_WHOLE, _ANEW = frozenset({"original", "trained"}), frozenset({"compact"})
MODELS = {
    "Qwen2VLForConditionalGeneration": ServedModel("qwen2_vl:VidsieveQwen2VL", _WHOLE),
    "Qwen2_5_VLForConditionalGeneration": ServedModel("qwen2_5_vl:VidsieveQwen25VL", _WHOLE),
    "Qwen3VLForConditionalGeneration": ServedModel("qwen3_vl:VidsieveQwen3VL", _WHOLE),
    "LlavaOnevisionForConditionalGeneration": ServedModel("llava_onevision:VidsieveLlavaOnevision", _ANEW),
    "InternVLForConditionalGeneration": ServedModel("internvl:VidsieveInternVL", _ANEW, frames=False),
}
"""What stands for which architecture."""
NAMES = {
    "vllm.config": ("VllmConfig.try_verify_and_update_config", "VllmConfig.use_v2_model_runner"),
    "vllm.multimodal": ("MULTIMODAL_REGISTRY",),
    "vllm.platforms": ("current_platform",),
    "vllm.model_executor.models": ("ModelRegistry.register_model",),
    "vllm.model_executor.models.interfaces": ("SupportsMultiModalPruning.recompute_mrope_positions",),
    "vllm.v1.worker.gpu_model_runner": ("GPUModelRunner._gather_mm_embeddings",),
}
PROCESSOR_HOOKS = ("_get_prompt_updates", "_get_mm_hashes", "get_dummy_mm_inputs")
GRID_HOOKS = ("_process_video_input", "get_mrope_input_positions")
"""Methods of vLLM's processors and models that are overridden: without one of them, ours would never be called."""
log = logging.getLogger("vllm.vidsieve")


def require(owner: type, *names: str) -> None:
    """Raise ImportError, which ends the start, where a class of vLLM has not what is overridden or called of it."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ImportError(
            f"vidsieve: vLLM's {owner.__name__} has no {', '.join(missing)}; tried with vLLM {', '.join(SUPPORTED)}."
        )


def install(policy: ServedPolicy) -> None:
    """Register the models, and look at every configuration before an engine starts.

    Raises:
        SystemExit: this vLLM lacks a name that is needed.
    """
    missing = missing_names(NAMES)
    if missing:
        raise SystemExit(
            f"vidsieve: vLLM {release('vllm') or 'of this machine'} has no {', '.join(missing)}; "
            f"tried with {', '.join(SUPPORTED)}."
        )
    from vllm.config import VllmConfig
    from vllm.model_executor.models import ModelRegistry

    for name, model in MODELS.items():
        ModelRegistry.register_model(name, f"vidsieve.integrations.vllm.models.{model.target}")
    checked = VllmConfig.try_verify_and_update_config

    def verify(self: Any) -> None:
        if self.model_config is not None and not getattr(self.model_config, "config_updated", False):
            _verify(self, policy)
        checked(self)

    VllmConfig.try_verify_and_update_config = verify
    _mend_cpu_runner()


def _verify(config: Any, policy: ServedPolicy) -> None:
    """Refuse what cannot be served, and tell vLLM that prompts are shortened."""
    faults = faults_of(config, policy)
    if faults:
        raise SystemExit(f"vidsieve: {policy.described} cannot be served: {'; '.join(faults)}.")
    ratio = policy.policy.retention_ratio or 0.5
    config.model_config.multimodal_config.video_pruning_rate = max(1e-6, 1 - ratio)
    log.info("vidsieve: %s shortens the videos of %s", policy.described, config.model_config.model)
    for remark in remarks_on(policy.policy):
        log.warning("vidsieve: %s: %s", policy.described, remark)


def faults_of(config: Any, policy: ServedPolicy) -> list[str]:
    """Why this configuration cannot be served with the policy."""
    model = config.model_config
    names = model.hf_config.architectures or []
    found = next((MODELS[name] for name in names if name in MODELS), None)
    if found is None:
        return [f"model {model.model} is {' or '.join(names) or 'of no known kind'}, served are {', '.join(MODELS)}"]
    faults = reasons_against(policy.policy, positions=found.positions, frames=found.frames)
    media = model.multimodal_config
    if media is None:
        return [*faults, f"model {model.model} takes no video here"]
    tried = (
        (media.is_multimodal_pruning_enabled(), "--video-pruning-rate prunes too; leave one of the two out"),
        (media.mm_encoder_tp_mode == "data", "--mm-encoder-tp-mode data is untried"),
        (getattr(media, "enable_mm_embeds", False), "--enable-mm-embeds lets encoded videos past the policy"),
        (config.speculative_config is not None, "speculative decoding is untried"),
        (config.parallel_config.pipeline_parallel_size > 1, "pipeline parallelism is untried"),
        (getattr(config.compilation_config, "cudagraph_mm_encoder", False), "CUDA graphs of the encoder go past it"),
        (config.use_v2_model_runner, "the second model runner is untried; set VLLM_USE_V2_MODEL_RUNNER=0"),
    )
    return faults + [text for is_so, text in tried if is_so]


def _mend_cpu_runner() -> None:
    """The CPU's model runner never asks whether prompts are shortened."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        model = self.get_model()
        self.is_multimodal_pruning_enabled = getattr(model, "supports_multimodal_pruning", False)

    CPUModelRunner.load_model = load_model
