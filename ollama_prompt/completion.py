r"""The completion scripts, one for each shell, made from the flags.

A script has two parts: what the flags are, which is written here, and how its shell completes them, which is
the template below. To a script a flag is its names, its help, and what its value is: words to choose from,
and a kind, one of "session", "file", "folder", "gguf", and "" for text and numbers, where nothing is offered.

Sessions are asked of the program itself: `--list-sessions` prints one a line, and the script takes the line
apart. A title is whatever somebody typed, or what a prompt began with. So

- nothing of it is ever evaluated or inserted: what is inserted is an id, of hexadecimal digits and dashes;
- it is shown on one line, its control characters as JSON writes them or not at all;
- a line that does not look like a session is no candidate, and nothing is printed but candidates.

A word stands for the sessions whose id begins with it, or else for those that have it in their title.

shtab could write the part about the flags, but has no `--session-id=` in bash and zsh. The rest, which is most
of it, would be here all the same.
"""

from __future__ import annotations

import re

from ollama_prompt import config
from ollama_prompt import flags as flags_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action

SEARCHED = 500
"""A word is looked for in so many sessions, the newest ones. Bash takes a fifth of a second for them."""
OFFERED = 50
"""So many are shown. From 100 candidates on, shells ask first whether they should."""

_KINDS = {"UUID": "session", "FILE": "file", "PATH": "file", "DIR": "folder", "NAME": "gguf"}
"""What the placeholder of a value says about it."""
_WORDS = {"LEVEL": config.THINK_LEVELS}
"""The words that a placeholder stands for."""

_LINE = (
    r'^ *\{"session_id": *"([0-9a-f-]{36})",.* "last_used": *(null|"([^"T]*)[^"]*"),.*'
    r' "title": *(null|"(([^"\\]|\\.)*)"), *"path":'
)
"""A line of the listing. Groups 1, 3 and 5 are the id, the day of the last use, and the title.

A title cannot lead it astray: the quotation marks in one have backslashes before them.
"""

_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks of writing from right to left, which a title could turn the rest of its line around with."""


def script(shell: str) -> str:
    """The completion script for bash, zsh, fish or powershell."""
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish, "powershell": _powershell}
    made = makers[shell](_flags())
    return made.replace("@SEARCHED@", str(SEARCHED)).replace("@OFFERED@", str(OFFERED))


class _Flag:
    """What a script has to know of a flag."""

    __slots__ = ("help", "is_repeatable", "kind", "names", "placeholder", "takes_value", "value_is_optional", "words")

    def __init__(self, action: Action, help_: str) -> None:
        self.names = list(action.option_strings)
        self.help = " ".join(help_.split())
        self.takes_value = action.nargs != 0
        self.value_is_optional = action.nargs == "?"
        self.is_repeatable = type(action).__name__ == "_AppendAction"  # `flags` alone imports argparse
        self.placeholder = str(action.metavar or action.dest.upper())
        self.words = [str(choice) for choice in action.choices or ()]
        self.kind = ""
        for alternative in self.placeholder.split("|") if self.takes_value else ():
            self.kind = self.kind or _KINDS.get(alternative, "")
            self.words += _WORDS.get(alternative, [alternative] if re.fullmatch("[a-z]+", alternative) else [])


def _flags() -> list[_Flag]:
    parser = flags_.make_parser()
    help_of = parser._get_formatter()._expand_help
    return [_Flag(action, help_of(action)) for action in parser._actions if action.help != "==SUPPRESS=="]


def _single_quoted(text: str) -> str:
    """For bash and zsh, where nothing but the quotation mark is special then."""
    return "'" + text.replace("'", r"'\''") + "'"


def _octal(text: str) -> str:
    """The bytes as $'…' of bash and zsh takes them."""
    return "".join(f"\\{byte:03o}" for byte in text.encode())


# -- bash --------------------------------------------------------------------------------------------------


def _bash(flags: list[_Flag]) -> str:
    values = [_bash_value(flag) for flag in flags if flag.takes_value]
    names = " ".join(name for flag in flags for name in flag.names)
    made = _BASH.replace("@VALUES@", "\n".join(values)).replace("@NAMES@", names)
    return made.replace("@LINE@", _single_quoted(_LINE)).replace("@TURNING@", _octal(_TURNING))


def _bash_value(flag: _Flag) -> str:
    names, words = " | ".join(flag.names), " ".join(flag.words)
    return f"        {names}) kind={_single_quoted(flag.kind)} words={_single_quoted(words)} ;;"


_BASH = r"""# Completion of ollama-prompt in bash, from 3.2 on.

# What the value of a flag is; fails for a flag without one.
_ollama_prompt_value() {
    case $1 in
@VALUES@
        *) return 1 ;;
    esac
}

# The sessions that a word stands for, newest first: id, day, and so much of the title.
# In a subshell, so that the option and the names end with it.
_ollama_prompt_sessions() (
    shopt -s nocasematch
    word=$1 width=$2 limit=$((${#1} ? @SEARCHED@ : @OFFERED@)) by_id=() by_title=()
    turning=$'[@TURNING@]' backslash='\' quote='"' aside=$'\001'
    line=@LINE@
    \ollama-prompt --list-sessions --limit $limit --output json </dev/null 2>/dev/null | {
        while IFS= read -r listed; do
            [[ $listed =~ $line ]] || continue
            id=${BASH_REMATCH[1]} day=${BASH_REMATCH[3]} title=${BASH_REMATCH[5]}
            if [[ $title == *"$backslash"* ]]; then
                title=${title//\\\\/$aside}
                title=${title//\\[nrtbf]/ }
                title=${title//\\$quote/$quote}
                title=${title//$aside/$backslash}
            fi
            title=${title//[[:cntrl:]]/ }
            printf -v shown '%s  %-10s  %s' "$id" "$day" "${title//$turning/}"
            if [[ $id == "$word"* ]]; then
                by_id+=("${shown:0:$width}")
            elif [[ $title == *"$word"* ]]; then
                by_title+=("${shown:0:$width}")
            fi
        done
        if [[ ${#by_id[@]} == 0 ]]; then by_id=("${by_title[@]}"); fi
        printf '%s\n' "${by_id[@]:0:@OFFERED@}"
    }
)

# Where TAB finds several, it lists them, and inserts what they begin with alike: ids and titles, to be looked at.
# Other keys insert one after the other: ids only. Bash 3.2 does not tell which key it was: ids as well.
_ollama_prompt_offer_sessions() {
    local typed=${word//\\/} width=$((${COLUMNS:-80} - 1)) heading='SESSION'
    _ollama_prompt_offer "$(_ollama_prompt_sessions "$typed" $((width > 60 ? width : 60)) 2>/dev/null)"
    if [[ ${#COMPREPLY[@]} -gt 1 && ${COMP_TYPE-} =~ ^(9|33|63|64)$ ]]; then
        heading='SESSION                               LAST USED   TITLE'
    else
        COMPREPLY=("${COMPREPLY[@]%% *}")
    fi
    compopt -o nosort 2>/dev/null
    if [[ ${#COMPREPLY[@]} -lt 2 || ${COMP_TYPE-} =~ ^(37|42)$ ]]; then return; fi
    # The heading begins like no id: nothing is alike, and a word of a title stays until it is of one title only.
    if [[ ! $typed || ${COMPREPLY[0]} != "$prefix$typed"* ]]; then COMPREPLY=("$heading" "${COMPREPLY[@]}"); fi
}

# Each line is a candidate.
_ollama_prompt_offer() {
    local line
    while IFS= read -r line; do
        if [[ $line ]]; then COMPREPLY+=("$prefix$line"); fi
    done <<<"$1"
}

_ollama_prompt() {
    local IFS=$' \t\n' word=$2 flag=$3 whole=${COMP_WORDS[COMP_CWORD]} joined='' prefix='' kind='' words=''
    COMPREPLY=()
    if [[ $whole == --*=* ]]; then  # --flag=value is one word in bash 3.2, and where COMP_WORDBREAKS has no =
        joined=yes flag=${whole%%=*}
        if [[ $word == "$flag="* ]]; then prefix=$flag= word=${word#*=}; fi
    elif [[ $whole == '=' ]]; then  # else it is three
        joined=yes
    elif [[ $flag == '=' ]]; then
        joined=yes flag=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    compopt +o default 2>/dev/null  # no files where none are meant; bash 3.2 offers them wherever there is nothing else
    if [[ ! $joined && $word == -* ]] || ! _ollama_prompt_value "$flag"; then
        if [[ ! $joined ]]; then _ollama_prompt_offer "$(compgen -W '@NAMES@' -- "$word")"; fi
        return
    fi
    _ollama_prompt_offer "$(compgen -W "$words" -- "$word")"
    case $kind in
        session) _ollama_prompt_offer_sessions ;;
        folder) compopt -o dirnames 2>/dev/null ;;
        gguf)
            _ollama_prompt_offer "$(compgen -f -X '!*.[gG][gG][uU][fF]' -- "${word//\\/}")"
            compopt -o filenames -o plusdirs 2>/dev/null
            ;;
        file)
            if [[ ${#COMPREPLY[@]} == 0 ]]; then
                compopt -o default 2>/dev/null
            else
                _ollama_prompt_offer "$(compgen -f -- "$word")"
                compopt -o filenames 2>/dev/null
            fi
            ;;
    esac
}

complete -o default -F _ollama_prompt ollama-prompt
"""


# -- zsh ---------------------------------------------------------------------------------------------------


def _zsh(flags: list[_Flag]) -> str:
    specs = " \\\n".join(f"    {_single_quoted(spec)}" for flag in flags for spec in _zsh_specs(flag))
    made = _ZSH.replace("@SPECS@", specs)
    return made.replace("@LINE@", _single_quoted(_LINE)).replace("@TURNING@", _octal(_TURNING))


def _zsh_specs(flag: _Flag) -> list[str]:
    """As _arguments takes them, one for each name: (not with these)--name=[help]:value:action."""
    others = "*" if flag.is_repeatable else f"({' '.join(flag.names)})"
    help_ = re.sub(r"([\\\[\]])", r"\\\1", flag.help)
    value = _zsh_value(flag) if flag.takes_value else ""
    joints = [("=" if name.startswith("--") else "+") if flag.takes_value else "" for name in flag.names]
    return [f"{others}{name}{joint}[{help_}]{value}" for name, joint in zip(flag.names, joints, strict=True)]


def _zsh_value(flag: _Flag) -> str:
    action = {
        "session": "_ollama_prompt_sessions",
        "file": " _ollama_prompt_files " + " ".join(flag.words) if flag.words else "_files",
        "folder": "_files -/",
        "gguf": '_files -g "*.(#i)gguf"',
        "": f"({' '.join(flag.words)})" if flag.words else " ",
    }[flag.kind]
    colons = "::" if flag.value_is_optional else ":"
    return colons + re.sub(r"([\\:])", r"\\\1", flag.placeholder) + ":" + action


_ZSH = r"""#compdef ollama-prompt
# Completion of ollama-prompt in zsh.

# The sessions that a word stands for, newest first: the id is inserted, id, day and title are shown.
_ollama_prompt_sessions() {
  setopt localoptions no_bash_rematch no_rematch_pcre
  local listed id day title word=${(L)${(Q)PREFIX}}${(L)${(Q)SUFFIX}} quote='"' backslash='\' aside=$'\1'
  local turning=$'[@TURNING@]'
  local line=@LINE@
  local -a by_id by_title shown expl match mbegin mend
  local -A rows
  local limit=$(( ${#word} ? @SEARCHED@ : @OFFERED@ ))
  local listing="$(_call_program sessions ollama-prompt --list-sessions --limit $limit --output json 2>/dev/null)"
  for listed in ${(f)listing}; do
    [[ $listed =~ $line ]] || continue
    id=$match[1] day=$match[3] title=$match[5]
    if [[ $title == *$backslash* ]]; then
      title=${title//\\\\/$aside}
      title=${title//\\[nrtbf]/ }
      title=${title//\\$quote/$quote}
      title=${title//$aside/$backslash}
    fi
    if [[ $id == $word* ]]; then
      by_id+=($id)
    elif [[ ${(L)title} == *$word* ]]; then
      by_title+=($id)
    fi
    rows[$id]="$id  ${(r:10:)day}  ${${title//[[:cntrl:]]/ }//${~turning}/}"
  done
  # -U: a word of a title is no beginning of an id, and is replaced all the same.
  local -a found=(${by_id[1,@OFFERED@]}) force=()
  (( $#found )) || found=(${by_title[1,@OFFERED@]}) force=(-U -i "$IPREFIX")
  # No id has been begun, so that its beginning would tell nothing: the newest is inserted, TAB goes to the next.
  [[ $#found -gt 1 && -n $compstate[insert] && ( -z $word || -n $force ) ]] && compstate[insert]=menu
  for id in $found; do
    shown+=(${(mr:COLUMNS-1:)rows[$id]})
  done
  _wanted -V sessions expl session compadd "${force[@]}" -l -d shown -a found
}

# Words, and files as well.
_ollama_prompt_files() {
  _alternative "words:word:($*)" 'files:file:_files'
}

_ollama-prompt() {
  _arguments \
@SPECS@
}

if [[ $funcstack[1] == _ollama-prompt ]]; then  # from a folder of $fpath, when it is first needed
  _ollama-prompt "$@"
else
  compdef _ollama-prompt ollama-prompt
fi
"""


# -- fish --------------------------------------------------------------------------------------------------


def _fish(flags: list[_Flag]) -> str:
    completions = "\n".join(line for flag in flags for line in _fish_lines(flag))
    made = _FISH.replace("@COMPLETIONS@", completions).replace("@LINE@", _single_quoted_for_fish(_LINE + ".*"))
    return made.replace("@TURNING@", "".join(rf"\x{{{ord(char):x}}}" for char in _TURNING))


def _fish_lines(flag: _Flag) -> list[str]:
    """One line, and another for a value that may follow in the next word but need not."""
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    value = _fish_value(flag)
    need = ["-x" if flag.kind != "file" else "-r"] if flag.takes_value and not flag.value_is_optional else []
    lines = [" ".join(["complete -c ollama-prompt", names, *need, *value, "-d", _single_quoted_for_fish(flag.help)])]
    if flag.value_is_optional:
        condition = f"-n '__fish_prev_arg_in {' '.join(flag.names)}'"
        lines.append(" ".join(["complete -c ollama-prompt", condition, *value]))
    return lines


def _fish_value(flag: _Flag) -> list[str]:
    value = {
        "session": ["-k", "-a", "'(__ollama_prompt_sessions)'"],
        "file": ["-F"],
        "folder": ["-a", "'(__fish_complete_directories)'"],
        "gguf": ["-a", "'(__ollama_prompt_gguf)'"],
        "": [],
    }[flag.kind]
    return [*value, "-a", _single_quoted_for_fish(" ".join(flag.words))] if flag.words else value


def _single_quoted_for_fish(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"


_FISH = r"""# Completion of ollama-prompt in fish, from 3.2 on.

# The sessions that the word stands for, newest first: the id, and day and title as its description.
# Fish drops candidates that are unlike the word. So a word of one title is replaced here, which fish 3 does not
# let a completion do. Words of more titles are for Shift-TAB, fish's own search in ids and descriptions.
function __ollama_prompt_sessions
    type -q ollama-prompt; or return
    set -l token (commandline -ct)
    set -l flag (string match -r -- '^--[^=]+=' "$token")
    set -l word (string replace -r -- '^--[^=]+=' '' "$token" | string unescape)
    set -l limit (test -n "$word"; and echo @SEARCHED@; or echo @OFFERED@)
    set -l rows (ollama-prompt --list-sessions --limit $limit --output json </dev/null 2>/dev/null |
        string replace -rf -- @LINE@ '$1'\t'$3  $5' |
        string replace -a -- '\\\\' \x01 | string replace -ar -- '\\\\[nrtbf]' ' ' | string replace -a -- '\\"' '"' |
        string replace -a -- \x01 '\\' | string replace -ar -- '[@TURNING@\x7f-\x9f]' '')
    set -l pattern (string escape --style=regex -- "$word")
    set -l by_id (string match -ir -- "^$pattern.*" $rows)
    set -l by_title (string match -ir -- "^[^\t]*\t\S*  .*$pattern.*" $rows)
    if set -q by_id[1]
        printf '%s\n' $by_id[1..@OFFERED@]
    else if test (count $by_title) -eq 1
        commandline -rt -- "$flag"(string replace -r -- '\t.*' ' ' $by_title) 2>/dev/null
    end
end

function __ollama_prompt_gguf
    set -l word (string replace -r -- '^--[^=]+=' '' (commandline -ct))
    complete -C "'' $word" | string replace -r -- '\t.*' '' | string match -ir -- '.*(?:/|\.gguf)$'
end

complete -c ollama-prompt -f
@COMPLETIONS@
"""


# -- PowerShell --------------------------------------------------------------------------------------------


def _powershell(flags: list[_Flag]) -> str:
    rows = "\n".join(_powershell_row(name, flag) for flag in flags for name in flag.names)
    turning = "".join(f"\\u{ord(char):04x}" for char in _TURNING)
    return _POWERSHELL.replace("@FLAGS@", rows).replace("@TURNING@", turning)


def _powershell_row(name: str, flag: _Flag) -> str:
    words = ", ".join(map(_single_quoted_for_powershell, flag.words))
    value = f"Value = ${str(flag.takes_value).lower()}; Kind = '{flag.kind}'; Words = @({words})"
    help_ = _single_quoted_for_powershell(flag.help)
    return f"        [pscustomobject]@{{ Name = '{name}'; {value}; Help = {help_} }}"


def _single_quoted_for_powershell(text: str) -> str:
    """In ASCII. Windows PowerShell reads what a program prints in a code page, and takes the quotation marks of
    typography for the end of a string: one might come of a half of another character.
    """
    plain = text.replace("…", "...").encode("ascii", "replace").decode()
    return "'" + plain.replace("'", "''") + "'"


_POWERSHELL = r"""# Completion of ollama-prompt in PowerShell 7 and Windows PowerShell 5.1.
Register-ArgumentCompleter -Native -CommandName 'ollama-prompt' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    # Settings of the user's that would make an error of what is none here.
    Set-StrictMode -Off
    $ErrorActionPreference = 'SilentlyContinue'
    $PSNativeCommandUseErrorActionPreference = $false

    $flags = @(
@FLAGS@
    )

    function New-Candidate($text, $shown, $tip) {
        [System.Management.Automation.CompletionResult]::new($text, $shown, 'ParameterValue', $tip)
    }

    # The newest sessions. What the last command left behind stays as it was.
    function Get-Session($limit) {
        $exitCode, $encoding = $global:LASTEXITCODE, [Console]::OutputEncoding
        try { [Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false } catch { }
        try {
            $listing = ollama-prompt --list-sessions --limit $limit --output json 2>$null | Out-String
            ($listing | ConvertFrom-Json).sessions | Where-Object { $_.session_id -cmatch '^[0-9a-f-]{36}$' }
        } finally {
            try { [Console]::OutputEncoding = $encoding } catch { }
            $global:LASTEXITCODE = $exitCode
        }
    }

    # The sessions that a word stands for: the id is inserted, id, day and title are shown.
    function Find-Session($word) {
        $alike = [StringComparison]::OrdinalIgnoreCase
        $sessions = @(Get-Session $(if ($word) { @SEARCHED@ } else { @OFFERED@ }))
        $found = @($sessions | Where-Object { $_.session_id.StartsWith($word, $alike) })
        if ($found.Count -eq 0) {
            $found = @($sessions | Where-Object { "$($_.title)".IndexOf($word, $alike) -ge 0 })
        }
        foreach ($session in $found | Select-Object -First @OFFERED@) {
            $title = $session.title -replace '[\p{Cc}@TURNING@]', ' '
            $day = "$($session.last_used)".Split('T')[0]
            if ($session.last_used -is [datetime]) {  # PowerShell 7 has made one of the text
                $day = $session.last_used.ToString('yyyy-MM-dd', [cultureinfo]::InvariantCulture)
            }
            New-Candidate ($prefix + $session.session_id) "$($session.session_id)  $day  $title" "$day  $title"
        }
    }

    # Files and folders, in quotation marks where they need them. CompleteFilename cannot take an empty word.
    function Find-File($word, $kind) {
        if (-not $word) { $word = '.' + [System.IO.Path]::DirectorySeparatorChar }
        foreach ($file in [System.Management.Automation.CompletionCompleters]::CompleteFilename($word)) {
            $fits = $kind -eq 'file' -or ($kind -eq 'gguf' -and $file.ListItemText -like '*.gguf')
            if ($fits -or $file.ResultType -eq 'ProviderContainer') {
                New-Candidate ($prefix + $file.CompletionText) $file.ListItemText $file.ToolTip
            }
        }
    }

    $word, $prefix = ($wordToComplete -replace '^[''"]|[''"]$', ''), ''
    $flag = @($commandAst.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursorPosition })[-1].Extent.Text
    if ($word -match '^(--[^=]+)=[''"]?(.*)$') {
        $flag, $prefix, $word = $Matches[1], "$($Matches[1])=", $Matches[2]
    }
    $value = $flags | Where-Object { $_.Value -and $_.Name -ceq $flag } | Select-Object -First 1
    $found = @(
        if (-not $value -or (-not $prefix -and $word -clike '-*')) {
            $flags | Where-Object { -not $prefix -and $_.Name.StartsWith($word, [StringComparison]::Ordinal) } |
                ForEach-Object { New-Candidate $_.Name $_.Name $_.Help }
        } else {
            $value.Words | Where-Object { $_ -and $_.StartsWith($word, [StringComparison]::Ordinal) } |
                ForEach-Object { New-Candidate ($prefix + $_) $_ $value.Help }
            if ($value.Kind -eq 'session') { Find-Session $word } elseif ($value.Kind) { Find-File $word $value.Kind }
        }
    )
    # Without any result, PowerShell would go on to offer files; null says that there are none.
    if ($found.Count -gt 0) { $found } else { $null }
}
"""
