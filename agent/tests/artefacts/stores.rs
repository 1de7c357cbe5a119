//! Stores for artefacts: a real S3 server, and a web server whose files come when a test says so.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use crate::common::{get, until};

/// Writes a file as if it had been there for an hour: its time alone tells whether it changed since it was fetched.
pub fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
}

/// The keys of the documented secret.
pub const KEY: &str = "minioadmin";

/// An S3 server; the folders in `root` are its buckets.
pub struct S3 {
    child: Child,
    pub port: u16,
    pub root: PathBuf,
    log: PathBuf,
}

impl S3 {
    pub async fn start(folder: &Path) -> Self {
        let root = folder.join("buckets");
        write(&root.join("models/iris/model.joblib"), "weights");
        write(&root.join("models/iris/notes/read-me.txt"), "about");
        let program = tokio::task::spawn_blocking(|| {
            seldon_components::Cache::open()
                .unwrap()
                .s3_server()
                .unwrap()
        });
        let program = program.await.unwrap();
        // A port that is free now may be taken before the server has it.
        for _ in 0..5 {
            let port = crate::common::bind(0).unwrap().local_addr().unwrap().port();
            if let Some(server) = Self::on(&program, folder, port).await {
                return server;
            }
        }
        panic!("no port for the S3 server");
    }

    async fn on(program: &Path, folder: &Path, port: u16) -> Option<Self> {
        let log = folder.join("s3.log");
        let file = std::fs::File::create(&log).unwrap();
        let root = folder.join("buckets");
        let child = Command::new(program)
            .arg("serve")
            .arg(format!("--data-dir={}", root.display()))
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .envs([("NANIO_ACCESS_KEY", KEY), ("NANIO_SECRET_KEY", KEY)])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            port,
            root,
            log,
        };
        let started = until("the S3 server", async || {
            if server.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let up = tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok();
            // Without a signature it says no.
            if up {
                Some(get(port, "/").await.0 == 403)
            } else {
                None
            }
        });
        started.await.then_some(server)
    }

    /// How often a file was sent.
    pub fn sent(&self, path: &str) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let line = format!("\"GET /{path}?");
        log.lines().filter(|text| text.contains(&line)).count()
    }

    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The documented secret's content, for a remote of this server.
    pub fn storage(&self, name: &str, access: &str, secret: &str) -> serde_json::Value {
        serde_json::json!({"type": "s3", "name": name, "parameters": {
            "provider": "minio",
            "env_auth": false,
            "access_key_id": access,
            "secret_access_key": secret,
            "endpoint": format!("http://127.0.0.1:{}", self.port),
        }})
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a web server has seen.
#[derive(Default)]
pub struct Seen {
    /// How often each file was asked for.
    pub asked: HashMap<String, usize>,
    /// How many answers were cut off by the one who asked.
    pub cut: usize,
}

#[derive(Clone)]
struct Shared {
    files: Arc<HashMap<String, String>>,
    seen: Arc<Mutex<Seen>>,
    open: watch::Receiver<bool>,
}

/// A web server with a folder `m`. What its file `slow.bin` holds comes when it is opened.
pub struct Web {
    pub port: u16,
    pub seen: Arc<Mutex<Seen>>,
    open: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Web {
    pub async fn start() -> Self {
        let files = [("model.joblib", "weights"), ("slow.bin", "long awaited")];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let open = watch::Sender::new(false);
        let shared = Shared {
            files: Arc::new(files.into()),
            seen: Arc::default(),
            open: open.subscribe(),
        };
        let seen = shared.seen.clone();
        let router = axum::Router::new()
            .route("/m/", axum::routing::get(list))
            .route("/m/{file}", axum::routing::get(send))
            .with_state(shared);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            port,
            seen,
            open,
            server,
        }
    }

    pub fn asked(&self, file: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .asked
            .get(file)
            .copied()
            .unwrap_or(0)
    }

    pub fn cut(&self) -> usize {
        self.seen.lock().unwrap().cut
    }

    /// Lets `slow.bin` through.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn list(State(shared): State<Shared>) -> Response {
    let links = shared
        .files
        .keys()
        .map(|name| format!("<a href=\"{name}\">{name}</a>\n"));
    let page = links.collect::<String>();
    ([(header::CONTENT_TYPE, "text/html")], page).into_response()
}

async fn send(
    State(shared): State<Shared>,
    method: Method,
    UrlPath(name): UrlPath<String>,
) -> Response {
    let Some(text) = shared.files.get(&name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (
            header::LAST_MODIFIED,
            "Mon, 02 Mar 2020 10:00:00 GMT".to_owned(),
        ),
        (header::CONTENT_LENGTH, text.len().to_string()),
    ];
    if method == Method::HEAD {
        return (headers, Body::empty()).into_response();
    }
    *shared
        .seen
        .lock()
        .unwrap()
        .asked
        .entry(name.clone())
        .or_default() += 1;
    if name != "slow.bin" {
        return (headers, text).into_response();
    }
    let mut guard = Cut(Some(shared.seen.clone()));
    let mut open = shared.open.clone();
    let body = futures_util::stream::once(async move {
        let _ = open.wait_for(|open| *open).await;
        guard.sent();
        Ok::<_, std::convert::Infallible>(text)
    });
    (headers, Body::from_stream(body)).into_response()
}

/// Counts an answer that was dropped before its end.
struct Cut(Option<Arc<Mutex<Seen>>>);

impl Cut {
    fn sent(&mut self) {
        self.0 = None;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(seen) = self.0.take() {
            seen.lock().unwrap().cut += 1;
        }
    }
}
