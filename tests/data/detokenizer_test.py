"""Text as its ids come: what the whole decoder says, and never taken back."""

import random

import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from gaze_jax.data import detokenizer
from gaze_jax.data import tokenizer as tokenizer_lib

WORDS = (
  *("a", "b", "é", "\ufffd", ".", " ", "n't", "##ing"),
  *("▁", "▁▁", "▁there", "▁.", "word</w>", "</w>"),
)
# Bytes of A, é, €, 🙂 and of U+FFFD itself, whole and cut in all ways.
BYTES = tuple(f"<0x{b:02X}>" for b in "Aé€🙂\ufffd".encode())
ALPHABET = (*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "Ã©")
SPACE = decoders.Replace("▁", " ")
KINDS = {
  "Llama": (
    WORDS + BYTES,
    decoders.Sequence(
      [SPACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
    ),
  ),
  "Gemma": (
    WORDS + BYTES,
    decoders.Sequence([SPACE, decoders.ByteFallback(), decoders.Fuse()]),
  ),
  "T5": (WORDS, decoders.Metaspace()),
  "never a space": (WORDS, decoders.Metaspace(prepend_scheme="never")),
  "BERT": (WORDS, decoders.WordPiece()),
  "GPT": (WORDS, decoders.BPEDecoder()),
  "none": (WORDS, None),
  "GPT-2": (ALPHABET, decoders.ByteLevel()),
  "bytes and more": (
    ALPHABET,
    decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
  ),
}


def make(kind):
  words, decoder = KINDS[kind]
  words = tuple(dict.fromkeys(words))
  table = {word: i for i, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(table, words[0]))
  tokenizer.add_special_tokens(["<s>", "</s>"])
  tokenizer.add_tokens(["<think>", "é🙂 x"])
  if decoder:
    tokenizer.decoder = decoder
  return tokenizer


def mended(tokenizer, ids):
  """Ids whose runs of bytes are sound UTF-8: what is broken is U+FFFD."""
  special = {tokenizer.token_to_id(t) for t in ("<s>", "</s>")}
  out, run = [], b""
  for i in [*ids, None]:
    word = tokenizer.id_to_token(i) if i is not None else None
    if i is not None and (i in special or word is None):
      continue
    if word in BYTES:
      run += bytes([int(word[3:5], 16)])
      continue
    whole = run.decode("utf-8", "replace").encode()
    out += [tokenizer.token_to_id(f"<0x{b:02X}>") for b in whole]
    out += [] if i is None else [i]
    run = b""
  return out


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_decoder_says_of_all_ids(kind):
  tokenizer = make(kind)
  size = tokenizer.get_vocab_size()
  rng = random.Random(0)
  for _ in range(400):
    ids = [rng.randrange(size + 2) for _ in range(rng.randrange(1, 10))]
    said = detokenizer.Detokenizer(tokenizer)
    told = ""
    for n, token in enumerate(ids):
      told += said.add(token) or ""
      so_far = ids[: n + 1]
      if kind in ("Llama", "Gemma"):
        so_far = mended(tokenizer, so_far)
      want = tokenizer.decode(so_far, skip_special_tokens=True)
      assert told + said.rest == want, (ids[: n + 1], told, said.rest)


def test_a_character_comes_whole():
  tokenizer = tokenizer_lib.Tokenizer.load()
  ids = [*tokenizer.encode("né 🙂"), 1, tokenizer.eos, 9]
  pieces = tokenizer.pieces(ids)
  assert "".join(p or "" for p in pieces) == "né 🙂"
  assert "\ufffd" not in "".join(p or "" for p in pieces)
  assert pieces[-3:] == [None] * 3
  # Cut within the last character, it is what the text is then.
  cut = ids[:-4]
  assert "".join(p or "" for p in tokenizer.pieces(cut)) == "né \ufffd"
  assert tokenizer.decode(cut) == "né \ufffd"


def test_bytes_that_stand_for_themselves_come_as_characters():
  tokenizer = make("Gemma")
  said = detokenizer.Detokenizer(tokenizer)
  id_of = tokenizer.token_to_id
  say = lambda data: [said.add(id_of(f"<0x{b:02X}>")) for b in data]
  assert said.add(id_of("a")) == "a"
  assert say("é🙂".encode()) == ["", "é", "", "", "", "🙂"]
  # What is cut is one U+FFFD, and takes nothing along.
  assert say("🙂".encode()[:3]) == [""] * 3
  assert said.rest == "\ufffd"
  assert said.add(id_of("<s>")) is None
  assert said.add(id_of("b")) == "\ufffdb"
  assert say("🙂".encode()) == ["", "", "", "🙂"] and said.rest == ""


def work(kind, ids):
  """How many ids are decoded for so many that come."""
  said, count = detokenizer.Detokenizer(make(kind)), 0
  if isinstance(said._decoder, detokenizer._Window):
    decode = said._decoder._decode

    def counted(ids):
      nonlocal count
      count += len(ids)
      return decode(ids)

    said._decoder._decode = counted
  for token in ids:
    said.add(token)
  return count


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_grows_with_the_length(kind):
  rng = random.Random(0)
  size = make(kind).get_vocab_size()
  ids = [rng.randrange(size) for _ in range(2000)]
  few, many = work(kind, ids[:500]), work(kind, ids)
  assert many <= 5 * few and many <= 20 * len(ids)
  if kind != "GPT-2":
    assert few  # it is counted


def test_a_run_of_broken_bytes_is_no_more_work():
  for kind, word in (("GPT-2", "â"), ("Gemma", "<0xE2>")):
    token = make(kind).token_to_id(word)
    assert work(kind, [token] * 1000) <= 20_000
