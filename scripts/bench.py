"""What commands cost, as ratios to bare Python in the same run; see docs/benchmarks.md.

    python3 scripts/bench.py [--rounds N] [--peers [--few] [--real] | --git | --search] [--json FILE]

Measured are starting, turns, many sessions and long sessions; with --peers side by side with programs that do similar
things, and many processes at once; with --real also a conversation on the Ollama at OLLAMA_HOST; with --git instead a
large store under git, with --search one that is searched. How is told in the modules of `benchmarking`. The project is
installed into an environment of its own, byte-compiled, as users have it.

Tables go to stdout, in Markdown, with --json FILE also as data; what is being done goes to stderr. POSIX only: Windows
does not tell a child's CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import options
from environment import ROOT, Failed, run

sys.path.append(str(ROOT / "tests"))

from benchmarking import comparison, peers, real_ollama, repositories, searching, servers
from benchmarking.report import Report


def main(arguments: list[str]) -> int:
    """Measure; the exit code."""
    wanted = wanted_of(arguments)
    with (
        contextlib.redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        contextlib.closing(servers.InstantServer()) as server,
    ):
        report = measure(wanted, Path(folder), server)
    print(report.markdown())
    if wanted.json:
        report.write(wanted.json)
    return 0


def wanted_of(arguments: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="CPU time of commands as ratios to bare Python")
    parser.add_argument("--rounds", type=options.count, default=25)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--peers", action="store_true", help="side by side with other programs")
    what.add_argument("--git", action="store_true", help="a store under git instead")
    what.add_argument("--search", action="store_true", help="a large store that is searched instead")
    parser.add_argument("--few", action="store_true", help="with --peers: small stores only")
    parser.add_argument("--real", action="store_true", help="with --peers: also on a real Ollama")
    parser.add_argument("--json", type=options.new_file, metavar="FILE", help="the raw figures")
    wanted = parser.parse_args(arguments)
    if (wanted.few or wanted.real) and not wanted.peers:
        parser.error("--few and --real go with --peers")
    return wanted


def measure(wanted: argparse.Namespace, folder: Path, server: servers.InstantServer) -> Report:
    """What was asked for, with the programs that there are."""
    others = [peers.FirstMajor(), peers.Llm(), peers.ShellGpt()] if wanted.peers else []
    every = [peers.Ours(), *others]
    programs, told = comparison.ready(every, folder, server.url)
    if every[0] not in programs:
        raise Failed(told[every[0].name])
    made = comparison.Comparison(programs, folder, server, wanted.rounds)
    if wanted.git:
        told[repositories.Git.name] = repositories.version()
        repositories.measure(made)
    elif wanted.search:
        searching.measure(made)
    elif wanted.peers:
        most = 2 if wanted.few else None
        made.all(comparison.SIZES[:most], comparison.TURNS[:most])
        made.at_once()
    else:
        made.all(comparison.ALONE, comparison.ALONE)
    if wanted.real:
        made.tables.append(real_ollama.measure(programs, folder, 6 if wanted.few else 18))
    absent = [program.name for program in every if program not in programs]
    return Report(told, absent, [program.note for program in programs if program.note], made.tables, made.floors)


if __name__ == "__main__":
    run(main)
