"""The scenario that the tests of cost begin from."""

from dataclasses import replace
from decimal import Decimal as D

import bill
import throughput
import traffic


def scenario(**changes) -> bill.Scenario:
    """One request per minute of 100 KB, answered with 300 bytes by 2 x ml.c7i.large; a model of 100 MB."""
    default = bill.Scenario(
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
        target_utilization=0.7,
        start_minutes=5,
        idle_minutes=10,
        throughput=throughput.assumed(),
    )
    return replace(default, **changes)
