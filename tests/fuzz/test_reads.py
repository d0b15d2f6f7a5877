"""Every place of the code that reads files belongs to a kind, or says why to none."""

import pytest

from tests.fuzz.bench import Bench
from tests.fuzz.kinds import KINDS
from tests.fuzz.reads import NOT_FILES, all_sites, called, sites

CLAIMED = {site for kind in KINDS for site in kind.reads}


def test_every_reader_is_in_a_kind():
    left = sorted(all_sites() - CLAIMED - NOT_FILES.keys())
    assert not left, (
        f"{', '.join(left)} read files, and no damaged one was ever tried there: name them in the "
        "`reads` of a Kind in tests/fuzz/kinds/, whose `read` calls them, or in NOT_FILES of "
        "tests/fuzz/reads.py with the reason why nobody could have damaged those files"
    )


def test_nothing_is_claimed_that_reads_nothing():
    gone = sorted((CLAIMED | NOT_FILES.keys()) - all_sites())
    assert not gone, f"{', '.join(gone)} read no file, or are called otherwise by now: correct it"
    assert not CLAIMED & NOT_FILES.keys()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_calls_what_it_claims(kind, tmp_path):
    bench = Bench(kind, tmp_path)
    bench.fresh()
    missed = set(kind.reads) - called(bench.read)
    assert not missed, f"{kind.name} never calls {', '.join(sorted(missed))}"


def test_sites_are_found_in_functions_and_classes():
    source = (
        "import json\nTABLE = json.loads(x)\n"
        "class A:\n    def b(self):\n        with path.open('rb') as f: return f\n"
        "    def c(self): return json.dumps(x)\n"
        "def d():\n    def e(): return np.load(p)\n    return files.read_json(e)\n"
        "async def g(): open(p)\n"
    )
    assert list(sites(source, "m")) == ["m:<module>", "m:A.b", "m:d.e", "m:d", "m:g"]
