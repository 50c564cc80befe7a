"""Conversion by the pipeline's command."""

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.planning.output_checks import check_output_is_not_read
from beam_pipeline.shards.manifest import check_rejects
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import HeadctError, StorageError, UsageError
from headct.stores import Folder, InputFiles
from trainer.data.dicom import converted


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (2, "input x does not exist", UsageError),
        (5, "cannot write ich-test in {output}: No space left on device", StorageError),
        (1, "", UsageError),
        (2, None, UsageError),
    ],
)
def test_what_the_pipeline_says_is_the_error(
    code: int, said: str | None, kind: type[HeadctError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: what it says of files that cannot be used, none of which is in a folder of ours."""
    outputs = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        output = argv[argv.index("--output") + 1]
        outputs.append(Path(output))
        line = said if said is not None else refusal(Path(output))
        error = f"a warning\nbeam_pipeline: error: {line.format(output=output)}\n" if line else ""
        return subprocess.CompletedProcess(argv, code, stderr=error)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(kind) as raised, converted("x", []):
        pass
    (output,) = outputs
    told = str(raised.value)
    expected = "none of 2 files can be used" if said is None else said.format(output=output)
    assert told.startswith(expected or "exit code 1")
    assert "\n" not in told
    if said is None:
        assert told.endswith(
            "Not a DICOM file: unpack it where it is an archive; others may stay, "
            "or narrow the input down with a pattern."
        )
    assert not output.parent.exists()


def test_a_temporary_folder_in_the_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with pytest.raises(UsageError) as refused:
            check_output_is_not_read(
                InputFiles.parse(str(tmp_path)), argv[argv.index("--output") + 1]
            )
        return subprocess.CompletedProcess(argv, 2, stderr=f"beam_pipeline: error: {refused.value}")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = f"the temporary folder {tmp_path} lies in the input {tmp_path}; set TMPDIR to"
    with pytest.raises(UsageError, match=expected), converted(str(tmp_path), []):
        pass


def test_a_process_that_is_asked_to_end_leaves_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    before, outputs = signal.getsignal(signal.SIGTERM), []

    def run(argv: list[str], **_: Any) -> None:
        outputs.append(Path(argv[argv.index("--output") + 1]))
        outputs[0].mkdir()
        (outputs[0] / "image").touch()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as ended, converted("x", []):
        pass
    assert ended.value.code == 143
    assert not outputs[0].parent.exists()
    assert signal.getsignal(signal.SIGTERM) == before


def refusal(output: Path) -> str:
    """The pipeline's message about an input without usable files."""
    unfinished = Unfinished(Folder(str(output)))
    rows = [{"source": f"{i}", "image_id": "", "reason": "not_dicom", "detail": ""} for i in "ab"]
    with pytest.raises(UsageError) as raised:
        check_rejects(unfinished, 2, rows, 1.0)
    return str(raised.value)
