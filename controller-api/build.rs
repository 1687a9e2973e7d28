//! Generates the client of etcd from `etcd/etcd.proto`. `protox` parses the file, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=etcd/etcd.proto");
    let descriptors = protox::compile(["etcd.proto"], ["etcd"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
