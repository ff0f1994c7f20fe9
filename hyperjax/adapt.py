"""hyperjax adapt: turn a few examples into an adapter, in one forward pass."""

import argparse
import dataclasses
import hashlib
import io
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hyperjax import __version__, adapters, storage
from hyperjax.core import phi as phi_lib
from hyperjax.core import sharding
from hyperjax.data import layouts, loader, rows, shapes
from hyperjax.data.episodes import Episode, EpisodeConfig
from hyperjax.data.prompts import PromptFormat, ends_early
from hyperjax.data.vocabularies import Vocabulary

DEFAULT_CHECKPOINT = "runs/quickstart/hyperllama"
DEFAULT_TOKENS = EpisodeConfig().limit[0]

EPILOG = """\
The examples are a file of JSON lines (or a JSON list) with the fields input and output:

  {"input": "wolf", "output": "wolves"}
  {"input": "child", "output": "children"}

They are written in the prompt format that the hypermodel was trained with. The adapter holds all
that `hyperjax predict` needs besides the base model: neither the examples nor the hypermodel. Where
it is a prefix or a low-rank update alone, Hugging Face PEFT loads the same folder.

Examples:
  # ten examples, with the hypermodel that `make quickstart` trained
  hyperjax adapt --examples ten.jsonl --out plural

  # with a hypermodel of your own, the base model now in another place
  hyperjax adapt --checkpoint runs/mine --model models/smollm2_135m \\
    --examples ten.jsonl --out plural

  # then
  hyperjax predict --adapter plural --input "mouse"
"""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    prog="hyperjax adapt",
    description="Turn a few examples of a task into an adapter, in one forward pass.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument(
    "--checkpoint", type=os.path.expanduser, default=DEFAULT_CHECKPOINT,
    help=f"the folder of a training run, or its gs:// address (default: {DEFAULT_CHECKPOINT})",
  )  # fmt: skip
  p.add_argument("--examples", type=storage.local, required=True, help="a JSONL or JSON file")
  p.add_argument("--out", type=storage.local, required=True, help="the adapter's new folder")
  p.add_argument(
    "--definition",
    help="the task in words, in front of the examples: for a hypermodel whose training tasks have "
    "such a text, as those of Super-NaturalInstructions",
  )
  p.add_argument("--model", help="where the base model lies, if not where it lay in training")
  p.add_argument(
    "--max_tokens", type=int, default=DEFAULT_TOKENS,
    help="examples beyond so many tokens are dropped, the first ones of the file first "
    f"(default: {DEFAULT_TOKENS}; in training it was the first of EPISODE_LIMIT, see config.gin)",
  )  # fmt: skip
  p.add_argument("--devices", type=int, default=1, help="that share the model (default: 1)")
  p.add_argument("--overwrite", action="store_true", help="replace the adapter that is there")
  return p


def read_support(
  examples: Sequence[rows.Row], prompt: PromptFormat, vocabulary: Vocabulary,
  definition: str | None = None,
) -> Episode:  # fmt: skip
  """The support of these examples, token for token as in training."""
  inputs = prompt.encode_inputs(vocabulary, [row.fields["input"] for row in examples])
  targets = prompt.encode_targets(vocabulary, [row.fields["output"] for row in examples])
  head = [vocabulary.bos_id] if vocabulary.adds_bos else []
  if definition:
    head += prompt.encode_definitions(vocabulary, [definition])[0]
  return Episode(
    task="examples",
    head=np.array(head, np.int32),
    shots=tuple(np.array(i + t, np.int32) for i, t in zip(inputs, targets, strict=True)),
    queries=(),
    support_ids=tuple(range(len(examples))),
    bos=vocabulary.adds_bos,
  )


def remark(
  examples: Sequence[rows.Row], prompt: PromptFormat, vocabulary: Vocabulary
) -> str:
  """A sentence on outputs that no answer can be; "" where there are none."""
  end = list(prompt.terminator_ids(vocabulary))
  targets = prompt.encode_targets(vocabulary, [row.fields["output"] for row in examples])
  return prompt.remark({"the examples": sum(ends_early(ids, end) for ids in targets)})


def adapt(args: argparse.Namespace, command: str) -> str:
  """Writes the adapter; returns what to tell the user."""
  content = rows.contents(args.examples)
  examples = rows.read(
    args.examples, ["input", "output"], ignored=["options"], stream=io.BytesIO(content)
  )
  adapters.check_target(args.out, overwrite=args.overwrite)
  if args.max_tokens < 1:
    raise ValueError(f"--max_tokens must be at least 1, not {args.max_tokens}")

  # Late, so that a wrong argument is answered at once.
  from hyperjax import runs
  from hyperjax.evaluation import scoring

  mesh = sharding.sharing(args.devices)
  run = _opened(args, mesh)
  runs.check_makes_phi(f"--checkpoint {args.checkpoint}", run.trained, run.inline)
  if said := remark(examples, run.prompt, run.vocabulary):
    print(f"note: {said}", file=sys.stderr)
  episode = read_support(examples, run.prompt, run.vocabulary, args.definition)
  layout = layouts.of(run.config.layout, vars(run.vocabulary))
  if args.definition and len(episode.head) + len(layout.end) >= args.max_tokens:
    raise ValueError(
      f"--definition has {len(episode.head)} tokens, which leave none of --max_tokens "
      f"{args.max_tokens} for examples: raise that, or shorten it"
    )
  size = min(len(episode.support) + len(layout.end), args.max_tokens)
  shape = shapes.rounded(size, queries=1, query=1, targets=1)
  shape = dataclasses.replace(shape, support=min(shape.support, args.max_tokens))
  batch, counts = loader.to_batch([episode], shape, layout)
  if run.longest_support is not None and counts.support_tokens > run.longest_support:
    print(
      f"note: the examples have {counts.support_tokens} tokens, and training had at most "
      f"{run.longest_support}: --max_tokens {run.longest_support} keeps to that",
      file=sys.stderr,
    )
  with jax.set_mesh(mesh):
    phi = scoring.produce(run.producer, run.downstream, batch.support)
  if phi is None:
    raise ValueError(f"--checkpoint {args.checkpoint}: its method makes no phi to keep")
  base = adapters.Base(
    run.model.source, run.config, run.model_fingerprint, run.vocabulary.fingerprint
  )
  provenance = {
    "command": command,
    "hyperjax": __version__,
    "checkpoint": args.checkpoint,
    "examples": len(examples) - counts.shots_dropped,
    "examples_sha256": hashlib.sha256(content).hexdigest(),
    **run.provenance,
  }
  adapter = adapters.Adapter(phi, base, run.prompt.to_json(), provenance)
  adapters.save(args.out, adapter, overwrite=args.overwrite)
  return report(args.out, phi, counts, len(examples))


def _opened(args: argparse.Namespace, mesh: Mesh):
  """The run; where the one that nobody named is not there, the error says how it comes to be."""
  from hyperjax import runs

  try:
    return runs.load(args.checkpoint, source=args.model, mesh=mesh)
  except FileNotFoundError as e:
    if args.checkpoint != DEFAULT_CHECKPOINT or DEFAULT_CHECKPOINT not in str(e):
      raise
    said = str(e).removesuffix(".")
    raise FileNotFoundError(f"{said}: run make quickstart, or name a run with --checkpoint") from e


def report(out: pathlib.Path, phi: phi_lib.Phi, counts: loader.Counts, given: int) -> str:
  """What was written, and what to do next."""
  lines = []
  if counts.shots_dropped:
    lines.append(
      f"note: the first {counts.shots_dropped} of {given} examples were dropped: the others have "
      f"{counts.support_tokens} tokens; --max_tokens says how many fit"
    )
  if counts.supports_cut:
    lines.append("note: the last example alone was too long; its input was cut on the left")
  size = sum(file.stat().st_size for file in out.iterdir())
  peft = (out / "adapter_config.json").exists()
  numbers = sum(x.size for x in jax.tree.leaves(phi) if jnp.issubdtype(x.dtype, jnp.floating))
  lines += [
    f"read   {given - counts.shots_dropped} examples, {counts.support_tokens} tokens",
    f"wrote  {out}: {numbers:,} numbers at {', '.join(phi_lib.sites(phi))}, {size / 1e6:.2f} MB; "
    + ("PEFT loads it" if peft else "in hyperjax's own format (PEFT has none for this phi)"),
    f"next   hyperjax predict --adapter {shlex.quote(str(out))} --input ...",
  ]
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Makes one adapter; returns the exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  args = parser().parse_args(argv)
  try:
    print(adapt(args, shlex.join(["hyperjax", "adapt", *argv])))
  except (OSError, ValueError) as e:
    print(f"hyperjax adapt: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
