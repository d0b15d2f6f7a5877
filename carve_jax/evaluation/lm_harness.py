"""lm-evaluation-harness on our decoding caches: the model `carve_jax`. Needs no PyTorch.

Importing this module registers the model, and the package names it as a plug-in (entry point
`lm_eval.models`), by which versions of the harness after 0.4.13 find it:

  lm_eval run --model carve_jax \
      --model_args workdir=DIR[,step=N|best,dtype=bfloat16,max_length=N,…] --tasks wikitext …

Version 0.4.13 does not look for plug-ins; with it, `python -m carve_jax.evaluation.lm_harness` is
`lm_eval` with the model. Give --batch_size auto, for its default is 1. Every text is
scored behind the token that starts a document, as the model was trained. Where the harness cuts a
long document into windows, a recurrent model reads it whole, each token after all that came
before; full attention takes windows of `max_length`, which is what it was trained on unless given.
Other inputs that do not fit are refused, never cut in silence.
"""

import collections
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry, register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as missing:
    if __name__ == "__main__":
        sys.exit(f"error: the harness is not installed ({missing}): pip install -e '.[eval]'")
    raise

from carve_jax.errors import UserError
from carve_jax.evaluation.answers import Answers
from carve_jax.evaluation.continuing import continue_texts
from carve_jax.evaluation.evaluated_model import EvaluatedModel, load_evaluated_model
from carve_jax.evaluation.generation_options import Generation, read_options
from carve_jax.evaluation.reading import Score
from carve_jax.evaluation.scoring import Request
from carve_jax.files import local_path
from carve_jax.training.settings import nearest

MAX_NEW_TOKENS = 256  # where a task does not say, as for the harness's own models

Keep = Callable[[int, Any], None]


class CarveLM(TemplateLM):
    """An `EvaluatedModel` as the harness sees a model.

    Args:
      evaluated: model, parameters and tokenizer.
      input_tokens: keep so many of the last tokens of a prompt to be continued; 0 keeps all. The
        recall tasks of arXiv 2407.05483 are measured at 2,000 or so.
      answers: those that are known, and where new ones go.

    Attributes:
      lossless: whether the tokenizer gives back every text, for all that is known, and has given
        back every document so far: the likelihood of one that it has not is that of less text.
    """

    def __init__(
        self, evaluated: EvaluatedModel, input_tokens: int = 0, answers: Answers | None = None
    ) -> None:
        super().__init__()
        self._answers = answers or Answers(None)
        self.evaluated = evaluated
        self.input_tokens = input_tokens
        self._tokenizer = evaluated.text_tokenizer()
        self.lossless = self._tokenizer.lossless

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "CarveLM":
        """The model of `--model_args`: `workdir`, and the options of `load_evaluated_model`."""
        # The harness's bootstrap would fork this process, whose threads hold locks.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        options = {**arg_dict, **{k: v for k, v in (additional_config or {}).items() if v}}
        for name in ("device", "max_batch_size"):  # JAX chooses the device
            options.pop(name, None)
        if str(options.get("batch_size")).startswith("auto"):
            del options["batch_size"]
        input_tokens = int(options.pop("input_tokens", 0))
        if "workdir" not in options:
            raise UserError("--model_args: workdir is missing: give the directory of a run")
        workdir = local_path(str(options.pop("workdir")), "--model_args: workdir")
        known = list(inspect.signature(load_evaluated_model).parameters)[1:]
        for name in options:
            if name not in known:
                raise UserError(f"--model_args: no option {name!r}; {nearest(name, known)}")
        return cls(load_evaluated_model(workdir, **options), input_tokens)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> "CarveLM":
        """As `create_from_arg_obj`, from the text NAME=VALUE,…"""
        pairs = [part.partition("=")[::2] for part in arg_string.split(",") if part]
        return cls.create_from_arg_obj(dict(pairs), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document, and starts the next."""
        return self._tokenizer.separator

    @property
    def max_length(self) -> int | None:
        """Most tokens of a row; None where there is no limit."""
        return self.evaluated.scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart where the harness keeps prompts."""
        return f"carve_jax-{self._tokenizer.vocab_size}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_dtype": self.evaluated.model.config.compute_dtype,
            "model_revision": self.evaluated.checkpoint,
            "lossless_tokenizer": self.lossless,
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokens of a text, without a separator."""
        return self._tokenizer.encode(string).tolist()

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Text of tokens."""
        return self._tokenizer.decode(tokens)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): log P(continuation | separator, context), and whether
        all its tokens are the likeliest. Contexts may be empty."""

        def score(requests: list[Any], keep: Keep) -> list[tuple[float, bool]]:
            pairs: list[tuple[list[int], list[int]]] = []
            for context, continuation in (request.args for request in requests):
                encoded = self._encode_pair(context, continuation) if context else None
                pairs.append(encoded or ([], self.tok_encode(continuation)))
            return self._score(pairs, keep)

        return self._answered("loglikelihood", requests, score)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([request[1:] for request in requests], lambda number, score: None)

    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], keep: Keep
    ) -> list[tuple[float, bool]]:
        asked = [self._request(context, then) for context, then in pairs]
        scores = self.evaluated.scorer.score(asked, lambda number, score: keep(number, (*score,)))
        return [(*score,) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """For each text: log P(text | separator)."""
        texts = (text for (text,) in (request.args for request in requests))
        self.lossless = self.lossless and all(
            self.tok_decode(self.tok_encode(text)) == text for text in texts
        )
        return self._answered("loglikelihood_rolling", requests, self._roll)

    def _roll(self, requests: list[Any], keep: Keep) -> list[float]:
        pieces: list[Request] = []
        owners: list[int] = []
        for number, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            found = self._windows(tokens)
            pieces += found
            owners += [number] * len(found)
        totals = [0.0] * len(requests)
        missing = collections.Counter(owners)

        def add(piece: int, score: Score) -> None:
            owner = owners[piece]
            totals[owner] += score.log_likelihood
            missing[owner] -= 1
            if not missing[owner]:
                keep(owner, totals[owner])

        self.evaluated.scorer.score(pieces, add)
        return totals

    def _answered(
        self, kind: str, requests: list[Any], answer: Callable[[list[Any], Keep], list[Any]]
    ) -> list[Any]:
        """Answers to the requests: those known, and of the others those that `answer` gives, which
        are noted as soon as they are there. What is drawn at random is drawn again."""
        found: list[Any] = [
            None if _drawn(kind, request.args) else self._answers.find(kind, request.args)
            for request in requests
        ]
        missing = [number for number, known in enumerate(found) if known is None]

        def keep(place: int, value: Any) -> None:
            args = requests[missing[place]].args
            if not _drawn(kind, args):
                self._answers.add(kind, args, value)
            self.cache_hook.add_partial(kind, args, value)

        given = answer([requests[number] for number in missing], keep) if missing else []
        for number, value in zip(missing, given, strict=True):
            found[number] = value
        return found

    def _windows(self, tokens: list[int]) -> list[Request]:
        """A document as requests: one, or the harness's windows where there is a limit."""
        if self.max_length is None or len(tokens) < self.max_length:
            return [self._request([], tokens)]
        windows = get_rolling_token_windows(
            tokens, self.eot_token_id, max_seq_len=self.max_length - 1, context_len=1
        )
        pairs = [make_disjoint_window(window) for window in windows]
        return [Request(np.array(a, np.int32), np.array(b, np.int32)) for a, b in pairs]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each text up to the first of its stops."""
        return self._answered("generate_until", requests, self._write)

    def _write(self, requests: list[Any], keep: Keep) -> list[str]:
        by_options: dict[Generation, list[int]] = {}
        for number, request in enumerate(requests):
            options = read_options(request.args[1], MAX_NEW_TOKENS)
            by_options.setdefault(options, []).append(number)
        texts = [""] * len(requests)
        for options, numbers in by_options.items():
            prompts = [self._prompt(requests[number].args[0]) for number in numbers]

            def keep_one(place: int, text: str, numbers: list[int] = numbers) -> None:
                keep(numbers[place], text)

            found = self._continue(prompts, options, keep_one)
            for number, text in zip(numbers, found, strict=True):
                texts[number] = text
        return texts

    def _continue(
        self, prompts: Sequence[np.ndarray], options: Generation, keep: Keep
    ) -> list[str]:
        scorer = self.evaluated.scorer
        return continue_texts(
            self.evaluated.model,
            self.evaluated.params,
            prompts,
            self._tokenizer.decode,
            max_new_tokens=options.max_new_tokens,
            stops=options.stops,
            end=self.eot_token_id,
            batch_size=scorer.batch_size,
            call_tokens=scorer.call_tokens,
            max_length=scorer.max_length,
            progress=scorer.progress,
            on_text=keep,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
        )

    def _prompt(self, text: str) -> np.ndarray:
        tokens = self.tok_encode(text)
        if self.input_tokens:
            tokens = tokens[-self.input_tokens :]
        return np.array([self.eot_token_id, *tokens], np.int32)

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        given = np.array([self.eot_token_id, *context], np.int32)
        return Request(given, np.array(continuation, np.int32))


def _drawn(kind: str, args: tuple) -> bool:
    """Whether the answer is drawn at random."""
    return kind == "generate_until" and read_options(args[1], MAX_NEW_TOKENS).drawn


def register() -> None:
    """Makes `carve_jax` a model of the harness; once is enough, and again does no harm."""
    import lm_eval.models  # noqa: F401  # else the first look-up would not find the harness's own

    if "carve_jax" not in model_registry:
        register_model("carve_jax")(CarveLM)


register()

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")
