"""Service of `llmctl serve`: paths in its configuration."""

from pathlib import Path

import pytest

from llmctl.config import ServeConfig
from llmctl.errors import ConfigError
from llmctl.services.serve import expand_paths, serve
from llmctl.types import ModelSpec


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_in_a_path_is_the_home_folder(home: Path) -> None:
    (home / "adapters").mkdir()
    config = ServeConfig(adapter_dir="~/adapters", ssl_certfile="~/c.pem", ssl_keyfile="/etc/k.pem")
    expanded = expand_paths(config)
    assert expanded.adapter_dir == str(home / "adapters")
    assert expanded.ssl_certfile == str(home / "c.pem")
    assert expanded.ssl_keyfile == "/etc/k.pem"
    assert expand_paths(ServeConfig()) == ServeConfig()


def test_a_certificate_in_the_home_folder_is_read(home: Path) -> None:
    for name in ("c.pem", "k.pem"):
        (home / name).write_text("not a certificate")
    config = ServeConfig(ssl_certfile="~/c.pem", ssl_keyfile="~/k.pem")
    with pytest.raises(ConfigError, match=r"c\.pem.*cannot be used") as caught:
        serve(ModelSpec("unused"), config, lambda *_: None)
    assert "No such file" not in str(caught.value)
