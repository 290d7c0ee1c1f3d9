"""Gemma 4 obeys the laws of an adapter, with per-layer inputs, shared KV entries and sliding windows."""

import torch
from adapters.tiny import IMAGE, TEXT, VIDEO
from torch import Tensor
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from vidsieve.testing import AdapterContract

START, END, AUDIO = 92, 93, 94
LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2}


class TestGemma4(AdapterContract):
    around_frame = ((81, 82, START), (END,))
    around_image = ((START,), (END,))
    cannot = frozenset({"static cache"})
    bit_equal = False  # off by 1e-7: the masks it makes for the language model take another kernel

    def build_model(self) -> Gemma4ForConditionalGeneration:
        torch.manual_seed(0)
        text = TEXT | {"head_dim": 16, "global_head_dim": 16, "layer_types": LAYERS, "num_kv_shared_layers": 2}
        text |= {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8, "sliding_window": 256}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": END}
        config = Gemma4Config(text_config=text, vision_config=TOWER, audio_token_id=AUDIO, **ids)
        return Gemma4ForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        pixels, places = self.frames(frames, seed)
        video = {"pixel_values_videos": pixels, "video_position_ids": places}
        return video | {"num_frames_per_video": torch.tensor([frames])}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        pixels, places = self.frames(1, seed)
        return {"pixel_values": pixels, "image_position_ids": places}

    @staticmethod
    def frames(count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Frames of 4 x 6 or 4 x 8 patches, filled up to 32."""
        width = 6 + 2 * (seed % 2)
        draw = torch.Generator().manual_seed(seed)
        pixels = torch.rand(count, 32, 3 * 4 * 4, generator=draw)
        places = torch.full((32, 2), -1)
        places[: 4 * width] = torch.cartesian_prod(torch.arange(4), torch.arange(width)).flip(1)
        return pixels, places.expand(count, -1, -1).clone()
