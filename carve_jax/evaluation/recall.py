"""TriviaQA, Natural Questions and DROP as recall: the passage stands before the question.

The data sets and the scoring (the answer, in any case, somewhere in 48 tokens) are those of "Just
read twice" (arXiv 2407.05483). It cuts passages of NQ around the answer; here every passage is cut
at its end, so that no answer is looked at.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Recall in the real world (arXiv 2402.18668, 2407.05483): the answer stands in the prompt, of which
# 2,000 tokens are kept. The harness's own triviaqa, nq_open and drop ask other questions.
RECALL = {
    "swde": "contains",
    "squad_completion": "contains",
    "fda": "contains",
    "recall_triviaqa": "contains",
    "recall_nq": "contains",
    "recall_drop": "contains",
}
RECALL_TOKENS = 2000
DATA = {
    "recall_triviaqa": "hazyresearch/based_triviaqa",
    "recall_nq": "hazyresearch/based_nq_2048",
    "recall_drop": "hazyresearch/based_drop",
}
MARKS = re.compile(r"\[(PAR|DOC|TLE)\]")  # of TriviaQA's passages


def recall_config(
    name: str,
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
    most_tokens: int,
) -> dict[str, Any] | None:
    """The harness's description of one of these tasks, or None for another name.

    Args:
      name: of the task.
      encode: turns text into tokens.
      decode: turns tokens into text.
      most_tokens: of passage and question together.
    """
    if name not in DATA:
        return None

    def doc_to_text(doc: Mapping[str, Any]) -> str:
        return prompt(doc, encode, decode, most_tokens)

    return {
        "task": name,
        "dataset_path": DATA[name],
        "output_type": "generate_until",
        "validation_split": "validation",
        "doc_to_text": doc_to_text,
        "doc_to_target": lambda doc: next(iter(doc["answers"])),
        "process_results": contains,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 48, "do_sample": False},
        "metric_list": [{"metric": "contains", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }


def prompt(
    doc: Mapping[str, Any],
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
    most_tokens: int,
) -> str:
    """Passage, full stop and question; the passage is cut so that all of it fits."""
    question = doc["question"].strip()
    passage = MARKS.sub("", doc["context"]).strip()
    while question and passage.lower().endswith(question.lower()):
        passage = passage[: -len(question)].strip()
    rest = f". {question}"
    room = max(most_tokens - len(encode(rest)) - 1, 0)  # joined, texts may take a token more
    return decode(encode(passage.strip("."))[:room]).strip() + rest


def contains(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, int]:
    """1 if an answer stands in what was written, in any case of its letters."""
    written = results[0].lower()
    return {"contains": int(any(answer.lower() in written for answer in doc["answers"]))}
