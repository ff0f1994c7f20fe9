"""Writes task files of Super-NaturalInstructions, in little."""

import json

DELETE = object()


def instance(i, output=("yes",), text=None):
  return {"id": f"task-{i:04}", "input": text or f"Is {i} a number?", "output": list(output)}


def shot(text, output, **more):
  return {"input": text, "output": output, **more}


def task(count=3, **changes):
  """A task file's contents in the layout of natural-instructions 2.8."""
  values = {
    "Contributors": ["Somebody"],
    "Source": ["made_up"],
    "URL": ["https://example.org"],
    "Categories": ["Question Answering"],
    "Reasoning": [],
    "Definition": ["Say whether it is a number.\n\n"],
    "Input_language": ["English"],
    "Output_language": ["English"],
    "Instruction_language": ["English"],
    "Domains": ["Mathematics"],
    "Positive Examples": [
      shot("Is two a number? ", "yes", explanation="It is."), shot("Is green a number?", "no"),
    ],
    "Negative Examples": [shot("Is one a number?", "no", explanation="It is one.")],
    "Instances": [instance(i) for i in range(count)],
    "Instance License": ["CC0"],
  }  # fmt: skip
  return {name: value for name, value in (values | changes).items() if value is not DELETE}


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))
  return path
