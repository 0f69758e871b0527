"""A model's answers to prompts, from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.messages import context_of
from penchant.data.reading import read_groups
from penchant.data.tokenization import readable_prompts, tokenize_prompts
from penchant.engine.distribution import local_device
from penchant.engine.frozen import NO_LIMIT
from penchant.engine.loading import adapter_base, context_length, load_config, load_model, load_tokenizer
from penchant.engine.progress import Progress
from penchant.errors import DataError
from penchant.evaluation.generation import Sampling, generate
from penchant.evaluation.held_out import AS_IS, Reading

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Answers:
    """Prompts, and the responses to each."""

    prompts: tuple[Text, ...]
    responses: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        pairs = zip(self.prompts, self.responses, strict=True)
        return {"answers": [{**_row(prompt), "responses": list(responses)} for prompt, responses in pairs]}

    @property
    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text as Plain

        table = Table("prompt", "responses", show_lines=True)
        for prompt, responses in zip(self.prompts, self.responses, strict=True):
            table.add_row(Plain(as_text(prompt)), Plain("\n\n".join(responses)))
        return table


def _row(prompt: Text) -> dict[str, Any]:
    return {"prompt": prompt, **context_of(prompt).columns()}


def read_prompts(source: str) -> list[Text]:
    """The distinct prompts of a preference file in the file's order, or a prompt's text itself.

    Raises:
        DataError: `source` is empty, or looks like a file that is not there.
    """
    if not source:
        raise DataError("the prompt is empty", fix="give a text or a preference file")
    path = Path(source)
    looks_like_a_file = path.suffix in {".json", ".jsonl", ".csv", ".parquet", ".gz"} and " " not in source
    if looks_like_a_file or (len(source) < 256 and path.exists()):
        return distinct_prompts(read_groups(source).groups)
    return [source]


def distinct_prompts(groups: Sequence[PreferenceGroup]) -> list[Text]:
    """The prompts of the groups, each once, in their order; empty ones left out."""
    return [prompt for prompt in {as_text(group.prompt): group.prompt for group in groups}.values() if prompt]


def with_room(model: str, prompts: Sequence[Text], new_tokens: int, reading: Reading = AS_IS) -> list[Text]:
    """The prompts after which a model's context has room for so many tokens more."""
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    prompts = readable_prompts(prompts, tokenizer, reading.rendering)
    ids = tokenize_prompts(prompts, tokenizer, reading.rendering)
    limit = context_length(load_config(adapter_base(model) or model, weights=False)) or NO_LIMIT
    return [prompt for prompt, read in zip(prompts, ids, strict=True) if len(read) + new_tokens <= limit]


def answer(
    model: str,
    prompts: Sequence[Text],
    sampling: Sampling,
    reading: Reading = AS_IS,
    tell: Callable[[str], None] = lambda line: None,
) -> Answers:
    """Load a model, sample its responses, let it go."""
    reading = reading.on_one_day(model, tell)
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    loaded = load_model(model).to(local_device())
    with Progress("generating", len(prompts), "prompts") as progress:
        ids = tokenize_prompts(prompts, tokenizer, reading.rendering)
        responses = generate(loaded, tokenizer, ids, sampling, advance=progress.advance)
    return Answers(tuple(prompts), tuple(map(tuple, responses)))
