"""Which checkpoints are kept: the newest, one in so many steps, and those of lowest loss."""

from collections.abc import Mapping, Sequence

from orbax.checkpoint import checkpoint_managers as policies


def policy_of(
    newest: int, every: int, best: int, losses: Mapping[int, float]
) -> policies.PreservationPolicy:
    """Orbax's policy that keeps what any of the rules keeps.

    Args:
      newest: how many of the newest.
      every: also those whose step is a multiple of it; 0 for none.
      best: also so many of lowest held-out loss.
      losses: those, by step; may grow as checkpoints are saved.
    """
    rules: list[policies.PreservationPolicy] = [policies.LatestN(newest)]
    if every:
        rules.append(policies.EveryNSteps(every))
    if best:
        rules.append(LowestLoss(best, losses))
    return policies.AnyPreservationPolicy(rules)


class LowestLoss(policies.PreservationPolicy):
    """Preserves the checkpoints of lowest held-out loss; of equal ones, the earlier."""

    def __init__(self, count: int, losses: Mapping[int, float]) -> None:
        self._count = count
        self._losses = losses  # by step; grows as checkpoints are saved

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """Whether each checkpoint is kept."""
        evaluated = [c.step for c in checkpoints if c.step in self._losses]
        best = sorted(evaluated, key=lambda step: (self._losses[step], step))[: self._count]
        return [checkpoint.step in best for checkpoint in checkpoints]
