"""Text → the keys and passwords that seem to be in it. Pure: nothing is read, kept or shown whole.

    marks in the text → patterns that have such a mark → check digits, or a look at whether it was made up

What a provider hands out begins with a prefix of its own, so that it can be found; that decides where it can be
told. Some carry check digits: these are found wherever they stand, and a wrong digit is no finding. The others must
have their length and look drawn at random, which examples in manuals do not. A password has no form: it counts
behind a name such as `password`, in quotes or as `NAME=value`, in a URL or for curl, and only if it is more than words
and sequences. As a line of YAML, or behind `Authorization: Bearer`, it counts only if it was clearly drawn at random.
Much that is one is missed so; what is reported is worth a look.

Where the figures are from:

- GitHub and npm: "Behind GitHub's new authentication token formats" (2021) and npm's "new access token format": a
  prefix of four, 30 characters in base 62, their CRC-32 in six digits of base 62, in the order 0-9 A-Z a-z. Refresh
  tokens have 76, without a word on their check digits. Installation tokens of 2026 are `ghs_`, a number, a JWT.
  Fine-grained tokens have 22 and 59 characters.
- AWS: the unique ids of the IAM manual. AKIA, ASIA, ABIA and ACCA begin what identifies a key, with 16 characters of
  base 32 behind it. A secret key has 40 characters of base 64 and no mark: only a name beside it tells.
- age: its specification, Bech32 as in BIP 173 in upper case, six check characters.
- PEM: RFC 7468, and RFC 9580 for OpenPGP. Without 40 characters of its body it is only talk of a key.
- PyPI: a macaroon in base 64, which begins with the host's name: pypi.org or test.pypi.org.
- OpenAI: `T3BlbkFJ`, "OpenAI" in base 64, in the middle. Anthropic: `sk-ant-`, kind and version, 93 characters and AA.
- Telegram: the bot's number, a colon, 35 characters that begin with AA. Discord and Slack: the addresses of webhooks;
  a bot's token of Discord begins with the bot's number, up to 19 decimal digits, in base 64.
- Grafana: `glsa_`, 32 characters, the CRC-32 of both in hexadecimal, the lowest byte first. `glc_`: JSON in base 64.
- PuTTY: appendix C of its manual, PPK version 2 and 3.
- The rest: prefix and length as the provider's manual shows them and as the rules of gitleaks 8 have them.

Not reported: what is public though it looks the same (Stripe's and others' test and publishable keys, Twilio's SK…,
the number of a key), hashes, UUIDs, and JSON Web Tokens: most live for minutes, and each manual shows one.

Every pattern begins with fixed text and has an upper bound, or stops where the next could begin: the time is linear.
"""

from __future__ import annotations

import re
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SHOWN = 6
"""How much of a key is shown: its prefix, mostly."""
SHOWN_BEFORE = 40
"""How much of what stands before a password is shown, such as its name."""


class Finding:
    """What seems to be a secret: text[start:end]. `shown` says which one, and does not hold it."""

    __slots__ = ("end", "kind", "shown", "start")

    def __init__(self, kind: str, start: int, end: int, shown: str) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.shown = shown


def find(text: str) -> Iterator[Finding]:
    """What seems to be a key or a password, in the order of the text; none overlaps another."""
    keys = _apart(_keys(text))
    rest = _without(text, keys)
    yield from _apart([*keys, *_passwords_in_urls(rest), *_passwords_behind_names(rest), *_passwords_for_curl(rest)])


def _apart(found: Iterable[Finding]) -> list[Finding]:
    """Findings in order, without those that overlap an earlier one."""
    apart: list[Finding] = []
    for finding in sorted(found, key=lambda finding: finding.start):
        if not apart or finding.start >= apart[-1].end:
            apart.append(finding)
    return apart


def _without(text: str, found: list[Finding]) -> str:
    """The text, of the same length, in which something that is no password stands for what was found."""
    pieces: list[str] = []
    end = 0
    for finding in found:
        pieces += [text[end : finding.start], "\n" * (finding.end - finding.start)]
        end = finding.end
    return "".join(pieces) + text[end:]


# --- Keys with a form of their own -----------------------------------------------------------------


class _Form:
    """What a kind of key looks like: fixed text, then the pattern of the rest; `check` has the last word.

    The group `secret` is the key, and what stands before it may be shown; without one everything is the key. With
    `apart` no letter, digit, dash or underscore stands before it, but for the end of an escaped character.
    """

    __slots__ = ("apart", "check", "kind", "mark", "pattern")

    def __init__(self, kind: str, mark: str, rest: str, check: Callable[[str], bool], apart: bool = True) -> None:
        self.kind = kind
        self.mark = mark
        self.check = check
        self.apart = apart
        self.pattern = re.compile(re.escape(mark) + rest, re.ASCII)


def _keys(text: str) -> Iterator[Finding]:
    for form in _FORMS:
        if form.mark in text:
            group = "secret" if "secret" in form.pattern.groupindex else 0
            for match in form.pattern.finditer(text):
                if form.check(match[group]) and (not form.apart or _begins_apart(match)):
                    yield Finding(form.kind, *match.span(group), _shown(match))


_APART = re.compile(
    r"(?:\A|[^A-Za-z0-9_-]|\\[nrt]|\[[0-9;]{0,20}m|%[0-9A-F]{2}|\\(?:u00|x)[0-9a-f]{2})\Z", re.IGNORECASE | re.ASCII
)
"""What may stand before a key: also newlines, other characters and colours of a terminal as they are in code, JSON in
JSON and URLs."""


def _begins_apart(match: re.Match[str]) -> bool:
    return bool(_APART.search(match.string, max(match.start() - 24, 0), match.start()))


_NEWLINE = re.compile(r"[\n\\]")


def _shown(match: re.Match[str]) -> str:
    if "secret" in match.re.groupindex:
        before = match.string[match.start() : match.start("secret")]
        return f"{_NEWLINE.split(before)[0][:SHOWN_BEFORE]}…"
    return f"{match[0][:SHOWN]}…"


_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def _has_crc(token: str) -> bool:
    """Whether the last six characters are the CRC-32, in base 62, of what is between them and a prefix of four."""
    rest, digits = zlib.crc32(token[4:-6].encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = _BASE62[digit] + digits
    return digits == token[-6:]


def _is_bech32(key: str) -> bool:
    """Whether the check characters are right."""
    prefix, _, data = key.lower().rpartition("1")
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    check = 1
    for value in values + [_BECH32.index(char) for char in data]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check == 1


_MADE_UP = re.compile(
    r"(.)\1{7}|01234567|12345678|23456789|87654321|abcdefgh|1a2b3c4d|a1b2c3d4|deadbeef|example|placeholder|redacted"
    r"|(?:^|[-_./])(?:your|fake|dummy|insert|replace|paste|sample|change[-_]?me)|[-_](?:here|token|secret|key)(?![a-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_EMULATED = "Eby8vdM02xNOcqFlqUwJPLlmEt"
"""How the key begins that every emulator of Azure Storage has."""


def _is_varied(key: str) -> bool:
    """Whether a key has as many different characters as one drawn at random; of 16 in base 32 these are about 13."""
    return len(set(key)) >= 7


def _is_random(key: str) -> bool:
    """Whether a key does not look like those that are made up for a manual."""
    return _is_varied(key) and not _MADE_UP.search(key)


def _is_mixed(key: str) -> bool:
    """The same, for keys of at least 24 characters in base 62: without small and capital letters they are names."""
    return key.lower() != key and key[-34:].upper() != key[-34:] and _is_random(key)


def _is_secret_of_aws(key: str) -> bool:
    return _is_mixed(key) and any(map(str.isdigit, key))


def _is_github(token: str) -> bool:
    return _has_crc(token) or (len(token) == 80 and _is_mixed(token))


def _is_grafana(token: str) -> bool:
    """Whether it ends in the CRC-32 of the rest."""
    rest, _, digits = token.rpartition("_")
    return zlib.crc32(rest.encode()).to_bytes(4, "little").hex() == digits.lower()


def _is_of_azure(key: str) -> bool:
    return not key.startswith(_EMULATED) and _is_random(key)


# What must not come next, for keys of a fixed length.
_R = r"(?![A-Za-z0-9])"
_RD = r"(?![A-Za-z0-9_-])"
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_THREE_DIGITS = "[MNO][DTjz][AEIMQUYcgk][w-z0-5]"
# Behind 17 to 19 decimal digits in base 64, and a dot.
_BEHIND_AN_ID = "(?:{})".format(
    "|".join(
        rf"(?<={digits}\.)"
        for digits in (
            _THREE_DIGITS * 5 + "[MNO][DTjz][AEIMQUYcgk]",
            _THREE_DIGITS * 6,
            _THREE_DIGITS * 6 + "[MNO][AQgw]",
        )
    )
)
# What may stand between the lines of a key: newlines, also escaped ones, and the signs of quoting and of strings.
_GAP = r"""(?:[\s"'`+,>|*#]|\\{1,4}[nrt])"""

_FORMS = (
    _Form("GitHub token", "gh", r"(?:r_[A-Za-z0-9]{76}(?![A-Za-z0-9])|[opusr]_[A-Za-z0-9]{36})", _is_github, False),
    _Form("GitHub token", "ghs_", r"[0-9]{1,12}_eyJ[\w-]{10,2000}\.[\w-]{20,4000}\.[\w-]{20,1000}", _is_random),
    _Form("GitHub token", "github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _R, _is_mixed),
    _Form("npm token", "npm_", r"[A-Za-z0-9]{36}", _has_crc, False),
    _Form(
        "GitLab token", "gl",
        r"(?:pat|dt|rt|ptt|oas|cbt|soat|ft|agent|imt|ffct)-[\w-]{20,300}(?:\.[0-9a-z]{2})?(?:\.[0-9a-z]{9})?",
        _is_random,
    ),
    _Form("AWS access key", "A", "(?:KI|SI|BI|CC)A[A-Z2-7]{16}" + _R, _is_random),
    _Form("Google API key", "AIza", r"[\w-]{35}" + _RD, _is_random),
    _Form("Google client secret", "GOCSPX-", r"[\w-]{28}" + _RD, _is_random),
    _Form("OpenAI key", "sk-", r"[\w-]{20,120}T3BlbkFJ[\w-]{20,120}", _is_random),
    _Form("Anthropic key", "sk-ant-", r"[a-z]{3,8}[0-9]{2}-[\w-]{80,120}", _is_random),
    _Form("OpenRouter key", "sk-or-v1-", r"[0-9a-f]{64}" + _R, _is_random),
    _Form("Hugging Face token", "hf_", r"[A-Za-z0-9]{34}" + _R, _is_mixed),
    _Form("Hugging Face token", "api_org_", r"[A-Za-z]{34}" + _R, _is_mixed),
    _Form("Groq key", "gsk_", r"[A-Za-z0-9]{52}" + _R, _is_mixed),
    _Form("xAI key", "xai-", r"[A-Za-z0-9]{80}" + _R, _is_mixed),
    _Form("Perplexity key", "pplx-", r"[A-Za-z0-9]{48}" + _R, _is_mixed),
    _Form("Replicate token", "r8_", r"[A-Za-z0-9]{37}" + _R, _is_mixed),
    _Form("Slack token", "xox", r"[abceoprs]-(?:[0-9]{1,14}-){1,3}[A-Za-z0-9]{18,200}", _is_random),
    _Form("Slack token", "xoxd-", r"(?:[A-Za-z0-9+/_-]|%[0-9A-Fa-f]{2}){60,600}={0,2}", _is_mixed),
    _Form("Slack token", "xapp-", r"[0-9]-[A-Z0-9]{9,14}-[0-9]{10,14}-[0-9a-f]{64}" + _R, _is_random),
    _Form(
        "Slack webhook", "hooks.slack.com/services/",
        r"(?P<secret>T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{24})" + _R, _is_random, False,
    ),
    _Form(
        "Slack webhook", "hooks.slack.com/workflows/",
        r"(?P<secret>T[A-Z0-9]{8,12}/A[A-Z0-9]{8,12}/[0-9]{15,20}/[A-Za-z0-9]{24})" + _R, _is_random, False,
    ),
    _Form(
        "Slack webhook", "hooks.slack.com/triggers/",
        r"(?P<secret>[TE][A-Z0-9]{8,12}/[0-9]{10,20}/[0-9a-f]{32})" + _R, _is_random, False,
    ),
    _Form("Discord token", ".", _BEHIND_AN_ID + r"(?P<secret>[\w-]{6}\.[\w-]{27,40})" + _RD, _is_random, False),
    _Form("Discord webhook", "/webhooks/", r"(?P<secret>[0-9]{17,20}/[\w-]{60,72})" + _RD, _is_random, False),
    _Form("Telegram token", ":AA", r"(?<=[0-9]{8}:AA)[\w-]{33}" + _RD, _is_random, False),
    *(_Form("Stripe key", mark, r"[A-Za-z0-9]{24,247}" + _R, _is_mixed) for mark in ("sk_live_", "rk_live_")),
    _Form("Stripe key", "whsec_", r"(?:[A-Za-z0-9+/]{32}){1,2}={0,2}" + _R, _is_random),
    _Form("SendGrid key", "SG.", r"[\w-]{22}\.[\w-]{43}" + _RD, _is_random),
    _Form("Shopify token", "shp", r"(?:at|ca|pa|ss)_[0-9a-fA-F]{32}" + _R, _is_random),
    _Form("PyPI token", "pypi-AgE", r"(?:IcHlwaS5vcmc|NdGVzdC5weXBpLm9yZw)[\w-]{70,1000}", _is_varied, False),
    _Form("RubyGems key", "rubygems_", r"[0-9a-f]{48}" + _R, _is_random),
    _Form("Docker token", "dckr_", r"[po]at_[\w-]{27,40}" + _RD, _is_random),
    *(_Form("DigitalOcean token", f"do{kind}_v1_", r"[0-9a-f]{64}" + _R, _is_random) for kind in "opr"),
    _Form("Databricks token", "dapi", r"[0-9a-f]{32}" + _R, _is_random),
    _Form("Tailscale key", "tskey-", r"[a-z]{3,10}-[A-Za-z0-9]{8,30}-[A-Za-z0-9]{20,50}" + _RD, _is_random),
    _Form("Vault token", "hvs.", r"[\w-]{90,120}", _is_random),
    _Form("Atlassian token", "ATATT3", r"[\w=-]{186}" + _RD, _is_random),
    _Form("Linear key", "lin_api_", r"[A-Za-z0-9]{40}" + _R, _is_mixed),
    _Form("Notion token", "ntn_", r"[0-9]{11}[A-Za-z0-9]{35}" + _R, _is_mixed),
    _Form("Grafana token", "glsa_", r"[A-Za-z0-9]{32}_[0-9a-fA-F]{8}" + _R, _is_grafana),
    _Form("Grafana token", "glc_", r"eyJ[A-Za-z0-9+/]{40,400}={0,2}", _is_mixed),
    _Form("New Relic key", "NRAK-", r"[A-Z0-9]{27}" + _R, _is_random),
    _Form("Postman key", "PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}" + _R, _is_random),
    _Form("Figma token", "figd_", r"[\w-]{40}" + _RD, _is_random),
    _Form("Supabase token", "sbp_", r"[0-9a-f]{40}" + _R, _is_random),
    _Form("PlanetScale token", "pscale_", r"(?:tkn|oauth|pw)_[\w=.-]{32,64}", _is_mixed),
    _Form("LangSmith key", "lsv2_", r"(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}" + _R, _is_random),
    _Form(
        "Doppler token", "dp.",
        r"(?:pt|ct|sa|scim|audit|st(?:\.[\w-]{2,35})?)\.[A-Za-z0-9]{40,44}" + _R, _is_mixed,
    ),
    _Form("npm token", "_authToken=", rf"(?P<secret>{_UUID})" + _R, _is_random, False),
    _Form("Azure key", "SharedAccessKey=", r"(?P<secret>[A-Za-z0-9+/]{43}=)", _is_mixed, False),
    _Form("Azure storage key", "AccountKey=", r"(?P<secret>[A-Za-z0-9+/]{86}==)", _is_of_azure, False),
    _Form(
        "private key", "-----BEGIN ",
        "(?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----" + _GAP + "*"
        r"(?:[A-Z][A-Za-z-]{2,20}: [^\n\\]{1,100}(?:\n|\\{1,4}n)" + _GAP + "*){0,6}"
        "(?P<secret>[A-Za-z0-9/][A-Za-z0-9+/]{39,4000})",
        _is_varied, False,
    ),
    _Form(
        "private key", "Private-Lines: ",
        "[0-9]{1,4}" + _GAP + "+(?P<secret>[A-Za-z0-9+/]{40,4000})", _is_varied, False,
    ),
    _Form("age key", "AGE-SECRET-KEY-", rf"(?:PQ-)?1[{_BECH32.upper()}]{{58}}", _is_bech32, False),
)  # fmt: skip


# --- Passwords, which have no form -----------------------------------------------------------------

_URL = re.compile(r"""://[^\s:/@"'`<>\\]{0,100}:(?P<secret>[^\s:/@"'`<>{}|\\]{8,200})@(?P<host>[\w.-]{1,100})""")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}\Z", re.ASCII)
_QUOTED = re.compile(r"""[=:][ \t]{0,8}(\\?["'`])(?P<secret>[^\s"'`\\]{8,200})\1""")
_PLAIN = re.compile(r"""=(?P<secret>[^\s"'`\\=;&|<>(){}]{8,200}={0,2})(?=[\s"'`\\;]|\Z)""")
_CALLED = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|(?:api|access|auth|secret|encryption|master)[_-]?key"
    r"|(?P<public>(?:page|pagination|continuation|next|sync|csrf|xsrf|middleware|cursor|(?:in|out)put)[_-]?)?token)"
)
"""The name of a secret. A token that says where to go on, or that goes out with each form, is none."""
_NAME = re.compile(
    _CALLED + r"\\?[\"'`]?\]?[ \t]{0,4}(?::[ \t]?str[ \t])?\Z",
    re.IGNORECASE | re.ASCII,
)
_VARIABLE = re.compile(
    r"(?:\A|(?<=[\s\"'`;]))[A-Z0-9_]{0,24}?(?:PASS(?:WORD|WD)?|PWD|SECRET|(?P<public>(?:GPG|PGP|PUB|PUBLIC|PUBLISHABLE"
    r"|SITE|HOST|CACHE|PRIMARY|FOREIGN|SORT|PARTITION|RANGE|HASH|ROUTING|OBJECT|GROUP|DEDUP|DEDUPLICATION|IDEMPOTENCY"
    r"|CSRF|XSRF|PAGE|NEXT|CONTINUATION)_)?(?:TOKEN|KEY))\Z",
    re.ASCII,
)
"""The name of a variable of the environment that holds a secret, behind something that can stand before it."""
_ENTRY = re.compile(
    rf"(?:\A|[\r\n])[ \t>*]{{0,30}}(?:- )?[\w.-]{{0,30}}?{_CALLED}[ \t]{{0,4}}\Z", re.IGNORECASE | re.ASCII
)
_VALUE = re.compile(r""":[ \t]{1,8}(?P<secret>[^\s"'`\\;,&|<>(){}\[\]]{10,200})[ \t]{0,8}(?=[\r\n#]|\Z)""")
"""An entry of YAML that has a line of its own."""
_AUTHORIZATION = re.compile(r"authorization[\"'\\\]]{0,4}[ \t]{0,4}[:=,][ \t]{0,4}[\"'`\\f]{0,4}\Z", re.IGNORECASE)
_BEARER = re.compile(r"Bearer[ \t]{1,4}(?P<secret>[\w.~+/-]{20,2000}={0,2})(?![\w=])", re.ASCII)
_USER = re.compile(r"""-(?<=\s-)(?:u|-user)[= \t]{0,3}["']?[^\s:"'`\\]{1,100}:(?P<secret>[^\s"'`\\<>{}|&;]{8,200})""")
_CURL = re.compile(r"\bcurl\b(?:[^\n|]|\\\n){0,240}\Z")
_BASE64_OF_40 = re.compile(r"""[=:][> \t]{0,8}["'`]?(?P<secret>[A-Za-z0-9+/]{40})(?![A-Za-z0-9+/=])""")
_NAME_OF_AWS = re.compile(
    r"(?:secret[_ -]?access[_ -]?key|aws_?secret(?:_?key)?)\\?[\"'`]?(?: \[[^\]\n]{0,20}\])?[ \t]{0,4}\Z",
    re.IGNORECASE | re.ASCII,
)
"""As in a program, a configuration file, and where `aws configure` asks for it."""
_LOOK_BACK = 64
_LOOK_BACK_FOR_CURL = 250


def _passwords_in_urls(text: str) -> Iterator[Finding]:
    for match in _URL.finditer(text):
        if "example" not in match["host"] and _is_password(match["secret"]):
            scheme = _SCHEME.search(text, max(match.start() - _LOOK_BACK, 0), match.start())
            yield Finding("password in a URL", *match.span("secret"), f"{scheme[0] if scheme else ''}://…")


def _passwords_behind_names(text: str) -> Iterator[Finding]:
    for kind, marks, values, names, check in _NAMED:
        for match in values.finditer(text) if any(mark in text for mark in marks) else ():
            name = names.search(text, max(match.start() - _LOOK_BACK, 0), match.start())
            if name and not name.groupdict().get("public") and check(match["secret"]):
                shown = text[name.start() : match.start("secret")].lstrip()[-SHOWN_BEFORE:]
                yield Finding(kind, *match.span("secret"), f"{shown}…")


def _passwords_for_curl(text: str) -> Iterator[Finding]:
    for match in _USER.finditer(text) if "curl" in text else ():
        start = max(match.start() - _LOOK_BACK_FOR_CURL, 0)
        if _is_password(match["secret"]) and _CURL.search(text, start, match.start()):
            yield Finding("password", *match.span("secret"), "curl -u …")


_NO_PASSWORD = re.compile(
    r"\$|%[sd(]|\.{0,2}/|<|\w{1,20}\$[0-9]+\$|.*(?:\$\{|\{\{|%\(|\(\?|\[[aA0]-|://|\.\.\.|…|\*\*\*)|eyJ|.*(?:^|[-_])test[-_]"
    rf"|(?:urn:uuid:)?{_UUID}\Z|ssh-(?:ed25519|rsa|dss)|ecdsa-sha2-|sk-(?:ssh|ecdsa)-"
    r"|2YotnFZFEjr1zCsicMWpAA|tGzv3JOkF0XG5Qx2TlKWIA|mF_9\.B5f-4\.1JqM",
    re.IGNORECASE | re.DOTALL,
)
"""Variables, templates, paths, hashes that name their method, regular expressions, JWTs, test keys, UUIDs, the types of
public keys of ssh, the tokens in the RFCs of OAuth 2."""
_SEQUENCES = re.compile(
    r"(.)\1{2,}|(?:19|20)\d\d|\d{0,2}(?:123|234|345|456|567|678|789|890|321)\d{0,2}|abcd?e?f?|def|ghi|xyz"
)
_LEET = str.maketrans("013457@$!", "oleastasi")
_WORDS = re.compile(
    "password|passwor[dt]|passw|pass|pwd|secret|token|credential|private|public|encryption|placeholder|example|sample"
    "|insecure|production|staging|postgres|mysql|maria|mongo|redis|rabbit|database|docker|django|flask|spring|server"
    "|client|service|session|cookie|application|change|replace|insert|default|random|string|value|access|refresh|bearer"
    "|oauth|auth|admin|root|user|guest|owner|login|super|strong|secure|complex|simple|hello|world|welcome|letmein|qwerty"
    "|asdf|hunter|dragon|monkey|correct|horse|battery|staple|dummy|fake|temp|test|demo|local|host|prod|your|mine|this"
    "|that|with|from|here|some|long|very|real|safe|only|must|should|least|char|bytes|bits|foo|bar|baz|qux|dev|api|app"
    "|jwt|key|not|new|old|the|and|for|my|me|db|id|is|it|to|in|of|at|or|we|be"
)


def _is_password(value: str) -> bool:
    """Whether a value has letters and digits, and eight characters that belong to no word and no sequence.

    Every manual has passwords in it; such a one is made of words, whatever digits it has in place of letters.
    """
    if _NO_PASSWORD.match(value) or _MADE_UP.search(value) or not _has_letters_and_digits(value):
        return False
    rest = _WORDS.sub("", _SEQUENCES.sub("", value.lower()).translate(_LEET))
    rest = re.sub(r"[\W_]", "", rest)
    return len(rest) >= 8 and len(set(rest)) >= 6


_KINDS = re.compile(r"[a-z]+|[A-Z]+|[0-9]+|[^A-Za-z0-9]+")


def _is_drawn(value: str) -> bool:
    """Whether a password was drawn at random: it goes from small letters to capitals and digits with each other sign.

    Names in programs do not, whatever digits they have.
    """
    kinds = _KINDS.findall(value)
    return len(kinds) >= 0.45 * len(value) and value.lower() != value != value.upper() and _is_password(value)


def _is_of_bearer(value: str) -> bool:
    return _is_drawn(value) or (bool(re.fullmatch(r"[0-9a-f]{32,128}", value)) and _is_password(value))


def _has_letters_and_digits(value: str) -> bool:
    return bool(re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value))


_NAMED = (
    ("AWS secret key", ("ecret", "SECRET"), _BASE64_OF_40, _NAME_OF_AWS, _is_secret_of_aws),
    ("password", ("=", ":"), _QUOTED, _NAME, _is_password),
    ("password", ("=",), _PLAIN, _VARIABLE, _is_password),
    ("password", (":",), _VALUE, _ENTRY, _is_drawn),
    ("bearer token", ("Bearer",), _BEARER, _AUTHORIZATION, _is_of_bearer),
)
"""What counts only behind a name: its kind, a mark that is in the text then, value, name, and who has the last word."""
