"""The store of a server's traffic: what waits, what is held out, what is kept and counted."""

from __future__ import annotations

import sqlite3

import pytest

from penchant.recipes.self_improve.traffic import MAX_TRIES, NewAnswer, TrafficStore, TrafficVerdict

CHAT = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Where?"})


def store(path, held_out=0.5, checks=100, pending=1000, seed=0):
    return TrafficStore(path / "traffic.sqlite", held_out=held_out, checks=checks, pending=pending, seed=seed)


def answers(n, served=0):
    return [NewAnswer(f"prompt {number}", f"answer {number}", served) for number in range(n)]


def verdicts(waiting, satisfied=True):
    return [TrafficVerdict(answer, satisfied) for answer in waiting]


def texts(path):
    rows = sqlite3.connect(path / "traffic.sqlite").execute("SELECT prompt, answer FROM answers").fetchall()
    return {prompt.strip('"') for prompt, _ in rows}


def test_answers_wait_in_their_order_until_they_are_settled(tmp_path):
    traffic = store(tmp_path)
    traffic.add([NewAnswer(CHAT, "There.", 2), *answers(3)], {"cut": 2})
    first, second = traffic.begin(2)
    assert (first.prompt, first.answer, first.served) == (CHAT, "There.", 2)
    assert (second.prompt, second.served) == ("prompt 0", 0)
    traffic.settle(verdicts([first, second]))
    assert [answer.prompt for answer in traffic.begin(5)] == ["prompt 1", "prompt 2"]
    assert traffic.counts() == {"cut": 2, "dropped": 0, "failed": 0, "recorded": 4, "waiting": 2}
    traffic.add([], {"cut": 1, "opted out": 4})
    assert (traffic.counts()["cut"], traffic.counts()["opted out"]) == (3, 4)


def test_another_process_goes_on_from_the_file(tmp_path):
    store(tmp_path).add(answers(4), {})
    assert len(store(tmp_path).begin(9)) == 4


def test_prompts_are_held_out_by_their_text_and_the_seed(tmp_path):
    traffic = store(tmp_path, held_out=0.25)
    traffic.add(answers(400) + answers(400), {})
    waiting = traffic.begin(800)
    held_out = [answer.held_out for answer in waiting]
    assert held_out[:400] == held_out[400:]
    assert 60 < sum(held_out[:400]) < 140
    (tmp_path / "other").mkdir()
    other = store(tmp_path / "other", held_out=0.25, seed=1)
    other.add(answers(400), {})
    assert [answer.held_out for answer in other.begin(400)] != held_out[:400]


def test_judged_texts_are_deleted_except_the_latest_held_out_prompts(tmp_path):
    traffic = store(tmp_path, checks=3)
    traffic.add(answers(40), {})
    waiting = traffic.begin(40)
    held_out = [answer.prompt for answer in waiting if answer.held_out]
    assert len(held_out) > 5
    traffic.settle(verdicts(waiting[:-1]))
    traffic.settle(verdicts(waiting[-1:]))
    assert traffic.checks() == held_out[:-4:-1]
    assert texts(tmp_path) == set(held_out[-3:])
    # A prompt that comes again is the latest, and is one check.
    traffic.add([NewAnswer(held_out[-3], "again", 1)], {})
    assert traffic.checks() == [held_out[-3], held_out[-1], held_out[-2]]
    traffic.settle(verdicts(traffic.begin(1)))
    assert texts(tmp_path) == set(held_out[-3:])


def test_the_oldest_of_too_many_are_dropped(tmp_path):
    traffic = store(tmp_path, pending=3)
    traffic.add(answers(5), {})
    assert [answer.prompt for answer in traffic.begin(9)] == ["prompt 2", "prompt 3", "prompt 4"]
    assert traffic.counts()["dropped"] == 2


def test_an_answer_whose_judgement_never_ends_is_dropped(tmp_path):
    traffic = store(tmp_path)
    traffic.add(answers(2), {})
    traffic.put_back(traffic.begin(2))
    for _ in range(MAX_TRIES):
        assert len(traffic.begin(1)) == 1
    assert [answer.prompt for answer in traffic.begin(9)] == ["prompt 1"]
    assert traffic.counts()["failed"] == 1


def test_success_by_the_update_that_answered(tmp_path):
    traffic = store(tmp_path)
    traffic.add(answers(4) + answers(2, served=3), {})
    waiting = traffic.begin(9)
    traffic.settle(
        [TrafficVerdict(a, s) for a, s in zip(waiting, (True, False, None, True, False, False), strict=True)]
    )
    first, third = traffic.success()
    assert (first["update"], first["judged"], first["unjudged"], third["update"], third["judged"]) == (0, 4, 1, 3, 2)
    assert (first["satisfied"]["value"], first["satisfied"]["n"]) == (pytest.approx(2 / 3), 3)
    assert first["satisfied"]["low"] < 2 / 3 < first["satisfied"]["high"]
    assert third["satisfied"]["value"] == 0
