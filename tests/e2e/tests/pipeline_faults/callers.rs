//! Callers that wait for their answers, each with a request of its own.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::outputs::{MARK, mark};

/// Callers' keys are above those of records by topic.
pub(crate) const FIRST_KEY: i64 = 1_000_000;
/// What the callers say that they wait at most.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// What callers got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    pub(crate) asked: i64,
    pub(crate) right: u64,
    pub(crate) wrong: Vec<String>,
    /// Errors of the protocol, by status and text.
    pub(crate) typed: BTreeMap<String, u64>,
    /// Answers that are neither.
    pub(crate) untyped: BTreeMap<String, u64>,
    /// The connection to Envoy failed.
    pub(crate) connection: BTreeMap<String, u64>,
    /// No answer at all within the deadline.
    pub(crate) late: u64,
    pub(crate) slowest: Duration,
}

enum Outcome {
    Right,
    Wrong(String),
    Typed(String),
    Untyped(String),
    Connection(String),
    Late,
}

/// Callers under way.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicI64>,
    answers: Arc<Mutex<Answers>>,
    task: JoinHandle<()>,
}

/// How callers ask.
#[derive(Clone)]
pub(crate) struct Calling {
    pub(crate) target: String,
    pub(crate) pipeline: String,
    pub(crate) rate: f64,
    /// All have this key; each request has the next number.
    pub(crate) key: i64,
    /// If set, all call themselves so.
    pub(crate) request_id: Option<&'static str>,
}

impl Calling {
    /// Asks at a steady rate, whether or not earlier requests were answered.
    pub(crate) fn start(self) -> Callers {
        let stop = Arc::<AtomicBool>::default();
        let asked = Arc::<AtomicI64>::default();
        let answers = Arc::<Mutex<Answers>>::default();
        let (stopped, count, sink) = (stop.clone(), asked.clone(), answers.clone());
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let mut under_way = JoinSet::new();
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let due = start + Duration::from_secs_f64(number as f64 / self.rate);
                tokio::time::sleep_until(due.into()).await;
                let (calling, sink) = (self.clone(), sink.clone());
                under_way.spawn(async move {
                    let begin = Instant::now();
                    let outcome = calling.ask(number).await;
                    lock(&sink).note(outcome, begin.elapsed());
                });
                while under_way.try_join_next().is_some() {}
            }
            under_way.join_all().await;
        });
        Callers {
            stop,
            asked,
            answers,
            task,
        }
    }

    /// Asks once; anything but a right answer is an error.
    pub(crate) async fn one_right(&self) -> Result<()> {
        let mut answers = Answers::default();
        answers.note(self.ask(0).await, Duration::ZERO);
        answers.asked = 1;
        answers.all_right()
    }

    async fn ask(&self, number: i64) -> Outcome {
        let patience = DEADLINE + Duration::from_secs(1);
        match tokio::time::timeout(patience, self.once(number)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Connection(format!("{error:#}")),
            Err(_) => Outcome::Late,
        }
    }

    async fn once(&self, number: i64) -> Result<Outcome> {
        let stream = TcpStream::connect(&self.target).await.context("connect")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let data = json!([self.key, number]);
        let body =
            json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "INT64", "data": data}]});
        let request = http::Request::post(format!("/v2/pipelines/{}/infer", self.pipeline))
            .header("host", &self.target)
            .header("seldon-model", format!("{}.pipeline", self.pipeline))
            .header("content-type", "application/json")
            // Envoy ends the request then, and tells the gateway.
            .header(
                "x-envoy-upstream-rq-timeout-ms",
                DEADLINE.as_millis().to_string(),
            )
            .header(MARK, mark(self.key, number));
        let request = match self.request_id {
            Some(id) => request.header("x-request-id", id),
            None => request,
        };
        let request = request.body(Full::<Bytes>::from(body.to_string()))?;
        let answer = sender.send_request(request).await.context("answer")?;
        let status = answer.status().as_u16();
        let body = answer
            .into_body()
            .collect()
            .await
            .context("body")?
            .to_bytes();
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        let text: String = String::from_utf8_lossy(&body).chars().take(160).collect();
        Ok(match (status, json) {
            (200, Some(json)) if echoes(&json, &data) => Outcome::Right,
            (200, _) => Outcome::Wrong(format!("{data}: {text}")),
            (_, Some(json)) if json["error"].is_string() => {
                Outcome::Typed(format!("{status} {text}"))
            }
            _ => Outcome::Untyped(format!("{status} {text}")),
        })
    }
}

/// Each tensor holds what was asked.
fn echoes(answer: &Value, data: &Value) -> bool {
    let outputs = answer["outputs"].as_array();
    outputs.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["data"] == *data))
}

impl Callers {
    /// How many have a right answer.
    pub(crate) fn right(&self) -> u64 {
        lock(&self.answers).right
    }

    /// How many were told that it cannot be done.
    pub(crate) fn refused(&self) -> u64 {
        lock(&self.answers).typed.values().sum()
    }

    /// Asks no more, waits for what is under way.
    pub(crate) async fn stop(self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        let mut answers = lock(&self.answers).clone();
        answers.asked = self.asked.load(Ordering::Relaxed);
        Ok(answers)
    }
}

impl Answers {
    /// Nothing but right answers.
    pub(crate) fn all_right(&self) -> Result<()> {
        let right = i64::try_from(self.right)?;
        ensure!(right == self.asked, "not all are answered: {self:?}");
        Ok(())
    }

    /// Answers are right, or errors that say what they are, within the deadline.
    pub(crate) fn honest(&self) -> Result<()> {
        ensure!(
            self.late == 0,
            "{} callers had no answer in time",
            self.late
        );
        ensure!(self.wrong.is_empty(), "wrong answers: {:?}", self.wrong);
        ensure!(self.untyped.is_empty(), "untyped: {:?}", self.untyped);
        Ok(())
    }

    /// In a line.
    pub(crate) fn tell(&self, what: &str) {
        println!(
            "{what}: {} callers, {} answered right, {} wrong, {} late, slowest {:.1} s; typed {:?}, untyped {:?}, \
             connection {:?}",
            self.asked,
            self.right,
            self.wrong.len(),
            self.late,
            self.slowest.as_secs_f32(),
            self.typed,
            self.untyped,
            self.connection,
        );
    }

    fn note(&mut self, outcome: Outcome, took: Duration) {
        self.slowest = self.slowest.max(took);
        let count = |of: &mut BTreeMap<String, u64>, text| *of.entry(text).or_default() += 1;
        match outcome {
            Outcome::Right => self.right += 1,
            Outcome::Wrong(text) => self.wrong.push(text),
            Outcome::Typed(text) => count(&mut self.typed, text),
            Outcome::Untyped(text) => count(&mut self.untyped, text),
            Outcome::Connection(text) => count(&mut self.connection, text),
            Outcome::Late => self.late += 1,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
