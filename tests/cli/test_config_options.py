"""Options derived from config dataclasses: files, aliases, variables and help."""

import json
import re
from pathlib import Path

import pytest

from llmctl.config import EvalConfig, ServeConfig
from llmctl.config.option import field_options, parse_size
from llmctl.errors import ConfigError
from tests.cli.process import error_lines, run_in_process


@pytest.mark.parametrize(
    ("command", "text", "errors"),
    [
        (
            ("serve",),
            "port: 99999\nprot: 1\nkv_memory: lots\nmax-num-seqs: 0\n",
            [
                "1: port is 99999: must be less than or equal to 65535",
                "2: there is no setting prot; did you mean port?",
                "3: kv_memory is 'lots': not a size",
                "4: max_rows is 0: must be greater than or equal to 1",
            ],
        ),
        (
            ("chat", "hi"),
            "temperature: 9\nmax_token: 1\n",
            ["1: temperature is 9: must be less than or equal to 2", "2: there is no setting"],
        ),
        (
            ("bench",),
            "concurrency: 1,x\nrequests: 0\n",
            ["1: concurrency is '1,x': not a list of numbers", "2: requests is 0"],
        ),
        (
            ("data", "check", "rows.jsonl"),
            "max_length: none\nfromat: x\n",
            ["1: max_length is 'none': must be", "2: there is no setting fromat"],
        ),
        (
            ("data", "split", "rows.jsonl"),
            "fraction: 2\n",
            ["1: fraction is 2", "train is required: give --train", "eval is required"],
        ),
    ],
)
def test_all_errors_of_a_file_are_reported_with_their_line(
    command: tuple[str, ...], text: str, errors: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    done = run_in_process(*command, "--config", str(file))
    assert done.returncode == 2
    lines = error_lines(done.stderr)
    for error in errors:
        expected = f"settings.yaml:{error}" if error[0].isdigit() else error
        assert any(expected in line for line in lines), (expected, lines)


def test_command_line_overrides_the_file_under_any_name(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"model: {tiny_folder}\nmax_rows: 2\ncontext_length: 64\nkv_quant: 8bit\n")
    words = ("serve", "--estimate", "--json", "--free", "8GiB", "--config", str(file))
    plan = json.loads(run_in_process(*words).stdout)
    assert (plan["plan"]["max_rows"], plan["kv_quant"]) == (2, "8bit")
    plan = json.loads(run_in_process(*words, "--max-rows", "3", "--kv-cache-dtype", "auto").stdout)
    assert (plan["plan"]["max_rows"], plan["kv_quant"]) == (3, "none")
    assert plan["plan"]["context_length"] == 64
    both = run_in_process(*words, "--max-rows", "3", "--max-num-seqs", "4")
    assert both.returncode == 2
    assert "--max-num-seqs is given twice" in both.stderr


def test_rules_and_settings_of_data_clean_share_a_file(tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "clean.yaml"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    file.write_text(f"output: {tmp_path / 'out.jsonl'}\nnear-duplicates: off\nduplicates: report\n")
    done = run_in_process("data", "clean", str(rows), "--config", str(file))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_help_shows_defaults_and_variables_but_no_old_names() -> None:
    help = run_in_process("serve", "--help", COLUMNS="200").stdout
    assert re.search(
        r"--port <int>.*\[default: 8000; 0<=x<=65535\]\s+\[env var:\s+LLMCTL_PORT\]",
        help,
        re.DOTALL,
    )
    assert re.search(r"--max-body SIZE\s.*?\[default:\s+10MiB; x>=1\]", help, re.DOTALL)
    for name in ("--max-rows", "--drain", "--kv-quant", "--served-name", "--max-model-len"):
        assert not re.search(rf"{name}\b", help)


def test_keys_are_read_from_variables() -> None:
    options = field_options(EvalConfig)
    assert options["api_key"].variable == "LLMCTL_API_KEY"
    assert options["judge_api_key"].variable == "LLMCTL_JUDGE_API_KEY"


def test_serve_config_reads_adapters_and_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# comment\none\n\ntwo\n")
    config = ServeConfig(
        adapter=("base", "a=x", "b=y"), api_keys=("zero",), api_key_file=str(keys), host="0.0.0.0"
    )
    assert config.adapters == (("a", "x"), ("b", "y"))
    assert config.model_spec().adapter == "base"
    assert config.read_api_keys() == ("zero", "one", "two")
    for adapters in (("a", "b"), ("a=x", "a=y")):
        with pytest.raises(ConfigError):
            ServeConfig(adapter=adapters)


@pytest.mark.parametrize(("text", "size"), [("1kB", 1000), ("1.5 GiB", 3 * 2**29), ("7", 7)])
def test_size_is_parsed_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size
    with pytest.raises(ValueError, match="not a size"):
        parse_size("lots")
