"""RULER's probes as tasks: `ruler/PROBE/LENGTH`; `ruler/LENGTH` is all of RULER's."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from carve_jax.data.ruler import PROBES, RULER
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.ruler.run import Asking, run_probe
from carve_jax.evaluation.scoring import check_length
from carve_jax.evaluation.tasks import Options, Result, Task

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
EXAMPLES = 100  # where no limit says otherwise


class RulerGroups(Mapping[str, Mapping[str, str]]):
    """`ruler/LENGTH` for every length there may be."""

    def __getitem__(self, name: str) -> Mapping[str, str]:
        found = re.fullmatch(r"ruler/([1-9]\d*)", name)
        if found is None:
            raise KeyError(name)
        return {f"ruler/{probe}/{found[1]}": "accuracy" for probe in RULER}

    def __iter__(self) -> Iterator[str]:
        return iter([f"ruler/{length}" for length in LENGTHS])

    def __len__(self) -> int:
        return len(LENGTHS)


class RulerTasks:
    """A `Source`.

    Args:
      asking: how; examples, seed and batches are those of the command's options.
    """

    def __init__(self, asking: Asking | None = None) -> None:
        self._asking = asking or Asking()

    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """All probes of a length."""
        return RulerGroups()

    def find(self, name: str) -> Task | None:
        """The probe of a name."""
        found = re.fullmatch(r"ruler/(\w+)/([1-9]\d*)", name)
        if found is None or found[1] not in PROBES:
            return None
        probe, length = PROBES[found[1]], int(found[2])

        def run(evaluated: EvaluatedModel, options: Options) -> Result:
            check_length(evaluated.model.config, length, evaluated.scorer.max_length)
            asking = dataclasses.replace(
                self._asking,
                count=options.limit or EXAMPLES,
                seed=options.seed,
                batch_size=max(1, min(evaluated.scorer.batch_size, 131_072 // length)),
                prefill_chunk=min(2048, evaluated.scorer.call_tokens),
            )
            tokenizer = evaluated.text_tokenizer()
            return run_probe(evaluated.model, evaluated.params, tokenizer, probe, length, asking)

        return run

    def names(self) -> Iterable[str]:
        """The probes, each with a length, for others are as good."""
        return [f"ruler/{probe}/{length}" for probe in PROBES for length in LENGTHS]
