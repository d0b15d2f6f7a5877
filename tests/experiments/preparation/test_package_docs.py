"""The input `package_docs`, of tiny wheels; nothing here asks the network."""

import json
import re
import subprocess
import sys
import zipfile

import pytest

from carve_jax.data import is_held_out
from carve_jax.data.sources.documents import PART
from carve_jax.data.token_files.manifest import Manifest
from carve_jax.errors import UserError
from experiments.preparation.package_docs import made, markup, prose, readers, wheels
from experiments.preparation.package_docs.draft import Draft, Section
from experiments.preparation.package_docs.made import made_file
from experiments.preparation.package_docs.repeats import near_repeats
from experiments.preparation.package_docs.wheels import TABLE, Wheel, fetched
from experiments.preparation.prepare import Settings, prepare
from tests.experiments.preparation import wheels as tiny
from tests.experiments.preparation.made import files_of
from tests.experiments.preparation.test_prepare_data import read_eval

SETTINGS = Settings(eval_fraction=0.2, shard_tokens=8000)
INPUTS = ["package_docs"]


@pytest.fixture
def index(tmp_path):
    with tiny.index_of(tiny.packages(), tmp_path / "cache") as asked:
        yield asked


def draft(name, text):
    return Draft(name, [Section("", text)])


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_what_the_wheels_hold_becomes_documents(index, capsys):
    found = {line["name"]: line["text"] for line in lines_of(made_file())}
    modules = {f"plain/plain.m{i}" for i in range(20)}
    assert found.keys() == modules | {"plain/plain/guide.rst", "plain/description", "botocore/one"}
    assert found["plain/plain.m3"] == f"plain.m3.f0\n\n{tiny.prose(3)}\n"
    assert found["plain/plain/guide.rst"] == f"{tiny.prose(50)}\n"
    service = found["botocore/one"]
    assert service.startswith("A Service\n\nWhat the service is for: This is the new one.")
    assert "\n\nAskIt\n\nThis is what part 70" in service
    assert "\n\nName: The name by which" in service
    assert "old one" not in service
    assert "plain: " in capsys.readouterr().out
    assert index == ["plain", "botocore"]


def test_it_is_made_once_and_made_again_if_it_is_damaged(index, tmp_path, monkeypatch):
    path = made_file()
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(made, "_documents", None)
        assert made_file() == path
    path.write_bytes(content[:-9])
    assert made_file().read_bytes() == content
    tiny.forget_all(tmp_path / "cache")
    assert made_file().read_bytes() == content
    assert index == ["plain", "botocore"] * 2


def test_another_table_makes_another_file(index, tmp_path):
    path = made_file()
    with tiny.index_of(tiny.packages(1), tmp_path / "cache"):
        assert made_file() != path
    assert path.exists()


def test_held_out_documents_are_whole_and_named(index, tmp_path):
    files = prepare(INPUTS, tmp_path / "out", SETTINGS)
    lines = lines_of(made_file())
    wanted = [line["text"].encode() for line in lines if is_held_out(line["name"], 0.2)]
    assert len(wanted) > 1
    assert read_eval(files) == wanted
    (source,) = Manifest.read(tmp_path / "out").sources
    assert source["name"] == "package_docs"
    assert source["sha256"] == wheels.file_digest(made_file())


def test_any_number_of_workers_and_a_second_making_write_the_same(index, tmp_path):
    prepare(INPUTS, tmp_path / "one", SETTINGS)
    tiny.forget_text(tmp_path / "cache")
    prepare(INPUTS, tmp_path / "two", SETTINGS, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("train-*.bin"))) > 2


def test_it_stands_beside_other_inputs(index, tmp_path):
    (tmp_path / "package_docs").write_text("a file of that name")
    inputs = [*INPUTS, str(tmp_path / "package_docs")]
    prepare(inputs, tmp_path / "out", SETTINGS._replace(eval_fraction=0.3))
    sources = Manifest.read(tmp_path / "out").sources
    assert [source["name"] for source in sources] == ["package_docs", "package_docs"]
    assert sources[1]["bytes"] == 19


def test_wheels_that_are_damaged_are_fetched_again(index, tmp_path):
    first, second = fetched(wheels.TABLE)
    first.write_bytes(b"PK")
    assert fetched(wheels.TABLE) == [first, second]
    assert zipfile.is_zipfile(first)
    assert index == ["plain", "botocore", "plain"]


def test_a_wheel_of_another_digest_is_told_and_not_kept(index, tmp_path, monkeypatch):
    other = next(iter(tiny.packages(2).values()))

    def download(wheel, folder):
        (folder / "x.whl").write_bytes(other)
        return ""

    monkeypatch.setattr(wheels, "download", download)
    with pytest.raises(
        UserError, match=r"needs the wheel plain 1\.0.*another file than the one of"
    ):
        prepare(INPUTS, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache/carve_jax/package_docs/wheels").iterdir())


def test_a_fetch_that_fails_keeps_what_came_before(index, tmp_path, monkeypatch):
    given = wheels.download
    with monkeypatch.context() as patch:
        patch.setattr(
            wheels, "download", lambda w, f: given(w, f) or "no way" * (w.name != "plain")
        )
        with pytest.raises(UserError, match=r"botocore 1\.0.*\(no way\): connect .* or copy the"):
            prepare(INPUTS, tmp_path / "out", SETTINGS)
    prepare(INPUTS, tmp_path / "out", SETTINGS)
    assert index == ["plain", "botocore", "botocore"]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: no route\nERROR: No matching distribution found\n", "No matching distribution"),
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
        ("", "it said nothing"),
    ],
)
def test_pip_is_asked_for_the_digest_and_its_reason_is_given(tmp_path, monkeypatch, stderr, said):
    def run(command, **settings):
        wanted = (tmp_path / "wanted.txt").read_text("utf-8")
        assert wanted == f"x==1 --hash=sha256:{'a' * 64}\n"
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    assert said in wheels.download(Wheel("x", "1", "a" * 64, "MIT"), tmp_path)


def test_without_the_extra_nothing_is_fetched(index, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"needs the package datasketch; install .* extra text"):
        prepare(INPUTS, tmp_path / "out", SETTINGS)
    assert index == []
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_no_wheel_is_told(tmp_path):
    content = b"no archive"
    digest = wheels.hashlib.sha256(content).hexdigest()
    with (
        tiny.index_of({Wheel("odd", "1", digest, "MIT"): content}, tmp_path / "cache"),
        pytest.raises(UserError, match=r"odd-1\.whl cannot be read as a wheel .*remove it"),
    ):
        made_file()


def test_the_table_pins_each_wheel_once():
    names = [wheel.name for wheel in TABLE]
    assert names == sorted(set(names))
    for wheel in TABLE:
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
        assert wheel.licence
        assert set(wheel.readers) <= readers.READERS.keys()


def test_near_repeats_go_and_the_longest_stays():
    long = tiny.prose(1)
    changed = long.replace("river", "brook").replace("engine", "motor")
    texts = [changed[:-40], long, tiny.prose(2), "short"]
    assert near_repeats(texts) == {0}
    assert near_repeats(texts[::-1]) == {3}
    packages = {"p": [draft("p/a", texts[0]), draft("p/c", texts[2])], "q": [draft("q/b", long)]}
    kept = made.without_near_repeats(packages)
    assert {name: [d.name for d in drafts] for name, drafts in kept.items()} == {
        "p": ["p/c"],
        "q": ["q/b"],
    }


def test_a_paragraph_stays_once_in_a_package_and_so_does_one_that_is_nearly_it():
    same = "This notice is the same in every file of the package, and it says nothing of number"
    drafts = [draft(f"p/{i}", f"{same} {i}.\n\n{tiny.prose(i)}") for i in range(3)]
    texts = [document.text.decode() for document in made.cut_documents(drafts)]
    assert [text.count(same) for text in texts] == [1, 0, 0]
    assert [text.strip() for text in texts[1:]] == [tiny.prose(1), tiny.prose(2)]


@pytest.mark.parametrize(
    ("paragraph", "english"),
    [
        ("Returns the number of rows that were read.", True),
        ("- the first of these, and\n- what you would do with it", True),
        (">>> of the one that is for it in this", False),
        ("for i in range(10): x[i] = y.f(i) + 1", False),
        ("name    int    str    float   bytes   None", False),
        ("Gibt die Anzahl der Zeilen an, die gelesen wurden.", False),
        ("+----+----+ of the table that is in it", False),
        ("Short.", False),
        ("the " * 5000, False),
    ],
)
def test_what_english_is(paragraph, english):
    assert prose.is_english(paragraph) == english


def test_headings_stay_with_what_they_head_and_code_goes():
    text = (
        "Notes\n-----\n\nThis is what you should know of it before you use it.\n\n"
        "Examples\n--------\n\n>>> f(1)\n2\n\nAfter that it is all the same to us."
    )
    found = prose.english_of(Draft("p/a", [Section("f: ", text), Section("g: ", ">>> g(1)")]))
    assert found.text == (
        "f: Notes\n-----\n\nThis is what you should know of it before you use it.\n\n"
        "After that it is all the same to us."
    )
    assert prose.new_of(found, set()) == found
    assert prose.english_of(draft("p/a", text + "\n\n>>> f(1)\n2" * 40)).sections == []


def test_no_document_is_larger_than_the_bound_and_no_paragraph_is_lost():
    sections = [
        Section(f"{i}: ", "\n\n".join(f"{i}.{j} " + "é" * 200 for j in range(7))) for i in range(9)
    ]
    texts = list(prose.cut(Draft("p/a", sections), 2000))
    assert len(texts) > 5
    assert max(map(len, texts)) <= 2000
    assert b"\n".join(texts).decode() == Draft("p/a", sections).text + "\n"
    assert len(list(prose.cut(Draft("p/a", sections)))) == 1
    long = Draft("p/a", [Section("", tiny.prose(i, 300)) for i in range(3)])
    names = [document.name for document in made.cut_documents([long])]
    assert names == ["p/a", *(f"p/a{PART}{n}" for n in range(2, len(names) + 1))]
    for share in (0.1, 0.5, 0.9):
        assert len({is_held_out(name, share) for name in names}) == 1
    assert len(names) > 1


def test_html_becomes_text_and_gaps_to_fill_in_stay():
    html = "<p>Of <code>a</code>\n &amp; b.</p> <ul> <li> <p>One.</p> </li> <li>Two.</li></ul><p>C"
    assert markup.plain_text(html) == "Of a & b.\n\n- One.\n- Two.\n\nC"
    assert markup.plain_text("projects/<project>/x, a < b") == "projects/<project>/x, a < b"
    assert markup.plain_text("<p>At <project> it is.</p>") == "At <project> it is."


def test_the_newest_version_of_an_interface_that_is_no_trial(tmp_path):
    def interface(title):
        method = {"description": tiny.prose(1), "parameters": {"name": {"description": "A name."}}}
        return json.dumps(
            {
                "title": title,
                "resources": {"rows": {"methods": {"list": method}}},
                "schemas": {"Row": {"description": "What a row of it is.", "properties": {}}},
            }
        ).encode()

    names = ["a.v1", "a.v10", "a.v9", "a.v11beta1", "b.alpha", "b.beta"]
    content = tiny.wheel_bytes({f"x/documents/{n}.json": interface(n) for n in names})
    (tmp_path / "x.whl").write_bytes(content)
    found = readers.drafts_of(tmp_path / "x.whl", "x", ("discovery",))
    assert [one.name for one in found] == ["x/a", "x/b"]
    assert [one.sections[0].heading for one in found] == ["a.v10\n\n", "b.beta\n\n"]
    headings = [section.heading for section in found[0].sections]
    assert headings == ["a.v10\n\n", "rows.list\n\n", "name: ", "Row\n\n"]
    assert found[0].sections[2].text == ""  # too few words to say more than the name


def test_checks_are_documents_by_service(tmp_path):
    facts = {
        "CheckTitle": "It is locked",
        "Description": "**What** is looked for.",
        "Risk": "What may happen.",
        "Remediation": {"Recommendation": {"Text": "What to do."}},
        "Notes": "",
    }
    files = {f"p/aws/s3/c{i}/c{i}.metadata.json": json.dumps(facts).encode() for i in range(2)}
    (tmp_path / "x.whl").write_bytes(tiny.wheel_bytes(files))
    (found,) = readers.drafts_of(tmp_path / "x.whl", "x", ("checks",))
    text = "**What** is looked for.\n\nWhat may happen.\n\nWhat to do."
    assert found == ("x/p/aws/s3", [("It is locked\n\n", text)] * 2)
