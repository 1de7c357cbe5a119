//! Records written to a pipeline's inputs topic by a client that is none of ours.
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use prost::Message as _;
use seldon_kafka::{Producer, SendError, Settings};
use seldon_proto::inference::{InferTensorContents, ModelInferRequest, model_infer_request};
use seldon_records::{Headers, Outgoing};
use tokio::task::JoinHandle;

use crate::outputs::{MARK, mark};

/// Records that share keys: each key's must stay in order.
pub(crate) const KEYS: i64 = 500;

/// What is to be written, and how fast.
pub(crate) struct Writing {
    pub(crate) topic: String,
    pub(crate) records: i64,
    pub(crate) rate: f64,
}

impl Writing {
    /// Writes in the background; tells how many the broker has.
    pub(crate) fn start(self, settings: &Settings) -> Result<JoinHandle<Result<i64>>> {
        let producer = Producer::new(settings)?;
        Ok(tokio::spawn(self.write(producer)))
    }

    async fn write(self, producer: Producer) -> Result<i64> {
        let start = Instant::now();
        let mut deliveries = Vec::new();
        for number in 0..self.records {
            let due = start + Duration::from_secs_f64(number as f64 / self.rate);
            tokio::time::sleep_until(due.into()).await;
            let record = record(&self.topic, number % KEYS, number / KEYS);
            loop {
                match producer.enqueue(record.clone()) {
                    Ok(delivery) => break deliveries.push(delivery),
                    Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => return Err(error).context("a record cannot be written"),
                }
            }
        }
        let delivered = join_all(deliveries).await;
        for delivery in delivered {
            delivery.context("a record was not written")?;
        }
        Ok(self.records)
    }
}

/// One request: key and number are in its tensor, and in a header that goes with it to the end.
fn record(topic: &str, key: i64, number: i64) -> Outgoing {
    let headers: Headers = [(MARK, mark(key, number))].into_iter().collect();
    Outgoing {
        topic: topic.into(),
        partition: None,
        key: Some(format!("key-{key}").into()),
        value: Some(request(key, number).encode_to_vec().into()),
        headers,
    }
}

fn request(key: i64, number: i64) -> ModelInferRequest {
    let contents = InferTensorContents {
        int64_contents: vec![key, number],
        ..Default::default()
    };
    ModelInferRequest {
        inputs: vec![model_infer_request::InferInputTensor {
            name: "x".to_owned(),
            datatype: "INT64".to_owned(),
            shape: vec![1, 2],
            contents: Some(contents),
            ..Default::default()
        }],
        ..Default::default()
    }
}
