"""Programs that `meshes_test` runs with virtual devices, which jax counts only once in a process:

    on_meshes train FOLDER         asks and trains a tiny HyperLlama on several meshes of 8 devices
    on_meshes attend               works off splash attention on meshes of 8 devices
    on_meshes batch PORT PROCESS   one of two processes with 4 devices each

Each prints JSON of what came out.
"""

import contextlib
import functools
import json
import math
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hyperjax import systems
from hyperjax.core import attention, masks, sharding
from hyperjax.core.attention import devices, splash
from hyperjax.core.phi import Prefix
from hyperjax.evaluation import scoring
from hyperjax.hypermodels.hyperllama import GistConfig, HyperLlamaConfig
from hyperjax.models import families, tensor_files
from hyperjax.training import step
from hyperjax.training.optimizers import AdamW, Schedule
from tests.core.attention.rows import random
from tests.models import tiny

STEPS = 20
LENGTHS = (5, 2, 4, 3, 5, 1, 2, 4)
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}
TENSOR = (1, 2, 4)  # more devices than heads of keys and values
MARK = "-- what follows cannot be moved in one step --"


def system(folder, loop, mesh, bits=None):
  """The model from its folder and its hypermodel, in float64, made on the mesh."""
  given = {"dtype": jnp.float64, "bits": bits}
  loaded = families.load(folder, mesh=mesh, **given)
  graph = nnx.graphdef(families.abstract(loaded.config, remat="full", **given))
  config = HyperLlamaConfig(GistConfig(num_gist=3, sink_text="a"), rank=2, loop=loop)
  return systems.build_parts(config, nnx.merge(graph, loaded.params), tiny.encode, 0, mesh)


def train(parts, mesh, start):
  """Losses of the steps, and the program that made them."""
  transform = AdamW(Schedule(1e-2, decay="constant")).build(STEPS, parts.axes)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), start)
  trained = sharding.place(wide, parts.axes, mesh)
  state = step.init_optimizer(transform, trained, mesh)
  lying = step.lies(trained), step.lies(state)
  train_step = step.make_train_step(parts.graph, transform, step.Objective(), 1, lying)
  batches = [sharding.place_batch(tiny.batch(*LENGTHS, seed=s), mesh) for s in (3, 9)]
  with jax.set_mesh(mesh):
    program = train_step.lower(trained, state, parts.frozen, batches[0]).compile()
  losses = []
  for number in range(STEPS):
    trained, state, metrics = program(trained, state, parts.frozen, batches[number % 2])
    losses.append(float(metrics["loss"]))
  assert (step.lies(trained), step.lies(state)) == lying
  return losses, program, state


def asked(parts, mesh) -> dict:
  """Its greedy answers before training, and log-likelihoods of targets."""
  system = nnx.merge(parts.graph, parts.trained, parts.frozen)
  batch = jax.tree.map(np.asarray, tiny.batch(*LENGTHS, seed=7))
  with jax.set_mesh(mesh):
    phi = scoring.produce(system.producer, system.downstream, batch.support)
    rows = np.arange(len(LENGTHS))[::-1]  # each query under another episode's phi
    asked = jax.tree.map(np.asarray, tiny.continuations(len(LENGTHS), 2, 6))
    found = scoring.ask(
      system.downstream, phi, rows, asked, max_new_tokens=5, terminator=()
    )
  assert all(x.is_fully_replicated for x in found)
  return {"ids": found.ids.tolist(), "likelihoods": found.likelihoods.tolist()}


def shard(x):
  """The shape of what one device holds of an array."""
  return x.sharding.shard_shape(x.shape)


@contextlib.contextmanager
def reads():
  """A list of the pieces of tensors that are read in the block: names and shapes."""
  pieces, original = [], tensor_files.Safetensors.tensor

  def tensor(self, name, part=()):
    found = original(self, name, part)
    pieces.append((name, found.shape))
    return found

  tensor_files.Safetensors.tensor = tensor
  yield pieces
  tensor_files.Safetensors.tensor = original


def train_all(folder) -> dict:
  """Trains on each mesh, from the same start."""
  out, start = {}, None
  for name, sizes in MESHES.items():
    mesh = sharding.MeshConfig(*sizes).build(jax.devices()[: math.prod(sizes)])
    with reads() as pieces:
      parts = system(folder, "two_scans" if name == "one" else "one_scan", mesh)
    start = start or jax.tree.map(np.asarray, parts.trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.trained, start)
    answers = asked(parts, mesh) if name in ("one", "all") else None
    losses, program, state = train(parts, mesh, start)
    decoder = parts.frozen["downstream"]["decoder"]
    out[name] = {
      "losses": losses,
      "answers": answers,
      "gate": shard(decoder["mlp"]["gate"]),
      "o": shard(decoder["self"]["o"]),
      "moments": sorted(set(map(shard, jax.tree.leaves(state)))),
      "read": max(shape for tensor, shape in pieces if "gate_proj" in tensor),
      "gathers": len(re.findall(r"f64\[1,32,48\]\S* all-gather\(", program.as_text())),
    }
  for name in ("one", "fsdp", "all"):
    mesh = sharding.MeshConfig(*MESHES[name]).build(jax.devices()[: math.prod(MESHES[name])])
    parts = system(folder, "two_scans" if name == "one" else "one_scan", mesh, bits=8)
    losses, program, _ = train(parts, mesh, start)
    mlp = parts.frozen["downstream"]["decoder"]["mlp"]
    out[f"{name} in 8 bits"] = {
      "losses": losses,
      "gate": [shard(mlp["gate"].qvalue), shard(mlp["gate"].scale)],
      "down": [shard(mlp["down"].qvalue), shard(mlp["down"].scale)],
      "gathers": sorted(set(re.findall(r"(\w+)\[1,32,48\]\S* all-gather\(", program.as_text()))),
    }
  print(MARK, file=sys.stderr, flush=True)
  table = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
  rows = sharding.place_batch(np.zeros((8, 6), np.int32), mesh)
  with jax.set_mesh(mesh):
    jax.jit(lambda table, rows: sharding.by_episode(table[rows])).lower(table, rows).compile()
  return out


def attend_all() -> dict:
  """Splash attention on each mesh by Pallas' interpreter, and how far the einsum is from it: 2
  queries of 4 episodes behind one prefix for all, 8 heads, 2 of keys and values."""
  attention.KERNELS["splash"] = functools.partial(splash.attend, interpret=True)
  own, front = (4, 2, 9, 2, 8), (1, 5, 2, 8)
  shapes = {"q": (4, 2, 9, 8, 8), "k": own, "v": own, "front_k": front, "front_v": front}
  arrays = {name: random(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}
  axes = {name: devices.AXES[name] for name in shapes}
  weights = random(5, *shapes["q"])

  def total(kernel, arrays):
    q, k, v, *front = (arrays[name] for name in shapes)
    prefix = Prefix(*front, jnp.asarray([3]))
    out = attention.attend(q, k, v, masks.Causal(), prefix, 0.6, kernel=kernel)
    return (out * weights).sum(), out

  run = lambda kernel: jax.jit(jax.grad(functools.partial(total, kernel), has_aux=True))
  wanted, found = run("einsum")(arrays), {}
  for name, sizes in (("all", MESHES["all"]), ("tensor", TENSOR)):
    mesh = sharding.MeshConfig(*sizes).build()
    placed = sharding.place(arrays, axes, mesh)
    with jax.set_mesh(mesh):
      ours = run("splash")(placed)
    far = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max())
    far = jax.tree.leaves(jax.tree.map(far, ours, wanted))
    found[name] = {"far": far, "out": shard(ours[1])}
  return found


def batch(port: str, process: str) -> dict:
  """One of two processes with 4 devices each puts its rows of a batch in."""
  jax.distributed.initialize(f"localhost:{port}", 2, int(process))
  whole = np.arange(16).reshape(8, 2) ** 2
  mesh = sharding.MeshConfig(2, 2, 2).build()
  rows = sharding.local_rows(8, mesh)
  placed = sharding.place_batch(whole[rows], mesh)
  weighted = jax.jit(lambda x: (x * jnp.arange(8)[:, None]).sum())(placed)
  crossed = Mesh(mesh.devices.transpose(1, 2, 0), sharding.MESH_AXES)
  return {
    "rows": rows, "shared": sharding.local_rows(8, crossed), "sum": int(weighted),
    "whole": int((whole * np.arange(8)[:, None]).sum()),
  }  # fmt: skip


if __name__ == "__main__":
  program, *given = sys.argv[1:]
  answer = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # where libraries print, in the middle of others' lines
  jax.config.update("jax_enable_x64", program != "attend")
  found = {"train": train_all, "attend": attend_all, "batch": batch}[program](*given)
  print(json.dumps(found), file=answer, flush=True)
