"""What is evaluated: the model of a run directory with parameters of one checkpoint or several."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from carve_jax.config import COMPUTE_DTYPES
from carve_jax.data.tokenizers.files import open_tokenizer
from carve_jax.data.tokenizers.tokenizer import Tokenizer
from carve_jax.errors import UserError
from carve_jax.evaluation.scoring import Scorer
from carve_jax.model import LanguageModel
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.run import Trained, load_trained
from carve_jax.training.workdir import CHECKPOINTS, load_config, load_tokenizer

Step = int | Literal["best", "average"] | None


class EvaluatedModel(NamedTuple):
    """A model to be measured.

    Attributes:
      config: of its run, with changes to what it is measured on.
      params: float32.
      step: of its newest checkpoint.
      checkpoint: which it is, in words.
      scorer: runs it on token sequences, in batches.
      text_tokenizer: its tokenizer; UserError where it has none.
      seal: of the checkpoint or checkpoints: other parameters have another.
    """

    config: ConfigDict
    model: LanguageModel
    params: Any
    step: int
    checkpoint: str
    scorer: Scorer
    text_tokenizer: Callable[[], Tokenizer]
    seal: str = ""


def load_evaluated_model(
    workdir: Path,
    *,
    step: int | str | None = None,
    average: int | str = 5,
    dtype: str | None = None,
    batch_size: int | str = 32,
    call_tokens: int | str = 16384,
    max_length: int | str | None = None,
    tokenizer: str | None = None,
    share_contexts: bool | str = True,
    progress: bool | str = False,
    change: Callable[[ConfigDict], ConfigDict] = lambda config: config,
    say: Callable[[str], None] = print,
) -> EvaluatedModel:
    """The model of a run directory, which may still be in training; numbers may be texts.

    Args:
      step: of a checkpoint, "best", "average", or None for the newest.
      average: of how many of the newest checkpoints "average" takes the mean.
      dtype: of the computation, "float32" or "bfloat16"; None for that of the run.
      batch_size: most rows of a call.
      call_tokens: most tokens of a call.
      max_length: most tokens of a row; None for no limit, and for what it was trained on where the
        model has full attention.
      tokenizer: what `open_tokenizer` takes; None for that of the run.
      share_contexts, progress: see `Scorer`.
      change: of the config, after the model has been made.
      say: takes one line for the user.

    Raises:
      UserError: no run there, no such checkpoint, or an option that does not fit.
    """
    step = _step(step)
    given = None if tokenizer is None else open_tokenizer(tokenizer)  # told of before work begins
    trained, checkpoint = _load(workdir, step, _whole("average", average), say)
    config, model = trained.config, trained.model
    if dtype is not None:
        if dtype not in COMPUTE_DTYPES:
            raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(COMPUTE_DTYPES)}")
        config.model.compute_dtype = dtype
        model = LanguageModel(dataclasses.replace(model.config, compute_dtype=dtype))
    limit = None if max_length is None else _whole("max_length", max_length)
    if limit is None and model.config.has_full_attention:
        limit = config.sequence_length
    scorer = Scorer(
        model,
        trained.params,
        batch_size=_whole("batch_size", batch_size),
        call_tokens=_whole("call_tokens", call_tokens),
        max_length=limit,
        share_contexts=_yes(share_contexts),
        progress=_yes(progress),
    )

    def text_tokenizer() -> Tokenizer:
        found = load_tokenizer(workdir, trained.tokenizer_sha256) if given is None else given
        check_tokenizer(found, model)
        return found

    return EvaluatedModel(
        change(config),
        model,
        trained.params,
        trained.step,
        checkpoint,
        scorer,
        text_tokenizer,
        trained.seal,
    )


def check_tokenizer(tokenizer: Tokenizer, model: LanguageModel) -> None:
    """Raises UserError for a tokenizer with tokens that the model does not know."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model knows "
            f"{model.config.vocab_size}: give the tokenizer it was trained with"
        )


def _load(
    workdir: Path, step: Step, average: int, say: Callable[[str], None]
) -> tuple[Trained, str]:
    if step != "average":
        trained = load_trained(workdir, step=step, say=say)
        return trained, f"step {trained.step}"
    load_config(workdir)  # says it if there is no run
    with Checkpoints(workdir / CHECKPOINTS, say=say, read_only=True) as checkpoints:
        steps = checkpoints.steps()[-average:]
    if not steps:
        raise UserError(f"{workdir} has no finished checkpoint yet: wait for one, or train on")
    trained = load_trained(workdir, step=steps[0], say=say)
    total, seals = trained.params, [trained.seal]
    for number in steps[1:]:
        trained = load_trained(workdir, step=number, say=say)
        total = jax.tree.map(jnp.add, total, trained.params)
        seals.append(trained.seal)
    mean = jax.tree.map(lambda leaf: leaf / len(steps), total)
    trained = trained._replace(params=mean, seal=" ".join(seals))
    return trained, f"average of steps {', '.join(map(str, steps))}"


def _step(value: int | str | None) -> Step:
    if value is None or value in ("best", "average"):
        return value  # type: ignore[return-value]
    if not str(value).isdecimal():
        raise UserError(
            f"step is {value!r}: give the number of a checkpoint's step, best, or average"
        )
    return int(value)


def _whole(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{name} is {value!r}: give a whole number of at least 1")
    return int(value)


def _yes(value: bool | str) -> bool:
    return value if isinstance(value, bool) else value.lower() in ("1", "true", "yes")
