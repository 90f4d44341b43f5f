"""A teacher's and a student's tokenizer, unlike in words and in special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.logitstore.retokenize.tokenizers_made import STUDENT_WORDS, TEACHER_WORDS, byte_level


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return byte_level(tmp_path / "teacher", TEACHER_WORDS, special=["<end>", "<only-teacher>"], eos="<end>")


@pytest.fixture
def student(tmp_path: Path) -> str:
    return byte_level(tmp_path / "student", STUDENT_WORDS, special=["<stop>"], eos="<stop>", shuffle=5)
