"""Files that an evaluation reads and writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from carve_jax.data.ruler import Haystack
from carve_jax.evaluation.answers import Answers
from carve_jax.evaluation.tasks import Figure, Result
from experiments.evaluating.record import Record, settings_of, settings_of_run
from tests.evaluation.local_tasks import write_tasks
from tests.fuzz.damage import HANGS, kept
from tests.fuzz.kind import OTHER, REPAIRED, Kind, Say, SilentChange, any_value

SETTINGS = {"limit": None, "seed": 0, "haystack": "sha256 abc", "changes": []}


def result(number: int) -> Result:
    return Result({"accuracy": Figure(0.5 + number, 0.125, 8)}, {"note": "é", "sizes": [1, 2]})


def make_record(folder: Path, number: int) -> None:
    record = Record(folder / "evaluation_6.json", {"step": 6}, False)
    settings = {**SETTINGS, "parameters": f"seal {number}"}  # of another checkpoint
    record.add("perplexity", settings, result(number), 1.5)
    record.add("other", SETTINGS, result(7), 1.5)


def read_record(folder: Path, say: Say) -> Any:
    """As evaluate that goes on: what is there is not measured again, and another is added."""
    record = Record(folder / "evaluation_6.json", {"step": 6}, False)
    found = record.find("perplexity", {**SETTINGS, "parameters": "seal 0"})
    record.add("a third", SETTINGS, result(0))
    return found


def judge_record(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """Measured anew, or what was measured; no other figure."""
    if value is None:
        return REPAIRED
    raise SilentChange("a figure that nobody measured")


REQUEST = ("loglikelihood", ("a question", " an answer"))
REPLY = ("generate_until", ("a question", {"until": ["."]}))


def make_answers(folder: Path, number: int) -> None:
    answers = Answers(folder / ".answers.jsonl")
    answers.add(*REQUEST, (-1.5 - number, False))
    answers.add(*REPLY, f"é {number}")
    answers.close()


def read_answers(folder: Path, say: Say) -> Any:
    answers = Answers(folder / ".answers.jsonl")
    found = [answers.find(*REQUEST), answers.find(*REPLY)]
    answers.add("loglikelihood_rolling", ("a text",), -2.0)
    answers.close()
    return found


def judge_answers(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if all(one is None or one == other for one, other in zip(value, healthy, strict=True)):
        return REPAIRED  # asked again
    raise SilentChange("an answer that the model never gave")


SENTENCES = "One sentence. Another, with an é!  A third?\nAnd a last one."


def make_haystack(folder: Path, number: int) -> None:
    (folder / "hay.txt").write_text(SENTENCES + "x" * number, "utf-8")


def read_haystack(folder: Path, say: Say) -> Any:
    found = Haystack.named(str(folder / "hay.txt"))
    return found.sentences, "".join(found.cut(1, 40))


def judge_haystack(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    words = (folder / "hay.txt").read_bytes().decode("utf-8").split()
    if " ".join(value[0]).split() != words:
        raise SilentChange("not the words of the file")
    return OTHER


def make_depended(folder: Path, number: int) -> None:
    (folder / "tasks" / "sub").mkdir(parents=True)
    (folder / "tasks" / "mine.yaml").write_text(f"task: mine{number}\n", "utf-8")
    (folder / "tasks" / "sub" / "code.py").write_text(f"x = {number}\n", "utf-8")


def read_depended(folder: Path, say: Say) -> Any:
    """As the settings of a result, which are others when these files are."""
    tasks = folder / "tasks"
    names = ("limit", "num_fewshot", "input_tokens", "seed", "reply_tokens")
    options = SimpleNamespace(
        **dict.fromkeys(names),
        haystack=str(tasks / "mine.yaml"),
        tokenizer=str(tasks),
        include_path=[str(tasks)],
    )
    evaluated = SimpleNamespace(
        config=SimpleNamespace(data={"source": "token_files", "path": str(tasks)}),
        model=SimpleNamespace(config=SimpleNamespace(compute_dtype="float32")),
        scorer=SimpleNamespace(max_length=None),
        seal="abc",
    )
    return settings_of(options, evaluated, []) | settings_of_run(folder, evaluated)


def make_tasks(folder: Path, number: int) -> None:
    import carve_jax.evaluation.harness_run  # noqa: F401  (seconds, and it makes pickles' classes)

    write_tasks(folder)
    for name in ("local_choice", "local_rolling", "local_generation"):
        (folder / f"{name}.yaml").unlink()
    path = folder / "local_last_word.yaml"
    path.write_text(path.read_text("utf-8").replace("num_fewshot: 0", f"num_fewshot: {number}"))


def read_tasks(folder: Path, say: Say) -> Any:
    """As evaluate finds a task in a folder of YAML files, data apart."""
    from lm_eval.tasks import TaskManager

    from carve_jax.evaluation import harness_run

    class Ours(TaskManager):
        """Tasks of the given folder alone: reading all of the harness's takes a second."""

        def __init__(self, include_path: Any = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=[str(folder)], include_defaults=False)

    before, harness_run.TaskManager = harness_run.TaskManager, Ours
    try:
        harness = harness_run.Harness([str(folder)])
        return [harness.knows("local_last_word"), harness.knows("no task"), sorted(harness.names())]
    finally:
        harness_run.TaskManager = before


KINDS = (
    Kind(
        "evaluation_STEP.json",
        make_record,
        ("evaluation_6.json",),
        read_record,
        ("experiments.evaluating.record:_read_results", "experiments.evaluating.record:Record.add"),
        judge_record,
        json=True,
        share=2.0,
        examples=(kept("flip", 8 * 100), kept("value", 8, "1.5")),
    ),
    Kind(
        "lock of an evaluation",
        make_record,
        (".evaluation.lock",),
        read_record,
        ("experiments.evaluating.record:_alone",),
        judge_record,
        share=0.5,
    ),
    Kind(
        "answers so far",
        make_answers,
        (".answers.jsonl",),
        read_answers,
        ("carve_jax.evaluation.answers:Answers.__init__",),
        judge_answers,
        json=True,
        alone=True,  # of the same checkpoint and settings, which its name is made of
        share=2.0,
        examples=(kept("value", 3, "-1.5"), kept("flip", 8 * 90)),
    ),
    Kind(
        "haystack",
        make_haystack,
        ("hay.txt",),
        read_haystack,
        ("carve_jax.data.ruler.haystack:Haystack.file",),
        judge_haystack,
        examples=HANGS,
    ),
    Kind(
        "files that a result depends on",
        make_depended,
        ("tasks/**/*",),
        read_depended,
        (
            "carve_jax.files.names:_file_digest",
            "experiments.evaluating.record:settings_of",
            "experiments.evaluating.record:settings_of_run",
        ),
        any_value,  # another digest, so that the result is measured anew
        share=0.5,
    ),
    Kind(
        "YAML of a task",
        make_tasks,
        ("*.yaml",),
        read_tasks,
        (
            "carve_jax.evaluation.harness_run:_check_files",
            "carve_jax.evaluation.harness_run:Harness.__init__",
            "carve_jax.evaluation.harness_run:Harness.names",
        ),
        any_value,
        code=True,
        share=0.5,
        examples=HANGS,
    ),
)
