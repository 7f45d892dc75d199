"""Any file that arrives: right times and pictures, damage counted, the true reason where it is no video."""

from __future__ import annotations

from pathlib import Path

import pytest

from .corpus import FILES, File
from .corpus_table import Got, differences


def test_the_corpus_is_large() -> None:
    assert len(FILES) >= 60
    assert len({file.name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_what_it_is(file: File, tmp_path: Path) -> None:
    path = tmp_path / file.name
    file.write(path)
    assert differences(file.name, file.right, Got.of(path)) == []
