"""Small tokenizers with the chat templates of families, saved as theirs are.

The templates are built as those of the models; the vocabularies are trained
here on a few lines.
"""

import dataclasses
import json
import pathlib
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

TEXT = [
  "USER: what is this? ASSISTANT: a fox, top left.",
  "user assistant system model\n\n### Instruction: ### Response: ",
  "Be brief. I see none; and now? two foxes and the rest of it",
] * 20

# Before the system turn that Qwen2.5's falls back to comes one with tools.
QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "\\n\\n# Tools\\n<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + \
'<|im_end|>\\n' }}
    {%- else %}
        {{- "<|im_start|>system\\nYou're a fox.\\nYou help.<|im_end|>\\n" }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + \
'<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# What was thought is left out of all but the newest answers.
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last < 0 %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + \
'\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAVA15 = (
  "{% for message in messages %}{% if message['role'] != 'system' %}{{"
  " message['role'].upper() + ': '}}{% endif %}{# Render all images first #}{%"
  " for content in message['content'] | selectattr('type', 'equalto', 'image')"
  " %}{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if"
  " message['role'] != 'assistant' %}{% for content in message['content'] |"
  " selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor"
  " %}{% else %}{% for content in message['content'] | selectattr('type',"
  " 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{%"
  " endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if"
  " add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{#"
  " Render all images first #}{% for content in message['content'] |"
  " selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{#"
  " Render all video then #}{% for content in message['content'] |"
  " selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}{#"
  " Render all text next #}{% for content in message['content'] |"
  " selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{%"
  " endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{"
  " '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
  "{% if messages[0]['role'] == 'system' %}{% set talk = messages[1:] %}{{"
  " messages[0]['content'] + ' ' }}{% else %}{% set talk = messages %}{{ 'A"
  " chat. ' }}{% endif %}{% for m in talk %}{% if m.role == 'user' %}{{ 'USER:"
  " ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token"
  " }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{%"
  " endif %}"
)
LLAMA2 = (
  "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:]"
  " %}{% set system_message = messages[0]['content'] %}{% else %}{% set"
  " loop_messages = messages %}{% set system_message = false %}{% endif %}{%"
  " for"
  " message in loop_messages %}{% if (message['role'] == 'user') !="
  " (loop.index0"
  " % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if"
  " loop.index0 == 0 and system_message != false %}{% set content ="
  " '<<SYS>>\\n'"
  " + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{%"
  " set content = message['content'] %}{% endif %}{% if message['role'] =="
  " 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif"
  " message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' +"
  " eos_token"
  " }}{% endif %}{% endfor %}"
)
LLAMA3 = (
  "{% for message in messages %}{% set content = '<|start_header_id|>' +"
  " message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim +"
  " '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token +"
  " content"
  " %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{"
  " '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
  "{{ bos_token }}{% for message in messages %}{% if (message['role'] =="
  " 'user')"
  " != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must"
  " alternate user/assistant/user/assistant/...') }}{% endif %}{% if"
  " message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]'"
  " }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] +"
  " eos_token}}{% endif %}{% endfor %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{"
  " raise_exception('System role not supported') }}{% endif %}{% for message in"
  " messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model'"
  " %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>'"
  " + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor"
  " %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI = (
  "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] +"
  " '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
  " '<|assistant|>\n'"
  " }}{% else %}{{ eos_token }}{% endif %}"
)
# Neither a control token nor anything else ends an answer.
INSTRUCTION = (
  "{% for m in messages %}{{ '### ' + {'user': 'Instruction', 'assistant':"
  " 'Response', 'system': 'System'}[m.role] + ':\n' + m.content + '\n\n' }}{%"
  " endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)

_CHATML = ("<|im_start|>", "<|im_end|>")
_IMAGES = dict(config={"vision_config": {}})
_LLAMA = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@dataclasses.dataclass(frozen=True)
class Family:
  """A template, and the vocabulary that it is for.

  Attributes:
    template: the template.
    marks: control tokens; all are special but those of `plain`.
    plain: control tokens that are not flagged so.
    metaspace: whether spaces are written as in Llama's vocabulary.
    settings: of tokenizer_config.json.
    system: whether it takes a system text.
    lists: whether a message is a list of parts.
    begins: whether the tokenizer begins a text with <s> by itself.
  """

  template: str
  marks: tuple[str, ...] = ()
  plain: tuple[str, ...] = ()
  metaspace: bool = False
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  system: bool = True
  lists: bool = False
  begins: bool = False


FAMILIES = {
  "qwen2.5": Family(QWEN25, _CHATML),
  "qwen3": Family(QWEN3, _CHATML, ("<think>", "</think>")),
  "chatml not flagged": Family(QWEN25, plain=_CHATML),
  "onevision": Family(ONEVISION, (*_CHATML, "<image>", "<video>"), lists=True),
  "llava-1.5": Family(
    LLAVA15,
    ("<image>",),
    metaspace=True,
    settings=_LLAMA,
    lists=True,
    begins=True,
  ),
  "vicuna": Family(VICUNA, metaspace=True, settings=_LLAMA, begins=True),
  "llama-2": Family(LLAMA2, metaspace=True, settings=_LLAMA, begins=True),
  "llama-3": Family(
    LLAMA3,
    ("<b>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    settings=dict(bos_token="<b>", eos_token="<|eot_id|>"),
  ),
  "mistral": Family(
    MISTRAL,
    ("[INST]", "[/INST]"),
    metaspace=True,
    settings=_LLAMA,
    system=False,
    begins=True,
  ),
  "gemma": Family(
    GEMMA,
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    metaspace=True,
    settings=dict(bos_token="<bos>", eos_token="<eos>"),
    system=False,
  ),
  "phi": Family(
    PHI,
    ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
    settings=dict(eos_token="<|endoftext|>"),
  ),
  "instruction": Family(
    INSTRUCTION, ("</s>",), settings=dict(eos_token="</s>")
  ),
}


def save(family: Family, folder: pathlib.Path) -> pathlib.Path:
  """Writes a tokenizer with its template; the path of its tokenizer.json."""
  tokenizer = _metaspace() if family.metaspace else _bytes()
  added = [
    tokenizers.AddedToken(t, special=t in family.marks, normalized=False)
    for t in (*family.marks, *family.plain)
  ]
  for token in added:
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)(
      [token]
    )
  if family.begins:
    tokenizer.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
  file = folder / "tokenizer.json"
  tokenizer.save(str(file))
  settings = dict(
    tokenizer_class="PreTrainedTokenizerFast",
    chat_template=family.template,
    model_max_length=100_000,
  )
  settings |= family.settings
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return file


def theirs(folder: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer of transformers."""
  return transformers.AutoTokenizer.from_pretrained(str(folder))


def content(family: Family, text: str) -> str | list[dict[str, str]]:
  """A text as the family's messages have it."""
  return [dict(type="text", text=text)] if family.lists else text


def _bytes() -> tokenizers.Tokenizer:
  out = tokenizers.Tokenizer(models.BPE())
  out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  out.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  _train(out, initial_alphabet=alphabet, vocab_size=340)
  return out


def _metaspace() -> tokenizers.Tokenizer:
  """As Llama's: all bytes, spaces as a mark, one before the first word."""
  out = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
  out.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme="first", split=True
  )
  parts = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
  ]
  out.decoder = decoders.Sequence(parts)
  byte = [f"<0x{i:02X}>" for i in range(256)]
  first = ["<unk>", "<s>", "</s>"]
  _train(out, special_tokens=[*first, *byte], vocab_size=420)
  # Bytes are pieces of the vocabulary, and no added tokens.
  raw = json.loads(out.to_str())
  raw["added_tokens"] = [
    t for t in raw["added_tokens"] if t["content"] in first
  ]
  raw["pre_tokenizer"]["split"] = False  # no piece goes on past a space
  return tokenizers.Tokenizer.from_str(json.dumps(raw))


def _train(tokenizer: tokenizers.Tokenizer, **options: Any) -> None:
  trainer = trainers.BpeTrainer(show_progress=False, **options)
  tokenizer.train_from_iterator(TEXT, trainer)
