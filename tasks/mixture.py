"""mixture: a mixture of the mixtures and tasks that other sources register, composed in gin.

    SOURCES = [@p3.P3(), @natural_instructions.TrainTasks(), @mixture.Mixture()]
    mixture.Mixture.rates = {'p3': 3.0, 'natural_instructions': 1.0}

The source stands behind those whose names it has.
"""

import dataclasses
from collections.abc import Mapping


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
    import seqio

    from hyperjax.data.manifest import did_you_mean
    from hyperjax.tasks import registry

    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    for part in self.rates:
      if part not in known:
        raise ValueError(
          f"Mixture '{self.name}': no task or mixture '{part}' is registered; its source must "
          f"stand before the mixture in SOURCES.{did_you_mean(part, known)}"
        )
    registry.add_mixture(self.name, self.rates)
