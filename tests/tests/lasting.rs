//! The check that a long-lived connection stays the same one works: it detects a program that reconnects.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use weft_tests::programs::{Exchange, Program};
use weft_tests::{Lab, LinkOptions, Namespace};

const CLIENT: &str = "10.0.1.11";
const SERVER: &str = "10.0.1.12";

/// Two namespaces with a plain link.
fn ends() -> (Lab, Namespace, Namespace) {
    let mut lab = Lab::new().unwrap();
    let (client, server) = (lab.host("client").unwrap(), lab.host("server").unwrap());
    let link = LinkOptions::default();
    lab.link((&client, "eth0"), (&server, "eth0"), link)
        .unwrap();
    for (end, address) in [(&client, CLIENT), (&server, SERVER)] {
        end.ip(&format!("address add {address}/24 dev eth0"))
            .unwrap();
    }
    (lab, client, server)
}

/// What is said of a connection that lasts, of a program whose `long` is this.
fn said_of(long: &str) -> Result<usize, String> {
    let (lab, client, server) = ends();
    let file = std::env::temp_dir().join(format!("{}.sh", client.name()));
    let text = format!(
        "# A program\n# admit: tcp/7002\nserver() {{ exec socat TCP4-LISTEN:7002,fork,reuseaddr EXEC:cat; }}\nlong() {{ {long}; }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::read(&file).unwrap();
    let [client, server] = [(client, CLIENT), (server, SERVER)]
        .map(|(end, address)| (end, address.parse::<IpAddr>().unwrap()));
    let exchange = Exchange::start(&program, (&client.0, client.1), (&server.0, server.1)).unwrap();
    let lasting = exchange.begin().map_err(|error| error.to_string());
    let said = lasting.and_then(|lasting| {
        let goes_on = lasting.goes_on("goes on");
        goes_on
            .map(|()| lasting.tcp_connections())
            .map_err(|error| error.to_string())
    });
    exchange.end().unwrap();
    std::fs::remove_file(&file).unwrap();
    drop(lab);
    said
}

#[test]
fn one_connection_that_lasts_goes_on() {
    let long = "while echo tick; do sleep 0.1; done | socat - \"TCP4:$SU:7002\"";
    assert_eq!(said_of(long), Ok(1));
}

#[test]
fn a_connection_that_is_replaced_does_not_count_as_going_on() {
    // There is always one, and the lines never stop; none lives for longer than three of them.
    let long =
        "while :; do { echo tick; sleep 0.3; } | socat - \"TCP4:$SU:7002\" & sleep 0.1; done";
    let said = said_of(long).unwrap_err();
    assert!(said.contains("it connected again"), "{said}");
}

#[test]
fn a_program_without_a_connection_does_not_begin() {
    let said = said_of("while echo tick; do sleep 0.1; done").unwrap_err();
    assert!(said.contains("it has no TCP connection"), "{said}");
}
