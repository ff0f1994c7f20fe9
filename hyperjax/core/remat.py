"""What the backward pass of a layer computes again."""

from functools import partial

import jax

# What attention kernels give this name, 'dots' keeps. Without it they would run once more, and the
# backward pass of each computes scores again in any case.
ATTENDED = "attended"

_policies = jax.checkpoint_policies
_dots = _policies.save_from_both_policies(
  _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(ATTENDED)
)
# Layers are scanned: forward and backward are two loops, and nothing in one could be merged with
# the other.
_remat = partial(jax.checkpoint, prevent_cse=False)
REMAT = {"none": lambda f: f, "dots": partial(_remat, policy=_dots), "full": _remat}


def check(name: str) -> str:
  """The name, where `REMAT` has it."""
  if name not in REMAT:
    raise ValueError(f"remat must be one of {sorted(REMAT)}, not {name!r}")
  return name
