"""Run one program and report what it cost: a small process of its own, where a child's peak memory begins.

    python -I -S scripts/benchmarking/launch.py REPORT COMMAND…

REPORT gets one line: exit code, user + system seconds, seconds on the clock, peak memory in bytes, bytes written (-1
where the system does not count them). Linux gives a new process the memory of the one that started it as its first
peak, so this one imports next to nothing. Bytes written are those of all `write` calls, also to stdout and stderr:
read from /proc while the process has ended and is not yet waited for.
"""

import os
import sys
import time


def bytes_written(pid: int) -> int:
    """What an ended process has written; -1 where that is not known."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            return int(file.read().partition("wchar:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return -1


def main(report: str, command: list[str]) -> int:
    """Run the command; its exit code."""
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    took = time.perf_counter() - start
    written = bytes_written(pid)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open(report, "w", encoding="ascii") as file:
        file.write(f"{code} {used.ru_utime + used.ru_stime} {took} {peak} {written}\n")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
