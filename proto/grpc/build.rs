//! Generates clients and servers for the services; messages come from `seldon-proto`.
use std::io;

/// Every file with a service.
const FILES: [&str; 8] = [
    "mlops/agent/agent.proto",
    "mlops/agent_debug/agent_debug.proto",
    "mlops/chainer/chainer.proto",
    "mlops/health/health.proto",
    "mlops/introspect/introspect.proto",
    "mlops/proxy/proxy.proto",
    "mlops/scheduler/scheduler.proto",
    "mlops/v2_dataplane/v2_dataplane.proto",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=../mlops");
    let descriptors = protox::compile(FILES, [".."]).map_err(io::Error::other)?;
    let packages = [
        ("agent", ".seldon.mlops.agent"),
        ("agent_debug", ".seldon.mlops.agent_debug"),
        ("chainer", ".seldon.mlops.chainer"),
        ("health", ".seldon.mlops.health"),
        ("introspect", ".seldon.mlops.introspect"),
        ("proxy", ".seldon.mlops.proxy"),
        ("scheduler", ".seldon.mlops.scheduler"),
        ("inference", ".inference"),
    ];
    let mut builder = tonic_prost_build::configure();
    for (module, package) in packages {
        builder = builder.extern_path(package, format!("::seldon_proto::{module}"));
    }
    builder.compile_fds(descriptors)
}
