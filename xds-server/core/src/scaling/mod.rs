//! How many replicas there are to be: of a model by what its agents see of its requests, of a server by what its models
//! need.
mod model;
mod resting;
mod server;

pub(crate) use model::{ModelScaling, follow_spec, has_bounds, take_over, triggered};
pub(crate) use resting::{follow_rest, may_keep_otherwise, may_rest, wake};
pub(crate) use server::{ServerScaling, consider_fewer, consider_more, growing, request, withdraw};

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
