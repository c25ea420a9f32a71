"""A short run of campaign.py: random kills of drivers and workers, on a real PostgreSQL."""

import random
from pathlib import Path

import pytest

from campaign import Campaign
from postgres import Server


@pytest.mark.parametrize(("workers", "drivers", "kills", "seed"), [(1, 1, 3, 1), (2, 1, 4, 2), (1, 2, 3, 3)])
def test_kills_at_random_moments_lose_nothing(
    workers: int, drivers: int, kills: int, seed: int, tmp_path: Path, postgres: Server
) -> None:
    campaign = Campaign(tmp_path, workers, postgres, random.Random(seed), longest=3.0, drivers=drivers)
    report = campaign.run(kills)
    assert not report.problems, "\n".join(report.problems)
    assert report.kills.total() == kills
    assert report.trials == campaign.trials * report.studies > 0
