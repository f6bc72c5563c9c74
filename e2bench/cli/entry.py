"""The command line's entry: exit codes, one line for what is wrong, streams and signals."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys

from e2bench.cli.commands import app
from e2bench.errors import E2BenchError, is_panic, one_line


def main() -> None:
    """Run the command line; exit 0 done, 2 the user's mistake, 1 our failure, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_closed_streams()
    if not sys.stderr.isatty():  # a log file or a job's output: lines, and no bars of the libraries
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a table with a dash must not end a run under an ASCII locale
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if "--version" in sys.argv[1:]:  # of any command
        sys.argv[1:] = ["--version"]
    try:
        _refuse_empty(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == 130:  # typer takes the interrupt for itself and says nothing
            raise KeyboardInterrupt
        sys.stdout.flush()
    except E2BenchError as error:
        code = _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _interrupted()
    except OSError as error:
        if error.errno in DISK_ERRORS:
            code = _output_lost(error)
        elif error.filename is None:
            code = _failed(error)
        else:
            code = _say(f"{error.filename}: {error.strerror}; check the path and its permissions", 2)
    except Exception as error:
        code = _usage_code(error)
        if code is None:
            code = _failed(error)
    except BaseException as error:
        if not is_panic(error):
            raise
        code = _failed(error)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse the words that an unset variable of a shell leaves: an empty path would be the current folder."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, is_set, value = word.partition("=")
        if not word.strip():
            name = before if before.startswith("-") else "an argument"
        elif not (name.startswith("--") and is_set and not value.strip()):
            continue
        raise E2BenchError(f"{name} is empty; give a value, or leave it out")


def _open_closed_streams() -> None:
    """`e2bench … >&-`: to nowhere. Else the first file opened would be descriptor 1, and get what is printed."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


INTERRUPTED = "interrupted; give the same command again to continue"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE)


def _interrupt(number: int, frame: object) -> None:
    """The first Ctrl-C: leave everything in order. The second does not wait for that: what is on the disk is whole."""
    signal.signal(signal.SIGINT, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: object) -> None:
    os.write(2, f"e2bench: {INTERRUPTED}\n".encode())
    os._exit(130)


def _interrupted() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would tear the interpreter's own end
    return _say(INTERRUPTED, 130)


def _output_lost(error: OSError) -> int:
    """stdout, or a file that no run folder guards, could not be written; `e2bench … | head` is no mistake."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter's last flush would fail once more
    if error.errno == errno.EPIPE:
        return 1
    return _say(
        f"{error.filename or 'the output'}: {error.strerror}; free some space and give the same command again", 1
    )


def _say(message: str, code: int) -> int:
    print(f"e2bench: {one_line(message)}", file=sys.stderr)
    return code


def _failed(error: BaseException) -> int:
    """A failure of ours in one line, its traceback in a file; what was measured is on the disk."""
    import tempfile
    import traceback

    try:
        descriptor, path = tempfile.mkstemp(prefix="e2bench-", suffix=".log", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{shlex.join(sys.argv)}\n")
            traceback.print_exception(error, file=log)
    except OSError:
        path = "what it was asked to do (no log file could be written)"
    what = f"{type(error).__name__}: {one_line(error)}"
    return _say(
        f"a failure of e2bench itself ({what[:200]}); what was finished is kept. Please report it with {path}", 1
    )


def _usage_code(error: Exception) -> int | None:
    """Exit code of click's own complaints (unknown option, missing argument …), said in one line; None for others."""
    if type(error).__name__ == "Abort":
        return _interrupted()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return 2
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        of = getattr(error, "ctx", None)  # None: before any command is known
        command = f"e2bench {of.info_name}" if of is not None and of.parent is not None else "e2bench"
        return _say(f"{error.format_message()} (see {command} --help)", 2)
    return None
