"""The verb `penchant generate`: responses to prompts."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from penchant.cli_output import Count, Json, Seed, deliver, tell_all, teller
from penchant.cli_reading import LengthFlags, RowFlags, TemplateFlags, reading_of
from penchant.errors import ConfigError


def generate(
    model: str,
    prompts: str,
    *,
    samples: Count = 1,
    max_new_tokens: Count | None = None,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 1.0,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 1.0,
    seed: Seed = 0,
    batch_size: Count = 32,
    limit: Count | None = None,
    best_of: Count | None = None,
    head: str = "preference_head",
    rows: RowFlags = RowFlags(),
    template: TemplateFlags = TemplateFlags(),
    lengths: LengthFlags = LengthFlags(),
    as_json: Json = False,
) -> None:
    """Sample responses to prompts.

    Parameters
    ----------
    model
        Folder, hub id or GGUF file.
    prompts
        A preference file whose prompts are used, or a prompt's text.
    samples
        Responses for each prompt.
    max_new_tokens
        Tokens of the longest response; 128, or what the model's context has room for, if not given.
    temperature
        0 takes the likeliest token each time.
    top_p
        Draw from the smallest set of tokens with this much probability.
    seed
        The same seed gives the same responses.
    batch_size
        Prompts at a time.
    limit
        Only the first so many prompts.
    best_of
        Draw so many responses to each prompt, and let the model's preference head choose one.
    head
        The head's name, where the folder holds several.
    """
    from penchant.evaluation.answering import answer, distinct_prompts, fit_prompts, names_a_file, typed_rendering
    from penchant.evaluation.generation import Sampling

    if best_of is not None and samples > 1:
        raise ConfigError("--samples and --best-of are both given", fix="give one of them")
    tell, reading = teller(as_json), reading_of(template, lengths)
    if names_a_file(prompts):
        dataset = rows.load(prompts)
        tell_all(tell, dataset.notes)
        texts = distinct_prompts(dataset.groups)[:limit]
    else:
        texts, reading = [prompts], typed_rendering(model, prompts, reading, tell)
    reading = reading.on_one_day(model, tell)
    fitted = fit_prompts(model, texts, max_new_tokens, reading, tell)
    draws = best_of or samples
    sampling = Sampling(draws, fitted.new_tokens, temperature, top_p, seed, batch_size)
    if best_of is not None:
        from penchant.evaluation.ranking import answer_best_of

        best = answer_best_of(model, fitted.prompts, sampling, head=head, reading=reading, tell=tell, ids=fitted.ids)
        deliver(best.to_json(), as_json, best.table)
        return
    answers = answer(model, fitted.prompts, sampling, reading, tell, fitted.ids)
    deliver(answers.to_json(), as_json, answers.table)
