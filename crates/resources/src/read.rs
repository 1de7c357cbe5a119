//! From the text of a manifest file to checked manifests.
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Experiment, Mistake, Mistakes, Model, ObjectMeta, Pipeline, Server, check, experiment,
    tree::{self, Node, Step},
};

/// One manifest of any kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Manifest {
    Model(Box<Model>),
    Server(Box<Server>),
    Pipeline(Box<Pipeline>),
    Experiment(Box<Experiment>),
}

/// A manifest and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The line of the document's first key, counted from 1.
    pub line: u64,
    /// What it says.
    pub manifest: Manifest,
}

impl Manifest {
    /// `metadata`.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Model(model) => &model.metadata,
            Self::Server(server) => &server.metadata,
            Self::Pipeline(pipeline) => &pipeline.metadata,
            Self::Experiment(experiment) => &experiment.metadata,
        }
    }

    /// `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Model(_) => "Model",
            Self::Server(_) => "Server",
            Self::Pipeline(_) => "Pipeline",
            Self::Experiment(_) => "Experiment",
        }
    }

    pub(crate) fn api_version(&self) -> &str {
        match self {
            Self::Model(model) => &model.api_version,
            Self::Server(server) => &server.api_version,
            Self::Pipeline(pipeline) => &pipeline.api_version,
            Self::Experiment(experiment) => &experiment.api_version,
        }
    }
}

/// Reads all documents of a file, or finds all that is wrong with them. `source` names the file in the mistakes.
pub fn read(source: &str, text: &str) -> Result<Vec<Document>, Mistakes> {
    let mut documents = Vec::new();
    let mut mistakes = Vec::new();
    for (offset, piece) in pieces(text) {
        match read_one(&piece) {
            Ok(None) => {}
            Ok(Some(document)) => documents.push(Document {
                line: document.line + offset,
                ..document
            }),
            Err(found) => mistakes.extend(found.into_iter().map(|(line, path, reason)| Mistake {
                source: source.to_owned(),
                line: if line == 0 { 0 } else { line + offset },
                path,
                reason,
            })),
        }
    }
    if documents.is_empty() && mistakes.is_empty() {
        mistakes.push(Mistake {
            source: source.to_owned(),
            line: 0,
            path: String::new(),
            reason: "no manifest in it, expected apiVersion, kind, metadata and spec".to_owned(),
        });
    }
    if mistakes.is_empty() {
        Ok(documents)
    } else {
        Err(Mistakes(mistakes))
    }
}

/// Line, path and reason of what is wrong in one document.
type Found = (u64, String, String);

fn read_one(text: &str) -> Result<Option<Document>, Vec<Found>> {
    let node = tree::parse(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        vec![(
            line,
            String::new(),
            first_line(&error.without_snippet().to_string()),
        )]
    })?;
    let value = node.to_value();
    if value.is_null() {
        return Ok(None);
    }
    let line = node.line_of([]);
    let kind = kind_of(&value, &node)?;
    let manifest = match kind.as_str() {
        "Model" => Manifest::Model(typed(value, &node)?),
        "Server" => Manifest::Server(typed(value, &node)?),
        "Pipeline" => Manifest::Pipeline(typed(value, &node)?),
        "Experiment" => {
            let numbers = experiment::numbers(&value);
            if !numbers.is_empty() {
                return Err(numbers
                    .into_iter()
                    .map(|(path, reason)| located(&node, &path, reason))
                    .collect());
            }
            Manifest::Experiment(typed(value, &node)?)
        }
        _ => {
            let reason =
                format!("\"{kind}\" is not known, expected Model, Server, Pipeline or Experiment");
            return Err(vec![(
                node.line_of([Step::Key("kind")]),
                "kind".to_owned(),
                reason,
            )]);
        }
    };
    let found: Vec<Found> = check::findings(&manifest)
        .into_iter()
        .map(|(path, reason)| {
            let line = node.line_of(path.iter().map(|key| Step::Key(key)));
            (line, path.join("."), reason)
        })
        .collect();
    if found.is_empty() {
        Ok(Some(Document { line, manifest }))
    } else {
        Err(found)
    }
}

fn located(node: &Node, path: &[Step<'_>], reason: String) -> Found {
    (
        node.line_of(path.iter().copied()),
        tree::written(path),
        reason,
    )
}

fn kind_of(value: &Value, node: &Node) -> Result<String, Vec<Found>> {
    #[derive(Deserialize)]
    struct Head {
        kind: String,
    }
    let head: Box<Head> = typed(value.clone(), node)?;
    Ok(head.kind)
}

fn typed<T: DeserializeOwned>(value: Value, node: &Node) -> Result<Box<T>, Vec<Found>> {
    serde_path_to_error::deserialize(value)
        .map(Box::new)
        .map_err(|error| {
            let line = node.line_of(tree::steps(error.path()));
            let path = match error.path().to_string() {
                root if root == "." => String::new(),
                path => path,
            };
            vec![(line, path, error.into_inner().to_string())]
        })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Splits at document markers: each piece with the number of lines before it. A line that begins with `---` or `...`
/// is a marker wherever it stands, YAML forbids it inside a text.
fn pieces(text: &str) -> Vec<(u64, String)> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    let mut offset = 0;
    for (number, line) in (0..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let marker = ["---", "..."]
            .iter()
            .find_map(|marker| line.strip_prefix(marker))
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match marker {
            Some(rest) => {
                pieces.push((offset, std::mem::take(&mut piece)));
                offset = number;
                // The content of a marker line keeps its column.
                piece.push_str("   ");
                piece.push_str(rest);
            }
            // A directive says nothing that these manifests need.
            None if line.starts_with('%') && piece.trim().is_empty() => {}
            None => piece.push_str(line),
        }
        piece.push('\n');
    }
    pieces.push((offset, piece));
    pieces.retain(|(_, piece)| {
        piece.lines().any(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with('#')
        })
    });
    pieces
}
