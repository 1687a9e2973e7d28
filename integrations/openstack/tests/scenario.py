"""Steps of a cloud's user, by OpenStack's own client library; each prints what came of it as JSON.

python scenario.py URL STEP [ARGUMENT…]
"""

import json
import sys
import time
from typing import Any

import openstack

PROJECT = "0123456789abcdef0123456789abcdef"
OTHER_PROJECT = "fedcba9876543210fedcba9876543210"
SOON = 20.0


def connect(url: str) -> Any:
    return openstack.connection.Connection(
        auth_type="none",
        auth={"endpoint": url},
        network_endpoint_override=url,
        network_api_version="2",
        region_name="weft",
    ).network


def network(cloud: Any, name: str, cidr: str, cidr6: str, project: str = PROJECT) -> dict[str, str]:
    """A network with a subnet of each family."""
    made = cloud.create_network(name=name, project_id=project)
    for version, prefix in ((4, cidr), (6, cidr6)):
        modes = (
            {"ipv6_ra_mode": "dhcpv6-stateful", "ipv6_address_mode": "dhcpv6-stateful"}
            if version == 6
            else {}
        )
        cloud.create_subnet(
            network_id=made.id,
            name=f"{name}-{version}",
            ip_version=version,
            cidr=prefix,
            project_id=project,
            **modes,
        )
    return {"id": made.id}


def describe(port: Any) -> dict[str, Any]:
    return {
        "id": port.id,
        "mac": port.mac_address,
        "addresses": [fixed["ip_address"] for fixed in port.fixed_ips],
        "device": ("tap" + port.id)[:14],
        "vif": port.binding_vif_type,
        "status": port.status,
    }


def port(
    cloud: Any, network_name: str, name: str, host: str, *groups: str, project: str = PROJECT
) -> dict[str, Any]:
    """A port of a container on a host, in its project's default group or in others."""
    more = {"security_group_ids": [cloud.find_security_group(group).id for group in groups]} if groups else {}
    made = cloud.create_port(
        network_id=cloud.find_network(network_name).id,
        name=name,
        project_id=project,
        device_owner="compute:nova",
        binding_host_id=host,
        binding_profile={"weft_device": "netdev"},
        **more,
    )
    return describe(made)


def strange_port(cloud: Any, network_name: str, name: str, host: str) -> dict[str, Any]:
    """A port of another project, in that project's default group."""
    return port(cloud, network_name, name, host, project=OTHER_PROJECT)


def group(cloud: Any, name: str, protocol: str, port_number: str = "") -> dict[str, str]:
    """A group that admits a protocol from everywhere."""
    made = cloud.create_security_group(name=name, project_id=PROJECT)
    bounds = {"port_range_min": int(port_number), "port_range_max": int(port_number)} if port_number else {}
    cloud.create_security_group_rule(
        security_group_id=made.id,
        direction="ingress",
        ether_type="IPv4",
        protocol=protocol,
        project_id=PROJECT,
        **bounds,
    )
    return {"id": made.id}


def wait_active(cloud: Any, *names: str) -> list[dict[str, Any]]:
    """Until packets pass the ports."""
    return [describe(wait_for(cloud, name, "ACTIVE")) for name in names]


def wait_down(cloud: Any, *names: str) -> list[dict[str, Any]]:
    return [describe(wait_for(cloud, name, "DOWN")) for name in names]


def wait_for(cloud: Any, name: str, status: str) -> Any:
    begun = time.monotonic()
    while True:
        found = cloud.find_port(name, ignore_missing=False)
        if found.status == status:
            return found
        if time.monotonic() - begun > SOON:
            raise SystemExit(f"port {name} is {found.status} after {SOON} s, and not {status}")
        time.sleep(0.1)


def agents(cloud: Any, count: str) -> list[dict[str, Any]]:
    """As many hosts as there should be, alive."""
    begun = time.monotonic()
    while True:
        alive = [agent for agent in cloud.agents() if agent.is_alive]
        if len(alive) >= int(count):
            return [{"host": agent.host, "type": agent.agent_type} for agent in alive]
        if time.monotonic() - begun > SOON:
            raise SystemExit(f"{len(alive)} agents are alive after {SOON} s")
        time.sleep(0.2)


def router(cloud: Any, name: str, *networks: str) -> dict[str, str]:
    """A router between networks."""
    made = cloud.create_router(name=name, project_id=PROJECT)
    for one in networks:
        for subnet in cloud.subnets(network_id=cloud.find_network(one).id):
            cloud.add_interface_to_router(made, subnet_id=subnet.id)
    return {"id": made.id}


def leave(cloud: Any, name: str, network_name: str) -> dict[str, str]:
    """A router leaves a network."""
    found = cloud.find_router(name)
    for subnet in cloud.subnets(network_id=cloud.find_network(network_name).id):
        cloud.remove_interface_from_router(found, subnet_id=subnet.id)
    return {"id": found.id}


def outside(cloud: Any, name: str, cidr: str, gateway: str, first: str, last: str) -> dict[str, str]:
    """A network that routers lead into."""
    made = cloud.create_network(
        name=name, is_router_external=True, provider_network_type="flat", provider_physical_network="physnet1"
    )
    cloud.create_subnet(
        network_id=made.id,
        ip_version=4,
        cidr=cidr,
        gateway_ip=gateway,
        is_dhcp_enabled=False,
        allocation_pools=[{"start": first, "end": last}],
    )
    return {"id": made.id}


def gateway(cloud: Any, name: str, external: str) -> dict[str, Any]:
    """A router gets a way out."""
    info = {"network_id": cloud.find_network(external).id}
    made = cloud.update_router(cloud.find_router(name), external_gateway_info=info)
    return {"addresses": [one["ip_address"] for one in made.external_gateway_info["external_fixed_ips"]]}


def floating(cloud: Any, external: str, port_name: str) -> dict[str, str]:
    """A port gets an address outside."""
    found = cloud.find_port(port_name)
    address = next(one["ip_address"] for one in found.fixed_ips if "." in one["ip_address"])
    made = cloud.create_ip(
        floating_network_id=cloud.find_network(external).id,
        port_id=found.id,
        fixed_ip_address=address,
        project_id=PROJECT,
    )
    return {"id": made.id, "address": made.floating_ip_address}


def refused(cloud: Any) -> list[str]:
    """What weft does not do is an error, and leaves nothing."""
    errors = []
    tries = (
        lambda: cloud.create_network(name="transparent", project_id=PROJECT, is_vlan_transparent=True),
        lambda: cloud.create_security_group(name="stateless", project_id=PROJECT, stateful=False),
    )
    for attempt in tries:
        try:
            attempt()
        except openstack.exceptions.HttpException as error:
            errors.append(f"{error.status_code} {error.details}")
    return errors


def delete_all(cloud: Any) -> dict[str, int]:
    """Everything, in the order that Neutron wants."""
    for one in cloud.ips():
        cloud.delete_ip(one)
    for one in cloud.routers():
        cloud.update_router(one, external_gateway_info={})
        for taken in cloud.ports(device_id=one.id):
            cloud.remove_interface_from_router(one, port_id=taken.id)
        cloud.delete_router(one)
    for one in cloud.ports():
        cloud.delete_port(one)
    for one in cloud.networks():
        cloud.delete_network(one)
    for one in cloud.security_groups():
        cloud.delete_security_group(one)
    return {"networks": len(list(cloud.networks()))}


STEPS = (
    network,
    port,
    strange_port,
    group,
    wait_active,
    wait_down,
    agents,
    router,
    leave,
    outside,
    gateway,
    floating,
    refused,
    delete_all,
)

if __name__ == "__main__":
    url, step, *arguments = sys.argv[1:]
    steps = {one.__name__: one for one in STEPS}
    print(json.dumps(steps[step](connect(url), *arguments)))
