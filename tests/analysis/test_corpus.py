"""Any file that arrives: right times and pictures, damage counted, the true reason where it is no video."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from capstone_dagster.analysis import UndecodableVideo
from capstone_dagster.analysis.footage.decoding import VideoFile

from .corpus import CORNERS, FILES, RED, File


def test_the_corpus_is_large() -> None:
    assert len(FILES) >= 60
    assert len({file.name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_what_it_is(file: File, tmp_path: Path) -> None:
    """In this process, which is quick; `test_isolation` has the same code in one of its own."""
    path, right = tmp_path / file.name, file.right
    file.write(path)
    if right.refused is not None:
        with pytest.raises(UndecodableVideo, match=right.refused) as refusal:
            list(VideoFile(path).frames(sample_fps=1))
        assert file.name in str(refusal.value)
        return
    video = VideoFile(path)
    shown = list(video.frames(sample_fps=0))
    video.close()
    times_ms = [frame.pts_ms for frame in shown]
    if right.fewer:
        assert 0 < len(times_ms) <= len(right.times_ms)
        assert max(min(abs(time - known) for known in right.times_ms) for time in times_ms) <= 20
    else:
        assert times_ms == pytest.approx(list(right.times_ms), abs=1)
    if right.end_ms is not None:
        assert video.end_ms == pytest.approx(right.end_ms, abs=1)
    assert {name for name, figure in asdict(video.damage).items() if figure} >= right.warned
    if not right.warned:
        assert not any(asdict(video.damage).values()), video.damage
    assert (video.info.width, video.info.height) == right.size
    assert all(frame.image is not None and frame.image.shape == (*right.size[::-1], 3) for frame in shown)
    if right.corner is not None:
        image = shown[-1].image
        assert image is not None
        near = {name for name, place in CORNERS.items() if np.abs(image[place].astype(int) - RED).mean() < 40}
        assert near == {right.corner}
    said = asdict(video.info)
    said["creation_time"] = said["creation_time"] and said["creation_time"].isoformat()
    assert {name: said[name] for name in right.said} == right.said
