//! Generates the messages of the wire contract. `protox` parses the files, so that no `protoc` is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["objects", "host", "node", "intent", "store"].map(|name| format!("weft/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    // For `src/strict.rs`, which holds requests against them.
    let path = std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(path, descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    // In order, so that equal objects have equal bytes.
    config.btree_map(["."]);
    // Objects and what they hold appear in files that people write, so they read and write as text too; a misspelt field is an error.
    let mut builder = tonic_prost_build::configure()
        .build_client(false)
        .build_server(false);
    for name in [
        "Objects",
        "ObjectKey",
        "Violation",
        "Host",
        "Vpc",
        "Peering",
        "Quota",
        "ExternalNetwork",
        "RoutedPrefix",
        "ElasticIp",
        "NatGateway",
        "PortForward",
        "NatTimeouts",
        "NatLimits",
        "LoadBalancer",
        "Listener",
        "Member",
        "HealthCheck",
        "MemberHealth",
        "PortHealth",
        "MulticastListener",
        "AddressHolder",
        "VpcDns",
        "DnsZone",
        "DnsRecord",
        "PortName",
        "Subnet",
        "Dhcp",
        "DhcpRoute",
        "DhcpOption",
        "RateLimits",
        "RateLimit",
        "RouteTable",
        "Route",
        "PolicyRoute",
        "NextHop",
        "NetworkAcl",
        "AclRule",
        "PrefixList",
        "SecurityGroup",
        "GroupMembers",
        "Learning",
        "LearnedAddress",
        "SecurityRule",
        "Port",
        "AddressPair",
        "Trunk",
        "Device",
        "Status",
        "WorkerStatus",
        "PortStatus",
        "NodeStateReply",
        "Drops",
        "DropCount",
        "Stats",
        "PortCounters",
        "TableCounters",
        "FrameCounters",
        "MetadataCounters",
        "DnsCounters",
        "MemberCounters",
        "SessionList",
        "Session",
        "TranslatedFlow",
        "MappingList",
        "NatGatewayList",
        "NatGatewayStatus",
        "Mapping",
        "TraceReply",
        "TraceStep",
        "ChangeReply",
        "CallersReply",
        "CallerUse",
        "HistoryReply",
        "WatchEvent",
        "ChangeRecord",
        "ObjectChange",
        "ObjectForm",
        "HostStatusReply",
        "HostStatus",
        "HostLimits",
        "HeldBack",
        "VpcStatusReply",
        "VpcHeldBack",
        "MemberHealthReply",
        "MulticastListenersReply",
        "AddressHoldersReply",
        "PortConditions",
        "PortCondition",
    ] {
        builder = builder.message_attribute(
            format!("weft.v1.{name}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default, deny_unknown_fields)]",
        );
    }
    // Few ports have one, and it is as long as all else.
    builder = builder.boxed(".weft.v1.Port.health");
    builder.compile_fds_with_config(descriptors, config)?;
    Ok(())
}
