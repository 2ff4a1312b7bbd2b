"""The command line, called as a person calls it."""

from typer.testing import CliRunner

from bayesmeta.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def succeed(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout
