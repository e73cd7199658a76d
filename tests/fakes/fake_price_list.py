"""AWS's offer files with their real structure, and a server for them."""

import http.server
import json
from collections.abc import Callable
from decimal import Decimal

import prices
import refresh

REGION = "eu-central-1"
PREFIX = "EUC1-"
PROVISIONED = "serverless:provisioned-concurrency"
USD = {  # prices of these files that differ from the repository's us-east-1
    "hosting:ml.c7i.large": "0.1234000000",
    "serverless:4GB": "0.0000900000",
    "s3:put-copy-post-list": "0.0000054000",
    "s3:get-select": "0.0000004300",
    "s3:standard:first-50TB": "0.0245000000",
    "s3:standard:next-450TB": "0.0235000000",
    "s3:standard:over-500TB": "0.0225000000",
}


def product(sku: str, family: str, *rates: tuple[str, str, str], **attributes: str) -> tuple[dict, dict]:
    """A product and its terms in AWS's structure; `rates` are (unit, begin, USD)."""
    attributes = {"regionCode": REGION, "locationType": "AWS Region"} | attributes
    if "usagetype" in attributes:
        attributes["usagetype"] = PREFIX + attributes["usagetype"]
    offer = f"{sku}.JRTCKXETXF"
    dimensions = {
        f"{offer}.{number}": {
            "rateCode": f"{offer}.{number}",
            "unit": unit,
            "beginRange": begin,
            "endRange": "Inf",
            "description": f"${usd} per {unit}",
            "appliesTo": [],
            "pricePerUnit": {"USD": usd},
        }
        for number, (unit, begin, usd) in enumerate(rates)
    }
    term = {"offerTermCode": "JRTCKXETXF", "sku": sku, "priceDimensions": dimensions, "termAttributes": {}}
    entry = {"sku": sku, "productFamily": family, "attributes": attributes}
    return {sku: entry}, {sku: {offer: term}}


def usd(name: str) -> str:
    """Our price in AWS's format."""
    known = prices.load("us-east-1").prices
    return USD.get(name) or f"{known[name].price if name in known else Decimal('0.01'):.10f}"


def sagemaker() -> list[tuple[dict, dict]]:
    """Hosting, similar products that must not be mistaken for it, serverless, data and the volume."""
    free = {"instanceName": "ml.m5.xlarge", "component": "Hosting", "platoinstancetype": "Hosting-FreeTier"}
    products = [product("FREE", "ML Instance", ("Hrs", "0", "0.0000000000"), **free)]
    for name in (name for name in refresh.wanted_prices() if name.startswith("hosting:ml.")):
        kind = name.partition(":")[2]
        for component, usage in (("Hosting", "Host"), ("Training", "Train"), ("AsyncInf", "AsyncInf")):
            more = {"instanceName": kind, "instanceType": f"{kind}-{component}", "component": component}
            more |= {"usagetype": f"{usage}:{kind}", "platoinstancetype": component}
            price = usd(name) if component == "Hosting" else "9.9900000000"
            products.append(product(component + kind, "ML Instance", ("Hrs", "0", price), **more))
    for size in range(1, 7):
        for name, usage, unit in (
            ("serverless", f"ServerlessInf:Mem-{size}GB", "Second"),
            (f"{PROVISIONED}-usage", f"ProvisionedConcurrency:Usage-{size}GB", "seconds"),
            (
                f"{PROVISIONED}-duration",
                f"ProvisionedConcurrency:Mem-{size}GB",
                "seconds",
            ),
        ):
            rate = (unit, "0", usd(f"{name}:{size}GB"))
            products.append(product(usage, "ML Serverless", rate, usagetype=usage))
    for direction in ("IN", "OUT"):
        more = {
            "group": f"Hosting:{direction}",
            "operation": "Invoke-Endpoint",
            "usagetype": f"Hst:Data-Bytes-{direction}",
        }
        products.append(product(f"DATA{direction}", "ML Data", ("GB", "0", "0.0170000000"), **more))
    for kind in ("Hosting", "Training"):
        more = {"volumeType": f"General Purpose-{kind}", "usagetype": f"{kind[:4]}:VolumeUsage.gp2"}
        products.append(product(f"EBS{kind}", "Storage", ("GB-Mo", "0", "0.1670000000"), **more))
    return products


def s3() -> list[tuple[dict, dict]]:
    """Standard storage with unsorted tiers, another storage class, and requests."""
    begins = {"over-500TB": "512000", "first-50TB": "0", "next-450TB": "51200"}
    tiers = [("GB-Mo", begin, USD[f"s3:standard:{name}"]) for name, begin in begins.items()]
    infrequent = {"volumeType": "Standard - Infrequent Access", "usagetype": "TimedStorage-SIA-ByteHrs"}
    products = [
        product("S3", "Storage", *tiers, volumeType="Standard", usagetype="TimedStorage-ByteHrs"),
        product("IA", "Storage", tiers[0], **infrequent),
    ]
    for number, name in ((1, "s3:put-copy-post-list"), (2, "s3:get-select")):
        more = {"group": f"S3-API-Tier{number}", "usagetype": f"Requests-Tier{number}"}
        products.append(product(f"TIER{number}", "API Request", ("Requests", "0", USD[name]), **more))
    return products


def cloudwatch() -> list[tuple[dict, dict]]:
    """Logs and alarms, and those of another class."""
    high = {"alarmType": "High Resolution", "usagetype": "CW:HighResAlarmMonitorUsage"}
    alarm = {"alarmType": "Standard", "usagetype": "CW:AlarmMonitorUsage"}
    stored = {"usagetype": "TimedStorage-ByteHrs"}
    return [
        product("LOG", "Data Payload", ("GB", "0", "0.6300000000"), usagetype="DataProcessing-Bytes"),
        product("RARE", "Data Payload", ("GB", "0", "0.3150000000"), usagetype="DataProcessingIA-Bytes"),
        product("STORED", "Storage Snapshot", ("GB-Mo", "0", "0.0324000000"), **stored),
        product("ALARM", "Alarm", ("Alarms", "0", "0.1000000000"), **alarm),
        product("HIGH", "Alarm", ("Alarms", "0", "0.3000000000"), **high),
    ]


def offer(service: str, parts: list[tuple[dict, dict]]) -> dict:
    """A complete offer file."""
    products: dict[str, dict] = {}
    terms: dict[str, dict] = {}
    for product, term in parts:
        products |= product
        terms |= term
    return {
        "formatVersion": "v1.0",
        "offerCode": service,
        "publicationDate": "2026-11-20T18:07:55Z",
        "products": products,
        "terms": {"OnDemand": terms},
    }


class Server(http.server.ThreadingHTTPServer):
    """Serves the offer files of one Region on a port that the system chooses.

    `answers` may replace the answer for a service: body -> (status, Content-Length or None, body).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        makers = {"AmazonSageMaker": sagemaker, "AmazonS3": s3, "AmazonCloudWatch": cloudwatch}
        self.offers = {service: offer(service, make()) for service, make in makers.items()}
        self.answers: dict[str, Callable[[bytes], tuple[int, int | None, bytes]]] = {}
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def product(self, service: str, sku: str) -> dict:
        return self.offers[service]["products"][sku]

    def rates(self, service: str, sku: str) -> dict:
        """The price dimensions of a product."""
        (term,) = self.offers[service]["terms"]["OnDemand"][sku].values()
        return term["priceDimensions"]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.paths.append(self.path)
        service = self.path.split("/")[4]
        status, length, body = 200, None, json.dumps(self.server.offers[service]).encode()
        if service in self.server.answers:
            status, length, body = self.server.answers[service](body)
        if not self.path.endswith(f"/{REGION}/index.json"):
            status, body = 403, b"<Error/>"
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
