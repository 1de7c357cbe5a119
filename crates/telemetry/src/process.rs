//! What a process is called among others, and how it learns that it is to end.
use std::{
    hash::{BuildHasher, RandomState},
    io,
    sync::OnceLock,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The host's name and a random number: another in each process, the same for as long as it runs.
pub fn process_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = match host.trim() {
            "" => "host",
            host => host,
        };
        let random = RandomState::new().hash_one(std::process::id());
        format!("{host}-{:08x}", random >> 32)
    })
}

/// A token that SIGTERM and SIGINT cancel. Must be called inside a tokio runtime.
pub fn told_to_stop() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_each_time_and_ends_in_a_number() {
        let name = process_name();
        assert_eq!(name, process_name());
        let (host, number) = name.rsplit_once('-').unwrap_or_default();
        assert!(
            !host.is_empty() && u32::from_str_radix(number, 16).is_ok(),
            "{name}"
        );
    }
}
