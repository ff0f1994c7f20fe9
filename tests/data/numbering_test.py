"""Numbers of digests are those that a dict would give."""

from hypothesis import given
from hypothesis import strategies as st

from hyperjax.data.numbering import Numbering

# Few first halves, which name places in the table: most digests meet others there.
DIGEST = st.builds(
  lambda place, rest: place.to_bytes(8, "little") + rest.to_bytes(8, "little"),
  st.sampled_from([0, 1, 2**11 - 1, 2**11, 2**64 - 1]),
  st.integers(0, 2**64 - 1) | st.integers(0, 9),
)  # fmt: skip


@given(st.lists(st.lists(DIGEST, unique=True)))
def test_numbers_are_those_of_a_dict(chunks):
  numbering, known = Numbering(), {}
  for chunk in chunks:
    assert numbering(chunk).tolist() == [known.setdefault(d, len(known)) for d in chunk]
    assert len(numbering) == len(known)


@given(st.lists(st.integers(0, 4000), min_size=2, max_size=5), st.integers(1, 3))
def test_a_table_that_grows_keeps_its_numbers(sizes, places):
  digests = [(i % places).to_bytes(8, "little") + i.to_bytes(8, "little") for i in range(300)]
  digests += [(i * 977).to_bytes(8, "little") * 2 for i in range(1, 4000)]
  numbering, known = Numbering(), {}
  for size in sizes:
    chunk = digests[size // 2 : size]
    assert numbering(chunk).tolist() == [known.setdefault(d, len(known)) for d in chunk]
