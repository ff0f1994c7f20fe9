"""How many parameters the published models of gin/models/ have: the sum of their checkpoints'
tensors, embeddings that are the head counted once."""

LLAMA = {
  "smollm2_135m": 134_515_008,
  "smollm2_360m": 361_821_120,
  "tinyllama_1b": 1_100_048_384,
  "llama2_7b": 6_738_415_616,
  "llama2_13b": 13_015_864_320,
  "llama2_70b": 68_976_648_192,
  "llama3_8b": 8_030_261_248,
}
T5 = {f"{kind}_{size}": count for kind in ("t5_1_1", "flan_t5") for size, count in {
  "small": 76_961_152, "base": 247_577_856, "large": 783_150_080, "xl": 2_849_757_184,
  "xxl": 11_135_332_352,
}.items()}  # fmt: skip
