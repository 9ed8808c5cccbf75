"""Which checkpoints of a run stay."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Policy:
  """A preservation policy of orbax: a step stays for any of three reasons.

  The loss is the mean training loss of the steps since the save before. It is
  a noisy measure, but one that every run has.

  Attributes:
    last: how many of the newest stay.
    every: multiples of it stay for good; 0: none.
    best: how many with the lowest loss stay; of equal ones, the newer.
    losses: by step, where known.
  """

  last: int
  every: int
  best: int
  losses: dict[int, float]

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """For each checkpoint, which come in order, whether it stays."""
    del context
    steps = [info.step for info in checkpoints]
    stay = set(steps[-self.last :])
    stay |= {s for s in steps if self.every and s % self.every == 0}
    known = [s for s in steps if s in self.losses]
    known.sort(key=lambda s: (self.losses[s], -s))
    stay |= set(known[: self.best])
    return [s in stay for s in steps]
