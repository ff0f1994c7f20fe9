"""What hyperjax is measured beside: the same work in plain PyTorch, transformers and PEFT.

Nothing here is made slower than a user of these libraries would have it: attention is PyTorch's own
fused one, logits are computed at target tokens only, no place is padding. On the CPU.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peft
import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache

from benchmarks import work
from benchmarks.beside import Side, best, threads
from benchmarks.work import PRODUCT_ROWS, Shape


def load(raw: Mapping[str, Any], dtype: str) -> transformers.LlamaForCausalLM:
  """A Llama of random weights.

  Args:
    raw: its config.json.
    dtype: of weights and activations.
  """
  torch.set_num_threads(threads())
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(dict(raw)))
  return model.to(getattr(torch, dtype))


def adapted(model: transformers.LlamaForCausalLM, lora: Mapping[str, Any]) -> peft.PeftModel:
  """The frozen model under a trained LoRA, whose weights PEFT keeps in float32."""
  return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora))


def _side(run: Callable[[], Mapping[str, Any]], model: torch.nn.Module, places: int) -> Side:
  """With the rate of products of as many places, at the most, as the work has."""
  c = model.config
  x = torch.ones(min(places, PRODUCT_ROWS), c.hidden_size, dtype=model.dtype)
  w = torch.ones(c.hidden_size, c.intermediate_size, dtype=model.dtype)
  flops = 2 * len(x) * c.hidden_size * c.intermediate_size
  return Side(
    run, lambda: flops / best(lambda: torch.matmul(x, w), repeats=10),
    {
      "torch": torch.__version__, "transformers": transformers.__version__,
      "peft": peft.__version__, "threads": torch.get_num_threads(),
      "attention": c._attn_implementation,
    },
  )  # fmt: skip


# ---- Gisting, as Mu et al. train it --------------------------------------------------------------


def gist_mask(support: int, num_gist: int, query: int) -> torch.Tensor:
  """Who sees whom in [support, gist, query]: causal, and the query does not see the support.

  Returns [L, L] bool, L = support + num_gist + query (arXiv 2304.08467).
  """
  at = torch.arange(support + num_gist + query)
  causal = at[None] <= at[:, None]
  return causal & ((at[:, None] < support + num_gist) | (at[None] >= support))


class Gisting(torch.nn.Module):
  """One model for both: in a single masked pass the gist tokens are filled and the query is read.

  Attributes:
    model: under a LoRA, which serves the whole pass.
    gist: [G, D] float32, the gist tokens' embeddings.
  """

  def __init__(self, model: peft.PeftModel, num_gist: int):
    super().__init__()
    self.model = model
    table = model.get_input_embeddings().weight.detach().float()
    self.gist = torch.nn.Parameter(torch.randn(num_gist, table.shape[1]) * table.std())

  def loss(
    self, support: torch.Tensor, query: torch.Tensor, targets: torch.Tensor
  ) -> torch.Tensor:
    """The mean negative log-likelihood of target tokens, in nats.

    Args:
      support: [B, S], each query's own.
      query: [B, T], whose last W places predict the targets.
      targets: [B, W].
    """
    x = self.embedded(support, query)
    mask = gist_mask(support.shape[1], len(self.gist), query.shape[1])
    logits = self.model(
      inputs_embeds=x, attention_mask=mask[None, None], use_cache=False,
      logits_to_keep=targets.shape[1],
    ).logits  # fmt: skip
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

  def embedded(self, support: torch.Tensor, *behind: torch.Tensor) -> torch.Tensor:
    """[B, L, D], what is read: the support, the gist tokens, and any text behind them."""
    embed = self.model.get_input_embeddings()
    x = embed(support)
    gist = self.gist.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x, gist, *map(embed, behind)], 1)

  @torch.inference_mode()
  def read(self, support: torch.Tensor) -> Cache:
    """The gist tokens' keys and values after reading [B, S], as if at positions 0..G-1."""
    x, size = self.embedded(support), len(self.gist)
    at = torch.arange(x.shape[1])[None] - support.shape[1]
    whole = self.model(
      inputs_embeds=x, position_ids=at, use_cache=True, logits_to_keep=1
    ).past_key_values
    return DynamicCache([(key[:, :, -size:], value[:, :, -size:]) for key, value, _ in whole])


def _long(tokens: work.Tokens) -> list[torch.Tensor]:
  return [torch.from_numpy(x).long() for x in tokens]


def train(
  raw: Mapping[str, Any],
  dtype: str,
  lora: Mapping[str, Any],
  num_gist: int,
  shape: Shape,
  parts: int,
) -> Side:
  """A training step: every query in a sequence of its own.

  Args:
    raw, dtype: of the model.
    lora, num_gist: what is trained.
    shape: of the batch; that makes B M sequences.
    parts: that the sequences are worked off in, one after another.
  """
  gisting = Gisting(adapted(load(raw, dtype), lora), num_gist)
  support, query, targets = _long(work.draw(shape, raw["vocab_size"]))
  support = support.repeat_interleave(shape.queries, 0)
  batch = support, query.flatten(0, 1), targets.flatten(0, 1)
  trained = [p for p in gisting.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)

  def run() -> dict[str, Any]:
    total = 0.0
    for part in zip(*(x.chunk(parts) for x in batch), strict=True):
      loss = gisting.loss(*part) * (len(part[0]) / len(support))
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {"tokens": query.numel(), "loss": total}

  return _side(run, gisting.model, support.numel() + query.numel())


# ---- Answers -------------------------------------------------------------------------------------


@torch.inference_mode()
def read_in_context(model: transformers.LlamaForCausalLM, support: torch.Tensor) -> Cache:
  """The keys and values of a support [B, S]."""
  return model(support, use_cache=True, logits_to_keep=1).past_key_values


@torch.inference_mode()
def continued(
  model: transformers.LlamaForCausalLM,
  query: torch.Tensor,
  new_tokens: int,
  cache: Cache | None = None,
) -> torch.Tensor:
  """Greedy continuations [M, new_tokens] of texts [M, T].

  Args:
    cache: keys and values [1, ...] in front of all of them; it is used up.
  """
  before = 0
  if cache is not None:
    before = cache.get_seq_length()
    cache.batch_repeat_interleave(len(query))
  mask = torch.ones(len(query), before + query.shape[1], dtype=torch.long)
  model.generation_config.eos_token_id = None  # all to the full length
  ids = model.generate(
    query, attention_mask=mask, past_key_values=cache, max_new_tokens=new_tokens, do_sample=False,
    pad_token_id=0,
  )  # fmt: skip
  return ids[:, query.shape[1] :]


def kept_mib(cache: Cache) -> float:
  """What is kept of a support, to answer with."""
  return sum(key.nbytes + value.nbytes for key, value, _ in cache) / 2**20


def answers(
  gisting: Gisting,
  support: torch.Tensor,
  query: torch.Tensor,
  method: str,
  new_tokens: int,
  at_once: int,
) -> tuple[torch.Tensor, float]:
  """Reads a support [1, S] and answers its queries [M, T]; methods as in `hyperjax_side.answers`.

  The model that answers is the frozen one.

  Returns:
    ids [M, new_tokens], and MiB kept of the support from query to query.
  """
  model = gisting.model.get_base_model()
  if method == "anew":
    whole = torch.cat([support.expand(len(query), -1), query], 1)
    with gisting.model.disable_adapter():
      return torch.cat([continued(model, x, new_tokens) for x in whole.split(at_once)]), 0.0
  if method == "phi":
    cache = gisting.read(support)
  with gisting.model.disable_adapter():
    if method == "cached":
      cache = read_in_context(model, support)
    kept = kept_mib(cache)
    return continued(model, query, new_tokens, cache), kept


def adapt(
  raw: Mapping[str, Any], dtype: str, lora: Mapping[str, Any], num_gist: int, shape: Shape
) -> Side:
  """Supports to the keys and values of gist tokens."""
  gisting = Gisting(adapted(load(raw, dtype), lora), num_gist)
  support, *_ = _long(work.draw(shape, raw["vocab_size"]))

  def run() -> dict[str, Any]:
    return {"tokens": support.numel(), "kept_mib": kept_mib(gisting.read(support))}

  return _side(run, gisting.model, support.numel())


def decode(
  raw: Mapping[str, Any],
  dtype: str,
  lora: Mapping[str, Any],
  num_gist: int,
  shape: Shape,
  method: str,
  new_tokens: int,
  at_once: int,
) -> Side:
  """One support, and answers to its queries.

  Args:
    raw, dtype: of the model.
    lora, num_gist: of the pass over the support, for phi.
    shape: B is 1.
    method, new_tokens, at_once: as `answers` takes them.
  """
  gisting = Gisting(adapted(load(raw, dtype), lora), num_gist)
  support, query, _ = _long(work.draw(shape, raw["vocab_size"]))

  def run() -> dict[str, Any]:
    ids, kept = answers(gisting, support, query[0], method, new_tokens, at_once)
    return {"tokens": ids.numel(), "kept_mib": kept}

  return _side(run, gisting.model, query.numel())


# ---- Episodes ------------------------------------------------------------------------------------

Example = tuple[str, str]  # a rendered input and target
MASKS = ("support_mask", "query_mask")  # of a batch's real tokens


class Episodes(torch.utils.data.Dataset):
  """Episodes as texts: a support, and the examples that are asked."""

  def __init__(self, examples: Sequence[Example], num_shots: int, num_queries: int):
    self._examples, self._shots, self._queries = examples, num_shots, num_queries

  def __len__(self) -> int:
    return len(self._examples) // self._queries

  def __getitem__(self, index: int) -> tuple[str, list[Example]]:
    chosen = random.Random(index).sample(self._examples, self._shots + self._queries)
    return "".join(i + t for i, t in chosen[: self._shots]), chosen[self._shots :]


class Collator:
  """Texts to padded tensors, tokenised batch by batch, as Mu et al.'s collator does."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer

  def __call__(self, episodes: Sequence[tuple[str, list[Example]]]) -> dict[str, torch.Tensor]:
    ids = lambda texts: self._tokenizer(texts, add_special_tokens=False)["input_ids"]
    inputs, targets = (
      ids([example[part] for _, asked in episodes for example in asked]) for part in (0, 1)
    )
    support = ids([support for support, _ in episodes])
    query = [i + t[:-1] for i, t in zip(inputs, targets, strict=True)]
    labels = [[-100] * (len(i) - 1) + t for i, t in zip(inputs, targets, strict=True)]
    return {
      "support": _padded(support, 0), "support_mask": _padded([[1] * len(x) for x in support], 0),
      "query": _padded(query, 0), "query_mask": _padded([[1] * len(x) for x in query], 0),
      "labels": _padded(labels, -100),
    }  # fmt: skip


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
  return torch.nn.utils.rnn.pad_sequence(
    [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
  )


def episodes(
  examples: Sequence[Example],
  tokenizer: str,
  batch_size: int,
  batches: int,
  num_shots: int,
  num_queries: int,
) -> Side:
  """Batches of episodes, in the thread that asks for them; the tokenizer's own threads help it.

  Args:
    examples: rendered.
    tokenizer: its folder.
    batch_size, batches, num_shots, num_queries: of the episodes.
  """
  torch.set_num_threads(threads())
  loader = torch.utils.data.DataLoader(
    Episodes(examples, num_shots, num_queries), batch_size, shuffle=True,
    collate_fn=Collator(transformers.AutoTokenizer.from_pretrained(tokenizer)),
  )  # fmt: skip

  def endless():
    while True:
      yield from loader

  stream = endless()

  def run() -> dict[str, Any]:
    read = itertools.islice(stream, batches)
    return {"tokens": sum(int(b[mask].sum()) for b in read for mask in MASKS)}

  return Side(
    run, work.copy_rate, {"torch": torch.__version__, "transformers": transformers.__version__}
  )
