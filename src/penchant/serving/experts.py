"""The models that answer, by name; adapters of one base model share one copy of it."""

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
from penchant.engine.device import local_device
from penchant.engine.grammars import Grammars
from penchant.engine.padded import PaddedScorer
from penchant.evaluation.answering import ends_of
from penchant.models.adapter_loading import is_shareable, load_adapter
from penchant.models.loading import adapter_base, context_length, load_model, load_tokenizer
from penchant.models.model_kind import require_language_model
from penchant.serving.texts import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Expert:
    """One model ready to answer; its adapter is active until `Experts.activate` activates another one.

    Attributes:
        model: the language model.
        tokenizer: its tokenizer.
        ends: ids that end an answer.
        context: maximum number of tokens the model reads; None for no maximum.
        adapter: name of its adapter on a model that several experts share; None where the model is its own.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    context: int | None
    adapter: str | None = None

    @classmethod
    def of_model(cls, model: Any, folder: str, adapter: str | None = None) -> Expert:
        """The expert of a loaded model, with the tokenizer of its folder."""
        tokenizer = load_tokenizer(folder)
        model = model.to(local_device()).eval()
        return cls(model, tokenizer, frozenset(ends_of(model, tokenizer)), context_length(model.config), adapter)

    def text(self, prompt: Ids) -> TokenText:
        """The decoder of an answer to a prompt."""
        return TokenText(self.tokenizer, prompt)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over the model's tokens.

        Raises:
            ConfigError: the package `llguidance` is missing.
            ModelError: the tokens are not pieces of text.
        """
        return Grammars(self.tokenizer, sorted(self.ends))

    @property
    def renders_tools(self) -> bool:
        """Whether there is a chat template that renders the offered tools."""
        if self.tokenizer.chat_template is None:
            return False
        return Template.from_tokenizer(self.tokenizer, tools=True).mentions("tools")

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of ids with an embedding."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def prompt(self, messages: tuple[Message, ...]) -> Ids:
        """[T] ids of a conversation by the chat template; without a template, of the last message's text.

        Control tokens inside messages are read as text.

        Raises:
            PenchantError: the template does not render the messages.
        """
        text = self.prompt_text(messages)
        if isinstance(text, str):
            text = ControlText.from_tokenizer(self.tokenizer).escape(text)
        return tokenize_prompts([text], self.tokenizer)[0]

    def prompt_text(self, messages: tuple[Message, ...]) -> Text:
        """What the model reads of a conversation: the messages; without a chat template, the last one's text."""
        return messages if self.tokenizer.chat_template is not None else content_of(messages[-1])

    def plain_prompt(self, text: str) -> Ids:
        """[T] ids of plain text, in which control tokens are read as tokens."""
        return tokenize_prompts([text], self.tokenizer)[0]

    @torch.no_grad()
    def log_probs(self, groups: Sequence[PreferenceGroup]) -> list[list[float]]:
        """Summed log-prob of every candidate of every group, in nats."""
        context = self.context or 1 << 30
        tokenized, _ = tokenize_groups(groups, self.tokenizer, max_length=context)
        scorer = PaddedScorer(self.model)
        return [scorer(pack([group]).to(self.model.device))[0].tolist() for group in tokenized]


class Experts:
    """All experts, in memory.

    Args:
        folders: model or adapter folder of each expert, by name.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.names = list(folders)
        self._at_work: dict[int, str] = {}
        self._experts: dict[str, Expert] = {}
        shared: dict[str, Any] = {}
        for folder in folders.values():
            require_language_model(folder)
        for name, folder in folders.items():
            base = adapter_base(folder)
            siblings = [n for n, f in folders.items() if adapter_base(f) == base]
            if base is None or len(siblings) == 1 or not is_shareable(folder):
                self._experts[name] = Expert.of_model(load_model(folder), folder)
                continue
            adapter = f"expert{len(self._experts)}"  # The name of a module cannot contain a dot.
            under = shared[base] if base in shared else load_model(base)
            shared[base] = load_adapter(under, folder, name=adapter)
            self._experts[name] = Expert.of_model(shared[base], folder, adapter)
        # Only after all ends are read, because adapters share the base's generation settings.
        for expert in self._experts.values():
            _forget_generation(expert.model)

    def get(self, name: str) -> Expert:
        """The expert with its adapter activated; to be called from one thread only."""
        expert = self._experts[name]
        self.activate(expert)
        return expert

    def activate(self, expert: Expert) -> None:
        """Activate an expert's adapter; to be called from one thread only."""
        if expert.adapter is not None and self._at_work.get(id(expert.model)) != expert.adapter:
            expert.model.set_adapter(expert.adapter)
            self._at_work[id(expert.model)] = expert.adapter

    def peek(self, name: str) -> Expert:
        """The expert without activating its adapter, for uses that need no weights."""
        return self._experts[name]

    def replace(self, name: str, folder: str) -> None:
        """Load another model folder, in any thread, and let it give the expert's answers that begin from now on.

        Raises:
            ModelError: the model cannot be loaded; the expert stays as it is.
        """
        expert = Expert.of_model(load_model(folder), folder)
        _forget_generation(expert.model)
        self._experts[name] = expert


def _forget_generation(model: Any) -> None:
    """Reset a model's default settings of `generate`.

    `generate` would add its repetition penalty, suppressed tokens or beams to every request, and evaluations ran
    without them.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    if hasattr(model, "get_base_model"):
        model.get_base_model().generation_config = model.generation_config
