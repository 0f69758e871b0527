"""Chat templates in the shapes of public families, and small byte-level tokenizers for them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}<|eom_id|>"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content | tojson }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %}{% if m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}{% else %}"
    " {{ m.content | trim }}{% endif %}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user, tool and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}\nAnswer within <tool_call></tool_call>."
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content or '' %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{% endif %}"
    "{{ content.lstrip('\n') }}{% for call in m.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n"
    "</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>You answer.<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% if m.tool_calls %}<|start|>assistant<|channel|>commentary to="
    "{{ m.tool_calls[0].function.name }}<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A family's template with its tokens.

    Attributes:
        marks: tokens that are special.
        content: special tokens that are content.
        added: added tokens that are not special.
        end: what ends the assistant's turn.
        control: the control tokens.
    """

    template: str | None
    bos: str | None
    eos: str
    marks: tuple[str, ...]
    content: tuple[str, ...]
    added: tuple[str, ...]
    end: str
    control: frozenset[str]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Bytes with a few merges, and the family's tokens."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("i", "n"), ("e", "n"), ("en", "d"), ("<", "|"), ("|", ">"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
        vocabulary = {piece: i for i, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
        raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        names = {"bos_token": self.bos, "eos_token": self.eos}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **{k: v for k, v in names.items() if v})
        special = [*self.marks, *self.content, "<item_1>", "<item_2>"]
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in special], special_tokens=True)
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*self.added, "<box>", "</box>")])
        tokenizer.chat_template = self.template
        return tokenizer


def _shape(
    template: str | None,
    bos: str | None,
    eos: str,
    *marks: str,
    end: str | None = None,
    content: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
    control: tuple[str, ...] | None = None,
) -> Shape:
    control_tokens = {*(marks if control is None else control), eos, *([bos] if bos else [])}
    return Shape(template, bos, eos, marks, content, added, end or eos, frozenset(control_tokens))


_CALLS = ("<tool_call>", "</tool_call>")
_IM = ("<|im_start|>", "<|im_end|>")
_HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

SHAPES = {
    "chatml": _shape(CHATML, None, "<|im_end|>", "<|im_start|>"),
    "chatml on a base": _shape(CHATML, None, "<|endoftext|>", *_IM, end="<|im_end|>"),
    "chatml, marks that are not special": _shape(
        CHATML, None, "<|endoftext|>", end="<|im_end|>", added=_IM, control=_IM
    ),
    "llama 3": _shape(LLAMA3, "<|begin_of_text|>", "<|eot_id|>", *_HEADER, "<|eom_id|>"),
    "llama 3 on a base": _shape(
        LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", *_HEADER, "<|eom_id|>", end="<|eot_id|>"
    ),
    "mistral": _shape(
        MISTRAL,
        "<s>",
        "</s>",
        *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        content=("[TOOL_CALLS]",),
    ),
    "gemma": _shape(GEMMA, "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", end="<end_of_turn>"),
    "phi 3": _shape(PHI3, None, "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", end="<|end|>"),
    "deepseek": _shape(
        DEEPSEEK,
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        *("<｜User｜>", "<｜Assistant｜>"),
        added=("<think>", "</think>"),
    ),
    "qwen 3": _shape(
        QWEN3,
        None,
        "<|im_end|>",
        "<|im_start|>",
        added=("<think>", "</think>", *_CALLS, "<tool_response>", "</tool_response>"),
    ),
    "qwen 3, calls that are special": _shape(
        QWEN3, None, "<|im_end|>", "<|im_start|>", content=_CALLS, added=("<think>", "</think>")
    ),
    "harmony": _shape(
        HARMONY,
        None,
        "<|return|>",
        *("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    ),
}
