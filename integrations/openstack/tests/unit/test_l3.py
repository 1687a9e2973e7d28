"""What the router plugin makes of Neutron's events."""

import types

import pytest
from neutron_lib.callbacks import events

from networking_weft.l3 import floating_ip_of


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (events.PRECOMMIT_CREATE, {"resource_id": "f"}),
        (events.PRECOMMIT_UPDATE, {"resource_id": None, "desired_state": types.SimpleNamespace(id="f")}),
        # The port's own id is another one.
        (events.PRECOMMIT_DELETE, {"resource_id": "p", "latest_state": {"id": "p", "device_id": "f"}}),
    ],
)
def test_the_floating_ip_of_an_event(event, told):
    assert floating_ip_of(event, types.SimpleNamespace(**told)) == "f"
