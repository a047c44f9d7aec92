"""The scripts that emulate Arm, where nothing need be fetched: what counts as different, which lines the page has."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import UserError
from tests.arm import debian, emulate, page

LITERT, OLD = emulate.boards()[:2]


def ran(changed: int = 0, partitions: tuple[str, ...] = ("[1] -> [2]", "[3] -> [4]")) -> dict[str, Any]:
    classes = np.zeros((1, 10, 10), np.uint8)
    classes.flat[:changed] = 1
    return {"classes": classes, "partitions": np.array(partitions, str)}


@pytest.mark.parametrize(
    ("board", "there", "same"),
    [
        (LITERT, ran(), True),
        (LITERT, ran(1), False),  # one pixel
        (LITERT, ran(partitions=("[1] -> [2]",)), False),
        (LITERT, ran(partitions=("[1] -> [2]", "[3] -> [5]")), False),  # as many pieces, but others
        (LITERT, UserError("Segmentation fault"), False),
        (OLD, ran(2, ()), True),  # another runtime, without XNNPACK: 98 % will do
        (OLD, ran(3, ()), False),
    ],
)
def test_a_difference_is_seen(board: emulate.Board, there: Any, same: bool) -> None:
    words, verdict = emulate._verdict(board, ran(), there)
    assert verdict == same and ("DIFFERENT" in words or "died" in words) == (not same)


def test_the_pages_lines_need_neither_apt_nor_a_board() -> None:
    lines = page.commands(page.PAGE.read_text())
    assert lines[0] == "make demo" and any("benchmark" in line for line in lines)
    assert not [line for line in lines if re.search(r"sudo|apt|/sys/", line)]


def test_pictures_come_from_a_folder_or_from_the_clip(tmp_path: Path) -> None:
    assert len(emulate.frames(None, 2)) == 2
    with pytest.raises(UserError, match="no picture"):
        emulate.frames(tmp_path, 2)


def test_a_failing_command_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"failed \(ls: cannot access 'nothing'.*\): mend that"):
        debian.run(["ls", "nothing"], {"LC_ALL": "C"})
