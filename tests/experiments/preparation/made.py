"""Settings of the tests, and what they find."""

from experiments.preparation.prepare import Settings
from experiments.preparation.work import WorkSize

SETTINGS = Settings(eval_fraction=0.3)
SMALL_SHARDS = SETTINGS._replace(shard_tokens=400, work=WorkSize(300, 7))


def files_of(directory):
    """The bytes of all files there, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}
