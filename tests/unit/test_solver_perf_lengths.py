"""Lengths reduced to classes keep what the closed forms need of them."""

import numpy as np
import pytest

from cascadia_solver.lengths import length_profile


def test_profiles_keep_the_means() -> None:
    random = np.random.default_rng(11)
    inputs = random.lognormal(6.6, 0.9, 999).clip(1, 16000).astype(int)
    outputs = random.lognormal(5.1, 0.7, 999).clip(1, 2000).astype(int)
    profile = length_profile(inputs, outputs)
    assert len(profile.shares) <= 32
    assert profile.shares.sum() == pytest.approx(1.0)
    assert (profile.shares * profile.inputs).sum() == pytest.approx(inputs.mean())
    assert (profile.shares * profile.outputs).sum() == pytest.approx(outputs.mean())
    one = length_profile([100], [1])
    assert (one.inputs.tolist(), one.outputs.tolist(), one.shares.tolist()) == ([100.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="equally many"):
        length_profile([1, 2], [1])
    with pytest.raises(ValueError, match="equally many"):
        length_profile([], [])
