//! The scheduler's rules: `step(state, event, now) → effects`.
//!
//! No I/O, no clock, no async: whoever owns a [`State`] feeds it [`Event`]s together with the time and carries out
//! the [`Effect`]s it gets back. Every outcome of an effect returns as another event. Choices are deterministic.
mod effect;
mod event;
mod view;

pub use effect::{Effect, Record, Refusal};
pub use event::{AgentKey, Event, Generation, Now, StreamId};
pub use view::{Endpoint, ReplicaSet, Route, Split};
