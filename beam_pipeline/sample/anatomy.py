"""One head: its shape, and the tissues of any slice through it.

Lengths are mm in the head's own frame: the origin lies between the temporal lobes at the level of
the sella, the vertex at z = 86. Sizes are those of an adult head; proportions follow axial atlases
by eye. Hounsfield units are textbook values for unenhanced CT (Hofer, CT Teaching Manual; Osborn's
Brain): air -1000, fat -100 to -50, CSF 0 to 15, white matter 20 to 30, gray matter 35 to 45,
muscle 40 to 60, diploe 300 to 800, compact bone above 1000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beam_pipeline.sample.fields import (
    Field,
    Points,
    Vector,
    Waves,
    blend,
    capsule,
    coverage,
    ellipsoid,
    paint,
    union,
)

AIR, FAT, MUSCLE, SKIN = -1000.0, -90.0, 55.0, 35.0
CSF, WHITE, GRAY, DEEP_GRAY, CEREBELLUM = 8.0, 28.0, 38.0, 36.5, 35.0
DURA, VENOUS = 52.0, 54.0
TABLE, DIPLOE, PETROUS, THIN_BONE = 1350.0, 650.0, 1500.0, 600.0


@dataclass(frozen=True)
class Head:
    """What differs from one patient to the next."""

    scale: Vector  # of x, y, z
    pose: tuple[float, float, float]  # yaw, roll, pitch against the slice plane, radians
    skull_mm: float
    scalp_mm: float
    ventricles: float  # 1 is a middle-aged adult's
    atrophy_mm: float  # half the width of a sulcus
    pineal_mm: float
    choroid_mm: float
    gyri: Waves
    folia: Waves
    lumps: Waves  # slow unevenness of surfaces
    cells: Waves  # air cells and turbinates
    texture: Waves

    @classmethod
    def random(cls, rng: np.random.Generator, min_ventricles: float = 0.6) -> Head:
        """A head drawn from the range of adults (sizes within about 5 %)."""
        size = rng.normal(1, 0.025)
        x, y, z = rng.normal(size, 0.02, 3)
        yaw, roll, pitch = np.radians(rng.normal(0, (6, 2.5, 4)))
        return cls(
            scale=(float(x), float(y), float(z)),
            pose=(float(yaw), float(roll), float(pitch)),
            skull_mm=float(rng.uniform(5, 7.5)),
            scalp_mm=float(rng.uniform(4, 8)),
            ventricles=float(rng.uniform(min_ventricles, max(1.5, min_ventricles + 0.3))),
            atrophy_mm=float(rng.uniform(0.2, 1.0)),
            pineal_mm=float(rng.choice([0.0, rng.uniform(1.5, 2.5)])),
            choroid_mm=float(rng.choice([0.0, rng.uniform(1.5, 3.0)])),
            gyri=Waves.random(rng, 19, 0.2, 12),
            folia=Waves.random(rng, 7, 0.2, 8),
            lumps=Waves.random(rng, 70, 0.2, 8),
            cells=Waves.random(rng, 9, 0.25, 10),
            texture=Waves.random(rng, 25, 0.4, 8),
        )

    def points(self, plane: Points) -> Points:
        """Positions in the head of positions in the scanner's upright frame (mm)."""
        yaw, roll, pitch = self.pose
        cy, sy, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(roll), np.sin(roll)
        cp, sp = np.cos(pitch), np.sin(pitch)
        turn = (
            np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
            @ np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
            @ np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        )
        rows = (turn / np.array(self.scale)[:, None]).astype(np.float32)
        x, y, z = (r[0] * plane.x + r[1] * plane.y + r[2] * plane.z for r in rows)
        return Points(x, y, z)


@dataclass(frozen=True)
class Tissues:
    """A slice's coarse fields: distances in mm (negative inside), HU where so named."""

    points: Points
    skin: Field
    inner: Field  # the inner table: negative in the cranial cavity
    outer: Field  # the outer table
    soft_hu: Field  # what lies between skin and skull
    bone: Field  # facial and basal bone outside the shell around the cavity
    air: Field  # sinuses, cells, airway
    brain_hu: Field
    csf: Field  # subarachnoid space: sulci, fissures and cisterns
    ventricles: Field
    falx: Field  # with the tentorium and the venous sinuses
    calcified: Field
    lumps: Field
    texture: Field


def cavity(points: Points) -> Field:
    """Distance to the inner table: vault, middle and posterior fossae, less the petrous ridges."""
    folded = points.folded()
    vault = ellipsoid(points, (0, 4, 8), (66, 82, 78))
    # The front of the vault ends at the roofs of the orbits, the temporal lobes go lower.
    vault = np.maximum(vault, (1 - points.z) + np.clip((-points.y - 30) * 0.25, 0, 8))
    temporal = ellipsoid(folded, (37, -8, -2), (25, 34, 24))
    posterior = ellipsoid(points, (0, 43, -8), (54, 42, 41))
    canal = capsule(points, (0, 32, -40), (0, 36, -95), (12, 10))
    whole = blend(blend(blend(vault, temporal, 6), posterior, 6), canal, 8)
    return np.maximum(whole, -petrous(folded))


def petrous(folded: Points) -> Field:
    """Distance to the petrous ridge, between the middle and the posterior fossa."""
    return capsule(folded, (16, 4, -17), (60, 30, -17), (5, 12))


def shell_mm(head: Head, points: Points, lumps: Field) -> Field:
    """Thickness of the skull (mm): more at the front, the back and the vertex, less at the base."""
    front = np.exp(-((points.x / 24) ** 2) - ((points.z - 12) / 14) ** 2) * (points.y < -40)
    thick = head.skull_mm + lumps + 1.5 * (points.y / 80) ** 2 + 5 * front
    thick += np.clip((points.z - 60) / 20, 0, 2)
    base = np.clip((points.z + 2) / 10, 0, 1)  # 0 at the base, 1 in the vault
    return np.asarray(np.clip(thick * (0.55 + 0.45 * base), 2, None), np.float32)


def head_surface(head: Head, points: Points, outer: Field) -> Field:
    """Distance to the skin: scalp, face with nose and ears, neck."""
    folded = points.folded()
    vault = ellipsoid(points, (0, 6, 2), (70, 86, 76))
    face = ellipsoid(points, (0, -38, -42), (60, 52, 56))
    neck = ellipsoid(points, (0, 22, -85), (60, 62, 70))
    nose = capsule(points, (0, -84, -22), (0, -99, -44), (7, 9))
    ear = ellipsoid(folded, (77, 14, -24), (4, 13, 22))
    scalp = blend(outer, vault, 6) - np.float32(head.scalp_mm)
    whole = blend(blend(blend(scalp, face, 12), neck, 16), nose, 8)
    return blend(whole, ear, 4)


def soft_tissue_hu(points: Points, skin: Field, outer: Field, texture: Field) -> Field:
    """HU under the skin: fat, muscle at the temples and the neck, both mixed in the face."""
    folded = points.folded()
    muscle = ellipsoid(folded, (62, -22, -6), (14, 26, 40))
    muscle = union(muscle, ellipsoid(folded, (24, 70, -62), (26, 30, 34)))
    muscle = union(muscle, ellipsoid(folded, (50, -20, -55), (11, 22, 30)))
    muscle = union(muscle, outer - 1.5)  # the galea
    deep = np.where((points.z < -12) & (points.y < 20), 4 - 7 * texture, 9).astype(np.float32)
    image = np.full(skin.shape, FAT, np.float32)
    image = paint(image, coverage(union(muscle, np.maximum(deep, skin + 7)), 2.5), MUSCLE)
    return paint(image, coverage(-skin - 2.2, 1.5), SKIN)


def facial_parts(points: Points, cells: Field) -> tuple[Field, Field, Field, Field]:
    """Distances to facial bone, to air, to the fat of the orbits and to what is water in them."""
    folded = points.folded()
    orbit = ellipsoid(folded, (31, -62, -9), (18, 25, 17))
    globe = ellipsoid(folded, (32, -73, -9), (12, 12, 12))
    nerve = capsule(folded, (31, -62, -9), (15, -36, -7), (2.2, 2.2))
    recti = union(
        capsule(folded, (44, -70, -9), (20, -40, -8), (1.8, 2.2)),
        capsule(folded, (20, -72, -9), (16, -42, -8), (1.8, 2.2)),
    )
    maxillary = ellipsoid(folded, (26, -58, -38), (13, 16, 15))
    ethmoid = ellipsoid(points, (0, -58, -9), (12, 24, 14))
    sphenoid = ellipsoid(folded, (7, -20, -18), (8, 12, 9))
    nasal = ellipsoid(points, (0, -66, -42), (13, 32, 18))
    pharynx = ellipsoid(points, (0, -26, -62), (14, 9, 30))
    mastoid = ellipsoid(folded, (57, 30, -24), (12, 15, 17))
    frontal = ellipsoid(folded, (9, -83, 12), (14, 4.5, 11))
    septum = 1.2 - folded.x
    walls = 2.5 * np.abs(cells) - 2.2  # thin where the waves cross zero
    air = union(
        maxillary,
        np.maximum(sphenoid, septum),
        np.maximum(frontal, septum),
        np.maximum(ethmoid, -walls - 0.8),
        np.maximum(np.maximum(nasal, septum), 3 * (0.5 - np.abs(cells))),
        np.maximum(mastoid, 2 * (0.4 - np.abs(cells))),
        pharynx,
    )
    # Shells: a wall of 1.5 mm around each cavity, thicker bone between and beside them.
    shells = union(maxillary - 1.6, ethmoid - 1.2, sphenoid - 3, np.maximum(orbit - 1.8, -orbit))
    outside = -(globe + 4)  # the orbit is open to the front
    bone = union(
        np.maximum(np.maximum(shells, outside), -72 - points.y),
        capsule(folded, (49, -66, -4), (52, -50, -26), (3.5, 4)),  # lateral wall and zygoma
        capsule(folded, (52, -50, -28), (66, -14, -26), (2.2, 2.2)),  # zygomatic arch
        capsule(folded, (48, -2, -36), (47, -14, -80), (3.5, 5)),  # mandible
        capsule(points, (0, -84, -6), (0, -92, -22), (4, 3)),  # nasal bones
        np.maximum(ellipsoid(points, (0, -58, -66), (30, 30, 8)), -nasal),  # hard palate
        ellipsoid(points, (0, -4, -26), (17, 14, 14)),  # clivus
        mastoid - 2,
        petrous(folded),
        np.maximum(
            np.abs(ellipsoid(points, (0, 32, -66), (24, 22, 40))) - 4, np.abs(points.z + 66) - 9
        ),  # atlas
    )
    return bone, air, orbit, union(globe, nerve, recti)


def ventricle_distance(head: Head, points: Points) -> Field:
    """Distance to the lateral, third and fourth ventricles."""
    folded = points.folded()
    grown = 2.2 * (head.ventricles - 1)
    lateral = union(
        capsule(folded, (13, -36, 17), (6, -12, 25), (3.2, 4.2)),
        capsule(folded, (6, -12, 27), (13, 20, 31), (4.5, 5)),
        capsule(folded, (13, 20, 31), (24, 38, 19), (5, 7)),
        capsule(folded, (24, 38, 17), (20, 61, 14), (6, 3)),
        capsule(folded, (27, 34, 10), (29, 2, -9), (3.5, 2)),
    )
    third = ellipsoid(points, (0, 4, 11), (2.2 + 0.5 * grown, 13, 11))
    fourth = ellipsoid(points, (0, 37, -17), (8, 5, 9))
    lateral = np.maximum(lateral - grown, 0.9 - folded.x)  # the septum pellucidum
    return union(lateral, third, fourth - grown / 3)


def tentorium_height(points: Points) -> Field:
    """How far above (positive) the tentorium a point lies (mm)."""
    folded = points.folded()
    roof = 16 - 0.42 * folded.x - 0.004 * (points.y - 35) ** 2
    return np.asarray((points.z - roof) * 0.85, np.float32)


def sulci(head: Head, points: Points, depth: Field) -> tuple[Field, Field]:
    """Distance to the nearest sulcus' middle, and to its CSF (mm).

    Zero crossings of smooth noise wind like sulci. Compressing the radius makes them run into the
    depth, as folds of a surface do, and not parallel to it.
    """
    radius = np.sqrt(points.x**2 + (points.y - 4) ** 2 + (points.z - 8) ** 2) + 1e-3
    squeeze = (radius / 70) ** np.float32(-0.55)
    warped = Points(points.x * squeeze, points.y * squeeze, points.z * squeeze)
    level = head.gyri.at(warped)
    dy, dx = np.gradient(level)
    step = np.abs(points.x[0, 1] - points.x[0, 0]) + 1e-6
    slope = np.sqrt(dx * dx + dy * dy) / step
    middle = np.abs(level) / np.maximum(slope, 0.08)
    width = head.atrophy_mm * np.clip(1.35 - depth / 16, -1, 1.2)
    return np.asarray(middle, np.float32), np.asarray(middle - width, np.float32)


def cisterns(head: Head, points: Points) -> Field:
    """Distance to the basal cisterns and the Sylvian and interhemispheric fissures."""
    folded = points.folded()
    tall = folded.height_scaled(0.35)
    open_mm = 0.5 * head.atrophy_mm
    sylvian = union(
        capsule(tall, (63, -20, 1), (42, -16, 2), (1.6, 1.6)),
        capsule(tall, (42, -19, 3), (38, 12, 4), (1.4, 1.2)),
    )
    midbrain = np.abs(ellipsoid(points, (0, 11, -2), (17, 15, 22))) - 1.4
    basal = union(
        ellipsoid(folded, (5, -12, -4), (11, 8, 7)),
        capsule(folded, (6, -14, -3), (36, -18, 0), (2.0, 1.5)),
        np.maximum(np.maximum(midbrain, np.abs(points.z + 2) - 11), points.y - 24),
        ellipsoid(points, (0, 28, 5), (13, 4, 6)),
        ellipsoid(points, (0, -1, -24), (13, 4, 14)),
        ellipsoid(points, (0, 66, -38), (15, 9, 7)),
    )
    between = np.maximum(folded.x - 0.6, 12 - points.z + 0.4 * points.y)
    between = np.maximum(between, -ellipsoid(points, (0, 6, 20), (99, 44, 26)))
    return union(sylvian - open_mm, basal - open_mm, between - open_mm)


def dural_parts(points: Points, depth: Field) -> Field:
    """Distance to falx, tentorium and the great venous sinuses."""
    folded = points.folded()
    above = tentorium_height(points)
    arch = -ellipsoid(points, (0, 8, 16), (99, 58, 38))
    falx = np.maximum(np.maximum(folded.x - 0.55, arch), 8 - above)
    notch = 16 - np.hypot(points.x, (points.y - 12) * 0.8)
    tent = np.maximum(np.maximum(np.abs(above) - 0.6, notch), 18 - points.y)
    sagittal = np.maximum((folded.x + 0.6 * depth - 4.5) * 0.8, 20 - points.y - 0.5 * points.z)
    transverse = np.maximum(np.hypot(depth - 1, above) - 3.5, 42 - points.y)
    return union(falx, tent, np.maximum(sagittal, -above), transverse)


def parenchyma_hu(
    head: Head, points: Points, cortex: Field, ventricles: Field, texture: Field
) -> Field:
    """HU of the brain: cortex, white matter, deep nuclei, cerebellum and brain stem."""
    folded = points.folded()
    nuclei = union(
        ellipsoid(folded, (11, 13, 16), (8.5, 14, 10)),
        ellipsoid(folded, (24, -3, 14), (6.5, 16, 10)),
        ellipsoid(folded, (14, -24, 21), (5, 9, 9)),
    )
    stem = capsule(points, (0, 10, 6), (0, 30, -60), (13, 9))
    above = tentorium_height(points)
    lower = np.maximum(above, 8 - points.y - 0.3 * points.z)
    image = np.full(cortex.shape, WHITE, np.float32)
    image = paint(image, coverage(cortex, 2), GRAY)
    image = paint(image, coverage(nuclei, 2), DEEP_GRAY)
    folia = CEREBELLUM + 1.5 * head.folia.at(points)
    image = paint(image, coverage(lower, 2), folia)
    image = paint(image, coverage(stem, 3), WHITE + 3)
    # Periventricular white matter is a little darker in most adults.
    rim = np.exp(-np.maximum(ventricles, 0) / 4) * 2.5 * min(head.ventricles, 1.4)
    return np.asarray(image - rim + 0.8 * texture, np.float32)


def slice_tissues(head: Head, points: Points, push: tuple[Field, Field]) -> Tissues:
    """All coarse fields of a slice; `push` (mm, x and y) is how blood displaces the brain."""
    lumps, texture = head.lumps.at(points), head.texture.at(points)
    cells = head.cells.at(points)
    inner = cavity(points) + 0.6 * lumps
    outer = inner - shell_mm(head, points, lumps)
    skin = head_surface(head, points, outer)
    bone, air, orbit, eye = facial_parts(points, cells)
    soft = soft_tissue_hu(points, skin, outer, texture)
    soft = paint(paint(soft, coverage(orbit, 2), FAT + 10), coverage(eye, 1.5), 15.0)
    brain = points.moved(*push)
    depth = -inner
    middle, gap = sulci(head, brain, depth)
    supratentorial = np.maximum(2 - tentorium_height(brain), -999)
    gap = np.maximum(gap, np.minimum(supratentorial, brain.y - 0))
    gap = np.maximum(gap, np.maximum(depth - 22, -inner * 0 - 99))
    csf = union(gap, cisterns(head, brain), depth - 0.6 - head.atrophy_mm)
    ventricles = ventricle_distance(head, brain) + 0.4 * texture
    cortex = np.maximum(union(middle - 3, depth - 4.5), depth - 24)
    calcified = union(
        ellipsoid(brain, (0, 25, 9), (head.pineal_mm or 0.1,) * 3) + (not head.pineal_mm) * 9,
        ellipsoid(brain.folded(), (20, 33, 21), (head.choroid_mm or 0.1,) * 3)
        + (not head.choroid_mm) * 9,
    )
    return Tissues(
        points=points,
        skin=skin,
        inner=inner,
        outer=outer,
        soft_hu=soft,
        bone=bone,
        air=air,
        brain_hu=parenchyma_hu(head, brain, cortex, ventricles, texture),
        csf=csf,
        ventricles=ventricles,
        falx=dural_parts(brain, depth),
        calcified=calcified.astype(np.float32),
        lumps=lumps,
        texture=texture,
    )
