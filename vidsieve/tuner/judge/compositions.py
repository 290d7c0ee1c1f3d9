"""Judge the best composition against the best published policy: at equal latency, on held-out examples."""

from collections.abc import Collection, Sequence

from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.finals import Confirmed
from vidsieve.tuner.judge.matched_controls import run_control
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measured import CompositionVerdict
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.statistics import Interval
from vidsieve.tuner.study.record import TrialResult


def judge_compositions(
    measurement: Measurement,
    heldout: Heldout,
    winner: tuple[Confirmed, Sequence[Outcome]] | None,
    leaders: Sequence[TrialResult],
    trial_results: Sequence[TrialResult],
    rejected: Collection[str] = (),
) -> CompositionVerdict:
    """Bring the best of the other side to the winner's latency and score it on the held-out examples.

    `winner` is what was chosen, with its held-out outcomes; None where nothing was. The best of a side is the first of
    `leaders` that is not `rejected`, as the search and its re-ranking left them; where a side has none, the best of
    those that fell behind in the search.
    """
    tried = [each for each in trial_results if each.candidate is not None and each.candidate.base == COMPOSED]
    behind = [each for each in trial_results if each.score is not None and each.violation.get("latency", 0.0) <= 0]
    ranked = [*leaders, *sorted(behind, key=lambda each: (-each.value, each.number))]
    left = [each for each in ranked if each.policy.hash not in rejected]
    compositions = [each for each in left if _is_composition(each)]
    published = [each for each in left if not _is_composition(each)]
    if not tried:
        failed = any(each.candidate is None for each in trial_results)
        return CompositionVerdict(tried=0, reason="none could be measured" if failed else "none was tried")
    if not compositions:
        return CompositionVerdict(tried=len(tried), reason=f"none of {len(tried)} tried met the target")
    if winner is None:
        return CompositionVerdict(tried=len(tried), reason="no policy was worth it")
    confirmed, ours = winner
    # what grew or shrank to its latency has the name of its trial still
    composition_won = confirmed.policy.name in {each.policy.name for each in tried}
    rivals = published if composition_won else compositions
    first = confirmed.policy.name
    if not rivals:
        return CompositionVerdict(tried=len(tried), composition=first, reason="no published policy met the target")
    rival = rivals[0].policy
    found = run_control(measurement, heldout, rival, confirmed.latency, ours)
    names = (first, rival.name) if composition_won else (rival.name, first)
    if found.advantage is None or found.latency is None:
        return CompositionVerdict(
            tried=len(tried),
            composition=names[0],
            published=names[1],
            reason=f"{rival.name} could not be measured at the same latency: {found.reason}",
        )
    ratios = (confirmed.latency.ratio.value, found.latency.ratio.value)
    return CompositionVerdict(
        tried=len(tried),
        composition=names[0],
        published=names[1],
        difference=found.advantage if composition_won else _reversed(found.advantage),
        composition_latency_ratio=ratios[0] if composition_won else ratios[1],
        published_latency_ratio=ratios[1] if composition_won else ratios[0],
    )


def _is_composition(trial_result: TrialResult) -> bool:
    return trial_result.candidate is not None and trial_result.candidate.base == COMPOSED


def _reversed(difference: Interval) -> Interval:
    """Return the other side's difference."""
    # from zero, since the negative of zero would be printed with its sign
    value, low, high = (0.0 - number for number in (difference.value, difference.high, difference.low))
    return Interval(value, low, high, difference.n, difference.level)
