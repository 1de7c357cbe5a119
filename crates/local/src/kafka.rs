//! A real Kafka for tests: controller and broker in one JVM, its data in a folder that goes with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use seldon_components::{Cache, Kafka};

use crate::process::{Launch, Process};

/// The longest that a start may take.
const START: Duration = Duration::from_secs(90);
/// Looked at this often while waiting.
const LOOK: Duration = Duration::from_millis(50);

/// What TLS asks of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The server shows a certificate.
    Server,
    /// Clients show theirs too.
    Mutual,
}

/// What a Kafka is started with: by default, a plaintext listener only.
#[derive(Clone, Debug, Default)]
pub struct Options {
    properties: BTreeMap<String, String>,
    users: Vec<(String, String)>,
    tls: Option<Tls>,
}

impl Options {
    /// Sets a property of the server; it beats what would be there.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a user, and with the first one a SASL listener for PLAIN, SCRAM, and OAUTHBEARER with unsigned tokens.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Adds a TLS listener, and where there are users one of SASL over TLS.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }
}

/// The listeners and their ports.
#[derive(Clone, Debug)]
struct Listeners {
    plain: u16,
    controller: u16,
    sasl: Option<u16>,
    tls: Option<u16>,
    sasl_tls: Option<u16>,
}

/// A running Kafka; dropped, it is killed and its data is removed.
#[derive(Debug)]
pub struct RealKafka {
    kafka: Kafka,
    listeners: Listeners,
    bootstrap: String,
    process: Option<Process>,
    folder: tempfile::TempDir,
}

impl RealKafka {
    /// Starts a Kafka, and waits until it answers. Blocks.
    pub fn start(cache: &Cache, options: Options) -> Result<Self> {
        let kafka = cache.kafka()?;
        let folder = tempfile::Builder::new().prefix("seldon-kafka-").tempdir()?;
        let listeners = Listeners::free(&options)?;
        if options.tls.is_some() {
            certificates(folder.path())?;
        }
        let text = properties(&options, &listeners, folder.path());
        fs::write(folder.path().join("server.properties"), text)?;
        let bootstrap = format!("localhost:{}", listeners.plain);
        let mut this = Self {
            kafka,
            listeners,
            bootstrap,
            process: None,
            folder,
        };
        this.format(&options.users)?;
        this.restart()?;
        Ok(this)
    }

    /// The plaintext listener's address.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The address for SASL without TLS, if there are users.
    pub fn sasl(&self) -> Option<String> {
        self.listeners.sasl.map(|port| format!("localhost:{port}"))
    }

    /// The address for TLS, if it was asked for.
    pub fn tls(&self) -> Option<String> {
        self.listeners.tls.map(|port| format!("localhost:{port}"))
    }

    /// The address for SASL over TLS, if there are users and TLS.
    pub fn sasl_tls(&self) -> Option<String> {
        self.listeners
            .sasl_tls
            .map(|port| format!("localhost:{port}"))
    }

    /// A file for a client of the TLS listeners: `ca.crt`, `client.crt` or `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("tls").join(name)
    }

    /// The id of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Kills it as a crash would; returns when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Asks it to end; returns when it has.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(process) = self.process.take() else {
            return Ok(());
        };
        process.signal(signal)?;
        let start = Instant::now();
        while process.exit_status().is_none() {
            ensure!(start.elapsed() < START, "kafka does not end");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Starts it again on the same ports and data, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)?;
        let (program, mut args) = self.kafka.program();
        args.push("-Xmx512m".to_owned());
        args.push("kafka.Kafka".to_owned());
        args.push(
            self.folder
                .path()
                .join("server.properties")
                .display()
                .to_string(),
        );
        let log = self.folder.path().join("kafka.log");
        let launch = Launch {
            program,
            args,
            env: BTreeMap::new(),
            folder: self.folder.path().to_owned(),
            log: log.clone(),
            shared_memory: None,
        };
        let process = Process::start(&launch)?;
        let start = Instant::now();
        while !answers(self.listeners.plain) {
            if process.exit_status().is_some() || start.elapsed() > START {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = said.lines().collect();
                bail!(
                    "kafka does not answer: {}",
                    lines[lines.len().saturating_sub(12)..].join("\n")
                );
            }
            std::thread::sleep(LOOK);
        }
        self.process = Some(process);
        Ok(())
    }

    /// Prepares the folder; users of SCRAM are written here.
    fn format(&self, users: &[(String, String)]) -> Result<()> {
        let mut command: Command = self.kafka.java();
        // Any 16 bytes in base64 that do not begin with a dash.
        let id = format!("{:0>21}A", format!("{:x}", std::process::id()));
        command.args([
            "-Dkafka.log=error",
            "kafka.tools.StorageTool",
            "format",
            "-t",
            &id,
            "-c",
        ]);
        command.arg(self.folder.path().join("server.properties"));
        for (name, password) in users {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                command.args([
                    "--add-scram",
                    &format!("{mechanism}=[name={name},password={password}]"),
                ]);
            }
        }
        let done = command.output().context("cannot run java")?;
        ensure!(
            done.status.success(),
            "kafka cannot format its folder: {}",
            String::from_utf8_lossy(&done.stdout)
        );
        Ok(())
    }
}

impl Listeners {
    /// Takes ports below those that the kernel hands to outgoing connections: they have to be free for a restart. None is
    /// given twice, since several may be started at once.
    fn free(options: &Options) -> Result<Self> {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        let mut next = || -> Result<u16> {
            for _ in 0..2000 {
                let place = std::process::id() % 1000 * 12 + GIVEN.fetch_add(1, Ordering::Relaxed);
                let port = 20_000 + (place % 12_000) as u16;
                if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                    return Ok(port);
                }
            }
            bail!("no free port")
        };
        let users = !options.users.is_empty();
        Ok(Self {
            plain: next()?,
            controller: next()?,
            sasl: users.then(&mut next).transpose()?,
            tls: options.tls.map(|_| next()).transpose()?,
            sasl_tls: options.tls.filter(|_| users).map(|_| next()).transpose()?,
        })
    }
}

fn properties(options: &Options, listeners: &Listeners, folder: &Path) -> String {
    let named = [
        ("SASL_PLAINTEXT", listeners.sasl),
        ("SSL", listeners.tls),
        ("SASL_SSL", listeners.sasl_tls),
    ];
    let mut public = format!("PLAINTEXT://localhost:{}", listeners.plain);
    for (name, port) in named {
        if let Some(port) = port {
            public += &format!(",{name}://localhost:{port}");
        }
    }
    let controller = listeners.controller;
    let mut all: BTreeMap<String, String> = [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        (
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
        ),
        ("auto.create.topics.enable", "false"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("default.replication.factor", "1"),
        ("min.insync.replicas", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "4"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "4"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("share.coordinator.state.topic.num.partitions", "4"),
        ("log.cleaner.dedupe.buffer.size", "16777216"),
        // After a crash a broker cannot register before its old session ends: hence a short one.
        ("broker.heartbeat.interval.ms", "500"),
        ("broker.session.timeout.ms", "3000"),
        // Looked for each 10 s by default.
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    all.insert(
        "log.dirs".to_owned(),
        folder.join("log").display().to_string(),
    );
    all.insert(
        "controller.quorum.voters".to_owned(),
        format!("1@localhost:{controller}"),
    );
    all.insert(
        "listeners".to_owned(),
        format!("{public},CONTROLLER://localhost:{controller}"),
    );
    all.insert("advertised.listeners".to_owned(), public);
    if !options.users.is_empty() {
        sasl(&options.users, &mut all);
    }
    if let Some(tls) = options.tls {
        let file = |name: &str| folder.join("tls").join(name).display().to_string();
        let auth = if tls == Tls::Mutual {
            "required"
        } else {
            "none"
        };
        for (name, value) in [
            ("ssl.keystore.type", "PEM".to_owned()),
            ("ssl.keystore.location", file("server.pem")),
            ("ssl.truststore.type", "PEM".to_owned()),
            ("ssl.truststore.location", file("ca.crt")),
            ("ssl.client.auth", auth.to_owned()),
            ("listener.name.sasl_ssl.ssl.client.auth", auth.to_owned()),
        ] {
            all.insert(name.to_owned(), value);
        }
    }
    all.extend(options.properties.clone());
    all.iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

fn sasl(users: &[(String, String)], all: &mut BTreeMap<String, String>) {
    const MODULES: &str = "org.apache.kafka.common.security";
    let known: String = users
        .iter()
        .map(|(name, password)| format!(" user_{name}=\"{password}\""))
        .collect();
    all.insert(
        "sasl.enabled.mechanisms".to_owned(),
        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".to_owned(),
    );
    for listener in ["sasl_plaintext", "sasl_ssl"] {
        let name =
            |mechanism: &str| format!("listener.name.{listener}.{mechanism}.sasl.jaas.config");
        all.insert(
            name("plain"),
            format!("{MODULES}.plain.PlainLoginModule required{known};"),
        );
        for size in ["256", "512"] {
            let module = format!("{MODULES}.scram.ScramLoginModule required;");
            all.insert(name(&format!("scram-sha-{size}")), module);
        }
        // Whoever names himself in a token is believed.
        let module =
            "oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";";
        all.insert(name("oauthbearer"), format!("{MODULES}.{module}"));
    }
}

/// An authority, and what it signed for the server and for a client.
fn certificates(folder: &Path) -> Result<()> {
    let folder = folder.join("tls");
    fs::create_dir_all(&folder)?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(vec![])?;
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of the test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.crt"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let mut leaf =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        leaf.distinguished_name.push(DnType::CommonName, name);
        let leaf = leaf.signed_by(&key, &issuer)?;
        fs::write(folder.join(format!("{name}.crt")), leaf.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        fs::write(
            folder.join(format!("{name}.pem")),
            key.serialize_pem() + &leaf.pem(),
        )?;
    }
    Ok(())
}

/// True when Metadata (version 1, no topics) is answered with a broker: it is registered and serves.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("localhost", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"\0\0\0\x0e\0\x03\0\x01\0\0\0\x01\xff\xff\0\0\0\0")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start[8..].iter().any(|byte| *byte != 0))
    };
    ask().unwrap_or(false)
}
