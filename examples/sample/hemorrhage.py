"""The five kinds of intracranial blood: where each lies, what shape it takes, what HU it has.

Acute clot measures about 50 to 80 HU (Osborn's Brain; Broder and Preston, Imaging the Head and
Brain, in Diagnostic Imaging for the Emergency Physician, 2011); blood mixed with CSF in sulci and
ventricles somewhat less. A bleed is a solid in the head's own frame, so it spans neighboring
slices by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from examples.sample.anatomy import Tissues, cavity, vault
from examples.sample.fields import (
    Field,
    Points,
    Vector,
    Waves,
    common,
    ellipsoid,
    enlarge,
    union,
)

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
OEDEMA_HU = 20.0

# Blood smaller than this in a slice is not labeled: a disc of 6 mm, or 12 mm of a filled sulcus,
# about what a reader calls with confidence at a 5 mm section and a window of 80 HU.
MIN_VISIBLE_MM2 = 30.0

# What each patient of a dozen has; the second dozen has more bleeds of one kind alone. Fixed, so
# that few patients already show every kind in three of them, a third of the patients show none,
# and kinds come together as they do in life: contusion with subdural and subarachnoid blood in
# injury, ventricular with parenchymal or subarachnoid blood in hypertension and aneurysm.
SCENARIOS: tuple[tuple[str, ...], ...] = (
    (),
    ("epidural",),
    ("intraparenchymal", "intraventricular"),
    ("subdural",),
    ("subarachnoid", "intraventricular"),
    (),
    ("epidural", "subdural"),
    ("intraparenchymal", "intraventricular"),
    (),
    ("epidural", "subarachnoid"),
    ("intraparenchymal", "subarachnoid", "subdural"),
    (),
    (),
    ("intraparenchymal",),
    ("subdural",),
    ("epidural",),
    (),
    ("subarachnoid",),
    ("intraventricular",),
    ("epidural", "subarachnoid"),
    (),
    ("subarachnoid", "subdural"),
    ("intraparenchymal", "intraventricular"),
    (),
)


@dataclass(frozen=True)
class Bleed:
    """One bleed. `center` and `size` are mm in the head; what `size` means depends on the kind."""

    kind: str
    variant: str
    hu: float
    side: int  # 1 left, -1 right
    center: Vector
    size: Vector
    edge: Waves

    def distance(self, tissues: Tissues, csf: Field) -> Field:
        """Distance to the blood (mm, negative inside) on the image's grid; so is `csf`."""
        shape = enlarge(common(_SHAPES[self.kind](self, tissues), tissues.inner))
        # Subarachnoid blood fills the CSF there is, and opens it a little.
        return common(shape, csf - 1.5) if self.kind == "subarachnoid" else shape

    def push(self, points: Points) -> tuple[Field, Field]:
        """How far (mm, x and y) each point looks back to find the tissue pushed there."""
        amount = {"epidural": 0.3, "intraparenchymal": 0.22, "subdural": 0.5}.get(self.kind, 0.0)
        x, y, z = (
            values - np.float32(middle)
            for values, middle in zip((points.x, points.y, points.z), self.center, strict=True)
        )
        shift = np.float32(amount * min(self.size)) * np.exp(-(x * x + y * y + z * z) / 45**2)
        return self.side * shift, np.zeros_like(shift)


def _epidural(bleed: Bleed, tissues: Tissues) -> Field:
    """A lens: what a large sphere, centered outside, cuts from the cavity under one bone."""
    radius = bleed.size[0]
    lens = ellipsoid(tissues.points, bleed.center, (radius, radius, radius))
    return lens + tissues.lumps


def _subdural(bleed: Bleed, tissues: Tissues) -> Field:
    """A crescent along the inner table of one side, thinning to its ends; or a band on the falx."""
    points = tissues.points
    x = points.x * bleed.side
    thickest, half_angle, half_height = bleed.size
    rise = (points.z - bleed.center[2]) / half_height
    if bleed.variant == "falx":
        along = (points.y - bleed.center[1]) / half_angle
        left = 1 - along**2 - rise**2
        width = thickest * np.sign(left) * np.sqrt(np.abs(left))
        return np.abs(x - 0.8 - width / 2) - width / 2
    angle = np.degrees(np.arctan2(points.y - 4, x)) - bleed.center[1]
    left = 1 - (angle / half_angle) ** 2 - rise**2
    width = thickest * np.sign(left) * np.sqrt(np.abs(left))
    band = -vault(points) - width + 0.9 * tissues.lumps
    return common(band, 3 - x, 2 - points.z - 12 * (points.y < 0))


def _subarachnoid(bleed: Bleed, tissues: Tissues) -> Field:
    """The region whose sulci and cisterns hold blood."""
    region = ellipsoid(tissues.points, bleed.center, bleed.size)
    return region + 5 * bleed.edge.at(tissues.points)


def _intraparenchymal(bleed: Bleed, tissues: Tissues) -> Field:
    """A lobulated clot in the tissue, clear of the skull."""
    clot = ellipsoid(tissues.points, bleed.center, bleed.size)
    clot = clot + 0.22 * min(bleed.size) * bleed.edge.at(tissues.points)
    return common(clot, tissues.inner + 2.5)


def _intraventricular(bleed: Bleed, tissues: Tissues) -> Field:
    """A layer in the dependent (posterior) horns, its surface level; or a cast of one side."""
    points = tissues.points
    level = bleed.center[1] - points.y
    if bleed.variant == "cast":
        level = union(level, -bleed.side * points.x - 2)
    return common(tissues.ventricles - 0.3, level)


_SHAPES = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}


def _on_inner_table(azimuth: float, elevation: float, side: int) -> tuple[Vector, Vector]:
    """A point of the inner table and the outward direction there.

    Args:
        azimuth: degrees from the side (0) to the back (90).
        elevation: degrees above the level of the sella.
        side: 1 left, -1 right.
    """
    a, e = np.radians((azimuth, elevation))
    out = np.array([side * np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    steps = np.arange(20, 100, 0.5, dtype=np.float32)
    origin = np.array([0, 4, 12])
    path = (origin + steps[:, None] * out).astype(np.float32)
    outside = cavity(Points(path[:, 0], path[:, 1], path[:, 2])) > 0
    point = path[int(np.argmax(outside))]
    return _vector(point), _vector(out)


def _vector(values: np.typing.ArrayLike) -> Vector:
    x, y, z = np.asarray(values, float).tolist()
    return (x, y, z)


def _random_epidural(rng: np.random.Generator, side: int) -> Bleed:
    # Temporal, parietal or frontal; with these radii a lens stays between coronal and lambdoid
    # sutures (about -20 and +60 degrees) or in front of the coronal one, and off the midline.
    azimuth = float(rng.choice([rng.uniform(5, 35), rng.uniform(-48, -40)], p=[0.75, 0.25]))
    point, out = _on_inner_table(azimuth, rng.uniform(0, 32), side)
    thick = rng.uniform(13, 23)
    radius = rng.uniform(38, 54)
    center = np.add(point, np.multiply(out, radius - thick))
    size = (float(radius), float(thick), float(thick))
    return Bleed("epidural", "lens", rng.uniform(56, 72), side, _vector(center), size, _edge(rng))


def _random_subdural(rng: np.random.Generator, side: int) -> Bleed:
    hu, thick = rng.uniform(51, 67), rng.uniform(5.5, 11)
    size = (float(thick), float(rng.uniform(65, 95)), float(rng.uniform(34, 46)))
    center = (float(side * 45), float(rng.uniform(-15, 15)), float(rng.uniform(30, 44)))
    return Bleed("subdural", "crescent", hu, side, center, size, _edge(rng))


def _falx_subdural(rng: np.random.Generator, side: int) -> Bleed:
    size = (float(rng.uniform(3.5, 6)), float(rng.uniform(30, 45)), float(rng.uniform(18, 28)))
    center = (0.0, float(rng.choice([-45, 55])), float(rng.uniform(45, 52)))
    return Bleed("subdural", "falx", rng.uniform(52, 66), side, center, size, _edge(rng))


def _random_subarachnoid(rng: np.random.Generator, side: int, aneurysm: bool) -> list[Bleed]:
    hu = rng.uniform(52, 64)
    if aneurysm:
        center, size = (side * 5.0, -6.0, 0.0), (48.0, 42.0, float(rng.uniform(20, 28)))
        return [Bleed("subarachnoid", "basal", hu, side, center, size, _edge(rng))]
    point, _ = _on_inner_table(rng.uniform(-40, 50), rng.uniform(20, 50), side)
    reach = rng.uniform(34, 48)
    size = (float(reach), float(reach), float(rng.uniform(26, 36)))
    return [Bleed("subarachnoid", "convexity", hu, side, point, size, _edge(rng))]


_CLOT_SITES: tuple[tuple[Vector, float], ...] = (
    ((27, -2, 17), 17),  # putamen
    ((27, -45, 32), 17),  # frontal lobe
    ((36, 34, 40), 18),  # parietal lobe
    ((42, 8, 2), 13),  # temporal lobe
    ((13, 13, 17), 12),  # thalamus
    ((20, 54, -20), 14),  # cerebellum
)


def _random_clot(rng: np.random.Generator, side: int, deep: bool) -> Bleed:
    sites = [_CLOT_SITES[0], _CLOT_SITES[4]] if deep else _CLOT_SITES
    (x, y, z), reach = sites[int(rng.integers(len(sites)))]
    center = _vector(np.array([side * x, y, z]) + rng.normal(0, 3, 3))
    size = _vector(reach * rng.uniform(0.9, 1.3) * rng.uniform(0.85, 1.15, 3))
    hu = rng.uniform(53, 70)
    return Bleed("intraparenchymal", "clot", hu, side, center, size, _edge(rng))


def random_artifact(rng: np.random.Generator, z: float) -> Bleed:
    """What one slice at the height `z` (mm in the head) shows like a clot, as a streak may."""
    radius, side = rng.uniform(9, 15), int(rng.choice([-1, 1]))
    center = (side * rng.uniform(14, 40), rng.uniform(-45, 50), z)
    size = (*(radius * rng.uniform(0.85, 1.15, 2)), radius)
    hu = float(rng.uniform(53, 70))
    return Bleed("intraparenchymal", "clot", hu, side, _vector(center), _vector(size), _edge(rng))


def _random_ventricular(rng: np.random.Generator, side: int) -> list[Bleed]:
    hu = rng.uniform(50, 65)
    center = (0.0, float(rng.uniform(24, 40)), 0.0)
    variant = str(rng.choice(["layer", "cast"]))
    return [Bleed("intraventricular", variant, hu, side, center, (1, 1, 1), _edge(rng))]


def _edge(rng: np.random.Generator) -> Waves:
    return Waves.random(rng, 19, 0.35, 9)


def plan_bleeds(kinds: tuple[str, ...], rng: np.random.Generator) -> tuple[Bleed, ...]:
    """The bleeds of one patient, of the given kinds."""
    side = int(rng.choice([-1, 1]))
    bleeds: list[Bleed] = []
    if "epidural" in kinds:
        bleeds.append(_random_epidural(rng, side))
    if "intraparenchymal" in kinds:
        bleeds.append(_random_clot(rng, side, deep="intraventricular" in kinds))
    if "intraventricular" in kinds:
        bleeds += _random_ventricular(rng, side)
    if "subarachnoid" in kinds:
        bleeds += _random_subarachnoid(rng, side, aneurysm="intraventricular" in kinds)
    if "subdural" in kinds:
        # Beside an epidural it is the contrecoup one, on the other side.
        other = -side if "epidural" in kinds else side
        bleeds.append(_random_subdural(rng, other))
        if rng.random() < 0.35:
            bleeds.append(_falx_subdural(rng, other))
    return tuple(replace(bleed, hu=float(bleed.hu)) for bleed in bleeds)


def displacement(bleeds: tuple[Bleed, ...], points: Points) -> tuple[Field, Field]:
    """The sum of what all bleeds displace (mm, x and y)."""
    x, y = np.zeros_like(points.x), np.zeros_like(points.x)
    for bleed in bleeds:
        dx, dy = bleed.push(points)
        x, y = x + dx, y + dy
    return x, y


def distances(bleeds: tuple[Bleed, ...], tissues: Tissues, csf: Field) -> dict[str, Field]:
    """Distance (mm) to each kind of blood present, in the order in which it covers the others.

    All on the image's grid: `csf` and the results.
    """
    order = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
    return {
        kind: union(*(bleed.distance(tissues, csf) for bleed in bleeds if bleed.kind == kind))
        for kind in order
        if any(bleed.kind == kind for bleed in bleeds)
    }
