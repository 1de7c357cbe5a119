//! A member of a group.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: StrBytes,
    pub(crate) instance: Option<StrBytes>,
    pub(crate) client: StrBytes,
    pub(crate) protocols: Vec<(StrBytes, Bytes)>,
    pub(crate) assignment: Bytes,
    pub(super) session: Duration,
    pub(super) rebalance: Duration,
    pub(super) heard: Instant,
    pub(super) order: u64,
    pub(super) joining: Option<oneshot::Sender<JoinGroupResponse>>,
    pub(super) syncing: Option<oneshot::Sender<SyncGroupResponse>>,
}

impl Member {
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self
            .protocols
            .iter()
            .find(|(name, _)| name.as_str() == protocol);
        found
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    pub(super) fn knows(&self, protocol: &StrBytes) -> bool {
        self.protocols.iter().any(|(known, _)| known == protocol)
    }

    pub(super) fn waits(&self) -> bool {
        self.joining
            .as_ref()
            .is_some_and(|joining| !joining.is_closed())
            || self
                .syncing
                .as_ref()
                .is_some_and(|syncing| !syncing.is_closed())
    }

    pub(super) fn expires(&self) -> Instant {
        self.heard + self.session
    }
}
