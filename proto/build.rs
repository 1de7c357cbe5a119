//! Compiles the `.proto` files beside this crate, without a system `protoc`.
use std::{env, fs, io, path::PathBuf};

use prost::Message as _;

/// Every file; `apis/` is a link to this folder, so that documented `grpcurl` commands find them.
const FILES: [&str; 11] = [
    "mlops/agent/agent.proto",
    "mlops/agent_debug/agent_debug.proto",
    "mlops/chainer/chainer.proto",
    "mlops/health/health.proto",
    "mlops/introspect/introspect.proto",
    "mlops/proxy/proxy.proto",
    "mlops/scheduler/scheduler.proto",
    "mlops/scheduler/storage.proto",
    "mlops/v2_dataplane/v2_dataplane.proto",
    "mlops/v2_dataplane/schema_registry/infer_request.proto",
    "mlops/v2_dataplane/schema_registry/infer_response.proto",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=mlops");
    let descriptors = protox::compile(FILES, ["."]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    prost_build::Config::new()
        .bytes([
            ".inference.ModelInferRequest.raw_input_contents",
            ".inference.ModelInferResponse.raw_output_contents",
        ])
        .btree_map([".seldon.mlops"])
        .enable_type_names()
        .compile_fds(descriptors)
}
