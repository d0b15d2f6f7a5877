"""Continues a prompt with a trained model, token by token, in constant memory.

python -m experiments.generate --workdir=DIR --prompt=TEXT [--max_new_tokens=N]
    [--temperature=X] [--top_k=N] [--top_p=X] [--seed=N] [--step=N]
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from carve_jax.generate import generate
from carve_jax.training.data import Tokenizer
from carve_jax.training.run import load_tokenizer, load_trained
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
    flags.DEFINE_string("prompt", "", "Text to continue; may be empty.", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 256, "Most tokens to add.", 1, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest.", 0.0, flag_values=values)
    flags.DEFINE_integer("top_k", None, "Only the k likeliest.", 1, flag_values=values)
    flags.DEFINE_float(
        "top_p", None, "Only the likeliest that make up this share.", 0.0, 1.0, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", flag_values=values)
    flags.DEFINE_integer("step", None, "Checkpoint; newest by default.", flag_values=values)
    return values


def main(argv: list[str]) -> None:
    """Parses the flags and streams the continuation to stdout."""
    options = define_flags()
    cli.refuse_unknown(cli.parse_flags(options, argv), options)
    workdir = Path(cli.require(options.workdir, "workdir", "the directory of a run"))
    trained = load_trained(workdir, step=options.step)
    tokenizer = load_tokenizer(workdir)
    prompt = [tokenizer.separator, *tokenizer.encode(options.prompt)]
    print(options.prompt, end="", flush=True)
    stream = TextStream(tokenizer)
    generate(
        trained.model,
        trained.params,
        jnp.asarray([prompt], jnp.int32),
        max_new_tokens=options.max_new_tokens,
        rng=jax.random.key(options.seed),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop_tokens=(tokenizer.separator,),
        on_token=lambda tokens: stream.add(int(np.asarray(tokens)[0])),
    )
    stream.close()
    print()


if __name__ == "__main__":
    cli.run(main)
