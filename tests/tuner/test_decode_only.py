"""What works after the first token is not searched where latency and p(gold) end there."""

import pytest

from vidsieve import load_policy
from vidsieve.tuner.space.search_space import PolicySpace


@pytest.mark.parametrize(("metric", "searched"), [("ttft", False), ("e2e", True), (None, True)])
def test_decode_stages_are_searched_only_where_decoding_counts(metric: str | None, searched: bool) -> None:
    entry = PolicySpace.of(load_policy("dycoke"), (0.5, 0.5), solved=True, metric=metric)  # type: ignore[arg-type]
    assert any(place.label == "dycoke.kv" for place in entry.places) is searched
    knobs = [knob.name for variant in entry.variants.values() for knob in variant.knobs]
    assert any(name.startswith("dycoke.kv.") for name in knobs) is searched
    assert entry.preset(0.5) is not None


def test_a_place_the_policy_file_asks_for_stays_open() -> None:
    policy = load_policy("dycoke")
    asked = type(policy)(
        name="mine",
        stages=policy.stages,
        retention_ratio=policy.retention_ratio,
        search={"stages": {"dycoke.kv": "optional"}},
    )
    assert any(place.label == "dycoke.kv" for place in PolicySpace.of(asked, (0.5, 0.5), metric="ttft").places)
