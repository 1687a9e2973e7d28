"""A Neutron of its own for tests: MariaDB, the API and the worker, in a directory and on a port of loopback. Without keystone: whoever reaches it is admin.

    python cloud.py DIRECTORY --controller unix:PATH [--port N]

prints "ready" when the API answers, and ends everything when it is told to end (SIGTERM).
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request

SCRIPTS = pathlib.Path(sysconfig.get_path("scripts"))
MARIADB = ("/usr/sbin/mariadbd", "/usr/bin/mariadb-install-db")
DEADLINE = 90.0

# Without keystone nobody has the role "service" that a binding's profile takes.
POLICY = """
"create_port:binding:profile": "rule:admin_only"
"""

NEUTRON = """
[DEFAULT]
auth_strategy = noauth
core_plugin = ml2
service_plugins = weft-router,segments,trunk,qos,revisions,timestamp,tag,network_ip_availability,flavors,auto_allocate
transport_url = fake://
rpc_workers = 0
rpc_state_report_workers = 0
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
state_path = {directory}
dhcp_agent_notification = false
enable_traditional_dhcp = false
global_physnet_mtu = 1500
api_paste_config = {directory}/api-paste.ini
agent_down_time = 15
[oslo_concurrency]
lock_path = {directory}/lock
[database]
connection = mysql+pymysql://root@localhost/neutron?charset=utf8mb4&unix_socket={directory}/db.sock
[oslo_messaging_notifications]
driver = noop
[oslo_policy]
policy_file = {directory}/policy.yaml
[quotas]
default_quota = -1
quota_network = -1
quota_subnet = -1
quota_port = -1
quota_router = -1
quota_floatingip = -1
quota_security_group = -1
quota_security_group_rule = -1
[ml2]
type_drivers = flat,vlan,vxlan,gre
project_network_types = vxlan
mechanism_drivers = weft
extension_drivers = port_security,qos,subnet_dns_publish_fixed_ip
path_mtu = 1480
[ml2_type_vxlan]
vni_ranges = 1001:65536
[ml2_type_gre]
tunnel_id_ranges = 70000:80000
[ml2_type_flat]
flat_networks = *
[ml2_type_vlan]
network_vlan_ranges = physnet1:100:199
[weft]
controller = {controller}
repair_interval = 0.5
report_interval = 1
device = {device}
"""


class Cloud:
    """Its processes, the first one started last ended."""

    def __init__(self, directory: pathlib.Path, controller: str, port: int, device: str) -> None:
        self.directory, self.controller, self.port, self.device = directory, controller, port, device
        self.processes: list[subprocess.Popen] = []

    def _spawn(self, name: str, *command: str, **environment: str) -> subprocess.Popen:
        log = open(self.directory / f"{name}.log", "ab")  # noqa: SIM115
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            env=os.environ | {"TMPDIR": str(self.directory)} | environment,
        )
        self.processes.append(process)
        return process

    def _await(self, what: str, ready: object, process: subprocess.Popen) -> None:
        begun = time.monotonic()
        is_ready = False
        while not is_ready:
            is_ready = ready()
            if process.poll() is not None or time.monotonic() - begun > DEADLINE:
                raise RuntimeError(f"{what} does not come up; see its log in {self.directory}")
            time.sleep(0 if is_ready else 0.1)

    def start_database(self) -> None:
        data = self.directory / "data"
        install = ["--no-defaults", "--user=root", "--basedir=/usr", f"--datadir={data}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run([MARIADB[1], *install], check=True, stdout=subprocess.DEVNULL)
        socket = self.directory / "db.sock"
        server = self._spawn(
            "mariadb",
            MARIADB[0],
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--socket={socket}",
            f"--pid-file={self.directory}/db.pid",
            "--skip-networking",
            "--innodb-flush-log-at-trx-commit=0",
        )
        self._await("MariaDB", socket.exists, server)
        import pymysql

        connection = pymysql.connect(unix_socket=str(socket), user="root")
        with connection, connection.cursor() as cursor:
            cursor.execute("create database neutron character set utf8mb4")

    def configure(self) -> None:
        # Neutron finds its pipelines where the package put them.
        paste = SCRIPTS.parent / "etc/neutron/api-paste.ini"
        shutil.copy(paste, self.directory / "api-paste.ini")
        (self.directory / "policy.yaml").write_text(POLICY)
        (self.directory / "neutron.conf").write_text(NEUTRON.format(**vars(self)))

    def make_tables(self) -> None:
        """By the migrations that an operator runs."""
        manage = [str(SCRIPTS / "neutron-db-manage"), "--config-file", "neutron.conf"]
        with open(self.directory / "migrate.log", "wb") as log:
            for subproject in ("neutron", "networking-weft"):
                subprocess.run(
                    [*manage, "--subproject", subproject, "upgrade", "heads"],
                    check=True,
                    cwd=self.directory,
                    stdout=log,
                    stderr=log,
                )

    def start_api(self) -> None:
        server = self._spawn(
            "api",
            str(SCRIPTS / "uwsgi"),
            *("--http-socket", f"127.0.0.1:{self.port}", "--master", "--die-on-term", "--enable-threads"),
            *("--threads", "2", "--processes", "2", "--lazy-apps", "--need-app", "--buffer-size", "65535"),
            *("--module", "neutron.wsgi.api:application", "--add-header", "Connection: close"),
            *("--http-auto-chunked", "--thunder-lock"),
            OS_NEUTRON_CONFIG_DIR=str(self.directory),
            OS_NEUTRON_CONFIG_FILES="neutron.conf",
        )

        def answers() -> bool:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2.0/networks", timeout=30).read()
            except (urllib.error.URLError, ConnectionError):
                return False
            return True

        self._await("the API", answers, server)

    def start_worker(self) -> None:
        self._spawn("worker", str(SCRIPTS / "neutron-periodic-workers"), "--config-file", "neutron.conf")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--port", type=int, default=9696)
    parser.add_argument("--device", default="vhost-user")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options.directory.mkdir(parents=True, exist_ok=True)
    directory = options.directory.resolve()
    cloud = Cloud(directory, options.controller, options.port, options.device)
    try:
        cloud.start_database()
        cloud.configure()
        cloud.make_tables()
        cloud.start_api()
        cloud.start_worker()
        print("ready", flush=True)
        signal.pause()
    finally:
        cloud.stop()


if __name__ == "__main__":
    main()
