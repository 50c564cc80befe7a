"""Below and before the brain: orbits, sinuses, air cells, facial bone, muscles.

Simple but plausible, so that the lower third of a series looks like one: a network must learn that
nothing there is blood. Frame and units are those of `anatomy`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.sample.fields import (
    Field,
    Points,
    Vector,
    capsule,
    common,
    coverage,
    ellipsoid,
    paint,
    union,
)

FAT, ORBITAL_FAT, MUSCLE, SKIN, EYE, LENS = -90.0, -80.0, 55.0, 35.0, 18.0, 75.0

# Centre and semi-axes of muscles, on the left.
_MUSCLES: tuple[tuple[Vector, Vector], ...] = (
    ((62, -24, -4), (12, 26, 40)),  # temporal
    ((56, -26, -52), (8, 18, 28)),  # masseter
    ((30, -24, -46), (9, 15, 22)),  # pterygoids
    ((9, 4, -66), (9, 8, 36)),  # prevertebral
    ((24, 70, -66), (22, 20, 32)),  # suboccipital
    ((50, 34, -70), (10, 18, 34)),  # sternocleidomastoid
    ((10, -48, -88), (22, 30, 18)),  # tongue
    ((12, -84, -60), (26, 8, 14)),  # lips
    ((58, 12, -58), (9, 13, 18)),  # parotid gland
)


@dataclass(frozen=True)
class Cavities:
    """Distances (mm) to the spaces that facial bone is built around."""

    orbit: Field
    maxillary: Field
    ethmoid: Field
    sphenoid: Field
    frontal: Field
    nasal: Field
    pharynx: Field
    mastoid: Field


def facial_cavities(points: Points) -> Cavities:
    """The spaces of both sides."""
    folded = points.folded()
    return Cavities(
        orbit=ellipsoid(folded, (31, -62, -9), (18, 25, 15)),
        maxillary=ellipsoid(folded, (26, -58, -38), (13, 16, 15)),
        ethmoid=ellipsoid(points, (0, -58, -9), (12, 24, 14)),
        sphenoid=ellipsoid(folded, (7, -20, -18), (8, 12, 9)),
        frontal=ellipsoid(folded, (9, -83, 12), (14, 4.5, 11)),
        nasal=ellipsoid(points, (0, -66, -42), (13, 32, 18)),
        pharynx=ellipsoid(points, (0, -26, -62), (14, 9, 30)),
        mastoid=ellipsoid(folded, (57, 30, -24), (12, 15, 17)),
    )


def facial_air(points: Points, spaces: Cavities, cells: Field) -> Field:
    """Distance to air. `cells` (waves) divides ethmoid and mastoid and makes the turbinates."""
    septum = 1.2 - np.abs(points.x)
    apart = np.abs(cells)  # small at the walls between cells
    return union(
        spaces.maxillary,
        spaces.pharynx,
        common(spaces.sphenoid, septum),
        common(spaces.frontal, septum),
        common(spaces.ethmoid, 1.4 - 2.5 * apart),
        common(spaces.nasal, septum, 3 * (0.5 - apart)),
        common(spaces.mastoid, 2 * (0.4 - apart)),
    )


def facial_bone(points: Points, spaces: Cavities) -> Field:
    """Distance to the bones of the face and of the middle of the base."""
    folded = points.folded()
    # Walls of one to three mm around each space, thicker bone between and beside them.
    walls = union(
        spaces.maxillary - 1.6,
        spaces.ethmoid - 1.2,
        spaces.sphenoid - 3,
        np.abs(spaces.orbit - 0.8) - 1.3,
    )
    atlas = np.abs(ellipsoid(points, (0, 32, -66), (24, 22, 40))) - 4
    return union(
        common(walls, -72 - points.y),  # the orbit is open to the front
        capsule(folded, (49, -66, -4), (52, -50, -26), (3.5, 4)),  # lateral wall and zygoma
        capsule(folded, (52, -50, -28), (66, -14, -26), (2.2, 2.2)),  # zygomatic arch
        ellipsoid(folded, (48, -12, -60), (3.5, 13, 28)),  # mandible
        ellipsoid(folded, (20, -36, -40), (2, 9, 16)),  # pterygoid plates
        capsule(points, (0, -84, -6), (0, -92, -22), (4, 3)),  # nasal bones
        common(ellipsoid(points, (0, -58, -66), (30, 30, 8)), -spaces.nasal),  # hard palate
        ellipsoid(points, (0, -4, -28), (16, 12, 15)),  # clivus
        spaces.mastoid - 2,
        common(atlas, np.abs(points.z + 66) - 9),
    )


def soft_tissue_hu(points: Points, skin: Field, outer: Field, texture: Field) -> Field:
    """HU under the skin: fat, muscles, the galea on the skull, the orbits' contents."""
    folded = points.folded()
    muscles = union(outer - 1.2, *(ellipsoid(folded, *muscle) for muscle in _MUSCLES))
    image = np.full(skin.shape, FAT, np.float32)
    image = paint(image, coverage(muscles + 1.5 * texture, 2.5), MUSCLE + 8 * texture)
    image = paint(image, coverage(facial_cavities(points).orbit, 2.0), ORBITAL_FAT)
    image = paint(image, coverage(_eye_muscles(folded), 1.5), MUSCLE - 15)
    image = paint(image, coverage(ellipsoid(folded, (32, -73, -9), (12, 12, 12)), 1.5), EYE)
    image = paint(image, coverage(ellipsoid(folded, (32, -82, -9), (5, 2.2, 5)), 1.5), LENS)
    return paint(image, coverage(-skin - 2.2, 1.5), SKIN)


def _eye_muscles(folded: Points) -> Field:
    return union(
        capsule(folded, (31, -62, -9), (15, -36, -7), (2.2, 2.2)),  # the optic nerve
        capsule(folded, (44, -70, -9), (20, -40, -8), (1.8, 2.2)),
        capsule(folded, (20, -72, -9), (16, -42, -8), (1.8, 2.2)),
    )
