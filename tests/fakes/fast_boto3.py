"""What botocore computes again for each session and client, computed once: it is most of a test's time.

Sessions and clients stay what they are, one or more for each command, with the environment and the
credentials of that moment. Only results that depend on nothing else are kept: the services' models, read from
botocore's files, and what follows from them.
"""

from functools import cache
from typing import Any

import boto3
import botocore.client
import botocore.compat
import botocore.hooks
import botocore.session
import pytest
from botocore.client import ClientCreator
from botocore.hooks import EventAliaser

SESSION = boto3.Session()  # the tests' own
MODELS = SESSION._session.get_component("data_loader")

_alias = EventAliaser._alias_event_name
_client_class = ClientCreator._create_client_class
_aliases: dict[str, str] = {}
_classes: dict[str, type] = {}


def alias_event_name(aliaser: Any, name: str) -> str:
    """An event's name under which its handlers are registered."""
    if name not in _aliases:
        _aliases[name] = _alias(aliaser, name)
    return _aliases[name]


def create_client_class(creator: Any, service: str, model: Any) -> type:
    """The class of a service's clients, which has a method for each operation."""
    if service not in _classes:
        _classes[service] = _client_class(creator, service, model)
    return _classes[service]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep those results until the test ends; the next test finds them again."""
    monkeypatch.setattr(botocore.session, "create_loader", lambda *_: MODELS)
    monkeypatch.setattr(EventAliaser, "_alias_event_name", alias_event_name)
    monkeypatch.setattr(ClientCreator, "_create_client_class", create_client_class)
    monkeypatch.setattr(botocore.hooks, "accepts_kwargs", accepts_kwargs)


accepts_kwargs = cache(botocore.compat.accepts_kwargs)
