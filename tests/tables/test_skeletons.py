from __future__ import annotations

import pytest

from robust_nas.core.errors import InputError
from robust_nas.tables import skeletons


def test_a_skeleton_is_read_back_as_the_settings_around_the_cells() -> None:
    around = {"channels": 16, "stages": 3, "note": 'a,b="c"', "widths": [1, 2]}
    space = {"name": "mine", "kind": "cell", "num_nodes": 4, "operations": ["none"], "stem_stride": 1, **around}
    assert skeletons.settings(skeletons.written(space)) == around
    assert skeletons.written({"stages": 3, "stem_stride": 2}) == "stages=3,stem_stride=2"
    assert skeletons.settings("") == {}


@pytest.mark.parametrize("text", ["channels", "channels=", "channels=x", ",channels=1", "a=1b=2", "a=1,"])
def test_what_is_no_skeleton_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match="such as channels=16,stages=3, but got"):
        skeletons.settings(text)
