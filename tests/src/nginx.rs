//! nginx as a workload's web server.

use std::fmt::Write as _;
use std::time::Duration;

use crate::{Daemon, LabError, Site, wait_until};

/// The TCP ports that it serves.
const PORTS: [u16; 3] = [80, 8000, 8001];
/// It serves within this.
const SOON: Duration = Duration::from_secs(10);
/// Connections at most, if there are as many descriptors.
const CONNECTIONS: u32 = 16_384;

/// nginx at a port of weft's, on TCP ports 80, 8000 and 8001: each answer has the port's id, the client's address as it is seen, and the TCP port that was
/// asked.
pub fn serve(site: &Site, id: &str) -> Result<Daemon, LabError> {
    let directory = site.directory().join(format!("nginx-{id}"));
    std::fs::create_dir_all(&directory).map_err(LabError::io("making nginx's directory"))?;
    let at = directory.display();
    let mut paths = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = write!(paths, "{kind}_temp_path {at}/{kind}; ");
    }
    let listens =
        PORTS.map(|port| format!("listen {port} backlog=4096; listen [::]:{port} backlog=4096;"));
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections {CONNECTIONS}; }}\n\
         http {{ access_log off; {paths} keepalive_timeout 600s; keepalive_requests 1000000;\n\
         server {{ {} location / {{ return 200 \"{id} $remote_addr $server_port\\n\"; }} }} }}\n",
        listens.concat()
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text).map_err(LabError::io("writing nginx's configuration"))?;
    let namespace = &site.workloads[id].namespace;
    let (at, file) = (at.to_string(), file.display().to_string());
    let line = ["-e", "stderr", "-p", &at, "-c", &file];
    let daemon = namespace.spawn_with_many_files("nginx", &line)?;
    let url = format!("http://{}/", site.service(id, false, PORTS[0])?);
    wait_until(&format!("nginx of {id} serves"), SOON, || {
        namespace.run(&["curl", "-sf", "-m", "1", &url]).is_ok()
    })?;
    Ok(daemon)
}
