//! Messages of the control and data planes, compiled from the `.proto` files beside this crate.
//!
//! This crate holds plain data only; clients and servers are in `seldon-grpc`, so that pure crates can use the
//! messages without an async runtime.
#![allow(missing_docs, clippy::all)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

pub mod scheduler {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.scheduler.rs"));
}
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.agent.rs"));
}
pub mod agent_debug {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.agent_debug.rs"));
}
pub mod chainer {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.chainer.rs"));
}
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.health.rs"));
}
pub mod introspect {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.introspect.rs"));
}
pub mod proxy {
    include!(concat!(env!("OUT_DIR"), "/seldon.mlops.proxy.rs"));
}
/// The Open Inference Protocol.
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
/// Request and response as schema registries hold them.
pub mod inference_schema {
    include!(concat!(env!("OUT_DIR"), "/inference_schema.rs"));
}

/// All files as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The same descriptors for dynamic messages, such as protobuf's JSON form.
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("the build script wrote these descriptors")
});
