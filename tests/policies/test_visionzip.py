"""VisionZip: dominant and contextual tokens by hand, against a slow direct computation, and exact totals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Budget, Scores, tokens_to_keep
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.vision_attention import VisionAttention
from vidsieve.policies.visionzip import VisionZip
from vidsieve.testing import StageContract
from vidsieve.testing.samples import video_features, video_tokens


class TestVisionZip(StageContract):
    def make_stage(self) -> Stage:
        return VisionZip()


class TestVisionZipFixed(StageContract):
    def make_stage(self) -> Stage:
        return VisionZip(keep_ratio=0.4, contextual_share=0.5)


class TestVisionAttention(StageContract):
    def make_stage(self) -> Stage:
        return VisionAttention()

    def make_tokens(self, frames: int, tokens: int, dim: int) -> VideoTokens:
        attention = torch.rand(frames, tokens, generator=torch.Generator().manual_seed(3))
        return replace(super().make_tokens(frames, tokens, dim), signals={"vision_attention": attention})


def by_hand(features: Tensor, scores: Tensor, count: int, contextual_share: float) -> dict[int, list[int]]:
    """Members of every token that stays, of one line, token by token."""
    contextual = int(count * contextual_share + 1e-9)
    order = sorted(range(len(features)), key=lambda i: (-float(scores[i]), i))
    dominant, left = order[: count - contextual], sorted(order[count - contextual :])
    found = {i: [i] for i in dominant}
    targets = left[:: len(left) // contextual][:contextual] if contextual else []
    found |= {i: [i] for i in targets}
    for i in left:
        if targets and i not in targets:
            like = [float(cosine_similarity(features[i], features[j], dim=0)) for j in targets]
            found[targets[like.index(max(like))]].append(i)
    return found


def members(record: VideoTokens, stage: VisionZip) -> dict[int, list[int]]:
    plan = stage.merge_tokens(record)
    found: dict[int, list[int]] = {}
    for source, target in zip(plan.source.tolist(), plan.target.tolist(), strict=True):
        found.setdefault(target, []).append(source)
    return {target: sorted(sources, key=lambda i, target=target: (i != target, i)) for target, sources in found.items()}


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    share=st.floats(0.0, 1.0),
    contextual=st.floats(0.0, 0.5),
    seed=st.integers(0, 999),
)
def test_over_a_whole_video_it_is_the_slow_rule(
    shape: tuple[int, int], share: float, contextual: float, seed: int
) -> None:
    features, scores = (
        video_features(*shape, 6, seed=seed),
        torch.rand(shape, generator=torch.Generator().manual_seed(seed)),
    )
    count = max(1, round(share * scores.numel()))
    record = video_tokens(*shape, 6, features=features, scores=Scores(scores), token_budget=count)
    found = members(record, VisionZip(contextual_share=contextual))
    assert found == by_hand(features.flatten(0, 1), scores.flatten(), count, contextual)
    assert len(found) == count


def test_by_frame_each_frame_is_on_its_own() -> None:
    features, scores = video_features(3, 9, 6), torch.rand(3, 9)
    budget = Budget(share=torch.tensor([4.0, 0.0, 6.0]))
    record = video_tokens(3, 9, 6, features=features, scores=Scores(scores), token_budget=10, budget=budget)
    expected: dict[int, list[int]] = {}
    for frame, count in ((0, 4), (2, 6)):
        alone = by_hand(features[frame], scores[frame], count, 0.4)
        expected |= {9 * frame + i: [9 * frame + j for j in joined] for i, joined in alone.items()}
    assert members(record, VisionZip(contextual_share=0.4)) == expected


def test_a_contextual_token_is_half_its_target_and_half_the_mean_of_the_others() -> None:
    features = torch.tensor([[[8.0, 8.0], [1.0, 0.0], [3.0, 0.3], [0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]])
    policy = load_policy("visionzip", retention_ratio=0.5, settings={"visionzip.merge.contextual_share": 0.34})
    done = policy.plan(features, signals={"vision_attention": torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0, 0.0]])})
    assert done.index.tolist() == [0, 1, 2]
    # 3, 4 and 5 join token 2
    assert done.features[2].tolist() == pytest.approx([1.5 + 0.5 * 5 / 3, 0.15 + 0.5 * 3 / 3])
    assert done.weight.tolist() == [1, 1, 4]


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 20)), ratio=st.floats(0.02, 1.0), seed=st.integers(0, 99))
def test_totals_are_exact(shape: tuple[int, int], ratio: float, seed: int) -> None:
    attention = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    policy = load_policy("visionzip", retention_ratio=ratio)
    plan = policy.plan(video_features(*shape, 6, seed=seed), signals={"vision_attention": attention})
    assert int(plan.keep.sum()) == tokens_to_keep(shape[0] * shape[1], ratio)
    per_frame = plan.keep.sum(dim=1)
    assert int(per_frame.max() - per_frame.min()) <= 1


def test_all_may_stay() -> None:
    plan = load_policy("visionzip", retention_ratio=1.0).plan(
        video_features(4, 9, 6), signals={"vision_attention": torch.rand(4, 9)}
    )
    assert plan.keep.all()


def test_without_the_signal_it_is_refused_and_says_what_is_missing() -> None:
    with pytest.raises(PolicyError, match=r"vision-attention.*needs vision_attention, which was not given"):
        load_policy("visionzip").plan(video_features(4, 9, 6))


def test_attention_ranks_for_any_selector() -> None:
    attention = torch.rand(2, 5)
    record = video_tokens(2, 5, 4, signals={"vision_attention": attention})
    assert torch.equal(VisionAttention().score_tokens(record).values, attention)


def test_fastervlm_is_the_best_of_each_frame() -> None:
    attention = torch.rand(4, 12, generator=torch.Generator().manual_seed(8))
    plan = load_policy("fastervlm").plan(video_features(4, 12, 6), signals={"vision_attention": attention})
    best = attention.argsort(dim=1, descending=True)[:, :3].sort(dim=1).values
    assert plan.keep.nonzero()[:, 1].view(4, 3).tolist() == best.tolist()
