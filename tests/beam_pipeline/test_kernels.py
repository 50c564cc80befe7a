"""What kernels of today's scanners are."""

import pytest

from beam_pipeline.dicom.kernels import Kernel, kernel_class

KERNELS = {
    Kernel.SOFT: (
        "SOFT STANDARD standard STND DETAIL CHEST",  # GE
        "H10s H30s H31s H40s J30s J40s J45s B30f B41s D30f I31f Hr38 Hr40f Hc40f Br40f Bv36 Qr40",
        "A B UA UB UC SA SB",  # Philips
        "FC01 FC02 FC08 FC1 FC17 FC20 FC21 FC23 FC26 FC28 FC41 FC43 FC64 FC68",  # Toshiba, Canon
        "H_SOFT_A B_SOFT_C",  # United Imaging
    ),
    Kernel.BONE: (
        "BONE BONEPLUS BONEPLUS2 EDGE LUNG ULTRA",
        "H50s H60s H70h H90s J70h B50s B60f B70f B80s U75u U90u Hr60f Hr64 Br64 Bl57d Ur73u",
        "D E EA EB EC L YA YB YC YD",
        "FC30 FC31 FC35 FC50 FC51 FC52 FC80 FC81",
        "H_SHARP_C H_VSHARP_C",
    ),
    Kernel.UNKNOWN: ("22 OTHER STAN FC FC90 H3 Z40 C YG SD FC100 XCA",),
}


@pytest.mark.parametrize(
    ("text", "kernel"),
    [(text, kernel) for kernel, lists in KERNELS.items() for some in lists for text in some.split()]
    + [
        ("", Kernel.UNKNOWN),
        ("HD STANDARD", Kernel.SOFT),
        (r"Hr38f\3", Kernel.SOFT),
        (r"Hr64h\2", Kernel.BONE),
        (" bone ", Kernel.BONE),
    ],
)
def test_a_kernel_is_soft_or_bone_by_its_name(text: str, kernel: Kernel) -> None:
    assert kernel_class(text) is kernel


def test_an_unknown_kernel_is_better_than_a_bone_kernel() -> None:
    assert sorted(Kernel) == [Kernel.SOFT, Kernel.UNKNOWN, Kernel.BONE]
