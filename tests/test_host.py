"""OLLAMA_HOST means to us what it means to Ollama."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ollama_prompt.errors import UsageError
from ollama_prompt.host import parse_host


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("  ", "http://127.0.0.1:11434"),
        ("example.com", "http://example.com:11434"),
        ("example.com:80", "http://example.com:80"),
        (":8080", "http://127.0.0.1:8080"),
        ("http://", "http://127.0.0.1:80"),
        ("https://", "https://127.0.0.1:443"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("HTTPS://example.com", "https://example.com:11434"),
        ("ollama.com", "https://ollama.com:443"),
        ("http://ollama.com", "http://ollama.com:80"),
        ("ollama.com:11434", "http://ollama.com:11434"),
        ("example.com/", "http://example.com:11434"),
        ("https://example.com/a/b/", "https://example.com:443/a/b"),
        ("https://example.com:1/a b?c", "https://example.com:1/a%20b%3Fc"),
        ("https://example.com:1/caf\udce9", "https://example.com:1/caf%E9"),
        ("/only/a/path", "http://127.0.0.1:11434/only/a/path"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:11434"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:80", "http://[::1]:80"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]:80"),
        ("::ffff:0.0.0.0", "http://127.0.0.1:11434"),
        ("[fe80::1%eth0]:80", "http://[fe80::1%eth0]:80"),
        ("example.com:0", "http://example.com:0"),
        ("example.com:65535", "http://example.com:65535"),
        ('"example.com"', "http://example.com:11434"),
        (" 'example.com:1' ", "http://example.com:1"),
        ("my_host", "http://my_host:11434"),
        ("bücher.example", "http://bücher.example:11434"),
        ("example.com.", "http://example.com.:11434"),
    ],
)
def test_reads_what_ollama_reads(value: str | None, url: str) -> None:
    host = parse_host(value)
    assert host.url == url
    assert host.note is None
    assert host.given == value


@pytest.mark.parametrize(
    ("value", "url", "port"),
    [
        ("example.com:65536", "http://example.com:11434", "65536"),
        ("example.com:" + "9" * 5000, "http://example.com:11434", "9" * 5000),
        ("example.com:-1", "http://example.com:11434", "-1"),
        ("example.com:", "http://example.com:11434", ""),
        ("example.com:x", "http://example.com:11434", "x"),
        ("example.com:\u0668\u0660", "http://example.com:11434", "\u0668\u0660"),
        ("http://example.com:1e3", "http://example.com:80", "1e3"),
        ("https://[::1]:https", "https://[::1]:443", "https"),
    ],
)
def test_a_bad_port_is_noted_and_replaced(value: str, url: str, port: str) -> None:
    host = parse_host(value)
    assert host.url == url
    assert host.note is not None
    assert repr(port) in host.note


def test_a_password_is_not_shown() -> None:
    with pytest.raises(UsageError, match="OLLAMA_HOST") as info:
        parse_host("http://user:secret@example.com:11434")
    assert "secret" not in str(info.value) + str(info.value.hint)


@pytest.mark.parametrize(
    "value",
    [
        "ftp://example.com",
        "unix:///run/ollama.sock",
        "://example.com",
        "user@example.com",
        "http://user:secret@example.com:80",
        "a b",
        "exa\tmple",
        "a..b",
        ".",
        "-" * 64,
        "a." * 127 + "a",
        "a:b:c",
        "[::1",
        "[::g]:80",
        "[]:80x]",
        "example.com?x",
        "http:example.com:80",
    ],
)
def test_what_cannot_be_a_host_is_refused_by_name(value: str) -> None:
    with pytest.raises(UsageError, match="OLLAMA_HOST"):
        parse_host(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "ollama.localhost",
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "::1",
        "[::]:9",
        "https://127.0.0.1",
    ],
)
def test_loopback_is_local(value: str | None) -> None:
    assert parse_host(value).is_local


@pytest.mark.parametrize(
    "value", ["example.com", "127.example.com", "127.0.0.1.example.com", "10.0.0.1", "fe80::1", "localhost.example"]
)
def test_all_else_is_not(value: str) -> None:
    assert not parse_host(value).is_local


def test_costs_no_heavy_import() -> None:
    code = "import sys, ollama_prompt.host as h; h.parse_host('127.0.0.1').is_local; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpx", "ipaddress", "socket", "urllib", "typing", "dataclasses"} & set(run.stdout.split())
