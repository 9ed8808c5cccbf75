"""Decodes ids as they come, one after the other.

Decoding all ids anew with each that comes takes a time that grows with the
square of the answer. Text that is given out is never taken back, since nothing
that follows can change it. With the rest it is what the tokenizer's decoder
makes of all ids at once.
"""

import codecs
import re

import tokenizers

# Of byte-level tokens each character stands for a byte (GPT-2's table): what
# Latin-1 prints for itself, and the others for the bytes that are left.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [b for b in range(256) if b not in _PRINTED]
_BYTES = {chr(b): b for b in _PRINTED}
_BYTES |= {chr(256 + n): b for n, b in enumerate(_OTHERS)}
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of one byte
_BEFORE = 4  # tokens before the newest, at most, that tell how it is written


class Detokenizer:
  """Text as its ids come.

  Special ids, and ids that no token has, show nothing.

  Args:
    tokenizer: whose decoder makes the text.
    space: a character that is left out where the text begins with it.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, space: str = ""):
    self._tokenizer, self._space = tokenizer, space
    added = tokenizer.get_added_tokens_decoder()
    self._hidden = {i for i, token in added.items() if token.special}
    self._decoder: _Bytes | _Window = _Window(tokenizer)
    if re.match(rb'{"type":"ByteLevel"', _decoder_json(tokenizer)):
      self._decoder = _Bytes()

  def add(self, token: int) -> str | None:
    """Takes one more id.

    Returns:
      The text that is certain now and was not before; "" within a character,
      None for an id that shows nothing.
    """
    word = self._tokenizer.id_to_token(token)
    if token in self._hidden or word is None:
      return None
    text = self._decoder.add(token, word)
    if text and self._space:
      text, self._space = text.removeprefix(self._space), ""
    return text

  @property
  def rest(self) -> str:
    """What follows the text given so far, if no more ids come."""
    return self._decoder.rest.removeprefix(self._space)


class _Utf8:
  """UTF-8 in pieces; what is broken is U+FFFD."""

  def __init__(self):
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

  def add(self, data: bytes) -> str:
    """The characters that are whole, or broken, now."""
    return self._decoder.decode(data)

  def end(self) -> str:
    """Something else follows: a character that was begun is broken."""
    return self._decoder.decode(b"", final=True)

  @property
  def rest(self) -> str:
    return self._decoder.getstate()[0].decode("utf-8", "replace")


class _Bytes:
  """For a byte-level decoder."""

  def __init__(self):
    self._utf8 = _Utf8()

  def add(self, token: int, word: str) -> str:
    del token
    known = all(c in _BYTES for c in word)  # an added token may be no bytes
    return self._utf8.add(
      bytes(map(_BYTES.get, word)) if known else word.encode()
    )

  @property
  def rest(self) -> str:
    return self._utf8.rest


class _Window:
  """For any other decoder: the newest tokens, and a few before them.

  Those before are decoded twice, with the newest and without; a decoder sees by
  them that it is not at the start of a text.

  A token may stand for a byte. The library takes a run of such for UTF-8 as a
  whole, or for none, so that a cut answer would lose all of it; here each
  character counts for itself. Only what is broken reads otherwise.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    decoder = _decoder_json(tokenizer)
    self._utf8 = _Utf8()
    self._of_byte: list[int | None] = []
    if b'"ByteFallback"' in decoder:
      id_of = tokenizer.token_to_id
      self._of_byte = [id_of(f"<0x{b:02X}>") for b in range(256)]
    self._cut = b'"ByteLevel"' in decoder  # among others
    self._before: list[list[int]] = []  # characters and tokens, the last ones
    self._new: list[int] = []

  def add(self, token: int, word: str) -> str:
    if self._of_byte and _BYTE.fullmatch(word):
      return self._emit_bytes(self._utf8.add(bytes([int(word[3:5], 16)])))
    broken = self._emit_bytes(self._utf8.end())
    self._new.append(token)
    text = self._decode_after(self._new)
    if self._cut and text.endswith("\ufffd"):
      return broken
    self._remember(self._new)
    self._new = []
    return broken + text

  @property
  def rest(self) -> str:
    return self._decode_after(self._new) + self._utf8.rest

  def _emit_bytes(self, text: str) -> str:
    """Characters that were bytes, as the decoder writes them here."""
    ids = [self._of_byte[b] for b in text.encode()] if self._of_byte else []
    if not ids or None in ids:
      return text
    out = self._decode_after(ids)
    self._remember(ids)
    return out

  def _decode_after(self, ids: list[int]) -> str:
    """How ids are written after those before."""
    if not ids:
      return ""
    before = [i for one in self._before for i in one]
    old = self._decode(before) if before else ""
    return self._decode(before + ids)[len(old) :]

  def _remember(self, ids: list[int]) -> None:
    """Keeps of what was written as little as the next needs before it."""
    ones = [*self._before, ids]
    for count in range(1, _BEFORE + 1):
      self._before = ones[-count:]
      if self._decode([i for one in self._before for i in one]):
        break


def _decoder_json(tokenizer: tokenizers.Tokenizer) -> bytes:
  """JSON of its decoder; b"" for none."""
  decoder = tokenizer.decoder
  return decoder.__getstate__() if decoder else b""
