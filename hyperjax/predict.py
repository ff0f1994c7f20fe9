"""hyperjax predict: answer inputs with the base model and adapters; no hypermodel is needed."""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import adapters, storage
from hyperjax.core import phi as phi_lib
from hyperjax.core import quantised, sharding
from hyperjax.core.phi import Phi
from hyperjax.data import layouts, prompts, rows, vocabularies
from hyperjax.data.prompts import PromptFormat
from hyperjax.data.vocabularies import Vocabulary
from hyperjax.models import families
from hyperjax.models.generate import Sampling, generate

_LEAST_LENGTH = 16

EPILOG = """\
Only the base model and the adapter are needed: neither the examples nor the hypermodel. The base
model is the one that the adapter names, unless --model says where it lies now; another model is
refused.

A file of inputs holds JSON lines (or a JSON list) with the field input and optionally adapter, so
that every row of a batch can have its own:

  {"input": "mouse", "adapter": "plural"}
  {"input": "three hundred and five", "adapter": "numbers"}

Examples:
  # one input; with several adapters, it is answered under each of them in turn
  hyperjax predict --adapter plural --input "mouse"
  hyperjax predict --adapter plural --adapter opposites --input "mouse"

  # a file of inputs, the answers as JSON lines
  hyperjax predict --adapter plural --inputs nouns.jsonl --out answers.jsonl

  # sampled; the same seed gives the same answers, however the inputs are batched
  hyperjax predict --adapter plural --input "mouse" --temperature 0.8 --seed 1

  # an adapter that PEFT made says nothing of a prompt format: name it
  hyperjax predict --adapter my_lora --model models/llama --prompt qa --input "mouse"
"""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    prog="hyperjax predict",
    description="Answer inputs with the base model and an adapter.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument(
    "--adapter", type=os.path.expanduser, action="append", default=[],
    help="an adapter's folder; repeatable",
  )  # fmt: skip
  given = p.add_mutually_exclusive_group(required=True)
  given.add_argument("--input", action="append", help="an input; repeatable")
  given.add_argument("--inputs", type=storage.local, help="a JSONL or JSON file of inputs")
  p.add_argument("--model", help="where the base model lies (default: where the adapter says)")
  p.add_argument(
    "--prompt", choices=sorted(prompts.FORMATS), help="prompt format (default: the adapter's own)"
  )
  p.add_argument("--max_new_tokens", type=int, default=64, help="default: 64")
  p.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
  p.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
  p.add_argument("--batch_size", type=int, default=32, help="default: 32")
  p.add_argument("--devices", type=int, default=1, help="that share the model (default: 1)")
  p.add_argument(
    "--base_bits", type=int, choices=sorted(quantised.TYPES), help="of the base model's matrices "
    "(default: full width)",
  )  # fmt: skip
  p.add_argument(
    "--out", type=storage.local, help="writes JSON lines, into a new file: input, prediction, "
    "adapter",
  )  # fmt: skip
  p.add_argument("--overwrite", action="store_true", help="replace the file that is there")
  return p


@dataclasses.dataclass(frozen=True)
class Request:
  """One input to be answered under one adapter.

  Attributes:
    where: file and line, for errors.
    text: the input.
    adapter: the adapter's folder.
  """

  where: str
  text: str
  adapter: str


def read_requests(args: argparse.Namespace) -> list[Request]:
  """All inputs with their adapters, in order.

  Raises:
    ValueError: an input without an adapter, or a wrong file.
  """
  if args.inputs is None:
    given = [rows.Row(f"--input {text!r}", {"input": text}) for text in args.input]
  else:
    given = rows.read(args.inputs, ["input"], ["adapter"], ignored=["output", "options"])
  requests = []
  for where, fields in given:
    own = [fields["adapter"]] if "adapter" in fields else args.adapter
    if not own:
      raise ValueError(f"{where}: no adapter; name it with --adapter or in the field adapter")
    if not fields["input"].strip():
      raise ValueError(f"{where} is empty")
    requests += [Request(where, fields["input"], adapter) for adapter in own]
  return requests


@dataclasses.dataclass(frozen=True)
class Tools:
  """What all requests share.

  Attributes:
    downstream: the base model.
    vocabulary: its tokenizer.
    context: the most tokens it can hold; None without a limit.
    max_new_tokens, temperature, seed, batch_size: as given.
  """

  downstream: families.Model
  vocabulary: Vocabulary
  context: int | None
  max_new_tokens: int
  temperature: float
  seed: int
  batch_size: int


@dataclasses.dataclass(frozen=True)
class Job:
  """One request, tokenised.

  Attributes:
    index: its place in the output.
    ids: its prompt.
    phi: its adapter's phi.
    key: names the adapter.
    terminator: the ids that end the answer.
  """

  index: int
  ids: list[int]
  phi: Phi
  key: str
  terminator: tuple[int, ...]


def tokenise(
  requests: Sequence[Request],
  loaded: Mapping[str, tuple[adapters.Adapter, PromptFormat]],
  tools: Tools,
) -> list[Job]:
  """The prompts as in training: BOS where the vocabulary adds it, the input's piece, and what the
  model's layout puts behind it.

  Raises:
    ValueError: an input that does not fit the model's context.
  """
  head = [tools.vocabulary.bos_id] if tools.vocabulary.adds_bos else []
  end = layouts.of(tools.downstream.config.layout, vars(tools.vocabulary)).end
  jobs = []
  for index, request in enumerate(requests):
    adapter, prompt = loaded[request.adapter]
    ids = [*head, *prompt.encode_inputs(tools.vocabulary, [request.text])[0], *end]
    if tools.context is not None:
      _check_room(request, len(ids), adapter.phi, tools)
    terminator = prompt.terminator_ids(tools.vocabulary)
    jobs.append(Job(index, ids, adapter.phi, request.adapter, terminator))
  return jobs


def _check_room(request: Request, length: int, phi: Phi, tools: Tools) -> None:
  before = int(np.max(tools.downstream.start(phi)))
  if length > tools.context - before - tools.max_new_tokens:
    raise ValueError(
      f"{request.where}: the input has {length} tokens; the model holds {tools.context}, of "
      f"which the adapter's prefix takes {before} and --max_new_tokens {tools.max_new_tokens}"
    )


def batches(jobs: Sequence[Job], batch_size: int) -> Iterator[tuple[list[Job], int]]:
  """Groups of jobs that one compiled program can answer, and the length that they are padded to.

  Lengths are powers of two, so that there are few programs; adapters of different sites, positions
  or formats cannot share a batch.
  """
  groups: dict[tuple, list[Job]] = {}
  for job in jobs:
    length = max(_LEAST_LENGTH, _power_of_two(len(job.ids)))
    nodes = phi_lib.sites(job.phi).items()
    sites = tuple(sorted((site, getattr(node, "positions", "")) for site, node in nodes))
    groups.setdefault((sites, job.terminator, length), []).append(job)
  for (_, _, length), group in groups.items():
    for start in range(0, len(group), batch_size):
      yield group[start : start + batch_size], length


def answer(group: Sequence[Job], length: int, tools: Tools) -> list[str]:
  """The predictions of one batch."""
  rows_padded = min(_power_of_two(len(group)), tools.batch_size)
  padded = [*group, *[group[-1]] * (rows_padded - len(group))]
  tokens = np.zeros([rows_padded, length], np.int32)
  for row, job in enumerate(padded):
    tokens[row, : len(job.ids)] = job.ids
  count = np.array([len(job.ids) for job in padded], np.int32)
  base = jax.random.key(tools.seed)
  keys = jnp.stack([jax.random.fold_in(base, job.index) for job in padded])
  if len({job.key for job in group}) == 1:
    # Queries of one adapter stand side by side and share it; else each row has its own.
    phi, axis = group[0].phi, 0
  else:
    phi, axis = phi_lib.stack_rows([job.phi for job in padded]), 1
  keys = jnp.expand_dims(keys, axis)
  sampling = Sampling(keys, tools.temperature) if tools.temperature else None
  ids, produced = generate(
    tools.downstream,
    phi,
    np.expand_dims(tokens, axis),
    np.expand_dims(count, axis),
    max_new_tokens=tools.max_new_tokens,
    terminator=group[0].terminator,
    sampling=sampling,
  )
  ids, produced = (np.squeeze(np.asarray(x), axis) for x in (ids, produced))
  return [
    prompts.text_of(ids[row, : produced[row]].tolist(), job.terminator, tools.vocabulary)
    for row, job in enumerate(group)
  ]


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def predict(args: argparse.Namespace) -> list[dict[str, str]]:
  """Answers all inputs: one record per request."""
  for name in ("max_new_tokens", "batch_size"):
    if getattr(args, name) < 1:
      raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
  if args.temperature < 0:
    raise ValueError(f"--temperature must be at least 0, not {args.temperature}")
  if args.out is not None:
    _check_out(args.out, args.overwrite)
  requests = read_requests(args)
  folders = list(dict.fromkeys(request.adapter for request in requests))
  sources = {folder: args.model or adapters.recorded_source(folder) for folder in folders}
  for folder, source in sources.items():
    if source is None:
      raise ValueError(f"{folder} does not say which model it is for; name it with --model")
  source = sources[folders[0]]

  # Late, so that a wrong argument is answered at once.
  from hyperjax import runs

  try:
    config = families.read_config(source)
  except FileNotFoundError as e:
    if args.model:
      raise
    raise FileNotFoundError(
      f"{folders[0]} is for the model {source!r}, which is not there: say where it lies now with "
      f"--model ({e})"
    ) from e
  model = runs.ModelConfig(config, source, bits=args.base_bits)
  vocabulary = vocabularies.load(source)
  mesh = sharding.sharing(args.devices)
  downstream, fingerprint = model.load(mesh)
  base = adapters.Base(source, model.architecture, fingerprint, vocabulary.fingerprint)
  loaded = {}
  for folder in folders:
    adapter = adapters.load(folder, base)
    if not adapter.verified and sources[folder] != source:
      raise ValueError(
        f"{folders[0]} is for {source!r} and {folder} for {sources[folder]!r}: answer them apart; "
        "where both are the same model, say where it lies with --model"
      )
    if note := runs.remark(folder, adapter, model):
      print(note, file=sys.stderr)
    loaded[folder] = adapter, _prompt(folder, adapter, args.prompt)
  tools = Tools(
    downstream, vocabulary, families.context_length(source), args.max_new_tokens,
    args.temperature, args.seed, args.batch_size,
  )  # fmt: skip
  predictions = [""] * len(requests)
  with jax.set_mesh(mesh):
    for group, length in batches(tokenise(requests, loaded, tools), args.batch_size):
      for job, text in zip(group, answer(group, length, tools), strict=True):
        predictions[job.index] = text
  return [
    {"input": request.text, "prediction": text, "adapter": request.adapter}
    for request, text in zip(requests, predictions, strict=True)
  ]


def _check_out(out: pathlib.Path, overwrite: bool) -> None:
  """Refuses a file that could not be written, or is there already, before the work."""
  folder = out.absolute().parent
  if not folder.is_dir():
    raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
  if out.is_dir():
    raise IsADirectoryError(f"--out {out} is a folder: name a file in it")
  if not os.access(folder, os.W_OK | os.X_OK):
    raise PermissionError(f"--out {out}: {folder} may not be written to; name another folder")
  if os.path.lexists(out) and not overwrite:
    raise FileExistsError(f"--out {out} exists; name a new file, or replace it (--overwrite)")


def _prompt(folder: str, adapter: adapters.Adapter, name: str | None) -> PromptFormat:
  if name is not None:
    return prompts.get(name)
  if adapter.prompt is None:
    raise ValueError(f"{folder} does not say how its inputs are written; name it with --prompt")
  return PromptFormat.from_json(adapter.prompt)


def write(path: pathlib.Path, records: Sequence[Mapping[str, str]]) -> None:
  """Writes JSON lines, whole or not at all."""
  lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
  storage.write_whole(path, "".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
  """Answers the inputs; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    records = predict(args)
    if args.out is None:
      for record in records:
        print(record["prediction"].replace("\n", "\\n"))
    else:
      write(args.out, records)
      print(f"wrote  {args.out}: {len(records)} predictions")
  except (OSError, ValueError) as e:
    print(f"hyperjax predict: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
