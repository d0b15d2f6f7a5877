"""lm-evaluation-harness end to end, offline, on local tasks of each kind."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from carve_jax.data import ByteTokenizer
from carve_jax.errors import UserError
from carve_jax.evaluation import harness_tasks, recall
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.harness_run import Harness, with_error
from carve_jax.evaluation.harness_tasks import HarnessTasks
from carve_jax.evaluation.lm_harness import CarveLM
from carve_jax.evaluation.reading import Reader
from carve_jax.evaluation.scoring import Scorer
from carve_jax.evaluation.tasks import NamedTasks, Options, find_tasks
from carve_jax.model import LanguageModel, LMConfig
from experiments.evaluating import measure
from tests.evaluation.local_tasks import CHOICES, LAST_WORDS, QUESTIONS, TEXTS, write_tasks
from tests.mixers.parameters import random_parameters

LONGEST = 256


def make_subject(pattern=("gdn2",), **options):
    config = LMConfig(
        vocab_size=257,
        d_model=16,
        layers=len(pattern),
        pattern=pattern,
        mlp_dim=16,
        num_heads=2,
        key_dim=4,
        value_dim=8,
        implementation="recurrent",  # it compiles fastest
    )
    model = LanguageModel(config)
    params = random_parameters(model, jnp.zeros((1, 1), jnp.int32))
    scorer = Scorer(model, params, batch_size=4, call_tokens=512, **options)
    return EvaluatedModel(None, model, params, 1, "step 1", scorer, ByteTokenizer)


@pytest.fixture(scope="module")
def evaluated():
    return make_subject()


@pytest.fixture(scope="module")
def forward(evaluated):
    run = jax.jit(
        lambda tokens: jax.nn.log_softmax(
            evaluated.model.apply({"params": evaluated.params}, tokens)[0]
        )
    )

    def log_probabilities(text):
        """[bytes, vocabulary]: of each byte of the text, after the separator and those before."""
        row = np.zeros((1, LONGEST), np.int32)
        data = np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8)
        row[0, : len(data) + 1] = [256, *data]
        return np.asarray(run(row), np.float64)[0, : len(data)]

    return log_probabilities


def likelihood(forward, context, continuation):
    table = forward(context + continuation)[len(context.encode()) :]
    data = np.frombuffer(continuation.encode(), np.uint8)
    return table[np.arange(len(data)), data].sum()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The local tasks, with the cache of their data in the same place."""
    import datasets

    directory = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", directory / "cache")
        yield write_tasks(directory)


def run(tasks, evaluated, name, **options):
    options = Options(include_path=(str(tasks),), **options)
    (task,) = find_tasks([name], [HarnessTasks(options)]).values()
    return task(evaluated, options)


def test_multiple_choice(tasks, evaluated, forward):
    result = run(tasks, evaluated, "local_choice")
    right, normed = [], []
    for doc in CHOICES:
        context = f"Question: {doc['question']} Answer:"
        scores = [likelihood(forward, context, " " + choice) for choice in doc["choices"]]
        right.append(int(np.argmax(scores)) == doc["label"])
        sizes = [len(choice) for choice in doc["choices"]]
        normed.append(int(np.argmax(np.divide(scores, sizes))) == doc["label"])
    assert result.metrics["acc"].value == np.mean(right)
    assert result.metrics["acc_norm"].value == np.mean(normed)
    assert result.metrics["acc"].stderr == pytest.approx(np.std(right, ddof=1) / 2)
    assert result.metrics["acc"].count == 4
    tokens = result.facts["scored_tokens"]
    assert tokens["read"] < 0.6 * tokens["requested"]  # three choices share a context


def test_rolling_perplexity(tasks, evaluated, forward):
    result = run(tasks, evaluated, "local_rolling")
    nats = [-likelihood(forward, "", doc["text"]) for doc in TEXTS]
    size = [len(doc["text"]) for doc in TEXTS]
    bits = result.metrics["bits_per_byte"]
    assert bits.value == pytest.approx(sum(nats) / sum(size) / math.log(2), rel=1e-5)
    left_out = [(sum(nats) - a) / (sum(size) - b) for a, b in zip(nats, size, strict=True)]
    jackknife = math.sqrt(2 / 3 * np.sum((left_out - np.mean(left_out)) ** 2)) / math.log(2)
    assert bits.stderr == pytest.approx(jackknife, rel=0.5)  # two estimates of one thing
    assert result.metrics["word_perplexity"].count == 3


class Lowercase(ByteTokenizer):
    """Passes for lossless until it meets a capital."""

    def encode(self, text):
        return super().encode(text.lower())


class SaysSo(ByteTokenizer):
    lossless = False


@pytest.mark.slow
def test_figures_by_size_are_marked_where_the_tokenizer_is_lossy(tasks, evaluated, capsys):
    def measured(tokenizer):
        result = run(tasks, evaluated._replace(text_tokenizer=tokenizer), "local_rolling")
        measure.print_table({"local_rolling": result})
        return result.facts, capsys.readouterr().out

    facts, table = measured(Lowercase)
    assert facts["lossless_tokenizer"]
    assert "lossy_metrics" not in facts
    assert "*" not in table
    facts, table = measured(SaysSo)
    assert not facts["lossless_tokenizer"]
    assert facts["lossy_metrics"] == ["word_perplexity", "bits_per_byte"]
    assert "bits_per_byte *" in table
    assert table.count(f"* {measure.LOSSY}") == 1
    model = CarveLM(evaluated._replace(text_tokenizer=Lowercase))
    for text, kept in (("the rule", True), ("The Rule", False), ("the rule", False)):
        model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
        assert model.lossless == model.get_model_info()["lossless_tokenizer"] == kept
    accuracy = run(tasks, evaluated._replace(text_tokenizer=SaysSo), "local_last_word").facts
    assert accuracy["lossy_metrics"] == []


def test_last_words(tasks, evaluated, forward):
    result = run(tasks, evaluated, "local_last_word", limit=2)
    nats = [-likelihood(forward, doc["context"], doc["word"]) for doc in LAST_WORDS[:2]]
    perplexity = result.metrics["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    spread = np.std(nats, ddof=1) / math.sqrt(2)
    assert perplexity.stderr == pytest.approx(perplexity.value * spread, rel=1e-3)
    assert perplexity.count == 2


def test_generation(tasks, evaluated, forward, monkeypatch):
    written = []
    generate_until = CarveLM.generate_until
    monkeypatch.setattr(
        CarveLM,
        "generate_until",
        lambda self, asked: written.extend(generate_until(self, asked)) or written,
    )
    result = run(tasks, evaluated, "local_generation")
    assert result.metrics["exact_match"].count == len(QUESTIONS)
    for doc, text in zip(QUESTIONS, written, strict=True):
        read = question = doc["question"].encode()
        while len(read) < len(question) + 12 and (new := forward(read + b"x")[-1].argmax()) < 256:
            read += bytes([new])
        likeliest = read[len(question) :].decode(errors="replace")
        assert text == likeliest.partition("e ru")[0].partition("\n\n")[0]


def test_a_task_goes_on_from_what_was_scored_before_a_stop(tasks, evaluated, tmp_path, monkeypatch):
    def read(keep):
        before = evaluated.scorer.counts.read
        metrics = run(tasks, evaluated, "local_choice", keep=tmp_path / keep).metrics
        return metrics, evaluated.scorer.counts.read - before

    score_batch, batches = Reader._score_batch, []

    def stopped(self, *arguments):
        batches.append(arguments)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return score_batch(self, *arguments)

    whole, tokens = read("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_score_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            read("stopped")
    rest, left = read("stopped")
    assert rest == whole
    assert 0 < left < tokens
    assert read("stopped") == (whole, 0)


def test_empty_contexts_and_windows_of_full_attention(evaluated, forward):
    def asked(*arguments, kind="loglikelihood"):
        return Instance(kind, {}, arguments, 0)

    model = get_model("carve_jax")(evaluated)
    ((total, _),) = model.loglikelihood([asked("", "the rule")])
    assert total == pytest.approx(likelihood(forward, "", "the rule"), abs=1e-4)
    (rolling,) = model.loglikelihood_rolling([asked("the rule")])
    assert rolling == pytest.approx(total, abs=1e-4)
    ((spaced, _),) = model.loglikelihood([asked("the ", "rule")])  # the space belongs to the word
    assert spaced == pytest.approx(likelihood(forward, "the", " rule"), abs=1e-4)

    limited = CarveLM(make_subject(max_length=10))
    text = "the rule is the rule"
    (windowed,) = limited.loglikelihood_rolling([asked(text)])
    # Windows of nine tokens: the last reads on from within the one before.
    expected = likelihood(forward, "", text[:9])
    table = 0.0
    for start, end in ((9, 18), (18, 20)):
        begin = max(0, end - 9)
        scores = window_scores(limited, text[begin - 1 : end])
        table += scores[start - begin :].sum()
    assert windowed == pytest.approx(expected + table, abs=1e-3)
    with pytest.raises(UserError, match="an input has 21 tokens, and it may have 10"):
        limited.loglikelihood([asked(text[:8], text[8:])])


def window_scores(lm, text):
    """Log-likelihoods of the bytes after the first, which stands where a separator would."""
    data = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    logits, _ = lm.evaluated.model.apply({"params": lm.evaluated.params}, data[None, :-1])
    table = np.asarray(jax.nn.log_softmax(logits[0]))
    return table[np.arange(len(data) - 1), data[1:]]


def test_unknown_tasks_and_missing_data_are_one_sentence(tasks, evaluated, monkeypatch):
    sources = [NamedTasks({"perplexity": None}), HarnessTasks(Options(include_path=(str(tasks),)))]
    # Reading all the harness's tasks takes ten seconds; those of the papers stand for them.
    monkeypatch.setattr(Harness, "names", lambda self: self._manager.all_tasks)
    with pytest.raises(UserError, match=r"there is no task 'hellaswg'; did you mean 'hellaswag'"):
        find_tasks(["hellaswg"], sources)
    with pytest.raises(UserError, match=r"no task 'perplexty'; did you mean 'perplexity'"):
        find_tasks(["perplexty"], sources)
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "carve_jax.evaluation.harness_run", None)
        without = [sources[0], HarnessTasks(Options())]
        with pytest.raises(UserError, match=r"no task 'perplexty'; did you mean 'perplexity'"):
            find_tasks(["perplexty"], without)
        with pytest.raises(UserError, match=r"need its package: pip install -e '\.\[eval\]'"):
            find_tasks(["hellaswag"], without)
    assert list(find_tasks(["common_sense", "piqa", "recall"], sources)) == [
        *harness_tasks.COMMON_SENSE,
        *recall.RECALL,
    ]
    for name in ("piqa", "recall_nq"):
        with pytest.raises(
            UserError, match=f"the data of task '{name}' cannot be loaded .*HF_HOME"
        ):
            run(tasks, evaluated, name)


def test_recall_prompts_keep_the_question_and_no_more_tokens_than_told():
    tokenizer = ByteTokenizer()
    doc = {
        "context": "[DOC] The rule is old. Who made it",
        "question": " Who made it ",
        "answers": ["X"],
    }
    text = recall.prompt(doc, tokenizer.encode, tokenizer.decode, 100)
    assert text == "The rule is old. Who made it"
    assert recall.prompt(doc, tokenizer.encode, tokenizer.decode, 23) == "The rule. Who made it"
    assert recall.contains({"answers": ["Ann", "b"]}, [" it was ANN."]) == {"contains": 1}
    assert recall.contains({"answers": ["Ann", "b"]}, [" it was me."]) == {"contains": 0}


def test_any_other_figure_is_bootstrapped():
    values = np.random.default_rng(0).normal(size=400).tolist()
    figure = with_error(lambda chosen: sum(chosen) / len(chosen), 0.0, values)
    assert figure.stderr == pytest.approx(1 / 20, rel=0.15)
    assert with_error(max, 1.0, [1.0]).stderr is None


@pytest.mark.slow  # always: by the entry point, above
def test_the_harness_own_command_line_knows_the_model_without_pytorch(tasks):
    program = (
        "import os, sys, carve_jax.evaluation.lm_harness as ours\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('carve_jax') is ours.CarveLM and get_model('dummy')\n"
        "make = ours.CarveLM.create_from_arg_string\n"
        "try: make('workdir=nowhere,dtype=float32', {'device': 'x'})\n"
        "except ours.UserError as error: print(error)\n"
        "try: make('workdir=nowhere,stpe=3', {'batch_size': 'auto'})\n"
        "except ours.UserError as error: print(error)\n"
        "assert os.environ['DISABLE_MULTIPROC']\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = run_python(program)
    assert done.stdout.splitlines() == [
        "nowhere holds no run (config.json is missing): train first, or correct --workdir",
        "--model_args: no option 'stpe'; did you mean 'step'?",
    ], done.stderr


def test_the_harness_finds_the_model_by_the_entry_point_of_the_package():
    """What versions of the harness that know plug-ins do with it (its pull request 4013)."""
    program = (
        "from importlib.metadata import entry_points\n"
        "from lm_eval.api.registry import get_model, model_registry\n"
        "import lm_eval.models\n"
        "(found,) = entry_points(group='lm_eval.models', name='carve_jax')\n"
        "model_registry.register('carve_jax', target=found)\n"
        "print(get_model('carve_jax').__qualname__)\n"
    )
    assert run_python(program).stdout == "CarveLM\n"


def run_python(program):
    """In a process of its own: the registry is the process's."""
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_without_the_extra_its_command_is_one_sentence():
    program = (
        "import runpy, sys; sys.modules['lm_eval'] = None; "
        "sys.argv = ['lm_harness', '--help']; "
        "runpy.run_module('carve_jax.evaluation.lm_harness', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the harness is not installed (")
    assert line.endswith("pip install -e '.[eval]'")
