"""The command line: arguments to one call each. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from e2bench import __version__
from e2bench.errors import E2BenchError, one_line
from e2bench.options import Common, with_common

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Extend the window of a rotary-position language model, and measure what that gave. "
    "Start with `e2bench quickstart`.",
)
Flag = typer.Option


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, Flag("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@with_common
def longbench(
    common: Common,
    *,
    tasks: Annotated[str, Flag(help="all, en, zh, code, e (LongBench-E) or task names, separated by commas.")] = "all",
    data: Annotated[Path | None, Flag(help="Folder of NAME.jsonl files, or demo. Default: the public data.")] = None,
    limit: Annotated[int | None, Flag(help="Only the first N examples of each task.", min=1)] = None,
    input_limit: Annotated[
        int | None, Flag(help="Tokens kept of a prompt. Default: 1000·⌊window/1024⌋ - 500.", min=2)
    ] = None,
    truncation: Annotated[str, Flag(help="official (decode, join, re-encode) or ids.")] = "official",
    chat_template: Annotated[str, Flag(help="auto, none, llama2, vicuna, longchat or FILE.jinja.")] = "auto",
    prompts: Annotated[Path | None, Flag(help="LongBench's dataset2prompt.json instead of lm-eval's copies.")] = None,
    no_context: Annotated[
        bool, Flag("--no-context", help="Leave the document out: what the model knows already.")
    ] = False,
    early_stop: Annotated[bool, Flag(help="Stop a row once its score cannot change.")] = True,
) -> None:
    """LongBench v1: 21 tasks, middle truncation, official scores and averages."""
    arguments = dict(locals())
    from e2bench.commands.longbench import run
    from e2bench.commands.score import show_run

    show_run(run(**arguments))


@app.command()
@with_common
def ppl(
    common: Common,
    *,
    lengths: Annotated[str, Flag(help="Windows in tokens: 4k..64k doubles, commas list.")] = "4k..64k",
    protocol: Annotated[str, Flag(help="press, truncate, window-mean or yarn.")] = "press",
    stride: Annotated[int, Flag(help="Tokens between windows (S).", min=1)] = 256,
    data: Annotated[str | None, Flag(help="File or folder of documents, proof-pile, or a hub id.")] = None,
    docs: Annotated[int | None, Flag(help="How many documents. Default: all, up to 128.", min=1)] = None,
    min_tokens: Annotated[str | None, Flag(help="Of a document. Default: the longest length.")] = None,
    doc_tokens: Annotated[str, Flag(help="Used of a document: longest (length), all or a number.")] = "longest",
    max_windows: Annotated[int | None, Flag(help="Only the last N windows of each document.", min=1)] = None,
    extrapolate: Annotated[bool, Flag("--extrapolate", help="Scale 1 at every length.")] = False,
    dry_run: Annotated[bool, Flag("--dry-run", help="Print the work and stop.")] = False,
) -> None:
    """Sliding-window perplexity, the scale chosen per length."""
    arguments = dict(locals())
    from e2bench.commands.ppl import run
    from e2bench.commands.score import show_run

    show_run(run(**arguments))


@app.command()
@with_common
def passkey(
    common: Common,
    *,
    lengths: Annotated[str, Flag(help="Prompt and answer in tokens: 4k..32k doubles, commas list.")] = "4k..32k",
    depths: Annotated[int, Flag(help="Evenly spaced places of the key, 0 to 1.")] = 11,
    trials: Annotated[int, Flag(help="Keys a cell.")] = 5,
    early_stop: Annotated[bool, Flag(help="Stop once the number is complete.")] = True,
) -> None:
    """Passkey retrieval: a grid of lengths, depths and trials."""
    arguments = dict(locals())
    from e2bench.commands.passkey import run
    from e2bench.commands.score import show_run

    show_run(run(**arguments))


@app.command()
@with_common
def attention(
    common: Common,
    *,
    lengths: Annotated[str, Flag(help="Input and answer in tokens: 8k..64k doubles, commas list.")] = "8k..64k",
    data: Annotated[str | None, Flag(help="File or folder of documents around the pairs. Default: demo text.")] = None,
    depth: Annotated[str, Flag(help="Place of the pairs: 0 (start) to 1 (end), commas list.")] = "0.5",
    trials: Annotated[int, Flag(help="Questions a length and depth.", min=1)] = 1,
    keys: Annotated[str, Flag(help="uuid (the paper's) or short (4 hex digits).")] = "uuid",
    scattered: Annotated[bool, Flag("--scattered", help="The three pairs apart, not in one object.")] = False,
    layers: Annotated[str, Flag(help="In the map: all, 3, 0,4 or 8..11.")] = "all",
    heads: Annotated[str, Flag(help="In the map: all, 3, 0,4 or 8..11.")] = "all",
    reduction: Annotated[str, Flag(help="mean or max over layers and heads.")] = "mean",
    keep_heads: Annotated[bool, Flag("--keep-heads", help="Store every chosen head's rows too.")] = False,
) -> None:
    """Figure 6: attention of an answer's tokens over a long input with hidden key-value pairs."""
    arguments = dict(locals())
    from e2bench.commands.attention import run
    from e2bench.commands.score import show_run

    show_run(run(**arguments))


@app.command()
@with_common
def short(
    common: Common,
    *,
    suite: Annotated[str, Flag(help="paper (Table 7's way of scoring) or lm-eval (the harness's own).")] = "paper",
    tasks: Annotated[str | None, Flag(help="Names, separated by commas. Default: all.")] = None,
    data: Annotated[Path | None, Flag(help="Folder with piqa.jsonl, … Default: the public sets.")] = None,
    limit: Annotated[int | None, Flag(help="Only the first N rows of each task.", min=1)] = None,
) -> None:
    """Table 7: short benchmarks, zero-shot, at any scale."""
    arguments = dict(locals())
    from e2bench.commands.score import show_run
    from e2bench.commands.short import run

    show_run(run(**arguments))


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one of LongBench prediction files.")],
    json: Annotated[bool, Flag("--json", help="Print JSON and write nothing.")] = False,
    rouge_score: Annotated[
        bool, Flag("--rouge-score", help="Google's rougeL beside the summaries' scores (slow).")
    ] = False,
) -> None:
    """Score stored predictions; no model is loaded."""
    from e2bench.commands.score import run

    run(folder, as_json=json, rouge_score=rouge_score)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")],
    out: Annotated[Path, Flag("--out", "-o", help="Folder of tables, figures and index.html.")] = Path("report"),
) -> None:
    """Every table and figure for which runs exist, and one HTML page."""
    from e2bench.reporting import write_report

    paths = write_report(results, out)
    typer.echo(f"{len(paths)} files in {out}")
    for path in paths:
        if path.suffix in (".csv", ".png", ".html"):
            typer.echo(f"  {path}")


@app.command()
@with_common
def quickstart(common: Common) -> None:
    """The whole bench in miniature on the embedded model, offline, ending in a report."""
    from e2bench.commands.quickstart import run

    run(common)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with e2bench.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value: settings that replace the recipe's.")] = None,
    out: Annotated[
        Path | None, Flag("--out", "-o", help="Folder of checkpoints. Default: results/train/RECIPE.")
    ] = None,
    fresh: Annotated[bool, Flag("--fresh", help="Drop what an earlier run left in the folder.")] = False,
    dry_run: Annotated[bool, Flag("--dry-run", help="Print the plan and stop.")] = False,
    profile: Annotated[bool, Flag("--profile", help="Measure memory and time per step, PI against E².")] = False,
) -> None:
    """E² fine-tuning, its ablations and rivals."""
    from e2bench.commands.train import run

    run(recipe, settings or [], dry_run=dry_run, profile=profile, out=out, fresh=fresh)


@app.command()
def data(name: Annotated[str, typer.Argument(help="longbench or proof-pile.")]) -> None:
    """Fetch a public data set into the cache, verified."""
    from e2bench.data import fetch

    typer.echo(fetch(name))


@app.command()
@with_common
def export(common: Common) -> None:
    """A plain Hugging Face checkpoint with the scale in its config, for any server."""
    from e2bench.commands.export import run

    run(common)


@app.command("serve-command")
@with_common
def serve_command(
    common: Common,
    *,
    engine: Annotated[str, Flag(help="vllm or sglang.")] = "vllm",
    tensor_parallel: Annotated[int, Flag(help="GPUs that share every layer.", min=1)] = 1,
    pipeline_parallel: Annotated[int, Flag(help="Groups of GPUs that share the layers out.", min=1)] = 1,
    nodes: Annotated[int, Flag(help="Machines.", min=1)] = 1,
    port: Annotated[int, Flag(help="Of the server.", min=1, max=65535)] = 8000,
) -> None:
    """Print the vLLM or SGLang command that serves a model at a scale; nothing is loaded."""
    arguments = dict(locals())
    from e2bench.commands.serve_command import run

    run(**arguments)


@app.command()
def models(json: Annotated[bool, Flag("--json", help="As JSON.")] = False) -> None:
    """The presets: every system in the paper's tables, by name."""
    from e2bench.commands.models import run

    run(as_json=json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; each is compared with the first.")],
    tasks: Annotated[str | None, Flag(help="Only these, separated by commas.")] = None,
    json: Annotated[bool, Flag("--json", help="As JSON, with the texts of the largest changes.")] = False,
) -> None:
    """Paired difference per task between runs over the same samples."""
    from e2bench.commands.compare import run

    run(runs, tasks=tasks, as_json=json)


def main() -> None:
    """Run the command line; exit 0 done, 2 the user's mistake, 1 our failure, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a table with a dash must not end a run under an ASCII locale
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
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
            raise
        else:
            code = _say(f"{error.filename}: {error.strerror}; check the path and its permissions", 2)
    except Exception as error:
        code = _usage_code(error)
        if code is None:
            raise
    sys.exit(code if isinstance(code, int) else 0)


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


def _usage_code(error: Exception) -> int | None:
    """Exit code of click's own complaints (unknown option, missing argument …), said in one line; None for others."""
    if type(error).__name__ == "Abort":
        return _interrupted()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return 2
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _say(f"{error.format_message()} (see e2bench --help)", 2)
    return None
