"""Convolution kernels: soft or bone, by the names that the makers of scanners give them.

Names of different makers differ in form, so the maker, which de-identified files may lack, is not
needed. The classes follow from what the makers and others say of the kernels:

- GE: names are words. Solomon, Christianson and Samei, "Quantitative comparison of noise texture
  across CT scanners from different manufacturers", Med. Phys. 39 (2012), 6048: Soft, Standard and
  Chest are like Siemens B35f to B43f, Lung is like B80f.
- Siemens: a letter or two for the use (H and Hr head, B and Br body, J and I iterative, U and Ur
  ultra-high resolution, ...), then a number that grows with the sharpness. SOMATOM Sensation
  Cardiac, operating instructions: of the body kernels, 10 to 41 are soft or standard and 50 to 80
  for higher sharpness, U70 to U90 for bone. SOMATOM kernels with two letters have the same order.
- Toshiba and Canon: FC and a number whose tens are the use: 0, 1 body, 2 head, 4 head without
  correction for beam hardening, 6 soft tissue; 3 bone and inner ear, 5 lung, 8 bone.
- Philips: letters. A and B smooth and standard, UA to UC brain, SA to SC smooth; D and E detail and
  edge, EA to EC bone, L lung, YA to YF sharp and lung.
- United Imaging: SOFT, SHARP or VSHARP in the name.

OrtogOnBlender, which makes models of bone and of soft tissue from CT, divides the kernels of head
CT in the same way (its lists have 30 soft and 20 bone kernels of these makers).
"""

import re
from enum import IntEnum, auto


class Kernel(IntEnum):
    """Class of a convolution kernel, in the order in which series are preferred for the brain.

    An unknown kernel is before one that is known to be unfit for soft tissue.
    """

    SOFT = auto()
    UNKNOWN = auto()
    BONE = auto()


_PATTERNS = (
    (r"(HD )?(SOFT|STANDARD|STND|DETAIL|CHEST).*", Kernel.SOFT),
    (r"(HD )?(BONE|EDGE|LUNG|ULTRA).*", Kernel.BONE),
    (r"FC(0?[1-9]|[1246]\d)\D*", Kernel.SOFT),
    (r"FC[358]\d\D*", Kernel.BONE),
    (r"[ABCDHIJQTU][A-Z]?[1-4]\d\D*", Kernel.SOFT),
    (r"[ABCDHIJQTU][A-Z]?[5-9]\d\D*", Kernel.BONE),
    (r"A|B|[SU][ABC]", Kernel.SOFT),
    (r"D|E|E[ABC]|L|Y[A-F]", Kernel.BONE),
    (r".*_SOFT(_.*)?", Kernel.SOFT),
    (r".*_V?SHARP(_.*)?", Kernel.BONE),
)
_CLASSES = [(re.compile(pattern), kernel) for pattern, kernel in _PATTERNS]


def kernel_class(text: str) -> Kernel:
    r"""Return the class of a Convolution Kernel (0018,1210).

    Args:
        text: the value, the first of several counts: Siemens appends the strength of the iterative
            reconstruction, as in Hr38f\3.
    """
    name = text.partition("\\")[0].strip().upper()
    found = (kernel for pattern, kernel in _CLASSES if pattern.fullmatch(name))
    return next(found, Kernel.UNKNOWN)
