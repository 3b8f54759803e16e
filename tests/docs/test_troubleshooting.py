"""The page of error messages has every message of the package, and no other."""

import re
from pathlib import Path

import pytest

from tests.support.messages import messages

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
LISTED = re.findall(r"^`(.+)`\n:", PAGE, re.MULTILINE)


def test_every_listed_message_is_one_of_the_package():
    assert LISTED
    gone = sorted(set(LISTED) - messages())
    assert not gone, "take out of docs/troubleshooting.md:\n" + "\n".join(gone)


def test_every_message_of_the_package_is_listed():
    missing = sorted(messages() - set(LISTED))
    assert not missing, "write into docs/troubleshooting.md:\n" + "\n".join(missing)


def test_none_is_listed_twice():
    assert len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise ValueError(f'{name} must be {x + 1}')", "… must be …"),
        ("raise TypeError('a' f'{b}' + c)", "a……"),
        ("def unavailable(self):\n    return f'not on {device}'", "not on …"),
    ],
)
def test_messages_are_read_from_source(tmp_path, source, expected):
    (tmp_path / "module.py").write_text(source)
    assert messages(tmp_path) == {expected}
