"""Judges: endpoints that answer, stumble or talk nonsense, and win rates in both orders."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penchant.config.section import validated
from penchant.config.shared_sections import JudgeConfig, RewardConfig
from penchant.errors import ConfigError
from penchant.evaluation import endpoint
from penchant.evaluation.judges import (
    EndpointJudge,
    EndpointReward,
    RewardJudge,
    RubricJudge,
    Verdict,
    fill,
    read_rating,
    read_verdict,
)
from penchant.evaluation.rewards import reward_from
from penchant.evaluation.win_rate import win_rate
from penchant.storage.caches import cache_folder

CUT_SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"


class Server:
    """Answers by a script, over and over its last line; remembers the requests it got."""

    def __init__(self) -> None:
        self.script: list[object] = ["[[A]]"]
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.reason: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers["Authorization"])
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if callable(step):
                    step = step(body["messages"][0]["content"])
                if isinstance(step, float):
                    time.sleep(step)
                    step = "[[A]]"
                if step in ("no status", "cut short"):
                    self.wfile.write(b"nonsense\r\n\r\n" if step == "no status" else CUT_SHORT)
                    return
                code = step if isinstance(step, int) else 200
                reply = {"choices": [{"message": {"content": step}}]} if step != "empty" else {}
                data = json.dumps(reply).encode()
                self.send_response(code, outer.reason)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    running = Server()
    yield running
    running.server.shutdown()


def judge(server: Server, **settings) -> EndpointJudge:
    return EndpointJudge(JudgeConfig(url=server.url, model="m", **settings))


def compare(server: Server, **settings) -> list[Verdict]:
    return judge(server, **settings).compare(["p"], ["ours"], ["theirs"])


KEY = "sk-planted-0123456789"


class TestKeys:
    @pytest.fixture(autouse=True)
    def planted(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_no_redirect_is_followed(self, server, code):
        """Followed, the key went to the other host."""
        second = Server()
        server.headers = {"Location": f"{second.url}/chat/completions"}
        server.script = [code]
        with pytest.raises(ConfigError, match=f"redirects \\({code}\\)") as error:
            compare(server)
        second.server.shutdown()
        assert server.keys == [f"Bearer {KEY}"]
        assert second.keys == []
        assert error.value.where == server.url

    def test_a_key_that_the_server_repeats_is_not_shown(self, server):
        server.reason = f"no such key: {KEY}"
        server.script = [401]
        with pytest.raises(ConfigError, match=r"401 no such key: \*\*\*") as error:
            compare(server)
        assert KEY not in str(error.value)
        server.script = [f"Your key is {KEY}."]
        with pytest.raises(ConfigError, match=r"Your key is \*\*\*") as error:
            EndpointReward(JudgeConfig(url=server.url, model="m", retries=0))(["p"], [["r"]])
        assert KEY not in str(error.value)

    def test_a_key_that_cannot_be_sent_is_not_shown(self, server, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: y")
        with pytest.raises(ConfigError, match="characters that no header can hold") as error:
            compare(server)
        assert KEY not in str(error.value)
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        assert compare(server) == [Verdict("first")]

    @pytest.mark.parametrize(
        "setting",
        [
            {"url": f"http://me:{KEY}@localhost/v1"},
            {"url": f"http://localhost/v1?api_key={KEY}"},
            {"url": f"http://me:{KEY}@local host/v1"},
            {"api_key_env": KEY},
        ],
        ids=["password", "query", "not even an address", "in place of its variable"],
    )
    def test_a_key_in_a_configuration_is_refused_and_not_shown(self, setting):
        with pytest.raises(ConfigError) as error:
            validated(RewardConfig, {"judge": {"url": "http://localhost/v1", "model": "m", **setting}}, "run.yaml")
        assert KEY not in str(error.value)
        assert "environment variable" in str(error.value)


class TestEndpoint:
    @pytest.mark.parametrize(
        ("answer", "side"), [("So: [[A]]", "first"), ("[[A]]? No: [[B]]", "second"), ("Equal.\n[[C]]", "tie")]
    )
    def test_a_verdict(self, server, answer, side):
        server.script = [answer]
        assert compare(server) == [Verdict(side)]
        (body,) = server.requests
        assert body["model"] == "m"
        assert body["temperature"] == 0
        assert "ours" in body["messages"][0]["content"].split("[Response B]")[0]

    @pytest.mark.parametrize("stumble", ["I like both.", 500, 429, 503, "empty", "no status", "cut short"])
    def test_asked_again_where_it_stumbles(self, server, stumble):
        server.script = [stumble, stumble, "[[B]]"]
        assert compare(server) == [Verdict("second")]
        assert len(server.requests) == 3

    @pytest.mark.parametrize("stumble", ["Hm.", 500, "empty", "no status", "cut short"])
    def test_a_tie_and_counted_where_it_never_answers(self, server, stumble):
        server.script = [stumble]
        assert compare(server, retries=2) == [Verdict("tie", failed=True)]
        assert len(server.requests) == 3

    def test_a_time_out(self, server):
        server.script = [0.5]
        assert compare(server, retries=1, timeout_s=0.1) == [Verdict("tie", failed=True)]

    def test_what_http_itself_finds_wrong_is_a_failure_like_others(self, server, monkeypatch):
        def raise_error(self, question):
            raise http.client.InvalidURL("nonnumeric port")

        monkeypatch.setattr(endpoint.Endpoint, "_post", raise_error)
        assert compare(server, retries=1) == [Verdict("tie", failed=True)]

    @pytest.mark.parametrize(
        "url",
        ["localhost:8000/v1", "", "http://", "http://local host/v1", "ftp://x/v1", "http://x:port/v1", "http://[::1"],
    )
    def test_an_address_that_is_none(self, url):
        with pytest.raises(ConfigError, match=r"expected an address .*http://localhost:8000/v1"):
            reward_from(judge_url=url, judge_model="m")
        assert JudgeConfig(url="https://api.example.com/v1", model="m").url == "https://api.example.com/v1"

    def test_nobody_there(self):
        config = JudgeConfig(url="http://127.0.0.1:9/v1", model="m", retries=0)
        assert EndpointJudge(config).compare(["p"], ["a"], ["b"]) == [Verdict("tie", failed=True)]

    @pytest.mark.parametrize("code", [401, 403, 404])
    def test_a_refusal_is_an_error_at_once(self, server, code, monkeypatch):
        monkeypatch.setenv("MY_KEY", "secret-key")
        server.script = [code]
        with pytest.raises(ConfigError, match=f"refuses: {code}") as error:
            compare(server, api_key_env="MY_KEY")
        assert server.url in str(error.value)
        assert "$MY_KEY" in str(error.value)
        assert "secret-key" not in str(error.value)
        assert len(server.requests) == 1

    def test_the_key_is_sent_and_kept_nowhere(self, server, monkeypatch):
        monkeypatch.setenv("MY_KEY", "secret-key")
        compare(server, api_key_env="MY_KEY")
        assert server.keys == ["Bearer secret-key"]
        assert not any(b"secret-key" in file.read_bytes() for file in cache_folder().iterdir())

    def test_verdicts_are_kept_and_failures_are_not(self, server):
        server.script = ["[[B]]"]
        assert compare(server) == compare(server) == [Verdict("second")]
        assert len(server.requests) == 1
        server.script = ["Hm.", "[[A]]"]
        other = judge(server, retries=0)
        assert other.compare(["q"], ["a"], ["b"])[0].failed
        assert not other.compare(["q"], ["a"], ["b"])[0].failed

    def test_a_template_of_the_users(self, server, tmp_path):
        file = tmp_path / "judge.txt"
        file.write_text("Say [[A]] or [[B]]: {prompt} | {first} | {second}")
        judge(server, prompt=str(file)).compare(["p {first}"], ["x"], ["y"])
        assert server.requests[0]["messages"][0]["content"] == "Say [[A]] or [[B]]: p {first} | x | y"
        file.write_text("no places")
        with pytest.raises(ConfigError, match=r"has no \{prompt\}"):
            judge(server, prompt=str(file)).compare(["p"], ["x"], ["y"])

    def test_a_template_without_the_second_response_rates_and_does_not_compare(self, server, tmp_path):
        file = tmp_path / "judge.txt"
        file.write_text("Rate {first} as an answer to {prompt}")
        custom = judge(server, prompt=str(file))
        for use in (lambda: custom.compare(["p"], ["x"], ["y"]), lambda: custom.name):
            with pytest.raises(ConfigError, match=r"judge.txt: the judge's template has no \{second\}\n.*\{second\}"):
                use()
        assert server.requests == []
        server.script = ["[[7]]"]
        assert EndpointReward(custom.config)(["p"], [["x"]]) == [[7.0]]
        file.write_text("{first}")
        with pytest.raises(ConfigError, match=r"has no \{prompt\} and no \{second\}"):
            custom.compare(["p"], ["x"], ["y"])

    def test_ratings(self, server):
        server.script = [lambda question: f"[[{7 if 'good' in question else 2}]]"]
        reward = EndpointReward(JudgeConfig(url=server.url, model="m"))
        assert reward(["p", "q"], [["good", "bad"], ["good"]]) == [[7.0, 2.0], [7.0]]

    def test_another_template_is_another_reward(self, server, tmp_path):
        file = tmp_path / "rate.txt"
        names = set()
        for text in ("Rate {prompt} {first}", "Score {prompt} {first}"):
            file.write_text(text)
            names.add(EndpointReward(JudgeConfig(url=server.url, model="m", prompt=str(file))).name)
        assert len(names) == 2

    def test_another_template_is_another_judge_and_keeps_what_was_answered(self, server, tmp_path):
        file = tmp_path / "judge.txt"
        file.write_text("{prompt} {first} {second}")
        custom = judge(server, prompt=str(file))
        custom.compare(["p"], ["x"], ["y"])
        name = custom.name
        file.write_text("{prompt}: {first} {second}")
        assert custom.name != name
        custom.compare(["p"], ["x"], ["y"])
        assert len(server.requests) == 2
        file.write_text("{prompt} {first} {second}")
        custom.compare(["p"], ["x"], ["y"])
        assert (custom.name, len(server.requests)) == (name, 2)

    def test_no_rating_is_an_error(self, server):
        server.script = ["[[99]]"]
        with pytest.raises(ConfigError, match="gave no rating after 2 attempts"):
            EndpointReward(JudgeConfig(url=server.url, model="m", retries=1))(["p"], [["a"]])


class TestRubric:
    def test_ratings_are_kept_and_failures_are_not(self, server):
        server.script = [lambda question: "[[4.5]]" if "good" in question.split("[Response]")[1] else "[[7]]"]
        rubric = RubricJudge(JudgeConfig(url=server.url, model="m", retries=0, parallel=1))
        assert rubric(["p", "q"], ["good", "bad"], ["x", "y"]) == [4.5, None]
        assert "[Reference]\nx\n" in server.requests[0]["messages"][0]["content"]
        assert rubric(["p", "q"], ["good", "bad"], ["x", "y"]) == [4.5, None]
        assert len(server.requests) == 3

    def test_a_template_of_the_users(self, server, tmp_path):
        file = tmp_path / "rubric.txt"
        file.write_text("{prompt} | {first}")
        rubric = RubricJudge(JudgeConfig(url=server.url, model="m", prompt=str(file)))
        with pytest.raises(ConfigError, match=r"has no \{reference\}"):
            rubric(["p"], ["x"], ["y"])
        file.write_text("{prompt} | {first} | {reference}")
        server.script = ["[[5]]"]
        assert rubric(["p"], ["x"], ["y"]) == [5.0]
        assert server.requests[0]["messages"][0]["content"] == "p | x | y"


class TestRequestFields:
    def test_fields_are_sent_and_null_leaves_one_out(self, server):
        compare(server, request={"temperature": None, "max_completion_tokens": 7})
        (body,) = server.requests
        assert "temperature" not in body
        assert body["max_completion_tokens"] == 7

    def test_other_fields_are_another_judge(self, server):
        compare(server)
        compare(server, request={"reasoning_effort": "low"})
        assert len(server.requests) == 2

    @pytest.mark.parametrize("name", ["model", "messages", "stream"])
    def test_fields_that_are_not_the_users(self, server, name):
        with pytest.raises(ValueError, match=f"{name} cannot be set here"):
            JudgeConfig(url=server.url, model="m", request={name: "x"})


def test_reading_answers():
    assert read_verdict("A is better") is None
    assert read_rating("[[11]] or [[8.5]]") == 8.5
    assert read_rating("[[0]]") is None
    assert (read_rating("[[5]]", highest=5), read_rating("[[5.5]]", highest=5)) == (5.0, None)
    assert fill("{a}{b}{c}", a="{b}", b="2") == "{b}2{c}"


class Scripted:
    """A judge that says what a function of the two texts says."""

    name = "scripted"

    def __init__(self, says) -> None:
        self.says = says

    def compare(self, prompts, first_responses, second_responses):
        return [self.says(a, b) for a, b in zip(first_responses, second_responses, strict=True)]


def longer(a: str, b: str) -> Verdict:
    return Verdict("first" if len(a) > len(b) else "second" if len(b) > len(a) else "tie")


class TestWinRate:
    OURS, THEIRS = ["aaa", "b", "cc", "dddd"], ["a", "bb", "cc", "d"]

    def test_by_hand(self):
        result = win_rate(Scripted(longer), ["p"] * 4, self.OURS, self.THEIRS)
        assert result.values == (1.0, 0.0, 0.5, 1.0)
        assert (result.wins, result.losses, result.ties) == (2, 1, 1)
        assert result.rate.value == pytest.approx(2.5 / 4)
        assert result.agreement == 1.0
        assert result.failed == 0

    def test_the_other_way_round(self):
        swapped = win_rate(Scripted(longer), ["p"] * 4, self.OURS, self.THEIRS)
        back = win_rate(Scripted(longer), ["p"] * 4, self.THEIRS, self.OURS)
        assert back.rate.value == pytest.approx(1 - swapped.rate.value)

    def test_a_judge_that_likes_the_first(self):
        result = win_rate(Scripted(lambda a, b: Verdict("first")), ["p"] * 4, self.OURS, self.THEIRS)
        assert result.rate.value == 0.5
        assert result.agreement == 0.0
        assert result.ties == 4

    def test_one_order_for_us_and_one_a_tie_is_a_disagreement(self):
        sides = iter(["first", "tie"])
        result = win_rate(Scripted(lambda a, b: Verdict(next(sides))), ["p"], ["x"], ["y"])
        assert result.values == (0.5,)
        assert result.agreement == 0.0

    def test_failures_are_counted(self):
        result = win_rate(Scripted(lambda a, b: Verdict("tie", failed=a == "cc")), ["p"] * 4, self.OURS, self.THEIRS)
        assert result.failed == 2
        assert result.to_json()["failed"] == 2
        assert result.agreement == 1.0

    def test_agreement_is_of_what_was_judged(self):
        verdicts = iter([Verdict("first"), Verdict("tie", failed=True), Verdict("first"), Verdict("tie")])
        result = win_rate(Scripted(lambda a, b: next(verdicts)), ["p"] * 2, ["x"] * 2, ["y"] * 2)
        assert (result.agreement, result.failed, result.values) == (0.0, 1, (0.5, 0.5))

    def test_nothing_was_ever_answered(self):
        result = win_rate(Scripted(lambda a, b: Verdict("tie", failed=True)), ["p"] * 4, self.OURS, self.THEIRS)
        assert (result.agreement, result.failed, result.rate.value) == (None, 8, 0.5)
        assert win_rate(Scripted(longer), [], [], []).agreement is None

    def test_a_reward_as_judge(self):
        class Lengths:
            name = "lengths"

            def __call__(self, prompts, responses):
                return [[float(len(r)) for r in candidates] for candidates in responses]

        result = win_rate(RewardJudge(Lengths()), ["p"] * 4, self.OURS, self.THEIRS)
        assert result.values == (1.0, 0.0, 0.5, 1.0)
