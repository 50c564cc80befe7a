"""Makes decoders crash and hang in every Python process that has this folder on its path.

`install(folder)` writes a `sitecustomize` there, which Python imports when it starts. It replaces
the decoder of JPEG Lossless when that is loaded: a code stream that holds CRASH ends the process as
a fault of memory does, one that holds HANG takes for ever. Every other takes as many seconds longer
as the environment variable in SLOW says.
"""

from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.uid import JPEGLosslessSV1

from tests.beam_pipeline.dicom_files import make_dicom

SLOW = "TEST_DECODE_SECONDS"
CRASH, HANG = b"THIS CRASHES THE DECODER", b"THIS HANGS THE DECODER"
BAD = {"ID_crash": (CRASH, "decoder_crashed"), "ID_hang": (HANG, "decoder_timed_out")}

_CODE = f"""
import importlib.abc, importlib.util, os, signal, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "beam_pipeline.dicom.slices":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            decode = module._DECODERS["jpeg"]
            def decode_or_not(frame, *arguments):
                if {CRASH!r} in frame:
                    os.kill(os.getpid(), signal.SIGSEGV)
                if {HANG!r} in frame:
                    time.sleep(3600)
                time.sleep(float(os.environ.get({SLOW!r}, "0")))
                return decode(frame, *arguments)
            module._DECODERS["jpeg"] = decode_or_not
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def install(folder: Path) -> None:
    """Write the module that spoils the decoder."""
    (folder / "sitecustomize.py").write_text(_CODE)


def write_slice(path: Path, pixels: np.ndarray, marker: bytes, patient: str) -> None:
    """A slice in JPEG Lossless whose code stream holds a marker."""
    stream = bytes(imagecodecs.jpeg8_encode(pixels.view(np.uint16), lossless=True))
    comment = b"\xff\xfe" + (len(marker) + 2).to_bytes(2, "big") + marker
    frame = stream[:2] + comment + stream[2:]
    names = {"SOPInstanceUID": path.stem, "PatientID": patient}
    path.write_bytes(make_dicom(pixels, syntax=JPEGLosslessSV1, frame=frame, **names))
