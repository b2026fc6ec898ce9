"""The store under git: set up, committed, merged with what other machines pushed, pushed.

    commit what changed → fetch → hold the sessions that the merge will change → commit → merge → push
                           ↑_________________________ somebody else was faster _________________________|

git is the engine, with its built-in union merge: a conversation only grows, line by line, and each record has an
id, so that the lines of both sides are kept and a repeated one does no harm.

- No line of either side is lost. A session that one side deleted and the other continued stays, and so do the
  pictures that a session names. A file that was moved as it is keeps what the other side added.
- A merge replaces files, and a turn may be waiting for its answer. So the sessions that it changes are held
  meanwhile; if one of them is in use, all of it waits for the next sync: half a merge would drop the other half.
- The repository is never left in the middle of a merge. One that cannot be ended is undone, and the reason told;
  one that was killed is ended by the next sync.
- Only what the store has made is committed (`_OWN`), also where the repository is a larger one. A repository is the
  store's own if nothing else of weight is tracked in it; histories that have nothing in common meet only there.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shlex
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256

from ollama_prompt import clock, interrupts
from ollama_prompt.errors import GitFailed, StoreError, UsageError
from ollama_prompt.git import Git, failure
from ollama_prompt.layout import cannot_write, open_own
from ollama_prompt.readable import textconv_command
from ollama_prompt.records import is_conflict_marker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ollama_prompt.indexer import Indexer

    Step = Callable[[str, int, int], None]

BRANCH = "main"
STEPS = LOOKING, COMMITTING, FETCHING, MERGING, PUSHING = range(5)
ATTEMPTS = 10
"""How often a push may lose against others before we give up."""
KILLED_SECONDS = 3.0
"""How long a git that lost the sync it worked for may go on, before its locks are taken for left behind."""
LEFT_SECONDS = 60.0
"""A lock that was made so long before or after our last note of what we do is not ours."""
_DRIVER = "diff.ollama-prompt.textconv"
_OPEN = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
"""What git has in its folder while something is not ended."""
_ANOTHERS = (b"You have not concluded your merge", b"you have unmerged files")
"""How git refuses a merge because somebody has begun another one since we looked: it is not ours to end or to undo."""
_OWN = ("sessions", "attachments", ".gitignore", ".gitattributes")
"""What of the store is under git."""
_FOLDERS = ("sessions", "attachments")
"""Those of them that are folders."""
_IN_STORE = ("--", *_OWN)
_PRIVATE = re.compile(r"locks$|history\.jsonl|(?:sessions|search)\.db|sessions-1\.x", re.IGNORECASE)
"""What a store has beside that, in any case of letters: to some systems it is the same."""
_LINKS = {"120000", "160000"}
"""git's modes of symbolic links, and of repositories inside the repository."""
_BESIDE = re.compile(r"\.|README|LICEN[CS]E", re.IGNORECASE)
"""What people have at the top of a repository that holds nothing but conversations."""
_NAMES = ("--name-only", "-z", "--relative", "--no-renames")
_COMMIT = re.compile(r"(?<!\S)[0-9a-f]{40,64}(?!\S)")
_SAMPLE = "00000000-0000-7000-8000-000000000000.jsonl"
_SAMPLE_PICTURE = "attachments/" + 64 * "0"
_MERGED = "Merge what other machines pushed"
_BY_HAND = "what changed is committed; settle it with git by hand, and say --sync again"
_COMMITTED = "what changed is committed; the next --sync sends it"


def set_up(indexer: Indexer, remote: str | None, note: Callable[[str], None]) -> dict[str, Any]:
    """Put the store under git, in a repository of its own or the one that it lies in. Raises `GitFailed`.

    May be run again: only what is missing is made.
    """
    indexer.layout.make()
    indexer.layout.complete_git_files()
    git = Git(indexer.layout.home)
    created = not _is_in_repository(git)
    if created:
        git.run("init", "--quiet")
        git.run("symbolic-ref", "HEAD", f"refs/heads/{BRANCH}")
    git.run("config", _DRIVER, textconv_command(sys.executable))
    if remote is not None:
        _name_remote(git, remote)
    with indexer.syncing(0), _translated():
        repository = _Repository(git, indexer, note)
        if git.is_private and (created or repository.head()):  # an empty one may become a project
            with suppress(OSError):
                os.chmod(indexer.layout.home, 0o700)
        if not repository.recover():
            with repository.journalled():
                repository.commit()
    followed = _Remote.of(git)
    top = os.path.normpath(git.run("rev-parse", "--show-toplevel"))
    return {"repository": top, "remote": _shown(followed.url) if followed else None, "created": created}


def _is_in_repository(git: Git) -> bool:
    """Whether the store lies in a work tree; one that ignores it, such as a home directory's, is not meant."""
    return _prefix_of(git) is not None and git.ask("check-ignore", "sessions") is None


def _prefix_of(git: Git) -> str | None:
    """Where the store lies in the work tree that it is in; None if it is in none. Raises `GitFailed`."""
    done = git.attempt("rev-parse", "--is-inside-work-tree", "--show-prefix")
    if done.returncode and b"not a git repository" not in done.stderr:  # it belongs to somebody else, say
        raise failure("rev-parse", done)
    is_inside, _, prefix = os.fsdecode(done.stdout).removesuffix("\n").partition("\n")
    return prefix if is_inside == "true" else None


def _name_remote(git: Git, remote: str) -> None:
    """Let the branch here follow the one of the same name there, also for `git pull` by hand."""
    if remote.startswith("-"):
        raise UsageError(f"--remote: {remote!r} is no URL")
    is_path = "://" not in remote and (":" not in remote or os.path.isdir(remote))
    url = os.path.abspath(os.path.expanduser(remote)) if is_path else remote
    branch = _branch(git)
    followed = _Remote.of(git)
    if followed is None:
        git.run("remote", "add", "origin", "--", url)
    elif followed.url != url:
        top = git.run("rev-parse", "--show-toplevel")
        hint = f"{shlex.join(['git', '-C', top, 'remote', 'set-url', followed.name])} URL"
        raise GitFailed(f"the repository has another remote already: {_shown(followed.url)}", hint=hint)
    if git.ask("config", f"branch.{branch}.remote") is None:
        git.run("config", f"branch.{branch}.remote", followed.name if followed else "origin")
        git.run("config", f"branch.{branch}.merge", f"refs/heads/{branch}")


def _branch(git: Git) -> str:
    """The branch that is checked out: what is committed on none, the next `git switch` takes away."""
    branch = git.ask("symbolic-ref", "--quiet", "--short", "HEAD")
    if branch is None:
        raise GitFailed("no branch is checked out", hint="git switch BRANCH; what changed goes along")
    return branch


def _shown(url: str) -> str:
    """Without the password or token that may be in it."""
    url = url.partition("?")[0]
    return re.sub(r"^(https?://)[^/]*@|(://[^/@:]*):[^/]*@", lambda found: found[1] or f"{found[2]}@", url)


def sync(
    indexer: Indexer,
    lock_timeout: float,
    note: Callable[[str], None],
    step: Step = lambda *_: None,
) -> dict[str, Any]:
    """Commit, fetch, merge, push: how many sessions came and went; `step` is told what is done, and how many were.

    Raises `GitFailed`, `SessionBusy`.
    """
    git = Git(indexer.layout.home)
    if not (os.path.isdir(indexer.layout.home) and _is_set_up(git)):
        raise GitFailed("the conversations are not under git", hint="ollama-prompt --git-setup")
    with indexer.syncing(lock_timeout), _translated():
        repository = _Repository(git, indexer, note, step)
        if in_use := repository.recover():
            return repository.result(skipped=in_use)
        with repository.journalled():
            return _sync(repository, note)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(error) from error


def _is_set_up(git: Git) -> bool:
    """Whether the store's own repository, or a larger one that --git-setup has seen, is there."""
    prefix = _prefix_of(git)
    return prefix is not None and (_is_own(git, prefix) or git.ask("config", "--local", _DRIVER) is not None)


def _is_own(git: Git, prefix: str) -> bool:
    """Whether the repository holds nothing but conversations; it may be empty."""
    return not prefix and _holds_conversations(git, "HEAD")


def _holds_conversations(git: Git, commit: str) -> bool:
    """Whether that is all that there is of weight; it may be nothing."""
    tracked = git.ask("ls-tree", "-z", "--name-only", "--full-tree", commit) or ""
    return all(name in _OWN or _BESIDE.match(name) for name in tracked.split("\0") if name)


def _sync(repository: _Repository, note: Callable[[str], None]) -> dict[str, Any]:
    step = repository.step
    step(LOOKING, "looking for what changed")
    repository.commit()
    remote = _Remote.of(repository.git)
    if remote is None:
        note("there is no remote, so that nothing was sent: --git-setup --remote URL names one")
        return repository.result()
    for attempt in itertools.count(1):
        theirs = remote.fetch(partial(step, FETCHING))
        if attempt == 1 and theirs is None and (others := remote.branches()):
            note(f"the remote has no branch {remote.branch} yet, but: {', '.join(others)}")
        in_use = repository.merge(theirs) if theirs else []
        for session_id in repository.doubles():
            note(f"session {session_id} was moved here and continued there: --check --repair joins its two files")
        if in_use or theirs == repository.head():
            break
        sent = repository.changed(theirs, "HEAD")
        try:
            remote.push(partial(step, PUSHING), _number(len(sent), "session"))
        except _Outrun as refusal:
            if attempt == ATTEMPTS:
                refusal.message += f"; tried {ATTEMPTS} times"
                raise
        else:
            return repository.result(sent=len(sent), pushed=True)
        time.sleep(random.uniform(0, 0.1 * attempt))  # noqa: S311  so that two that lost do not meet again
    return repository.result(skipped=in_use)


class _Outrun(GitFailed):
    """Somebody else pushed before us, it seems."""


class _Remote:
    """The remote repository `name` at `url`, and the `branch` there that goes with the one here."""

    def __init__(self, git: Git, name: str, branch: str) -> None:
        self._git = git
        self.name = name
        self.branch = branch
        self.url = git.run("config", f"remote.{name}.url")

    @classmethod
    def of(cls, git: Git) -> _Remote | None:
        """The one that the branch here follows, else `origin`, else the only one. Raises `GitFailed`."""
        branch = _branch(git)
        remotes = git.run("remote").split()
        followed_remote = git.ask("config", f"branch.{branch}.remote")
        if followed_remote not in {None, ".", *remotes}:
            hint = f"git remote add NAME URL, and git config {shlex.quote(f'branch.{branch}.remote')} NAME"
            raise GitFailed(f"the branch follows no remote, but {_shown(followed_remote or '')}", hint=hint)
        wanted = (followed_remote, "origin", *(remotes if len(remotes) == 1 else ()))
        name = next((name for name in wanted if name in remotes), None)
        if name is None:
            if remotes:
                hint = f"git config {shlex.quote(f'branch.{branch}.remote')} NAME"
                raise GitFailed(f"which remote is meant is not clear: {', '.join(remotes)}", hint=hint)
            return None
        followed = git.ask("config", f"branch.{branch}.merge") if name == wanted[0] else None
        return cls(git, name, (followed or branch).removeprefix("refs/heads/"))

    def branches(self) -> list[str]:
        """The branches that there are."""
        found = self._git.ask("ls-remote", "--heads", self.name) or ""
        return [line.partition("refs/heads/")[2] for line in found.splitlines()]

    def fetch(self, tell: Callable[[str], None]) -> str | None:
        """The newest commit there; None if there is none yet. Raises `GitFailed`."""
        ours = f"refs/remotes/{self.name}/{self.branch}"
        tell(f"fetching from {self.name}")
        done = self._git.watch(
            lambda far: tell(f"fetching from {self.name}: {far}"),
            "fetch",
            self.name,
            f"+refs/heads/{self.branch}:{ours}",
        )
        if b"couldn't find remote ref" in done.stderr:
            return None
        if done.returncode:
            raise failure("fetch", done, hint=_COMMITTED)
        return self._git.run("rev-parse", "--verify", ours)

    def push(self, tell: Callable[[str], None], which: str) -> None:
        """Send our commits. Raises `_Outrun`, `GitFailed`."""
        target = f"HEAD:refs/heads/{self.branch}"
        tell(f"pushing {which} to {self.name}")
        done = self._git.watch(
            lambda far: tell(f"pushing to {self.name}: {far}"), "push", "--quiet", "--porcelain", self.name, target
        )
        if done.returncode == 0:
            return
        said = done.stdout + done.stderr
        refusal = failure("push", done, hint=_COMMITTED)
        if any(words in said for words in (b"[rejected]", b"cannot lock ref", b"failed to update ref", b"stale info")):
            raise _Outrun(refusal.message, hint=refusal.hint)
        raise refusal


class _Repository:
    """What git has of the store."""

    def __init__(self, git: Git, indexer: Indexer, note: Callable[[str], None], step: Step = lambda *_: None) -> None:
        self.git = git
        self.step: Callable[[int, str], None] = lambda number, what: step(what, number, len(STEPS))
        self._indexer = indexer
        self._note = note
        self._ignored: set[str] = set()
        names = (*_OPEN, "AUTO_MERGE", "MERGE_MSG", "index.lock", "refs")
        found = git.run("rev-parse", "--show-prefix", *(part for name in names for part in ("--git-path", name)))
        self._prefix, *paths = found.split("\n")
        git.is_private = _is_own(git, self._prefix)  # the files of a larger repository are its people's
        self._git_paths = {
            name: os.path.join(indexer.layout.home, path) for name, path in zip(names, paths, strict=True)
        }
        self._journal = os.path.join(indexer.layout.locks, "syncing")
        self._is_merging = False
        self._committed: set[str] = set()
        self._received: set[str] = set()

    def result(self, sent: int = 0, pushed: bool = False, skipped: Iterable[str] = ()) -> dict[str, Any]:
        """What is printed of a sync: numbers of sessions."""
        came = {"committed": len(self._committed), "received": len(self._received)}
        return {**came, "sent": sent, "pushed": pushed, "skipped": list(skipped)}

    def head(self) -> str | None:
        """The newest commit; None before the first."""
        return self.git.ask("rev-parse", "--quiet", "--verify", "HEAD")

    def changed(self, before: str | None, after: str) -> list[str]:
        """The sessions whose files differ between two commits; without the first one, all that there are."""
        if before is None:
            return _sessions(self.git.paths("ls-tree", "-r", "-z", "--name-only", after, *_IN_STORE))
        return _sessions(self.git.paths("diff", *_NAMES, before, after, *_IN_STORE))

    def doubles(self) -> list[str]:
        """Sessions that were received, and lie in several files now."""
        files = Counter(self._indexer.session_ids()) if self._received else Counter()
        return sorted(id_ for id_ in self._received if files[id_] > 1)

    def commit(self) -> None:
        """Commit what changed in the store. Raises `GitFailed`."""
        self._refuse_foreign_merge()
        _branch(self.git)
        self._look_for_ignored()
        self._add()
        changes = _Changes(self.git)
        if changes.names:
            self.step(COMMITTING, f"committing {_number(len(changes.sessions()), 'session')}")
            self._write_commit(changes.message(), changes.names)
            self._committed.update(changes.sessions())

    def _write_commit(self, message: str, names: Iterable[str]) -> None:
        """What somebody has staged in a larger repository stays so; and what is refused does not stay staged."""
        self.git.name_author()
        with suppress(FileNotFoundError):
            os.utime(self._journal)  # a lock that this git leaves is then as old as our note: see LEFT_SECONDS
        hint = f"in {self._indexer.layout.home}, git add --all, and then git commit, tell more"
        self._refuse_foreign_merge()  # one that was begun since we looked: this would end it
        with self.git.apart():
            try:
                only = () if self.git.is_private else ("--only", "--", *names)  # which looks at all files once more
                self.git.run("commit", "--quiet", "--file", "-", *only, text=message, hint=hint)
            except GitFailed:
                if not os.path.exists(self._git_paths["MERGE_HEAD"]):  # else somebody's merge is staged there, too
                    self.git.attempt("reset", "--quiet", "--", *names)
                raise

    def _refuse_foreign_merge(self) -> None:
        for name in _OPEN:
            if os.path.exists(self._git_paths[name]):
                raise GitFailed(f"the repository is in the middle of something: {name}", hint="git status tells what")

    def _look_for_ignored(self) -> None:
        """What leaves conversations out would leave them out in silence: a rule, a link, a repository in there."""
        layout = self._indexer.layout
        for place in (layout.sessions, layout.attachments, *layout.folders()):
            if os.path.islink(place) or os.path.lexists(os.path.join(place, ".git")):
                raise GitFailed(
                    f"git does not look into {place}", hint="it must be a folder, not a link or a repository"
                )
        folders = (os.path.basename(folder) for folder in layout.folders())
        places = ["sessions/2026-01", *(f"sessions/{name}" for name in folders)]
        samples = {f"{place}/{_SAMPLE}": place for place in places} | {_SAMPLE_PICTURE: "attachments"}
        names = "\0".join((*samples, *_OWN))
        done = self.git.attempt("check-ignore", "--no-index", "--stdin", "-z", text=names)
        self._ignored = set(os.fsdecode(done.stdout).split("\0"))
        for sample in (sample for sample in samples if sample in self._ignored):
            rule = self.git.run("check-ignore", "--no-index", "--verbose", "--", sample).partition("\t")[0]
            if samples[sample] == places[0]:
                raise GitFailed(f"git ignores sessions: {rule}", hint="remove that rule, or add !*.jsonl behind it")
            self._note(f"git ignores {samples[sample]}, which stays on this machine: {rule}")

    def _add(self) -> None:
        """A session that is deleted while git looks at it makes it fail: once more."""
        home = self._indexer.layout.home
        names = [
            name for name in _OWN if name not in self._ignored
            if os.path.lexists(os.path.join(home, name)) or self.git.ask("ls-files", "--", name)
        ]  # fmt: skip
        for _ in range(ATTEMPTS):
            done = self.git.attempt("add", "--all", "--", *names)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        raise failure("add", done)

    # --- Merging -------------------------------------------------------------------------------

    def merge(self, theirs: str) -> list[str]:
        """Take in what others pushed; or nothing of it, where sessions that it changes are in use: those.

        Raises `GitFailed`, with everything as it was.
        """
        if self.git.attempt("merge-base", "--is-ancestor", theirs, "HEAD").returncode == 0:
            return []
        base = self.git.ask("merge-base", "HEAD", theirs)
        self._refuse_planted(base, theirs)
        changed = self.changed(base, theirs)
        with self._indexer.holding(changed) as in_use:
            if in_use:
                return in_use
            self.commit()
            self.step(MERGING, f"merging {_number(len(changed), 'session')}")
            before = self.head()
            with interrupts.deferred(), self.git.apart():
                self._merge_held(theirs)
                with interrupts.heard():
                    pass
        self._received.update(self.changed(before, "HEAD"))
        return []

    def _refuse_planted(self, base: str | None, theirs: str) -> None:
        """Links lead out of the store, what git leaves out here is for this machine only, and where a file lies in the
        place of a folder nothing can be written: none of it may come.
        """
        index = os.path.basename(self._indexer.layout.index).lower()
        entries = self.git.paths("diff", "--raw", *_NAMES[1:], base or self.git.run("mktree"), theirs, "--", ".")
        for facts, path in zip(entries[::2], entries[1::2], strict=True):
            top = path.partition("/")[0].lower()
            is_private = bool(_PRIVATE.match(top)) or top == index
            is_link = facts.split()[1] in _LINKS and top in _OWN
            is_misplaced = top in _OWN and ("/" in path) != (top in _FOLDERS)
            if is_link or ((is_private or is_misplaced) and not facts.endswith("D")):
                what = "is a link, or a repository" if is_link else "lies in the place of another kind of file"
                what = "is for one machine only" if is_private else what
                hint = f"git -C {shlex.quote(self._indexer.layout.home)} log HEAD..{theirs[:12]} tells who pushed it"
                raise GitFailed(f"nothing was merged: somebody pushed {path}, which {what}", hint=hint)

    def _merge_held(self, theirs: str) -> None:
        before = self.git.run("rev-parse", "HEAD")
        self._note_merge(f"{before} {theirs}")
        self.git.name_author()
        # A fork is like its source: were that deleted, git would take the one for the other's new name.
        options = ["--quiet", "--ff", "--strategy-option", "find-renames=100%", "--message", _MERGED]
        options += ["--allow-unrelated-histories"] * (self.git.is_private and _holds_conversations(self.git, theirs))
        # Options of the user's for merges by hand could leave it open, or take one side only.
        done = self.git.attempt("-c", f"branch.{_branch(self.git)}.mergeOptions=", "merge", *options, theirs)
        if done.returncode:
            refusal = failure("merge", done, hint=_BY_HAND)
            if any(words in done.stderr for words in _ANOTHERS):
                self._note_merge("")
                raise refusal
            if not os.path.exists(self._git_paths["MERGE_HEAD"]):
                self._undo_cut_merge(before, theirs)
                raise refusal
            if b"Unable to write index" in done.stderr:  # see `_is_empty_merge`
                self.git.run("merge", "--quit")
                self._note_merge("")
                raise failure("merge", done, hint=_COMMITTED)
            self._end_merge(refusal)
        self._keep_pictures((before, theirs))
        self._note_merge("")

    def _is_empty_merge(self) -> bool:
        """Whether nothing is merged in the merge that is open: git leaves it so where another one holds the index.

        It is forgotten, not undone: that would take along what is staged, and need the index itself.
        """
        is_noted = os.path.exists(self._git_paths["AUTO_MERGE"])  # git does that with what it has merged
        return not (is_noted or self.git.ask("ls-files", "--unmerged", "--", ":/"))

    def _is_our_merge(self) -> bool:
        """Whether the merge that is open bears our message, or none yet."""
        with (
            suppress(FileNotFoundError),
            open(self._git_paths["MERGE_MSG"], encoding="utf-8", errors="replace") as file,
        ):
            return file.readline().strip() == _MERGED
        return True

    def _complete(self, ours: str, theirs: str) -> None:
        """Somebody may have added a session while it was not merged: add the lines of theirs that it has not got."""
        base = self.git.ask("merge-base", ours, theirs) or self.git.run("mktree")
        for path in self.git.paths("diff", *_NAMES, "--diff-filter=d", base, theirs, "--", "sessions"):
            if os.path.exists(os.path.join(self._indexer.layout.home, path)):
                self._indexer.give_back(path, self.git.content("cat-file", "--filters", f"{theirs}:./{path}"))

    def _undo_cut_merge(self, ours: str, theirs: str) -> None:
        """A git that was killed, or could not write, may have changed some files."""
        if self.git.was_killed:
            self._remove_locks()
        if self.git.attempt("diff", "--quiet", ours, *_IN_STORE).returncode:
            self._give_back(ours, self.changed(self.git.ask("merge-base", ours, theirs), theirs))
        self._note_merge("")

    def _end_merge(self, refusal: GitFailed | None) -> None:
        """Keep the lines of both sides, and what one side deleted; undo a merge that needs somebody's mind.

        `refusal` is why it did not end by itself; None if git was killed. Nothing else is staged meanwhile: what is
        staged goes where the merge is undone.
        """
        since = {} if refusal else self._turns_since()
        stages: dict[str, set[str]] = {}
        for entry in self.git.paths("ls-files", "--unmerged", "-z", "--full-name", ":/"):
            facts, _, path = entry.partition("\t")
            stages.setdefault(path, set()).add(facts.split()[2])
        try:
            if refusal and not stages:
                raise refusal  # a hook says no
            for path, found in stages.items():
                self._resolve(path, found)
            self.git.run("commit", "--quiet", "--message", _MERGED)
        except (GitFailed, StoreError, OSError):
            if since:
                self.git.run("add", "--", *(f":(literal){path}" for path in since))  # else nothing could be undone
            self.git.run("merge", "--abort")
            for path, lines in since.items():
                self._indexer.give_back(path, lines)
            self._note_merge("")
            raise

    def _turns_since(self) -> dict[str, bytes]:
        """The lines of the sessions that a merge changed, and that were continued after git was killed in it."""
        merged = set(self.git.paths("diff", "--cached", *_NAMES, "HEAD", "--", "sessions"))
        ahead = self.git.paths("diff", "--diff-filter=d", *_NAMES, "--", "sessions")
        return {path: self._added_since(path) for path in ahead if path in merged}

    def _resolve(self, path: str, stages: set[str]) -> None:
        """Settle one file: both sides of a session (a NUL byte keeps git from it), the sound one of two pictures."""
        name = path.rpartition("/")[2]
        if not path.startswith(self._prefix):
            raise GitFailed(f"git cannot merge {path} by itself", hint="git pull, and merge it by hand")
        if {"2", "3"} <= stages:
            # As in the work tree: what lies in the repository may be encrypted.
            sides = [self.git.content("cat-file", "--filters", f":{stage}:{path}") for stage in "23"]
            place = path.removeprefix(self._prefix)
            if name.endswith(".jsonl"):
                content = _union(*sides, self._added_since(place))
            elif sound := [data for data in sides if sha256(data).hexdigest() == name]:
                content = sound[0]
            else:
                raise GitFailed(f"git cannot merge {path} by itself", hint="git pull, and merge it by hand")
            self._indexer.replace(place, content)
        self.git.run("add", "--", f":/{path}")

    def _added_since(self, path: str) -> bytes:
        """The whole lines of a file, relative to the store: turns may have been taken since git was killed."""
        try:
            with open(open_own(os.path.join(self._indexer.layout.home, path), os.O_RDONLY), "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return b""
        return b"".join(line + b"\n" for line in lines if not is_conflict_marker(line))

    def _keep_pictures(self, commits: Iterable[str]) -> None:
        """Bring back pictures that one side deleted, where a session that the other side has names them."""
        named: set[str] | None = None
        for commit in commits:
            gone = self.git.paths("diff", *_NAMES, "--diff-filter=D", commit, "HEAD", "--", "attachments")
            if gone and named is None:
                named = self._indexer.images()
            for path in gone:
                if named is None or path.rpartition("/")[2] in named:
                    self.git.run("checkout", "--quiet", commit, "--", path)
        self.commit()

    # --- Being killed --------------------------------------------------------------------------

    @contextmanager
    def journalled(self) -> Iterator[None]:
        """Leave a note for the next sync, until all is done, or what was begun is undone."""
        self._note_merge("")
        try:
            yield
        finally:
            if not (self._is_merging or self.git.was_killed):
                with suppress(FileNotFoundError):
                    os.unlink(self._journal)

    def _note_merge(self, commits: str) -> None:
        """`commits` are those that a merge begins with: ours, theirs; "" if none is open."""
        with open(open_own(self._journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
            file.write(commits)
        self._is_merging = bool(commits)

    def recover(self) -> list[str]:
        """End what an earlier sync was killed in. Sessions that are in use: what they lost is given back later."""
        try:
            with open(open_own(self._journal, os.O_RDONLY), encoding="utf-8") as file:
                commits = _COMMIT.findall(file.read())
        except FileNotFoundError:
            return []
        self._remove_locks()
        in_use = self._end_killed_merge(*commits) if len(commits) == 2 else []
        if not in_use:
            os.unlink(self._journal)
        return in_use

    def _remove_locks(self) -> None:
        """Remove the locks of a git that was killed; one that goes on without us is waited for."""
        folder = os.path.dirname(self._git_paths["index.lock"])
        locks = [
            self._git_paths["index.lock"],
            *(os.path.join(folder, f"{name}.lock") for name in ("HEAD", "ORIG_HEAD")),
        ]
        for where, _, names in os.walk(self._git_paths["refs"]):
            locks += [os.path.join(where, name) for name in names if name.endswith(".lock")]
        left = {lock: made for lock in locks if (made := _made(lock))}
        end = time.monotonic() + KILLED_SECONDS
        while any(map(os.path.exists, locks)) and time.monotonic() < end:
            time.sleep(0.05)
            left = {lock: made for lock, made in left.items() if _made(lock) == made}  # else others are at work
        noted = os.stat(self._journal).st_mtime
        for lock, (_, time_ns) in left.items():
            if abs(time_ns / 1e9 - noted) < LEFT_SECONDS:  # else another git's
                with suppress(FileNotFoundError):
                    os.unlink(lock)

    def _end_killed_merge(self, ours: str, theirs: str) -> list[str]:
        """End it, or give back what it took; the sessions that are in use, for which this has to wait."""
        changed = self.changed(self.git.ask("merge-base", ours, theirs), theirs)
        with self._indexer.holding(changed) as in_use, interrupts.deferred(), self.git.apart():
            if self.head() != ours:
                if self.git.ask("rev-parse", "HEAD^1", "HEAD^2") == f"{ours}\n{theirs}":
                    self._keep_pictures((ours, theirs))
            elif self.git.ask("rev-parse", "--quiet", "--verify", "MERGE_HEAD") != theirs:
                self._give_back(ours, [id_ for id_ in changed if id_ not in in_use])
                return in_use
            elif not self._is_our_merge():
                return []  # begun by hand since
            elif in_use:
                return in_use
            elif self._is_empty_merge():
                self.git.run("merge", "--quit")
            else:
                self.git.name_author()
                self._complete(ours, theirs)
                self._end_merge(None)
                self._keep_pictures((ours, theirs))
            self._received.update(self.changed(ours, "HEAD"))
        return []

    def _give_back(self, commit: str, session_ids: list[str]) -> None:
        """git writes files in place: give those of these sessions the lines back that a cut merge took from them."""
        wanted = set(session_ids)
        for path in self.git.paths("ls-tree", "-r", "-z", "--name-only", commit, *_IN_STORE):
            if wanted.intersection(_sessions([path])):
                self._indexer.give_back(path, self.git.content("cat-file", "--filters", f"{commit}:./{path}"))
        for name in self._indexer.damaged_pictures():
            os.unlink(self._indexer.layout.attachment(name))
            if self.git.ask("ls-tree", "--name-only", commit, "--", f"attachments/{name}"):
                self.git.run("checkout", "--quiet", commit, "--", f"attachments/{name}")


def _made(path: str) -> tuple[int, int] | None:
    """What tells a lock from the next one in its place; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _union(ours: bytes, *others: bytes) -> bytes:
    """The lines of all, each once, ours first."""
    lines = ours.removesuffix(b"\n").split(b"\n")
    there = set(lines)
    for other in others:
        added = [line for line in other.split(b"\n") if line and line not in there]
        lines += added
        there.update(added)
    return b"\n".join([*lines, b""])


class _Changes:
    """What is about to be committed: of each session how many turns it has got, None for one that is removed.

    `names` are those of `_OWN` that changed.
    """

    def __init__(self, git: Git) -> None:
        self.names: set[str] = set()
        self._turns: dict[str, int | None] = {}
        options = (
            "--cached", "--unified=0", "-O/dev/null", "--irreversible-delete", "--no-color", "--no-ext-diff",
            "--text", "--no-textconv", "--no-renames", "--relative", "--src-prefix=a/", "--dst-prefix=b/",
        )  # fmt: skip
        session_id = ""
        for line in git.lines("diff", *options, *_IN_STORE):
            if line.startswith(b"diff --git "):
                self.names.update(name for name in _OWN if line[11:].lstrip(b'"').startswith(b"a/" + name.encode()))
                session_id = next(iter(_sessions([os.fsdecode(line.rstrip(b'"\n'))])), "")
                self._turns |= {session_id: 0} if session_id else {}
            elif session_id and line.startswith(b"deleted file "):
                self._turns[session_id] = None
            elif session_id and line.startswith(b"+{") and b'"role":"assistant"' in line:
                self._turns[session_id] = (self._turns[session_id] or 0) + 1

    def sessions(self) -> list[str]:
        """All that changed."""
        return list(self._turns)

    def message(self) -> str:
        """A commit's: how many turns in how many sessions, and which."""
        kept = [turns for turns in self._turns.values() if turns is not None]
        removed = len(self._turns) - len(kept)
        counted = f"{_number(sum(kept), 'turn')} in {_number(len(kept), 'session')}"
        gone = f"{_number(removed, 'session')} removed"
        title = ", ".join([counted] * bool(kept) + [gone] * bool(removed)) or "Settings of the store"
        lines = [f"{id_} {'removed' if turns is None else f'{turns:+d}'}" for id_, turns in self._turns.items()]
        return "\n".join([title, "", *lines, ""])


def _sessions(paths: Iterable[str]) -> list[str]:
    """The sessions among these paths, each once."""
    names = (path.rpartition("/")[2] for path in paths)
    ids = (name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))
    return list(dict.fromkeys(id_ for id_ in ids if clock.parse_id(id_) == id_))


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
