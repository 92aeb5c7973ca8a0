"""What is done already; how an archive says so is in test_archive."""

from qcs.inference.done import Done
from qcs.inference.sources import Source


def test_of_a_tar_others_know_what_is_done():
    one, two = (Source(f"{name}.tar", "", "tar") for name in "ab")
    done = Done({("a.tar", "1.png"): False, ("a.tar", "2.png"): True, ("b.jpg", None): True})
    first, second = done.of([one, two])
    assert first.rows == {("a.tar", "1.png"): False, ("a.tar", "2.png"): True} and not second.rows
    assert first(one._replace(member="2.png")) and not first(one._replace(member="3.png"))
    assert (first.skipped, first.failed) == (1, 1)
