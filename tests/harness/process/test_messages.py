"""What the two processes of a bench write to each other."""

import dataclasses

import numpy as np
import torch
from tuner.fake_bench import FakeTask

from vidsieve.harness.process.messages import SentExample, SentExamples, pack, unpack


def test_what_does_not_fit_the_bound_is_sent_each_time() -> None:
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    one, two = (dataclasses.replace(example, frames=frames) for example in FakeTask().examples("search", 2))
    sent = SentExamples(most_bytes=500)
    for turn in range(2):
        first, second = sent.items([one, two])
        assert isinstance(first, SentExample if turn == 0 else int)
        assert isinstance(second, SentExample) and second.number is None


def test_numpy_is_what_tensors_travel_as() -> None:
    values = torch.tensor(np.array([[0.1, -0.0], [float("inf"), 3e-45]], dtype=np.float32))
    assert unpack(pack(values)).numpy().tobytes() == values.numpy().tobytes()
