"""The byte-level BPE tokenizer that a GGUF file carries."""

import pathlib

import gguf
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from gaze_jax.data import samples

_CONTROL = 3  # the token type of special tokens, as in llama.cpp


def read(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, str]:
  """Reads a tokenizer and its chat template.

  Only the kind of SmolLM2 is known: GPT-2's byte-level BPE, before which
  numbers are taken apart into single digits. (transformers 5.23 does not take
  them apart for a GGUF file, which shows where spaces precede a digit.)

  Returns:
    The tokenizer, and the template ("" if there is none).

  Raises:
    samples.DataError: the file can't be read, or has another tokenizer.
  """
  try:
    fields = gguf.GGUFReader(path).fields
    said = {
      name.removeprefix("tokenizer.ggml."): field.contents()
      for name, field in fields.items()
      if name.startswith("tokenizer.")
    }
    kind = said["model"], said["pre"]
    tokens, merges = said["tokens"], said["merges"]
    types = said["token_type"]
  except Exception as error:  # the package raises whatever numpy does
    raise samples.DataError(
      f"{path}: not a GGUF file with a tokenizer: {error!r}"
    ) from error
  if kind != ("gpt2", "smollm"):
    raise samples.DataError(
      f"{path}: a tokenizer of the kind {kind[0]}/{kind[1]}; only gpt2/smollm"
      " is known"
    )
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ")) for merge in merges],
    )
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(
    [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
  )
  return tokenizer, said.get("tokenizer.chat_template", "")
