"""Density peaks and PruneVid's runs of frames written out as plain loops, to compare with."""

import itertools

import numpy as np


def peaks_by_hand(x: np.ndarray, clusters: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres in ascending order, and the centre each point joins; ties to the lower index, no noise."""
    count, width = x.shape
    far = np.sqrt(((x[:, None] - x[None]).astype(np.float64) ** 2).sum(-1)) / np.sqrt(width)
    near = np.sort(far, axis=1)[:, : min(neighbours, count)]
    density = np.exp(-(near**2).mean(axis=1))
    gap = np.empty(count)
    for i in range(count):
        denser = [j for j in range(count) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        gap[i] = min((far[i, j] for j in denser), default=far.max())
    centres = sorted(np.argsort(-(gap * density), kind="stable")[:clusters].tolist())
    joins = [i if i in centres else min(centres, key=lambda c: far[i, c]) for i in range(count)]
    return centres, joins


def runs_by_hand(cluster: list[int]) -> list[int]:
    """Frame by frame: keep each cluster's longest runs, then give what is between them to the longer neighbour."""
    frames = len(cluster)
    refined = list(cluster)
    for label in set(cluster):
        spans, start = [], None
        for frame in range(frames + 1):
            inside = frame < frames and cluster[frame] == label
            if inside and start is None:
                start = frame
            if not inside and start is not None:
                spans.append((start, frame))
                start = None
        longest = max(end - begin for begin, end in spans)
        for begin, end in spans:
            if longest == 1 or end - begin < longest or label < 0:
                refined[begin:end] = [-1] * (end - begin)
    frame = 0
    while frame < frames:
        if refined[frame] != -1:
            frame += 1
            continue
        end = frame
        while end < frames and refined[end] == -1:
            end += 1
        left = right = 0
        while frame - left - 1 >= 0 and refined[frame - left - 1] == refined[frame - 1]:
            left += 1
        while end + right < frames and refined[end + right] == refined[end]:
            right += 1
        label = 0 if left == right == 0 else refined[frame - 1] if left >= right else refined[end]
        refined[frame:end] = [label] * (end - frame)
        frame = end
    return refined


def segments_of(labels: list[int]) -> list[int]:
    """Segment numbers from labels: a new one wherever the label changes."""
    numbers = [0]
    for before, after in itertools.pairwise(labels):
        numbers.append(numbers[-1] + (before != after))
    return numbers
