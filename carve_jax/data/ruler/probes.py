"""RULER's probes by name, and their examples at any length of any tokenizer."""

import dataclasses
from collections.abc import Callable, Mapping, Sized

from carve_jax.data.ruler.fit import fit
from carve_jax.data.ruler.haystack import Haystack
from carve_jax.data.ruler.tasks import (
    CommonWords,
    FrequentWords,
    Needles,
    Task,
    Tracking,
)
from carve_jax.errors import UserError

Encode = Callable[[str], Sized]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One probe.

    Attributes:
      name: RULER's.
      task: what is hidden and asked.
      new_tokens: most tokens of a reply, as RULER has it; more where the answers have more.
      filler: "noise", "text" or "own" (the task makes it).
      match: "all": the share of the answers that the reply holds; "part": whether it holds any.
    """

    name: str
    task: Task
    new_tokens: int = 128
    filler: str = "noise"
    match: str = "all"


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and what should come after it.

    Attributes:
      prompt: the text, which ends where the reply begins.
      answers: the strings that are looked for in the reply.
      reply: the answers as a good reply gives them, with the space before.
      depths: where in the filler each answer stands, 0 to 1; none where it is all over.
      max_new_tokens: of the reply; with the prompt's tokens they are the length, or less.
      form: which of the probe's forms it has; "" where there is one.
    """

    prompt: str
    answers: tuple[str, ...]
    reply: str
    depths: tuple[float, ...]
    max_new_tokens: int
    form: str = ""


# Eleven of the thirteen: qa_1 and qa_2 ask about the SQuAD and HotpotQA data sets, which are not
# made but downloaded.
RULER: Mapping[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("niah_single_1", Needles()),
        Probe("niah_single_2", Needles(), filler="text"),
        Probe("niah_single_3", Needles(value_kind="uuids"), filler="text"),
        Probe("niah_multikey_1", Needles(keys=4), filler="text"),
        Probe("niah_multikey_2", Needles(among_needles=True), filler="own"),
        Probe(
            "niah_multikey_3",
            Needles(key_kind="uuids", value_kind="uuids", among_needles=True),
            filler="own",
        ),
        Probe("niah_multivalue", Needles(values=4), filler="text"),
        Probe("niah_multiquery", Needles(keys=4, queries=4), filler="text"),
        Probe("vt", Tracking(), new_tokens=30),
        Probe("cwe", CommonWords(), new_tokens=120, filler="own"),
        Probe("fwe", FrequentWords(), new_tokens=50, filler="own"),
    )
}
# Not RULER's: niah_single_1 in so few words that a row of 128 bytes has room for filler.
TERSE = Probe("niah_terse", Needles(terse=True), new_tokens=16)
PROBES: Mapping[str, Probe] = {**RULER, TERSE.name: TERSE}


def examples(
    probe: Probe,
    *,
    length: int,
    encode: Encode,
    count: int,
    seed: int = 0,
    haystack: Haystack | None = None,
    new_tokens: int | None = None,
) -> list[Example]:
    """The examples 0 to `count` - 1 of a seed; see `example`."""
    return [
        example(
            probe,
            index,
            length=length,
            encode=encode,
            seed=seed,
            haystack=haystack,
            new_tokens=new_tokens,
        )
        for index in range(count)
    ]


def example(
    probe: Probe,
    index: int,
    *,
    length: int,
    encode: Encode,
    seed: int = 0,
    haystack: Haystack | None = None,
    new_tokens: int | None = None,
) -> Example:
    """One example, a function of its arguments alone.

    The same index has the same needles at every length and with every tokenizer. Text filler is cut
    to the character, so that a prompt of bytes has exactly the tokens there is room for, and one of
    another tokenizer nearly always; lists are cut to whole words, and leave room for less than one.

    Args:
      probe: one of PROBES, or another.
      index: from 0.
      length: tokens of prompt and reply together.
      encode: a text's tokens; adds what else the model is given, such as a separator before.
      seed: of all examples.
      haystack: the filler; None for noise, which will not do for a probe whose filler is text.
        Probes that make their own filler have no use for it.
      new_tokens: room for the reply; None for RULER's. What the answers need is the least.

    Raises:
      UserError: the length is too short, or there is not so much filler; a text is missing.
    """
    if haystack is None:
        if probe.filler == "text":
            raise UserError(f"{probe.name} hides its needles in a text: give a haystack.")
        haystack = Haystack.noise()
    needs = []
    for draft in probe.task.drafts(f"{probe.name}/{seed}/{index}", length, haystack):
        wanted = probe.new_tokens if new_tokens is None else new_tokens
        room = max(wanted, len(encode(draft.reply)))
        needs.append(len(encode(draft.write(draft.least))) + room)
        if needs[-1] <= length:
            break
    else:
        raise UserError(
            f"{probe.name} does not fit in {length} tokens: give a length of at least "
            f"{min(needs)}, which is what it takes without filler."
        )
    size = fit(
        lambda amount: len(encode(draft.write(amount))), length - room, draft.least, draft.most
    )
    if size == draft.most:
        raise UserError(
            f"{probe.name} has not filler enough for {length} tokens; give a shorter length."
        )
    return Example(draft.write(size), draft.answers, draft.reply, draft.depths, room, draft.form)
