"""Keys and passwords: what is found, what is left alone, how it is shown; `--check --secrets`.

No key stands here as it is: each is drawn from a seed and put together, or hosting sites would refuse this file.
"""

from __future__ import annotations

import base64
import random
import string
import subprocess
import sys
import uuid
import zlib
from itertools import product
from typing import TYPE_CHECKING

import pytest
import stores
from hypothesis import given
from hypothesis import strategies as st
from stores import fail, header, line, make, message, new_id, succeed

from ollama_prompt import credentials, records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

    Draw = Callable[[str, int], str]
    Found = list[tuple[str, str]]

LETTERS = string.ascii_letters
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
BASE64 = BASE62 + "+/"
URL64 = BASE62 + "-_"
HEX = "0123456789abcdef"
BASE32 = string.ascii_uppercase + "234567"
MIDDLE = "T3Blbk" + "FJ"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def with_crc(prefix: str, drawn: str) -> str:
    """A token with its check digits."""
    number, digits = zlib.crc32(drawn.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return prefix + drawn + digits.rjust(6, "0")


def bech32(prefix: str, data: bytes) -> str:
    """Bech32 as in BIP 173, written once more."""
    bits = int.from_bytes(data, "big") << (-len(data) * 8) % 5
    length = (len(data) * 8 + 4) // 5
    values = [bits >> 5 * place & 31 for place in range(length - 1, -1, -1)]
    check = 1
    for value in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values, *[0] * 6]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for place, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term * (top >> place & 1)
    check ^= 1
    return prefix + "1" + "".join(BECH32[value] for value in [*values, *(check >> 5 * (5 - n) & 31 for n in range(6))])


def pem(label: str, data: str, headers: str = "", newline: str = "\n") -> tuple[str, str]:
    """A key file with this body: (all of it, the part that is found, its first line)."""
    lines = [data[at : at + 64] for at in range(0, len(data), 64)]
    whole = f"-----BEGIN {label}-----\n{headers}" + "\n".join(lines) + f"\n-----END {label}-----\n"
    return whole.replace("\n", newline), lines[0]


def with_crc_of_grafana(drawn: str) -> str:
    return f"glsa_{drawn}_{zlib.crc32(f'glsa_{drawn}'.encode()).to_bytes(4, 'little').hex()}"


def github(kind: str) -> Callable[[Draw], tuple[str, str]]:
    return lambda draw: ("GitHub token", with_crc(f"gh{kind}_", draw(BASE62, 30)))


KEYS: dict[str, Callable[[Draw], tuple[str, str]]] = {
    **{f"GitHub token {kind}": github(kind) for kind in "pousr"},
    "GitHub token, refresh": lambda draw: ("GitHub token", "ghr_" + draw(BASE62, 76)),
    "GitHub token, fine-grained": lambda draw: ("GitHub token", f"github_pat_{draw(BASE62, 22)}_{draw(BASE62, 59)}"),
    "GitHub token, JWT": lambda draw: (
        "GitHub token",
        f"ghs_{draw('123456789', 6)}_eyJ{draw(URL64, 80)}.{draw(URL64, 200)}.{draw(URL64, 86)}",
    ),
    "npm token": lambda draw: ("npm token", with_crc("npm_", draw(BASE62, 30))),
    "GitLab token": lambda draw: ("GitLab token", "glpat-" + draw(URL64, 20)),
    "GitLab token, routable": lambda draw: ("GitLab token", f"glpat-{draw(URL64, 40)}.01.{draw(HEX, 9)}"),
    "GitLab token of a runner": lambda draw: ("GitLab token", "glrt-" + draw(URL64, 20)),
    "AWS access key": lambda draw: ("AWS access key", "AKIA" + draw(BASE32, 16)),
    "AWS access key for a while": lambda draw: ("AWS access key", "ASIA" + draw(BASE32, 16)),
    "Google API key": lambda draw: ("Google API key", "AIza" + "Sy" + draw(URL64, 33)),
    "OpenAI key": lambda draw: ("OpenAI key", f"sk-{draw(BASE62, 20)}{MIDDLE}{draw(BASE62, 20)}"),
    "OpenAI key of a project": lambda draw: ("OpenAI key", f"sk-proj-{draw(URL64, 74)}{MIDDLE}{draw(URL64, 74)}"),
    "OpenAI key of a service": lambda draw: ("OpenAI key", f"sk-svcacct-{draw(URL64, 58)}{MIDDLE}{draw(URL64, 58)}"),
    "Anthropic key": lambda draw: ("Anthropic key", f"sk-ant-api03-{draw(URL64, 93)}AA"),
    "OpenRouter key": lambda draw: ("OpenRouter key", "sk-or-v1-" + draw(HEX, 64)),
    "Hugging Face token": lambda draw: ("Hugging Face token", "hf_" + draw(LETTERS, 34)),
    "Groq key": lambda draw: ("Groq key", "gsk_" + draw(BASE62, 52)),
    "xAI key": lambda draw: ("xAI key", "xai-" + draw(BASE62, 80)),
    "Perplexity key": lambda draw: ("Perplexity key", "pplx-" + draw(BASE62, 48)),
    "Replicate token": lambda draw: ("Replicate token", "r8_" + draw(BASE62, 37)),
    "Slack token of a bot": lambda draw: (
        "Slack token",
        f"xoxb-{draw('123456789', 12)}-{draw('123456789', 13)}-{draw(BASE62, 24)}",
    ),
    "Slack token of a user": lambda draw: (
        "Slack token",
        f"xoxp-{draw('123456789', 12)}-{draw('123456789', 12)}-{draw('123456789', 13)}-{draw(HEX, 32)}",
    ),
    "Slack token of an app": lambda draw: (
        "Slack token",
        f"xapp-1-A{draw(BASE32, 10)}-{draw('123456789', 13)}-{draw(HEX, 64)}",
    ),
    "Stripe key": lambda draw: ("Stripe key", "sk_" + "live_" + draw(BASE62, 99)),
    "Stripe key, restricted": lambda draw: ("Stripe key", "rk_" + "live_" + draw(BASE62, 24)),
    "SendGrid key": lambda draw: ("SendGrid key", f"SG.{draw(URL64, 22)}.{draw(URL64, 43)}"),
    "Shopify token": lambda draw: ("Shopify token", "shpat_" + draw(HEX, 32)),
    "PyPI token": lambda draw: ("PyPI token", "pypi-" + "AgEIcHlwaS5vcmc" + draw(URL64, 150)),
    "PyPI token, test": lambda draw: ("PyPI token", "pypi-" + "AgENdGVzdC5weXBpLm9yZw" + draw(URL64, 140)),
    "RubyGems key": lambda draw: ("RubyGems key", "rubygems_" + draw(HEX, 48)),
    "Docker token": lambda draw: ("Docker token", "dckr_pat_" + draw(URL64, 27)),
    "DigitalOcean token": lambda draw: ("DigitalOcean token", "dop_v1_" + draw(HEX, 64)),
    "Databricks token": lambda draw: ("Databricks token", "dapi" + draw(HEX, 32)),
    "Tailscale key": lambda draw: ("Tailscale key", f"tskey-auth-{draw(BASE62, 17)}-{draw(BASE62, 32)}"),
    "Vault token": lambda draw: ("Vault token", "hvs." + draw(URL64, 95)),
    "Atlassian token": lambda draw: ("Atlassian token", "ATATT3" + draw(URL64, 186)),
    "Linear key": lambda draw: ("Linear key", "lin_api_" + draw(BASE62, 40)),
    "Notion token": lambda draw: ("Notion token", f"ntn_{draw('123456789', 11)}{draw(BASE62, 35)}"),
    "GitLab token for SCIM": lambda draw: ("GitLab token", "glsoat-" + draw(URL64, 20)),
    "GitLab token of a feed": lambda draw: ("GitLab token", "glft-" + draw(URL64, 20)),
    "GitLab token of an agent": lambda draw: ("GitLab token", "glagent-" + draw(URL64, 50)),
    "Google client secret": lambda draw: ("Google client secret", "GOCSPX-" + draw(URL64, 28)),
    "Slack token of a browser": lambda draw: (
        "Slack token",
        f"xoxc-{draw('123456789', 12)}-{draw('123456789', 12)}-{draw('123456789', 13)}-{draw(HEX, 64)}",
    ),
    "Slack cookie": lambda draw: ("Slack token", f"xoxd-{draw(BASE64, 90)}%2B{draw(BASE64, 60)}%3D%3D"),
    "Stripe secret of a webhook": lambda draw: ("Stripe key", "whsec_" + draw(BASE62, 32)),
    "Stripe secret of its CLI": lambda draw: ("Stripe key", "whsec_" + draw(HEX, 64)),
    "Grafana token": lambda draw: ("Grafana token", with_crc_of_grafana(draw(BASE62, 32))),
    "Grafana token of a cloud": lambda draw: ("Grafana token", "glc_" + "eyJvIjoi" + draw(BASE62, 90)),
    "New Relic key": lambda draw: ("New Relic key", "NRAK-" + draw(string.digits + string.ascii_uppercase, 27)),
    "Postman key": lambda draw: ("Postman key", f"PMAK-{draw(HEX, 24)}-{draw(HEX, 34)}"),
    "Figma token": lambda draw: ("Figma token", "figd_" + draw(URL64, 40)),
    "Supabase token": lambda draw: ("Supabase token", "sbp_" + draw(HEX, 40)),
    "PlanetScale token": lambda draw: ("PlanetScale token", "pscale_tkn_" + draw(URL64, 43)),
    "LangSmith key": lambda draw: ("LangSmith key", f"lsv2_pt_{draw(HEX, 32)}_{draw(HEX, 10)}"),
    "LangSmith key of a service": lambda draw: ("LangSmith key", f"lsv2_sk_{draw(HEX, 32)}_{draw(HEX, 10)}"),
    "Doppler token": lambda draw: ("Doppler token", "dp.pt." + draw(BASE62, 43)),
    "Doppler token of a service": lambda draw: ("Doppler token", "dp.st.prd." + draw(BASE62, 40)),
    "Hugging Face token of an organization": lambda draw: ("Hugging Face token", "api_org_" + draw(LETTERS, 34)),
    "age key": lambda draw: ("age key", bech32("age-secret-key-", draw(LETTERS, 32).encode()).upper()),
    "age key, post-quantum": lambda draw: ("age key", bech32("age-secret-key-pq-", draw(LETTERS, 32).encode()).upper()),
}
"""What a key is reported as, and one drawn at random; it is found as it is, wherever it stands."""

BASE64_DIGITS = base64.b64encode(bytes(range(7, 250, 3))).decode().rstrip("=")


def discord(digits: int) -> Callable[[Draw], tuple[str, str, str]]:
    """A token that begins with the bot's number."""
    return lambda draw: at(
        "Discord token",
        "DISCORD=" + base64.b64encode(draw("123456789", digits).encode()).decode().rstrip("=") + ".",
        f"{draw(URL64, 6)}.{draw(URL64, 38)}",
    )


def putty(draw: Draw) -> tuple[str, str, str]:
    lines = ["PuTTY-User-Key-File-3: ssh-ed25519", "Encryption: none", "Comment: mine", "Public-Lines: 2"]
    lines += [draw(BASE64, 64), draw(BASE64, 24), "Private-Lines: 2", draw(BASE64, 64), draw(BASE64, 24)]
    return "private key", "\n".join([*lines, f"Private-MAC: {draw(HEX, 64)}"]), lines[7]


IN_PLACE: dict[str, Callable[[Draw], tuple[str, str, str]]] = {
    "Slack webhook": lambda draw: at(
        "Slack webhook",
        "https://hooks.slack.com/services/",
        f"T{draw(BASE32, 9)}/B{draw(BASE32, 10)}/{draw(BASE62, 24)}",
    ),
    "Slack webhook of a workflow": lambda draw: at(
        "Slack webhook",
        "https://hooks.slack.com/workflows/",
        f"T{draw(BASE32, 9)}/A{draw(BASE32, 10)}/{draw('123456789', 18)}/{draw(BASE62, 24)}",
    ),
    "Slack webhook of a trigger": lambda draw: at(
        "Slack webhook",
        "https://hooks.slack.com/triggers/",
        f"T{draw(BASE32, 9)}/{draw('123456789', 13)}/{draw(HEX, 32)}",
    ),
    **{f"Discord token, {digits} digits": discord(digits) for digits in (17, 18, 19)},
    "npm token of 2014": lambda draw: at(
        "npm token", "//registry.npmjs.org/:_authToken=", "-".join(draw(HEX, n) for n in (8, 4, 4, 4, 12)), "\n"
    ),
    "Azure key": lambda draw: at(
        "Azure key", "SharedAccessKeyName=Root;SharedAccessKey=", draw(BASE64, 43) + "=", ";EntityPath=x"
    ),
    "Discord webhook": lambda draw: at(
        "Discord webhook",
        "https://discord.com/api/webhooks/",
        f"{draw('123456789', 19)}/{draw(URL64, 68)}",
    ),
    "Telegram token": lambda draw: at("Telegram token", draw("123456789", 10), f":AA{draw(URL64, 33)}"),
    "Azure storage key": lambda draw: at(
        "Azure storage key", "AccountName=x;AccountKey=", draw(BASE64, 86) + "==", ";"
    ),
    "AWS secret key": lambda draw: at("AWS secret key", "aws_secret_access_key = ", draw(BASE64, 40)),
    "AWS secret key in JSON": lambda draw: at("AWS secret key", '{"SecretAccessKey": "', draw(BASE64, 40), '"}'),
    "AWS secret key as typed": lambda draw: at(
        "AWS secret key", "AWS Secret Access Key [None]: ", draw(BASE64, 40), "\n"
    ),
    "AWS secret key in .env": lambda draw: at("AWS secret key", "AWS_SECRET_ACCESS_KEY=", draw(BASE64, 40)),
    "private key": lambda draw: ("private key", *pem("PRIVATE KEY", "MC4C" + draw(BASE64, 60))),
    "private key of RSA": lambda draw: ("private key", *pem("RSA PRIVATE KEY", "MIIE" + draw(BASE64, 900))),
    "private key of ssh": lambda draw: (
        "private key",
        *pem("OPENSSH PRIVATE KEY", "b3BlbnNzaC1rZXktdjEAAAA" + draw(BASE64, 300)),
    ),
    "private key with headers": lambda draw: (
        "private key",
        *pem("EC PRIVATE KEY", draw(BASE64, 160), f"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{draw(HEX, 32)}\n\n"),
    ),
    "private key of OpenPGP": lambda draw: (
        "private key",
        *pem("PGP PRIVATE KEY BLOCK", "lQ" + draw(BASE64, 300), "Comment: mine\n\n"),
    ),
    "private key in code": lambda draw: ("private key", *pem("PRIVATE KEY", "MIIE" + draw(BASE64, 900), newline="\\n")),
    "private key, quoted": lambda draw: (
        "private key",
        *pem("PRIVATE KEY", "MIIE" + draw(BASE64, 900), newline="\n> "),
    ),
    "private key of PuTTY": putty,
    "bearer token": lambda draw: at("bearer token", "Authorization: Bearer ", f"x7{draw(BASE62, 30)}Q", "'"),
    "bearer token in code": lambda draw: at("bearer token", '{\\"Authorization\\": \\"Bearer ', draw(HEX, 40), '\\"}'),
    "password for curl": lambda draw: at(
        "password", "curl --silent https://x.org/y \\\n  -u me:", f"7x{draw(BASE62, 14)}Q", " | jq ."
    ),
    "password for curl, quoted": lambda draw: at(
        "password", "curl --user 'me:", f"7x{draw(BASE62, 14)}Q", "' https://x.org/y"
    ),
    "password in YAML": lambda draw: at(
        "password",
        "db:\n  db_password: ",
        "".join(draw(kind, 1) for kind in (string.digits, "Gh", "ax", "QZ") * 4),
        "\n",
    ),
    "password in a URL": lambda draw: at(
        "password in a URL", "postgresql://me:", f"7x{draw(BASE62, 20)}Q", "@db.internal/x"
    ),
    "password": lambda draw: at("password", 'db_password = "', f"7x{draw(BASE62, 20)}Q", '"'),
    "password in JSON": lambda draw: at("password", '{"client_secret": "', f"7x{draw(BASE62, 20)}Q", '"}'),
    "password in JSON in code": lambda draw: at("password", '"{\\"apiKey\\": \\"', f"7x{draw(BASE62, 20)}Q", '\\"}"'),
    "password in .env": lambda draw: at("password", "SOME=1\nexport OLLAMA_API_KEY=", f"7x{draw(BASE62, 20)}Q", "\n"),
    "password in a call": lambda draw: at("password", 'connect("me", password="', f"7x{draw(BASE62, 14)}!Q", '")'),
}
"""What is found only in its place: what it is reported as, the text, the part of it that is found."""


def at(kind: str, before: str, secret: str, behind: str = "") -> tuple[str, str, str]:
    return kind, before + secret + behind, secret


def drawing(seed: int) -> Draw:
    """Characters as if at random. Not those of hypothesis: it likes the same one many times."""
    source = random.Random(seed)
    return lambda alphabet, length: "".join(source.choices(alphabet, k=length))


def found(text: str) -> Found:
    return [(finding.kind, text[finding.start : finding.end]) for finding in credentials.find(text)]


# -- what is found -----------------------------------------------------------------------------------------


def assert_hidden(text: str, secret: str) -> None:
    """No more than the beginning of a secret is shown."""
    for finding in credentials.find(text):
        assert finding.shown.endswith("…")
        assert "\n" not in finding.shown
        assert len(finding.shown) <= 41
        hidden = secret[6:] if text.startswith(secret[:6], finding.start) else secret
        assert not any(hidden[n : n + 6] in finding.shown for n in range(len(hidden) - 5))


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("seed", range(5))
def test_keys(name: str, seed: int) -> None:
    kind, key = KEYS[name](drawing(seed))
    assert found(key) == [(kind, key)]
    for text in (
        f"It is {key}.",
        f'{{"x":"{key}"}}',
        f"--key={key} run",
        f"(`{key}`)",
        f'"line\\n{key}\\n"',
        f"ключ{key}、",
    ):
        assert (kind, key) in [(each, secret.rstrip(".")) for each, secret in found(text)], text
        assert_hidden(text, key)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("seed", range(5))
def test_secrets_in_their_place(name: str, seed: int) -> None:
    kind, text, secret = IN_PLACE[name](drawing(seed))
    for whole in (text, f"Look: {text} and so on"):
        ((reported, part),) = found(whole)
        assert reported == kind
        assert part == secret or part.startswith(secret), "of a key in several lines the first"
        assert_hidden(whole, secret)


@pytest.mark.parametrize(
    "name", [name for name in KEYS if name.startswith(("GitHub token ", "npm", "age")) or name == "Grafana token"]
)
def test_a_wrong_check_digit_is_no_key(name: str) -> None:
    for seed in range(20):
        _, key = KEYS[name](drawing(seed))
        other = "Q" if key[-8] != "Q" else "P"
        assert found(key[:-8] + other + key[-7:]) == []
        assert found(key[:-1] + ("Q" if key[-1] != "Q" else "P")) == []


@pytest.mark.parametrize(
    "before",
    [
        "\x1b[32m",
        "\x1b[1;38;5;214m",
        "\\u001b[32m",
        "\\x1b[0m",
        "[32m",
        "key%3D",
        "%22",
        "\\u0022",
        "\\\\u0022",
        "\\u003d",
        "\\x22",
    ],
)
@pytest.mark.parametrize("name", ["Anthropic key", "AWS access key", "Grafana token", "Stripe key"])
def test_a_key_behind_an_escaped_character(name: str, before: str) -> None:
    kind, key = KEYS[name](drawing(3))
    for behind in ("", "\x1b[0m", "\\u001b[0m", "%22", "\\u0022", "&"):
        assert found(f"Look: {before}{key}{behind}") == [(kind, key)]


@pytest.mark.parametrize("before", ["risk-", "x", "_", "m", "32m", "]m", "u0022", "3D"])
def test_a_key_inside_a_word_is_none(before: str) -> None:
    for name in ("Anthropic key", "Slack token of a bot", "Groq key"):
        _, key = KEYS[name](drawing(3))
        assert found(before + key) == []


def test_several_in_one_text() -> None:
    draw = drawing(1)
    made = [make_key(draw) for make_key in KEYS.values()]
    assert found("\n".join(key for _, key in made)) == made
    _, text, secret = IN_PLACE["password"](draw)
    kind, key = made[0]
    assert found(f"{text} {key} {text}") == [("password", secret), (kind, key), ("password", secret)]


def test_a_key_behind_a_name_is_reported_as_what_it_is() -> None:
    kind, key = KEYS["GitHub token p"](drawing(1))
    for text in (
        f'password = "{key}"',
        f"GITHUB_TOKEN={key}",
        f"https://me:{key}@github.com/me/it",
        f'token: "x{key}"',
    ):
        assert found(text) == [(kind, key)], text


# -- what is left alone ------------------------------------------------------------------------------------

EMULATED = credentials._EMULATED + "lCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
PASSWORDS_IN_URLS = [
    "password", "password123", "mysecretpassword", "P@ssw0rd2024!", "changeme123", "hunter2", "<password>",
    "xxxxxxxx", "${PASSWORD}", "$PASSWORD", "********", "YOUR_PASSWORD_1", "[password]", "s3cr3tp4ss",
    "Pa55w0rd12", "%s%s%s%s1a",
]  # fmt: skip
PASSWORDS = [
    "password123", "MyS3cretPassw0rd!", "supersecret123", "your-api-key-1234", "abc123def456", "changeme1",
    "test1234", "os.environ['X1']", "getPasswordFromVault", "${DB_PASSWORD_1}", "{{vault_password_2}}",
    "correct-horse-battery-1", "<your-token-123>", "sk-1234567890abcdef", "$2b$12$KIXQ8yD3vV9c1nZ0eO8q1u",
    "pbkdf2_sha256$260000$q8Kx7Lm2", "123e4567-e89b-12d3-a456-426614174000", "s3cr3t", "Tr0ub4dor",
    "/run/secrets/db_password_1", "^(?=.*[A-Z])(?=.*[0-9]).{8,}$", "django-insecure-1",
    "https://auth0.example.com/oauth2/v1", "xxxx-xxxx-xxxx-1234",
]  # fmt: skip

MADE_UP = [
    # AWS, GitHub, Slack, Stripe, Twilio, Azure, Heroku: as their manuals have them
    "AKIA" + "IOSFODNN7EXAMPLE",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY",
    "AKIA" + "I44QH8DHBEXAMPLE",
    "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "ghp_" + "x" * 36,
    "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_" + "1" * 22 + "_" + "A" * 59,
    "npm_" + "0" * 36,
    "https://hooks.slack.com/services/T00000000/B00000000/" + "X" * 24,
    "xoxb-your-token-here",
    "sk_" + "test_4eC39HqLyjWDarjtT1zdp7dc",
    "pk_" + "live_51H7xGrKZ8mXvQpLtNyRbWcDe",
    "SK" + "0123456789abcdef" * 2,
    "AccountKey=" + EMULATED,
    "sk-ant-api03-" + "x" * 93 + "AA",
    "sk-ant-api03-...",
    "sk-...",
    "sk-1234567890",
    "sk-proj-your-api-key-here",
    "sk-" + "x" * 20 + MIDDLE + "x" * 20,
    "AIzaSy...",
    "AIza" + "A" * 35,
    "hf_" + "x" * 34,
    "hf_your_token_here",
    "hf_hub_download_with_retry_and_backoff",
    "glpat-" + "x" * 20,
    "glpat-<your token>",
    "glpat-your-token-goes-here-now",
    "SG." + "x" * 22 + "." + "y" * 43,
    "dop_v1_" + "0123456789abcdef" * 4,
    "pypi-AgEIcHlwaS5vcmc…",
    "AGE-SECRET-KEY-1" + "Q" * 58,
    "AGE-SECRET-KEY-1" + "GFPYYSJZ" * 6 + "GFPQ4EGAEV",
    "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11",
    "110201543:AAxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "a `-----BEGIN RSA PRIVATE KEY-----` line, then base64",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA...\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN CERTIFICATE-----\n" + BASE64_DIGITS,
    "-----BEGIN PUBLIC KEY-----\n" + BASE64_DIGITS,
    "-----BEGIN OPENSSH PRIVATE KEY----- and Private-Lines: 14",
    "whsec_" + "x" * 32,
    "whsec_your_webhook_secret",
    "https://hooks.slack.com/workflows/T00000000/A00000000/000000000000000000/" + "X" * 24,
    "GOCSPX-" + "x" * 28,
    "glsa_" + "x" * 32 + "_00000000",
    "figd_" + "x" * 40,
    "_authToken=00000000-0000-0000-0000-000000000000",
    "_authToken=${NPM_TOKEN}",
    "SharedAccessKey=" + "x" * 43 + "=",
    "a.MTIzNDU2Nzg5MDEyMzQ1Njc4.abcdef." + "x" * 38,
    "foo.barbaz.thisIsAMethodWithAVeryLongNameInJava8",
    # names of what is no secret
    "GPG_KEY=" + "A035C8C19219BA821ECEA86B64E628F8D684696D",
    "PUBLIC_KEY=MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7x9Qz2LkVw",
    "CACHE_KEY=v1-deps-9f86d081884c7d659a2feaa0c55ad015",
    "PRIMARY_KEY=id_9f8e7d6c5b4a3f2e",
    "export SORT_KEY=q8Kx7Lm2Tz91",
    "MY_PARTITION_KEY=q8Kx7Lm2Tz91",
    "KEY=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI",
    *(
        f'"{name}": "CAUQ7x9Qz2LkVw8RtYbN"'
        for name in (
            "nextPageToken",
            "pageToken",
            "next_page_token",
            "continuationToken",
            "csrf_token",
            "csrfmiddlewaretoken",
        )
    ),
    "CSRF_TOKEN=q8Kx7Lm2Tz91",
    # of unquoted values, and in headers, only what was drawn at random
    "password: Optional[str]",
    "password: correcthorse12battery",
    "password: getPassword2FromVault",
    "token: 9f86d081884c7d659a2feaa0c55ad015",
    "The password: hG7xQ2mZ9kLw4RtY is not in an entry",
    "Authorization: Bearer abc123def456",
    "Authorization: Bearer mF_9.B5f-4.1JqM",
    "Authorization: Bearer 2YotnFZFEjr1zCsicMWpAA",
    "Authorization: Bearer YOUR_ACCESS_TOKEN_2_GOES_HERE",
    "Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fw",
    "Bearer x7Qz2LkVw8RtYbN4mK9p is no header",
    "curl -u username:password123 https://x.org",
    "curl -u $USER:$PASSWORD_1 https://x.org",
    "docker run -u me:7xQz2LkVw8RtYbN image",
    # a JSON Web Token, as jwt.io shows it
    "token = 'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV'",
    # passwords of manuals, in URLs and behind names
    *(f"postgresql://user:{word}@localhost:5432/db" for word in PASSWORDS_IN_URLS),
    "https://me:9fK3xQz7LmWv2TnB@example.com/",
    "http://localhost:8080/path@2x.png",
    "git@github.com:me/it.git",
    *(f'{name} = "{word}"' for name, word in product(("password", "api_key", "SECRET_KEY", "token"), PASSWORDS)),
    "PASSWORD=changeme123",
    "API_KEY=your_api_key_1",
    "SECRET_KEY=$(openssl rand -hex 32)",
    "TOKEN=${GITHUB_TOKEN1}",
    "password_hash = '5f4dcc3b5aa765d61d8327deb882cf99'",
    "keyboard: 'a8Kx92LmQp7Tz'",
    "max_tokens: 'q8Kx7Lm2Tz91'",
    # hashes, ids, pictures, code
    "d41d8cd98f00b204e9800998ecf8427e",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "commit 32b5eea1f73e35f0dd1096d664ae75c897205b1a",
    str(uuid.UUID(int=7 << 100 | 12345678901234567890)),
    "data:image/png;base64," + BASE64_DIGITS * 20,
    "sha512-" + BASE64_DIGITS + "==",
    "def find_token(self, secret_key: str, password: str | None = None) -> dict[str, Token]: ...",
    '<input type="password" id="pass1word2Field" autocomplete=\'new-password\'>',
]


@pytest.mark.parametrize("text", MADE_UP)
def test_what_is_made_up_is_left_alone(text: str) -> None:
    for whole in (text, f"For example {text}, as above", f"```\n{text}\n```"):
        assert found(whole) == []


@given(st.integers(0, 2**32), st.integers(0, 3000))
def test_bytes_in_base64_are_left_alone(seed: int, length: int) -> None:
    data = random.Random(seed).randbytes(length)
    for text in (base64.b64encode(data), base64.urlsafe_b64encode(data), data.hex().encode(), base64.b32encode(data)):
        assert found(text.decode()) == []


# -- whatever the text -------------------------------------------------------------------------------------

PIECES = [
    *(form.mark for form in credentials._FORMS),
    MIDDLE,
    "://a:",
    "://",
    "@h",
    "=",
    ': "',
    '"',
    "password",
    "SECRET_KEY=",
    "-----BEGIN ",
    "PRIVATE KEY-----",
    "Abc: x\n",
    "\\n",
    "\\",
    "ghp_",
    "\n",
    "\0",
    "\ud800",
    "é",
    "a" * 40,
    "0" * 64,
    "-_" * 30,
    "aB3" * 30,
]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_can_be_searched(text: str) -> None:
    end = 0
    for finding in credentials.find(text):
        assert end <= finding.start < finding.end <= len(text)
        end = finding.end
        assert text[finding.start : finding.end] not in finding.shown


@given(st.text(), st.text(), st.integers(0, 2**32), st.sampled_from(list(KEYS)), st.sampled_from(" \n\"'`,;()[]<>|"))
def test_a_key_is_found_in_any_text(before: str, behind: str, seed: int, name: str, between: str) -> None:
    kind, key = KEYS[name](drawing(seed))
    assert (kind, key) in found(before + between + key + between + behind)


SCAN = """
import sys
from ollama_prompt import credentials
for text in eval(sys.stdin.read()):
    whole = text * (300_000 // len(text))
    sum(1 for finding in credentials.find(whole))
"""


WORST = [
    "sk-",
    " sk-a",
    "gl" + "pat-",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----BEGIN PRIVATE KEY-----Abc: x Abc: x ",
    "://a:b",
    "://",
    "=",
    "=a",
    ' password="',
    "A",
    "\\n",
    "\n",
    "://" + "a" * 99 + ":",
    "xoxb-1-",
    f" {MIDDLE}sk-",
    "eyJ.",
    "ghs_1_eyJ",
    "xoxd-%2B",
    "xoxd-",
    "dp.st.a.",
    "pscale_pw_",
    "glc_eyJ",
    "Private-Lines: 1\\n",
    "MTIzMTIzMTIzMTIzMTIzMTIz.",
    "password: ",
    "\n" + "-" * 50 + ": aB1aB1aB1aB1",
    "\n" + " >" * 15 + "x" * 30 + "token: aB1aB1aB1aB1",
    "\n password: aB1",
    ": a",
    "Authorization: Bearer ",
    "Bearer a",
    "curl ",
    "curl -u a:b",
    "curl -u me:x7Qz2LkV ",
    " -u a:",
    "\x1b[0m",
    "[;;;;",
]
"""What a pattern begins with, or takes many of."""


def test_time_grows_with_the_text_only(environment: dict[str, str]) -> None:
    """300 kB of what each pattern begins with; were one of them quadratic, this would take several minutes."""
    command = [sys.executable, "-c", SCAN]
    subprocess.run(command, input=repr(WORST).encode(), env=environment, check=True, timeout=600)


# -- the text of a line ------------------------------------------------------------------------------------


def test_the_text_of_a_line() -> None:
    found_there = records.text_of(rb'{"type":"x","a":[{"\u0062":"\u0063\n"}],"n":1}').split("\n")
    assert sorted(found_there) == ["", "a", "b", "c", "n", "type", "x"]
    assert records.text_of(b'{"type":"x", torn \\u0041\\n\\\\n\\"') == '{"type":"x", torn A\n\\n"'
    assert records.text_of('{"type":"é\\n"'.encode("utf-16-le")) == '{"type":"\ufffd\n"'
    assert records.text_of(b"\xff[") == "\ufffd["
    assert records.text_of(b"") == ""
    deep = b'{"type":"x","a":' + b"[" * 900 + b'"deep"' + b"]" * 900 + b"}"
    assert "deep" in records.text_of(deep)


@given(st.binary())
def test_any_line_has_a_text(data: bytes) -> None:
    assert isinstance(records.text_of(data), str)


# -- the command -------------------------------------------------------------------------------------------


def leaking(home: Path, *more: bytes) -> tuple[Path, str]:
    """A session whose last answer has a key in it; its file and the key."""
    _, key = KEYS["GitHub token p"](drawing(7))
    session_id = new_id(1)
    said = [header(session_id), message(0, "user", "My key?"), message(1, "assistant", f"It is {key}, {key}.")]
    return make(home, 1, b"".join([*map(line, said), *more])), key


def test_no_secrets(run: Run, home: Path) -> None:
    make(home, 1)
    checked = succeed(run("--check", "--secrets")).json
    assert checked == {"ok": True, "sessions": 1, "damage": [], "index": "missing", "secrets": []}
    assert "secrets" not in succeed(run("--check")).json
    assert not (home / "sessions.db").exists(), "nothing is changed"


def test_secrets_are_reported_and_never_printed(run: Run, home: Path) -> None:
    path, key = leaking(home)
    before = path.read_bytes()
    assert succeed(run("--check")).json["ok"] is True
    result = stores.clean(run("--check", "--secrets"))
    assert (result.returncode, result.json["ok"], result.json["damage"], result.stderr) == (1, False, [], "")
    where = {"session_id": new_id(1), "path": str(path), "line": 3}
    assert result.json["secrets"] == [{**where, "kind": "GitHub token", "shown": f"{key[:6]}…"}]
    text = stores.clean(run("--check", "--secrets", "--output", "text"))
    last = "sessions: 1, damaged places: 0, index: missing, secrets: 1"
    assert (text.returncode, text.stdout) == (1, f"{path}:3: GitHub token: {key[:6]}…\n{last}\n")
    events = stores.clean(run("--check", "--secrets", "--output", "ndjson"))
    assert events.returncode == 1
    assert events.events[0]["secrets"] == result.json["secrets"]
    assert key[6:] not in result.stdout + text.stdout + events.stdout
    assert path.read_bytes() == before


def test_secrets_are_found_wherever_they_are(run: Run, home: Path) -> None:
    keys = [KEYS["npm token"](drawing(seed))[1] for seed in range(9)]
    escaped = "".join(f"\\u{ord(char):04x}" for char in keys[6])
    data = [
        line(header(new_id(1), title=keys[0], system=keys[1])),
        line(message(0, "user", "x", typed=keys[2], unknown={"deep": [{keys[3]: 1}]})),
        line(message(1, "assistant", "y", thinking=f"{keys[4]}\n{keys[5]}")),
        line({"type": "undo", "id": new_id(9), "created_at": "x", "ids": [new_id(1)]}),
        b'{"type":"message","role":"user","content":"' + escaped.encode() + b'"}\n',
        b'{"type":"message","content":"broken \\n' + keys[7].encode() + b"\n",
        b'{"torn":"' + keys[8].encode(),
    ]
    make(home, 1, b"".join(data))
    found_there = run("--check", "--secrets").json["secrets"]
    assert [item["line"] for item in found_there] == [1, 1, 2, 2, 3, 3, 5, 6, 7]
    assert {item["kind"] for item in found_there} == {"npm token"}


def test_a_session_in_use_is_looked_into(run: Run, home: Path) -> None:
    filelock = pytest.importorskip("filelock")
    leaking(home)
    (home / "locks").mkdir()
    with filelock.FileLock(home / "locks" / f"{new_id(1)}.lock"):
        assert len(run("--check", "--secrets").json["secrets"]) == 1


def test_secrets_goes_with_check(run: Run) -> None:
    error = fail(run("--secrets", "--list-sessions"), "usage", 2)
    assert "--secrets goes with --check" in error["error"]
