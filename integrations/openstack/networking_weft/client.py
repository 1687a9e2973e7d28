"""weft-controller as the driver sees it: objects that are read, put and deleted over gRPC."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import grpc
from oslo_config import cfg
from oslo_log import log as logging
from weft.v1 import intent_pb2, intent_pb2_grpc, objects_pb2

LOG = logging.getLogger(__name__)

# The list of `Objects` that each kind is in.
LISTS = {
    "host": "hosts",
    "vpc": "vpcs",
    "subnet": "subnets",
    "route_table": "route_tables",
    "prefix_list": "prefix_lists",
    "security_group": "security_groups",
    "port": "ports",
    "peering": "peerings",
    "quota": "quotas",
    "external_network": "external_networks",
    "elastic_ip": "elastic_ips",
    "nat_gateway": "nat_gateways",
}
KINDS = {kind: objects_pb2.Objects.DESCRIPTOR.fields_by_name[name] for kind, name in LISTS.items()}
OF_TYPE = {field.message_type.full_name: kind for kind, field in KINDS.items()}

# Worth another attempt without anything else changing.
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# Another controller may answer.
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20000),
]


class ControllerError(Exception):
    """The controller did not do what it was asked for; `transient`: it may the next time."""

    def __init__(self, error: Exception) -> None:
        # A call by a channel that another thread has closed is a ValueError to gRPC.
        is_answer = isinstance(error, grpc.RpcError)
        self.code: grpc.StatusCode = error.code() if is_answer else grpc.StatusCode.UNAVAILABLE
        self.transient = self.code in TRANSIENT
        details = error.details() if is_answer else error
        super().__init__(f"weft-controller: {details} ({self.code.name})")


class Changed(Exception):
    """An object is not any more what it was when it was read."""


@dataclass(frozen=True, order=True)
class Key:
    """Names an object of the controller."""

    kind: str
    id: str

    def message(self) -> objects_pb2.ObjectKey:
        return objects_pb2.ObjectKey(kind=self.kind, id=self.id)


def key_of(item: object) -> Key:
    """The key of an object."""
    return Key(OF_TYPE[item.DESCRIPTOR.full_name], item.id)


def together(items: Iterable[object]) -> objects_pb2.Objects:
    """A set of objects as it is sent."""
    objects = objects_pb2.Objects()
    for item in items:
        getattr(objects, LISTS[key_of(item).kind]).append(item)
    return objects


def apart(objects: objects_pb2.Objects) -> Iterator[object]:
    """The objects of a set, by kinds."""
    for name in LISTS.values():
        yield from getattr(objects, name)


class Controller:
    """A connection, made when it is first needed: after the server has forked."""

    def __init__(self, conf: cfg.ConfigOpts = cfg.CONF) -> None:
        self._conf = conf.weft
        self._lock = threading.Lock()
        self._places = itertools.cycle(place.strip() for place in self._conf.controller.split(","))
        self._stub: intent_pb2_grpc.IntentStub | None = None
        self._channel: grpc.Channel | None = None

    def _credentials(self) -> grpc.ChannelCredentials | None:
        def read(path: str | None) -> bytes | None:
            if not path:
                return None
            with open(path, "rb") as file:
                return file.read()

        if not self._conf.ca_file:
            return None
        return grpc.ssl_channel_credentials(
            read(self._conf.ca_file), read(self._conf.key_file), read(self._conf.certificate_file)
        )

    def _connected(self) -> intent_pb2_grpc.IntentStub:
        with self._lock:
            if self._stub is None:
                place, credentials = next(self._places), self._credentials()
                options = list(OPTIONS)
                if place.startswith("unix:"):
                    # A path is no authority (RFC 9113 section 8.3.1), and the controller refuses it as one.
                    options.append(("grpc.default_authority", "localhost"))
                if credentials is None:
                    self._channel = grpc.insecure_channel(place, options=options)
                else:
                    self._channel = grpc.secure_channel(place, credentials, options=options)
                self._stub = intent_pb2_grpc.IntentStub(self._channel)
            return self._stub

    def _failed(self, error: Exception, stub: intent_pb2_grpc.IntentStub) -> ControllerError:
        """The next call goes to the next controller, if this one does not answer."""
        failure = ControllerError(error)
        if failure.code in AWAY and "," in self._conf.controller:
            with self._lock:
                # Another thread may have found out the same before.
                if self._stub is stub:
                    self._stub = None
                    self._channel.close()
        return failure

    def _call(self, method: str, request: object, timeout: float | None = None) -> object:
        limit = self._conf.push_timeout if timeout is None else timeout
        stub = self._connected()
        try:
            return getattr(stub, method)(request, timeout=limit)
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(error, stub) from error

    def get(self, key: Key) -> tuple[object, int] | None:
        """An object and the revision at which it last changed; none if there is none."""
        try:
            reply = self._call("Get", intent_pb2.GetRequest(object=key.message()))
        except ControllerError as error:
            if error.code == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return next(apart(reply.objects)), reply.object_revisions[0]

    def put(self, items: dict[Key, tuple[object, int]]) -> None:
        """Creates or replaces objects, all or none, each only if it last changed at the given revision; 0: if it does not exist. Raises [`Changed`]."""
        revisions = [
            intent_pb2.ObjectRevision(object=key.message(), revision=revision)
            for key, (_, revision) in items.items()
        ]
        objects = together(item for item, _ in items.values())
        request = intent_pb2.ApplyRequest(objects=objects, if_object_revisions=revisions)
        try:
            self._call("Apply", request)
        except ControllerError as error:
            if error.code == grpc.StatusCode.ABORTED:
                raise Changed from error
            raise

    def delete(self, *keys: Key) -> None:
        """Deletes objects together, if they are there: of several that are not all there, none."""
        try:
            self._call("Delete", intent_pb2.DeleteRequest(objects=[key.message() for key in keys]))
        except ControllerError as error:
            if error.code != grpc.StatusCode.NOT_FOUND:
                raise

    def objects(self, kind: str, selector: str = "", vpc: str = "", timeout: float = 60.0) -> list[object]:
        """All objects of a kind, or those with labels, or of a VPC."""
        request = intent_pb2.ListRequest(kind=kind, label_selector=selector, vpc=vpc)
        stub = self._connected()
        try:
            replies = stub.List(request, timeout=timeout)
            return [item for reply in replies for item in apart(reply.objects)]
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(error, stub) from error

    def accept(self, peering: str) -> None:
        """The other side of a peering says yes."""
        action = intent_pb2.PEERING_ACTION_ACCEPT
        self._call("ChangePeering", intent_pb2.ChangePeeringRequest(id=peering, action=action))

    def hosts(self) -> list[intent_pb2.HostStatus]:
        """The hosts that the controller knows of, and whether they are attached."""
        reply = self._call("ListHostStatus", intent_pb2.ListHostStatusRequest(), timeout=10)
        return list(reply.hosts)

    def watch_ports(self, selector: str) -> Iterator[intent_pb2.PortConditions]:
        """Whether packets pass ports with labels: of all of them, and then each change, until the connection ends."""
        return self._ports("WatchPortConditions", selector, None)

    def port_conditions(self, selector: str) -> Iterator[intent_pb2.PortConditions]:
        """The same as of now."""
        return self._ports("ListPortConditions", selector, 60.0)

    def _ports(
        self, method: str, selector: str, timeout: float | None
    ) -> Iterator[intent_pb2.PortConditions]:
        request = intent_pb2.PortConditionsRequest(label_selector=selector)
        stub = self._connected()
        try:
            yield from getattr(stub, method)(request, timeout=timeout)
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(error, stub) from error
