"""The report of `llmctl finetune`."""

import pytest

from llmctl.cli.views.train_view import print_train_report
from llmctl.types import SampleReply, TrainReport


def test_a_sample_reply_that_was_cut_off_ends_with_dots(
    capsys: pytest.CaptureFixture[str],
) -> None:
    after = (SampleReply("a", "whole", complete=True), SampleReply("b", "cut", complete=False))
    report = TrainReport(*("out", None, 1, 1.0), (), (), None, 10.0, 0, 0, before=(), after=after)
    print_train_report(report)
    rows = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
    assert {"whole", "cut..."} <= {*rows}
