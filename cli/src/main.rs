//! weftctl: weft's command line. A client of the controller (the intent) and of a host's daemon (its status, sessions and counters).

#![forbid(unsafe_code)]

mod balancer;
mod callers;
mod client;
mod dns;
mod edit;
mod external;
mod found;
mod frame;
mod held_back;
mod history;
mod hosts;
mod kinds;
mod label;
mod listing;
mod node;
mod objects;
mod output;
mod peering;
mod policy;
mod ports;
mod rules;
mod trace;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use client::Targets;
use output::Format;

/// Configures weft's controller and inspects the daemons of hosts.
#[derive(Debug, Parser)]
#[command(name = "weftctl", version)]
struct Arguments {
    #[command(flatten)]
    targets: Targets,
    /// Output format.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or replace the objects of a topology file; all or none.
    Apply(objects::Apply),
    /// Manage VPCs: tenants' address spaces.
    #[command(subcommand)]
    Vpc(held_back::VpcAction),
    /// Manage quotas: how many objects of a kind a tenant may have. The id is TENANT/KIND.
    #[command(subcommand)]
    Quota(objects::Action<kinds::Quota>),
    /// Manage peerings: two VPCs whose routes may lead into each other.
    #[command(subcommand)]
    Peering(peering::PeeringAction),
    /// Manage subnets: prefixes of a VPC.
    #[command(subcommand)]
    Subnet(objects::Action<kinds::Subnet>),
    /// Manage ports: virtual network interfaces.
    #[command(subcommand)]
    Port(ports::PortAction),
    /// Manage route tables.
    #[command(subcommand)]
    RouteTable(objects::Action<kinds::RouteTable>),
    /// List, add and delete routes of a table.
    #[command(subcommand)]
    Route(edit::RouteAction),
    /// Manage security groups: stateful rules, per port.
    #[command(subcommand)]
    Sg(edit::GroupAction),
    /// Manage network ACLs: stateless rules, per subnet.
    #[command(subcommand)]
    Acl(edit::AclAction),
    /// Manage prefix lists: named lists of prefixes.
    #[command(subcommand)]
    PrefixList(objects::Action<kinds::PrefixList>),
    /// Manage external networks: networks outside of every VPC, such as the Internet.
    #[command(subcommand)]
    ExternalNetwork(objects::Action<external::ExternalNetwork>),
    /// Manage elastic IPs: addresses of external networks that stand for addresses of ports.
    #[command(subcommand)]
    ElasticIp(external::ElasticIpAction),
    /// Manage NAT gateways: addresses of external networks that the ports of a VPC share.
    #[command(subcommand)]
    NatGateway(objects::Action<external::NatGateway>),
    /// Manage load balancers: addresses of a VPC behind which several ports serve.
    #[command(subcommand, visible_alias = "lb")]
    LoadBalancer(balancer::BalancerAction),
    /// Manage DNS zones: names of a VPC besides those of its ports.
    #[command(subcommand)]
    DnsZone(dns::ZoneAction),
    /// Manage hosts: hypervisors that run weftd, and foreign equipment.
    #[command(subcommand)]
    Host(held_back::HostAction),
    /// Show how far hosts are in sync: attached, acknowledged, refused and why.
    Hosts(hosts::Hosts),
    /// Show what changed when, and by whom; the newest first.
    History(history::History),
    /// Show what a change did, or what changed from one revision to another.
    Diff(history::Diff),
    /// Restore the objects that a change touched to what they were before it: a new change, refused when any of them has changed since.
    Undo(history::Undo),
    /// Set labels of an object, or take them away.
    Label(label::Label),
    /// Follow changes of objects as they happen.
    Watch(watch::Watch),
    /// Show how much each caller has asked the controller for, against its limits, and how many calls were refused.
    Callers,
    /// Show the status or the state of a host's daemon.
    #[command(subcommand)]
    Node(node::NodeAction),
    /// Show the flows that a host tracks.
    #[command(subcommand)]
    Session(node::SessionAction),
    /// Show the mappings of the NAT gateways that a host runs.
    #[command(subcommand)]
    Nat(node::NatAction),
    /// Show what would happen to a packet, step by step; sends nothing.
    Trace(trace::Trace),
    /// Show dropped packets, by port and reason.
    Drops,
    /// Show counters of ports, sessions and packet buffers.
    Stats(node::Stats),
}

/// Wrong usage: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Err(error) = run(arguments) else {
        return ExitCode::SUCCESS;
    };
    let broken_pipe = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(broken_pipe) {
        // The reader has closed the pipe.
        return ExitCode::SUCCESS;
    }
    let text = match error.downcast_ref::<tonic::Status>() {
        Some(status) if status.message().is_empty() => status.code().to_string(),
        Some(status) => status.message().to_owned(),
        None => format!("{error:#}"),
    };
    for line in text.lines() {
        eprintln!("weftctl: {line}");
    }
    if error.is::<Usage>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        targets,
        output,
        command,
    } = arguments;
    match command {
        Command::Apply(apply) => apply.run(&targets, output).await,
        Command::Vpc(action) => action.run(&targets, output).await,
        Command::Quota(action) => action.run(&targets, output).await,
        Command::Peering(action) => action.run(&targets, output).await,
        Command::Subnet(action) => action.run(&targets, output).await,
        Command::Port(action) => action.run(&targets, output).await,
        Command::RouteTable(action) => action.run(&targets, output).await,
        Command::Route(action) => action.run(&targets, output).await,
        Command::Sg(action) => action.run(&targets, output).await,
        Command::Acl(action) => action.run(&targets, output).await,
        Command::PrefixList(action) => action.run(&targets, output).await,
        Command::ExternalNetwork(action) => action.run(&targets, output).await,
        Command::ElasticIp(action) => action.run(&targets, output).await,
        Command::NatGateway(action) => action.run(&targets, output).await,
        Command::LoadBalancer(action) => action.run(&targets, output).await,
        Command::DnsZone(action) => action.run(&targets, output).await,
        Command::Host(action) => action.run(&targets, output).await,
        Command::Hosts(hosts) => hosts.run(&targets, output).await,
        Command::History(history) => history.run(&targets, output).await,
        Command::Diff(diff) => diff.run(&targets, output).await,
        Command::Undo(undo) => undo.run(&targets, output).await,
        Command::Label(label) => label.run(&targets, output).await,
        Command::Watch(watch) => watch.run(&targets, output).await,
        Command::Callers => callers::list(&targets, output).await,
        Command::Node(action) => action.run(&targets, output).await,
        Command::Session(action) => action.run(&targets, output).await,
        Command::Nat(action) => action.run(&targets, output).await,
        Command::Trace(trace) => trace.run(&targets, output).await,
        Command::Drops => node::drops(&targets, output).await,
        Command::Stats(stats) => stats.run(&targets, output).await,
    }
}
