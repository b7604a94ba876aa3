//! Compiles the `.proto` files with protox, so that nobody needs a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/stream.proto",
        "proto/membership.proto",
        "proto/replication.proto",
        "proto/routing.proto",
        "proto/state.proto",
        "proto/coordination.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
