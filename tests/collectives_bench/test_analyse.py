"""A whole report's analysis: plain JSON, from complete and from broken-off runs."""

import json

import bench_reports
import network_reports as nr

from moelstrom.collectives_bench.analyse import analyse


def test_everything_is_json_and_in_its_place() -> None:
    report = bench_reports.collectives()
    found = json.loads(json.dumps(analyse(report), allow_nan=False))
    assert [*found] == ["fits", "laws", "suspects", "notes"]
    first = next(f for f in found["fits"] if f["group"] == "world" and not f["in_place"])
    assert (first["op"], first["size"], first["within_host"]) == ("all_reduce", 4, False)
    assert first["saturation_bytes"] > 0
    assert first["points"][0][0] == bench_reports.SIZES[0]
    assert [s["ranks"] for s in found["suspects"]] == [[1, 3]]
    assert found["notes"] == []


def test_a_bent_curve_gets_a_note() -> None:
    bent = nr.sweep("all_reduce", range(8), lambda s: (1e-5 + s / 1e10) * (3 if s == 4096 else 1))
    (note,) = analyse(nr.report(bent))["notes"]
    assert note.startswith("all_reduce fp32, world of 8: no single line (off by 6")


def test_a_run_that_broke_off_early_has_nothing_to_say() -> None:
    empty: dict[str, list] = {"fits": [], "laws": [], "suspects": [], "notes": []}
    assert analyse(nr.report([])) == empty
    one = [
        nr.measurement("send_recv", [0, 1], 1024, 1e-5, "pairs"),
        nr.measurement("barrier", [0, 1], 0, 1e-5),
    ]
    assert analyse(nr.report(one)) == empty
