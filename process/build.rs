//! Generates the services of the wire contract over the messages of `weft-proto`. `protox` parses the files, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = "../proto";
    let files = ["host", "node", "intent"].map(|name| format!("weft/v1/{name}.proto"));
    println!("cargo:rerun-if-changed={contract}/weft/v1");
    let descriptors = protox::compile(&files, [contract])?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::StrictCodec")
        .extern_path(".weft.v1", "::weft_proto::v1")
        .compile_fds(descriptors)?;
    Ok(())
}
