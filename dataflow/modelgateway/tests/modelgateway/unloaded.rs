//! A model that nobody serves: everybody is told so, and soon.
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use seldon_proto::scheduler::model_status_response::ModelOperation;
use seldon_records::{Headers, header};

use crate::{Scene, next, number, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_waited_for_by_the_first_and_then_by_nobody() {
    let mut scene = Scene::new().await;
    let gateway = scene.gateway();
    scene.order("unloaded", ModelOperation::ModelCreate).await;
    let results = scene.reader(&scene.names.model_outputs("unloaded"));
    let errors = scene.reader(&scene.names.errors());
    let ask = async |key: &str, value: i32| {
        let value = request(value);
        scene.write("unloaded", key, Headers::new(), value).await;
    };

    // Its route is on the way.
    scene.models.absent.store(3, Relaxed);
    ask("soon", 1).await;
    assert_eq!(number(&next(&results).await), 2);

    // More than are asked at a time, so that some wait for others.
    scene.models.absent.store(usize::MAX, Relaxed);
    let begin = Instant::now();
    for key in 0..200 {
        ask(&format!("never {key}"), key).await;
    }
    for _ in 0..200 {
        let error = next(&errors).await;
        assert_eq!(error.headers.text(header::STATUS), Some("404"));
        assert_eq!(error.headers.text(header::GRPC_STATUS), Some("5"));
        assert_eq!(error.headers.text(header::ERROR), Some("unloaded"));
        let text = String::from_utf8(error.value.unwrap().to_vec()).unwrap();
        let wanted = "model unloaded is not loaded: load it with seldon model load -f FILE";
        assert_eq!(text, wanted);
    }
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(1_000), "not waited: {took:?}");
    assert!(took < Duration::from_secs(5), "all waited: {took:?}");
    let begin = Instant::now();
    ask("known to be away", 1).await;
    next(&errors).await;
    assert!(begin.elapsed() < Duration::from_secs(1));

    scene.models.absent.store(0, Relaxed);
    ask("loaded", 4).await;
    assert_eq!(number(&next(&results).await), 8);
    gateway.stop().await;
}
