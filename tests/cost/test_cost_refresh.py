"""Reading AWS's price list from a local server whose offer files have AWS's structure."""

import copy
import json
import threading
from datetime import date, timedelta
from decimal import Decimal

import pytest

import prices
import refresh
from fake_price_list import REGION, Server

LARGE = "hosting:ml.c7i.large"


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the user's lists."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastai-sagemaker"


def read(server: Server, *without: str, region: str = REGION) -> dict:
    return refresh.refresh(region, server.url, list(without))


def test_every_price_is_read_and_then_used(server):
    with pytest.raises(prices.CostError, match="no prices for Region 'eu-central-1'"):
        prices.load(REGION)
    report = read(server)
    assert [item["name"] for item in report["items"]] == list(refresh.wanted_prices())
    assert sorted(server.paths) == [
        f"/offers/v1.0/aws/{service}/current/{REGION}/index.json"
        for service in ("AmazonCloudWatch", "AmazonS3", "AmazonSageMaker")
    ]
    book = prices.load(REGION)
    expected = {
        LARGE: "0.1234",
        "hosting:ml.m5.xlarge": "0.23",  # and not the free tier's
        "hosting:data-out": "0.017",
        "hosting:ebs-gp2": "0.167",
        "serverless:4GB": "0.00009",
        "serverless:2GB": "0.00004",  # and not one of the provisioned ones
        "serverless:provisioned-concurrency-usage:2GB": "0.00001",
        "serverless:provisioned-concurrency-duration:2GB": "0.0000233",
        "s3:put-copy-post-list": "0.0054",  # per 1,000
        "s3:standard:first-50TB": "0.0245",
        "s3:standard:next-450TB": "0.0235",
        "s3:standard:over-500TB": "0.0225",
        "cloudwatch-logs:ingest": "0.63",
        "cloudwatch-logs:storage": "0.0324",
        "cloudwatch:alarm": "0.1",
    }
    assert {name: book.find(name).price for name in expected} == {k: Decimal(v) for k, v in expected.items()}
    assert {price.basis for price in book.prices.values()} == {"price-list"}
    assert {price.date for price in book.prices.values()} == {"2026-11-20"}


def test_the_list_covers_every_price_of_a_bill():
    known = {name for name in prices.load("us-east-1").prices if not name.startswith("training:")}
    assert set(refresh.wanted_prices()) == known


def test_the_command_line_reads_the_list_and_then_prices_the_region(server, run, report):
    done = run("--refresh", "--region", REGION, "--offers", server.url)
    assert done.returncode == 0, done.stderr
    assert "published by AWS on 2026-11-20" in done.stdout
    line = report("--region", REGION)["lines"][0]
    assert line["monthly"] == 744 * Decimal("0.1234")
    assert line["basis"] == "price-list"


def as_us_east_1(folder) -> prices.PriceBook:
    """The list that was read, as if it were us-east-1's."""
    (folder / f"prices-{REGION}.json").rename(folder / "prices-us-east-1.json")
    return prices.load("us-east-1")


def test_the_users_list_overrides_the_repositorys(server, folder):
    before = prices.FILE.read_bytes()
    read(server)
    book = as_us_east_1(folder)
    assert book.find(LARGE).price == Decimal("0.1234")
    assert book.find("training:ml.g5.xlarge").basis == "aws-sample"
    assert prices.FILE.read_bytes() == before


# --- errors


def duplicate(server):
    offer = server.offers["AmazonSageMaker"]
    for part in (offer["products"], offer["terms"]["OnDemand"]):
        part["AGAIN"] = copy.deepcopy(part["Hostingml.c7i.large"])


def missing(server):
    del server.offers["AmazonSageMaker"]["products"]["Hostingml.c7i.large"]


def other_region(server):
    server.product("AmazonSageMaker", "Hostingml.c7i.large")["attributes"]["regionCode"] = "us-east-1"


def no_terms(server):
    del server.offers["AmazonSageMaker"]["terms"]["OnDemand"]["Hostingml.c7i.large"]


def rate(**changes):
    def edit(server):
        (only,) = server.rates("AmazonSageMaker", "Hostingml.c7i.large").values()
        only.update(changes)

    return edit


def two_prices(server):
    rates = server.rates("AmazonSageMaker", "Hostingml.c7i.large")
    rates["MORE"] = copy.deepcopy(next(iter(rates.values()))) | {"beginRange": "100"}


def missing_tier(server):
    server.rates("AmazonS3", "S3").popitem()


def changed_tier(server):
    next(iter(server.rates("AmazonS3", "S3").values()))["beginRange"] = "512001"


ITEMS = [
    (duplicate, f"{LARGE}: 2 products match .*AGAIN"),
    (missing, f"{LARGE}: no products match"),
    (other_region, f"{LARGE}: no products match"),
    (no_terms, f"{LARGE}: .* has 0 prices instead of 1"),
    (two_prices, f"{LARGE}: .* has 2 prices instead of 1"),
    (rate(pricePerUnit={"USD": "0.0000000000"}), f"{LARGE}: .* costs 0.*, which is not above 0"),
    (rate(pricePerUnit={"USD": "-1"}), "costs -1, which is not above 0"),
    (rate(pricePerUnit={"USD": "NaN"}), "costs NaN, which is not above 0"),
    (rate(pricePerUnit={"USD": "much"}), "'much', which is not a number"),
    (rate(pricePerUnit={"CNY": "0.9000000000"}), f"{LARGE}: .* is priced in CNY, not in USD"),
    (rate(pricePerUnit={}), "is priced in nothing, not in USD"),
    (rate(unit="Seconds"), "is priced per Seconds, not per hrs"),
    (missing_tier, "s3:standard:first-50TB: S3 has 2 prices instead of 3"),
    (changed_tier, "s3:standard:over-500TB: S3 has no price for the range from 512000"),
]
FILES = {
    "truncated": (lambda body: (200, None, body[: len(body) // 2]), "not a complete offer file"),
    "cut off": (lambda body: (200, len(body), body[:1000]), "was not read"),
    "500": (lambda body: (500, None, b"oops"), "answered 500"),
    "503": (lambda body: (503, None, b"slow down"), "answered 503"),
    "404": (lambda body: (404, None, b""), "does not exist"),
    "empty": (lambda body: (200, None, b""), "not a complete offer file"),
    "an empty object": (lambda body: (200, None, b"{}"), "not a complete offer file"),
    "no products": (lambda body: (200, None, b'{"products": {}, "terms": {}}'), "not a complete offer file"),
    "a list": (lambda body: (200, None, b"[1, 2]"), "not a complete offer file"),
}


@pytest.fixture
def old(server, folder):
    """The list before the error."""
    read(server)
    return (folder / f"prices-{REGION}.json").read_bytes()


def is_unchanged(folder, old) -> bool:
    (file,) = folder.iterdir()  # and no temporary file beside it
    return file.read_bytes() == old


@pytest.mark.parametrize(("break_list", "message"), ITEMS, ids=[message for _, message in ITEMS])
def test_an_item_without_a_price_is_named_and_the_old_list_is_kept(server, folder, old, break_list, message):
    break_list(server)
    with pytest.raises(prices.CostError, match=message) as error:
        read(server)
    assert error.value.code == 3
    assert "nothing was written" in str(error.value)
    assert is_unchanged(folder, old)


@pytest.mark.parametrize("service", ["AmazonSageMaker", "AmazonS3"])
@pytest.mark.parametrize(("answer", "message"), FILES.values(), ids=FILES)
def test_a_broken_offer_file_is_named_and_the_old_list_is_kept(server, folder, old, service, answer, message):
    server.answers[service] = answer
    with pytest.raises(prices.CostError, match=f"{service}.*{message}") as error:
        read(server)
    assert error.value.code == 3
    assert is_unchanged(folder, old)


def test_an_address_without_a_server(folder, old):
    with pytest.raises(prices.CostError, match="was not read"):
        refresh.refresh(REGION, "http://127.0.0.1:9", [])
    assert is_unchanged(folder, old)


def test_all_items_without_a_price_are_named_at_once(server):
    missing(server)
    del server.offers["AmazonCloudWatch"]["products"]["ALARM"]
    with pytest.raises(prices.CostError, match=f"^2 of .*{LARGE}: .*cloudwatch:alarm: "):
        read(server)


def test_a_region_that_aws_does_not_have(server):
    with pytest.raises(prices.CostError, match="no such Region"):
        read(server, region="eu-nowhere-1")


def test_an_item_can_be_left_out_and_its_price_is_then_missing(server, folder):
    missing(server)
    read(server, LARGE)
    with pytest.raises(prices.CostError, match="was read without it on"):
        as_us_east_1(folder).find(LARGE)
    with pytest.raises(prices.CostError, match=f"did you mean {LARGE}"):
        read(server, "hosting:ml.c7i.lage")


# --- the list itself


def rewrite(folder, **changes) -> None:
    file = folder / f"prices-{REGION}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_list_older_than_30_days_is_reported(server, folder, run):
    read(server)
    assert prices.load(REGION).age() == ""
    rewrite(folder, read=(date.today() - timedelta(days=30)).isoformat())
    assert prices.load(REGION).age() == ""
    rewrite(folder, read=(date.today() - timedelta(days=31)).isoformat())
    for words in ([], ["--compare"], ["--hourly"], ["--example=guide"]):
        done = run("--region", REGION, *words)
        assert "was read 31 days ago" in done.stdout, words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"read": "2026-11-22"}',
        '{"read": "soon", "items": [], "without": []}',
        '{"read": "2026-11-22", "items": [{"name": "a", "price": 0}], "without": []}',
        '{"read": "2026-11-22", "items": [{"price": 1}], "without": []}',
    ],
)
def test_a_broken_list_is_reported_in_one_sentence(folder, run, text):
    folder.mkdir()
    (folder / f"prices-{REGION}.json").write_text(text)
    done = run("--region", REGION)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "is broken" in sentence
    assert "delete it" in sentence


def test_a_list_that_cannot_be_written_is_reported_in_one_sentence(server, folder):
    folder.write_text("a file where the folder should be")
    with pytest.raises(prices.CostError, match="was not written"):
        read(server)
