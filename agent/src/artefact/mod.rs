//! From a `storageUri` to a folder on this machine.
mod fetch;
mod process;
mod rclone;
mod remotes;
mod storage;
pub mod uri;

pub use fetch::{Artefacts, FetchError, Fetched, Settings};
pub use process::{Own, start};
pub use rclone::{Endpoint, Rclone, RcloneError};
pub use remotes::Remotes;
pub use storage::{Storage, StorageError};
pub use uri::redacted;
