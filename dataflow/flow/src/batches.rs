//! Batches: requests that are sent to a model as one.
use std::sync::Arc;

use bytes::Bytes;
use seldon_records::{Headers, Identity, Visits, header};

use crate::{
    Emit, Input, Place,
    graph::{Batch, Step},
    members::{Member, write_members},
    rows,
    timers::Due,
    write::{self, Ready},
};

/// Kafka's default for the largest message is 1 MB, and a batch's members travel in its headers besides.
const MOST_BYTES: usize = 512 << 10;

/// A batch that is not full.
#[derive(Debug)]
pub struct Open {
    members: Vec<(Ready, usize)>,
    bytes: usize,
    pub due: Due,
}

/// What becomes of a request at a step that batches.
#[derive(Debug)]
pub enum Batched {
    /// It waits with others.
    Waits,
    /// The batch is full now.
    Full,
    /// It fits to none, and is sent as it is.
    Alone(Box<Ready>),
}

impl Open {
    pub fn new(due: Due) -> Self {
        Self {
            members: Vec::new(),
            bytes: 0,
            due,
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn add(&mut self, batch: Batch, ready: Ready, rows: usize) -> Batched {
        if let Some((first, _)) = self.members.first()
            && !rows::fit(&first.message, &ready.message)
        {
            return Batched::Alone(Box::new(ready));
        }
        self.bytes += size(&ready);
        self.members.push((ready, rows));
        if self.members.len() >= batch.size || self.bytes >= MOST_BYTES {
            Batched::Full
        } else {
            Batched::Waits
        }
    }

    /// What its members follow from, and where that waits.
    pub fn places(&self) -> impl Iterator<Item = &(Arc<Input>, Place)> {
        self.members.iter().flat_map(|(ready, _)| &ready.places)
    }

    /// As one record; one that is alone stays as it is.
    pub fn close(mut self, step: &Step, pipeline: &str, version: u32) -> Vec<Emit> {
        if self.members.len() < 2 {
            return self
                .members
                .into_iter()
                .map(|(ready, _)| write::emit(step, ready))
                .collect();
        }
        let messages = self
            .members
            .iter()
            .map(|(ready, _)| ready.message.clone())
            .collect();
        let Ok(message) = rows::stack(messages) else {
            return self
                .members
                .into_iter()
                .map(|(ready, _)| write::emit(step, ready))
                .collect();
        };
        let mut headers = Headers::new();
        let identity = self.identity(step);
        let repeat = self
            .members
            .iter()
            .any(|(ready, _)| ready.headers.has(header::REPEAT));
        write::sign(
            &mut headers,
            pipeline,
            Some(version),
            &identity,
            &Visits::default(),
            repeat,
        );
        headers.set(header::REQUEST_ID, identity.as_str().to_owned());
        if let Some(deadline) = self.deadline() {
            headers.set(header::DEADLINE, deadline.to_string());
        }
        let mut causes = Vec::new();
        for cause in self
            .members
            .iter_mut()
            .flat_map(|(ready, _)| ready.causes.drain(..))
        {
            if !causes.iter().any(|known| Arc::ptr_eq(known, &cause)) {
                causes.push(cause);
            }
        }
        let members: Vec<Member> = self
            .members
            .into_iter()
            .map(|(ready, rows)| Member {
                key: ready.key,
                headers: ready.headers,
                rows,
            })
            .collect();
        headers.set(header::BATCH, write_members(&members));
        let key = Some(Bytes::from(identity.as_str().to_owned()));
        vec![write::emit(
            step,
            Ready {
                key,
                headers,
                message,
                causes,
                places: Vec::new(),
            },
        )]
    }

    fn identity(&self, step: &Step) -> Identity {
        let mut parts: Vec<&[u8]> = vec![step.name.as_bytes()];
        for (ready, _) in &self.members {
            for name in [header::ID, header::VISITS] {
                parts.push(ready.headers.get(name).map_or(&[], |value| value));
            }
        }
        Identity::derived(&parts)
    }

    /// The last one: each caller's own time limit is its gateway's matter. One without any has none.
    fn deadline(&self) -> Option<i64> {
        let deadlines = self
            .members
            .iter()
            .map(|(ready, _)| ready.headers.text(header::DEADLINE)?.parse::<i64>().ok());
        deadlines.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

fn size(ready: &Ready) -> usize {
    let headers: usize = ready
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    prost::Message::encoded_len(&ready.message) + headers
}
