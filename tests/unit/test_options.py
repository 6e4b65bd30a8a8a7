from __future__ import annotations

from pathlib import Path

import pytest

from pytest_netpoll import options
from pytest_netpoll.errors import UsageError
from pytest_netpoll.options import OPTIONS, Config

pytest_plugins = ["pytester"]


class OptionsOnly:
    """The options without their plugin."""

    @staticmethod
    def pytest_addoption(parser: pytest.Parser) -> None:
        options.add_options(parser)


def parse(pytester: pytest.Pytester, *args: str) -> pytest.Config:
    pytester.plugins = [OptionsOnly()]
    return pytester.parseconfig("-p", "no:netpoll", *args)


def configure(pytester: pytest.Pytester, *args: str, ini: str = "") -> Config:
    if ini:
        pytester.makeini(f"[pytest]\n{ini}\n")
    return Config.from_pytest(parse(pytester, *args))


def test_defaults(pytester: pytest.Pytester) -> None:
    config = configure(pytester)
    assert config == Config.default()
    assert (config.mode, config.unmeasured, config.goready, config.sudo) == ("gate", "fail", "auto", "auto")
    assert (config.max_fds, config.max_processes) == (16384, 16)
    assert (config.json, config.html, config.python, dict(config.limits)) == (None, None, None, {})


@pytest.mark.parametrize("args", [["--netpoll=report"], ["--netpoll", "report"]])
def test_the_option_that_is_a_prefix_of_all_others_works_in_both_forms(
    pytester: pytest.Pytester, args: list[str]
) -> None:
    assert configure(pytester, *args, "--netpoll-sudo=never").mode == "report"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("mode", "off", "off"),
        ("unmeasured", "skip", "skip"),
        ("goready", "on", "on"),
        ("sudo", "never", "never"),
        ("max_fds", "1024", 1024),
        ("max_processes", "4", 4),
    ],
)
def test_options_come_from_the_command_line_or_the_ini(
    pytester: pytest.Pytester, name: str, text: str, value: object
) -> None:
    (spec,) = (spec for spec in OPTIONS if spec.name == name)
    assert getattr(configure(pytester, f"{spec.cli}={text}"), name) == value
    assert getattr(configure(pytester, ini=f"{spec.ini} = {text}"), name) == value


def test_the_command_line_wins_over_the_ini_even_with_the_default(pytester: pytest.Pytester) -> None:
    config = configure(
        pytester, "--netpoll=gate", "--netpoll-max-fds=16384", ini="netpoll=off\nnetpoll_max_fds=9"
    )
    assert (config.mode, config.max_fds) == ("gate", 16384)


@pytest.mark.parametrize("name", ["json", "html", "python"])
def test_paths_are_relative_to_where_they_were_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytester.makeini(f"[pytest]\nnetpoll_{name} = out/x\n")
    below = pytester.mkdir("below")
    monkeypatch.chdir(below)
    assert getattr(configure(pytester), name) == pytester.path / "out/x"
    assert getattr(configure(pytester, f"--netpoll-{name}=y"), name) == below / "y"
    assert getattr(configure(pytester, f"--netpoll-{name}=/tmp/z"), name) == Path("/tmp/z")


def test_artifacts_are_for_failed_tests_or_all_and_take_any_path(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nnetpoll_artifacts = out:all\n")
    below = pytester.mkdir("below")
    monkeypatch.chdir(below)
    assert configure(pytester).artifacts == (pytester.path / "out", True)
    assert configure(pytester, "--netpoll-artifacts=y").artifacts == (below / "y", False)
    assert configure(pytester, "--netpoll-artifacts=a:b").artifacts == (below / "a:b", False)


def test_a_path_may_start_at_home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/gopher")
    assert configure(pytester, "--netpoll-json=~/x").json == Path("/home/gopher/x")


@pytest.mark.parametrize(
    ("arg", "complaint"),
    [
        ("--netpoll=gaet", "gate"),
        ("--netpoll-unmeasured=pass", "skip"),
        ("--netpoll-max-fds=0", "'0' is not an integer > 0"),
        ("--netpoll-max-fds=many", "'many' is not an integer > 0"),
        ("--netpoll-json=", "a file name is missing"),
        ("--netpoll-artifacts=:all", "a directory is missing"),
        ("--netpoll-cache=", "a directory, or off, is missing"),
        ("--netpoll-j=x", "unrecognized arguments"),
    ],
)
def test_a_bad_command_line_is_a_usage_error_of_pytest(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], arg: str, complaint: str
) -> None:
    with pytest.raises((pytest.UsageError, SystemExit)) as error:
        parse(pytester, arg)
    assert complaint in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("ini", "complaint"),
    [
        ("netpoll = gaet", "ini option netpoll: 'gaet' is not one of gate, report, off"),
        ("netpoll_goready = yes", "ini option netpoll_goready: 'yes' is not one of auto, on, off"),
        ("netpoll_max_processes = -1", "ini option netpoll_max_processes: '-1' is not an integer > 0"),
        ("netpoll_limits = max_spurious", "ini option netpoll_limits: 'max_spurious' is not a limit"),
        ("netpoll_limits =\n a = 1\n a = 2", "ini option netpoll_limits: a limit is given twice"),
        ("netpoll_forbid = NP999", "python -m pytest_netpoll rules"),
    ],
)
def test_a_bad_ini_value_is_a_usage_error_that_names_the_option_and_the_choices(
    pytester: pytest.Pytester, ini: str, complaint: str
) -> None:
    with pytest.raises(UsageError) as error:
        configure(pytester, ini=ini)
    assert complaint in str(error.value)
    assert error.value.fix


def test_default_limits_are_lines_of_the_ini(pytester: pytest.Pytester) -> None:
    config = configure(pytester, ini="netpoll_limits =\n    max_spurious = 5%\n    max_latency_p99=5ms")
    assert config.limits == {"max_spurious": "5%", "max_latency_p99": "5ms"}


def test_parsed_options_are_plain_text_that_xdist_can_send_to_workers(pytester: pytest.Pytester) -> None:
    config = parse(pytester, "--netpoll-json=x", "--netpoll-max-fds=9")
    values = {name: value for name, value in vars(config.option).items() if name.startswith("netpoll_")}
    assert values["netpoll_json"] == "x"
    assert {type(value) for value in values.values()} == {str, type(None)}


def test_help_shows_every_option_with_its_default(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from pytest_netpoll.options import add_options as pytest_addoption")
    output = pytester.runpytest("-p", "no:netpoll", "--help").stdout.str()
    for spec in OPTIONS:
        assert spec.cli is None or spec.cli in output
        assert spec.ini is None or f"{spec.ini} (" in output
    assert "16384" in output


def test_every_option_has_a_field_of_config_and_the_other_way_round() -> None:
    assert [spec.name for spec in OPTIONS] == list(Config.__dataclass_fields__)
