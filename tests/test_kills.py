"""The short form of campaign.py: random kills over driver and workers, on a real PostgreSQL."""

import random
from pathlib import Path

import pytest

from campaign import Campaign
from postgres import Server


@pytest.mark.parametrize(("workers", "kills", "seed"), [(1, 3, 1), (2, 4, 2)])
def test_kills_at_random_moments_lose_nothing(
    workers: int, kills: int, seed: int, tmp_path: Path, postgres: Server
) -> None:
    report = Campaign(tmp_path, workers, postgres, random.Random(seed), longest=3.0).run(kills)
    assert report.problems == []
    assert report.kills.total() == kills
    assert report.trials == (14 if workers == 1 else 8) * report.studies > 0
