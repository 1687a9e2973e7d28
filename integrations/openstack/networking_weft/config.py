"""The section `[weft]` of Neutron's configuration."""

from typing import Any

from oslo_config import cfg

OPTIONS = [
    cfg.StrOpt(
        "controller",
        default="unix:/run/weft/controller.sock",
        help="Where weft-controller listens: unix:PATH or HOST:PORT. Several, separated by commas, are tried in turn.",
    ),
    cfg.StrOpt("ca_file", help="Certificates that the controller's is checked with (PEM). None: no TLS."),
    cfg.StrOpt("certificate_file", help="This server's certificate, which names weft://role/operate (PEM)."),
    cfg.StrOpt("key_file", help="The certificate's key (PEM)."),
    cfg.FloatOpt(
        "push_timeout",
        default=3.0,
        min=0.1,
        help="Seconds that an API call waits for the controller. What is not done by then is done later.",
    ),
    cfg.StrOpt(
        "device",
        default="vhost-user",
        choices=["vhost-user", "tap"],
        help="How virtual machines are attached.",
    ),
    cfg.StrOpt(
        "vhost_user_directory",
        default="/run/weft/vhost",
        help="Where the sockets of virtual machines are, on every host. QEMU makes them there.",
    ),
    cfg.StrOpt(
        "vhost_user_mode",
        default="server",
        choices=["server", "client"],
        help="QEMU's side of these sockets. With 'server', weftd may be restarted under running machines.",
    ),
    cfg.FloatOpt(
        "repair_interval",
        default=2.0,
        min=0.1,
        help="Seconds between looks for changes that the controller has not got.",
    ),
    cfg.FloatOpt(
        "resync_interval",
        default=600.0,
        min=1.0,
        help="Seconds between comparisons of all objects of Neutron with those of the controller.",
    ),
    cfg.FloatOpt(
        "report_interval",
        default=20.0,
        min=0.5,
        help="Seconds between reports of the hosts' state; less than half of agent_down_time.",
    ),
]


def register(conf: cfg.ConfigOpts = cfg.CONF) -> None:
    """Makes the section known; once or more."""
    conf.register_opts(OPTIONS, "weft")


def list_opts() -> list[tuple[str, list[Any]]]:
    """For oslo-config-generator."""
    return [("weft", OPTIONS)]
