"""Bills against figures computed by hand, the guide's figures, the tables, JSON and the command line."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from scenarios import scenario

import bill
import compare
import formatting
import monthly
import prices
import throughput
import traffic
from support import ROOT

D = Decimal


def by_item(lines: list[bill.Line]) -> dict[str, Decimal]:
    return {line.item: line.monthly for line in lines}


# --- the guide


def test_every_figure_of_the_guide_to_the_cent_and_beyond(report):
    found = report("--example", "guide")
    rows = {row["item"]: row for row in found["rows"]}
    assert {item: row.get("guide") for item, row in rows.items()} == {
        "Hosting": D("96.72"),
        "Data in": D("0.0714"),
        "Data out": D("0.000007"),
        "Model in S3": D("0.00805"),
        "Volume": None,
    }
    assert [rows[item]["amount"] for item in rows] == [1488, D("4.464"), D("0.004464"), D("0.35"), 4]
    assert rows["Hosting"]["unit_price_2019"] == D("0.065")
    assert rows["Hosting"]["monthly_2019"] == D("96.72")
    assert rows["Data in"]["monthly_2019"] == D("0.071424")
    assert rows["Data out"]["monthly_2019"] == D("0.000071424")
    assert rows["Model in S3"]["monthly_2019"] == D("0.00805")
    assert found["total"]["2019"] == D("96.799545424")
    assert round(found["total"]["2019"], 2) == found["total"]["guide"] == D("96.80")


def test_the_guides_example_today(report):
    found = report("--example", "guide")
    today = {row["item"]: row["monthly"] for row in found["rows"]}
    assert today["Hosting"] == D("83.328")  # 1,488 x 0.056
    assert today["Volume"] == D("0.56")  # 2 GB x 2 x 0.14
    assert found["total"]["same_lines"] == D("83.407545424")
    assert found["total"]["today"] == D("83.967545424")


def test_the_guides_table_has_both_columns_and_the_note(run):
    table = run("--example", "guide").stdout
    for figure in ("$96.80", "$96.799545424", "$83.407545424", "$0.000007 ", "$0.000071424", "0.00044 GB"):
        assert figure in table


# --- each kind by hand


def test_real_time(book):
    lines = bill.bill(scenario(), book)
    assert by_item(lines) == {
        "Hosting": D("159.3648"),  # 2 x 744 x 0.1071
        "Volume": D("0.56"),  # 2 GB x 2 x 0.14
        "Data in": D("0.071424"),  # 44,640 x 100 KB x 0.016
        "Data out": D("0.000214272"),
        "Model in S3": D("0.0023"),
        "Requests": D(0),
        "Logs": D("0.004464"),  # 44,640 x 200 bytes x 0.50
        "Log storage": D("0.00026784"),
    }
    assert bill.total(lines) == D("160.003470112")


def test_scaling_adds_two_alarms(book):
    more = by_item(bill.bill(scenario(scaling=True), book))
    assert more["Scaling alarms"] == D("0.2")


@pytest.mark.parametrize(
    ("changes", "volume"),
    [
        ({"instance": "ml.g4dn.xlarge"}, None),
        ({"instance": "ml.g4dn.xlarge", "volume": D(50)}, None),
        ({"volume": D(50)}, D("14")),
        ({"volume": D(0)}, None),
    ],
    ids=["NVMe", "NVMe, with a size configured", "a configured size", "size 0"],
)
def test_the_volume(book, changes, volume):
    assert by_item(bill.bill(scenario(**changes), book)).get("Volume") == volume


def test_serverless(book):
    # 12 pictures/s a vCPU x 2048 / 1769 vCPU: 71.98 ms, billed as 72; 44,640 x 0.072 s x 0.00004
    lines = bill.bill(scenario(kind="serverless"), book)
    assert lines[0].amount == D("3214.08")
    assert by_item(lines) == {
        "Compute": D("0.1285632"),
        "Data in": D("0.071424"),
        "Data out": D("0.000214272"),
        "Model in S3": D("0.0023"),
        "Requests": D(0),
        "Logs": D("0.004464"),
        "Log storage": D("0.00026784"),
    }


def test_provisioned_concurrency_serves_requests_up_to_its_capacity(book):
    few = by_item(bill.bill(scenario(kind="serverless", provisioned=1), book))
    assert few["Provisioned"] == D("26.784")  # 744 x 3,600 s x 0.00001
    assert few["Compute, provisioned"] == D("0.074888064")  # 3,214.08 s x 0.0000233
    assert few["Compute"] == 0
    # Twice the capacity of one container: half of the requests run on demand.
    busy = traffic.Traffic(
        Fraction(2 * scenario(kind="serverless").pictures_per_second()), scenario().traffic.curve
    )
    many = bill.bill(scenario(kind="serverless", provisioned=1, traffic=busy), book)
    amounts = {line.item: line.amount for line in many}
    assert amounts["Compute"] == pytest.approx(amounts["Compute, provisioned"], rel=D("1e-6"))


def test_asynchronous_runs_for_some_minutes_after_each_request(book):
    lines = bill.bill(scenario(kind="async", count=1, traffic=traffic.make("4/hour", "constant")), book)
    amounts = {line.item: line.amount for line in lines}
    assert amounts["Hosting"] == pytest.approx(D(744) * D(1 - math.exp(-1)), rel=D("1e-8"))  # 15 minutes
    assert amounts["Volume"] == pytest.approx(2 * amounts["Hosting"] / 744)
    found = by_item(lines)
    assert found["S3 writes"] == D("0.02976")  # 2 x 2,976 x 0.005 / 1,000
    assert found["S3 reads"] == D("0.0023808")
    # 0.1 GB of model, and 2,976 x 100,300 bytes
    assert found["Model and data in S3"] == (D("0.1") + D("0.2984928")) * D("0.023")
    assert found["Scaling alarms"] == D("0.3")


def test_asynchronous_with_recorded_times_counts_the_minutes_after_each(book):
    times = tuple(60.0 * minute for minute in (0, 5, 60))  # 5 + 15 + 15 minutes of 61
    curve = traffic.Curve("times", (1.0,) * 61, times)
    recorded = scenario(kind="async", count=1, traffic=traffic.Traffic(Fraction(3, 61 * 60), curve))
    # and the minute until the first one is repeated
    assert bill.async_hours(recorded) == pytest.approx(D(744) * (5 + 15 + 1) / 61, rel=D("1e-8"))


def test_batch_is_one_job_per_day(book):
    lines = bill.bill(scenario(kind="batch", count=1), book)
    amounts = {line.item: line.amount for line in lines}
    assert amounts["Hosting"] == pytest.approx(D(31) * 5 / 60 + D(44640) / 24 / 3600, rel=D("1e-8"))
    assert "Data in" not in amounts
    assert amounts["S3 writes"] == D("89.28")


@pytest.mark.parametrize(
    ("size", "costs"),
    [
        ("0.35", "0.00805"),
        ("51200", "1177.6"),
        ("51201", "1177.622"),
        ("512000", "11315.2"),  # 51,200 x 0.023 + 460,800 x 0.022
        ("614400", "13465.6"),  # and 102,400 x 0.021
    ],
)
def test_the_tiers_of_s3(book, size, costs):
    lines = bill.storage("Stored", D(size), book)
    assert bill.total(lines) == D(costs)
    assert sum(line.amount for line in lines) == D(size)


def test_a_month_of_730_hours(book):
    lines = {line.item: line for line in bill.bill(scenario(hours=D(730)), book)}
    assert lines["Requests"].amount == 43800
    assert lines["Hosting"].monthly == D("156.366")


def test_totals(book):
    totals = monthly.report(scenario(), book)["total"]
    assert totals["month"] == D("160.003470112")
    assert totals["year"] == D("1920.041641344")
    assert totals["per_1000"] == D("160.003470112") / D("44.64")


# --- traffic


@pytest.mark.parametrize(
    ("text", "per_second"),
    [
        ("1/min", Fraction(1, 60)),
        ("10/s", 10),
        ("100,000/s", 100000),
        ("0.5 / hour", Fraction(1, 7200)),
        ("5000/day", Fraction(5000, 86400)),
    ],
)
def test_a_rate_is_exact(text, per_second):
    assert traffic.parse_rate(text) == per_second


@pytest.mark.parametrize("text", ["-1/min", "0/s", "ten/s", "10", "10/fortnight", "", "nan/s", "1/0"])
def test_an_invalid_rate_is_named(text):
    with pytest.raises(prices.CostError, match=re.escape(repr(text))):
        traffic.parse_rate(text)


@pytest.mark.parametrize(
    ("curve", "peak"), [("constant", 1), ("office", 32 * 24 / 332), ("spike", 10 * 1440 / 1575)]
)
def test_a_curve_is_1_on_average_and_has_its_peak(curve, peak):
    made = traffic.make("10/s", curve)
    assert sum(made.curve.shares) / 1440 == pytest.approx(1)
    assert made.peak == pytest.approx(10 * peak, rel=0.005)
    assert sum(rate * part for rate, part in made.levels()) == pytest.approx(10, rel=0.001)


@pytest.mark.parametrize(
    "text",
    [
        "when\n2026-11-22T08:00:30\n2026-11-22T08:00:40\n2026-11-22T08:02:00\n",
        "2026-11-22T08:00:30Z,a\n2026-11-22T08:00:40Z,b\n\n2026-11-22T08:02:00Z,c\n",
        "2026-11-22 10:02:00+02:00\n2026-11-22 10:00:30+02:00\n2026-11-22 10:00:40+02:00\n",
        "1795334430\n1795334440.0\n1795334520\n",
    ],
    ids=[
        "ISO with a heading",
        "UTC, with more columns",
        "another time zone, not sorted",
        "seconds since 1970",
    ],
)
def test_recorded_times(tmp_path, text):
    (tmp_path / "times.csv").write_text(text)
    found = traffic.make("1/min", str(tmp_path / "times.csv"))
    assert found.curve.times == (30, 40, 120)
    assert found.curve.shares == (2, 0, 1)
    assert found.rate == Fraction(3, 180)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-11-22T08:00\nyesterday\n2026-11-22T09:00\n", "line 2 of .*'yesterday', is not a time"),
        ("1795334430000\n1795334440000\n1795334520000\n", "line 2 of .*'1795334440000', is not a time"),
        ("when\n", "has 0 times"),
        ("", "has 0 times"),
        ("2026-11-22T08:00:00\n2026-11-22T08:00:30\n", "a minute or more apart"),
        ("\x00\x01\xff", "cannot be read as CSV|is not a time|has 0 times"),
    ],
    ids=["a word", "milliseconds", "only a heading", "empty", "half a minute", "binary"],
)
def test_a_malformed_csv_is_reported_in_one_sentence(tmp_path, text, message):
    (tmp_path / "times.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(prices.CostError, match=message):
        traffic.make("1/min", str(tmp_path / "times.csv"))


# --- throughput


def test_assumed_throughput_is_proportional_to_vcpus_and_to_the_baseline_of_t2():
    found = throughput.assumed()
    assert found.of("ml.c7i.large") == 24
    assert found.of("ml.c7i.2xlarge") == 96
    assert found.of("ml.t2.medium") == pytest.approx(4.8)
    assert found.of("ml.g5.xlarge") is None
    assert found.of("ml.c7g.large") is None
    assert found.serverless(4) == pytest.approx(12 * 4096 / 1769)


def test_a_given_throughput_is_scaled_to_the_other_cpu_types():
    found = throughput.given("ml.c7i.large", 60)
    assert found.of("ml.c7i.large") == 60
    assert found.of("ml.c7i.xlarge") == 120
    assert found.basis_of("ml.c7i.large") == "given"
    assert found.basis_of("ml.c7i.xlarge") == "scaled"


def test_a_throughput_on_a_gpu_is_not_scaled_to_cpus():
    found = throughput.given("ml.g5.xlarge", 500)
    assert found.of("ml.g5.xlarge") == 500
    assert found.of("ml.c7i.large") == 24
    assert found.basis_of("ml.c7i.large") == "assumed"
    assert found.of("ml.g4dn.xlarge") is None


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, {"ml.m5.large": 20, "ml.m5.xlarge": 40}),
        ({"instance": "ml.c5.xlarge", "count": 1}, {"ml.m5.large": 20, "ml.c5.xlarge": 40}),
        ({"best": None}, None),
        ({"endpoint": "http://10.0.0.7:8080"}, None),
    ],
    ids=[
        "an endpoint with two instances",
        "a file with the instance",
        "no step within the limit",
        "a remote address",
    ],
)
def test_a_measured_throughput(tmp_path, changes, rates):
    bench = {"endpoint": "pets", "when": "2026-11-22T10:00:00+00:00", "best": {"pictures_per_second": 40.0}}
    (tmp_path / "bench.json").write_text(json.dumps(bench | changes))
    found = throughput.measured(tmp_path / "bench.json", "ml.m5.large", 2)
    assert (found and {name: found.of(name) for name in rates}) == rates
    assert throughput.measured(tmp_path / "none.json", "ml.m5.large", 2) is None
    if not changes:  # a serverless endpoint's throughput is not an instance's
        assert throughput.measured(tmp_path / "bench.json", None, 1) is None


def test_a_measurement_on_this_machine_is_divided_by_its_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    bench = {"endpoint": "http://127.0.0.1:8080", "when": "2026-11-22", "best": {"pictures_per_second": 40}}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    found = throughput.measured(tmp_path / "bench.json", "ml.m5.large", 1)
    assert found.of("ml.m5.large") == 20
    assert found.basis_of("ml.m5.large") == "scaled"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"best": {}}', '{"endpoint": "a", "when": "", "best": {"pictures_per_second": 0}}']
)
def test_a_file_that_bench_did_not_write_is_reported_in_one_sentence(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(prices.CostError, match="measure again"):
        throughput.measured(tmp_path / "bench.json", "ml.m5.large", 1)


# --- the comparison


def test_the_cheapest_comes_first_and_can_serve_the_traffic(book):
    rows, _ = compare.rank(scenario(traffic=traffic.make("100/s", "office")), book)
    assert [row.monthly for row in rows] == sorted(row.monthly for row in rows)
    on = {row.scenario.instance: row for row in rows if row.scenario.kind == "real-time"}
    peak = 100 * 32 * 24 / 332
    assert on["ml.c7i.large"].scenario.count == math.ceil(peak / (24 * 0.7)) == 14
    assert on["ml.c7i.large"].load == pytest.approx(peak / (14 * 24), rel=0.005)
    assert all(row.load <= 0.7 + 1e-9 for row in on.values())
    kinds = {row.scenario.kind for row in rows}
    assert kinds == {"real-time", "serverless", "async", "batch"}
    assert sum(row.scenario.kind == "batch" for row in rows) == len(on)


def test_types_without_a_measurement_are_not_ranked(book):
    rows, unranked = compare.rank(scenario(), book)
    names = {row["on"] for row in unranked}
    assert names == {
        f"ml.{t}"
        for t in (
            "c6g.large",
            "c6g.xlarge",
            "c7g.large",
            "c7g.xlarge",
            "m6g.large",
            "m6g.xlarge",
            "g4dn.xlarge",
            "g5.xlarge",
            "g6.xlarge",
            "inf2.xlarge",
            "p3.2xlarge",
        )
    }
    assert not {row.scenario.instance for row in rows if row.scenario.kind != "serverless"} & names
    measured, unranked = compare.rank(scenario(throughput=throughput.given("ml.g5.xlarge", 500)), book)
    assert "ml.g5.xlarge" in {row.scenario.instance for row in measured}
    assert "ml.g5.xlarge" not in {row["on"] for row in unranked}


def test_the_throughput_from_which_an_unmeasured_type_pays(book):
    # ml.c5.large has the cheapest pictures: 24/s at 0.102 an hour; ml.g4dn.xlarge costs 7.2196 times that.
    unranked = compare.report(scenario(), book)["unranked"]
    (pays,) = (row["pays_from"] for row in unranked if row["on"] == "ml.g4dn.xlarge")
    assert pays == pytest.approx(24 * 0.7364 / 0.102, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"traffic": traffic.make("10000/s", "constant")},
            "needs a concurrency of 720, over the limit of 200",
        ),
        ({"picture": D(5000)}, "a picture of 5000 KB is over the limit of 4,000 KB"),
    ],
    ids=["over 200 at a time", "over 4 MB"],
)
def test_serverless_is_not_ranked_beyond_its_limits(book, changes, message):
    rows, unranked = compare.rank(scenario(**changes), book)
    assert "serverless" not in {row.scenario.kind for row in rows}
    assert any(message in row["reason"] for row in unranked)


@pytest.mark.parametrize(("load", "servers"), [(0.1, 3), (1, 6), (5, 14), (100, 128)])
def test_concurrency_by_erlangs_formula(load, servers):
    assert traffic.concurrency_for(load) == servers
    assert traffic.erlang_b(load, servers) <= 0.001 < traffic.erlang_b(load, servers - 1)


def test_the_comparison_has_the_concurrency_that_serverless_needs(book):
    rows, _ = compare.rank(scenario(traffic=traffic.make("10/s", "constant")), book)
    notes = [row.note for row in rows if row.scenario.kind == "serverless"]
    assert all(note.startswith(f"concurrency of {traffic.concurrency_for(0.7198)} or more") for note in notes)


def test_the_break_even_agrees_with_its_formula(book):
    names = [name for name in book.prices if not name.startswith("hosting:ml.")] + ["hosting:ml.c7i.large"]
    one_type = replace(book, prices={name: book.prices[name] for name in names})
    fixed = 2 * 744 * D("0.1071") + D("0.56")
    per_request = D("0.072") * D("0.00004")
    found = compare.break_even(scenario(), one_type)
    assert found == math.ceil(fixed / per_request / 31) == 1791273


def test_real_time_can_be_cheaper_for_any_traffic(book):
    free = replace(book.prices["hosting:ml.c7i.large"], price=D("0.000000001"))
    assert (
        compare.break_even(scenario(volume=D(0)), replace(book, prices=book.prices | {free.name: free}))
        is None
    )


def test_the_plots_lines_are_the_cheapest_of_each_kind(book):
    lines = compare.curves(scenario(), book, points=2)
    rows, _ = compare.rank(compare.with_rate(scenario(), 10), book)
    for kind, line in lines.items():
        best = min(row.monthly for row in rows if row.scenario.kind == kind and not row.scenario.provisioned)
        assert line[0] == (10, pytest.approx(float(best)))


# --- the command line


def amounts(text: str) -> list[Decimal]:
    return [D(number.replace(",", "")) for number in re.findall(r"\$([\d,.]*\d)", text)]


def as_printed(usd: Decimal) -> Decimal:
    return D(formatting.money(usd).replace(",", ""))


@pytest.mark.parametrize("kind", ["real-time", "serverless", "async", "batch"])
def test_table_and_json_agree(run, report, kind):
    words = ("--kind", kind, "--requests", "3/s", "--provisioned", "2", "--max", "3", "--curve", "office")
    found = report(*words)
    table = run(*words).stdout
    printed = [amounts(line)[-1] for line in table.splitlines() if line.startswith("  ") and "$" in line]
    total = found["total"]
    money = [line["monthly"] for line in found["lines"]]
    assert printed == [as_printed(usd) for usd in [*money, *total.values()]]
    assert sum(money) == pytest.approx(total["month"], rel=D("1e-12"))
    for line in found["lines"]:
        assert line["amount"] * line["unit_price"] == pytest.approx(line["monthly"], rel=D("1e-12"))


def test_table_and_json_of_the_comparison_agree(run, report):
    found = report("--compare", "--requests", "10/s")
    table = run("--compare", "--requests", "10/s").stdout
    ranked = {row["on"]: row for row in found["kinds"] if row["kind"] == "real-time"}
    printed = re.findall(r"^  real-time +(\d+ x \S+).*?\$([\d,.]+) +\$([\d,.]+)", table, re.MULTILINE)
    assert len(printed) >= 8
    for on, per_month, per_1000 in printed:
        assert D(per_month.replace(",", "")) == as_printed(ranked[on]["monthly"])
        assert D(per_1000) == as_printed(ranked[on]["per_1000"])
    cheapest = [row["on"] for row in found["kinds"] if row["kind"] == "real-time"]
    assert [on for on, *_ in printed] == cheapest[: len(printed)]
    (per_day,) = re.findall(r"up to about ([\d,]+) requests a day", table)
    assert int(per_day.replace(",", "")) == pytest.approx(found["break_even"]["requests_a_day"], rel=0.05)


def test_a_narrow_terminal_truncates_no_figure(run, monkeypatch):
    wide = amounts(run().stdout)
    monkeypatch.setenv("COLUMNS", "50")
    assert amounts(run().stdout) == wide


def test_csv_has_the_rows_of_json(run, report):
    rows = list(csv.DictReader(io.StringIO(run("--csv").stdout)))
    lines = report()["lines"]
    assert [D(row["monthly"]) for row in rows] == [line["monthly"] for line in lines]
    assert [row["item"] for row in rows] == [line["item"] for line in lines]


def test_every_table_has_the_dates_of_its_prices(run):
    for words in ([], ["--compare"], ["--simulate"], ["--hourly"]):
        assert re.search(r"as of \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d", run(*words).stdout), words
    assert "2026-08-01" in run("--example", "guide").stdout


def test_the_hourly_price_for_programs(report):
    found = report("--hourly", "--kind", "real-time", "--instance", "ml.c7i.large", "--count", "2")
    assert found["per_month"] == D("159.9248")
    assert found["per_hour"] == pytest.approx(D("159.9248") / 744)
    assert found["currency"] == "USD"
    assert found["as_of"]["derived"] == ["hosting:ml.c7i.large"]
    training = report("--hourly", "--kind", "training", "--instance", "ml.g5.xlarge", "--count", "1")
    assert training["per_hour"] == D("1.408")


def test_the_hourly_price_of_an_endpoint_that_is_scaled_to_zero(report):
    assert report("--hourly", "--kind=async", "--count=0")["per_hour"] == 0


def test_the_hourly_price_where_only_the_instance_has_a_price(report):
    found = report("--hourly", "--instance", "ml.m5.large", "--count", "2", "--region", "us-west-2")
    assert found["per_hour"] == D("0.23")
    assert found["without"] == ["the volume", "requests"]
    assert "there is no price here for the volume" in found["sentence"]


def test_serverless_has_a_fixed_cost_only_with_provisioned_concurrency(report):
    assert "no fixed cost" in report("--hourly", "--kind=serverless")["sentence"]
    provisioned = report("--hourly", "--kind=serverless", "--provisioned=2")
    assert provisioned["per_hour"] == D("0.144")  # 2 x 3,600 x 0.00002


def test_the_models_size_is_the_archives(report, tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(bytes(1_500_000))
    found = report("--archive", str(tmp_path / "model.tar.gz"))
    assert next(line["amount"] for line in found["lines"] if line["item"] == "Model in S3") == D("0.0015")
    assert found["assumed"] == []
    assert report()["assumed"] == ["assuming a model of 95 MB: no --archive is given"]
    missing = str(tmp_path / "other.tar.gz")
    assert report("--archive", missing)["assumed"] == [f"assuming a model of 95 MB: {missing} does not exist"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--requests=-5/s"], ["'-5/s'", "10/s"]),
        (["--instance=ml.c7i.lage"], ["'ml.c7i.lage'", "ml.c7i.large"]),
        (["--region=us-eat-1"], ["'us-eat-1'", "us-east-1"]),
        (["--region=eu-west-1"], ["hosting:ml.c7i.large in eu-west-1", "--refresh", "ml.c5.2xlarge"]),
        (["--region=eu-west-1", "--instance=ml.m5.large"], ["s3:standard:first-50TB in eu-west-1"]),
        (["--kind=realtime"], ["'realtime'", "real-time"]),
        (["--picture=-1"], ["'-1'", "--picture"]),
        (["--picture=nan"], ["'nan'", "--picture"]),
        (["--curve=offic"], ["'offic'", "office"]),
        (["--curve=no.csv"], ["no.csv", "No such file"]),
        (["--memory=1000"], ["'1000'", "1024"]),
        (["--count=0"], ["count 0", "1 or more"]),
        (["--count=-1"], ["'-1'", "--count"]),
        (["--target-utilization=1.5"], ["'1.5'", "--target-utilization"]),
        (["--hours=0"], ["above 0", "--hours"]),
        (["--provisioned=201"], ["'201'", "200"]),
        (["--kind=serverless", "--picture=5000"], ["5000 KB", "4,000 KB"]),
        (["--kind=async", "--picture=30000"], ["30000 KB", "25,000 KB"]),
        (["--kind=batch", "--picture=30000"], ["30000 KB", "25,000 KB"]),
        (["--simulate", "--instance=ml.g5.xlarge"], ["ml.g5.xlarge", "not been measured", "--throughput"]),
        (["--compare", "--region=us-east-2"], ["serverless:4GB in us-east-2", "--refresh"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_invalid_input_is_one_sentence_with_the_value_and_what_is_valid(run, words, names):
    done = run(*words)
    assert done.returncode == 2
    assert not done.stdout
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert all(name in sentence for name in names), sentence


def test_it_runs_as_a_script_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "cost" / "estimate.py"), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["currency"] == "USD"


NO_NETWORK = """
import sys, socket
sys.path.insert(0, sys.argv[1])
def closed(*_): raise AssertionError("it opened a connection")
socket.socket.connect = closed
import estimate
for words in ([], ["--compare"], ["--simulate"], ["--hourly"], ["--example", "guide"]):
    assert estimate.main(words) == 0
assert not {"boto3", "requests", "botocore"} & set(sys.modules)
"""


def test_it_needs_no_account_and_no_network():
    command = [sys.executable, "-c", NO_NETWORK, str(ROOT / "cost")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_price_in_prices_json_has_a_date_and_a_source():
    document = prices.document()
    items = [item for region in document["regions"].values() for item in region] + document["guide"]
    assert len(items) > 90
    for item in items:
        assert item["price"] > 0, item
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", item["date"]), item
        assert item["basis"], item
        assert item["source"], item
    hosted = [
        item["name"].split(":")[1] for item in items if item["name"].startswith(("hosting:ml.", "training:"))
    ]
    assert set(hosted) <= set(prices.instances())
    names = [item["name"] for item in document["regions"]["us-east-1"]]
    assert len(names) == len(set(names))
