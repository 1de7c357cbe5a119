//! Asking models and pipelines.
mod grpc;
mod headers;
mod rest;
mod session;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{grpc::Grpc, headers::Headers, rest::Rest, session::Routes};
use crate::{
    args::{Infer, InferFlags, InferenceMode, Metadata},
    connect::{self, Inference},
    output,
};

/// One answer: where it came from, and its text or its error.
struct Answer {
    routes: Vec<String>,
    outcome: Result<String, Refusal>,
}

/// An error that the other side answered.
struct Refusal {
    /// The HTTP status or the number of the gRPC code.
    code: u16,
    text: String,
}

/// Asks a model.
pub(crate) async fn model(args: Infer) -> Result<()> {
    run(args, "").await
}

/// Asks a pipeline, or an experiment over pipelines by its own name.
pub(crate) async fn pipeline(args: Infer) -> Result<()> {
    let experiment = args.name.ends_with(".experiment");
    run(args, if experiment { "" } else { ".pipeline" }).await
}

/// Prints what a model takes and gives.
pub(crate) async fn metadata(args: Metadata) -> Result<()> {
    let target = Inference::find(args.inference_host.as_deref(), &[b"http/1.1"])?;
    let headers = Headers::new(&args.name, &[])?;
    let path = format!("/v2/models/{}", args.name);
    let answer = Rest::new(target, args.authority, path, headers, false)
        .metadata()
        .await?;
    match answer.outcome {
        Ok(text) => output::line(output::indent(&text)),
        Err(refusal) => bail!(refusal.text),
    }
}

enum Asker {
    Rest(Box<Rest>),
    Grpc(Box<Grpc>),
}

impl Asker {
    async fn ask(&mut self, routes: &[String]) -> Result<Answer> {
        match self {
            Self::Rest(rest) => rest.infer(routes).await,
            Self::Grpc(grpc) => grpc.infer(routes).await,
        }
    }
}

async fn run(args: Infer, suffix: &str) -> Result<()> {
    let flags = args.flags.clone();
    let (name, data) = name_and_data(args)?;
    let headers = Headers::new(&format!("{name}{suffix}"), &flags.header)?;
    let mut asker = match flags.inference_mode {
        InferenceMode::Rest => {
            let target = Inference::find(flags.inference_host.as_deref(), &[b"http/1.1"])?;
            let path = target
                .path
                .clone()
                .unwrap_or_else(|| format!("/v2/models/{name}/infer"));
            if flags.show_request {
                output::line(output::indent(&data))?;
            }
            let rest = Rest::new(
                target,
                flags.authority.clone(),
                path,
                headers,
                flags.show_headers,
            );
            Asker::Rest(Box::new(rest.with_body(data)))
        }
        InferenceMode::Grpc => {
            let target = Inference::find(flags.inference_host.as_deref(), &[b"h2"])?;
            let request = grpc::request(&name, &data)?;
            if flags.show_request {
                output::line(seldon_inference::to_protojson(&request)?)?;
            }
            let grpc = Grpc::open(
                target,
                &flags.authority,
                request,
                headers,
                flags.show_headers,
            );
            Asker::Grpc(Box::new(grpc.await?))
        }
    };
    let mut routes = Routes::load();
    if flags.iterations == 1 && flags.seconds == 0 {
        once(&mut asker, &mut routes, &flags).await
    } else {
        many(&mut asker, &mut routes, &flags).await
    }
}

/// Name and request. Where a whole URL names the model, the request alone is enough.
fn name_and_data(args: Infer) -> Result<(String, String)> {
    let from_url = || {
        let (_, _, path) = connect::split_url(args.flags.inference_host.as_deref()?).ok()?;
        let path = path?;
        let mut parts = path.trim_start_matches('/').split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("v2"), Some("models" | "pipelines"), Some(name)) => Some(name.to_owned()),
            _ => None,
        }
    };
    let (name, data) = match args.data {
        None if args.name.trim_start().starts_with('{') => {
            let name = from_url().context("the name of the model comes before its data")?;
            (name, Some(args.name))
        }
        data => (args.name, data),
    };
    let data = match (data, &args.flags.file_path) {
        (Some(data), None) => data,
        (None, Some(path)) => {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        (Some(_), Some(_)) => bail!("data is given twice: as an argument and by --file-path"),
        (None, None) => {
            bail!("no data: give it as the second argument, or in a file by --file-path")
        }
    };
    Ok((name, data))
}

async fn once(asker: &mut Asker, routes: &mut Routes, flags: &InferFlags) -> Result<()> {
    let answer = asker.ask(routes.sent(flags.sticky_session)).await?;
    match answer.outcome {
        Ok(text) => {
            routes.save(&answer.routes)?;
            if flags.show_response {
                output::line(text)
            } else {
                Ok(())
            }
        }
        Err(refusal) => bail!(refusal.text),
    }
}

async fn many(asker: &mut Asker, routes: &mut Routes, flags: &InferFlags) -> Result<()> {
    let start = Instant::now();
    let mut successes = BTreeMap::<String, u64>::new();
    let mut errors = BTreeMap::<String, BTreeMap<u16, u64>>::new();
    let mut done = 0;
    // With a time the number of requests is open.
    let more = |done: u64| match flags.seconds {
        0 => done < flags.iterations,
        seconds => start.elapsed() < Duration::from_secs(seconds),
    };
    while more(done) {
        let answer = asker.ask(routes.sent(flags.sticky_session)).await?;
        match &answer.outcome {
            Ok(_) => {
                routes.save(&answer.routes)?;
                for route in answer.routes {
                    *successes.entry(route).or_default() += 1;
                }
            }
            Err(refusal) => {
                let mut failed = answer.routes;
                if failed.is_empty() {
                    failed.push(String::new());
                }
                for route in failed {
                    *errors
                        .entry(route)
                        .or_default()
                        .entry(refusal.code)
                        .or_default() += 1;
                }
            }
        }
        done += 1;
    }
    output::line(format_args!("Success: {}", output::go_map(&successes)))?;
    if errors.is_empty() {
        return Ok(());
    }
    let errors: BTreeMap<_, _> = errors
        .into_iter()
        .map(|(route, codes)| {
            let codes: Vec<_> = codes
                .iter()
                .map(|(code, count)| format!("{code}:{count}"))
                .collect();
            (route, format!("map[{}]", codes.join(" ")))
        })
        .collect();
    output::line(format_args!("Errors: {}", output::go_map(&errors)))
}

/// Routes in an answer: one a header, or several with commas or spaces between.
fn routes<'a>(values: impl Iterator<Item = &'a str>) -> Vec<String> {
    values
        .flat_map(|value| value.split([',', ' ']))
        .map(|route| route.trim().to_owned())
        .filter(|route| !route.is_empty())
        .collect()
}
