"""What each device holds of what is trained and of the optimizer's state, by arithmetic alone."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from hyperjax import launch, systems
from hyperjax.core import sharding
from hyperjax.training import step
from hyperjax.training.optimizers import Adafactor, AdamW, Schedule

SCHEDULE = Schedule(1e-3, decay="constant")
DEVICES = 64

# T5 XXL: model, MLP, vocabulary, layers of each stack; and HyperT5-LoRA of rank 16: width and
# number of its heads (A and B of q and v in three attentions), and their slots.
D, F, V, L = 4096, 10240, 32128, 24
WIDTH, HEADS, SLOTS = 512, 12, 6 * 16
ATTENTION = 12 * L * D * D  # four kernels in the encoder, eight in the decoder
SPREAD = ATTENTION + 6 * L * D * F + V * D + HEADS * (2 * D * WIDTH + D + L * D)
# Scales of norms, relative biases, the heads' first biases, the slots.
WHOLE = (5 * L + 3) * D + 2 * 32 * 64 + HEADS * WIDTH + SLOTS * D


def mesh(*sizes: int) -> AbstractMesh:
  return AbstractMesh(sizes, sharding.MESH_AXES, (AxisType.Auto,) * 3)


def held(tree) -> int:
  """The numbers of a tree that each device holds."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def hypert5_xxl():
  """What HyperT5-LoRA-XXL trains, as it lies on 64 devices; and its logical axes."""
  given = launch.arguments(
    ["data/lexical.gin", "pods/hypert5_lora_xxl_v5e_8x8.gin"], "hyperjax.train", "train",
    bindings=["DATA_DIR='d'", "MODEL_DIR='m'", "TRAIN_STEPS=100"],
  )  # fmt: skip
  parts = systems.abstract_parts(given["hypermodel"], given["model"].abstract("tpu"))
  return sharding.abstract(parts.trained, parts.axes, mesh(1, DEVICES, 1)), parts.axes


def test_what_is_trained_is_spread_out(hypert5_xxl):
  trained, _ = hypert5_xxl
  assert held(trained) == SPREAD // DEVICES + WHOLE
  assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
  assert 150 * WHOLE < SPREAD // DEVICES


def test_adamw_holds_two_more_of_each(hypert5_xxl):
  trained, axes = hypert5_xxl
  state = step.optimizer_shapes(AdamW(SCHEDULE).build(100, axes), trained, mesh(1, DEVICES, 1))
  counts = [x for x in jax.tree.leaves(state) if not x.shape]
  assert held(state) - len(counts) == 2 * held(trained)


def test_adafactor_holds_rows_and_columns_as_their_parameters_lie(hypert5_xxl):
  """Factored are a layer's arrays of two axes of 128 at least, heads and their size being one. Rows
  and columns over the model's width are spread out; those of attention, which are over axes that no
  parameter has, and over MLP and vocabulary are not.
  """
  trained, axes = hypert5_xxl
  state = step.optimizer_shapes(Adafactor(SCHEDULE).build(100, axes), trained, mesh(1, DEVICES, 1))
  biases_and_embeddings = HEADS * (D + L * D)
  spread = biases_and_embeddings + 6 * L * D + D + HEADS * 2 * D
  whole = WHOLE + 12 * L * 2 * D + 6 * L * F + V + HEADS * 2 * WIDTH
  counts_and_placeholders = [x for x in jax.tree.leaves(state) if x.size <= L]
  assert held(state) - held(counts_and_placeholders) == spread // DEVICES + whole


def test_factored_moments_lie_as_the_axes_that_they_have():
  """On data 1, fsdp 4, tensor 2."""
  on = mesh(1, 4, 2)
  axes = {
    "kernel": ("layers", "embed", "mlp"), "odd": ("layers", "mlp", "embed"),
    "table": ("vocab", "embed"),
  }  # fmt: skip
  sizes = {"kernel": (3, 256, 512), "odd": (3, 257, 512), "table": (512, 128)}
  shapes = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}
  trained = sharding.abstract(shapes, axes, on)
  state = step.optimizer_shapes(Adafactor(SCHEDULE).build(100, axes), trained, on)
  found = {
    (next(n for n in sizes if n in str(path)), x.shape): tuple(x.sharding.spec)
    for path, x in jax.tree_util.tree_leaves_with_path(state)
    if x.size > 3
  }
  assert found == {
    ("kernel", (3, 256)): (None, "fsdp"), ("kernel", (3, 512)): (None, "tensor"),
    ("odd", (3, 257)): (None, None), ("odd", (3, 512)): (None, "fsdp"),
    ("table", (512,)): ("tensor",), ("table", (128,)): ("fsdp",),
  }  # fmt: skip


def test_of_axes_of_one_size_a_moment_lies_as_the_first():
  """A mean over either has this shape; where it lies changes no number."""
  on = mesh(1, 4, 2)
  square = {"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
  axes = {"w": ("embed", "mlp")}
  state = step.optimizer_shapes(
    Adafactor(SCHEDULE).build(100, axes), sharding.abstract(square, axes, on), on
  )
  vectors = [x.sharding for x in jax.tree.leaves(state) if x.shape == (256,)]
  assert vectors == [NamedSharding(on, PartitionSpec("fsdp"))] * 2
