//! What the state of a model's replica means.
use ReplicaState::*;
pub(crate) use seldon_proto::scheduler::model_replica_status::ModelReplicaState as ReplicaState;

/// A request may be sent there.
pub(crate) fn can_receive_traffic(state: ReplicaState) -> bool {
    matches!(state, Loaded | Available | LoadedUnavailable | Draining)
}

/// Ready for requests and meant to stay.
pub(crate) fn is_loaded(state: ReplicaState) -> bool {
    matches!(state, Loaded | Available | LoadedUnavailable)
}

pub(crate) fn is_loading(state: ReplicaState) -> bool {
    matches!(state, LoadRequested | Loading)
}

pub(crate) fn is_loading_or_loaded(state: ReplicaState) -> bool {
    is_loading(state) || is_loaded(state)
}

pub(crate) fn is_unloading(state: ReplicaState) -> bool {
    matches!(state, UnloadEnvoyRequested | UnloadRequested | Unloading)
}

/// Nothing more will happen there by itself.
pub(crate) fn is_inactive(state: ReplicaState) -> bool {
    matches!(state, Unloaded | UnloadFailed | Unknown | LoadFailed)
}

/// Memory is booked: it holds the model, is about to, or may still.
pub(crate) fn holds_memory(state: ReplicaState) -> bool {
    !matches!(state, Unloaded | Unknown | LoadFailed)
}

/// Someone else must act for it to go on, within a deadline.
pub(crate) fn is_transient(state: ReplicaState) -> bool {
    matches!(
        state,
        LoadRequested | Loading | UnloadRequested | Unloading | Draining
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_are_those_documented() {
        let all: Vec<ReplicaState> = (0..=12)
            .filter_map(|n| ReplicaState::try_from(n).ok())
            .collect();
        assert_eq!(all.len(), 13);
        let of = |rule: fn(ReplicaState) -> bool| {
            all.iter().copied().filter(|s| rule(*s)).collect::<Vec<_>>()
        };
        assert_eq!(
            of(can_receive_traffic),
            [Loaded, Available, LoadedUnavailable, Draining]
        );
        assert_eq!(
            of(is_loading_or_loaded),
            [LoadRequested, Loading, Loaded, Available, LoadedUnavailable]
        );
        assert_eq!(
            of(is_unloading),
            [UnloadRequested, Unloading, UnloadEnvoyRequested]
        );
        assert_eq!(
            of(is_inactive),
            [Unknown, LoadFailed, Unloaded, UnloadFailed]
        );
    }
}
