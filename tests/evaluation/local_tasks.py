"""Tasks of each kind that the harness runs, on a few examples in JSON files."""

import json
from pathlib import Path

CHOICES = [
    {
        "question": f"which rule is rule {n}?",
        "choices": ["the first", "a rule", "no"],
        "label": n % 3,
    }
    for n in range(4)
]
TEXTS = [{"text": "the rule is the rule. " * n + f"and {n} it is."} for n in (1, 2, 9)]
QUESTIONS = [
    {"question": f"the rule is {n}. the rule is", "answer": answer}
    for n, answer in enumerate(("0", "1", "nothing"))
]
LAST_WORDS = [{"context": text["text"][:-4], "word": " is."} for text in TEXTS]

YAML = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
    "local_last_word": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{word}}"
target_delimiter: ""
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "local_generation": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e ru", "\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}
DATA = {
    "local_choice": CHOICES,
    "local_rolling": TEXTS,
    "local_last_word": LAST_WORDS,
    "local_generation": QUESTIONS,
}


def write_tasks(directory: Path) -> Path:
    """The tasks as YAML files with their data beside them; returns the directory."""
    for name, examples in DATA.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(example) + "\n" for example in examples))
        head = f"task: {name}\ndataset_path: json\ntest_split: test\nnum_fewshot: 0\n"
        files = f"dataset_kwargs: {{data_files: {{test: '{data}'}}}}\n"
        (directory / f"{name}.yaml").write_text(head + files + YAML[name].lstrip())
    return directory
