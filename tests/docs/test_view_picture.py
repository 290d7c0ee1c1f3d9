"""The picture of a view in the documents: small, and of what the policies keep."""

import json

from doc_pages import ROOT
from PIL import Image

from vidsieve import load_policy

PICTURE, COUNTS = ROOT / "docs" / "pictures" / "view.png", ROOT / "scripts" / "data" / "view_picture.json"


def test_the_committed_picture_is_small_and_its_counts_are_those_the_policies_promise() -> None:
    assert PICTURE.stat().st_size <= 250_000
    with Image.open(PICTURE) as picture:
        assert picture.format == "PNG" and picture.size[0] >= 1000
    told = json.loads(COUNTS.read_text(encoding="utf-8"))["policies"]
    assert [one["policy"] for one in told] == ["vidcom2", "dycoke"]
    for one in told:
        assert sum(one["per_frame"]) == one["prompt_tokens"]
        ratio = load_policy(one["policy"]).retention_ratio
        assert ratio is not None
        assert abs(one["prompt_tokens"] - ratio * one["baseline_tokens"]) <= 1
