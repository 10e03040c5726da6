"""The shortlist benchmark on a tiny base: whole pools, both sources of profiles, and a result file."""

import json
from itertools import combinations
from pathlib import Path

from benchmarks import shortlist
from tests.support.tiny import write_base


def test_the_benchmark_measures_every_group_and_writes_what_it_found(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for key, word in (("fox", "jumps"), ("dog", "sleeps")):
        for part in ("train", "eval"):
            texts = [f"{key} {word} {' '.join(some)}" for some in combinations("bcdefghijk", 3)]
            lines = [{"id": i, "definition": "Say it.", "input": t, "output": "x"} for i, t in enumerate(texts)]
            (tmp_path / f"{key}.{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = tmp_path / "shortlist.json"
    options = [
        "--base",
        str(base),
        "--cache",
        str(tmp_path),
        "--data",
        str(tmp_path),
        "--rows",
        "120",
        "--queries",
        "2",
    ]
    assert shortlist.main([*options, "--pool-sizes", "5"], results=results) == 0
    found = json.loads(results.read_text())
    groups = {(one["group"], one["profiles_from"]): one for one in found["recall"]}
    assert {group for group, _ in groups} == {"demo", "general", "data", "data, bare inputs"}
    assert {source for _, source in groups} == {"rows", "samples"}
    for one in groups.values():
        assert 0 <= one["at"]["1"] <= one["at"]["4"] <= one["at"]["8"] <= 1
    assert groups["data, bare inputs", "rows"]["num_queries"] == 4
    assert [one["num_profiles"] for one in found["lookup"]] == [5]
    guards = {one["group"]: one for one in found["guards"]}
    assert list(guards) == ["demo", "data", "data, bare inputs"]
    assert [one["num_experts"] for one in guards.values()] == [5, 2, 2]
    assert guards["data"]["own"] > guards["data"]["others"], "a fox is no dog"
    assert all(0 <= one[share] <= 1 for one in guards.values() for share in ("own", "others", "general"))
    assert "--pool-sizes 5" in found["command"]
