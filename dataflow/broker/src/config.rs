use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// What a broker is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The host that clients are told to connect to; that of `listen` if absent.
    pub advertised_host: Option<String>,
    /// The port that clients are told to connect to; the one it listens on if absent.
    pub advertised_port: Option<u16>,
    /// Where topics, records and offsets outlive the process; in memory only if absent.
    pub data_dir: Option<PathBuf>,
    /// Whether an acknowledgement waits until what it is about is on the disk. Else it is with the system, and lost where
    /// the machine loses its power within seconds.
    pub fsync: bool,
    /// The memory that record batches may take. Beyond it the oldest leave it: for good where there is no folder.
    pub memory_bytes: usize,
    /// The age at which records of a topic without `retention.ms` may go.
    pub retention_ms: Option<i64>,
    /// The size of a partition beyond which the oldest records may go, for a topic without `retention.bytes`.
    pub retention_bytes: Option<u64>,
    /// Partitions of topics that are created by use; no such creation if absent.
    pub auto_create: Option<i32>,
    /// Where `/ready` and `/live` answer; nowhere if absent.
    pub health: Option<SocketAddr>,
}

impl Default for Config {
    /// A broker on a free port of loopback, in memory.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertised_host: None,
            advertised_port: None,
            data_dir: None,
            fsync: false,
            memory_bytes: 256 << 20,
            retention_ms: Some(7 * 24 * 60 * 60 * 1000),
            retention_bytes: None,
            auto_create: None,
            health: None,
        }
    }
}

impl Config {
    /// The largest request: a batch of the largest size that a topic may ask for, and room beside it.
    pub(crate) fn max_frame(&self) -> usize {
        (self.memory_bytes / 2).clamp(1 << 20, 100 << 20)
    }

    /// The bytes of requests and answers that may be under way at once, before senders have to wait.
    pub(crate) fn in_flight(&self) -> usize {
        self.max_frame().max(self.memory_bytes / 4)
    }
}
