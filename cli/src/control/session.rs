//! A connection to the scheduler, and what is common to its calls.
use std::time::Duration;

use anyhow::{Context as _, Result};
use prost::{Message, Name};
use seldon_grpc::{
    introspect::introspect_client::IntrospectClient, scheduler::scheduler_client::SchedulerClient,
};
use seldon_inference::to_protojson;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::{
    args::Control,
    connect::{self, Address},
    errors::{RpcError, WaitTimeout},
    output,
};

/// How this command calls itself.
pub(crate) const SUBSCRIBER: &str = "seldon CLI";

/// An open connection.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) client: SchedulerClient<Channel>,
    pub(crate) introspect: IntrospectClient<Channel>,
    verbose: bool,
    address: Address,
}

/// What a look at a resource showed.
pub(crate) enum Seen<T> {
    /// The state waited for.
    Done(T),
    /// Another one, in words.
    NotYet(String),
}

impl Session {
    pub(crate) async fn open(control: &Control) -> Result<Self> {
        let (channel, address) = connect::scheduler(&control.host).await?;
        Ok(Self {
            client: SchedulerClient::new(channel.clone()),
            introspect: IntrospectClient::new(channel),
            verbose: control.verbose,
            address,
        })
    }

    /// Prints a request where the user wants to see it.
    pub(crate) fn show<M: Message + Name>(&self, message: &M) -> Result<()> {
        if self.verbose {
            output::line(to_protojson(message)?)
        } else {
            Ok(())
        }
    }

    /// Takes the answer of a change; printed on demand, or always as the documentation shows for some commands.
    pub(crate) fn answer<M: Message + Name>(
        &self,
        answer: Result<Response<M>, Status>,
        always: bool,
    ) -> Result<()> {
        let told = |status| failed(&self.address, status);
        let answer = answer.map_err(told)?.into_inner();
        if always {
            output::line(to_protojson(&answer)?)
        } else {
            self.show(&answer)
        }
    }

    /// Takes an answer that is to be looked at.
    pub(crate) fn taken<M>(&self, answer: Result<Response<M>, Status>) -> Result<M> {
        let told = |status| failed(&self.address, status);
        Ok(answer.map_err(told)?.into_inner())
    }

    /// The first message of a stream: the answer about one named object.
    pub(crate) async fn first<M>(&self, answer: Streamed<M>, name: &str) -> Result<M> {
        let told = |status| failed(&self.address, status);
        let mut stream = answer.map_err(told)?.into_inner();
        let message = stream.message().await.map_err(told)?;
        message.with_context(|| format!("the scheduler told nothing about {name}"))
    }

    /// All messages of a stream.
    pub(crate) async fn collect<M>(&self, answer: Streamed<M>) -> Result<Vec<M>> {
        let told = |status| failed(&self.address, status);
        let mut stream = answer.map_err(told)?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await.map_err(told)? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// Gives an answer no longer than the user would wait.
    pub(crate) async fn within<T>(
        &self,
        seconds: u64,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match timeout_at(after(seconds), answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self
                .address
                .silent(format_args!("nothing within {seconds} s (--timeout-secs)"))),
        }
    }

    /// Looks again and again until the state is there or the time is over.
    pub(crate) async fn wait<T>(
        &self,
        kind: &'static str,
        seconds: u64,
        mut look: impl AsyncFnMut() -> Result<Seen<T>>,
    ) -> Result<T> {
        let deadline = after(seconds);
        let mut pause = Duration::from_millis(50);
        let mut last = String::new();
        loop {
            match timeout_at(deadline, look()).await {
                Ok(Ok(Seen::Done(found))) => return Ok(found),
                Ok(Ok(Seen::NotYet(seen))) => last = seen,
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    if last.is_empty() {
                        let silent = format_args!("nothing within {seconds} s (--timeout-secs)");
                        last = self.address.silent(silent).to_string();
                    }
                    return Err(WaitTimeout { kind, seen: last }.into());
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(WaitTimeout { kind, seen: last }.into());
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

type Streamed<M> = Result<Response<Streaming<M>>, Status>;

fn after(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds.min(u64::from(u32::MAX)))
}

/// Tells a refusal from a connection that was lost: only the latter has a cause on this side.
pub(crate) fn failed(address: &Address, status: Status) -> anyhow::Error {
    let lost = std::error::Error::source(&status).is_some();
    let error = RpcError(status);
    if lost {
        address.silent(error)
    } else {
        error.into()
    }
}
