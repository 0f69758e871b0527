"""The verbs of whole pipelines from the literature: one runs them, one asks what a recommender recommends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penchant.cli_output import Json, deliver, teller
from penchant.cli_reading import ColumnFlags

if TYPE_CHECKING:
    from rich.table import Table

    from penchant.recipes.recommend.serving import Suggestion

Recipe = Literal["recommend", "domain-expert", "dialogue", "tool-calling", "self-improve"]
Found = dict[str, Mapping[str, Any]]
Parts = tuple[Any, Callable[..., Found], "Callable[[Found, Path], Table]"]
"""A recipe's configuration, the function that runs it, and the table of its results."""


def recipe(name: Recipe, config: Path, *overrides: str, stage: str | None = None, as_json: Json = False) -> None:
    """Run a recipe, stage by stage; run again, it goes on where it stopped.

    Parameters
    ----------
    name
        recommend: which title a user takes next (S-DPO). domain-expert: pretraining on a field's text, the instruction
        residual, two experts and a router (MortgageLLM). dialogue: supportive answers in health care, on several models
        (Empathy by Design). tool-calling: small agents, by supervision, adapters, preferences and reward (TinyLLM).
        self-improve: a learner, a verifier, and tuning beside its work (SuperIntelliAgent).
    config
        The recipe's YAML file.
    overrides
        Dotted keys of the configuration, as in sft.training.max_steps=100.
    stage
        Run this stage alone; those before it must be done.
    """
    from penchant.config import load_section
    from penchant.recipes.checking import check_base_models

    kind, run, table = RECIPES[name]()
    loaded = load_section(kind, config, overrides)
    check_base_models(loaded)
    found = run(loaded, only=stage, tell=teller(as_json))
    done = "evaluation" in found
    deliver(found, as_json, table(found, Path(loaded.output) / "report.html") if done else f"done: {', '.join(found)}")


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
    from penchant.recipes.self_improve.pipeline import self_improve

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
    columns: ColumnFlags = ColumnFlags(),
    as_json: Json = False,
) -> None:
    """Rank titles for a user by a model that the recipe recommend trained.

    Parameters
    ----------
    model
        Folder of the model, as OUTPUT/s_dpo/run.
    history
        A title taken before; repeat it, the oldest first.
    candidates
        A title to choose from; repeat it.
    catalogue
        Instead of candidates, a file of item and title: the question then lists none.
    top
        Titles shown.
    """
    from penchant.data.interactions import read_titles
    from penchant.errors import ConfigError
    from penchant.recipes.recommend.serving import suggest, suggest_from_catalogue

    if catalogue is not None and not candidates:
        titles = read_titles(catalogue, columns=columns.mapping, split=columns.split)
        suggestions = suggest_from_catalogue(str(model), history, list(titles.values()))
    elif candidates and catalogue is None:
        suggestions = suggest(str(model), history, candidates)
    else:
        raise ConfigError("what is to be chosen from?", fix="give either --candidates or --catalogue")
    first = suggestions[:top]
    deliver({"suggestions": [vars(suggestion) for suggestion in first]}, as_json, _suggestions(first))


def _suggestions(suggestions: Sequence[Suggestion]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("title", "share", "log-prob")
    for suggestion in suggestions:
        table.add_row(Text(suggestion.title), f"{suggestion.share:.3f}", f"{suggestion.log_prob:.4f}")
    return table


def hit_ratios(found: Found, report: Path) -> Table:
    """Hit ratio at 1 of every ranking, and what each method adds to the SFT model's."""
    from rich.table import Table

    from penchant.evaluation.report import show

    table = Table("", "hit ratio@1", "over SFT", title=str(report))
    gains = found["evaluation"]["hit_ratio@1_over"]
    for name, row in {**found["questions"]["baselines"], **found["evaluation"]["models"]}.items():
        value = row.get("hit_ratio@1")
        table.add_row(name, show(value), show(gains.get(name, {}).get("sft")))
    return table


def experts(found: Found, report: Path) -> Table:
    """What each model of the domain expert is good at."""
    from rich.table import Table

    from penchant.evaluation.report import show

    columns = ("perplexity", "instructions_f1", "tasks_exact", "preference_accuracy", "preferences_rouge_l")
    table = Table("", *columns, title=str(report))
    for name, row in found["evaluation"]["models"].items():
        table.add_row(name, *(show(row.get(key)) for key in columns))
    table.caption = (
        f"router: {show(found['router']['accuracy'])} right; of the instruct model's score "
        f"{show(found['evaluation']['recovered'])} came back with {found['residual']['chosen']:g} of the residual"
    )
    return table


def dialogues(found: Found, report: Path) -> Table:
    """What each step of the dialogue recipe changes, over all questions."""
    from rich.table import Table

    from penchant.evaluation.report import show

    columns = ("preference_accuracy", "rouge_l", "supported", "empathy", "politeness", "grade_level")
    table = Table("", *columns, title=str(report))
    for model, methods in found["evaluation"]["models"].items():
        for method, sets in methods.items():
            table.add_row(f"{model} {method}", *(show(sets["all"].get(column)) for column in columns))
    return table


def agents(found: Found, report: Path) -> Table:
    """Right calls on held-out functions."""
    from rich.table import Table

    from penchant.evaluation.report import show

    models = found["evaluation"]["models"]
    columns = list(next(iter(models.values())))
    table = Table("", *columns, title=str(report))
    for name, shares in models.items():
        table.add_row(name, *(show(shares[column]) for column in columns))
    return table


def rounds(found: Found, report: Path) -> Table:
    """Success on held-out prompts by round."""
    from rich.table import Table

    from penchant.evaluation.report import show

    told = found["evaluation"]
    table = Table("round", "served", "success", "gained", told["signs"]["distance"], title=str(report))
    for each in told["rounds"]:
        gained = show(each["success"]), show(each["gained"])
        table.add_row(str(each["round"]), str(each["served"]), *gained, f"{each['distance']:.3g}")
    return table
