"""The models that answer: by name, adapters of one base on one copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.control_text import ControlText
from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.messages import content_of
from penchant.data.template import Template
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids
from penchant.data.trees import pack
from penchant.engine.adapter_loading import is_shareable, load_adapter
from penchant.engine.distribution import local_device
from penchant.engine.grammars import Grammars
from penchant.engine.loading import adapter_base, context_length, load_model, load_tokenizer
from penchant.engine.model_kind import require_language_model
from penchant.engine.padded import PaddedScorer
from penchant.evaluation.generation import ends_of
from penchant.serving.texts import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Expert:
    """One model, made ready: its adapter is the one at work until another expert is asked for."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    context: int | None

    def text(self, prompt: Ids) -> TokenText:
        """What makes text of an answer's tokens."""
        return TokenText(self.tokenizer, prompt)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over its tokens.

        Raises:
            ConfigError: the package `llguidance` is missing.
            ModelError: its tokens are no pieces of text.
        """
        return Grammars(self.tokenizer, sorted(self.ends))

    @property
    def is_told_of_tools(self) -> bool:
        """Whether it has a chat template, which writes the tools on offer."""
        if self.tokenizer.chat_template is None:
            return False
        return Template.from_tokenizer(self.tokenizer, tools=True).mentions("tools")

    @cached_property
    def vocabulary_size(self) -> int:
        """Ids that the model has an embedding for."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def prompt(self, messages: tuple[Message, ...]) -> Ids:
        """What the model reads: by its chat template; without one, the last message's text.

        Control tokens that a client writes are text in both.

        Raises:
            PenchantError: the template does not render the messages.
        """
        last = ControlText.from_tokenizer(self.tokenizer).escape(content_of(messages[-1]))
        text: Text = messages if self.tokenizer.chat_template is not None else last
        return tokenize_prompts([text], self.tokenizer)[0]

    def plain_prompt(self, text: str) -> Ids:
        """What the model reads of plain text, in which a client writes control tokens itself."""
        return tokenize_prompts([text], self.tokenizer)[0]

    @torch.no_grad()
    def log_probs(self, groups: Sequence[PreferenceGroup]) -> list[list[float]]:
        """Of every candidate."""
        context = self.context or 1 << 30
        tokenized, _ = tokenize_groups(groups, self.tokenizer, max_length=context)
        scorer = PaddedScorer(self.model)
        return [scorer(pack([group]).to(self.model.device))[0].tolist() for group in tokenized]


class Experts:
    """All of them, in memory.

    Args:
        folders: each expert's model or adapter folder, by name.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.names = list(folders)
        self._folders = dict(folders)
        self._adapters: dict[str, str] = {}
        self._at_work: dict[int, str] = {}
        self._experts: dict[str, Expert] = {}
        shared: dict[str, Any] = {}
        for folder in folders.values():
            require_language_model(folder)
        for name, folder in folders.items():
            base = adapter_base(folder)
            siblings = [n for n, f in folders.items() if adapter_base(f) == base]
            if base is None or len(siblings) == 1 or not is_shareable(folder):
                model: Any = load_model(folder)
            else:
                model = self._with_adapter(name, folder, base, shared)
            tokenizer = load_tokenizer(folder)
            model = model.to(local_device()).eval()
            ends = frozenset(ends_of(model, tokenizer))
            self._experts[name] = Expert(model, tokenizer, ends, context_length(model.config))
        # Only now: adapters of one base share it, and each was asked for its ends.
        for expert in self._experts.values():
            _forget_generation(expert.model)

    def get(self, name: str) -> Expert:
        """The expert, its adapter at work. Not from two threads at a time."""
        expert = self._experts[name]
        adapter = self._adapters.get(name)
        if adapter is not None and self._at_work.get(id(expert.model)) != adapter:
            expert.model.set_adapter(adapter)
            self._at_work[id(expert.model)] = adapter
        return expert

    def peek(self, name: str) -> Expert:
        """The expert for what needs no weights."""
        return self._experts[name]

    def _with_adapter(self, name: str, folder: str, base: str, shared: dict[str, Any]) -> Any:
        # A name of a module may hold no dot.
        self._adapters[name] = f"expert{len(self._adapters)}"
        under = shared[base] if base in shared else load_model(base)
        shared[base] = load_adapter(under, folder, name=self._adapters[name])
        return shared[base]


def _forget_generation(model: Any) -> None:
    """Take a model's own settings of `generate` away.

    A repetition penalty, suppressed tokens, beams: what was measured had none of them, and `generate` adds them to
    whatever it is asked for.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    if hasattr(model, "get_base_model"):
        model.get_base_model().generation_config = model.generation_config
