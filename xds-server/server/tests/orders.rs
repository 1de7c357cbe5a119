//! Orders to workers on real sockets, with a store that takes its time.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use std::{sync::mpsc, time::Duration};

use common::{PATIENCE, channel, options, socket};
use seldon_core::Record;
use seldon_grpc::{
    chainer::chainer_client::ChainerClient, scheduler::scheduler_client::SchedulerClient,
};
use seldon_proto::{
    chainer::PipelineSubscriptionRequest,
    scheduler::{LoadPipelineRequest, Pipeline, PipelineStep},
};
use seldon_scheduler::{
    sockets::Sockets,
    store::{Store, StoreError, Write},
    system::run,
};
use tokio::{sync::mpsc::UnboundedSender, time::timeout};
use tokio_util::sync::CancellationToken;

/// Says that it begins to write, and is done when it is told so.
struct Slow {
    begins: UnboundedSender<()>,
    done: mpsc::Receiver<()>,
}

impl Store for Slow {
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
        Ok(None)
    }

    fn commit(&mut self, _: &[Write]) -> Result<(), StoreError> {
        let _ = self.begins.send(());
        let _ = self.done.recv();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_is_told_of_a_pipeline_once_it_is_stored() {
    let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let (finish, done) = mpsc::channel();
    let [(xds, _), (scheduler, api), (dataflow, engines), (health, _)] = [
        socket().await,
        socket().await,
        socket().await,
        socket().await,
    ];
    let options = options(Slow { begins, done });
    let sockets = Sockets {
        xds,
        scheduler: Some(scheduler),
        scheduler_mtls: None,
        agents: None,
        agents_mtls: None,
        dataflow: Some(dataflow),
        health,
    };
    let stop = CancellationToken::new();
    let system = tokio::spawn(run(options, sockets, stop.clone()));

    let request = PipelineSubscriptionRequest {
        name: "engine-0".into(),
    };
    let mut engine = ChainerClient::new(channel(engines).await);
    let mut orders = engine
        .subscribe_pipeline_updates(request)
        .await
        .unwrap()
        .into_inner();
    let mut client = SchedulerClient::new(channel(api).await);
    let load = tokio::spawn(async move {
        let step = PipelineStep {
            name: "a".into(),
            ..Default::default()
        };
        let pipeline = Pipeline {
            name: "p".into(),
            steps: vec![step],
            ..Default::default()
        };
        let pipeline = Some(pipeline);
        client.load_pipeline(LoadPipelineRequest { pipeline }).await
    });
    timeout(PATIENCE, begun.recv()).await.unwrap().unwrap();
    let early = timeout(Duration::from_millis(200), orders.message()).await;
    assert!(early.is_err(), "ahead of the store: {early:?}");
    assert!(!load.is_finished());
    finish.send(()).unwrap();
    let order = timeout(PATIENCE, orders.message()).await.unwrap();
    assert_eq!(order.unwrap().unwrap().pipeline, "p");
    timeout(PATIENCE, load).await.unwrap().unwrap().unwrap();
    drop(finish);
    stop.cancel();
    timeout(PATIENCE, system).await.unwrap().unwrap().unwrap();
}
