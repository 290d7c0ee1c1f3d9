"""STTM's merging, cell by cell."""

from torch import Tensor
from torch.nn.functional import cosine_similarity

Cell = tuple[int, int, int, int]  # frame, level, row, column


def by_hand(
    states: Tensor, cell: list[int], grid: tuple[int, int, int], setting: tuple[float, float, int]
) -> dict[int, dict[int, float]]:
    """By token that stays: who melts into it, and with what share of the mean."""
    similarity, temporal, root_level = setting
    tree = _Tree(states, cell, grid, similarity, root_level)
    found: list[tuple[list[int], dict[int, float], Tensor]] = []  # tokens of a node, their shares, its mean
    for frame in range(grid[0]):
        for row in range(tree.sizes[tree.top][0]):
            for column in range(tree.sizes[tree.top][1]):
                found += tree.split((frame, tree.top, row, column))
    found.sort(key=lambda one: min(one[0]))
    size, pairs = grid[1] * grid[2], []
    for i, (tokens, _, mean) in enumerate(found):
        for j, (others, _, other) in enumerate(found):
            touch = {token + size for token in tokens} & set(others)
            if touch and cosine_similarity(mean, other, dim=0) >= temporal:
                pairs.append((i, j))
    label = _labels(len(found), pairs)
    parts: dict[int, dict[int, float]] = {}
    for i, (_, shares, _) in enumerate(found):
        parts.setdefault(min(found[label[i]][0]), {}).update(shares)
    return parts


def _labels(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Labels are taken over from joined nodes until each names a node that keeps its own."""
    label = list(range(count))
    while True:
        least, new = [min(label[i], label[j]) for i, j in pairs], list(label)
        for pair, value in zip(pairs, least, strict=True):
            for i in pair:
                new[i] = min(new[i], value)
        label = [new[i] for i in new]
        if label == [label[i] for i in label]:
            return label


class _Tree:
    def __init__(
        self, states: Tensor, cell: list[int], grid: tuple[int, int, int], similarity: float, root_level: int
    ) -> None:
        self.similarity, self.sizes = similarity, [grid[1:]]
        while min(self.sizes[-1]) > 2:
            self.sizes.append(((self.sizes[-1][0] + 1) // 2, (self.sizes[-1][1] + 1) // 2))
        self.top = max(0, len(self.sizes) - 1 - root_level)
        self.number, self.mean = {}, {}
        for state, at in zip(states, cell, strict=True):
            frame, place = divmod(at, grid[1] * grid[2])
            key = (frame, 0, *divmod(place, grid[2]))
            self.number[key], self.mean[key] = at, state

    def children(self, cell: Cell) -> list[Cell]:
        """The cells of the level below that are there."""
        frame, level, row, column = cell
        spans = []
        for side, at in zip(self.sizes[level - 1], (row, column), strict=True):
            spans.append([i for i in (2 * at - side % 2, 2 * at + 1 - side % 2) if i >= 0])
        below = [(frame, level - 1, i, j) for i in spans[0] for j in spans[1]]
        return [one for one in below if self.value(one) is not None]

    def value(self, cell: Cell) -> Tensor | None:
        """The mean of the children's means."""
        if cell[1] > 0 and cell not in self.mean:
            values = [self.value(child) for child in self.children(cell)]
            self.mean[cell] = sum(values) / len(values) if values else None
        return self.mean.get(cell)

    def shares(self, cell: Cell) -> dict[int, float]:
        """What part of the cell's mean each token is."""
        if cell[1] == 0:
            return {self.number[cell]: 1.0}
        below = self.children(cell)
        return {token: part / len(below) for child in below for token, part in self.shares(child).items()}

    def split(self, cell: Cell) -> list[tuple[list[int], dict[int, float], Tensor]]:
        """The nodes within a cell."""
        value = self.value(cell)
        if value is None:
            return []
        if cell[1] == 0 or all(
            cosine_similarity(value, self.value(child), dim=0) >= self.similarity for child in self.children(cell)
        ):
            shares = self.shares(cell)
            return [(list(shares), shares, value)]
        return [node for child in self.children(cell) for node in self.split(child)]
