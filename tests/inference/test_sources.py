"""What an input names: names in braces, and names that stay inside a folder."""

import pytest

from qcs.config.errors import UserError
from qcs.inference.sources import files_of, inside


def test_a_list_leads_no_picture_out_of_its_folder():
    """Its entries name the pictures that annotate=true writes."""
    for entry in ("../../x.png", "/x.png", "a/../../x.png", "..", "/", ""):
        assert inside(entry) in ("x.png", "a/x.png", "unnamed")


def test_braces_stand_for_names(named_photos):
    found = files_of(f"{named_photos}/in/{{a,b}}.png")
    assert [file.name for file in found] == ["a.png", "b.png"]
    for number in (8, 9, 10):
        (named_photos / f"s-{number:03d}.tar").touch()
    found = files_of(f"{named_photos}/s-{{008..010}}.tar")
    assert [(file.name, file.kind) for file in found] == [
        (f"s-{number:03d}.tar", "tar") for number in (8, 9, 10)
    ]
    found = files_of(f"{named_photos}/s-{{008..011}}.tar")
    assert "nothing to read" in found[3].error
    (named_photos / "{a,b}.png").write_bytes((named_photos / "in/a.png").read_bytes())
    assert [file.name for file in files_of(f"{named_photos}/{{a,b}}.png")] == ["{a,b}.png"]
    for wrong in ("{9..1}", "{0..99999999999}"):
        with pytest.raises(UserError, match="is not a range"):
            files_of(f"s-{wrong}.tar")


@pytest.mark.parametrize("name", ["s.tar.gz", "s.TGZ", "s.tar.zst"])
def test_a_compressed_tar_is_told_alone_and_in_a_folder(name, named_photos):
    (named_photos / "in" / name).touch()
    for given in (f"{named_photos}/in/{name}", f"{named_photos}/in"):
        (told,) = (file.error for file in files_of(given) if file.error)
        assert told.endswith(f"{name} is a compressed tar: decompress it first")
