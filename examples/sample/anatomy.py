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

from examples.sample.face import facial_air, facial_bone, facial_cavities, soft_tissue_hu
from examples.sample.fields import (
    Field,
    Points,
    Vector,
    Waves,
    blend,
    capsule,
    common,
    coverage,
    ellipsoid,
    enlarge,
    paint,
    union,
)

AIR = -1000.0
CSF, WHITE, GRAY, DEEP_GRAY, CEREBELLUM = 8.0, 28.5, 37.0, 36.0, 35.0
DURA = 52.0
TABLE, DIPLOE, THIN_BONE = 1350.0, 650.0, 600.0


@dataclass(frozen=True)
class Head:
    """What differs from one patient to the next."""

    scale: Vector  # of x, y, z
    pose: tuple[float, float, float]  # yaw, roll, pitch against the slice plane, radians
    egg: float  # relative gain of width per mm towards the back
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
            egg=float(rng.uniform(0.0002, 0.0010)),
            skull_mm=float(rng.uniform(5, 7.5)),
            scalp_mm=float(rng.uniform(4, 8)),
            ventricles=float(rng.uniform(min_ventricles, max(1.5, min_ventricles + 0.3))),
            atrophy_mm=float(rng.uniform(0.4, 1.8)),
            pineal_mm=float(rng.choice([0.0, rng.uniform(1.5, 2.5)])),
            choroid_mm=float(rng.choice([0.0, rng.uniform(1.5, 3.0)])),
            gyri=Waves.random(rng, 22, 0.2, 12),
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
        # Skulls are egg-shaped from above: narrower at the forehead, widest behind the ears.
        return Points(x / (1 + np.float32(self.egg) * np.clip(y, -90, 60)), y, z)


@dataclass(frozen=True)
class Tissues:
    """A slice's coarse fields: distances in mm (negative inside), HU where so named."""

    points: Points
    brain: Points  # where the tissue shown came from: blood displaces it
    skin: Field
    inner: Field  # the inner table: negative in the cranial cavity
    outer: Field  # the outer table
    soft_hu: Field  # what lies between skin and skull
    bone: Field  # facial and basal bone outside the shell around the cavity
    air: Field  # sinuses, cells, airway
    brain_hu: Field
    sulcus: Field  # signed distance to the middle of the nearest sulcus
    sulcus_mm: Field  # half its width
    cisterns: Field  # with the Sylvian fissures and the CSF over the brain
    ventricles: Field
    calcified: Field
    lumps: Field
    texture: Field


def cavity(points: Points) -> Field:
    """Distance to the inner table: vault, middle and posterior fossae, less the petrous ridges."""
    folded = points.folded()
    temporal = ellipsoid(folded, (37, -8, -2), (26, 34, 24))
    posterior = ellipsoid(points, (0, 43, -8), (55, 42, 41))
    sella = ellipsoid(points, (0, -10, 2), (24, 16, 10))
    canal = capsule(points, (0, 32, -40), (0, 36, -95), (12, 10))
    upper = common(vault(points), frontal_floor(folded))
    whole = blend(blend(blend(union(upper, sella), temporal, 6), posterior, 6), canal, 8)
    return blend_out(whole, petrous(folded), 2)


def vault(points: Points) -> Field:
    """Distance to the dome of the inner table, taken as a whole ellipsoid."""
    return ellipsoid(points, (0, 4, 8), (66, 82, 78))


def crests(points: Points) -> Field:
    """How far (mm) the inner table stands out at the midline, behind and in front."""
    back = np.exp(-((points.x / 5) ** 2)) * np.clip((points.y - 40) / 20, 0, 1)
    front = np.exp(-((points.x / 4) ** 2)) * np.clip((-40 - points.y) / 20, 0, 1)
    back = back * np.clip((26 - points.z) / 12, 0, 1)
    front = front * np.clip((46 - points.z) / 12, 0, 1)
    return np.asarray(5 * (back + front), np.float32)


def frontal_floor(folded: Points) -> Field:
    """Height (mm) by which a point lies below the front of the vault.

    The front ends above the orbits, which bulge into it; the temporal lobes go lower.
    """
    bulge = 9 * np.exp(-(((folded.x - 32) / 16) ** 2) - ((folded.y + 58) / 26) ** 2)
    return np.asarray((1 + bulge - folded.z) * 0.8, np.float32)


def blend_out(shape: Field, removed: Field, width: float) -> Field:
    """A shape less another, the edge between them rounded over `width` mm."""
    return -blend(-shape, removed, width)


def petrous(folded: Points) -> Field:
    """Distance to the petrous ridge, between the middle and the posterior fossa."""
    return capsule(folded, (16, 4, -19), (60, 30, -17), (4, 11))


def shell_mm(head: Head, points: Points, lumps: Field) -> Field:
    """Thickness of the skull (mm): more at the front, the back and the vertex, less at the base."""
    front = np.exp(-((points.x / 24) ** 2) - ((points.z - 12) / 14) ** 2) * (points.y < -40)
    thick = head.skull_mm + lumps + 1.5 * (points.y / 80) ** 2 + 5 * front
    thick += np.clip((points.z - 60) / 20, 0, 2)
    low = np.clip((4 - points.z) / 10, 0, 1) * np.clip((48 - points.y) / 20, 0, 1)
    floor = np.clip((frontal_floor(points.folded()) - vault(points)) / 6, 0, 1)
    floor = floor * np.clip((-10 - points.y) / 10, 0, 1)  # the roofs of the orbits are thin
    return np.asarray(np.clip(thick * (1 - 0.6 * np.maximum(low, floor)), 2, None), np.float32)


def head_surface(head: Head, points: Points, outer: Field) -> Field:
    """Distance to the skin: scalp, face with nose and ears, neck."""
    folded = points.folded()
    dome = ellipsoid(points, (0, 6, 2), (70, 86, 76))
    face = ellipsoid(points, (0, -38, -42), (60, 52, 56))
    neck = ellipsoid(points, (0, 22, -85), (60, 62, 70))
    nose = capsule(points, (0, -80, -16), (0, -97, -42), (8, 11))
    ear = ellipsoid(folded, (77, 14, -24), (4, 13, 22))
    scalp = blend(outer, dome, 6) - np.float32(head.scalp_mm)
    whole = blend(blend(blend(scalp, face, 12), neck, 16), nose, 14)
    return blend(whole, ear, 4)


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
    third = ellipsoid(points, (0, 4, 14), (2.2 + 0.5 * grown, 13, 11))
    fourth = ellipsoid(points, (0, 37, -17), (8, 5, 9))
    lateral = common(lateral - grown, 0.9 - folded.x)  # the septum pellucidum
    return union(lateral, third, fourth - grown / 3)


def tentorium_height(points: Points) -> Field:
    """How far above (positive) the tentorium a point lies (mm)."""
    folded = points.folded()
    roof = 16 - 0.42 * folded.x - 0.004 * (points.y - 35) ** 2
    return np.asarray((points.z - roof) * 0.85, np.float32)


def sulci(head: Head, points: Points, depth: Field) -> tuple[Field, Field]:
    """Signed distance to the middle of the nearest sulcus, and half the width of its CSF (mm).

    Zero crossings of smooth noise wind like sulci. Compressing the radius makes them run into the
    depth, as folds of a surface do, and not parallel to it.
    """
    radius = np.sqrt(points.x**2 + (points.y - 4) ** 2 + (points.z - 8) ** 2) + 1e-3
    squeeze = (radius / 70) ** -0.55
    level = head.gyri.at(Points(points.x * squeeze, points.y * squeeze, points.z * squeeze))
    dy, dx = np.gradient(level)
    step = np.abs(points.x[0, 1] - points.x[0, 0]) + 1e-6
    middle = level / np.maximum(np.hypot(dx, dy) / step, 0.08)
    # Some sulci are wide and some are closed; all close towards the depth.
    uneven = 1.2 + 0.5 * head.lumps.at(points.height_scaled(1.7))
    width = head.atrophy_mm * uneven * np.clip(1.3 - depth / 17, 0, 1) - 0.25
    # The cerebellum, behind and below the tentorium, has folia instead.
    allowed = union(2 - tentorium_height(points), points.y)
    return middle, width - 2 * np.clip(common(allowed, depth - 19), 0, 3)


def cisterns(head: Head, points: Points) -> Field:
    """Distance to the basal cisterns and the Sylvian fissures."""
    folded = points.folded()
    tall = folded.height_scaled(0.35)
    sylvian = union(
        capsule(tall, (63, -20, 1), (42, -16, 2), (1.8, 1.6)),
        capsule(tall, (42, -19, 3), (38, 12, 4), (1.4, 1.2)),
    )
    midbrain = np.abs(ellipsoid(points, (0, 11, -2), (17, 15, 22))) - 0.7
    basal = union(
        ellipsoid(folded, (4, -12, -4), (10, 8, 7)),
        capsule(folded, (6, -14, -3), (36, -18, 0), (2.0, 1.5)),
        common(midbrain, np.abs(points.z + 4) - 8, points.y - 24),
        ellipsoid(points, (0, 28, 5), (13, 4, 6)),
        ellipsoid(points, (0, -1, -24), (13, 4, 14)),
        ellipsoid(points, (0, 68, -38), (9, 7, 9)),
    )
    return union(sylvian, basal) - 0.5 * head.atrophy_mm


def subarachnoid_space(head: Head, tissues: Tissues) -> Field:
    """Distance to CSF outside the ventricles (mm), on the image's grid."""
    middle, width = enlarge(tissues.sulcus), enlarge(tissues.sulcus_mm)
    between = np.abs(enlarge(tissues.brain.x)) - (0.9 + 0.4 * head.atrophy_mm)
    fissure = common(between, enlarge(_fissure_limits(tissues.brain)))
    return union(np.abs(middle) - width, fissure, enlarge(tissues.cisterns))


def _fissure_limits(points: Points) -> Field:
    callosum = -ellipsoid(points, (0, 6, 20), (99, 44, 26))
    return common(callosum, 10 - points.z + 0.4 * points.y)


def dura(tissues: Tissues) -> Field:
    """Distance to falx, tentorium and the great venous sinuses (mm), on the image's grid."""
    brain, depth = tissues.brain, -tissues.inner
    above = tentorium_height(brain)
    arch = -ellipsoid(brain, (0, 4, 16), (99, 62, 36))
    falx = common(np.abs(enlarge(brain.x)) - 0.55, enlarge(common(arch, 6 - above)))
    notch = 16 - np.hypot(brain.x, (brain.y - 12) * 0.8)
    tent = common(np.abs(enlarge(above)) - 0.6, enlarge(common(notch, 18 - brain.y)))
    sagittal = (np.abs(brain.x) + 0.6 * depth - 4.5) * 0.8
    sagittal = common(sagittal, 20 - brain.y - 0.5 * brain.z, -above)
    transverse = common(np.hypot(depth - 1, above) - 3.5, 42 - brain.y)
    return union(falx, tent, enlarge(union(sagittal, transverse)))


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
    lower = common(above, 8 - points.y - 0.3 * points.z)
    image = np.full(cortex.shape, WHITE, np.float32)
    image = paint(image, coverage(cortex, 4.0), GRAY)
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
    inner = cavity(points) + 0.6 * lumps
    outer = inner - shell_mm(head, points, lumps)
    inner = inner + crests(points)
    skin = head_surface(head, points, outer)
    spaces = facial_cavities(points)
    # No brain is as symmetrical or as smooth as the shapes it is made of.
    brain = points.moved(push[0] + 1.5 * lumps, push[1] + 1.3 * texture)
    depth = -inner
    # Folds go in from the convexity, not up from the base of the skull.
    folded_mm = common(depth, -vault(points))
    middle, width = sulci(head, brain, folded_mm)
    ventricles = ventricle_distance(head, brain) + 0.4 * texture
    cortex = common(union(np.abs(middle) - 4.2, depth - 5), folded_mm - 23)
    return Tissues(
        points=points,
        brain=brain,
        skin=skin,
        inner=inner,
        outer=outer,
        soft_hu=soft_tissue_hu(points, skin, outer, texture),
        bone=union(facial_bone(points, spaces), petrous(points.folded())),
        air=facial_air(points, spaces, head.cells.at(points)),
        brain_hu=parenchyma_hu(head, brain, cortex, ventricles, texture),
        sulcus=middle,
        sulcus_mm=width,
        cisterns=union(cisterns(head, brain), depth - 0.4 - head.atrophy_mm),
        ventricles=ventricles,
        calcified=calcifications(head, brain),
        lumps=lumps,
        texture=texture,
    )


def calcifications(head: Head, points: Points) -> Field:
    """Distance to the calcified pineal and choroid plexus, which are bright and are no blood."""
    pineal = capsule(points, (0, 25, 8), (0, 25, 9), (head.pineal_mm, head.pineal_mm))
    choroid = capsule(
        points.folded(), (18, 30, 22), (21, 35, 21), (head.choroid_mm, head.choroid_mm)
    )
    absent = 9.0
    return union(pineal + absent * (head.pineal_mm == 0), choroid + absent * (head.choroid_mm == 0))
