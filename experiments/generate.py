"""Continues prompts with a trained model, token by token, in constant memory.

  python -m experiments.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT …] [flags]

One prompt streams to the terminal. Several are continued together, and each is printed when all are
done. A continuation ends at the end of its document, at a --stop (each one token of the run's
tokenizer; it is not printed), or after --max_new_tokens. --save_state keeps what the model has read
by then, in a file as large as its caches; --load_state goes on from such a file, with one more
--prompt per row, or with none.

Examples:
  python -m experiments.generate --workdir=runs/quickstart --prompt='The '
  python -m experiments.generate --workdir=runs/quickstart --prompt='The ' --prompt='A '
      --temperature=0 --max_new_tokens=64
  python -m experiments.generate --workdir=runs/quickstart --prompt='The ' --save_state=state.npz
"""

import math

import jax
import numpy as np
from absl import flags

from carve_jax.decoding_file import save_decoding
from carve_jax.errors import UserError
from carve_jax.files import local_path, reason_of, told
from carve_jax.generate import decode
from carve_jax.ranges import INT32, SEED
from carve_jax.training.run import load_trained
from carve_jax.training.workdir import load_tokenizer
from experiments import cli
from experiments.generating.state import start
from experiments.generating.text import TextStream, print_rows, stop_tokens


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_multi_string(
        "prompt", [], "Text to continue; may be empty, may be repeated.", flag_values=values
    )
    flags.DEFINE_integer("max_new_tokens", 256, "Most tokens to add.", 1, INT32, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        0.8,
        "Of the draws; 0 takes the likeliest token.",
        0.0,
        1e9,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", None, "Draw from the k likeliest tokens only.", 1, INT32, flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        None,
        "Draw from the likeliest tokens that make up this share only.",
        0.0,
        1.0,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", 0, SEED, flag_values=values)
    flags.DEFINE_string(
        "step", None, "Checkpoint: a step, or best; newest by default.", flag_values=values
    )
    flags.DEFINE_multi_string("stop", [], "Token to end at; may be repeated.", flag_values=values)
    flags.DEFINE_integer(
        "prefill_chunk", 2048, "Most tokens of a prompt read at once.", 1, INT32, flag_values=values
    )
    flags.DEFINE_string(
        "save_state", None, "File to write what the model has read to.", flag_values=values
    )
    flags.DEFINE_string(
        "load_state", None, "File of --save_state to go on from.", flag_values=values
    )
    return values


def check_flags(options: flags.FlagValues) -> None:
    """Raises UserError for a value that no bound refuses, or a directory that is not there."""
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


def main(argv: list[str]) -> None:
    """Parses the flags and prints the continuations to stdout."""
    options = define_flags()
    cli.parse_flags(options, argv)
    workdir = cli.directory_of(options.workdir, "workdir", "the directory of a run")
    check_flags(options)
    trained = load_trained(workdir, step=cli.checkpoint_step(options.step))
    tokenizer = load_tokenizer(workdir, trained.tokenizer_sha256)
    stops = stop_tokens(tokenizer, options.stop)
    decoding = start(
        trained,
        tokenizer,
        options.prompt,
        load_state=options.load_state,
        max_new_tokens=options.max_new_tokens,
        prefill_chunk=options.prefill_chunk,
    )
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
        print_rows(options.prompt, np.asarray(new), stops, tokenizer)
    if options.save_state:
        try:
            save_decoding(options.save_state, decoding, trained.model.config, params=trained.params)
        except OSError as error:
            raise UserError(
                f"--save_state={options.save_state} cannot be written ({reason_of(error)}): give "
                "another file; what was written above is whole"
            ) from error


if __name__ == "__main__":
    cli.run(main)
