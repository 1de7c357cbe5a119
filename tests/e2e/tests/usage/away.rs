//! No address, addresses that do not answer, and encrypted ones.
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Channel, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use seldon_e2e::Certificates;
use seldon_e2e::faults::Fault;
use seldon_local::{Component, Config, System};

use crate::process::{Receiver, hodometer, scheduler};

pub(crate) const CASES: &[Fault] = &[
    ("usage_is_off_without_an_address", off),
    ("usage_goes_on_beside_addresses_that_fail", fails),
    ("usage_waits_for_a_scheduler_that_comes_later", later),
    ("usage_is_read_and_published_with_tls", encrypted),
    ("usage_settings_that_make_no_sense_are_named", refused),
];

/// Runs a case beside a scheduler, which is stopped however it ends.
fn beside(
    change: impl FnOnce(&mut Config) + Send + 'static,
    case: impl FnOnce(&System) -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let system = runtime.block_on(scheduler(change))?;
    let result = case(&system);
    runtime.block_on(system.stop());
    result
}

fn free() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn off() -> Result<()> {
    beside(
        |_| (),
        |system| {
            // In the scheduler's place, to see that it is not even asked.
            let (listener, port) = free()?;
            listener.set_nonblocking(true)?;
            let process = hodometer(
                system,
                &[
                    ("SCHEDULER_PLAINTXT_PORT", port.to_string()),
                    ("PUBLISH_URL", String::new()),
                    ("EXTRA_PUBLISH_URLS", " , ".to_owned()),
                    ("PUBLISH_INTERVAL_SECONDS", "1".to_owned()),
                ],
            )?;
            let line = process.says("usage metrics are off")?;
            ensure!(line.contains("PUBLISH_URL"), "{line}");
            // It is there until it is told to end.
            let status = process.end()?;
            ensure!(status.success(), "{status}");
            let asked = listener.accept();
            ensure!(asked.is_err(), "somebody connected: {asked:?}");
            Ok(())
        },
    )
}

fn fails() -> Result<()> {
    beside(
        |_| (),
        |system| {
            let receiver = Receiver::start(system)?;
            // One takes connections and never answers; at the other nobody listens.
            let (_silent, silent) = free()?;
            let (gone, port) = free()?;
            drop(gone);
            let nobody = format!("http://127.0.0.1:{port}/?key=secret");
            let process = hodometer(
                system,
                &[
                    ("PUBLISH_URL", format!("http://127.0.0.1:{silent}")),
                    ("EXTRA_PUBLISH_URLS", format!("{nobody},{}", receiver.url())),
                    ("PUBLISH_INTERVAL_SECONDS", "1".to_owned()),
                    ("PUBLISH_TIMEOUT_SECONDS", "1".to_owned()),
                ],
            )?;
            receiver.properties(4)?;
            let failures = process.said("not published");
            let told = |words: &str| failures.iter().filter(|line| line.contains(words)).count();
            ensure!(told("no answer within 1 s") == 1, "{failures:?}");
            ensure!(told("refused") == 1, "{failures:?}");
            ensure!(failures.len() == 2, "{failures:?}");
            // An address may hold a secret.
            ensure!(process.said("secret").is_empty());
            let status = process.end()?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    )
}

fn later() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let system = runtime.block_on(scheduler(|_| ()))?;
    let result = (|| {
        system.kill(Component::Scheduler, seldon_local::Signal::SIGKILL)?;
        let receiver = Receiver::start(&system)?;
        let process = hodometer(&system, &[("PUBLISH_URL", receiver.url())])?;
        process.says("the scheduler does not answer")?;
        ensure!(receiver.events()?.is_empty());
        runtime.block_on(system.restart(Component::Scheduler))?;
        ensure!(receiver.properties(1)?["server_count"] == 0);
        ensure!(process.said("does not answer").len() == 1);
        ensure!(process.end()?.success());
        Ok(())
    })();
    runtime.block_on(system.stop());
    result
}

fn refused() -> Result<()> {
    beside(
        |_| (),
        |system| {
            for (name, value, words) in [
                ("PUBLISH_URL", "here:8001", "no http:// or https:// address"),
                ("METRICS_LEVEL", "everything", "cluster, resource, feature"),
                (
                    "PUBLISH_INTERVAL_SECONDS",
                    "0",
                    "--publish-interval-seconds",
                ),
                ("CONTROL_PLANE_SECURITY_PROTOCOL", "TLS", "PLAINTEXT or SSL"),
            ] {
                let address = ("PUBLISH_URL", "http://127.0.0.1:1".to_owned());
                let process = hodometer(system, &[address, (name, value.to_owned())])?;
                let status = process.ended_saying(words)?;
                ensure!(!status.success(), "{name}={value}: {status}");
            }
            Ok(())
        },
    )
}

/// Takes one request with TLS and answers it as MixPanel does; sends on what came.
fn listener(certificates: &Certificates) -> Result<(u16, Channel<String>)> {
    let key = PrivateKeyDer::from_pem_file(&certificates.key)?;
    let chain = CertificateDer::pem_file_iter(&certificates.certificate)?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    let config = Arc::new(config);
    let (listener, port) = free()?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = ServerConnection::new(config.clone());
            let Ok(connection) = connection else { return };
            // A peer that does not trust us ends the handshake.
            let Ok(request) = one(StreamOwned::new(connection, stream)) else {
                continue;
            };
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    Ok((port, receiver))
}

fn one(mut stream: StreamOwned<ServerConnection, TcpStream>) -> Result<String> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // The body is a list, which ends the request.
    while !request.ends_with(b"}]") {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "it ended early");
        request.extend_from_slice(&buffer[..read]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1")?;
    stream.flush()?;
    Ok(String::from_utf8(request)?)
}

fn encrypted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let path = |file: &std::path::Path| file.display().to_string();
    let files = [
        ("KEY", path(&certificates.key)),
        ("CRT", path(&certificates.certificate)),
        ("CA", path(&certificates.authority)),
    ];
    let side = |side: &str| {
        let files = files.clone().into_iter();
        let files = files.map(|(what, file)| (format!("{side}_TLS_{what}_LOCATION"), file));
        let ssl = (
            "CONTROL_PLANE_SECURITY_PROTOCOL".to_owned(),
            "SSL".to_owned(),
        );
        files.chain([ssl]).collect::<Vec<_>>()
    };
    let own = side("CONTROL_PLANE_SERVER");
    let change = move |config: &mut Config| {
        // The Envoy of the plan never runs: two of its ports are the scheduler's with TLS.
        let spare = config.ports.envoys[0].clone();
        let arguments = config.args.entry("scheduler".to_owned()).or_default();
        arguments.push(format!("--scheduler-mtls-port={}", spare.data));
        arguments.push(format!("--agent-mtls-port={}", spare.status));
        let variables = config.env.entry("scheduler".to_owned()).or_default();
        variables.extend(own);
    };
    beside(change, |system| {
        let (port, requests) = listener(&certificates)?;
        let tls = side("CONTROL_PLANE_CLIENT");
        let mut variables: Vec<(&str, String)> = tls
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        variables.extend([
            // Nobody is there, so that what arrives came by TLS.
            ("SCHEDULER_PLAINTXT_PORT", "1".to_owned()),
            (
                "SCHEDULER_TLS_PORT",
                system.ports().envoys[0].data.to_string(),
            ),
            ("PUBLISH_URL", format!("https://localhost:{port}/own")),
            ("SSL_CERT_FILE", path(&certificates.authority)),
        ]);
        let process = hodometer(system, &variables)?;
        let request = requests.recv_timeout(Duration::from_secs(20));
        let request = request.with_context(|| process.said("").join("\n"))?;
        ensure!(request.starts_with("POST /own HTTP/1.1\r\n"), "{request}");
        ensure!(request.contains(r#""model_count":0"#), "{request}");
        process.says("published")?;
        ensure!(process.end()?.success());

        // The same listener, whose authority nobody has vouched for.
        let strange = tempfile::tempdir()?;
        let strange = Certificates::make(strange.path())?;
        let process = {
            let trusted = ("SSL_CERT_FILE", path(&strange.authority));
            variables.retain(|(name, _)| *name != "SSL_CERT_FILE");
            variables.push(trusted);
            hodometer(system, &variables)?
        };
        let failure = process.says("not published")?;
        ensure!(failure.contains("certificate"), "{failure}");
        ensure!(requests.try_recv().is_err(), "it was sent all the same");
        ensure!(process.end()?.success());
        Ok(())
    })
}
