"""The families of `lexical` that are never trained on, and why each is here.

They were fixed before the first training run. What was looked at is the untrained base model alone
(SmolLM2-135M-Instruct, 10 shots, "Q: {input}\\nA: {output}\\n", 30 queries a task): a share of the
in-context gain can only be recovered where there is a gain, so families near zero in context (last
letters, reversed words) would measure nothing. The choice therefore favours what the base model can
do from examples, and within the six families tasks near zero were dropped as well; on the training
tasks the in-context scores are mostly lower. Ordinals and names of territories, where it does less
well, keep the average honest.

Each family is of a kind of its own, and has neighbours of that kind in training, never its mapping,
its inverse, or its table in another rendering. The tests hold both: no table is shared, and the
normalised pairs of a held-out task, read either way, overlap all training pairs by less than 2%.
What remains are verbs that do not change ("cutting" -> "cut"): at most 4 of a task's 217 pairs.
"""

HELD_OUT_FAMILIES = {
  "lexical.verb_past":
    "morphology: past tense and past participle; trained on are present forms, plurals, degrees",
  "lexical.list_end":
    "choice by position: the last member; trained on are first, second and third, and choices by"
    " spelling and length",
  "lexical.letter_case":
    "letters: changes of case, over words that no trained rule renders; trained on are other"
    " letter rules and affixes",
  "lexical.ordinals":
    "number words: ordinals in every rendering; trained on are cardinals, here and abroad",
  "lexical.territory_names":
    "translation of names: territories in four languages, both directions; trained on are"
    " languages, dates, units and numbers in the same languages",
  "lexical.picking_animals":
    "categories: the animal among others, where no trained list and no trained category holds an"
    " animal; trained on is picking members of nine other categories",
}
