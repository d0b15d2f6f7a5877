"""Continues prompts with a trained model, token by token, in constant memory.

python -m experiments.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT …] [--max_new_tokens=N]
    [--temperature=X] [--top_k=N] [--top_p=X] [--seed=N] [--step=N|best] [--stop=TEXT …]
    [--prefill_chunk=N] [--save_state=FILE] [--load_state=FILE]

One prompt streams to the terminal. Several are continued together, and each is printed when all are
done. A continuation ends at the end of its document, at a --stop (each one token of the run's
tokenizer; it is not printed), or after --max_new_tokens. --save_state keeps what the model has read
by then, in a file as large as its caches; --load_state goes on from such a file, with one more
--prompt a row, or with none.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from carve_jax.data import Tokenizer
from carve_jax.decoding import Decoding, extend, prefill
from carve_jax.decoding_file import load_decoding, save_decoding
from carve_jax.errors import UserError
from carve_jax.files import local_path, reason_of, told
from carve_jax.generate import decode
from carve_jax.ranges import INT32, SEED
from carve_jax.shapes import Int32
from carve_jax.training.run import Trained, load_trained
from carve_jax.training.workdir import load_tokenizer
from experiments import cli


class TextStream:
    """Prints tokens as text while they come; waits where a character is not complete yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        """Takes the next token."""
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        # A character has at most four bytes: longer than that, it is not one to wait for.
        if not text.endswith("\ufffd") or len(self._waiting) > 4:
            self.close()

    def close(self) -> None:
        """Prints what is left."""
        print(self._tokenizer.decode(self._waiting), end="", flush=True)
        self._waiting.clear()


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_multi_string(
        "prompt", [], "Text to continue; may be empty, may be repeated.", flag_values=values
    )
    flags.DEFINE_integer("max_new_tokens", 256, "Most tokens to add.", 1, INT32, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest.", 0.0, 1e9, flag_values=values)
    flags.DEFINE_integer("top_k", None, "Only the k likeliest.", 1, INT32, flag_values=values)
    flags.DEFINE_float(
        "top_p", None, "Only the likeliest that make up this share.", 0.0, 1.0, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", 0, SEED, flag_values=values)
    flags.DEFINE_string(
        "step", None, "Checkpoint: a step, or best; newest by default.", flag_values=values
    )
    flags.DEFINE_multi_string("stop", [], "Token to end at; may be repeated.", flag_values=values)
    flags.DEFINE_integer(
        "prefill_chunk", 2048, "Most tokens of a prompt read at once.", 1, INT32, flag_values=values
    )
    flags.DEFINE_string("save_state", None, "File to write at the end.", flag_values=values)
    flags.DEFINE_string("load_state", None, "File to go on from.", flag_values=values)
    return values


def encode(tokenizer: Tokenizer, flag: str, text: str) -> Int32[np.ndarray, " tokens"]:
    """Ids of a flag's text; UserError where it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{flag}={text!r} is not UTF-8: convert it") from error
    return tokenizer.encode(text)


def stop_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    """The separator and the token of each text; UserError for a text that is not one token."""
    found = [tokenizer.separator]
    for text in texts:
        ids = [int(token) for token in encode(tokenizer, "stop", text)]
        if len(ids) != 1:
            parts = " + ".join(repr(tokenizer.decode([token])) for token in ids) or "none"
            raise UserError(
                f"--stop={text!r} is {len(ids)} tokens of this run's tokenizer ({parts}): give a "
                "text that is one"
            )
        found += ids
    return tuple(found)


def start(options: flags.FlagValues, trained: Trained, tokenizer: Tokenizer) -> Decoding:
    """The rows after their prompts, with room for what is to come.

    Raises:
      UserError: a file that is not there or not this model's, or prompts that are not its rows.
    """
    texts = options.prompt
    prompts = [encode(tokenizer, "prompt", text) for text in texts]
    decoding, read = None, 0
    if options.load_state:
        decoding = _load(options.load_state, trained)
        rows, read = len(decoding.position), int(decoding.position.max())
        if texts and len(texts) != rows:
            raise UserError(
                f"{len(texts)} times --prompt, and {options.load_state} holds {rows} rows: give "
                "one a row, or none"
            )
        if any(len(prompt) == 0 for prompt in prompts):
            raise UserError("--prompt is empty: to add nothing to --load_state, leave it out")
    else:
        separator = np.array([tokenizer.separator], np.int32)
        prompts = [np.concatenate([separator, ids]) for ids in prompts] or [separator]
    room = read + max((len(prompt) for prompt in prompts), default=0) + options.max_new_tokens
    if decoding is not None and not prompts:
        return extend(trained.model, decoding, room)
    return prefill(
        trained.model,
        trained.params,
        prompts,
        max_length=room,
        chunk=options.prefill_chunk,
        decoding=decoding,
    )


def main(argv: list[str]) -> None:
    """Parses the flags and prints the continuations to stdout."""
    options = define_flags()
    cli.refuse_unknown(cli.parse_flags(options, argv), options)
    workdir = cli.directory_of(options.workdir, "workdir", "the directory of a run")
    if options.save_state:
        with told(f"--save_state={options.save_state}", "give another file"):
            there = local_path(options.save_state, "--save_state").parent.is_dir()
        if not there:
            raise UserError(f"--save_state={options.save_state}: there is no such directory")
    for name in ("temperature", "top_p"):  # NaN is neither below a bound nor above one
        if math.isnan(getattr(options, name) or 0.0):
            raise UserError(f"--{name}=nan: give a number")
    if options.top_p == 0:
        raise UserError("--top_p=0 keeps no token: give more than 0, or leave it out")
    trained = load_trained(workdir, step=cli.checkpoint_step(options.step))
    tokenizer = load_tokenizer(workdir, trained.tokenizer_sha256)
    stops = stop_tokens(tokenizer, options.stop)
    decoding = start(options, trained, tokenizer)
    rng = jax.random.key(options.seed)
    if options.load_state:  # else it would draw with the numbers that made its past
        rng = jax.random.fold_in(rng, int(decoding.position.max()))

    alone = len(decoding.position) == 1
    stream = TextStream(tokenizer)

    def show(tokens: np.ndarray) -> None:
        if tokens[0] not in stops:
            stream.add(int(tokens[0]))

    if alone:
        print(*options.prompt, end="", flush=True)
    new, decoding = decode(
        trained.model,
        trained.params,
        decoding,
        max_new_tokens=options.max_new_tokens,
        rng=rng,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop_tokens=stops,
        on_token=show if alone else None,
    )
    if alone:
        stream.close()
        print()
    else:
        _print_rows(options.prompt, np.asarray(new), stops, tokenizer)
    if options.save_state:
        try:
            save_decoding(options.save_state, decoding, trained.model.config, params=trained.params)
        except OSError as error:
            raise UserError(
                f"--save_state={options.save_state} cannot be written ({reason_of(error)}): give "
                "another file; what was written above is whole"
            ) from error


def _print_rows(
    prompts: Sequence[str], new: np.ndarray, stops: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Each prompt with its continuation up to the stop, under a line with its number."""
    for index, row in enumerate(new):
        ended = np.flatnonzero(np.isin(row, stops))
        kept = row[: ended[0]] if len(ended) else row
        print(f"--- {index + 1}")
        print((prompts[index] if prompts else "") + tokenizer.decode(kept))


def _load(path: str, trained: Trained) -> Decoding:
    try:
        with told(f"--load_state={path}", "give a file that --save_state wrote"):
            return load_decoding(path, trained.model.config, params=trained.params)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--load_state: {error}") from error


if __name__ == "__main__":
    cli.run(main)
