"""Rankings of titles by a trained model: of a list, or of the whole catalogue, packed as a trie."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penchant.api import (
    AS_IS,
    Branches,
    DataError,
    FrozenModel,
    Ids,
    PreferenceGroup,
    Reading,
    TokenizedGroup,
    TreeBatch,
    TreeScorer,
    World,
    as_tensor,
    choose_scorer,
    common_length,
    pack_loss_mask,
    precision,
    read_held_out,
    score,
    score_groups,
)
from penchant.recipes.recommend.prompts import Wording, read_wording

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trie:
    """The trie of the candidates' tokens; n nodes in depth-first order.

    Attributes:
        ids: [n] token id of each node.
        depths: [n] depth of each node; 0 for first tokens.
        parents: [n] parent node; -1 for first tokens.
        reach: [n] the node after the last descendant.
        paths: the nodes of each candidate, one array per candidate.
    """

    ids: Ids
    depths: Ids
    parents: Ids
    reach: Ids
    paths: tuple[Ids, ...]

    @classmethod
    def from_responses(cls, responses: Sequence[Ids]) -> Trie:
        """The trie of responses that have at least one token each."""
        words = [response.tolist() for response in responses]
        ids: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        reach: dict[int, int] = {}
        paths: dict[int, list[int]] = {}
        previous_tokens: list[int] = []
        path: list[int] = []
        # In lexicographic order a candidate shares with its predecessor all that it shares with any earlier one.
        for candidate in sorted(range(len(words)), key=words.__getitem__):
            tokens = words[candidate]
            shared = common_length(previous_tokens, tokens)
            reach.update((node, len(ids)) for node in path[shared:])
            new = range(len(ids), len(ids) + len(tokens) - shared)
            path = [*path[:shared], *new]
            ids += tokens[shared:]
            depths += range(shared, len(tokens))
            parents += [path[depth - 1] if depth else -1 for depth in range(shared, len(tokens))]
            paths[candidate], previous_tokens = path, tokens
        reach.update((node, len(ids)) for node in path)
        return cls(
            np.array(ids),
            np.array(depths),
            np.array(parents),
            np.array([reach[node] for node in range(len(ids))]),
            tuple(np.array(paths[candidate]) for candidate in range(len(words))),
        )


def pack_trie(group: TokenizedGroup) -> TreeBatch:
    """One group as a row in which candidates share the tokens of common beginnings; `trees.pack` shares none."""
    trie, p, k = Trie.from_responses(group.responses), len(group.prompt), len(group.responses)
    roots = np.flatnonzero(trie.depths == 0)
    sizes = np.diff([*roots, len(trie.ids)])
    length = p + len(trie.ids)
    return TreeBatch(
        input_ids=as_tensor(np.concatenate([group.prompt, trie.ids])),
        positions=as_tensor(np.concatenate([np.arange(p), p + trie.depths])),
        reach=as_tensor(np.concatenate([np.full(p, length), p + trie.reach])),
        branches=(Branches(p, tuple(sizes.tolist()), forked=True),),
        source=as_tensor(p + trie.parents),
        targets=as_tensor(trie.ids),
        paths=as_tensor(np.concatenate([path[mask] for path, mask in zip(trie.paths, group.masks, strict=True)])),
        lengths=torch.tensor(group.tokens),
        ends=as_tensor(p + np.array([path[-1] for path in trie.paths])),
        slots=torch.arange(k),
        shape=(1, k),
        loss_mask=pack_loss_mask([group]),
    )


def catalogue_log_probs(
    model: FrozenModel,
    groups: Iterable[TokenizedGroup],
    world: World,
    budget: int,
    dtype: str,
) -> Iterator[list[float]]:
    """Summed log-probs of each group's candidates, nats, one group after the other; nothing is cached.

    Equal to `score_groups` of the same groups but for rounding.

    Args:
        groups: read one at a time, so that the candidates of all questions need not be in memory together.
        budget: tokens in a micro-batch of a model that is run padded.
    """
    scorer = None
    for group in groups:
        if scorer is None:
            choice = choose_scorer(model.model, [group], dtype)
            for note in choice.notes:
                logger.info(note)
            scorer = choice.scorer.eval()
        if not isinstance(scorer, TreeScorer):
            yield score_groups(scorer, [group], world=world, budget=budget, dtype=dtype)[0]
            continue
        with torch.no_grad(), precision(world.device, dtype):
            yield scorer(pack_trie(group).to(world.device))[0].tolist()


def rank_catalogue(
    model: str, histories: Sequence[Sequence[str]], titles: Sequence[str], wording: Wording, reading: Reading = AS_IS
) -> Iterator[list[float]]:
    """The log-probs of all titles after every history, in nats, one list per history in the order of `titles`.

    Args:
        model: folder of a trained model.
        histories: the titles taken before, the oldest first, for every question.
        titles: the catalogue, every title once; at least two.
    """
    world = World.single()
    frozen = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    answers = tuple(f" {title}" for title in titles)
    groups = (
        read_held_out(frozen, model, [PreferenceGroup(wording.open_prompt(history), answers, id=str(n))], reading)[0][0]
        for n, history in enumerate(histories)
    )
    return catalogue_log_probs(frozen, groups, world, reading.token_budget, reading.dtype)


@dataclass(frozen=True)
class Suggestion:
    """A title and its probability.

    Attributes:
        log_prob: the log-prob of the title after the prompt, in nats.
        share: the title's probability among the candidates.
    """

    title: str
    log_prob: float
    share: float


def suggest(
    model: str, history: Sequence[str], candidates: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """The candidates in descending order of their probability.

    Args:
        model: folder of a trained model.
        history: titles taken before, the oldest first.
        candidates: titles to choose from.
        wording: the wording of the question; None for that of the model's training.

    Raises:
        DataError: the history is empty, or there are fewer than two different candidates.
        ConfigError: the model's folder has no wording.
    """
    titles_before, titles = _check_titles(history, candidates)
    prompt = (wording or read_wording(model)).prompt(titles_before, titles)
    group = PreferenceGroup(prompt, tuple(f" {title}" for title in titles))
    (scored,) = score(model, [group], World.single())
    return _sorted_suggestions(titles, scored.log_probs)


def suggest_from_catalogue(
    model: str, history: Sequence[str], titles: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """All titles outside the history in descending order of their probability; otherwise as `suggest`.

    The question has no list of candidates.
    """
    titles_before, new_titles = _check_titles(
        history, [title for title in dict.fromkeys(titles) if title not in history]
    )
    (log_probs,) = rank_catalogue(model, [titles_before], new_titles, wording or read_wording(model))
    return _sorted_suggestions(new_titles, log_probs)


def _check_titles(history: Sequence[str], candidates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stripped history and candidates.

    Raises:
        DataError: the history is empty, or there are fewer than two different candidates.
    """
    titles_before, titles = (tuple(title.strip() for title in texts) for texts in (history, candidates))
    if not titles_before or not all(titles_before):
        raise DataError("the history is empty, or a title of it is", fix="give the titles taken before, oldest first")
    if len(set(titles)) < max(2, len(titles)) or not all(titles):
        different = len(set(filter(None, titles)))
        raise DataError(
            f"{len(titles)} candidates, {different} different ones; expected two or more, and none twice",
            fix="give each title to choose from once",
        )
    return titles_before, titles


def _sorted_suggestions(titles: Sequence[str], log_probs: Sequence[float]) -> list[Suggestion]:
    top = max(log_probs)
    total = sum(math.exp(log_prob - top) for log_prob in log_probs)
    suggestions = [
        Suggestion(title, value, math.exp(value - top) / total) for title, value in zip(titles, log_probs, strict=True)
    ]
    return sorted(suggestions, key=lambda suggestion: -suggestion.log_prob)
