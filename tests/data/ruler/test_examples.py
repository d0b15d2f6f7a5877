"""The examples of RULER's probes: what they hide, how long they are, and that a seed fixes them."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from carve_jax.data import train_bpe
from carve_jax.data.ruler import PROBES, RULER, Haystack, example, examples
from carve_jax.data.ruler.words import COMPOUNDS, NOUNS
from carve_jax.errors import UserError

TEXT = Haystack.text(
    " ".join(f"Sentence {i} tells of the {noun} and ends." for i, noun in enumerate(NOUNS))
)
# Every probe with a haystack that fits it.
HAYSTACKS = {name: TEXT if probe.filler == "text" else None for name, probe in PROBES.items()}


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(TEXT.sentences).encode()], 700)


def make(name, index=0, length=1024, encode=str.encode, **options):
    options = {"haystack": HAYSTACKS[name], **options}
    return example(PROBES[name], index, length=length, encode=encode, **options)


@pytest.mark.parametrize("length", [1024, 5000])
@pytest.mark.parametrize("name", PROBES)
def test_bytes_fill_the_length(name, length):
    for index in range(3):
        got = make(name, index, length)
        short = length - len(got.prompt.encode()) - got.max_new_tokens
        # What is a list of words lacks less than one more of them, in each of its places.
        assert 0 <= short < (60 if name in ("cwe", "fwe") else 1)
        assert len(got.reply.encode()) <= got.max_new_tokens


@pytest.mark.parametrize("name", PROBES)
def test_tokens_of_a_bpe_fill_the_length(name, bpe):
    got = make(name, length=2000, encode=bpe.encode)
    short = 2000 - len(bpe.encode(got.prompt)) - got.max_new_tokens
    assert 0 <= short < (60 if name in ("cwe", "fwe") else 3)


def test_the_longest_length():
    got = make("niah_single_1", length=131_072)
    assert len(got.prompt) == 131_072 - 128
    assert got.answers == make("niah_single_1").answers  # whatever the length
    assert got.prompt.count(got.answers[0]) == 1


@pytest.mark.parametrize("name", [name for name in RULER if name.startswith("niah")])
def test_each_answer_is_a_needle_of_a_key_that_is_asked_for(name):
    task = PROBES[name].task
    for index in range(5):
        got = make(name, index, 2048)
        context, question = got.prompt.rsplit("\n", 1)
        needles = dict(
            reversed(pair) for pair in re.findall(r"magic \w+ for (\S+) is: (\S+)\.", context)
        )
        assert len(got.answers) == len(got.depths) == task.queries * task.values
        for answer in got.answers:
            assert got.prompt.count(answer) == 1
            assert question.count(needles[answer]) == 2
        asked = {needles[answer] for answer in got.answers}
        others = [value for value, key in needles.items() if key in asked]
        assert sorted(others) == sorted(got.answers)
        if task.among_needles:
            assert len(needles) > 8
            assert len(set(needles.values())) == len(needles)
        else:
            assert len(needles) == task.keys * task.values


def test_the_same_needle_in_few_words():
    got = make("niah_terse", length=256, new_tokens=0)
    key = got.prompt.rsplit("\n", 1)[1].removesuffix(" is")
    assert got.prompt.count(f"\n{key} is {got.answers[0]}.\n") == 1
    assert len(got.prompt + got.reply) == 256
    assert "niah_terse" not in RULER


def test_kinds_of_keys_and_values():
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
    for name, key, value in (
        ("niah_single_1", "[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_single_3", "[a-z]+-[a-z]+", uuid),
        ("niah_multikey_3", uuid, uuid),
    ):
        assert re.search(rf"for {key} is: {value}\.", make(name).prompt)


def test_depths_say_where_the_answer_is():
    for index in range(20):
        got = make("niah_single_1", index, 8192)
        place = got.prompt.index(got.answers[0]) / len(got.prompt)
        assert place == pytest.approx(got.depths[0], abs=0.05)
    depths = [make("niah_single_1", index).depths[0] for index in range(100)]
    assert all(sum(low <= d < low + 0.25 for d in depths) > 10 for low in (0, 0.25, 0.5, 0.75))


def test_variables_are_a_chain_from_the_value_that_is_asked_for():
    got = make("vt", length=2048)
    shot, question = got.prompt.split("\n\nMemorize", 1)
    value = re.search(r"assigned the value (\d+) in", question)[1]
    sources = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)$", question, re.MULTILINE))
    assert len(got.answers) == len(sources) == 5
    for name, before in zip(got.answers, (value, *got.answers), strict=False):
        assert sources[name] == before
        assert name not in shot
    lines = [question.index(f"VAR {name} =") for name in got.answers]
    assert lines == sorted(lines)
    worked = re.findall(r"VAR ([A-Z]{3}) =", shot)
    assert shot.endswith("they are: " + " ".join(worked))


@pytest.mark.parametrize(
    ("length", "form", "often", "seldom"),
    [(1024, "3:1, no example", 3, 1), (2600, "6:1", 6, 1), (12_000, "30:3", 30, 3)],
)
def test_common_words_come_most_often(length, form, often, seldom):
    got = make("cwe", length=length)
    assert got.form == form
    listed = got.prompt[got.prompt.rindex("Below") :].split("\nQuestion")[0]
    counts = Counter(re.findall(r"\d+\. (\w+)", listed))
    assert {word for word, count in counts.items() if count == often} == set(got.answers)
    assert len(got.answers) == 10
    assert set(counts.values()) == {often, seldom}


@pytest.mark.parametrize("length", [1024, 8192])
def test_frequent_words_follow_the_dots(length):
    got = make("fwe", length=length)
    coded = got.prompt.split("coded words. ")[1].split("\nQuestion")[0]
    (dots, most), *ranked = Counter(coded.split(" ")).most_common()
    assert dots == "..."
    assert [word for word, _ in ranked[:3]] == list(got.answers)
    assert ranked[2][1] > ranked[3][1]
    assert ranked[0][1] == pytest.approx(most / 4, abs=1)  # rank to the power of -2


def test_a_compound_is_no_part_of_another():
    compounds = {one + two for one in NOUNS for two in NOUNS}
    assert len(compounds) == COMPOUNDS
    least = min(map(len, compounds))
    for word in compounds:
        parts = (word[i:j] for i in range(len(word)) for j in range(i + least, len(word) + 1))
        assert [part for part in parts if part in compounds] == [word]


def test_haystacks(tmp_path):
    repeated = make("niah_single_1", haystack=Haystack.named("repeat:Nothing here."))
    assert repeated.prompt.count("Nothing here.\n") > 20
    path = tmp_path / "essay.txt"
    path.write_text("It began\nwell.  Did it? It  ended — so.\n")
    essay = Haystack.named(str(path))
    assert essay.sentences == ("It began well.", "Did it?", "It ended — so.")
    assert essay.name == "essay.txt"
    got = make("niah_single_2", haystack=essay)
    assert got.prompt.count("It began well. Did it? It ended — so. It began well.") > 5
    begins = {make("niah_single_2", i, haystack=essay).prompt[131:140] for i in range(20)}
    assert len(begins) > 2  # examples begin with different sentences
    (line,) = Haystack.noise().sentences
    cuts = [Haystack.noise().cut(0, size) for size in (3, len(line), len(line) + 1, len(line) + 2)]
    assert cuts == [["The"], [line], [line + "\n"], [line, "T"]]


def test_examples_hang_on_seed_and_index_alone():
    (zero, one) = examples(PROBES["niah_multikey_2"], length=1024, encode=str.encode, count=2)
    assert one == make("niah_multikey_2", 1)
    assert len({zero.answers, one.answers, make("niah_multikey_2", seed=1).answers}) == 3
    # Another process, with another seed of Python's hashes.
    program = (
        "from carve_jax.data.ruler import PROBES, example\n"
        "for name in ('niah_multikey_2', 'vt', 'cwe', 'fwe'):\n"
        "    print(example(PROBES[name], 1, length=1024, encode=str.encode))\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [str(make(name, 1)) for name in ("niah_multikey_2", "vt", "cwe", "fwe")]
    assert other.stdout.splitlines() == here


def test_what_cannot_be_is_said():
    shortest = 0
    with pytest.raises(UserError, match=r"niah_single_1 does not fit in 200 tokens: .* least \d+"):
        make("niah_single_1", length=200)
    try:
        make("niah_single_1", length=200)
    except UserError as error:
        shortest = int(re.search(r"least (\d+)", str(error))[1])
    assert len(make("niah_single_1", length=shortest).prompt) == shortest - 128
    with pytest.raises(UserError, match="does not fit"):
        make("niah_single_1", length=shortest - 1)
    assert make("niah_single_1", length=shortest - 1, new_tokens=8).max_new_tokens == 8
    with pytest.raises(UserError, match="niah_single_2 hides its needles in a text"):
        make("niah_single_2", haystack=None)
    with pytest.raises(UserError, match=r"nowhere\.txt' cannot be read"):
        Haystack.named("nowhere.txt")
    with pytest.raises(UserError, match="nothing in the repeated sentence"):
        Haystack.named("repeat: ")
