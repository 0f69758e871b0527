"""A recipe's result in one line: the number of what is served, or stands at the end of the recipe, before any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.evaluation.report import show

Headline = tuple[str, str]
"""What is served, and its numbers; the first line on the terminal and of the page's summary."""

Results = Mapping[str, Mapping[str, Any]]
"""What each stage of a recipe returned."""


def line(headline: Headline) -> str:
    """As a sentence."""
    return ": ".join(headline)


def recommend_headline(results: Results) -> Headline:
    """The last method's hit ratio, beside the SFT model's and popularity's."""
    models = results["evaluation"]["models"]
    name = list(models)[-1]
    rivals = {"sft": models.get("sft"), "popularity": results["questions"]["baselines"].get("popularity")}
    others = _labelled({rival: (row or {}).get("hit_ratio@1") for rival, row in rivals.items() if rival != name})
    return f"{name}, the last method", _sentence(f"hit ratio@1 {number(models[name].get('hit_ratio@1'))}", others)


def domain_expert_headline(results: Results) -> Headline:
    """The router with its fallback, as it is served, and what its experts answer; then the router alone."""
    router, routed = results["router"], results["evaluation"]["models"]["routed experts"]
    served, likeliest = router["accuracy_with_fallback"], router["accuracy"]
    answers = _labelled({key: routed.get(key) for key in ("instructions_f1", "tasks_exact", "preferences_rouge_l")})
    reached = f"{number(served)} of requests reach the right expert, {router['fell_back']} of {served['n']} fell back"
    return "the router with its fallback", _sentence(
        reached, f"without the fallback {number(likeliest)} would", answers
    )


def recovered_line(results: Results) -> str:
    """How much of the instruct model's score came back with the residual."""
    recovered, scale = results["evaluation"]["recovered"], f"{results['residual']['chosen']:g}"
    if recovered["value"] is None:
        return f"nothing came back with {scale} of the residual, for the instruct model's score was not lost"
    return f"of the instruct model's score {show(recovered)} came back with {scale} of the residual"


def dialogue_headline(results: Results) -> Headline:
    """The last model's last method over all questions, beside its SFT model."""
    models = results["evaluation"]["models"]
    model = list(models)[-1]
    method = list(models[model])[-1]
    values, sft_values = (models[model].get(name, {}).get("all", {}) for name in (method, "sft"))
    sft = _labelled({"sft": sft_values.get("preference_accuracy") if method != "sft" else None})
    texts = _labelled({key: values.get(key) for key in ("rouge_l", "supported")})
    first = f"preference_accuracy {number(values.get('preference_accuracy'))}"
    return f"{model} {method}, the last method", _sentence(first, sft, texts)


def tool_calling_headline(results: Results) -> Headline:
    """The last path's right calls, also with eight-bit weights, beside the base's."""
    measured = results["evaluation"]
    name = list(measured["models"])[-1]
    edge = measured["edge"].get(name, {}).get("int8", {}).get("right")
    others = _labelled({"with eight-bit weights": edge, "base": measured["models"].get("base", {}).get("all")})
    return f"{name}, the last path", _sentence(f"right calls {number(measured['models'][name]['all'])}", others)


def self_improve_headline(results: Results) -> Headline:
    """The served learner's success on the test, and what was gained."""
    rounds = results["evaluation"]["rounds"]
    first, last = rounds[0], rounds[-1]
    name = "the first learner, which is still served" if last["served"] == 0 else f"update {last['served']}, served"
    change = f"before {number(first['success'])}, gained {number(last['gained'])}" if last["round"] else ""
    return name, _sentence(f"success {number(last['success'])}", change)


def number(estimate: Mapping[str, Any] | None) -> str:
    """Value and interval, or words where there is none."""
    return show(estimate) or "not measured"


def _labelled(values: Mapping[str, Mapping[str, Any] | None]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in values.items() if show(value))


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
