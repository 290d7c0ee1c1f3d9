"""Print what a decode step costs and holds: the whole visual KV, a part gathered, a part with the rest parked, evicted.

    python scripts/kv_benchmark.py                        2k, 8k and 32k visual tokens, batch 1 and 4: minutes, 20 GiB
    python scripts/kv_benchmark.py --visual 8192 --rows 1 one cell
    python scripts/kv_benchmark.py --write                the table is stored in scripts/data, and quoted in the page

The model is a random decoder with the attention of Qwen2-VL-2B (12 heads of 128, 2 of keys and values) in fewer and
narrower layers, so that the KV cache weighs what it weighs in a large model and the rest is cheap. Its cache is filled
with random keys and values, as no prefill of this size fits a small machine; what is measured begins there. All forms
decode in turn, first in one order and then in the other, a few steps at a time, and times are medians over steps. How
often attention moves depends on the video: `steady` is a step after which the choice stays, `new choice` one in which
each row chooses anew, which is the most that parking can cost.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from vidsieve.adapters.attention_taps import AttentionCall
from vidsieve.adapters.decoder.decode_kv import DecodeKV, attach_kv
from vidsieve.adapters.decoder.layer_pruning import announce_span, attach_layers
from vidsieve.adapters.prompt.columns import Columns
from vidsieve.framework.policy.file import read_policy
from vidsieve.policies.dycoke import DynamicKV

DATA = Path(__file__).resolve().parent / "data"
PAGE = DATA.parents[1] / "docs" / "how-to" / "free-kv-memory.md"
START, END = "<!-- quoted from scripts/data/kv_benchmark.md -->\n", "<!-- end of quote -->\n"
BEFORE, BEHIND = 16, 48
"""Text before and behind the visual tokens."""
KEEP = 0.3
FIRST = 1
"""First layer that reads or holds fewer."""
FORMS = ("full", "gather", "parked, steady", "parked, new choice", "evicted")
EVICTS = f"{{format: 1, name: evict, stages: [{{use: key-norm.evict, keep_ratio: {KEEP}, first: {FIRST}}}]}}"


class Form:
    """One way to hold the visual KV, with a model of its own that decodes on."""

    def __init__(self, name: str, model: Any, rows: int, visual: int, stack: ExitStack) -> None:
        self.name, self.model, self.rows = name, model, rows
        self.span, self.width = (BEFORE, visual), BEFORE + visual + BEHIND
        self.cache = filled_cache(model.config, rows, self.width, model.device)
        self.full_bytes = visual_bytes(self.cache, [visual] * len(self.cache.layers))
        self.tokens = [torch.arange(3, 3 + rows, device=model.device)[:, None]]
        self.decode: DecodeKV | None = None
        if name == "evicted":
            stack.enter_context(evicted(model, self.cache, self.span, rows, self.width))
        elif name != "full":
            threshold = 1.0 if name.endswith("new choice") else 0.0
            rest = "held" if name == "gather" else "parked"
            stage = DynamicKV(layer=FIRST, drop_ratio=1 - KEEP, threshold=threshold, rest=rest)
            self.decode = stack.enter_context(attach_kv(model, [stage], self.span))
            self.decode.restores = False
            self.decode.prompt = Columns.with_span(self.span, rows, self.width, None, model.device)

    @torch.no_grad()
    def step(self) -> float:
        """Milliseconds of one decode step."""
        place = torch.full((self.rows, 1), self.width + len(self.tokens) - 1, device=self.model.device)
        began = now(self.model.device)
        output = self.model(input_ids=self.tokens[-1], past_key_values=self.cache, position_ids=place)
        self.tokens.append(output.logits[:, -1].argmax(dim=-1, keepdim=True))
        return now(self.model.device) - began

    @property
    def resident_bytes(self) -> int:
        """What the visual entries take that decode steps attend from."""
        if self.decode is not None:
            entries = [count // self.rows for count in self.decode.resident_entries]
        else:
            text = BEFORE + BEHIND + len(self.tokens) - 1
            entries = [layer.keys.shape[2] - text for layer in self.cache.layers]
        return visual_bytes(self.cache, entries)


def now(device: torch.device) -> float:
    """Milliseconds on the clock, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3


def small_model(layers: int, device: str, dtype: torch.dtype) -> Any:
    """The random decoder."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=65_536,
    )
    return Qwen2ForCausalLM(config).to(device=device, dtype=dtype).eval()


def filled_cache(config: Any, rows: int, width: int, device: torch.device) -> DynamicCache:
    """A cache of random keys and values, the same at every call."""
    draw, cache = torch.Generator().manual_seed(1), DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        shape = (rows, config.num_key_value_heads, width, 128)
        keys, values = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def visual_bytes(cache: Any, entries: list[int]) -> int:
    """Bytes of so many entries a row in each layer."""
    return sum(
        2 * count * layer.keys.shape[0] * layer.keys.shape[1] * layer.keys.shape[3] * layer.keys.element_size()
        for layer, count in zip(cache.layers, entries, strict=True)
    )


@contextmanager
def evicted(model: Any, cache: Any, span: tuple[int, int], rows: int, width: int) -> Iterator[None]:
    """While open, `model` decodes on a cache that the eviction stage has cut, as at the end of a prefill."""
    with attach_layers(model, read_policy(EVICTS, "evict.yaml"), span) as prune:
        announce_span(span, 1, None, prune, torch.zeros(rows, width, dtype=torch.long, device=model.device), None)
        assert prune.prefill is not None
        prune.prefill.times = 1
        for number, layer in enumerate(cache.layers):
            for row in prune.prefill.rows:
                row.seen = row.places
            call = AttentionCall(
                layer=number,
                module=model.model.layers[number].self_attn,
                query=layer.keys[:, :, -1:],
                key=layer.keys,
                value=layer.values,
                mask=None,
                options={},
                kernel=print,
                implementation="sdpa",
            )
            prune.eviction.attended(call, prune.prefill, prune.visual, cache)
        yield


def cell(visual: int, rows: int, settings: argparse.Namespace, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """All forms at one size: bytes, milliseconds a step, and whether the tokens are those of the gather."""
    dtype = getattr(torch, settings.dtype)
    with ExitStack() as stack:
        forms = []
        for name in FORMS:
            told(f"{visual} visual tokens, batch {rows}: {name}")
            forms.append(Form(name, small_model(settings.layers, settings.device, dtype), rows, visual, stack))
        for form in forms:
            for _ in range(2):
                form.step()  # the first parks, the second is the first of many
        times: dict[str, list[float]] = {form.name: [] for form in forms}
        for turn in range(settings.turns):
            for form in forms if turn % 2 == 0 else forms[::-1]:
                form.step()  # caches of the processor are another form's
                times[form.name] += [form.step() for _ in range(settings.steps)]
        gathered = next(form for form in forms if form.name == "gather").tokens
        return [
            {
                "visual_tokens": visual,
                "batch": rows,
                "form": form.name,
                "resident_bytes": form.resident_bytes,
                "full_bytes": form.full_bytes,
                "step_ms": statistics.median(times[form.name]),
                "step_ms_quartiles": statistics.quantiles(times[form.name], n=4)[::2],
                "full_step_ms": statistics.median(times["full"]),
                "tokens_as_gather": same(form.tokens, gathered),
            }
            for form in forms
        ]


def same(tokens: list[Tensor], others: list[Tensor]) -> int:
    """How many of the first tokens are the same in all rows."""
    count = 0
    for one, other in zip(tokens[1:], others[1:], strict=False):
        if not torch.equal(one, other):
            break
        count += 1
    return count


def table(head: str, cells: list[dict[str, Any]], steps: int) -> str:
    """The cells as Markdown."""
    lines = [head, "", "| visual tokens | batch | form | resident visual KV, MiB | ÷ full | decode step, ms | ÷ full |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in cells:
        share, ratio = one["resident_bytes"] / one["full_bytes"], one["step_ms"] / one["full_step_ms"]
        lines.append(
            f"| {one['visual_tokens']:,} | {one['batch']} | {one['form']} | {one['resident_bytes'] / 2**20:.1f} | "
            f"{share:.2f} | {one['step_ms']:.1f} | {ratio:.2f} |"
        )
    steady = [one for one in cells if one["form"] == "parked, steady"]
    alike = sum(one["tokens_as_gather"] >= steps for one in steady)
    lines += ["", f"Greedy tokens of `parked, steady` equal those of `gather` in {alike} of {len(steady)} cells."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visual", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--turns", type=int, default=6, help="blocks of steps of each form, in alternating order")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true")
    settings = parser.parse_args()
    cells: list[dict[str, Any]] = []
    for visual in settings.visual:
        for rows in settings.rows:
            cells += cell(visual, rows, settings, lambda text: print(text, file=sys.stderr))
    name = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or platform.machine()
    head = (
        f"{name}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {settings.dtype}, {settings.layers} layers, {KEEP:g} of the visual "
        f"entries read or kept from layer {FIRST} on."
    )
    text = table(head, cells, settings.turns * (settings.steps + 1) + 2)
    print(text, end="")
    if settings.write:
        (DATA / "kv_benchmark.md").write_text(text, encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        PAGE.write_text(f"{before}{START}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
        made = {"measured_on": head, "arguments": vars(settings), "cells": cells}
        (DATA / "kv_benchmark.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
