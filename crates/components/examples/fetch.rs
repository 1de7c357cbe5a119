//! Fetches every component and prints where it is.
use seldon_components::{Cache, EnvoyVersion};

fn main() -> anyhow::Result<()> {
    let cache = Cache::open()?;
    for path in [
        cache.envoy(EnvoyVersion::V1_40_0)?,
        cache.rclone()?,
        cache.mlserver()?,
        cache.grpcurl()?,
        cache.tritonclient_python()?,
        cache.envoy(EnvoyVersion::V1_36_4)?,
    ] {
        println!("{}", path.display());
    }
    Ok(())
}
