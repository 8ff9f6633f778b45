"""Groups of options: typer sees each option where its group stands, and the command gets the group."""

import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from repro.cli import app
from repro.cli.options import Options, flat

PARAMETERS_MAX = 8


class Sizes(Options, frozen=True):
    width: Annotated[int, typer.Option(min=1)] = 2
    height: Annotated[int, typer.Option("--tall")] = 3


def drawn(*args: str) -> str:
    shop = typer.Typer()

    @shop.command()
    @flat
    def draw(name: str, *, first: int = 0, sizes: Sizes, last: int = 9) -> None:
        typer.echo(f"{name} {first} {sizes} {last}")

    result = CliRunner().invoke(shop, list(args))
    return result.stdout.strip() if result.exit_code == 0 else result.stderr


def test_a_command_gets_its_group_filled_from_the_options_and_their_defaults() -> None:
    assert drawn("x") == "x 0 Sizes(width=2, height=3) 9"
    assert drawn("x", "--tall", "7", "--width", "4", "--last", "1") == "x 0 Sizes(width=4, height=7) 1"
    assert "Invalid value for '--width'" in drawn("x", "--width", "0")


def test_options_stand_in_the_help_where_their_group_stands() -> None:
    told = drawn("--help")
    places = [told.index(name) for name in ("--first", "--width", "--tall", "--last")]
    assert places == sorted(places)


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.callback.__name__)
def test_no_command_function_takes_more_parameters_than_a_reader_can_hold(command: typer.models.CommandInfo) -> None:
    assert command.callback is not None
    assert len(inspect.signature(inspect.unwrap(command.callback)).parameters) <= PARAMETERS_MAX
