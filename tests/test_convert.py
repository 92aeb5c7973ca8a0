import json
import re
from pathlib import Path

import pytest
import torch

from qcs.convert import from_official

KEYS = Path(__file__).parent / "fixtures" / "parity" / "keys" / "QCS_7cls_raf_db.json"


def keys() -> list[str]:
    return [k for k, _, _ in json.loads(KEYS.read_text())["keys"]]


def test_prefix_and_newer_embedding_names_give_the_same_targets():
    old, _ = from_official({k: torch.zeros(()) for k in keys()})
    renamed = {"q": "1", "k": "2", "v": "3"}
    newer = [
        "module." + re.sub(r"^embed_([qkv])", lambda m: f"embed_{renamed[m[1]]}", k) for k in keys()
    ]
    assert newer != keys()
    new, _ = from_official({k: torch.zeros(()) for k in newer})
    assert set(new) == set(old)


def test_an_unknown_key_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="VIT_base.surprise.weight"):
        from_official({"conv1.bias": torch.zeros(64), "VIT_base.surprise.weight": torch.zeros(1)})


def test_two_keys_of_one_target_are_an_error():
    with pytest.raises(ValueError, match="repeats"):
        from_official({"conv1.bias": torch.zeros(64), "module.conv1.bias": torch.zeros(64)})
