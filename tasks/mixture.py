"""mixture: mixtures of the mixtures and tasks that other sources register, composed in gin.

    SOURCES = [@p3.P3(), @natural_instructions.TrainTasks(), @mixture.Mixture()]
    mixture.Mixture.rates = {'t0_train': 3.0, 'ni_default': 1.0}

`Mixture` gives each part a weight, `ByExamples` each task. The source stands behind those whose
names it has.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from hyperjax.data.manifest import did_you_mean


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A mixture whose parts are registered already.

  Attributes:
    rates: {mixture or task: its weight}; within a mixture its own rates hold.
    name: of the mixture.
  """

  rates: Mapping[str, int | float]
  name: str = "mixture"

  def __post_init__(self):
    object.__setattr__(self, "rates", {part: float(rate) for part, rate in self.rates.items()})
    for part, rate in self.rates.items():
      if not rate > 0:
        raise ValueError(f"Mixture '{self.name}': the rate of '{part}' is {rate}, not above 0.")
    if not self.rates:
      raise ValueError(f"Mixture '{self.name}': rates names nothing.")

  def available(self) -> bool:
    return True

  def fingerprints(self) -> Mapping[str, str]:
    """Returns nothing: the tasks are those of other sources."""
    return {}

  def register(self) -> None:
    """Registers the mixture with seqio.

    Raises:
      ValueError: a part is not registered.
    """
    from hyperjax.tasks import registry

    _check_registered(self.name, self.rates)
    registry.add_mixture(self.name, self.rates)


@dataclasses.dataclass(frozen=True)
class ByExamples:
  """The tasks of several mixtures side by side, each at its number of training examples.

  So the code that precedes HyperLlama mixes its data (github.com/zphang/minimal-llama,
  hyper/data/hyper_dataset.py), P3 at T0's rates.

  Attributes:
    parts: mixtures and tasks.
    own_rates: those of the parts whose tasks keep the rates that they have there, such as T0's,
      which are numbers of examples too.
    maximum: no other task counts for more.
    name: of the mixture.
  """

  parts: Sequence[str]
  own_rates: Sequence[str] = ()
  maximum: int = 30_000
  name: str = "by_examples"

  def __post_init__(self):
    for field in ("parts", "own_rates"):
      if isinstance(getattr(self, field), str):
        raise ValueError(f"Mixture '{self.name}': {field} must be a list of names.")
      object.__setattr__(self, field, tuple(getattr(self, field)))
    if not self.parts or self.maximum < 1:
      raise ValueError(f"Mixture '{self.name}': it needs parts, and a maximum of 1 or more.")
    for part in self.own_rates:
      if part not in self.parts:
        hint = did_you_mean(part, self.parts)
        raise ValueError(f"Mixture '{self.name}': own_rates names '{part}', no part of it.{hint}")

  def available(self) -> bool:
    return True

  def fingerprints(self) -> Mapping[str, str]:
    """Returns nothing: the tasks are those of other sources."""
    return {}

  def register(self) -> None:
    """Registers the mixture with seqio; tasks that do not say how many examples they have are read.

    Raises:
      ValueError: a part is not registered, or a task has no split "train".
    """
    import seqio

    from hyperjax.tasks import registry

    _check_registered(self.name, self.parts)
    rates: dict[str, float] = {}
    for part in self.parts:
      provider = seqio.get_mixture_or_task(part)
      for task in seqio.get_subtasks(provider):
        own = part in self.own_rates
        rates[task.name] = provider.get_rate(task) if own else float(self._examples(task))
    registry.add_mixture(self.name, rates)

  def _examples(self, task) -> int:
    from hyperjax.data import task_rows

    if "train" not in task.splits:
      raise ValueError(f"Mixture '{self.name}': task '{task.name}' has no split 'train'.")
    count = task_rows.number(task, "train")
    if count is None:
      count = sum(1 for _ in task_rows.texts(task, "train"))
    return min(count, self.maximum)


def _check_registered(name: str, parts: Iterable[str]) -> None:
  import seqio

  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  for part in parts:
    if part not in known:
      raise ValueError(
        f"Mixture '{name}': no task or mixture '{part}' is registered; its source must stand "
        f"before the mixture in SOURCES.{did_you_mean(part, known)}"
      )
