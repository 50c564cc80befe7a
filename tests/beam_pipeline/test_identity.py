import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.options import Identifiers, ImageId
from beam_pipeline.planning.image_ids import NO_UID, Identity, choose_identity, image_keys


def choose(
    files: list[tuple[str, str]],
    image_id: ImageId = ImageId.AUTO,
    identifiers: Identifiers = Identifiers.ORDINAL,
) -> Identity:
    """The identity of files with some names and UIDs."""
    names, uids = (image_keys(pa.array(texts, pa.string())) for texts in zip(*files, strict=True))
    uids[[not uid for _, uid in files]] = NO_UID
    return choose_identity(names, uids, image_id, identifiers)


DIFFERENT = [("a", "1"), ("b", "2"), ("c", "2")]
SAME_NAMES = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")]


def test_names_that_differ_identify_slices() -> None:
    assert choose(DIFFERENT) == Identity(ImageId.FILE_NAME, False, 0)


def test_one_name_of_two_slices_makes_uids_identify_all() -> None:
    assert choose(SAME_NAMES) == Identity(ImageId.SOP_INSTANCE_UID, True, 3)


def test_copies_of_a_slice_and_files_without_a_uid_do_not_speak_against_names() -> None:
    copies = [("a", "1"), ("a", "1"), ("b", ""), ("b", ""), ("b", "2")]
    assert choose(copies).by is ImageId.FILE_NAME
    assert choose([*copies, ("b", "3")]).by is ImageId.SOP_INSTANCE_UID


@pytest.mark.parametrize(
    ("image_id", "identifiers", "by", "numbered"),
    [
        (ImageId.AUTO, Identifiers.ORDINAL, ImageId.SOP_INSTANCE_UID, True),
        (ImageId.AUTO, Identifiers.HASH, ImageId.SOP_INSTANCE_UID, False),
        (ImageId.AUTO, Identifiers.KEEP, ImageId.SOP_INSTANCE_UID, False),
        (ImageId.ORDINAL, Identifiers.KEEP, ImageId.SOP_INSTANCE_UID, True),
        (ImageId.FILE_NAME, Identifiers.ORDINAL, ImageId.FILE_NAME, False),
        (ImageId.SOP_INSTANCE_UID, Identifiers.ORDINAL, ImageId.SOP_INSTANCE_UID, False),
    ],
)
def test_who_asks_for_an_id_gets_it(
    image_id: ImageId, identifiers: Identifiers, by: ImageId, numbered: bool
) -> None:
    assert choose(SAME_NAMES, image_id, identifiers) == Identity(by, numbered, 3)


def test_it_is_said_why_image_ids_are_no_names() -> None:
    assert choose(DIFFERENT).describe() == ""
    assert choose(SAME_NAMES, ImageId.FILE_NAME).describe() == ""
    assert choose(DIFFERENT, ImageId.SOP_INSTANCE_UID).describe() == ""
    assert choose(SAME_NAMES).describe().startswith("3 files have the name of another slice, so")
    assert choose(SAME_NAMES).describe().endswith("image ids are ordinals.")
    kept = choose(SAME_NAMES, identifiers=Identifiers.KEEP)
    assert kept.describe().endswith("image ids are these, by --identifiers.")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", *"12"])), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_that_of_comparing_all_pairs_in_any_order(
    files: list[tuple[str, str]], random: "st.random.Random"
) -> None:
    clashing = {
        name
        for name, uid in files
        for other, another in files
        if name == other and uid and another and uid != another
    }
    count = sum(name in clashing and uid != "" for name, uid in files)
    assert choose(files).ambiguous == count
    random.shuffle(files)
    assert choose(files).ambiguous == count
