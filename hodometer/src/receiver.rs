//! A listener that takes events as MixPanel does and prints them: to see what is published, and an example for others.
use std::io::Write as _;
use std::net::IpAddr;

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::any};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What is printed of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum RecordLevel {
    /// Nothing
    None,
    /// Its name, when it was taken, and how many properties it has
    #[default]
    Summary,
    /// All of it, as JSON
    All,
}

/// Takes usage metrics and prints them to standard output, a line for each event.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-hodometer-receiver", version)]
pub struct Options {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "LISTEN_PORT", default_value_t = 8001)]
    pub listen_port: u16,
    /// Address to listen on.
    #[arg(long, env = "LISTEN_HOST", default_value = "0.0.0.0")]
    pub listen_host: IpAddr,
    /// What is printed of an event.
    #[arg(
        long,
        env = "RECORD_LEVEL",
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    pub record_level: RecordLevel,
    /// trace, debug, info, warn or error.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Serves until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind((options.listen_host, options.listen_port)).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let router = Router::new()
        .fallback(any(take))
        .with_state(options.record_level);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await?;
    Ok(())
}

/// Answers as MixPanel: 1 for what was taken, 0 for what was not.
async fn take(State(level): State<RecordLevel>, body: Bytes) -> (StatusCode, &'static str) {
    let Some(events) = events(&body) else {
        tracing::warn!("not a list of events with properties");
        return (StatusCode::BAD_REQUEST, "0");
    };
    let mut output = std::io::stdout().lock();
    for line in events.iter().filter_map(|event| line(level, event)) {
        // Nobody may read it any more.
        let _ = writeln!(output, "{line}");
    }
    (StatusCode::OK, "1")
}

/// One event, or a list of them; each has a name and properties.
fn events(body: &[u8]) -> Option<Vec<Value>> {
    let events = match serde_json::from_slice(body).ok()? {
        Value::Array(events) => events,
        event => vec![event],
    };
    let proper = |event: &Value| event["event"].is_string() && event["properties"].is_object();
    events.iter().all(proper).then_some(events)
}

fn line(level: RecordLevel, event: &Value) -> Option<String> {
    match level {
        RecordLevel::None => None,
        RecordLevel::All => Some(event.to_string()),
        RecordLevel::Summary => {
            let properties = event["properties"].as_object()?;
            let name = event["event"].as_str()?;
            let time = properties.get("time").map(Value::to_string);
            let time = time.unwrap_or_else(|| "?".to_owned());
            Some(format!("{name} at {time}: {} properties", properties.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"event":"e","properties":{"time":7,"model_count":2}}"#;

    #[test]
    fn one_event_or_a_list_is_taken_and_nothing_else() {
        assert_eq!(events(EVENT.as_bytes()).unwrap().len(), 1);
        let list = format!("[{EVENT},{EVENT}]");
        assert_eq!(events(list.as_bytes()).unwrap().len(), 2);
        for text in ["", "1", "[1]", r#"{"event":"e"}"#, r#"{"properties":{}}"#] {
            assert!(events(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn as_much_is_printed_as_was_asked_for() {
        let event: Value = serde_json::from_str(EVENT).unwrap();
        assert_eq!(line(RecordLevel::None, &event), None);
        let summary = line(RecordLevel::Summary, &event).unwrap();
        assert_eq!(summary, "e at 7: 2 properties");
        assert_eq!(line(RecordLevel::All, &event).unwrap(), EVENT);
    }

    #[test]
    fn levels_are_named_as_documented() {
        for (word, level) in [
            ("NONE", RecordLevel::None),
            ("SUMMARY", RecordLevel::Summary),
            ("ALL", RecordLevel::All),
        ] {
            let flag = format!("--record-level={word}");
            let options = Options::parse_from(["seldon-hodometer-receiver", &flag]);
            assert_eq!(options.record_level, level);
        }
    }
}
