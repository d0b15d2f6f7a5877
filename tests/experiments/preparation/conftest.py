"""Text to prepare."""

import json

import pytest


@pytest.fixture
def many(tmp_path):
    """Text in which pieces of work, shards, lines and files end at different places."""
    directory = tmp_path / "many"
    directory.mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {i} " * (1 + i * 7 % 13)}) for i in range(50)]
        lines[7] = json.dumps({"text": ""})
        lines[20] = json.dumps({"text": "a line longer than two pieces of work " * 20})
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n" * (name == "a"))
    (directory / "c.txt").write_text("one more text")
    return directory
