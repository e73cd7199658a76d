"""Bills, by hand: each kind's lines, the guide's own figures, and what the tables and JSON say of them."""

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

import bill
import compare
import month
import prices
import speed
import traffic
from support import ROOT

ESTIMATE = ROOT / "cost" / "estimate.py"
D = Decimal


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ESTIMATE, *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=bare() | environment
    )


def bare() -> dict[str, str]:
    """No account, and no list of the user's own."""
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}


def asked(*words: str, **environment: str) -> dict:
    done = run(*words, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_float=D)


@pytest.fixture(autouse=True)
def _no_list_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def book():
    return prices.load("us-east-1")


def case(**changes) -> bill.Case:
    """One request a minute of 100 KB, answered with 300 bytes by 2 x ml.c7i.large; a model of 100 MB."""
    usual = bill.Case(
        kind="real-time",
        instance="ml.c7i.large",
        count=2,
        memory=2,
        provisioned=0,
        hours=D(744),
        traffic=traffic.make("1/min", "constant"),
        picture=D(100),
        answer=D(300),
        model=D(100),
        logs=D(200),
        volume=None,
        scaling=False,
        busy=0.7,
        start=5,
        idle=10,
        speeds=speed.assumed(),
    )
    return replace(usual, **changes)


def monthly(lines: list[bill.Line]) -> dict[str, Decimal]:
    return {line.item: line.monthly for line in lines}


# --- the guide


def test_every_figure_of_the_guide_to_the_cent_and_beyond():
    report = asked("--example", "guide")
    rows = {row["item"]: row for row in report["rows"]}
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
    assert report["total"]["2019"] == D("96.799545424")
    assert round(report["total"]["2019"], 2) == report["total"]["guide"] == D("96.80")


def test_the_guides_case_today():
    report = asked("--example", "guide")
    today = {row["item"]: row["monthly"] for row in report["rows"]}
    assert today["Hosting"] == D("83.328")  # 1,488 x 0.056
    assert today["Volume"] == D("0.56")  # 2 GB x 2 x 0.14
    assert report["total"]["same_lines"] == D("83.407545424")
    assert report["total"]["today"] == D("83.967545424")


def test_the_guides_table_has_both_columns_and_the_note():
    table = run("--example", "guide").stdout
    for figure in ("$96.80", "$96.799545424", "$83.407545424", "$0.000007 ", "$0.000071424", "0.00044 GB"):
        assert figure in table


# --- each kind by hand


def test_real_time(book):
    lines = bill.bill(case(), book)
    assert monthly(lines) == {
        "Hosting": D("159.3648"),  # 2 x 744 x 0.1071
        "Volume": D("0.56"),  # 2 GB x 2 x 0.14
        "Data in": D("0.071424"),  # 44,640 x 100 KB x 0.016
        "Data out": D("0.000214272"),
        "Model in S3": D("0.0023"),
        "Requests": D(0),
        "Logs": D("0.004464"),  # 44,640 x 200 bytes x 0.50
        "Logs kept": D("0.00026784"),
    }
    assert bill.total(lines) == D("160.003470112")


def test_scaling_adds_two_alarms(book):
    more = monthly(bill.bill(case(scaling=True), book))
    assert more["Scaling alarms"] == D("0.2")


@pytest.mark.parametrize(
    ("changes", "volume"),
    [
        ({"instance": "ml.g4dn.xlarge"}, None),
        ({"instance": "ml.g4dn.xlarge", "volume": D(50)}, None),
        ({"volume": D(50)}, D("14")),
        ({"volume": D(0)}, None),
    ],
    ids=["its own disk", "its own disk, whatever is asked", "a size of one's own", "none"],
)
def test_the_volume(book, changes, volume):
    assert monthly(bill.bill(case(**changes), book)).get("Volume") == volume


def test_serverless(book):
    # 12 pictures/s a vCPU x 2048 / 1769 vCPU: 71.98 ms, billed as 72; 44,640 x 0.072 s x 0.00004
    lines = bill.bill(case(kind="serverless"), book)
    assert lines[0].amount == D("3214.08")
    assert monthly(lines) == {
        "Compute": D("0.1285632"),
        "Data in": D("0.071424"),
        "Data out": D("0.000214272"),
        "Model in S3": D("0.0023"),
        "Requests": D(0),
        "Logs": D("0.004464"),
        "Logs kept": D("0.00026784"),
    }


def test_provisioned_concurrency_takes_the_requests_that_it_has_room_for(book):
    few = monthly(bill.bill(case(kind="serverless", provisioned=1), book))
    assert few["Kept ready"] == D("26.784")  # 744 x 3,600 s x 0.00001
    assert few["Compute, kept ready"] == D("0.074888064")  # 3,214.08 s x 0.0000233
    assert few["Compute"] == 0
    # Twice what one container can do: half of it comes in besides.
    busy = traffic.Traffic(Fraction(2 * case(kind="serverless").speed()), case().traffic.curve)
    many = bill.bill(case(kind="serverless", provisioned=1, traffic=busy), book)
    amounts = {line.item: line.amount for line in many}
    assert amounts["Compute"] == pytest.approx(amounts["Compute, kept ready"], rel=D("1e-6"))


def test_asynchronous_is_there_while_somebody_asked_lately(book):
    lines = bill.bill(case(kind="async", count=1, traffic=traffic.make("4/hour", "constant")), book)
    amounts = {line.item: line.amount for line in lines}
    assert amounts["Hosting"] == pytest.approx(D(744) * D(1 - math.exp(-1)), rel=D("1e-8"))  # 15 minutes
    assert amounts["Volume"] == pytest.approx(2 * amounts["Hosting"] / 744)
    found = monthly(lines)
    assert found["S3 writes"] == D("0.02976")  # 2 x 2,976 x 0.005 / 1,000
    assert found["S3 reads"] == D("0.0023808")
    # 0.1 GB of model, and 2,976 x 100,300 bytes
    assert found["Model and data in S3"] == (D("0.1") + D("0.2984928")) * D("0.023")
    assert found["Scaling alarms"] == D("0.3")


def test_asynchronous_with_real_times_counts_the_minutes_after_each(book):
    times = tuple(60.0 * minute for minute in (0, 5, 60))  # 5 + 15 + 15 minutes of 61
    curve = traffic.Curve("times", (1.0,) * 61, times)
    given = case(kind="async", count=1, traffic=traffic.Traffic(Fraction(3, 61 * 60), curve))
    # and the minute until the first comes again
    assert bill.hours_up(given) == pytest.approx(D(744) * (5 + 15 + 1) / 61, rel=D("1e-8"))


def test_batch_is_a_job_a_day(book):
    lines = bill.bill(case(kind="batch", count=1), book)
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
    lines = {line.item: line for line in bill.bill(case(hours=D(730)), book)}
    assert lines["Requests"].amount == 43800
    assert lines["Hosting"].monthly == D("156.366")


def test_totals(book):
    report = month.report(case(), book)
    assert report["total"]["month"] == D("160.003470112")
    assert report["total"]["year"] == D("1920.041641344")
    assert report["total"]["per_1000"] == D("160.003470112") / D("44.64")


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
def test_what_is_no_rate_is_named(text):
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
    ids=["ISO with a heading", "in UTC, with more columns", "elsewhere, in no order", "seconds since 1970"],
)
def test_real_times(tmp_path, text):
    (tmp_path / "times.csv").write_text(text)
    found = traffic.make("1/min", str(tmp_path / "times.csv"))
    assert found.curve.times == (30, 40, 120)
    assert found.curve.shares == (2, 0, 1)
    assert found.rate == Fraction(3, 180)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-11-22T08:00\nyesterday\n2026-11-22T09:00\n", "line 2 of .*'yesterday', is not a time"),
        ("1795334430000\n1795334440000\n1795334520000\n", "line 2 of .*'1795334440000', is not a time"),
        ("when\n", "has 0 times"),
        ("", "has 0 times"),
        ("2026-11-22T08:00:00\n2026-11-22T08:00:30\n", "at least a minute apart"),
        ("\x00\x01\xff", "cannot be read as CSV|is not a time|has 0 times"),
    ],
    ids=["a word", "milliseconds", "a heading alone", "nothing", "half a minute", "no text"],
)
def test_a_malformed_csv_is_a_sentence(tmp_path, text, says):
    (tmp_path / "times.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(prices.CostError, match=says):
        traffic.make("1/min", str(tmp_path / "times.csv"))


# --- speed


def test_assumed_speeds_go_by_vcpu_and_t2_by_its_share():
    speeds = speed.assumed()
    assert speeds.of("ml.c7i.large") == 24
    assert speeds.of("ml.c7i.2xlarge") == 96
    assert speeds.of("ml.t2.medium") == pytest.approx(4.8)
    assert speeds.of("ml.g5.xlarge") is None
    assert speeds.of("ml.c7g.large") is None
    assert speeds.serverless(4) == pytest.approx(12 * 4096 / 1769)


def test_a_speed_that_is_given_scales_to_the_other_types_of_cpu():
    speeds = speed.given("ml.c7i.large", 60)
    assert speeds.of("ml.c7i.large") == 60
    assert speeds.of("ml.c7i.xlarge") == 120
    assert speeds.basis_of("ml.c7i.large") == "given"
    assert speeds.basis_of("ml.c7i.xlarge") == "scaled"


def test_a_speed_on_a_gpu_says_nothing_of_cpus():
    speeds = speed.given("ml.g5.xlarge", 500)
    assert speeds.of("ml.g5.xlarge") == 500
    assert speeds.of("ml.c7i.large") == 24
    assert speeds.basis_of("ml.c7i.large") == "assumed"
    assert speeds.of("ml.g4dn.xlarge") is None


@pytest.mark.parametrize(
    ("changes", "speeds"),
    [
        ({}, {"ml.m5.large": 20, "ml.m5.xlarge": 40}),
        ({"instance": "ml.c5.xlarge", "count": 1}, {"ml.m5.large": 20, "ml.c5.xlarge": 40}),
        ({"best": None}, None),
        ({"endpoint": "http://10.0.0.7:8080"}, None),
    ],
    ids=["an endpoint of two", "a file that says on what", "nothing within the limit", "who knows where"],
)
def test_what_the_bench_measured(tmp_path, changes, speeds):
    bench = {"endpoint": "pets", "when": "2026-11-22T10:00:00+00:00", "best": {"pictures_per_second": 40.0}}
    (tmp_path / "bench.json").write_text(json.dumps(bench | changes))
    found = speed.measured(tmp_path / "bench.json", "ml.m5.large", 2)
    assert (found and {name: found.of(name) for name in speeds}) == speeds
    assert speed.measured(tmp_path / "none.json", "ml.m5.large", 2) is None
    if not changes:  # a serverless endpoint's speed is not an instance's
        assert speed.measured(tmp_path / "bench.json", None, 1) is None


def test_a_bench_of_this_machine_goes_by_its_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    bench = {"endpoint": "http://127.0.0.1:8080", "when": "2026-11-22", "best": {"pictures_per_second": 40}}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    found = speed.measured(tmp_path / "bench.json", "ml.m5.large", 1)
    assert found.of("ml.m5.large") == 20
    assert found.basis_of("ml.m5.large") == "scaled"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"best": {}}', '{"endpoint": "a", "when": "", "best": {"pictures_per_second": 0}}']
)
def test_another_file_than_the_benchs_is_a_sentence(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(prices.CostError, match="measure again"):
        speed.measured(tmp_path / "bench.json", "ml.m5.large", 1)


# --- side by side


def test_the_cheapest_comes_first_and_carries_the_traffic(book):
    rows, _ = compare.rows(case(traffic=traffic.make("100/s", "office")), book)
    assert [row.monthly for row in rows] == sorted(row.monthly for row in rows)
    on = {row.case.instance: row for row in rows if row.case.kind == "real-time"}
    peak = 100 * 32 * 24 / 332
    assert on["ml.c7i.large"].case.count == math.ceil(peak / (24 * 0.7)) == 14
    assert on["ml.c7i.large"].load == pytest.approx(peak / (14 * 24), rel=0.005)
    assert all(row.load <= 0.7 + 1e-9 for row in on.values())
    kinds = {row.case.kind for row in rows}
    assert kinds == {"real-time", "serverless", "async", "batch"}
    assert sum(row.case.kind == "batch" for row in rows) == len(on)


def test_nothing_is_guessed_of_what_was_not_measured(book):
    rows, left = compare.rows(case(), book)
    aside = {row["on"]: row for row in left}
    assert set(aside) == {
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
    assert not {row.case.instance for row in rows if row.case.kind != "serverless"} & set(aside)
    measured, left = compare.rows(case(speeds=speed.given("ml.g5.xlarge", 500)), book)
    assert "ml.g5.xlarge" in {row.case.instance for row in measured}
    assert "ml.g5.xlarge" not in {row["on"] for row in left}


def test_what_an_unmeasured_type_would_have_to_do(book):
    # ml.c5.large has the cheapest pictures: 24/s at 0.102 an hour; ml.g4dn.xlarge costs 7.2196 times that.
    report = compare.report(case(), book)
    (pays,) = (row["pays_from"] for row in report["unranked"] if row["on"] == "ml.g4dn.xlarge")
    assert pays == pytest.approx(24 * 0.7364 / 0.102, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"traffic": traffic.make("10000/s", "constant")}, "would need 720 at a time"),
        ({"picture": D(5000)}, "a picture of 5000 KB, and 4,000 is the most"),
    ],
    ids=["over 200 at a time", "over 4 MB"],
)
def test_what_serverless_cannot_do_is_not_offered(book, changes, says):
    rows, left = compare.rows(case(**changes), book)
    assert "serverless" not in {row.case.kind for row in rows}
    assert any(says in row["reason"] for row in left)


@pytest.mark.parametrize(("load", "places"), [(0.1, 3), (1, 6), (5, 14), (100, 128)])
def test_places_by_erlangs_formula(load, places):
    assert traffic.at_a_time(load) == places
    assert traffic.loss(load, places) <= 0.001 < traffic.loss(load, places - 1)


def test_the_comparison_says_the_concurrency_that_serverless_needs(book):
    rows, _ = compare.rows(case(traffic=traffic.make("10/s", "constant")), book)
    notes = [row.note for row in rows if row.case.kind == "serverless"]
    assert all(note.startswith(f"concurrency of {traffic.at_a_time(0.7198)} or more") for note in notes)


def test_the_break_even_is_where_the_formula_has_it(book):
    names = [name for name in book.prices if not name.startswith("hosting:ml.")] + ["hosting:ml.c7i.large"]
    one_type = replace(book, prices={name: book.prices[name] for name in names})
    fixed = 2 * 744 * D("0.1071") + D("0.56")
    per_request = D("0.072") * D("0.00004")
    found = compare.break_even(case(), one_type)
    assert found == math.ceil(fixed / per_request / 31) == 1791273


def test_real_time_can_be_cheaper_from_the_first_request_on(book):
    free = replace(book.prices["hosting:ml.c7i.large"], price=D("0.000000001"))
    assert (
        compare.break_even(case(volume=D(0)), replace(book, prices=book.prices | {free.name: free})) is None
    )


def test_the_plots_lines_are_the_cheapest_of_each_kind(book):
    lines = compare.curves(case(), book, points=2)
    rows, _ = compare.rows(compare.at(case(), 10), book)
    for kind, line in lines.items():
        best = min(row.monthly for row in rows if row.case.kind == kind and not row.case.provisioned)
        assert line[0] == (10, pytest.approx(float(best)))


# --- the command line


def amounts(text: str) -> list[Decimal]:
    return [D(number.replace(",", "")) for number in re.findall(r"\$([\d,.]*\d)", text)]


def as_shown(usd: Decimal) -> Decimal:
    return D(month.money(usd).replace(",", ""))


@pytest.mark.parametrize("kind", ["real-time", "serverless", "async", "batch"])
def test_table_and_json_agree(kind):
    words = ("--kind", kind, "--requests", "3/s", "--provisioned", "2", "--max", "3", "--curve", "office")
    report = asked(*words)
    table = run(*words).stdout
    shown = [amounts(line)[-1] for line in table.splitlines() if line.startswith("  ") and "$" in line]
    total = report["total"]
    money = [line["monthly"] for line in report["lines"]]
    assert shown == [as_shown(usd) for usd in [*money, *total.values()]]
    assert sum(money) == pytest.approx(total["month"], rel=D("1e-12"))
    for line in report["lines"]:
        assert line["amount"] * line["unit_price"] == pytest.approx(line["monthly"], rel=D("1e-12"))


def test_table_and_json_of_the_comparison_agree():
    report = asked("--compare", "--requests", "10/s")
    table = run("--compare", "--requests", "10/s").stdout
    ranked = {row["on"]: row for row in report["kinds"] if row["kind"] == "real-time"}
    shown = re.findall(r"^  real-time +(\d+ x \S+).*?\$([\d,.]+) +\$([\d,.]+)", table, re.MULTILINE)
    assert len(shown) >= 8
    for on, monthly, per_1000 in shown:
        assert D(monthly.replace(",", "")) == as_shown(ranked[on]["monthly"])
        assert D(per_1000) == as_shown(ranked[on]["per_1000"])
    cheapest = [row["on"] for row in report["kinds"] if row["kind"] == "real-time"]
    assert [on for on, *_ in shown] == cheapest[: len(shown)]
    (said,) = re.findall(r"up to about ([\d,]+) requests a day", table)
    assert int(said.replace(",", "")) == pytest.approx(report["break_even"]["requests_a_day"], rel=0.05)


def test_a_narrow_terminal_cuts_no_figure():
    assert amounts(run(COLUMNS="50").stdout) == amounts(run().stdout)


def test_csv_has_the_rows_of_json():
    rows = list(csv.DictReader(io.StringIO(run("--csv").stdout)))
    lines = asked()["lines"]
    assert [D(row["monthly"]) for row in rows] == [line["monthly"] for line in lines]
    assert [row["item"] for row in rows] == [line["item"] for line in lines]


def test_every_table_says_as_of_when():
    for words in ([], ["--compare"], ["--simulate"], ["--hourly"]):
        assert re.search(r"as of \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d", run(*words).stdout), words
    assert "2026-08-01" in run("--example", "guide").stdout


def test_an_hour_for_programs():
    found = asked("--hourly", "--kind", "real-time", "--instance", "ml.c7i.large", "--count", "2")
    assert found["per_month"] == D("159.9248")
    assert found["per_hour"] == pytest.approx(D("159.9248") / 744)
    assert found["currency"] == "USD"
    assert found["as_of"]["derived"] == ["hosting:ml.c7i.large"]
    assert asked("--hourly", "--kind", "training", "--instance", "ml.g5.xlarge", "--count", "1")[
        "per_hour"
    ] == D("1.408")


def test_an_hour_of_what_has_scaled_to_zero():
    assert asked("--hourly", "--kind=async", "--count=0")["per_hour"] == 0


def test_an_hour_where_only_the_instance_has_a_price():
    found = asked("--hourly", "--instance", "ml.m5.large", "--count", "2", "--region", "us-west-2")
    assert found["per_hour"] == D("0.23")
    assert found["without"] == ["the volume", "what requests cost"]
    assert "there is no price here for the volume" in found["sentence"]


def test_serverless_costs_nothing_while_nobody_asks_unless_it_is_kept_ready():
    assert "nothing while nobody asks" in asked("--hourly", "--kind=serverless")["sentence"]
    assert asked("--hourly", "--kind=serverless", "--provisioned=2")["per_hour"] == D(
        "0.144"
    )  # 2 x 3,600 x 0.00002


def test_the_archive_says_the_models_size(tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(bytes(1_500_000))
    report = asked("--archive", str(tmp_path / "model.tar.gz"))
    assert next(line["amount"] for line in report["lines"] if line["item"] == "Model in S3") == D("0.0015")
    assert report["assumed"] == []
    assert "is taken for 95 MB" in asked()["assumed"][0]


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
        (["--busy=1.5"], ["'1.5'", "--busy"]),
        (["--hours=0"], ["above 0", "--hours"]),
        (["--provisioned=201"], ["'201'", "200"]),
        (["--kind=serverless", "--picture=5000"], ["5000 KB", "4,000 KB"]),
        (["--simulate", "--instance=ml.g5.xlarge"], ["ml.g5.xlarge", "not been measured", "--throughput"]),
        (["--compare", "--region=us-east-2"], ["serverless:4GB in us-east-2", "--refresh"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_a_sentence_with_the_value_and_what_is_valid(words, names):
    done = run(*words)
    assert done.returncode == 2
    assert not done.stdout
    (sentence,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert all(name in sentence for name in names), sentence
    assert "Traceback" not in done.stderr


NO_NETWORK = """
import sys, socket
sys.path.insert(0, sys.argv[1])
def closed(*_): raise AssertionError("it wanted the network")
socket.socket.connect = closed
import estimate
for words in ([], ["--compare"], ["--simulate"], ["--hourly"], ["--example", "guide"]):
    assert estimate.main(words) == 0
assert not {"boto3", "requests", "botocore"} & set(sys.modules)
"""


def test_it_needs_no_account_and_no_network():
    command = [sys.executable, "-c", NO_NETWORK, ROOT / "cost"]
    done = subprocess.run(command, env=bare(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prices_json_says_where_each_price_comes_from():
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
