"""Settings as typer's options: one parameter a field, the experiments' commands whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from e2bench.experiments.base import Experiment
from e2bench.experiments.options import Common
from e2bench.settings import Setting, Settings
from e2bench.terminal import say_next

WITHOUT_DRY_RUN = "the same command without --dry-run"


def parameters(
    settings: type[Settings], only: Collection[str] | None = None, hidden: Collection[str] = ()
) -> list[inspect.Parameter]:
    """A keyword parameter for every setting, annotated with its option; text where the setting is parsed from text.

    only: names of those that are wanted; None: all of them.    hidden: names of those that `--help` leaves out.
    """
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=about.text,
            annotation=Annotated[
                _type(about, hint),
                typer.Option(*about.flags, help=about.help, rich_help_panel=about.panel, hidden=name in hidden),
            ],
        )
        for name, (_, about, hint) in settings.named().items()
        if only is None or name in only
    ]


def _type(about: Setting, hint: Any) -> Any:
    if about.parse is None:
        return hint
    return str if about.text is not None else str | None


def with_settings(
    command: Callable[..., None],
    classes: Iterable[type[Settings]],
    only: Collection[str] | None = None,
    hidden: Collection[str] = (),
) -> Callable[..., None]:
    """The command `command(*instances of the classes, **its own options)`; typer reads the options' signature.

    only: names of the settings that are offered, the others keep their defaults; None: all of them.    hidden: names of
    those that are taken, to be refused in words, but that `--help` leaves out.
    """
    classes = list(classes)
    taken = {name for settings in classes for name in settings.named()}
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if get_args(p.annotation)]
    every = [*own, *(p for settings in classes for p in parameters(settings, only, hidden))]
    called = inspect.Parameter("called", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def wrapper(called: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if name in taken and _is_given(called, name)}
        made = [settings.read({n: v for n, v in given.items() if n in settings.named()}) for settings in classes]
        command(*made, **{name: value for name, value in values.items() if name not in taken})

    signature = [called, *every]
    wrapper.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in signature}
    return wrapper


def _is_given(called: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, be it with its default."""
    source = called.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def command_of(experiment: type[Experiment]) -> Callable[..., None]:
    """The command that runs an experiment and prints its scores."""

    def run(
        settings: Experiment,
        common: Common,
        *,
        json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")] = False,
    ) -> None:
        from e2bench.cli.score import show_run
        from e2bench.experiments.run import run_experiment

        show_run(run_experiment(settings, common), as_json=json)
        if common.dry_run:
            say_next(WITHOUT_DRY_RUN)

    run.__doc__ = experiment.about
    return with_settings(run, [experiment, Common], hidden=experiment.unused())
