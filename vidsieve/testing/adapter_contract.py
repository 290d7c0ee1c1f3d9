"""The laws of a model adapter, as tests to inherit.

class TestMyFamily(AdapterContract):
    def build_model(self): ...
    def make_video(self, seed, frames=4): ...
    def make_image(self, seed): ...

See `PromptKit` for what else may be set. Everything runs on a tiny random model, on the CPU, in seconds.
"""

from vidsieve.testing.adapter_calls import CallLaws
from vidsieve.testing.adapter_compile import CompileLaws
from vidsieve.testing.adapter_frames import FrameLaws
from vidsieve.testing.adapter_kv import BothLaws, KVLaws
from vidsieve.testing.adapter_laws import CompactionLaws, InputLaws
from vidsieve.testing.adapter_layer import LayerLaws
from vidsieve.testing.adapter_signals import SignalLaws


class AdapterContract(
    CompactionLaws, CallLaws, InputLaws, FrameLaws, SignalLaws, LayerLaws, KVLaws, BothLaws, CompileLaws
):
    """All laws of an adapter."""
