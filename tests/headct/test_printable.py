import io
import logging

import pytest

from beam_pipeline.options import Options
from headct.printable import escape_controls, hide_secrets, show_line, shown
from headct.stores import show_source
from headct.terminal import LineFormatter, Terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ä b\\c~.dcm", "ä b\\c~.dcm"),
        ("日本語\u00a0\u3000é", "日本語\u00a0\u3000é"),
        ("a\x1b[31m\x07", r"a\x1b[31m\x07"),
        ("a\r\n\tb\0", r"a\r\n\tb\x00"),
        ("\x7f\x9b2J", r"\x7f\x9b2J"),
        ("\u202egpj.dcm\u2028", r"\u202egpj.dcm\u2028"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert escape_controls(text) == shown
    assert show_source(text) == shown
    assert escape_controls(shown) == shown


def test_bytes_that_are_no_text_are_escaped_too() -> None:
    assert show_source("a\udcff\x1b") == r"a\xff\x1b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a?.dcm", "s3://bucket/a?.dcm"),
        ("abfss://files@account.dfs.core.windows.net/in", None),
        ("/home/joe@example/a=b", None),
        ("https://host/a@b?c", None),
        ("https://console.cloud.google.com/jobs/europe-west1/job-1?project=my-project", None),
        ("https://host/in?project=mine&key=secret", "https://host/in?***"),
        ("https://joe:secret@host/in", "https://***@host/in"),
        ("https://secret@host:8080", "https://***@host:8080"),
        ("s3://key:secret@bucket/in", "s3://***@bucket/in"),
        (
            "input https://h/l.csv?X-Amz-Credential=secret&X-Amz-Signature=secret does not exist",
            "input https://h/l.csv?*** does not exist",
        ),
        ("az://box/in?sv=2024&sig=secret%3D: no", "az://box/in?*** no"),
        ("label file l.csv?sig=secret&se=1", "label file l.csv?sig=***&se=1"),
        ("X-Goog-Signature=secret, x_token=secret", "X-Goog-Signature=***, x_token=***"),
    ],
)
def test_passwords_and_signatures_are_hidden(text: str, shown: str | None) -> None:
    assert hide_secrets(text) == (text if shown is None else shown)


def test_a_message_is_one_line() -> None:
    assert show_line(ValueError("a\nb https://u:p@h/")) == r"a\nb https://***@h/"


def test_a_terminal_and_a_log_show_lines_as_they_are() -> None:
    written = io.StringIO()
    Terminal(file=written, width=80, markup=False).print("[red] a\x1b[2J\nb", "https://u:p@h/")
    assert written.getvalue() == "[red] a\\x1b[2J\nb https://***@h/\n"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %s", ("a\x1b", "b\nc"), None)
    assert LineFormatter().format(record) == "a\\x1b: b\nc"


def test_no_secret_of_a_url_is_recorded() -> None:
    labels = "https://host/labels.csv?X-Amz-Signature={}"
    first, second = (
        Options.of(input="https://u:p@host/in", output="out", labels=labels.format(signature))
        for signature in ("secret", "another")
    )
    assert first.files.labels == labels.format("secret")
    assert first.recorded() == second.recorded()
    assert first.recorded()["input"] == "https://***@host/in"
    assert first.recorded()["labels"] == "https://host/labels.csv?***"


def test_values_of_documents_are_one_short_line() -> None:
    assert shown("x\n\u2028" + "y" * 100) == '"x\\n\\u2028' + "y" * 47 + "..."
    assert (shown({}), shown({"a": 1}), shown([1, 2])) == ("{}", "{...}", "a list of 2")
