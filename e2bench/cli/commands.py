"""The command line: arguments to one call each. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from e2bench import __version__
from e2bench.cli.options import command_of
from e2bench.cli.registry import COMMANDS, Group, Offer
from e2bench.experiments.base import EXPERIMENTS, experiment
from e2bench.experiments.options import OF_A_MODEL, SCALING, SERVED, SHARED, WEIGHTS, Common
from e2bench.terminal import say_next

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Group,
    help="Extend the window of a rotary-position language model, and measure what that gave. "
    "Start with `e2bench quickstart`.",
)
Flag = typer.Option


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, Flag("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _offer(name: str) -> Offer:
    return Offer(
        about=lambda: experiment(name).about,
        function=lambda: command_of(experiment(name)),
        examples=lambda: experiment(name).examples,
    )


COMMANDS.offers.update({name: _offer(name) for name in EXPERIMENTS})


@COMMANDS.command("e2bench score results/g8 --json", "e2bench score pred/llama2-7b-chat-4k --out scores")
def score(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one of LongBench prediction files.")],
    json: Annotated[bool, Flag("--json", help="Print JSON and write nothing.")] = False,
    out: Annotated[Path | None, Flag("--out", "-o", help="Folder of scores.json. Default: the run's.")] = None,
    rouge_score: Annotated[
        bool, Flag("--rouge-score", help="Google's rougeL beside the summaries' scores (slow).")
    ] = False,
) -> None:
    """Score stored predictions; no model is loaded."""
    from e2bench.cli.score import run

    run(folder, as_json=json, rouge_score=rouge_score, out=out)


@COMMANDS.command("e2bench report results --out report", "e2bench report results/mine results/theirs --out report")
def report(
    results: Annotated[list[Path], typer.Argument(help="Runs, or folders of runs; several become one report.")],
    out: Annotated[Path, Flag("--out", "-o", help="Folder of tables, figures and index.html.")] = Path("report"),
) -> None:
    """Every table and figure for which runs exist, and one HTML page."""
    from e2bench.reporting import write_report

    paths = write_report(results, out)
    typer.echo(f"{len(paths)} files in {out}; each table as .csv, .md and .tex, each figure as .png and .csv:")
    for path in paths:
        if path.suffix in (".md", ".png", ".html") and not path.stem.endswith("-dark"):
            typer.echo(f"  {path}")
    if paths:
        say_next(f"open {out / 'index.html'} in a browser")


@COMMANDS.command("e2bench view results")
def view(
    results: Annotated[list[Path], typer.Argument(help="Runs, or folders of runs; they may still be running.")],
    port: Annotated[int, Flag("--port", help="Of this machine; 0 takes a free one.", min=0, max=65535)] = 8642,
) -> None:
    """The report's page in a browser on this machine, renewed while runs go on."""
    from e2bench.reporting.view import serve

    serve(results, port)


@COMMANDS.command("e2bench results results", "e2bench results results --csv")
def results(
    results: Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")],
    csv: Annotated[bool, Flag("--csv", help="As CSV, unrounded, with data, commit and folder.")] = False,
    json: Annotated[bool, Flag("--json", help="The same as JSON, one object a number.")] = False,
    lm_eval: Annotated[
        bool, Flag("--lm-eval", help="One run of tasks that lm-eval knows, as its results.json has them.")
    ] = False,
) -> None:
    """Every number of many runs, one row each."""
    from e2bench.cli.results import run

    run(results, as_csv=csv, as_json=json, as_lm_eval=lm_eval)


@COMMANDS.command("e2bench quickstart --out results/quickstart", shared=SHARED)
def quickstart(common: Common) -> None:
    """The whole bench in miniature on the embedded model, offline, ending in a report."""
    from e2bench.cli.suite import run

    run("quickstart", common)


@COMMANDS.command("e2bench suite paper --set model=results/train/llama2-7b --dry-run", shared=SHARED)
def suite(
    common: Common,
    *,
    name: Annotated[str, typer.Argument(help="A YAML file, or the name of a suite that comes with e2bench.")],
    sets: Annotated[
        list[str] | None, Flag("--set", help="NAME=VALUE: a variable of the suite. May be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        Flag("--only", help="A piece of the suite as the plan names it, or all of one model. May be repeated."),
    ] = None,
) -> None:
    """Models × experiments from one YAML file: the plan, trainings, the runs, the report.

    Shared options fill what the file leaves open.
    """
    from e2bench.cli.suite import run

    run(name, common, sets or [], only or [])


@COMMANDS.command("e2bench train llama2-7b --dry-run", "e2bench train llama2-7b g_max=10 --out results/train/g10")
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
    from e2bench.cli.train import run

    run(recipe, settings or [], dry_run=dry_run, profile=profile, out=out, fresh=fresh)


@COMMANDS.command("e2bench data", "e2bench data longbench")
def data(
    name: Annotated[str | None, typer.Argument(help="A data set. Without one: the list of them, with sizes.")] = None,
) -> None:
    """Fetch a public data set into the cache, verified."""
    from e2bench.cli.data import run

    run(name)


@COMMANDS.command("e2bench tasks", "e2bench tasks --json")
def tasks(json: Annotated[bool, Flag("--json", help="As JSON.")] = False) -> None:
    """Every task: its experiment, name, metric, language, samples and answer budget."""
    from e2bench.cli.tasks import run

    run(as_json=json)


@COMMANDS.command(
    "e2bench export --model meta-llama/Llama-2-7b-hf --scale 16 --out exported", shared=(*SCALING, *WEIGHTS, "out")
)
def export(common: Common) -> None:
    """A plain Hugging Face checkpoint with the scale in its config, for any server."""
    from e2bench.cli.export import run

    run(common)


@COMMANDS.command(
    "e2bench doctor --model exported --json", shared=(*SCALING, "factors", *OF_A_MODEL, "insecure", "compile")
)
def doctor(
    common: Common,
    *,
    data: Annotated[str | None, Flag(help="Also read this data whole: documents or a LongBench folder.")] = None,
    json: Annotated[bool, Flag("--json", help="As JSON.")] = False,
) -> None:
    """Check a model, tokenizer, adapter or server: what would make a number wrong, and what to give."""
    from e2bench.cli.doctor import run

    run(common, data=data, as_json=json)


@COMMANDS.command("e2bench serve-command --model exported --engine sglang", shared=(*SCALING, *SERVED))
def serve_command(
    common: Common,
    *,
    nodes: Annotated[int, Flag(help="Machines.", min=1)] = 1,
    port: Annotated[int, Flag(help="Of the server.", min=1, max=65535)] = 8000,
) -> None:
    """Print the command that serves a model at a scale, by vLLM or with --engine sglang; nothing is loaded."""
    arguments = dict(locals())
    from e2bench.cli.serve_command import run

    run(**arguments)


@COMMANDS.command("e2bench models", "e2bench models --json")
def models(json: Annotated[bool, Flag("--json", help="As JSON.")] = False) -> None:
    """The presets: every system in the paper's tables, by name."""
    from e2bench.cli.models import run

    run(as_json=json)


@COMMANDS.command("e2bench compare results/g2 results/g4", "e2bench compare results/g2 results/g4 --tasks trec --json")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; each is compared with the first.")],
    tasks: Annotated[str | None, Flag(help="Only these, separated by commas.")] = None,
    allow: Annotated[
        str | None, Flag(help="Names of settings that may differ though they say what was asked, such as input_limit.")
    ] = None,
    json: Annotated[bool, Flag("--json", help="As JSON, with the texts of the largest changes.")] = False,
) -> None:
    """Paired difference per task between runs over the same samples."""
    from e2bench.cli.compare import run

    run(runs, tasks=tasks, allow=allow, as_json=json)
