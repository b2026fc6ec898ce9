"""The stand-in answers as real Ollama servers did; `wire_facts.json` says what those answered."""

from __future__ import annotations

import http.client
import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from standin import MESSAGE_TOKENS, count, count_messages, tokens

if TYPE_CHECKING:
    from standin import StandIn

Json = dict[str, Any]
FACTS: Json = json.loads(Path(__file__).with_name("wire_facts.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(case, case["0.33"] if dialect == "0.33" else case.get("0.24", case["0.33"]), dialect)
    for case in FACTS["cases"]
    for dialect in ("0.33", "0.24")
    if dialect == "0.33" or case.get("0.24", True)
]
SHOWN = {"capabilities", "details", "model_info", "modelfile", "modified_at", "parameters", "template", "tensors"}


class Answer:
    """What came back, as far as the facts speak of it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.type = response.getheader("Content-Type")
        self.framing = "chunked" if response.getheader("Transfer-Encoding") == "chunked" else "length"
        assert (response.getheader("Content-Length") is None) == (self.framing == "chunked")
        self.text = response.read().decode()

    def lines(self) -> list[Json]:
        return [json.loads(line) for line in self.text.splitlines()]


def ask(ollama: StandIn, case: Json) -> Answer:
    body, headers = case.get("body"), dict(case.get("headers", {}))
    sent = json.dumps(body) if isinstance(body, dict) else body
    link = http.client.HTTPConnection("127.0.0.1", ollama.port, timeout=30)
    try:
        link.request(case["method"], case["path"], sent, headers)
        return Answer(link.getresponse())
    finally:
        link.close()


def shape(value: object) -> object:
    """Keys and kinds of values, as the facts note them."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, (bool, type(None))):
        return value
    return "text" if isinstance(value, str) else "number"


def check_shape(value: Json, name: str) -> None:
    wanted: Json = dict(FACTS["shapes"][name])
    got = shape(value)
    assert isinstance(got, dict)
    if wanted.get("done_reason") in ("load", "unload"):
        got["done_reason"] = value["done_reason"]
    assert got == wanted


def settled(text: str) -> str:
    """Without the numbers and addresses that differ from run to run."""
    text = re.sub(r"lookup ollama\.com on [\d.]+:53", "lookup ollama.com on DNS", text)
    return re.sub(r"\?ts=\d+", "?ts=N", text)


def without_figures(text: str) -> str:
    return re.sub(r"\d+", "N", text)


@pytest.mark.parametrize(("case", "fact", "dialect"), CASES)
def test_answers_like_a_real_server(ollama: StandIn, case: Json, fact: Json, dialect: str) -> None:
    ollama.set(dialect=dialect)
    if "after" in case:
        ask(ollama, {"method": "POST", "path": "/api/chat", "body": case["after"]})
    if "fault" in case:
        ollama.fail(**case["fault"])
    answer = ask(ollama, case)
    assert (answer.status, answer.type, answer.framing) == (fact["status"], fact["type"], fact["framing"])
    check_body(answer, case, fact)


def check_body(answer: Answer, case: Json, fact: Json) -> None:
    if "N tokens" in fact.get("body", ""):
        assert without_figures(answer.text) == without_figures(fact["body"])
    elif "body" in fact:
        assert settled(answer.text) == fact["body"]
    elif "chunk" in fact:
        for chunk in answer.lines()[:-1]:
            check_shape(chunk, fact["chunk"])
        check_shape(answer.lines()[-1], fact["last"])
    elif "keys" in fact:
        check_show(json.loads(answer.text), fact)
    else:
        check_figures(json.loads(answer.text), case, fact)


def check_show(show: Json, fact: Json) -> None:
    assert SHOWN <= show.keys() <= set(fact["keys"])
    assert sorted(show["details"]) == fact["details"]
    assert set(fact["model_info"]) <= show["model_info"].keys()


def check_figures(value: Json, case: Json, fact: Json) -> None:
    check_shape(value, fact["shape"])
    if "context_length" in case:
        assert value["models"][0]["context_length"] == case["context_length"]
    if "prompt_eval_count" in fact:
        assert value["prompt_eval_count"] == fact["prompt_eval_count"]
    assert value.get("prompt_eval_count", 0) <= fact.get("most_prompt_eval_count", 10**6)


# -- the model made of arithmetic ----------------------------------------------------------------------


def chat(ollama: StandIn, *prompts: str, **body: object) -> Json:
    messages = [{"role": "user", "content": prompt} for prompt in prompts]
    whole = {"model": "smollm2", "messages": messages, "stream": False, **body}
    answer = ask(ollama, {"method": "POST", "path": "/api/chat", "body": whole})
    assert answer.status == 200, answer.text
    reply: Json = json.loads(answer.text)
    return reply


def test_tokens_are_words_and_marks() -> None:
    assert tokens("Grüße, Welt!\n") == ["Grüße", ",", " Welt", "!"]
    assert count_messages([{"content": "a b"}, {"content": ""}]) == 2 + 2 * MESSAGE_TOKENS


def test_prompt_and_answer_are_counted(ollama: StandIn) -> None:
    reply = chat(ollama, "one two", "three")
    assert reply["message"]["content"] == "Answer to: three (messages: 2)"
    assert reply["prompt_eval_count"] == 3 + 2 * MESSAGE_TOKENS
    assert reply["eval_count"] == count(reply["message"]["content"])


def test_oldest_messages_are_cut_in_silence(ollama: StandIn) -> None:
    prompts = [f"number {i}" for i in range(100)]
    reply = chat(ollama, *prompts, options={"num_ctx": 60})
    assert reply["message"]["content"] == "Answer to: number 99 (messages: 10)"
    assert reply["prompt_eval_count"] == 60


def test_num_predict_ends_an_answer(ollama: StandIn) -> None:
    ollama.set(answer_tokens=50)
    reply = chat(ollama, "Go", options={"num_predict": 7})
    assert (reply["eval_count"], reply["done_reason"]) == (7, "length")


def test_answers_are_given_in_turn(ollama: StandIn) -> None:
    ollama.set(answers=["first", "second"], answer="then")
    replies = [chat(ollama, "Hi")["message"]["content"] for _ in range(4)]
    assert replies == ["first", "second", "then", "then"]


def test_unloading_empties_ps(ollama: StandIn) -> None:
    chat(ollama, "Hi")
    chat(ollama, keep_alive=0)
    assert json.loads(ask(ollama, {"method": "GET", "path": "/api/ps"}).text) == {"models": []}


def test_requests_are_logged_and_forgotten(ollama: StandIn) -> None:
    chat(ollama, "Hi")
    (request,) = ollama.requests()
    assert (request["method"], request["path"]) == ("POST", "/api/chat")
    assert request["body"]["messages"][0]["content"] == "Hi"
    ollama.forget()
    assert ollama.requests() == []


def test_a_held_gate_lets_through_what_it_is_told(ollama: StandIn) -> None:
    ollama.hold()
    done: list[Json] = []
    threads = [threading.Thread(target=lambda: done.append(chat(ollama, "Hi"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    ollama.wait(held=3)
    assert done == []
    ollama.release(1)
    while not done:
        threads[0].join(0.01)
    assert len(done) == 1
    ollama.release()
    for thread in threads:
        thread.join()
    assert len(done) == 3


def test_a_gate_for_a_hundred_opens_by_itself(ollama: StandIn) -> None:
    ollama.hold(100)
    done: list[Json] = []
    threads = [threading.Thread(target=lambda: done.append(chat(ollama, "Hi"))) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 100


def test_unknown_orders_are_refused(ollama: StandIn) -> None:
    with pytest.raises(AssertionError, match="no setting"):
        ollama.set(nonsense=1)
    with pytest.raises(AssertionError, match="no fault"):
        ollama.fail("nonsense")
