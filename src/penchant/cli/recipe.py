"""The verbs for recipes, which are pipelines from the literature: run one, and query a trained recommender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from penchant.cli.flags import COLUMNS, ReadingFlags, available_flags
from penchant.cli.output import Device, Json, print_result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from penchant.recipes.recommend.catalogue import Suggestion
    from penchant.recipes.results import Headline

Recipe = Literal["recommend", "domain-expert", "dialogue", "tool-calling", "self-improve"]
Results = dict[str, Mapping[str, Any]]
Parts = tuple[Any, Callable[..., Results], "Callable[[Results, Path], Group]"]
"""A recipe's configuration class, the function that runs it, and the function that renders its results."""


def recipe(
    name: Recipe,
    config: Path,
    *overrides: str,
    stage: str | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run a recipe stage by stage; re-running resumes where it stopped.

    Parameters
    ----------
    name
        recommend: next title of a user (S-DPO). domain-expert: continued pretraining, instruction residual, two experts
        and a router (MortgageLLM). dialogue: supportive answers in health care, with several models (Empathy by
        Design). tool-calling: small agents by fine-tuning, adapters, preferences and rewards (TinyLLM). self-improve:
        a learner, a verifier, and training during use (SuperIntelliAgent).
    config
        The recipe's YAML file.
    overrides
        Dotted keys of the configuration, as in sft.training.max_steps=100.
    stage
        Run only this stage; earlier stages must be complete.
    """
    from penchant.config.run import load_section
    from penchant.engine.device import use_device
    from penchant.recipes.tuning import check_base_models

    use_device(device)
    kind, run, table = RECIPES[name]()
    loaded = load_section(kind, config, overrides)
    check_base_models(loaded)
    results = run(loaded, only_stage=stage)
    is_complete = "evaluation" in results
    print_result(
        results,
        as_json,
        table(results, Path(loaded.output) / "report.html") if is_complete else f"done: {', '.join(results)}",
    )


def _recommend() -> Parts:
    from penchant.recipes.recommend.config import RecommendConfig
    from penchant.recipes.recommend.pipeline import recommend

    return RecommendConfig, recommend, hit_ratios


def _domain_expert() -> Parts:
    from penchant.recipes.domain_expert.config import DomainExpertConfig
    from penchant.recipes.domain_expert.pipeline import domain_expert

    return DomainExpertConfig, domain_expert, experts


def _dialogue() -> Parts:
    from penchant.recipes.dialogue.config import DialogueConfig
    from penchant.recipes.dialogue.pipeline import dialogue

    return DialogueConfig, dialogue, dialogues


def _tool_calling() -> Parts:
    from penchant.recipes.tool_calling.config import ToolCallingConfig
    from penchant.recipes.tool_calling.pipeline import tool_calling

    return ToolCallingConfig, tool_calling, agents


def _self_improve() -> Parts:
    from penchant.recipes.self_improve.config import SelfImproveConfig
    from penchant.recipes.self_improve.loop import self_improve

    return SelfImproveConfig, self_improve, rounds


RECIPES: Mapping[str, Callable[[], Parts]] = {
    "recommend": _recommend,
    "domain-expert": _domain_expert,
    "dialogue": _dialogue,
    "tool-calling": _tool_calling,
    "self-improve": _self_improve,
}


def recipe_keys(name: str) -> list[str]:
    """Dotted keys of a recipe's configuration, two levels deep; none for an unknown recipe."""
    if name not in RECIPES:
        return []
    kind = RECIPES[name]()[0]
    keys = list(kind.model_fields)
    for key, field in kind.model_fields.items():
        keys += [f"{key}.{inner}" for inner in getattr(field.annotation, "model_fields", ())]
    return keys


def recommend(
    model: Path,
    *,
    history: list[str],
    candidates: list[str] | None = None,
    catalogue: Path | None = None,
    top: int = 10,
    flags: Annotated[ReadingFlags, available_flags(*COLUMNS)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank titles for a user by a model from the recipe recommend.

    Parameters
    ----------
    model
        Folder of the model, as in OUTPUT/s_dpo/run.
    history
        Title that the user took before; repeatable, the oldest first.
    candidates
        Title to choose from; repeatable.
    catalogue
        File of items and titles to choose from instead of candidates; the prompt then lists no titles.
    top
        Number of titles to print.
    """
    from penchant.engine.device import use_device
    from penchant.errors import ConfigError
    from penchant.recipes.recommend.catalogue import suggest, suggest_from_catalogue
    from penchant.recipes.recommend.histories import read_titles

    use_device(device)
    if catalogue is not None and not candidates:
        titles = read_titles(catalogue, columns=flags.mapping, split=flags.split)
        suggestions = suggest_from_catalogue(str(model), history, list(titles.values()))
    elif candidates and catalogue is None:
        suggestions = suggest(str(model), history, candidates)
    else:
        raise ConfigError(
            "there must be one list of titles to choose from", fix="give either --candidates or --catalogue"
        )
    top_suggestions = suggestions[:top]
    print_result(
        {"suggestions": [vars(suggestion) for suggestion in top_suggestions]}, as_json, _suggestions(top_suggestions)
    )


def _suggestions(suggestions: Sequence[Suggestion]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("title", "share", "log-prob")
    for suggestion in suggestions:
        table.add_row(Text(suggestion.title), f"{suggestion.share:.3f}", f"{suggestion.log_prob:.4f}")
    return table


def _with_headline(headline: Headline, table: Table) -> Group:
    """The headline number of the served model, and the table below it."""
    from rich.console import Group
    from rich.text import Text

    from penchant.recipes.results import headline_text

    return Group(Text(headline_text(headline)), table)


def hit_ratios(results: Results, report: Path) -> Group:
    """Hit ratio at 1 of the last method, and a table of all rankings with their gain over the SFT model."""
    from rich.table import Table

    from penchant.evaluation.report import show
    from penchant.recipes.results import recommend_headline

    table = Table("", "hit ratio@1", "over SFT", title=str(report))
    gains = results["evaluation"]["hit_ratio@1_over"]
    for name, row in {**results["questions"]["baselines"], **results["evaluation"]["models"]}.items():
        value = row.get("hit_ratio@1")
        table.add_row(name, show(value), show(gains.get(name, {}).get("sft")))
    return _with_headline(recommend_headline(results), table)


def experts(results: Results, report: Path) -> Group:
    """Headline of the router with its fallback, and a table of each model's metrics."""
    from rich.table import Table

    from penchant.evaluation.report import show
    from penchant.recipes.results import domain_expert_headline, recovered_line

    columns = ("perplexity", "instructions_f1", "tasks_exact", "preference_accuracy", "preferences_rouge_l")
    table = Table("", *columns, title=str(report))
    for name, row in results["evaluation"]["models"].items():
        table.add_row(name, *(show(row.get(key)) for key in columns))
    table.caption = recovered_line(results)
    return _with_headline(domain_expert_headline(results), table)


def dialogues(results: Results, report: Path) -> Group:
    """Headline of the dialogue recipe, and a table of each method's metrics over all questions."""
    from rich.table import Table

    from penchant.evaluation.report import show
    from penchant.recipes.results import dialogue_headline

    columns = ("preference_accuracy", "rouge_l", "supported", "empathy", "politeness", "grade_level")
    table = Table("", *columns, title=str(report))
    for model, methods in results["evaluation"]["models"].items():
        for method, sets in methods.items():
            table.add_row(f"{model} {method}", *(show(sets["all"].get(column)) for column in columns))
    return _with_headline(dialogue_headline(results), table)


def agents(results: Results, report: Path) -> Group:
    """Headline of the tool-calling recipe, and a table of right calls on held-out functions."""
    from rich.table import Table

    from penchant.evaluation.report import show
    from penchant.recipes.results import tool_calling_headline

    models = results["evaluation"]["models"]
    columns = list(next(iter(models.values())))
    table = Table("", *columns, title=str(report))
    for name, shares in models.items():
        table.add_row(name, *(show(shares[column]) for column in columns))
    return _with_headline(tool_calling_headline(results), table)


def rounds(results: Results, report: Path) -> Group:
    """Success of the served model on held-out prompts, and a table by round."""
    from rich.table import Table

    from penchant.evaluation.report import show
    from penchant.recipes.results import self_improve_headline

    evaluation = results["evaluation"]
    table = Table("round", "served", "success", "gained", evaluation["signs"]["distance"], title=str(report))
    for row in evaluation["rounds"]:
        gained = show(row["success"]), show(row["gained"])
        table.add_row(str(row["round"]), str(row["served"]), *gained, f"{row['distance']:.3g}")
    return _with_headline(self_improve_headline(results), table)
