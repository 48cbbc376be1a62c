"""Merging of settings from several sources into a config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Ge

from llmctl.config.option import Option
from llmctl.config.settings import Setting, build_config, read_config_file
from llmctl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Annotated[tuple[str, ...], Option(aliases=("data_path",))]
    rank: Annotated[int, Ge(1)] = 8
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("the name is bad")


def option(**values: object) -> dict[str, Setting]:
    return {name: Setting(value, "option") for name, value in values.items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_later_sources_override_earlier_ones_and_none_is_not_given(tmp_path: Path) -> None:
    file = read_config_file(write(tmp_path / "c.yaml", "data_path: a.jsonl\nrank: 4\nname: x\n"))
    resolved = build_config(Config, file, option(rank=16, name=None))
    assert resolved.values == Config(data=("a.jsonl",), rank=16, name="x")
    path = tmp_path / "c.yaml"
    assert resolved.origins == {"data": f"{path}:1", "rank": "option", "name": f"{path}:3"}


def test_one_error_names_every_invalid_setting_with_its_source(tmp_path: Path) -> None:
    file = read_config_file(write(tmp_path / "c.yaml", "rnak: 4\ndata: a\ndata_path: b\n"))
    with pytest.raises(ConfigError) as caught:
        build_config(Config, file, option(rank=0))
    path = tmp_path / "c.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}:1: there is no setting rnak; did you mean rank?",
        f"{path}:3: data_path is data, which is set too",
        "--rank is 0: must be greater than or equal to 1",
    ]


def test_a_missing_setting_is_named_as_its_option() -> None:
    with pytest.raises(ConfigError, match="data is required: give --data, or set it in the file"):
        build_config(Config, option(rank=1))


def test_an_error_of_the_config_itself_is_kept() -> None:
    with pytest.raises(ConfigError, match="the name is bad"):
        build_config(Config, option(data="a", name="bad"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "not a mapping"),
        ("a: 1\nb: 2\na: 3\n", ":3: a is already set at .*:1"),
        ("a: [1\n", "c.yaml:2: "),
    ],
)
def test_a_file_that_is_not_one_mapping_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config_file(write(tmp_path / "c.yaml", text))


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    assert read_config_file(write(tmp_path / "c.yaml", "# nothing\n")) == {}
