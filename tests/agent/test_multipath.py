"""Maps over paths, as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

from volattachd.agent.multipath import foreign_paths, map_over, maps_over_any


def lay_out(sys: Path, maps: dict[str, list[str]]) -> None:
    for name, paths in maps.items():
        for path in paths:
            (sys / "block" / name / "slaves" / path).mkdir(parents=True)
            held = sys / "block" / path / "holders" / name / "dm"
            held.mkdir(parents=True)
            (held / "uuid").write_text("mpath-36001405\n")


def test_a_map_with_a_path_of_another_target_is_noticed(tmp_path: Path) -> None:
    """multipathd goes by what a unit says that it is: a second storage host can say the same."""
    lay_out(tmp_path, {"dm-0": ["sda", "sdb"], "dm-1": ["sdc", "sdx"]})
    assert foreign_paths(["sda", "sdb"], {"sda", "sdb"}, tmp_path) == []
    assert foreign_paths(["sdc"], {"sdc"}, tmp_path) == ["sdx"]


def test_a_path_of_our_own_that_is_down_is_not_foreign(tmp_path: Path) -> None:
    lay_out(tmp_path, {"dm-0": ["sda", "sdb"]})
    assert foreign_paths(["sda"], {"sda", "sdb"}, tmp_path) == []


def test_the_map_is_the_one_over_all_disks(tmp_path: Path) -> None:
    lay_out(tmp_path, {"dm-0": ["sda", "sdb"], "dm-1": ["sdc"]})
    assert map_over(["sda", "sdb"], tmp_path) == "dm-0"
    assert map_over(["sda", "sdc"], tmp_path) is None
    assert maps_over_any(["sda", "sdc"], tmp_path) == ["dm-0", "dm-1"]
