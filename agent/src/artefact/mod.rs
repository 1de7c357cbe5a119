//! From a `storageUri` to a folder on this machine.
mod disk;
mod downloads;
mod fetch;
mod keep;
mod names;
mod process;
mod rclone;
mod remotes;
mod secrets;
mod storage;
pub mod uri;

pub use downloads::Fetched;
pub use fetch::{Artefacts, FetchError, Settings};
pub use keep::Bounds;
pub use process::{Own, start};
pub use rclone::{Endpoint, Rclone, RcloneError};
pub use remotes::Remotes;
pub use secrets::Secrets;
pub use storage::{Storage, StorageError};
pub use uri::redacted;
