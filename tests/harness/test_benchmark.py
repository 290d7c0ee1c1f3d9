"""The benchmark: what it counts against numbers worked out by hand, and what becomes of cells that fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vidsieve.framework.errors import DataError, UnknownNameError, UsageError
from vidsieve.harness.benchmark import model_shapes
from vidsieve.harness.benchmark.bench_files import read_result
from vidsieve.harness.benchmark.bench_settings import BenchSettings
from vidsieve.harness.benchmark.benchmark import benchmark
from vidsieve.harness.benchmark.memory_meter import HighWaterMeter, SampledMeter, open_meter
from vidsieve.harness.benchmark.model_shapes import model_shape, shape_names
from vidsieve.harness.benchmark.random_weights import with_random_weights
from vidsieve.harness.benchmark.request_bench import RequestBench
from vidsieve.harness.benchmark.synthetic_video import SCENE_FRAMES, synthetic_frames
from vidsieve.report.bench_tables import comparison, head_lines, tables

TOKENS = 4 * 36  # 8 frames of 64 pixels in temporal patches of two; the tiny model has 8 pixels a patch, 2 x 2 merged


def settings(model: Path, **more: Any) -> BenchSettings:
    given: dict[str, Any] = {"frames": "8", "resolution": "64x64", "repeats": 2, "max_new_tokens": 3, "threads": 1}
    return BenchSettings(model=str(model), **{**given, "policies": ["vidcom2,dycoke"], **more})


@pytest.fixture(scope="module")
def measured(models: Path) -> dict[str, Any]:
    """A result of two workloads."""
    folder = models / "qwen2-vl-tiny"
    return benchmark(settings(folder, frames="8,4", policies=["none,vidcom2,dycoke,pixel-change,fastv"]))


def cell(result: dict[str, Any], name: str, work: int = 0) -> dict[str, Any]:
    return next(one for one in result["workloads"][work]["cells"] if one["policy"] == name)


def test_tokens_and_cache_are_those_worked_out_by_hand(measured: dict[str, Any]) -> None:
    base, quarter = cell(measured, "uncompressed"), cell(measured, "vidcom2")
    assert base["visual_tokens"] == quarter["uncompressed_tokens"] == TOKENS
    assert quarter["visual_tokens"] == TOKENS // 4
    # two layers less a token are in no cache; what differs is 108 tokens of keys and values in float32
    config = json.loads((Path(model_shapes.__file__).parents[2] / CONFIG).read_text())
    text = config.get("text_config", config)
    a_token = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_width(text) * 4
    assert base["kv_bytes"] - quarter["kv_bytes"] == (TOKENS - TOKENS // 4) * a_token
    assert base["kv_resident_bytes"] == base["kv_bytes"]


CONFIG = "bundled/models/qwen2-vl-tiny/config.json"


def head_width(text: dict[str, Any]) -> int:
    return text["hidden_size"] // text["num_attention_heads"]


def test_operations_are_those_of_every_matrix_and_of_attention(measured: dict[str, Any], models: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(models / "qwen2-vl-tiny")
    decoder, base = model.get_decoder(), cell(measured, "uncompressed")
    text = model.config.get_text_config()
    matrices = sum(one.weight.numel() for one in decoder.modules() if isinstance(one, nn.Linear))
    # the decode steps: two tokens, each behind what the cache holds by then
    width = text.num_attention_heads * head_width(text.to_dict())
    a_key = base["kv_bytes"] // (2 * text.num_hidden_layers * text.num_key_value_heads * head_width(text.to_dict()) * 4)
    keys = (a_key - 1) + a_key
    head = text.hidden_size * text.vocab_size
    expected = 2 * (2 * (matrices + head)) + text.num_hidden_layers * 4 * width * keys
    # rotary angles are products too, of far fewer numbers
    assert base["flops"]["decode"] == pytest.approx(expected, rel=0.02)
    quarter, fewer_units = cell(measured, "vidcom2"), cell(measured, "pixel-change")
    assert quarter["flops"]["vision"] == base["flops"]["vision"] == 2 * fewer_units["flops"]["vision"]
    assert quarter["flops"]["prefill"] < 0.5 * base["flops"]["prefill"]
    for one in (base, quarter, fewer_units):
        named = [value for name, value in one["flops"].items() if name != "total"]
        assert sum(named) <= one["flops"]["total"] <= 1.01 * sum(named)


def test_the_parts_of_a_request_sum_to_the_whole(models: Path) -> None:
    seen: list[dict[str, float]] = []
    timed = RequestBench.timed

    def kept(self: RequestBench, *args: Any) -> Any:
        seen.append(dict(timed(self, *args)))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestBench, "timed", kept)
        result = benchmark(settings(models / "llava-onevision-tiny", frames="4", policies=["vidcom2"], repeats=1))
    assert cell(result, "vidcom2")["status"] == "measured"
    assert len(seen) == 2
    for parts in seen:
        named = [parts[f"{name}_ms"] for name in ("video", "preprocess", "vision", "compress", "prefill", "decode")]
        assert sum(named) + parts["other_ms"] == pytest.approx(parts["e2e_ms"])
        assert parts["other_ms"] > -0.05 * parts["e2e_ms"]  # no stretch is counted twice
        inner = ("vision", "compress", "prefill")
        assert parts["ttft_ms"] >= 0.9 * sum(parts[f"{name}_ms"] for name in inner)


def test_what_cannot_run_is_a_row_with_its_reason(measured: dict[str, Any]) -> None:
    refused = cell(measured, "fastv")
    assert refused["status"] == "cannot run"
    assert "it reaches" in refused["reason"]
    text = [" ".join(row) for table in tables(measured) for row in table.rows]
    assert any("fastv" in row and "it reaches" in row for row in text)


def test_a_ratio_that_a_policy_cannot_be_given_is_a_row_too(models: Path) -> None:
    asked = settings(models / "qwen2-vl-tiny", policies=["dycoke"], retention="0.5,0.1", repeats=1)
    found = benchmark(asked)["workloads"][0]["cells"]
    assert [(one["asked_ratio"], one["status"]) for one in found[1:]] == [(0.5, "measured"), (0.1, "cannot run")]


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let memory run out for one policy, or for the uncompressed model."""
    count = RequestBench.count

    def refuse(name: str) -> None:
        def counted(self: RequestBench, policy: Any, meter: Any) -> Any:
            if (policy.name if policy is not None else "uncompressed") == name:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return count(self, policy, meter)

        monkeypatch.setattr(RequestBench, "count", counted)

    return refuse


def test_out_of_memory_is_a_cell(models: Path, without_memory: Callable[[str], None]) -> None:
    without_memory("vidcom2")
    result = benchmark(settings(models / "qwen2-vl-tiny", repeats=1))
    assert result["complete"]
    assert cell(result, "vidcom2")["status"] == "out of memory"
    assert cell(result, "dycoke")["status"] == cell(result, "uncompressed")["status"] == "measured"


def test_where_the_uncompressed_model_does_not_fit_the_policies_are_still_measured(
    models: Path, without_memory: Callable[[str], None]
) -> None:
    without_memory("uncompressed")
    told: list[str] = []
    result = benchmark(settings(models / "qwen2-vl-tiny", repeats=1), notice=told.append)
    assert cell(result, "uncompressed")["status"] == "out of memory"
    for name in ("vidcom2", "dycoke"):
        assert cell(result, name)["measures"]["ttft_ms"]["value"] > 0
        assert "ratios" not in cell(result, name)
    assert any("no ratios" in line for line in told)


def test_an_interrupted_benchmark_gives_what_it_has(models: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("time") and done == 1:
            raise KeyboardInterrupt

    result = benchmark(settings(models / "qwen2-vl-tiny", frames="8,4", repeats=3), step=stop)
    assert not result["complete"]
    assert cell(result, "vidcom2")["requests"] == 1
    assert cell(result, "vidcom2", 1)["status"] == "waiting"
    assert "INCOMPLETE" in head_lines(result)[-1]
    assert tables(result)


def test_an_unknown_shape_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'qwen2-vl-7b'"):
        model_shape("qwen2-vl-7")
    with pytest.raises(UsageError, match="1 to 28, got 29"):
        model_shape("qwen2-vl-7b", 29)


PUBLISHED = {"qwen2-vl-2b": 2_208_985_600, "qwen2.5-vl-7b": 8_292_166_656, "qwen3-vl-8b": 8_767_123_696}
"""Parameters of the checkpoints, as the hub counts them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_parameters_of_its_checkpoint(name: str) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**model_shape(name).config))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", shape_names())
def test_cut_shapes_keep_their_special_layers_within_the_tower(name: str) -> None:
    cut = model_shape(name, 2).config["vision_config"]
    depth = cut.get("depth", cut.get("num_hidden_layers"))
    for indexes in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        assert all(0 <= index < depth for index in cut.get(indexes, [0]))
    assert "CUT to 2 of" in model_shape(name, 2).sentence()


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The committed shapes with narrow layers and a small vocabulary of their own ids."""
    for name in shape_names():
        config = json.loads((model_shapes.FOLDER / f"{name}.json").read_text())
        text, vision = config["text_config"], config["vision_config"]
        text |= {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        text |= {"head_dim": 16} if "head_dim" in text else {}
        if "mrope_section" in text["rope_parameters"]:
            text["rope_parameters"]["mrope_section"] = [2, 3, 3]
        vision |= {"intermediate_size": 32} if "intermediate_size" in vision else {}
        if "embed_dim" in vision:
            vision |= {"embed_dim": 32, "hidden_size": 64, "num_heads": 2}
        elif "num_heads" in vision:
            vision |= {"hidden_size": 32, "num_heads": 2, "out_hidden_size": 64}
        else:
            vision |= {"hidden_size": 32, "num_attention_heads": 2}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setattr(model_shapes, "FOLDER", tmp_path)


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-8b", "llava-onevision-0.5b"])
def test_random_weights_answer_without_a_download(name: str, small_shapes: None) -> None:
    given: dict[str, Any] = {"frames": "4", "resolution": "56x56", "repeats": 1, "max_new_tokens": 2, "threads": 1}
    asked = BenchSettings(random_weights=name, layers=2, dtype="bfloat16", policies=["vidcom2"], **given)
    result = benchmark(asked)
    assert cell(result, "vidcom2")["status"] == cell(result, "uncompressed")["status"] == "measured"
    assert cell(result, "vidcom2")["visual_tokens"] < cell(result, "uncompressed")["visual_tokens"]
    assert result["about"]["dtype"] == "bfloat16"
    assert "CUT to 2 of" in head_lines(result)[0]


def test_random_weights_are_the_same_for_the_same_seed(small_shapes: None) -> None:
    shape, setup = model_shape("qwen2-vl-2b", 1), BenchSettings(random_weights="qwen2-vl-2b").loading()
    one, same, other = (with_random_weights(shape, setup, seed=seed).model for seed in (0, 0, 1))
    weights = [model.get_input_embeddings().weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.05)
    rows = weights[0][:50]
    assert len(rows.unique(dim=0)) == 50  # the block that is repeated makes no two rows alike
    norms = [weight for name, weight in one.named_parameters() if name.endswith("layernorm.weight")]
    assert norms and all(bool((weight == 1).all()) for weight in norms)


@pytest.mark.skipif(open_meter(torch.device("cpu")) is None, reason="the system tells no resident memory")
@pytest.mark.parametrize("kind", [HighWaterMeter, SampledMeter])
def test_a_peak_between_two_looks_is_seen(kind: type) -> None:
    meter = kind()
    try:
        meter.trim()
        meter.restart()
        before = meter.held_bytes()
        held = torch.zeros(64 << 20, dtype=torch.uint8)
        for _ in range(20):
            held += 1  # long enough for a look
        del held
        meter.trim()
        assert meter.peak_bytes() - before > 60 << 20
        meter.restart()
        assert meter.peak_bytes() - before < 60 << 20
    except PermissionError:
        pytest.skip("the high-water mark cannot be set back here")
    finally:
        meter.close()


def test_synthetic_scenes_stand_still_but_for_one_object() -> None:
    video = synthetic_frames(2 * SCENE_FRAMES, 96, 64).int()
    change = (video[1:] - video[:-1]).abs().amax(dim=1)
    still = (change <= 5).float().mean(dim=(1, 2))
    cut = still[SCENE_FRAMES - 1]
    assert cut < 0.5
    assert all(share > 0.8 for index, share in enumerate(still.tolist()) if index != SCENE_FRAMES - 1)
    assert (change[0] > 5).any()
    assert torch.equal(synthetic_frames(3, 96, 64), synthetic_frames(3, 96, 64))


def test_two_results_are_compared_cell_by_cell(measured: dict[str, Any]) -> None:
    slower = json.loads(json.dumps(measured))
    slower["about"]["torch"] = "9.9"
    for value in ("value", "low", "high"):
        cell(slower, "vidcom2")["measures"]["ttft_ms"][value] *= 10
    slower["workloads"][0]["cells"].pop()
    lines, table = comparison(slower, measured)
    assert lines == [f"torch: {measured['about']['torch']} → 9.9"]
    changed = [row for row in table.rows if row[-1]]
    assert changed == [row for row in table.rows if row[:2] == ["8 frames, vidcom2", "TTFT ms"]]
    assert changed[0][4:] == ["10.000", "slower, beyond its interval"]
    assert ["8 frames, fastv", "", "there", "not there", "", ""] in table.rows


def test_files_that_hold_no_result_are_refused(tmp_path: Path) -> None:
    wrong = {"a.json": "{", "b.json": "[]", "c.json": '{"kind": "vidsieve bench"}'}
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=name):
            read_result(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        read_result(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "`model`: is missing"),
        ({"model": "m", "random_weights": "qwen2-vl-2b"}, "exclude each other"),
        ({"model": "m", "layers": 2}, "`layers`: cuts a model with random weights"),
        ({"model": "m", "frames": "8,x"}, "`frames`: whole numbers"),
        ({"model": "m", "frames": ""}, "`frames`: whole numbers"),
        ({"model": "m", "resolution": "640"}, "`resolution`: WIDTHxHEIGHT"),
        ({"model": "m", "resolution": "1x1"}, "`resolution`: WIDTHxHEIGHT"),
        ({"model": "m", "retention": "25"}, "`retention`"),
        ({"model": "m", "retention": "a"}, "`retention`: numbers"),
        ({"model": "m", "repeats": 0}, "`repeats`: must be above 0"),
        ({"model": "m", "video": ["a.mp4"], "resolution": "64x64"}, "exclude each other"),
    ],
)
def test_settings_without_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BenchSettings(**given)
