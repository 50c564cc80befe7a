"""One head on the table: a slice's Hounsfield units and what is visible in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from examples.sample.anatomy import (
    AIR,
    CSF,
    DIPLOE,
    DURA,
    TABLE,
    THIN_BONE,
    Head,
    Tissues,
    dura,
    slice_tissues,
    subarachnoid_space,
)
from examples.sample.fields import COARSE, SIZE, Field, Points, coverage, enlarge, paint
from examples.sample.hemorrhage import (
    KINDS,
    MIN_VISIBLE_MM2,
    OEDEMA_HU,
    SCENARIOS,
    Bleed,
    displacement,
    distances,
    plan_bleeds,
    random_artifact,
)

EDGE_MM = 0.7  # blur of an edge in the plane, about a head kernel's
HOLDER_HU = 170.0  # as in the real slices
SULCUS_EDGE_MM = 1.8  # a sulcus runs obliquely through a thick slice
ARTIFACTS = 0.12  # share of the slices; never two next to each other
NOISE_CORRELATION = 0.8  # pixels; the real slices' autocorrelation at 1, 2, 3 pixels is .68 .24 .05


@dataclass(frozen=True)
class Geometry:
    """Where the slices of a series lie (mm, radians), as Image Plane Module C.7.6.2 has it."""

    pixel_mm: float
    tilt: float  # of the gantry about the patient's x axis
    step: float  # along z, between neighboring slices
    origin: tuple[float, float, float]  # first pixel of slice 0, as written to the header
    head: tuple[float, float, float]  # the head's origin in the same coordinates

    def position(self, index: float) -> tuple[float, float, float]:
        """ImagePositionPatient of a slice (mm)."""
        x, y, z = self.origin
        return (x, y, round(z + self.step * index, 6))

    @property
    def orientation(self) -> tuple[float, ...]:
        """ImageOrientationPatient: rows run to the left, columns to the back (and down)."""
        return (1, 0, 0, 0, round(float(np.cos(self.tilt)), 6), round(-float(np.sin(self.tilt)), 6))

    def plane(self, index: float, grid: int) -> Points:
        """Upright positions about the head's origin of a grid over a slice (mm), [grid, grid]."""
        centers = ((np.arange(grid) + 0.5) * (SIZE / grid) - 0.5) * self.pixel_mm
        x0, y0, z0 = np.subtract(self.position(index), self.head)
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        # In the plane's own axes: down the columns, and along the normal (0, sin, cos).
        down, up = y0 * cos - z0 * sin + centers, y0 * sin + z0 * cos
        x, y = np.meshgrid((x0 + centers).astype(np.float32), down.astype(np.float32))
        return Points(x, y, np.full_like(x, up))


@dataclass(frozen=True)
class Patient:
    """One patient: a head, its bleeds, and how it was scanned.

    `artifacts` are by the index of the only slice that shows them.
    """

    head: Head
    bleeds: tuple[Bleed, ...]
    geometry: Geometry
    noise_hu: float
    holder: int  # 0 none, 1 a cradle under the head, 2 bars beside it
    noise_seed: int
    artifacts: dict[int, Bleed] = field(default_factory=dict)

    @classmethod
    def random(cls, index: int, slices: int, seed: np.random.SeedSequence) -> Patient:
        """The `index`-th patient; which bleeds it has follows from the index alone."""
        rng = np.random.default_rng(seed)
        kinds = SCENARIOS[index % len(SCENARIOS)]
        return cls(
            head=Head.random(rng, 1.15 if "intraventricular" in kinds else 0.6),
            bleeds=plan_bleeds(kinds, rng),
            geometry=random_geometry(rng, slices),
            noise_hu=float(rng.uniform(2.8, 4.6)),
            holder=int(rng.choice([0, 1, 1, 2])),
            noise_seed=int(rng.integers(2**31)),
        )


def with_artifacts(patient: Patient, slices: int, rng: np.random.Generator) -> Patient:
    """The patient with artifacts on single slices, which look there like a clot and are none."""
    drawn = np.flatnonzero(rng.random(slices) < ARTIFACTS).tolist()
    artifacts: dict[int, Bleed] = {}
    for index in drawn:
        if index - 1 in artifacts:
            continue
        points = patient.geometry.plane(index, COARSE)
        artifacts[index] = random_artifact(rng, float(points.z[0, 0]))
    return replace(patient, artifacts=artifacts)


def random_geometry(rng: np.random.Generator, slices: int) -> Geometry:
    """A series from below the orbits to above the vertex, or its middle if slices are few."""
    tilt = float(np.radians(rng.choice([0.0, 0.0, 14.0, 18.0, 22.0])))
    spacing = min(rng.uniform(138, 146) / max(slices - 1, 1), 10.0)
    middle = 20 + rng.uniform(-3, 3)  # height in the head of the middle of the series
    pixel = float(rng.choice([0.488281, 0.488281, 0.457031, 0.494863]))
    step = round(float(spacing / np.cos(tilt)), 6)
    head = (float(rng.normal(0, 6)), float(rng.normal(0, 4)), 0.0)
    cos, sin = np.cos(tilt), np.sin(tilt)
    # Under a tilted gantry the head sinks through the images of a series, as the real ones do; it
    # is centered where it is longest, 40 mm up, so that none of the vault is cut off.
    down = float(rng.normal(-3, 4)) - (SIZE - 1) / 2 * pixel + (40 - middle) * sin / cos
    y_mid, z_mid = down * cos + middle * sin, -down * sin + middle * cos
    table = float(rng.uniform(20, 120))
    origin = (
        round(-(SIZE - 1) / 2 * pixel, 6),
        round(float(y_mid + head[1]), 6),
        round(float(z_mid - step * (slices - 1) / 2 + table), 6),
    )
    return Geometry(pixel, tilt, step, origin, (head[0], head[1], table))


@dataclass(frozen=True)
class Scan:
    """A slice as scanned."""

    hu: Field  # [512, 512]
    labels: dict[str, bool]  # the five kinds and `any`


def scan_slice(patient: Patient, index: float) -> Scan:
    """Render one slice. `index` counts from 0 at the lowest; beyond either end works too."""
    geometry = patient.geometry
    points = patient.head.points(geometry.plane(index, COARSE))
    tissues = slice_tissues(patient.head, points, displacement(patient.bleeds, points))
    csf = subarachnoid_space(patient.head, tissues)
    blood = distances(patient.bleeds, tissues, csf)
    levels = {bleed.kind: bleed.hu for bleed in patient.bleeds}
    contents, visible = paint_contents(tissues, csf, blood, levels)
    if (artifact := patient.artifacts.get(round(index))) is not None:  # painted, not labeled
        shown = distances((artifact, *patient.bleeds), tissues, csf)
        contents, _ = paint_contents(tissues, csf, shown, {artifact.kind: artifact.hu} | levels)
    inside = coverage_in_thick_slice(tissues.inner, geometry)
    contents = contents + enlarge(beam_hardening(tissues))
    image = paint(paint_outside(tissues, geometry), inside, contents)
    image = paint(image, holder_part(patient), HOLDER_HU)
    area = {kind: visible_mm2(visible.get(kind), inside, geometry.pixel_mm) for kind in KINDS}
    labels = {kind: area[kind] >= MIN_VISIBLE_MM2 for kind in KINDS}
    labels["any"] = any(labels.values())
    return Scan(add_noise(image, patient, index), labels)


def coverage_in_thick_slice(distance: Field, geometry: Geometry) -> Field:
    """Coverage with the partial-volume blur of a thick slice where a surface runs obliquely."""
    oblique = np.clip(obliqueness(distance, geometry) - 0.15, 0, 1)
    softness = EDGE_MM + 0.7 * geometry.step * oblique
    return coverage(enlarge(np.asarray(distance / softness, np.float32)))


def obliqueness(distance: Field, geometry: Geometry) -> Field:
    """0 where a surface stands upright on the slice, 1 where it lies in it.

    A distance has gradient 1 in space: what its gradient lacks in the plane runs along the normal.
    """
    dy, dx = np.gradient(distance, geometry.pixel_mm * SIZE / COARSE)
    return np.asarray(np.sqrt(np.clip(1 - dx * dx - dy * dy, 0, 1)), np.float32)


def beam_hardening(tissues: Tissues) -> Field:
    """What the skull adds to HU beside it, and takes away between the petrous ridges."""
    points = tissues.points
    cupping = 4 * np.exp(np.minimum(tissues.inner, 0) / 4)
    across = np.exp(-(((points.y - 17) / 6) ** 2) - ((points.z + 17) / 6) ** 2)
    return np.asarray(cupping - 6 * across * (np.abs(points.x) < 40), np.float32)


def paint_outside(tissues: Tissues, geometry: Geometry) -> Field:
    """HU of everything outside the cavity: air, scalp, face, skull."""
    image = np.full((SIZE, SIZE), AIR, np.float32)
    skin = coverage_in_thick_slice(tissues.skin, geometry)
    image = paint(image, skin, enlarge(tissues.soft_hu))
    thin = THIN_BONE + 250 * np.clip(-enlarge(tissues.bone), 0, 3)
    image = paint(image, coverage(enlarge(tissues.bone), EDGE_MM) * skin, thin)
    image = paint(
        image, coverage_in_thick_slice(tissues.outer, geometry), shell_hu(tissues, geometry)
    )
    return paint(image, coverage(enlarge(tissues.air), EDGE_MM) * skin, AIR + 20)


def shell_hu(tissues: Tissues, geometry: Geometry) -> Field:
    """HU of the skull's shell: tables at its surfaces, marrow between where it is thick enough."""
    outer, inner = enlarge(tissues.outer), enlarge(tissues.inner)
    within = np.minimum(-outer, inner)  # depth below the nearer surface
    marrow = coverage(1.9 - within, 1.2)
    mottled = DIPLOE + 90 * enlarge(tissues.texture)
    upright = paint(np.full(outer.shape, TABLE, np.float32), marrow, mottled)
    # Near the vertex a thick slice holds all three layers of the bone at once.
    mixed = enlarge(obliqueness(tissues.outer, geometry) ** 2)
    return paint(upright, 0.85 * mixed, (TABLE + mottled) / 2)


def paint_contents(
    tissues: Tissues, csf: Field, blood: dict[str, Field], levels: dict[str, float]
) -> tuple[Field, dict[str, Field]]:
    """HU of the cavity's contents, and the part of each voxel that shows each kind of blood."""
    image = enlarge(tissues.brain_hu)
    clot = blood.get("intraparenchymal")
    if clot is not None:
        image = paint(image, 0.8 * coverage(clot - 4, 4.0), OEDEMA_HU)
    image = paint(image, 0.9 * coverage(csf, SULCUS_EDGE_MM), CSF)
    image = paint(image, coverage(enlarge(tissues.ventricles), EDGE_MM), CSF)
    image = paint(image, 0.9 * coverage(dura(tissues), EDGE_MM), DURA)
    image = paint(image, coverage(enlarge(tissues.calcified), 1.5), 180.0)
    mottled = 2.5 * enlarge(tissues.texture)
    visible: dict[str, Field] = {}
    for kind, distance in blood.items():
        part = coverage(distance, 1.2)
        image = paint(image, part, levels[kind] + mottled)
        visible = {earlier: shown * (1 - part) for earlier, shown in visible.items()}
        visible[kind] = part
    return image, visible


def visible_mm2(part: Field | None, inside: Field, pixel_mm: float) -> float:
    """Area (mm²) of the voxels that are mostly this blood and not bone by partial volume."""
    if part is None:
        return 0.0
    return float(np.count_nonzero(part * inside > 0.5)) * pixel_mm**2


def holder_part(patient: Patient) -> Field:
    """Coverage of the head holder: a cradle under the head, bars beside it, or nothing."""
    pixel = patient.geometry.pixel_mm
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    x, y = (x - 255.5) * pixel, (y - 255.5) * pixel
    if patient.holder == 0:
        return np.zeros((SIZE, SIZE), np.float32)
    if patient.holder == 1:
        ring = np.abs(np.hypot(x, y - 10) - 112) - 2
        return coverage(np.maximum(ring, 62 - y), EDGE_MM)
    bars = np.maximum(np.abs(np.abs(x) - 104) - 1.2, np.abs(y - 55) - 32)
    return coverage(bars, EDGE_MM)


def add_noise(image: Field, patient: Patient, index: float) -> Field:
    """The image with correlated quantum noise, the same for the same patient and slice."""
    rng = np.random.default_rng((patient.noise_seed, round(index * 2) + 1000))
    noise = rng.standard_normal(image.shape, np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), NOISE_CORRELATION)
    # White noise of standard deviation 1 keeps 1 / (2 sigma sqrt(pi)) of it after the blur.
    gain = patient.noise_hu * 2 * NOISE_CORRELATION * np.sqrt(np.pi)
    return np.asarray(image + np.float32(gain) * noise, np.float32)


def reconstruction_circle() -> npt.NDArray[np.bool_]:
    """Where a scanner reconstructs: the circle inscribed in the image, [512, 512]."""
    y, x = np.ogrid[:SIZE, :SIZE]
    return np.asarray((x - 255.5) ** 2 + (y - 255.5) ** 2 <= 256**2)
