//! Spans by OTLP. The exporter is the process's own, so this is a test binary of its own.
#![allow(clippy::unwrap_used)] // a test may
mod support;

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind},
};
use seldon_agent_proxy::Limits;
use seldon_proto::inference::ModelInferRequest;
use support::World;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Takes spans as a collector does.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let service = format!("{:?}", resource.resource);
            for scope in resource.scope_spans {
                spans.extend(scope.spans.into_iter().map(|span| (service.clone(), span)));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_span_between_the_caller_and_the_server() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tracing.json");
    let config = serde_json::json!({"otelExporterEndpoint": address.to_string(), "otelExporterProtocol": "grpc"});
    std::fs::write(&file, config.to_string()).unwrap();
    let telemetry = seldon_telemetry::init("proxy-test", "info", Some(&file)).unwrap();

    let world = World::start(Limits::default()).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let caller = ("traceparent", parent.as_str());
    let (status, ..) = world
        .ask(
            "GET",
            "/v2/models/any/ready",
            &[("seldon-internal-model", "iris_1"), caller],
        )
        .await;
    assert_eq!(status, 200);
    let (status, ..) = world
        .ask(
            "GET",
            "/v2/models/any/ready",
            &[("seldon-internal-model", "broken_1"), caller],
        )
        .await;
    assert_eq!(status, 503);
    // In OpenAI's language too, and where nothing reaches the server.
    let (status, ..) = world
        .ask(
            "POST",
            "/v2/models/any/infer/completions",
            &[("seldon-internal-model", "echo_1"), caller],
        )
        .await;
    assert_eq!(status, 400);
    let mut request = Request::new(ModelInferRequest::default());
    for (name, value) in [("seldon-internal-model", "iris_1"), caller] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    world.grpc().await.model_infer(request).await.unwrap();
    let upstream = world.seen.metadata.lock().unwrap().clone().unwrap();
    let upstream = upstream
        .get("traceparent")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();

    // Dropping exports what waits, and blocks until it has.
    tokio::task::spawn_blocking(move || drop(telemetry))
        .await
        .unwrap();
    let spans = collector.0.lock().unwrap().clone();
    assert_eq!(spans.len(), 4, "{spans:?}");
    for (service, span) in &spans {
        assert!(service.contains("proxy-test"), "{service}");
        assert_eq!(span.name, "seldon-rproxy");
        assert_eq!(span.kind, i32::from(SpanKind::Server));
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.into(), PARENT.into())
        );
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    }
    let failed = spans
        .iter()
        .filter(|(_, span)| span.status.as_ref().is_some_and(|status| status.code == 2));
    assert_eq!(failed.count(), 1);
    assert!(
        spans
            .iter()
            .any(|(_, span)| upstream == format!("00-{TRACE}-{}-01", hex(&span.span_id))),
        "{upstream} names none of {spans:?}"
    );
}
